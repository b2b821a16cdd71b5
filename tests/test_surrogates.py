"""Surrogates: against slow code, closed forms, torch's and other people's implementations, and for all settings."""

import copy
import itertools
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from functools import reduce

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from rfnlib import surrogates
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
    AttackError,
    IterativeAttack,
    at_iteration,
    cross_entropy,
    frozen,
    input_gradient,
)
from rfnlib.bricks import Dense, Network, Residual
from rfnlib.minimizers import MinimizerError
from rfnlib.models import ARCHITECTURES, build
from rfnlib.surrogates import Cycle, Ensemble, GhostNetwork, SkipGradient, Surrogate, Swag, average, loaded
from rfnlib.transforms import Batch, GradientNorm, Neighbours, Reverse, Scales

N, SHAPE, CLASSES = 4, (2, 8, 8), 4
RESIDUAL = ("resnet18", "preresnet18", "senet18", "wrn16", "resnext20", "mobilenetv2", "convmixer", "vit")
WIDTH = {"mobilenetv2": 8, "convmixer": 8, "vit": 6, "vgg11": 4, "googlenet": 24, "cnn": 4}
quick = settings(max_examples=40, deadline=None)


def zoo(arch: str, seed: int = 0) -> nn.Module:
    """A slim network of the zoo in float64 and eval mode, its BatchNorm's statistics those of some data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(arch, width=WIDTH.get(arch, 2), n_classes=CLASSES, image_shape=SHAPE).double()
        for _ in range(3):
            model(torch.rand(8, *SHAPE).double())
    return model.eval()


def net(seed: int = 0) -> nn.Sequential:
    """A small smooth residual network in float64, bent enough for gradients to turn; in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        def block(channels):
            branch = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Softplus())
            return Residual(branch, nn.Identity(), nn.Identity())

        model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.Softplus(), block(4), block(4), nn.Dropout(0.5))
        model += nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))
        model.double()(torch.rand(32, *SHAPE).double())
        model[0].weight.data *= 3
    return model


def batch(n: int = N, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator)


X, Y = batch()
EPS, STEP = 0.1, 0.03


def by_hand(module, x, gamma=1.0, skip=lambda shortcut: shortcut):
    """A network of the zoo, with `gamma` in autograd and `skip` done to its shortcuts; those come first."""
    if isinstance(module, Network):
        return module.head(by_hand(module.body, module.normalize(x), gamma, skip))
    if type(module) is nn.Sequential:
        return reduce(lambda z, layer: by_hand(layer, z, gamma, skip), module, x)
    if not isinstance(module, (Residual, Dense)):
        return module(x)
    kept, added = skip(module.shortcut(x)), by_hand(module.branch, x, gamma, skip)
    added = gamma * added + (1 - gamma) * added.detach()
    return torch.cat([kept, added], 1) if isinstance(module, Dense) else module.activation(kept + added)


def gradient(function, x=X, y=Y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(function(x), y, reduction="sum"), x)[0]


def trace(model):
    """All that an attack could leave behind in `model` and in torch."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "values": b"".join(t.detach().numpy().tobytes() for t in tensors),
        "identity": [id(t) for t in tensors],
        "modes": [m.training for m in model.modules()],
        "grads": [(p.requires_grad, p.grad) for p in model.parameters()],
        "hooks": [len(h) for m in model.modules() for k, h in vars(m).items() if k.endswith("_hooks") and h],
        "rng": torch.get_rng_state().tolist(),
        "passed": [m.passed for m in model.modules() if isinstance(m, Surrogate)],
    }


# ------------------------------------------------------------------------------------- skip gradients


@pytest.mark.parametrize("arch", [*RESIDUAL, "resnet50", "densenet22"])
def test_skip_gradients_have_the_networks_values_and_the_slow_ones_gradient(arch):
    model = zoo(arch)
    for gamma in (0.0, 0.3, 1.0):
        wrapped = SkipGradient(model, gamma)
        assert torch.equal(wrapped(X), model(X))
        slow = gradient(lambda x, gamma=gamma: by_hand(model, x, gamma))
        assert torch.allclose(gradient(wrapped), slow, rtol=1e-9, atol=1e-14)
        plain = gradient(model)
        assert torch.equal(gradient(wrapped), plain) if gamma == 1 else not torch.allclose(slow, plain, rtol=1e-3)


def test_skip_gradients_of_linear_blocks_are_the_closed_form():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6, bias=False).double() for _ in range(3)]
    model = nn.Sequential(*(Residual(layer, nn.Identity(), nn.Identity()) for layer in layers))
    x, seen = torch.rand(1, 6).double().requires_grad_(), torch.rand(1, 6).double()
    (pulled,) = torch.autograd.grad((SkipGradient(model, 0.4)(x) * seen).sum(), x)
    jacobian = reduce(lambda j, layer: (torch.eye(6) + 0.4 * layer.weight) @ j, layers, torch.eye(6).double())
    assert torch.allclose(pulled, seen @ jacobian)


def test_a_branch_that_is_the_shortcut_too_is_scaled_alone():
    model = Residual(nn.Identity(), nn.Identity(), nn.Identity())
    x = torch.ones(1, 2, requires_grad=True)
    assert torch.equal(torch.autograd.grad(SkipGradient(model, 0.25)(x).sum(), x)[0], torch.full((1, 2), 1.25))


def named_for_their_hooks(first: str) -> nn.Sequential:
    """A residual network whose names begin and end like torchvision's: `layer1.1.….relu`, the first `{first}.relu`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)

        def block(name):
            inside = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3, padding=1), relu=nn.ReLU()))
            branch = nn.Sequential(OrderedDict([(name, inside), ("conv", nn.Conv2d(4, 4, 1))]))
            return Residual(branch, nn.Identity(), nn.Softplus())

        stage = nn.Sequential(OrderedDict([("1", block(first)), ("2", block("2"))]))
        layers = [("stem", nn.Conv2d(2, 4, 3, stride=2)), ("layer1", stage), ("flat", nn.Flatten())]
        model = nn.Sequential(OrderedDict([*layers, ("head", nn.Linear(36, CLASSES))])).double().eval()
        for parameter in model.parameters():
            parameter.data *= 2
    return model


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_skip_gradients_are_those_of_torchattack_but_for_blocks_called_0(monkeypatch):
    from torchattack import SGM  # here, since it takes seconds

    def theirs(model):
        options = {"eps": EPS, "alpha": STEP, "steps": 5, "gamma": 0.3, "device": torch.device("cpu")}
        return SGM(copy.deepcopy(model), hook_cfg="resnet18", **options)(X, Y).detach()

    def ours(model):
        return MI(EPS, step=STEP, steps=5)(model, X, Y)

    model = named_for_their_hooks(first="1")
    assert (ours(SkipGradient(model, 0.3)) - theirs(model)).abs().max() < 1e-6
    assert (ours(model) - theirs(model)).abs().max() > 0.01
    # The same network, but for the 0 that torchvision calls the first block of a stage: they forget it, we do not.
    again = named_for_their_hooks(first="0")
    assert torch.equal(ours(SkipGradient(again, 0.3)), ours(SkipGradient(model, 0.3)))
    assert (ours(SkipGradient(again, 0.3)) - theirs(again)).abs().max() > 0.01
    monkeypatch.setattr(surrogates, "_found", lambda find, model: [again.get_submodule("layer1.2")])
    assert (ours(SkipGradient(again, 0.3)) - theirs(again)).abs().max() < 1e-6


def test_skip_gradients_within_skip_gradients_multiply():
    model = zoo("resnet18")
    twice = gradient(SkipGradient(SkipGradient(model, 0.5), 0.6))
    assert torch.allclose(twice, gradient(SkipGradient(model, 0.3)), rtol=1e-9, atol=1e-14)


# -------------------------------------------------------------------------------------- ghost networks


def numbers(i: int = 0, n: int = N, seed: int = 0, first: int = 0) -> Batch:
    """The random numbers of the ghosts at iteration `i`."""
    return Batch(torch.zeros(n), first, 2**32 + seed, i)


@pytest.mark.parametrize("arch", [*RESIDUAL, "densenet22"])
def test_skips_are_eroded_as_by_hand(arch):
    model, drawn = zoo(arch), numbers(i=2, seed=5)
    ghost = GhostNetwork(model, 0.3, seed=5).at_iteration(Batch(Y, iteration=2))[0]

    def skip(shortcut):
        shape = (shortcut.shape[1], 1, 1) if shortcut.dim() == 4 else (1, shortcut.shape[2])
        return shortcut * (0.7 + 0.6 * drawn.uniform(*shape).double())

    passes = [ghost(X), ghost(X)]
    for seen in passes:
        assert torch.allclose(seen, by_hand(model, X, skip=skip), rtol=1e-4)
    assert not torch.allclose(passes[0], passes[1], rtol=1e-3)
    assert not torch.allclose(passes[0], model(X), rtol=1e-3)


def test_skips_are_scaled_uniformly_by_example_and_channel():
    class Zero(nn.Module):
        def forward(self, x):
            return 0 * x

    block = Residual(Zero(), nn.Identity(), nn.Identity())
    factors = GhostNetwork(block, 0.4)(torch.ones(200, 50, 3, 2))
    assert torch.equal(factors, factors[:, :, :1, :1].expand_as(factors))
    factors = factors[:, :, 0, 0].flatten()
    assert factors.min() >= 0.6 - 1e-6 and factors.max() <= 1.4 + 1e-6 and len(factors.unique()) > 9000
    assert torch.allclose(factors.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.68, 1.0, 1.32]), atol=0.02)


@pytest.mark.parametrize("arch", ["vgg11", "googlenet", "cnn"])
def test_where_nothing_is_skipped_inputs_of_convolutions_are_dropped(arch):
    model, seen = zoo(arch), []
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    ghost = GhostNetwork(model, 0.25)
    assert ghost.erosion == "dropout"
    for m in convolutions:
        m.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    model(X)
    whole = seen.copy()
    seen.clear()
    ghost(X)  # hooks are called in the order of their registration: these see the whole inputs, too
    assert torch.equal(seen[0], whole[0]) and torch.equal(seen[1], whole[1])
    eroded, drawn = [], numbers()
    for m in convolutions[1:]:
        m._forward_pre_hooks.clear()
    with surrogates._hooked(convolutions[1:], lambda m, inputs: erode(inputs[0], drawn, eroded), before=True):
        expected = model(X)
    assert torch.allclose(GhostNetwork(model, 0.25)(X), expected, rtol=1e-9)
    kept = torch.cat([z.flatten() for z in eroded])
    assert abs(float(kept.mean()) - 0.75) < 0.02 and len(eroded) == len(convolutions) - 1


def erode(x, drawn, eroded):
    kept = (drawn.uniform(*x.shape[1:]) >= 0.25).double()
    eroded.append(kept)
    return x * kept / 0.75


@pytest.mark.parametrize("arch", ["resnet18", "vgg11"])
def test_without_strength_a_ghost_is_the_network(arch):
    model = zoo(arch)
    assert torch.equal(GhostNetwork(model, 0)(X), model(X))
    assert torch.equal(gradient(GhostNetwork(model, 0)), gradient(model))


def test_defaults_are_those_of_the_authors():
    assert GhostNetwork(zoo("resnet18")).strength == 0.22 and GhostNetwork(zoo("vgg11")).strength == 0.006
    assert GhostNetwork(zoo("resnet18"), erosion="dropout").strength == 0.006


@quick
@given(st.integers(1, N), st.integers(0, 2), st.sampled_from(["skip", "dropout"]), st.integers(0, 2**32 - 1))
def test_a_ghost_is_known_by_seed_position_and_iteration(size, i, erosion, seed):
    model = net().eval()
    ghost = GhostNetwork(model, 0.3, seed, erosion)
    (whole,) = ghost.at_iteration(Batch(Y, iteration=i))
    together = torch.stack([whole(X), whole(X)], 1)
    apart = []
    for first in range(0, N, size):
        (part,) = ghost.at_iteration(Batch(Y[first : first + size], first, iteration=i))
        apart.append(torch.stack([part(X[first : first + size]), part(X[first : first + size])], 1))
    assert torch.allclose(torch.cat(apart), together)
    others = [ghost.at_iteration(Batch(Y, iteration=i + 1)), GhostNetwork(model, 0.3, seed ^ 1, erosion)]
    others[1] = others[1].at_iteration(Batch(Y, iteration=i))
    assert all(not torch.allclose(f(X), together[:, 0]) for (f,) in others)
    same = X[:1].expand(N, -1, -1, -1)
    outputs = ghost.at_iteration(Batch(Y, iteration=i))[0](same).detach()
    assert len(set(outputs.numpy().round(9)[:, 0])) == N


def test_outside_of_an_attack_each_pass_is_an_iteration():
    model = net().eval()
    ghost, again = GhostNetwork(model, 0.3), GhostNetwork(model, 0.3)
    torch.manual_seed(1)
    passes = [ghost(X) for _ in range(3)]
    torch.manual_seed(2)
    assert torch.equal(torch.stack(passes), torch.stack([again(X) for _ in range(3)]))
    assert not torch.allclose(passes[0], passes[1]) and not torch.allclose(passes[1], passes[2])
    assert torch.equal(passes[2], ghost.at_iteration(Batch(Y, iteration=2))[0](X))


def test_ghosts_do_not_draw_what_the_attack_draws():
    shared = Batch(Y, seed=0).uniform(4, 1, 1)
    assert not torch.equal(shared, numbers().uniform(4, 1, 1))
    model = net()
    seen = []
    view = [lambda x, batch: seen.append(batch.uniform()) or x * 1.0]
    for surrogate in (model, GhostNetwork(model)):
        BIM(EPS, steps=2, views=view)(surrogate, X, Y)
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:]))


# ------------------------------------------------------------------------------------------- ensembles


class Fixed(nn.Module):
    """Linear in the images, so that all of its outputs are known."""

    def __init__(self, seed):
        super().__init__()
        weight = torch.randn(CLASSES, math.prod(SHAPE), generator=torch.Generator().manual_seed(seed)).double()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


@quick
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.sampled_from(["logits", "probabilities"]))
def test_the_cross_entropy_of_an_ensemble_is_that_of_its_fusion(seeds, over):
    members = [Fixed(seed) for seed in seeds]
    p = torch.stack([F.softmax(m(X), 1) for m in members])
    q = p.log().mean(0).exp() if over == "logits" else p.mean(0)
    expected = -(q[range(N), Y] / q.sum(1)).log()
    got = cross_entropy(Ensemble(members, over)(X), Y)
    assert torch.allclose(got, expected, atol=1e-9)
    if over == "probabilities":
        assert torch.allclose(Ensemble(members, over)(X).exp(), q, atol=1e-12)


@quick
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.sampled_from([*LOSSES]), st.booleans())
def test_over_losses_an_attack_climbs_the_mean_of_any_loss(seeds, loss, targeted):
    members = [Fixed(seed) for seed in seeds]
    x = X.clone().requires_grad_()
    mean = sum(LOSSES[loss](m(x), Y) for m in members).sum() / len(members)
    expected = torch.autograd.grad(mean, x)[0] * (-1 if targeted else 1)
    seen = []
    attack = BIM(EPS, steps=1, loss=loss, targeted=targeted, smoothing=lambda g: seen.append(g) or g)
    attack(Ensemble(members, "losses"), X, Y)
    # In float32, as losses are.
    assert torch.allclose(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_over_losses_is_that_over_logits_and_the_missing_sum():
    members = [Fixed(seed) for seed in range(3)]
    mean = sum(cross_entropy(m(X), Y) for m in members) / 3
    with torch.no_grad():
        logs = Ensemble(members, "losses")(X)  # mean log-probabilities, for predictions
        fused = cross_entropy(Ensemble(members, "logits")(X), Y)
    assert torch.allclose(F.nll_loss(logs, Y, reduction="none"), mean)
    assert torch.allclose(mean - fused, -logs.exp().sum(1).log()) and (mean > fused).all()
    with pytest.raises(AttackError, match="no gradient to give; attack this ensemble"):
        input_gradient(Ensemble(members, "losses"), X, Y)


@pytest.mark.parametrize("over", ["logits", "losses"])
def test_an_ensemble_of_one_is_that_one(over):
    for surrogate in (net(), GhostNetwork(net(), 0.3)):
        attack = MI(EPS, steps=3) | DI()
        assert torch.equal(attack(Ensemble([surrogate], over), X, Y), attack(surrogate, X, Y))


def test_members_are_fused_in_float32():
    class Coarse(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :CLASSES].bfloat16()

    x = X.float()
    fused = Ensemble([Coarse(), Coarse(), Coarse()])(x)
    assert fused.dtype == torch.float32 and torch.allclose(fused, Coarse()(x).float(), rtol=1e-6)


# ---------------------------------------------------------------------------------------------- cycles


class Calls(nn.Module):
    """Appends its name to `log` at each forward pass."""

    def __init__(self, name: int, log: list):
        super().__init__()
        self.name, self.log, self.inner = name, log, Fixed(name)

    def forward(self, x):
        self.log.append(self.name)
        return self.inner(x)


@quick
@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.integers(1, N))
def test_a_cycle_gives_every_batch_the_same_members_in_rounds(count, seed, size):
    log = []
    cycle = Cycle([Calls(i, log) for i in range(count)], seed)
    BIM(EPS, steps=2 * count + 1)(cycle, X, Y, batch_size=size)
    each = [log[i : i + 2 * count + 1] for i in range(0, len(log), 2 * count + 1)]
    assert len(each) == math.ceil(N / size) and all(names == each[0] for names in each)
    assert sorted(each[0][:count]) == sorted(each[0][count:-1]) == list(range(count))
    assert each[0] == (cycle.order(0) + cycle.order(1) + cycle.order(2))[: 2 * count + 1]


def test_a_cycle_is_the_attack_on_its_members_in_its_order():
    members = [net(i) for i in range(3)]
    cycle = Cycle(members, seed=4)
    for attack in (BIM(EPS, steps=5), VMI(EPS, steps=5, variance=Neighbours(2)), NI(EPS, steps=5) | SI()):
        turns = [members[i] for turn in range(2) for i in cycle.order(turn)]
        assert torch.equal(attack(cycle, X, Y), attack(turns, X, Y))
    assert cycle.order(0) != cycle.order(1)


def test_all_orders_are_drawn_and_as_often():
    cycle = Cycle([Fixed(0)] * 3)
    found = Counter(tuple(cycle.order(turn)) for turn in range(1200))
    found += Counter(tuple(Cycle([Fixed(0)] * 3, seed).order(0)) for seed in range(1200))
    assert set(found) == set(itertools.permutations(range(3)))
    assert all(abs(count - 400) < 80 for count in found.values())  # four standard deviations


def test_passes_of_one_iteration_go_to_one_member():
    log = []
    cycle = Cycle([Calls(i, log) for i in range(3)])
    (VMI(EPS, steps=3, variance=Neighbours(2)) | SI(views=(Scales(2),)))(cycle, X, Y)
    assert log == [name for name, passes in zip(cycle.order(0), (6, 6, 2), strict=True) for _ in range(passes)]


# ------------------------------------------------------------------------------------ several weights


def collected(count: int = 5, model=None):
    """Weights as from a training: apart by about their own size, with BatchNorm's counts."""
    model, generator = copy.deepcopy(model or net()), torch.Generator().manual_seed(0)
    states = []
    for i in range(count):
        for p in model.parameters():
            p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        model(torch.rand(8, *SHAPE, generator=generator).double())
        states.append(copy.deepcopy(model.state_dict()))
        assert states[i]["2.branch.1.num_batches_tracked"] == i + 2
    return states


def data(batches: int = 3):
    return list(batch(8 * batches, seed=9)[0].split(8))


@dataclass
class Snapshot:
    state: dict

    def weights(self):
        return self.state


def same_weights(a, b, **tolerance):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.allclose(a[k].double(), b[k].double(), **tolerance) for k in a)


def test_the_average_is_that_of_torch():
    model, states = net(), collected()
    model.eval()[0].weight.requires_grad_(False)
    before = trace(model)
    mine = average(model, [states[0], Snapshot(states[1]), *states[2:]], data())
    assert trace(model) == before and not mine.training and not mine[0].weight.requires_grad
    theirs = AveragedModel(model)
    for state in states:
        other = net()
        other.load_state_dict(state)
        theirs.update_parameters(other)
    update_bn(data(), theirs)
    assert same_weights(mine, theirs.module, rtol=1e-9)
    assert not same_weights(mine, average(model, states, None), rtol=1e-2)
    x = torch.stack(data())
    inner = nn.Sequential(*mine[:2], mine[2].branch[0])
    expected = torch.stack([inner(part).mean((0, 2, 3)) for part in x]).mean(0)
    assert torch.allclose(mine[2].branch[1].running_mean, expected)


def test_the_average_of_equal_weights_is_exact_and_counts_stay_whole():
    model = net().float()
    mean = average(model, (model.state_dict() for _ in range(7)), None)
    assert all(torch.equal(a, b) for a, b in zip(mean.state_dict().values(), model.state_dict().values(), strict=True))
    assert [v.dtype for v in mean.state_dict().values()] == [v.dtype for v in model.state_dict().values()]


def test_loaded_is_a_copy_with_these_weights():
    model, state = net(), collected(1)[0]
    copied = loaded(model, Snapshot(state))
    assert not copied.training and model.training
    assert all(torch.equal(value, state[name]) for name, value in copied.state_dict().items())
    assert not any(a is b for a, b in zip(copied.parameters(), model.parameters(), strict=True))
    moved = loaded(model, state, data()).state_dict()
    assert [name for name in moved if not torch.equal(moved[name], state[name])] == [
        f"{i}.branch.1.{name}" for i in (2, 3) for name in ("running_mean", "running_var", "num_batches_tracked")
    ]


def tiny():
    """A network of 4 parameters and BatchNorm, and 6 weights of it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.BatchNorm1d(1)).double()
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(6, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double() + 3.0
    states = []
    for row in mixed:
        nn.utils.vector_to_parameters(row, model.parameters())
        states.append(copy.deepcopy(model.state_dict()))
    return model, states, mixed


def vector(model, state):
    return torch.cat([state[name].flatten() for name, _ in model.named_parameters()])


@pytest.mark.parametrize("rank, scale", [(0, 1.0), (0, 1.5), (3, 1.0), (20, 1.0), (20, 0.5)])
def test_draws_of_swag_have_the_moments_of_the_dense_gaussian(rank, scale):
    model, states, rows = tiny()
    swag = Swag.fit(model, states, rank)
    apart = rows - rows.mean(0)
    covariance = torch.diag(apart.square().mean(0))
    if rank:
        last = apart[-rank:]
        covariance = (covariance + last.T @ last / (len(last) - 1)) / 2
    draws = torch.stack([vector(model, swag.sample(seed, scale)) for seed in range(6000)])
    sd = covariance.diag().sqrt()
    assert ((draws.mean(0) - rows.mean(0)).abs() < 4 * scale * sd / 6000**0.5).all()
    assert ((draws.T.cov() / scale**2 - covariance).abs() < 0.07 * sd[:, None] * sd).all()
    standard = ((draws[:, 0] - rows.mean(0)[0]) / (scale * sd[0])).quantile(torch.tensor([0.025, 0.5, 0.975]).double())
    assert torch.allclose(standard, torch.tensor([-1.96, 0.0, 1.96]).double(), atol=0.1)


def test_with_all_columns_swag_mixes_the_sample_covariance_and_its_diagonal():
    model, states, rows = tiny()
    swag = Swag.fit(model, [Snapshot(state) for state in states])
    assert torch.allclose(swag.columns.T @ swag.columns / 5, rows.T.cov())
    assert torch.allclose(swag.deviation.square(), rows.var(0, correction=0))
    assert torch.allclose(Swag.fit(model, states, rank=2).columns, swag.columns[-2:])


def test_draws_of_swag_are_their_seeds_and_start_from_the_average():
    model, states = net(), collected()
    swag = Swag.fit(model, states)
    torch.manual_seed(0)
    first = swag.sample(7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = swag.sample(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(vector(model, first), vector(model, swag.sample(8)))
    centre = average(model, states, None).state_dict()
    assert all(torch.equal(value, centre[name]) for name, value in swag.sample(7, scale=0).items())
    buffers = [name for name, _ in model.named_buffers()]
    assert all(torch.equal(first[name], centre[name]) for name in buffers)
    near, far = (vector(model, swag.sample(7, scale)) - vector(model, centre) for scale in (1, 3))
    assert torch.allclose(3 * near, far)
    assert [p.dtype for p in Swag.fit(net().float(), states).sample(0).values()][:2] == [torch.float64] * 2


def test_lgv_swag_and_more_bayesian_surrogates_are_made_of_these():
    model, states = net(), collected()
    for rank, scale, batches in ((20, 1.0, data()), (0, 1.5, None)):
        swag = Swag.fit(model, states, rank)
        cycle = Cycle(loaded(model, swag.sample(seed, scale), batches) for seed in range(3))
        adv = BIM(EPS, steps=4)(cycle, X, Y)
        order = cycle.order(0) + cycle.order(1)
        members = [loaded(model, swag.sample(seed, scale), batches) for seed in range(3)]
        assert torch.equal(adv, BIM(EPS, steps=4)([members[i] for i in order], X, Y))


# -------------------------------------------------------------------------------- in any combination


TECHNIQUES = [
    MI(),
    NI(),
    PGD(),
    DI(),
    TI(),
    SI(views=(Scales(2),)),
    VMI(variance=Neighbours(2)),
    RAP(around=(Reverse(steps=1),)),
    PGN(around=(GradientNorm(1),)),
    BIM(targeted=True),
    BIM(loss="margin"),
    BIM(loss="logit"),
    BIM(0.5, step=0.1, norm="l2"),
]


class Noisy(Surrogate):
    """One of somebody's own, as in the docstring of the module."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def at_iteration(self, batch):
        def noisy(function):
            return lambda x: function(x + 0.01 * batch.normal(*x.shape[1:]).to(x))

        return [noisy(function) for function in at_iteration(self.network, batch)]


def plain(seed):
    return st.builds(net, st.integers(seed, seed + 1))


def wrapped(inner):
    seeds = st.integers(0, 3)
    return st.one_of(
        st.builds(SkipGradient, inner, st.sampled_from([0.0, 0.3])),
        st.builds(GhostNetwork, inner, st.just(0.2), seeds, st.sampled_from([None, "dropout"])),
        st.builds(Noisy, inner),
        st.builds(Cycle, st.lists(inner, min_size=1, max_size=3), seeds),
        st.builds(Ensemble, st.lists(inner, min_size=1, max_size=2), st.sampled_from(["logits", "probabilities"])),
    )


@st.composite
def any_surrogate(draw):
    surrogate = draw(st.recursive(st.builds(net, st.integers(0, 2)), wrapped, max_leaves=3))
    if draw(st.booleans()):
        surrogate = Ensemble([surrogate, net(5)], "losses")
        surrogate = SkipGradient(surrogate, 0.5) if draw(st.booleans()) else surrogate
    return surrogate


attacks = st.lists(st.sampled_from(TECHNIQUES), max_size=3, unique_by=id).map(
    lambda parts: reduce(IterativeAttack.__or__, parts, BIM(EPS, step=STEP, steps=2))
)
attacks = attacks.map(lambda attack: replace(attack, around=attack.around[:1]))


@quick
@given(any_surrogate(), attacks)
def test_any_surrogate_under_any_technique_is_left_as_found(surrogate, attack):
    networks = [m for m in surrogate.modules() if isinstance(m, nn.Sequential) and len(m) == 7]
    networks[0][0].bias.requires_grad_(False)
    networks[0][2].branch[1].eval()
    networks[0][2].branch.register_forward_hook(lambda module, inputs, output: None)
    before, kept = trace(surrogate), X.clone()
    adv = attack(surrogate, X, Y)
    assert trace(surrogate) == before and torch.equal(X, kept)
    assert torch.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1 and not adv.requires_grad
    moved = (adv - X).flatten(1)
    sizes = moved.abs().amax(1) if attack.norm == "linf" else moved.norm(dim=1)
    assert (sizes <= attack.radius + 1e-6).all()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(attack(surrogate, X, Y), adv)


@quick
@given(any_surrogate(), attacks, st.integers(1, 3), st.integers(1, N))
def test_under_any_technique_an_example_depends_neither_on_batch_size_nor_on_batch_mates(surrogate, attack, size, n):
    whole = attack(surrogate, X, Y)
    assert torch.allclose(attack(surrogate, X, Y, batch_size=size), whole, atol=1e-5)
    mates = torch.cat([X[:n], X[n:].flip(0) / 2])
    assert torch.allclose(attack(surrogate, mates, Y)[:n], whole[:n], atol=1e-5)


class Breaks(nn.Module):
    def forward(self, x):
        raise KeyboardInterrupt


@pytest.mark.parametrize("wrap", [SkipGradient, GhostNetwork, lambda m: GhostNetwork(m, erosion="dropout")])
def test_an_interrupted_pass_leaves_no_hook(wrap):
    model = net()
    model[3].branch.append(Breaks())
    before = trace(model)
    with pytest.raises(KeyboardInterrupt):
        BIM()(wrap(model), X, Y)
    assert trace(model) == before


def test_wrappers_work_under_autocast_as_their_network_does():
    model, x = net().float(), X.float()
    for surrogate in (SkipGradient(model), GhostNetwork(model, 0), Ensemble([model])):
        with torch.autocast("cpu", torch.bfloat16), frozen([surrogate]):
            assert torch.equal(surrogate(x).float(), model(x).float())
    with torch.autocast("cpu", torch.bfloat16):
        adv = (MI(EPS, steps=3) | DI())(Ensemble([SkipGradient(GhostNetwork(model)), model], "losses"), x, Y)
    assert adv.dtype == torch.float32 and (adv - x).abs().max() <= EPS + 1e-6


def test_wrappers_are_frozen_moved_and_copied_with_their_network():
    model = net()
    surrogate = Ensemble([GhostNetwork(SkipGradient(model, 0.5), 0.2), Cycle([model, net(1)])])
    with frozen([surrogate]):
        assert not any(p.requires_grad for p in model.parameters()) and not any(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters()) and model.training
    attack = MI(EPS, steps=3)
    assert torch.equal(attack(copy.deepcopy(surrogate), X, Y), attack(surrogate, X, Y))
    assert surrogate.float() is surrogate and {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_attack_asks_once_an_iteration_and_batch():
    asked = []

    class Asked(Surrogate):
        def at_iteration(self, batch):
            asked.append((batch.iteration, batch.first, len(batch.labels), batch.seed))
            return [model]

    model = net()
    (VMI(EPS, steps=2, seed=9) | SI())(Asked(), X, Y, batch_size=3)
    assert asked == [(i, first, n, 9) for first, n in ((0, 3), (3, 1)) for i in range(2)]
    assert at_iteration(model, Batch(Y)) == [model]
    with pytest.raises(NotImplementedError):
        Surrogate()(X)


# ---------------------------------------------------------------------------------------------- errors


def compiled():
    model = net()
    model[2].branch.compile()
    return model


STATE = net().state_dict()


@pytest.mark.parametrize(
    "build, named",
    [
        (lambda: SkipGradient(net(), 1.5), "gamma is 1.5; give a number from 0 to 1."),
        (lambda: SkipGradient(zoo("vgg11")), "Network has no Residual or Dense of rfnlib.models;"),
        (lambda: SkipGradient(Cycle([net(), zoo("cnn")])), "Network has no Residual or Dense"),
        (lambda: SkipGradient(torch.compile(net())), "is compiled"),
        (lambda: GhostNetwork(compiled()), "is compiled"),
        (lambda: GhostNetwork(zoo("vgg11"), erosion="skip"), "has no Residual or Dense of rfnlib.models;"),
        (lambda: GhostNetwork(Fixed(0)), "Fixed has no second convolution;"),
        (lambda: GhostNetwork(net(), erosion="drop"), "erosion is 'drop'; give one of 'skip', 'dropout'."),
        (lambda: GhostNetwork(net(), -1), "strength is -1; give a number of at least 0."),
        (lambda: GhostNetwork(net(), 1, erosion="dropout"), "strength is 1; give a number from 0 to 0.99."),
        (lambda: GhostNetwork(net(), seed=-1), "seed is -1;"),
        (lambda: Ensemble([]), "members is []; give one module or more."),
        (lambda: Ensemble([net(), 3]), "give one module or more."),
        (lambda: Ensemble([net()], "loss"), "over is 'loss'; give one of 'logits', 'probabilities', 'losses'."),
        (lambda: Ensemble([Ensemble([net(), net(1)], "losses")])(X), "over 'logits' is one over 'losses';"),
        (lambda: Ensemble([Fixed(0), nn.Flatten()])(X), "shapes [(4, 4), (4, 128)];"),
        (lambda: Cycle([]), "members is [];"),
        (lambda: Cycle([net()], seed=True), "seed is True;"),
        (lambda: average(net(), [], data()), "no weights to average;"),
        (lambda: average(net(), [STATE, zoo("cnn").state_dict()], data()), "the weights do not fit: 0.weight, 0.bias,"),
        (lambda: loaded(net(), {**STATE, "0.bias": torch.zeros(3)}), "the weights do not fit: 0.bias differ;"),
        (lambda: loaded(net(), {**STATE, "more": torch.zeros(3)}), "the weights do not fit: more differ;"),
        (lambda: loaded(net(), net()), "weights are a Sequential; give a state dict, or a snapshot."),
        (lambda: Swag.fit(net(), [STATE]), "fitted to 1 weights; give at least 2."),
        (lambda: Swag.fit(net(), [STATE, STATE], rank=1), "rank is 1,"),
        (lambda: Swag.fit(net(), [STATE, STATE], rank=-1), "rank is -1;"),
        (lambda: Swag.fit(net(), [STATE, STATE]).sample(0.5), "seed is 0.5;"),
        (lambda: Swag.fit(net(), [STATE, STATE]).sample(0, -1), "scale is -1;"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_argument_is_named(build, named):
    with pytest.raises(AttackError) as error:
        build()
    assert named in str(error.value)


def test_an_average_without_batches_says_so():
    with pytest.raises(MinimizerError, match="there are no batches"):
        average(net(), [STATE], [])


def test_every_network_of_the_zoo_is_for_one_of_the_erosions():
    for arch in ARCHITECTURES:
        if arch not in ("resnet101", "wrn28", "densenet100", "densenet121", "densenet161", "densenet201"):  # the slow
            assert GhostNetwork(zoo(arch), 0.2)(X).isfinite().all()


def test_the_passes_of_an_attack_are_those_of_all_members():
    a, b = zoo("cnn"), zoo("cnn", 1)
    seen = []
    surrogates = {
        "one": (a, 1),
        "a list": ([a, b], 1),
        "Ensemble": (Ensemble([a, b]), 2),
        "losses": (Ensemble([a, b, a], "losses"), 3),
        "Cycle": (Cycle([a, b]), 1),
        "Cycle of ensembles": (Cycle([Ensemble([a, b]), Ensemble([b, a])]), 2),
        "Ensemble of ghosts": (Ensemble([GhostNetwork(a), GhostNetwork(b, seed=1)]), 2),
        "wrapped ensemble": (GhostNetwork(Ensemble([a, b])), 2),
        "function": (lambda x: a(x), 1),
    }
    attack = MI(steps=4) | SI(views=(Scales(2),))
    hooks = [m.register_forward_hook(lambda module, inputs, output: seen.append(len(output))) for m in (a, b)]
    for name, (surrogate, each) in surrogates.items():
        seen.clear()
        attack(surrogate, X, Y)
        assert sum(seen) / len(X) == attack.passes_on(surrogate) == 8 * each, name
    for hook in hooks:
        hook.remove()
