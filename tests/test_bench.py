"""The bench's comparisons, on networks so small that only what is compared counts, not how long it takes."""

import dataclasses
import math
import re
import sys

import pytest
import torch

from rfnlib import bench, execution, scales
from rfnlib.scale import Arch


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    sharpness = dataclasses.replace(scales.LAPTOP.sharpness, images=12)
    small = {"batch": 4, "surrogates": (Arch("resnet18", 4),), "sharpness": sharpness}
    monkeypatch.setattr(scales, "LAPTOP", dataclasses.replace(scales.LAPTOP, n_train=20, **small))
    monkeypatch.setattr(bench, "ROUNDS", 1)


def test_a_goal_is_met_or_says_why_not():
    goal = bench.Goal("ours against theirs", [0.9, 1.0, 0.8], 0.85, True, "it is hard")
    assert goal.ratio == 0.9 and goal.met and str(goal).endswith("0.90   goal ≥ 0.85   met")
    assert not dataclasses.replace(goal, least=False).met
    far = dataclasses.replace(goal, goal=1.4)
    assert not far.met and str(far).endswith("not met, because it is hard")
    near = dataclasses.replace(goal, goal=0.95)
    assert not near.met and str(near).endswith("rounds ran from 0.80 to 1.00: the machine is busy")


def test_training_is_compared_with_a_bare_loop():
    lines = []
    goals = bench.trained("cpu", lines.append)
    assert [g.name.split(",")[:2] for g in goals] == [
        ["training", " stem 2"], ["training", " stem 1"], ["training by PGD-7", " stem 2"],
    ]  # fmt: skip
    assert all(g.ratio > 0 and g.least for g in goals) and all("images/s" in line for line in lines)


def test_minimizers_are_compared_with_sgd_and_their_passes_told():
    lines = []
    (goal,) = bench.stepped("cpu", lines.append)
    assert goal.ratio > 0 and goal.goal == 2.1 and not goal.least
    passes = {name: float(told) for name, told in re.findall(r"(\w+) [\d.]+ \(([\d.]+)\)", lines[1])}
    two = dict.fromkeys(("SAM", "RFN", "ASAM", "GSAM", "AGSAM", "GNP", "WASAM", "Noise"), 2)
    assert passes == {"SGD": 1, "SWA": 1, "LookSAM": 1.2, "GAM": 4} | two


def test_attacks_are_compared_with_others_and_with_bare_loops():
    lines = []
    goals = bench.crafted("cpu", lines.append, stems=(2,), n=4, steps=2)
    assert {"BIM, stem 2, against folded", "BIM, stem 2, against torchattack"} <= {g.name for g in goals}
    assert all(g.ratio > 0 for g in goals) and len(lines) == len(goals)


def test_hessian_reaches_the_same_error_by_both_ways():
    random = torch.get_rng_state()
    lines = []
    (goal,) = bench.curvature("cpu", lines.append, bench._random_data(20), epochs=2, within=0.03)
    assert "12 images" in lines[0] and len(goal.ratios) == 3
    assert all(math.isfinite(v) and v > 0 for v in goal.ratios), goal  # not reached: nan
    assert torch.equal(torch.get_rng_state(), random)


def test_eager_and_compiled_are_compared_and_the_choice_told(monkeypatch):
    found = {"eager": 0.1, "compiled": 0.2, "compiling": 30.0}
    monkeypatch.setattr(execution, "speeds", lambda *_: found)
    monkeypatch.setattr(execution, "can_compile", lambda _: True)
    lines = []
    assert bench.compiling("cpu", lines.append) == found
    assert lines == ["\neager 40 images/s, compiled 20 after 30 s: auto does not compile"]


def test_hessian_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    lines = []
    assert bench.curvature("cpu", lines.append) == []
    assert len(lines) == 1 and "PyHessian" in lines[0] and "rfnlib[test]" in lines[0]


def test_hessian_says_how_to_get_the_images_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("RFN_DATA", str(tmp_path))
    lines = []
    assert bench.curvature("cpu", lines.append) == []
    assert len(lines) == 1 and "CIFAR-10" in lines[0] and "rfnlib data" in lines[0]
