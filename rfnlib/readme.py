"""The README's tables, written from the records so that the two cannot drift apart."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pandas as pd

from rfnlib import addresses, paths, scales, status, studies, words
from rfnlib.claims import Verdict
from rfnlib.lab import Lab
from rfnlib.studies import pilots

PASSES_AN_HOUR = 5e6  # of the laptop scale's surrogate, on one core of the processor that its records name
MARKS = re.compile(r"(<!-- (?P<what>\w+): begin -->\n).*?(\n<!-- (?P=what): end -->)", re.DOTALL)


def claims_table() -> str:
    """The claims as a Markdown table: the paper's number, and at each scale the verdict and what was found."""
    return markdown(_judged("claim", studies.STUDIES, _hours_left(), paper=True))


def questions_table() -> str:
    """Likewise the questions that the paper leaves open."""
    return markdown(_judged("question", studies.BEYOND))


def _judged(called: str, group: list[ModuleType], left: Mapping[str, str] = {}, paper: bool = False) -> pd.DataFrame:
    """A row a claim of a group; `left` tells by claim what its verdict waits for, `paper` shows the paper's number."""
    verdicts = {scale.name: studies.verdicts(Lab(scale, "replay"), group) for scale in studies.judging()}
    judged = [name for name, of in verdicts.items() if of]
    at = f" at `{judged[0]}` scale" if len(judged) == 1 else ""
    rows = {}
    for name, claim in studies.every_claim(group).items():
        found = {scale: verdicts[scale][name] for scale in judged if name in verdicts[scale]}
        where = {scale: "" if at else f"{scale}: " for scale in found}
        word = [f"{where[scale]}**{verdict.word}**{_beside(verdict)}" for scale, (verdict, _) in found.items()]
        said = [f"{where[scale]}{headline}" for scale, (_, headline) in found.items()]
        notebook = studies.of(name).NOTEBOOK
        rows[name] = {
            called: claim.sentence,
            "notebook": f"[{notebook[:2]}](notebooks/{notebook}.ipynb)",
            **({"paper": claim.paper} if paper else {}),
            "verdict": "<br>".join(word) or "–",
            f"found{at}": "<br>".join(said) or left.get(name, "not computed yet"),
        }
    return pd.DataFrame(rows).T.rename_axis("")


def _beside(verdict: Verdict) -> str:
    """What Holm's correction over all claims makes of a verdict."""
    p = studies.holm_p(verdict)
    return p and f" (Holm's p {p}{'' if verdict.survives else ', which it does not survive'})"


def _hours_left() -> dict[str, str]:
    """By claim, what the laptop scale lacks, counted as if nothing but records were there: this text is committed."""
    with tempfile.TemporaryDirectory() as nowhere:
        left = status.until_judged(Lab(scales.LAPTOP, "replay", cache_dir=Path(nowhere)))
    told = {
        label: f"not computed yet: about {passes / PASSES_AN_HOUR:.2g} hours of one core are left for {label}"
        for label, passes in left.items()
    }
    return {claim: said for label, said in told.items() for claim in label.split(", ")}


def gates_table() -> str:
    """What each scale must pass before anything is judged at it, with its figures."""
    frames = {}
    for scale in studies.judging():
        frame = pilots.gate_table(Lab(scale, "replay"))[["found", "passed"]].replace({"passed": {"no": "**no**"}})
        if not any(frame["passed"]):
            frame = pd.DataFrame({"found": "its pilots are not recorded yet", "passed": "–"}, ["all"])
        frames[f"`{scale.name}`"] = frame
    return markdown(pd.concat(frames, names=["scale", "gate"]))


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown, its index first."""
    flat = frame.reset_index().astype(str)
    lines = [list(flat.columns), ["---"] * flat.shape[1], *flat.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


TABLES = {
    "badges": addresses.badges,
    "claims": claims_table,
    "gates": gates_table,
    "questions": questions_table,
}


def filled(text: str, parts: Mapping[str, Callable[[], str]], name: str) -> str:
    """`text` with each of `parts` made anew between its marks.

    Raises:
        ValueError: the text, which is called `name`, has lost marks.
    """
    if sorted(m["what"] for m in MARKS.finditer(text)) != sorted(parts):
        raise ValueError(f"{name} must hold the marks of {words.listed(list(parts))} once each, begin and end.")
    return MARKS.sub(lambda m: m[1] + parts[m["what"]]() + m[3], text)


def update(write: bool = True) -> bool:
    """Put the tables between their marks in README.md; whether that changes the file.

    Raises:
        ValueError: README.md has lost marks.
    """
    path = paths.root() / "README.md"
    old = path.read_text()
    new = filled(old, TABLES, path.name)
    if write and new != old:
        path.write_text(new)
    return new != old
