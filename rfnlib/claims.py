"""The paper's claims as data, and the statistics that judge them: *holds*, *does not hold*, *inconclusive*.

Numbers called the paper's are those of its abstracts (arXiv 2304.02688, v1 and v2). No other number of
its tables could be verified, so none is printed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rfnlib.intervals import Estimate
from rfnlib.lab import Lab

VERDICTS = ("holds", "does not hold", "inconclusive")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. `recorded` is the verdict that the committed records support, by scale."""

    id: str
    sentence: str
    paper: str
    notebook: str
    recorded: tuple[tuple[str, str], ...] = ()


CLAIMS = {
    c.id: c
    for c in (
        Claim(
            "C1",
            "Early stopping helps surrogates trained on robust and on non-robust features alike",
            "no verified number",
            "01_non_robust_features",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim(
            "C2",
            "Transferability peaks when the learning rate decays, whichever epoch that is",
            "no verified number",
            "02_lr_decay_peak",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim(
            "C3",
            "At that time the sharpness of the loss drops",
            "no verified number",
            "03_sharpness_drop",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim(
            "C4",
            "RFN always improves over early stopping",
            "by up to 47 points (v1)",
            "04_rfn_gains",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim(
            "C5",
            "Of seven minimizers SAM consistently beats early stopping",
            "by up to 28.8 points (v2)",
            "04_rfn_gains",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim(
            "C6",
            "Large flat neighbourhoods raise transferability, at a cost in natural accuracy",
            "no verified number",
            "04_rfn_gains",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim(
            "C7",
            "RFN rivals the best other ways to train a surrogate",
            "no verified number",
            "05_state_of_the_art",
            recorded=(("laptop", "inconclusive"),),
        ),
        Claim(
            "C8",
            "RFN adds to other transfer techniques",
            "no verified number",
            "05_state_of_the_art",
            recorded=(("laptop", "inconclusive"),),
        ),
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


def factors(findings: list[Finding]) -> pd.DataFrame:
    """Comparisons of logarithms as factors, for a reader: 2 is half as sharp after as before."""
    rows = []
    for f in findings:
        d = f.difference
        shown = f"{np.exp(d.low):.2f} to {np.exp(d.high):.2f}" if d.seeds > 1 else "one seed"
        sign = "drops" if d.low > 0 else "rises" if d.high < 0 else "open"
        rows.append({"run": f.run, "against": f.against, "drops by the factor": f"{np.exp(d.value):.2f}",
                     "95 % interval": shown, "sign": sign})  # fmt: skip
    return pd.DataFrame(rows).set_index(["run", "against"])


def announce(claim: str, lab: Lab, findings: list[Finding]) -> str:
    """The verdict line of a notebook, in words that do not depend on the last digit.

    Raises:
        ClaimChanged: in replay, the records of this scale support another verdict than the recorded one.
    """
    reached, seeds = verdict(findings), min(f.difference.seeds for f in findings)
    recorded = dict(CLAIMS[claim].recorded).get(lab.scale.name)
    if lab.mode == "replay" and list(lab.seeds) == list(lab.scale.seeds) and recorded != reached:
        raise ClaimChanged(
            f"{claim} at {lab.scale.name} scale is recorded as {recorded!r}, but its records say {reached!r}; "
            "if the records are right, change `recorded` in rfnlib/claims.py."
        )
    return f"{claim}: {reached} ({lab.scale.name} scale, {counted_seeds(seeds)})"


def counted_seeds(n: int) -> str:
    """Such as "1 seed" or "3 seeds"."""
    return f"{n} seed{'' if n == 1 else 's'}"
