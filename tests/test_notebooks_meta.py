"""What every committed notebook must be, beyond what nbval checks.

nbval passes a stripped notebook without a word, and knows nothing of how GitHub or papermill read
one; these tests do.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from rfnlib import addresses, studies
from rfnlib.lab import Lab
from rfnlib.parameters import PARAMETERS
from rfnlib.reproduce import KERNELSPEC, VERDICT

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
CHECKED = "nbval-check-output"
MAX_BYTES = 1_000_000  # above it GitHub gives up
MAX_LINES, MAX_CELL_LINES = 120, 12
MACHINE_PATH = re.compile(r"(?<![\w.}*])/(?:work|home|root|opt|Users|content|tmp|var)/|[A-Z]:\\\\")
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@cache
def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in cells(path, "code") for output in cell.outputs]


def printed(path: Path) -> str:
    return "".join(o.text for o in outputs(path) if o.get("name") == "stdout")


def prose(path: Path) -> str:
    """All Markdown, without its code blocks, in which a # is no heading."""
    text = "\n\n".join(cell.source for cell in cells(path, "markdown"))
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code_lines(source: str) -> int:
    lines = [line.strip() for line in source.splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_there_are_notebooks_and_they_are_numbered():
    assert NOTEBOOKS, "notebooks/ is empty, so every other test here passes without testing"
    for path in NOTEBOOKS:
        assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem), f"{path.name}: name it NN_snake_case"


@each_notebook
def test_format(path):
    content = read(path)
    nbformat.validate(content)
    assert (content.nbformat, content.nbformat_minor) >= (4, 5)
    ids = [cell.id for cell in content.cells]
    assert len(set(ids)) == len(ids)
    assert content.metadata.kernelspec == KERNELSPEC
    assert "widgets" not in content.metadata, "GitHub renders no notebook with widget state"
    assert "papermill" not in content.metadata
    assert path.stat().st_size < MAX_BYTES


@each_notebook
def test_parameters(path):
    tagged = [cell for cell in read(path).cells if "parameters" in tags(cell)]
    assert len(tagged) == 1, "one cell has the tag 'parameters'"
    values = parameters(path)
    assert set(PARAMETERS) <= set(values)
    assert values["mode"] == "replay", "what is committed must run anywhere, in seconds"
    assert not any("injected-parameters" in tags(cell) for cell in read(path).cells)


@each_notebook
def test_first_cell_of_code_is_the_one_that_colab_needs(path):
    assert cells(path, "code")[0].source == addresses.first_cell(), "run `python -m rfnlib readme`"


def parameters(path: Path) -> dict:
    (cell,) = (cell for cell in cells(path, "code") if "parameters" in tags(cell))
    return {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}


@each_notebook
def test_is_committed_at_the_scale_that_decides_most(path):
    assert parameters(path)["scale"] == studies.decided_at(path.stem), "run `make notebooks`"


def test_all_replay_the_same_records():
    """One command refreshes them together, so those of one scale say alike what they rest on."""
    found = defaultdict(set)
    for path in NOTEBOOKS:
        (said,) = re.findall(r"^(\w+) scale: (.*records .*)$", printed(path), re.MULTILINE)
        found[said[0]].add(said[1])
    assert all(len(lines) == 1 for lines in found.values()), f"run `make notebooks`: {found}"


@each_notebook
def test_was_run_in_order_and_without_complaint(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"
    for output in outputs(path):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", f"it complains: {output.text}"


@each_notebook
def test_names_no_machine(path):
    match = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
    assert match is None, f"it names a path of one machine: {match.group()}"


@each_notebook
def test_has_outputs_that_nbval_checks(path):
    checked = [cell for cell in cells(path, "code") if CHECKED in tags(cell)]
    assert checked, f"no cell has the tag {CHECKED!r}, so nbval compares nothing"
    for cell in checked:
        assert cell.outputs, f"nothing to compare in the cell {cell.source!r}"


@each_notebook
def test_is_short(path):
    lengths = {cell.source: code_lines(cell.source) for cell in cells(path, "code")}
    assert sum(lengths.values()) <= MAX_LINES
    for source, length in lengths.items():
        assert length <= MAX_CELL_LINES, f"{length} lines in a cell: {source[:200]}"
        assert not re.search(r"^\s*class\s", source, re.MULTILINE), "classes belong in rfnlib"


@each_notebook
def test_has_one_title(path):
    titles = re.findall(r"^# .+$", prose(path), re.MULTILINE)
    assert len(titles) == 1, f"titles: {titles}"


@each_notebook
def test_images_have_alternative_text(path):
    for output in outputs(path):
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                assert output.metadata.get(kind, {}).get("alt"), f"an {kind} without alt text"


@each_notebook
def test_alternative_text_reaches_an_export(path):
    """Of nbconvert's templates for HTML the one called lab leaves it out; classic does not."""
    html, _ = HTMLExporter(template_name="classic").from_filename(path)
    assert "No description has been provided" not in html
    described = [o.metadata["image/png"]["alt"] for o in outputs(path) if "image/png" in o.get("data", {})]
    assert described and all(f'alt="{alt}"' in unescape(html) for alt in described)


@each_notebook
def test_links_lead_somewhere(path):
    for target in LINK.findall(prose(path)):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{target} is not there"


def test_each_claim_is_judged_in_one_notebook():
    judged = defaultdict(list)
    for path in NOTEBOOKS:
        for claim in {line.split()[0] for line in VERDICT.findall(printed(path))}:
            judged[claim].append(path.name)
    assert judged, "no notebook prints a verdict, such as 'C2 supported: …'"
    for claim, where in judged.items():
        assert len(where) == 1, f"{claim} is judged in {' and '.join(where)}"


def test_verdicts_are_checked_by_nbval():
    for path in NOTEBOOKS:
        for cell in cells(path, "code"):
            if VERDICT.search("".join(o.text for o in cell.outputs if o.get("name") == "stdout")):
                assert CHECKED in tags(cell), f"{path.name}: a verdict that nothing checks"


# --- live cells: those that compute, with released networks ---------------------------------------------------------

NUMBER = re.compile(r"(?<![\w-])\d+(?:\.\d+)?")


def live(path: Path) -> nbformat.NotebookNode:
    """The cell of a notebook that loads released networks."""
    (cell,) = (cell for cell in cells(path, "code") if cell.source.startswith("with or_say_why():"))
    return cell


def run_live(path: Path, scale: str) -> None:
    """Run it at a scale, after the imports that the notebook begins with."""
    text = "\n".join(cell.source for cell in cells(path, "code")[1:])
    imports = re.findall(r"^(?:from|import) .+$", text, re.MULTILINE)
    names = {"scale": scale, "lab": Lab(scale, device="cpu")}
    exec("\n".join([*imports, live(path).source]), names)


@pytest.mark.parametrize("path", NOTEBOOKS[2:6], ids=lambda path: path.stem)  # of claims C2 to C8
def test_a_live_cell_shows_what_is_committed_or_says_why_it_cannot(path, capsys, monkeypatch, tmp_path):
    assert 'zoo.load(f"{scale}/' in live(path).source and code_lines(live(path).source) <= 7
    run_live(path, "smoke")
    here = capsys.readouterr().out
    assert len(NUMBER.findall(here)) > 4
    if parameters(path)["scale"] == "smoke":  # another scale's images may not be here
        committed = "".join(output.text for output in live(path).outputs)
        assert NUMBER.sub("", here) == NUMBER.sub("", committed)
        assert [float(n) for n in NUMBER.findall(here)] == pytest.approx(  # another machine may round otherwise
            [float(n) for n in NUMBER.findall(committed)], rel=0.02, abs=3
        )
    monkeypatch.setenv("RFN_DATA", str(tmp_path))
    run_live(path, "laptop")
    assert capsys.readouterr().out.startswith("Nothing is computed here: CIFAR-10 was not found")
    monkeypatch.setenv("RFN_WEIGHTS", str(tmp_path))
    run_live(path, "smoke")
    assert capsys.readouterr().out == (
        f"Nothing is computed here: no network 'smoke/wrn16' is released; there is none in {tmp_path}; outside a "
        "checkout, name its folder data/weights in RFN_WEIGHTS.\n"
    )
