"""The main surrogates released by one call: by their names, with a card, to the hit what is recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scenes import TINY

from rfnlib import __main__ as cli
from rfnlib import evaluate, outside, paths, records, release, scales, training, zoo
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.recipes import Averaged, Collected
from rfnlib.snapshots import weights_digest
from rfnlib.studies import pilots, state_of_the_art
from rfnlib.transfer import predict

SGD, LGV = TINY.flat(None, 0), pilots.lgv(TINY, 0)
RUNS = {state_of_the_art.STOPPED: (SGD, 2.0, None), "SGD": (SGD, 3.0, None), "LGV-SWA": (LGV, 1.0, Averaged(2))}
PLAIN = Measurement(SGD, At(TINY.transfer, (2.0, 3.0)))
MEAN = Measurement(LGV, At(TINY.transfer, (1.0,), Averaged(2)))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab of the tiny scale whose main surrogates are two networks of one run, and the mean of one that goes on."""
    for name in ("records", "cache", "weights"):
        monkeypatch.setenv(f"RFN_{name.upper()}", str(tmp_path / name))
    monkeypatch.setitem(scales.SCALES, "tiny", replace(TINY, seeds=(0,)))
    arms = {n: Arm(n, [spec], At(TINY.transfer, (epoch,), recipe)) for n, (spec, epoch, recipe) in RUNS.items()}
    monkeypatch.setattr(state_of_the_art, "arms", lambda lab: arms)
    monkeypatch.setattr(release, "MAIN", {slug: name for slug, name in release.MAIN.items() if name in RUNS})
    return Lab("tiny", "run", device="cpu")


def test_main_surrogates_are_released_by_name_and_measured_from_their_files(lab, tmp_path, monkeypatch, capsys):
    with pytest.raises(MissingRecord, match="nothing is recorded of resnet18-w4-step1-2-s0 at epoch 2; measure it"):
        release.release(lab)
    assert not lab.weights.exists()
    recorded = lab.measure(PLAIN).rows + lab.measure(MEAN).rows
    assert cli.main(["release", "--scale", "tiny", "--device", "cpu"]) == cli.DONE
    assert "sgd-early-0-" in (said := capsys.readouterr().out) and said.count(" kB") == 3
    assert {"lgv-0", "sgd-0", "sgd-early-0"} < set(zoo.files("tiny"))
    card = (lab.weights / "README.md").read_text(encoding="utf-8")
    assert "| sgd-early-0 | resnet18 (width 4) | SGD |" in card
    assert "learning rate 0.025 throughout; the mean of weights collected 2 times an epoch |" in card
    assert all(row["weights"] in card for row in recorded)

    def fail(*_, **__):
        raise AssertionError("it trained")

    monkeypatch.setattr(training, "train", fail)
    monkeypatch.setenv("RFN_RECORDS", str(tmp_path / "no-records"))
    again = Lab("tiny", "run", device="cpu")
    rows = again.measure(PLAIN).rows + again.measure(MEAN).rows
    apart = {"seconds", "made"}
    for ours, theirs in zip(recorded, rows, strict=True):
        assert {k: v for k, v in ours.items() if k not in apart} == {k: v for k, v in theirs.items() if k not in apart}

    table = evaluate.as_target(outside.register("theirs", zoo.load("tiny/sgd-0")), again)
    assert table.loc["lgv-0", "on the scale's targets"] != "not measured", "the mean that is recorded"


def test_what_cannot_be_released_as_one_network_is_refused(lab):
    with pytest.raises(ValueError, match=r"Collected\(per_epoch=2\) makes no network of resnet18.*; give one that mer"):
        lab.release(LGV, 1, recipe=Collected(2))
    assert not lab.weights.exists()


def test_as_many_seeds_are_released_as_there_is_room_for(lab, monkeypatch, capsys):
    seeds = [TINY.flat(None, seed) for seed in (0, 1, 2)]
    arms = {"SGD": Arm("SGD", seeds, At(TINY.robustness, (1.0,)))}
    monkeypatch.setattr(state_of_the_art, "arms", lambda lab: arms)
    monkeypatch.setattr(release, "MAIN", {"sgd": "SGD"})
    lab = Lab("tiny", "run", [0, 1, 2], "cpu")
    for spec in seeds[:2]:
        lab.measure(Measurement(spec, arms["SGD"].question()))
    first = lab.release(seeds[0], 1, "sgd-0")
    one = zoo.size(training.network(seeds[0], lab.dataset()))
    assert one == pytest.approx(first.stat().st_size, rel=0.05)

    monkeypatch.setattr(release, "BUDGET", int(2.5 * one))
    paths, left_out = release.release(lab)
    assert [path.name.rpartition("-")[0] for path in paths] == ["sgd-0", "sgd-1"] and left_out == [2]
    assert cli.main(["release", "--scale", "tiny", "--seeds", "0,1,2", "--device", "cpu"]) == cli.DONE
    assert "left out, so that all released weights stay below 0." in capsys.readouterr().out
    monkeypatch.setattr(release, "BUDGET", one // 2)
    with pytest.raises(ValueError, match="of a seed of tiny scale take .* MB, and .* are left; release single"):
        release.release(lab)


def test_all_released_weights_are_small_enough_to_lie_in_the_repository():
    there = list((paths.root() / "data" / "weights").glob("*/*.safetensors"))
    assert there and sum(path.stat().st_size for path in there) < release.BUDGET == 40e6


# --- what is committed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", release.MAIN)
def test_a_released_surrogate_of_smoke_has_its_recorded_row_to_the_hit(slug):
    """Attacked with what is released alone; where another machine rounds otherwise, all but a few hits are the same."""
    lab = Lab("smoke", device="cpu")
    spec, at = release.of_seeds(lab)[0][f"{slug}-0"]
    record = lab.find(Measurement(spec, at))
    row, (made,) = record.at(at.epochs[0]), record.provenance
    surrogate = zoo.load(f"smoke/{slug}-0")
    assert weights_digest(surrogate.state_dict()) == row["weights"]

    images, labels = lab.bench.attacked
    adversarial = lab.scale.attack(surrogate, images, labels)
    targets = [zoo.load(f"smoke/{lab.scale.target(t).short_name}") for t in lab.scale.targets_of("standard")]
    assert [weights_digest(target.state_dict()) for target in targets] == row["targets"]
    hits = np.stack([(predict(target, adversarial) != labels).numpy() for target in targets], 1)
    here = records.provenance("cpu")
    alike = all(made[name] == here[name] for name in ("hardware", "torch", "threads"))
    assert (hits != records.unpack(row["adv_wrong"], hits.shape)).mean() <= (0 if alike else 0.02)
