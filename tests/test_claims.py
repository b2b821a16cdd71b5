"""The statistics that judge, on made-up outcomes whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rfnlib import claims, studies
from rfnlib.claims import Gate
from rfnlib.intervals import Estimate, Influence, interval, over_seeds, share

quick = settings(max_examples=60, deadline=None)


CLAIMS = studies.every_claim()


def judge(claim: str, *primary, **options) -> claims.Verdict:
    return claims.judge(CLAIMS[claim], *primary, **options)


def test_claims_are_numbered_as_in_the_paper():
    assert list(CLAIMS) == [f"C{i}" for i in range(1, 9)]


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_verdict_has_a_sentence_of_its_own_and_says_what_follows(claim):
    made = judge(claim, [estimate(0.01, 0.02)] * len(CLAIMS[claim].primary))
    cases = claims.WORDS if not CLAIMS[claim].non_inferiority else [w for w in claims.WORDS if w != "no effect"]
    said = [dataclasses.replace(made, word=word) for word in cases]
    sentences = [verdict.answer for verdict in said]
    assert len(set(sentences)) == len(cases) and all(s[0].isupper() and not set("{|}") & set(s) for s in sentences)
    assert sentences[-1].startswith("Whether ") and sentences[-1].endswith("cannot be tested at this scale")
    follows = [verdict.follows for verdict in said]
    assert all(follows[-2:]) and (claim in ("C5", "C6") or all(follows) and len(set(follows)) == len(cases))


def test_a_sentence_is_built_from_the_claim_s_own_words():
    verdict = judge("C4", estimate(-0.01, 0.10))  # .045 ± .055; with 6 and 7 seeds ± .0465 and ± .0410
    for word, sentence in {
        "supported": "RFN beats SGD stopped early",
        "contradicted": "RFN loses to SGD stopped early",
        "no effect": "RFN does as well as SGD stopped early",
        "inconclusive": "Whether RFN beats SGD stopped early is not decided by 5 seeds (about 7 like them would)",
    }.items():
        assert dataclasses.replace(verdict, word=word).answer == sentence


# ------------------------------------------------------------------------------------------ the rule


def estimate(low: float, high: float, freedom: float = 4.0, **counts) -> Estimate:
    """The estimate whose 95 % interval is from `low` to `high`."""
    middle, half = (low + high) / 2, (high - low) / 2
    based = {"seeds": 5, "images": 512, "targets": 8} | counts
    return Estimate(middle, middle, half / stats.t.ppf(0.975, freedom), freedom, **based)


def word(claim, *intervals, **options) -> str:
    made = [estimate(*i) for i in intervals]
    return judge(claim, made[0] if len(made) == 1 else made, **options).word


E = 1e-6  # just off a boundary

# Each case lies beside a boundary of the rule, so that the edit that it names would change its word.
# The 90 % interval of 4 degrees of freedom is .7678 times as wide as that of 95 %.
NINETY = float(stats.t.ppf(0.95, 4) / stats.t.ppf(0.975, 4))
BONFERRONI = float(stats.t.ppf(0.9875, 4) / stats.t.ppf(0.975, 4))
CASES = {
    "above 0": ("C4", [(E, 0.08)], "supported"),
    "value > 0 in place of low > 0": ("C4", [(-E, 0.08)], "inconclusive"),
    "90 % in place of 95 %, above": ("C4", [(-0.001, 0.08)], "inconclusive"),
    "99 % in place of 95 %, above": ("C4", [(0.001, 0.08)], "supported"),
    "below 0": ("C4", [(-0.08, -E)], "contradicted"),
    "value < 0 in place of high < 0": ("C4", [(-0.08, E)], "inconclusive"),
    "90 % in place of 95 %, below": ("C4", [(-0.08, 0.001)], "inconclusive"),
    "abs": ("C5", [(-0.09, -0.01)], "contradicted"),
    "supported goes before no effect": ("C4", [(0.001, 0.02)], "supported"),
    "contradicted goes before no effect": ("C4", [(-0.02, -0.001)], "contradicted"),
    "95 % in place of 90 % for no effect": ("C4", [(-0.031, 0.031)], "no effect"),
    "just within the margin": ("C4", [(-(0.03 - E) / NINETY, (0.03 - E) / NINETY)], "no effect"),
    "just outside of the margin": ("C4", [(-(0.03 + E) / NINETY, (0.03 + E) / NINETY)], "inconclusive"),
    "the margin's lower side alone": ("C4", [(-0.001, 0.045)], "inconclusive"),
    "the margin's upper side alone": ("C4", [(-0.045, 0.001)], "inconclusive"),
    "another claim's margin": ("C1", [(-0.029, 0.029)], "inconclusive"),
    "a wide interval around 0": ("C4", [(-0.2, 0.2)], "inconclusive"),
    "a margin that is a factor": ("C3", [(-0.17, 0.17)], "no effect"),
    "a margin that is not log 1.15": ("C3", [(-0.19, 0.19)], "inconclusive"),
    "non-inferior: above −margin": ("C7", [(-0.05 + E, 0.01)], "supported"),
    "non-inferior: margin with the wrong sign": ("C7", [(0.001, 0.06)], "supported"),
    "non-inferior: not above −margin": ("C7", [(-0.05 - E, 0.01)], "inconclusive"),
    "non-inferior: below 0 is not below −margin": ("C7", [(-0.07, -0.01)], "inconclusive"),
    "non-inferior: below −margin": ("C7", [(-0.12, -0.05 - E)], "contradicted"),
    "non-inferior: no effect is no verdict of it": ("C7", [(-0.051, 0.051)], "inconclusive"),
    "two: both above 0": ("C2", [(E, 0.08), (E, 0.05)], "supported"),
    "two: any in place of all, first": ("C2", [(-E, 0.08), (0.02, 0.05)], "inconclusive"),
    "two: any in place of all, second": ("C2", [(0.02, 0.05), (-E, 0.08)], "inconclusive"),
    "two: one below 0, by Holm": ("C2", [(-0.09, -0.03), (-0.2, 0.2)], "contradicted"),
    "two: one below 0, but not at the level for two": ("C2", [(-0.08, -E), (-0.2, 0.2)], "inconclusive"),
    "two: Holm's second step, not Bonferroni": ("C2", [(0.05, 0.09), (-0.08, -E)], "contradicted"),
    "two: the average in place of each": ("C2", [(0.2, 0.3), (-0.08, -0.03)], "contradicted"),
    "two: one within the margin": (
        "C2",
        [(0.05, 0.09), (-(0.02 - E) / BONFERRONI, (0.02 - E) / BONFERRONI)],
        "no effect",
    ),
    "two: one within the margin, but not at the level for two": ("C2", [(0.05, 0.09), (-0.02, 0.02)], "inconclusive"),
    "two: one within, the other maybe far below": ("C2", [(-0.2, 0.2), (-0.01, 0.01)], "inconclusive"),
}


@pytest.mark.parametrize("claim, intervals, expected", CASES.values(), ids=CASES)
def test_the_word_at_each_boundary(claim, intervals, expected):
    assert word(claim, *intervals) == expected


@pytest.mark.parametrize("claim, intervals, expected", CASES.values(), ids=CASES)
def test_a_failed_gate_goes_before_every_word(claim, intervals, expected):
    passed, failed = Gate("plateau", True, "0.4"), Gate("fit", False, ".91, not .95")
    assert word(claim, *intervals, gates=[passed]) == expected
    for gates in ([failed], [passed, failed], [failed, passed]):
        assert word(claim, *intervals, gates=gates) == "not testable"


@pytest.mark.parametrize("claim, intervals, expected", CASES.values(), ids=CASES)
def test_one_seed_is_never_more_than_inconclusive(claim, intervals, expected):
    parts = [estimate(*i, seeds=1) for i in intervals]
    verdict = judge(claim, parts)
    assert (verdict.word, verdict.p) == ("inconclusive", 1.0)
    mixed = judge(claim, [*parts[:-1], estimate(*intervals[-1], seeds=2)])
    assert mixed.word == (expected if len(parts) == 1 else "inconclusive"), "the least of the seeds counts"


@quick
@given(st.floats(-0.1, 0.1), st.floats(0.001, 0.1), st.sampled_from([2.0, 4.0, 30.0]))
def test_a_difference_turned_round_has_the_word_turned_round(middle, half, freedom):
    turned = {"supported": "contradicted", "contradicted": "supported"}
    there, back = (judge("C4", estimate(s * middle - half, s * middle + half, freedom)) for s in (1, -1))
    assert back.word == turned.get(there.word, there.word) and back.p == pytest.approx(there.p)


@quick
@given(st.floats(-0.1, 0.1), st.floats(0.001, 0.1), st.sampled_from([2.0, 4.0, 30.0]))
def test_the_p_value_of_one_difference_is_that_of_its_t_statistic(middle, half, freedom):
    verdict = judge("C4", estimate(middle - half, middle + half, freedom))
    t = middle / (half / stats.t.ppf(0.975, freedom))
    assert verdict.p == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    if abs(abs(middle) - half) > 1e-9:
        assert (verdict.p < 0.05) == (verdict.word in ("supported", "contradicted"))


def test_the_p_value_of_two_differences_is_that_of_what_decides():
    def p(low, high):
        return judge("C4", estimate(low, high)).p

    both = judge("C2", [estimate(0.03, 0.08), estimate(0.01, 0.09)])
    assert both.p == pytest.approx(max(p(0.03, 0.08), p(0.01, 0.09)))
    one_negative = judge("C2", [estimate(-0.08, -0.04), estimate(-0.2, 0.2)])
    assert one_negative.p == pytest.approx(2 * p(-0.08, -0.04))


def test_the_p_value_of_non_inferiority_is_against_the_margin():
    assert judge("C7", estimate(-0.03, 0.01)).p == pytest.approx(judge("C4", estimate(0.02, 0.06)).p)


def test_an_influence_is_judged_by_its_interval():
    random = np.random.default_rng(0)
    better, worse = (share(random.random((5, 400)) < p) for p in (0.5, 0.3))
    verdict = judge("C4", better - worse)
    assert verdict.word == "supported" and verdict.estimates == (interval(better - worse),)
    assert judge("C4", worse - better).word == "contradicted"


@pytest.mark.parametrize("parts", [[math.nan, 0.1], [0.1, math.nan], [math.nan, -0.1], [math.nan] * 2], ids=str)
def test_what_is_not_a_number_decides_nothing_in_any_place(parts):
    def made(value):
        return Estimate(value, value, value if math.isnan(value) else 0.01, 4, 5)

    verdict = judge("C2", [made(v) for v in parts])
    assert verdict.word == ("contradicted" if -0.1 in parts else "inconclusive")
    assert 0 <= verdict.p <= 1
    assert judge("C3", over_seeds(np.array([0.1, math.nan, 0.2]))).word == "inconclusive"


def test_what_cannot_be_judged_is_refused_in_one_sentence():
    one = estimate(0.01, 0.02)
    for primary in (one, [one] * 3, []):
        with pytest.raises(ValueError, match=r"C2 is judged by so many differences: 2 \(after the decay"):
            judge("C2", primary)
    with pytest.raises(ValueError, match="none only if a gate failed"):
        judge("C4", None, gates=[Gate("fit", True, ".97")])
    with pytest.raises(ValueError, match="not 1 with 2 names"):
        judge("C4", one, what=["a", "b"])


def test_the_gate_that_a_difference_is_positive_asks_for_95_percent_and_two_seeds():
    assert claims.positive("help", estimate(E, 0.05)) == Gate("help", True, "+2.5 points, 95 % 0.0 to 5.0")
    assert not claims.positive("help", estimate(-0.001, 0.05)).passed, "90 % would pass"
    assert claims.positive("help", estimate(0.001, 0.05)).passed, "99 % would not"
    assert not claims.positive("help", estimate(0.01, 0.05, seeds=1)).passed
    assert claims.positive("help", estimate(-0.05, -0.01)) == Gate("help", False, "−3.0 points, 95 % −5.0 to −1.0")


# ------------------------------------------------------------------------------------------- Holm


def verdicts_with(ps):
    made = judge("C4", estimate(0.001, 0.08))
    return [dataclasses.replace(made, claim=CLAIMS[f"C{i}"], p=p) for i, p in enumerate(ps, 1)]


def corrected(ps, family=8):
    return [v.holm for v in claims.holm(verdicts_with(ps), family)]


def test_holm_against_a_worked_example():
    """Each of m = 4: .005·4, .01·3, then .03·2 and .04·1, which may not be less than the one before."""
    assert corrected([0.01, 0.04, 0.03, 0.005], family=4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected([0.5, 0.6], family=2) == pytest.approx([1, 1])
    assert corrected([0.01]) == pytest.approx([0.08]), "eight claims, though one is judged so far"


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps, level):
    rejected = set()
    for step, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if (len(ps) - step) * ps[i] >= level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(corrected(ps, family=len(ps))) if p < level} == rejected


@quick
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_claim_judged_later_does_not_make_holms_values_larger(ps):
    assert all(a >= b - 1e-12 for a, b in zip(corrected(ps[:-1]), corrected(ps), strict=False))


def test_holm_needs_different_claims_and_no_more_than_the_family():
    once = judge("C4", estimate(0.001, 0.08))
    for verdicts, family in (([once, once], 8), (verdicts_with([0.1] * 3), 2)):
        with pytest.raises(ValueError, match=f"over {family} different claims"):
            claims.holm(verdicts, family)


def test_only_words_that_rest_on_a_p_value_can_fail_holms_correction():
    for interval_, survives in {(0.001, 0.08): False, (0.01, 0.012): True, (-0.08, -0.001): False,
                                (-0.01, 0.01): True, (-0.1, 0.2): True}.items():  # fmt: skip
        (verdict,) = claims.holm([judge("C4", estimate(*interval_))], 8)
        assert verdict.survives == survives
        assert ("which it does not survive" in str(verdict)) != survives
    at = [dataclasses.replace(judge("C4", estimate(0.001, 0.08)), holm=p).survives for p in (0.049, 0.05, 0.09)]
    assert at == [True, False, False], "at 5 %, like the words"


# ----------------------------------------------------------------------------------------- lines


def test_an_undecided_claim_says_how_many_seeds_would_decide_it():
    values = np.array([0.02, 0.05, 0.0, 0.06, 0.01])  # mean 2.8 points, error 1.16 points, t(4) = 2.78
    verdict = judge("C4", over_seeds(values))
    assert verdict.word == "inconclusive" and verdict.seeds_that_decide() == 6
    assert "is not decided by 5 seeds (about 6 like them would)" in verdict.answer
    error = values.std(ddof=1)
    assert 0.028 < stats.t.ppf(0.975, 4) * error / 5**0.5 and 0.028 > stats.t.ppf(0.975, 5) * error / 6**0.5
    assert judge("C4", over_seeds(values[:1])).seeds_that_decide() is None
    assert judge("C4", estimate(-0.5, 0.56)).seeds_that_decide(most=10) is None


def test_a_verdict_is_one_line():
    verdict = dataclasses.replace(judge("C4", estimate(0.013, 0.071)), holm=0.012)
    expected = "5 seeds, 8 targets, 512 images; margin 3"
    assert str(verdict) == (
        f"C4 supported: RFN − early stopping +4.2 points (95 % 1.3 to 7.1; {expected}; Holm p .012)"
    )
    before = f"margin 3; p {verdict.p:.3f} before Holm's correction)".replace("p 0", "p ")
    assert str(dataclasses.replace(verdict, holm=None)).endswith(before)
    assert str(dataclasses.replace(verdict, holm=0.112)).endswith("Holm p .112, which it does not survive)")
    assert str(dataclasses.replace(verdict, holm=1e-5)).endswith("Holm p < .001)")
    assert str(dataclasses.replace(verdict, holm=1.0)).endswith("Holm p 1, which it does not survive)")


def test_the_line_of_each_kind_of_claim():
    two = judge("C2", [estimate(0.01, 0.03), estimate(-0.004, 0.05, images=500, seeds=4)])
    assert str(two).startswith(
        "C2 inconclusive: after the decay − constant rate +2.0 points (95 % 1.0 to 3.0), "
        "after the decay − at the end +2.3 points (95 % −0.4 to 5.0; 4 seeds, 8 targets, 500 images; margin 2; p ."
    )
    factor = judge("C3", over_seeds(np.log([1.2, 1.3, 1.4])))
    assert str(factor).startswith("C3 supported: λ₁ at a constant rate / after the decay ×1.30 (95 % 1.07 to 1.57; ")
    assert "; 3 seeds; margin ×1.15; p " in str(factor)
    assert str(judge("C3", over_seeds(np.log([1.5])))).endswith("×1.50 (95 % 0.00 to ∞; 1 seed; margin ×1.15; p 1)")
    assert " −2.0 points a doubling (95 % −4.0 to 0.0; " in str(judge("C6", estimate(-0.04, -0.0001)))
    named = judge("C7", estimate(-0.03, 0.01), what="RFN − LGV")
    assert str(named).startswith("C7 supported: RFN − LGV −1.0 points (95 % −3.0 to 1.0; 5 seeds")
    assert "; non-inferiority margin 5; p " in str(named)


def test_the_line_of_what_is_not_testable_names_each_failed_gate_and_its_figure():
    fit, plateau = Gate("fit", False, "accuracy .91, not .95 or more"), Gate("plateau", True, "0.4")
    gates = [fit, plateau, Gate("enough", False, "9 %")]
    failed = "gate 'fit' failed (accuracy .91, not .95 or more); gate 'enough' failed (9 %)"
    assert str(judge("C4", None, gates=gates)) == f"C4 not testable: {failed}"
    assert str(judge("C4", estimate(0.013, 0.071), gates=gates)) == (
        f"C4 not testable: {failed}; RFN − early stopping +4.2 points "
        "(95 % 1.3 to 7.1; 5 seeds, 8 targets, 512 images; margin 3)"
    )


def test_every_word_that_is_reached_is_of_the_vocabulary():
    assert {w for _, _, w in CASES.values()} | {"not testable"} == set(claims.WORDS)


# ------------------------------------------------------------------------------- size and power

# What the rule is to stand, until the pilots give their own: a success rate of 25 % on eight targets; seeds whose
# paired differences have an SD of 2 points; outcomes of one image as much alike as those of CIFAR-10's seem to be.
RATE, SEEDS, IMAGES, TARGETS, SEED_SD = 0.25, 5, 500, 8, 0.02
IMAGE, IMAGE_RUN, IMAGE_TARGET = 0.4, 0.05, 0.25  # shares of the variance of the score behind a hit
BATCH = 25


def words_at(effect: float, repeats: int, seed_sd: float = SEED_SD) -> dict[str, float]:
    """How often each word is reached where the second run's success is higher by `effect`, everything else alike.

    A hit is a positive score: the sum of a threshold and normal effects of the image, the image in this run, the
    image for this target, the seed, and a rest.
    """
    random = np.random.default_rng(11)
    density = stats.norm.pdf(stats.norm.ppf(RATE))
    a_seed = seed_sd / math.sqrt(2) / density  # one run's, so that differences have seed_sd
    rest = math.sqrt(1 - IMAGE - IMAGE_RUN - IMAGE_TARGET - a_seed**2)
    threshold = stats.norm.ppf([RATE, RATE + effect]).reshape(2, 1, 1, 1)

    def normal(variance, *shape):
        return np.float32(math.sqrt(variance)) * random.standard_normal((BATCH, *shape), dtype=np.float32)

    reached = dict.fromkeys(claims.WORDS, 0)
    for _ in range(repeats // BATCH):
        # Given these, hits are independent: success over targets is their mean.
        score = normal(IMAGE, 1, 1, IMAGES, 1) + normal(IMAGE_RUN, 2, 1, IMAGES, 1)
        score = score + normal(IMAGE_TARGET, 1, 1, IMAGES, TARGETS) + normal(a_seed**2, 2, SEEDS, 1, 1)
        score = score + np.float32(rest) * random.standard_normal(score.shape, dtype=np.float32)
        rates = (score + threshold.astype(np.float32) > 0).mean(-1)
        for first, second in rates:
            pair = [Influence(r.mean(), r - r.mean(), np.ones(IMAGES, bool), (0.0, 1.0)) for r in (second, first)]
            reached[judge("C4", pair[0] - pair[1]).word] += 1
    return {w: n / (repeats // BATCH * BATCH) for w, n in reached.items()}


def test_without_an_effect_the_rule_says_so_and_seldom_anything_else():
    reached = words_at(0.0, 2000)
    assert reached["supported"] <= 0.03 and reached["contradicted"] <= 0.03
    assert 0.5 <= reached["no effect"] <= 0.7


def test_an_effect_of_five_points_is_supported_at_five_seeds():
    reached = words_at(0.05, 500)
    assert reached["supported"] >= 0.8
    assert reached["contradicted"] == 0 and reached["no effect"] <= 0.02
