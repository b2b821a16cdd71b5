from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scenes import TINY
from scipy import stats
from synthetic import FakeLab
from test_pilots import SCALE, peaked

from rfnlib import words
from rfnlib.intervals import interval
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import by_seed
from rfnlib.plots import rfn_gains as figures
from rfnlib.scale import Arch
from rfnlib.studies import pilots, rfn_gains

JUDGED = replace(SCALE, seeds=(0, 1, 2, 3, 4), surrogates=(Arch("resnet18", 8), Arch("vgg11", 8)))


def better_by(rfn: float, sam: float = 0.0):
    """What is true: SGD peaks at 34 %; RFN and SAM succeed so much more, and success rises linearly in log ρ."""

    def success(name: str, e: float) -> float:
        if name == "RFN" or name == "ρ = 0.2":
            return 0.34 + rfn
        if name == "SAM" or name == "ρ = 0.05":
            return 0.34 + sam
        if name == "ρ = 0.1":
            return 0.34 + (rfn + sam) / 2
        return peaked(name, e)

    return success


def lab_where(rfn: float, sam: float = 0.0, **how) -> FakeLab:
    return FakeLab(JUDGED, better_by(rfn, sam), **how)


@pytest.mark.parametrize("rfn, word", [(0.06, "supported"), (-0.06, "contradicted"), (0.0, "no effect")])
def test_c4_says_what_is_true(rfn, word):
    found = rfn_gains.measure(lab_where(rfn, sam=-0.1, seed_sd=0.005))
    assert interval(found.primary("C4")).value == pytest.approx(rfn, abs=0.01)
    assert found.verdict("C4").word == word


def test_c5_is_about_sam_at_its_usual_radius():
    found = rfn_gains.measure(lab_where(0.02, sam=-0.05, seed_sd=0.005))
    assert found.verdict("C5").word == "contradicted"
    assert found.curves["SAM"].spec.minimizer.rho == JUDGED.rhos[0]
    assert found.curves["RFN"].spec.minimizer.rho == 0.2


def test_a_failed_gate_leaves_nothing_to_judge():
    lab = lab_where(0.06, sam=-0.1, training=lambda name: 0.9)
    assert {rfn_gains.measure(lab).verdict(c).word for c in rfn_gains.CLAIMS} == {"not testable"}


def test_c6_is_the_slope_of_success_by_doubling():
    """As scipy's regression of the rates on log₂ ρ, over the grid up to RFN's ρ and not beyond."""
    found = rfn_gains.measure(lab_where(0.08, seed_sd=0.005))
    assert list(found.by_rho) == [0.05, 0.1, 0.2]
    rates = [run.at(run.end).value for run in found.by_rho.values()]
    expected = stats.linregress(np.log2(list(found.by_rho)), rates).slope
    assert interval(found.primary("C6")).value == pytest.approx(expected)
    assert expected == pytest.approx(0.04, abs=0.005)
    assert found.verdict("C6").word == "supported"


def test_the_price_of_a_doubling_is_that_of_the_accuracies():
    cost = {"ρ = 0.05": 0.80, "ρ = 0.1": 0.78, "ρ = 0.2": 0.76}
    found = rfn_gains.measure(lab_where(0.08, accuracy=lambda name, e: cost.get(name, 0.8)))
    assert found.accuracy_by_doubling().value == pytest.approx(-0.02)


def test_always_is_answered_in_words():
    found = rfn_gains.measure(lab_where(0.06, sam=-0.1))
    assert "3 of 3 above 0" in found.always()


def test_gains_are_paired_by_seed():
    """A minimizer with fewer seeds is compared with SGD of the same ones."""
    found = rfn_gains.measure(lab_where(0.06, sam=-0.1, seed_sd=0.02))
    assert found.curves["GSAM"].seeds == SCALE.few
    sgd = found.curves["SGD"].first(SCALE.few)
    gsam = found.curves["GSAM"]
    assert found.gain("GSAM").value == pytest.approx(gsam.at(gsam.end).value - sgd.at(found.stop).value)


def test_sensitivities_are_each_claim_counted_in_every_way():
    found = rfn_gains.measure(lab_where(0.06, sam=-0.1, seed_sd=0.01))
    table = found.sensitivity()
    assert list(table.columns) == ["C4", "C5", "C6"] and table.index[0] == "as judged"
    assert table["C4"]["without target 1"] == words.points(interval(found.gain("RFN", targets=[1, 2])))
    assert table["C6"]["all images"] == words.points(interval(found.success_by_doubling(denominator="all")))
    assert list(rfn_gains.measure(lab_where(0.06, missing=("ρ = 0.1",))).sensitivity().columns) == ["C4", "C5"]


def test_nothing_is_looked_at_before_its_seeds_are_complete():
    with pytest.raises(MissingRecord):
        rfn_gains.measure(lab_where(0.06, missing=("RFN",)))
    found = rfn_gains.measure(lab_where(0.06, missing=("RFN along its training",)))
    assert found.verdict("C4").word == "supported" and found.table()["trained to the end"]["RFN"] == ""
    found = rfn_gains.measure(lab_where(0.06, missing=("ρ = 0.1", "GAM")))
    assert "GAM" not in found.curves
    assert not found.by_rho
    with pytest.raises(MissingRecord):
        found.verdict("C6")


def test_the_plan_asks_judged_seeds_and_each_question_once_it_can():
    lab = lab_where(0.06)
    every = [*rfn_gains.plan(lab), *rfn_gains.later(lab)]
    asked = [m for m in every if m.spec.seed not in JUDGED.pilots]
    assert {m.spec.seed for m in asked} == set(JUDGED.seeds)
    stop = pilots.stopping_epoch(lab)
    sgd = [m for m in asked if m.spec == JUDGED.flat(None, 4)]
    assert {e for m in sgd for e in m.epochs} == {stop, JUDGED.end}
    assert {m.spec.arch for m in asked} == {"resnet18", "vgg11"}
    few = {m.spec.seed for m in asked if m.spec.arch == "vgg11"}
    assert few == {0, 1}


def test_equal_passes_are_half_the_epochs():
    arm = rfn_gains.others(lab_where(0.06))["RFN, half the epochs"]
    assert arm.specs[0].epochs * 2 == JUDGED.epochs
    assert arm.specs[0].schedule.milestones == (5.0, 7.5)
    assert arm.asked[0].epochs[-1] == arm.specs[0].epochs


def test_a_minimizer_that_still_improves_is_said_to():
    accuracy = lambda name, e: 0.5 + 0.02 * e if name == "LookSAM" else 0.8  # noqa: E731
    table = rfn_gains.measure(lab_where(0.06, accuracy=accuracy)).table()
    assert table["trained to the end"]["LookSAM"] == "no"
    assert table["trained to the end"]["GSAM"] == "yes"


def test_tables_speak_in_words_and_units():
    found = rfn_gains.measure(lab_where(0.06, sam=-0.1, seed_sd=0.01))
    text = "\n".join([found.table().to_string(), found.target_table().to_string(), found.sensitivity().to_string(),
                      *(found.headline(c) for c in rfn_gains.CLAIMS)])  # fmt: skip
    assert not any(word in text for word in ("nan", "None", "Minimizer(", "Estimate("))
    assert "SGD stopped at epoch 11" in found.headline("C4")
    assert "GSAM, the best other minimizer" in found.headline("C5")


def test_figures_are_drawn_of_all_that_is_there():
    found = rfn_gains.measure(lab_where(0.06, sam=-0.1, seed_sd=0.01))
    both = rfn_gains.architectures(lab_where(0.06, sam=-0.1))
    assert list(both) == ["resnet18 (width 8)", "vgg11 (width 8)"]
    headline = figures.by_target(found, 0.03)
    labels = [t.get_text() for t in headline.axes[0].get_yticklabels()]
    assert labels == ["mean of the targets", *found.targets]
    assert len(figures.by_rho(found).axes) == 2
    assert len(figures.by_minimizer(both).axes) == 2
    plt.close("all")


def test_end_to_end_on_a_tiny_scale(tmp_path):
    """What the plans list, once computed, is all that replay reads; before the pilots, listing ends at a choice."""
    few = replace(TINY.sharpness, images=8, products=3, probes=2, deflate=1)
    scale = replace(TINY, surrogates=(Arch("cnn", 4),), seeds=(0,), sharpness=few)
    where = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w", "device": "cpu"}
    with pytest.raises(MissingRecord):
        next(rfn_gains.plan(Lab(scale, "replay", **where)))
    assert not (tmp_path / "c").exists()
    lab = Lab(scale, "run", **where)
    for m in (*by_seed(pilots.arms(lab).values()), *rfn_gains.plan(lab), *rfn_gains.later(lab)):
        lab.measure(m)
    found = rfn_gains.measure(Lab(scale, "replay", **where))
    assert set(found.curves) == {"SGD", "RFN", "SAM", *pilots.minimizers(scale), "RFN, half the epochs"}
    sgd, rfn = found.curves["SGD"], found.curves["RFN"]
    assert found.gain("RFN").value == pytest.approx(rfn.at(rfn.end).value - sgd.at(found.stop).value)
    assert rfn.passes[0, -1] == pytest.approx(2 * sgd.passes[0, -1])
    assert found.curves["RFN, half the epochs"].passes[0, -1] < sgd.passes[0, -1] + 1
    assert {found.verdict(claim).word for claim in rfn_gains.CLAIMS} == {"not testable"}
    replay = Lab(scale, "replay", **where)
    swept = rfn_gains.sweep(replay)
    assert list(swept.sharpness) == [0.0, *scale.rhos] and swept.early
    assert list(swept.table().index)[:2] == ["0 (SGD), stopped early", "0 (SGD)"]
    assert list(rfn_gains.under_other_attacks(replay).index) == ["as judged", "ε 20/255", "50 steps"]
