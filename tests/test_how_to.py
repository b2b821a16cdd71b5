"""The how-tos run as they are printed, in a folder of their own; and what they name is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rfnlib import data, outside, paths, studies
from rfnlib.__main__ import main
from rfnlib.claims import judge
from rfnlib.intervals import Influence, interval
from rfnlib.lab import Lab
from rfnlib.studies import rfn_gains

PAGES = sorted((Path(__file__).parents[1] / "docs" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
TEST = re.compile(r"`(test_\w+)\.py::(test_\w+)(?:\[([^]`]+)\])?`")


def code(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=lambda page: page.stem)
def test_a_how_to_runs_as_printed_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RFN_QUIET", "1")
    for name in ("records", "weights"):  # of smoke, which is committed: what is added stays out of it
        shutil.copytree(paths.root() / "data" / name / "smoke", tmp_path / name / "smoke")
    for name in ("records", "weights", "cache"):
        monkeypatch.setenv(f"RFN_{name.upper()}", str(tmp_path / name))
    monkeypatch.setattr(data, "_SOURCES", dict(data._SOURCES))
    monkeypatch.setattr(outside, "_MODELS", {})
    names: dict = {"__name__": "how_to"}
    for number, block in enumerate(code(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    assert capsys.readouterr().out, "it shows something"


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_verdicts_by_hand_are_those_of_the_library(scale, capsys):
    """Of all that is recorded the differences; and of made-up tables of five seeds the words and intervals."""
    (page,) = (page for page in PAGES if page.stem == "recompute-verdicts")
    names: dict = {}
    for block in code(page):
        try:
            exec(compile(block.replace('"smoke"  ', f'"{scale}"  '), page.name, "exec"), names)
        except ValueError as error:
            assert scale == "laptop" and re.search("of 5 seeds are recorded; nothing is compared", str(error))
    out = capsys.readouterr().out
    said = re.findall(r"^(C\d)[^+\n-]* ([+-]\d+\.\d) (\w+(?: effect)?)$", out, re.MULTILINE)
    verdicts = {claim: verdict for claim, (verdict, _) in studies.verdicts(Lab(scale, "replay")).items()}
    ours = {claim: 100 * verdict.estimates[-1].value for claim, verdict in verdicts.items()}
    told = {claim: float(value) for claim, value, _ in said if claim in ours}  # the last of C2's two
    assert told.keys() == ours.keys() - {"C3"}
    assert told == pytest.approx({claim: ours[claim] for claim in told}, abs=0.051)
    for claim, _, word in said:
        if claim in told and claim not in ("C2", "C7") and verdicts[claim].word != "not testable":
            assert word == verdicts[claim].word
    if "C3" in ours:
        assert names["drop"].mean() == pytest.approx(ours["C3"] / 100)
        factor, word = re.search(r"^C3 ×(\S+) (.+)$", out, re.MULTILINE).groups()
        assert float(factor) == pytest.approx(np.exp(ours["C3"] / 100), abs=0.0051)
        assert word == verdicts["C3"].word or verdicts["C3"].word == "not testable"
    words = set()
    for seed in range(60):
        drawn = np.random.default_rng(seed)
        rate = drawn.choice([0.25, 0.4, 0.55], p=[0.25, 0.5, 0.25]) + drawn.normal(0, 0.01, (5, 1))
        d = (drawn.random((5, 600)) < rate).astype(float) - (drawn.random((5, 600)) < 0.4)
        centre, error, freedom = names["estimate"](d)
        found = interval(Influence(d.mean(), d - d.mean(), np.ones(600, bool), (-1.0, 1.0)))
        assert (centre, error, freedom) == pytest.approx((found.centre, found.error, found.freedom))
        words |= {names["word"](centre, error, freedom, 5, 0.03)}
        assert names["word"](centre, error, freedom, 5, 0.03) == judge(rfn_gains.CLAIMS["C4"], found).word
    assert words == {"supported", "contradicted", "no effect", "inconclusive"}


def test_there_is_a_how_to_for_each_way_to_bring_ones_own():
    assert {page.stem for page in PAGES} >= {
        "your-surrogate", "your-target", "released-weights", "your-data", "training-loops", "misuse",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_links_of_a_how_to_are_there(page, capsys):
    text = page.read_text(encoding="utf-8")
    for command, options in re.findall(r"python -m rfnlib (\w+)([^`\n]*)", text):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in re.findall(r"--\w+", options))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_test_that_a_how_to_names_is_there():
    named = [match for page in PAGES for match in TEST.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 30
    for module, function, case in named:
        text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        assert f"\ndef {function}(" in text, f"{module} has no {function}"
        assert not case or f'"{case}"' in text, f"{module} has no case {case!r}"
