"""The README's table of claims, written from the records so that the two cannot drift apart."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from rfnlib import claims, findings, intervals, paths, rivalry, scales
from rfnlib.lab import Lab, MissingRecord

BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"


def claims_table() -> str:
    """The claims as a Markdown table: the paper's number, ours at each recorded scale, the verdict."""
    recorded = {name: _open(name) for name in scales.SCALES if name != "smoke"}
    lines = [
        "| | claim | notebook | paper | ours | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims.CLAIMS.values():
        link = f"[{claim.notebook[:2]}](notebooks/{claim.notebook}.ipynb)"
        ours, verdicts = [], []
        for name, lab in recorded.items():
            try:
                number, verdict = MEASURED[claim.id](lab)
            except MissingRecord:
                continue
            ours.append(f"{name}: {number}")
            verdicts.append(f"{name}: **{verdict}**")
        cells = (
            claim.id,
            claim.sentence,
            link,
            claim.paper,
            "<br>".join(ours) or "–",
            "<br>".join(verdicts) or "–",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update(write: bool = True) -> bool:
    """Put the table between its marks in README.md; whether that changes the file.

    Raises:
        ValueError: README.md has lost the marks.
    """
    path = paths.root() / "README.md"
    old = path.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN} and {END} once each.")
    before, rest = old.split(BEGIN)
    new = f"{before}{BEGIN}\n{claims_table()}\n{END}{rest.split(END)[1]}"
    if write and new != old:
        path.write_text(new)
    return new != old


def _open(scale: str) -> Lab:
    return Lab(scale, "replay")


def _c1(lab: Lab) -> tuple[str, str]:
    study = findings.c1(lab)
    shown = []
    for name in ("D_R", "D_NR"):
        d = intervals.interval(study.help(name))
        shown.append(
            f"{name}: {100 * d.value:+.1f} points by stopping at epoch {study.stops[name]:g}{_sure(d, _points(d))}"
        )
    return "; ".join(shown), claims.verdict(study.judge())


def _c2(lab: Lab) -> tuple[str, str]:
    series, found = findings.c2(lab)
    after = lab.scale.judged_after
    rises = [series[f"decay at {d}"].at(d + after) - series[f"decay at {d}"].at(d) for d in lab.scale.decays]
    mean = intervals.interval(intervals.average(rises))
    number = (
        f"{100 * mean.value:+.1f} points ({_points(mean)}) within {after:g} epoch "
        f"of the decay, mean of {len(rises)} decays, {mean.seeds} seeds"
    )
    return number, claims.verdict(found)


def _c3(lab: Lab) -> tuple[str, str]:
    _, flatness, found = findings.c3(lab)
    after, decays = lab.scale.judged_after, lab.scale.decays
    runs = [flatness[f"decay at {d}"] for d in decays]
    drops = [np.log(r.at(d, "top") / r.at(d + after, "top")) for r, d in zip(runs, decays, strict=True)]
    mean = intervals.over_seeds(np.mean(drops, axis=0))
    low, value, high = np.exp([mean.low, mean.value, mean.high])
    number = f"λ₁ falls by the factor {value:.2f} within {after:g} epoch of the decay, mean of {len(runs)} decays"
    return f"{number}{_sure(mean, f'{low:.2f} to {high:.2f}')}", claims.verdict(found)


def _gain(name: str, lab: Lab) -> tuple[str, str]:
    gains = findings.gains(lab)
    mean = intervals.interval(gains.gain(name, gains.stop))
    found = gains.against_stopping(name)
    most = max(f.difference.value for f in found)
    number = f"{name} {100 * mean.value:+.1f} points over early stopping, mean of {len(found)} targets"
    return f"{number}{_sure(mean, _points(mean))}; at most {100 * most:+.1f}", claims.verdict(found)


def _c6(lab: Lab) -> tuple[str, str]:
    gains = findings.gains(lab)
    found = gains.against_small()
    success, cost = (100 * f.difference.value for f in found)
    number = (
        f"ρ = {gains.rho:g} against {lab.scale.rhos[0]:g}: {success:+.1f} points of success, {-cost:+.1f} of accuracy"
    )
    return f"{number}{_sure(found[1].difference, '')}", claims.verdict(found)


def _c7(lab: Lab) -> tuple[str, str]:
    found = rivalry.c7(lab)
    differences = {f.against: f.difference for f in found.differences()}
    best = next(name for name in found.by_success() if name in differences)
    d = differences[best]
    number = f"RFN {100 * d.value:+.1f} points against {best}, the best of {len(differences)} rivals"
    return f"{number}{_sure(d, _points(d))}", claims.verdict(found.judge())


def _c8(lab: Lab) -> tuple[str, str]:
    grid = rivalry.c8(lab)
    added = list(grid.differences().values())
    mean = intervals.interval(intervals.average(added))
    number = f"RFN {100 * mean.value:+.1f} points over SGD, mean of {len(added)} techniques"
    return f"{number}{_sure(mean, _points(mean))}", claims.verdict(grid.judge())


def _points(estimate: intervals.Estimate) -> str:
    return f"{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"


def _sure(estimate: intervals.Estimate, interval: str) -> str:
    if estimate.seeds == 1:
        return " (one seed)"
    return f" ({interval}{', ' * bool(interval)}{estimate.seeds} seeds)"


# How each claim is put into one number.
MEASURED: dict[str, Callable[[Lab], tuple[str, str]]] = {
    "C1": _c1,
    "C2": _c2,
    "C3": _c3,
    "C4": functools.partial(_gain, "RFN"),
    "C5": functools.partial(_gain, "SAM"),
    "C6": _c6,
    "C7": _c7,
    "C8": _c8,
}
