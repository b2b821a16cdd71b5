"""Networks from outside: known by name and digest, measured as surrogates and as targets, and served in replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import TINY, run_extended
from torch import nn

from rfnlib import outside, records
from rfnlib.adapters import Asked
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.probes import Clean, Transfer
from rfnlib.scale import Arch, Target

SMALL = replace(TINY, name="small", test_images=20, validation_images=10,
                targets=(Target(Arch("cnn", 4), 1, "validation"), Target(Arch("cnn", 4), 1, seed=1001)))  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(outside, "_MODELS", {})


@pytest.fixture
def lab(tmp_path):
    def made(mode: str = "run", scale=SMALL) -> Lab:
        return Lab(scale, mode, device="cpu", **{f"{n}_dir": tmp_path / n for n in ("records", "cache", "weights")})

    return made


def perceptron(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def test_a_surrogate_from_outside_is_recorded_by_name_and_digest_and_replayed_without_it(lab):
    theirs = outside.register("theirs", perceptron())
    arm = Arm("theirs", [theirs], *(At(p, (1.0,)) for p in (SMALL.transfer, SMALL.sharpness, SMALL.robustness)))
    seen, sharp, robust = (lab().read(arm, at.probe) for at in arm.asked)
    assert seen.hits[0].adv_wrong.shape == (1, 20, 1) and np.isnan(seen.training).all() and np.isnan(seen.passes).all()
    assert sharp.at(1.0)[0] > 0 and np.isnan(sharp.at(1.0, "relative")[0]), "it has no head to be looked at"
    assert robust.correct["none"].shape == (1, 1, 20)

    outside._MODELS.clear()
    again = lab("replay").read(arm)
    assert np.array_equal(again.hits[0].adv_wrong, seen.hits[0].adv_wrong) and again.accuracy == seen.accuracy
    (path,) = lab().folder.glob("transfer-theirs-outside-*.json")
    record = records.read(path)
    assert record.spec == theirs and record.at(1)["weights"] == theirs.digest
    assert record.at(1)["lr"] is record.at(1)["epochs_of_passes"] is None


def test_hits_are_those_of_the_same_network_trained_here(lab):
    here = lab()
    spec = SMALL.surrogate(SMALL.schedules()["constant"], 0)
    own = here.measure(Measurement(spec, At(SMALL.transfer, (3.0,)))).at(3)
    (subject,) = here._subjects(Measurement(spec, At(SMALL.transfer, (3.0,))), [3.0])
    theirs = outside.register("theirs", here.bench.network(subject))
    found = here.measure(Measurement(theirs, At(SMALL.transfer, (1.0,)))).at(1)
    same = ("adv_wrong", "surrogate_wrong", "whitebox", "l2", "accuracy", "targets")
    assert {name: found[name] for name in same} == {name: own[name] for name in same}


def test_a_target_from_outside_is_attacked_with_the_others_and_may_give_labels_alone(lab):
    network = perceptron(1).eval()
    asked = Asked(lambda x: network(x).argmax(1), "a perceptron", classes=10)
    more = [Target(outside.register(name, model), 1) for name, model in (("theirs", network), ("asked", asked))]
    scale = replace(SMALL, targets=(*SMALL.targets, *more))
    here = lab(scale=scale)
    spec = scale.surrogate(scale.schedules()["constant"], 0)
    hits = here.read(Arm("constant", [spec], At(Transfer(SMALL.attack), (1.0,)))).hits[0]
    assert hits.adv_wrong.shape == (1, 20, 3) and np.array_equal(hits.adv_wrong[..., 1], hits.adv_wrong[..., 2])
    assert np.array_equal(hits.clean_wrong[:, 1], hits.clean_wrong[:, 2])
    table = here.target_table("test")
    assert list(table.index) == ["cnn (width 4), seed 1001", "theirs", "asked"]
    assert table["training accuracy"].isna().tolist() == [False, True, True]
    assert Measurement(scale.target(scale.targets[-1]), At(Clean(), (1,))).label == (
        f"target: asked, from outside {scale.targets[-1].arch.digest[:4]}"
    )
    other = lab(scale=SMALL).find(Measurement(spec, At(Transfer(SMALL.attack), (1.0,))))
    assert other.rows == [], "against other targets it is another measurement"


def test_the_digest_tells_apart_weights_buffers_structure_and_settings():
    def conv(stride):
        layer = nn.Conv2d(1, 2, 3, stride=stride)
        nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
        return layer

    tanh = nn.Sequential(*perceptron()[:2], nn.Tanh(), perceptron()[3])
    half = perceptron().half()
    models = [perceptron(), perceptron(1), tanh, half, conv(1), conv(2), nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval()]
    models[-1].running_mean += 1
    models += [Asked(len, version) for version in ("1", "2")]
    digests = [outside.digest_of(model) for model in models]
    assert len(set(digests)) == len(models)
    assert outside.digest_of(perceptron().train()) == outside.digest_of(perceptron().eval()) == digests[0]


def test_a_model_that_was_changed_or_is_not_there_is_refused():
    model = perceptron()
    theirs = outside.register("theirs", model)
    assert outside.model_of(theirs) is model
    with torch.no_grad():
        model[1].weight += 1
    with pytest.raises(ValueError, match=f"theirs was {theirs.digest} when it was registered and is .* now; register"):
        outside.model_of(theirs)
    with pytest.raises(LookupError, match="knows theirs as .*; register it in a module that RFN_EXTENSIONS names"):
        outside.model_of(outside.Outside("theirs", "0" * 16))
    with pytest.raises(LookupError, match="knows none of that name"):
        outside.model_of(outside.Outside("others", "0" * 16))


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("a/b", perceptron(), "the model's name is 'a/b'; give letters"),
        ("a", len, "the model is a builtin_function_or_method; give a module, or adapters.Asked"),
        ("a", nn.Flatten(), "Flatten has no weights to be known by; give adapters.Asked"),
    ],
)
def test_what_cannot_be_known_is_refused(name, model, said):
    with pytest.raises(ValueError, match=said):
        outside.register(name, model)


def test_runs_with_a_target_from_outside_have_a_cost(lab):
    from rfnlib.costs import Ledger, Pace

    theirs = outside.register("theirs", perceptron())
    here = lab(scale=replace(SMALL, targets=(*SMALL.targets, Target(theirs, 1))))
    m = here.scale.clean(here.scale.targets[-1])
    left = Ledger(here).left(m)
    assert len(left) == 2 and Pace(here).seconds(left.values()) > 0
    here.measure(m)
    assert not Ledger(here).left(m)


# --- in other processes ---------------------------------------------------------------------------------------------

MODULE = """
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from rfnlib import outside, scales, studies
from rfnlib.measurements import At, Measurement
from rfnlib.scale import Target
from test_outside import SMALL, perceptron

theirs, mine = outside.register("theirs", perceptron(1)), outside.register("mine", perceptron())
SCALE = scales.SCALES["small"] = replace(SMALL, targets=(Target(theirs, 1),))
study = ModuleType("study")
study.CLAIMS = ("W1",)
study.plan = lambda lab: iter([Measurement(mine, At(SCALE.transfer, (1.0,)))])
studies.STUDIES[:], studies.BEYOND[:] = [study], []
"""


def test_run_and_its_workers_know_networks_from_outside(tmp_path):
    run_extended(tmp_path, "theirs", MODULE, "small")
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "records" / "small").glob("*.json"))
    assert names == ["clean-theirs-outside", "transfer-mine-outside"]
    assert not (tmp_path / "cache" / "snapshots").exists(), "nothing was trained"
