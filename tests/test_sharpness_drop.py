"""Claim C3 on curves of which it is known what is true."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scenes import TINY
from synthetic import FakeLab

from rfnlib import probes, scales, words
from rfnlib.curves import SharpnessCurve
from rfnlib.intervals import over_seeds
from rfnlib.lab import Lab, MissingRecord
from rfnlib.plots import sharpness_drop as figures
from rfnlib.scale import CONSTANT, Arch, decaying
from rfnlib.studies import lr_decay, sharpness_drop

SCALE = replace(
    scales.SMOKE,
    epochs=20,
    decays=(6, 10, 14),
    standard=(10, 15),
    cycle=10,
    seeds=(0, 1, 2, 3, 4),
    rhos=(0.05, 0.1, 0.2),
    pilots=(100, 101),
    sharp_every=5,
    fine=(0.25, 0.5),
)
NAMES = (*probes.Sharpness.measures, *(f"{m}_error" for m in probes.Sharpness.measures), "loss", "train_loss")


class SharpLab(FakeLab):
    """A lab in which λ₁ is `lower` times as small from each decay on, and seeds differ by noise."""

    lower, noise, gone = 1.5, 0.02, ()

    def read(self, arm, probe=None, role="test"):
        at = arm.question(probe)
        if at.probe != self.scale.sharpness:
            return super().read(arm, probe, role)
        epochs = at.epochs
        drawn = np.random.default_rng(len(arm.name)).normal(0, self.noise, (len(arm.specs), len(epochs)))
        drawn -= drawn.mean(0)  # the mean over seeds is what was put in
        passed = np.array([[e > m for m in arm.specs[0].schedule.milestones[:1]] or [False] for e in epochs])[:, 0]
        top = 100 * np.exp(drawn - np.log(self.lower) * passed)
        values = {name: top * (0.01 if name.endswith("_error") else 1.0) for name in NAMES}
        values |= {name: np.full(top.shape, np.nan) for name in self.gone}
        return SharpnessCurve(arm.name, arm.specs[0], epochs, values)


def measured(lower=1.5, noise=0.02, gone=(), scale=SCALE, **how):
    lab = SharpLab(scale, lambda name, e: 0.3 - 0.002 * max(e - 16, 0), seed_sd=0.004, **how)
    lab.lower, lab.noise, lab.gone = lower, noise, gone
    return sharpness_drop.measure(lab)


@pytest.mark.parametrize(
    ("lower", "noise", "word"),
    [
        (1.5, 0.02, "supported"),
        (1 / 1.5, 0.02, "contradicted"),
        (1.0, 0.02, "no effect"),
        (1.0, 0.6, "inconclusive"),
    ],
)
def test_the_verdict_is_what_the_curves_were_made_to_show(lower, noise, word):
    found = measured(lower, noise)
    assert found.verdict("C3").word == word
    assert found.headline().startswith(found.verdict().answer) and found.verdict().follows


def test_the_factor_is_the_one_that_was_put_in():
    found = measured(noise=1e-6)
    assert np.exp(found.drop().value) == pytest.approx(1.5, rel=1e-4)
    assert "lower by the factor 1.50" in found.headline()
    assert "higher by the factor 1.50" in measured(1 / 1.5, 1e-6).headline()
    for d in SCALE.decays:
        assert np.allclose(found.below_before(d), np.log(1.5), atol=1e-4)
        assert f"after {d}, 66.7 (" in found.afterwards()
    n = len(SCALE.decays)
    assert f"λ₁ drops in {n} of {n}, in {n} at 95 %" in found.headline() and "the trace lower by" in found.headline()


def test_what_is_not_defined_is_said_in_words_and_leaves_the_verdict():
    found = measured(gone=("matched", "trace"))
    assert found.verdict().word == "supported" and "not defined at equal loss" in found.headline()
    assert set(found.by_measure().loc["λ₁ at equal loss"]) == {words.MISSING}
    assert (found.late_phase()["trace"] == words.MISSING).all()
    assert "nan" not in found.by_decay().to_string() and "nan" not in found.afterwards()


def test_sam_and_rfn_appear_when_they_are_measured_and_are_not_needed():
    assert {"SAM", "RFN"} <= measured().sharpness.keys()
    found = measured(missing=("RFN",))
    assert "RFN" not in found.sharpness and found.verdict().word == "supported"
    with pytest.raises(MissingRecord):
        measured(missing=("decay at 10",))


def test_the_claim_waits_neither_for_success_nor_for_a_choice():
    transfers = tuple(f"transfer of {name}" for name in lr_decay.arms(FakeLab(SCALE)))
    found = measured(missing=(*transfers, "pilot ρ = 0.2", decaying(*SCALE.standard)))
    assert found.verdict().word == "supported" and found.sharpness.keys() == set(lr_decay.judged(FakeLab(SCALE)))
    assert found.late_phase().empty and "not measured yet" in found.late()
    figures.drop(found), figures.details(found)
    plt.close("all")


def test_the_late_phase_is_that_after_the_last_decay():
    found = measured()
    assert list(found.late_phase().index) == ["15", "15.25", "15.5", "16", "20"]
    success, sharpness = found.late_change()
    assert success.value == pytest.approx(-0.008, abs=0.003) and abs(sharpness.value) < 0.05
    assert "from 1 epoch after its last decay" in found.late()
    flat, plain = (found.sharpness[name].log(20) for name in (found.standard, CONSTANT))
    assert words.lower(over_seeds(plain - flat)) in found.in_the_end() and "points (" in found.in_the_end()
    alone = replace(found, success={})
    assert "not measured yet" in alone.in_the_end()


def test_tables_carry_an_interval_beside_every_estimate():
    found = measured()
    for frame in (found.by_decay(), found.by_measure()):
        assert frame.map(lambda cell: " to " in cell).all(axis=None)
    assert found.precision() == pytest.approx(0.01)


def test_one_seed_has_no_interval_and_is_drawn_all_the_same():
    found = measured(scale=replace(SCALE, seeds=(0,)))
    assert found.verdict().word == "inconclusive"
    assert "one seed" in found.by_decay().to_string() and "inf" not in found.headline()
    figures.drop(found).canvas.draw()


def test_the_headline_figure_has_success_sharpness_and_loss_on_one_axis_of_time():
    found = measured()
    figure = figures.drop(found)
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["success rate, %", "λ₁", "training loss"]
    assert figure.axes[0].get_shared_x_axes().joined(figure.axes[0], figure.axes[2])
    drawn = [line.get_ydata() for line in figure.axes[1].lines]
    epochs = found.sharpness["decay at 10"].epochs
    expected = [np.exp(np.log(found.sharpness["decay at 10"].at(e)).mean()) for e in epochs]
    assert any(len(line) == len(expected) and np.allclose(line, expected) for line in drawn)


def test_details_show_decays_and_minimizers_side_by_side():
    figure = figures.details(measured())
    legends = [[t.get_text() for t in axis.get_legend().get_texts()] for axis in figure.axes[:2]]
    assert legends == [["constant", "decay at 10 and 15"], ["SGD", "SAM", "RFN"]]
    assert len(figure.axes) == 10


def test_details_have_no_column_for_what_is_not_recorded():
    found = measured()
    kept = {name: run for name, run in found.sharpness.items() if name not in ("SAM", "RFN", found.standard)}
    figure = figures.details(replace(found, sharpness=kept))
    assert [axis.get_title("left") for axis in figure.axes] == ["by learning rate", *[""] * 4]


@pytest.mark.parametrize(("seeds", "bands"), [((0, 1, 2, 3, 4), 1), ((0, 1), 0), ((0,), 1)])
def test_two_seeds_are_dots_and_more_are_a_band(seeds, bands):
    found = measured(scale=replace(SCALE, seeds=seeds))
    axis, run = plt.figure().add_subplot(), found.sharpness["constant"]
    figures.measured(axis, found, "constant", "top", "red", "o")
    line, *dots = axis.lines
    assert np.allclose(line.get_ydata(), [np.exp(np.log(run.at(e)).mean()) for e in run.epochs])
    assert len(axis.collections) == bands
    assert [dot.get_ydata().tolist() for dot in dots] == ([] if bands else run.values["top"].tolist())


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_every_run_is_measured_where_it_is_judged(scale):
    found = sharpness_drop.arms(FakeLab(scale))
    for d in scale.decays:
        judged = {float(d), d + scale.judged_after}
        assert judged <= set(found["constant"].asked[0].epochs)
        assert judged <= set(found[f"decay at {d}"].asked[0].epochs)
    assert scale.end in found[decaying(*scale.standard)].asked[0].epochs


def test_success_is_asked_of_the_runs_that_are_shown_and_of_no_others():
    found, lab = measured(), FakeLab(SCALE)
    assert found.success.keys() == found.sharpness.keys()
    asked = {m.spec for m in sharpness_drop.later(lab)}
    assert asked == {spec for arm in sharpness_drop.arms(lab).values() for spec in arm.specs}


def test_the_plan_measures_the_judged_runs_before_those_that_wait_for_a_choice():
    minimizers = [m.spec.minimizer for m in sharpness_drop.plan(FakeLab(SCALE))]
    first = next(i for i, m in enumerate(minimizers) if m)
    assert first == len(sharpness_drop.arms(FakeLab(SCALE))) * len(SCALE.seeds) and all(minimizers[first:])


def test_both_studies_of_a_tiny_scale_end_to_end(tmp_path):
    scale = replace(
        TINY,
        surrogates=(Arch("cnn", 4),),
        seeds=(0,),
        decays=(1,),
        standard=(1, 2),
        fine=(0.5,),
        rhos=(0.05, 0.2),
        sharpness=probes.Sharpness(20, tol=0.5, products=4, probes=2, deflate=1),
    )
    folders = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w"}
    made = sharpness_drop.measure(Lab(scale, "run", device="cpu", **folders))
    again = sharpness_drop.measure(Lab(scale, "replay", device="cpu", **folders))
    assert again.headline() == made.headline() and str(again.verdict()) == str(made.verdict())
    assert again.verdict().word == "not testable"  # training for three epochs passes no gate
    assert {"constant", "decay at 1", "decay at 1 and 2", "SAM", "RFN"} == again.sharpness.keys()
    peak = lr_decay.measure(Lab(scale, "run", device="cpu", **folders))  # with its other schedules
    assert peak.curves.keys() == scale.schedules().keys() and "cannot be tested" in peak.headline()
    assert peak.jump().value == pytest.approx(
        peak.curves["decay at 1"].at(2.0).value - peak.curves["constant"].at(2.0).value
    )
