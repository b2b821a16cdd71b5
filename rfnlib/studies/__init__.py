"""The studies, a module a notebook: what a claim needs measured, how it chooses, how it judges, and what it shows.

Each has one protocol:

- `NOTEBOOK`, and `CLAIMS`, the ids of the claims that it judges;
- `arms(lab)`: what is measured, by name, stated once;
- `plan(lab)`: the measurements in the order of their use; and `later(lab)`, if it has some that all others go before;
- `measure(lab)`: the same arms read, as a result with `verdict(claim)`, `headline(claim)`, tables and all that figures
  need.

A study of one's own is such a module, appended to `STUDIES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

from rfnlib.claims import Verdict, holm
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Measurement
from rfnlib.studies import features, lr_decay, pilots, rfn_gains, sharpness_drop, state_of_the_art

# In the order in which their measurements are made; notebooks have their own.
STUDIES: list[ModuleType] = [pilots, lr_decay, rfn_gains, sharpness_drop, state_of_the_art, features]


def plan(lab: Lab, claims: Sequence[str] | None = None) -> list[Measurement]:
    """Every measurement of `lab`'s scale that is known to be needed, most useful first, each once.

    What a measurement needs (its targets) comes before it. A choice that is not possible yet ends the plan of its study
    there: when the plan is carried out, ask again. Listing never computes.

    Args:
        claims: only what these need, the pilots among it; None: everything.

    Raises:
        LookupError: a claim that no study judges.
    """
    view, wanted, found = lab.replaying(), [], {}
    asked = [of(claim) for claim in claims or ()]
    chosen = [study for study in STUDIES if claims is None or study in asked or not study.CLAIMS]
    for name in ("plan", "later"):
        for study in chosen:
            for m in _until_unknown(getattr(study, name, _nothing)(view)):
                wanted += [*m.needs(view.scale), m]
    for m in wanted:  # what two studies need is one measurement
        key = view.find(m).key
        found[key] = found[key].of({*found[key].epochs, *m.epochs}) if key in found else m
    return list(found.values())


def verdicts(lab: Lab) -> Iterator[tuple[str, tuple[Verdict, str]]]:
    """Each claim that can be judged from what `lab` has, with its verdict (Holm's p over them) and its headline."""
    found = {}
    for study in STUDIES:
        try:
            result = study.measure(lab) if study.CLAIMS else None
        except MissingRecord:
            continue
        for claim in study.CLAIMS:
            found[claim] = (result.verdict(claim), result.headline(claim))
    adjusted = holm([verdict for verdict, _ in found.values()])
    for (claim, (_, headline)), verdict in zip(found.items(), adjusted, strict=True):
        yield claim, (verdict, headline)


def of(claim: str) -> ModuleType:
    """The study that judges `claim`.

    Raises:
        LookupError: none does.
    """
    for study in STUDIES:
        if claim in study.CLAIMS:
            return study
    raise LookupError(f"no study judges {claim!r}; there are {', '.join(c for s in STUDIES for c in s.CLAIMS)}.")


def _nothing(lab: Lab) -> Iterator[Measurement]:
    return iter(())


def _until_unknown(measurements: Iterator[Measurement]) -> Iterator[Measurement]:
    try:
        yield from measurements
    except MissingRecord:
        return
