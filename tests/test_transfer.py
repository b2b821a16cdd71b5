"""Success rates against loops, and the predictions behind them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from torch import nn

from rfnlib.attacks import AttackError
from rfnlib.intervals import UNBOUNDED, average, interval
from rfnlib.transfer import DENOMINATORS, Hits, influence, predict, success

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
    assert rate.z.shape == hits.adv_wrong[:, :, targets].shape
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
    assert np.allclose(singles.z.mean(2), together.z.mean(2))


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


@each_denominator
def test_the_standard_error_of_one_seed_is_that_of_the_jackknife_over_images(denominator):
    hits = random_hits(1, 200, 3, seed=3)

    def without(i):
        left = np.arange(200) != i
        kept = hits.adv_wrong[:, left], hits.clean_wrong[left], hits.surrogate_wrong[:, left]
        return influence(Hits(*kept), denominator).value

    dropped = np.array([without(i) for i in range(200)])
    jackknife = math.sqrt(199 / 200 * ((dropped - dropped.mean()) ** 2).sum())
    linear = interval(replace(influence(hits, denominator), bounds=UNBOUNDED)).error
    assert linear == pytest.approx(jackknife, rel=0.02)


def test_the_standard_error_over_counted_images_is_the_binomial_one():
    # One seed, one target: k hits among m counted images, whatever the images not counted do.
    hits = random_hits(1, 400, 1, seed=5)
    rate = interval(replace(influence(hits), bounds=UNBOUNDED))
    assert rate.images < 400
    assert rate.error == pytest.approx(math.sqrt(rate.value * (1 - rate.value) / (rate.images - 1)))
    assert rate.freedom == pytest.approx(rate.images - 1)


@pytest.mark.parametrize("random_targets", [False, True])
def test_images_that_do_not_count_do_not_matter(random_targets):
    hits = random_hits(3, 80, 3, seed=2)
    kept = ~hits.clean_wrong.any(1)
    assert not kept.all()
    alone = Hits(hits.adv_wrong[:, kept], hits.clean_wrong[kept], hits.surrogate_wrong[:, kept])
    got, expected = (interval(influence(h), random_targets=random_targets) for h in (hits, alone))
    for name in ("value", "centre", "error", "freedom", "images"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name)), name


def covered(draw, truth: float, repeats: int = 400) -> float:
    inside = 0
    for seed in range(repeats):
        got = draw(np.random.default_rng([1, seed]))
        inside += got.low <= truth <= got.high
    return inside / repeats


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
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Sequential(nn.Linear(4, 2)))
    model[1].eval()
    with pytest.raises(RuntimeError):
        predict(model, torch.rand(2, 3, 1, 1))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_no_prediction_and_no_success(value):
    def model(x):
        z = x.flatten(1).clone()
        z[2, 1] = value
        return z

    with pytest.raises(AttackError, match="the logits of 1 of 5 images are not finite, so they are of no class; look"):
        predict(model, torch.rand(5, 3, 1, 1))
    # A class that a model rules out by −∞ is none that it could predict.
    assert predict(lambda x: x.flatten(1).log(), torch.tensor([[0.0, 1.0, 0.5]])[:, :, None, None]).tolist() == [1]


def test_no_images_are_predicted_without_a_look_at_the_model():
    assert predict(None, torch.zeros(0, 3, 2, 2)).shape == (0,)
