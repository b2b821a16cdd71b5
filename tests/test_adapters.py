"""Models from elsewhere behind what they want, and the doubts about one that wants something else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rfnlib import data
from rfnlib.adapters import Adapted, Asked, doubt
from rfnlib.attacks import BIM
from rfnlib.sharpness import top_eigenvalue
from rfnlib.transfer import predict

DIGITS = data.load("digits")
X, Y = data.to_float(DIGITS.test_images[:200]), DIGITS.test_labels[:200]
MEAN, STD = (DIGITS.mean, DIGITS.std)


def fitted(make) -> nn.Module:
    """A perceptron that was trained on `make` of images."""
    x, y = make(data.to_float(DIGITS.train_images)), DIGITS.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


PLAIN = fitted(lambda x: x)


def accuracy(model: nn.Module) -> float:
    return float((predict(model, X) == Y).float().mean())


def test_images_are_resized_normalised_and_cast_and_logits_picked_and_grouped():
    seen = []

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 16 * 12, 5).bfloat16()

        def forward(self, x):
            seen.append(x)
            return {"scores": self.head(x.flatten(1)), "loss": None}

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = Adapted(Theirs(), mean=mean, std=std, size=(16, 12), pick="scores", classes=[4, [0, 1]])
    z = model(X)
    large = F.interpolate(X, (16, 12), mode="bilinear", antialias=True)
    expected = torch.cat([(large - m) / s for m, s in zip(mean, std, strict=True)], 1)
    assert torch.equal(seen[0], expected.bfloat16()) and z.dtype == torch.float32
    raw = model.model.model.head(seen[0].flatten(1)).float()
    assert torch.allclose(z, torch.stack([raw[:, 4], raw[:, :2].logsumexp(1)], 1))


def test_around_nothing_it_is_the_model():
    assert torch.equal(Adapted(PLAIN)(X), PLAIN(X))


def test_in_half_precision_it_is_attacked_and_measured_as_in_full_about():
    half = Adapted(fitted(lambda x: x).bfloat16())
    adversarial = BIM(eps=32 / 255, steps=5)(half, X, Y)
    assert adversarial.dtype == torch.float32 and accuracy(half) == pytest.approx(accuracy(PLAIN), abs=0.02)
    assert float((predict(PLAIN, adversarial) != Y).float().mean()) > 0.2
    with pytest.raises(ValueError, match="copy.deepcopy"):
        top_eigenvalue(half, [(X, Y)])
    assert top_eigenvalue(half.float(), [(X, Y)], tol=1e-2).value == pytest.approx(
        top_eigenvalue(PLAIN, [(X, Y)], tol=1e-2).value, rel=0.1
    )


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: PLAIN(x).argmax(1),
        lambda x: PLAIN(x).argmax(1).tolist(),
        lambda x: PLAIN(x).argmax(1).numpy(),
        lambda x: PLAIN(x).detach().numpy(),
    ],
    ids=["labels", "list", "array", "scores"],
)
def test_a_function_is_a_target_by_its_answers_and_no_surrogate(answer):
    model = Asked(answer, "1", classes=10, batch_size=33)
    assert torch.equal(predict(model, X), predict(PLAIN, X))
    with pytest.raises(ValueError, match="this function gives no gradient, so it is a target and no surrogate"):
        BIM(steps=1)(model, X, Y)


def test_a_function_that_lets_gradients_through_is_attacked():
    attack = BIM(eps=32 / 255, steps=3)
    assert torch.equal(attack(Asked(PLAIN.forward, "1"), X, Y), attack(PLAIN, X, Y))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Adapted(len), "give a module, or Asked"),
        (lambda: Adapted(PLAIN, mean=(0.5,)), r"mean is \(0.5,\), std None; give both"),
        (lambda: Asked(len, ""), "version is ''; give a text"),
        (lambda: Asked(lambda x: [0] * len(x), "1")(X), "200 labels; give classes="),
    ],
)
def test_bad_arguments_are_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()


# --- forgotten normalisation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "std", "of"),
    [(MEAN, STD, "the data's"), ((0.5,), (0.5,), "those of"), ((0.0,), (1 / 255,), "those of levels")],
    ids=["the data's", "symmetric", "levels"],
)
def test_forgotten_normalisation_is_noticed(mean, std, of):
    theirs = fitted(lambda x: (x - mean[0]) / std[0])
    right = Adapted(theirs, mean=mean, std=std)
    assert accuracy(right) > accuracy(theirs) + 0.1 and doubt(right, X, Y, MEAN, STD) == ""
    said = doubt(theirs, X, Y, MEAN, STD)
    assert "of 200 images as they are and on" in said and f"normalised by {of}" in said
    assert "give Adapted(model, mean=[" in said


def test_accuracy_at_chance_is_noticed():
    shuffled = Adapted(PLAIN, classes=[1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    assert "which is chance for its 10 classes; look for another order of the classes" in doubt(shuffled, X, Y)
    assert doubt(PLAIN, X, Y, MEAN, STD) == ""
