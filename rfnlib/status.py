"""`status`: how much of a scale is recorded, how much is missing, and about how long that takes on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rfnlib import studies
from rfnlib.costs import Ledger, Pace, Unit
from rfnlib.lab import Lab
from rfnlib.measurements import Measurement
from rfnlib.progress import duration
from rfnlib.workers import cores


def status(lab: Lab, claims: Sequence[str] | None = None, long: bool = False) -> str:
    """A table: a line a study, or (`long`) a line a measurement, and the sum.

    What several of them need is counted once, where it first comes; what depends on a choice, once it can be made.

    Args:
        claims: only what these need; None: everything.

    Raises:
        LookupError: a claim that no study judges.
    """
    ledger, pace = Ledger(lab), Pace(lab)
    seen: set[tuple[str, float]] = set()
    units: dict[str, Unit] = {}
    rows = missing = 0
    table = [("", "rows", "recorded", "missing", "about")]
    for label, measurements in _measurements(lab, claims) if long else _studies(lab, claims):
        new = [_new(lab, m, seen) for m in measurements]
        here = (sum(len(m.epochs) for m in new), sum(len(lab.missing(m)) for m in new))
        left = {name: unit for m in new for name, unit in ledger.left(m).items() if name not in units}
        units |= left
        rows, missing = rows + here[0], missing + here[1]
        table.append((label, *_counts(*here), duration(pace.seconds(left.values())) if here[1] else ""))
    seconds = pace.seconds(units.values())
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


def _measurements(lab: Lab, claims: Sequence[str] | None) -> Iterator[tuple[str, list[Measurement]]]:
    for m in studies.plan(lab, claims):
        yield m.label, [m]


def _studies(lab: Lab, claims: Sequence[str] | None) -> Iterator[tuple[str, list[Measurement]]]:
    """The pilots, and each study that is asked for."""
    asked = [studies.of(claim) for claim in claims or ()]
    for study in (*studies.STUDIES, *studies.BEYOND):
        if claims is None or study in asked or not study.CLAIMS:
            yield ", ".join(study.CLAIMS) or "targets, pilots", studies.plan(lab, study.CLAIMS)


def _new(lab: Lab, m: Measurement, seen: set[tuple[str, float]]) -> Measurement:
    """`m` at those of its epochs that were not seen before."""
    name = lab.find(m).key
    epochs = [e for e in m.epochs if (name, e) not in seen]
    seen |= {(name, e) for e in epochs}
    return m.of(epochs)
