"""What was measured along one training run, several seeds of it: what a curve is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rfnlib import intervals, transfer
from rfnlib.specs import TrainSpec


@dataclass(frozen=True)
class Series:
    """Transfer along one training run, several seeds of it: what a curve is drawn from.

    `spec` is that of the first seed; `hits[e]` are the outcomes at `epochs[e]`; `accuracy` is the
    surrogates' natural accuracy, (seeds, epochs).
    """

    name: str
    spec: TrainSpec
    epochs: list[float]
    hits: list[transfer.Hits]
    accuracy: np.ndarray

    @property
    def end(self) -> float:
        return self.epochs[-1]

    def at(
        self, epoch: float, denominator: str = transfer.DEFAULT, targets: list[int] | None = None
    ) -> intervals.Influence:
        """The success rate at `epoch`, under `denominator`, over some or all (None) of the targets."""
        return transfer.influence(self.hits[nearest(self, epoch)], denominator, targets)

    def first(self, seeds: int) -> Series:
        """The same of the first so many seeds, to be paired with a run that has no more."""
        hits = [transfer.Hits(h.adv_wrong[:seeds], h.clean_wrong, h.surrogate_wrong[:seeds]) for h in self.hits]
        return replace(self, hits=hits, accuracy=self.accuracy[:seeds])


@dataclass(frozen=True)
class Flatness:
    """Sharpness along one training run, several seeds of it: `values[measure]` is (seeds, epochs), NaN where undefined.

    The measures are those of `Probes.sharpness`, with the training `loss` and the natural `accuracy` beside them.
    """

    name: str
    spec: TrainSpec
    epochs: list[float]
    values: dict[str, np.ndarray]

    def at(self, epoch: float, measure: str) -> np.ndarray:
        """The values (seeds,) of `measure` at `epoch`."""
        return self.values[measure][:, nearest(self, epoch)]


@dataclass(frozen=True)
class Robustness:
    """Natural and robust accuracy along one training run, several seeds of it.

    `stands[attack]` says which images are classified correctly under an attack of `RobustnessProbe.attacks`, or
    under "none", bool (seeds, epochs, images).
    """

    name: str
    spec: TrainSpec
    epochs: list[float]
    stands: dict[str, np.ndarray]

    @property
    def end(self) -> float:
        return self.epochs[-1]

    def at(self, epoch: float, attack: str = "none") -> intervals.Influence:
        """The accuracy at `epoch` under `attack`."""
        return intervals.share(self.stands[attack][:, nearest(self, epoch)])


def nearest(run: Series | Flatness | Robustness, epoch: float) -> int:
    """The index of `epoch` in `run.epochs`.

    Raises:
        LookupError: the run was not probed there.
    """
    index = min(range(len(run.epochs)), key=lambda i: abs(run.epochs[i] - epoch))
    if abs(run.epochs[index] - epoch) > 0.02:
        raise LookupError(f"{run.name} was not probed at epoch {epoch:g}, only at {run.epochs}.")
    return index
