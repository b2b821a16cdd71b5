"""`status`: how much of a scale is recorded, how much is missing, and about how long that takes on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rfnlib import studies
from rfnlib.costs import Ledger, Pace, Unit
from rfnlib.lab import Lab
from rfnlib.measurements import Measurement
from rfnlib.progress import duration
from rfnlib.workers import cores


@dataclass(frozen=True)
class Line:
    """Of one measurement, or of several together: rows wanted and missing, and the work that is left."""

    label: str
    rows: int
    missing: int
    left: dict[str, Unit]


def status(lab: Lab, claims: Sequence[str] | None = None, long: bool = False) -> str:
    """A table: a line a study, or (`long`) a line a measurement, and the sum.

    What several of them need is counted once, where it first comes; what depends on a choice, once it can be made.

    Args:
        claims: only what these need; None: everything.

    Raises:
        LookupError: a claim that no study judges.
    """
    for claim in claims or ():
        studies.of(claim)
    ledger, pace = Ledger(lab), Pace(lab)
    lines = list(_measurements(lab, ledger, claims) if long else _studies(lab, ledger, claims))
    units: dict[str, Unit] = {}
    table = [("", "rows", "recorded", "missing", "about")]
    for line in lines:
        new = {name: unit for name, unit in line.left.items() if name not in units}
        units |= new
        about = duration(pace.seconds(new.values())) if line.missing else ""
        table.append((line.label, *_counts(line.rows, line.missing), about))
    rows, missing, seconds = sum(x.rows for x in lines), sum(x.missing for x in lines), pace.seconds(units.values())
    table.append(("all", *_counts(rows, missing), duration(seconds) if missing else ""))
    width = max(len(row[0]) for row in table)
    text = [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in table]
    if missing:
        passes = sum(unit.passes for unit in units.values())
        text.append(
            f"{passes:.3g} passes of an image are left: about {duration(seconds)} on one worker of this machine, "
            f"{duration(seconds / cores())} on {cores()}."
        )
    return "\n".join(text)


def _counts(rows: int, missing: int) -> tuple[str, str, str]:
    return str(rows), str(rows - missing), str(missing)


def _measurements(lab: Lab, ledger: Ledger, claims: Sequence[str] | None) -> Iterator[Line]:
    for m in studies.plan(lab, claims):
        yield Line(m.label, len(m.epochs), len(lab.missing(m)), ledger.left(m))


def _studies(lab: Lab, ledger: Ledger, claims: Sequence[str] | None) -> Iterator[Line]:
    """A line for the pilots, and one for each study that is asked for."""
    seen: set[tuple[str, float]] = set()
    for study in studies.STUDIES:
        if claims is not None and study.CLAIMS and not set(study.CLAIMS) & set(claims):
            continue
        rows, missing, left = 0, 0, {}
        for m in studies.plan(lab, study.CLAIMS):
            new = _new(lab, m, seen)
            rows, missing = rows + len(new.epochs), missing + len(lab.missing(new))
            left |= ledger.left(new)
        yield Line(", ".join(study.CLAIMS) or "targets, pilots", rows, missing, left)


def _new(lab: Lab, m: Measurement, seen: set[tuple[str, float]]) -> Measurement:
    """`m` at those of its epochs that were not seen before."""
    name = lab.find(m).key
    epochs = [e for e in m.epochs if (name, e) not in seen]
    seen |= {(name, e) for e in epochs}
    return m.of(epochs)
