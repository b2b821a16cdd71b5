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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import ModuleType

import pandas as pd

from rfnlib import words
from rfnlib.claims import CLAIMS, WORDS, Verdict, holm
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Measurement
from rfnlib.studies import features, lr_decay, pilots, rfn_gains, sharpness_drop, state_of_the_art

BASIS = ("seed", "target", "image")  # what verdicts rest on
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
    """Each claim that can be judged from what `lab` has, with its verdict (Holm's p over all) and its headline."""
    found = {}
    for study in STUDIES:
        try:
            result = study.measure(lab) if study.CLAIMS else None
        except MissingRecord:
            continue
        for claim in study.CLAIMS:
            with suppress(MissingRecord):  # of one claim there may be less than of another
                found[claim] = (result.verdict(claim), result.headline(claim))
    of_the_paper = [claim for claim in CLAIMS if claim in found]
    found = {claim: found[claim] for claim in dict.fromkeys([*of_the_paper, *found])}
    adjusted = holm([verdict for verdict, _ in found.values()], family=len({*CLAIMS, *found}))
    for (claim, (_, headline)), verdict in zip(found.items(), adjusted, strict=True):
        yield claim, (verdict, headline)


def verdict_table(found: Mapping[str, tuple[Verdict, str]]) -> pd.DataFrame:
    """A row a claim: the verdict, what was found, and the notebook that shows it; `found` as `verdicts` gives it."""
    rows = {}
    for name, claim in CLAIMS.items():
        verdict, headline = found.get(name, (None, "not computed yet"))
        rows[name] = {
            "the paper's claim": claim.sentence,
            "verdict": verdict.word if verdict else "",
            "what was found": headline,
            "Holm's p": "" if verdict is None or verdict.word == "not testable" else _p(verdict.holm),
            "notebook": claim.notebook[:2],
        }
    return pd.DataFrame(rows).T.rename_axis("claim")


def summary(lab: Lab, verdicts: Mapping[str, tuple[Verdict, str]]) -> str:
    """All verdicts, what they rest on, what stays of them and the gates, in a few sentences."""
    found = {claim: verdict for claim, (verdict, _) in verdicts.items()}
    by_word = {word: [c for c in CLAIMS if c in found and found[c].word == word] for word in WORDS}
    by_word["not computed yet"] = [c for c in CLAIMS if c not in found]
    said = [f"{words.listed(of)} {word}" for word, of in by_word.items() if of]
    text = [f"At {lab.scale.name} scale: {'; '.join(said)}."]
    estimates = [e for verdict in found.values() for e in verdict.estimates]
    if estimates:
        least = {what: min([n for e in estimates if (n := getattr(e, f"{what}s"))], default=0) for what in BASIS}
        text.append(f"They rest on at least {words.listed([words.count(n, what) for what, n in least.items() if n])}.")
        text.append(_surviving(list(found.values())))
    try:
        gates = pilots.gates(lab)
    except MissingRecord:
        return " ".join([*text, "The gates are not measured yet."])
    failed = [gate.name for gate in gates if not gate.passed]
    but = f"; not passed: {'; '.join(failed)}" if failed else ""
    return " ".join([*text, f"Of {words.count(len(gates), 'gate')} {len(gates) - len(failed)} are passed{but}."])


def _surviving(found: Sequence[Verdict]) -> str:
    decided = [v for v in found if v.word in ("supported", "contradicted")]
    if not decided:
        return "Nothing is decided: no claim is supported or contradicted."
    kept = words.listed([v.claim.id for v in decided if v.survives] or ["none"])
    return f"After Holm's correction for {len(CLAIMS)} claims there stay, of those supported or contradicted: {kept}."


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


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
