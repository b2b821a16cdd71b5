"""Questions Q7 and Q8 on curves of which it is known what is true; candidates that keep to their budget."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import pytest
from matplotlib import pyplot as plt
from synthetic import FakeLab
from test_state_of_the_art import JUDGED, RivalLab

from rfnlib import scales, studies
from rfnlib.intervals import interval
from rfnlib.lab import Lab, MissingRecord
from rfnlib.plots import better_surrogate as figures
from rfnlib.recipes import Collected, Drawn, members
from rfnlib.studies import better_surrogate as better
from rfnlib.studies import pilots

BEST = "late RFN, ensemble"


class SearchLab(RivalLab):
    """As there; pilots' candidates succeed as `search` says."""

    search: dict[str, float] = {}

    def read(self, arm, probe=None, role="test"):
        if role == "validation" and arm.name in self.search:
            self.success = lambda name, e: self.search[name]
            return FakeLab.read(self, arm, probe, role)
        return super().read(arm, probe, role)


def lab_where(rates=None, search=None, **how) -> SearchLab:
    lab = SearchLab(JUDGED, seed_sd=how.pop("seed_sd", 0.004), **how)
    lab.rates, lab.search = rates or {}, {BEST: 0.5} | (search or {})
    return lab


@pytest.fixture
def chosen(monkeypatch):
    """What pilots choose, where there are none."""
    for name, value in {"stopping_epoch": 53.0, "chosen_rho": 0.2, "best_rival": "SAT"}.items():
        monkeypatch.setattr(pilots, name, lambda lab, arch=None, value=value: value)
    monkeypatch.setattr(pilots, "chosen_slight", lambda lab: lab.scale.rivals.slight[-1])


@pytest.mark.parametrize("scale", [s for s in scales.SCALES.values() if s.name != "smoke"], ids=lambda s: s.name)
def test_no_candidate_costs_more_than_twice_sgd(scale, chosen, tmp_path, monkeypatch):
    """Counted anew from the runs: every step of each member takes the passes of its minimizer or its adversary."""
    monkeypatch.setattr(pilots, "stopping_epoch", lambda lab, arch=None: 0.53 * scale.epochs)
    lab = Lab(scale, "replay", records_dir=tmp_path)

    def passes(spec, epoch):
        a_step = (2 if spec.minimizer else 1) + (spec.adversary.steps if spec.adversary else 0)
        return a_step * epoch + (passes(spec.start, spec.start.epochs) if spec.start else 0)

    for name, c in better.candidates(lab, 0).items():
        others = members(c.recipe, c.spec)
        cost = passes(c.spec, c.epoch) + sum(passes(spec, epoch) for spec, epoch, _ in others)
        assert cost == pytest.approx(c.cost) and cost <= 2 * scale.epochs, name
        seeds = [c.spec.seed, *(spec.seed for spec, *_ in others)]
        assert len(set(seeds)) == len(seeds) and not {*seeds[1:]} & {*range(200)}, "no judged seed, no pilot"
        assert all(s.seed == spec.seed for spec, *_ in others for s in spec.lineage())


def test_an_ensemble_has_as_many_members_as_the_budget_allows(chosen, tmp_path):
    found = better.candidates(Lab("laptop", "replay", records_dir=tmp_path), 0)
    size = {name: 1 + len(members(c.recipe, c.spec)) for name, c in found.items()}
    assert size["SGD stopped early, ensemble"] == 200 // 53 == 3
    assert size["LGV from SGD stopped early, ensemble"] == 200 // (53 + 10) == 3
    assert size["late RFN, ensemble"] == 200 // (50 + 2 * 25) == 2
    mixed = found["SGD stopped early, ensemble of architectures"]
    archs = [spec.arch for spec, *_ in members(mixed.recipe, mixed.spec)]
    assert archs == ["vgg11", "resnet18"]


def test_the_winner_is_named_by_a_pilot_on_validation_targets():
    lab = lab_where({"winner": 0.1}, {"RFN, then SGD": 0.6})
    assert better.winner(lab) == "RFN, then SGD" and lab.roles == {"validation"}
    assert {arm.specs[0].seed for arm in better.search(lab).values()} == {100}
    ours = better.arms(lab)["winner"]
    assert [s.seed for s in ours.specs] == list(JUDGED.seeds) and ours.specs[0].minimizer is None


def test_rivals_go_on_from_rfn_as_they_do_from_sgd():
    found = better.rivals(lab_where())
    assert list(found) == ["SGD", *better.RIVALS]
    for name, recipe in (("LGV", Collected), ("More Bayesian", Drawn)):
        plain, flat = found[name], found[f"{name} from RFN"]
        assert [replace(s, start=None) for s in plain.specs] == [replace(s, start=None) for s in flat.specs]
        assert [s.start for s in plain.specs] == list(found["SGD"].specs)
        assert [s.start for s in flat.specs] == list(found["RFN"].specs)
        assert plain.asked == flat.asked and isinstance(flat.question().recipe, recipe)


@pytest.mark.parametrize("closest, word", [(0.40, "supported"), (0.56, "contradicted"), (0.50, "no effect")])
def test_q7_asks_the_winner_to_beat_each_rival(closest, word):
    found = better.measure(lab_where({"winner": 0.5, "LGV from RFN": closest}))
    assert found.verdict("Q7").word == word
    assert found.closest() == "LGV from RFN" and "LGV from RFN, the strongest rival" in found.headline("Q7")
    assert f"{BEST} − LGV from RFN" in str(found.verdict("Q7"))
    assert interval(found.over("RFN")).value == pytest.approx(0.2, abs=0.03)


def test_one_rival_of_whom_little_is_known_leaves_it_open():
    found = better.measure(lab_where({"winner": 0.5, "LGV": 0.45}, seed_sd=0.04))
    low, high = interval(found.over("LGV")).at(0.95)
    assert low < 0 < high and found.verdict("Q7").word == "inconclusive"


@pytest.mark.parametrize("winner, word", [(0.3, "supported"), (0.2, "contradicted")])
def test_q8_asks_it_to_stay_with_sgd_on_robust_targets(winner, word):
    found = better.measure(lab_where({"winner": winner}))
    assert found.verdict("Q8").word == word and "that of SGD" in found.headline("Q8")


def test_nothing_is_judged_before_the_search_and_all_seeds_are_complete():
    for name in ("pilot late RFN", "winner", "More Bayesian from RFN"):
        with pytest.raises(MissingRecord):
            better.measure(lab_where(missing=(name,)))


def test_tables_and_figures_show_all_who_take_part():
    found = better.measure(lab_where({"winner": 0.5}))
    assert list(found.search_table().index)[0] == BEST and len(found.search_table()) == len(found.searched) == 10
    table = found.table()
    assert list(table.index)[0] == BEST and set(better.RIVALS) < set(table.index)
    text = table.to_string() + found.search_table().to_string() + studies.told(found, better.CLAIMS)
    assert not any(word in text for word in ("nan", "None", "Together("))
    left, right, cost = figures.judged(found, 0.03).axes
    assert len(left.containers) == 2 * len(table) and len(right.containers) == len(table) - 1
    assert len(cost.patches) == len(table)
    assert len(figures.search(found).axes[0].containers) == 10
    plt.close("all")
