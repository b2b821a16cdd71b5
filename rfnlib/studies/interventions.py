"""From one checkpoint, six ways to go on: does rate, noise or flatness move success? Claims Q1 to Q3 of notebook 06.

SGD at its constant first rate η is taken where the standard schedule first decays. From there every arm goes on with
momentum from 0 and the images in the same order, for as many forward-backward passes as T epochs of SGD take, T being
about a tenth of the training:

============  ===========================================================================================
lower rate    η/10
averaged      η; the mean of the weights that `unchanged` passes through, BatchNorm re-estimated
larger batch  η, batches ten times as large
RFN           η, SAM with RFN's ρ: two passes a step, T/2 epochs
noise         η, ∇L(w + ρu), u random of length 1: RFN's steps without its direction, also T/2 epochs
unchanged     η
============  ===========================================================================================

Every arm is compared with `unchanged` after the same number of passes, paired by seed and image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from rfnlib import words
from rfnlib.claims import Gate
from rfnlib.curves import SharpnessCurve, TransferCurve
from rfnlib.intervals import Estimate, Influence, estimated, interval, over_seeds
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.probes import Probe
from rfnlib.recipes import Averaged, collected
from rfnlib.scale import Scale
from rfnlib.similarity import Similarity
from rfnlib.specs import Minimizer, Step, TrainSpec
from rfnlib.studies import pilots

LOWER, MEAN, BATCH, RFN, NOISE, SAME = "lower rate", "averaged", "larger batch", "RFN", "noise", "unchanged"
START = "checkpoint"
TENFOLD = 10
MOMENTS = (1 / 40, 1 / 10, 3 / 10, 1.0)  # of T, at which the first seeds are looked at
FOLLOWED = 3  # so many seeds
AS_FLAT = np.log(1.15)  # factors of λ₁ below this do not matter, as in claim C3
FLATNESS = {  # by claim: the arm that RFN must be flatter than, the log factor that does, and the gate's name
    "Q1": (SAME, 0.0, "RFN flattens"),
    "Q2": (LOWER, -AS_FLAT, "RFN at least as flat as a lower rate"),
}

# What is looked at beside success, and whether it falls (-1) or rises (+1) where a network is flatter, or more alike.
MEASURES: dict[str, tuple[str, int]] = {
    **{name: (words.MEASURES[name], -1) for name in ("top", "trace", "matched", "input_gradient")},
    "input_top": ("λ₁ in the input", -1),
    "cosine": ("gradient similarity", +1),
    "train_loss": ("training loss", -1),
    "accuracy": ("natural accuracy", +1),
}
PLAIN = ("cosine", "accuracy")  # compared by differences; all others, which are positive, by factors


# --- arms -----------------------------------------------------------------------------------------------


def length(scale: Scale) -> int:
    """T, in epochs of SGD: an even number."""
    return 2 * max(1, round(scale.epochs / 20))


def similar(scale: Scale) -> Similarity:
    """How likeness to the targets is measured at `scale`."""
    return Similarity(min(scale.test_images, 512), min(scale.test_images, 128))


def questions(scale: Scale) -> tuple[Probe, ...]:
    """What is asked of every arm."""
    return scale.transfer, scale.sharpness, similar(scale)


def runs(lab: Lab, seeds: Sequence[int]) -> dict[str, list[TrainSpec]]:
    """The runs by arm; `averaged` is made of those of `unchanged`.

    Raises:
        MissingRecord: in replay, RFN's ρ is not chosen yet.
    """
    scale, whole, rho = lab.scale, length(lab.scale), pilots.chosen_rho(lab)

    def onwards(rate: float = scale.lr, epochs: int = whole, **how: Any) -> list[TrainSpec]:
        return [pilots.onwards(pilots.checkpoint(scale, seed), rate, epochs, **how) for seed in seeds]

    return {
        LOWER: onwards(scale.lr / TENFOLD),
        MEAN: onwards(),
        BATCH: onwards(batch=TENFOLD * scale.batch),
        RFN: onwards(epochs=whole // 2, minimizer=Minimizer("SAM", rho)),
        NOISE: onwards(epochs=whole // 2, minimizer=Minimizer("Noise", rho)),
        SAME: onwards(),
    }


def _arms(lab: Lab, seeds: Sequence[int], moments: Sequence[float]) -> dict[str, Arm]:
    scale, found = lab.scale, {}
    for name, specs in runs(lab, seeds).items():
        recipe = Averaged(scale.rivals.per_epoch) if name == MEAN else None
        epochs = [m * specs[0].epochs for m in moments]
        if recipe:  # a mean of one is none
            epochs = [e for e in epochs if len(collected(recipe, e)) > 1]
        found[name] = Arm(name, specs, *(At(probe, tuple(epochs), recipe) for probe in questions(scale)))
    return found


def arms(lab: Lab) -> dict[str, Arm]:
    """Every arm at its end, with every seed: what is judged."""
    return _arms(lab, lab.seeds, [1.0])


def followed(lab: Lab) -> dict[str, Arm]:
    """Every arm on its way, with the first seeds."""
    return _arms(lab, lab.seeds[:FOLLOWED], MOMENTS)


def begun(lab: Lab) -> dict[str, Arm]:
    """The checkpoint itself, of the first seeds: a row of the runs of claims C2 and C3."""
    scale, seeds = lab.scale, lab.seeds[:FOLLOWED]
    at = (float(min(scale.standard)),)
    specs = [scale.surrogate(Step(scale.lr), seed) for seed in seeds]
    return by_name(Arm(START, specs, *(At(probe, at) for probe in questions(scale))))


def plan(lab: Lab) -> Iterator[Measurement]:
    """What is judged, seed by seed; then the way there."""
    yield from by_seed(arms(lab).values())
    yield from by_seed(begun(lab).values())
    yield from by_seed(followed(lab).values())


# --- what was found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """The same arms asked three things: success, sharpness, and likeness to the targets; those that are complete."""

    success: dict[str, TransferCurve]
    sharpness: dict[str, SharpnessCurve]
    similarity: dict[str, SharpnessCurve]

    @classmethod
    def of(cls, lab: Lab, found: Mapping[str, Arm]) -> Views:
        """What `lab` has of these arms."""
        return cls(*(lab.curves(found, probe) for probe in questions(lab.scale)))

    def values(self, name: str, measure: str, moment: float = 1.0) -> np.ndarray:
        """A measure of an arm (seeds,) after the share `moment` of its run; the logarithm of those that have one.

        Raises:
            MissingRecord: it is not complete.
        """
        curves = self.similarity if measure in Similarity.measures else self.sharpness
        curve = complete(curves, name)
        at = moment * curve.end, measure
        return curve.at(*at) if measure in PLAIN else curve.log(*at)

    def rate(self, name: str, moment: float = 1.0, **how: Any) -> Influence:
        """Success of an arm after the share `moment` of its run.

        Raises:
            MissingRecord: it is not complete.
        """
        curve = complete(self.success, name)
        return curve.at(moment * curve.end, **how)

    def change(self, name: str, measure: str, moment: float = 1.0, over: str = SAME) -> Estimate | None:
        """How far a measure of an arm is above that of `over` after as many passes; None where it is not defined."""
        return estimated(self.values(name, measure, moment) - self.values(over, measure, moment))

    def gain(self, name: str, moment: float = 1.0, over: str = SAME, **how: Any) -> Influence:
        """Success of an arm less that of `over` after as many passes."""
        return self.rate(name, moment, **how) - self.rate(over, moment, **how)


def complete(curves: Mapping[Any, Any], key: Any, name: str = "") -> Any:
    """The curve of `key`, which is called `name` if it is none itself.

    Raises:
        MissingRecord: there is none.
    """
    if key not in curves:
        raise MissingRecord(f"{name or key}: not complete; compute it with `python -m rfnlib run` at this scale.")
    return curves[key]


@dataclass(frozen=True)
class Interventions:
    """Six ways to go on from one checkpoint.

    Attributes:
        ends: all arms at their end, every seed.
        way: all arms on their way, the first seeds, with the checkpoint.
        length: T, epochs of SGD whose passes every arm has.
        trained: the gates that the scale must pass.
    """

    ends: Views
    way: Views
    length: int
    trained: list[Gate]
    moments: ClassVar[Sequence[float]] = MOMENTS

    @property
    def _others(self) -> list[str]:
        """The arms that are complete, but for `unchanged`, which they are compared with."""
        return [name for name in self.ends.success if name != SAME]

    # --- the judgement ---

    def primaries(self, claim: str, **how: Any) -> list[Influence]:
        """The differences that a claim is judged by.

        Raises:
            MissingRecord: an arm is not complete.
        """
        pairs = {"Q1": ((RFN, SAME), (RFN, NOISE)), "Q2": ((LOWER, RFN),), "Q3": ((MEAN, SAME), (BATCH, SAME))}
        return [self.ends.gain(name, over=over, **how) for name, over in pairs[claim]]

    def gates(self, claim: str) -> list[Gate]:
        """Those of training, and that RFN did to sharpness what the claim is about.

        Raises:
            MissingRecord: sharpness of an arm is not complete.
        """
        return [*self.trained, *([self._flat(claim)] if claim in FLATNESS else [])]

    def _flat(self, claim: str) -> Gate:
        """What Q1 or Q2 is about: λ₁ of another arm over that of RFN."""
        over, least, name = FLATNESS[claim]
        flatter = over_seeds(self.ends.values(over, "top") - self.ends.values(RFN, "top"))
        figure = f"λ₁ of {over} over that of RFN {words.factor(flatter)} (from {np.exp(least):.2f} on)"
        return Gate(name, flatter.seeds > 1 and flatter.low > least, figure)

    # --- tables ---

    def table(self) -> pd.DataFrame:
        """A row an arm at its end: success, and how it and each measure differ from those of `unchanged`."""
        rows = {}
        for name, run in self.ends.success.items():
            rows[name] = {
                "seeds": str(run.seeds),
                "success": words.percent(run.at()),
                "gain, points": words.points(self.ends.gain(name)) if name != SAME else "",
                **{label: self._said(name, measure) for measure, (label, _) in MEASURES.items()},
            }
        return pd.DataFrame(rows).T.rename_axis("arm")

    def directions(self) -> pd.DataFrame:
        """A row an arm: what moved at its end against `unchanged`, ↑ or ↓, by its 95 % interval; · where that has 0."""
        rows = {
            name: {"success": arrow(interval(self.ends.gain(name)))}
            | {label: arrow(self._change(name, measure)) for measure, (label, _) in MEASURES.items()}
            for name in self._others
        }
        return pd.DataFrame(rows).T.rename_axis("arm")

    def agreement(self) -> pd.DataFrame:
        """A row a measure: in how many arms it moved with success, one of the two moved alone, or neither."""
        moved = {name: sign(interval(self.ends.gain(name))) for name in self._others}
        rows = {}
        for measure, (label, expected) in MEASURES.items():
            both = [(s, expected * sign(self._change(name, measure))) for name, s in moved.items()]
            rows[label] = {
                "with success, as expected": str(sum(s * m > 0 for s, m in both)),
                "with success, the other way": str(sum(s * m < 0 for s, m in both)),
                "success alone": str(sum(s != 0 and m == 0 for s, m in both)),
                "the measure alone": str(sum(s == 0 and m != 0 for s, m in both)),
                "neither": str(sum(s == 0 and m == 0 for s, m in both)),
            }
        return pd.DataFrame(rows).T.rename_axis("measure")

    def first(self) -> pd.DataFrame:
        """A row an arm: after how many epochs' worth of passes each first differed from `unchanged`, at 95 %."""
        rows = {}
        for name, run in self.way.success.items():
            if name in (SAME, START):
                continue
            rows[name] = {"success": self._first([(m, interval(self.way.gain(name, m))) for m in moments(run)])}
            for measure, (label, _) in MEASURES.items():
                found = [(m, self._change(name, measure, m, self.way)) for m in moments(run)]
                rows[name][label] = self._first(found)
        return pd.DataFrame(rows).T.rename_axis("arm")

    def _first(self, found: list[tuple[float, Estimate | None]]) -> str:
        for moment, estimate in found:
            if sign(estimate):
                return f"{self.length * moment:g} {arrow(estimate)}"
        return "·"

    def _change(self, name: str, measure: str, moment: float = 1.0, views: Views | None = None) -> Estimate | None:
        try:
            return (views or self.ends).change(name, measure, moment)
        except MissingRecord:
            return None

    def _said(self, name: str, measure: str) -> str:
        """A measure of an arm against `unchanged`; of that arm itself its value."""
        if name != SAME:
            change = self._change(name, measure)
            return words.points(change) if measure in PLAIN else words.factor(change)
        try:
            level = over_seeds(self.ends.values(SAME, measure))
        except MissingRecord:
            return words.MISSING
        return f"{level.value:.3f}" if measure in PLAIN else words.number(float(np.exp(level.value)))

    def sentence(self) -> str:
        """Which measures moved with success and which did not, in words."""
        if self.ends.success and min(run.seeds for run in self.ends.success.values()) < 2:
            return "With one seed no measure is known to move."
        arms_moved = sum(sign(interval(self.ends.gain(name))) != 0 for name in self._others)
        if not arms_moved:
            return f"Success moved in none of {len(self._others)} arms."
        table = self.agreement()
        apart = {label: sum(map(int, row.iloc[1:-1])) for label, row in table.iterrows()}  # one without the other
        score = {label: int(row.iloc[0]) - apart[label] for label, row in table.iterrows()}
        best = [label for label, value in score.items() if value == max(score.values())]
        return (
            f"Success moved in {words.count(arms_moved, 'arm')} of {len(self._others)}; most often in step "
            f"with it: {words.listed(best)} ({table.loc[best[0]].iloc[0]} times with it, {apart[best[0]]} not)."
        )

    def orders(self) -> str:
        """The arms whose success and sharpness are complete, by what they gain and by how far they lower λ₁."""
        lower = {name: -change.value for name in self._others if (change := self._change(name, "top"))}
        ways = {"what they gain": lambda n: self.ends.gain(n).value, "how far they lower λ₁": lower.__getitem__}
        said = [f"by {way}: {', '.join(sorted(lower, key=key, reverse=True))}" for way, key in ways.items()]
        return f"The arms {'; '.join(said)}." if lower else ""

    def gate_table(self) -> pd.DataFrame:
        """A row a gate that a question has beside those of training: its figure, and whether it is passed."""
        rows = {}
        for claim in FLATNESS:
            with suppress(MissingRecord):
                own = self._flat(claim)
                rows[own.name] = {"found": own.figure, "passed": "yes" if own.passed else "no", "claims": claim}
        return pd.DataFrame(rows).T.rename_axis("gate")


def moments(run: TransferCurve) -> list[float]:
    """The shares of its run at which an arm was looked at."""
    return [e / run.end for e in run.epochs]


def sign(estimate: Estimate | None) -> int:
    """-1 or 1 where the 95 % interval is on one side of 0; else 0."""
    if estimate is None or not np.isfinite(estimate.error):
        return 0
    low, high = estimate.at(0.95)
    return int(low > 0) - int(high < 0)


def arrow(estimate: Estimate | None) -> str:
    """↑, ↓, or · where it is not known."""
    return {1: "↑", -1: "↓", 0: "·"}[sign(estimate)]


def measure(lab: Lab) -> Interventions:
    """The arms that are complete, at `lab`'s scale.

    Raises:
        MissingRecord: in replay, RFN's ρ is not chosen yet.
    """
    way = {**begun(lab), **followed(lab)}
    trained = [pilots.EVERY[name](lab) for name in pilots.TRAINED]
    return Interventions(Views.of(lab, arms(lab)), Views.of(lab, way), length(lab.scale), trained)
