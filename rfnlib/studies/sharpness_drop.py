"""Claim C3: when the learning rate decays, the sharpness of the loss drops. Notebook 03.

With λ₁(e) the largest eigenvalue of the Hessian of the training loss after e epochs of a run that decays once, at
epoch d, and κ₁(e) that of the run whose rate stays constant, log κ₁(d + a) − log λ₁(d + a) is judged, the mean over the
decays, with Student's interval over seeds. Beside it stand other measures, λ₁ at equal loss among them, for a smaller
loss alone makes the Hessian smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rfnlib import claims, words
from rfnlib.curves import SharpnessCurve, TransferCurve
from rfnlib.intervals import Estimate, interval, over_seeds
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.scale import CONSTANT, decaying
from rfnlib.specs import Step
from rfnlib.studies import lr_decay, pilots

NOTEBOOK = "03_sharpness_drop"
CLAIMS = ("C3",)

ANSWERS = {
    "supported": "The loss is flatter after the decay of the learning rate",
    "contradicted": "The loss is sharper after the decay of the learning rate",
    "no effect": "The decay of the learning rate leaves the sharpness of the loss as it is",
    "inconclusive": "Whether the loss is flatter after the decay of the learning rate is not decided",
    "not testable": "Whether the loss is flatter after the decay of the learning rate cannot be tested at this scale",
}
FOLLOWS = {
    "supported": "The loss gets flatter at the moment that claim C2 is about. That flatness is why success is high "
    "there does not follow: notebook 04 trains for flatness directly, and so puts it to the test.",
    "contradicted": "The loss gets sharper at the moment that claim C2 is about: flatness in this sense does not make "
    "surrogates transfer there.",
    "no effect": "What happens to success at the decay happens without a change of λ₁ that would matter: flatness in "
    "this sense does not explain it.",
    "inconclusive": "Nothing follows yet about flatness at the decay: the interval holds drops and rises that would "
    "matter, and more seeds would narrow it.",
    "not testable": "Nothing follows: a gate says that training at this scale is not what the claim is about. The "
    "factors are printed all the same, as a description.",
}


def arms(lab: Lab) -> dict[str, Arm]:
    """The runs of claim C2 with a constant rate and with step decays, and their sharpness around the decays."""
    scale, found = lab.scale, {}
    for name, arm in lr_decay.arms(lab).items():
        schedule = arm.specs[0].schedule
        if isinstance(schedule, Step):
            found[name] = Arm(name, arm.specs, At(scale.sharpness, scale.sharp_at(schedule)))
    return found


def flat_arms(lab: Lab) -> dict[str, Arm]:
    """SAM and RFN under the standard schedule: their sharpness along training and success there, the first few seeds.

    Raises:
        MissingRecord: in replay, RFN's ρ is not chosen yet.
    """
    scale, found = lab.scale, {}
    for name, rho in (("SAM", scale.rhos[0]), ("RFN", pilots.chosen_rho(lab))):
        runs = [pilots.sam(scale, rho, seed) for seed in lab.few]
        epochs = scale.sharp_at(runs[0].schedule, fine=False)
        found[name] = Arm(name, runs, At(scale.sharpness, epochs), At(scale.transfer, epochs))
    return found


def plan(lab: Lab) -> Iterator[Measurement]:
    """SGD's runs, seed by seed, then those of SAM and RFN."""
    yield from by_seed(arms(lab).values())
    yield from by_seed(flat_arms(lab).values())


def measure(lab: Lab) -> Drop:
    """Sharpness and success along the same runs, at `lab`'s scale.

    Raises:
        MissingRecord: in replay, a run that is judged is not recorded.
    """
    peak = lr_decay.measure(lab)
    judged = [CONSTANT, *map(decaying, lab.scale.decays)]
    shown = lab.shown(arms(lab), needed=judged)
    flat = lab.shown(flat_arms(lab))
    sharpness = {name: lab.read(arm, lab.scale.sharpness) for name, arm in {**shown, **flat}.items()}
    success = {**peak.curves, **{name: lab.read(arm, lab.scale.transfer) for name, arm in flat.items()}}
    standard = decaying(*lab.scale.standard)
    return Drop(sharpness, success, peak.decays, peak.after, standard, tuple(pilots.gates(lab, "C3")))


@dataclass(frozen=True)
class Drop:
    """Sharpness along training, and what claim C3 is judged by.

    Attributes:
        sharpness: by run; of SGD by schedule, and of SAM and RFN under the standard one.
        success: the same of success, for runs and epochs that may be more.
        decays: epochs at which the judged runs decay, once each.
        after: how many epochs after its decay a run is judged.
        standard: the name of SGD's run under the standard schedule.
        gates: that the scale must pass.
    """

    sharpness: dict[str, SharpnessCurve]
    success: dict[str, TransferCurve]
    decays: tuple[int, ...]
    after: float
    standard: str
    gates: tuple[claims.Gate, ...]

    # --- the judgement ---

    def below_constant(self, decay: float, measure: str = "top") -> np.ndarray:
        """log κ(d + a) − log λ(d + a), (seeds,): positive where the decay has flattened the loss."""
        at = decay + self.after
        return self._log(CONSTANT, at, measure) - self._log(decaying(decay), at, measure)

    def below_before(self, decay: float, measure: str = "top") -> np.ndarray:
        """log λ(d) − log λ(d + a), (seeds,): the drop itself, secondary."""
        run = decaying(decay)
        return self._log(run, decay, measure) - self._log(run, decay + self.after, measure)

    def drop(self, measure: str = "top") -> Estimate | None:
        """The primary difference for λ₁: `below_constant`, mean of the decays; None where it is not defined."""
        return estimated(np.mean([self.below_constant(d, measure) for d in self.decays], axis=0))

    def verdict(self, claim: str = "C3") -> claims.Verdict:
        """The verdict on λ₁, before Holm's correction over all claims."""
        return claims.judge(claim, self.drop(), gates=self.gates)

    def headline(self, claim: str = "C3") -> str:
        """What was found, in one sentence."""
        flatter = sum(self.below_constant(d).mean() > 0 for d in self.decays)
        equal = self.drop("matched")
        beside = f"{words.lower(equal)} when both are scaled to equal loss" if equal else "not defined at equal loss"
        return (
            f"{ANSWERS[self.verdict(claim).word]}: {words.count(self.after, 'epoch')} after it, λ₁ of the loss is "
            f"{words.lower(self.drop())} than that of the run that did not decay, and {beside} (means of decays at "
            f"{words.listed(self.decays)}; {flatter} of {len(self.decays)} show a drop)."
        )

    def follows(self) -> str:
        """What the verdict means."""
        return FOLLOWS[self.verdict().word]

    # --- tables ---

    def by_measure(self) -> pd.DataFrame:
        """By which factor the decay lowers each measure, mean over the decays."""
        rows = {}
        for name, label in words.MEASURES.items():
            before = np.mean([self.below_before(d, name) for d in self.decays], axis=0)
            rows[label] = {
                "below the constant run by": words.factor(self.drop(name)),
                "below just before by": words.factor(estimated(before)),
            }
        return pd.DataFrame(rows).T.rename_axis("measure")

    def by_decay(self) -> pd.DataFrame:
        """λ₁ after each decay, that of the constant run, their ratio, and the ratio to just before the decay."""
        rows = {}
        for d in self.decays:
            at = d + self.after
            rows[decaying(d)] = {
                "λ₁ after it": words.level(self.level(decaying(d), at)),
                "λ₁ of the constant run": words.level(self.level(CONSTANT, at)),
                "lower by the factor": words.factor(estimated(self.below_constant(d))),
                "below just before by": words.factor(estimated(self.below_before(d))),
                "lower at equal loss by": words.factor(estimated(self.below_constant(d, "matched"))),
            }
        return pd.DataFrame(rows).T.rename_axis("run")

    def late_phase(self) -> pd.DataFrame:
        """Success and sharpness under the standard schedule, from its last decay to the end of the run."""
        rows, flat, seen = {}, self.sharpness[self.standard], self.success[self.standard]
        for e in self._late():
            rows[f"{e:g}"] = {
                "success": words.percent(interval(seen.at(e))),
                **{
                    words.MEASURES[m]: words.level(self.level(self.standard, e, m)) for m in ("top", "trace", "matched")
                },
                "training loss": words.number(float(flat.at(e, "train_loss").mean())),
            }
        return pd.DataFrame(rows).T.rename_axis("epoch")

    def late_change(self) -> tuple[Estimate, Estimate]:
        """From a after the last decay to the end: the change of success, and that of log λ₁."""
        seen, last = self.success[self.standard], max(self.sharpness[self.standard].spec.schedule.milestones)
        start, end = last + self.after, seen.end
        sharper = self._log(self.standard, end, "top") - self._log(self.standard, start, "top")
        return interval(seen.at(end) - seen.at(start)), over_seeds(sharper)

    def late(self) -> str:
        """The late phase in a sentence: sharpness and success that fall together tell against a simple link."""
        success, sharpness = self.late_change()
        return (
            f"Under the standard schedule, from {words.count(self.after, 'epoch')} after its last decay to its end, "
            f"success changes by {words.points(success)} points, and λ₁ by the factor {words.factor(sharpness)[1:]}."
        )

    def precision(self) -> float:
        """The largest relative error of Lanczos' λ₁ among all that are shown."""
        runs = self.sharpness.values()
        return max(float(np.nanmax(run.values["top_error"] / run.values["top"])) for run in runs)

    # --- what figures need ---

    def level(self, name: str, epoch: float, measure: str = "top") -> Estimate | None:
        """The mean logarithm of `measure` over seeds; None where it is not defined for all of them."""
        return estimated(self._log(name, epoch, measure))

    def _log(self, name: str, epoch: float, measure: str) -> np.ndarray:
        values = self.sharpness[name].at(epoch, measure)
        return np.log(np.where(values > 0, values, np.nan))  # a trace that is not positive has no logarithm

    def _late(self) -> list[float]:
        flat, attacked = self.sharpness[self.standard], self.success[self.standard].epochs
        last = max(flat.spec.schedule.milestones)
        return [e for e in flat.epochs if e >= last and min(abs(e - a) for a in attacked) < 0.02]


def estimated(logs: np.ndarray) -> Estimate | None:
    """The mean of one value a seed with its interval; None where a seed has no value."""
    return over_seeds(logs) if np.isfinite(logs).all() else None
