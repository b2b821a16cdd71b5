"""Claim C1 on curves of which it is known what is true, and the whole study at a tiny scale."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scenes import TINY
from synthetic import FakeLab, robustness
from test_pilots import SCALE

from rfnlib import words
from rfnlib.intervals import interval
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, by_seed
from rfnlib.plots import features as figures
from rfnlib.scale import Arch
from rfnlib.studies import features, pilots

JUDGED = replace(SCALE, seeds=(0, 1, 2, 3, 4))
PEAK = 11.0


class LateLab(FakeLab):
    """Pilots peak at epoch 11 whatever is true; there the judged runs are `gains[name]` above their end."""

    gains: dict[str, float] = {"D": 0.06, "D_R": 0.06, "D_NR": 0.06}

    def read(self, arm, probe=None, role="test"):
        judged = arm.specs[0].seed not in self.scale.pilots and arm.name in features.sets(self.scale)
        self.success = self.declining if judged else self.peaked
        return super().read(arm, probe, role)

    def declining(self, name, e):
        return 0.3 + self.gains.get(name, 0.0) * (e == PEAK)

    def peaked(self, name, e):
        at_end = {"ρ = 0.1": 0.31, "ρ = 0.2": 0.33}.get(name, 0.3)
        return 0.34 - 0.004 * abs(e - PEAK) if name in features.sets(self.scale) else at_end


def lab_where(gains=None, **how) -> LateLab:
    lab = LateLab(JUDGED, seed_sd=how.pop("seed_sd", 0.004), **how)
    lab.gains = LateLab.gains | (gains or {})
    return lab


@pytest.mark.parametrize("gain, word", [(0.06, "supported"), (-0.06, "contradicted"), (0.0, "no effect")])
def test_c1_says_what_is_true_of_non_robust_features(gain, word):
    found = features.measure(lab_where({"D_NR": gain}))
    assert found.stops["D_NR"] == PEAK
    assert found.help("D_NR").value == pytest.approx(gain, abs=0.01)
    assert found.verdict().word == word


def test_robust_features_stand_beside_and_judge_nothing():
    assert features.measure(lab_where({"D_R": -0.1})).verdict().word == "supported"


@pytest.mark.parametrize("lacking", ["D_R", "pilot D_R"])
def test_robust_features_may_be_missing(lacking):
    found = features.measure(lab_where(missing=(lacking,)))
    assert found.verdict().word == "supported"
    assert found.headline().endswith("D_R is not recorded yet.")
    assert list(found.gains().index) == ["D", "D_NR", *features.CONTROLS]
    assert list(found.sensitivity().columns) == ["on D_NR", "on D"]
    assert len(figures.early_stopping(found, found.shown, 0.02).axes) == 3
    plt.close("all")


def test_where_stopping_does_not_help_on_the_images_there_is_nothing_to_explain():
    found = features.measure(lab_where({"D": 0.0}))
    assert found.verdict().word == "not testable"
    assert [g.name for g in found.gates if not g.passed] == ["early stopping helps on D"]
    assert "cannot be tested" in found.headline()


def test_the_epoch_is_chosen_on_validation_images_of_pilots_alone():
    lab = lab_where()
    assert features.stopping_epoch(lab, "D_NR") == PEAK
    assert lab.roles == {"validation"}


def test_what_is_not_complete_is_not_shown():
    for name in ("D_NR", "pilot D_NR"):
        with pytest.raises(MissingRecord):
            features.measure(lab_where(missing=(name,)))
    found = features.measure(lab_where(missing=("D_rand", "pilot D_det")))
    assert set(found.curves) == set(found.robustness) == set(features.MAIN)


def test_the_claim_does_not_wait_for_robust_accuracy():
    found = features.measure(lab_where(missing=("robustness of D", "robustness of D_R")))
    assert found.verdict().word == "supported" and "D" not in found.peaks().index
    assert len(figures.details(found, features.WEAK).axes) == 3
    plt.close("all")


def test_controls_have_the_first_seed():
    found = features.measure(lab_where())
    assert {name: run.seeds for name, run in found.curves.items()} == {
        **dict.fromkeys(features.MAIN, 5), **dict.fromkeys(features.CONTROLS, 1)}  # fmt: skip


def test_a_set_is_as_it_should_be_where_its_network_is(monkeypatch):
    check = replace(JUDGED.features.check, images=1000)

    def trained(name, natural, robust):
        arm = Arm(name, [JUDGED.flat(None, s) for s in (0, 1)], At(check, (JUDGED.end,)))
        return robustness(arm, arm.asked[0], lambda attack, e: natural if attack == "none" else robust)

    fine = {"D_R": trained("D_R", 0.6, 0.4), "D_NR": trained("D_NR", 0.6, 0.02)}
    table = features.table_of_checks(fine)
    assert list(table["as it should be"]) == ["yes", "yes"]
    other = {"D_R": trained("D_R", 0.6, 0.1), "D_NR": trained("D_NR", 0.6, 0.3), "D_det": trained("D_det", 0.1, 0.0)}
    assert set(features.table_of_checks(other)["as it should be"]) == {"not shown"}
    assert table["published"]["D_NR"] == "88%, 0%"


def test_robust_accuracy_is_read_where_the_surrogate_is_stopped():
    """Where it was not measured at that epoch, at the nearest one, which is named."""
    found = features.measure(lab_where(robust=lambda name, e: 0.3 if e == 6 else 0.1))
    row = replace(found, stops={**found.stops, "D": 7.0}).peaks().loc["D"]
    assert 7.0 not in found.robustness["D"].epochs
    assert row["robust accuracy there"].startswith("30.0 %")
    assert row["robust accuracy there"].endswith("epoch 6")
    assert row["highest"] == "30.0 %, epoch 6"


def test_sets_differ_in_what_their_names_say():
    sets = features.sets(JUDGED)
    assert sets["D"] is None
    assert sets["D_R"].model == replace(sets["D_NR"].model, adversary=JUDGED.features.adversary)
    assert sets["D_rand"].eps == sets["D_det"].eps == JUDGED.features.radii[0]
    table = features.set_table(lab_where())
    assert table["network's training"]["D_R"] == words.adversary(JUDGED.features.adversary)
    assert table["label"]["D_det"] == "the next class"


def test_the_plan_asks_pilots_first_and_judged_seeds_alike():
    first, last = list(features.plan(lab_where())), list(features.later(lab_where()))
    asked = [*first, *last]
    assert first[0].spec.seed == JUDGED.pilots[0]
    assert {m.spec.seed for m in first} == {JUDGED.pilots[0], *JUDGED.seeds}
    main = [m for arm in features.arms(lab_where()).values() for m in arm.measurements()]
    assert set(main) <= set(asked)


def test_tables_speak_in_words_and_units():
    lab = lab_where()
    found = features.measure(lab)
    shown = (found.gains(), found.peaks(), features.set_table(lab), features.check_table(lab), features.step_table(lab))
    text = "\n".join([*(t.to_string() for t in shown), found.headline(), found.verdict().follows])
    assert not any(word in text for word in ("nan", "None", "Adversary(", "Estimate("))
    assert "rather than trained to its end" in text


def test_figures_show_every_set_with_its_intervals():
    found = features.measure(lab_where())
    headline = figures.early_stopping(found, found.shown, 0.02)
    assert [a.get_title(loc="left") for a in headline.axes[:3]] == [f"trained on {n} (5 seeds)" for n in features.MAIN]
    assert all(axis.collections for axis in headline.axes), "a band or a bar in each"
    stars = [line.get_xydata()[0] for line in headline.axes[0].lines if line.get_marker() == "*"]
    assert stars == pytest.approx(np.array([[PEAK, 100 * found.curves["D"].at(PEAK).value]]))
    details = figures.details(found, features.WEAK)
    assert len(details.legends[0].get_texts()) == 5
    eps = figures.other_eps(found)
    assert [t.get_text() for t in eps.legends[0].get_texts()] == ["ε = 20/255", "ε = 40/255"]
    plt.close("all")


def test_end_to_end_on_a_tiny_scale(tmp_path):
    """What the plan lists, once computed, is all that replay reads, the sets and the checks of them included."""
    study = replace(TINY.features, arch=Arch("cnn", 4), steps=2, model_epochs=1, targeted=1, other_eps=())
    study = replace(study, check=replace(study.check, images=20, steps=2))
    scale = replace(TINY, surrogates=(Arch("cnn", 4),), seeds=(0,), features=study, rhos=(0.05, 0.2))
    where = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w", "device": "cpu"}
    lab = Lab(scale, "run", **where)
    pilot, view = by_seed(pilots.arms(lab).values()), Lab(scale, "replay", **where)
    for m in (*pilot, *features.plan(view), *features.later(view)):
        lab.measure(m)
    replay = Lab(scale, "replay", **where)
    found = features.measure(replay)
    assert list(found.curves) == [*features.MAIN, *features.CONTROLS]
    run = found.curves["D_NR"]
    assert interval(found.help("D_NR")).value == pytest.approx(run.at(found.stops["D_NR"]).value - run.at(3).value)
    assert found.verdict().word == "not testable"
    assert list(features.check_table(replay).index) == ["D_R", "D_NR", "D_rand, radius 0.5", "D_det, radius 0.5"]
    assert list(features.step_table(replay).index) == [2]
    assert run.spec.features.name == "D_NR"
