"""Kinds of measurement: settings are all that a row depends on, and a row is what a loop by hand finds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenes import TINY, start

from rfnlib import data, records, sharpness, transfer
from rfnlib.attacks import MI, PGD
from rfnlib.probes import Clean, Robustness, Scaled, Sharpness, Transfer, ball, scale_to_loss
from rfnlib.specs import Step
from rfnlib.subjects import Bench, Subject

DIGITS = data.load("digits").subset(TINY.n_train)
PROBES = [Clean(), TINY.transfer, TINY.sharpness, TINY.robustness]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Bench, Subject]:
    spec = TINY.surrogate(Step(0.05), 0)
    (s,) = start(DIGITS, spec, tmp_path_factory.mktemp("cache"), [2.0])
    here = Bench(TINY, DIGITS, "cpu", targets=lambda role: [("0" * 16, lambda x: x.flatten(1)[:, :10])])
    return here, Subject(spec, s.iteration, s.per_epoch, s.history, s.weights(), dict(s.cost))


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.kind)
def test_settings_are_json_and_tell_probes_apart(probe):
    assert records.plain(probe.settings(TINY)) == json.loads(json.dumps(probe.settings(TINY)))
    assert probe.settings(TINY) != probe.settings(replace(TINY, accuracy_images=49))
    assert probe.passes(TINY) >= 0 and probe.label and hash(probe)


def test_settings_of_a_transfer_name_the_attack_and_the_targets():
    settings = TINY.transfer.settings(TINY)
    assert settings != Transfer(MI()).settings(TINY)
    assert settings != TINY.transfer.settings(replace(TINY, targets=TINY.targets[:2]))
    moved = replace(TINY, targets=(*TINY.targets[1:], TINY.targets[0]))
    assert settings == TINY.transfer.settings(moved), "test targets come first, wherever they are listed"


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.kind)
def test_a_row_is_json_with_accuracies_and_passes(probe, scene):
    if probe.kind == "sharpness":
        probe = replace(probe, images=16, products=4, probes=2, deflate=1)
    row = probe.row(*scene)
    assert json.loads(json.dumps(row)) == records.plain(row)
    assert {"accuracy", "train_accuracy", "train_loss", "passes"} <= row.keys()


def test_a_transfer_row_holds_who_was_fooled_image_by_image(scene):
    bench, subject = scene
    row = TINY.transfer.row(bench, subject)
    images, labels = bench.attacked
    adversarial = TINY.attack(bench.network(subject), images, labels)
    fooled = adversarial.flatten(1)[:, :10].argmax(1) != labels
    np.testing.assert_array_equal(records.unpack(row["adv_wrong"], (41, 1))[:, 0], fooled)
    assert row["whitebox"] == round(float((bench.network(subject)(adversarial).argmax(1) != labels).float().mean()), 4)
    assert row["l2"] == pytest.approx(float((adversarial - images).flatten(1).norm(dim=1).mean()), abs=1e-4)
    assert row["passes"] == 3 * 41 and row["targets"] == ["0" * 16]


def test_a_hit_of_a_targeted_attack_is_a_target_that_says_the_wanted_class(scene):
    bench, subject = scene
    probe = Transfer(replace(TINY.attack, targeted=True, loss="logit"))
    assert probe.settings(TINY)["wanted"] == "the next class" and "wanted" not in TINY.transfer.settings(TINY)
    row, (images, labels) = probe.row(bench, subject), bench.attacked
    wanted, model = (labels + 1) % 10, bench.network(subject)
    adversarial = probe.attack(model, images, wanted)
    said = adversarial.flatten(1)[:, :10].argmax(1) == wanted
    np.testing.assert_array_equal(records.unpack(row["adv_wrong"], (41, 1))[:, 0], said)
    assert row["whitebox"] == round(float((model(adversarial).argmax(1) == wanted).float().mean()), 4)
    np.testing.assert_array_equal(
        records.unpack(row["surrogate_wrong"], (41,)), model(images).argmax(1) != labels, "clean errors are as ever"
    )


@torch.no_grad()
def cross_entropy(model, images, labels) -> float:
    return float(F.cross_entropy(model(images), labels))


def test_a_sharpness_row_is_that_of_the_tools_on_the_training_images(scene):
    bench, subject = scene
    probe = Sharpness(images=24, products=200, tol=1e-4, probes=2, deflate=1, level=2.28)
    row = probe.row(bench, subject)
    model = bench.network(subject)
    model.requires_grad_(True)
    batch = [(data.to_float(DIGITS.train_images[:24]), DIGITS.train_labels[:24])]
    assert row["top"] == pytest.approx(sharpness.top_eigenvalue(model, batch, tol=1e-4, products=200).value, rel=1e-3)
    assert row["loss"] == pytest.approx(cross_entropy(model, *batch[0]), rel=1e-3)
    assert cross_entropy(Scaled(model, row["scale"]), *batch[0]) == pytest.approx(probe.level, abs=1e-3)


def test_robust_accuracy_counts_images_that_withstand_every_start(scene):
    bench, subject = scene
    probe = Robustness(images=20, balls=(("l2", 0.5),), steps=3, restarts=2)
    row = probe.row(bench, subject)
    images, labels = bench.test_images(20)
    attack = PGD(0.5, norm="l2", steps=3, step=2.5 * 0.5 / 3)
    expected = transfer.is_robust(bench.network(subject), images, labels, attack, 2)
    np.testing.assert_array_equal(records.unpack(row["correct"]["l2 0.5"], (20,)), expected)
    assert row["passes"] == 20 * 3 * 2
    assert records.unpack(row["correct"]["none"], (20,)).sum() >= expected.sum()


def test_scaled_logits_have_the_loss_asked_for_or_there_is_no_such_scale():
    logits, labels = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 10
    logits[torch.arange(50), labels] += 3.0
    for level in (0.5, 1.8):
        scale = scale_to_loss(logits, labels, level)
        assert float(F.cross_entropy(scale * logits.double(), labels)) == pytest.approx(level, abs=1e-4)
    assert scale_to_loss(logits, labels, 3.0) is None, "more than log 10"
    assert scale_to_loss(-logits, labels, 1.0) is None, "a network that is mostly wrong cannot have it"


def test_balls_are_named_by_norm_and_radius():
    assert (ball("linf", 8 / 255), ball("l2", 0.25)) == ("linf 8/255", "l2 0.25")
