"""The paper's claims as data, and the statistics that judge them: *holds*, *does not hold*, *inconclusive*.

Numbers called the paper's are those of its abstracts (arXiv 2304.02688, v1 and v2). No other number of
its tables could be verified, so none is printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from rfnlib.lab import Lab, Series
from rfnlib.transfer import DENOMINATORS, Estimate, interval

VERDICTS = ("holds", "does not hold", "inconclusive")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. `recorded` is the verdict that the committed records support, by scale."""

    id: str
    sentence: str
    paper: str
    notebook: str | None = None
    recorded: tuple[tuple[str, str], ...] = ()


CLAIMS = {
    c.id: c
    for c in (
        Claim(
            "C1",
            "Early stopping helps surrogates trained on robust and on non-robust features alike",
            "no verified number",
        ),
        Claim(
            "C2",
            "Transferability peaks when the learning rate decays, whichever epoch that is",
            "no verified number",
            "02_lr_decay_peak",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim("C3", "At that time the sharpness of the loss drops", "no verified number"),
        Claim("C4", "RFN always improves over early stopping", "by up to 47 points (v1)"),
        Claim("C5", "Of seven minimizers SAM consistently beats early stopping", "by up to 28.8 points (v2)"),
        Claim(
            "C6", "Large flat neighbourhoods raise transferability, at a cost in natural accuracy", "no verified number"
        ),
        Claim("C7", "RFN rivals the best other ways to train a surrogate", "no verified number"),
        Claim("C8", "RFN adds to other transfer techniques", "no verified number"),
    )
}


class ClaimChanged(AssertionError):
    """The committed records no longer support the recorded verdict."""


@dataclass(frozen=True)
class Finding:
    """One comparison behind a verdict: a paired difference of success rates that should be positive."""

    run: str
    against: str
    difference: Estimate  # at 95 %
    guarded: Estimate  # at the level that allows for how many comparisons there are


def judge_decay_peak(series: dict[str, Series], decays: Iterable[int], after: float) -> list[Finding]:
    """The comparisons behind C2, each at epochs fixed beforehand, on test images and test targets.

    For each run that decays once, at epoch d, with s(e) its success rate and c(e) that of the run
    whose rate stays constant: a rise s(d + after) − s(d) > 0; a rise that the constant run does not
    share, s(d + after) − c(d + after) > 0; and a later decline, s(d + after) − s(end) > 0.
    """
    decays, constant = list(decays), series["constant"]
    pairs = []
    for d in decays:
        run = series[f"decay at {d}"]
        peak = run.at(d + after)
        pairs += [
            (run.name, "just before it", peak - run.at(d)),
            (run.name, "no decay, same epoch", peak - constant.at(d + after)),
            (run.name, "the end of the run", peak - run.at(run.epochs[-1])),
        ]
    level = 1 - 0.05 / len(pairs)
    return [Finding(name, against, interval(d), interval(d, level)) for name, against, d in pairs]


def verdict(findings: list[Finding]) -> str:
    """Judge a claim that says every difference is positive.

    *holds*: each is, at 95 % (all must be, so no correction is owed: an intersection-union test).
    *does not hold*: one at least is negative, at 95 % for all of them together (Bonferroni).
    *inconclusive*: anything else, and whatever rests on one seed, whose luck no interval covers.
    """
    if any(f.difference.seeds < 2 for f in findings):
        return "inconclusive"
    if all(f.difference.low > 0 for f in findings):
        return "holds"
    if any(f.guarded.high < 0 for f in findings):
        return "does not hold"
    return "inconclusive"


def table(findings: list[Finding]) -> pd.DataFrame:
    """The comparisons in points, for a reader."""
    rows = []
    for f in findings:
        d = f.difference
        sign = "positive" if d.low > 0 else "negative" if d.high < 0 else "open"
        shown = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
        row = {
            "run": f.run,
            "against": f.against,
            "points": f"{100 * d.value:+.1f}",
            "95 % interval": shown,
            "sign": sign,
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index(["run", "against"])


def by_denominator(series: dict[str, Series], decays: Iterable[int], after: float) -> pd.DataFrame:
    """Success `after` epochs past each decay under every denominator: how much the choice matters."""
    rows = {}
    for d in decays:
        rates = {name: interval(series[f"decay at {d}"].at(d + after, name)) for name in DENOMINATORS}
        rows[f"decay at {d}"] = {n: f"{r.value:.1%} ± {(r.high - r.low) / 2:.1%}" for n, r in rates.items()}
    return pd.DataFrame(rows).T


def announce(claim: str, lab: Lab, reached: str) -> str:
    """The verdict line of a notebook, in words that do not depend on the last digit.

    Raises:
        ClaimChanged: in replay, the records of this scale support another verdict than the recorded one.
    """
    recorded = dict(CLAIMS[claim].recorded).get(lab.scale.name)
    if lab.mode == "replay" and list(lab.seeds) == list(lab.scale.seeds) and recorded != reached:
        raise ClaimChanged(
            f"{claim} at {lab.scale.name} scale is recorded as {recorded!r}, but its records say {reached!r}; "
            "if the records are right, change `recorded` in rfnlib/claims.py."
        )
    return f"{claim}: {reached} ({lab.scale.name} scale, {_count(len(lab.seeds), 'seed')})"


def c2(lab: Lab) -> tuple[dict[str, Series], list[Finding]]:
    """The curves and the comparisons of claim C2 at `lab`'s scale."""
    series = lab.transfer(lab.decay_runs())
    return series, judge_decay_peak(series, lab.scale.decays, lab.scale.judged_after)


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")
