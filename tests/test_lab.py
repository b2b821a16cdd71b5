"""The lab: what is recorded is served, what is missing is computed once, and nothing else is."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenes import TINY

from rfnlib import data, execution, keys, models, records, scales, training
from rfnlib.attacks import IterativeAttack
from rfnlib.experiments import decay_runs
from rfnlib.jobs import Job, estimate, work
from rfnlib.lab import Lab, MissingRecord
from rfnlib.records import BadRecord
from rfnlib.series import Series

PER_EPOCH = 5


@pytest.fixture
def attacks(monkeypatch) -> list[int]:
    """Grows by one number an attack: how many images it was given."""
    made = []
    attack = IterativeAttack.__call__

    def counted(self, surrogate, images, *args, **options):
        made.append(len(images))
        return attack(self, surrogate, images, *args, **options)

    monkeypatch.setattr(IterativeAttack, "__call__", counted)
    return made


@dataclass
class Place:
    folder: Path

    def lab(self, mode: str = "run", scale: scales.Scale = TINY, **options) -> Lab:
        where = {"records_dir": self.folder / "records", "cache_dir": self.folder / "cache"}
        return Lab(scale, mode, device="cpu", **where, **options)

    def files(self) -> list[Path]:
        return sorted((self.folder / "records" / "tiny").glob("*.json"))

    def record(self, start: str) -> Path:
        (found,) = (p for p in self.files() if p.name.startswith(start))
        return found


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> tuple[Place, dict[str, Series]]:
    place = Place(tmp_path_factory.mktemp("computed"))
    lab = place.lab()
    return place, lab.transfer(decay_runs(lab))


@pytest.fixture
def place(computed, tmp_path) -> Place:
    """A copy of the computed records and snapshots, to be changed."""
    shutil.copytree(computed[0].folder, tmp_path / "copy")
    return Place(tmp_path / "copy")


def c2_work(lab: Lab) -> list[Job]:
    """What claim C2 needs of everything there is to do."""
    needed = [spec for specs in decay_runs(lab).values() for spec in specs] + [*map(lab.scale.target, lab.targets())]
    wanted = {lab.find(kind, spec).key for spec in needed for kind in ("clean", "transfer")}
    return [j for j in work(lab) if j.record().key in wanted]


def ask(lab: Lab) -> dict[str, Series]:
    return lab.transfer(decay_runs(lab))


def assert_equal(a: dict[str, Series], b: dict[str, Series]) -> None:
    assert list(a) == list(b)
    for x, y in zip(a.values(), b.values(), strict=True):
        assert (x.name, x.spec, x.epochs) == (y.name, y.spec, y.epochs)
        np.testing.assert_array_equal(x.accuracy, y.accuracy)
        for h, k in zip(x.hits, y.hits, strict=True):
            for name in ("adv_wrong", "clean_wrong", "surrogate_wrong"):
                np.testing.assert_array_equal(getattr(h, name), getattr(k, name))


def measured(folder: Place) -> dict[str, list[dict]]:
    """The rows of every record, without what differs from one computation to the next."""
    passing = ("seconds", "made")
    return {
        p.name: [{k: v for k, v in r.items() if k not in passing} for r in records.read(p).rows] for p in folder.files()
    }


def distinct(place: Place) -> tuple[int, int]:
    """How many transfer rows there are, and of how many different networks."""
    rows = [r["snapshot"] for n, found in measured(place).items() if "transfer" in n for r in found]
    return len(rows), len(set(rows))


# ----------------------------------------------------------------------------------- run and replay


def test_a_run_records_every_row_of_every_run(computed):
    place, series = computed
    kinds = [p.name.split("-")[0] for p in place.files()]
    assert (kinds.count("clean"), kinds.count("transfer")) == (3, 12)  # 6 schedules, 2 seeds
    assert list(series) == list(TINY.schedules())
    for found in series.values():
        assert found.accuracy.shape == (2, len(found.epochs))
        assert len(found.hits) == len(found.epochs)
    assert series["decay at 1"].epochs == [1.0, 1.5, 2.0, 3.0]
    assert series["decay at 1"].spec == TINY.surrogate(TINY.schedules()["decay at 1"], seed=0)
    rows = records.read(place.record("transfer-resnet18-w4-step1-s0")).rows
    assert [r["lr"] for r in rows] == pytest.approx([0.05, 0.005, 0.005, 0.005])


def test_replay_serves_what_a_run_measured_without_data_or_work(computed, no_work):
    place, series = computed
    assert_equal(ask(place.lab("replay")), series)
    table = place.lab("replay").target_table()
    assert list(table["role"]) == ["test", "test", "validation"]
    assert (table["natural accuracy"] > 0.3).all()  # chance is 0.1
    assert not any(job.missing() for job in c2_work(place.lab("replay")))


def test_a_second_run_does_no_work_either(computed, no_work):
    place, series = computed
    assert_equal(ask(place.lab("run")), series)


def test_replay_with_nothing_recorded_says_how_to_compute_it(tmp_path, no_work):
    lab = Place(tmp_path).lab("replay")
    with pytest.raises(MissingRecord, match=r"lacks 4 of 4 rows at tiny scale; compute them with") as e:
        lab.transfer({"decay at 1": decay_runs(lab)["decay at 1"]})
    assert "`python -m rfnlib run --scale tiny`" in str(e.value)
    assert all(job.missing() == job.epochs for job in work(lab))
    with pytest.raises(MissingRecord, match="clean-"):
        lab.target_table()


def test_replay_refuses_a_series_that_lacks_one_row(place, no_work):
    path = place.record("transfer-resnet18-w4-cosine-s1")
    record = records.read(path)
    del record.rows[1]
    records.write(record, path.parent)
    lab = place.lab("replay")
    with pytest.raises(MissingRecord, match=f"{path.name} lacks 1 of 3 rows"):
        ask(lab)
    assert [(j.label, j.missing()) for j in c2_work(lab) if j.missing()] == [("cosine, seed 1", [2.0])]


def test_other_seeds_are_missing_and_fewer_are_served(computed, no_work):
    place, series = computed
    one = ask(place.lab("replay", seeds=[1]))["cosine"]
    np.testing.assert_array_equal(one.accuracy, series["cosine"].accuracy[1:])
    np.testing.assert_array_equal(one.hits[0].adv_wrong, series["cosine"].hits[0].adv_wrong[1:])
    with pytest.raises(MissingRecord):
        ask(place.lab("replay", seeds=[0, 1, 2]))


# ------------------------------------------------------------------------- only what is missing


def test_a_row_taken_out_is_computed_again_alone_and_is_the_same(place, computed, attacks):
    path = place.record("transfer-resnet18-w4-cosine-s1")
    record = records.read(path)
    del record.rows[1]
    records.write(record, path.parent)
    untouched = {p: p.read_bytes() for p in place.files() if p != path}
    assert_equal(ask(place.lab()), computed[1])
    assert attacks == [41]
    assert measured(place) == measured(computed[0])
    assert {p: p.read_bytes() for p in untouched} == untouched


def test_a_row_of_a_shared_past_is_copied_and_not_computed(place, computed, attacks, monkeypatch):
    path = place.record("transfer-resnet18-w4-step2-s0")
    record = records.read(path)
    gone = record.rows.pop(0)  # epoch 1, which the constant learning rate has too
    records.write(record, path.parent)
    monkeypatch.setattr(training, "train", lambda spec, at, **_: iter(at and 1 / 0 or ()))
    ask(place.lab())
    assert attacks == []
    assert records.read(path).rows[0] == gone


def test_each_network_is_attacked_once_however_many_runs_pass_through_it(computed, attacks, tmp_path):
    fresh = Place(tmp_path)
    one = replace(TINY, seeds=(0,), epochs=2, decays=(1,), standard=(1,), target_epochs=2)
    ask(fresh.lab(scale=one))
    rows, networks = distinct(fresh)
    assert networks < rows
    assert attacks == [41] * networks


def test_rows_computed_through_a_shared_past_equal_those_of_a_run_on_its_own(computed, tmp_path):
    """Branching from another run's state leaves no trace in the numbers."""
    alone = Place(tmp_path)
    lab = alone.lab(seeds=[1])
    lab.transfer({"it": decay_runs(lab)["decay at 2"]})
    name = alone.record("transfer").name
    assert measured(alone)[name] == measured(computed[0])[name]


def test_weights_that_are_gone_are_trained_again_where_a_row_is_missing(place, computed, attacks):
    shutil.rmtree(place.folder / "cache")
    path = place.record("transfer-resnet18-w4-cyclic-s0")
    record = records.read(path)
    gone = record.rows.pop()
    records.write(record, path.parent)
    assert_equal(ask(place.lab()), computed[1])
    assert len(attacks) == 1
    assert records.read(path).rows[-1]["snapshot"] == gone["snapshot"]


class Stopped(Exception):
    pass


def test_stopped_by_tick_again_and_again_it_keeps_every_finished_row(tmp_path, attacks, computed):
    fresh, stops, seen = Place(tmp_path), 0, 0

    while True:
        ticks = []

        def tick(ticks=ticks):
            ticks.append(None)
            if len(ticks) == 17:
                raise Stopped

        try:
            for job in c2_work(fresh.lab(tick=tick)):
                job.compute()
            break
        except Stopped:
            stops += 1
            rows = sum(map(len, measured(fresh).values()))
            assert rows >= seen
            seen = rows
    assert stops >= 3
    assert len(attacks) == distinct(fresh)[1]  # none was made twice
    assert measured(fresh) == measured(computed[0])


def test_a_damaged_record_is_refused_and_not_computed_anew(place, no_work):
    path = place.record("transfer-resnet18-w4-cosine-s1")
    content = path.read_text().replace('"accuracy": 0.', '"accuracy": 1.', 1)
    path.write_text(content)
    for mode in ("replay", "run"):
        with pytest.raises(BadRecord, match=path.name):
            place.lab(mode)
    assert path.read_text() == content


# ---------------------------------------------------------------------------------- what is measured


def by_hand(place: Place, name: str, seed: int, epoch: float):
    """Adversarial images made with nothing of the lab and the attacks, and who is fooled by them."""
    digits = data.load("digits").subset(200)
    order = torch.Generator().manual_seed(keys.stream(0, "images"))
    chosen = torch.randperm(500, generator=order)[:41]
    x, y = digits.test_images[chosen] / 255, digits.test_labels[chosen]
    how = execution.resolve("cpu")

    def network(spec, at):
        (snapshot,) = training.train(spec, [at], dataset=digits, cache=place.folder / "cache" / "tiny")
        about = {"image_shape": (1, 8, 8), "mean": digits.mean, "std": digits.std}
        model = models.build(spec.arch, width=spec.width, **about)
        return how.place(snapshot.load_into(model))

    surrogate = network(TINY.surrogate(TINY.schedules()[name], seed), epoch)
    adv = x
    for _ in range(3):
        leaf = adv.clone().requires_grad_()
        F.cross_entropy(surrogate(leaf), y, reduction="sum").backward()
        adv = adv + 32 / 255 / 10 * leaf.grad.sign()
        adv = torch.minimum(torch.maximum(adv, x - 32 / 255), x + 32 / 255).clamp(0, 1)
    targets = [network(TINY.target(t), 6) for t in TINY.targets]  # the validation target is first
    with torch.no_grad():
        fooled = torch.stack([t(adv).argmax(1) != y for t in targets], 1).numpy()
        clean = torch.stack([t(x).argmax(1) != y for t in targets], 1).numpy()
        own = (surrogate(x).argmax(1) != y).numpy()
    return fooled, clean, own


@pytest.mark.parametrize(
    ("name", "seed", "epoch"),
    [("constant", 0, 3.0), ("decay at 1", 1, 1.5), ("cosine", 1, 2.0)],
)
def test_hits_are_those_of_an_attack_by_hand_on_test_images_and_test_targets(name, seed, epoch, computed, monkeypatch):
    place, series = computed
    fooled, clean, own = by_hand(place, name, seed, epoch)
    found = series[name]
    hits = found.hits[found.epochs.index(epoch)]
    assert hits.adv_wrong.shape == (2, 30, 2)
    np.testing.assert_array_equal(hits.clean_wrong, clean[:30, 1:])
    np.testing.assert_array_equal(hits.surrogate_wrong[seed], own[:30])
    np.testing.assert_array_equal(hits.adv_wrong[seed], fooled[:30, 1:])
    assert 0 < fooled.mean() < 1 and (fooled != clean).any()


def test_the_record_holds_validation_images_and_targets_too(computed):
    place, _ = computed
    fooled, _, own = by_hand(place, "constant", 0, 3.0)
    row = records.read(place.record("transfer-resnet18-w4-step-s0")).rows[-1]
    order = [1, 2, 0]  # test targets first
    np.testing.assert_array_equal(records.unpack(row["adv_wrong"], (41, 3)), fooled[:, order])
    np.testing.assert_array_equal(records.unpack(row["surrogate_wrong"], (41,)), own)
    assert row["passes"] == 3 * 41


def test_the_attacked_images_are_disjoint_and_the_same_for_every_lab(computed):
    place, _ = computed
    lab, other = place.lab(), place.lab(scale=replace(TINY, seeds=(5,)))
    assert torch.equal(lab._probes.attacked[0], other._probes.attacked[0])
    assert len(set(lab._probes.order.tolist())) == 500


def test_a_series_answers_for_the_epochs_it_was_probed_at(computed):
    found = computed[1]["decay at 1"]
    hits = found.hits[1]
    counted = ~hits.clean_wrong.any(1)
    assert counted.any()
    expected = hits.adv_wrong[:, counted].mean((0, 1)).mean()
    assert found.at(1.5).value == pytest.approx(expected)
    assert found.at(1.51).value == found.at(1.5).value
    assert found.at(1.5).z.shape == (2, 30, 2)


@pytest.mark.parametrize("epoch", [0, 1.2, 2.5, 4])
def test_a_series_refuses_an_epoch_it_was_not_probed_at(epoch, computed):
    with pytest.raises(LookupError, match=rf"decay at 1 was not probed at epoch {epoch}, only at \[1"):
        computed[1]["decay at 1"].at(epoch)


def test_records_say_what_they_rest_on(computed):
    place, _ = computed
    for path in place.files():
        record = records.read(path)
        (made,) = record.provenance
        assert made["data"] == data.load("digits").checksum[:16]
        assert {"device", "precision", "torch", "hardware", "code", "date"} <= made.keys()
        for row in record.rows:
            assert row["snapshot"] == record.spec.history_key(row["iteration"], PER_EPOCH)
            assert row["epoch"] == row["iteration"] / PER_EPOCH
            assert 0 <= row["accuracy"] <= 1 and row["seconds"] >= 0
        assert record.per_epoch == PER_EPOCH


def strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for k, v in value.items():
            if not k.endswith("_wrong"):  # packed bits
                yield from strings(v)
    elif isinstance(value, list):
        for v in value:
            yield from strings(v)


def test_records_name_no_path_and_no_host(computed):
    place, _ = computed
    for path in place.files():
        for text in strings(json.loads(path.read_text())):
            assert not text.startswith(("/", "~")) and "\\" not in text, text
            assert socket.gethostname() not in text and Path.home().name not in text.split("/")


def test_the_source_of_the_numbers_is_one_line(computed):
    place, _ = computed
    made = records.read(place.files()[0]).provenance[0]
    said = f"15 records, computed on {made['hardware']}, {made['date']} to {made['date']}"
    assert place.lab("replay").source() == f"tiny scale, mode replay: {said}"


def test_an_estimate_is_nothing_for_what_is_recorded_and_something_for_what_is_not(place):
    lab = place.lab()
    assert estimate(lab, c2_work(lab)) == [0.0] * 15
    path = place.record("transfer-resnet18-w4-cosine-s1")
    path.unlink()
    lab = place.lab()
    jobs = c2_work(lab)
    needed = {j.label: s for j, s in zip(jobs, estimate(lab, jobs), strict=True) if s}
    assert list(needed) == ["cosine, seed 1"] and needed["cosine, seed 1"] > 0


# ----------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("seeds", [[], [-1], [1000], [0.5], ["0"], [0, None], [0, 0], [True]])
def test_seeds_that_cannot_be_are_refused(seeds, tmp_path):
    with pytest.raises(ValueError, match="give one or more different integers from 0 to 999") as refused:
        Place(tmp_path).lab(seeds=seeds)
    assert str(seeds) in str(refused.value)


def test_an_unknown_scale_mode_or_device_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="scale is 'huge'; give one of 'smoke', 'laptop', 'paper'"):
        Lab("huge", records_dir=tmp_path)
    with pytest.raises(ValueError, match="mode is 'rerun'; give one of 'replay', 'run'"):
        Place(tmp_path).lab("rerun")
    with pytest.raises(ValueError, match="device is 'tpu'"):
        Lab(TINY, device="tpu", records_dir=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        Lab(TINY, device="cuda", records_dir=tmp_path)
