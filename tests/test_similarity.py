"""Similarity of input gradients: what a loop over images by hand finds, and a record that tells targets apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenes import TINY, start

from rfnlib import data, records, sharpness, training
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.scale import Arch
from rfnlib.similarity import Similarity, cosines
from rfnlib.specs import Step
from rfnlib.subjects import Bench, Subject

DIGITS = data.load("digits").subset(TINY.n_train)
PROBE = Similarity(images=12, curved=4, tol=1e-3, products=40)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Bench, Subject]:
    spec = TINY.surrogate(Step(0.05), 0)
    (s,) = start(DIGITS, spec, tmp_path_factory.mktemp("cache"), [1.0])
    others = [training.network(replace(spec, seed=seed), DIGITS).eval() for seed in (0, 1)]
    here = Bench(TINY, DIGITS, "cpu", targets=lambda role: [("a" * 16, others[0]), ("b" * 16, others[1])])
    return here, Subject(spec, s.iteration, s.per_epoch, s.history, s.weights(), dict(s.cost))


def gradient(model, image, label) -> torch.Tensor:
    """By the definition, of one image alone."""
    x = image[None].clone().requires_grad_()
    F.cross_entropy(model(x), label[None]).backward()
    return x.grad.flatten()


def test_a_row_holds_the_mean_cosine_with_each_target(scene):
    bench, subject = scene
    row = PROBE.row(bench, subject)
    model, (images, labels) = bench.network(subject), bench.test_images(12)
    for (_, target), found in zip(bench.targets("standard"), row["cosines"], strict=True):
        each = []
        for x, y in zip(images, labels, strict=True):
            a, b = gradient(model, x, y), gradient(target, x, y)
            each.append(float(a @ b / (a.norm() * b.norm())))
        assert found == pytest.approx(np.mean(each), abs=1e-4)
    assert row["targets"] == ["a" * 16, "b" * 16] and row["cosines"][0] != row["cosines"][1]
    assert json.loads(json.dumps(row)) == records.plain(row) and "accuracy" in row


def test_the_input_curvature_is_that_of_the_dense_hessian(scene):
    bench, subject = scene
    model, (images, labels) = bench.network(subject), bench.test_images(4)
    tops = []
    for x, y in zip(images, labels, strict=True):
        loss = lambda v, x=x, y=y: F.cross_entropy(model(v.view(1, *x.shape)), y[None])  # noqa: E731
        tops.append(float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, x.flatten()))[-1]))
    row = PROBE.row(bench, subject)
    assert row["input_top"] == pytest.approx(np.mean(tops), rel=1e-3)
    assert 12 + 4 * (1 + 3) <= row["passes"] <= 12 + 4 * (1 + 3 * 40)


def test_a_network_is_like_itself_and_unlike_its_opposite():
    g = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert cosines(g, 3 * g).numpy() == pytest.approx(np.ones(5)) and float(cosines(g, -g).mean()) == pytest.approx(-1)
    assert float(cosines(g, torch.zeros(5, 7)).abs().max()) == 0


def test_gradients_by_batch_are_those_of_all_images_at_once(scene):
    bench, subject = scene
    model, (images, labels) = bench.network(subject), bench.test_images(10)
    whole = sharpness.input_gradients(model, [(images, labels)])
    parts = sharpness.input_gradients(model, [(images[:3], labels[:3]), (images[3:], labels[3:])])
    assert whole.shape == (10, images[0].numel()) and torch.allclose(whole, parts, atol=1e-6)
    norm = sharpness.input_gradient_norm(model, [(images, labels)])
    assert norm.value == pytest.approx(float(whole.norm(dim=1).mean()), rel=1e-6) and norm.passes == 1


def test_settings_tell_probes_and_targets_apart():
    assert PROBE.settings(TINY) != replace(PROBE, images=13).settings(TINY)
    assert PROBE.settings(TINY) != PROBE.settings(replace(TINY, targets=TINY.targets[:2]))
    assert PROBE.passes(TINY) > 0 and hash(PROBE)


def test_it_is_recorded_and_read_as_the_mean_over_test_targets(tmp_path):
    scale = replace(TINY, surrogates=(Arch("cnn", 2),))
    folders = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w"}
    arm = Arm("SGD", [scale.surrogate(Step(0.05), 0)], At(PROBE, (1.0, 2.0)))
    curve = Lab(scale, "run", device="cpu", **folders).read(arm)
    lab = Lab(scale, "replay", device="cpu", **folders)
    again = lab.read(arm)
    (row, _) = lab.find(Measurement(arm.specs[0], arm.asked[0])).rows
    assert len(row["cosines"]) == len(scale.targets) == 3, "validation targets as well"
    assert again.at(1.0, "cosine") == pytest.approx(np.mean(row["cosines"][:2])), "test targets come first"
    assert np.array_equal(again.values["cosine"], curve.values["cosine"]) and again.at(1.0, "input_top").shape == (1,)
