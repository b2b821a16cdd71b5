"""What a claim is, and the rule that judges it. The paper's claims themselves are in `rfnlib.studies`.

Each claim has one primary difference, or several that must all be positive, named before anything was measured, and a
margin: how much would matter.

============  ===========================================================================
supported     its 95 % interval lies above 0
contradicted  its 95 % interval lies below 0
no effect     its 90 % interval lies within ± margin (two one-sided tests, Schuirmann 1987)
inconclusive  none of these, or one seed, whose luck no interval covers
not testable  a gate failed: training at this scale is not what the claim is about
============  ===========================================================================

Gates come first, then the words in this order. Holm's correction over all claims stands beside each verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from rfnlib.checks import require
from rfnlib.intervals import Estimate, Influence, interval

WORDS = ("supported", "contradicted", "no effect", "inconclusive", "not testable")
UNDECIDED = {  # what two of them say of any claim, and what follows from it
    "inconclusive": (
        "is not decided",
        "No advice follows yet: the data cannot tell whether there is a difference that matters, and more seeds would "
        "narrow the interval.",
    ),
    "not testable": (
        "cannot be tested at this scale",
        "Nothing follows: a gate that goes before the claim is not passed at this scale. What was found is printed all "
        "the same, as a description.",
    ),
}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what it is judged by.

    Numbers called the paper's are those of its abstracts (arXiv 2304.02688, v1 and v2). No other number of its tables
    could be verified, so none is printed.

    Attributes:
        id: such as "C4".
        sentence: the claim.
        primary: what is compared, in words; where it is several differences, all of them must be positive.
        margin: a difference that would matter, in the unit of the estimate (points / 100, or a logarithm).
        unit: "points", "points a doubling", or "factor" (of an estimate that is a natural logarithm).
        non_inferiority: whether being no worse than by the margin is all that is claimed.
        paper: the paper's number, where one could be verified.
        answer: what was found, in braces how it is said where the claim is supported, where it is contradicted and
            where there is no effect, such as "RFN {beats|loses to|does as well as} SGD".
        follows: what follows for the reader in each of these cases, a sentence each.
    """

    id: str
    sentence: str
    primary: tuple[str, ...]
    margin: float
    unit: str = "points"
    non_inferiority: bool = False
    paper: str = "no verified number"
    answer: str = ""
    follows: tuple[str, ...] = ()

    @property
    def matters(self) -> str:
        """The margin in its unit."""
        return f"×{np.exp(self.margin):.2f}" if self.unit == "factor" else f"{100 * self.margin:g} {self.unit}"


def by_id(*claims: Claim) -> dict[str, Claim]:
    """Claims by their id, as a study's `CLAIMS` has them."""
    return {claim.id: claim for claim in claims}


# --- the rule ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """A condition on training that must hold before anything is judged: its name, whether it does, and its figure."""

    name: str
    passed: bool
    figure: str


@dataclass(frozen=True)
class Verdict:
    """The word for a claim, and all that it rests on; `str` of it is one line.

    Attributes:
        claim: what was judged.
        word: one of `WORDS`.
        what: the primary differences in words, as many as `estimates`.
        estimates: the primary differences at 95 %; none if a gate failed and nothing was measured.
        gates: those that were asked, passed or not.
        p: two-sided, of the hypothesis that the primary is 0 (−margin for non-inferiority); 1 where nothing is tested.
        holm: `p` corrected for all claims, by `holm`; None before.
    """

    claim: Claim
    word: str
    what: tuple[str, ...]
    estimates: tuple[Estimate, ...]
    gates: tuple[Gate, ...]
    p: float
    holm: float | None = None

    @property
    def answer(self) -> str:
        """What was found, in a sentence without a stop."""
        case = 0 if self.word in UNDECIDED else WORDS.index(self.word)
        said = re.sub(r"\{(.*)\}", lambda cases: cases[1].split("|")[case], self.claim.answer)
        said = f"whether {said} {UNDECIDED[self.word][0]}" if self.word in UNDECIDED else said
        if self.word == "inconclusive" and (n := self.seeds_that_decide()):
            said += f" by {min(e.seeds for e in self.estimates)} seeds (about {n} like them would)"
        return said[:1].upper() + said[1:]

    def seeds_that_decide(self, most: int = 100) -> int | None:
        """With how many seeds the word would be another, were the differences what they are; None: more than `most`.

        As if seeds alone made them uncertain: errors shrink with the root of their number, and degrees of freedom grow
        with it. A description of the interval, and no plan.
        """
        now = min((e.seeds for e in self.estimates), default=0)
        for n in range(now + 1, most + 1) if now > 1 else ():
            more = [
                replace(e, error=e.error * sqrt(now / n), freedom=e.freedom * (n - 1) / (now - 1))
                for e in self.estimates
            ]
            if _decide(more, self.claim.margin, self.claim.non_inferiority)[0] != "inconclusive":
                return n
        return None

    @property
    def follows(self) -> str:
        """What the verdict means for the reader."""
        if self.word in UNDECIDED:
            return UNDECIDED[self.word][1]
        return dict(zip(WORDS, self.claim.follows, strict=False)).get(self.word, "")

    @property
    def survives(self) -> bool:
        """Whether the word stands after Holm's correction: words that rest on no such test do."""
        return self.word not in ("supported", "contradicted") or self.holm is None or self.holm < 0.05

    def __str__(self) -> str:
        unit = "" if self.claim.unit == "factor" else f" {self.claim.unit}"
        shown = [
            f"{what} {self._shown(e.value, '+')}{unit} ({self._intervals(e)}"
            for what, e in zip(self.what, self.estimates, strict=True)
        ]
        parts = [f"gate {g.name!r} failed ({g.figure})" for g in self.gates if not g.passed]
        if shown:
            parts += ["), ".join(shown), f"{self._basis()})"]
        return f"{self.claim.id} {self.word}: {'; '.join(parts)}"

    def _intervals(self, e: Estimate) -> str:
        """At 95 %, and at the level that *no effect* rests on where that is the word."""
        levels = (0.95, 0.90) if self.word == "no effect" else (0.95,)
        return ", ".join(f"{100 * level:.0f} % {' to '.join(map(self._shown, e.at(level)))}" for level in levels)

    def _shown(self, value: float, sign: str = "-") -> str:
        """A difference in points, or a logarithm as a factor, which has × in place of a sign."""
        if self.claim.unit == "factor":
            text = f"{'×' * (sign == '+')}{np.exp(value):.2f}"
        else:
            text = f"{100 * value:{sign}z.1f}"
        return text.replace("-", "−").replace("inf", "∞")

    def _basis(self) -> str:
        """What the estimates rest on, the margin and the p-value."""
        least = {kind: min(getattr(e, kind) for e in self.estimates) for kind in ("seeds", "targets", "images")}
        based = ", ".join(f"{n} {kind[:-1] if n == 1 else kind}" for kind, n in least.items() if n)
        margin = "×" * (self.claim.unit == "factor") + self._shown(self.claim.margin).removesuffix(".0")
        kind = "non-inferiority margin" if self.claim.non_inferiority else "margin"
        tested = f"; {self._tested()}" if self.word != "not testable" else ""
        return f"{based}; {kind} {margin}{tested}"

    def _tested(self) -> str:
        name, p = ("p", self.p) if self.holm is None else ("Holm p", self.holm)
        text = "< .001" if p < 0.001 else "1" if p > 0.9995 else f"{p:.3f}"[1:]
        if self.holm is None:
            return f"{name} {text}" + (" before Holm's correction" if self.p < 1 else "")
        return f"{name} {text}" + ("" if self.survives else ", which it does not survive")


def judge(
    claim: Claim,
    primary: Influence | Estimate | Sequence[Influence | Estimate] | None,
    what: str | Sequence[str] | None = None,
    gates: Sequence[Gate] = (),
) -> Verdict:
    """Judge a claim by its primary difference, or by several that must all be positive.

    Several differences θₖ are judged as their minimum. It is positive if each is, at 95 % (an intersection-union
    test, Berger 1982: no correction is owed); negative if one is, by Holm's procedure over them; within ± margin if
    all lie above −margin at 90 %, and one lies below the margin at 90 % of all together (Bonferroni).

    For non-inferiority −margin stands in place of 0, and *no effect* is no verdict.

    Args:
        primary: the difference, or as many as `claim.primary` names; None only if a gate failed.
        what: in words, if these say more than `claim.primary`.
        gates: read before.

    Raises:
        ValueError: another number of differences than the claim names, or none though every gate passed.
    """
    words = claim.primary if what is None else (what,) if isinstance(what, str) else tuple(what)
    primaries = [] if primary is None else [primary] if isinstance(primary, Influence | Estimate) else list(primary)
    failed = not all(g.passed for g in gates)
    wanted = len(primaries) == len(words) == len(claim.primary) or (primary is None and failed)
    asked, given = f"{len(claim.primary)} ({'; '.join(claim.primary)})", f"{len(primaries)} with {len(words)} names"
    require(wanted, f"{claim.id} is judged by so many differences: {asked}, not {given}; none only if a gate failed.")
    estimates = tuple(d if isinstance(d, Estimate) else interval(d) for d in primaries)
    word, p = ("not testable", 1.0) if failed else _decide(estimates, claim.margin, claim.non_inferiority)
    return Verdict(claim, word, words[: len(estimates)], estimates, tuple(gates), p)


def _decide(estimates: Sequence[Estimate], margin: float, non_inferiority: bool) -> tuple[str, float]:
    """The word, and the two-sided p-value of the minimum of the differences."""
    if min(e.seeds for e in estimates) < 2:
        return "inconclusive", 1.0
    null = -margin if non_inferiority else 0.0
    all_above = float(np.max([2 * e.p_above(null) for e in estimates]))  # NaN, of what has no logarithm, stays NaN
    below = _holm([2 * min(e.p_above(null), e.p_below(null)) for e in estimates])
    one_below = min((p for p, e in zip(below, estimates, strict=True) if e.centre < null), default=1.0)
    p = min([p for p in (all_above, one_below) if p < 1], default=1.0)
    if all_above < 0.05:
        return "supported", p
    if one_below < 0.05:
        return "contradicted", p
    within = all(e.at(0.90)[0] > -margin for e in estimates)
    together = 1 - 0.10 / len(estimates)
    if not non_inferiority and within and any(e.at(together)[1] < margin for e in estimates):
        return "no effect", p
    return "inconclusive", p


def positive(name: str, difference: Influence | Estimate) -> Gate:
    """The gate that a difference is above 0 at 95 %, such as that early stopping helps on D itself (C1)."""
    e = difference if isinstance(difference, Estimate) else interval(difference)
    low, high = e.at(0.95)
    figure = f"{100 * e.value:+z.1f} points, 95 % {100 * low:z.1f} to {100 * high:z.1f}".replace("-", "−")
    return Gate(name, e.seeds > 1 and low > 0, figure)


def holm(verdicts: Sequence[Verdict], family: int) -> list[Verdict]:
    """The verdicts with p-values corrected for `family` claims by Holm (1979, Scand. J. Statist. 6).

    The i-th smallest of m p-values becomes max over j ≤ i of (m − j + 1)·pⱼ, at most 1. Claims not judged yet, and
    those that are not testable, count with p = 1: what is added later cannot make these values larger.

    Raises:
        ValueError: a claim twice, or more claims than the family has.
    """
    ids = [v.claim.id for v in verdicts]
    require(len(set(ids)) == len(ids) <= family, f"Holm's correction is over {family} different claims, not {ids}.")
    corrected = _holm([v.p for v in verdicts], family)
    return [replace(v, holm=p) for v, p in zip(verdicts, corrected, strict=True)]


def _holm(ps: Sequence[float], family: int | None = None) -> list[float]:
    ordered = np.argsort(ps, kind="stable")  # NaN last
    steps = (family or len(ps)) - np.arange(len(ps))
    corrected = np.empty(len(ps))
    corrected[ordered] = np.minimum(np.maximum.accumulate(steps * np.asarray(ps)[ordered]), 1)
    return corrected.tolist()
