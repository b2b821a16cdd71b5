"""The table of all records: its numbers are those of the curves, and a pilot's hits on test images are not in it."""

import io
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from rfnlib import evaluate, export, outside, paths, zoo
from rfnlib.intervals import interval
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At
from rfnlib.studies import lr_decay, state_of_the_art


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab("smoke")


@pytest.fixture(scope="module")
def found(lab) -> pd.DataFrame:
    return export.table(lab)


def one(found: pd.DataFrame, **where) -> pd.Series:
    for column, value in where.items():
        found = found[found[column.replace("_", " ")] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_every_recorded_row_is_a_line(lab, found):
    assert len(found) == sum(len(r.rows) for r in lab.records.values())
    assert set(found["record"]) == {r.name for r in lab.records.values()}


def test_success_and_its_interval_are_those_of_the_curve(lab, found):
    arm = lr_decay.arms(lab)["decay at 3"]
    curve, record = lab.read(arm), lab.find(arm.measurements()[0])
    for epoch in curve.epochs:
        line, estimate = one(found, record=record.name, epoch=epoch), interval(curve.at(epoch))
        assert (line["success"], line["success, low"]) == pytest.approx((estimate.value, estimate.low))
        assert line["natural accuracy"] == curve.accuracy[0, curve.index(epoch)]
    by_target = [interval(curve.at(curve.end, targets=[i])).value for i in range(3)]
    names = [t.name for t in lab.scale.targets_of("standard") if t.role == "test"]
    assert [line[f"on {name}"] for name in names] == pytest.approx(by_target)


def test_sharpness_and_robust_accuracy_are_those_of_the_curves(lab, found):
    arm = state_of_the_art.arms(lab)["RFN"]
    flat, robust = lab.read(arm, lab.scale.sharpness), lab.read(arm, lab.scale.robustness)
    records = {m.probe.kind: lab.find(m).name for m in arm.measurements()}
    assert one(found, record=records["sharpness"], epoch=6.0)["λ₁"] == flat.at(6.0)[0]
    line = one(found, record=records["robustness"], epoch=6.0)
    assert line["robust accuracy, l2 0.25"] == pytest.approx(robust.at(6.0, "l2 0.25").value)


def test_pilots_show_their_success_on_validation_targets_alone(lab, found):
    pilots = found[(found.kind == "transfer") & found.seed.isin(lab.scale.pilots)]
    assert len(pilots) and set(pilots["targets"]) == {"validation"}
    spec = lab.scale.flat(None, lab.scale.pilots[0])
    arm = Arm("SGD", [spec], At(lab.scale.transfer, (6.0,)))
    line = one(pilots, record=lab.find(arm.measurements()[0]).name, epoch=6.0)
    assert line["success"] == pytest.approx(interval(lab.read(arm, role="validation").at(6.0)).value)


def test_what_was_tried_on_a_target_from_outside_is_there(lab, found, tmp_path, monkeypatch):
    theirs = outside.register("theirs", zoo.load("smoke/wrn16"))
    folders = {f"{name}_dir": tmp_path / name for name in ("records", "cache")}
    shutil.copytree(lab.folder, tmp_path / "records" / "smoke")
    mirror = evaluate.mirrored(theirs, Lab("smoke", "run", device="cpu", **folders))
    curve = mirror.read(Arm("SGD", [lab.scale.flat(None, 0)], At(lab.scale.transfer, (6.0,))))
    table = export.table(Lab("smoke", **folders))
    line, estimate = one(table, targets="theirs"), interval(curve.at(6.0))
    assert (line["success"], line["success, high"]) == pytest.approx((estimate.value, estimate.high))
    assert len(table) == len(found) + 2, "the target as it is, and this one"
    assert set(table.columns) == set(found.columns)


def test_the_command_writes_it_as_csv(found, tmp_path):
    command = [sys.executable, "-m", "rfnlib", "records", "--scale", "smoke"]
    told = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, check=True).stdout
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(told))[["success", "seed"]], found[["success", "seed"]])
    subprocess.run([*command, "--csv", tmp_path / "all.csv"], cwd=paths.root(), check=True)
    assert (tmp_path / "all.csv").read_text() == told
