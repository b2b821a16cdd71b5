"""`Lab(scale)`: asks for measurements; serves them from the records, or computes and records them.

Nothing else knows whether a measurement is recorded, and nothing else reads the mode.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from torch import Tensor, nn

from rfnlib import data, execution, extensions, features, paths, recipes, records, scales, snapshots, training, zoo
from rfnlib.checks import is_whole, require
from rfnlib.measurements import Arm, Measurement
from rfnlib.outside import Outside
from rfnlib.probes import Clean, Probe, Row
from rfnlib.progress import Progress
from rfnlib.recipes import Recipe
from rfnlib.scale import STANDARD, Scale, Target
from rfnlib.specs import FeatureSet, TrainSpec
from rfnlib.subjects import Bench, Subject
from rfnlib.surrogates import State
from rfnlib.transforms import named

MODES = ("replay", "run")
FACTS = ("iteration", "history", "cost", "execution")  # of a subject, in the file of its released weights
K = TypeVar("K")


class MissingRecord(LookupError):
    """A measurement that is not recorded, asked for in replay."""


class Lab:
    """Measurements at one scale.

    Args:
        scale: a name in `scales.SCALES`, or a `Scale`.
        mode: "replay" serves records only; "run" computes and records what is missing.
        seeds: of the judged surrogates; None: the scale's.
        device: "auto", "cpu" or "cuda".
        tick: called after every unit of work (an epoch, a row); may raise to stop in time.

    Raises:
        ValueError: an unknown scale, mode, device or seed.
    """

    def __init__(
        self,
        scale: str | Scale = "laptop",
        mode: str = "replay",
        seeds: Sequence[int] | None = None,
        device: str = "auto",
        records_dir: Path | None = None,
        cache_dir: Path | None = None,
        weights_dir: Path | None = None,
        tick: Callable[[], None] = lambda: None,
    ):
        extensions.load()
        require(mode in MODES, f"mode is {mode!r}; give one of {', '.join(map(repr, MODES))}.")
        self.scale = scale if isinstance(scale, Scale) else scales.get(scale)
        self.mode = mode
        given = self.scale.seeds if seeds is None else seeds
        whole = isinstance(given, Sequence) and all(is_whole(s, 0, 999) for s in given)
        require(
            whole and given and len(set(given)) == len(given),
            f"seeds is {seeds!r}; give one or more different integers from 0 to 999 in a list, such as [0, 1] "
            "(papermill takes one as -y 'seeds: [0, 1]'; -p makes text of it).",
        )
        chosen_by = sorted(set(given) & set(self.scale.pilots))
        require(
            not chosen_by,
            f"seeds {chosen_by} are pilots of {self.scale.name} scale: what they choose must not be judged on them; "
            "give others.",
        )
        self.seeds = list(given)
        self.few = self.seeds[: self.scale.few]
        self.device = execution.resolve(device).device
        self.folder = (records_dir or paths.records_dir()) / self.scale.name
        self.cache = (cache_dir or paths.cache_dir()) / self.scale.name
        self.weights = (weights_dir or paths.weights_dir()) / self.scale.name
        self.tick = tick
        self.records = {r.key: r for r in records.read_all(self.folder)}
        self._empty: dict[tuple, records.Record] = {}  # by what they measure: making one takes its time

    # --- what is shown and read --------------------------------------------------------------------

    def shown(self, arms: Mapping[K, Arm], needed: Iterable[K] = (), probe: Probe | None = None) -> dict[K, Arm]:
        """The one rule for what appears: an arm is shown once all of its seeds are recorded, or can be computed.

        Nothing of an arm is shown before, so that no difference is looked at before the planned seeds are complete.

        Args:
            needed: the arms without which there is nothing to show.
            probe: which of their questions it is about; None: the first.

        Raises:
            MissingRecord: in replay, a needed arm is not complete.
        """
        lacking: dict[K, Measurement] = {}
        for key, arm in arms.items() if self.mode == "replay" else ():
            for m in [Measurement(spec, arm.question(probe)) for spec in arm.specs]:
                if self.missing(m):
                    lacking.setdefault(key, m)
        for key in needed:
            if key in lacking:
                raise self._missing(lacking[key], arms[key])
        return {key: arm for key, arm in arms.items() if key not in lacking}

    def curves(self, arms: Mapping[K, Arm], probe: Probe | None = None, needed: Iterable[K] = ()) -> dict[K, Any]:
        """The curve of every arm that is `shown`, for one of its questions."""
        return {key: self.read(arm, probe) for key, arm in self.shown(arms, needed, probe).items()}

    def read(self, arm: Arm, probe: Probe | None = None, **how: Any) -> Any:
        """The curve of `arm` for one of its questions; in a run, computed where it is missing.

        Args:
            probe: which question; None: the first.
            how: what the probe's reading takes, such as role="validation".

        Raises:
            MissingRecord: in replay, something is not recorded: the message says how to compute it.
            LookupError: a question that the arm does not ask.
        """
        at = arm.question(probe)
        found = [self.measure(Measurement(spec, at)) for spec in arm.specs]
        rows = [[cast(Row, record.at(e)) for e in at.epochs] for record in found]  # complete, for it was measured
        return at.probe.read(self, arm, at, rows, **how)

    def replaying(self) -> Lab:
        """A view of this lab that never computes: what listing goes through."""
        view = object.__new__(Lab)
        view.__dict__ = {**self.__dict__, "mode": "replay"}
        return view

    def target_table(self, *roles: str) -> pd.DataFrame:
        """Each target of `roles` (none: the standard ones) with its natural accuracy, on test and training images."""
        targets = sorted(self.scale.targets, key=lambda t: t.role != "test")
        rows = [(t, self.measure(self.scale.clean(t)).rows[-1]) for t in targets if t.role in (roles or STANDARD)]
        return pd.DataFrame(
            [{"target": t.name, "role": t.role, "natural accuracy": r["accuracy"],
              "training accuracy": r.get("train_accuracy")} for t, r in rows]
        ).set_index("target")  # fmt: skip

    def clean(self, against: str) -> tuple[list[Target], np.ndarray, list[str]]:
        """The targets that `against` names, their errors on clean images (images, targets), and their digests."""
        targets = self.scale.targets_of(against)
        rows = [self.measure(m).rows[-1] for m in self.scale.cleans[against]]
        n = self.scale.test_images + self.scale.validation_images
        wrong = np.stack([records.unpack(r["clean_wrong"], (n,)) for r in rows], 1)
        return targets, wrong, [r["weights"] for r in rows]

    def source(self) -> str:
        """Where the numbers come from, in one line for the reader."""
        made = [m for r in self.records.values() for m in r.provenance]
        if not made:
            return f"{self.scale.name} scale: nothing is recorded"
        days, on = sorted({m["date"] for m in made}), ", ".join(sorted({m["hardware"] for m in made}))
        when = " to ".join(dict.fromkeys((days[0], days[-1])))
        twice = len(self.trained_twice())
        but = f"; networks trained twice, with different bits, and measured both times: {twice}" if twice else ""
        return f"{self.scale.name} scale: records computed on {on}, {when}{but}"

    def trained_twice(self) -> dict[str, set[str]]:
        """The digests of the weights that records name for the same history of training, where they are several.

        So it is where the cache of a run was lost and another machine trained it anew for a further measurement. Both
        networks are what the spec asks for; but measurements of the two are not of one network.
        """
        found: dict[str, set[str]] = {}
        for record in self.records.values():
            for row in record.rows:
                found.setdefault(row["snapshot"], set()).add(row["weights"])
        return {history: weights for history, weights in found.items() if len(weights) > 1}

    # --- one measurement ---------------------------------------------------------------------------

    def find(self, m: Measurement) -> records.Record:
        """What is recorded of `m`, possibly nothing."""
        about = m.probe, m.spec, m.recipe
        if about not in self._empty:
            settings = m.probe.settings(self.scale) | ({"recipe": named(m.recipe)} if m.recipe else {})
            self._empty[about] = records.Record(m.probe.kind, m.spec, records.plain(settings), self._data_checksum)
        empty = self._empty[about]
        return self.records.get(empty.key, empty)

    def missing(self, m: Measurement) -> tuple[float, ...]:
        """The epochs of `m` that are not recorded yet."""
        record = self.find(m)
        return tuple(e for e in m.epochs if record.at(e) is None)

    def measure(self, m: Measurement) -> records.Record:
        """The record of `m`, complete.

        Raises:
            MissingRecord: in replay, rows are missing.
        """
        missing = self.missing(m)
        if missing and self.mode == "replay":
            raise self._missing(m)
        if missing:
            with Progress(len(missing), m.label) as bar:
                for row, made in self.rows(m):
                    self.add(m, row, made)
                    accuracy = f", accuracy {row['accuracy']:.1%}" if "accuracy" in row else ""
                    bar.advance(1, f"epoch {row['epoch']:g}{accuracy}")
        return self.find(m)

    def rows(self, m: Measurement) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Compute what is missing of `m`: each row, and who made it. Nothing is written: see `add`."""
        if not self.missing(m):
            return
        per_epoch = self._per_epoch(m.spec)
        shared = self._shared(m)
        for row, made in shared.values():
            yield {**{k: v for k, v in row.items() if k != "made"}, "per_epoch": per_epoch}, made
        missing = [e for e in self.missing(m) if e not in shared]
        for subject in self._subjects(m, missing) if missing else ():
            start, schedule, passes = time.monotonic(), m.spec.schedule, subject.cost["passes"]
            row = {
                "epoch": round(subject.iteration / per_epoch, 4),
                "iteration": subject.iteration,
                "snapshot": subject.history,
                "weights": subject.digest,
                "lr": schedule and schedule.at((subject.iteration - 1) / per_epoch, m.spec.epochs),
                "epochs_of_passes": None if passes is None else round(passes / per_epoch, 3),
                "skipped": subject.cost["skipped"],
                **m.probe.row(self.bench, subject),
            }
            row["seconds"] = round(time.monotonic() - start, 2)
            yield {**row, "per_epoch": per_epoch}, records.provenance(self.device, subject.execution)
            self.tick()

    def add(self, m: Measurement, row: Row, made: dict[str, Any]) -> None:
        """Record `row` of `m`, which `made` computed."""
        found = self.find(m)  # which is as it was if the row cannot be written
        record = replace(found, rows=[*found.rows], provenance=[*found.provenance])
        record.add(row, made)
        self.records[record.key] = records.write(record, self.folder)

    def _shared(self, m: Measurement) -> dict[float, tuple[Row, dict[str, Any]]]:
        """Rows of other runs that were the same networks at epochs missing of `m`, and who made them."""
        record = self.find(m)
        known = {
            row["snapshot"]: (row, other.provenance[row["made"]])
            for other in self.records.values()
            if (other.kind, other.settings, other.data) == (record.kind, record.settings, record.data)
            for row in other.rows
        }
        histories = {e: self._history(m.spec, e, m.recipe) for e in self.missing(m)}
        return {e: known[history] for e, history in histories.items() if history in known}

    def _subjects(self, m: Measurement, epochs: Iterable[float]) -> Iterator[Subject]:
        """The weights that `m` asks for, trained if need be."""
        if m.probe.kind == Clean.kind or isinstance(m.spec, Outside):
            yield replace(self._released(m.spec), recipe=m.recipe)
            return
        yield from self._networks(m.spec, list(epochs), m.recipe)

    def _networks(self, spec: TrainSpec, epochs: Sequence[float], recipe: Recipe | None = None) -> Iterator[Subject]:
        """`spec`'s networks at `epochs`, or what `recipe` makes of them: from released files, else trained."""
        released = [self._file(spec, e, recipe=recipe) for e in epochs]
        if all(path.exists() for path in released):
            yield from (self._checked(spec, path, *zoo.read(path)) for path in released)
        else:
            yield from self._trained(spec, epochs, recipe)

    def _trained(self, spec: TrainSpec, epochs: Sequence[float], recipe: Recipe | None = None) -> Iterator[Subject]:
        """The same, trained if need be. All are rounded, so that any network can be released as it was measured."""
        if recipe:  # all that is collected is trained on the way to the last
            list(self._train(spec, recipes.collected(recipe, max(epochs))))
        others = [next(self._networks(run, [epoch], made)) for run, epoch, made in recipes.members(recipe, spec)]
        before = self._before(spec) + sum(other.cost["passes"] or 0 for other in others)
        for s in self._train(spec, epochs):
            parts = list(self._train(spec, recipes.collected(recipe, s.epoch))) if recipe else ()
            cost: dict[str, int | None] = {"passes": s.cost["passes"] + before, "skipped": s.cost["skipped"]}
            behind, weights = recipes.history(recipe, s.history), zoo.rounded(s.weights())
            found = Subject(spec, s.iteration, s.per_epoch, behind, weights, cost, recipe, parts, others, s.execution)
            if recipes.merges(recipe):
                merged = self.bench.network(found).cpu().state_dict()
                found = replace(found, weights=zoo.rounded(merged), recipe=None, collected=())
            yield found

    def _per_epoch(self, spec: TrainSpec | Outside) -> int:
        return 1 if isinstance(spec, Outside) else training.steps_per_epoch(spec, self.trained_on(spec))

    def _history(self, spec: TrainSpec | Outside, epoch: float, recipe: Recipe | None) -> str:
        """The key of what lies behind the weights of `spec` at `epoch`, or those that `recipe` makes of them."""
        per_epoch = self._per_epoch(spec)
        return recipes.history(recipe, spec.history_key(max(1, round(epoch * per_epoch)), per_epoch))

    def _before(self, spec: TrainSpec) -> int:
        """Passes of the runs that `spec` starts from, in batches as large as its own."""
        if spec.start is None:
            return 0
        (last,) = self._train(spec.start, [spec.start.epochs])
        return round((last.cost["passes"] + self._before(spec.start)) * spec.start.batch / spec.batch)

    def release(
        self, spec: TrainSpec, epoch: float | None = None, name: str = "", recipe: Recipe | None = None
    ) -> Path:
        """Put a network among the released weights, rounded as it was measured: `zoo.load` then has it by its name.

        The recorded network stays where it is there already; another one in its place is replaced.

        Args:
            epoch: None: the last one. What is released needs no training to be measured again.
            name: such as "rfn-0"; empty: after the spec.
            recipe: one that merges weights of the run, such as `Averaged`; None: they are the run's own.

        Returns:
            Its file.

        Raises:
            ValueError: a recipe that merges no weights.
            MissingRecord: nothing is recorded about it, so nobody could compare.
            BadRecord: trained here it is another network than the recorded one.
            DamagedSnapshot: the file that is there was altered.
        """
        require(recipe is None or recipes.merges(recipe), f"{recipe} makes no network of {spec.short_name} that could "
                                                          "be released; give one that merges weights.")  # fmt: skip
        epoch = float(spec.epochs if epoch is None else epoch)
        behind = self._history(spec, epoch, recipe)
        rows = [r.at(epoch) for r in self.records.values() if (r.spec, r.data) == (spec, self._data_checksum)]
        digests = {row["weights"] for row in rows if row and row["snapshot"] == behind}
        if not digests:
            raise MissingRecord(f"nothing is recorded of {spec.short_name} at epoch {epoch:g}; measure it first.")
        path = self._file(spec, epoch, name, recipe)
        if path.exists() and digests == {snapshots.weights_digest(zoo.read(path)[0])}:
            return path
        (subject,) = self._trained(spec, [epoch], recipe)
        if digests != {subject.digest}:
            raise records.BadRecord(
                f"{spec.short_name} at epoch {epoch:g} was recorded with the weights {', '.join(sorted(digests))} and "
                f"has {subject.digest} here; release it where it was measured, or measure it again."
            )
        made = {"recipe": named(recipe)} if recipe else {}
        zoo.write(path, subject.weights, spec=spec.describe(), **made, **self._about(subject))
        return path

    def _about(self, s: Subject) -> dict[str, Any]:
        """What a released file says of its network besides how it was trained."""
        return {**{name: getattr(s, name) for name in FACTS}, "data": self._data_checksum}

    def _file(self, spec: TrainSpec, epoch: float, name: str = "", recipe: Recipe | None = None) -> Path:
        """Where a network of `spec` is released, there or not."""
        last = epoch == spec.epochs
        iteration = None if last else max(1, round(epoch * self._per_epoch(spec)))
        return zoo.path_of(self.weights, spec, iteration, name, recipe)

    # --- targets -----------------------------------------------------------------------------------

    def _released(self, spec: TrainSpec | Outside) -> Subject:
        """A target: its released weights, or those of its training, rounded and put among them.

        A network from outside stands for itself.
        """
        if isinstance(spec, Outside):
            return Subject(spec, 1, 1, spec.digest, {}, {"passes": None, "skipped": 0})

        def trained() -> tuple[dict, dict]:
            (last,) = self._trained(spec, [spec.epochs])
            return last.weights, self._about(last)

        found = zoo.obtain(self.weights, spec, trained, self.scale.called(spec))
        return self._checked(spec, self._file(spec, spec.epochs), *found)

    def _checked(self, spec: TrainSpec, path: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> Subject:
        """What the released file at `path` holds.

        Raises:
            BadRecord: it was trained on other data.
        """
        on = about.get("data", self._data_checksum)  # older files do not say
        if on != self._data_checksum:
            raise records.BadRecord(
                f"{path} was trained on another {spec.data} ({on}) than the one that is there ({self._data_checksum}); "
                "restore the data set, or move the file away to have the network trained anew."
            )
        facts = {name: about[name] for name in FACTS if name in about}
        return Subject(spec, per_epoch=self._per_epoch(spec), weights=weights, **facts)

    @functools.lru_cache(maxsize=3)  # noqa: B019 (a lab lives as long as its process)
    def _targets(self, against: str) -> list[tuple[str, nn.Module]]:
        """The targets with the digests of their weights, which must be those of the recorded clean errors.

        Raises:
            BadRecord: they are not.
        """
        targets, _, recorded = self.clean(against)
        found = []
        for target, digest in zip(targets, recorded, strict=True):
            subject = self._released(self.scale.target(target))
            if subject.digest != digest:
                raise records.BadRecord(
                    f"target {target.name} has other weights ({subject.digest}) than those that were recorded "
                    f"({digest}), so that hits on it would be counted against another network's errors; restore its "
                    f"file in {self.weights}, or delete that file and the records of {self.scale.name} scale."
                )
            found.append((digest, self.bench.network(subject)))
        return found

    # --- data and training -------------------------------------------------------------------------

    @functools.cached_property
    def _data_checksum(self) -> str:
        return data.checksum(self.scale.data)[:16]

    def dataset(self, wanted: FeatureSet | None = None) -> data.Dataset:
        """The scale's data set, or the set of features `wanted`: from the cache, or built, its network first."""
        return self._built(wanted) if wanted else self._images

    def trained_on(self, spec: TrainSpec) -> data.Dataset:
        """The data set of a run: that of the scale, a built one, or another cut than the scale's."""
        return self._built(spec.features) if spec.features else self.cut(*spec.cut)

    def cut(self, *cut: Any) -> data.Dataset:
        """The scale's data set, cut as `TrainSpec.cut` says."""
        return self._images if cut == (self.scale.n_train, 0, 0.0, 0) else self._cut(*cut)

    @functools.cached_property
    def _images(self) -> data.Dataset:
        return data.load(self.scale.data).subset(self.scale.n_train).to(self.device)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (a lab lives as long as its process)
    def _cut(self, *cut: Any) -> data.Dataset:
        return data.load(self.scale.data).cut(*cut).to(self.device)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (a lab lives as long as its process)
    def _built(self, wanted: FeatureSet) -> data.Dataset:
        (last,) = self._train(wanted.model, [wanted.model.epochs])
        model = last.load_into(training.network(wanted.model, self.dataset()))
        model = self.bench.how.place(model).requires_grad_(False)
        return features.build(wanted, model, self.dataset(), cache=self.cache, tick=self.tick)

    @functools.cached_property
    def bench(self) -> Bench:
        """The scale's images and targets on the device."""
        images, tick = self.dataset(), lambda: self.tick()
        return Bench(self.scale, images, self.device, self._targets, tick, self._weights, self._known)

    def _known(self, s: Subject) -> Row | None:
        """The accuracies of a network that are recorded, of the same data and as many images."""
        n = self.scale.accuracy_images
        return records.accuracies(self.records.values(), self._data_checksum, n, s.history, s.digest)

    def _train(self, spec: TrainSpec, at: Iterable[float]) -> Iterator[snapshots.Snapshot]:
        branches = [float(m) for m in (*self.scale.decays, *self.scale.standard) if m <= spec.epochs]
        return training.train(
            spec,
            [float(e) for e in at],
            dataset=self.trained_on(spec),
            cache=self.cache,
            keep=branches,
            device=self.device,
            tick=self.tick,
        )

    def _weights(self, spec: TrainSpec, epoch: float) -> State:
        """The weights of `spec`'s network after `epoch` epochs, as it would be measured."""
        (subject,) = self._networks(spec, [epoch])
        return subject.weights

    def _missing(self, m: Measurement, arm: Arm | None = None) -> MissingRecord:
        what = f"{arm.name}: " if arm else ""
        lacking, name = len(self.missing(m)), self.scale.name
        none = "" if any(self.folder.glob("*.json")) else (
            f" There is no record at all in {self.folder}: where the repository's are elsewhere, name their folder "
            "data/records in RFN_RECORDS."
        )  # fmt: skip
        return MissingRecord(
            f"{what}{m.label} lacks {lacking} of {len(m.epochs)} rows at {name} scale; compute them with "
            f'`python -m rfnlib run --scale {name}` or mode "run".{none}'
        )
