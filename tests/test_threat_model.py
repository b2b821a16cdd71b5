"""Q4 to Q6 on curves of which it is known what is true, and all of notebook 07 at a tiny scale."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scenes import TINY
from synthetic import FakeLab, curve
from test_pilots import SCALE, peaked

from rfnlib import scales, transfer, words
from rfnlib.intervals import interval
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm
from rfnlib.plots import threat_model as figures
from rfnlib.probes import Clean, Transfer
from rfnlib.scale import Arch
from rfnlib.specs import Adversary
from rfnlib.studies import features, threat_model, threats
from rfnlib.studies.threat_model import CLAIMS, EARLY, END, FLAT
from rfnlib.studies.threats import USUAL

JUDGED = replace(SCALE, seeds=(0, 1, 2, 3, 4))
MARGIN = CLAIMS["Q4"].margin


class ThreatLab(FakeLab):
    """A lab in which targets trained otherwise are five, and each has an accuracy."""

    def read(self, arm, probe=None, role="test"):
        at = arm.question(probe)
        if isinstance(at.probe, Clean):
            return [0.7]
        if not isinstance(at.probe, Transfer) or at.probe.against != "varied" or not self.complete(arm, at):
            return super().read(arm, probe, role)
        return curve(Arm(arm.name, arm.specs, at), lambda e: self.success(arm.name, e), targets=5, seed_sd=self.seed_sd)


def gaining(gains):
    """RFN succeeds so much more than SGD stopped early in the settings named, and as much in all others."""

    def success(name: str, e: float) -> float:
        surrogate, _, setting = name.partition(": ")
        if not setting:
            return peaked(name, e)
        return {EARLY: 0.34, END: 0.25, FLAT: 0.34 + gains.get(setting, 0.0)}[surrogate]

    return success


def measured(gains=None, scale=JUDGED, seed_sd=0.004, **how):
    return threat_model.measure(ThreatLab(scale, gaining(gains or {}), seed_sd=seed_sd, **how))


def settings_of(claim):
    return [name for name, c in threats.settings(JUDGED, claim).items() if c.judged]


# --- what is judged -----------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("gain, word", [(0.06, "supported"), (-0.06, "contradicted"), (0.0, "no effect")])
def test_the_verdict_is_what_the_curves_were_made_to_show(claim, gain, word):
    found = measured(dict.fromkeys(settings_of(claim), gain))
    assert interval(found.primary(claim)).value == pytest.approx(gain, abs=0.01)
    verdict = found.verdict(claim)
    assert verdict.word == word and verdict.follows and found.headline(claim).startswith(verdict.answer)
    assert {found.verdict(other).word for other in CLAIMS if other != claim} == {"no effect"}


def test_the_mean_is_over_the_attacks_paired_by_seed_and_image():
    found, names = measured({"margin loss": 0.1}), settings_of("Q6")
    differences = [found.gain("Q6", name) for name in names]
    assert found.primary("Q6").value == pytest.approx(np.mean([d.value for d in differences]))
    np.testing.assert_allclose(found.primary("Q6").z, np.mean([d.z for d in differences], 0), atol=1e-12)
    assert found.primary("Q6").value == pytest.approx(0.1 / len(names), abs=0.01)
    assert f"{len(names)} of {len(names)}" not in found.signs("Q6") and "above 0" in found.signs("Q6")


def test_an_attacker_s_other_images_are_judged_alone_on_all_seeds():
    beside = dict.fromkeys(("half as many", "no augmentation", "noisy labels"), 0.2)
    found = measured({"other images": 0.1, **beside})
    assert settings_of("Q4") == ["other images"] and found.verdict("Q4").estimates[0].seeds == 5
    assert found.primary("Q4").value == found.gain("Q4", "other images").value == pytest.approx(0.1, abs=0.01)
    assert "average" not in found.headline("Q4") and all(name in found.answer("x16") for name in beside)


def test_what_stands_beside_moves_no_primary_difference():
    beside = dict.fromkeys(["DI", "targeted", "RAP", "PGN", USUAL], 0.2)
    assert interval(measured(beside).primary("Q6")).value == pytest.approx(0.0, abs=0.01)


def test_a_question_waits_for_its_own_records_only():
    found = measured(missing=("RFN: other images", "RFN: half as many", "RFN: PGN", "SGD: noisy labels"))
    with pytest.raises(MissingRecord, match="RFN, other images: not complete"):
        found.verdict("Q4")
    with pytest.raises(MissingRecord, match="RFN, other images: not complete"):
        found.answer("x16")
    assert {found.verdict(claim).word for claim in ("Q5", "Q6")} == {"no effect"}
    assert list(found.sensitivity().columns) == ["Q5", "Q6"]
    table = found.table("Q4")
    assert "half as many" not in table.index and table.loc["noisy labels", END] == words.MISSING


def test_a_gate_of_the_pilots_that_fails_leaves_nothing_to_judge():
    found = measured(training=lambda name: 0.9)
    assert {found.verdict(claim).word for claim in CLAIMS} == {"not testable"}


# --- the settings -------------------------------------------------------------------------------------


def test_where_targets_take_all_images_q4_cannot_be_tested():
    assert not threat_model.images_left(scales.GPU).passed and threat_model.images_left(JUDGED).passed
    assert set(threats.own_images(scales.GPU)) == {"no augmentation", "noisy labels"}
    whole = replace(JUDGED, n_train=None)
    found = measured(dict.fromkeys(("no augmentation", "noisy labels"), 0.06), scale=whole)
    assert found.verdict("Q4").word == "not testable" and "0 images that no target" in str(found.verdict("Q4"))
    assert interval(found.primary("Q4")).value == pytest.approx(0.06, abs=0.01), "described all the same"
    assert (
        found.verdict("Q5").word == "no effect"
        and "no others are left" in threats.threat_table(found.lab).to_string()
    )


def test_only_networks_that_are_trained_for_nothing_but_to_stand_beside_have_few_seeds():
    lab = ThreatLab(JUDGED, gaining({}))
    seeds = {claim: {k: len(a.specs) for k, a in threat_model.arms(lab, claim).items()} for claim in CLAIMS}
    few = {claim: {name for (name, _), n in of.items() if n == len(lab.few) == 2} for claim, of in seeds.items()}
    assert few == {"Q4": {"half as many", "no augmentation", "noisy labels"}, "Q5": set(), "Q6": set()}


def test_every_surrogate_is_used_where_pilots_say():
    for claim in CLAIMS:
        for (_, surrogate), arm in threat_model.arms(ThreatLab(JUDGED, gaining({})), claim).items():
            assert arm.question().epochs == ((11.0,) if surrogate == EARLY else (20.0,))
            assert {getattr(s.minimizer, "rho", None) for s in arm.specs} == {0.2 if surrogate == FLAT else None}


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_the_plan_holds_all_arms_once_and_the_dear_extras_come_later(scale):
    lab = ThreatLab(scale, gaining({}))
    first, after = list(threat_model.plan(lab)), list(threat_model.later(lab))
    wanted = {m for claim in CLAIMS for arm in threat_model.arms(lab, claim).values() for m in arm.measurements()}
    assert {*first, *after} == wanted and not {*first} & {*after}
    assert not any(m.spec.skip and m.spec.minimizer is None and scale.end in m.epochs for m in first)
    changed = [bool(m.spec.skip or m.spec.label_noise or not m.spec.augment) for m in first]
    at = changed.index(True)
    usual = changed[at:].count(False)
    assert not any(changed[:at]) and usual <= 3 * len(scale.seeds), "networks of one's own come last"
    assert {m.spec.seed for m in (*first, *after)} <= set(scale.seeds)


# --- what stands beside -------------------------------------------------------------------------------


def test_how_much_harder_a_target_is_is_counted_on_the_same_images():
    found = measured({"varied": 0.1})
    harder = found.harder(FLAT)
    assert len(harder) == 5 and {round(d.value, 2) for d in harder.values()} == {0.1}
    assert {round(d.value, 2) for d in found.harder(EARLY).values()} == {0.0}
    usual, varied = found.of("Q5", USUAL, FLAT), found.of("Q5", "varied", FLAT)
    assert harder["target 2"].value == pytest.approx(
        varied.hits[-1].adv_wrong[:, :, 1].mean() - usual.hits[-1].adv_wrong[:, :, 0].mean()
    )


def test_images_that_one_of_the_targets_gets_wrong_are_not_counted_for_another():
    found = measured()
    usual = found.of("Q5", USUAL, FLAT)
    wrong = np.zeros((400, 3), bool)
    wrong[:100, 0] = True  # the first target, which all the others are compared with
    hits = tuple(transfer.Hits(h.adv_wrong, wrong, h.surrogate_wrong) for h in usual.hits)
    found.curves["Q5"][USUAL, FLAT] = replace(usual, hits=hits)
    assert {d.images for d in found.harder(FLAT).values()} == {300}


def test_what_a_setting_changes_is_paired_with_the_usual_one():
    found = measured({"other images": 0.05, USUAL: 0.02})
    assert found.change("Q4", "other images").value == pytest.approx(0.03, abs=0.01)
    assert found.change("Q4", "half as many").z.shape[0] == len(found.lab.few)


def test_what_diversity_adds_and_what_flat_inputs_give_are_differences_on_the_same_seeds():
    found = measured({"DI": 0.02, USUAL: 0.05})
    assert found.diversity(FLAT).value == pytest.approx(-0.03, abs=0.01)
    assert found.diversity(EARLY).value == pytest.approx(0.0, abs=0.01)
    assert found.flat_inputs("RAP").value == pytest.approx(0.05, abs=0.01)
    assert found.diversity(FLAT).z.shape[0] == len(JUDGED.seeds)


@pytest.mark.parametrize("x", threat_model.ANSWERS)
def test_each_point_of_the_reviewers_has_a_line_with_an_interval(x):
    said = measured({"varied": 0.05}).answer(x)
    assert "\n" not in said and said.endswith(".") and " to " in said and "nan" not in said


def test_another_point_is_refused_and_a_missing_one_says_so():
    with pytest.raises(KeyError):
        measured().answer("x1")
    found = measured(missing=("RFN: PGN", "RFN: varied"))
    with pytest.raises(MissingRecord):
        found.answer("x9")
    lines = found.answers("x9", "x26").splitlines()
    assert lines[0].startswith("not recorded yet: RFN, PGN") and lines[1] == found.answer("x26")
    assert found.target_table().empty and not found.table("Q5").empty


def test_the_gap_between_features_is_that_of_their_curves_at_each_radius():
    at = {"D_R": lambda e: 0.30 if e == 11 else 0.25, "D_NR": lambda e: 0.20 if e == 11 else 0.19}
    lab = ThreatLab(JUDGED, lambda name, e: at[name](e) if name in at else peaked(name, e))
    table = features.gap_by_eps(lab)
    assert list(table.index) == ["ε 20/255", "ε 40/255"]
    assert table["D_R − D_NR, both stopped early"].str.startswith("+10.0").all()
    assert table["D_R, stopped early − at its end"].str.startswith("+5.0").all()


# --- for readers --------------------------------------------------------------------------------------


def test_tables_carry_intervals_beside_the_usual_setting():
    found = measured({"varied": 0.05})
    for claim in CLAIMS:
        table = found.table(claim)
        assert table.iloc[:, 2:5].map(lambda cell: " to " in cell or cell == words.MISSING).all(axis=None)
        assert ("natural accuracy of RFN" in table) == (claim == "Q4")
        assert ("less as in notebook 04" in table) == (claim != "Q5")
    targets = found.target_table()
    usual, *others = targets.index
    assert usual == "target 1, as usual" and others == [f"target {i}" for i in range(1, 6)]
    assert targets.loc[others, "success less usual training, by RFN"].str.startswith("+5.").all()
    assert set(found.sensitivity().columns) == set(CLAIMS)


def test_the_headline_figure_has_a_row_a_setting_and_the_judged_mean_last():
    found = measured({"other images": 0.05})
    figure = figures.gains(found, MARGIN)
    rows = [[t.get_text() for t in axis.get_yticklabels()] for axis in figure.axes]
    assert rows[0] == [USUAL, "other images"] and rows[2] == [USUAL, *settings_of("Q6"), figures.MEAN]
    assert rows[1] == [USUAL, "target 1, as usual", *(f"target {i}" for i in range(1, 6)), figures.MEAN]
    markers = [line.get_xydata()[0] for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert np.allclose(markers, [[100 * found.primary("Q4").value, len(rows[0]) - 1]])
    plt.close("all")


def test_figures_say_what_is_not_recorded():
    nothing = tuple(f"{s}: {name}" for s in (EARLY, END, FLAT) for name in (USUAL, *threats.own_images(JUDGED)))
    found = measured(missing=nothing)
    for figure in (figures.gains(found, MARGIN), figures.levels(found)):
        assert [t.get_text() for t in figure.axes[0].texts] == ["not recorded yet"]
        figure.canvas.draw()
    plt.close("all")


def test_levels_show_every_surrogate_and_what_is_not_judged_too():
    figure = figures.levels(measured())
    rows = [[t.get_text() for t in axis.get_yticklabels()] for axis in figure.axes]
    assert rows[0] == [USUAL, *threats.own_images(JUDGED)] and {"RAP", "PGN", "DI", "targeted"} < set(rows[2])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(figures.SHOWN)
    plt.close("all")


# --- all of it, on networks -----------------------------------------------------------------------------


def test_the_study_of_a_tiny_scale_end_to_end(tmp_path):
    trained = tuple(replace(t, epochs=20) for t in TINY.targets)  # some images must be right for all of them
    robust = replace(trained[1], role="robust", adversary=Adversary("l2", 0.5, steps=1))
    surrogate = {"surrogates": (Arch("cnn", 4),), "seeds": (0,), "rhos": (0.05, 0.2)}
    scale = replace(TINY, **surrogate, targets=(*trained, robust), test_images=100)
    folders = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w"}
    lab = Lab(scale, "run", device="cpu", **folders)
    for m in (*threat_model.plan(lab), *threat_model.later(lab)):
        lab.measure(m)
    made = {claim: threat_model.measure(lab).headline(claim) for claim in CLAIMS}
    again = threat_model.measure(Lab(scale, "replay", device="cpu", **folders))
    assert made == {claim: again.headline(claim) for claim in CLAIMS}
    for claim in CLAIMS:
        assert again.verdict(claim).word == "not testable" and "cannot be tested" in again.headline(claim)
        assert again.primary(claim).z.shape[0] == 1
    assert len(again.of("Q5", "varied", FLAT).targets) == 4
    table = again.target_table()
    assert (table["natural accuracy"] != words.MISSING).all()
    assert set(again.table("Q6").index) == set(threats.settings(scale, "Q6"))
