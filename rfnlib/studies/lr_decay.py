"""Claim C2: transferability peaks when the learning rate decays, whichever epoch that is. Notebook 02.

With s(e) the success rate of a run that decays once, at epoch d, and c(e) that of the run whose rate stays constant,
two differences are judged, each the mean over the decays: s(d + a) − c(d + a), the jump that the constant run does
not share, and s(d + a) − s(end), the later decline. a is the scale's `judged_after`. Both must be positive, and either
being negative contradicts the claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rfnlib import claims, words
from rfnlib.claims import Claim, Gate
from rfnlib.curves import TransferCurve
from rfnlib.intervals import Influence, average
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.scale import CONSTANT, decaying
from rfnlib.specs import Step
from rfnlib.studies import counting, pilots

NOTEBOOK = "02_lr_decay_peak"
CLAIMS = claims.by_id(
    Claim(
        "C2",
        "Transferability peaks when the learning rate decays, whichever epoch that is",
        ("after the decay − constant rate", "after the decay − at the end"),
        margin=0.02,
        answer="success {rises after the decay of the learning rate and falls again|does not both rise after the "
        "decay of the learning rate and fall again|does not both rise after the decay of the learning rate and fall "
        "again by an amount that would matter}",
        follows=(
            "Train a surrogate by SGD until shortly after the first decay of the learning rate, and no further; how "
            "much it matters when that decay is, the table decay by decay shows. What changes in the network then is "
            "the question of notebook 03.",
            "Stopping shortly after a decay of the learning rate is no rule for training a surrogate at this scale; "
            "what the paper builds on it, flatness included, needs another reason.",
            "Success does not both rise above that of a constant rate and fall afterwards by amounts that would "
            "matter: at this scale there is no peak to be explained.",
        ),
    )
)


def arms(lab: Lab) -> dict[str, Arm]:
    """One arm a schedule, attacked all along training: step schedules on every judged seed, others on the first few."""
    scale, found = lab.scale, {}
    for name, schedule in scale.schedules().items():
        runs = [scale.surrogate(schedule, seed) for seed in (lab.seeds if isinstance(schedule, Step) else lab.few)]
        found[name] = Arm(name, runs, At(scale.transfer, scale.attacked_at(schedule)))
    return found


def plan(lab: Lab) -> Iterator[Measurement]:
    """The runs that are judged, seed by seed, then the standard schedule."""
    found, first = arms(lab), judged(lab)
    yield from by_seed(found[name] for name in first)
    yield from by_seed(arm for name, arm in found.items() if name not in first and _by_steps(arm))


def later(lab: Lab) -> Iterator[Measurement]:
    """The other schedules."""
    yield from by_seed(arm for arm in arms(lab).values() if not _by_steps(arm))


def _by_steps(arm: Arm) -> bool:
    return isinstance(arm.specs[0].schedule, Step)


def judged(lab: Lab) -> list[str]:
    """The names of the runs that claims C2 and C3 compare."""
    return [CONSTANT, *map(decaying, lab.scale.decays)]


def measure(lab: Lab) -> Peak:
    """The curves of claim C2 at `lab`'s scale.

    Raises:
        MissingRecord: in replay, a run that is judged is not recorded.
    """
    curves = lab.curves(arms(lab), needed=judged(lab))
    return Peak(curves, lab.scale.decays, lab.scale.judged_after, pilots.gates(lab, "C2"))


@dataclass(frozen=True)
class Peak:
    """Success along training under every schedule, and what claim C2 is judged by.

    The differences take how images and targets are counted, as `TransferCurve.at` does.

    Attributes:
        curves: by schedule, on test images and test targets.
        decays: epochs at which the judged runs decay, once each.
        after: how many epochs after its decay a run is judged.
        gates: that the scale must pass.
    """

    curves: dict[str, TransferCurve]
    decays: tuple[int, ...]
    after: float
    gates: list[Gate]

    # --- the judgement ---

    def level(self, decay: float, **how: Any) -> Influence:
        """s(d + a)."""
        return self.curves[decaying(decay)].at(decay + self.after, **how)

    def above_constant(self, decay: float, **how: Any) -> Influence:
        """s(d + a) − c(d + a)."""
        return self.level(decay, **how) - self.curves[CONSTANT].at(decay + self.after, **how)

    def above_end(self, decay: float, **how: Any) -> Influence:
        """s(d + a) − s(end)."""
        return self.level(decay, **how) - self.curves[decaying(decay)].at(**how)

    def above_before(self, decay: float) -> Influence:
        """s(d + a) − s(d), the jump itself: secondary, for a plateau that still climbs shares it."""
        return self.level(decay) - self.curves[decaying(decay)].at(decay)

    def jump(self, **how: Any) -> Influence:
        """The first primary difference: `above_constant`, mean of the decays."""
        return average([self.above_constant(d, **how) for d in self.decays])

    def decline(self, **how: Any) -> Influence:
        """The second primary difference: `above_end`, mean of the decays."""
        return average([self.above_end(d, **how) for d in self.decays])

    def verdict(self, claim: str = "C2") -> claims.Verdict:
        """The verdict on both differences, before Holm's correction over all claims."""
        return claims.judge(CLAIMS[claim], [self.jump(), self.decline()], gates=self.gates)

    def headline(self, claim: str = "C2") -> str:
        """What was found, in one sentence."""
        both = sum(self.above_constant(d).value > 0 and self.above_end(d).value > 0 for d in self.decays)
        jump, decline = (words.against(of) for of in (self.jump(), self.decline()))
        return (
            f"{self.verdict(claim).answer}: {words.count(self.after, 'epoch')} after it, success on "
            f"{words.count(len(self.targets), 'target')} is {jump} that of the run that did not decay, and {decline} "
            f"that at the end of the same run (means of decays at {words.listed(self.decays)}; {both} of "
            f"{len(self.decays)} show both)."
        )

    # --- tables ---

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the test targets."""
        return self.curves[CONSTANT].targets

    @property
    def _primaries(self) -> dict[str, counting.Difference]:
        return {"above the constant run": self.jump, "above the end": self.decline}

    @property
    def _each_decay(self) -> counting.Ways:
        return {decaying(d): {"decay": d} for d in self.decays}

    def by_decay(self) -> pd.DataFrame:
        """Success after each decay, and how many points it is above the constant run, its own end and just before."""
        differences = {
            "above the constant run": self.above_constant,
            "above the end": self.above_end,
            "above just before": self.above_before,
        }
        level = counting.table({"success after it": self.level}, self._each_decay, "run", words.percent)
        return level.join(counting.table(differences, self._each_decay, "run"))

    def by_denominator(self) -> pd.DataFrame:
        """Both judged differences and the level they rest on, counted over other images."""

        def level(**how: Any) -> Influence:
            return average([self.level(d, **how) for d in self.decays])

        ways, axis = counting.other_images(), "counted over"
        images = counting.table({"images counted at least once": level}, ways, axis, lambda e: e.images)
        levels = counting.table({"success after the decay": level}, ways, axis, words.percent)
        return images.join(levels).join(counting.table(self._primaries, ways, axis))

    def by_target(self) -> pd.DataFrame:
        """Both judged differences on each target."""
        return counting.table(self._primaries, counting.each(self.targets), "target")

    def sensitivity(self) -> pd.DataFrame:
        """Both judged differences if targets were drawn from others like them, and without one of them."""
        return counting.table(self._primaries, {"as judged": {}, **counting.other_targets(self.targets)}, "counted")

    def signs(self) -> list[str]:
        """How many decays and how many targets show each difference, and where it is least."""
        said = []
        for (name, mean), one in zip(self._primaries.items(), (self.above_constant, self.above_end), strict=True):
            said.append(f"{name}, by decay: {counting.signs(one, self._each_decay)}")
            said.append(f"{name}, by target: {counting.signs(mean, counting.each(self.targets))}")
        return said

    def second_decay(self) -> str:
        """What the second decay of a run does, which is not judged."""
        said = []
        for name, run in self.curves.items():
            milestones: tuple[float, ...] = getattr(run.spec.schedule, "milestones", ())
            if len(milestones) > 1:
                d = milestones[1]
                change = words.points(run.at(d + self.after) - run.at(d))
                said.append(f"{name}: success {change} points from epoch {d:g} to {d + self.after:g}")
        return f"A second decay, which is not judged: {'; '.join(said) or 'not recorded yet'}."

    def peaks(self) -> pd.DataFrame:
        """Where each mean curve is highest, there and at the end: a description, chosen after the fact."""
        rows = {
            name: {
                "seeds": str(run.seeds),
                "highest at epoch": f"{run.best:g}",
                "success there": words.percent(run.at(run.best)),
                "success at the end": words.percent(run.at()),
                "natural accuracy there": words.percent(run.mean("accuracy", run.best)),
                "at the end": words.percent(run.mean("accuracy")),
                "training accuracy at the end": words.percent(run.mean("training")),
            }
            for name, run in self.curves.items()
        }
        return pd.DataFrame(rows).T.rename_axis("schedule")
