"""Everything that a GPU would do, on a device that refuses to mix with the CPU, with the CPU's results to the bit."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from elsewhere import NAME, Elsewhere
from scenes import TINY, same
from torch import Tensor, nn

from rfnlib import (
    attacks,
    data,
    execution,
    features,
    minimizers,
    models,
    probes,
    recipes,
    sharpness,
    training,
    transfer,
)
from rfnlib.execution import Execution
from rfnlib.minimizers import METHODS
from rfnlib.specs import Adversary, Minimizer, Step, TrainSpec
from rfnlib.subjects import Bench, Subject
from rfnlib.transforms import GradientNorm, Neighbours

DATASET = data.load("digits").subset(40)
SPEC = TrainSpec("digits", "cnn", Step(0.05, (1,)), 2, n_train=40, width=4, batch=10)
SMALL = replace(SPEC, epochs=1)
SLIGHT = Adversary("l2", 0.5, steps=2)
ARCHITECTURES = ("resnet18", "convmixer", "vit")
IMAGES, LABELS = data.to_float(DATASET.test_images[:12]), DATASET.test_labels[:12]


@pytest.fixture
def device(monkeypatch):
    """The device, where it is the one that `auto` and every other choice come to."""
    monkeypatch.setattr(execution, "resolve", lambda *_, **__: Execution(NAME))
    # torch asks a list whether a device has the fused step.
    optimizer = import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", NAME])
    # Nor does it know autocast for this one.
    plain = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda at, *a, **how: nullcontext() if at == NAME else plain(at, *a, **how))
    with Elsewhere() as there:
        yield there


def on(device: str, model: nn.Module) -> nn.Module:
    return Execution(device).place(copy.deepcopy(model)).eval()


def network(arch: str = "cnn") -> nn.Module:
    torch.manual_seed(0)
    about = {"n_classes": 10, "image_shape": DATASET.image_shape, "mean": DATASET.mean, "std": DATASET.std}
    return models.build(arch, width={"vit": 24}.get(arch, 4), **about).eval()


def run(spec: TrainSpec, cache: Path, *epochs: float) -> list[dict[str, Tensor]]:
    snapshots = training.train(spec, epochs or None, dataset=DATASET, cache=cache, progress=False)
    return [s.weights() for s in snapshots]


# --- the device itself ------------------------------------------------------------------------------


def test_the_device_refuses_to_mix(device):
    x = torch.ones(3, device=NAME)
    assert x.device.type == NAME and (x * 2).device.type == NAME and (x * torch.tensor(2.0)).device.type == NAME
    for mixed in (lambda: x + torch.ones(3), lambda: x[torch.tensor([0])], lambda: torch.ones(3)[x.long()]):
        with pytest.raises(AssertionError, match="mixes tensors of the device with torch"):
            mixed()
    with pytest.raises(AssertionError, match="generator of the CPU"):
        x.uniform_(generator=torch.Generator())
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()


def test_the_device_tells_what_is_waited_for(device):
    x = torch.ones(3, device=NAME)
    assert not device.waits
    for waited in (x.sum().item, lambda: bool(x.any()), x.cpu, lambda: x[x > 0], x.nonzero, lambda: torch.equal(x, x)):
        before = len(device.waits)
        waited()
        assert len(device.waits) == before + 1


# --- training ---------------------------------------------------------------------------------------

RUNS = {
    **{arch: replace(SPEC, arch=arch, width={"vit": 24}.get(arch, 4)) for arch in ARCHITECTURES},
    "Nesterov, as they are": replace(SPEC, nesterov=True, augment=False, label_smoothing=0.1),
    **{
        name: replace(SPEC, minimizer=Minimizer(name, 0.1 * m.perturbs, average_from=0.0 if m.averages else None))
        for name, m in METHODS.items()
    },
    "PGD": replace(SPEC, adversary=SLIGHT),
    "PGD in linf, SAM": replace(SPEC, adversary=Adversary("linf", 8 / 255, 2), minimizer=Minimizer("SAM", 0.1)),
    "free": replace(SPEC, adversary=Adversary("linf", 8 / 255, 1, random_start=False, replay=2)),
    "free in l2": replace(SPEC, adversary=Adversary("l2", 0.5, 1, random_start=False, replay=2)),
    "penalised": replace(SPEC, input_penalty=0.1),
    "from another, aligned": replace(SPEC, start=SMALL, witness=replace(SMALL, seed=1)),
}


@pytest.mark.parametrize("name", RUNS)
def test_training_stopped_and_resumed_has_the_bits_of_the_cpu(name, device, tmp_path, monkeypatch):
    stopped = [*run(RUNS[name], tmp_path / "there", 1), *run(RUNS[name], tmp_path / "there", 2)]
    monkeypatch.setattr(execution, "resolve", lambda *_, **__: Execution())
    straight = run(RUNS[name], tmp_path / "here")
    assert len(stopped) == len(straight) == 2
    assert all(same(a, b) for a, b in zip(stopped, straight, strict=True))


def waits_a_step(spec: TrainSpec, device: Elsewhere, cache: Path) -> float:
    """Host synchronisations of a step: those of an epoch of eight less those of one of four, which ends alike."""
    counts = []
    for n in (4, 8):
        before = len(device.waits)
        some = replace(DATASET, train_images=DATASET.train_images[: n * 5], train_labels=DATASET.train_labels[: n * 5])
        list(training.train(replace(spec, n_train=n * 5), [1], dataset=some, cache=cache / str(n), progress=False))
        counts.append(len(device.waits) - before)
    return (counts[1] - counts[0]) / 4


@pytest.mark.parametrize(
    ("name", "most"),
    [("SGD", 0), *((name, int(m.perturbs)) for name, m in METHODS.items()), ("free", 0), ("PGD", 0)],
)
def test_a_step_waits_for_the_device_at_most_so_often(name, most, device, tmp_path):
    spec = replace(RUNS.get(name, SPEC), epochs=1, batch=5, schedule=Step(0.05))
    assert waits_a_step(spec, device, tmp_path) <= most


def test_an_epoch_ends_with_few_waits_however_many_weights_there_are(device, tmp_path):
    run(SMALL, tmp_path)
    checks = [w for w in device.waits if w == "_local_scalar_dense"]
    assert len(checks) <= 3  # is it a number, are the weights, what is it


# --- attacks and surrogates -------------------------------------------------------------------------

ATTACKS = {
    "FGSM": attacks.FGSM(eps=0.1),
    **{make: getattr(attacks, make)(eps=0.1, steps=3) for make in ("BIM", "PGD", "MI", "NI", "DI", "SI", "TI", "RAP")},
    "PGD in l2": attacks.PGD(0.5, norm="l2", steps=3),
    "VMI": attacks.MI(eps=0.1, steps=3, variance=Neighbours(2)),
    "VNI": attacks.NI(eps=0.1, steps=3, variance=Neighbours(2)),
    "PGN": attacks.MI(eps=0.1, steps=3, around=(GradientNorm(2),)),
    "MI+DI+TI": attacks.MI(eps=0.1, steps=3) | attacks.DI() | attacks.TI(),
    "Admix": attacks.Admix(DATASET.test_images[12:20].float() / 255, DATASET.test_labels[12:20], eps=0.1, steps=3),
    "targeted": attacks.BIM(eps=0.1, steps=3, targeted=True),
    "margin": attacks.BIM(eps=0.1, steps=3, loss="margin"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_give_the_examples_of_the_cpu(name, device):
    attack, model = ATTACKS[name], network()
    there = attack(on(NAME, model), IMAGES.to(NAME), LABELS.to(NAME), batch_size=5)
    here = attack(on("cpu", model), IMAGES, LABELS, batch_size=5)
    assert there.device.type == NAME and torch.equal(there.cpu(), here) and not torch.equal(here, IMAGES)


RECIPES = {
    "skips": recipes.Skips(), "ghosts": recipes.Ghosts(), "LGV": recipes.Collected(), "SWA": recipes.Averaged(),
    "MB": recipes.Drawn(draws=2), "SWAG": recipes.Drawn(draws=2, rank=2),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_surrogates_give_the_examples_of_the_cpu(name, device):
    model, attack, found = network("resnet18"), attacks.BIM(eps=0.1, steps=3), []
    collected = [
        {k: v + 0.01 * i if v.is_floating_point() else v for k, v in model.state_dict().items()} for i in range(3)
    ]
    for at in (NAME, "cpu"):
        batches = (part.to(at) for part in IMAGES.split(6))
        surrogate = RECIPES[name](on(at, model), collected, batches)
        found.append(attack(Execution(at).place(surrogate).eval(), IMAGES.to(at), LABELS.to(at)).cpu())
    assert torch.equal(*found)


# --- features and measurements ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (features.robust_dataset, {"steps": 3}),
        (features.random_label_dataset, {"steps": 3}),
        (features.next_label_dataset, {"steps": 3}),
    ],
)
def test_data_sets_of_features_are_those_of_the_cpu(make, options, device, tmp_path, monkeypatch):
    there = make(on(NAME, network()), DATASET.to(NAME), cache=tmp_path / "there", chunk=20, progress=False, **options)
    monkeypatch.setattr(execution, "resolve", lambda *_, **__: Execution())
    here = make(on("cpu", network()), DATASET, cache=tmp_path / "here", chunk=20, progress=False, **options)
    assert torch.equal(there.train_images.cpu(), here.train_images)
    assert torch.equal(there.train_labels.cpu(), here.train_labels)


MEASURES = {
    "eigenvalues": lambda m, b: sharpness.eigenvalues(m, b, 2, products=20),
    "top, graph kept": lambda m, b: sharpness.top_eigenvalue(m, b, keep_graph=True, products=20),
    "trace": lambda m, b: sharpness.trace(m, b, probes=2, deflate=2),
    "worst case": lambda m, b: sharpness.worst_case(m, b, 0.05, steps=2, adaptive=True),
    "worst case of batches": lambda m, b: sharpness.worst_case(m, b, 0.05, per_batch=True),
    "average case": lambda m, b: sharpness.average_case(m, b, 0.01, draws=4, adaptive=True),
    "relative flatness": lambda m, b: sharpness.relative_flatness(m, b, unit_std=True),
    "input gradient": sharpness.input_gradient_norm,
    "input eigenvalue": lambda m, b: sharpness.input_top_eigenvalue(m, b, products=5),
}


@pytest.mark.parametrize("name", MEASURES)
def test_sharpness_is_that_of_the_cpu(name, device):
    found = []
    for at in (NAME, "cpu"):
        batches = [(x.to(at), y.to(at)) for x, y in zip(IMAGES.split(6), LABELS.split(6), strict=True)]
        found.append(MEASURES[name](on(at, network()), batches))
    assert found[0] == found[1]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_predictions_and_robustness_are_those_of_the_cpu(arch, device):
    model, attack, found = network(arch), attacks.PGD(0.5, norm="l2", steps=2), []
    for at in (NAME, "cpu"):
        x, y, m = IMAGES.to(at), LABELS.to(at), on(at, model)
        minimizers.update_batchnorm(m, x.split(6))
        y = transfer.predict(m, x, 5)  # so that something is robust
        found.append((y.cpu(), transfer.is_robust(m, x, y, attack, restarts=2).cpu()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


PROBES = {
    "clean": probes.Clean(), "transfer": probes.Transfer(attacks.BIM(eps=0.1, steps=2)),
    "sharpness": probes.Sharpness(images=20, products=8, probes=2, deflate=2, level=2.2),
    "robustness": probes.Robustness(images=20, steps=2),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBES)
def test_every_kind_of_measurement_gives_the_row_of_the_cpu(name, device, monkeypatch):
    model, rows = network(), []
    subject = Subject(SPEC, 4, 4, "history", model.state_dict(), {"passes": 4, "skipped": 0})
    for at in (NAME, "cpu"):
        monkeypatch.setattr(execution, "resolve", lambda *_, at=at, **__: Execution(at))
        targets = [("digest", on(at, network("convmixer")))]
        bench = Bench(TINY, DATASET.to(at), at, lambda role, targets=targets: targets)
        rows.append(PROBES[name].row(bench, subject))
    assert rows[0] == rows[1]


def test_a_recipe_gives_the_row_of_the_cpu(device, monkeypatch, tmp_path):
    rows, collected = [], list(training.train(SPEC, dataset=DATASET, cache=tmp_path, progress=False))
    cost = {"passes": 8, "skipped": 0}
    subject = Subject(SPEC, 8, 4, "history", collected[-1].weights(), cost, recipes.Averaged(), collected)
    for at in (NAME, "cpu"):
        monkeypatch.setattr(execution, "resolve", lambda *_, at=at, **__: Execution(at))
        bench = Bench(TINY, DATASET.to(at), at, lambda role, at=at: [("digest", on(at, network("convmixer")))])
        rows.append(PROBES["transfer"].row(bench, subject))
    assert rows[0] == rows[1]
