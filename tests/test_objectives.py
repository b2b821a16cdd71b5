"""Objectives: the numbers of formulas by hand, and what training makes of them, interrupted or not."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scenes
import torch
import torch.nn.functional as F
from scenes import same
from torch import Tensor, nn

from rfnlib import data, execution, keys, objectives, training
from rfnlib.specs import Adversary, Minimizer, Step, TrainSpec

DIGITS = data.load("digits").subset(80)
PER_EPOCH = 2
BASE = TrainSpec("digits", "cnn", Step(0.05), epochs=2, n_train=80, width=2, batch=40)
OTHER = replace(BASE, arch="resnet18", seed=1)
ON = replace(BASE, start=BASE)
EVERY = {
    "start": ON,
    "start of another length and schedule": replace(BASE, start=replace(BASE, epochs=3), schedule=Step(0.01, (1,))),
    "start by GNP": replace(ON, minimizer=Minimizer("GNP", 0.1, options=(("alpha", 2.0),))),
    "witness": replace(BASE, witness=OTHER),
    "start and witness": replace(ON, witness=OTHER),
    "penalty": replace(BASE, input_penalty=0.1),
    "start and penalty": replace(ON, input_penalty=0.1),
    "SAM and penalty": replace(BASE, input_penalty=0.1, minimizer=Minimizer("SAM", 0.1)),
    "adversary and penalty": replace(BASE, input_penalty=0.1, adversary=Adversary("l2", 0.5, steps=1)),
}
each = pytest.mark.parametrize("spec", EVERY.values(), ids=EVERY.keys())
HOW = execution.Execution()
start = partial(scenes.start, DIGITS)


def linear(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Logits that are linear in the image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=drawn))
    return model.to(dtype)


def smooth(batchnorm: bool = False) -> nn.Sequential:
    """A network without kinks, which tie no difference in the last bit to a larger one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle = nn.BatchNorm2d(4) if batchnorm else nn.Identity()
        return nn.Sequential(nn.Conv2d(1, 4, 3), middle, nn.Softplus(), nn.Flatten(), nn.Linear(144, 10))


def some(n: int = 7) -> tuple[Tensor, Tensor]:
    return data.to_float(DIGITS.train_images[:n]), DIGITS.train_labels[:n]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def targets(y: Tensor, smoothing: float) -> np.ndarray:
    """Distributions over ten classes that label smoothing makes of labels."""
    return (1 - smoothing) * np.eye(10)[y.numpy()] + smoothing / 10


# ------------------------------------------------------------------------------------------- by formula


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_is_torchs_cross_entropy_and_the_formula(smoothing):
    model, (x, y) = smooth(), some()
    loss = objectives.labels(replace(BASE, label_smoothing=smoothing), model, HOW)(x, y)
    assert torch.equal(loss, F.cross_entropy(model(x), y, label_smoothing=smoothing))
    p = softmax(model(x).detach().double().numpy())
    assert loss.item() == pytest.approx(-(targets(y, smoothing) * np.log(p)).sum(1).mean(), rel=1e-5)


def by_hand(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, t: np.ndarray, penalty: float) -> float:
    """For logits Wx + b the gradient of the cross-entropy by the image is Wᵀ(p − t)."""
    p = softmax(x @ weight.T + bias)
    gradient = (p - t) @ weight
    return -(t * np.log(p)).sum(1).mean() + penalty * (gradient**2).sum(1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_penalised_loss_of_a_linear_network_is_its_closed_form_and_so_is_its_gradient(smoothing):
    """The closed form's gradient is by finite differences in float64: the penalty reaches the weights."""
    model, (x, y), penalty = linear(), some(), 0.3
    spec = replace(BASE, input_penalty=penalty, label_smoothing=smoothing)
    loss = objectives.penalised(spec, model, HOW)(x, y)
    weight, bias = (p.detach().double().numpy() for p in model.parameters())
    closed = partial(by_hand, x=x.flatten(1).double().numpy(), t=targets(y, smoothing), penalty=penalty)
    assert loss.item() == pytest.approx(closed(weight, bias), rel=1e-5)
    assert loss.item() > 2 * closed(weight, bias, penalty=0.0), "the penalty is no trifle"

    loss.backward()
    drawn = np.random.default_rng(0)
    for _ in range(4):
        a, b = drawn.standard_normal(weight.shape), drawn.standard_normal(bias.shape)
        difference = closed(weight + 1e-6 * a, bias + 1e-6 * b) - closed(weight - 1e-6 * a, bias - 1e-6 * b)
        along = sum(float((p.grad.numpy() * v).sum()) for p, v in zip(model.parameters(), (a, b), strict=True))
        assert along == pytest.approx(difference / 2e-6, rel=1e-3)


def test_the_penalised_loss_of_a_network_is_that_of_its_gradients_one_image_at_a_time():
    model, (x, y) = smooth(), some()
    weights = dict(model.named_parameters())

    def single(image: Tensor, label: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, image[None]), label[None])

    def whole(weights: dict[str, Tensor]) -> Tensor:
        gradient = torch.func.vmap(torch.func.grad(single), (0, 0, None))(x, y, weights)
        values = torch.func.vmap(single, (0, 0, None))(x, y, weights)
        return values.mean() + 2.0 * (gradient**2).sum((1, 2, 3)).mean()

    loss = objectives.penalised(replace(BASE, input_penalty=2.0), model, HOW)(x, y)
    found = torch.autograd.grad(loss, list(weights.values()))
    torch.testing.assert_close(loss, whole(weights), rtol=1e-5, atol=1e-6)
    for name, g in torch.func.grad(whole)(weights).items():
        torch.testing.assert_close(found[list(weights).index(name)], g, rtol=1e-4, atol=1e-6)


def test_under_batchnorm_the_gradient_is_that_of_the_sum():
    model, (x, y) = smooth(batchnorm=True).train(), some()
    loss = objectives.penalised(replace(BASE, input_penalty=2.0), copy.deepcopy(model), HOW)(x, y)
    leaf = x.clone().requires_grad_()
    losses = F.cross_entropy(model(leaf), y, reduction="none")
    each = torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in losses])  # (losses, images, …)
    expected = losses.mean() + 2.0 * each.sum(0).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    own = each.diagonal().square().sum((0, 1, 2)).mean()  # what a sum over images apart would give
    assert abs((losses.mean() + 2.0 * own - loss).item()) > 1e-3


def test_the_penalty_leaves_the_images_alone():
    model, (x, y) = smooth(), some()
    before = x.clone()
    objectives.penalised(replace(BASE, input_penalty=1.0), model, HOW)(x, y).backward()
    assert torch.equal(x, before) and x.grad is None and not x.requires_grad


def test_aligned_is_the_divergence_from_the_witness_by_its_formula():
    model, witness, (x, y) = smooth(), linear(), some()
    loss = objectives.aligned(witness, model, HOW)(x, y)
    q, p = (softmax(m(x).detach().double().numpy()) for m in (witness, model))
    assert loss.item() == pytest.approx((q * (np.log(q) - np.log(p))).sum(1).mean(), rel=1e-5)
    assert loss.item() != pytest.approx((p * (np.log(p) - np.log(q))).sum(1).mean(), rel=1e-2), "it is not symmetric"


def test_the_gradient_of_aligned_is_that_of_the_cross_entropy_with_the_witnesss_probabilities():
    model, witness, (x, y) = smooth(), linear(), some()
    objectives.aligned(witness, model, HOW)(x, y).backward()
    expected = torch.autograd.grad(F.cross_entropy(model(x), witness(x).softmax(1)), list(model.parameters()))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)
        assert float(g.abs().max()) > 1e-3


def test_aligned_with_itself_is_0_and_pulls_nowhere():
    model, (x, y) = smooth(), some()
    loss = objectives.aligned(copy.deepcopy(model), model, HOW)(x, y)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(float(p.grad.abs().max()) < 1e-6 for p in model.parameters())


def test_aligned_does_not_look_at_the_labels():
    loss, (x, y) = objectives.aligned(linear(), smooth(), HOW), some()
    assert torch.equal(loss(x, y), loss(x, (y + 1) % 10))


def test_aligned_leaves_the_witness_as_it_was():
    model, witness, (x, y) = smooth(), smooth(batchnorm=True).eval(), some()
    before = copy.deepcopy(witness.state_dict())
    objectives.aligned(witness, model, HOW)(x, y).backward()
    assert same(witness.state_dict(), before) and not any(m.training for m in witness.modules())
    assert all(p.grad is None for p in witness.parameters())
    assert all(p.grad is not None for p in model.parameters())


# ------------------------------------------------------------------------------------------ in training


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Grows by one number an optimizer step."""
    taken = []
    step = torch.optim.SGD.step

    def counted(self, *args, **options):
        taken.append(1)
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    return taken


def last(spec: TrainSpec, cache: Path, **options) -> training.Snapshot:
    (snapshot,) = start(spec, cache, [float(spec.epochs)], **options)
    return snapshot


def weights(spec: TrainSpec, cache: Path, at=None, **options) -> list[dict[str, Tensor]]:
    return [s.weights() for s in start(spec, cache, at, **options)]


def cross_entropy(model: nn.Module, witness: nn.Module | None, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def with_penalty(model: nn.Module, witness: nn.Module | None, x: Tensor, y: Tensor) -> Tensor:
    x.requires_grad_()
    loss = F.cross_entropy(model(x), y)
    (gradient,) = torch.autograd.grad(len(y) * loss, x, create_graph=True)
    return loss + 0.3 * (gradient**2).sum() / len(y)


def divergence(model: nn.Module, witness: nn.Module | None, x: Tensor, y: Tensor) -> Tensor:
    q, p = witness(x).softmax(1).detach(), model(x).softmax(1)
    return (q * (q / p).log()).sum(1).mean()


MIXER = replace(BASE, arch="convmixer")  # a network without kinks: at a ReLU's, the last bit becomes 1e-4
STEPS = {
    "start": (replace(MIXER, start=MIXER), cross_entropy),
    "penalty": (replace(MIXER, start=MIXER, input_penalty=0.3), with_penalty),
    "penalty, new weights": (replace(MIXER, input_penalty=0.3), with_penalty),
    "witness": (replace(MIXER, start=MIXER, witness=OTHER), divergence),
    "witness, new weights": (replace(MIXER, witness=OTHER), divergence),
}


@pytest.mark.parametrize(("spec", "loss"), STEPS.values(), ids=STEPS.keys())
def test_the_first_step_is_one_by_hand_from_the_last_weights_of_the_start_with_no_momentum(spec, loss, tmp_path):
    (found,) = weights(spec, tmp_path, [1 / PER_EPOCH], channels_last=False)
    model = training.network(spec, DIGITS)
    if spec.start:
        last(spec.start, tmp_path / "alone", channels_last=False).load_into(model)
    begun = copy.deepcopy(model.state_dict())
    witness = last(OTHER, tmp_path / "alone", channels_last=False).load_into(training.network(OTHER, DIGITS))
    chosen = torch.randperm(80, generator=torch.Generator().manual_seed(keys.stream(spec.seed, "order", 0)))[:40]
    drawn = torch.Generator().manual_seed(keys.stream(spec.seed, "augment", 0))
    x, y = data.augment(DIGITS.train_images[chosen], drawn, flip=DIGITS.flip), DIGITS.train_labels[chosen]
    params = list(model.train().parameters())
    gradients = torch.autograd.grad(loss(model, witness, x, y), params)
    with torch.no_grad():
        for p, g in zip(params, gradients, strict=True):
            p -= 0.05 * (g + 5e-4 * p)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5)
    moved = max(float((found[n] - begun[n]).abs().max()) for n, _ in model.named_parameters())
    assert moved > 1e-3


def test_every_objective_trains_another_network(tmp_path):
    runs = {"plain": MIXER} | {name: spec for name, (spec, _) in STEPS.items()}
    ends = {n: torch.cat([v.flatten().float() for v in last(s, tmp_path).weights().values()]) for n, s in runs.items()}
    for a in ends:
        for b in ends:
            assert a == b or float((ends[a] - ends[b]).abs().max()) > 1e-3, (a, b)


def test_the_runs_it_builds_on_are_trained_where_they_are_missing_and_only_there(tmp_path, steps):
    spec = replace(ON, witness=OTHER)
    last(spec, tmp_path)
    assert len(steps) == 3 * 4  # the start's, the witness's and its own
    steps.clear()
    last(replace(spec, seed=7), tmp_path)
    assert len(steps) == 4
    steps.clear()
    chained = replace(BASE, start=replace(spec, seed=8))
    last(chained, tmp_path)
    assert len(steps) == 2 * 4


def test_what_is_on_disk_is_yielded_without_the_runs_it_builds_on(tmp_path, steps):
    spec = replace(ON, witness=OTHER)
    first = last(spec, tmp_path)
    for path in (tmp_path / "snapshots").iterdir():
        if path != first.path:
            path.unlink()
    steps.clear()
    assert last(spec, tmp_path) == first and not steps


def test_the_start_is_the_run_that_it_is_on_its_own(tmp_path):
    last(ON, tmp_path / "on")
    alone = last(BASE, tmp_path / "alone")
    assert (tmp_path / "on" / "snapshots" / alone.path.name).read_bytes() == alone.path.read_bytes()


def test_the_witness_of_a_run_ends_as_it_began(tmp_path, monkeypatch):
    seen, aligned = [], objectives.aligned
    monkeypatch.setattr(objectives, "aligned", lambda w, *others: seen.append(w) or aligned(w, *others))
    last(EVERY["witness"], tmp_path)
    (witness,) = seen
    assert same(witness.state_dict(), last(OTHER, tmp_path).weights())
    assert not any(m.training for m in witness.modules())
    assert all(p.grad is None and not p.requires_grad for p in witness.parameters())


@each
def test_stopped_by_every_tick_it_ends_with_the_same_bits(spec, tmp_path):
    whole = weights(spec, tmp_path / "whole")

    def stop():
        raise KeyboardInterrupt

    stops = 0
    while True:
        try:
            pieces = weights(spec, tmp_path / "pieces", tick=stop)
            break
        except KeyboardInterrupt:
            stops += 1
            assert stops < 12, "it gets nowhere"
    assert stops >= spec.epochs
    assert all(same(a, b) for a, b in zip(whole, pieces, strict=True))
    quiet, stopped = ({p.name: p.read_bytes() for p in (tmp_path / f / "snapshots").iterdir()} for f in
                      ("whole", "pieces"))  # fmt: skip
    assert {n: stopped.get(n) == content for n, content in quiet.items()} == dict.fromkeys(quiet, True)


PASSES = {
    "start": 1,
    "start by GNP": 2,
    "witness": 1,
    "penalty": objectives.PASSES_PENALISED,
    "start and penalty": objectives.PASSES_PENALISED,
    "SAM and penalty": 2 * objectives.PASSES_PENALISED,
    "adversary and penalty": 1 + objectives.PASSES_PENALISED,
}


@pytest.mark.parametrize(("name", "passes"), PASSES.items())
def test_passes_are_those_of_the_run_alone_and_a_penalised_one_counts_as_several(name, passes, tmp_path):
    """What a start or a witness took is told by their own snapshots."""
    (snapshot,) = start(EVERY[name], tmp_path, [1.5])
    assert snapshot.cost == {"passes": 3 * passes, "skipped": 0}


def test_a_penalised_network_has_smaller_gradients_by_its_images(tmp_path):
    def size(spec: TrainSpec) -> float:
        model = last(spec, tmp_path).load_into(training.network(spec, DIGITS))
        x = data.to_float(DIGITS.train_images).requires_grad_()
        F.cross_entropy(model(x), DIGITS.train_labels, reduction="sum").backward()
        return float(x.grad.flatten(1).norm(dim=1).mean())

    longer = replace(BASE, width=8, epochs=8)
    assert size(replace(longer, input_penalty=1.0)) < 0.8 * size(longer)


def test_alignment_brings_the_network_towards_its_witness(tmp_path):
    x, y = data.to_float(DIGITS.train_images), DIGITS.train_labels
    aligned = replace(BASE, witness=replace(OTHER, epochs=4), width=8, epochs=8)
    witness = last(aligned.witness, tmp_path).load_into(training.network(aligned.witness, DIGITS))

    def apart(model: nn.Module) -> float:
        with torch.no_grad():
            return float(objectives.aligned(witness, model, HOW)(x, y))

    model = training.network(aligned, DIGITS).eval()
    before = apart(model)
    assert apart(last(aligned, tmp_path).load_into(model)) < 0.8 * before


def test_a_penalised_run_is_not_compiled_and_others_are(tmp_path, monkeypatch):
    """With a stand-in for the compiler, which would take longer than all the rest."""
    called = []

    class Compiled(nn.Module):
        def __init__(self, inner, **options):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            called.append(len(x))
            return self.inner(x)

    monkeypatch.setattr(execution, "can_compile", lambda device: True)
    monkeypatch.setattr(torch, "compile", Compiled)
    for name, calls in (("penalty", 0), ("start", 2 * 4), ("witness", 2 * 4)):
        called.clear()
        (compiled,) = weights(EVERY[name], tmp_path / "compiled" / name, [2], compile=True)
        assert len(called) == calls
        assert same(compiled, weights(EVERY[name], tmp_path / "eager", [2])[0])


@pytest.mark.parametrize("name", ["start", "witness", "SAM and penalty"])
def test_under_bf16_it_trains_and_resumes(name, tmp_path):
    spec, how = EVERY[name], {"precision": "bf16"}
    (whole,) = weights(spec, tmp_path / "whole", [2], **how)
    weights(spec, tmp_path / "pieces", [1], **how)
    assert same(whole, weights(spec, tmp_path / "pieces", [2], **how)[0])
    assert not same(whole, weights(spec, tmp_path / "fp32", [2])[0])
