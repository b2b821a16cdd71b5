"""The README's tables, written from the records so that the two cannot drift apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from rfnlib import addresses, claims, paths, scales, studies, words
from rfnlib.lab import Lab, MissingRecord
from rfnlib.scale import Scale
from rfnlib.studies import pilots

MARKS = re.compile(r"(<!-- (?P<what>\w+): begin -->\n).*?(\n<!-- (?P=what): end -->)", re.DOTALL)


def judging() -> list[Scale]:
    """The scales that verdicts can be read at: one seed decides nothing."""
    return [scale for scale in scales.SCALES.values() if len(scale.seeds) > 1]


def claims_table() -> str:
    """The claims as a Markdown table: the paper's number, and at each scale what was found and the verdict."""
    lines = ["| | claim | notebook | paper | found | verdict |", "|---|---|---|---|---|---|"]
    labs = {scale.name: Lab(scale, "replay") for scale in judging()}
    verdicts = {name: dict(studies.verdicts(lab)) for name, lab in labs.items()}
    for claim in claims.CLAIMS.values():
        found = {name: of[claim.id] for name, of in verdicts.items() if claim.id in of}
        cells = (
            claim.id,
            claim.sentence,
            f"[{claim.notebook[:2]}](notebooks/{claim.notebook}.ipynb)",
            claim.paper,
            "<br>".join(f"{name}: {headline}" for name, (_, headline) in found.items()) or "not computed yet",
            "<br>".join(f"{name}: **{verdict.word}**" for name, (verdict, _) in found.items()) or "–",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gates_table() -> str:
    """What each scale must pass before anything is judged at it, with its figures."""
    lines = ["| scale | gate | found | passed |", "|---|---|---|---|"]
    for scale in judging():
        try:
            gates = pilots.gates(Lab(scale, "replay"))
        except MissingRecord:
            lines.append(f"| `{scale.name}` | all | its pilots are not recorded yet | – |")
            continue
        for gate in gates:
            lines.append(f"| `{scale.name}` | {gate.name} | {gate.figure} | {'yes' if gate.passed else '**no**'} |")
    return "\n".join(lines)


TABLES = {"badges": addresses.badges, "claims": claims_table, "gates": gates_table}


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
