"""Scales are data that must fit together; `paper` is run cut down, in pieces, on a machine that vanishes."""

from dataclasses import replace

import pytest
import torch

from rfnlib import data, models, records, scales, studies
from rfnlib.lab import Lab
from rfnlib.measurements import At, Measurement
from rfnlib.outside import Outside
from rfnlib.probes import Clean, Transfer
from rfnlib.scale import ROLES, STANDARD, Arch, RivalStudy, Target, decaying
from rfnlib.specs import Adversary, Minimizer, Step

EVERY = list(scales.SCALES.values())
each_scale = pytest.mark.parametrize("scale", EVERY, ids=lambda s: s.name)


@each_scale
def test_its_networks_are_of_the_zoo_and_no_target_is_a_surrogate(scale):
    networks = {arch.name for arch in (*scale.surrogates, scale.features.arch, *(t.arch for t in scale.targets))}
    assert networks <= set(models.ARCHITECTURES)
    standard = [t for t in scale.targets if t.role in STANDARD]
    assert len({(t.arch, t.seed) for t in standard}) == len(standard), "no target counts twice"
    assert scale.surrogates[0].name not in {t.arch.name for t in standard}
    assert {t.role for t in scale.targets} == set(ROLES)
    judging = {t.arch.name for t in standard if t.role == "test"}
    assert not judging & {t.arch.name for t in standard if t.role == "validation"}, "who chooses does not judge"


@each_scale
def test_its_robust_targets_are_of_both_norms(scale):
    robust = scale.targets_of("robust")
    assert {t.adversary.norm for t in robust} == {"linf", "l2"}
    assert not any(t.adversary for t in scale.targets_of("standard"))


@each_scale
def test_varied_targets_are_the_first_one_trained_otherwise_and_the_robust_ones(scale):
    first, found = scale.targets_of("standard")[0], scale.targets_of("varied")
    assert first.role == "test" and {t.role for t in found} == {"varied"}
    plain, (slow, sam, short, *robust) = scale.target(first), map(scale.target, found)
    assert slow == replace(plain, schedule=replace(plain.schedule, lr=scale.lr / 10))
    assert sam == replace(plain, minimizer=Minimizer("SAM", scale.rhos[0]))
    assert short == replace(plain, epochs=(plain.epochs + 1) // 2)
    assert robust == [scale.target(t) for t in scale.targets_of("robust")], "the same networks, trained once"
    names = [t.name for t in (*scale.targets, *found)]
    assert len(set(names)) == len(names)
    assert found[0].name == f"{first.arch.label}, {first.epochs} epochs, rate {scale.lr / 10:g}"
    files = [scale.called(spec) or spec.short_name for spec in (plain, slow, sam, short, *robust)]
    assert len(set(files)) == len(files) and files[0] == plain.short_name and files[-1] == robust[-1].short_name
    assert all(file.isascii() and not set(file) & set(" ()/") for file in files)


def test_a_network_from_outside_is_not_trained_otherwise():
    theirs = Outside("theirs", "0" * 16)
    scale = replace(scales.SMOKE, targets=(Target(theirs, 1), *scales.SMOKE.targets[3:]))
    assert scale.targets_of("varied") == [replace(t, role="varied") for t in scale.targets_of("robust")]


def test_records_of_targets_and_of_rows_on_them_have_the_keys_that_they_had():
    laptop = Lab("laptop", "replay")
    sgd = scales.LAPTOP.flat(None, 100)
    for spec, probe, key in (
        (scales.LAPTOP.target(scales.LAPTOP.targets[0]), Clean(), "c653f99de9379a94"),
        (sgd, scales.LAPTOP.transfer, "152198520d596765"),
        (sgd, Transfer(scales.LAPTOP.attack, "robust"), "e4c4b63762dc62e8"),
    ):
        assert laptop.find(Measurement(spec, At(probe, (100.0,)))).key == key


@each_scale
def test_judged_runs_pilots_and_targets_share_no_seed(scale):
    pilots, targets = set(scale.pilots), {t.seed for t in scale.targets}
    assert set(scale.seeds).isdisjoint(pilots) and targets.isdisjoint({*scale.seeds, *pilots})
    assert all(0 <= s < 100 for s in scale.seeds) and all(100 <= s < 1000 for s in pilots)


@each_scale
def test_what_a_claim_is_judged_at_is_measured(scale):
    assert all(0 < d < scale.epochs for d in (*scale.decays, *scale.standard))
    assert set(scale.standard) <= set(scale.decays), "the second decay starts from a state another run has kept"
    assert all(d + scale.judged_after <= scale.epochs for d in scale.decays)
    for schedule in scale.schedules().values():
        attacked = scale.attacked_at(schedule)
        assert attacked == tuple(sorted(set(attacked))) and attacked[-1] == scale.end
        for d in (*scale.decays, *getattr(schedule, "milestones", ())):
            assert {float(d), d + scale.judged_after} <= set(attacked)
        if isinstance(schedule, Step):
            sharp = scale.sharp_at(schedule)
            for d in schedule.milestones or scale.decays:
                assert {float(d), d + scale.judged_after} <= set(sharp)


@each_scale
def test_its_images_are_as_many_as_each_question_takes(scale):
    assert scale.robustness.images <= scale.test_images, "robust accuracy is on test images that are attacked anyway"
    assert "l2 0.25" in scale.robustness.attacks(), "where the surrogates of claim C1 are compared"
    assert list(scale.features.check.attacks()) == ["l2 0.25"]
    assert scale.features.radii[0] == 0.5, "the radius that the published figures are for"
    assert scale.features.steps not in scale.features.tried
    assert scale.rhos == tuple(sorted(set(scale.rhos))) and len(scale.rhos) > 1


def test_names_of_schedules_say_when_the_rate_decays():
    assert list(scales.SMOKE.schedules()) == [
        "constant", "decay at 2", "decay at 3", "decay at 4", "decay at 2 and 4", "cosine", "cyclic"
    ]  # fmt: skip
    assert decaying(*scales.PAPER.standard) in scales.PAPER.schedules()


def test_a_target_s_name_tells_it_from_the_others():
    for scale in EVERY:
        names = [t.name for t in scale.targets]
        assert len(set(names)) == len(names)
    again = Target(Arch("vgg13", 16, stem=2), 50, seed=1001, adversary=Adversary("linf", 4 / 255))
    assert again.name == "vgg13 (width 16, stem 2), seed 1001, linf 4/255"


def test_an_unknown_scale_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="scale is 'huge'; give one of 'smoke', 'laptop', 'gpu', 'paper'"):
        scales.get("huge")


def test_the_paper_scale_is_the_published_setting():
    paper = scales.get("paper")
    spec = paper.surrogate(paper.schedules()["decay at 50 and 100"], 0)
    assert (spec.epochs, spec.batch, spec.momentum, spec.weight_decay) == (150, 128, 0.9, 5e-4)
    assert (spec.schedule.lr, spec.schedule.milestones, spec.n_train, spec.width) == (0.1, (50, 100), None, None)
    assert [arch.name for arch in paper.surrogates] == ["resnet18", "resnet50"]
    assert sum(t.role == "test" for t in paper.targets) == 10
    attack = paper.attack
    assert (attack.radius, attack.step_size, attack.steps, attack.norm) == (4 / 255, 4 / 255 / 10, 50, "linf")
    assert paper.test_images >= 2000 and paper.seeds == (0, 1, 2)


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


class Vanished(Exception):
    """The machine is gone, and its disk with it."""


def cut_down() -> scales.Scale:
    """The paper's scale with slim networks, few epochs and images, and every kind of measurement left in it."""
    weak, paper = Adversary("l2", 0.5, steps=1), scales.PAPER
    slim = [replace(t, arch=Arch(t.arch.name, 2), epochs=1) for t in paper.targets if t.arch.name in ("vgg13", "vgg16")]
    robust = Target(Arch("vgg13", 2), 1, "robust", adversary=weak)
    return replace(
        paper, surrogates=(Arch("resnet18", 2),), targets=(*slim, robust),
        epochs=3, decays=(1, 2), standard=(1, 2), cycle=1, batch=16, every=1, fine=(0.5,), sharp_every=3,
        attack=replace(paper.attack, steps=2), test_images=12, validation_images=4, accuracy_images=20,
        seeds=(0,), rhos=(0.05, 0.2), other_eps=(2 / 255,),
        sharpness=replace(paper.sharpness, images=8, products=3, probes=2, deflate=1),
        robustness=replace(paper.robustness, images=8, steps=2, restarts=1),
        features=replace(
            paper.features, arch=Arch("cnn", 2), steps=2, tried=(), adversary=weak, model_epochs=1, targeted=2,
            other_eps=(), check=replace(paper.features.check, images=20, steps=2, restarts=1),
        ),
        rivals=RivalStudy(1, slight=(weak,), per_epoch=2, draws=2, neighbours=1, techniques=("VMI", "ghosts")),
    )  # fmt: skip


def test_paper_scale_in_pieces_on_a_machine_that_vanishes_ends_with_the_same_records(tmp_path, monkeypatch):
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48 + 40, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    labels = torch.arange(88) % 10
    made_up = data.Dataset(
        "cifar10", images[:48], labels[:48], images[48:], labels[48:], (0.5,) * 3, (0.25,) * 3, "0" * 64,
        tuple("0123456789"),
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda name: made_up)
    scale, first = cut_down(), {}

    def lab(place, **options):
        return Lab(scale, "run", device="cpu", records_dir=tmp_path / place, weights_dir=tmp_path / "w", **options)

    def wanted(lab):
        """Of all that is planned the first measurement of its kind, at its last epoch, and what that needs."""
        for m in studies.plan(lab):
            s, flat = m.spec, bool(m.spec.minimizer)
            kind = (m.probe.label, m.recipe, flat, s.adversary, s.features, s.start is None)
            if s.minimizer is None or s.minimizer.method == "SAM":
                first.setdefault(kind, m.of(m.epochs[-2:]))
        chosen = [n for m in first.values() for n in (*m.needs(scale), m)]
        return [m for m in dict.fromkeys(chosen) if lab.missing(m)]

    def rows(place):
        return {r.key: [{**row, "seconds": 0} for row in r.rows] for r in records.read_all(tmp_path / place / "paper")}

    def complete(lab):
        while missing := wanted(lab):  # what is found can make more work known
            for m in missing:
                lab.measure(m)

    complete(lab("whole", cache_dir=tmp_path / "cache"))
    kinds = {r.kind for r in records.read_all(tmp_path / "whole" / "paper")}
    assert kinds == {"clean", "transfer", "sharpness", "robustness"}

    pieces = 0
    while True:
        pieces += 1
        assert pieces < 80, "pieces must make progress"
        left = iter(range(40))

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
