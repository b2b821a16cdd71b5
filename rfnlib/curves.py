"""What was measured along one training run, several seeds of it: what a curve is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rfnlib import transfer
from rfnlib.intervals import Influence, share
from rfnlib.specs import TrainSpec


@dataclass(frozen=True)
class Curve:
    """Values along the runs of an arm: `spec` is that of the first seed, `epochs` are those that were measured."""

    name: str
    spec: TrainSpec
    epochs: tuple[float, ...]

    @property
    def end(self) -> float:
        """The last epoch measured."""
        return self.epochs[-1]

    def index(self, epoch: float) -> int:
        """The place of `epoch` in `epochs`.

        Raises:
            LookupError: nothing was measured there.
        """
        found = min(range(len(self.epochs)), key=lambda i: abs(self.epochs[i] - epoch))
        if abs(self.epochs[found] - epoch) > 0.02:
            at = ", ".join(f"{e:g}" for e in self.epochs)
            raise LookupError(f"{self.name} was not measured at epoch {epoch:g}, only at {at}.")
        return found


@dataclass(frozen=True)
class TransferCurve(Curve):
    """Transfer along one training run.

    `hits[e]` are the outcomes at `epochs[e]`; `accuracy` is the surrogates' natural accuracy, `training` their accuracy
    on the training images, un-augmented, `loss` the mean cross-entropy there; each (seeds, epochs). `passes` are the
    forward-backward passes of the training up to each epoch, in epochs of plain training, and `l2` the mean length of
    the perturbations, both (seeds, epochs).
    """

    hits: tuple[transfer.Hits, ...]
    accuracy: np.ndarray
    training: np.ndarray
    loss: np.ndarray
    passes: np.ndarray
    l2: np.ndarray

    @property
    def seeds(self) -> int:
        return len(self.accuracy)

    def at(
        self, epoch: float, denominator: str = transfer.DEFAULT, targets: list[int] | None = None
    ) -> Influence:
        """The success rate at `epoch`, under `denominator`, over some or all (None) of the targets."""
        return transfer.influence(self.hits[self.index(epoch)], denominator, targets)

    def first(self, seeds: int) -> TransferCurve:
        """The same of the first so many seeds, to be paired with a run that has no more."""
        cut = {name: getattr(self, name)[:seeds] for name in ("accuracy", "training", "loss", "passes", "l2")}
        hits = tuple(transfer.Hits(h.adv_wrong[:seeds], h.clean_wrong, h.surrogate_wrong[:seeds]) for h in self.hits)
        return replace(self, hits=hits, **cut)


@dataclass(frozen=True)
class SharpnessCurve(Curve):
    """Sharpness along one training run: `values[measure]` is (seeds, epochs), NaN where undefined.

    The measures are those of `probes.Sharpness`, with the training `loss` and the natural `accuracy` beside them.
    """

    values: dict[str, np.ndarray]

    @property
    def seeds(self) -> int:
        return len(next(iter(self.values.values())))

    def at(self, epoch: float, measure: str = "top") -> np.ndarray:
        """The values (seeds,) of `measure` at `epoch`."""
        return self.values[measure][:, self.index(epoch)]


@dataclass(frozen=True)
class RobustnessCurve(Curve):
    """Natural and robust accuracy along one training run.

    `correct[attack]` says which images are classified correctly under an attack of `probes.Robustness.attacks`, or
    under "none", bool (seeds, epochs, images).
    """

    correct: dict[str, np.ndarray]

    @property
    def seeds(self) -> int:
        return len(self.correct["none"])

    def at(self, epoch: float, attack: str = "none") -> Influence:
        """The accuracy at `epoch` under `attack`."""
        return share(self.correct[attack][:, self.index(epoch)])
