"""Claim C3: when the learning rate decays, the sharpness of the loss drops. Notebook 03.

With λ₁(e) the largest eigenvalue of the Hessian of the training loss after e epochs of a run that decays once, at
epoch d, and κ₁(e) that of the run whose rate stays constant, log κ₁(d + a) − log λ₁(d + a) is judged, the mean over the
decays, with Student's interval over seeds. Beside it stand other measures, λ₁ at equal loss among them, for a smaller
loss alone makes the Hessian smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rfnlib import claims, words
from rfnlib.claims import Claim, Gate
from rfnlib.curves import SharpnessCurve, TransferCurve
from rfnlib.intervals import Estimate, estimated, interval, over_seeds
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.scale import CONSTANT, decaying
from rfnlib.specs import Step
from rfnlib.studies import counting, lr_decay, pilots

NOTEBOOK = "03_sharpness_drop"
LATE = ("top", "trace", "matched")  # measures that are followed to the end
CLAIMS = claims.by_id(
    Claim(
        "C3",
        "At that time the sharpness of the loss drops",
        ("λ₁ at a constant rate / after the decay",),
        margin=np.log(1.15),
        unit="factor",
        answer="the decay of the learning rate "
        "{flattens the loss|sharpens the loss|leaves the sharpness of the loss as it is}",
        follows=(
            "The loss gets flatter at the moment that claim C2 is about. That flatness is why success is high there "
            "does not follow: notebook 04 trains for flatness directly, and so puts it to the test.",
            "The loss gets sharper at the moment that claim C2 is about: flatness in this sense does not make "
            "surrogates transfer there.",
            "What happens to success at the decay happens without a change of λ₁ that would matter: flatness in this "
            "sense does not explain it.",
        ),
    )
)


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


def seen_arms(lab: Lab) -> dict[str, Arm]:
    """The same runs of SGD, and their success as claim C2 asks for it: what notebook 03 shows beside sharpness."""
    seen = lr_decay.arms(lab)
    return {name: seen[name] for name in arms(lab)}


def plan(lab: Lab) -> Iterator[Measurement]:
    """SGD's runs, seed by seed, then those of SAM and RFN."""
    yield from by_seed(arms(lab).values())
    yield from by_seed(flat_arms(lab).values())


def later(lab: Lab) -> Iterator[Measurement]:
    """Success, which C2 has measured if it came first."""
    yield from by_seed(seen_arms(lab).values())


def measure(lab: Lab) -> Drop:
    """Sharpness along the runs of claim C2, with success along those that are recorded, at `lab`'s scale.

    Raises:
        MissingRecord: in replay, a run that is judged is not recorded.
    """
    sharpness = lab.curves(arms(lab), needed=lr_decay.judged(lab))
    success = lab.curves(seen_arms(lab))
    with suppress(MissingRecord):  # no claim is judged by these
        flat = flat_arms(lab)
        sharpness |= lab.curves(flat)
        success |= lab.curves(flat, lab.scale.transfer)
    scale = lab.scale
    return Drop(sharpness, success, scale.decays, scale.judged_after, scale.standard, pilots.gates(lab, "C3"))


@dataclass(frozen=True)
class Drop:
    """Sharpness along training, and what claim C3 is judged by.

    Attributes:
        sharpness: by run; of SGD by schedule, and of SAM and RFN under the standard one.
        success: the same of success, for runs and epochs that may be more, or fewer.
        decays: epochs at which the judged runs decay, once each.
        after: how many epochs after its decay a run is judged.
        milestones: epochs at which the standard schedule decays.
        gates: that the scale must pass.
    """

    sharpness: dict[str, SharpnessCurve]
    success: dict[str, TransferCurve]
    decays: tuple[int, ...]
    after: float
    milestones: tuple[int, ...]
    gates: list[Gate]

    # --- the judgement ---

    def below_constant(self, decay: float, measure: str = "top") -> np.ndarray:
        """log κ(d + a) − log λ(d + a), (seeds,): positive where the decay has flattened the loss."""
        at = decay + self.after
        return self.sharpness[CONSTANT].log(at, measure) - self.sharpness[decaying(decay)].log(at, measure)

    def below_before(self, decay: float, measure: str = "top") -> np.ndarray:
        """log λ(d) − log λ(d + a), (seeds,): the drop itself, secondary."""
        run = decaying(decay)
        return self.sharpness[run].log(decay, measure) - self.sharpness[run].log(decay + self.after, measure)

    def drop(self, measure: str = "top") -> Estimate | None:
        """The primary difference for λ₁: `below_constant`, mean of the decays; None where it is not defined."""
        return estimated(np.mean([self.below_constant(d, measure) for d in self.decays], axis=0))

    def verdict(self, claim: str = "C3") -> claims.Verdict:
        """The verdict on λ₁, before Holm's correction over all claims."""
        return claims.judge(CLAIMS[claim], self.drop(), gates=self.gates)

    def headline(self, claim: str = "C3") -> str:
        """What was found, in one sentence."""
        each = [estimated(self.below_constant(d)) for d in self.decays]
        flatter = sum(e is not None and e.value > 0 for e in each)
        surely = sum(e is not None and e.low > 0 for e in each)
        equal, trace = self.drop("matched"), self.drop("trace")
        beside = f"{words.lower(equal)} when both are scaled to equal loss" if equal else "not defined at equal loss"
        beside += f", and the trace {words.lower(trace)}" if trace else ""
        return (
            f"{self.verdict(claim).answer}: {words.count(self.after, 'epoch')} after it, λ₁ of the loss is "
            f"{words.lower(self.drop())} than that of the run that did not decay, {beside} (means of decays at "
            f"{words.listed(self.decays)}; λ₁ drops in {flatter} of {len(self.decays)}, in {surely} at 95 %)."
        )

    # --- tables ---

    @property
    def standard(self) -> str:
        """The name of SGD's run under the standard schedule."""
        return decaying(*self.milestones)

    def by_measure(self) -> pd.DataFrame:
        """By which factor the decay lowers each measure, mean over the decays."""

        def below_before(measure: str) -> Estimate | None:
            return estimated(np.mean([self.below_before(d, measure) for d in self.decays], axis=0))

        differences = {"below the constant run by": self.drop, "below just before by": below_before}
        ways = {label: {"measure": name} for name, label in words.MEASURES.items()}
        return counting.table(differences, ways, "measure", words.factor)

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

    def afterwards(self) -> str:
        """Where λ₁ is lowest after each single decay, and at the last look after it: a drop need not last."""
        said = []
        for d in self.decays:
            run = decaying(d)
            levels = {e: self.level(run, e) for e in self.sharpness[run].epochs if e > d}
            known = {e: level for e, level in levels.items() if level}
            if known:
                low, last = min(known, key=lambda e: known[e].value), max(known)
                there = [f"{words.level(known[e])} at epoch {e:g}" for e in (low, last)]
                said.append(f"after {d}, {' and '.join(there)}")
        return f"λ₁ where it is lowest after a decay (picked afterwards), and at the last look: {'; '.join(said)}."

    def late_phase(self) -> pd.DataFrame:
        """Success and sharpness under the standard schedule, from its last decay to the end of the run."""
        rows = {
            f"{e:g}": {
                "success": words.percent(self.success[self.standard].at(e)),
                **{words.MEASURES[m]: words.level(self.level(self.standard, e, m)) for m in LATE},
                "training loss": words.number(float(self.sharpness[self.standard].at(e, "train_loss").mean())),
            }
            for e in self._late()
        }
        return pd.DataFrame(rows).T.rename_axis("epoch")

    def late_change(self) -> tuple[Estimate, Estimate]:
        """From a after the last decay to the end: the change of success, and that of log λ₁."""
        last, *_, end = self._late()
        seen, start = self.success[self.standard], last + self.after
        sharper = self.sharpness[self.standard].log(end) - self.sharpness[self.standard].log(start)
        return interval(seen.at(end) - seen.at(start)), over_seeds(sharper)

    def late(self) -> str:
        """The late phase in a sentence: sharpness and success that fall together tell against a simple link."""
        if not self._late():
            return f"Success and sharpness under the standard schedule ({self.standard}): {words.MISSING} yet."
        success, sharpness = self.late_change()
        return (
            f"Under the standard schedule, from {words.count(self.after, 'epoch')} after its last decay to its end, "
            f"success changes by {words.points(success)} points, and λ₁ by the factor {words.factor(sharpness)[1:]}."
        )

    def in_the_end(self) -> str:
        """The standard schedule against a constant rate at their end: do flatness and success still go together?"""
        runs = {self.standard, CONSTANT}
        if not runs <= self.sharpness.keys() & self.success.keys():
            return f"The standard schedule ({self.standard}) and a constant rate at their end: {words.MISSING} yet."
        flat, plain = (self.sharpness[name].log(self.sharpness[name].end) for name in (self.standard, CONSTANT))
        gain, lower = self.success[self.standard].at() - self.success[CONSTANT].at(), estimated(plain - flat)
        return (
            f"At the end of training λ₁ under the standard schedule is {words.lower(lower)} than at a constant rate, "
            f"and success is {words.against(gain)}."
        )

    def precision(self) -> float:
        """The largest relative error of Lanczos' λ₁ among all that are shown."""
        runs = self.sharpness.values()
        return max(float(np.nanmax(run.values["top_error"] / run.values["top"])) for run in runs)

    # --- what figures need ---

    def level(self, name: str, epoch: float, measure: str = "top") -> Estimate | None:
        """The mean logarithm of `measure` over seeds; None where it is not defined for all of them."""
        return self.sharpness[name].level(epoch, measure)

    def _late(self) -> list[float]:
        """Epochs from the last decay of the standard schedule on, at which both are measured."""
        if self.standard not in self.sharpness.keys() & self.success.keys():
            return []
        flat, seen = self.sharpness[self.standard], self.success[self.standard]
        return [e for e in flat.epochs if e >= max(self.milestones) and abs(seen.nearest(e) - e) < 0.02]
