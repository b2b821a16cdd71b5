"""Minimizers: equal to each other where theory says so, to closed forms, and to independent implementations."""

import copy
import io
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import pytorch_optimizer as theirs
import torch
import torch.nn.functional as F
from pytorch_optimizer.optimizer.utils import disable_running_stats, enable_running_stats
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from rfnlib import buffers, data, keys, minimizers, vectors
from rfnlib.minimizers import (
    AGSAM,
    ASAM,
    GAM,
    GNP,
    GSAM,
    RFN,
    SAM,
    SWA,
    WASAM,
    LookSAM,
    MinimizerError,
    Noise,
    constant,
    proportional_to_lr,
    update_batchnorm,
    warmup,
)

PERTURBING = {"SAM": SAM, "RFN": RFN, "ASAM": ASAM, "GSAM": GSAM, "AGSAM": AGSAM, "LookSAM": LookSAM, "GAM": GAM}
PERTURBING |= {"GNP": GNP, "WASAM": WASAM, "Noise": Noise}
METHODS = PERTURBING | {"SWA": SWA}
HEAVY = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
BASES = {
    "SGD": (SGD, HEAVY | {"nesterov": True}),
    "fused SGD": (SGD, HEAVY | {"fused": True}),
    "AdamW": (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}
every_method = pytest.mark.parametrize("name", METHODS)
every_perturbing = pytest.mark.parametrize("name", PERTURBING)


def net(seed: int = 0, dtype: torch.dtype = torch.float64, batchnorm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = nn.BatchNorm2d(3) if batchnorm else nn.Identity()
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=not batchnorm),
            middle,
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(48, 5),
            nn.Tanh(),
            nn.Linear(5, 4),
        ).to(dtype)


def batch(i: int = 0, n: int = 8, dtype: torch.dtype = torch.float64):
    """The i-th batch."""
    generator = torch.Generator().manual_seed(i)
    x = torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(4, (n,), generator=generator)


def closure(minimizer, model, i: int = 0, each=lambda call, loss: loss):
    """The closure of the i-th batch; `each` sees the number of the call, from 1, and may replace the loss."""
    dtype = next(model.parameters()).dtype
    x, y = batch(i, dtype=dtype)
    calls = 0

    def run():
        nonlocal calls
        calls += 1
        minimizer.zero_grad()
        loss = each(calls, F.cross_entropy(model(x), y))
        loss.backward()
        return loss

    return run


def train(minimizer, model, steps: int = 5, first: int = 0):
    for i in range(first, first + steps):
        minimizer.step(closure(minimizer, model, i))
    return model


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def same_state(a, b) -> bool:
    """Nested dictionaries, lists, tensors and numbers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b


def pair(one, other, steps: int = 5, **options) -> tuple[nn.Module, nn.Module]:
    a, b = net(), net()
    return train(one(a, SGD, **HEAVY | options), a, steps), train(other(b, SGD, **HEAVY | options), b, steps)


# --- what holds for all --------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("base", BASES)
def test_rho_0_is_the_base_optimizer_bit_for_bit(name, base):
    kind, options = BASES[base]
    plain, ours = net(), net()
    optimizer = kind(plain.parameters(), **options)
    minimizer = METHODS[name](ours, kind, **options, **({} if name == "SWA" else {"rho": 0}))
    for i in range(4):
        optimizer.step(closure(optimizer, plain, i))
    train(minimizer, ours, 4)
    assert same_bits(plain, ours) and minimizer.passes == 4
    assert same_state(optimizer.state_dict(), minimizer.base.state_dict())


@every_perturbing
def test_the_perturbation_has_norm_rho(name):
    model = net()
    minimizer = PERTURBING[name](model, SGD, rho=0.3, lr=0.1)
    start, weights, seen = flat(model.parameters()), [n for n, _ in model.named_parameters()], []
    minimizer.step(closure(minimizer, model, each=lambda i, loss: seen.append(flat(model.parameters())) or loss))
    norms = [float((w - start).norm()) for w in seen]
    assert norms[0] == 0 and len(seen) == minimizer.passes
    if name == "GAM":
        assert norms[1:3] == pytest.approx([0.03, 0.3], rel=1e-12) and float((seen[3] - seen[2]).norm()) == (
            pytest.approx(0.03, rel=1e-12)
        )
    elif name in ("ASAM", "AGSAM"):
        sizes = zip(weights, net().parameters(), strict=True)
        t = flat(p.abs() + 0.01 if "weight" in n else torch.ones_like(p) for n, p in sizes)
        assert float(((seen[1] - start) / t).norm()) == pytest.approx(0.3, rel=1e-12)
    else:
        assert norms[1:] == pytest.approx([0.3], rel=1e-12)


@every_method
def test_weights_are_restored_to_the_bit(name):
    model = net(dtype=torch.float32)
    start = copy.deepcopy(model)
    minimizer = METHODS[name](model, SGD, lr=0.0)
    for i in range(3):
        minimizer.step(closure(minimizer, model, i))
    assert torch.equal(flat(model.parameters()), flat(start.parameters()))


@every_method
def test_batchnorm_moves_once_a_step_and_as_in_the_first_pass(name):
    model, twin = net(), net()
    minimizer = METHODS[name](model, SGD, lr=0.0)
    train(minimizer, model, 3)
    for i in range(3):
        twin(batch(i)[0])
    assert same_bits(model, twin) and int(model[1].num_batches_tracked) == 3


def test_buffers_of_any_kind_stay_as_the_first_pass_left_them():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("in_place", torch.zeros((), dtype=torch.int64))
            self.register_buffer("assigned", torch.zeros(2))
            self.register_buffer("none", None)
            self.register_buffer("empty", torch.zeros(0))

        def forward(self, x):
            self.in_place += 1
            self.assigned = self.assigned + 1
            return x

    model = net().append(Counting())
    minimizer = SAM(model, lr=0.1)
    train(minimizer, model, 3)
    assert int(model[-1].in_place) == 3 and torch.equal(model[-1].assigned, torch.full((2,), 3.0))


@every_method
@pytest.mark.parametrize("base", BASES)
def test_state_round_trips_mid_run_to_the_same_bits(name, base):
    kind, options = BASES[base]
    extra = {} if name == "SWA" else {"rho": warmup(0.2, 4)}
    extra |= {"k": 3} if name == "LookSAM" else {"start": 2} if name in ("SWA", "WASAM") else {}

    whole = net()
    one = METHODS[name](whole, kind, **options, **extra)
    train(one, whole, 5)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "minimizer": one.state_dict()}, file)
    train(one, whole, 4, first=5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = net(seed=1)
    two = METHODS[name](resumed, kind, **options, **extra)
    resumed.load_state_dict(saved["model"])
    two.load_state_dict(saved["minimizer"])
    train(two, resumed, 4, first=5)

    assert same_bits(whole, resumed) and same_state(one.state_dict(), two.state_dict())
    assert (two.steps, two.passes) == (9, one.passes)


def test_the_state_of_another_minimizer_is_rejected():
    for other in (GSAM(net()).state_dict(), SGD(net().parameters()).state_dict()):
        with pytest.raises(MinimizerError, match="not of SAM"):
            SAM(net()).load_state_dict(other)


class Forked(nn.Module):
    """Two heads, one of them used in some passes only."""

    def __init__(self):
        super().__init__()
        self.body, self.always, self.sometimes = net(), nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.passes, self.when = 0, ()

    def forward(self, x):
        self.passes += 1
        x = self.body(x)
        return self.always(x) + (self.sometimes(x) if self.passes in self.when else 0.0)


@every_perturbing
@pytest.mark.parametrize("when", [(1,), (2,), (4,), ()], ids=str)
def test_a_parameter_without_gradient_in_a_pass_ends_unharmed(name, when):
    torch.manual_seed(0)
    model = Forked()
    model.when = when
    start = copy.deepcopy(model)
    minimizer = PERTURBING[name](model, SGD, **HEAVY)
    minimizer.step(closure(minimizer, model))
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True)]
    updated = minimizer.passes in when  # the last pass of the step used it
    assert all(moved[:-2]) and moved[-2:] == [updated, updated]
    assert flat(model.parameters()).isfinite().all()
    if not updated:
        assert not any(p in minimizer.base.state for p in model.sometimes.parameters())


def bad_loss(call, loss):
    return loss + math.inf if call == 2 else loss  # its gradient is finite


def bad_gradient(call, loss):
    if call == 2:
        loss.register_hook(lambda g: g * math.nan)
    return loss


def bad_everything(call, loss):
    return loss * math.nan


@every_perturbing
@pytest.mark.parametrize("bad", [bad_loss, bad_gradient, bad_everything])
def test_a_non_finite_pass_skips_the_step(name, bad):
    model = net()
    minimizer = PERTURBING[name](model, SGD, **HEAVY, **({"k": 1} if name == "LookSAM" else {}))
    train(minimizer, model, 2)
    before, state = copy.deepcopy(model), copy.deepcopy(minimizer.state_dict())
    with pytest.warns(RuntimeWarning, match="skipped") as caught:
        loss = minimizer.step(closure(minimizer, model, 2, each=bad))
    assert len(caught) == 1 and loss.isfinite() == (bad is not bad_everything)
    assert same_bits(model, before) and minimizer.last["skipped"] and minimizer.skipped == 1
    assert same_state(state["base"], minimizer.base.state_dict()) and same_state(state["kept"], minimizer.kept)
    assert all(p.grad is None for p in model.parameters())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minimizer.step(closure(minimizer, model, 2, each=bad))  # only the first one warns
    train(minimizer, model, 2)
    assert minimizer.skipped == 2 and not minimizer.last["skipped"] and minimizer.steps == 6
    assert not same_bits(model, before) and flat(model.parameters()).isfinite().all()
    if name in ("SAM", "GSAM", "GNP", "GAM"):  # as if the bad batch had never come
        assert same_bits(model, train(minimizer_like(minimizer, twin := before, state), twin, 2))


def minimizer_like(minimizer, model, state):
    twin = type(minimizer)(model, SGD, **HEAVY)
    twin.load_state_dict(state)
    return twin


def test_a_non_finite_gradient_skips_steps_of_one_pass_too_unless_rho_is_0():
    model = net()
    minimizer = LookSAM(model, lr=0.1)
    train(minimizer, model, 1)
    before = copy.deepcopy(model)
    with pytest.warns(RuntimeWarning, match="skipped"):
        minimizer.step(closure(minimizer, model, 1, each=bad_everything))
    assert same_bits(model, before) and minimizer.passes == 3
    minimizer.rho = 0
    minimizer.step(closure(minimizer, model, 1, each=bad_everything))
    assert minimizer.skipped == 1 and flat(model.parameters()).isnan().all()  # the base optimizer, as it is


@every_method
@pytest.mark.parametrize("call", [1, 2, 4])
def test_what_the_closure_raises_passes_through_and_leaves_no_trace(name, call):
    def each(i, loss):
        if i == call:
            raise KeyboardInterrupt
        return loss

    model = net()
    minimizer = METHODS[name](model, SGD, **HEAVY, **({"k": 1} if name == "LookSAM" else {}))
    train(minimizer, model, 2)
    if minimizer.passes < 2 * call:
        return  # it never comes so far
    before, state = copy.deepcopy(model), copy.deepcopy(minimizer.state_dict())
    with pytest.raises(KeyboardInterrupt):
        minimizer.step(closure(minimizer, model, 2, each=each))
    assert same_bits(model, before) and same_state(state | {"passes": minimizer.passes}, minimizer.state_dict())


@every_perturbing
def test_a_zero_gradient_gives_no_nan(name):
    model = net()
    minimizer = PERTURBING[name](model, lr=0.1, log=True)
    for i in range(2):
        minimizer.step(closure(minimizer, model, i, each=lambda _, loss: loss * 0))
    assert torch.equal(flat(model.parameters()), flat(net().parameters())) and minimizer.skipped == 0


@every_method
def test_passes_are_counted(name):
    model = net()
    minimizer = METHODS[name](model, lr=0.1)
    count = []
    for i in range(10):
        minimizer.step(closure(minimizer, model, i, each=lambda _, loss: count.append(1) or loss))
    assert minimizer.passes == len(count) == {"LookSAM": 12, "GAM": 40, "SWA": 10}.get(name, 20)


@every_method
def test_step_returns_the_loss_at_the_weights_before_it(name):
    model = net()
    x, y = batch()
    expected = F.cross_entropy(copy.deepcopy(model)(x), y)
    minimizer = METHODS[name](model, lr=0.1)
    loss = minimizer.step(closure(minimizer, model))
    assert torch.equal(loss, expected) and not loss.requires_grad


@pytest.mark.parametrize("method", [SAM, GSAM, GNP, LookSAM, GAM])
def test_the_next_pass_may_write_over_the_gradients(method):
    """As zeroing in place, the buckets of DistributedDataParallel and CUDA graphs do."""
    ours, other = net(), net()
    minimizer = method(ours, lr=0.1)
    buckets = [torch.zeros_like(p) for p in ours.parameters()]
    for i in range(3):
        usual = closure(minimizer, ours, i)

        def run(usual=usual):
            loss = usual()
            for p, bucket in zip(ours.parameters(), buckets, strict=True):
                p.grad = bucket.copy_(p.grad)
            return loss

        minimizer.zero_grad = lambda: minimizer.base.zero_grad(set_to_none=False)
        minimizer.step(run)
    assert same_bits(ours, train(method(other, lr=0.1), other, 3))


def test_parameters_stay_the_same_tensors():
    model = net()
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    train(GSAM(model, lr=0.1), model, 2)
    assert before == [(id(p), p.data_ptr()) for p in model.parameters()]


# --- noise ---------------------------------------------------------------------------------------------


def directions(minimizer: Noise, steps: int) -> torch.Tensor:
    """The u of so many steps, as one row each."""
    model, params = minimizer.model, list(minimizer.model.parameters())
    found = []
    for i in range(steps):
        found.append(flat(minimizer.ascent(params, params, 1.0)))
        minimizer.step(closure(minimizer, model, i))
    return torch.stack(found)


def test_noise_is_a_step_along_the_gradient_at_a_point_of_the_sphere_drawn_for_this_step():
    model, twin = net(), net()
    minimizer = Noise(model, SGD, rho=0.3, seed=5, lr=0.1)
    drawn = torch.Generator()
    for i in range(3):
        drawn.manual_seed(keys.stream(5, "noise", i))
        x, y = batch(i)
        twin(x)  # BatchNorm's statistics are those of the pass at w
        params = dict(twin.named_parameters())
        u = {n: torch.randn(p.shape, generator=drawn, dtype=p.dtype) for n, p in params.items()}
        length = flat(u.values()).norm()
        there = {n: (p + 0.3 * u[n] / length).detach().requires_grad_() for n, p in params.items()}
        buffers = {n: b.clone() for n, b in twin.named_buffers()}
        loss = F.cross_entropy(torch.func.functional_call(twin, {**there, **buffers}, (x,)), y)
        with torch.no_grad():
            for p, g in zip(params.values(), torch.autograd.grad(loss, list(there.values())), strict=True):
                p -= 0.1 * g
        minimizer.step(closure(minimizer, model, i))
    assert torch.allclose(flat(model.parameters()), flat(twin.parameters()), rtol=1e-12, atol=1e-14)
    assert torch.equal(model[1].running_mean, twin[1].running_mean)


def test_noise_is_uniform_on_the_sphere_and_knows_nothing_of_the_gradient():
    minimizer = Noise(net(), SGD, lr=0.0, seed=0)
    u = directions(minimizer, 400)
    n = u.shape[1]
    assert u.norm(dim=1).numpy() == pytest.approx(np.ones(400), rel=1e-12)
    assert float(u.mean(0).norm()) < 2 / math.sqrt(400), "no direction is preferred"
    spread = u.T @ u / 400 * n
    assert float((spread - torch.eye(n)).abs().max()) < 0.5
    assert float((u[:-1] * u[1:]).sum(1).abs().mean()) < 2 / math.sqrt(n), "steps are independent"


def test_noise_depends_on_its_seed_and_the_step_alone():
    a, b, c = (directions(Noise(net(), SGD, lr=0.1, seed=s), 3) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a[0], a[1])
    with pytest.raises(MinimizerError, match="seed is -1; give a whole number of at least 0"):
        Noise(net(), SGD, lr=0.1, seed=-1)


# --- some are others ------------------------------------------------------------------------------------


def test_gsam_with_alpha_0_is_sam():
    assert same_bits(*pair(GSAM, SAM, rho=0.1)) is False
    assert same_bits(*pair(lambda *a, **o: GSAM(*a, alpha=0, **o), SAM, rho=0.1))


def test_gnp_with_alpha_1_is_sam_and_with_alpha_0_its_base():
    assert same_bits(*pair(GNP, SAM, rho=0.1)) is False
    assert same_bits(*pair(lambda *a, **o: GNP(*a, alpha=1, **o), SAM, rho=0.1))
    gnp, sgd = pair(lambda *a, **o: GNP(*a, alpha=0, **o), lambda *a, **o: SAM(*a, rho=0, **o))
    assert torch.allclose(flat(gnp.state_dict().values()), flat(sgd.state_dict().values()), rtol=1e-12, atol=1e-14)


def test_asam_with_unit_scaling_is_sam():
    assert same_bits(*pair(ASAM, SAM, rho=0.1)) is False
    assert same_bits(*pair(lambda *a, **o: ASAM(*a, scaled=lambda name: False, **o), SAM, rho=0.1))


def test_looksam_with_k_1_is_sam():
    assert same_bits(*pair(LookSAM, SAM, rho=0.1)) is False
    assert same_bits(*pair(lambda *a, **o: LookSAM(*a, k=1, **o), SAM, rho=0.1))


def test_agsam_with_alpha_0_is_asam_and_with_unit_scaling_gsam():
    assert same_bits(*pair(lambda *a, **o: AGSAM(*a, alpha=0, **o), ASAM))
    assert same_bits(*pair(lambda *a, **o: AGSAM(*a, scaled=lambda name: False, **o), GSAM, rho=0.1))


def test_rfn_is_sam_with_a_large_rho_and_wasam_trains_as_sam():
    assert same_bits(*pair(RFN, lambda *a, **o: SAM(*a, rho=0.2, **o)))
    assert same_bits(*pair(WASAM, SAM))


def test_a_step_goes_down_the_mean_of_its_batch_whatever_the_groups():
    """Two parameter groups with options of their own, in an optimizer that is built already."""
    ours, reference = net(), net()
    groups = lambda m: [{"params": m[:4].parameters(), "lr": 0.3}, {"params": m[4:].parameters()}]  # noqa: E731
    minimizer = SAM(ours, SGD(groups(ours), lr=0.1, momentum=0.5), rho=0.2)
    optimizer = SGD(groups(reference), lr=0.1, momentum=0.5)
    train(minimizer, ours, 3)
    for i in range(3):
        reference_sam_step(reference, optimizer, *batch(i), rho=0.2)
    assert torch.allclose(flat(ours.parameters()), flat(reference.parameters()), rtol=1e-12, atol=1e-14)
    assert minimizer.param_groups is minimizer.base.param_groups and len(minimizer.param_groups) == 2


# --- averages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WASAM", "SWA"])
@pytest.mark.parametrize(("start", "every"), [(0, 1), (3, 2), (6, 1)])
def test_the_average_is_the_plain_mean(name, start, every):
    model = net()
    minimizer = METHODS[name](model, SGD, start=start, every=every, **HEAVY)
    path = [flat(train(minimizer, model, 1, first=i).parameters()) for i in range(7)]
    last = copy.deepcopy(model)
    with minimizer.averaged() as averaged:
        assert averaged is model
        mean = torch.stack(path[start + every - 1 :: every]).mean(0)
        assert torch.allclose(flat(model.parameters()), mean, rtol=1e-13)
        update_batchnorm(model, [batch()])
        assert not torch.equal(model[1].running_mean, last[1].running_mean)
    assert same_bits(model, last)


def test_the_average_comes_back_out_of_a_block_that_raises_and_not_before_it_exists():
    model = net()
    minimizer = SWA(model, lr=0.1, start=1)
    train(minimizer, model, 1)
    with pytest.raises(MinimizerError, match="after 1 steps no weights are averaged"), minimizer.averaged():
        pass
    train(minimizer, model, 2)
    last = copy.deepcopy(model)
    with pytest.raises(KeyError), minimizer.averaged():
        raise KeyError
    assert same_bits(model, last)


def test_weights_in_bfloat16_are_averaged_in_float32():
    model = net(dtype=torch.bfloat16)
    minimizer = WASAM(model, lr=0.1)
    path = [flat(train(minimizer, model, 1, first=i).parameters()).float() for i in range(4)]
    assert torch.allclose(flat(minimizer.kept["mean"]), torch.stack(path).mean(0), rtol=1e-6)


def test_update_batchnorm_is_the_mean_over_batches_and_leaves_nothing_else():
    ours, torchs = net(), net()
    for model in (ours, torchs):
        train(SAM(model, lr=0.1), model, 3)
    batches = [batch(i) for i in range(4)]
    ours.insert(3, nn.Dropout(0.5))
    ours[3].eval()
    modes, random = [m.training for m in ours.modules()], torch.get_rng_state()
    update_batchnorm(ours, iter(batches))
    assert torch.equal(torch.get_rng_state(), random) and modes == [m.training for m in ours.modules()]
    torch.optim.swa_utils.update_bn(batches, torchs)
    del ours[3]
    assert same_bits(ours, torchs) and ours[1].momentum == 0.1
    means = torch.stack([ours[0](x).mean((0, 2, 3)) for x, _ in batches])
    assert torch.allclose(ours[1].running_mean, means.mean(0), rtol=1e-12)


def test_update_batchnorm_without_batches_keeps_the_statistics():
    model = train(SAM(m := net(), lr=0.1), m, 2)
    before = copy.deepcopy(model)
    with pytest.raises(MinimizerError, match="no batches"):
        update_batchnorm(model, [])
    assert same_bits(model, before) and model.training and model[1].momentum == 0.1
    update_batchnorm(net(batchnorm=False), [])  # nothing to estimate


# --- closed forms ---------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """L(w) = wᵀHw/2 with w in two tensors; `bias` and `weight` are for ASAM."""

    H = np.diag([3.0, 1.0, -0.5, 0.2]) + 0.3 * np.ones((4, 4))
    W = np.array([0.5, -1.0, 2.0, 0.7])

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(self.W[:3]).reshape(3, 1))
        self.bias = nn.Parameter(torch.tensor(self.W[3]))

    def w(self):
        return torch.cat([self.weight.flatten(), self.bias.reshape(1)])

    def forward(self):
        return self.w() @ torch.tensor(self.H) @ self.w() / 2


def go(method, steps: int = 1, **options) -> list[np.ndarray]:
    """The directions of some steps, from the weights that plain SGD leaves behind, weight decay taken out."""
    model, path = Quadratic(), []
    minimizer = method(model, SGD, lr=0.1, weight_decay=0.05, **options)

    def run():
        minimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    for _ in range(steps):
        w = model.w().detach().numpy().copy()
        minimizer.step(run)
        path.append((w, (w - model.w().detach().numpy()) / 0.1 - 0.05 * w))
    return path


def gradient(w):
    return Quadratic.H @ w


def unit(v):
    return v / np.sqrt((v**2).sum())


def orthogonal(v, to):
    return v - (v @ to) / (to @ to) * to


def test_sam_on_a_quadratic():
    [(w, d)] = go(SAM, rho=0.4)
    np.testing.assert_allclose(d, gradient(w + 0.4 * unit(gradient(w))), rtol=1e-12)


def test_asam_on_a_quadratic():
    [(w, d)] = go(ASAM, rho=0.4, eta=0.02)
    t = np.abs(w) + 0.02
    t[3] = 1.0  # the bias
    np.testing.assert_allclose(d, gradient(w + 0.4 * t * unit(t * gradient(w))), rtol=1e-12)


def test_gsam_on_a_quadratic():
    [(w, d)] = go(GSAM, rho=0.4, alpha=0.3)
    plus = gradient(w + 0.4 * unit(gradient(w)))
    np.testing.assert_allclose(d, plus - 0.3 * orthogonal(gradient(w), plus), rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0, 10.0])
def test_gnp_on_a_quadratic(alpha):
    for w, d in go(GNP, steps=2, rho=0.4, alpha=alpha):
        g = gradient(w)
        plus = gradient(w + 0.4 * unit(g))
        np.testing.assert_allclose(d, g + alpha * (plus - g), rtol=1e-11)


def test_gnp_penalises_the_norm_of_the_gradient():
    """∇(L + λ‖∇L‖) = g + λ Hg/‖g‖, which is exact for a quadratic; without options λ is 1 and ρ 0.1."""
    for rho, alpha in ((0.1, 10.0), (0.4, 2.5)):
        [(w, d)] = go(GNP, rho=rho, alpha=alpha)
        np.testing.assert_allclose(d, gradient(w) + Quadratic.H @ unit(gradient(w)), rtol=1e-11)
    [(w, d)] = go(GNP)
    np.testing.assert_allclose(d, gradient(w) + Quadratic.H @ unit(gradient(w)), rtol=1e-11)


def test_looksam_on_a_quadratic():
    for i, (w, d) in enumerate(go(LookSAM, steps=5, rho=0.4, k=3, alpha=0.6)):
        g = gradient(w)
        if i % 3 == 0:
            plus = gradient(w + 0.4 * unit(g))
            turn = orthogonal(plus, g)
            np.testing.assert_allclose(d, plus, rtol=1e-11)
        else:
            np.testing.assert_allclose(d, g + 0.6 * np.sqrt(g @ g) * unit(turn), rtol=1e-11)


def test_gam_on_a_quadratic():
    """After algorithm and code of the authors: a point in place of their in-place additions."""
    [(w, d)] = go(GAM, rho=0.4, probe=0.1, betas=(0.3, 0.8, 0.7), gamma=0.2)
    g0 = gradient(w)
    g1 = gradient(w + 0.1 * g0 / np.linalg.norm(g0))
    w2 = w + 0.4 * (g1 - g0) / np.linalg.norm(g1 - g0)
    g2 = gradient(w2)
    g3 = gradient(w2 + 0.1 * g2 / np.linalg.norm(g2))
    pro_m, new = g0 + 0.8 * g2, 0.3 * g1 + 0.7 * g3
    cosine = pro_m @ new / (np.linalg.norm(pro_m) * np.linalg.norm(new))
    vertical = pro_m - cosine * np.linalg.norm(pro_m) * new / np.linalg.norm(new)
    np.testing.assert_allclose(d, new - 0.2 * vertical, rtol=1e-12)


def test_log_holds_the_rise_the_norm_and_the_cosine():
    model = Quadratic()
    minimizer = SAM(model, lr=0.1, rho=0.4, log=True)

    def run():
        minimizer.zero_grad()
        model().backward()
        return model()

    minimizer.step(run)
    g = gradient(Quadratic.W)
    there = Quadratic.W + 0.4 * unit(g)
    rise = there @ gradient(there) / 2 - Quadratic.W @ g / 2
    expected = {"rho": 0.4, "rise": rise, "norm": np.sqrt(g @ g), "cosine": unit(g) @ unit(gradient(there))}
    assert minimizer.last == pytest.approx(expected | {"skipped": False}, rel=1e-12)
    minimizer.rho = 0.0
    minimizer.step(run)
    assert minimizer.last["norm"] > 0 and math.isnan(minimizer.last["rise"])
    assert SAM(net()).last == {}


# --- independent implementations ------------------------------------------------------------------------


def reference_sam_step(model, optimizer, x, y, rho, alpha=0.0):
    """SAM as plainly as can be: the second gradient is taken in a copy of the network."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    norm = sum((p.grad**2).sum() for p in model.parameters()) ** 0.5
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            q.copy_(p + rho * p.grad / norm)
    other.zero_grad()
    F.cross_entropy(other(x), y).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = q.grad
    optimizer.step()


@pytest.mark.parametrize("base", BASES)
def test_sam_agrees_with_a_plain_reference(base):
    kind, options = BASES[base]
    ours, reference = net(), net()
    optimizer = kind(reference.parameters(), **options)
    train(SAM(ours, kind, rho=0.2, **options), ours)
    for i in range(5):
        reference_sam_step(reference, optimizer, *batch(i), rho=0.2)
    for a, b in zip(ours.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_gnp_agrees_with_a_plain_reference():
    """d = g + α (g₊ − g), with the second gradient taken in a copy of the network."""
    ours, hand = net(), net()
    train(GNP(ours, SGD, rho=0.2, alpha=3.0, lr=0.1), ours)
    for i in range(5):
        x, y = batch(i)
        g = torch.autograd.grad(F.cross_entropy(hand(x), y), list(hand.parameters()))
        other, norm = copy.deepcopy(hand), sum((v**2).sum() for v in g) ** 0.5
        with torch.no_grad():
            for q, v in zip(other.parameters(), g, strict=True):
                q += 0.2 * v / norm
        plus = torch.autograd.grad(F.cross_entropy(other(x), y), list(other.parameters()))
        with torch.no_grad():
            for p, v, there in zip(hand.parameters(), g, plus, strict=True):
                p -= 0.1 * (v + 3.0 * (there - v))
    for a, b in zip(ours.state_dict().values(), hand.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def their_training(name, model, weights, steps, rho):
    """The training with pytorch_optimizer's minimizer, whose ASAM is `adaptive`."""
    options = {"rho": rho, "adaptive": name in ("ASAM", "AGSAM")}
    if name in ("GSAM", "AGSAM"):

        class Fixed:
            step = staticmethod(lambda: rho)

        minimizer = theirs.GSAM(weights, SGD(weights, **HEAVY), model, Fixed(), 0.4, options["adaptive"])
        for i in range(steps):
            minimizer.set_closure(F.cross_entropy, *batch(i))
            minimizer.step()
        return
    minimizer = (
        theirs.LookSAM(weights, SGD, k=3, **options, **HEAVY)
        if name == "LookSAM"
        else theirs.SAM(weights, SGD, **options, **HEAVY)
    )
    for i in range(steps):
        run = closure(minimizer, model, i)
        run()  # it wants the first pass done,
        disable_running_stats(model)  # and BatchNorm looked after
        minimizer.step(run)
        enable_running_stats(model)


@pytest.mark.parametrize("name", ["SAM", "ASAM", "GSAM", "AGSAM", "LookSAM"])
def test_agreement_with_pytorch_optimizer(name):
    """To 1e-6, for it takes norms in float32. It has no GAM and no WASAM (its WSAM is another method)."""
    ours, model = net(), net()
    # Its LookSAM takes norms by tensor where ours are over all parameters: the same for a single one.
    chosen = slice(1) if name == "LookSAM" else slice(None)
    weights = [list(m.parameters())[chosen] for m in (ours, model)]
    # Its ASAM scales all parameters, without η, as davda54's does: ours is the authors' unless told otherwise.
    options = {"ASAM": {"eta": 0.0, "scaled": lambda name: True}, "LookSAM": {"k": 3}}
    options["AGSAM"] = options["ASAM"]
    train(METHODS[name](ours, SGD(weights[0], **HEAVY), rho=0.2, **options.get(name, {})), ours, 7)
    their_training(name, model, weights[1], 7, rho=0.2)
    assert not same_bits(ours, net())
    assert torch.allclose(flat(ours.parameters()), flat(model.parameters()), rtol=1e-6, atol=1e-7)
    for buffer in ("running_mean", "running_var"):  # not num_batches_tracked: it counts both passes
        assert torch.allclose(getattr(ours[1], buffer), getattr(model[1], buffer), rtol=1e-6)


# --- where it runs --------------------------------------------------------------------------------------


@every_method
def test_a_compiled_model_trains_alike(name):
    eager, model = net(), net()
    compiled = torch.compile(model, backend="aot_eager")
    train(METHODS[name](eager, lr=0.1), eager, 3)
    minimizer = METHODS[name](compiled, lr=0.1)
    train(minimizer, compiled, 3)
    assert torch.allclose(flat(eager.parameters()), flat(model.parameters()), rtol=1e-9, atol=1e-12)
    assert int(model[1].num_batches_tracked) == 3


@every_method
def test_bf16_autocast_in_the_closure(name):
    model = net(dtype=torch.float32)
    start = copy.deepcopy(model)
    minimizer = METHODS[name](model, **HEAVY)
    x, y = batch(dtype=torch.float32)

    def run():
        minimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        return loss

    losses = [float(minimizer.step(run)) for _ in range(8)]
    assert losses[-1] < losses[0] and minimizer.skipped == 0 and not same_bits(model, start)


def test_frozen_parameters_and_those_of_no_group_stay_out_of_it():
    model = net()
    model[0].requires_grad_(False)
    start = copy.deepcopy(model)
    minimizer = LookSAM(model, SGD(model[:5].parameters(), lr=0.1), k=2)
    train(minimizer, model, 3)
    assert torch.equal(flat(model[0].parameters()), flat(start[0].parameters()))
    assert torch.equal(flat(model[6].parameters()), flat(start[6].parameters()))
    model[0].requires_grad_(True)
    train(minimizer, model, 3)
    assert not torch.equal(flat(model[0].parameters()), flat(start[0].parameters()))


# --- rho and other options ------------------------------------------------------------------------------


def test_schedules_of_rho():
    assert [constant(0.3)(i, 0.1) for i in (0, 9)] == [0.3, 0.3]
    assert [warmup(0.4, 4)(i, 0.1) for i in range(6)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert warmup(0.4, 0)(0, 0.1) == 0.4
    assert proportional_to_lr(0.4, 0.1)(7, 0.025) == pytest.approx(0.1)
    assert proportional_to_lr(0.4, 0.1, 0.2, 0.01)(7, 0.01) == pytest.approx(0.2)


def test_rho_follows_the_step_and_the_learning_rate_of_a_scheduler():
    model, seen = net(), []
    minimizer = SAM(model, lr=0.1, rho=lambda step, lr: seen.append((step, lr)) or lr * 2)
    scheduler = torch.optim.lr_scheduler.StepLR(minimizer.base, 1, gamma=0.5)
    for i in range(3):
        train(minimizer, model, 1, first=i)
        scheduler.step()
    assert seen == [(0, 0.1), (1, 0.05), (2, 0.025)] and minimizer.last == {"rho": 0.05, "skipped": False}
    minimizer.rho = lambda step, lr: -1.0
    with pytest.raises(MinimizerError, match=r"^rho is -1.0; give a finite number of 0 or more.$"):
        train(minimizer, model, 1)


@every_method
def test_unknown_options_are_errors(name):
    with pytest.raises(TypeError, match="warm_up"):
        METHODS[name](net(), lr=0.1, warm_up=3)


@every_perturbing
@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_a_rho_that_is_no_radius_is_rejected_in_one_sentence(name, rho):
    with pytest.raises(MinimizerError, match=r"^rho is .*; give a finite number of 0 or more\.$"):
        PERTURBING[name](net(), rho=rho)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        (ASAM, {"eta": -1}, "eta is -1"),
        (GSAM, {"alpha": -1}, "alpha is -1"),
        (GNP, {"alpha": -1}, "alpha is -1"),
        (GNP, {"alpha": math.nan}, "alpha is nan"),
        (LookSAM, {"k": 0}, "k is 0"),
        (LookSAM, {"k": 2.0}, "k is 2.0"),
        (GAM, {"betas": (1, 2)}, "three numbers"),
        (GAM, {"probe": -1}, "probe is -1"),
        (WASAM, {"every": 0}, "every is 0"),
        (SWA, {"start": -1}, "start is -1"),
    ],
)
def test_bad_options_are_rejected(method, options, match):
    with pytest.raises(MinimizerError, match=match):
        method(net(), **options)


def test_other_bad_arguments_are_rejected():
    model = net()
    with pytest.raises(MinimizerError, match="built already; give lr to it"):
        SAM(model, SGD(model.parameters()), lr=0.1)
    with pytest.raises(MinimizerError, match="returned None"):
        SAM(model).step(lambda: None)
    with pytest.raises(TypeError, match="rho"):
        SWA(model, rho=0.1)
    with pytest.raises(MinimizerError, match="larger lr_max"):
        proportional_to_lr(0.1, 0.0)
    for bad in (lambda: warmup(-1, 3), lambda: warmup(0.1, -3), lambda: constant(-1)):
        with pytest.raises(MinimizerError, match="give a"):
            bad()


# --- what came silently ---------------------------------------------------------------------------------


class ComplexQuadratic(nn.Module):
    """L(z) = ‖A z‖² − Re⟨b, z⟩ for complex z in two tensors; as `real`, the same in real and imaginary parts."""

    def __init__(self, real: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(5, 5, dtype=torch.complex128, generator=generator)
        z, self.b = torch.randn(2, 5, dtype=torch.complex128, generator=generator)
        self.a, self.real = a, real
        self.parts = nn.ParameterList(torch.view_as_real(p).clone() if real else p.clone() for p in (z[:2], z[2:]))

    def z(self):
        parts = [torch.view_as_complex(p) if self.real else p for p in self.parts]
        return torch.cat(parts)

    def forward(self):
        return (self.a @ self.z()).abs().square().sum() + (self.b.conj() * self.z()).real.sum()


@pytest.mark.parametrize("name", sorted(PERTURBING.keys() - {"ASAM", "AGSAM"}))  # their T is the modulus
def test_complex_weights_train_as_their_real_and_imaginary_parts(name):
    """`dot` did not conjugate: GSAM, LookSAM and GAM went elsewhere."""
    models = ComplexQuadratic(), ComplexQuadratic(real=True)
    for model in models:
        minimizer = PERTURBING[name](model, SGD, rho=0.2, lr=0.01, momentum=0.9, log=True)
        for _ in range(7):
            minimizer.step(plain_closure(minimizer, model))
        assert -1 <= minimizer.last["cosine"] <= 1 or name == "LookSAM"
    torch.testing.assert_close(models[0].z(), models[1].z(), rtol=1e-10, atol=1e-12)


def test_asam_scales_complex_weights_by_their_modulus():
    model = ComplexQuadratic()
    minimizer = ASAM(model, SGD, rho=0.3, lr=0.0, scaled=lambda name: True)
    z, seen = model.z().detach().clone(), []
    minimizer.step(plain_closure(minimizer, model, seen=lambda: seen.append(model.z().detach().clone())))
    assert float(((seen[1] - z) / (z.abs() + 0.01)).norm()) == pytest.approx(0.3, rel=1e-12)


def plain_closure(minimizer, model, seen=lambda: None):
    def run():
        seen()
        minimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    return run


@every_method
def test_a_closure_without_backward_is_refused_in_one_sentence(name):
    model = net()
    minimizer = METHODS[name](model, lr=0.1)
    x, y = batch()

    def run():
        minimizer.zero_grad()
        return F.cross_entropy(model(x), y)

    start = copy.deepcopy(model)
    with pytest.raises(MinimizerError, match=r"^the closure left no gradients; let it call .*\(\)\.$"):
        minimizer.step(run)
    assert same_bits(model, start)


@every_perturbing
def test_gradients_of_old_are_not_taken_for_new_ones(name):
    """As left by `loss.backward()` before the step, or by the step before."""
    model = net()
    minimizer = PERTURBING[name](model, lr=0.1)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    for _ in range(2):
        start = copy.deepcopy(model)
        with pytest.raises(MinimizerError, match="left no gradients"):
            minimizer.step(lambda: F.cross_entropy(model(x), y))
        assert same_bits(model, start)
        train(minimizer, model, 1)


def test_a_backward_in_the_first_pass_only_is_refused_and_leaves_no_trace():
    model = net()
    minimizer = SAM(model, lr=0.1)
    start, calls = copy.deepcopy(model), []
    x, y = batch()

    def run():
        loss = F.cross_entropy(model(x), y)
        if not calls:
            loss.backward()
        calls.append(1)
        return loss

    with pytest.raises(MinimizerError, match="left no gradients"):
        minimizer.step(run)
    assert same_bits(model, start) and len(calls) == 2


def test_all_parameters_frozen_is_no_fault_of_the_closure():
    model = net().requires_grad_(False)
    for minimizer in (SWA(model, lr=0.1), SAM(model, lr=0.1)):
        assert minimizer.step(lambda: F.cross_entropy(model(batch()[0]), batch()[1])).isfinite()


@every_method
def test_a_base_optimizer_of_another_model_is_refused_in_one_sentence(name):
    model, other = net(), net()
    with pytest.raises(MinimizerError, match=r"^7 of the 7 parameters of the base optimizer are not the model's;"):
        METHODS[name](model, SGD(other.parameters()))
    with pytest.raises(MinimizerError, match="1 of the 8 parameters"):
        METHODS[name](model, SGD([*model.parameters(), nn.Parameter(torch.zeros(1))]))
    METHODS[name](nn.ModuleList([model, other]), SGD([*model.parameters(), *other.parameters()]))


# --- half precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_warned_of_where_rounding_takes_the_perturbation(dtype):
    model = net(dtype=dtype)
    minimizer = SAM(model, lr=0.01, rho=1e-4)
    with pytest.warns(RuntimeWarning, match="round most of the perturbation away") as caught:
        train(minimizer, model, 3)
    assert len(caught) == 1 and minimizer.skipped == 0 and "lost" not in minimizer.last
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(SAM(model, lr=0.01, rho=0.5), model, 3)


def test_the_norm_of_half_precision_gradients_does_not_overflow():
    """Squares above 65504 made ‖g‖ infinite in float16, and SAM silently plain SGD."""
    x = [torch.full((64,), 3e4, dtype=torch.float16), torch.ones(3, dtype=torch.float16)]
    assert float(vectors.norm(x)) == pytest.approx(2.4e5, rel=1e-3)
    assert float(vectors.dot(x, x)) == pytest.approx(5.76e10, rel=1e-3)
    assert float(vectors.norm(vectors.scaled_to(1.0, x))) == pytest.approx(1, rel=1e-2)


# --- training that stalls -------------------------------------------------------------------------------


def digits_perceptron(rho, steps: int):
    """A small perceptron on digits, where too large a radius holds the weights near their beginning."""
    dataset = data.load("digits").subset(500)
    x, y = data.to_float(dataset.train_images).flatten(1), dataset.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 10))
    minimizer = SAM(model, SGD, rho=rho, lr=0.1, momentum=0.9)
    drawn = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(y), (50,), generator=drawn)

        def run(chosen=chosen):
            minimizer.zero_grad()
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            return loss

        minimizer.step(run)
    return minimizer


def test_a_rho_that_holds_a_network_where_it_began_warns_once():
    minimizer = digits_perceptron(1.0, 500)
    assert minimizer.stalled() and minimizer.skipped == 0
    with pytest.warns(RuntimeWarning, match="has not fallen in 500 steps: with rho = 1 training") as caught:
        minimizer.state_dict()
        minimizer.state_dict()
    assert len(caught) == 1


def test_the_default_of_rfn_and_a_large_rho_with_a_warmup_do_not_stall():
    for rho in (0.2, warmup(1.0, 125)):
        minimizer = digits_perceptron(rho, 500)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            minimizer.state_dict()
        assert not minimizer.stalled() and float(torch.stack([*minimizer._losses]).mean()) < 0.7


# --- cost -----------------------------------------------------------------------------------------------


class Syncs(TorchDispatchMode):
    """Counts what makes the processor wait for the device: a tensor read as a number."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@every_method
@pytest.mark.parametrize("log", [False, True])
def test_a_step_waits_for_the_device_once_at_most(name, log):
    model = net(dtype=torch.float32)
    minimizer = METHODS[name](model, SGD, lr=0.1, momentum=0.9, fused=True, log=log)
    train(minimizer, model, 1)
    for i in range(1, 4):
        run = closure(minimizer, model, i)
        with Syncs() as syncs:
            minimizer.step(run)
        # On the processor `tolist` reads each of its numbers; on a device it copies them at once.
        numbers = len(minimizer.last.keys() - {"rho", "skipped"}) if log else 0
        assert syncs.count <= (0 if name == "SWA" and not log else 1 + numbers)


def test_buffers_are_copied_by_type():
    model = net(dtype=torch.float32)
    held = buffers.hold(model)
    expected = [b.clone() for b in model.buffers()]

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._foreach_copy_.default:
                groups.append({t.dtype for t in args[0]})
            return func(*args, **(kwargs or {}))

    groups = []
    model(batch(dtype=torch.float32)[0])
    with Calls():
        buffers.put_back(held)
    assert sorted(map(str, groups)) == ["{torch.float32}", "{torch.int64}"]
    assert all(map(torch.equal, model.buffers(), expected))


@every_method
def test_passes_a_step_are_told_without_building_and_are_those_taken(name):
    options = {"k": 4} if name == "LookSAM" else {}
    model = net()
    minimizer = METHODS[name](model, lr=0.1, **options)
    train(minimizer, model, 8)
    kind = type(minimizer) if name == "RFN" else METHODS[name]
    assert minimizer.passes == 8 * kind.passes_per_step(**options)


# --- habits ---------------------------------------------------------------------------------------------


def test_parameters_in_place_of_the_model_want_the_model_beside_them():
    ours, other = net(), net()
    with pytest.raises(MinimizerError, match=r"^parameters alone do not show the buffers .*; give the model"):
        SAM(ours.parameters(), SGD, rho=0.1, lr=0.1)
    train(SAM(ours.parameters(), SGD, rho=0.1, model=ours, **HEAVY), ours)
    train(SAM(other, SGD, rho=0.1, **HEAVY), other)
    assert same_bits(ours, other)
    groups = [{"params": ours[:4].parameters(), "lr": 0.3}, {"params": ours[4:].parameters()}]
    assert len(SAM(groups, SGD, rho=0.1, model=ours, lr=0.1).param_groups) == 2


@every_method
def test_schedulers_take_the_minimizer_itself(name):
    """One that looks at the momentum, too; no warning about the order of steps."""
    rates = []
    for of in (lambda minimizer: minimizer, lambda minimizer: minimizer.base):
        model = net()
        minimizer = METHODS[name](model, SGD, lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(of(minimizer), 0.5, total_steps=6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for i in range(5):
                train(minimizer, model, 1, first=i)
                scheduler.step()
        group = minimizer.base.param_groups[0]
        rates.append((group["lr"], group["momentum"], flat(model.parameters())))
    assert rates[0][:2] == rates[1][:2] and torch.equal(rates[0][2], rates[1][2])
    assert rates[0][0] != 0.1 and isinstance(minimizer, torch.optim.Optimizer)


def test_a_scheduler_on_the_minimizer_outlives_a_loaded_state():
    model = net()
    minimizer = SAM(model, SGD, **HEAVY)
    train(minimizer, model, 2)
    minimizer.load_state_dict(minimizer.state_dict())  # torch hangs up new groups
    scheduler = torch.optim.lr_scheduler.StepLR(minimizer, 1, gamma=0.5)
    train(minimizer, model, 1)
    scheduler.step()
    assert minimizer.base.param_groups[0]["lr"] == 0.05 and minimizer.state is minimizer.base.state


def test_hooks_groups_and_copies_are_those_of_a_torch_optimizer():
    model = net()
    minimizer = SAM(model, SGD(model[:5].parameters(), **HEAVY), rho=0.1)
    seen = []
    minimizer.register_step_post_hook(lambda *_: seen.append("ours"))
    minimizer.base.register_step_pre_hook(lambda *_: seen.append("base"))
    minimizer.add_param_group({"params": model[6].parameters()})
    torch.optim.lr_scheduler.StepLR(minimizer, 1)  # wraps `step`
    start = copy.deepcopy(model)
    train(minimizer, model, 2)
    assert seen == ["base", "ours"] * 2 and not torch.equal(model[6].weight, start[6].weight)
    twin = copy.deepcopy(minimizer)
    before = flat(model.parameters())
    train(twin, twin.model, 1, first=2)
    assert torch.equal(flat(model.parameters()), before)
    assert same_bits(twin.model, train(minimizer, model, 1, first=2))


def test_gradients_are_accumulated_in_the_closure():
    whole, parts = net(batchnorm=False), net(batchnorm=False)
    train(SAM(whole, rho=0.3, **HEAVY), whole, 3)
    minimizer = SAM(parts, rho=0.3, **HEAVY)
    for i in range(3):
        x, y = batch(i)

        def run(x=x, y=y):
            minimizer.zero_grad()
            total = 0.0
            for images, labels in zip(x.split(2), y.split(2), strict=True):
                loss = F.cross_entropy(parts(images), labels) / 4
                loss.backward()
                total += loss.detach()
            return total

        minimizer.step(run)
    assert torch.allclose(flat(whole.parameters()), flat(parts.parameters()), rtol=1e-11, atol=1e-13)


def test_clipping_in_a_hook_bounds_the_direction_and_in_the_closure_each_gradient():
    def clip(model):
        def hook(*_):
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)

        return hook

    model = net()
    minimizer = GSAM(model, SGD, rho=0.3, lr=1.0)
    minimizer.base.register_step_pre_hook(clip(model))
    start = flat(model.parameters())
    train(minimizer, model, 1)
    assert float((flat(model.parameters()) - start).norm()) == pytest.approx(0.01, rel=1e-3)

    one, other = net(), net()  # SAM's direction is one gradient, so both do the same
    hooked, inside = (SAM(m, SGD, rho=0.3, lr=1.0, log=True) for m in (one, other))
    hooked.base.register_step_pre_hook(clip(one))
    train(hooked, one, 1)
    usual = closure(inside, other)
    inside.step(lambda: (usual(), clip(other)())[0])
    assert torch.allclose(flat(one.parameters()), flat(other.parameters()), rtol=1e-6)
    assert hooked.last["norm"] > 0.01 and inside.last["norm"] == pytest.approx(0.01, rel=1e-3)


@every_method
def test_a_gradscaler_is_refused_in_one_sentence_and_a_constant_scale_works(name):
    model, twin = net(dtype=torch.float32), net(dtype=torch.float32)
    minimizer = METHODS[name](model, SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = batch(dtype=torch.float32)

    def run():
        minimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()

    for unscale in (False, True):
        run()
        if unscale:
            scaler.unscale_(minimizer)
        with pytest.raises(MinimizerError, match=r"^a GradScaler does not see the passes inside of a step; autocast"):
            scaler.step(minimizer, run)
        scaler.update()
    assert torch.equal(flat(model.parameters()), flat(twin.parameters()))

    def scaled():
        minimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (1024 * loss).backward()
        for p in model.parameters():
            p.grad /= 1024
        return loss

    minimizer.step(scaled)  # and what the scaler left behind is forgotten
    train(METHODS[name](twin, SGD, lr=0.1), twin, 1)
    assert torch.allclose(flat(model.parameters()), flat(twin.parameters()), rtol=1e-4, atol=1e-6)
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    assert disabled.step(minimizer, scaled).isfinite()


def test_a_step_without_closure_is_refused_in_one_sentence():
    with pytest.raises(MinimizerError, match=r"^LookSAM takes several gradients a step; give step\(closure\)\.$"):
        LookSAM(net()).step()


@pytest.mark.parametrize("name", ["first_step", "second_step"])
def test_the_two_steps_of_other_libraries_are_one_here(name):
    minimizer = SAM(net())
    assert not hasattr(minimizer, name)
    with pytest.raises(AttributeError, match=r"^SAM has no first_step and second_step; give step\(closure\), for"):
        getattr(minimizer, name)(zero_grad=True)


def test_what_is_adaptive_elsewhere_is_a_class_here():
    for made in (lambda m: SAM(m.parameters(), SGD, rho=0.1, adaptive=True), lambda m: GSAM(m, adaptive=False)):
        with pytest.raises(MinimizerError, match="^adaptive is (True|False); what is adaptive is a class .* take ASAM"):
            made(net())


@pytest.mark.parametrize("base", ["SGD", 0.05, None])
def test_a_base_that_is_no_optimizer_is_refused_in_one_sentence(base):
    model = net()
    with pytest.raises(MinimizerError, match=f"^base is {base!r}; give a class such as torch.optim.SGD, or one"):
        SAM(model.parameters(), base, lr=0.1)


# --- several processes ----------------------------------------------------------------------------------

RANK = """
import math, sys
import torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from rfnlib.minimizers import GSAM

def train(model, x, y, bad, batches):
    minimizer = GSAM(model, torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    for i in batches:
        def closure():
            minimizer.zero_grad()
            loss = F.cross_entropy(model(x[i]), y[i])
            loss.backward()
            return loss + math.inf if bad and i == 2 else loss
        minimizer.step(closure)
    return minimizer, list(model.parameters())

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
x, y = torch.rand(5, 8, 4, dtype=torch.float64), torch.randint(3, (5, 8))
if len(sys.argv) == 2:
    minimizer, weights = train(net, x, y, False, (0, 1, 3, 4))
else:
    rank = int(sys.argv[2])
    dist.init_process_group("gloo", store=dist.FileStore(sys.argv[3], 2), rank=rank, world_size=2)
    mine = slice(rank, None, 2)
    minimizer, weights = train(DistributedDataParallel(net), x[:, mine], y[:, mine], rank == 1, range(5))
    dist.destroy_process_group()
torch.save({"weights": weights, "skipped": minimizer.skipped, "steps": minimizer.steps}, sys.argv[1])
"""


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(tmp_path):
    """Weights parted silently. Two processes, each with half of every batch, end as one with the whole."""
    runs = [[tmp_path / "whole"], *([tmp_path / f"rank{r}", r, tmp_path / "store"] for r in (0, 1))]
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    started = [subprocess.Popen([*command, *map(str, run)], stderr=subprocess.PIPE, text=True) for run in runs]
    for process in started:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    whole, first, second = (torch.load(run[0], weights_only=True) for run in runs)
    assert all(map(torch.equal, first["weights"], second["weights"]))
    assert (first["skipped"], second["skipped"], first["steps"], second["steps"]) == (1, 1, 5, 5)
    assert torch.allclose(flat(whole["weights"]), flat(first["weights"]), rtol=1e-10, atol=1e-12)


# --- methods by name ------------------------------------------------------------------------------------


def test_a_minimizer_of_ones_own_is_registered_by_name(monkeypatch):
    class Twice(SAM):
        """Nothing new."""

    monkeypatch.setattr(minimizers, "METHODS", dict(minimizers.METHODS))
    with pytest.raises(MinimizerError, match="method is 'Twice'; give one of SAM, ASAM, .*, SWA, or `register` it"):
        minimizers.method("Twice")
    with pytest.raises(MinimizerError, match="method is 'gsam'; give .*, or `register` it; 'GSAM' may be meant.$"):
        minimizers.method("gsam")
    minimizers.register("Twice", Twice)
    minimizers.register("Twice", Twice)  # a notebook's cell run again
    assert minimizers.method("Twice") is Twice and minimizers.method("SWA") is SWA
    for name, kind, match in (
        ("SAM", Twice, "SAM is .*SAM'> already; give another name"),
        ("no name", Twice, "name is 'no name'; give an identifier"),
        ("Other", SGD, "method is .*SGD'>; give a subclass of SAM"),
        ("RFN", Twice, "RFN is SAM with a large rho; give another name"),
    ):
        with pytest.raises(MinimizerError, match=match):
            minimizers.register(name, kind)
