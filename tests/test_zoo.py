"""Released weights: rounded once, named by what they are, and refused where they are not what was written."""

import pytest
import torch
from scenes import TINY, same

from rfnlib import zoo
from rfnlib.snapshots import DamagedSnapshot, weights_digest

SPEC = TINY.target(TINY.targets[0])
WEIGHTS = {"w": torch.linspace(-1, 1, 7), "count": torch.tensor(3), "third": torch.tensor([1 / 3], dtype=torch.float64)}


def never():
    raise AssertionError("it is released: nothing is to be trained")


def test_weights_are_trained_once_and_read_back_as_half_precision_rounds_them(tmp_path):
    weights, about = zoo.obtain(tmp_path, SPEC, lambda: (WEIGHTS, {"iteration": 12}))
    assert same(weights, {**zoo.rounded(WEIGHTS), "third": zoo.rounded(WEIGHTS)["third"].float()})
    assert torch.equal(weights["w"], WEIGHTS["w"].half().float()) and weights["count"] == 3
    assert about["iteration"] == 12 and about["spec"] == SPEC.describe()

    again, _ = zoo.obtain(tmp_path, SPEC, never)
    assert weights_digest(again) == weights_digest(weights)


def test_rounding_twice_is_rounding_once():
    once = zoo.rounded(WEIGHTS)
    assert same(zoo.rounded(once), once) and all(once[k].dtype == WEIGHTS[k].dtype for k in once)


def test_what_half_precision_cannot_hold_stays_in_full(tmp_path):
    weights = {"w": torch.tensor([7e4, 1.00001]), "v": torch.tensor([1.00001])}
    zoo.write(tmp_path / "a.safetensors", weights)
    read, _ = zoo.read(tmp_path / "a.safetensors")
    assert read["w"].equal(weights["w"]) and read["v"] == 1.0 and same(zoo.rounded(weights), read)


def test_a_file_altered_or_under_another_name_is_refused(tmp_path):
    zoo.obtain(tmp_path, SPEC, lambda: (WEIGHTS, {}))
    (path,) = tmp_path.iterdir()
    other = path.with_name(path.name.replace("cnn", "vgg"))
    other.write_bytes(path.read_bytes())
    with pytest.raises(DamagedSnapshot):
        zoo.read(other)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedSnapshot):
        zoo.read(path)
