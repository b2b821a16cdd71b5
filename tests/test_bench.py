"""The bench's comparisons, on networks so small that only what is compared counts, not how long it takes."""

import dataclasses
import math
import re
import sys

import pytest
import torch

from rfnlib import bench, scales


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    sharpness = dataclasses.replace(scales.LAPTOP.sharpness, images=12)
    small = {"batch": 4, "surrogates": (scales.Arch("resnet18", 4),), "sharpness": sharpness}
    monkeypatch.setattr(scales, "LAPTOP", dataclasses.replace(scales.LAPTOP, n_train=20, **small))
    monkeypatch.setattr(bench, "ROUNDS", 1)


def test_minimizers_are_compared_with_sgd_and_their_passes_told():
    lines = []
    found = bench.minimizers("cpu", lines.append)
    assert found["SGD"] == 1 and min(found.values()) > 0
    passes = {name: float(told) for name, told in re.findall(r"(\w+) [\d.]+ \(([\d.]+)\)", lines[0])}
    two = dict.fromkeys(("SAM", "RFN", "ASAM", "GSAM", "AGSAM", "GNP", "WASAM"), 2)
    assert passes == {"SGD": 1, "SWA": 1, "LookSAM": 1.2, "GAM": 4} | two and found.keys() == passes.keys()


def test_attacks_are_compared_with_others_and_with_bare_loops():
    lines = []
    found = bench.attacking("cpu", lines.append, stems=(2,), n=4, steps=2)
    assert {"BIM", "bare", "folded", "torchattack"} <= found[2].keys() and found[2]["BIM"] == 1
    assert all(ratio > 0 for ratio in found[2].values()) and "BIM, stem 2" in lines[0]


def test_hessian_reaches_the_same_error_by_both_ways():
    random = torch.get_rng_state()
    lines = []
    found = bench.hessian("cpu", lines.append, bench._random_data(20), epochs=2, within=(0.1, 0.03))
    assert list(found) == [0.1, 0.03] and len(lines) == 2 and "12 images" in lines[0]
    assert all(math.isfinite(v) and v > 0 for v in found.values()), found  # not reached: nan
    assert torch.equal(torch.get_rng_state(), random)


def test_hessian_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    lines = []
    assert bench.hessian("cpu", lines.append) == {}
    assert len(lines) == 1 and "PyHessian" in lines[0] and "rfnlib[test]" in lines[0]


def test_hessian_says_how_to_get_the_images_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("RFN_DATA", str(tmp_path))
    lines = []
    assert bench.hessian("cpu", lines.append) == {}
    assert len(lines) == 1 and "CIFAR-10" in lines[0] and "rfnlib data" in lines[0]
