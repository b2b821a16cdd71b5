"""Figures by their data, not by their pixels."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from test_claims import EPOCHS, runs

from rfnlib import plots
from rfnlib.intervals import interval


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("RFN_FIGURES", str(tmp_path))
    return tmp_path


def test_decay_curves_draw_the_rates_and_intervals_of_each_run():
    made = runs(0.6, 0.4)
    figure = plots.decay_curves(made, (2, 4), 6)
    panels = {axis.get_title(loc="left"): axis for axis in figure.axes}
    for name, s in made.items():
        expected = [100 * interval(s.at(e)).value for e in EPOCHS]
        curves = [line.get_ydata() for line in panels[name].lines]
        assert any(len(c) == len(expected) and np.allclose(c, expected) for c in curves), name
        band = panels[name].collections[0].get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx(100 * max(interval(s.at(e)).high for e in EPOCHS))
    aligned = panels["around the decay"].lines[0].get_xdata()
    assert 0 in aligned and aligned.min() >= -2.01 and aligned.max() <= 3.01
    assert figure.axes[0].get_ylabel() == "success rate, %"


def test_the_peak_table_finds_the_highest_epoch():
    peaks = plots.peak_table(runs(0.6, 0.4))
    assert peaks.loc["decay at 2", "peak epoch"] == "3"
    assert peaks.loc["decay at 4", "peak epoch"] == "5"


def test_examples_show_clean_perturbation_and_adversarial():
    clean = np.full((3, 8, 8), 0.5)
    adversarial = clean + 0.1
    figure = plots.examples(clean, adversarial, [("a", "b")] * 3, gain=10)
    rows = [axis.images[0].get_array() for axis in figure.axes]
    assert np.allclose(rows[0], 0.5) and np.allclose(rows[3], 1.0) and np.allclose(rows[6], 0.6)


def test_files_are_byte_stable_and_outputs_carry_alt_text(figures, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda figure, metadata: shown.append(metadata))
    written = []
    for _ in range(2):
        plots.show(plots.examples(np.zeros((1, 8, 8)), np.ones((1, 8, 8)), [("a", "b")], 1), "x", "an alt text")
        written.append([(figures / f"x.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert written[0] == written[1]
    assert shown[0] == {"image/png": {"alt": "an alt text"}}
