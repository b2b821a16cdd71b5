"""Attack techniques: against an independent package, slow code from the papers, and in all combinations."""

import inspect
import json
import math
import sys
import textwrap
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from rfnlib import transforms
from rfnlib.attacks import (
    BIM,
    DI,
    LOSSES,
    MI,
    NI,
    PGD,
    PGN,
    RAP,
    SI,
    TI,
    VMI,
    VNI,
    Admix,
    AttackError,
    IterativeAttack,
    input_gradient,
)
from rfnlib.transfer import predict
from rfnlib.transforms import Ball, Batch, Diversity, GradientNorm, Mix, Neighbours, Reverse, Scales, Smoothing

N, SIDE, CLASSES = 4, 8, 5
EPS, STEP, STEPS = 0.1, 0.03, 4


def net(side: int = SIDE) -> nn.Sequential:
    """A smooth CNN in float64, bent enough for its gradients to turn inside the ball; in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Dropout(0.5)
        )
        model.append(nn.Linear(4 * ((side - 1) // 2) ** 2, CLASSES)).double()
        model(torch.rand(32, 3, side, side).double())
        model[0].weight.data *= 5
    return model


def batch(n: int = N, side: int = SIDE, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, side, side, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator)


POOL, POOL_LABELS = batch(12, seed=1)
MODEL, (X, Y) = net(), batch()
LINF = {"eps": EPS, "step": STEP, "steps": STEPS}
L2 = {"eps": 0.5, "step": 0.1, "steps": STEPS, "norm": "l2"}


def attacked(attack, x=X, y=Y, model=MODEL):
    return attack(model, x, y)


def close(a, b):
    return (a - b).abs().max() < 1e-6


# ---------------------------------------------------------- agreement with the package `torchattack`


@pytest.fixture(scope="module")
def theirs():
    import torchattack  # here, since it takes seconds

    return torchattack


def mended(attack, *changes):
    """`attack` with its bugs mended: each change is text of its `forward`, and what the paper says instead."""
    source = textwrap.dedent(inspect.getsource(attack.forward))
    for bug, paper in changes:
        assert bug in source, f"{attack.__name__} no longer has {bug!r}"
        source = source.replace(bug, paper)
    names = dict(vars(sys.modules[attack.__module__]))
    exec(source, names)
    return type(attack.__name__, (attack,), {"forward": names["forward"]})


def their(attack, x=X, y=Y, model=MODEL, change=lambda attack: None, **options):
    options = {"eps": EPS, "alpha": STEP, "steps": STEPS, **options}
    built = attack(model.eval(), device=torch.device("cpu"), **options)
    change(built)
    return built(x, y).detach()


FORGETS = ("self.decay * delta.grad + delta.grad", "self.decay * g + delta.grad")  # μ times the new gradient, not g


@pytest.mark.parametrize("targeted", [False, True])
def test_momentum_is_theirs(theirs, targeted):
    ours = attacked(MI(**LINF, targeted=targeted))
    assert close(ours, their(theirs.MIFGSM, targeted=targeted))
    assert not close(ours, attacked(BIM(**LINF, targeted=targeted)))
    assert close(attacked(MI(**LINF, momentum=0.5)), their(theirs.MIFGSM, decay=0.5))


def test_steps_in_l2_are_theirs(theirs):
    expected = their(theirs.PGDL2, eps=0.5, alpha=0.1, random_start=False)
    assert close(attacked(BIM(**L2)), expected)


def test_nesterov_is_theirs_but_for_its_forgotten_momentum(theirs):
    ours = attacked(NI(**LINF))
    assert close(ours, their(mended(theirs.NIFGSM, FORGETS)))
    assert not close(ours, their(theirs.NIFGSM))


def test_scale_invariance_is_theirs_but_for_gradients_added_up_twice(theirs):
    adds = ("grad += delta.grad", "grad += delta.grad; delta.grad = None")  # the first copy's counted m times
    forgets = ("self.decay * grad + grad", "self.decay * g + grad")
    ours = attacked(NI(**LINF) | SI(views=(Scales(3),)))
    assert close(ours, their(mended(theirs.SINIFGSM, adds, forgets), m=3))
    assert not close(ours, their(theirs.SINIFGSM, m=3))


@pytest.mark.parametrize("name, preset", [("VMIFGSM", VMI), ("VNIFGSM", VNI)])
def test_variance_tuning_is_theirs(theirs, monkeypatch, name, preset):
    drawn = []

    def uniform_(self, low, high):
        """Give their attack the numbers of ours."""
        assert (low, high) == (-1.5 * EPS, 1.5 * EPS)
        iteration, call = divmod(len(drawn), 3)
        drawn.append(Ball("linf", 1.5 * EPS, STEP).noise(X, Batch(Y, 0, 7, iteration, calls=call)))
        return drawn[-1]

    ours = attacked(preset(**LINF, variance=Neighbours(3), seed=7))
    monkeypatch.setattr(torch.Tensor, "uniform_", uniform_)
    assert close(ours, their(getattr(theirs, name), n=3, beta=1.5))
    assert not close(ours, attacked(MI(**LINF)))


def test_translation_invariance_is_theirs_but_for_kernel_and_momentum(theirs):
    normal = stats.norm.pdf(torch.linspace(-3, 3, 5).double())  # what the authors' code takes for the kernel
    kernel = torch.from_numpy(normal[:, None] * normal / normal.sum() ** 2).expand(3, 1, 5, 5)
    # Their smoothed gradient overwrites the momentum; their kernel is the square root of one of binned normals.
    overwrites = (("g = f.conv2d(", "w = f.conv2d("), ("+ g / torch", "+ w / torch"), ("abs(g)", "abs(w)"))

    def given(attack):
        attack.get_kernel = lambda: kernel

    ours = attacked(MI(**LINF) | TI(smoothing=Smoothing(5, sigma=2 / 3)))
    assert close(ours, their(mended(theirs.TIFGSM, *overwrites), change=given, kern_len=5))
    root = torch.from_numpy(theirs.TIFGSM.gkern(5, 3)).double().expand(3, 1, 5, 5)

    def unmended(attack):
        attack.get_kernel = lambda: root

    ours = attacked(TI(**LINF, smoothing=lambda g: F.conv2d(g, root, padding=2, groups=3)))
    assert close(ours, their(theirs.TIFGSM, change=unmended, kern_len=5))


def test_input_diversity_is_theirs(theirs, monkeypatch):
    model, (x, y) = net(32), batch(1, side=32)  # one image: theirs draws once a batch
    drawn, placing = [], transforms.placing

    def spy(side, canvas, sizes, offsets, mode):
        drawn.extend([int(offsets)] if len(drawn) % 3 == 2 else [int(sizes), int(offsets)])
        return placing(side, canvas, sizes, offsets, mode)

    monkeypatch.setattr(transforms, "placing", spy)
    ours = attacked(MI(**LINF) | DI(views=(Diversity(1.0, rate=0.9, mode="nearest"),)), x, y, model)
    assert len(drawn) == 3 * STEPS and len({tuple(drawn[i : i + 3]) for i in range(0, len(drawn), 3)}) > 1
    numbers = iter(drawn)
    monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.tensor([next(numbers)]))
    assert close(ours, their(theirs.DIFGSM, x, y, model, diversity_prob=1.0, resize_rate=0.9))
    assert not close(ours, attacked(MI(**LINF), x, y, model))


def test_admix_is_theirs_but_for_mixing_with_the_batch(theirs, monkeypatch):
    chosen, choose = [], Mix._chosen
    monkeypatch.setattr(Mix, "_chosen", staticmethod(lambda *a: chosen.append(choose(*a)) or chosen[-1]))
    ours = attacked(Admix(POOL, POOL_LABELS, **LINF))
    assert len(chosen) == 3 * STEPS and all((POOL_LABELS[c] != Y).all() for c in chosen)
    numbers = iter(chosen)

    def from_the_pool(attack):
        attack.admix = lambda x: torch.cat([x + 0.2 * POOL[next(numbers)] for _ in range(3)])

    soft = (".float()", ".double()")  # soft labels in the type of the logits
    assert close(ours, their(mended(theirs.Admix, soft), change=from_the_pool, num_classes=CLASSES))


# -------------------------------------------------------------- slow code, straight from the papers


def slow(x, y, gradient, momentum=0.0, nesterov=False, eps=EPS, step=STEP, steps=STEPS, norm="linf", model=MODEL):
    """Image by image; `gradient(g, at, place, i)` makes what is climbed from ∇L."""
    model.eval()
    done = []
    for place, (image, label) in enumerate(zip(x[:, None], y[:, None], strict=True)):

        def plain(z, label=label):
            z = z.clone().requires_grad_()
            return torch.autograd.grad(F.cross_entropy(model(z), label), z)[0]

        at, velocity, root = image, torch.zeros_like(image), math.sqrt(image.numel())
        for i in range(steps):
            ahead = step * momentum * velocity * (image.numel() if norm == "linf" else root)
            g = gradient(plain, at + ahead if nesterov else at, place, i)
            velocity = momentum * velocity + g / g.abs().sum()
            if norm == "linf":
                at = image + (at + step * velocity.sign() - image).clip(-eps, eps)
            else:
                offset = at + step * velocity / velocity.norm() - image
                at = image + offset * min(1.0, eps / float(offset.norm()))
            at = at.clip(0, 1)
        done.append(at)
    return torch.cat(done)


def numbers(place, i):
    """The random numbers of one image at one iteration."""
    return Batch(Y[place : place + 1], place, 0, i)


NORMS = {"linf": LINF, "l2": L2}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_the_slow_one_in_both_norms(norm, nesterov):
    expected = slow(X, Y, lambda g, at, place, i: g(at), momentum=0.9, nesterov=nesterov, **NORMS[norm])
    assert close(attacked(MI(**NORMS[norm], momentum=0.9, nesterov=nesterov)), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_penalised_gradient_norm_is_the_slow_one(norm):
    options = NORMS[norm]
    ball = Ball(norm, 3 * options["eps"], STEP)

    def penalised(g, at, place, i, found=0):
        draws = numbers(place, i)
        for _ in range(2):
            near = at + ball.noise(at, draws)
            unit = near.numel() * g(near) / g(near).abs().sum()
            unit = unit if norm == "linf" else unit / math.sqrt(near.numel())
            found = found + (0.7 * g(near) + 0.3 * g(near - options["step"] * unit)) / 2
        return found

    ours = attacked(PGN(**options, around=(GradientNorm(2, delta=0.3),)))
    assert close(ours, slow(X, Y, penalised, momentum=1.0, **options))
    assert not close(ours, attacked(MI(**options)))


@pytest.mark.parametrize("norm", NORMS)
def test_reverse_perturbation_is_the_slow_one(norm):
    options = NORMS[norm]
    radius = options["eps"] / 2

    def reverse(g, at, place, i):
        if i < 1:
            return g(at)
        n = Ball(norm, radius, 0).noise(at, numbers(place, i))
        n = (at + n).clip(0, 1) - at
        for _ in range(3):
            if norm == "linf":
                n = (n - radius / 3 * g(at + n).sign()).clip(-radius, radius)
            else:
                n = n - radius / 3 * g(at + n) / g(at + n).norm()
                n = n * min(1.0, radius / float(n.norm()))
            n = (at + n).clip(0, 1) - at
        return g(at + n)

    ours = attacked(RAP(**options, around=(Reverse(0.5, steps=3, start=1),)))
    assert close(ours, slow(X, Y, reverse, **options))
    assert not close(ours, attacked(BIM(**options)))


def test_the_neighbours_mean_may_take_the_gradients_place():
    def mean(g, at, place, i):
        draws, ball = numbers(place, i), Ball("linf", 1.5 * EPS, STEP)
        return sum(g(at + ball.noise(at, draws)) for _ in range(3))

    assert close(attacked(BIM(**LINF, around=(Neighbours(3),))), slow(X, Y, mean))


def test_all_techniques_at_once_keep_their_order():
    views = (Diversity(), Mix(POOL, copies=2), Scales(2))

    def everything(g, at, place, i):
        draws = numbers(place, i)

        def seen(z):
            z = z.clone().requires_grad_()
            copies = [c / 2**k for c in views[1](views[0](z, draws), draws) for k in range(2)]
            loss = sum(F.cross_entropy(MODEL(c), Y[place : place + 1]) for c in copies) / 4
            return torch.autograd.grad(loss, z)[0]

        ball = Ball("linf", EPS, STEP)
        found = GradientNorm(1)(seen, at, ball, draws)
        return Smoothing(3)(found)

    ours = attacked(MI(**LINF) | PGN(around=(GradientNorm(1),)) | TI(smoothing=Smoothing(3)) | BIM(views=views))
    assert close(ours, slow(X, Y, everything, momentum=1.0))


# -------------------------------------------------------------------------------------------- losses


def test_losses_are_their_formulas():
    z = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.5, 0.0, 4.0, 1.0]])
    y = torch.tensor([0, 3])
    expected = {
        "ce": -torch.log_softmax(z, 1)[[0, 1], y],
        "margin": torch.tensor([2.0 - 3.0, 4.0 - 1.0]),
        "dlr": torch.tensor([(2.0 - 3.0) / (3.0 - 1.0), (4.0 - 1.0) / (4.0 - 0.5)]),
        "logit": torch.tensor([-3.0, -1.0]),
    }
    for name, loss in LOSSES.items():
        assert torch.allclose(loss(z, y), expected[name])
    assert torch.allclose(LOSSES["dlr"](5 * z + 1, y), LOSSES["dlr"](z, y))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
def test_each_loss_rises_or_if_targeted_falls(loss, targeted):
    with torch.no_grad():
        y = MODEL.eval()(X).argmax(1)
        adv = attacked(BIM(EPS / 4, loss=loss, targeted=targeted), X, y)
        before, after = (LOSSES[loss](MODEL(z), y) for z in (X, adv))
    assert ((after < before) if targeted else (after > before)).all()


def test_the_dlr_loss_asks_for_three_classes():
    with pytest.raises(AttackError, match="needs 3 classes, the surrogate has 2; use 'margin'"):
        BIM(loss="dlr", steps=1)(nn.Sequential(nn.Flatten(), nn.Linear(192, 2).double()), X, Y % 2)


# ---------------------------------------------------------------------------------- half precision

HALVES = [torch.float16, torch.bfloat16]
GREY = 0.25 + 0.5 * torch.rand(40, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def saturated() -> nn.Sequential:
    """Linear and so sure of half the images that their gradient is 0 in half precision."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nn.init.normal_(model[1].weight, std=0.2)
        nn.init.zeros_(model[1].bias)
        z = model(GREY).detach()
        model[1].weight.data *= 40 / float((z.amax(1) - z.mean(1)).mean())
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("preset", [BIM, PGD, MI, NI, VMI, RAP, PGN, TI])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_l2_attacks_hold_no_nan_and_stay_in_the_ball(dtype, preset, loss):
    model = saturated().to(dtype)
    x = GREY.to(dtype)
    y = predict(model, x)
    attack = preset(0.3, norm="l2", steps=3, loss=loss)
    adv = attack(model, x, y)
    assert adv.dtype == dtype and torch.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1
    assert ((adv.float() - x.float()).flatten(1).norm(dim=1) <= attack.radius + 1e-6).all()


def test_half_precision_l2_images_without_gradient_stay_and_are_no_successes():
    model, x = saturated().half(), GREY.half()
    y = predict(model, x)
    still = (input_gradient(model, x, y) == 0).flatten(1).all(1)
    assert 5 < still.sum() < 35
    adv = BIM(0.3, norm="l2", steps=5)(model, x, y)
    assert torch.equal(adv[still], x[still]) and (adv[~still] != x[~still]).flatten(1).any(1).all()
    assert (predict(model, adv)[still] == y[still]).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_half_precision_images_move_as_those_in_float32_and_are_rounded_towards_where_they_were(dtype, norm):
    weights = torch.randn(2, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(3)).to(dtype)
    x, y = GREY.to(dtype), torch.zeros(len(GREY), dtype=torch.int64)
    attack = PGD({"linf": 4 / 255, "l2": 0.5}[norm], norm=norm)  # a step is less than a digit of bfloat16
    adv = attack(lambda z: z.flatten(1) @ weights.T / 1000, x, y)
    whole = attack(lambda z: z.flatten(1) @ weights.T.float() / 1000, x.float(), y)
    assert adv.dtype == dtype
    spacing = torch.finfo(dtype).eps  # of numbers from 1/2 to 1, the most there is
    assert ((adv.float() - whole).abs() <= spacing).float().mean() > 0.99
    moved = (adv.float() - x.float()).flatten(1)
    size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert (size <= attack.radius * (1 + 1e-6)).all()
    if dtype == torch.float16:
        assert (size > 0.9 * attack.radius).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_lengths_and_directions_are_those_of_float32(dtype):
    g = (1e-6 * torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))).to(dtype)
    g[1] = 0
    for norm in ("linf", "l2"):
        ball = Ball(norm, 0.5, 0.1)
        for take in (ball.direction, ball.scaled, lambda g, b=ball: b.project(0.5 + 1e5 * g, torch.full_like(g, 0.5))):
            assert take(g).dtype == dtype
            assert torch.allclose(take(g).float(), take(g.float()), rtol=0.01, atol=0.01)
        for low in (ball.direction, ball.scaled):
            assert torch.equal(low(g)[1], torch.zeros_like(g[1]))
        noise = ball.noise(g, Batch(torch.zeros(3, dtype=torch.int64)))
        assert noise.dtype == dtype and torch.isfinite(noise).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_the_dlr_loss_is_right_in_half_precision_and_the_margin_where_three_logits_are_equal(dtype):
    z = torch.tensor([[2.0, 2.0, 2.0, 1.0], [8.0, 4.0, 2.0, 1.0]]).to(dtype).requires_grad_()
    losses = LOSSES["dlr"](z, torch.tensor([3, 1]))
    assert losses.tolist() == [1.0, pytest.approx(4 / 6, rel=0.01)]
    assert torch.isfinite(torch.autograd.grad(losses.sum(), z)[0]).all()


# --------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("mode", transforms.MODES)
@pytest.mark.parametrize("shape, rate", [((8, 8), None), ((8, 8), 0.6), ((32, 32), None), ((6, 9), 1.5)])
def test_diversity_is_resizing_and_padding_image_by_image(monkeypatch, mode, shape, rate):
    drawn, placing = [], transforms.placing
    monkeypatch.setattr(transforms, "placing", lambda *a: drawn.append(a) or placing(*a))
    x = torch.rand(6, 3, *shape, generator=torch.Generator().manual_seed(0))
    view = Diversity(1.0, rate, mode)
    got = view(x, Batch(torch.zeros(6, dtype=torch.int64), seed=3))
    (_, height, tall, top, _), (_, width, wide, left, _) = (d for d in drawn if len(d[2]) == 6)
    for i in range(6):
        resized = F.interpolate(x[i : i + 1], (int(tall[i]), int(wide[i])), mode=mode)
        right, bottom = width - int(left[i] + wide[i]), height - int(top[i] + tall[i])
        assert right >= 0 and bottom >= 0
        expected = F.interpolate(F.pad(resized, (int(left[i]), right, int(top[i]), bottom)), shape, mode=mode)
        assert torch.allclose(got[i], expected[0], atol=1e-5)
    assert len(set(zip(tall.tolist(), top.tolist(), strict=True))) > 1


def test_diversity_has_ranges_for_small_images_and_draws_all_of_them():
    assert {side: Diversity().sides(side) for side in (8, 32, 64, 224)} == {
        8: (8, 10),
        32: (32, 36),
        64: (64, 71),
        224: (224, 247),
    }
    assert Diversity(rate=0.9).sides(224) == (202, 224) and Diversity(rate=330 / 299).sides(299) == (299, 330)
    x = torch.rand(1, 3, 8, 8).expand(400, -1, -1, -1)
    seen = Diversity(0.5)(x, Batch(torch.zeros(400, dtype=torch.int64)))
    same = (seen == x).flatten(1).all(1)
    assert 150 < same.sum() < 250
    # Of 1 + 4 + 9 ways to place sides 10, 9 and 8 on a canvas of 10, all are met.
    assert len((1e4 * seen[~same]).round().flatten(1).unique(dim=0)) == 14
    assert torch.equal(Diversity(0.0)(x, Batch(torch.zeros(400, dtype=torch.int64))), x)


def test_smoothing_is_a_gaussian_convolution_with_sizes_for_small_images():
    g = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for size, sigma in ((3, None), (5, 0.8), (1, None)):
        half = size // 2
        s = sigma or max(half, 1) / math.sqrt(3)
        w = torch.tensor([[math.exp(-(i * i + j * j) / (2 * s * s)) for j in range(-half, half + 1)]
                          for i in range(-half, half + 1)]).double()  # fmt: skip
        expected = F.conv2d(g, (w / w.sum()).expand(3, 1, size, size), padding=half, groups=3)
        assert torch.allclose(Smoothing(size, sigma)(g), expected, atol=1e-6)
    sizes = {side: len(Smoothing().kernel(side)) for side in (8, 16, 32, 64, 96, 224, 299)}
    assert sizes == {8: 3, 16: 3, 32: 5, 64: 9, 96: 13, 224: 15, 299: 15}


def test_mixing_takes_images_of_other_classes_each_as_often():
    labels, pool_labels = torch.arange(3000) % 3, torch.tensor([0, 0, 1, 2])
    pool = torch.arange(4.0)[:, None, None, None] / 4
    (mixed,) = Mix(pool, pool_labels, eta=1.0, copies=1)(torch.zeros(3000, 1, 1, 1), Batch(labels))
    chosen = (4 * mixed).long().flatten()
    assert (pool_labels[chosen] != labels).all()
    counts = torch.bincount(chosen[labels == 1], minlength=4)
    assert counts[2] == 0 and (counts[[0, 1, 3]] - 1000 / 3).abs().max() < 60
    (mixed,) = Mix(pool, eta=1.0, copies=1)(torch.zeros(3000, 1, 1, 1), Batch(labels))
    assert (torch.bincount((4 * mixed).long().flatten()) - 750).abs().max() < 100


# ------------------------------------------------------------------------------------ random numbers


def test_random_numbers_are_those_of_splitmix64():
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def out(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert out(golden) == 0xE220A8397B1DCDAF  # its first number from the seed 0, as published
    key = 5
    for part in (2**32 - 1, 3, 0):
        key = out(((key + 1) * golden + part) & mask)
    words = [out((key + k * golden) & mask) for k in (1, 2, 3)]
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    got = Batch(torch.zeros(2, dtype=torch.int64), 4, 2**32 - 1, 3).uniform(5)[1]
    assert [round(u * 2**24) for u in got.tolist()] == [h >> 8 for h in halves[:5]]


def test_random_numbers_belong_to_the_example_and_are_never_met_again():
    labels = torch.zeros(6, dtype=torch.int64)
    whole = Batch(labels).uniform(2, 3)
    assert torch.equal(Batch(labels[4:], 4).uniform(2, 3), whole[4:])
    source = Batch(labels)
    drawn = [source.uniform(2, 3), source.uniform(2, 3), Batch(labels, seed=1).uniform(2, 3)]
    drawn += [Batch(labels, iteration=1).uniform(2, 3)]
    assert torch.equal(drawn[0], whole) and torch.cat(drawn).unique().numel() == 4 * 36


def test_random_numbers_follow_their_distributions():
    source = Batch(torch.zeros(300, dtype=torch.int64))
    for numbers, expected in ((source.uniform(301), "uniform"), (source.normal(301), "norm")):
        assert stats.kstest(numbers.flatten().double().numpy(), expected).pvalue > 1e-3
        assert abs(float(torch.corrcoef(numbers.flatten()[: 300 * 300].view(300, 300)).triu(1).sum())) < 60
    assert set(source.below(3).tolist()) == {0, 1, 2}
    assert (source.below(torch.tensor([1, 2] * 150)) < torch.tensor([1, 2] * 150)).all()
    for norm in ("linf", "l2"):
        noise = Ball(norm, 2.0, 0).noise(torch.zeros(2000, 3, 1, 1), Batch(torch.zeros(2000, dtype=torch.int64)))
        size = noise.abs().flatten(1).amax(1) if norm == "linf" else noise.flatten(1).norm(dim=1)
        assert stats.kstest(((size / 2) ** 3).numpy(), "uniform").pvalue > 1e-3


# ------------------------------------------------------------------ techniques of a researcher's own


def contrast(images, batch):
    """A view: the contrast of each image changes by its own factor."""
    return images * (0.5 + batch.uniform(1, 1, 1)).to(images)


def averaged(gradient, x, ball, batch):
    """An estimator with a memory: the mean of this gradient and of the last one."""
    here = gradient(x)
    last = batch.memory.setdefault("last", here)
    batch.memory["last"] = here
    return (here + last) / 2


@dataclass(frozen=True)
class Sharpen:
    """A smoothing that undoes some."""

    strength: float = 0.5

    def __call__(self, gradient):
        return gradient - self.strength * Smoothing()(gradient)


def softened(logits, labels):
    """A loss: cross-entropy at a higher temperature."""
    return F.cross_entropy(logits / 3, labels, reduction="none")


OWN = MI(views=(contrast,), around=(averaged,), smoothing=Sharpen(), loss=softened, **LINF)


def test_techniques_of_ones_own_do_what_they_say():
    def mine(g, at, place, i):
        z = at.clone().requires_grad_()
        loss = softened(MODEL(contrast(z, numbers(place, i))), Y[place : place + 1])
        here = torch.autograd.grad(loss.sum(), z)[0]
        last[place] = (last.get(place, (here, here))[1], here)
        return Sharpen()(sum(last[place]) / 2)

    last = {}
    assert close(attacked(OWN), slow(X, Y, mine, momentum=1.0))


def test_views_run_in_full_precision_and_the_surrogate_as_asked():
    seen = []

    class Asked(nn.Module):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return x.flatten(1)[:, :CLASSES] @ torch.eye(CLASSES)

    def view(images, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return images

    with torch.autocast("cpu", dtype=torch.bfloat16):
        BIM(views=(view,), smoothing=Smoothing(), steps=1)(Asked(), X.float(), Y)
    assert seen == [False, True]


# ------------------------------------------------------------------ what holds for all combinations

quick = settings(max_examples=30, deadline=None)
views = st.lists(
    st.one_of(
        st.builds(Diversity, st.floats(0, 1), st.none() | st.floats(0.5, 1.5), st.sampled_from(transforms.MODES)),
        st.builds(Scales, st.integers(1, 2)),
        st.builds(Mix, st.just(POOL), st.sampled_from([None, POOL_LABELS]), st.floats(0, 1), st.integers(1, 2)),
        st.just(contrast),
    ),
    max_size=3,
)
ratios = st.floats(0, 3)
estimators = st.one_of(
    st.builds(Neighbours, st.integers(1, 2), ratios),
    st.builds(GradientNorm, st.just(1), ratios, st.floats(0, 1)),
    st.builds(Reverse, ratios, st.integers(1, 2), st.integers(0, 2)),
    st.just(averaged),
)


@st.composite
def combinations(draw):
    momentum = draw(st.sampled_from([0, 0.9, 1.0]))
    return IterativeAttack(
        eps=draw(st.floats(0, 1)),
        step=draw(st.none() | st.floats(0, 0.5)),
        steps=draw(st.integers(1, 3)),
        norm=draw(st.sampled_from(["linf", "l2"])),
        random_start=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
        momentum=momentum,
        nesterov=momentum > 0 and draw(st.booleans()),
        views=draw(views),
        around=draw(st.lists(estimators, max_size=2)),
        variance=draw(st.none() | estimators),
        smoothing=draw(st.sampled_from([None, Smoothing(), Smoothing(5), Sharpen()])),
        loss=draw(st.sampled_from([*LOSSES, softened])),
        targeted=draw(st.booleans()),
    )


combined = combinations().filter(lambda attack: attack.passes <= 40)


def trace(model):
    """All that an attack could leave behind in `model` and in torch."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [len(h) for m in model.modules() for k, h in vars(m).items() if k.endswith("_hooks") and h is not None]
    return {
        "values": b"".join(t.detach().numpy().tobytes() for t in tensors),
        "identity": [id(t) for t in tensors],
        "modes": [m.training for m in model.modules()],
        "grads": [(p.requires_grad, p.grad) for p in model.parameters()],
        "hooks": hooks,
        "rng": torch.get_rng_state().tolist(),
        "grad_enabled": torch.is_grad_enabled(),
    }


@quick
@given(combined)
def test_any_combination_stays_in_ball_and_box_is_deterministic_and_leaves_no_trace(attack):
    model = net()
    model[0].bias.requires_grad_(False)
    model[1].eval()
    model[0].register_forward_hook(lambda module, inputs, output: None)
    before, kept = trace(model), X.clone()
    adv = attack(model, X, Y)
    assert trace(model) == before and torch.equal(X, kept)
    assert adv.shape == X.shape and adv.dtype == X.dtype and not adv.requires_grad
    assert torch.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1
    moved = (adv - X).flatten(1)
    sizes = moved.abs().amax(1) if attack.norm == "linf" else moved.norm(dim=1)
    assert (sizes <= attack.radius + 1e-6).all()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(attack(model, X, Y), adv)


@quick
@given(combined, st.integers(1, 3), st.integers(1, N))
def test_in_any_combination_an_example_depends_neither_on_batch_size_nor_on_batch_mates(attack, size, n):
    model = net()
    whole = attack(model, X, Y)
    assert torch.allclose(attack(model, X, Y, batch_size=size), whole, atol=1e-5)
    mates = torch.cat([X[:n], X[n:].flip(0) / 2])
    assert torch.allclose(attack(model, mates, Y)[:n], whole[:n], atol=1e-5)


RANDOM = [DI(), VMI(), Admix(POOL), RAP(), PGN(), BIM(views=(contrast,))]


@pytest.mark.parametrize("attack", RANDOM, ids=["DI", "VMI", "Admix", "RAP", "PGN", "own"])
def test_random_techniques_draw_for_each_example_and_change_with_the_seed(attack):
    def shown(attack, **options):
        """What the surrogate sees of one image given three times."""
        seen, model = [], net()
        model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        attack(model, X[:1].expand(3, -1, -1, -1), Y[:1].expand(3), **options)
        return torch.cat(seen).view(-1, 3, X[0].numel())

    attack = attack | BIM(0.3, steps=4)
    seen = shown(attack)
    assert all((seen[:, i] != seen[:, j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert not torch.equal(shown(attack | BIM(seed=1)), seen)
    alone = shown(attack, batch_size=1).view(3, -1, X[0].numel())
    assert torch.allclose(alone.transpose(0, 1), seen, atol=1e-5)


# -------------------------------------------------------------------------- settings, cost and names


def test_presets_add_up_to_the_settings_they_name():
    whole = IterativeAttack(0.1, momentum=1.0, views=(Diversity(), Scales()), smoothing=Smoothing())
    assert MI(0.1) | DI() | SI() | TI() == whole == MI(0.1, views=[Diversity(), Scales()], smoothing=Smoothing())
    assert BIM(0.1) | NI() | VMI() == VNI(0.1) and MI() | RAP() == RAP(momentum=1.0)
    assert (MI(momentum=0.5, steps=3) | BIM(momentum=0.7)) == MI(momentum=0.7, steps=3)
    assert (RAP() | PGN()).around == (Reverse(), GradientNorm())
    assert PGD() | MI() == PGD(momentum=1.0)
    with pytest.raises(TypeError):
        MI() | Diversity()


@pytest.mark.parametrize(
    "attack, passes",
    [
        (MI(steps=3), 3),
        (NI(steps=3) | SI(), 15),
        (Admix(POOL, steps=2), 30),
        (VMI(steps=3, variance=Neighbours(4)), 11),
        (RAP(steps=2), 18),
        (PGN(steps=2, around=(GradientNorm(3),), views=(Diversity(), Scales(2))), 24),
    ],
)
def test_passes_are_those_the_surrogate_sees(attack, passes):
    seen, model = [], net()
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    attack(model, X, Y)
    assert sum(seen) == passes * N and attack.passes == passes


def test_old_descriptions_stay_and_new_ones_tell_apart():
    plain = {"norm": "linf", "eps": 4 / 255, "step": 4 / 255 / 10, "steps": 50}
    assert BIM().describe() == BIM(seed=3).describe() == plain
    assert PGD(seed=3).describe() == {**plain, "random_start": True, "seed": 3}
    told = [
        BIM(),
        MI(),
        MI(momentum=0.9),
        NI(),
        DI(),
        DI(seed=1),
        DI(views=(Diversity(0.7),)),
        TI(),
        SI(),
        VMI(),
        VNI(),
    ]
    told += [RAP(), PGN(), Admix(POOL), Admix(POOL / 2), Admix(POOL, POOL_LABELS), BIM(loss="dlr"), BIM(targeted=True)]
    told += [OWN, SI() | DI(), DI() | SI()]
    told = [json.dumps(attack.describe(), sort_keys=True) for attack in told]
    assert len(set(told)) == len(told)
    assert DI().describe()["views"] == [{"is": "Diversity", "p": 0.5, "rate": None, "mode": "bilinear"}]
    assert OWN.describe()["views"] == [f"{__name__}.contrast"] and MI().describe() == {**plain, "momentum": 1.0}
    with pytest.raises(AttackError, match="has no name to record; give a frozen dataclass"):
        BIM(views=(lambda images, batch: images,)).describe()


@pytest.mark.parametrize(
    "build, named",
    [
        (lambda: MI(momentum=-1), "momentum is -1; give a number of at least 0."),
        (lambda: BIM(nesterov=True), "nesterov looks along the momentum, which is 0"),
        (lambda: BIM(views=Diversity()), "views is Diversity("),
        (lambda: BIM(views=(Diversity,)), "views is (<class"),
        (lambda: BIM(around=(3,)), "around is (3,);"),
        (lambda: BIM(variance=20), "variance is 20;"),
        (lambda: BIM(smoothing=5), "smoothing is 5;"),
        (lambda: BIM(loss="CE"), "loss is 'CE'; give one of 'ce', 'margin', 'dlr', 'logit'"),
        (lambda: Diversity(1.5), "p is 1.5; give a number from 0 to 1."),
        (lambda: Diversity(rate=0), "rate is 0;"),
        (lambda: Diversity(mode="cubic"), "mode is 'cubic'; give one of 'bilinear', 'nearest'."),
        (lambda: Scales(0), "m is 0; give a whole number of at least 1."),
        (lambda: Smoothing(4), "size is 4; give an odd number of pixels, such as 5."),
        (lambda: Smoothing(3, 0), "sigma is 0;"),
        (lambda: Neighbours(True), "n is True;"),
        (lambda: GradientNorm(delta=2), "delta is 2; give a number from 0 to 1."),
        (lambda: Reverse(steps=0), "steps is 0;"),
        (lambda: Mix(POOL * 255), "the pool ranges over"),
        (lambda: Mix(POOL[0]), "the pool to mix from is no image tensor;"),
        (lambda: Mix(POOL, POOL_LABELS[1:]), "give int64 of shape (12,)."),
        (lambda: attacked(Admix(POOL, Y[:1].expand(12))), f"the pool has only images of class {int(Y[0])};"),
        (lambda: attacked(Admix(POOL[..., 1:])), "the pool's images are of shape (3, 8, 7),"),
        (lambda: attacked(BIM(views=(lambda x, batch: x.detach(),))), "no images to differentiate through"),
        (lambda: attacked(BIM(views=(lambda x, batch: x[:1],))), "return 4 that depend on those given"),
        (lambda: attacked(BIM(around=(lambda g, x, ball, batch: g(x).mean(1),))), "gradients of shape (4, 8, 8);"),
        (lambda: attacked(BIM(smoothing=lambda g: None)), "gradients of shape None;"),
        (lambda: attacked(BIM(loss=lambda z, y: z.mean())), "the loss is of shape (); give one number an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_part_is_named(build, named):
    with pytest.raises(AttackError) as error:
        build()
    assert named in str(error.value)


def test_the_gradient_of_a_loss_is_that_of_each_image_alone():
    for loss in LOSSES.values():
        together = input_gradient(MODEL.eval(), X, Y, loss)
        alone = [input_gradient(MODEL, X[i : i + 1], Y[i : i + 1], loss) for i in range(N)]
        assert torch.allclose(together, torch.cat(alone), atol=1e-6)
