"""What was measured along one training run, several seeds of it: what a curve is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rfnlib import transfer
from rfnlib.intervals import Estimate, Influence, estimated, share
from rfnlib.outside import Outside
from rfnlib.specs import TrainSpec


@dataclass(frozen=True)
class Curve:
    """Values along the runs of an arm: `spec` is that of the first seed, `epochs` are those that were measured."""

    name: str
    spec: TrainSpec | Outside
    epochs: tuple[float, ...]

    @property
    def end(self) -> float:
        """The last epoch measured."""
        return self.epochs[-1]

    @property
    def milestones(self) -> tuple[float, ...]:
        """The epochs at which the learning rate decays by a step."""
        return self.spec.schedule.milestones if self.spec.schedule else ()

    def index(self, epoch: float | None) -> int:
        """The place of `epoch` in `epochs`; None: the last.

        Raises:
            LookupError: nothing was measured there.
        """
        if epoch is None:
            return len(self.epochs) - 1
        if abs(self.nearest(epoch) - epoch) > 0.02:
            at = ", ".join(f"{e:g}" for e in self.epochs)
            raise LookupError(f"{self.name} was not measured at epoch {epoch:g}, only at {at}.")
        return self.epochs.index(self.nearest(epoch))

    def nearest(self, epoch: float) -> float:
        """The epoch measured that is nearest to `epoch`."""
        return min(self.epochs, key=lambda e: abs(e - epoch))


@dataclass(frozen=True)
class TransferCurve(Curve):
    """Transfer along one training run.

    `hits[e]` are the outcomes at `epochs[e]` on `targets`; `accuracy` is the surrogates' natural accuracy, `training`
    their accuracy on the scale's own training images, un-augmented (also of a run on D_R or D_NR, which trains on
    images made from them, and of one on other images, which never sees them), `loss` the mean cross-entropy there; each
    (seeds, epochs). `passes` are the forward-backward passes of the training up to each epoch, in epochs of plain
    training, and `l2` the mean length of the perturbations, both (seeds, epochs).
    """

    targets: tuple[str, ...]
    hits: tuple[transfer.Hits, ...]
    accuracy: np.ndarray
    training: np.ndarray
    loss: np.ndarray
    passes: np.ndarray
    l2: np.ndarray

    @property
    def seeds(self) -> int:
        return len(self.accuracy)

    @property
    def best(self) -> float:
        """The epoch with the most success."""
        return max(self.epochs, key=lambda e: self.at(e).value)

    def at(
        self, epoch: float | None = None, denominator: str = transfer.DEFAULT, targets: list[int] | None = None
    ) -> Influence:
        """The success rate at `epoch` (None: the last), under `denominator`, over some or all (None) of the targets."""
        return transfer.influence(self.hits[self.index(epoch)], denominator, targets)

    def mean(self, what: str, epoch: float | None = None) -> float:
        """The mean over seeds of "accuracy", "training", "loss", "passes" or "l2" at `epoch` (None: the last)."""
        return float(getattr(self, what)[:, self.index(epoch)].mean())

    def first(self, seeds: int) -> TransferCurve:
        """The same of the first so many seeds, to be paired with a run that has no more."""
        cut = {name: getattr(self, name)[:seeds] for name in ("accuracy", "training", "loss", "passes", "l2")}
        hits = tuple(transfer.Hits(h.adv_wrong[:seeds], h.clean_wrong, h.surrogate_wrong[:seeds]) for h in self.hits)
        return replace(self, hits=hits, **cut)


@dataclass(frozen=True)
class SharpnessCurve(Curve):
    """Sharpness along one training run: `values[measure]` is (seeds, epochs), NaN where undefined.

    The measures are those of `probes.Sharpness`, with the training `loss` and the natural `accuracy` beside them; or
    those of `similarity.Similarity`, in the input.
    """

    values: dict[str, np.ndarray]

    @property
    def seeds(self) -> int:
        return len(next(iter(self.values.values())))

    def at(self, epoch: float | None = None, measure: str = "top") -> np.ndarray:
        """The values (seeds,) of `measure` at `epoch`; None: the last."""
        return self.values[measure][:, self.index(epoch)]

    def log(self, epoch: float | None = None, measure: str = "top") -> np.ndarray:
        """The logarithm of `at`; NaN of what is not positive and has none, such as some traces."""
        values = self.at(epoch, measure)
        return np.log(np.where(values > 0, values, np.nan))

    def level(self, epoch: float | None = None, measure: str = "top") -> Estimate | None:
        """Its mean over seeds, thus the logarithm of the geometric mean of `at`; None where a seed has no value."""
        return estimated(self.log(epoch, measure))


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

    def at(self, epoch: float | None = None, attack: str = "none") -> Influence:
        """The accuracy at `epoch` (None: the last) under `attack`."""
        return share(self.correct[attack][:, self.index(epoch)])
