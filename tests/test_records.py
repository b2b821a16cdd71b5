"""Records come back as they were written, with what others have put there meanwhile, or not at all."""

from __future__ import annotations

import errno
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfnlib import files, records, scales, training
from rfnlib.lab import Lab
from rfnlib.records import BadRecord, Record, pack, unpack
from rfnlib.specs import Cosine, Cyclic, OneCycle, SpecError, Step, TrainSpec

SPEC = TrainSpec("digits", "resnet18", Step(0.05, (2, 3.5)), epochs=6, n_train=200, width=8, seed=3)
MADE = {"device": "cpu", "torch": "2.11", "date": "2026-01-01"}
DATA = "d" * 16


def row(iteration: int, per_epoch: int = 4, **values) -> dict:
    """A row as the lab hands it out."""
    named = {"snapshot": f"{iteration:016x}", "weights": f"{iteration + 1:016x}"}
    return {"iteration": iteration, "epoch": iteration / per_epoch, **named, **values, "per_epoch": per_epoch}


def example(rows: int = 3) -> Record:
    record = Record("transfer", SPEC, {"attack": {"eps": 16 / 255, "steps": 10}}, DATA)
    for i in range(rows, 0, -1):
        record.add(row(4 * i, x=i / 3), MADE)
    return record


def path_of(record: Record, folder: Path) -> Path:
    """Where it is, once it is written."""
    return folder / records.write(record, folder).name




plain = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
values = plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(), plain, max_size=3)
reserved = {"iteration", "made", "epoch", "snapshot", "weights", "per_epoch", "accuracy", "train_accuracy", "whitebox"}
rows = st.dictionaries(st.text().filter(lambda k: k not in reserved), values, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    at=st.dictionaries(st.integers(1, 10**6), rows, max_size=5),
    asked=st.dictionaries(st.text(), values, max_size=3),
    makers=st.lists(st.dictionaries(st.text(), st.text(), max_size=2), min_size=1, max_size=3),
)
def test_a_record_comes_back_as_it_was_written(at, asked, makers, tmp_path_factory):
    record = Record("transfer", SPEC, asked, DATA)
    for i, (iteration, more) in enumerate(at.items()):
        record.add(row(iteration, 7, **more), makers[i % len(makers)])
    path = path_of(record, tmp_path_factory.mktemp("r"))
    again = records.read(path)
    assert again == record and again.key == record.key
    for i, (iteration, more) in enumerate(at.items()):
        found = again.at(iteration / 7)
        assert {k: found[k] for k in more} == more and found["iteration"] == iteration
        assert again.provenance[found["made"]] == makers[i % len(makers)]
    before = path.read_bytes()
    assert path_of(again, path.parent).read_bytes() == before


@pytest.mark.parametrize("schedule", [Step(0.1), Step(0.1, (2, 4.5)), Cosine(), OneCycle(), Cyclic()])
def test_every_schedule_comes_back(schedule, tmp_path):
    spec = TrainSpec("digits", "cnn", schedule, epochs=2)
    assert records.read(path_of(Record("clean", spec, {}, DATA), tmp_path)).spec == spec


def test_rows_are_kept_in_the_order_of_iterations(tmp_path):
    record = example()
    assert [r["iteration"] for r in record.rows] == [4, 8, 12]
    assert [r["iteration"] for r in records.read(path_of(record, tmp_path)).rows] == [4, 8, 12]
    assert record.at(2.0)["iteration"] == 8 and record.at(2.25) is None


def test_a_row_says_who_made_it_and_each_maker_is_listed_once():
    record = example()
    other = {**MADE, "date": "2026-01-02"}
    record.add(row(1), other)
    record.add(row(2), MADE)
    assert record.provenance == [MADE, other]
    assert [r["made"] for r in record.rows] == [1, 0, 0, 0, 0]


def test_a_row_that_is_there_stays():
    record = example()
    record.add(row(8, x="another"), {"date": "2026-01-02"})
    assert record == example()


def test_a_record_has_one_row_a_line(tmp_path):
    lines = path_of(example(), tmp_path).read_text().splitlines()
    assert [json.loads(line.rstrip(","))["iteration"] for line in lines if "iteration" in line] == [
        4,
        8,
        12,
    ]


def test_a_name_can_be_read_and_ends_with_the_key():
    record = example()
    assert record.name == f"transfer-resnet18-w8-step2-3.5-s3-{record.key}.json"
    full = Record("clean", TrainSpec("cifar10", "vgg13", Cosine(), epochs=2, stem=2), {}, DATA)
    assert full.name == f"clean-vgg13-full-stem2-cosine-s0-{full.key}.json"


def test_the_key_depends_on_kind_spec_settings_and_data_and_not_on_the_rows():
    base = example()
    assert base.key == example(rows=1).key
    others = [
        Record("clean", base.spec, base.settings, DATA),
        Record(base.kind, TrainSpec("digits", "resnet18", Step(0.05), 6), base.settings, DATA),
        Record(base.kind, base.spec, {"attack": {"eps": 16 / 255, "steps": 11}}, DATA),
        Record(base.kind, base.spec, base.settings, "e" * 16),
    ]
    assert len({base.key, *(o.key for o in others)}) == 5


def test_all_records_of_a_folder_are_read_in_the_order_of_names(tmp_path):
    assert records.read_all(tmp_path) == []
    for seed in (2, 0, 1):
        spec = TrainSpec("digits", "cnn", Step(), epochs=1, seed=seed)
        records.write(Record("clean", spec, {}, DATA), tmp_path)
    assert [r.spec.seed for r in records.read_all(tmp_path)] == [0, 1, 2]


# ------------------------------------------------------------------------- several processes


def test_the_process_that_knew_fewer_rows_does_not_overwrite_those_of_another(tmp_path):
    records.write(example(rows=3), tmp_path)
    few = example(rows=0)
    few.add(row(20, x="new"), {**MADE, "date": "2026-01-02"})
    merged = records.write(few, tmp_path)
    assert [r["iteration"] for r in merged.rows] == [4, 8, 12, 20]
    assert merged == records.read(tmp_path / merged.name)
    assert [merged.provenance[r["made"]]["date"] for r in merged.rows] == [*["2026-01-01"] * 3, "2026-01-02"]


def put(folder: Path, iterations: list[int]) -> None:
    for i in iterations:
        record = example(rows=0)
        record.add(row(i), MADE)
        records.write(record, folder)


def test_rows_of_processes_that_write_at_once_are_all_kept(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=put, args=(tmp_path, list(range(1 + n, 61, 3)))) for n in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    assert [w.exitcode for w in writers] == [0, 0, 0]
    (record,) = records.read_all(tmp_path)
    assert [r["iteration"] for r in record.rows] == list(range(1, 61))


def test_a_record_is_never_written_outside_its_folder(tmp_path):
    with pytest.raises(SpecError, match="x/../../../esc"):
        TrainSpec("digits", "x/../../../esc", Step(), epochs=1)
    with pytest.raises(BadRecord, match="esc/x-resnet18"):
        records.write(Record("../esc/x", SPEC, {}, DATA), tmp_path / "in" / "here")
    assert not [p for p in tmp_path.rglob("*.json")]


# ------------------------------------------------------------------------- what is refused


def edited(content: bytes, **changes) -> bytes:
    """The record with fields replaced (None: taken out), and the digest made to fit again."""
    raw = {k: v for k, v in {**json.loads(content), **changes}.items() if v is not None}
    head = {k: v for k, v in raw.items() if k not in ("rows", "digest")}
    if "digest" in raw:
        raw["digest"] = records._digest(head, raw.get("rows", []))
    return json.dumps(raw).encode()


def row_edited(content: bytes, **changes) -> bytes:
    """The record with fields of its second row replaced, and signed anew."""
    first, second, *rest = json.loads(content)["rows"]
    return edited(content, rows=[first, {**second, **changes}, *rest])


def without_arch(content: bytes) -> bytes:
    return edited(content, spec={k: v for k, v in json.loads(content)["spec"].items() if k != "arch"})


DAMAGES = {
    "truncated": (lambda c: c[: len(c) // 2], "not a whole JSON object"),
    "last byte": (lambda c: c.rstrip()[:-1], "not a whole JSON object"),
    "empty": (lambda c: b"", "not a whole JSON object"),
    "a picture": (lambda c: b"\x89PNG\r\n\xff\xfe", "not a whole JSON object"),
    "a list": (lambda c: b"[1, 2]", "not a whole JSON object"),
    "a digit in a row": (lambda c: c.replace(b"0.333", b"0.334"), "altered"),
    "a digit in the settings": (lambda c: c.replace(b'"steps": 10', b'"steps": 11'), "altered"),
    "a row taken out": (
        lambda c: json.dumps({**json.loads(c), "rows": json.loads(c)["rows"][1:]}).encode(),
        "altered",
    ),
    "another version": (
        lambda c: edited(c, version=1),
        "version is 1, and this code reads version 2",
    ),
    "no version": (lambda c: edited(c, version=None), "version is None"),
    "no rows": (lambda c: edited(c, rows=None), "lacks or misstates a field"),
    "no digest": (lambda c: edited(c, digest=None), "lacks or misstates a field"),
    "no kind": (lambda c: edited(c, kind=None), "lacks or misstates a field"),
    "no spec": (lambda c: edited(c, spec=None), "lacks or misstates a field"),
    "no settings": (lambda c: edited(c, settings=None), "lacks or misstates a field"),
    "no provenance": (lambda c: edited(c, provenance=None), "lacks or misstates a field"),
    "no per_epoch": (lambda c: edited(c, per_epoch=None), "lacks or misstates a field"),
    "no key": (lambda c: edited(c, key=None), "lacks or misstates a field"),
    "a spec without architecture": (without_arch, "lacks or misstates a field"),
    "a field from the future": (
        lambda c: edited(c, spec={**json.loads(c)["spec"], "dropout": 0.1}),
        "lacks or misstates a field",
    ),
    "another key": (lambda c: edited(c, key="0" * 16), "not the one it is named after"),
    "no data": (lambda c: edited(c, data=None), "lacks or misstates a field"),
    "a row of nobody": (lambda c: row_edited(c, made=99), r"nobody made the row at step 8 \(99 of 1\)"),
    "a row under a wrong step": (lambda c: row_edited(c, iteration=11), "at step 11 is said to be at epoch 2"),
    "two rows at one step": (lambda c: row_edited(c, iteration=4), r"steps \[4, 4, 12\], which do not rise"),
    "an accuracy of 17": (lambda c: row_edited(c, accuracy=17), "accuracy is 17 at step 8, which is no share"),
    "an accuracy that is text": (lambda c: row_edited(c, train_accuracy="1"), "train_accuracy is '1' at step 8"),
    "a foreign snapshot": (lambda c: row_edited(c, snapshot="mine"), "at step 8 names no weights"),
    "no weights": (lambda c: row_edited(c, weights=None), "at step 8 names no weights"),
    "rows that are a number": (lambda c: edited(c, rows=3), "lacks or misstates a field"),
    "no steps an epoch": (lambda c: edited(c, per_epoch=0), "it has 0 steps an epoch"),
    "another kind": (lambda c: edited(c, kind="clean"), "not the one it is named after"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_refused_with_its_path_and_the_reason(damage, tmp_path):
    path = path_of(example(), tmp_path)
    spoil, reason = DAMAGES[damage]
    content = spoil(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(BadRecord, match=reason) as refused:
        records.read(path)
    assert str(path) in str(refused.value) and "restore the file" in str(refused.value)
    assert path.read_bytes() == content


def test_the_editing_of_these_tests_alone_does_not_damage_a_record(tmp_path):
    path = path_of(example(), tmp_path)
    path.write_bytes(edited(path.read_bytes()))
    assert records.read(path) == example()


@pytest.mark.parametrize("name", ["transfer-{key}.json", "another.json"])
def test_a_record_under_another_name_is_refused(name, tmp_path):
    path = path_of(example(), tmp_path)
    other = path.rename(tmp_path / name.format(key=example().key))
    with pytest.raises(BadRecord, match="holds the measurement transfer-resnet18-w8"):
        records.read(other)


@pytest.mark.parametrize("mode", ["replay", "run"])
def test_nothing_is_recomputed_silently_over_a_damaged_record(mode, tmp_path, monkeypatch):
    folder = tmp_path / scales.SMOKE.name
    path = path_of(example(), folder)
    path.write_bytes(path.read_bytes().replace(b"0.333", b"0.334"))
    monkeypatch.setattr(training, "train", None)
    with pytest.raises(BadRecord, match=path.name):
        Lab("smoke", mode, records_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_a_full_disk_leaves_the_earlier_record(tmp_path, monkeypatch):
    path = path_of(example(rows=2), tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full)
        with pytest.raises(files.DiskFull):
            records.write(example(rows=3), tmp_path)
    assert records.read(path) == example(rows=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", path.name]


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
