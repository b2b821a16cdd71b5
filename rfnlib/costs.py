"""What measurements cost: the units of work that are left of each, in passes, and in seconds at the measured speed.

A unit is an epoch of training, a built data set, or a row of a record. Its name tells what it depends on, so that runs
that share their past share its units: what one measurement computes, another finds. `rfnlib.jobs` also tells by the
units which measurements may be made at the same time.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rfnlib import data, execution, minimizers, models, objectives, snapshots, zoo
from rfnlib.files import write_atomic
from rfnlib.keys import key
from rfnlib.lab import Lab
from rfnlib.measurements import Measurement
from rfnlib.outside import Outside
from rfnlib.probes import Clean
from rfnlib.recipes import members, networks
from rfnlib.records import Record
from rfnlib.specs import TrainSpec

Network = tuple[str, int | None, int]  # architecture, width, stem: what the time of a pass depends on


@dataclass(frozen=True)
class Unit:
    """Work that is done once: `passes` of single images forward and backward through `network`."""

    network: Network
    passes: float


def passes_per_step(spec: TrainSpec) -> float:
    """Forward-backward passes of a batch that a step of `spec`'s training takes."""
    taken, m = 1.0, spec.minimizer
    if m:
        taken = minimizers.METHODS[m.method].passes_per_step(**dict(m.options))
    taken *= objectives.PASSES_PENALISED if spec.input_penalty else 1
    return taken + (spec.adversary.passes if spec.adversary else 0)


class Ledger:
    """The units of a lab's measurements, and which of them are done: rows by the records, epochs by the cache.

    A target's epochs are also done if its weights are released. What cannot be known without computing (the files of a
    run on a data set that is yet to be built) counts as left, until `finish` is told.
    """

    def __init__(self, lab: Lab):
        self.lab, self.scale = lab, lab.scale
        self.done: set[str] = set()
        for record in lab.records.values():
            epochs = [row["epoch"] for row in record.rows]
            self.done |= {name(record, epoch) for name in (self._row, self._look) for epoch in epochs}

    @functools.cached_property
    def n_train(self) -> int:
        """Training images of the scale."""
        return self.scale.n_train or len(self.lab.dataset().train_labels)

    def run(self, spec: TrainSpec) -> snapshots.Run:
        """Where the files of a run lie, which is not on built images.

        Raises:
            DataError: the data set is not there.
        """
        return snapshots.Run(spec, self._digest(*spec.cut), _per_epoch(spec, self.n_train), self.lab.cache)

    @functools.cache  # noqa: B019 (lives as long as its lab)
    def _digest(self, *cut: Any) -> str:
        return self.lab.cut(*cut).digest

    def left(self, m: Measurement) -> dict[str, Unit]:
        """The units of `m` that are not done, by name; none where its rows are copied from a run with the same past."""
        missing = self._to_make(m, self.lab.missing(m))
        if not missing:
            return {}
        done = self.done | self._on_disk(m.spec, missing)
        for spec, epoch, _ in members(m.recipe, m.spec):
            done |= self._on_disk(spec, (epoch,))
        if m.probe.kind == Clean.kind and zoo.path_of(self.lab.weights, m.spec).exists():
            done |= _training(m.spec, m.spec.epochs, self.n_train).keys()
        return {name: unit for name, unit in self._units(m, missing).items() if name not in done}

    def finish(self, m: Measurement, epochs: Iterable[float]) -> None:
        """Note that the rows of `m` at `epochs` are made, with all that they rest on."""
        if made := self._to_make(m, epochs):
            self.done |= self._units(m, made).keys()

    def _to_make(self, m: Measurement, epochs: Iterable[float]) -> tuple[float, ...]:
        """Those of `epochs` at which no row of the same network is known."""
        record = self.lab.find(m)
        return tuple(e for e in epochs if self._row(record, e) not in self.done)

    def _units(self, m: Measurement, epochs: tuple[float, ...]) -> dict[str, Unit]:
        record = self.lab.find(m)
        # Accuracies, of each network that predicts, are taken forward only.
        looked_at, network = (self.n_train + self.scale.accuracy_images) / 3, _network(m.spec)
        looks = {self._look(record, e): Unit(network, looked_at * networks(m.recipe, e)) for e in epochs}
        rows = {self._row(record, e): Unit(network, m.probe.passes(self.scale)) for e in epochs}
        trained = dict(_training(m.spec, math.ceil(max(epochs) - 1e-9), self.n_train))
        for spec, epoch, _ in members(m.recipe, m.spec):
            trained |= _training(spec, math.ceil(epoch - 1e-9), self.n_train)
        return {**trained, **looks, **rows}

    def _row(self, record: Record, epoch: float) -> str:
        return key(record.kind, record.settings, record.data, self._behind(record, epoch))

    def _look(self, record: Record, epoch: float) -> str:
        """The name of the accuracies that all rows of a network share; those of what a recipe makes serve one row."""
        if "recipe" in record.settings:
            return key("accuracies", self._row(record, epoch))
        images = record.settings.get("accuracy_images")
        return key("accuracies", images, record.data, self._behind(record, epoch))

    def _behind(self, record: Record, epoch: float) -> str:
        return _history(record.spec, epoch, _per_epoch(record.spec, self.n_train))

    def _on_disk(self, spec: TrainSpec | Outside, epochs: tuple[float, ...]) -> set[str]:
        """The epochs of training that need not be trained to have `spec`'s network at `epochs`, by name.

        As `training.train` does it: snapshots that are there are taken, and it goes on from the last state before the
        first that is not.
        """
        if isinstance(spec, Outside) or spec.features:
            return set()
        try:
            run = self.run(spec)
        except data.DataError:
            return set()
        per_epoch = run.per_epoch
        lacking = [i for e in epochs if not run.snapshot(i := max(1, round(e * per_epoch))).path.exists()]
        if not lacking:
            return set(_training(spec, math.ceil(max(epochs) - 1e-9), self.n_train))
        trained = next((i for i, _ in run.states(before=lacking[0])), 0)
        found = {_history(spec, e, per_epoch) for e in range(1, trained // per_epoch + 1)}
        for other in (spec.start, spec.witness):
            found |= self._on_disk(other, (float(other.epochs),)) if other else set()
        return found


@functools.cache
def _training(spec: TrainSpec | Outside, end: int, n_train: int) -> Mapping[str, Unit]:
    if not end or isinstance(spec, Outside):
        return {}
    per_epoch = _per_epoch(spec, n_train)
    epoch = Unit(_network(spec), per_epoch * spec.batch * passes_per_step(spec))
    found = {_history(spec, e, per_epoch): epoch for e in range(1, end + 1)}
    for other in (spec.start, spec.witness):
        found |= _training(other, other.epochs, n_train) if other else {}
    if spec.features:
        model = spec.features.model
        found |= _training(model, model.epochs, n_train)
        found[key(spec.features)] = Unit(_network(model), n_train * spec.features.steps)
    return found


def _per_epoch(spec: TrainSpec | Outside, n_train: int) -> int:
    """Steps an epoch, of a run on all of `n_train` images or on as many as it says."""
    return (spec.n_train or n_train) // spec.batch


@functools.cache
def _history(spec: TrainSpec | Outside, epoch: float, per_epoch: int) -> str:
    return spec.history_key(max(1, round(epoch * per_epoch)), per_epoch)


def _network(spec: TrainSpec | Outside) -> Network:
    return spec.arch, spec.width, spec.stem


# --- speed ------------------------------------------------------------------------------------------


class Pace:
    """Seconds a pass of each network takes on this machine: as measured by the work done so far, or by a few steps.

    What is measured lies beside the cache, so that the next estimate knows it.
    """

    def __init__(self, lab: Lab):
        self.lab = lab
        how = execution.resolve(lab.device)
        machine = key(how.device, how.describe()["hardware"])
        self.path = lab.cache / "speeds" / f"passes-{machine}.json"
        self.seen: dict[str, list[float]] = {}  # by network: passes and seconds
        try:
            self.seen = {str(k): [float(p), float(s)] for k, (p, s) in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # absent or damaged: it is measured again

    def seconds(self, units: Iterable[Unit]) -> float:
        """What `units` take, one after the other."""
        return sum(unit.passes * self._pass(unit.network) for unit in units)

    def observe(self, units: Iterable[Unit], seconds: float) -> None:
        """Take in that `units`, those of one measurement, took `seconds` in all: to each network its share."""
        passes: dict[Network, float] = {}
        for unit in units:
            passes[unit.network] = passes.get(unit.network, 0) + unit.passes
        alone = len(passes) == 1
        expected = {network: n * (1 if alone else self._pass(network)) for network, n in passes.items()}
        for network, n in passes.items():
            share = expected[network] / sum(expected.values())
            before = self.seen.get(_said(network), [0.0, 0.0])
            self.seen[_said(network)] = [before[0] + n, before[1] + seconds * share]
        write_atomic(self.path, json.dumps(self.seen, indent=1).encode())

    def _pass(self, network: Network) -> float:
        passes, seconds = self.seen.get(_said(network), (0, 0))
        return seconds / passes if passes else self._timed(network)

    @functools.cache  # noqa: B019 (lives as long as its lab)
    def _timed(self, network: Network) -> float:
        """Seconds of one image's pass, timed in a training batch, or in a part of one where that takes long."""
        (arch, width, stem), scale = network, self.lab.scale
        if arch not in models.ARCHITECTURES:  # from outside, and taken to be as fast as the scale's surrogate
            arch, width, stem = _network(scale.flat(None, 0))
        how, (c, h, w) = execution.resolve(self.lab.device, compile=False), data.image_shape(scale.data)
        model = how.place(models.build(arch, width=width, stem=stem, image_shape=(c, h, w))).train()
        n, threads = min(4, scale.batch), torch.get_num_threads()
        torch.set_num_threads(1)  # as a worker's
        try:
            while True:
                x = torch.rand(n, c, h, w, device=how.device)
                x = x.contiguous(memory_format=torch.channels_last) if how.channels_last else x
                taken = min(_step_seconds(how, model, x) for _ in range(3))  # the first time is not typical
                if n == scale.batch or taken * scale.batch / n > 1.0:
                    return taken / n
                n = min(scale.batch, 4 * n)
        finally:
            torch.set_num_threads(threads)


def _step_seconds(how: execution.Execution, model: torch.nn.Module, x: torch.Tensor) -> float:
    """Of a processor's core, its own time: what else runs beside it is not a property of the machine."""
    clock = time.perf_counter if how.device == "cuda" else time.thread_time
    start = clock()
    with how.autocast():
        out = model(x)
    torch.autograd.grad(out.float().logsumexp(-1).sum(), list(model.parameters()))
    if how.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _said(network: Network) -> str:
    return " ".join(map(str, network))
