"""What others add, without an edit of the library: each enters specs, a record, a measurement in `run`, and replay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from scenes import TINY, run_extended
from torch import nn

from rfnlib import claims, data, extensions, minimizers, models, probes, records, scales, studies
from rfnlib.attacks import BIM
from rfnlib.intervals import over_seeds
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.scale import Arch, Target
from rfnlib.specs import Minimizer, Step
from rfnlib.surrogates import Ensemble

SMALL = replace(TINY, name="small", epochs=2, decays=(1,), standard=(1,), cycle=1, seeds=(0, 1), targets=(
    Target(Arch("cnn", 4), 1, "validation"), Target(Arch("cnn", 4), 1, seed=1001)), surrogates=(Arch("cnn", 2),),
    test_images=20, validation_images=10)  # fmt: skip
SGD = SMALL.surrogate(Step(0.05), 0)


@pytest.fixture
def lab(tmp_path):
    """Makes labs that share their folders."""

    def made(mode: str = "run", scale: scales.Scale | str = SMALL) -> Lab:
        where = {f"{name}_dir": tmp_path / name for name in ("records", "cache", "weights")}
        return Lab(scale, mode, device="cpu", **where)

    return made


def survives(lab, *measurements: Measurement, scale=SMALL) -> records.Record:
    """Measure, and see that another process would serve the same from the records; the last one's record."""
    here = lab("run", scale)
    for m in measurements:
        for need in (*m.needs(here.scale), m):
            assert lab("replay", scale).missing(need) == need.epochs or need is not m
            here.measure(need)
        found = lab("replay", scale).measure(m)
        assert found.rows == here.find(m).rows and [row["epoch"] for row in found.rows] == list(m.epochs)
    return found


# --- a minimizer ----------------------------------------------------------------------------------------


class Extrapolated(minimizers.SAM):
    """Steps along g + 2 (g₊ − g)."""

    def direction(self, params, g, at, rho):
        return torch._foreach_lerp(g, super().direction(params, g, at, rho), 2.0)


def test_a_minimizer(lab, monkeypatch):
    monkeypatch.setattr(minimizers, "METHODS", dict(minimizers.METHODS))
    minimizers.register("Extrapolated", Extrapolated)
    own, sam = (SMALL.flat(Minimizer(name, 0.1), 0) for name in ("Extrapolated", "SAM"))
    asked = At(SMALL.robustness, (1.0,))
    found = survives(lab, *(Measurement(spec, asked) for spec in (sam, own)))
    assert found.spec.minimizer.method == "Extrapolated" and found.rows[0]["epochs_of_passes"] == 2
    assert found.rows[0]["weights"] != lab("replay").find(Measurement(sam, asked)).at(1)["weights"]


# --- an attack technique --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inverted:
    """A view: every other copy of the images has its colours inverted."""

    strength: float = 1.0
    passes: ClassVar[int] = 2

    def __call__(self, images, batch):
        return images, self.strength * (1 - images)


def test_an_attack_technique(lab):
    own, plain = (probes.Transfer(BIM(eps=32 / 255, steps=2, views=views)) for views in ((Inverted(),), ()))
    found = survives(lab, *(Measurement(SGD, At(probe, (1.0,))) for probe in (plain, own)))
    (view,) = found.settings["attack"]["views"]
    assert "Inverted" in str(view) and "strength" in str(view)
    assert found.at(1)["passes"] == 2 * lab("replay").find(Measurement(SGD, At(plain, (1.0,)))).at(1)["passes"]
    other = probes.Transfer(BIM(eps=32 / 255, steps=2, views=(Inverted(0.5),)))
    assert lab("replay").missing(Measurement(SGD, At(other, (1.0,)))), "its settings are part of the key"


# --- a kind of measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confidence:
    """The mean largest probability on test images."""

    images: int = 20
    kind: ClassVar[str] = "confidence"
    label: ClassVar[str] = "confidence"

    def settings(self, scale):
        return {"images": self.images, "accuracy_images": scale.accuracy_images}

    def row(self, bench, subject):
        model, (images, _) = bench.network(subject), bench.test_images(self.images)
        mean = float(model(images).softmax(1).amax(1).mean())
        return {**bench.accuracies(subject, model), "confidence": records.rounded(mean), "passes": 0}

    def read(self, lab, arm, at, rows, **how):
        return [[row["confidence"] for row in of] for of in rows]

    def passes(self, scale):
        return self.images / 3


def test_a_kind_of_measurement(lab):
    found = survives(lab, Measurement(SGD, At(Confidence(), (0.6, 1.0))))
    assert found.name.startswith("confidence-cnn") and all(0.1 <= r["confidence"] <= 1 for r in found.rows)
    arm = Arm("SGD", [SGD], At(Confidence(), (0.6, 1.0)))
    assert lab("replay").read(arm) == [[row["confidence"] for row in found.rows]]
    assert lab("replay").missing(Measurement(SGD, At(Confidence(images=19), (1.0,))))


@dataclass(frozen=True)
class Norm(Confidence):
    """The length of all weights: a kind whose rows say nothing about images."""

    kind: ClassVar[str] = "norm"
    label: ClassVar[str] = "norm"

    def row(self, bench, subject):
        return {"norm": records.rounded(sum(float(w.float().norm()) for w in subject.weights.values()))}


def test_a_kind_of_measurement_without_accuracy(lab):
    found = survives(lab, Measurement(SGD, At(Norm(), (1.0,))))
    assert found.at(1)["norm"] > 0


# --- a data set -----------------------------------------------------------------------------------------


def stripes(root: Path) -> data.Dataset:
    """Images of stripes, by direction and width: four classes."""
    drawn = torch.Generator().manual_seed(0)
    labels = torch.arange(280) % 4
    wave = torch.sin(torch.arange(8.0) * (1 + labels % 2)[:, None])[:, None, None].expand(-1, 1, 8, 8)
    images = torch.where((labels > 1)[:, None, None, None], wave, wave.transpose(2, 3))
    noisy = ((images + 1.5 + torch.rand(images.shape, generator=drawn)) * 70).to(torch.uint8).numpy()
    parts = (noisy[:200], labels[:200].numpy()), (noisy[200:], labels[200:].numpy())
    return data.from_arrays("stripes", *parts)


def test_a_data_set(lab, monkeypatch):
    monkeypatch.setattr(data, "_SOURCES", dict(data._SOURCES))
    data.register("stripes", stripes)
    scale = replace(SMALL, name="striped", data="stripes", epochs=6, surrogates=(Arch("cnn", 8),))
    spec = scale.surrogate(Step(0.05), 0)
    found = survives(lab, Measurement(spec, At(scale.transfer, (6.0,))), scale=scale)
    assert found.data == data.checksum("stripes")[:16] and found.spec.data == "stripes"
    assert found.at(6)["accuracy"] > 0.5, "four classes, easily told apart"


# --- an architecture ------------------------------------------------------------------------------------


def perceptron(image_shape: models.ImageShape, *, width: int = 32) -> models.Body:
    """One hidden layer."""
    c, h, w = image_shape
    return [nn.Flatten(), nn.Linear(c * h * w, width), nn.ReLU()], width


def test_an_architecture(lab, monkeypatch):
    monkeypatch.setattr(models, "ARCHITECTURES", dict(models.ARCHITECTURES))
    models.register("perceptron", perceptron)
    spec = SMALL.surrogate(Step(0.05), 0, arch=Arch("perceptron", 16))
    found = survives(lab, Measurement(spec, At(SMALL.transfer, (1.0,))), Measurement(spec, At(SMALL.sharpness, (1.0,))))
    assert found.spec.arch == "perceptron" and found.at(1)["relative"] > 0


# --- a recipe: a surrogate made of a network ------------------------------------------------------------


def twice(network, weights, batches):
    """The network and its mirror image, together."""
    return Ensemble([network, nn.Sequential(Mirror(), network)])


class Mirror(nn.Module):
    def forward(self, x):
        return x.flip(3)


def test_a_recipe(lab):
    plain, own = (Measurement(SGD, At(SMALL.transfer, (1.0,), recipe)) for recipe in (None, twice))
    found = survives(lab, plain, own)
    assert "twice" in str(found.settings["recipe"]) and found.key != lab("replay").find(plain).key
    assert found.at(1)["weights"] == lab("replay").find(plain).at(1)["weights"], "of the same network"
    ours, theirs = found.at(1), lab("replay").find(plain).at(1)
    assert any(ours[name] != theirs[name] for name in ("adv_wrong", "surrogate_wrong", "whitebox", "l2"))


# --- a scale --------------------------------------------------------------------------------------------


def test_a_scale(lab, monkeypatch):
    monkeypatch.setitem(scales.SCALES, "mine", replace(SMALL, name="mine", epochs=2, seeds=(0,)))
    with pytest.raises(MissingRecord, match="rfnlib run --scale mine"):
        lab("replay", "mine").target_table()
    spec = scales.get("mine").surrogate(Step(0.05), 0)
    survives(lab, Measurement(spec, At(SMALL.transfer, (2.0,))), scale="mine")
    assert lab("replay", "mine").source().startswith("mine scale: records computed on")


# --- a study --------------------------------------------------------------------------------------------

WIDER = claims.Claim("W1", "Training longer makes surrogates sure of themselves", ("end − begin",), 0.02)


@dataclass(frozen=True)
class Sure:
    """How confidence grows."""

    growth: list[float]

    def verdict(self, claim):
        return claims.judge(WIDER, over_seeds(np.array(self.growth)))

    def headline(self, claim):
        return f"{sum(g > 0 for g in self.growth)} of {len(self.growth)} seeds are surer at the end."


def sure() -> ModuleType:
    """A study, as its module would be."""
    study = ModuleType("sure")
    study.NOTEBOOK, study.CLAIMS = "06_mine", claims.by_id(WIDER)

    def arms(lab: Lab) -> dict[str, Arm]:
        runs = [lab.scale.surrogate(Step(0.05), seed) for seed in lab.seeds]
        return {"SGD": Arm("SGD", runs, At(Confidence(), (0.2, 1.0)))}

    def plan(lab: Lab) -> Iterator[Measurement]:
        yield from by_seed(arms(lab).values())

    def measure(lab: Lab) -> Sure:
        (curve,) = lab.curves(arms(lab), needed=["SGD"]).values()
        return Sure([end - begin for begin, end in curve])

    study.arms, study.plan, study.measure = arms, plan, measure
    return study


def test_a_study(lab, monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", [*studies.STUDIES, sure()])
    wanted = studies.plan(lab("replay"), ["W1"])
    own = [m for m in wanted if m.probe == Confidence()]
    assert [m.spec.seed for m in own] == [0, 1]
    assert "W1" not in dict(studies.verdicts(lab("replay"))), "nothing is recorded yet"
    survives(lab, *own)
    verdict, headline = dict(studies.verdicts(lab("replay")))["W1"]
    assert verdict.claim is WIDER and verdict.word in claims.WORDS and headline.endswith("surer at the end.")
    assert studies.of("W1").NOTEBOOK == "06_mine"


# --- in other processes ---------------------------------------------------------------------------------

MODULE = """
from dataclasses import replace
from rfnlib import minimizers, scales, studies
from rfnlib.measurements import At, Measurement
from rfnlib.specs import Minimizer
from test_extending import SMALL, WIDER, Extrapolated
from types import ModuleType

minimizers.register("Extrapolated", Extrapolated)
SCALE = scales.SCALES["mine"] = replace(SMALL, name="mine", robustness=replace(SMALL.robustness, images=10))
study = ModuleType("study")
study.CLAIMS = {"W1": WIDER}
m = Measurement(SCALE.flat(Minimizer("Extrapolated", 0.1), 0), At(SCALE.robustness, (1.0,)))
study.plan = lambda lab: iter([m])
studies.STUDIES[:], studies.BEYOND[:] = [study], []
"""


def test_run_and_its_workers_know_what_extensions_register(tmp_path):
    run_extended(tmp_path, "mine", MODULE, "mine")
    (path,) = (tmp_path / "records" / "mine").glob("*.json")
    assert records.read(path).spec.minimizer.method == "Extrapolated"


def test_an_extension_that_is_not_there_is_refused_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("RFN_EXTENSIONS", "no_such_module")
    with pytest.raises(ValueError, match="RFN_EXTENSIONS names 'no_such_module', which Python does not find"):
        extensions.load()
    (tmp_path / "needs_more.py").write_text("import not_installed_either")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RFN_EXTENSIONS", " needs_more ,")
    with pytest.raises(ModuleNotFoundError, match="not_installed_either"):
        extensions.load()
    monkeypatch.setenv("RFN_EXTENSIONS", "")
    assert extensions.load() == ()
