"""Robust accuracy: against margins that are known, and image by image against single attacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rfnlib import bricks, data, models, transfer
from rfnlib.attacks import BIM, FGSM, PGD, AttackError

DIGITS = data.load("digits").subset(60)


@pytest.fixture(scope="module")
def model() -> bricks.Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.build("cnn", width=2, image_shape=(1, 8, 8), mean=DIGITS.mean, std=DIGITS.std)


class Linear(nn.Module):
    """Two classes, z₁ − z₀ = ⟨w, x⟩ + b: what an attack can do is known."""

    def __init__(self):
        super().__init__()
        w = torch.randn(16, generator=torch.Generator().manual_seed(0))
        self.w, self.b = nn.Parameter(w), nn.Parameter(-w.sum() / 2)  # undecided about grey

    def forward(self, x):
        z = x.flatten(1) @ self.w + self.b
        return torch.stack([-z / 2, z / 2], 1)


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_of_a_linear_model_is_what_its_margins_say(norm, eps):
    model, drawn = Linear(), torch.Generator().manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(300, 1, 4, 4, generator=drawn)  # too far from 0 and 1 to be clipped
    y = torch.randint(0, 2, (300,), generator=drawn)
    with torch.no_grad():
        margin = (2 * y - 1) * (x.flatten(1) @ model.w + model.b)
        dual = model.w.abs().sum() if norm == "linf" else model.w.norm()
    expected = margin > eps * dual
    unsure = (margin - eps * dual).abs() < 1e-4
    for attack, restarts in ((FGSM(eps=eps, norm=norm), 1), (PGD(eps=eps, steps=10, norm=norm, step=eps), 2)):
        found = transfer.is_robust(model, x, y, attack, restarts, batch_size=70)
        assert torch.equal(found[~unsure], expected[~unsure])
        share = transfer.robust_accuracy(model, x, y, attack, restarts)
        assert share == pytest.approx(float(found.float().mean()))
    assert 0.1 < float(expected.float().mean()) < 0.9


def test_an_image_that_any_restart_fools_is_not_robust(model):
    x, y = data.to_float(DIGITS.test_images[:80]), model.eval()(data.to_float(DIGITS.test_images[:80])).argmax(1)
    attack = PGD(eps=0.06, step=0.0, steps=1)  # nothing but its random start
    left, alive = [], torch.arange(80)
    for r in range(4):
        adv = replace(attack, seed=r)(model, x[alive], y[alive])
        alive = alive[model(adv).argmax(1) == y[alive]]
        left.append(alive.tolist())
    for r in range(4):
        assert transfer.is_robust(model, x, y, attack, r + 1).nonzero()[:, 0].tolist() == left[r]
    assert len(left[3]) < len(left[0]) < 80
    assert not transfer.is_robust(model, x, (y + 1) % 10, attack).any(), "wrong without any attack"
    assert transfer.is_robust(model, x[:0], y[:0], attack).shape == (0,)


def test_the_model_and_torchs_generator_are_left_as_they_were(model):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    transfer.is_robust(model, data.to_float(DIGITS.test_images), DIGITS.test_labels, PGD(steps=1), restarts=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("attack", "restarts", "said"),
    [
        (BIM(steps=1), 2, "2 restarts without a random start would be one; use PGD"),
        (PGD(steps=1), 0, "restarts is 0; give"),
        (PGD(steps=1, targeted=True), 1, "the attack is targeted"),
    ],
)
def test_robust_accuracy_refuses_what_cannot_be_meant(attack, restarts, said, model):
    x, y = data.to_float(DIGITS.test_images), DIGITS.test_labels
    with pytest.raises(AttackError, match=said):
        transfer.robust_accuracy(model, x, y, attack, restarts)
    with pytest.raises(AttackError, match="there are no images"):
        transfer.robust_accuracy(model, x[:0], y[:0], PGD(steps=1))
