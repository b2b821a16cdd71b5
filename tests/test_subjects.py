"""The bench: one order of images for everything, and accuracies that a loop by hand finds too."""

import pytest
import torch
import torch.nn.functional as F
from scenes import TINY, start
from torch import nn

from rfnlib import data, subjects
from rfnlib.recipes import Ghosts
from rfnlib.specs import Step
from rfnlib.subjects import Bench, Subject
from rfnlib.surrogates import Cycle, Ensemble, GhostNetwork

DIGITS = data.load("digits").subset(TINY.n_train)


def bench() -> Bench:
    return Bench(TINY, DIGITS, "cpu", targets=lambda role: [])


def test_the_attacked_images_are_the_first_of_those_that_accuracy_is_taken_on():
    (attacked, labels), (more, all_labels) = bench().attacked, bench().test_images(50)
    assert attacked.shape == (41, 1, 8, 8)
    assert torch.equal(attacked, more[:41]) and torch.equal(labels, all_labels[:41])
    originals = {image.numpy().tobytes() for image in DIGITS.test_images}
    assert all((image * 255).round().to(torch.uint8).numpy().tobytes() in originals for image in more)


def test_more_images_than_there_are_are_refused():
    there = len(DIGITS.test_labels)
    assert len(bench().test_images(there)[1]) == there
    with pytest.raises(ValueError, match=f"{there + 1} test images of digits are asked for; give from 1 to {there}"):
        bench().test_images(there + 1)
    with pytest.raises(ValueError, match="201 training images of digits are asked for; give from 1 to 200"):
        bench().training_batches(TINY.n_train + 1)


def test_training_batches_are_equal_and_neither_augmented_nor_shuffled():
    batches = bench().training_batches(120)
    assert torch.equal(torch.cat([x for x, _ in batches]), data.to_float(DIGITS.train_images[:120]))
    assert torch.equal(torch.cat([y for _, y in batches]), DIGITS.train_labels[:120])
    assert [subjects.even(n, 500) for n in (120, 500, 501, 1200)] == [120, 500, 251, 400]


def test_a_subject_is_measured_as_by_hand(tmp_path):
    spec = TINY.surrogate(Step(0.05), 0)
    (s,) = start(DIGITS, spec, tmp_path, [1.0])
    here = bench()
    subject = Subject(spec, s.iteration, s.per_epoch, s.history, s.weights(), dict(s.cost))
    model = here.network(subject)
    assert not model.training and not any(p.requires_grad for p in model.parameters())

    images, labels = here.test_images(50)
    logits = model(data.to_float(DIGITS.train_images))
    found = here.accuracies(subject, model)
    assert found["accuracy"] == round(float((model(images).argmax(1) == labels).float().mean()), 4)
    assert found["train_accuracy"] == round(float((logits.argmax(1) == DIGITS.train_labels).float().mean()), 4)
    assert abs(found["train_loss"] - float(F.cross_entropy(logits, DIGITS.train_labels))) < 1e-3

    class Fails(nn.Module):
        def forward(self, x):
            raise AssertionError("what is known is not computed again")

    assert here.accuracies(subject, Fails()) == found
    ghosts = Subject(spec, s.iteration, s.per_epoch, s.history, s.weights(), dict(s.cost), Ghosts())
    assert isinstance(here.network(ghosts), GhostNetwork) and ghosts.digest == subject.digest


def test_several_networks_are_judged_by_their_mean_probabilities_whatever_asks(tmp_path):
    spec = TINY.surrogate(Step(0.05), 0)
    (s,) = start(DIGITS, spec, tmp_path, [1.0])
    one = Subject(spec, s.iteration, s.per_epoch, s.history, s.weights(), dict(s.cost))
    two = Subject(spec, s.iteration, s.per_epoch, s.history, {k: v * 1.05 for k, v in one.weights.items()}, {})
    members = [bench().network(subject) for subject in (one, two)]
    cycle = Cycle(members)
    found = bench().accuracies(one, cycle)
    assert found == bench().accuracies(one, Ensemble(members, "probabilities"))
    assert found == bench().accuracies(one, cycle) and cycle.passed == 0
