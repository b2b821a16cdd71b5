"""Scales are data that must fit together; `paper` is run cut down, in pieces, on a machine that vanishes."""

from dataclasses import replace

import pytest
import torch

from rfnlib import data, models, records, scales
from rfnlib.jobs import work
from rfnlib.lab import Lab
from rfnlib.specs import Adversary

EVERY = list(scales.SCALES.values())


@pytest.mark.parametrize("scale", EVERY, ids=lambda s: s.name)
def test_a_scale_fits_together(scale):
    networks = {arch for arch, _ in scale.surrogates} | {t.arch for t in scale.targets}
    assert networks <= set(models.ARCHITECTURES)
    standard = [t.arch for t in scale.targets if t.role in scales.STANDARD]
    assert len(set(standard)) == len(standard), "every target is of its own architecture"
    assert not {t.arch for t in scale.targets} & {scale.surrogates[0][0]}, "the surrogate is no target"
    assert {t.role for t in scale.targets} == {*scales.STANDARD, "robust"}
    robust = [t for t in scale.targets if t.role == "robust"]
    assert {t.adversary.norm for t in robust} == {"linf", "l2"}, "robust targets in both norms"
    assert not any(t.adversary for t in scale.targets if t.role in scales.STANDARD)
    assert all(0 < d < scale.epochs for d in (*scale.decays, *scale.standard))
    assert set(scale.standard) <= set(scale.decays), "the second decay starts from a state another run has kept"
    assert scale.robustness.images <= scale.test_images, "robust accuracy is on test images that are attacked anyway"
    assert "l2 0.25" in scale.robustness.attacks(), "where the surrogates of claim C1 are compared"
    assert list(scale.checks.attacks()) == ["l2 0.25"] and scale.checks.images >= scale.robustness.images
    assert scale.features.radii[0] == 0.5, "the radius that the published figures are for"
    sets = scale.feature_sets()
    assert list(sets) == ["D", "D_R", "D_NR", "D_rand", "D_det"] and sets["D"] is None
    assert scale.features.steps not in scale.features.tried
    assert sets["D_R"].model.seed not in (*scale.seeds, scale.target(scale.targets[0]).seed), "a network of its own"
    for schedule in scale.schedules().values():
        probed = scale.probed(schedule)
        assert probed == sorted(set(probed)) and probed[-1] == scale.epochs
        for m in (*scale.decays, *getattr(schedule, "milestones", ())):
            assert {float(m), m + scale.judged_after} <= set(probed), "what a claim is judged at is measured"


def test_the_paper_scale_is_the_published_setting():
    paper = scales.get("paper")
    spec = paper.surrogate(paper.schedules()["decay at 50 and 100"], 0)
    assert (spec.epochs, spec.batch, spec.momentum, spec.weight_decay) == (150, 128, 0.9, 5e-4)
    assert (spec.schedule.lr, spec.schedule.milestones, spec.n_train, spec.width) == (0.1, (50, 100), None, None)
    assert [arch for arch, _ in paper.surrogates] == ["resnet18", "resnet50"]
    assert sum(t.role == "test" for t in paper.targets) == 10
    attack = paper.attack
    assert (attack.radius, attack.step_size, attack.steps, attack.norm) == (4 / 255, 4 / 255 / 10, 50, "linf")
    assert paper.test_images >= 2000 and paper.seeds == (0, 1, 2)


class Vanished(Exception):
    """The machine is gone, and its disk with it."""


def test_paper_scale_in_pieces_on_a_machine_that_vanishes_ends_with_the_same_records(tmp_path, monkeypatch):
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48 + 40, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    labels = torch.arange(88) % 10
    made_up = data.Dataset(
        "cifar10", images[:48], labels[:48], images[48:], labels[48:], (0.5,) * 3, (0.25,) * 3, "0" * 64,
        tuple("0123456789"),
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda name: made_up)
    slim = {t: replace(t, width=2) for t in scales.PAPER.targets if t.arch in ("vgg13", "preresnet18", "vgg16")}
    weak = Adversary("l2", 0.5, steps=1)
    robust = scales.Target("vgg13", 2, "robust", weak)
    cut = replace(
        scales.PAPER, surrogates=(("resnet18", 2), ("resnet50", 2)), targets=(*slim.values(), robust), epochs=3,
        decays=(1, 2), standard=(1, 2), cycle=1, target_epochs=1, batch=16, every=1, fine=(0.5,),
        attack=replace(scales.PAPER.attack, steps=2), test_images=12, validation_images=4, accuracy_images=20,
        seeds=(0,), sharp_every=3, rhos=(0.05, 0.2), budgets=(2 / 255,),
        sharpness=scales.SharpnessProbe(images=8, products=3, probes=2, deflate=1),
        robustness=replace(scales.PAPER.robustness, images=8, steps=2, restarts=1),
        checks=replace(scales.PAPER.checks, images=20, steps=2, restarts=1),
        features=replace(
            scales.PAPER.features, arch=("resnet50", 2), steps=2, tried=(), targeted=2, budgets=(), adversary=weak
        ),
        rivals=scales.RivalStudy(1, slight=(weak,), per_epoch=2, draws=2, neighbours=1, techniques=("VMI", "ghosts")),
    )  # fmt: skip

    def enough(lab):
        """Every kind of job, without the minimizers that differ from SAM in their step alone."""
        return [j for j in work(lab) if j.spec.minimizer is None or j.spec.minimizer.method == "SAM"]

    def lab(place, **options):
        return Lab(cut, "run", device="cpu", records_dir=tmp_path / place, **options)

    def rows(place):
        return {r.key: [{**row, "seconds": 0} for row in r.rows] for r in records.read_all(tmp_path / place / "paper")}

    def complete(lab):
        while missing := [j for j in enough(lab) if j.missing()]:  # what is found can make more work known
            for job in missing:
                job.compute()

    complete(lab("whole", cache_dir=tmp_path / "cache"))

    pieces = 0
    while True:
        pieces += 1
        assert pieces < 80, "pieces must make progress"
        left = iter(range(30))

        def tick(left=left):
            if next(left, None) is None:
                raise Vanished

        here = lab("pieces", cache_dir=tmp_path / f"disk of machine {pieces}", tick=tick)
        try:
            complete(here)
            break
        except Vanished:
            continue
    assert pieces > 2
    assert rows("pieces") == rows("whole")
    sizes = [p.stat().st_size for p in (tmp_path / "pieces" / "paper").iterdir()]
    assert max(sizes) < 10_000


def test_the_targets_of_the_gpu_scale_can_be_carried():
    gpu = scales.GPU
    assert (gpu.epochs, gpu.decays, gpu.n_train, gpu.surrogates[0].width) == (60, (20, 30, 40), None, None)
    assert (gpu.sharpness.images, gpu.sharpness.tol) == (2000, 1e-2)
    test = [t.arch for t in gpu.targets if t.role == "test"]
    assert len(test) == 8 and len({a.name for a in test}) == 6 and {a.stem for a in test} == {1, 2}
    numbers = 0
    for target in gpu.targets:
        network = models.build(target.arch.name, width=target.arch.width, stem=target.arch.stem)
        numbers += sum(v.numel() for v in network.state_dict().values())
    assert 16e6 < numbers < 17.5e6, "two bytes each: 35 MB"
