"""Training by the minimizers: the numbers of a loop by hand, and the same bits after any interruption."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import scenes
import torch
import torch.nn.functional as F
from scenes import same

from rfnlib import data, keys, minimizers, specs, training
from rfnlib.specs import Minimizer, SpecError, Step, TrainSpec

DIGITS = data.load("digits").subset(120)
PER_EPOCH = 3
PLAIN = TrainSpec("digits", "resnet18", Step(0.05, (2,)), epochs=4, n_train=120, width=2, batch=40)
EVERY = [
    Minimizer("SAM", 0.1),
    Minimizer("SAM", 0.4, warmup=2.0),
    Minimizer("ASAM", 0.5, options=(("eta", 0.1),)),
    Minimizer("GSAM", 0.1, options=(("alpha", 0.3),)),
    Minimizer("AGSAM", 0.5),
    Minimizer("LookSAM", 0.1, options=(("k", 2),)),
    Minimizer("GAM", 0.1),
    Minimizer("WASAM", 0.1, average_from=1.0),
    Minimizer("SWA", average_from=2.0),
    Minimizer("Noise", 0.5),
]
each = pytest.mark.parametrize("minimizer", EVERY, ids=lambda m: f"{m.method}-{m.rho:g}")
start = partial(scenes.start, DIGITS)


def weights(spec, cache, at=None):
    return [s.weights() for s in start(spec, cache, at)]


@each
def test_stopped_after_every_epoch_it_ends_with_the_same_bits(minimizer, tmp_path):
    spec = replace(PLAIN, minimizer=minimizer)
    whole = weights(spec, tmp_path / "whole")
    pieces = []
    for e in range(1, spec.epochs + 1):  # a process of its own would know no more than the files
        pieces += weights(spec, tmp_path / "pieces", [e])
    assert all(same(a, b) for a, b in zip(whole, pieces, strict=True))


@each
def test_every_minimizer_trains_another_network_and_says_what_it_cost(minimizer, tmp_path):
    spec = replace(PLAIN, minimizer=minimizer)
    (last,) = start(spec, tmp_path, [spec.epochs])
    (plain,) = start(PLAIN, tmp_path, [spec.epochs])
    assert not same(last.weights(), plain.weights())
    steps = spec.epochs * PER_EPOCH
    k = dict(minimizer.options).get("k")
    expected = {"GAM": 4 * steps, "SWA": steps, "LookSAM": steps + steps // k if k else None}
    warm = 1 if minimizer.warmup else 0  # at its first step ρ is 0, which costs one pass
    assert last.cost == {"passes": expected.get(minimizer.method, 2 * steps - warm), "skipped": 0}
    assert plain.cost == {"passes": steps, "skipped": 0}


def test_sam_in_training_is_sam_by_its_definition(tmp_path):
    spec = replace(PLAIN, minimizer=Minimizer("SAM", 0.2), epochs=1)
    model = training.network(spec, DIGITS).to(memory_format=torch.channels_last).train()
    params = dict(model.named_parameters())
    velocity = {n: torch.zeros_like(p) for n, p in params.items()}
    drawn = torch.Generator()
    for i in range(spec.epochs * PER_EPOCH):
        epoch, b = divmod(i, PER_EPOCH)
        order = torch.randperm(120, generator=drawn.manual_seed(keys.stream(spec.seed, "order", epoch)))
        chosen = order[b * 40 : (b + 1) * 40]
        drawn.manual_seed(keys.stream(spec.seed, "augment", i))
        x, y = data.augment(DIGITS.train_images[chosen], drawn, flip=DIGITS.flip), DIGITS.train_labels[chosen]

        def gradient(at, x=x, y=y):
            buffers = dict(model.named_buffers())
            loss = F.cross_entropy(torch.func.functional_call(model, {**at, **buffers}, (x,)), y)
            return dict(zip(at, torch.autograd.grad(loss, list(at.values())), strict=True))

        g = gradient(params)
        norm = sum(v.double().square().sum() for v in g.values()).sqrt()
        statistics = {n: v.clone() for n, v in model.named_buffers()}
        there = {n: (p + 0.2 * (g[n] / norm).float()).detach().requires_grad_() for n, p in params.items()}
        g = gradient(there)
        with torch.no_grad():
            for n, v in model.named_buffers():
                v.copy_(statistics[n])
            for n, p in params.items():
                velocity[n] = 0.9 * velocity[n] + g[n] + 5e-4 * p
                p -= spec.schedule.at(i / PER_EPOCH, spec.epochs) * velocity[n]
    found = weights(spec, tmp_path)[-1]
    for n, v in model.state_dict().items():
        torch.testing.assert_close(found[n], v, rtol=2e-3, atol=2e-4)


def test_a_snapshot_of_swa_is_the_mean_of_the_weights_with_its_own_batchnorm(tmp_path):
    spec = replace(PLAIN, minimizer=Minimizer("SWA", average_from=1.0))
    single = replace(PLAIN, minimizer=None)
    averaged, ordinary = weights(spec, tmp_path / "swa"), weights(single, tmp_path / "sgd")
    assert same(averaged[0], ordinary[0]), "before averaging begins it is SGD"
    names = [n for n, _ in training.network(spec, DIGITS).named_parameters()]
    for n in names:  # after epochs 2, 3, 4
        torch.testing.assert_close(averaged[3][n], sum(w[n] for w in ordinary[1:]) / 3)
    model = training.network(spec, DIGITS)
    model.load_state_dict(averaged[3])
    held = {n: b.clone() for n, b in model.named_buffers()}
    minimizers.update_batchnorm(model, [data.to_float(DIGITS.train_images)])
    for n, b in model.named_buffers():
        torch.testing.assert_close(held[n], b, rtol=1e-4, atol=1e-4)
    assert all(b.abs().sum() > 0 for n, b in held.items() if n.endswith("running_mean"))


def test_options_that_a_method_does_not_have_are_refused(tmp_path):
    spec = replace(PLAIN, minimizer=Minimizer("SAM", 0.1, options=(("alpha", 0.3),)))
    with pytest.raises(SpecError, match="SAM does not take {'alpha': 0.3}"):
        list(start(spec, tmp_path))
    spec = replace(PLAIN, minimizer=Minimizer("GSAM", 0.1, options=(("alpha", -1.0),)))
    with pytest.raises(SpecError, match="GSAM does not take .*alpha"):
        list(start(spec, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "R F N", "rho": 0.3}, "method is 'R F N'; give the name of a minimizer, such as 'SAM'"),
        ({"method": 3, "rho": 0.3}, "method is 3; give the name"),
        ({"method": "RFN", "rho": 0.3}, r"method is 'RFN', which is SAM with a large rho; give Minimizer\('SAM', 0.3"),
        ({"method": "rfn"}, r"method is 'rfn', which is SAM with a large rho; give Minimizer\('SAM', 0.2\)."),
        ({"method": "SAM", "rho": -1}, "rho is -1; give a number of 0 or more"),
        ({"method": "SAM", "rho": 0.1, "warmup": float("nan")}, "warmup is nan"),
        ({"method": "WASAM", "rho": 0.1, "average_from": "2"}, "average_from is '2'; give an epoch of 0 or more"),
    ],
)
def test_a_minimizer_of_values_that_cannot_be_meant_is_refused(arguments, said):
    with pytest.raises(SpecError, match=said):
        Minimizer(**arguments)


@pytest.mark.parametrize(
    ("minimizer", "said"),
    [
        (Minimizer("Sam", 0.3), "method is 'Sam'; give one of SAM, .*, SWA, or `register` it; 'SAM' may be meant"),
        (Minimizer("SAM"), "rho is 0.0 with SAM; give a number above 0"),
        (Minimizer("SWA", 0.1, average_from=1), "rho is 0.1 with SWA; give 0, for it has no neighbourhood"),
        (Minimizer("SAM", 0.1, average_from=2), "average_from is 2 with SAM; give None, since SAM averages no weights"),
        (Minimizer("WASAM", 0.1), "average_from is None with WASAM; give an epoch of 0 or more"),
    ],
    ids=lambda value: value.method if isinstance(value, Minimizer) else "",
)
def test_a_minimizer_that_its_method_cannot_mean_is_refused_before_anything_is_trained(minimizer, said, tmp_path):
    with pytest.raises(SpecError, match=said):
        training.train(replace(PLAIN, minimizer=minimizer), dataset=DIGITS, cache=tmp_path)


class Halfway(minimizers.SAM):
    """The mean of g and g₊: a minimizer of one's own, as a user would write it."""

    def direction(self, params, g, at, rho):
        return torch._foreach_lerp(g, super().direction(params, g, at, rho), 0.5)


def test_a_minimizer_of_ones_own_trains_from_a_spec_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(minimizers, "METHODS", dict(minimizers.METHODS))
    minimizers.register("Halfway", Halfway)
    spec = replace(PLAIN, minimizer=Minimizer("Halfway", 0.2))
    assert specs.parse(spec.describe()) == spec
    named = weights(spec, tmp_path)[-1]
    (last,) = start(spec, tmp_path, [spec.epochs])
    assert last.cost == {"passes": 2 * spec.epochs * PER_EPOCH, "skipped": 0}
    gnp = replace(PLAIN, minimizer=Minimizer("GNP", 0.2, options=(("alpha", 0.5),)))
    assert same(named, weights(gnp, tmp_path)[-1])


@each
def test_a_described_spec_is_parsed_to_itself(minimizer):
    spec = replace(PLAIN, minimizer=minimizer)
    assert specs.parse(spec.describe()) == spec
    assert specs.parse({k: v for k, v in PLAIN.describe().items() if k != "minimizer"}) == PLAIN


def test_minimizers_that_differ_have_different_keys():
    every = [replace(PLAIN, minimizer=m) for m in [None, *EVERY]]
    assert len({s.key() for s in every}) == len(every)
    assert len({s.history_key(6, PER_EPOCH) for s in every}) == len(every)


def test_noise_is_drawn_from_the_seed_of_the_run():
    for seed in (0, 3):
        spec = replace(PLAIN, minimizer=Minimizer("Noise", 0.5), seed=seed)
        minimizer = training._optimizer(spec, training.network(spec, DIGITS), PER_EPOCH)
        assert isinstance(minimizer, minimizers.Noise) and minimizer.seed == seed
