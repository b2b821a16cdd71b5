"""λ₁ against 2/η around a decay: an equilibrium, the loss alone, or neither? Notebook 06, without a verdict.

Gradient descent with rate η is stable where λ₁ < 2/η, with momentum β where λ₁ < 2(1 + β)/η, and full-batch training
hovers there: the edge of stability (Cohen et al. 2021, ICLR). After a tenfold decay an equilibrium would let λ₁ grow
tenfold. If λ₁ falls with the loss alone, λ₁ at equal loss stays: confident predictions shrink the Hessian whatever the
network does. So on a fine grid after the first decay of the standard schedule, against the run that does not decay:
log λ₁ and log λ₁ at equal loss, what of either is the decay's, and the share of 2(1 + β)/η that λ₁ takes.

λ₁ is that of the whole loss in evaluation mode; steps see mini-batches in training mode, whose λ₁ is larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rfnlib import words
from rfnlib.curves import SharpnessCurve
from rfnlib.intervals import Estimate, estimated
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.scale import CONSTANT
from rfnlib.specs import Step, TrainSpec

DECAY = "decay"
AFTER = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 5.0)  # epochs since the decay


def arms(lab: Lab) -> dict[str, Arm]:
    """The standard run and the constant one around the first decay, the first few seeds."""
    scale, (first, *rest) = lab.scale, lab.scale.standard
    until = min([*rest, scale.end])
    at = At(scale.sharpness, tuple(first + a for a in AFTER if first + a <= until))
    runs = {DECAY: Step(scale.lr, scale.standard), CONSTANT: Step(scale.lr)}
    return by_name(*(Arm(name, [scale.surrogate(s, seed) for seed in lab.few], at) for name, s in runs.items()))


def plan(lab: Lab) -> Iterator[Measurement]:
    """Those."""
    yield from by_seed(arms(lab).values())


def threshold(spec: TrainSpec, epoch: float) -> float:
    """2(1 + β)/η at that epoch: above it a quadratic loss makes heavy-ball descent diverge (Polyak 1964)."""
    return 2 * (1 + spec.momentum) / spec.schedule.at(epoch, spec.epochs)


@dataclass(frozen=True)
class Edge:
    """Sharpness on a fine grid after the decay, with and without it."""

    decay: SharpnessCurve
    constant: SharpnessCurve

    @property
    def start(self) -> float:
        """The epoch of the decay."""
        return self.decay.epochs[0]

    @property
    def after(self) -> list[float]:
        """Epochs since the decay, those measured."""
        return [e - self.start for e in self.decay.epochs]

    def limit(self, name: str, after: float | None = None) -> float:
        """2(1 + β)/η of `DECAY` or `CONSTANT`, that of the steps that led there; None: at the last epoch measured."""
        run = {DECAY: self.decay, CONSTANT: self.constant}[name]
        assert isinstance(run.spec, TrainSpec)
        epoch = self.start + (self.after[-1] if after is None else after)
        return threshold(run.spec, epoch - 1e-6)  # the network at the decay was made at the rate before it

    def log(self, name: str, after: float, measure: str = "top") -> np.ndarray:
        """The logarithm of a measure (seeds,), of `DECAY` or `CONSTANT`."""
        return {DECAY: self.decay, CONSTANT: self.constant}[name].log(self.start + after, measure)

    def level(self, name: str, after: float, measure: str = "top") -> Estimate | None:
        """Its mean over seeds."""
        return estimated(self.log(name, after, measure))

    def effect(self, after: float, measure: str = "top") -> Estimate | None:
        """How far the decay has moved it from where the constant run is."""
        return estimated(self.log(DECAY, after, measure) - self.log(CONSTANT, after, measure))

    def share(self, name: str, after: float) -> Estimate | None:
        """log λ₁ less that of `limit`: what part of it λ₁ takes."""
        return estimated(self.log(name, after) - np.log(self.limit(name, after)))

    def table(self) -> pd.DataFrame:
        """A row an epoch after the decay."""
        rows = {}
        for after in self.after:
            rows[f"{after:g}"] = {
                "λ₁ after the decay": words.level(self.level(DECAY, after)),
                "λ₁ at a constant rate": words.level(self.level(CONSTANT, after)),
                "share of 2(1 + β)/η, decay": words.factor(self.share(DECAY, after)),
                "share, constant rate": words.factor(self.share(CONSTANT, after)),
                "decay over constant: λ₁": words.factor(self.effect(after)),
                "decay over constant: λ₁ at equal loss": words.factor(self.effect(after, "matched")),
                "decay over constant: training loss": words.factor(self.effect(after, "train_loss")),
            }
        return pd.DataFrame(rows).T.rename_axis("epochs since the decay")

    def headline(self) -> str:
        """Equilibrium, loss alone, or neither, in words."""
        last = self.after[-1]
        top, equal, share = self.effect(last), self.effect(last, "matched"), self.share(DECAY, last)
        at = f"{words.count(last, 'epoch')} after the decay"
        if top is None or share is None:
            return f"{at[:1].upper()}{at[1:]} λ₁ is not defined for all seeds."
        said = f"{at[:1].upper()}{at[1:]} λ₁ is {words.lower(-top)} than that of the run that did not decay"
        beside = f"{words.lower(-equal)} at equal loss" if equal else "not defined at equal loss"
        before = words.factor(self.share(DECAY, 0.0))
        return (
            f"{said}, and {beside}; at an equilibrium it would be higher by the factor 10. It is {words.factor(share)} "
            "the threshold 2(1 + β)/η of the lower rate, beyond which descent is unstable, and was "
            f"{before} that of the higher one. So by then {self.kind(top, equal)}. "
            "Notebook 03 compares both runs on all seeds."
        )

    def kind(self, top: Estimate, equal: Estimate | None) -> str:
        """What the 95 % intervals of λ₁, and of λ₁ at equal loss, speak for."""
        unsure = f"is not decided by {words.count(top.seeds, 'seed')}"
        said = f"an equilibrium is {'' if top.high < np.log(10) else 'not '}ruled out"
        if not top.high < 0:
            return f"{said}, and {'λ₁ grows' if top.low > 0 else f'whether λ₁ drops {unsure}'}"
        if equal is not None and equal.high < 0:
            return f"{said}, and λ₁ drops, not by the loss alone, for it does so at equal loss too"
        return f"{said}, and λ₁ drops; whether by the loss alone {unsure}"


def measure(lab: Lab) -> Edge:
    """Both runs, at `lab`'s scale.

    Raises:
        MissingRecord: in replay, one is not complete.
    """
    curves = lab.curves(arms(lab), needed=(DECAY, CONSTANT))
    return Edge(curves[DECAY], curves[CONSTANT])
