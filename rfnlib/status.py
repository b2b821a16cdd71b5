"""`status`: how much of a scale is recorded, how much is missing, and about how long that takes on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

import pandas as pd

from rfnlib import studies
from rfnlib.costs import Ledger, Pace, Unit
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Measurement
from rfnlib.progress import duration
from rfnlib.workers import cores

Group = tuple[str, list[Measurement]]  # the claims of a study, and what is measured for them
Key = tuple[str, float]  # of a row: that of its record, and the epoch
WAITS = "after the pilots"


@dataclass(frozen=True)
class Part:
    """Of a group how many rows it asks for, which of them are missing, and the units of work that are left."""

    label: str
    rows: int
    missing: set[Key]
    units: list[Unit]


def status(lab: Lab, claims: Sequence[str] | None = None, long: bool = False) -> str:
    """A table: a line a study, or (`long`) a line a measurement, and the sum.

    What several of them need is counted once, where it first comes; what depends on a choice, once it can be made. Of
    the rows that are missing the last column has those that verdicts rest on: the others are secondary.

    Args:
        claims: only what these need; None: everything.

    Raises:
        LookupError: a claim that no study judges.
    """
    pace, groups = Pace(lab), list(_studies(lab, claims))
    if long:
        groups = [(label, [m]) for label, measurements in groups for m in measurements]
    parts = list(_tally(lab, groups))
    units, missing = [unit for part in parts for unit in part.units], {row for part in parts for row in part.missing}
    parts.append(Part("all", sum(part.rows for part in parts), missing, units))
    table = pd.DataFrame([_line(pace, part) for part in parts], [part.label for part in parts])
    if long:
        names = [(f"{label}  ", f"{m.label}  ", lab.find(m).name) for label, (m,) in groups]
        table.index = pd.MultiIndex.from_tuples([*names, ("all", "", "")])
        table = table[table["rows"] > 0]  # the others are lines above
    else:
        judged = dict(_judged(lab, studies.asked(claims)))
        needed = {row for measurements in judged.values() for m in measurements for row in _rows(lab, m)}
        known = (*judged, "all")
        table["needed for verdicts"] = [
            str(len(part.missing & needed)) if part.label in known else WAITS for part in parts
        ]
    text = table.to_string(sparsify=False, col_space={name: max(10, len(name) + 3) for name in table})
    if not units:
        return text
    passes, seconds = sum(unit.passes for unit in units), pace.seconds(units)
    return (
        f"{text}\n{passes:.3g} passes of an image are left: about {duration(seconds)} on one worker of this machine, "
        f"{duration(seconds / cores())} on {cores()}."
    )


def _line(pace: Pace, part: Part) -> dict[str, str | int]:
    missing, about = len(part.missing), duration(pace.seconds(part.units)) if part.missing else ""
    return {"rows": part.rows, "recorded": part.rows - missing, "missing": missing, "about": about}


def until_judged(lab: Lab) -> dict[str, float]:
    """By study's claims, such as "C7, C8", the passes of single images that are left until all of them can be judged.

    What studies share counts for the first of them. A study whose plan waits for a choice, or that adds nothing, is
    left out.
    """
    tally = _tally(lab, _judged(lab, [study for study in studies.STUDIES if study.CLAIMS]))
    return {part.label: sum(unit.passes for unit in part.units) for part in tally if part.missing}


def _tally(lab: Lab, groups: Iterable[Group]) -> Iterator[Part]:
    """Each group as a part of the work, less what groups before it have."""
    ledger, seen, names = Ledger(lab), set[Key](), set[str]()
    for label, measurements in groups:
        new = [_new(lab, m, seen) for m in measurements]
        left = {name: unit for m in new for name, unit in ledger.left(m).items() if name not in names}
        names |= left.keys()
        missing = {row for m in new for row in _rows(lab, m.of(lab.missing(m)))}
        yield Part(label, sum(len(m.epochs) for m in new), missing, list(left.values()))


def _studies(lab: Lab, claims: Sequence[str] | None) -> Iterator[Group]:
    """The pilots, and each study that is asked for."""
    for study in studies.asked(claims):
        yield _label(study), studies.plan(lab, study.CLAIMS)


def _judged(lab: Lab, of: Iterable[ModuleType]) -> Iterator[Group]:
    """What the claims of each study are judged by, of those whose choices can be made."""
    view = lab.replaying()
    for study in of:
        with suppress(MissingRecord):
            yield _label(study), list(studies.steps(study, "plan", view))


def _label(study: ModuleType) -> str:
    return ", ".join(study.CLAIMS) or "targets, pilots"


def _new(lab: Lab, m: Measurement, seen: set[Key]) -> Measurement:
    """`m` at those of its epochs that were not seen before."""
    rows = [row for row in _rows(lab, m) if row not in seen]
    seen |= set(rows)
    return m.of(epoch for _, epoch in rows)


def _rows(lab: Lab, m: Measurement) -> list[Key]:
    return [(lab.find(m).key, epoch) for epoch in m.epochs]
