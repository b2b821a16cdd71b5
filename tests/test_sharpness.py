"""Sharpness: against dense Hessians, closed forms and brute force, and what must never change."""

from __future__ import annotations

import math

import curvlinops
import numpy as np
import pyhessian
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call

from rfnlib import lanczos, landscape, models
from rfnlib.minimizers import update_batchnorm
from rfnlib.sharpness import (
    Measured,
    average_case,
    eigenvalues,
    input_gradient_norm,
    input_top_eigenvalue,
    relative_flatness,
    top_eigenvalue,
    trace,
    worst_case,
)

CLASSES, SHAPE = 4, (1, 3, 3)


class Net(nn.Module):
    """A smooth network with a head and, where modes matter, batch norm and dropout; 140 weights or so."""

    def __init__(self, std: float, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            conv = (nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh())
            self.body = nn.Sequential(*conv, nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 6), nn.Tanh())
            self.head = nn.Linear(6, CLASSES)
            for layer in (self.body[5], self.head):
                nn.init.normal_(layer.weight, std=std)
            self.double()(torch.rand(32, *SHAPE, dtype=torch.float64))  # running statistics

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Bowl(nn.Module):
    """Logits (z, 0), z = ½ wᵀAw + bᵀw + c, for every image: L = log(1 + exp(∓z)) for labels 0 and 1."""

    def __init__(self, a: Tensor, b: Tensor, w: Tensor, c: float = 0.0):
        super().__init__()
        self.a, self.b, self.c, self.w = a, b, c, nn.Parameter(w.double())

    def forward(self, x: Tensor) -> Tensor:
        z = self.w @ self.a @ self.w / 2 + self.b @ self.w + self.c
        return torch.stack([z, 0 * z]).expand(len(x), 2)


def images(n: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def case(kind: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A net, and one batch: "positive" has the largest magnitude on top, "negative" at the bottom."""
    model = Net(std=1.0).eval()
    x = images()
    z = model(x).detach()
    return model.train(), [(x, z.argmax(1) if kind == "positive" else z.argmin(1))]


def bowl(n: int = 6, linear: bool = False) -> tuple[Bowl, list[tuple[Tensor, Tensor]]]:
    """Quadratic, around w = 0, where the Hessian of L is -A/2, of eigenvalues -5, ..., 1; or linear."""
    g = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g))
    a = q @ torch.diag(torch.tensor([10.0, 4.0, 3.0, 1.0, 0.5, -2.0], dtype=torch.float64)) @ q.T
    b = torch.randn(n, dtype=torch.float64, generator=g)
    w = torch.randn(n, dtype=torch.float64, generator=g) if linear else torch.zeros(n)
    model = Bowl(0 * a, b, w) if linear else Bowl(a, 0 * b, w)
    return model, [(torch.rand(5, 1), torch.zeros(5, dtype=torch.int64))]


def flat_loss(model: nn.Module, batches):
    """(f, w): the mean loss over all images as a plain function of all weights, and those weights."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    named = {n: p.detach() for n, p in model.named_parameters()}

    def f(w: Tensor) -> Tensor:
        parts = w.split([p.numel() for p in named.values()])
        weights = {n: v.view_as(p) for v, (n, p) in zip(parts, named.items(), strict=True)}
        return F.cross_entropy(functional_call(model, weights, (x,)), y)

    return f, torch.cat([p.reshape(-1) for p in named.values()])


def dense(model: nn.Module, batches) -> Tensor:
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    hessian = torch.autograd.functional.hessian(*flat_loss(model, batches))
    for m, training in was:
        m.training = training
    return hessian


def split(batches, *sizes: int):
    (x, y), start, parts = batches[0], 0, []
    for size in sizes:
        parts.append((x[start : start + size], y[start : start + size]))
        start += size
    return parts


MEASURES = {
    "top_eigenvalue": top_eigenvalue,
    "eigenvalues": lambda model, batches, **o: eigenvalues(model, batches, 2, **o)[1],
    "trace": lambda model, batches, **o: trace(model, batches, probes=3, deflate=3, **o),
    "worst_case": lambda model, batches, **o: worst_case(model, batches, 0.1, steps=2, **o),
    "average_case": lambda model, batches, **o: average_case(model, batches, 0.1, draws=4, **o),
    "relative_flatness": relative_flatness,
    "input_gradient_norm": input_gradient_norm,
    "input_top_eigenvalue": input_top_eigenvalue,
}
every = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
both = pytest.mark.parametrize("kind", ["positive", "negative"])

# ------------------------------------------------------------------------------------ eigenvalues


@both
def test_eigenvalues_are_those_of_the_dense_hessian(kind):
    model, batches = case(kind)
    exact = torch.linalg.eigvalsh(dense(model, batches)).flip(0)
    assert (exact[0] > -exact[-1]) == (kind == "positive")  # what dominates in magnitude
    top = top_eigenvalue(model, batches)
    assert top.value == pytest.approx(float(exact[0]), rel=1e-3)
    assert abs(top.value - float(exact[0])) <= top.error <= 1e-3 * top.value
    three = eigenvalues(model, batches, 3, tol=1e-6)
    assert [m.value for m in three] == pytest.approx(exact[:3].tolist(), rel=1e-5)


def test_a_quadratic_has_the_eigenvalues_of_its_matrix():
    model, batches = bowl()
    found = [m.value for m in eigenvalues(model, batches, 6)]
    assert found == pytest.approx([1.0, -0.25, -0.5, -1.5, -2.0, -5.0], rel=1e-9)
    batches = [(batches[0][0], 1 - batches[0][1])]
    assert top_eigenvalue(model, batches, tol=1e-9).value == pytest.approx(5.0, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9), ranks=st.lists(st.integers(0, 9), min_size=1, max_size=4), shift=st.floats(-3, 3),
    seed=st.integers(0, 999), k=st.integers(1, 9),
)  # fmt: skip
def test_lanczos_side_by_side_finds_what_eigh_finds(n, ranks, shift, seed, k):
    """Whatever the rank and the sign, also where the Krylov space is exhausted before the matrix is."""
    g, k = torch.Generator().manual_seed(seed), min(k, n)
    half = torch.stack([torch.randn(n, n, generator=g, dtype=torch.float64) * (torch.arange(n) < r) for r in ranks])
    a = half @ half.mT * torch.randn(len(ranks), 1, 1, generator=g, dtype=torch.float64)
    a = a + shift * torch.eye(n, dtype=torch.float64)
    start = torch.randn(len(ranks), n, generator=g, dtype=torch.float64)

    def times(v: Tensor) -> Tensor:
        return (a @ v[..., None])[..., 0]

    # A full run finds repeated eigenvalues as often as they are; one that may stop, the largest.
    exact = torch.linalg.eigvalsh(a).flip(1)[:, :k]
    value, _, _ = lanczos.largest(times, start, k, 0.0, n)
    assert torch.allclose(value, exact, rtol=1e-8, atol=1e-8)
    value, error, _ = lanczos.largest(times, start, 1, 1e-6, n)
    assert torch.allclose(value, exact[:, :1], rtol=1e-6, atol=1e-7)


def test_the_error_of_too_few_products_says_so():
    model, batches = case("positive")
    exact = torch.linalg.eigvalsh(dense(model, batches))
    for products in (1, 2, 3, 5, 8):
        found = top_eigenvalue(model, batches, tol=0, products=products)
        assert float((exact - found.value).abs().min()) <= found.error and found.passes == 4 * products


def test_fewer_parameters_are_a_block_of_the_hessian():
    model, batches = case("positive")
    model.head.requires_grad_(False)  # frozen or not, parameters count
    n = model.head.weight.numel()
    block = dense(model, batches)[-n - CLASSES : -CLASSES, -n - CLASSES : -CLASSES]
    found = eigenvalues(model, batches, 2, tol=1e-8, parameters=[model.head.weight])
    assert [m.value for m in found] == pytest.approx(torch.linalg.eigvalsh(block).flip(0)[:2].tolist(), rel=1e-7)
    assert top_eigenvalue(model, batches).value != pytest.approx(found[0].value, rel=1e-2)


@both
def test_agrees_with_curvlinops(kind):
    model, batches = case(kind)
    model.eval()
    parts = split(batches, 5, 7)
    weights = list(model.parameters())  # a dict after 3.0.1
    hessian = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), weights, parts)
    theirs = eigsh(hessian.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    ours = [m.value for m in eigenvalues(model, parts, 2, tol=1e-7)]
    assert ours == pytest.approx(sorted(theirs.tolist(), reverse=True), rel=1e-6)


def test_agrees_with_pyhessian():
    model, batches = case("positive")
    theirs = pyhessian.hessian(model.eval(), nn.CrossEntropyLoss(), data=batches[0], cuda=False)
    (value,), _ = theirs.eigenvalues(maxIter=500, tol=1e-7)
    assert top_eigenvalue(model, batches, tol=1e-6).value == pytest.approx(value, rel=1e-4)


@pytest.fixture(scope="module")
def slim_resnet():
    """A ResNet-18 of width 16, trained for a few steps: a real spectrum, a few outliers above the bulk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("resnet18", width=16)
        x, y = torch.rand(32, 3, 32, 32), torch.arange(32) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    update_batchnorm(model, [(x, y)])  # a few steps do not settle what eval mode uses
    return model.eval(), [(x, y)]


def test_top_eigenvalue_of_a_resnet_agrees_with_curvlinops(slim_resnet):
    model, batches = slim_resnet
    hessian = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), batches)
    (theirs,) = eigsh(hessian.to_scipy(), k=1, which="LA", ncv=8, tol=1e-4, return_eigenvectors=False)
    ours = top_eigenvalue(model, batches, keep_graph=True)
    assert ours.value == pytest.approx(theirs, rel=1e-3) and ours.error <= 1e-3 * ours.value


def test_trace_of_a_resnet_agrees_with_pyhessian(slim_resnet):
    model, batches = slim_resnet
    theirs = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=batches[0], cuda=False)
    torch.manual_seed(0)
    probes = np.array(theirs.trace(maxIter=15, tol=0))
    ours = trace(model, batches, keep_graph=True)
    error = probes.std(ddof=1) / math.sqrt(len(probes))
    assert abs(ours.value - probes.mean()) < 3 * math.hypot(ours.error, error) < 0.5 * ours.value


# ------------------------------------------------------------------------------------------- trace


@both
@pytest.mark.parametrize("deflate", [0, 4, 10])
def test_trace_is_within_its_error_of_the_dense_hessian(kind, deflate):
    model, batches = case(kind)
    exact = float(dense(model, batches).trace())
    found = [trace(model, batches, probes=60, deflate=deflate, seed=s) for s in range(10)]
    off = np.array([(m.value - exact) / m.error for m in found])
    assert np.abs(off).max() < 5 and 0.4 < np.sqrt(np.mean(off**2)) < 1.8
    print(off)


@both
def test_trace_is_exact_with_as_many_directions_as_weights(kind):
    model, batches = case(kind)
    hessian = dense(model, batches)
    found = trace(model, batches, deflate=len(hessian))
    assert found.value == pytest.approx(float(hessian.trace()), rel=1e-9) and found.error == 0
    model, batches = bowl()
    assert trace(model, batches, deflate=6).value == pytest.approx(-8.25, rel=1e-12)


def test_deflation_takes_the_large_eigenvalues_out_of_the_error():
    model, batches = case("positive")
    plain = trace(model, batches, probes=30, deflate=0)
    assert trace(model, batches, probes=15, deflate=15).error < plain.error / 3


# --------------------------------------------------------------------- the loss around the weights


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_of_a_linear_model(adaptive):
    """z = bᵀw falls fastest along -b: by ρ‖b‖ or, in the ball scaled by |w|, by ρ‖wb‖."""
    model, batches = bowl(linear=True)
    w, b, rho = model.w.detach(), model.b, 0.3
    z, slope = float(b @ w), float((w * b if adaptive else b).norm())
    exact = math.log1p(math.exp(-z + rho * slope)) - math.log1p(math.exp(-z))
    for steps in (1, 3):
        found = worst_case(model, batches, rho, steps=steps, adaptive=adaptive)
        assert found.value == pytest.approx(exact, rel=1e-12)
        assert found.error < 1e-12 and found.passes == steps + 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_of_a_quadratic_model(adaptive):
    """The maximum of a quadratic over a ball, by the secular equation."""
    model, batches = bowl()
    w = torch.linspace(-0.5, 0.8, 6, dtype=torch.float64)
    model = Bowl(model.a, torch.ones(6, dtype=torch.float64), w)
    scale = w.abs() if adaptive else torch.ones_like(w)
    # least z over ‖u‖ ≤ ρ, δ = scale·u: z = z₀ + gᵀu + ½ uᵀMu
    values, q = torch.linalg.eigh(scale[:, None] * model.a * scale)
    g, rho = q.T @ (scale * (model.a @ w + model.b)), 0.3

    def u(mu: float) -> Tensor:
        return -g / (values + mu)

    low, high = max(0.0, -float(values[0])) + 1e-12, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(u(middle).norm()) > rho else (low, middle)
    best = u(low)
    z0 = float(w @ model.a @ w / 2 + model.b @ w)
    z = z0 + float(g @ best + (values * best * best).sum() / 2)
    exact = math.log1p(math.exp(-z)) - math.log1p(math.exp(-z0))
    found = [worst_case(model, batches, rho, steps=n, adaptive=adaptive) for n in (1, 2, 4, 100)]
    values = [m.value for m in found]
    assert values == sorted(values) and values[0] < exact
    assert found[-1].value == pytest.approx(exact, rel=1e-8) and found[-1].error < 1e-4 < found[0].error


def test_one_step_is_that_of_sam():
    model, batches = case("positive")
    model.eval()
    f, w = flat_loss(model, batches)
    g = torch.func.grad(f)(w)
    for adaptive, delta in ((False, 0.2 * g / g.norm()), (True, 0.2 * w**2 * g / (w * g).norm())):
        found = worst_case(model, batches, 0.2, adaptive=adaptive)
        assert found.value == pytest.approx(float(f(w + delta) - f(w)), rel=1e-9)


def test_worst_case_per_batch_is_the_mean_over_images_of_each_batch_alone():
    model, batches = case("positive")
    parts = split(batches, 2, 7, 3)
    alone = [worst_case(model, [part], 0.2, steps=2) for part in parts]
    found = worst_case(model, parts, 0.2, steps=2, per_batch=True)
    assert found.value == pytest.approx(sum(m.value * m.images for m in alone) / 12, rel=1e-12)
    assert found.error == pytest.approx(sum(m.error * m.images for m in alone) / 12, rel=1e-9)
    assert found.passes == 3 and found.images == 12
    one, own = (worst_case(model, parts, 0.2, steps=30, per_batch=each).value for each in (False, True))
    assert own > one


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_case_of_a_linear_model(adaptive):
    """z is normal, so that the mean of log(1 + exp(-z)) is an integral over one number."""
    model, batches = bowl(linear=True)
    w, b, rho = model.w.detach(), model.b, 0.5
    z, std = float(b @ w), rho * float((w * b if adaptive else b).norm())
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    exact = float(weights @ np.logaddexp(0, -z - std * nodes)) / math.sqrt(2 * math.pi) - math.log1p(math.exp(-z))
    found = average_case(model, batches, rho, adaptive=adaptive, draws=400)
    assert abs(found.value - exact) < 4 * found.error and found.error < 0.1 * exact
    assert found.passes == round(401 / 3, 3)


@both
def test_average_case_tends_to_the_trace(kind):
    model, batches = case(kind)
    exact = float(dense(model, batches).trace()) * 1e-3**2 / 2
    found = average_case(model, batches, 1e-3, draws=200)
    assert abs(found.value - exact) < 4 * found.error + 1e-3 * abs(exact)
    assert found.error < 0.2 * abs(exact)  # the pairs ±δ cancel the gradient's part


@pytest.mark.parametrize("measure", [worst_case, average_case])
def test_no_radius_no_change(measure):
    assert measure(*case("positive"), 0).value == pytest.approx(0, abs=1e-12)


# ------------------------------------------------------------------------------- relative flatness


def brute_kappa(model: Net, batches) -> float:
    """The definition, entry by entry."""
    w, d = model.head.weight.detach(), model.head.in_features
    at = slice(-w.numel() - CLASSES, -CLASSES)
    blocks = dense(model, batches)[at, at].view(CLASSES, d, CLASSES, d)
    return sum(
        float(w[s] @ w[t]) * float(blocks[s, :, t].trace()) for s in range(CLASSES) for t in range(CLASSES)
    )  # fmt: skip


def test_relative_flatness_is_what_its_definition_says():
    model, batches = case("positive")
    found = relative_flatness(model, split(batches, 4, 8))
    assert found.value == pytest.approx(brute_kappa(model, batches), rel=1e-9)
    alone = [relative_flatness(model, [part]).value for part in split(batches, *[1] * 12)]
    assert found.value == pytest.approx(np.mean(alone), rel=1e-12)
    assert found.error == pytest.approx(np.std(alone, ddof=1) / math.sqrt(12), rel=1e-9)
    plain = nn.Sequential(model.body, model.head)
    assert relative_flatness(plain, batches, head=plain[1]).value == pytest.approx(found.value, rel=1e-12)


class Scaled(nn.Module):
    def __init__(self, factor: Tensor):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def rescaled(model: Net, factor: Tensor) -> Net:
    """The same function: features multiplied by `factor`, the head's weights divided by it."""
    model.body.append(Scaled(factor))
    with torch.no_grad():
        model.head.weight /= factor
    return model


def test_relative_flatness_stays_when_layers_are_rescaled_and_the_trace_does_not():
    (model, batches), other = case("positive"), rescaled(case("positive")[0], torch.full((6,), 5.0))
    before, after = (relative_flatness(m, batches).value for m in (model, other))
    assert after == pytest.approx(before, rel=1e-9)
    head = [trace(m, batches, deflate=99, parameters=[m.head.weight]).value for m in (model, other)]
    assert head[1] == pytest.approx(25 * head[0], rel=1e-6)


def test_relative_flatness_of_unit_features_stays_when_neurons_are_rescaled():
    model, batches = case("positive")
    other = rescaled(case("positive")[0], torch.tensor([1, 2, 3, 0.5, 7, 0.1], dtype=torch.float64))
    before, after = (relative_flatness(m, batches, unit_std=True).value for m in (model, other))
    assert after == pytest.approx(before, rel=1e-9)
    assert relative_flatness(other, batches).value != pytest.approx(relative_flatness(model, batches).value, rel=0.1)
    std = model.eval().body(batches[0][0]).detach().std(0, correction=0)
    unit = rescaled(case("positive")[0], 1 / std)
    assert before == pytest.approx(brute_kappa(unit, batches), rel=1e-9)


# ------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("x", "weight"), ("bias",), ("x", "weight", "bias")])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"padding": (2, 0), "dilation": (1, 2)}, {"groups": 2, "stride": (1, 2)}],
)
def test_second_derivatives_of_convolutions_are_torch_s_own(options, wanted):
    conv = nn.Conv2d(4, 6, 3, **options).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    at = [{"x": x, "weight": conv.weight, "bias": conv.bias}[name].requires_grad_() for name in wanted]
    [p.requires_grad_(name in wanted) for name, p in conv.named_parameters()]
    directions = [torch.randn_like(t) for t in at]

    def products(y: Tensor) -> list[Tensor]:
        gradient = torch.autograd.grad(y.tanh().square().sum(), at, create_graph=True)
        return [*gradient, *torch.autograd.grad(gradient, at, directions)]

    found, own = products(landscape._convolution(conv, x)), products(conv(x))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, own, strict=True))


@both
def test_input_measures_are_those_of_each_image_s_own_derivatives(kind):
    model, batches = case(kind)
    model.eval().requires_grad_(False)
    norms, tops = [], []
    for x, y in zip(*batches[0], strict=True):

        def ell(v, x=x, y=y):
            return F.cross_entropy(model(v.view(1, *SHAPE)), y[None])

        norms.append(float(torch.func.grad(ell)(x.flatten()).norm()))
        tops.append(float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(ell, x.flatten()))[-1]))
    for measure, exact in ((input_gradient_norm, norms), (input_top_eigenvalue, tops)):
        found = measure(model, split(batches, 5, 7))
        assert found.value == pytest.approx(np.mean(exact), rel=1e-3)
        assert found.error == pytest.approx(np.std(exact, ddof=1) / math.sqrt(12), rel=0.02)


# ---------------------------------------------------------------------------------- for all of them


@every
def test_results_do_not_depend_on_how_the_images_are_batched(measure):
    model, batches = case("negative")
    whole, parts = measure(model, batches), measure(model, split(batches, 1, 6, 0, 5))
    assert whole.value == pytest.approx(parts.value, rel=1e-9) and whole.images == parts.images == 12
    assert whole.error == pytest.approx(parts.error, rel=1e-6, abs=1e-12)


@every
def test_the_same_seed_gives_the_same_bits_whatever_the_surroundings(measure):
    model, batches = case("positive")
    torch.manual_seed(1)
    first = measure(model, batches, split="train")
    torch.manual_seed(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert measure(model.eval(), batches, split="train") == first
    with torch.inference_mode():
        assert measure(model, batches, split="train") == first
    assert isinstance(first, Measured) and first.split == "train" and first.passes > 0
    assert all(type(v) is float for v in (first.value, first.error, first.passes))


@pytest.mark.parametrize("name", ["top_eigenvalue", "trace", "average_case", "input_top_eigenvalue"])
def test_seeds_change_what_is_drawn(name):
    model, batches = case("positive")
    assert len({MEASURES[name](model, batches, seed=seed).value for seed in range(3)}) == 3


def everything(model: nn.Module):
    """All that a measure could disturb."""
    parts = [(n, id(t), t.clone(), None if t.grad is None else t.grad.clone(), t.requires_grad)
             for n, t in (*model.named_parameters(), *model.named_buffers())]  # fmt: skip
    modes = [(n, m.training, len(m._forward_hooks)) for n, m in model.named_modules()]
    return parts, modes, torch.get_rng_state(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Explodes(nn.Module):
    """Counts its calls in a buffer, draws numbers, and in the end raises."""

    def __init__(self, calls: int):
        super().__init__()
        self.calls = calls
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        torch.rand(3)
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("boom")
        return x


@every
@pytest.mark.parametrize("calls", [10**6, 1], ids=["returns", "raises"])
def test_the_model_is_left_as_found(measure, calls):
    model, batches = case("positive")
    model.body.append(Explodes(calls))
    model.body[1].eval()
    model.body[0].weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = everything(model)
    try:
        measure(model, split(batches, 6, 6))
        assert calls > 1
    except RuntimeError as error:
        assert str(error) == "boom"
    assert same(everything(model), before)


@every
def test_a_model_that_draws_draws_the_same_at_every_pass(measure):
    """A network that stays random in eval mode is one fixed function here."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.3 * torch.randn_like(x)

    model, batches = case("positive")
    model.body.append(Noise())
    assert measure(model, batches) == measure(model, batches)


def test_eval_mode_is_what_counts():
    model, batches = case("positive")
    assert top_eigenvalue(model.train(), batches) == top_eigenvalue(model.eval(), batches)


def test_kept_graphs_change_the_cost_alone():
    model, batches = case("negative")
    parts = split(batches, 5, 7)
    new, kept = (top_eigenvalue(model, parts, keep_graph=keep, tol=1e-6) for keep in (False, True))
    assert kept.value == pytest.approx(new.value, rel=1e-9)
    assert kept.passes == new.passes / 4 * 3 + 1
    new, kept = (trace(model, parts, probes=5, deflate=3, keep_graph=keep) for keep in (False, True))
    assert kept.value == pytest.approx(new.value, rel=1e-9)
    assert (new.passes, kept.passes) == (3 * 4 + 1 + 5 * 3, 1 + 8 * 3)


def test_passes_of_the_inputs():
    model, batches = case("positive")
    assert input_gradient_norm(model, batches).passes == 1
    assert relative_flatness(model, batches).passes == 0.333
    assert input_top_eigenvalue(model, batches, products=2, tol=0).passes == 7


def test_fp32_and_the_zoo():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("resnet18", width=4, image_shape=(1, 8, 8)).to(memory_format=torch.channels_last)
        batches = [(torch.rand(6, 1, 8, 8), torch.randint(10, (6,)))]
    fine = top_eigenvalue(model, batches, tol=1e-4).value
    model.double()
    assert fine == pytest.approx(top_eigenvalue(model, batches, tol=1e-6).value, rel=1e-4)


def test_what_torch_compile_wrapped_is_measured_uncompiled():
    model, batches = case("positive")
    wrapped = torch.compile(model, backend="eager")
    for measure in (top_eigenvalue, relative_flatness):
        assert measure(wrapped, batches) == measure(model, batches)
    model.body = torch.compile(model.body, backend="eager")
    with pytest.raises(ValueError, match="'body' is compiled"):
        top_eigenvalue(model, batches)


def test_tied_weights_count_once():
    _, batches = case("positive")
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 9), nn.Linear(9, CLASSES)).double()
    model[3].weight = model[1].weight
    exact = torch.linalg.eigvalsh(dense(model, batches))
    assert len(exact) == 9 * 9 + 9 + 9 + 9 * 4 + 4
    assert top_eigenvalue(model, batches, tol=1e-6).value == pytest.approx(float(exact[-1]), rel=1e-6)


# ------------------------------------------------------------------------------------ what is refused


class Augmented(list):
    """Other images at every iteration."""

    rounds = 0

    def __iter__(self):
        self.rounds += 1
        return ((x / (1 + self.rounds), y) for x, y in super().__iter__())


def hooked() -> nn.Module:
    model = case("positive")[0]
    model.head.register_full_backward_hook(lambda *_: None)
    return model


def broken() -> nn.Module:
    model = case("positive")[0]
    with torch.no_grad():
        model.head.bias[0] = math.nan
    return model


X, Y = case("positive")[1][0]
REFUSED = {
    "one shot": (lambda m, b: top_eigenvalue(m, iter(b)), "passed over again and again; give a list"),
    "generator": (lambda m, b: trace(m, (pair for pair in b)), "batches is a generator"),
    "not nested": (lambda m, b: trace(m, b[0]), r"give \[\(images, labels\)"),
    "empty": (lambda m, b: trace(m, []), "no image; give at least one"),
    "empty batch": (lambda m, b: trace(m, [(X[:0], Y[:0])]), "no image; give at least one"),
    "uint8": (lambda m, b: trace(m, [(X.byte(), Y)]), "torch.uint8; give floats"),
    "labels": (lambda m, b: trace(m, [(X, Y[:3])]), r"shape \(3,\); give torch.int64 of shape \(12,\)"),
    "negative label": (lambda m, b: trace(m, [(X, Y - 100)]), "classes count from 0"),
    "high label": (lambda m, b: trace(m, [(X, Y + 4)]), "the model has classes 0 to 3"),
    "augmented": (lambda m, b: top_eigenvalue(m, Augmented(b)), "not augmented"),
    "k 0": (lambda m, b: eigenvalues(m, b, 0), "k is 0; give a whole number of at least 1"),
    "k high": (lambda m, b: eigenvalues(m, b, 200), "k is 200; .* at most 100, for 100 products and"),
    "tol": (lambda m, b: top_eigenvalue(m, b, tol=-1), "tol is -1; give a number of at least 0"),
    "products": (lambda m, b: input_top_eigenvalue(m, b, products=0), "products is 0; give"),
    "probes": (lambda m, b: trace(m, b, probes=1), "probes is 1; give a whole number of at least 2"),
    "deflate": (lambda m, b: trace(m, b, deflate=1.5), "deflate is 1.5; give a whole number"),
    "rho": (lambda m, b: worst_case(m, b, -0.1), "rho is -0.1; give a number of at least 0"),
    "nan": (lambda m, b: average_case(m, b, math.nan), "rho is nan; give"),
    "steps": (lambda m, b: worst_case(m, b, 0.1, steps=0), "steps is 0; give"),
    "draws": (lambda m, b: average_case(m, b, 0.1, draws=5), "draws is 5; give an even number"),
    "seed": (lambda m, b: top_eigenvalue(m, b, seed=2**32), "seed is 4294967296; give"),
    "strangers": (lambda m, b: trace(m, b, parameters=[nn.Parameter(X)]), "1 tensors, 0 of them the model's"),
    "no parameters": (lambda m, b: trace(m, b, parameters=[]), "parameters holds 0 tensors"),
    "half": (lambda m, b: trace(m.bfloat16(), b), r"torch.bfloat16 on cpu; .* copy.deepcopy\(model\).float"),
    "no weights": (lambda m, b: trace(nn.Flatten(), b), "weights are none; give"),
    "no logits": (lambda m, b: trace(m.body[0], b), r"to logits \(B, C\)"),
    "hook": (lambda m, b: trace(hooked(), b), "'head' has a backward hook"),
    "loss": (lambda m, b: worst_case(broken(), b, 0.1), "the loss is nan; give weights"),
    "overflow": (lambda m, b: average_case(m, b, 1e308), "the loss is .*; give weights, or a rho, that do not"),
    "no head": (lambda m, b: relative_flatness(m.body, b), "the head is NoneType; give head="),
    "wrong head": (lambda m, b: relative_flatness(m, b, head=m.body[5]), "not the model's; give head="),
}


@pytest.mark.parametrize("call, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals_say_what_and_how(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(*case("positive"))


def test_unknown_options_are_errors():
    with pytest.raises(TypeError, match="iterations"):
        top_eigenvalue(*case("positive"), iterations=3)


def test_a_second_derivative_that_is_not_finite_is_refused():
    class Cusp(Bowl):
        def forward(self, x: Tensor) -> Tensor:
            z = self.w.pow(1.5).sum()  # at 0 a gradient of 0, and no second derivative
            return torch.stack([z, 0 * z]).expand(len(x), 2)

    _, batches = bowl()
    with pytest.raises(ValueError, match="a Hessian-vector product is not finite; give weights"):
        top_eigenvalue(Cusp(torch.eye(2), torch.zeros(2), torch.zeros(2)), batches)


class Attends(nn.Module):
    """Self-attention over pixels, by torch's fused kernels or written out."""

    def __init__(self, fused: bool):
        super().__init__()
        self.embed, self.head, self.fused = nn.Linear(1, 8), nn.Linear(8, 3), fused
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        z = self.embed(x.flatten(1)[..., None])
        if self.fused:
            z = self.attend(z, z, z, need_weights=False)[0]
        else:
            all_heads = F.linear(z, self.attend.in_proj_weight, self.attend.in_proj_bias)
            q, k, v = all_heads.view(*z.shape[:2], 3, 2, 4).unbind(2)
            weights = torch.einsum("nqhd,nkhd->nhqk", q, k).div(2).softmax(-1)
            z = self.attend.out_proj(torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2))
        return self.head(z.mean(1))


def test_attention_that_is_fused_has_the_curvature_of_attention_written_out():
    torch.manual_seed(0)
    fused, plain = Attends(True), Attends(False)
    plain.load_state_dict(fused.state_dict())
    pairs = [(torch.rand(6, 1, 3, 3), torch.arange(6) % 3)]
    for measure in (top_eigenvalue, trace, input_top_eigenvalue):
        assert measure(fused, pairs).value == pytest.approx(measure(plain, pairs).value, rel=1e-3)
