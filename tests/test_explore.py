"""The notebook with sliders: what it shows is what is recorded, the live attack is the recorded one, it stands still
where nobody can move anything, and it leaves no widgets behind.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import pytest

from rfnlib.lab import Lab
from rfnlib.plots import explore as figures
from rfnlib.plots import style
from rfnlib.reproduce import find_notebooks
from rfnlib.studies import explore, rfn_gains

NOTEBOOKS = find_notebooks()
EPS = 40 / 255
WIDGET = "application/vnd.jupyter.widget"


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab("smoke", "replay")


@pytest.fixture(scope="module")
def seen(lab) -> explore.Seen:
    return explore.measure(lab)


@pytest.fixture
def displayed(tmp_path, monkeypatch) -> list:
    """What is displayed; figures are written into a folder of the test."""
    found: list = []
    monkeypatch.setenv("RFN_FIGURES", str(tmp_path))
    for module in (style, figures):
        monkeypatch.setattr(module, "display", lambda *shown, **how: found.extend(shown))
    return found


@pytest.fixture
def somebody(monkeypatch) -> None:
    """A front end that answers when it is asked."""
    monkeypatch.setattr(figures, "get_ipython", lambda: SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True)))


# --- what is shown -----------------------------------------------------------------------------------------


def test_every_value_is_that_of_the_study_that_measured_it(lab, seen):
    found = rfn_gains.measure(lab)
    assert seen.rfn == found.rho and seen.rhos == [0.0, *lab.scale.rhos]
    run = found.curves["RFN"]
    assert seen.at(found.rho, EPS, run.end).value == run.at().value
    assert seen.at(0.0, EPS, found.stop).value == found.curves["SGD"].at(found.stop).value
    by_target = [seen.at(found.rho, EPS, run.end, i).value for i in range(len(seen.targets))]
    assert by_target == [run.at(targets=[i]).value for i in range(len(seen.targets))]
    half = rfn_gains.main(lab, attack=rfn_gains.other_attacks(lab)["ε 20/255"])["SAM"]
    assert seen.at(lab.scale.rhos[0], 20 / 255, run.end).value == lab.read(half).at().value


def test_what_is_not_recorded_is_said_in_words(seen, tmp_path):
    assert seen.at(0.2, 20 / 255, 3.0) is None
    assert seen.told(0.2, 20 / 255, 3.0).endswith("not recorded; this ρ and ε are at epoch 6.")
    assert "success" in seen.told(0.2, EPS, 6.0, 1) and seen.targets[1] in seen.told(0.2, EPS, 6.0, 1)
    nothing = explore.measure(Lab("laptop", "replay", records_dir=tmp_path))
    assert "recorded at laptop scale yet; compute it with `python -m rfnlib run" in nothing.coverage()


def test_nothing_of_an_arm_is_shown_before_all_its_seeds_are_there(lab):
    more = explore.measure(Lab("smoke", "replay", [0, 1]))
    assert not any(run.seeds > 1 for run in more.success.values())
    assert (0.0, EPS, 1.0) not in more.success, "seed 1 of the standard run is not recorded"


def test_the_ring_is_where_the_sliders_stand(seen):
    figure = figures.success(seen, 0.2, EPS, 6.0, None)
    rings = [[line for line in axis.lines if line.get_fillstyle() == "none"] for axis in figure.axes]
    heights = [float(line.get_ydata()[0]) for of in rings for line in of]
    assert heights == pytest.approx([100 * seen.at(0.2, EPS, 6.0).value] * 3)
    missing = figures.success(seen, 0.2, 20 / 255, 3.0, None)
    assert all(any(text.get_text().startswith("not recorded") for text in axis.texts) for axis in missing.axes)
    plt.close("all")


def test_the_live_attack_is_the_recorded_one(lab, seen, tmp_path, monkeypatch):
    """On the machine of the records to the image; elsewhere other bits of training make another network."""
    monkeypatch.setattr(lab, "cache", tmp_path)
    for target in (0, 2):
        found = explore.attacked(lab, 0.0, EPS, 6.0, target)
        recorded = seen.at(0.0, EPS, 6.0, target)
        assert len(found.labels) == recorded.images
        share = float((found.after != found.labels).float().mean())
        assert share == pytest.approx(recorded.value, abs=0.25)
        assert f"{100 * share:.1f} %" in found.told and seen.targets[target] in found.told
        assert float((found.adversarial - found.images).abs().max()) <= EPS + 1e-6
    figure = figures.digits(found)
    assert figure.axes[-1].get_xlabel() == f"“{int(found.after[figures.SHOWN - 1])}”"
    plt.close("all")


# --- sliders, or none -------------------------------------------------------------------------------------


def test_where_nobody_can_move_it_it_stands_still(seen, displayed, tmp_path, capsys):
    assert not figures.movable()
    figures.over_records(seen)
    assert [set(content) for content in displayed] == [{"image/png", "text/plain"}]
    assert (tmp_path / "09_records.png").exists()
    assert capsys.readouterr().out.strip() == seen.told(seen.rfn, EPS, 6.0)


def test_without_ipywidgets_it_stands_still_though_somebody_is_there(seen, displayed, somebody, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    figures.over_records(seen)
    assert [set(content) for content in displayed] == [{"image/png", "text/plain"}]


def test_a_slider_redraws_from_the_records_and_writes_no_file(seen, displayed, somebody, tmp_path, capsys):
    widgets = pytest.importorskip("ipywidgets", reason="sliders need ipywidgets: pip install '.[explore]'")
    figures.over_records(seen)
    (box,) = (shown for shown in displayed if isinstance(shown, widgets.VBox))
    sliders = {slider.description: slider for slider in box.children}
    assert list(sliders) == ["epoch", "ρ", "ε", "target"]
    assert [label for label, _ in sliders["target"].options] == ["mean of all", *seen.targets]
    sliders["ρ"].value, sliders["target"].value, sliders["ε"].value = 0.0, 1, 20 / 255
    told = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]  # between, the output is cleared
    begun, by_sgd, on_one, smaller = told
    assert begun == seen.told(seen.rfn, EPS, 6.0) and by_sgd == seen.told(0.0, EPS, 6.0)
    assert on_one == seen.told(0.0, EPS, 6.0, 1) and smaller == seen.told(0.0, 20 / 255, 6.0, 1)
    drawn = [shown["image/png"] for shown in displayed if isinstance(shown, dict)]
    assert len(set(drawn)) == 4 and not list(tmp_path.iterdir())


def test_a_page_without_records_has_no_sliders(displayed, tmp_path, capsys):
    figures.over_records(explore.measure(Lab("laptop", "replay", records_dir=tmp_path)))
    assert not displayed and "Nothing that this page shows is recorded" in capsys.readouterr().out


# --- what is committed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_carries_widgets_and_one_alone_can_make_them(path):
    content = nbformat.read(path, as_version=4)
    kinds = {kind for cell in content.cells for out in cell.get("outputs", ()) for kind in out.get("data", {})}
    assert "widgets" not in content.metadata and not any(kind.startswith(WIDGET) for kind in kinds)
    code = "\n".join(cell.source for cell in content.cells if cell.cell_type == "code")
    assert "widgets" not in code
    assert ("plots import explore" in code) == (path.stem == "09_explore")


def test_nothing_else_in_the_library_knows_of_widgets():
    root = Path(importlib.util.find_spec("rfnlib").origin).parent
    naming = {path.name for path in root.rglob("*.py") if "import ipywidgets" in path.read_text(encoding="utf-8")}
    assert naming == {"explore.py"}
