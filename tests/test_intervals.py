"""Intervals against textbook formulas, plain loops and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from scipy import stats

from rfnlib.intervals import Estimate, Influence, average, combine, interval, over_seeds, share, slope
from rfnlib.transfer import Hits, influence

quick = settings(max_examples=60, deadline=None)


def table(values) -> Influence:
    """The mean of a two-way table of numbers, (S, N), as a rate."""
    values = np.asarray(values, float)
    return Influence(float(values.mean()), values - values.mean(), np.ones(values.shape[1], bool))


def width(estimate) -> float:
    return estimate.high - estimate.low


def slow_interval(values, confidence: float = 0.95) -> tuple[float, float]:
    """Two-way random effects without replication, by sums of squares and plain loops."""
    s, n = len(values), len(values[0])
    grand = sum(map(sum, values)) / (s * n)
    rows = [sum(row) / n for row in values]
    columns = [sum(row[j] for row in values) / s for j in range(n)]
    ss_rows = n * sum((r - grand) ** 2 for r in rows)
    ss_columns = s * sum((c - grand) ** 2 for c in columns)
    ss_total = sum((v - grand) ** 2 for row in values for v in row)
    df = s - 1, n - 1, (s - 1) * (n - 1)
    a, b, e = ss_rows / df[0], ss_columns / df[1], (ss_total - ss_rows - ss_columns) / df[2]
    estimate = max(a + b - e, a, b)
    freedom = max(estimate**2 / (a**2 / df[0] + b**2 / df[1] + e**2 / df[2]), 1)
    half = stats.t.ppf(0.5 + confidence / 2, freedom) * math.sqrt(estimate / (s * n))
    return grand - half, grand + half


@quick
@given(
    st.tuples(st.integers(2, 5), st.integers(2, 9)).flatmap(
        lambda shape: some.arrays(float, shape, elements=st.integers(-20, 20).map(float))
    ),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_an_interval_is_that_of_the_two_way_table(values, confidence):
    if (values == values[0, 0]).all():
        return  # see below: 0/0 in the textbook
    got = interval(table(values))
    assert got.at(confidence) == pytest.approx(slow_interval(values.tolist(), confidence), abs=1e-9)
    assert (got.seeds, got.images) == values.shape


@quick
@given(some.arrays(float, st.integers(2, 30), elements=st.floats(-10, 10, width=16)))
def test_with_one_seed_an_interval_is_the_t_interval_of_a_mean(values):
    got = interval(table(values[None]))
    se = values.std(ddof=1) / math.sqrt(len(values))
    half = stats.t(len(values) - 1).ppf(0.95) * se
    assert got.at(0.9) == pytest.approx((values.mean() - half, values.mean() + half))
    assert got.seeds == 1


def test_more_confidence_needs_a_wider_interval_around_the_same_value():
    rate = interval(share(np.random.default_rng(0).random((3, 80)) < 0.3))
    wide, narrow = rate.at(0.99), rate.at(0.9)
    assert wide[0] < rate.low < narrow[0] < rate.value < narrow[1] < rate.high < wide[1]


def test_one_image_tells_nothing_of_how_images_vary():
    for s in (1, 3):
        with pytest.raises(ValueError, match="at least 2"):
            interval(table(np.zeros((s, 1))))


def test_seeds_widen_an_interval_that_images_alone_would_leave_narrow():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, 500))
    luck = np.array([[-0.5], [0.0], [0.5]])
    assert width(interval(table(images + luck))) > 3 * width(interval(table(images + 0 * luck)))


def covered(draw, truth: float, repeats: int = 400) -> float:
    inside = 0
    for seed in range(repeats):
        got = draw(np.random.default_rng([1, seed]))
        inside += got.low <= truth <= got.high
    return inside / repeats


# (seed, image, rest): which source of variation leads.
@pytest.mark.parametrize("sd", [(1, 1, 1), (0.3, 3, 1), (0.05, 1, 2), (0, 1, 1), (0, 0, 1)], ids=str)
@pytest.mark.parametrize("s", [3, 5])
def test_intervals_cover_the_mean_of_crossed_random_effects(s, sd):
    def draw(rng):
        seed, image, rest = sd
        values = seed * rng.normal(size=(s, 1)) + image * rng.normal(size=(1, 100))
        return interval(table(2 + values + rest * rng.normal(size=(s, 100))))

    assert covered(draw, 2.0) >= 0.9


def test_a_difference_is_narrower_than_rates_compared_as_if_independent():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(3, 1)) + rng.normal(size=(1, 200))
    a, b = (table(shared + shift + 0.2 * rng.normal(size=(3, 200))) for shift in (0.5, 0.0))
    paired = interval(a - b)
    assert paired.value == pytest.approx(a.value - b.value)
    apart = math.hypot(width(interval(a)), width(interval(b)))
    assert width(paired) < apart / 3
    assert paired.low > 0 and interval(b - a).high == pytest.approx(-paired.low)


def test_a_difference_of_rates_from_other_images_or_seeds_is_refused():
    for shape in ((2, 9), (3, 8)):
        with pytest.raises(ValueError, match="same seeds, images and targets"):
            table(np.zeros((3, 9))) - table(np.zeros(shape))


# ------------------------------------------------------------------------------------ combinations


def rates_on_a_grid(k=4, s=3, n=60):
    rng = np.random.default_rng(k)
    return [share(rng.random((s, n)) < p) for p in np.linspace(0.2, 0.6, k)]


def test_the_average_of_rates_is_theirs_and_needs_the_same_seeds_and_images():
    rates = rates_on_a_grid()
    mean = average(rates)
    assert mean.value == pytest.approx(np.mean([r.value for r in rates]))
    assert np.allclose(mean.z, np.mean([r.z for r in rates], axis=0)) and mean.bounds == pytest.approx((0, 1))
    for unlike in ([rates[0], share(np.ones((1, 60), bool))], []):
        with pytest.raises(ValueError, match="need the same seeds, images and targets"):
            average(unlike)


def test_a_slope_is_that_of_a_fitted_line_at_each_seed_and_image():
    rates, x = rates_on_a_grid(), [-3.0, -2.0, -1.0, 1.0]
    found = slope(rates, x)
    assert found.value == pytest.approx(np.polyfit(x, [r.value for r in rates], 1)[0])
    by_observation = np.polyfit(x, np.stack([r.z.ravel() for r in rates]), 1)[0]
    assert np.allclose(found.z.ravel(), by_observation)
    assert found.bounds[0] == pytest.approx(-found.bounds[1])
    with pytest.raises(ValueError, match="at least two different x"):
        slope(rates, [1.0] * 4)


def test_the_bounds_of_a_combination_are_those_that_rates_can_reach():
    a, b, c, d = rates_on_a_grid()
    assert (a - b).bounds == (-1, 1)
    assert ((a - b) - (c - d)).bounds == (-2, 2)
    assert average([a - b, c - d]).bounds == (-1, 1)
    assert combine([a, b], [0.5, -0.25]).bounds == (-0.25, 0.5)


def test_images_that_count_for_either_rate_count_for_their_difference():
    z = np.zeros((2, 4))
    a, b = Influence(0.5, z, np.array([1, 1, 0, 0], bool)), Influence(0.5, z, np.array([1, 0, 1, 0], bool))
    assert (a - b).images == 3


# --------------------------------------------------------------------------- other levels and p-values


def test_over_seeds_is_students_interval_and_the_whole_line_of_one_seed():
    values = np.array([0.1, 0.3, 0.2, 0.7])
    got, expected = over_seeds(values), stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert got.at(0.9) == pytest.approx(tuple(expected)) and got.seeds == 4
    one = over_seeds(values[:1])
    assert (one.low, one.value, one.high) == (-math.inf, 0.1, math.inf) and one.p_above() == 0.5


@quick
@given(some.arrays(float, st.integers(2, 8), elements=st.floats(-3, 3, width=16)), st.floats(-1, 1))
def test_p_values_are_those_of_students_test_and_agree_with_the_interval(values, null):
    if np.ptp(values) < 1e-3:
        return
    got = over_seeds(values)
    assert got.p_above(null) == pytest.approx(stats.ttest_1samp(values, null, alternative="greater").pvalue)
    assert got.p_below(null) == pytest.approx(stats.ttest_1samp(values, null, alternative="less").pvalue)
    for confidence in (0.8, 0.9, 0.95, 0.99):
        low, high = got.at(confidence)
        assert (got.p_above(null) < (1 - confidence) / 2) == (low > null)
        assert (got.p_below(null) < (1 - confidence) / 2) == (high < null)


def test_p_values_are_about_the_middle_of_the_interval():
    off = Estimate(0.0, 0.1, 0.05, 6.0, 5)
    assert (off.p_above(0.02), off.p_below(0.02)) == pytest.approx((stats.t.sf(1.6, 6), stats.t.cdf(1.6, 6)))


def test_an_estimate_without_error_is_certain():
    sure = Estimate(0.1, 0.1, 0.0, 1.0, 3)
    assert (sure.low, sure.high, sure.p_above(), sure.p_below()) == (0.1, 0.1, 0.0, 1.0)


# ------------------------------------------------------------------------------- rates near their bounds


def test_rates_of_nothing_and_of_all_keep_an_interval_with_width_inside_0_and_1():
    """Wald's interval of 0 of 500 is [0, 0]."""
    for s in (1, 5):
        never, always = (interval(share(np.full((s, 500), hit))) for hit in (False, True))
        assert (never.value, never.low, always.value, always.high) == (0, 0, 1, 1)
        assert 0.004 < never.high < 0.01, "Clopper and Pearson say .0074 for one seed"
        assert always.low == pytest.approx(1 - never.high)


def test_a_difference_of_rates_that_never_differ_keeps_an_interval_with_width():
    rate = share(np.random.default_rng(0).random((5, 500)) < 0.02)
    nothing = interval(rate - rate)
    assert nothing.value == nothing.centre == 0 and 0.003 < nothing.high == -nothing.low < 0.01


@pytest.mark.parametrize("n", [50, 500])
def test_the_interval_of_one_binomial_rate_covers_it_wherever_it_is(n):
    """Exactly, by summing the binomial over all that can be seen."""
    seen = [interval(share(np.arange(n)[None] < k)) for k in range(n + 1)]
    low, high = np.array([e.low for e in seen]), np.array([e.high for e in seen])
    rates = np.concatenate([np.geomspace(0.2 / n, 0.5, 60), 1 - np.geomspace(0.2 / n, 0.5, 60)])[:, None]
    chance = stats.binom.pmf(np.arange(n + 1), n, rates)
    coverage = (chance * ((low <= rates) & (rates <= high))).sum(1)
    assert coverage.min() >= 0.93
    assert 0.945 <= coverage.mean() <= 0.98


def test_two_added_images_are_what_the_interval_is_computed_with():
    y = np.random.default_rng(3).random((4, 30)) < 0.1
    with_two = np.concatenate([y, np.zeros((4, 1)), np.ones((4, 1))], axis=1)
    low, high = slow_interval(with_two.tolist())
    got = interval(share(y))
    assert (max(low, 0), high) == (pytest.approx(got.low), pytest.approx(got.high))
    assert got.centre == pytest.approx(with_two.mean()) and got.value == y.mean()


# ------------------------------------------------------------------------------------ coverage of hits

SEEDS, IMAGES, TARGETS = 5, 500, 8
# Shares of the variance of the latent score behind a hit; the rest is every hit's own. A rate near a half then has
# an SD of 2 points between seeds, and 7 of 10 images are hit by most of the targets or by few.
SHARES = {"seed": 0.0025, "image": 0.45, "image and target": 0.25, "seed and target": 0.002}
SPREAD = 0.4  # SD of the targets' thresholds


def hits_of(rng, thresholds, shares=SHARES) -> Hits:
    """Hits whose latent scores are sums of crossed normal effects, so that their rates are known: Φ(threshold)."""

    def effect(share_, *shape):
        return np.float32(share_**0.5) * rng.standard_normal(shape, dtype=np.float32)

    s, n, t = SEEDS, IMAGES, TARGETS
    score = effect(shares["seed"], s, 1, 1) + effect(shares["image"], 1, n, 1)
    score = score + effect(shares["image and target"], 1, n, t) + effect(shares["seed and target"], s, 1, t)
    score = score + effect(1 - sum(shares.values()), s, n, t) + np.asarray(thresholds, np.float32)
    return Hits(score > 0, np.zeros((n, t), bool), np.zeros((s, n), bool))


def coverage_of(draw, truth, repeats, **options) -> float:
    """How often the interval of `draw(rng)` has `truth`, a number or one a repeat."""
    truth, inside = np.broadcast_to(truth, repeats), 0
    for r in range(repeats):
        got = interval(draw(np.random.default_rng([7, r])), **options)
        inside += got.low <= truth[r] <= got.high
    return inside / repeats


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5, 0.98])
def test_intervals_cover_the_mean_rate_of_targets(rate):
    thresholds = stats.norm.ppf(rate) + SPREAD * stats.norm.ppf((np.arange(TARGETS) + 0.5) / TARGETS)
    truth = stats.norm.cdf(thresholds).mean()
    assert 0.93 <= coverage_of(lambda rng: influence(hits_of(rng, thresholds)), truth, 600) <= 0.98


@pytest.mark.parametrize("rate, most", [(0.02, 0.995), (0.2, 0.98), (0.5, 0.98), (0.98, 0.995)])
def test_intervals_cover_a_paired_difference_also_near_0_and_1(rate, most):
    """Two runs whose seeds are their own and whose images are the same; the second has a higher rate.

    Where few images tell the two apart, the two that are added weigh: there the interval is wider than it need be.
    """
    thresholds = np.array([stats.norm.ppf(rate), stats.norm.ppf(rate) + 0.1])
    truth = float(np.diff(stats.norm.cdf(thresholds))[0])

    def draw(rng):
        image, rest = rng.standard_normal((1, IMAGES)), rng.standard_normal((2, SEEDS, IMAGES))
        seed = rng.standard_normal((2, SEEDS, 1))
        score = 0.05 * seed + math.sqrt(0.7) * image + math.sqrt(0.2975) * rest + thresholds[:, None, None]
        return share(score[1] > 0) - share(score[0] > 0)

    assert 0.93 <= coverage_of(draw, truth, 800) <= most


@pytest.mark.parametrize("rate, least", [(0.02, 0.88), (0.2, 0.93), (0.5, 0.93)])
def test_with_random_targets_intervals_cover_the_rate_of_targets_not_seen(rate, least):
    """Rates near 0 are skewed over targets, which eight of them do not tell."""
    truth = stats.norm.cdf(stats.norm.ppf(rate) / math.sqrt(1 + SPREAD**2))

    def draw(rng):
        return influence(hits_of(rng, stats.norm.ppf(rate) + SPREAD * rng.standard_normal(TARGETS)))

    assert least <= coverage_of(draw, truth, 300, random_targets=True) <= 0.98
    assert coverage_of(draw, truth, 100) < 0.8, "an interval for the targets at hand says nothing of others"


def test_random_targets_widen_by_the_three_way_table():
    """The variance against components that are computed by loops."""
    rng = np.random.default_rng(5)
    x = sum(rng.normal(size=shape) for shape in ((3, 6, 4), (3, 1, 1), (1, 6, 1), (1, 1, 4)))
    got = interval(Influence(float(x.mean()), x - x.mean(), np.ones(6, bool)), random_targets=True)
    grand, expected, spread = x.mean(), 0.0, 0.0
    for effect in ("s", "i", "t", "si", "st", "it", "sit"):
        total = 0.0
        for place in np.ndindex(x.shape):
            value = 0.0
            for part in range(2 ** len(effect)):
                kept = [letter for k, letter in enumerate(effect) if part >> k & 1]
                at = tuple(place["sit".index(w)] if w in kept else slice(None) for w in "sit")
                value += (-1) ** (len(effect) - len(kept)) * (x[at].mean() if kept else grand)
            total += value**2
        df = math.prod({"s": 2, "i": 5, "t": 3}[w] for w in effect)
        expected += (-1) ** (len(effect) + 1) * total / df
        spread += (total / df) ** 2 / df
    assert got.error == pytest.approx(math.sqrt(expected / x.size))
    assert got.freedom == pytest.approx(expected**2 / spread)
    assert got.error > interval(Influence(float(x.mean()), x - x.mean(), np.ones(6, bool))).error


def test_one_target_tells_nothing_of_how_targets_vary():
    for z in (np.zeros((3, 9)), np.zeros((3, 9, 1))):
        with pytest.raises(ValueError, match="targets as random need at least 2"):
            interval(Influence(0.5, z, np.ones(9, bool)), random_targets=True)


def test_the_opposite_of_a_difference_has_its_interval_mirrored():
    e = Estimate(0.1, 0.2, 0.3, 4.0, 5, images=6, targets=7, bounds=(-1.0, 0.5))
    assert (-e).value == -e.value and ((-e).low, (-e).high) == (-e.high, -e.low)
    assert (-e).p_above() == pytest.approx(e.p_below())
