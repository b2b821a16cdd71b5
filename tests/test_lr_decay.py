"""Claim C2 on curves of which it is known what is true, and once end to end on a tiny scale."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import numpy as np
import pytest
from synthetic import FakeLab

from rfnlib import scales
from rfnlib.intervals import interval
from rfnlib.lab import MissingRecord
from rfnlib.plots import lr_decay as figures
from rfnlib.studies import lr_decay

SCALE = replace(
    scales.SMOKE, epochs=20, decays=(6, 10, 14), standard=(10, 15), cycle=10, seeds=(0, 1, 2, 3, 4), judged_after=1.0
)


def peaked(jump: float = 0.06, decline: float = 0.05):
    """A plateau at 0.3, `jump` above it from each decay on, of which `decline` is lost until the end."""

    def success(name: str, epoch: float) -> float:
        first = [float(d) for d in name.replace("decay at ", "").split(" and ") if d.isdigit()][:1]
        if not first or epoch <= first[0]:
            return 0.3
        since = (epoch - first[0] - SCALE.judged_after) / (SCALE.end - first[0] - SCALE.judged_after)
        return 0.3 + jump - decline * max(since, 0)

    return success


def measured(success=None, scale=SCALE, **how) -> lr_decay.Peak:
    return lr_decay.measure(FakeLab(scale, success or peaked(), seed_sd=how.pop("seed_sd", 0.004), **how))


@pytest.mark.parametrize(
    ("jump", "decline", "word"),
    [
        (0.06, 0.05, "supported"),
        (0.06, -0.05, "contradicted"),  # the rise goes on until the end: early stopping loses
        (-0.06, 0.05, "contradicted"),
        (0.0, 0.0, "no effect"),
    ],
)
def test_the_verdict_is_what_the_curves_were_made_to_show(jump, decline, word):
    found = measured(peaked(jump, decline))
    assert found.verdict("C2").word == word
    assert found.headline().startswith(found.verdict().answer) and found.verdict().follows


def test_both_differences_are_those_that_were_put_in():
    found = measured(seed_sd=0.0)
    assert found.jump().value == pytest.approx(0.06, abs=0.003)
    assert found.decline().value == pytest.approx(0.05, abs=0.003)
    assert found.above_before(10).value == pytest.approx(0.06, abs=0.003)


def test_seeds_that_differ_much_leave_it_undecided():
    assert measured(peaked(-0.03, 0.03), seed_sd=0.04).verdict().word == "inconclusive"


def test_a_scale_that_still_climbs_is_not_judged():
    def climbing(name: str, epoch: float) -> float:
        return 0.2 + 0.02 * epoch

    found = measured(climbing)
    assert found.verdict().word == "not testable"
    assert "cannot be tested" in found.headline()


def test_a_single_seed_is_not_judged():
    assert measured(scale=replace(SCALE, seeds=(0,))).verdict().word == "inconclusive"


def test_one_decay_that_goes_the_other_way_is_told_though_the_mean_is_positive():
    def success(name: str, epoch: float) -> float:
        return peaked(-0.02 if name == "decay at 6" else 0.08)(name, epoch)

    found = measured(success)
    assert found.verdict().word == "supported"
    (jumps,) = (line for line in found.signs() if line.startswith("above the constant run, by decay"))
    assert "2 of 3 above 0" in jumps and "1 below 0" in jumps and "smallest, in points: decay at 6, −" in jumps
    assert "2 of 3 show both" in found.headline()


def test_nothing_is_shown_while_a_judged_run_is_missing_and_others_may_be():
    with pytest.raises(MissingRecord):
        measured(missing=("decay at 14",))
    assert "cosine" not in measured(missing=("cosine",)).curves


def test_tables_carry_an_interval_beside_every_estimate():
    found = measured()
    for frame in (found.by_decay(), found.by_denominator(), found.by_target(), found.sensitivity()):
        estimates = frame.drop(columns="images counted at least once", errors="ignore")
        assert len(estimates) and estimates.map(lambda cell: " to " in cell).all(axis=None)
    assert list(found.by_decay().index) == ["decay at 6", "decay at 10", "decay at 14"]
    assert len(found.by_denominator()) == 4 and len(found.sensitivity()) == 2 + len(found.targets)


def test_a_second_decay_is_told_where_a_run_has_one():
    found = measured(seed_sd=0.0)
    said = found.second_decay()  # a decline of 0.05 over 9 epochs
    assert "decay at 10 and 15: success −0." in said and "from epoch 15 to 16" in said and said.count("success") == 1
    once = replace(found, curves={name: run for name, run in found.curves.items() if " and " not in name})
    assert "not recorded yet" in once.second_decay()


def test_the_peak_table_finds_the_highest_epoch():
    peaks = measured(peaked(0.06, 0.05), seed_sd=0.0).peaks()
    assert peaks.loc["decay at 10", "highest at epoch"] in ("10.25", "10.5", "11")
    assert peaks.loc["decay at 10", "success there"].startswith("36")


def test_the_headline_figure_draws_each_run_from_its_decay_on_with_its_interval():
    found = measured()
    figure = figures.peak(found)
    axis, below = figure.axes
    lines = {line.get_label(): line for line in axis.lines}
    for d in SCALE.decays:
        curve = found.curves[f"decay at {d}"]
        epochs = [e for e in curve.epochs if e >= d]
        assert list(lines[f"decay at {d}"].get_xdata()) == epochs
        assert np.allclose(lines[f"decay at {d}"].get_ydata(), [100 * curve.at(e).value for e in epochs])
    whole = found.curves["constant"]
    highest = max(100 * interval(whole.at(e)).high for e in whole.epochs)
    assert axis.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(highest)
    assert axis.get_ylabel() == "success rate, %" and below.get_xlabel() == "epoch"
    rates = below.lines[1].get_ydata()  # that of the first decay: its fall, and what comes after
    assert rates[0] == SCALE.lr and np.allclose(rates[1:], SCALE.lr / 10)


def test_every_schedule_has_a_panel_and_the_decays_are_aligned():
    found = measured()
    figure = figures.schedules(found)
    panels = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert set(found.curves) < panels.keys()
    aligned = panels["epochs since the decay"]
    times = [t for line in aligned.lines[:3] for t in line.get_xdata()]
    assert min(times) >= -1.02 and max(times) <= 4.02 and 0 in times


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_every_run_is_attacked_where_it_is_judged(scale):
    found = lr_decay.arms(FakeLab(scale))
    for d in scale.decays:
        judged = {float(d), d + scale.judged_after}
        assert judged <= set(found["constant"].asked[0].epochs)
        assert {*judged, scale.end} <= set(found[f"decay at {d}"].asked[0].epochs)


def test_the_plan_goes_seed_by_seed_so_that_work_cut_short_compares():
    lab = FakeLab(SCALE)
    asked, arms = list(lr_decay.plan(lab)), lr_decay.arms(lab)
    judged = [m for name in lr_decay.judged(lab) for m in arms[name].measurements()]
    order = [m.spec.seed for m in asked[: len(judged)]]
    assert set(asked[: len(judged)]) == set(judged), "before the standard schedule"
    assert order == sorted(order) and set(order) == set(SCALE.seeds)
