"""The studies, a module a notebook: what a claim needs measured, how it chooses, how it judges, and what it shows.

Each has one protocol:

- `NOTEBOOK`, and `CLAIMS`, the claims that it judges, by id;
- `plan(lab)`: the measurements, those of arms that are stated once, in the order of their use; and `later(lab)`, if it
  has some that all others go before;
- `measure(lab)`: the same arms read, as a result with `verdict(claim)`, `headline(claim)`, tables and all that figures
  need.

A study of one's own is such a module, appended to `STUDIES`, or to `BEYOND` if its claims are not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Protocol

import pandas as pd

from rfnlib import scales, words
from rfnlib.claims import WORDS, Claim, Verdict, holm
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Measurement
from rfnlib.scale import Scale
from rfnlib.studies import (
    better_surrogate,
    explore,
    features,
    lr_decay,
    pilots,
    rfn_gains,
    sharpness_drop,
    state_of_the_art,
    threat_model,
    why,
)

BASIS = ("seed", "target", "image")  # what verdicts rest on
# In the order in which their measurements are made; notebooks have their own.
STUDIES: list[ModuleType] = [pilots, lr_decay, rfn_gains, sharpness_drop, state_of_the_art, features]
# Questions that the paper leaves open. All of them come after its claims, and Holm's correction of each goes by itself.
BEYOND: list[ModuleType] = [why, better_surrogate, threat_model]

Judged = Mapping[str, tuple[Verdict, str]]  # by claim: its verdict, and its headline


class Result(Protocol):
    """What a study's `measure` gives."""

    def verdict(self, claim: str) -> Verdict:
        """The verdict on a claim, before Holm's correction over all claims."""

    def headline(self, claim: str) -> str:
        """What was found on it, in one sentence."""


# --- what is measured -----------------------------------------------------------------------------------


def plan(lab: Lab, claims: Iterable[str] | None = None) -> list[Measurement]:
    """Every measurement of `lab`'s scale that is known to be needed, most useful first, each once.

    What a measurement needs (its targets) comes before it. A choice that is not possible yet ends the plan of its study
    there: when the plan is carried out, ask again. Listing never computes.

    Args:
        claims: only what these need, the pilots among it; None: everything.

    Raises:
        LookupError: a claim that no study judges.
    """
    view, wanted, chosen = lab.replaying(), [], asked(claims)
    for group, name in ((STUDIES, "plan"), (STUDIES, "later"), (BEYOND, "plan"), (BEYOND, "later")):
        for study in [study for study in group if study in chosen]:
            with suppress(MissingRecord):
                for m in steps(study, name, view):
                    wanted.append(m)  # one by one: what comes before a choice that cannot be made yet is kept
    found: dict[str, Measurement] = {}
    for m in wanted:  # what two studies need is one measurement
        key = view.find(m).key
        found[key] = found[key].of({*found[key].epochs, *m.epochs}) if key in found else m
    return list(found.values())


def asked(claims: Iterable[str] | None) -> list[ModuleType]:
    """The studies that judge `claims` (None: all), and those that judge none, such as the pilots."""
    judging = [of(claim) for claim in claims or ()]
    return [study for study in (*STUDIES, *BEYOND) if claims is None or study in judging or not study.CLAIMS]


def steps(study: ModuleType, name: str, view: Lab) -> Iterator[Measurement]:
    """What the `plan` of a study, or what `later` it has, measures: each after what it needs."""
    for m in getattr(study, name, lambda lab: ())(view):
        yield from (*m.needs(view.scale), m)


def of(claim: str) -> ModuleType:
    """The study that judges `claim`, in small letters or large.

    Raises:
        LookupError: none does.
    """
    for study in (*STUDIES, *BEYOND):
        if claim.casefold() in map(str.casefold, study.CLAIMS):
            return study
    every = [*every_claim(), *every_claim(BEYOND)]
    raise LookupError(f"no study judges {claim!r}; there are {', '.join(every)}.")


def judging() -> list[Scale]:
    """The scales that verdicts can be read at: one seed decides nothing."""
    return [scale for scale in scales.SCALES.values() if len(scale.seeds) > 1]


def decided_at(notebook: str) -> str:
    """The name of the scale that a notebook is committed at.

    It is the one whose records decide most of its study's claims (of claims C4 to C6 for notebook 09, which shows
    their arms among others; of all for notebook 00); the larger of equal ones; and "smoke" while no judging scale
    decides any.
    """
    about = explore.ABOUT if notebook == explore.NOTEBOOK else notebook
    own = [study for study in (*STUDIES, *BEYOND) if about == study.NOTEBOOK] or STUDIES
    decided = {scale.name: len(verdicts(Lab(scale, "replay"), own)) for scale in judging()}
    most = max(decided.values())
    return [name for name, n in decided.items() if n == most][-1] if most else scales.SMOKE.name


# --- what is found --------------------------------------------------------------------------------------


def every_claim(group: Iterable[ModuleType] | None = None) -> dict[str, Claim]:
    """The claims of a group's studies (None: `STUDIES`) by id, in the order of their notebooks."""
    return {name: claim for study in _by_notebook(group) for name, claim in study.CLAIMS.items()}


def _by_notebook(group: Iterable[ModuleType] | None) -> list[ModuleType]:
    chosen = STUDIES if group is None else group
    return sorted((study for study in chosen if study.CLAIMS), key=lambda study: study.NOTEBOOK)


def verdicts(lab: Lab, group: Iterable[ModuleType] | None = None) -> Judged:
    """Each claim of a group that can be judged from what `lab` has: verdict (Holm's p over all) and headline."""
    found = {}
    for study in _by_notebook(group):
        with suppress(MissingRecord):
            result = study.measure(lab)
            for claim in study.CLAIMS:
                with suppress(MissingRecord):  # of one claim there may be less than of another
                    found[claim] = (result.verdict(claim), result.headline(claim))
    adjusted = holm([verdict for verdict, _ in found.values()], family=len(every_claim(group)))
    return {claim: (verdict, found[claim][1]) for claim, verdict in zip(found, adjusted, strict=True)}


def told(result: Result, claims: Iterable[str]) -> str:
    """What `result` says of each of `claims`: its headline and its verdict, or what is missing for it."""
    said = []
    for claim in claims:
        try:
            said += [result.headline(claim), str(result.verdict(claim))]
        except MissingRecord as missing:
            said.append(f"{claim} is not judged yet: {missing}")
    return "\n".join(said)


def follows(result: Result, claims: Iterable[str]) -> str:
    """What the verdicts on `claims`, those that are judged, mean for the reader; each thing once."""
    said = []
    for claim in claims:
        with suppress(MissingRecord):
            said.append(result.verdict(claim).follows)
    return " ".join(dict.fromkeys(said))


def verdict_table(
    found: Judged, group: Iterable[ModuleType] | None = None, called: str = "the paper's claim"
) -> pd.DataFrame:
    """A row a claim: the verdict, what was found, and the notebook that shows it; `found` as `verdicts` gives it."""
    rows = {}
    for name, claim in every_claim(group).items():
        verdict, headline = found.get(name, (None, "not computed yet"))
        rows[name] = {
            called: claim.sentence,
            "verdict": verdict.word if verdict else "",
            "what was found": headline,
            "margin": claim.matters,
            "Holm's p": holm_p(verdict),
            "notebook": of(name).NOTEBOOK[:2],
        }
    return pd.DataFrame(rows).T.rename_axis("claim")


def summary(lab: Lab, verdicts: Judged) -> str:
    """All verdicts, what they rest on, what stays of them and the gates, in a few sentences."""
    found, every = {claim: verdict for claim, (verdict, _) in verdicts.items()}, every_claim()
    by_word = {word: [c for c in every if c in found and found[c].word == word] for word in WORDS}
    by_word["not computed yet"] = [c for c in every if c not in found]
    said = [f"{words.listed(of)} {word}" for word, of in by_word.items() if of]
    text = [f"At {lab.scale.name} scale: {'; '.join(said)}."]
    estimates = [e for verdict in found.values() for e in verdict.estimates]
    if estimates:
        least = {what: min([n for e in estimates if (n := getattr(e, f"{what}s"))], default=0) for what in BASIS}
        basis = words.listed([words.count(n, what) for what, n in least.items() if n])
        text.append(f"The verdicts rest on at least {basis}.")
        text.append(_surviving(list(found.values())))
    try:
        gates = pilots.gates(lab)
    except MissingRecord:
        return " ".join([*text, "The gates are not measured yet."])
    failed = [gate.name for gate in gates if not gate.passed]
    but = f"; not passed: {'; '.join(failed)}" if failed else ""
    text.append(f"Of {words.count(len(gates), 'gate')} {len(gates) - len(failed)} are passed{but}.")
    text.append(pilots.excluded(lab))
    return " ".join(text)


def _surviving(found: list[Verdict]) -> str:
    if not (decided := [v for v in found if v.word in ("supported", "contradicted")]):
        if ruled_out := [v.claim.id for v in found if v.word == "no effect"]:
            of = words.listed(ruled_out)
            return f"None is supported or contradicted; of {of} an effect that matters is ruled out."
        return "Nothing is decided: no claim is supported or contradicted."
    kept = words.listed([v.claim.id for v in decided if v.survives] or ["none"])
    of = f"{len(every_claim())} claims there stay, of those supported or contradicted"
    return f"After Holm's correction for {of}: {kept}."


def holm_p(verdict: Verdict | None) -> str:
    """Holm's p of a verdict that has one, in words; empty of others."""
    if verdict is None or verdict.holm is None or verdict.word == "not testable":
        return ""
    return "< 0.001" if verdict.holm < 0.001 else f"{verdict.holm:.3f}"
