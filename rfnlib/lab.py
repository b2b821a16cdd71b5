"""`Lab(scale)`: asks for measurements; serves them from the records, or computes and records them."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from rfnlib import data, execution, features, paths, records, scales, training, transfer
from rfnlib.attacks import IterativeAttack
from rfnlib.checks import is_whole
from rfnlib.probes import Probes
from rfnlib.progress import Progress
from rfnlib.recipes import Recipe, collected
from rfnlib.series import Flatness, Robustness, Series
from rfnlib.specs import FeatureSet, TrainSpec
from rfnlib.transforms import named

MODES = ("replay", "run")
# The settings of a probe by its kind: where the scale has them. A check is robust accuracy on more images.
SETTINGS = {"sharpness": "sharpness", "robust": "robustness", "check": "checks"}


class MissingRecord(LookupError):
    """A measurement that is not recorded, asked for in replay."""


class Lab:
    """Measurements at one scale.

    Args:
        scale: "smoke", "laptop" or "paper", or a `Scale`.
        mode: "replay" serves records only; "run" computes and records what is missing.
        seeds: of the surrogates; None: the scale's.
        device: "auto", "cpu" or "cuda".
        tick: called after every unit of work (an epoch, a probe); may raise to stop in time.

    Raises:
        ValueError: an unknown scale, mode, device or seed.
    """

    def __init__(
        self,
        scale: str | scales.Scale = "laptop",
        mode: str = "replay",
        seeds: Sequence[int] | None = None,
        device: str = "auto",
        records_dir: Path | None = None,
        cache_dir: Path | None = None,
        tick: Callable[[], None] = lambda: None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; give one of {', '.join(map(repr, MODES))}.")
        self.scale = scales.get(scale) if isinstance(scale, str) else scale
        self.mode = mode
        self.seeds = list(self.scale.seeds if seeds is None else seeds)
        whole = all(is_whole(s, 0, 999) for s in self.seeds)
        if not self.seeds or not whole or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; give one or more different integers from 0 to 999.")
        self.device = execution.resolve(device).device
        self.folder = (records_dir or paths.records_dir()) / self.scale.name
        self.cache = (cache_dir or paths.cache_dir()) / self.scale.name
        self.tick = tick
        self.records = {r.key: r for r in records.read_all(self.folder)}

    # --- what is asked for -------------------------------------------------------------------------

    def transfer(
        self,
        runs: dict[str, list[TrainSpec]],
        *,
        epochs: list[float] | None = None,
        role: str = "test",
        attack: IterativeAttack | None = None,
        recipe: Recipe | None = None,
    ) -> dict[str, Series]:
        """Attack snapshots of `runs` and try the examples on every target.

        Args:
            runs: training runs by name, a list of seeds each.
            epochs: of the snapshots; None: those that the scale probes.
            role: "test"; "validation" for choosing: other images, other targets; or "robust": targets that are
                trained adversarially.
            attack: None: the scale's.
            recipe: what is attacked of a run, see `rfnlib.recipes`; None: its network.

        Raises:
            MissingRecord: in replay, something is not recorded: the message says how to compute it.
        """
        return {name: self._series(name, specs, epochs, role, attack, recipe) for name, specs in runs.items()}

    def sharpness(
        self, runs: dict[str, list[TrainSpec]], epochs: list[float], recipe: Recipe | None = None
    ) -> dict[str, Flatness]:
        """Measure the sharpness of `runs` at `epochs`; raises as `transfer`."""
        return {name: self._flatness(name, specs, epochs, recipe) for name, specs in runs.items()}

    def robustness(
        self, runs: dict[str, list[TrainSpec]], epochs: list[float], recipe: Recipe | None = None, kind: str = "robust"
    ) -> dict[str, Robustness]:
        """Measure the natural and robust accuracy of `runs` at `epochs`; raises as `transfer`.

        Args:
            kind: "robust", or "check": one attack on more images.
        """
        return {name: self._robustness(name, specs, epochs, recipe, kind) for name, specs in runs.items()}

    def recorded(self, kind: str, spec: TrainSpec, epochs: list[float], *how: Any) -> bool:
        """Whether `spec` has been probed at all of `epochs` already; `how` as in `find`."""
        return not missing_epochs(self.find(kind, spec, *how), epochs)

    def targets(self, *roles: str) -> list[scales.Target]:
        """The scale's targets of these `roles` ("test", "validation", "robust"), test ones first; none: the first two.

        The robust ones stand apart: they were not in the list when the others were first attacked.
        """
        ordered = sorted(self.scale.targets, key=lambda t: t.role != "test")
        return [t for t in ordered if t.role in (roles or scales.STANDARD)]

    def target_table(self, *roles: str) -> pd.DataFrame:
        """Each target with its role and natural accuracy; `roles` as in `targets`."""
        rows = [(t, self._clean(t).rows[-1]) for t in self.targets(*roles)]
        return pd.DataFrame(
            [{"target": t.name, "role": t.role, "natural accuracy": r["accuracy"]} for t, r in rows]
        ).set_index("target")

    def source(self) -> str:
        """Where the numbers come from, in one line for the reader."""
        made = [m for r in self.records.values() for m in r.provenance]
        days = sorted({m["date"] for m in made})
        on = (
            f", computed on {', '.join(sorted({m['hardware'] for m in made}))}, {days[0]} to {days[-1]}" if made else ""
        )
        return f"{self.scale.name} scale, mode {self.mode}: {len(self.records)} records{on}"

    # --- transfer ----------------------------------------------------------------------------------

    def _series(
        self,
        name: str,
        specs: list[TrainSpec],
        epochs: list[float] | None,
        role: str,
        attack: IterativeAttack | None,
        recipe: Recipe | None,
    ) -> Series:
        epochs = self.scale.probed(specs[0].schedule) if epochs is None else epochs
        robust = role == "robust"
        found = [self.measure("transfer", spec, epochs, attack, recipe, robust) for spec in specs]
        targets = self._attacked_targets(robust)
        clean = self._clean_wrong(targets)
        n, t = clean.shape
        keep = (np.arange(n) < self.scale.test_images) == (role != "validation")
        wanted = np.array([x.role == role for x in targets])
        hits, accuracy = [], []
        for e in epochs:
            rows = [r.row(_iteration(r, e)) for r in found]
            adv = np.stack([records.unpack(r["adv_wrong"], (n, t)) for r in rows])
            own = np.stack([records.unpack(r["surrogate_wrong"], (n,)) for r in rows])
            hits.append(transfer.Hits(adv[:, keep][:, :, wanted], clean[keep][:, wanted], own[:, keep]))
            accuracy.append([r["accuracy"] for r in rows])
        return Series(name, specs[0], epochs, hits, np.array(accuracy).T)

    def _flatness(self, name: str, specs: list[TrainSpec], epochs: list[float], recipe: Recipe | None) -> Flatness:
        found = [self.measure("sharpness", spec, epochs, recipe=recipe) for spec in specs]
        rows = [[r.row(_iteration(r, e)) for e in epochs] for r in found]
        measures = [k for k, v in rows[0][0].items() if k not in ("snapshot", "made", "iteration", "seconds")]
        # None stands for a value that is not defined there; as a float it is NaN.
        values = {m: np.array([[row[m] for row in of] for of in rows], float) for m in measures}
        return Flatness(name, specs[0], epochs, values)

    def _robustness(
        self, name: str, specs: list[TrainSpec], epochs: list[float], recipe: Recipe | None, kind: str
    ) -> Robustness:
        found = [self.measure(kind, spec, epochs, recipe=recipe) for spec in specs]
        rows = [[r.row(_iteration(r, e))["stands"] for e in epochs] for r in found]
        shape = (getattr(self.scale, SETTINGS[kind]).images,)
        stands = {
            attack: np.array([[records.unpack(row[attack], shape) for row in of] for of in rows])
            for attack in rows[0][0]
        }
        return Robustness(name, specs[0], epochs, stands)

    def measure(
        self,
        kind: str,
        spec: TrainSpec,
        epochs: list[float],
        attack: IterativeAttack | None = None,
        recipe: Recipe | None = None,
        robust: bool = False,
    ) -> records.Record:
        """The record of a probe of `spec`, with a row for each of `epochs`.

        Args:
            kind: "clean", "transfer", "sharpness", "robust" or "check".
            attack, recipe, robust: as in `find`.

        Raises:
            MissingRecord: in replay, rows are missing.
        """

        def collect(end: float) -> list[training.Snapshot]:
            return list(self._train(spec, collected(recipe, end)))

        def probe(snapshot: training.Snapshot) -> dict[str, Any]:
            parts = collect(snapshot.epoch) if recipe else []
            if kind == "clean":
                return self._probes.clean(snapshot)
            if kind == "transfer":
                targets = self._target_models(robust)
                return self._probes.transfer(attack or self.scale.attack, targets, snapshot, recipe, parts)
            model, settings = self._probes.load(snapshot, recipe, parts), getattr(self.scale, SETTINGS[kind])
            of = self._probes.sharpness if kind == "sharpness" else self._probes.robust
            return of(settings, model)

        record = self.find(kind, spec, attack, recipe, robust)
        missing = missing_epochs(record, epochs)
        if recipe and missing and self.mode == "run":
            collect(max(missing))  # all that is collected is trained on the way to the last
        return self._fill(record, epochs, probe)

    def find(
        self,
        kind: str,
        spec: TrainSpec,
        attack: IterativeAttack | None = None,
        recipe: Recipe | None = None,
        robust: bool = False,
    ) -> records.Record:
        """What is recorded of this measurement, possibly nothing.

        Args:
            attack: of a transfer; None: the scale's.
            recipe: what is measured of the run; None: its network.
            robust: a transfer to the targets that are trained adversarially.
        """
        images = {
            "test_images": self.scale.test_images,
            "validation_images": self.scale.validation_images,
            "accuracy_images": self.scale.accuracy_images,
        }
        if kind == "clean":
            probe = images
        elif kind == "transfer":
            targets = [self.scale.target(t).key() for t in self._attacked_targets(robust)]
            probe = {"attack": (attack or self.scale.attack).describe(), **images, "targets": targets}
        else:
            settings = asdict(getattr(self.scale, SETTINGS[kind]))
            probe = {**settings, "accuracy_images": self.scale.accuracy_images}
        probe |= {"recipe": named(recipe)} if recipe else {}
        probe = json.loads(json.dumps(probe))  # as it is read back, tuples being lists
        fresh = records.Record(kind, spec, probe, per_epoch=0)
        return self.records.get(fresh.key, fresh)

    # --- targets -----------------------------------------------------------------------------------

    def _clean(self, target: scales.Target) -> records.Record:
        spec = self.scale.target(target)
        return self.measure("clean", spec, [float(spec.epochs)])

    def _attacked_targets(self, robust: bool) -> list[scales.Target]:
        return self.targets("robust") if robust else self.targets()

    def _clean_wrong(self, targets: list[scales.Target]) -> np.ndarray:
        n = self.scale.test_images + self.scale.validation_images
        found = [self._clean(t).rows[-1] for t in targets]
        return np.stack([records.unpack(r["clean_wrong"], (n,)) for r in found], 1)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (a lab lives as long as its process)
    def _target_models(self, robust: bool) -> list[nn.Module]:
        models = []
        for t in self._attacked_targets(robust):
            self._clean(t)
            spec = self.scale.target(t)
            (last,) = self._train(spec, [float(spec.epochs)])
            models.append(self._probes.load(last))
        return models

    @functools.cached_property
    def _dataset(self) -> data.Dataset:
        return data.load(self.scale.data).subset(self.scale.n_train).to(self.device)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (a lab lives as long as its process)
    def built(self, wanted: FeatureSet | None) -> data.Dataset:
        """The data set `wanted`, read from the cache or built, its network trained first if need be; None: D itself."""
        if wanted is None:
            return self._dataset
        (last,) = self._train(wanted.model, [float(wanted.model.epochs)])
        model, base = self._probes.load(last), self._dataset
        how = {"steps": wanted.steps, "step": wanted.step, "cache": self.cache, "kind": wanted.name.replace("_", "-")}
        if wanted.method == "inverted":
            return features.robust_dataset(model, base, seed=wanted.seed, **how)
        if wanted.method == "next-label":
            return features.next_label_dataset(model, base, eps=wanted.eps, **how)
        return features.random_label_dataset(model, base, eps=wanted.eps, seed=wanted.seed, **how)

    @functools.cached_property
    def _probes(self) -> Probes:
        return Probes(self.scale, self._dataset, self.device)

    # --- the one loop ------------------------------------------------------------------------------

    def _fill(
        self,
        record: records.Record,
        epochs: list[float],
        measure: Callable[[training.Snapshot], dict[str, Any]],
    ) -> records.Record:
        """`record` with a row for each of `epochs`: what is missing is computed, or refused in replay."""
        kind, spec = record.kind, record.spec
        missing = missing_epochs(record, epochs)
        if not missing:
            return record
        if self.mode == "replay":
            raise MissingRecord(
                f"{record.name} lacks {len(missing)} of {len(epochs)} rows at {self.scale.name} scale; compute them "
                f'with `python -m rfnlib run --scale {self.scale.name}` or mode "run".'
            )
        record.per_epoch = training.steps_per_epoch(spec, self._dataset)  # a built set is as large as the original
        self.records[record.key] = record
        for e in list(missing):
            row = self._shared_row(record, _iteration(record, e))
            if row is not None:
                missing.remove(e)
        by = spec.traits or [type(spec.schedule).__name__.lower()]
        label = ", ".join([f"{kind}: {spec.arch}", *by, f"seed {spec.seed}"])
        with Progress(len(missing), label) as bar:
            for snapshot in self._train(spec, missing):
                start = time.monotonic()
                row = {
                    "epoch": round(snapshot.epoch, 4),
                    "iteration": snapshot.iteration,
                    "snapshot": snapshot.history,
                    "lr": spec.schedule.at((snapshot.iteration - 1) / record.per_epoch, spec.epochs),
                    **measure(snapshot),
                }
                row["seconds"] = round(time.monotonic() - start, 2)
                record.add(row, records.made(self.device, self._dataset.checksum))
                records.write(record, self.folder)
                bar.advance(1, f"epoch {snapshot.epoch:.2f}, accuracy {row['accuracy']:.1%}")
                self.tick()
        records.write(record, self.folder)
        return record

    def _shared_row(self, record: records.Record, iteration: int) -> dict[str, Any] | None:
        """Copy the row of another run that was the same network at this step, if one is recorded."""
        wanted = record.spec.history_key(iteration, record.per_epoch)
        for other in self.records.values():
            row = other.row(iteration)
            if other is not record and other.probe == record.probe and row and row["snapshot"] == wanted:
                copy = {k: v for k, v in row.items() if k != "made"}
                record.add(copy, other.provenance[row["made"]])
                return copy
        return None

    def _train(self, spec: TrainSpec, at: list[float]) -> Iterable[training.Snapshot]:
        branch_points = [m for m in (*self.scale.decays, *self.scale.standard) if m <= spec.epochs]
        return training.train(
            spec,
            at,
            dataset=self.built(spec.features),
            cache=self.cache,
            keep=branch_points,
            device=self.device,
            tick=self.tick,
        )


def missing_epochs(record: records.Record, epochs: Iterable[float]) -> list[float]:
    """Those of `epochs` that `record` has no row for."""
    return [e for e in epochs if not record.per_epoch or record.row(_iteration(record, e)) is None]


def _iteration(record: records.Record, epoch: float) -> int:
    return max(1, round(epoch * record.per_epoch))
