"""The statistics that judge, on made-up outcomes whose truth is known."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from rfnlib import claims, scales
from rfnlib.claims import Finding, announce, table, verdict
from rfnlib.findings import judge_decay_peak
from rfnlib.intervals import Estimate
from rfnlib.series import Series
from rfnlib.transfer import Hits

EPOCHS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def series(name, rates, seeds=3, images=150, draw=0):
    """A run whose success rate at each epoch is `rates`; the same images are easy at every epoch."""
    random = np.random.default_rng(draw)
    ease = random.uniform(size=(1, images, 1)) + random.normal(scale=0.01, size=(seeds, 1, 1))
    spec = scales.SMOKE.surrogate(scales.SMOKE.schedules()["constant"], 0)
    hits = []
    for rate in rates:
        noise = random.normal(scale=0.05, size=(seeds, images, 2))
        adv = ease + noise < rate
        hits.append(Hits(adv, np.zeros((images, 2), bool), np.zeros((seeds, images), bool)))
    return Series(name, spec, EPOCHS, hits, np.zeros((seeds, len(rates))))


def runs(peak, end, **options):
    flat = [0.3] * 6
    peaked = {d: [0.3] * d + [peak] + list(np.linspace(peak, end, 6 - d))[1:] for d in (2, 4)}
    return {
        "constant": series("constant", flat, **options),
        **{f"decay at {d}": series(f"decay at {d}", rates, **options) for d, rates in peaked.items()},
    }


def test_a_clear_peak_at_every_decay_holds():
    assert verdict(judge_decay_peak(runs(0.6, 0.4), (2, 4), 1.0)) == "holds"


def test_a_fall_at_the_decay_does_not_hold():
    assert verdict(judge_decay_peak(runs(0.1, 0.1), (2, 4), 1.0)) == "does not hold"


def test_a_plateau_is_inconclusive():
    assert verdict(judge_decay_peak(runs(0.3, 0.3), (2, 4), 1.0)) == "inconclusive"


def test_a_rise_without_a_later_decline_is_no_peak():
    assert verdict(judge_decay_peak(runs(0.6, 0.6), (2, 4), 1.0)) != "holds"


def test_one_seed_is_inconclusive_however_clear():
    assert verdict(judge_decay_peak(runs(0.6, 0.4, seeds=1), (2, 4), 1.0)) == "inconclusive"


def test_each_comparison_is_the_difference_it_names():
    made = runs(0.6, 0.4)
    found = judge_decay_peak(made, (2,), 1.0)
    rate = {name: [h.adv_wrong.mean() for h in s.hits] for name, s in made.items()}
    run, constant = rate["decay at 2"], rate["constant"]
    expected = [run[2] - run[1], run[2] - constant[2], run[2] - run[5]]
    assert [f.difference.value for f in found] == pytest.approx(expected)
    assert all(f.guarded.low < f.difference.low and f.guarded.high > f.difference.high for f in found)


def test_the_table_names_the_sign_of_each_interval():
    def finding(low, high):
        middle = (low + high) / 2
        estimate = Estimate(middle, middle, (high - low) / 2 / stats.t.ppf(0.975, 5), 5, 3, 100)
        return Finding("a run", f"{low}", estimate, estimate)

    shown = table([finding(0.01, 0.03), finding(-0.02, 0.02), finding(-0.3, -0.1)])
    assert list(shown["sign"]) == ["positive", "open", "negative"]
    assert shown["95 % interval"].iloc[0] == "+1.0 to +3.0"


@dataclasses.dataclass
class FakeLab:
    mode: str
    seeds: list
    scale: scales.Scale = scales.LAPTOP


def test_a_recorded_verdict_that_the_records_contradict_raises_in_replay(monkeypatch):
    recorded = dataclasses.replace(claims.CLAIMS["C2"], recorded=(("laptop", "holds"),))
    monkeypatch.setitem(claims.CLAIMS, "C2", recorded)
    seeds = list(scales.LAPTOP.seeds)
    peak, plateau = (judge_decay_peak(runs(top, end), (2, 4), 1.0) for top, end in ((0.6, 0.4), (0.3, 0.3)))
    assert announce("C2", FakeLab("replay", seeds), peak) == "C2: holds (laptop scale, 3 seeds)"
    with pytest.raises(claims.ClaimChanged, match="recorded as 'holds', but its records say 'inconclusive'"):
        announce("C2", FakeLab("replay", seeds), plateau)
    # A fresh computation, or other seeds, may say what they find.
    assert announce("C2", FakeLab("run", seeds), plateau).startswith("C2: inconclusive")
    single = judge_decay_peak(runs(0.6, 0.4, seeds=1), (2, 4), 1.0)
    assert announce("C2", FakeLab("replay", [0]), single) == "C2: inconclusive (laptop scale, 1 seed)"


def test_claims_are_numbered_as_in_the_paper_and_verdicts_are_words_of_the_vocabulary():
    assert list(claims.CLAIMS) == [f"C{i}" for i in range(1, 9)]
    words = {v for c in claims.CLAIMS.values() for _, v in c.recorded}
    assert words <= set(claims.VERDICTS)
