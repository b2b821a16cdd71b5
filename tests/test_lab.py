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

from rfnlib import costs, data, execution, keys, models, records, subjects, training, zoo
from rfnlib.attacks import IterativeAttack
from rfnlib.curves import TransferCurve
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.records import BadRecord
from rfnlib.scale import Scale
from rfnlib.snapshots import DamagedSnapshot, Snapshot
from rfnlib.specs import Step
from rfnlib.studies import lr_decay

PER_EPOCH = 5
Curves = dict[str, TransferCurve]


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

    def lab(self, mode: str = "run", scale: Scale = TINY, **options) -> Lab:
        where = {name: self.folder / name.removesuffix("_dir") for name in ("records_dir", "cache_dir", "weights_dir")}
        return Lab(scale, mode, device="cpu", **where, **options)

    def files(self) -> list[Path]:
        return sorted((self.folder / "records" / "tiny").glob("*.json"))

    def record(self, start: str) -> Path:
        (found,) = (p for p in self.files() if p.name.startswith(start))
        return found


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> tuple[Place, Curves]:
    place = Place(tmp_path_factory.mktemp("computed"))
    return place, ask(place.lab())


@pytest.fixture
def place(computed, tmp_path) -> Place:
    """A copy of the computed records, snapshots and weights, to be changed."""
    shutil.copytree(computed[0].folder, tmp_path / "copy")
    return Place(tmp_path / "copy")


def work(lab: Lab) -> list[Measurement]:
    """What claim C2 needs of everything there is to do."""
    return [*map(lab.scale.clean, lab.scale.targets_of("standard")), *by_seed(lr_decay.arms(lab).values())]


def ask(lab: Lab) -> Curves:
    return {name: lab.read(arm) for name, arm in lr_decay.arms(lab).items()}


def without(path: Path, place: int) -> dict:
    """Take a row out of the record at `path`, and give it."""
    record = records.read(path)
    gone = record.rows.pop(place)
    path.unlink()
    records.write(record, path.parent)
    return gone


def assert_equal(a: Curves, b: Curves) -> None:
    assert list(a) == list(b)
    for x, y in zip(a.values(), b.values(), strict=True):
        assert (x.name, x.spec, x.epochs) == (y.name, y.spec, y.epochs)
        for name in ("accuracy", "training", "loss", "passes", "l2"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
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
    place, curves = computed
    kinds = [p.name.split("-")[0] for p in place.files()]
    assert (kinds.count("clean"), kinds.count("transfer")) == (3, 12)  # 6 schedules, 2 seeds
    assert list(curves) == list(TINY.schedules())
    for found in curves.values():
        assert found.accuracy.shape == (2, len(found.epochs))
        assert len(found.hits) == len(found.epochs)
    assert curves["decay at 1"].epochs == (1.0, 1.5, 2.0, 3.0)
    assert curves["decay at 1"].spec == TINY.surrogate(TINY.schedules()["decay at 1"], seed=0)
    rows = records.read(place.record("transfer-resnet18-w4-step1-s0")).rows
    assert [r["lr"] for r in rows] == pytest.approx([0.05, 0.005, 0.005, 0.005])


def test_replay_serves_what_a_run_measured_without_data_or_work(computed, no_work):
    place, curves = computed
    assert_equal(ask(place.lab("replay")), curves)
    table = place.lab("replay").target_table()
    assert list(table["role"]) == ["test", "test", "validation"]
    assert (table["natural accuracy"] > 0.3).all() and (table["training accuracy"] > 0.3).all()  # chance is 0.1
    lab = place.lab("replay")
    assert not any(map(lab.missing, work(lab)))


def test_a_second_run_does_no_work_either(computed, no_work):
    place, curves = computed
    assert_equal(ask(place.lab("run")), curves)


def test_replay_with_nothing_recorded_says_how_to_compute_it(tmp_path, no_work):
    lab = Place(tmp_path).lab("replay")
    with pytest.raises(MissingRecord, match=r"lacks 4 of 4 rows at tiny scale; compute them with") as e:
        lab.read(lr_decay.arms(lab)["decay at 1"])
    assert "`python -m rfnlib run --scale tiny`" in str(e.value) and "in RFN_RECORDS." in str(e.value)
    assert all(lab.missing(m) == m.epochs for m in work(lab))
    with pytest.raises(MissingRecord, match="target: cnn"):
        lab.target_table()
    assert lab.source() == "tiny scale: nothing is recorded"


def test_replay_refuses_a_curve_that_lacks_one_row(place, no_work):
    without(place.record("transfer-resnet18-w4-cosine-s1"), 1)
    lab = place.lab("replay")
    with pytest.raises(MissingRecord, match="transfer: resnet18, cosine, seed 1 lacks 1 of 3 rows"):
        ask(lab)
    assert [(m.label, lab.missing(m)) for m in work(lab) if lab.missing(m)] == [
        ("transfer: resnet18, cosine, seed 1", (2.0,))
    ]


def test_an_arm_is_shown_once_all_of_its_seeds_are_recorded(place, no_work):
    arms = lr_decay.arms(place.lab("replay"))
    assert list(place.lab("replay").shown(arms, needed=["constant"])) == list(arms)
    without(place.record("transfer-resnet18-w4-cosine-s1"), 1)
    lab = place.lab("replay")
    assert list(lab.shown(arms)) == [name for name in arms if name != "cosine"]
    with pytest.raises(MissingRecord, match="cosine: transfer: resnet18, cosine, seed 1 lacks 1 of 3 rows"):
        lab.shown(arms, needed=["constant", "cosine"])
    assert list(place.lab("run").shown(arms, needed=["cosine"])) == list(arms), "a run can compute it"
    assert list(lab.shown(lr_decay.arms(place.lab("replay", seeds=[0])))) == list(arms), "its first seed is whole"


def test_listing_goes_through_a_view_that_never_computes(place, no_work):
    without(place.record("transfer-resnet18-w4-cosine-s1"), 1)
    lab = place.lab("run")
    with pytest.raises(MissingRecord):
        ask(lab.replaying())
    assert lab.mode == "run" and lab.replaying().records is lab.records


def test_a_question_that_an_arm_does_not_ask_is_refused(computed):
    lab = computed[0].lab("replay")
    with pytest.raises(LookupError, match=r"constant asks for \['transfer'\], not for Sharpness"):
        lab.read(lr_decay.arms(lab)["constant"], lab.scale.sharpness)


def test_other_seeds_are_missing_and_fewer_are_served(computed, no_work):
    place, curves = computed
    one = ask(place.lab("replay", seeds=[1]))["cosine"]
    np.testing.assert_array_equal(one.accuracy, curves["cosine"].accuracy[1:])
    np.testing.assert_array_equal(one.hits[0].adv_wrong, curves["cosine"].hits[0].adv_wrong[1:])
    with pytest.raises(MissingRecord):
        ask(place.lab("replay", seeds=[0, 1, 2]))


# ------------------------------------------------------------------------- only what is missing


def test_a_row_taken_out_is_computed_again_alone_and_is_the_same(place, computed, attacks):
    path = place.record("transfer-resnet18-w4-cosine-s1")
    without(path, 1)
    untouched = {p: p.read_bytes() for p in place.files() if p != path}
    assert_equal(ask(place.lab()), computed[1])
    assert attacks == [41]
    assert measured(place) == measured(computed[0])
    assert {p: p.read_bytes() for p in untouched} == untouched


def test_accuracies_of_a_network_are_taken_once_whatever_is_measured_of_it(tmp_path, monkeypatch):
    lab = Place(tmp_path).lab(scale=replace(TINY, targets=TINY.targets[:2]))
    spec = lab.scale.flat(None, 0)
    (first,) = lab.measure(Measurement(spec, At(lab.scale.transfer, (1.0,)))).rows
    again = Place(tmp_path).lab(scale=lab.scale)  # another process, which has nothing but the records
    monkeypatch.setattr(subjects.Bench, "_accuracies", lambda *_: pytest.fail("what is recorded is not computed again"))
    (second,) = again.measure(Measurement(spec, At(lab.scale.robustness, (1.0,)))).rows
    assert {name: second[name] for name in records.ACCURACIES} == {name: first[name] for name in records.ACCURACIES}
    with pytest.raises(pytest.fail.Exception):
        again.measure(Measurement(spec, At(lab.scale.robustness, (2.0,))))
    fewer = Place(tmp_path).lab(scale=replace(lab.scale, accuracy_images=45))
    with pytest.raises(pytest.fail.Exception):  # those were taken on more images
        fewer.measure(Measurement(spec, At(lab.scale.robustness, (1.0,))))
    weights = first["snapshot"], first["weights"]
    assert records.accuracies(lab.records.values(), "0" * 16, lab.scale.accuracy_images, *weights) is None, "other data"


def test_the_data_set_is_read_once(tmp_path):
    lab = Place(tmp_path).lab()
    assert lab.dataset() is lab.dataset(None) is lab.bench.dataset


def test_a_run_on_another_cut_is_trained_on_it_and_measured_where_all_are(tmp_path):
    lab = Place(tmp_path).lab(scale=replace(TINY, targets=TINY.targets[:2]))
    spec = replace(lab.scale.flat(None, 0), n_train=120, skip=200, label_noise=0.25, augment=False)
    own = data.load("digits").subset(120, skip=200).noisy(0.25, 0)
    assert lab.trained_on(spec).digest == own.digest and lab.trained_on(lab.scale.flat(None, 0)) is lab.dataset()
    (row,) = lab.measure(Measurement(spec, At(lab.scale.transfer, (1.0,)))).rows
    assert row["iteration"] == 3, "batches of 40 of its own 120 images"
    (s,) = training.train(spec, [1.0], dataset=own, cache=tmp_path / "alone", device="cpu", progress=False)
    weights = zoo.rounded(s.weights())
    assert row["weights"] == keys.digest(weights)
    network = training.network(spec, own)
    network.load_state_dict(weights)
    scale_s = lab.dataset()  # on these, with true labels, though it has never seen them
    right = network.eval()(data.to_float(scale_s.train_images)).argmax(1) == scale_s.train_labels
    assert row["train_accuracy"] == round(float(right.float().mean()), 4)


def test_a_row_of_a_shared_past_is_copied_and_not_computed(place, computed, attacks, monkeypatch):
    path = place.record("transfer-resnet18-w4-step2-s0")
    gone = without(path, 0)  # epoch 1, which the constant learning rate has too
    monkeypatch.setattr(training, "train", lambda spec, at, **_: iter(at and 1 / 0 or ()))
    ask(place.lab())
    assert attacks == []
    assert records.read(path).rows[0] == gone


def test_a_row_of_other_images_is_neither_copied_nor_counted_as_done(place, attacks, monkeypatch):
    shutil.rmtree(place.folder / "weights")
    monkeypatch.setattr(data, "checksum", lambda name: "0" * 64)  # as of a data set whose files have changed
    lab = place.lab()
    for needed in lab.scale.targets_of("standard"):
        lab.measure(lab.scale.clean(needed))
    (m,) = lr_decay.arms(lab)["cosine"].measurements(0)
    rows = [name for name, unit in costs.Ledger(lab).left(m).items() if unit.passes > 1]
    assert len(rows) == 2 * len(m.epochs), "of each the row, and the accuracies"
    lab.measure(m)
    assert attacks == [41] * len(m.epochs)


def test_each_network_is_attacked_once_however_many_runs_pass_through_it(computed, attacks, tmp_path):
    fresh = Place(tmp_path)
    one = replace(TINY, seeds=(0,), epochs=2, decays=(1,), standard=(1,))
    ask(fresh.lab(scale=one))
    rows, networks = distinct(fresh)
    assert networks < rows
    assert attacks == [41] * networks


def test_rows_computed_through_a_shared_past_equal_those_of_a_run_on_its_own(computed, tmp_path):
    """Branching from another run's state leaves no trace in the numbers."""
    alone = Place(tmp_path)
    lab = alone.lab(seeds=[1])
    lab.read(lr_decay.arms(lab)["decay at 2"])
    name = alone.record("transfer").name
    assert measured(alone)[name] == measured(computed[0])[name]


def test_weights_that_are_gone_are_trained_again_where_a_row_is_missing(place, computed, attacks):
    shutil.rmtree(place.folder / "cache")
    path = place.record("transfer-resnet18-w4-cyclic-s0")
    gone = without(path, -1)
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
            lab = fresh.lab(tick=tick)
            for m in work(lab):
                lab.measure(m)
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
        model = how.place(snapshot.load_into(models.build(spec.arch, width=spec.width, **about)))
        return model.half().float()

    surrogate = network(TINY.surrogate(TINY.schedules()[name], seed), epoch)
    adv = x
    for _ in range(3):
        leaf = adv.clone().requires_grad_()
        F.cross_entropy(surrogate(leaf), y, reduction="sum").backward()
        adv = adv + 32 / 255 / 3 * leaf.grad.sign()
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
    place, curves = computed
    fooled, clean, own = by_hand(place, name, seed, epoch)
    found = curves[name]
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


def test_the_attacked_images_are_the_same_for_every_lab(computed):
    place, _ = computed
    lab, other = place.lab(), place.lab(scale=replace(TINY, seeds=(5,)))
    assert torch.equal(lab.bench.attacked[0], other.bench.attacked[0])
    assert len(lab.bench.attacked[0].flatten(1).unique(dim=0)) == 41


def test_a_curve_answers_for_the_epochs_it_was_measured_at(computed):
    found = computed[1]["decay at 1"]
    hits = found.hits[1]
    counted = ~hits.clean_wrong.any(1)
    assert counted.any()
    expected = hits.adv_wrong[:, counted].mean((0, 1)).mean()
    assert found.at(1.5).value == pytest.approx(expected)
    assert found.at(1.51).value == found.at(1.5).value
    assert found.at(1.5).z.shape == (2, 30, 2)


@pytest.mark.parametrize("epoch", [0, 1.2, 2.5, 4])
def test_a_curve_refuses_an_epoch_it_was_not_measured_at(epoch, computed):
    with pytest.raises(LookupError, match=rf"decay at 1 was not measured at epoch {epoch}, only at 1, 1.5"):
        computed[1]["decay at 1"].at(epoch)


def test_records_say_what_they_rest_on(computed):
    place, _ = computed
    for path in place.files():
        record = records.read(path)
        (made,) = record.provenance
        assert record.data == data.load("digits").checksum[:16]
        assert {"device", "precision", "torch", "hardware", "code", "date"} <= made.keys()
        for row in record.rows:
            assert row["snapshot"] == record.spec.history_key(row["iteration"], PER_EPOCH)
            assert row["epoch"] == row["iteration"] / PER_EPOCH
            assert 0 <= row["accuracy"] <= 1 and 0 <= row["train_accuracy"] <= 1 and row["seconds"] >= 0
            assert row["epochs_of_passes"] == row["epoch"] and row["skipped"] == 0
        assert record.per_epoch == PER_EPOCH


def test_a_row_says_in_what_its_network_was_trained_otherwise(tmp_path, monkeypatch):
    m = Measurement(replace(TINY.surrogate(Step(0.05), 0), arch="cnn", width=2), At(TINY.robustness, (1.0,)))
    lab, describe, other = Place(tmp_path).lab(), execution.Execution.describe, {"compile": True, "threads": 64}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(execution.Execution, "describe", lambda how: {**describe(how), **other})
        list(training.train(m.spec, [1.0], dataset=lab.trained_on(m.spec), cache=lab.cache, device="cpu"))
    (made,) = lab.measure(m).provenance
    assert made["trained"] == other and made["compile"] is False
    path = lab.release(m.spec, 1.0)
    assert zoo.read(path)[1]["execution"] == {**describe(execution.resolve("cpu")), **other}


def test_what_a_run_starts_from_is_counted_in_batches_as_large_as_its_own(tmp_path):
    start = replace(TINY.surrogate(Step(0.05), 0), arch="cnn", width=2, epochs=2)
    spec = replace(start, start=start, epochs=1, batch=2 * start.batch)
    row = Place(tmp_path).lab().measure(Measurement(spec, At(TINY.robustness, (1.0,)))).at(1.0)
    assert row["iteration"] == 2 and row["epoch"] == 1.0, "two of its batches an epoch, where five make all images"
    assert row["epochs_of_passes"] == (2 + 2 * PER_EPOCH / 2) / 2


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
    said = f"records computed on {made['hardware']}, {made['date']}"
    assert place.lab("replay").source() == f"tiny scale: {said}"


def test_networks_that_two_records_name_by_other_weights_are_told(computed):
    place, _ = computed
    lab = place.lab("replay")
    assert lab.trained_twice() == {}
    record = next(r for r in lab.records.values() if r.kind == "transfer")
    row = {**record.rows[-1], "weights": "0" * 16}
    lab.records["another"] = replace(record, rows=[row])
    assert lab.trained_twice() == {row["snapshot"]: {"0" * 16, record.rows[-1]["weights"]}}
    assert lab.source().endswith("; networks trained twice, with different bits, and measured both times: 1")


# ------------------------------------------------------------------------------------------- targets


def test_targets_are_measured_after_rounding_and_named_by_the_digest_of_their_weights(computed):
    place, _ = computed
    row = records.read(place.record("transfer-resnet18-w4-step-s0")).rows[-1]
    digests = []
    for t in TINY.targets_of("standard"):
        spec = TINY.target(t)
        (path,) = (place.folder / "weights" / "tiny").glob(f"*{spec.key()}.safetensors")
        weights, about = zoo.read(path)
        assert all(torch.equal(v, v.half().float()) for v in weights.values() if v.is_floating_point())
        (clean,) = (r for r in place.lab("replay").records.values() if r.kind == "clean" and r.spec == spec)
        assert clean.rows[0]["weights"] == keys.digest(weights)
        digests.append(clean.rows[0]["weights"])
    assert row["targets"] == digests and len(set(digests)) == 3


def test_targets_are_not_trained_again_where_their_weights_are_released(place, computed):
    shutil.rmtree(place.folder / "cache")
    without(place.record("transfer-resnet18-w4-cyclic-s0"), -1)
    made = []
    lab = place.lab(tick=lambda: made.append(None))
    assert_equal(ask(lab), computed[1])
    assert not list((place.folder / "cache").rglob("*cnn*"))
    (record,) = (r for r in lab.records.values() if r.name.startswith("transfer-resnet18-w4-cyclic-s0"))
    trained = {p.name for p in (place.folder / "cache").rglob("*.weights.safetensors")}
    assert len(trained) == 1 and record.rows[-1]["epoch"] == 3


def test_targets_released_from_other_images_are_refused(place, monkeypatch):
    monkeypatch.setattr(data, "checksum", lambda name: "0" * 64)
    with pytest.raises(BadRecord, match=r"cnn-w16\S+ was trained on another digits \(\w{16}\) than .* \(0{16}\)"):
        place.lab().target_table("validation")


def test_hits_on_other_weights_than_the_recorded_targets_are_refused(place, monkeypatch):
    """The cache is lost, the records are not, and this machine trains targets to other bits."""
    shutil.rmtree(place.folder / "weights")
    shutil.rmtree(place.folder / "cache")
    without(place.record("transfer-resnet18-w4-cyclic-s0"), -1)
    weights = Snapshot.weights

    def elsewhere(self):
        return {k: v + 0.01 if k == "head.bias" else v for k, v in weights(self).items()}

    monkeypatch.setattr(Snapshot, "weights", elsewhere)
    with pytest.raises(BadRecord, match="target cnn .* has other weights .* than those that were recorded"):
        ask(place.lab())


def test_a_row_against_other_weights_than_the_clean_errors_is_not_shown(place, no_work):
    path = place.record("transfer-resnet18-w4-cosine-s1")
    record = records.read(path)
    record.rows[0]["targets"][1] = "0" * 16
    path.unlink()
    records.write(record, path.parent)
    with pytest.raises(BadRecord, match="cosine was recorded against other weights of the targets"):
        ask(place.lab("replay"))


def test_a_released_file_that_was_altered_is_refused(place):
    (path, *_) = sorted((place.folder / "weights" / "tiny").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
    shutil.rmtree(place.folder / "records")
    with pytest.raises(DamagedSnapshot, match=path.name):
        place.lab().target_table()


# ----------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("seeds", [[], [-1], [1000], [0.5], ["0"], [0, None], [0, 0], [True], 0, "[0, 7]"])
def test_seeds_that_cannot_be_are_refused(seeds, tmp_path):
    with pytest.raises(ValueError, match="give one or more different integers from 0 to 999") as refused:
        Place(tmp_path).lab(seeds=seeds)
    assert str(seeds) in str(refused.value)


def test_pilot_seeds_are_not_judged(tmp_path):
    with pytest.raises(ValueError, match=r"seeds \[100\] are pilots of tiny scale"):
        Place(tmp_path).lab(seeds=[0, 100])


def test_an_unknown_scale_mode_or_device_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="scale is 'huge'; give one of 'smoke', 'laptop', 'gpu', 'paper'"):
        Lab("huge", records_dir=tmp_path)
    with pytest.raises(ValueError, match="mode is 'rerun'; give one of 'replay', 'run'"):
        Place(tmp_path).lab("rerun")
    with pytest.raises(ValueError, match="device is 'tpu'"):
        Lab(TINY, device="tpu", records_dir=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        Lab(TINY, device="cuda", records_dir=tmp_path)


def test_every_measure_of_sharpness_is_a_unit_of_work(place):
    spec, made = TINY.surrogate(TINY.schedules()["constant"], 0), []
    lab = place.lab(tick=lambda: made.append(None))
    few = replace(TINY.sharpness, images=8, products=3, probes=2, deflate=1)
    lab.read(Arm("run", [spec], At(few, (3.0,))))
    assert len(made) >= 6  # λ₁, trace, worst case, relative, input gradient, λ₁ at equal loss or the row
