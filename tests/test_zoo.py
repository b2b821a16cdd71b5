"""Released weights: rounded once, named by what they are, and refused where they are not what was written."""

import pytest
import torch
from scenes import TINY, same

from rfnlib import zoo
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import At, Measurement
from rfnlib.records import BadRecord
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


def test_a_released_network_is_built_from_its_file_alone(no_work):
    names = zoo.files("smoke")
    assert "vgg11-w8-onecycle-s1000" in names
    state = torch.random.get_rng_state()
    network = zoo.load("smoke/vgg11-w8-onecycle-s1000")
    assert torch.equal(torch.random.get_rng_state(), state) and not network.training
    weights, _ = zoo.read(names["vgg11-w8-onecycle-s1000"])
    assert same(network.state_dict(), weights)
    with pytest.raises(LookupError, match=r"no network 'smoke/vgg' is released; give one of smoke/\S+, .* \(the card"):
        zoo.load("smoke/vgg")
    (wide,) = (name for name in names if name.startswith("wrn16-"))
    assert same(zoo.load("smoke/wrn16").state_dict(), zoo.read(names[wide])[0]), "no other begins so"
    with pytest.raises(
        zoo.NotReleased, match=r"3 networks are called smoke/vgg11-w8-…; give one of smoke/vgg11-w8-.*, "
    ):
        zoo.load("smoke/vgg11-w8")
    with pytest.raises(LookupError, match="no network 'vgg' is released; give SCALE/NAME, scales being laptop, smoke"):
        zoo.load("vgg")


def test_who_finds_nothing_released_learns_where_and_how_to_name_another_place(tmp_path, monkeypatch):
    monkeypatch.setenv("RFN_WEIGHTS", str(tmp_path))
    with pytest.raises(zoo.NotReleased, match=rf"no network 'smoke/rfn-0' .* none in {tmp_path}; .* in RFN_WEIGHTS"):
        zoo.load("smoke/rfn-0")
    assert zoo.files("gpu") == {}
    with pytest.raises(ValueError, match="scale is 'labtop'; give one of 'smoke'"):
        zoo.files("labtop")


def test_a_network_is_released_under_a_name_if_it_is_the_recorded_one(tmp_path):
    def lab(cache):
        folders = {f"{name}_dir": tmp_path / name for name in ("records", "weights")}
        return Lab(TINY, "run", device="cpu", cache_dir=tmp_path / cache, **folders)

    here, spec = lab("cache"), TINY.flat(None, 0)
    with pytest.raises(MissingRecord, match="nothing is recorded of resnet18-w4-.* at epoch 3; measure it first"):
        here.release(spec)
    here.measure(Measurement(spec, At(TINY.robustness, (2.0, 3.0))))
    last, early = here.release(spec, name="sgd-0"), here.release(spec, 2, "sgd-early-0")
    assert list(zoo.files("tiny", tmp_path / "weights")) == ["sgd-0", "sgd-early-0"]
    assert last == zoo.path_of(here.weights, spec) and early != last
    record = here.find(Measurement(spec, At(TINY.robustness, (3.0,))))
    for epoch, name in ((3, "sgd-0"), (2, "sgd-early-0")):
        network = zoo.load(f"tiny/{name}", tmp_path / "weights")
        assert weights_digest(network.state_dict()) == record.at(epoch)["weights"]

    for path in here.folder.glob("robustness*"):
        path.unlink()
    again = lab("no-cache")
    again._train = lambda *_: never()
    again.measure(Measurement(spec, At(TINY.robustness, (3.0,))))
    ours, theirs = record.at(3), again.find(Measurement(spec, At(TINY.robustness, (3.0,)))).at(3)
    apart = {"seconds", "made"}
    assert {k: v for k, v in ours.items() if k not in apart} == {k: v for k, v in theirs.items() if k not in apart}

    assert again.release(spec) == last, "it is there, and is not trained again"
    zoo.write(last, zoo.rounded(torch.nn.Linear(1, 1).state_dict()))
    record.rows[-1]["weights"] = "0" * 16
    with pytest.raises(BadRecord, match="was recorded with the weights 0000000000000000 and has"):
        here.release(spec)
