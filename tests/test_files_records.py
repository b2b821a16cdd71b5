"""Files are old or new, never half; records come back as they were written, or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfnlib import files, records, scales, training
from rfnlib.lab import Lab
from rfnlib.records import BadRecord, Record, pack, unpack
from rfnlib.specs import Cosine, Cyclic, OneCycle, Step, TrainSpec

SPEC = TrainSpec("digits", "resnet18", Step(0.05, (2, 3.5)), epochs=6, n_train=200, width=8, seed=3)
MADE = {"device": "cpu", "torch": "2.11", "date": "2026-01-01"}


def example(rows: int = 3) -> Record:
    record = Record("transfer", SPEC, {"attack": {"eps": 16 / 255, "steps": 10}}, per_epoch=4)
    for i in range(rows, 0, -1):
        record.add({"iteration": 4 * i, "epoch": float(i), "snapshot": f"{i:016x}", "x": i / 3}, MADE)
    return record


# ---------------------------------------------------------------------------------------- files


def test_a_file_is_written_whole_into_folders_that_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(call, code, tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError) as failed:
        files.write_atomic(path, b"new")
    assert (failed.value.__cause__ or failed.value).errno == code
    assert isinstance(failed.value, files.DiskFull) == (code != errno.EIO)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_content_is_forced_to_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    sync = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda f: seen.append((os.fstat(f).st_size, path.exists())) or sync(f))
    files.write_atomic(path, b"12345")
    assert seen == [(5, False)] and path.exists()


def test_a_full_disk_is_told_in_a_sentence_with_the_size(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(files.DiskFull, match=r"for file \(2.5 MB\); free some space"):
        files.write_atomic(tmp_path / "file", bytes(2_500_000))


# -------------------------------------------------------------------------------------- records


plain = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
values = plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(), plain, max_size=3)
reserved = {"iteration", "made"}
rows = st.dictionaries(st.text().filter(lambda k: k not in reserved), values, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    at=st.dictionaries(st.integers(1, 10**6), rows, max_size=5),
    probe=st.dictionaries(st.text(), values, max_size=3),
    makers=st.lists(st.dictionaries(st.text(), st.text(), max_size=2), min_size=1, max_size=3),
)
def test_a_record_comes_back_as_it_was_written(at, probe, makers, tmp_path_factory):
    record = Record("transfer", SPEC, probe, per_epoch=7)
    for i, (iteration, row) in enumerate(at.items()):
        record.add({"iteration": iteration, **row}, makers[i % len(makers)])
    path = records.write(record, tmp_path_factory.mktemp("r"))
    again = records.read(path)
    assert again == record and again.key == record.key
    for i, (iteration, row) in enumerate(at.items()):
        found = again.row(iteration)
        assert {k: found[k] for k in row} == row
        assert again.provenance[found["made"]] == makers[i % len(makers)]
    assert records.write(again, path.parent).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("schedule", [Step(0.1), Step(0.1, (2, 4.5)), Cosine(), OneCycle(), Cyclic()])
def test_every_schedule_comes_back(schedule, tmp_path):
    spec = TrainSpec("digits", "cnn", schedule, epochs=2)
    path = records.write(Record("clean", spec, {}, per_epoch=1), tmp_path)
    assert records.read(path).spec == spec


def test_rows_are_kept_in_the_order_of_iterations(tmp_path):
    record = example()
    assert [r["iteration"] for r in record.rows] == [4, 8, 12]
    assert [r["iteration"] for r in records.read(records.write(record, tmp_path)).rows] == [
        4,
        8,
        12,
    ]
    assert record.row(8)["epoch"] == 2.0 and record.row(9) is None


def test_a_row_says_who_made_it_and_each_maker_is_listed_once():
    record = example()
    other = {**MADE, "date": "2026-01-02"}
    record.add({"iteration": 1}, other)
    record.add({"iteration": 2}, MADE)
    assert record.provenance == [MADE, other]
    assert [record.row(i)["made"] for i in (1, 2, 4)] == [1, 0, 0]


def test_a_record_has_one_row_a_line(tmp_path):
    lines = records.write(example(), tmp_path).read_text().splitlines()
    assert [json.loads(line.rstrip(","))["iteration"] for line in lines if "iteration" in line] == [
        4,
        8,
        12,
    ]


def test_a_name_can_be_read_and_ends_with_the_key():
    record = example()
    assert record.name == f"transfer-resnet18-w8-step2-3.5-s3-{record.key}.json"
    full = Record("clean", TrainSpec("cifar10", "vgg13", Cosine(), epochs=2), {}, per_epoch=1)
    assert full.name == f"clean-vgg13-full-cosine-s0-{full.key}.json"


def test_the_key_depends_on_kind_spec_and_probe_and_not_on_the_rows():
    base = example()
    assert base.key == example(rows=1).key
    others = [
        Record("clean", base.spec, base.probe, 4),
        Record(base.kind, TrainSpec("digits", "resnet18", Step(0.05), 6), base.probe, 4),
        Record(base.kind, base.spec, {"attack": {"eps": 16 / 255, "steps": 11}}, 4),
    ]
    assert len({base.key, *(o.key for o in others)}) == 4


def test_all_records_of_a_folder_are_read_in_the_order_of_names(tmp_path):
    assert records.read_all(tmp_path) == []
    for seed in (2, 0, 1):
        spec = TrainSpec("digits", "cnn", Step(), epochs=1, seed=seed)
        records.write(Record("clean", spec, {}, per_epoch=1), tmp_path)
    assert [r.spec.seed for r in records.read_all(tmp_path)] == [0, 1, 2]


def edited(content: bytes, **changes) -> bytes:
    """The record with fields replaced (None: taken out), and the digest made to fit again."""
    raw = {k: v for k, v in {**json.loads(content), **changes}.items() if v is not None}
    head = {k: v for k, v in raw.items() if k not in ("rows", "digest")}
    if "digest" in raw:
        raw["digest"] = records._digest(head, raw.get("rows", []))
    return json.dumps(raw).encode()


def without_arch(content: bytes) -> bytes:
    return edited(content, spec={k: v for k, v in json.loads(content)["spec"].items() if k != "arch"})


DAMAGES = {
    "truncated": (lambda c: c[: len(c) // 2], "not a whole JSON object"),
    "last byte": (lambda c: c.rstrip()[:-1], "not a whole JSON object"),
    "empty": (lambda c: b"", "not a whole JSON object"),
    "a picture": (lambda c: b"\x89PNG\r\n\xff\xfe", "not a whole JSON object"),
    "a list": (lambda c: b"[1, 2]", "not a whole JSON object"),
    "a digit in a row": (lambda c: c.replace(b"0.333", b"0.334"), "altered"),
    "a digit in the probe": (lambda c: c.replace(b'"steps": 10', b'"steps": 11'), "altered"),
    "a row taken out": (
        lambda c: json.dumps({**json.loads(c), "rows": json.loads(c)["rows"][1:]}).encode(),
        "altered",
    ),
    "another version": (
        lambda c: edited(c, version=2),
        "version is 2, and this code reads version 1",
    ),
    "no version": (lambda c: edited(c, version=None), "version is None"),
    "no rows": (lambda c: edited(c, rows=None), "lacks or misstates a field"),
    "no digest": (lambda c: edited(c, digest=None), "lacks or misstates a field"),
    "no kind": (lambda c: edited(c, kind=None), "lacks or misstates a field"),
    "no spec": (lambda c: edited(c, spec=None), "lacks or misstates a field"),
    "no probe": (lambda c: edited(c, probe=None), "lacks or misstates a field"),
    "no provenance": (lambda c: edited(c, provenance=None), "lacks or misstates a field"),
    "no per_epoch": (lambda c: edited(c, per_epoch=None), "lacks or misstates a field"),
    "no key": (lambda c: edited(c, key=None), "lacks or misstates a field"),
    "a spec without architecture": (without_arch, "lacks or misstates a field"),
    "a field from the future": (
        lambda c: edited(c, spec={**json.loads(c)["spec"], "dropout": 0.1}),
        "lacks or misstates a field",
    ),
    "another key": (lambda c: edited(c, key="0" * 16), "not the one it is named after"),
    "another kind": (lambda c: edited(c, kind="clean"), "not the one it is named after"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_refused_with_its_path_and_the_reason(damage, tmp_path):
    path = records.write(example(), tmp_path)
    spoil, reason = DAMAGES[damage]
    content = spoil(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(BadRecord, match=reason) as refused:
        records.read(path)
    assert str(path) in str(refused.value) and "restore the file" in str(refused.value)
    assert path.read_bytes() == content


def test_the_editing_of_these_tests_alone_does_not_damage_a_record(tmp_path):
    path = records.write(example(), tmp_path)
    path.write_bytes(edited(path.read_bytes()))
    assert records.read(path) == example()


@pytest.mark.parametrize("name", ["transfer-{key}.json", "another.json"])
def test_a_record_under_another_name_is_refused(name, tmp_path):
    path = records.write(example(), tmp_path)
    other = path.rename(tmp_path / name.format(key=example().key))
    with pytest.raises(BadRecord, match="holds the measurement transfer-resnet18-w8"):
        records.read(other)


@pytest.mark.parametrize("mode", ["replay", "run"])
def test_nothing_is_recomputed_silently_over_a_damaged_record(mode, tmp_path, monkeypatch):
    folder = tmp_path / scales.SMOKE.name
    path = records.write(example(), folder)
    path.write_bytes(path.read_bytes().replace(b"0.333", b"0.334"))
    monkeypatch.setattr(training, "train", None)
    with pytest.raises(BadRecord, match=path.name):
        Lab("smoke", mode, records_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_a_full_disk_leaves_the_earlier_record(tmp_path, monkeypatch):
    path = records.write(example(rows=2), tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full)
        with pytest.raises(files.DiskFull):
            records.write(example(rows=3), tmp_path)
    assert records.read(path) == example(rows=2)
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------------------- bits


@given(st.lists(st.integers(0, 5), max_size=3).map(tuple), st.integers(0, 2**32 - 1))
def test_packed_bits_come_back(shape, seed):
    bits = np.random.RandomState(seed).rand(*shape) < 0.5
    bits = np.asarray(bits)
    again = unpack(pack(bits), shape)
    assert again.dtype == bool and np.array_equal(again, bits)


def test_bits_are_packed_row_major_eight_to_a_byte():
    assert pack(np.array([[1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]], bool)) == "gfA="  # 81 f0
    assert len(pack(np.zeros(2000, bool))) < 2000 / 8 * 4 / 3 + 4


@pytest.mark.parametrize("shape", [(8,), (17,), (2, 9), (0,)])
def test_bits_of_another_size_are_refused(shape):
    text = pack(np.ones(9, bool))  # two bytes: 9 to 16 bits
    with pytest.raises(ValueError, match="2 bytes hold 16 bits, not the"):
        unpack(text, shape)


def test_text_that_is_not_base64_is_refused():
    with pytest.raises(ValueError):
        unpack("a", (8,))


def test_the_recorded_files_of_this_checkout_are_sound():
    root = Path(__file__).resolve().parents[1] / "data" / "records"
    found = sorted(root.glob("*/*.json"))
    if not found:
        pytest.skip("no records here yet")
    assert [records.read(path).name for path in found] == [path.name for path in found]
