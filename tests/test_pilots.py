from dataclasses import replace

import pytest
from synthetic import FakeLab

from rfnlib import scales
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import by_seed
from rfnlib.records import Record
from rfnlib.specs import Adversary
from rfnlib.studies import features, pilots, plan

SCALE = replace(
    scales.SMOKE,
    minimizers=scales.LAPTOP.minimizers,
    epochs=20,
    decays=(8, 10),
    standard=(10, 15),
    rhos=(0.05, 0.1, 0.2, 0.4),
    pilots=(100, 101),
    rivals=replace(scales.SMOKE.rivals, slight=tuple(Adversary("l2", eps, steps=1) for eps in (0.03, 0.05, 0.1))),
)


def peaked(name: str, e: float) -> float:
    """What a scale should look like: a plateau, a peak of SGD after its decay, and the most success at ρ = 0.2."""
    at_end = {"ρ = 0.05": 0.31, "ρ = 0.1": 0.33, "ρ = 0.2": 0.36, "ρ = 0.4": 0.2, "SAT ε = 0.05": 0.4, "LGV": 0.38,
              "GSAM": 0.35, "GAM": 0.34}  # fmt: skip
    if name in ("SGD", "constant"):
        return 0.25 if e <= 10 else max(0.34 - 0.01 * abs(e - 11), 0.25)
    return at_end.get(name, 0.3)


def failing(lab: FakeLab, claim: str = "C7") -> list[str]:
    return [gate.name for gate in pilots.gates(lab, claim) if not gate.passed]


def test_choices_are_the_most_successful():
    lab = FakeLab(SCALE, peaked)
    assert pilots.stopping_epoch(lab) == 11.0
    assert pilots.chosen_rho(lab) == 0.2
    assert pilots.chosen_slight(lab).eps == 0.05
    assert pilots.best_minimizer(lab) == "GSAM"
    assert pilots.best_rival(lab) == "SAT"


def test_the_radius_of_sam_is_no_candidate_for_rfn():
    lab = FakeLab(SCALE, lambda name, e: 0.5 if name == "ρ = 0.05" else peaked(name, e))
    assert pilots.chosen_rho(lab) == 0.2
    assert failing(lab) == ["ρ bracketed"]


def test_gates_and_choices_look_at_validation_images_and_targets_only():
    lab = FakeLab(SCALE, peaked)
    assert failing(lab) == []
    for choose in ("stopping_epoch", "chosen_rho", "chosen_slight", "best_minimizer", "best_rival"):
        getattr(pilots, choose)(lab)
    assert lab.roles == {"validation"}


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_the_pilots_of_another_architecture_are_all_of_that_architecture(scale):
    for arch in scale.surrogates[1:]:
        runs = [spec for arm in pilots.arms(FakeLab(scale), arch).values() for spec in arm.specs]
        assert {spec.arch for spec in runs} == {arch.name}


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_pilots_judge_nothing_and_judged_seeds_choose_nothing(scale):
    lab = FakeLab(scale)
    others = [arm for arch in scale.surrogates[1:] for arm in pilots.arms(lab, arch).values()]
    measured = [*pilots.plan(lab), *by_seed([*pilots.minimizer_arms(lab).values(), *others])]
    assert {m.spec.seed for m in measured} == set(scale.pilots)
    assert not set(scale.pilots) & set(scale.seeds)
    assert min(scale.pilots) >= 100
    assert {t.seed for t in scale.targets}.isdisjoint(scale.pilots)


@pytest.mark.parametrize("claims, more", [(["C2"], False), (["C3", "C8"], False), (["C4"], True), (None, True)])
def test_only_who_compares_other_minimizers_and_architectures_waits_for_their_pilots(claims, more):
    lab = Lab("laptop", "replay")
    runs = [m.spec for m in plan(lab, claims) if m.spec.seed in lab.scale.pilots and not m.spec.start]
    assert ({run.minimizer.method for run in runs if run.minimizer} > {"SAM"}) == more
    assert ("vgg11" in {run.arch for run in runs}) == more
    assert {run.arch for run in runs} >= {"resnet18"}


@pytest.mark.parametrize(
    "gate, changed",
    [
        ("plateau", {"success": lambda name, e: 0.02 * e if name == "constant" else peaked(name, e)}),
        ("fit", {"training": lambda name: 0.94 if name == "SGD" else 0.97}),
        ("long enough, SGD", {"accuracy": lambda name, e: 0.78 + (0.03 if name == "SGD" and e == 20 else 0)}),
        ("enough", {"success": lambda name, e: 0.1 if (name, e) == ("SGD", 20) else peaked(name, e)}),
        ("enough", {"success": lambda name, e: 0.9 if (name, e) == ("SGD", 20) else peaked(name, e)}),
        ("long enough, SAM", {"accuracy": lambda name, e: 0.78 - (0.03 if name == "ρ = 0.1" and e == 20 else 0)}),
        ("ρ bracketed", {"success": lambda name, e: 0.5 if name == "ρ = 0.4" else peaked(name, e)}),
        ("ε bracketed", {"success": lambda name, e: 0.5 if name == "SAT ε = 0.1" else peaked(name, e)}),
    ],
)  # fmt: skip
def test_each_gate_fails_for_what_it_is_about(gate, changed):
    lab = replace(FakeLab(SCALE, peaked), **changed)
    assert gate in failing(lab)
    assert set(failing(lab)) <= {gate, "long enough, SAM"}  # another ρ chosen, others are judged


def test_a_radius_above_the_chosen_one_may_be_unfinished():
    lab = FakeLab(SCALE, peaked, accuracy=lambda name, e: 0.5 + (0.01 * e if name == "ρ = 0.4" else 0))
    assert failing(lab) == []


def test_a_claim_asks_only_for_the_gates_that_concern_it():
    lab = FakeLab(SCALE, peaked, missing=("pilot ρ = 0.2", "pilot SAT ε = 0.1"))
    assert [gate.passed for gate in pilots.gates(lab, "C2")] == [True] * 4
    with pytest.raises(MissingRecord):
        pilots.gates(lab, "C4")
    table = pilots.gate_table(lab)
    assert list(table["passed"]) == ["yes"] * 4 + [""] * 3
    assert pilots.choice_table(lab)["chosen"]["ρ of RFN"] == "not possible yet"


def test_the_tables_compute_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Lab, "rows", lambda lab, m: pytest.fail(f"computes {m.label}"))
    lab = Lab("smoke", "run", records_dir=tmp_path)
    assert set(pilots.gate_table(lab)["found"]) == {"not recorded yet"}
    assert set(pilots.choice_table(lab)["chosen"]) == {"not possible yet"}


def test_one_epoch_is_no_plateau():
    assert not pilots.plateau_of([1.0], [0.3]).passed


def test_every_gate_says_its_figure_and_its_threshold():
    figures = {gate.name: gate.figure for gate in pilots.gates(FakeLab(SCALE, peaked))}
    assert figures["plateau"] == "success +0.00 points an epoch from epoch 6 to 8 (less than 1)"
    assert figures["fit"] == "training accuracy of SGD 97.0% (at least 95%)"
    assert figures["ρ bracketed"] == "most success at ρ = 0.2 of 0.05, 0.1, 0.2, 0.4 (not at an edge)"


def test_runs_that_failed_are_named():
    lab = FakeLab(replace(SCALE, seeds=(0, 1, 2, 3)), peaked)  # whose pilots have a natural accuracy of 80 %
    fine, low, pilot, built = (replace(SCALE.flat(None, seed), width=9) for seed in (0, 1, 100, 2))
    built = replace(built, features=features.inverted(SCALE, robust=False))
    burst = replace(fine, seed=3)
    for spec, loss, right in ((fine, 0.1, 0.41), (low, 0.1, 0.39), (pilot, 0.1, 0.1), (built, 0.1, 0.1),
                              (burst, None, 0.8)):  # fmt: skip
        row = {"iteration": spec.epochs, "train_loss": loss, "accuracy": right}
        lab.records[spec] = Record("transfer", spec, {}, "", 1, rows=[row])
    said = {low: "loss 0.1, natural accuracy 39.0%", burst: "loss None, natural accuracy 80.0%"}
    named = "; ".join(f"{spec.short_name}: {why}" for spec, why in said.items())
    assert pilots.excluded(lab) == f"Excluded by the plan: {named}."
    lab.records.clear()
    assert pilots.excluded(lab) == "No run was excluded."
