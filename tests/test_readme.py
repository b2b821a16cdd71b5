"""The README: its tables come from the records, its snippets run as printed, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rfnlib import paths, readme, scales, studies
from rfnlib.__main__ import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def test_snippets_run_as_printed_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RFN_CACHE", str(tmp_path))
    monkeypatch.setenv("RFN_QUIET", "1")
    assert len(SNIPPETS) >= 6
    names: dict = {}
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"success rate \d+\.\d%", said) and "digits-robust" in said
    assert names["adversarial"].shape == names["images"].shape


def test_its_tables_are_those_that_the_records_give():
    assert not readme.update(write=False), "run `python -m rfnlib readme`"


def test_tables_say_what_is_not_computed_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("RFN_RECORDS", str(tmp_path))
    table = readme.claims_table().splitlines()
    assert len(table) == 2 + len(studies.every_claim()) and all("not computed yet" in line for line in table[2:])
    questions = readme.questions_table().splitlines()
    assert len(questions) == 2 + len(studies.every_claim(studies.BEYOND)) and "paper" not in questions[0]
    assert all("not computed yet" in line for line in questions[2:])
    gates = readme.gates_table()
    assert all(f"| `{s.name}` |" in gates for s in scales.SCALES.values() if len(s.seeds) > 1)


def test_a_readme_that_lost_a_mark_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setenv("RFN_RECORDS", str(tmp_path))
    (tmp_path / "README.md").write_text("<!-- claims: begin -->\nold\n<!-- claims: end -->\n")
    with pytest.raises(ValueError, match="must hold the marks of badges, claims, gates and questions"):
        readme.update()
    (tmp_path / "README.md").write_text(TEXT.replace("not computed yet", "done"))
    assert readme.update() and not readme.update(write=False)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"])
def test_links_of_a_page_lead_to_something_that_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    local = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in local if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_commands_it_shows_are_commands(capsys):
    for line in re.findall(r"python -m rfnlib (\w+)((?: --\w+)*)", TEXT):
        with pytest.raises(SystemExit) as done:
            main([line[0], "--help"])
        assert done.value.code == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in line[1].split())


def test_the_table_of_scales_names_all_of_them():
    for scale in scales.SCALES.values():
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{scale.name}` | ") and "BIM" in line]
        roles = [t.role for t in scale.targets]
        assert f"| {roles.count('test')} + {roles.count('validation')} |" in line
        assert f"{scale.epochs} epochs" in line and f"{scale.attack.steps} steps" in line
