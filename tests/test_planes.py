"""Planes and paths in the space of weights: geometry by hand, and at each point the network that is there."""

import copy
import json
from dataclasses import replace
from pathlib import Path as File

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenes import TINY

from rfnlib import data, minimizers, planes, records, training
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.planes import Path, Place, Plane, axes, barrier
from rfnlib.scale import Arch
from rfnlib.snapshots import weights_digest
from rfnlib.specs import Step
from rfnlib.subjects import Bench, Subject
from rfnlib.transfer import predict

SCALE = replace(TINY, surrogates=(Arch("resnet18", 2),))
DIGITS = data.load("digits").subset(SCALE.n_train)
SPECS = [SCALE.surrogate(Step(0.05), seed) for seed in range(4)]
NETWORKS = [training.network(spec, DIGITS).eval() for spec in SPECS]
NAMES = [name for name, _ in NETWORKS[0].named_parameters()]


def vector(model) -> np.ndarray:
    return np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])


W = [vector(model) for model in NETWORKS]


def weights(spec, epoch):
    """Those of the untrained network of the spec; at epoch 2 half as long."""
    state = NETWORKS[SPECS.index(spec)].state_dict()
    return {k: v / epoch if k in NAMES else v for k, v in state.items()}


@pytest.fixture(scope="module")
def scene() -> tuple[Bench, Subject]:
    bench = Bench(SCALE, DIGITS, "cpu", lambda role: [("0" * 16, Rule()), ("1" * 16, NETWORKS[3]), ("2" * 16, Rule())],
                  weights=weights)  # fmt: skip
    return bench, Subject(SPECS[0], 5, 5, "0" * 16, weights(SPECS[0], 1), {"passes": 5, "skipped": 0})


class Rule(torch.nn.Module):
    """A target that is right on clean images, mostly, and has no weights."""

    def forward(self, x):
        return -torch.cdist(x.flatten(1), self.centres())

    def centres(self):
        images, labels = data.to_float(DIGITS.train_images), DIGITS.train_labels
        return torch.stack([images[labels == k].mean(0).flatten() for k in range(10)])


PLANE = Plane((Place(SPECS[1], 1.0), Place(SPECS[2], 1.0)), (Place(SPECS[1], 2.0), Place(SPECS[3], 1.0)), SCALE.attack,
              images=40, attacked=20, steps=3, margin=0.1)  # fmt: skip


@pytest.fixture(scope="module")
def row(scene):
    targets = replace(SCALE, targets=SCALE.targets[1:] + SCALE.targets[:1])
    scene[0].scale = replace(targets)
    return PLANE.row(*scene)


def test_corners_lie_in_the_plane_and_distances_are_those_of_the_weights(row):
    xy, apart = np.split(np.array(row["places"]), [2], axis=1)
    assert apart[:3, 0] == pytest.approx([0, 0, 0], abs=1e-4)
    for i in range(3):
        for j in range(i):
            assert np.linalg.norm(xy[i] - xy[j]) == pytest.approx(np.linalg.norm(W[i] - W[j]), rel=1e-4)
    assert xy[1, 1] == pytest.approx(0, abs=1e-4) and xy[1, 0] > 0 and xy[2, 1] > 0


def test_others_are_projected_at_right_angles(row):
    basis = np.linalg.qr(np.stack([W[1] - W[0], W[2] - W[0]], 1))[0]
    for (x, y, apart), w in zip(row["places"][3:], (W[1] / 2, W[3]), strict=True):
        d = w - W[0]
        within = basis @ (basis.T @ d)
        assert np.hypot(x, y) == pytest.approx(np.linalg.norm(within), rel=1e-4)
        assert apart == pytest.approx(np.linalg.norm(d - within), rel=1e-4)
    assert row["digests"][1:] == [weights_digest(weights(p.spec, p.epoch)) for p in PLANE.places]


def test_loss_and_success_are_those_of_the_network_at_each_point(row, scene):
    bench, _ = scene
    e1 = (W[1] - W[0]) / np.linalg.norm(W[1] - W[0])
    e2 = W[2] - W[0] - (W[2] - W[0]) @ e1 * e1
    e2 /= np.linalg.norm(e2)
    images, labels = data.to_float(DIGITS.train_images[:40]), DIGITS.train_labels[:40]
    attacked, truth = bench.test_images(20)
    targets = [model for _, model in bench.targets("standard")][:2]
    right = torch.stack([predict(t, attacked) == truth for t in targets]).all(0)
    assert 0 < right.sum() == row["counted"] <= 20
    for i, j in ((0, 0), (1, 2), (2, 1)):
        at = W[0] + row["x"][j] * e1 + row["y"][i] * e2
        model, rest = copy.deepcopy(NETWORKS[0]), torch.from_numpy(at).float()
        torch.nn.utils.vector_to_parameters(rest, model.parameters())
        minimizers.update_batchnorm(model, [images])
        with torch.no_grad():
            assert row["loss"][i][j] == pytest.approx(float(F.cross_entropy(model(images), labels)), rel=1e-3)
        adversarial = SCALE.attack(model, attacked[right], truth[right])
        hits = [float((predict(t, adversarial) != truth[right]).float().mean()) for t in targets]
        assert row["success"][i][j] == pytest.approx(np.mean(hits), abs=0.05)
    assert json.loads(json.dumps(row)) == records.plain(row)


def test_settings_name_every_network_and_needs_ask_for_its_success():
    assert PLANE.settings(SCALE) != replace(PLANE, corners=PLANE.corners[::-1]).settings(SCALE)
    assert PLANE.settings(SCALE) != replace(PLANE, others=PLANE.others[:1]).settings(SCALE)
    needed = PLANE.needs(SCALE)
    assert [m.spec for m in needed] == [p.spec for p in PLANE.places] and needed[2].epochs == (2.0,)
    assert {m.probe for m in needed} == {SCALE.transfer} and hash(PLANE)
    assert records.plain(PLANE.settings(SCALE)) == json.loads(json.dumps(PLANE.settings(SCALE)))


def test_a_path_adds_up_legs_from_where_the_run_starts(scene):
    bench, subject = scene
    probe = Path((1.0, 2.0), ((1.0, 2.0), (1.0, 1.0)), images=40, points=5)
    row = probe.row(bench, subject)
    length = np.linalg.norm(W[0])
    assert row["legs"] == pytest.approx([0, length / 2], rel=1e-4, abs=1e-6), "it begins at the untrained network"
    assert row["displaced"] == pytest.approx([0, length / 2], rel=1e-4, abs=1e-6)
    assert row["norms"] == pytest.approx([length, length, length / 2], rel=1e-4)
    assert row["digests"] == [weights_digest(weights(SPECS[0], e)) for e in (1, 2)]
    images, labels = data.to_float(DIGITS.train_images[:40]), DIGITS.train_labels[:40]
    for t, found in zip((0, 0.25, 0.5, 0.75, 1), row["losses"][0], strict=True):
        model = copy.deepcopy(NETWORKS[0])
        at = torch.from_numpy(W[0] * (1 - t) + W[0] / 2 * t).float()
        torch.nn.utils.vector_to_parameters(at, model.parameters())
        minimizers.update_batchnorm(model, [images])
        with torch.no_grad():
            assert found == pytest.approx(float(F.cross_entropy(model(images), labels)), rel=1e-3)
    assert np.ptp(row["losses"][1]) < 1e-6, "a network and itself"
    assert json.loads(json.dumps(row)) == records.plain(row)


def test_a_run_that_goes_on_begins_where_the_other_ended(scene):
    bench, subject = scene
    onwards = replace(SPECS[1], start=SPECS[0], epochs=1)
    asked = lambda spec, epoch: weights(SPECS[1] if spec == onwards else SPECS[0], 1)  # noqa: E731
    here = Bench(SCALE, DIGITS, "cpu", bench.targets, weights=asked)
    row = Path((1.0,), (), images=40).row(here, replace(subject, spec=onwards))
    assert row["legs"] == pytest.approx([np.linalg.norm(W[1] - W[0])], rel=1e-4)


def test_barriers_are_measured_above_the_straight_line():
    t = np.linspace(0, 1, 21)
    assert barrier(list(2 + t)) == pytest.approx(0) and barrier(list(t**2)) == pytest.approx(0)
    assert barrier(list(1 + t + 4 * t * (1 - t))) == pytest.approx(1.0)
    assert axes([(0, 5, 9), (4, 5, 9)], 2, 0.25) == ([-1, 5], [2, 8])


def test_both_are_recorded_by_a_lab_and_served_again(tmp_path: File, monkeypatch):
    scale = replace(TINY, surrogates=(Arch("cnn", 2),), seeds=(0,))
    folders = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w"}
    run, other = (scale.surrogate(Step(lr), 0) for lr in (0.05, 0.02))
    plane = Plane((Place(run, 2.0), Place(other, 2.0)), (Place(other, 1.0),), scale.attack, 20, 10, steps=2)
    path = Path((1.0, 2.0), ((1.0, 2.0),), images=20, points=3)
    arms = [Arm("plane", [run], At(plane, (1.0,))), Arm("path", [run], At(path, (2.0,)))]
    lab = Lab(scale, "run", device="cpu", **folders)
    made = [lab.read(arm) for arm in arms]
    again = Lab(scale, "replay", device="cpu", **folders)
    assert [again.read(arm) for arm in arms] == made
    ((first,), (second,)) = made
    assert first["digests"][1] == second["digests"][1], "both name the same network"
    transfer = lab.measure(Measurement(run, At(scale.transfer, (2.0,)))).at(2.0)
    assert transfer["weights"] == second["digests"][1], "and so does the record of its success"
    assert first["x"] == sorted(first["x"]) and np.shape(first["loss"]) == (2, 2)
    assert planes.barrier(second["losses"][0]) >= 0
