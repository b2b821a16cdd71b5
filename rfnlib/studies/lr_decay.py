"""Claim C2: transferability peaks when the learning rate decays, whichever epoch that is. Notebook 02.

With s(e) the success rate of a run that decays once, at epoch d, and c(e) that of the run whose rate stays constant,
two differences are judged, each the mean over the decays: s(d + a) − c(d + a), the jump that the constant run does
not share, and s(d + a) − s(end), the later decline. a is the scale's `judged_after`. Both must be positive, and either
being negative contradicts the claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from rfnlib import claims, words
from rfnlib.curves import TransferCurve
from rfnlib.intervals import Influence, average, interval
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.scale import CONSTANT, decaying
from rfnlib.specs import Step
from rfnlib.studies import pilots
from rfnlib.transfer import DEFAULT

NOTEBOOK = "02_lr_decay_peak"
CLAIMS = ("C2",)

ANSWERS = {
    "supported": "Success peaks after the decay of the learning rate",
    "contradicted": "Success does not peak after the decay of the learning rate",
    "no effect": "The decay of the learning rate makes no difference to success",
    "inconclusive": "Whether success peaks after the decay of the learning rate is not decided",
    "not testable": "Whether success peaks after the decay of the learning rate cannot be tested at this scale",
}
FOLLOWS = {
    "supported": "Train a surrogate by SGD until shortly after a decay of the learning rate, and no further: that "
    "the rate decays matters more than when. What changes in the network then is the question of notebook 03.",
    "contradicted": "Stopping shortly after a decay of the learning rate is no rule for training a surrogate at this "
    "scale; what the paper builds on it, flatness included, needs another reason.",
    "no effect": "For transfer it does not matter at this scale whether training stops after a decay of the learning "
    "rate or goes on: there is no peak to be explained.",
    "inconclusive": "No advice follows yet: the intervals hold gains and losses that would matter, and more seeds "
    "would narrow them.",
    "not testable": "Nothing follows: a gate says that training at this scale is not what the claim is about. The "
    "differences are printed all the same, as a description.",
}


def arms(lab: Lab) -> dict[str, Arm]:
    """One arm a schedule, attacked all along training: step schedules on every judged seed, others on the first few."""
    found = {}
    for name, schedule in lab.scale.schedules().items():
        seeds = lab.seeds if isinstance(schedule, Step) else lab.few
        runs = [lab.scale.surrogate(schedule, seed) for seed in seeds]
        found[name] = Arm(name, runs, At(lab.scale.transfer, lab.scale.attacked_at(schedule)))
    return found


def plan(lab: Lab) -> Iterator[Measurement]:
    """The step schedules, seed by seed."""
    yield from by_seed(arm for arm in arms(lab).values() if isinstance(arm.specs[0].schedule, Step))


def later(lab: Lab) -> Iterator[Measurement]:
    """The other schedules."""
    yield from by_seed(arm for arm in arms(lab).values() if not isinstance(arm.specs[0].schedule, Step))


def measure(lab: Lab) -> Peak:
    """The curves of claim C2 at `lab`'s scale.

    Raises:
        MissingRecord: in replay, a run that is judged is not recorded.
    """
    judged = [CONSTANT, *map(decaying, lab.scale.decays)]
    curves = {name: lab.read(arm) for name, arm in lab.shown(arms(lab), needed=judged).items()}
    targets = tuple(t.name for t in lab.scale.targets if t.role == "test")
    return Peak(curves, lab.scale.decays, lab.scale.judged_after, targets, tuple(pilots.gates(lab, "C2")))


@dataclass(frozen=True)
class Peak:
    """Success along training under every schedule, and what claim C2 is judged by.

    Attributes:
        curves: by schedule, on test images and test targets.
        decays: epochs at which the judged runs decay, once each.
        after: how many epochs after its decay a run is judged.
        targets: names of the test targets.
        gates: that the scale must pass.
    """

    curves: dict[str, TransferCurve]
    decays: tuple[int, ...]
    after: float
    targets: tuple[str, ...]
    gates: tuple[claims.Gate, ...]

    # --- the judgement ---

    def above_constant(self, decay: float, denominator: str = DEFAULT, targets: list[int] | None = None) -> Influence:
        """s(d + a) − c(d + a)."""
        run, constant = self.curves[decaying(decay)], self.curves[CONSTANT]
        at = decay + self.after
        return run.at(at, denominator, targets) - constant.at(at, denominator, targets)

    def above_end(self, decay: float, denominator: str = DEFAULT, targets: list[int] | None = None) -> Influence:
        """s(d + a) − s(end)."""
        run = self.curves[decaying(decay)]
        return run.at(decay + self.after, denominator, targets) - run.at(run.end, denominator, targets)

    def above_before(self, decay: float) -> Influence:
        """s(d + a) − s(d), the jump itself: secondary, for a plateau that still climbs shares it."""
        run = self.curves[decaying(decay)]
        return run.at(decay + self.after) - run.at(decay)

    def jump(self, denominator: str = DEFAULT, targets: list[int] | None = None) -> Influence:
        """The first primary difference: `above_constant`, mean of the decays."""
        return average([self.above_constant(d, denominator, targets) for d in self.decays])

    def decline(self, denominator: str = DEFAULT, targets: list[int] | None = None) -> Influence:
        """The second primary difference: `above_end`, mean of the decays."""
        return average([self.above_end(d, denominator, targets) for d in self.decays])

    def verdict(self, claim: str = "C2") -> claims.Verdict:
        """The verdict on both differences, before Holm's correction over all claims."""
        return claims.judge(claim, [self.jump(), self.decline()], gates=self.gates)

    def headline(self, claim: str = "C2") -> str:
        """What was found, in one sentence."""
        both = sum(self.above_constant(d).value > 0 and self.above_end(d).value > 0 for d in self.decays)
        jump, decline = (words.against(interval(of)) for of in (self.jump(), self.decline()))
        return (
            f"{ANSWERS[self.verdict(claim).word]}: {words.count(self.after, 'epoch')} after it, success on "
            f"{words.count(len(self.targets), 'target')} is {jump} that of the run that did not decay, and {decline} "
            f"that at the end of the same run (means of decays at {words.listed(self.decays)}; {both} of "
            f"{len(self.decays)} show both)."
        )

    def follows(self) -> str:
        """What the verdict means for someone who trains a surrogate."""
        return FOLLOWS[self.verdict().word]

    # --- tables ---

    def by_decay(self) -> pd.DataFrame:
        """Success after each decay, and how many points it is above the constant run, its own end and just before."""
        rows = {}
        for d in self.decays:
            run = self.curves[decaying(d)]
            rows[decaying(d)] = {
                "success after it": words.percent(interval(run.at(d + self.after))),
                "above the constant run": words.points(interval(self.above_constant(d))),
                "above the end": words.points(interval(self.above_end(d))),
                "above just before": words.points(interval(self.above_before(d))),
            }
        return pd.DataFrame(rows).T.rename_axis("run")

    def by_denominator(self) -> pd.DataFrame:
        """Both judged differences and the level they rest on, counted over other images."""
        rows = {}
        for name, meaning in words.COUNTED.items():
            level = average([self.curves[decaying(d)].at(d + self.after, name) for d in self.decays])
            rows[meaning] = {
                "images": level.images,
                "success after the decay": words.percent(interval(level)),
                "above the constant run": words.points(interval(self.jump(name))),
                "above the end": words.points(interval(self.decline(name))),
            }
        return pd.DataFrame(rows).T.rename_axis("counted over")

    def by_target(self) -> pd.DataFrame:
        """Both judged differences on each target."""
        return pd.DataFrame({t: self._both([i]) for i, t in enumerate(self.targets)}).T.rename_axis("target")

    def sensitivity(self) -> pd.DataFrame:
        """Both judged differences if targets were drawn from others like them, and without one of them."""
        rows = {"as judged": self._both()}
        if len(self.targets) > 1:
            rows["targets as a random sample of such targets"] = self._both(random_targets=True)
        for left, name in enumerate(self.targets if len(self.targets) > 1 else ()):
            rows[f"without {name}"] = self._both([t for t in range(len(self.targets)) if t != left])
        return pd.DataFrame(rows).T.rename_axis("counted")

    def _both(self, targets: list[int] | None = None, **how: bool) -> dict[str, str]:
        both = {"above the constant run": self.jump(targets=targets), "above the end": self.decline(targets=targets)}
        return {name: words.points(interval(of, **how)) for name, of in both.items()}

    def signs(self) -> list[str]:
        """How many decays and how many targets show each difference, and where it is least."""
        said = []
        for name, one, mean in (
            ("above the constant run", self.above_constant, self.jump),
            ("above the end", self.above_end, self.decline),
        ):
            decays = {decaying(d): interval(one(d)) for d in self.decays}
            targets = {t: interval(mean(targets=[i])) for i, t in enumerate(self.targets)}
            said += [f"{name}, by decay: {words.signs(decays)}", f"{name}, by target: {words.signs(targets)}"]
        return said

    def peaks(self) -> pd.DataFrame:
        """Where each mean curve is highest, there and at the end: a description, chosen after the fact."""
        rows = {}
        for name, run in self.curves.items():
            best = max(range(len(run.epochs)), key=lambda i, run=run: run.at(run.epochs[i]).value)
            top = run.epochs[best]
            rows[name] = {
                "seeds": str(run.seeds),
                "highest at epoch": f"{top:g}",
                "success there": words.percent(interval(run.at(top))),
                "success at the end": words.percent(interval(run.at(run.end))),
                "natural accuracy there": words.percent(run.accuracy[:, best].mean()),
                "at the end": words.percent(run.accuracy[:, -1].mean()),
                "training accuracy at the end": words.percent(run.training[:, -1].mean()),
            }
        return pd.DataFrame(rows).T.rename_axis("schedule")
