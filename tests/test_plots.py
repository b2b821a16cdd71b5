"""What all figures share, by data and not by pixels; each study's figures are tested with the study."""

import base64
import io
import struct
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from rfnlib.intervals import Estimate
from rfnlib.plots import examples, style

RATES = [Estimate(0.2, 0.2, 0.05102, 1e6, 5), Estimate(0.4, 0.4, 0.02551, 1e6, 5)]


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The folder of figures, and what has been displayed."""
    found = []
    monkeypatch.setenv("RFN_FIGURES", str(tmp_path))
    monkeypatch.setattr(style, "display", lambda data, metadata, raw: found.append((data, metadata["image/png"])))
    return tmp_path, found


def drawn():
    return examples.examples(np.zeros((1, 8, 8)), np.ones((1, 8, 8)), [("a", "b")], 1)


def test_files_are_byte_stable_and_outputs_carry_alt_text(shown):
    folder, outputs = shown
    written = []
    for _ in range(2):
        style.show(drawn(), "x", "an alt text")
        written.append([(folder / f"x.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert written[0] == written[1]
    data, about = outputs[0]
    assert about["alt"] == data["text/plain"] == "an alt text"
    assert base64.b64decode(data["image/png"]) == written[0][0]


def test_figures_have_twice_the_pixels_that_they_are_shown_at(shown):
    folder, outputs = shown
    style.show(drawn(), "x", "an alt text")
    pixels = struct.unpack(">II", (folder / "x.png").read_bytes()[16:24])
    _, about = outputs[0]
    assert pixels == pytest.approx((2 * about["width"], 2 * about["height"]), abs=2)


def test_few_colours_look_the_same_in_fewer_bytes(shown):
    folder, _ = shown
    with style.styled():
        figure, axis = plt.subplots()
    for name, height in (("SGD", 0.0), ("RFN", 0.1)):
        rates = [replace(rate, value=rate.value + height, centre=rate.centre + height) for rate in RATES]
        style.curve(axis, [1.0, 2.0], rates, *style.kind(name))  # lines, markers and bands that overlap
    whole = io.BytesIO()
    with style.styled():
        figure.savefig(whole, format="png")
    style.show(figure, "x", "what is in it: ε")
    with Image.open(whole) as before, Image.open(folder / "x.png") as after:
        apart = np.abs(np.asarray(before.convert("RGB"), int) - np.asarray(after.convert("RGB"), int))
        assert after.mode == "P" and after.text["Description"] == "what is in it: ε"
    assert apart.max() < 40 and apart.mean() < 0.1  # of 255 levels
    assert (folder / "x.png").stat().st_size < 0.6 * len(whole.getvalue())


def test_a_figure_of_more_shades_than_few_can_show_keeps_them(shown, monkeypatch):
    folder, _ = shown
    monkeypatch.setattr(style, "UNSEEN", 5)
    with style.styled():
        figure, axis = plt.subplots()
        axis.imshow(np.random.default_rng(0).random((100, 100, 3)))
    style.show(figure, "x", "noise")
    with Image.open(folder / "x.png") as after:
        assert after.mode == "RGB" and after.text["Description"] == "noise"


def test_a_method_has_one_colour_and_marker_under_all_its_names():
    assert style.kind("RFN") == style.kind("RFN, ρ 0.3") == style.KINDS["RFN"]
    assert style.kind("decay at 50 and 75") == style.KINDS["decay"]
    assert style.kind("GSAM")[0] == style.GREY
    colours = [style.kind(name)[0] for name in ("SGD", "SAM", "RFN", "constant")]
    assert len(set(colours)) == len(colours)


def test_shades_begin_with_the_full_colour_and_pale():
    light = [sum(c) for c in style.shades(3)]
    assert style.shades(3)[0] == pytest.approx(style.KINDS["decay"][0])
    assert light == sorted(light) and len(set(light)) == 3


def test_a_curve_is_drawn_with_its_interval():
    axis = plt.figure().add_subplot()
    style.curve(axis, [1.0, 2.0], RATES, "red", "o")
    assert np.allclose(axis.lines[0].get_ydata(), [20, 40])
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((100 * RATES[0].low, 100 * RATES[1].high))


def test_a_whisker_reaches_from_the_low_to_the_high_bound():
    axis = plt.figure().add_subplot()
    style.whisker(axis, RATES[0], 3, "red")
    (bar,) = (c for c in axis.collections if len(c.get_segments()))
    assert np.allclose(bar.get_segments()[0], [[100 * RATES[0].low, 3], [100 * RATES[0].high, 3]])


@pytest.mark.parametrize("span", [(90, 110), (7.75, 8.1), (3, 4000), (0.8, 0.9)])
def test_a_logarithmic_axis_has_several_plain_ticks(span):
    figure = plt.figure()
    axis = figure.add_subplot()
    axis.plot([0, 1], span)
    style.logarithmic(axis)
    figure.canvas.draw()
    low, high = axis.get_ylim()
    inside = [t for t in axis.get_yticks() if low <= t <= high]
    labels = [t.get_text() for t in axis.get_yticklabels() if t.get_text()]
    assert low <= span[0] and span[1] <= high
    assert len(inside) >= 2 and not any("10^" in text or "e" in text for text in labels)


def test_examples_show_clean_perturbation_and_adversarial():
    clean = np.full((3, 8, 8), 0.5)
    figure = examples.examples(clean, clean + 0.1, [("a", "b")] * 3, gain=10)
    rows = [axis.images[0].get_array() for axis in figure.axes]
    assert np.allclose(rows[0], 0.5) and np.allclose(rows[3], 1.0) and np.allclose(rows[6], 0.6)
