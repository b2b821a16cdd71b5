"""Success rates and their intervals: against loops, textbook formulas and simulation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from scipy import stats
from torch import nn

from rfnlib.transfer import (
    DENOMINATORS,
    Hits,
    Influence,
    average,
    influence,
    interval,
    predict,
    success,
)

quick = settings(max_examples=60, deadline=None)
each_denominator = pytest.mark.parametrize("denominator", DENOMINATORS)


def random_hits(s: int, n: int, t: int, seed: int = 0) -> Hits:
    """Hits of images and seeds that differ in how easy they are; targets err more and more."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=(s, 1, 1)) + 2 * rng.normal(size=(1, n, 1)) + rng.normal(size=(1, 1, t))
    adv = rng.random((s, n, t)) < 1 / (1 + np.exp(-ease))
    return Hits(adv, rng.random((n, t)) < np.linspace(0.02, 0.3, t), rng.random((s, n)) < 0.2)


@st.composite
def some_hits(draw):
    s, n, t = draw(st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(1, 3)))
    return Hits(*(draw(some.arrays(bool, shape)) for shape in ((s, n, t), (n, t), (s, n))))


def table(values) -> Influence:
    """The mean of a two-way table of numbers, (S, N), as a rate."""
    values = np.asarray(values, float)
    return Influence(float(values.mean()), values - values.mean(), values.shape[1])


def width(estimate) -> float:
    return estimate.high - estimate.low


# ------------------------------------------------------------------------------------ denominators


def counts(hits: Hits, denominator: str, s: int, i: int, t: int) -> bool:
    targets = range(hits.clean_wrong.shape[1])
    if denominator == "all":
        return True
    if denominator == "target-correct":
        return not hits.clean_wrong[i, t]
    if any(hits.clean_wrong[i, other] for other in targets):
        return False
    return denominator == "all-targets-correct" or not hits.surrogate_wrong[s, i]


def slow_rate(hits: Hits, denominator: str, targets) -> float | None:
    """The mean over targets of hits a counted image; None where a target has no image."""
    s_count, n, _ = hits.adv_wrong.shape
    rates = []
    for t in targets:
        total = fooled = 0
        for s in range(s_count):
            for i in range(n):
                if counts(hits, denominator, s, i, t):
                    total += 1
                    fooled += int(hits.adv_wrong[s, i, t])
        if not total:
            return None
        rates.append(fooled / total)
    return sum(rates) / len(rates)


@each_denominator
@quick
@given(some_hits())
def test_what_counts_is_what_the_loops_count(denominator, hits):
    counted = hits.counted(denominator)
    assert counted.shape == hits.adv_wrong.shape and counted.dtype == bool
    for place in np.ndindex(counted.shape):
        assert counted[place] == counts(hits, denominator, *place)


@each_denominator
@quick
@given(some_hits(), st.booleans())
def test_the_rate_is_that_of_the_loops_or_an_error_names_the_denominator(denominator, hits, last):
    t = hits.clean_wrong.shape[1]
    targets = [t - 1] if last else range(t)
    expected = slow_rate(hits, denominator, targets)
    chosen = [t - 1] if last else None
    if expected is None:
        with pytest.raises(ValueError, match=f"no image counts under '{denominator}'"):
            influence(hits, denominator, chosen)
        return
    rate = influence(hits, denominator, chosen)
    assert rate.value == pytest.approx(expected, abs=1e-12)
    assert rate.z.shape == hits.surrogate_wrong.shape
    assert abs(rate.z.mean()) < 1e-12
    # Images counted at least once, for some seed and some chosen target.
    shape = hits.adv_wrong.shape
    places = [(s, t) for s in range(shape[0]) for t in targets]
    used = [any(counts(hits, denominator, s, i, t) for s, t in places) for i in range(shape[1])]
    assert rate.images == sum(used)


def test_the_default_denominator_is_the_authors():
    hits = random_hits(2, 40, 3)
    rates = {d: influence(hits, d).value for d in DENOMINATORS}
    assert len(set(rates.values())) == len(DENOMINATORS)
    assert influence(hits).value == rates["all-targets-correct"] == success(hits).value


def test_targets_left_out_still_choose_the_images_of_the_authors_rule():
    # One set of images whatever the targets looked at, so that their rates can be compared.
    hits = random_hits(2, 60, 3)
    singles = [influence(hits, targets=[t]) for t in range(3)]
    assert len({r.images for r in singles}) == 1


@each_denominator
def test_a_rate_over_targets_is_the_average_of_their_rates_with_its_influence(denominator):
    hits = random_hits(2, 60, 3)
    singles = average([influence(hits, denominator, [t]) for t in range(3)])
    together = influence(hits, denominator)
    assert singles.value == pytest.approx(together.value)
    assert np.allclose(singles.z, together.z)


def test_an_unknown_denominator_or_no_target_is_an_error_that_names_it():
    hits = random_hits(1, 9, 2)
    with pytest.raises(ValueError, match="denominator is 'correct'; give one of 'all-targets"):
        influence(hits, "correct")
    with pytest.raises(ValueError, match=r"targets is \[\];"):
        influence(hits, targets=[])


def test_hits_of_shapes_or_types_that_do_not_fit_are_refused():
    good = random_hits(2, 5, 3)
    with pytest.raises(ValueError, match=r"clean_wrong is \(4, 3\)"):
        Hits(good.adv_wrong, good.clean_wrong[:-1], good.surrogate_wrong)
    with pytest.raises(ValueError, match=r"surrogate_wrong \(1, 5\)"):
        Hits(good.adv_wrong, good.clean_wrong, good.surrogate_wrong[:1])
    with pytest.raises(ValueError, match="clean_wrong is of dtype int64"):  # ~1 is -2, not False
        Hits(good.adv_wrong, good.clean_wrong.astype(np.int64), good.surrogate_wrong)


# --------------------------------------------------------------------------------------- intervals


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
    got = interval(table(values), confidence)
    assert (got.low, got.high) == pytest.approx(slow_interval(values.tolist(), confidence), abs=1e-9)
    assert (got.seeds, got.images) == values.shape


@quick
@given(some.arrays(float, st.integers(2, 30), elements=st.floats(-10, 10, width=16)))
def test_with_one_seed_an_interval_is_the_t_interval_of_a_mean(values):
    got = interval(table(values[None]), 0.9)
    se = values.std(ddof=1) / math.sqrt(len(values))
    half = stats.t(len(values) - 1).ppf(0.95) * se
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert got.seeds == 1


@each_denominator
def test_the_standard_error_of_one_seed_is_that_of_the_jackknife_over_images(denominator):
    hits = random_hits(1, 200, 3, seed=3)

    def without(i):
        left = np.arange(200) != i
        kept = hits.adv_wrong[:, left], hits.clean_wrong[left], hits.surrogate_wrong[:, left]
        return influence(Hits(*kept), denominator).value

    dropped = np.array([without(i) for i in range(200)])
    jackknife = math.sqrt(199 / 200 * ((dropped - dropped.mean()) ** 2).sum())
    linear = width(success(hits, denominator)) / 2 / stats.t.ppf(0.975, 199)
    assert linear == pytest.approx(jackknife, rel=0.02)


def test_the_standard_error_over_counted_images_is_the_binomial_one():
    # One seed, one target: k hits among m counted images, whatever the images not counted do.
    hits = random_hits(1, 400, 1, seed=5)
    rate = success(hits)
    n, m = 400, rate.images
    assert m < n
    binomial = math.sqrt(rate.value * (1 - rate.value) / m * n / (n - 1))
    assert width(rate) / 2 / stats.t.ppf(0.975, n - 1) == pytest.approx(binomial)


def test_data_without_spread_have_an_interval_of_no_width_and_no_warning(recwarn):
    for s in (1, 3):
        for hit in (True, False):
            adv = np.full((s, 50, 3), hit)
            hits = Hits(adv, np.zeros((50, 3), bool), np.zeros((s, 50), bool))
            got = success(hits)
            assert got.low == got.value == got.high == float(hit)
        assert width(interval(table(np.full((s, 7), 0.1)))) < 1e-12
    rate = influence(random_hits(3, 50, 2))
    nothing = interval(rate - rate)
    assert nothing.low == nothing.high == 0
    assert not recwarn.list


def test_more_confidence_needs_a_wider_interval_around_the_same_value():
    rate = influence(random_hits(3, 80, 2))
    wide, narrow = interval(rate, 0.99), interval(rate, 0.9)
    assert wide.low < narrow.low < rate.value < narrow.high < wide.high


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


@pytest.mark.parametrize("s", [3, 5])
@pytest.mark.parametrize("denominator", ["all", "all-targets-correct", "surrogate-correct"])
def test_intervals_cover_the_rate_of_random_hits(s, denominator):
    def chances(rng, s, n):
        easy = 1.5 * rng.normal(size=(1, n, 1))
        logit = -0.5 + 0.3 * rng.normal(size=(s, 1, 1)) + easy + np.array([-0.5, 0.0, 0.5])
        # Images that fool are also those on which models err without help.
        clean = 1 / (1 + np.exp(3 - easy[0] - np.zeros(3)))
        return 1 / (1 + np.exp(-logit)), clean

    def draw(rng):
        p, clean = chances(rng, s, 100)
        wrong = rng.random((s, 100)) < clean[:, 0]
        hits = Hits(rng.random(p.shape) < p, rng.random(clean.shape) < clean, wrong)
        return success(hits, denominator)

    # The truth, by averaging the chances themselves over very many images and seeds.
    p, clean = chances(np.random.default_rng(10**6), 200, 4000)
    weight = (1 - clean).prod(1) if denominator != "all" else np.ones(4000)
    weight = weight * (1 - clean[:, 0]) if denominator == "surrogate-correct" else weight
    truth = (p.mean((0, 2)) * weight).sum() / weight.sum()
    assert covered(draw, truth) >= 0.9


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
        with pytest.raises(ValueError, match="same seeds and images"):
            table(np.zeros((3, 9))) - table(np.zeros(shape))


# ----------------------------------------------------------------------------------------- predict


class Echo(nn.Module):
    """Logits from the first pixels; notes how many images it was given, and in what mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.seen = nn.BatchNorm2d(3), nn.Dropout(0.9), []

    def forward(self, x):
        self.seen.append((len(x), self.training, self.norm.training, torch.is_grad_enabled()))
        return self.drop(self.norm(x)).flatten(1)[:, :5]


@pytest.mark.parametrize("root, inner", [(True, False), (False, True), (True, True)])
def test_predict_is_the_argmax_in_eval_mode_and_restores_every_mode(root, inner):
    model, x = Echo(), torch.rand(7, 3, 2, 2)
    model.training, model.norm.training = root, inner
    modes = [m.training for m in model.modules()]
    statistics = model.norm.running_mean.clone()
    got = predict(model, x, batch_size=3)
    assert [m.training for m in model.modules()] == modes
    assert model.seen == [(n, False, False, False) for n in (3, 3, 1)]
    assert torch.equal(model.norm.running_mean, statistics)
    assert torch.equal(got, model.eval()(x).argmax(1)) and got.dtype == torch.int64


def test_predict_restores_modes_also_when_the_model_raises():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(4, 2)))
    model[0].eval()
    with pytest.raises(RuntimeError):
        predict(model, torch.rand(2, 3))
    assert [m.training for m in model.modules()] == [True, False, True, True]


def test_the_average_of_rates_is_theirs_and_needs_the_same_seeds_and_images():
    def rate(value, shape):
        return Influence(value, np.full(shape, value), 10)

    mean = average([rate(0.2, (2, 5)), rate(0.4, (2, 5))])
    assert mean.value == pytest.approx(0.3) and np.allclose(mean.z, 0.3)
    for rates in ([rate(0.2, (1, 5)), rate(0.4, (3, 5))], []):
        with pytest.raises(ValueError, match="an average needs rates of the same seeds and images"):
            average(rates)
