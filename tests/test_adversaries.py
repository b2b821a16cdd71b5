"""Adversarial training: the numbers of loops by hand, the same bits after any interruption, and nothing disturbed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import scenes
import torch
import torch.nn.functional as F
from scenes import same

from rfnlib import adversaries, attacks, bricks, data, execution, keys, snapshots, specs, training
from rfnlib.specs import Adversary, Minimizer, OneCycle, SpecError, Step, TrainSpec

DIGITS = data.load("digits").subset(80)
PER_EPOCH = 2
PLAIN = TrainSpec("digits", "cnn", Step(0.05, (2,)), epochs=3, n_train=80, width=2, batch=40)
PGD3 = Adversary("l2", 0.5, steps=3, step=0.1)
FAST = Adversary("linf", 0.1, steps=1)
FREE = Adversary("linf", 0.1, steps=1, random_start=False, replay=3)
FREE_L2 = Adversary("l2", 0.5, steps=1, step=0.2, random_start=False, replay=2)
EVERY = {
    "pgd l2": PGD3,
    "pgd linf": replace(PGD3, norm="linf", eps=0.1),
    "fast": FAST,
    "free": FREE,
    "free l2": FREE_L2,
}
each = pytest.mark.parametrize("adversary", EVERY.values(), ids=EVERY.keys())
start = partial(scenes.start, DIGITS)


def weights(spec, cache, at=None, **options):
    return [s.weights() for s in start(spec, cache, at, **options)]


# ------------------------------------------------------------------------------- against loops by hand


def batch_of(spec, i):
    """The augmented images and the labels of the i-th batch, by the streams that `training` promises."""
    epoch, b = divmod(i, PER_EPOCH)
    drawn = torch.Generator().manual_seed(keys.stream(spec.seed, "order", epoch))
    chosen = torch.randperm(80, generator=drawn)[b * 40 : (b + 1) * 40]
    drawn.manual_seed(keys.stream(spec.seed, "augment", i))
    return data.augment(DIGITS.train_images[chosen], drawn, flip=DIGITS.flip), DIGITS.train_labels[chosen]


def along(gradient, norm):
    if norm == "linf":
        return gradient.sign()
    return torch.stack([g / g.norm() if g.norm() > 0 else g for g in gradient])


def within(offset, norm, eps):
    if norm == "linf":
        return offset.clamp(-eps, eps)
    return torch.stack([o * eps / o.norm() if o.norm() > eps else o for o in offset])


def by_hand(spec, n_steps, images):
    """SGD with momentum on what `images(model, i)` gives; `images.learn` gets the gradient of those images."""
    model = training.network(spec, DIGITS).to(memory_format=torch.channels_last).train()
    params = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in params]
    for i in range(n_steps):
        x, y, leaf = images(model, i)
        *gradients, last = torch.autograd.grad(F.cross_entropy(model(x), y), [*params, leaf])
        images.learn(last)
        with torch.no_grad():
            for p, v, g in zip(params, velocity, gradients, strict=True):
                v.mul_(spec.momentum).add_(g + spec.weight_decay * p)
                p -= spec.schedule.at(i / PER_EPOCH, spec.epochs) * v
    return model.state_dict()


class PGDByHand:
    def __init__(self, spec):
        self.spec = spec

    def __call__(self, model, i):
        x, y = batch_of(self.spec, i)
        a, adv = self.spec.adversary, x
        if a.random_start:  # an attack that takes a step of length 0 shows where it starts
            seed = keys.stream(self.spec.seed, "adversary", i) % 2**32
            adv = attacks.PGD(eps=a.eps, step=0.0, steps=1, norm=a.norm, seed=seed)(model, x, y)
            assert float((adv - x).abs().max()) > 0.01
        model.eval()
        for _ in range(a.steps):
            adv = adv.detach().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(adv), y, reduction="sum"), adv)
            moved = adv.detach() + a.step_size * along(g, a.norm)
            adv = (x + within(moved - x, a.norm, a.eps)).clamp(0, 1)
        model.train()
        adv.requires_grad_()
        return adv, y, adv

    def learn(self, gradient):
        pass


class FreeByHand:
    def __init__(self, spec):
        self.spec, self.delta, self.seen = spec, torch.zeros(40, 1, 8, 8), []

    def __call__(self, model, i):
        x, y = batch_of(self.spec, i // self.spec.adversary.replay)
        self.delta.requires_grad_()
        return (x + self.delta).clamp(0, 1), y, self.delta

    def learn(self, gradient):
        a = self.spec.adversary
        self.delta = within(self.delta.detach() + a.step_size * along(gradient, a.norm), a.norm, a.eps)
        self.seen.append(self.delta)


@each
def test_training_gives_the_numbers_of_a_loop_by_hand(adversary, tmp_path):
    # A network without kinks: at a ReLU's, a difference in the last bit becomes one of 1e-4.
    spec = replace(PLAIN, arch="convmixer", adversary=adversary)
    images = FreeByHand(spec) if adversary.replay else PGDByHand(spec)
    (snapshot,) = start(spec, tmp_path, [2])
    found, hand = snapshot.weights(), by_hand(spec, 2 * PER_EPOCH, images)
    plain = weights(replace(spec, adversary=None), tmp_path, [2])[0]
    for name, value in hand.items():
        torch.testing.assert_close(found[name], value, rtol=5e-3, atol=5e-4)
    assert max(float((found[n] - plain[n]).abs().max()) for n in hand) > 5e-3
    if adversary.replay:  # the state on disk holds the perturbation
        state, _ = snapshots.read(snapshot.run.own_state(4), "state", snapshot.key)
        torch.testing.assert_close(state["adversary.delta"], images.seen[-1], rtol=0, atol=1e-3)


def test_pgd_under_sam_climbs_on_the_same_adversarial_images(tmp_path):
    spec = replace(PLAIN, arch="convmixer", adversary=PGD3, minimizer=Minimizer("SAM", 1e-6))
    (sam,), (sgd,) = weights(spec, tmp_path, [0.5]), weights(replace(spec, minimizer=None), tmp_path, [0.5])
    for name, value in sgd.items():
        torch.testing.assert_close(sam[name], value, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------- interrupted


LAID_OUT = {**{name: (a, True) for name, a in EVERY.items()}, "pgd, rows": (PGD3, False), "free, rows": (FREE, False)}


@pytest.mark.parametrize(("adversary", "channels_last"), LAID_OUT.values(), ids=LAID_OUT.keys())
def test_stopped_anywhere_it_ends_with_the_same_bits(adversary, channels_last, tmp_path):
    spec = replace(PLAIN, adversary=adversary)
    at = [0.5, 1, 2, 2.5, 3]  # inside replays, too
    how = {"channels_last": channels_last}
    whole = weights(spec, tmp_path / "whole", at, **how)
    pieces = []
    for e in at:  # a process of its own would know no more than the files
        pieces += weights(spec, tmp_path / "pieces", [e], **how)
    assert [same(a, b) for a, b in zip(whole, pieces, strict=True)] == [True] * len(at)
    (straight,) = weights(spec, tmp_path / "straight", [3], **how)
    assert same(straight, whole[-1])


def test_stopped_under_a_minimizer_it_ends_with_the_same_bits(tmp_path):
    spec = replace(PLAIN, adversary=FAST, minimizer=Minimizer("ASAM", 0.5))
    whole = weights(spec, tmp_path / "whole")
    pieces = [weights(spec, tmp_path / "pieces", [e])[0] for e in (1, 2, 3)]
    assert all(same(a, b) for a, b in zip(whole, pieces, strict=True))


def test_it_depends_on_the_seed_and_not_on_torchs_generator(tmp_path):
    spec = replace(PLAIN, adversary=FAST)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    (first,) = weights(spec, tmp_path / "a", [1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, weights(spec, tmp_path / "b", [1])[0])
    assert not same(first, weights(replace(spec, seed=1), tmp_path / "b", [1])[0])


# ------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(
    ("adversary", "minimizer", "passes"),
    [
        (PGD3, None, 4),
        (FAST, None, 2),
        (FREE, None, 1),
        (FAST, Minimizer("SAM", 0.1), 3),
        (PGD3, Minimizer("SWA", average_from=0), 4),
        (None, None, 1),
    ],
)
def test_passes_are_counted(adversary, minimizer, passes, tmp_path):
    spec = replace(PLAIN, adversary=adversary, minimizer=minimizer)
    (snapshot,) = start(spec, tmp_path, [1.5])
    assert snapshot.cost == {"passes": 3 * passes, "skipped": 0}


def test_the_passes_that_are_counted_are_made(tmp_path, monkeypatch):
    made = []
    forward = bricks.Network.forward
    monkeypatch.setattr(bricks.Network, "forward", lambda self, x: made.append(len(x)) or forward(self, x))
    for adversary in (PGD3, FREE):
        made.clear()
        (snapshot,) = start(replace(PLAIN, adversary=adversary), tmp_path, [3])
        assert made == [40] * snapshot.cost["passes"]


# ------------------------------------------------------------------------------- nothing is disturbed


@pytest.mark.parametrize("adversary", [PGD3, replace(PGD3, norm="linf", eps=0.1), FAST], ids=["l2", "linf", "fast"])
def test_crafting_stays_in_the_ball_and_leaves_the_network_alone(adversary):
    model = training.network(PLAIN, DIGITS).train()
    model.head.weight.requires_grad_(False)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    crafting = adversaries.PGDTraining(adversary, 0, model, execution.Execution())
    x, y = batch_of(PLAIN, 0)
    made = crafting.images(x, y, 5)
    offset = (made - x).flatten(1)
    size = offset.norm(dim=1) if adversary.norm == "l2" else offset.abs().amax(1)
    assert float(size.max()) <= adversary.eps + 1e-6 and float(size.min()) > adversary.eps / 20
    assert 0 <= float(made.min()) and float(made.max()) <= 1 and not made.requires_grad
    assert same(model.state_dict(), before) and all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.weight"]
    with torch.no_grad():
        loss = [F.cross_entropy(model.eval()(images), y) for images in (x, made)]
    assert loss[1] > loss[0]
    assert torch.equal(made, crafting.images(x, y, 5)) and not torch.equal(made, crafting.images(x, y, 6))


@pytest.mark.parametrize("adversary", [FREE, FREE_L2], ids=["linf", "l2"])
def test_frees_perturbation_grows_to_the_edge_of_the_ball_and_stays_inside(adversary):
    crafting = adversaries.FreeTraining(adversary)
    x, y = batch_of(PLAIN, 0)
    slope, sizes = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for i in range(6):
        made = crafting.images(x, y, i)
        assert torch.equal(made, (x + crafting.state["delta"]).clamp(0, 1))
        (made * slope).sum().backward()
        crafting.stepped()
        delta = crafting.state["delta"]
        assert not delta.requires_grad
        sizes.append(float(delta.flatten(1).norm(dim=1).max() if adversary.norm == "l2" else delta.abs().max()))
    assert sizes[0] == pytest.approx(adversary.step_size)
    assert sizes[-1] == pytest.approx(adversary.eps) and max(sizes) <= adversary.eps * (1 + 1e-6)


def test_compiled_networks_are_what_is_attacked(tmp_path, monkeypatch):
    """With a stand-in for the compiler, which would take longer than all the rest."""
    modes = []

    class Compiled(torch.nn.Module):
        def __init__(self, inner, **options):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            modes.append((self.training, self.inner.training))
            return self.inner(x)

    spec = replace(PLAIN, adversary=PGD3)
    (eager,) = weights(spec, tmp_path / "eager", [1])
    monkeypatch.setattr(execution, "can_compile", lambda device: True)
    monkeypatch.setattr(torch, "compile", Compiled)
    (compiled,) = weights(spec, tmp_path / "compiled", [1], compile=True)
    assert same(eager, compiled)
    assert modes == [*[(False, False)] * 3, (True, True)] * PER_EPOCH


@pytest.mark.parametrize("adversary", [FAST, FREE], ids=["fast", "free"])
def test_under_bf16_it_trains_and_resumes(adversary, tmp_path):
    spec, how = replace(PLAIN, adversary=adversary), {"precision": "bf16"}
    whole = weights(spec, tmp_path / "whole", [2], **how)[0]
    weights(spec, tmp_path / "pieces", [1], **how)
    assert same(whole, weights(spec, tmp_path / "pieces", [2], **how)[0])


@pytest.mark.parametrize("adversary", [FAST, FREE], ids=["fast", "free"])
def test_a_run_that_diverges_says_so(adversary, tmp_path):
    spec = replace(PLAIN, schedule=OneCycle(1e30, start=1e32), epochs=4, adversary=adversary)
    with pytest.raises(training.TrainingDiverged, match=r"of cnn \(seed 0\); lower the learning"):
        list(start(spec, tmp_path))


# ------------------------------------------------------------------------------------------ specs


def test_without_an_adversary_keys_and_descriptions_are_what_they_were():
    assert "adversary" not in json.dumps(keys.canonical(PLAIN))
    assert specs.parse({k: v for k, v in PLAIN.describe().items() if k != "adversary"}) == PLAIN


@each
def test_a_described_spec_is_parsed_to_itself(adversary):
    spec = replace(PLAIN, adversary=adversary)
    assert specs.parse(json.loads(json.dumps(spec.describe()))) == spec


def test_every_field_of_an_adversary_is_in_the_key():
    changed = {"norm": "linf", "eps": 0.4, "steps": 4, "step": 0.2, "random_start": False}
    several = [None, PGD3, *(replace(PGD3, **{k: v}) for k, v in changed.items()), FREE, replace(FREE, replay=4)]
    every = [replace(PLAIN, adversary=a) for a in several]
    assert len({s.key() for s in every}) == len(every) == len({s.history_key(6, 2) for s in every})


def test_the_usual_steps():
    assert Adversary("l2", 0.5, steps=100).step_size == pytest.approx(2.5 * 0.5 / 100)
    assert Adversary("linf", 0.04, steps=1).step_size == pytest.approx(0.05)
    assert Adversary("linf", 0.04, steps=1, random_start=False).step_size == 0.04
    assert FREE.step_size == FREE.eps and PGD3.step_size == 0.1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"norm": "l1"}, "norm is 'l1'; give 'linf' or 'l2'."),
        ({"eps": 0}, "eps is 0 in linf; give a number in (0, 1], in units of [0, 1] pixels, such as 4/255."),
        ({"eps": 8}, "eps is 8 in linf; give a number in (0, 1]"),
        ({"norm": "l2", "eps": float("nan")}, "eps is nan in l2; give a positive number"),
        ({"eps": "8/255"}, "eps is '8/255'"),
        ({"steps": 0}, "steps is 0; give an integer of at least 1."),
        ({"steps": True}, "steps is True"),
        ({"step": -0.1}, "step is -0.1; give a positive number, or None"),
        ({"random_start": 1}, "random_start is 1; give True or False."),
        ({"replay": 0}, "replay is 0; give an integer of at least 1, or None for PGD."),
        ({"replay": 8}, "replay is 8 with steps=7, random_start=True; free training takes steps=1, random_start=False"),
    ],
)
def test_an_adversary_that_cannot_be_meant_is_refused(arguments, said):
    with pytest.raises(SpecError) as error:
        Adversary(**{"norm": "linf", "eps": 8 / 255, **arguments})
    assert said in str(error.value) and str(error.value).endswith(".")


def test_specs_that_cannot_be_meant_are_refused():
    with pytest.raises(SpecError, match="adversary is 0.5; give an Adversary, or None"):
        replace(PLAIN, adversary=0.5)
    with pytest.raises(SpecError, match="free training.*; give minimizer=None, or an adversary without replay"):
        replace(PLAIN, adversary=FREE, minimizer=Minimizer("SAM", 0.1))
    with pytest.raises(SpecError, match="not a training spec"):
        specs.parse({**PLAIN.describe(), "adversary": {"norm": "l2", "eps": 0.5, "restarts": 2}})
