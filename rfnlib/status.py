"""`status`: how much of a scale is recorded, how much is missing, and about how long that takes on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from rfnlib import studies
from rfnlib.costs import Ledger, Pace, Unit
from rfnlib.lab import Lab, MissingRecord
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
    pace, every = Pace(lab), list(_tally(lab, _measurements(lab, claims) if long else _studies(lab, claims)))
    table = [("", "rows", "recorded", "missing", "about")]
    for label, rows, missing, units in every:
        table.append((label, *_counts(rows, missing), duration(pace.seconds(units)) if missing else ""))
    rows, missing = sum(rows for _, rows, *_ in every), sum(missing for _, _, missing, _ in every)
    units = [unit for *_, left in every for unit in left]
    seconds = pace.seconds(units)
    table.append(("all", *_counts(rows, missing), duration(seconds) if missing else ""))
    width = max(len(row[0]) for row in table)
    text = [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in table]
    if missing:
        passes = sum(unit.passes for unit in units)
        text.append(
            f"{passes:.3g} passes of an image are left: about {duration(seconds)} on one worker of this machine, "
            f"{duration(seconds / cores())} on {cores()}."
        )
    return "\n".join(text)


def until_judged(lab: Lab) -> dict[str, float]:
    """By study's claims, such as "C7, C8", the passes of single images that are left until all of them can be judged.

    What studies share counts for the first of them. A study whose plan waits for a choice, or that adds nothing, is
    left out.
    """
    tally = _tally(lab, _judged(lab))
    return {label: sum(unit.passes for unit in units) for label, _, missing, units in tally if missing}


def _tally(
    lab: Lab, groups: Iterable[tuple[str, list[Measurement]]]
) -> Iterator[tuple[str, int, int, list[Unit]]]:
    """Of each group its label, how many rows it asks for and how many are missing, and the units that are left."""
    ledger, seen, names = Ledger(lab), set[tuple[str, float]](), set[str]()
    for label, measurements in groups:
        new = [_new(lab, m, seen) for m in measurements]
        left = {name: unit for m in new for name, unit in ledger.left(m).items() if name not in names}
        names |= left.keys()
        yield label, sum(len(m.epochs) for m in new), sum(len(lab.missing(m)) for m in new), list(left.values())


def _counts(rows: int, missing: int) -> tuple[str, str, str]:
    return str(rows), str(rows - missing), str(missing)


def _measurements(lab: Lab, claims: Sequence[str] | None) -> Iterator[tuple[str, list[Measurement]]]:
    for m in studies.plan(lab, claims):
        yield m.label, [m]


def _studies(lab: Lab, claims: Sequence[str] | None) -> Iterator[tuple[str, list[Measurement]]]:
    """The pilots, and each study that is asked for."""
    for study in studies.asked(claims):
        yield ", ".join(study.CLAIMS) or "targets, pilots", studies.plan(lab, study.CLAIMS)


def _judged(lab: Lab) -> Iterator[tuple[str, list[Measurement]]]:
    """Each study, and what its claims are judged by."""
    view = lab.replaying()
    for study in studies.STUDIES:
        with suppress(MissingRecord):
            yield ", ".join(study.CLAIMS), list(studies.steps(study, "plan", view))


def _new(lab: Lab, m: Measurement, seen: set[tuple[str, float]]) -> Measurement:
    """`m` at those of its epochs that were not seen before."""
    name = lab.find(m).key
    epochs = [e for e in m.epochs if (name, e) not in seen]
    seen |= {(name, e) for e in epochs}
    return m.of(epochs)
