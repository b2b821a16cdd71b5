"""Claims C7 and C8 on curves of which it is known what is true, and the whole study at a tiny scale."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scenes import TINY
from synthetic import FakeLab
from test_pilots import SCALE, peaked

from rfnlib import claims, studies, words
from rfnlib.intervals import interval
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import by_seed
from rfnlib.plots import state_of_the_art as figures
from rfnlib.probes import Transfer
from rfnlib.recipes import Averaged, Collected, Drawn
from rfnlib.scale import Arch, Target
from rfnlib.specs import Adversary
from rfnlib.studies import features, pilots, state_of_the_art

JUDGED = replace(SCALE, seeds=(0, 1, 2, 3, 4))


class RivalLab(FakeLab):
    """What is true of judged runs: `rates` by name, 0.3 for all others; pilots are as a scale's should be."""

    rates: dict[str, float] = {}

    def read(self, arm, probe=None, role="test"):
        pilot = arm.specs[0].seed in self.scale.pilots
        self.success = peaked if pilot else lambda name, e: self.rates.get(name, 0.3)
        return super().read(arm, probe, role)


def lab_where(rates=None, **how) -> RivalLab:
    lab = RivalLab(JUDGED, seed_sd=how.pop("seed_sd", 0.004), **how)
    lab.rates = rates or {}
    return lab


# --- C7 ---


@pytest.mark.parametrize(
    "rfn, word", [(0.45, "supported"), (0.39, "supported"), (0.28, "contradicted"), (0.352, "inconclusive")]
)
def test_c7_asks_rfn_to_stay_within_the_margin_of_the_rival(rfn, word):
    """Non-inferiority: a little worse is as good, whatever others do."""
    found = state_of_the_art.measure(lab_where({"SAT": 0.4, "RFN": rfn, "LGV": 0.9}, seed_sd=0.01))
    assert found.rivalry.rival == "SAT"
    assert interval(found.rivalry.against("SAT")).value == pytest.approx(rfn - 0.4, abs=0.015)
    assert found.verdict("C7").word == word
    assert "RFN − SAT" in str(found.verdict("C7"))


def test_the_rival_is_named_by_pilots_and_not_by_judged_seeds():
    lab = lab_where({"LGV": 0.9})
    assert pilots.best_rival(lab) == "SAT"
    assert lab.roles == {"validation"}


def test_a_failed_gate_leaves_nothing_to_judge():
    found = state_of_the_art.measure(lab_where(training=lambda name: 0.9))
    assert {found.verdict(claim).word for claim in state_of_the_art.CLAIMS} == {"not testable"}
    assert "cannot be tested" in found.headline("C7")


def test_surrogates_are_compared_on_the_seeds_that_both_have():
    found = state_of_the_art.measure(lab_where({"RFN": 0.4}, seed_sd=0.02)).rivalry
    assert found.curves["SAM & IR"].seeds == 1
    rfn, other = found.curves["RFN"].first(1), found.curves["SAM & IR"]
    assert found.against("SAM & IR").value == pytest.approx(rfn.at(rfn.end).value - other.at(other.end).value)


def test_the_closest_rival_is_named_beside_the_judged_one():
    found = state_of_the_art.measure(lab_where({"SAT": 0.2, "RFN": 0.4, "aligned": 0.39, "LGV": 0.3}, seed_sd=0.0))
    assert found.rivalry.closest() == "aligned"
    said = found.headline("C7").split("Not judged: ")
    assert "that of SAT" in said[0] and "that of LGV" in said[1] and "that of aligned" in said[1]


def test_ranks_follow_success_and_ties_share_them():
    found = state_of_the_art.measure(lab_where({"LGV": 0.5, "RFN": 0.4, "SAT": 0.2}, seed_sd=0.0)).rivalry
    ranks = found.ranks()
    assert (ranks["LGV"], ranks["RFN"], ranks["SAT"]) == (1, 2, len(ranks))
    assert ranks["SGD"] == ranks["SAM"] == pytest.approx(np.mean(range(3, len(ranks))))
    assert found.by_success()[:2] == ["LGV", "RFN"]
    assert sum(ranks.values()) == pytest.approx(sum(range(1, len(ranks) + 1)))


def test_surrogates_are_trained_as_their_publications_say():
    lab = lab_where()
    runs = state_of_the_art.arms(lab)
    sgd = runs["SGD"].specs[0]
    assert runs["RFN"].specs[0].minimizer.rho == 0.2
    assert runs["SAT"].specs[0].adversary.eps == 0.05
    assert {at.epochs for at in runs[state_of_the_art.STOPPED].asked} == {(11.0,)}
    for name, recipe in (("LGV", Collected), ("LGV-SWA", Averaged), ("More Bayesian", Drawn), ("aligned", type(None))):
        assert runs[name].specs[0].start == sgd
        assert isinstance(runs[name].question().recipe, recipe)
    assert runs["aligned"].specs[0].witness == features.standard_model(JUDGED)
    assert runs["SAM & IR"].specs[0].input_penalty == JUDGED.rivals.penalty
    table = state_of_the_art.contender_table(lab)
    assert table["used at epoch"][state_of_the_art.STOPPED] == "11 of 20"
    assert table["trained by"]["RFN"] == "SAM, ρ 0.2"


# --- C8 ---


@pytest.mark.parametrize("more, word", [(0.06, "supported"), (-0.06, "contradicted"), (0.0, "no effect")])
def test_c8_compares_with_the_better_of_technique_and_flatness(more, word):
    """MI on SGD beats RFN alone, DI on SGD and SGM on SGD do not: each is measured against the higher bar."""
    bars = {"MI": 0.45, "DI": 0.2, "SGM": 0.3}
    rates = {"RFN + none": 0.4, "SGD + none": 0.3} | {f"SGD + {t}": bar for t, bar in bars.items()}
    rates |= {f"RFN + {t}": max(bar, 0.4) + more for t, bar in bars.items()}
    found = state_of_the_art.measure(lab_where(rates))
    assert interval(found.grid.added()).value == pytest.approx(more, abs=0.012)
    assert found.verdict("C8").word == word


def test_over_the_better_is_the_smaller_difference():
    rates = {"RFN + none": 0.4, "SGD + MI": 0.45, "RFN + MI": 0.5, "SGD + DI": 0.2, "RFN + DI": 0.5}
    grid = state_of_the_art.measure(lab_where(rates)).grid
    assert grid.over_better("MI").value == grid.over_sgd("MI").value < grid.over_alone("MI").value
    assert grid.over_better("DI").value == grid.over_alone("DI").value < grid.over_sgd("DI").value
    mean = np.mean([grid.over_better(t).value for t in grid.techniques])
    assert grid.added().value == pytest.approx(mean)


def test_techniques_that_drive_the_mean_are_named():
    rates = {"RFN + none": 0.4, "SGD + none": 0.3, "SGD + MI": 0.2, "RFN + MI": 0.41, "SGD + DI": 0.2, "RFN + DI": 0.25}
    grid = replace(state_of_the_art.measure(lab_where(rates, seed_sd=0.0)).grid, planned=("MI", "DI"))
    mean = words.points(grid.over_better("MI"))
    assert grid.driven() == f"Further below than the margin: DI; without them the mean is {mean} points. "
    assert replace(grid, planned=("MI",)).driven() == ""


def test_what_a_technique_adds_is_counted_on_the_same_surrogate():
    rates = {"SAM + none": 0.2, "SAM + DI": 0.35, "RFN + none": 0.5, "RFN + DI": 0.4}
    added = state_of_the_art.measure(lab_where(rates)).grid.on_top()
    assert added["SAM"]["DI"].value == pytest.approx(0.15, abs=0.01)
    assert added["RFN"]["DI"].value == pytest.approx(-0.1, abs=0.01)
    assert "none" not in added["RFN"]


# --- the rest ---


def test_equal_robustness_is_read_between_the_epsilons_of_sat():
    """Independently: a straight line from SGD (10 % robust, 20 % success) to ε 0.1 (30 %, 40 %) is 30 % at 20 %."""
    rows = {("SAT", 0.0): (0.2, 0.1), ("SAT", 0.1): (0.4, 0.3), ("RFN", 0.0): (0.2, 0.1), ("RFN", 0.2): (0.35, 0.2),
            ("RFN", 0.4): (0.5, 0.9)}  # fmt: skip
    frame = pd.DataFrame.from_dict(rows, "index", columns=["success value", "robust value"])
    frame.index = pd.MultiIndex.from_tuples(frame.index)
    table = state_of_the_art.at_equal_robustness(frame.sort_index())
    assert list(table.index) == ["0.2", "0.4"]
    assert table["of SAT as robust"]["0.2"] == "30.0 %"
    assert table["RFN less SAT, points"]["0.2"] == "+5.0"
    assert table["of SAT as robust"]["0.4"] == "none is"


def test_the_trade_off_is_of_validation_images_and_of_what_is_complete():
    lab = lab_where()
    frame = state_of_the_art.trade_off(lab)
    assert set(frame.loc["SAT"].index) == {0.0, *(a.eps for a in JUDGED.rivals.slight)}
    assert set(frame.loc["RFN"].index) == {0.0, *JUDGED.rhos}
    assert lab.roles == {"validation"}
    names = tuple(f"pilot {arm.name}" for arm in state_of_the_art.traded(lab).values())
    nothing = state_of_the_art.trade_off(lab_where(missing=names))
    assert nothing.empty and state_of_the_art.at_equal_robustness(nothing).empty
    assert [text.get_text() for text in figures.trade_off(nothing).axes[0].texts] == ["not recorded yet"]


def test_nothing_is_looked_at_before_its_seeds_are_complete():
    for claim, name in (("C7", "RFN"), ("C7", "SAT"), ("C7", "pilot LGV"), ("C8", "RFN + MI"), ("C8", "SGD + none")):
        found = state_of_the_art.measure(lab_where(missing=(name,)))
        with pytest.raises(MissingRecord):
            found.verdict(claim)
    found = state_of_the_art.measure(lab_where(missing=("aligned", "SAM + DI")))
    assert "aligned" not in found.rivalry.curves
    assert ("SAM", "DI") not in found.grid.curves and ("SAM", "MI") in found.grid.curves


def test_neither_claim_waits_for_the_records_of_the_other_nor_for_what_is_secondary():
    beside = tuple(f"{kind} of {name}" for kind in ("sharpness", "robustness") for name in ("RFN", "SAT", "SGD"))
    found = state_of_the_art.measure(lab_where({"RFN": 0.4, "SAT": 0.4}, missing=("SGD + DI", "SAM + MI", *beside)))
    assert found.verdict("C7").word == "supported"
    said = studies.told(found, state_of_the_art.CLAIMS)
    assert "\nC7 supported: " in said and "C8 is not judged yet: DI on SGD and RFN: not recorded" in said
    assert list(found.grid.table().index) == ["MI", "SGM"], "what is there is shown"
    assert words.MISSING in found.rivalry.table().loc["RFN"].tolist()
    figures.techniques(found.grid, 0.03), figures.on_top(found.grid), figures.details(found.rivalry, "l2 0.25")
    plt.close("all")
    found = state_of_the_art.measure(lab_where(missing=("RFN", "LGV")))
    assert found.verdict("C8").word in claims.WORDS


def test_the_plan_begins_with_what_is_judged_and_ends_with_what_is_slow():
    lab = lab_where()
    asked = [*state_of_the_art.plan(lab), *state_of_the_art.later(lab)]
    main = state_of_the_art.arms(lab)
    assert asked[: len(main["SGD"].asked)] == main["SGD"].measurements(0)
    assert asked[-len(main["SAM & IR"].asked) :] == main["SAM & IR"].measurements()
    judged = [m for arm in state_of_the_art.grid(lab).values() for m in arm.measurements()]
    assert set(judged) | {m for arm in main.values() for m in arm.measurements()} <= set(asked)


def test_tables_speak_in_words_and_units():
    lab = lab_where({"RFN": 0.4})
    found, frame = state_of_the_art.measure(lab), state_of_the_art.trade_off(lab)
    shown = (found.rivalry.table(), found.grid.table(), found.grid.help(), state_of_the_art.contender_table(lab),
             state_of_the_art.at_equal_robustness(frame))  # fmt: skip
    said = (studies.told(found, state_of_the_art.CLAIMS), studies.follows(found, state_of_the_art.CLAIMS))
    text = "\n".join([*(t.to_string() for t in shown), *said])
    assert not any(word in text for word in ("nan", "None", "Collected(", "Minimizer(", "Step("))
    assert "that of SAT" in found.headline("C7")
    assert found.rivalry.table()["RFN less this, points"]["RFN"] == ""


def test_figures_show_every_surrogate_and_technique_with_its_interval():
    lab = lab_where({"RFN": 0.4})
    found = state_of_the_art.measure(lab)
    chart = figures.rivals(found.rivalry, 0.05)
    labels = chart.axes[0].get_yticklabels()
    assert [t.get_text() for t in labels] == [
        f"{n} ({found.rivalry.curves[n].seeds})" for n in found.rivalry.by_success()
    ]
    assert [t.get_text() for t in labels if t.get_fontweight() == "bold"] == ["SAT (5)"]
    assert len(chart.axes[0].containers) == len(labels) and len(chart.axes[1].containers) == len(labels) - 1
    assert len(figures.details(found.rivalry, state_of_the_art.WEAK).axes) == 3
    chart = figures.techniques(found.grid, 0.03)
    assert [t.get_text() for t in chart.axes[0].get_yticklabels()] == ["mean", *found.grid.techniques]
    assert len(chart.axes[1].containers) == 1 + len(found.grid.techniques)
    assert len(figures.on_top(found.grid).axes) == len(state_of_the_art.ADDED_TO)
    axis = figures.trade_off(state_of_the_art.trade_off(lab)).axes[0]
    assert {t.get_text() for t in axis.texts} == {"SGD", "0.03", "0.05", "0.1", "0.2", "0.4"}
    plt.close("all")


def test_end_to_end_on_a_tiny_scale(tmp_path):
    """What the plan lists, once computed, is all that replay reads; before the pilots, listing ends at a choice."""
    few = replace(TINY.sharpness, images=8, products=3, probes=2, deflate=1)
    study = replace(TINY.rivals, techniques=("MI",), draws=2)
    scale = replace(TINY, surrogates=(Arch("cnn", 4),), seeds=(0,), sharpness=few, rivals=study, rhos=(0.05, 0.2))
    robust = Target(Arch("cnn", 4), 1, "robust", adversary=Adversary("l2", 0.5, steps=1))
    inverted = replace(TINY.features, arch=Arch("cnn", 4), model_epochs=1)
    scale = replace(scale, features=inverted, targets=(*TINY.targets, robust))
    where = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w", "device": "cpu"}
    with pytest.raises(MissingRecord):
        next(state_of_the_art.plan(Lab(scale, "replay", **where)))
    lab = Lab(scale, "run", **where)
    pilot = by_seed([*pilots.arms(lab).values(), *pilots.rival_arms(lab).values()])
    for m in (*pilot, *state_of_the_art.plan(lab), *state_of_the_art.later(lab)):
        lab.measure(m)
    replay = Lab(scale, "replay", **where)
    found = state_of_the_art.measure(replay)
    assert set(found.rivalry.curves) == set(state_of_the_art.arms(replay))
    rfn, sgd = found.rivalry.curves["RFN"], found.rivalry.curves["SGD"]
    assert found.rivalry.against("SGD").value == pytest.approx(rfn.at(rfn.end).value - sgd.at(sgd.end).value)
    assert rfn.passes[0, -1] == pytest.approx(2 * sgd.passes[0, -1])
    lgv = found.rivalry.curves["LGV"]
    assert lgv.passes[0, -1] == pytest.approx(sgd.passes[0, -1] * (1 + lgv.end / scale.epochs))
    assert found.grid.rate("SGD", "none").value == pytest.approx(sgd.at(sgd.end).value)
    assert found.rivalry.robust["SGD"].hits[-1].clean_wrong.shape[1] == len(scale.targets_of("robust"))
    assert {found.verdict(claim).word for claim in state_of_the_art.CLAIMS} == {"not testable"}
    assert len(state_of_the_art.trade_off(replay)) == 2 + len(scale.rhos) + len(study.slight)
    assert replay.read(state_of_the_art.arms(replay)["SGD"], Transfer(scale.attack, "robust")).seeds == 1
