"""Training: the numbers of a plain loop, the same bits after any interruption, and nothing left behind."""

from __future__ import annotations

import errno
import math
import os
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import scenes
import torch
import torch.nn.functional as F
from kill_twenty import kill_often
from scenes import same
from torch import nn

from rfnlib import data, execution, files, keys, objectives, snapshots, training
from rfnlib.specs import Cosine, Cyclic, FeatureSet, OneCycle, SpecError, Step, TrainSpec
from rfnlib.training import TrainingDiverged

DIGITS = data.load("digits").subset(200)
SPEC = TrainSpec("digits", "cnn", Step(0.05), epochs=3, n_train=200, width=4, batch=50)
CONSTANT = replace(SPEC, arch="resnet18", epochs=4)  # 4 steps an epoch
DECAY = replace(CONSTANT, schedule=Step(0.05, (3,)))
start = partial(scenes.start, DIGITS)


def run(spec: TrainSpec, cache: Path, at=None, **options) -> list[snapshots.Snapshot]:
    return list(start(spec, cache, at, **options))


def names(cache: Path, kind: str) -> list[str]:
    return sorted(p.name for p in (cache / "snapshots").glob(f"*.{kind}.safetensors"))


def states_at(cache: Path) -> list[int]:
    return [int(name[:7]) for name in names(cache, "state")]


def contents(cache: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (cache / "snapshots").iterdir()}


@pytest.fixture
def steps(monkeypatch) -> list[float]:
    """Grows by one learning rate an optimizer step."""
    taken = []
    step = torch.optim.SGD.step

    def counted(self, *args, **options):
        taken.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    return taken


# ----------------------------------------------------------------------- against a plain loop


def plain_loop(spec: TrainSpec, n_steps: int) -> nn.Module:
    """The docstring's equations, written down again."""
    torch.manual_seed(keys.stream(spec.seed, "init"))
    model = training.models.build(
        spec.arch, width=spec.width, image_shape=(1, 8, 8), mean=DIGITS.mean, std=DIGITS.std
    ).train()
    model.to(memory_format=torch.channels_last)  # the same sums in the same order, so that they round alike
    weights = list(model.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    per_epoch = 200 // spec.batch
    for i in range(n_steps):
        epoch = i // per_epoch
        order = torch.Generator().manual_seed(keys.stream(spec.seed, "order", epoch))
        batches = torch.randperm(200, generator=order).split(spec.batch)
        chosen = batches[i % per_epoch]
        drawn = torch.Generator().manual_seed(keys.stream(spec.seed, "augment", i))
        x = DIGITS.train_images[chosen]
        x = data.augment(x, drawn, flip=False) if spec.augment else x / 255
        log_p = model(x).log_softmax(1)
        right = log_p.gather(1, DIGITS.train_labels[chosen, None]).mean()
        loss = -(1 - spec.label_smoothing) * right - spec.label_smoothing * log_p.mean()
        gradients = torch.autograd.grad(loss, weights)
        lr = spec.schedule.at(i / per_epoch, spec.epochs)
        with torch.no_grad():
            for w, v, g in zip(weights, velocity, gradients, strict=True):
                g = g + spec.weight_decay * w
                v.mul_(spec.momentum).add_(g)
                w -= lr * (g + spec.momentum * v if spec.nesterov else v)
    return model


VARIANTS = {
    "plain": {},
    "nesterov": {"nesterov": True},
    "label smoothing": {"label_smoothing": 0.2},
    "strong weight decay": {"weight_decay": 0.05},
    "no momentum": {"momentum": 0.0},
    "not augmented": {"augment": False},
    "another seed": {"seed": 7},
    "a batch that does not divide": {"batch": 60},
    "cosine": {"schedule": Cosine(0.05)},
    "one cycle": {"schedule": OneCycle(0.05)},
    "cyclic": {"schedule": Cyclic(0.05, 1)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_gives_the_numbers_of_a_plain_loop(variant, tmp_path):
    # A network without kinks: at a ReLU's, a difference in the last bit becomes one of 1e-4.
    spec = replace(SPEC, arch="convmixer", epochs=2, **VARIANTS[variant])
    n_steps = 2 * (200 // spec.batch)
    *_, last = run(spec, tmp_path)
    ours, plain = last.weights(), plain_loop(spec, n_steps).state_dict()
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_every_variant_trains_another_network(tmp_path):
    """So the comparison with the plain loop tells them apart."""
    found = {}
    for variant, changes in VARIANTS.items():
        *_, last = run(replace(SPEC, arch="convmixer", epochs=2, **changes), tmp_path)
        found[variant] = torch.cat([v.flatten().float() for v in last.weights().values()])
    for a in found:
        for b in found:
            assert a == b or (found[a] - found[b]).abs().max() > 1e-3, (a, b)


def test_training_on_digits_learns(tmp_path):
    spec = replace(SPEC, width=16, epochs=6, batch=20)
    (last,) = run(spec, tmp_path, at=[6])
    model = last.load_into(training.network(spec, DIGITS))
    assert not model.training
    with torch.no_grad():
        right = model(data.to_float(DIGITS.test_images)).argmax(1) == DIGITS.test_labels
    assert right.float().mean() > 0.5  # chance is 0.1


# ------------------------------------------------------------------------------------ snapshots


def test_snapshots_come_at_fractions_of_an_epoch_rounded_to_a_step(tmp_path):
    found = run(SPEC, tmp_path, at=[3, 0.25, 1.5, 0.26, 0.001])
    assert [s.iteration for s in found] == [1, 6, 12]
    assert [s.epoch for s in found] == [0.25, 1.5, 3.0]
    assert len({s.key for s in found}) == 3
    for name, value in plain_loop(SPEC, 1).state_dict().items():
        torch.testing.assert_close(found[0].weights()[name], value, rtol=1e-3, atol=1e-4)


def test_a_snapshot_does_not_depend_on_what_other_snapshots_are_asked_for(tmp_path):
    every = run(SPEC, tmp_path / "a")
    (last,) = run(SPEC, tmp_path / "b", at=[3])
    assert last.path.read_bytes() == every[-1].path.read_bytes()


def test_a_snapshot_is_yielded_as_soon_as_it_is_on_disk(tmp_path, steps):
    going = start(SPEC, tmp_path)
    first = next(going)
    assert first.path.exists() and len(steps) == 4


def test_snapshots_on_disk_are_yielded_without_training(tmp_path, monkeypatch):
    first = run(SPEC, tmp_path)
    before = contents(tmp_path)
    for name in names(tmp_path, "state"):
        (tmp_path / "snapshots" / name).unlink()

    def refuse(*_, **__):
        raise AssertionError("it trained")

    monkeypatch.setattr(torch.optim.SGD, "step", refuse)
    assert run(SPEC, tmp_path) == first
    assert all(s.path.read_bytes() == before[s.path.name] for s in first)
    first[1].path.unlink()
    with pytest.raises(AssertionError, match="it trained"):
        run(SPEC, tmp_path)


def test_without_augmentation_nothing_is_augmented(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "crop", None)
    assert len(run(replace(SPEC, augment=False), tmp_path, at=[0.25])) == 1
    with pytest.raises(TypeError):
        run(SPEC, tmp_path, at=[0.25])


def test_the_learning_rate_of_a_step_is_the_schedules(tmp_path, steps):
    schedule = Step(0.05, (1.5,), gamma=0.5, warmup=1.0)
    run(replace(SPEC, schedule=schedule), tmp_path)
    assert steps == [schedule.at(i / 4, 3) for i in range(12)]


# -------------------------------------------------------------------------- interrupted and shared


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    said = []
    assert kill_often(3, seed=1, folder=tmp_path, epochs=12, say=said.append)
    assert len(said) == 3


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_stopped_after_any_snapshot_it_ends_with_the_same_bits(channels_last, nesterov, tmp_path):
    spec = replace(CONSTANT, nesterov=nesterov)
    how = {"channels_last": channels_last, "at": [0.75, 2, 3.25, 4], "keep": [3.25]}
    run(spec, tmp_path / "quiet", **how)
    for _ in how["at"]:
        going = start(spec, tmp_path / "stopped", **how)
        have = len(names(tmp_path / "stopped", "weights"))
        for _ in range(have + 1):
            next(going)
        going.close()
    run(spec, tmp_path / "stopped", **how)
    quiet, stopped = contents(tmp_path / "quiet"), contents(tmp_path / "stopped")
    assert {n: stopped[n] == c for n, c in quiet.items()} == dict.fromkeys(quiet, True)
    (state,) = (n for n in quiet if "state" in n)
    momentum, _ = snapshots.read(tmp_path / "quiet" / "snapshots" / state, "state", state[8:24])
    assert any(k.startswith("optimizer.") and v.abs().max() > 0 for k, v in momentum.items())


def test_stopped_by_tick_it_loses_at_most_an_epoch(tmp_path, steps):
    calls = []

    def tick():
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SPEC, tmp_path, at=[3], tick=tick)
    assert len(steps) == 8  # stopped with the second epoch's state saved
    run(SPEC, tmp_path, at=[3])
    assert len(steps) == 12


def test_a_run_cut_off_between_a_state_and_its_weights_still_yields_them(tmp_path, steps):
    whole = run(SPEC, tmp_path, keep=[3])
    content = whole[-1].path.read_bytes()
    whole[-1].path.unlink()
    steps.clear()
    assert run(SPEC, tmp_path) == whole
    assert not steps and whole[-1].path.read_bytes() == content


def test_runs_that_share_a_past_share_its_bits_and_no_more(tmp_path):
    constant, decay = run(CONSTANT, tmp_path / "a"), run(DECAY, tmp_path / "b")
    for a, b in zip(constant, decay, strict=True):
        shared = a.epoch <= 3
        assert (a.key == b.key) == shared
        assert same(a.weights(), b.weights()) == shared, a.epoch


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_run_begun_from_anothers_state_trains_only_the_rest(channels_last, tmp_path, steps):
    how = {"channels_last": channels_last}
    run(CONSTANT, tmp_path / "shared", keep=[3], **how)
    alone = run(DECAY, tmp_path / "alone", **how)
    steps.clear()
    begun = run(DECAY, tmp_path / "shared", **how)
    assert len(steps) == 4  # the last epoch's
    for a, b in zip(alone, begun, strict=True):
        assert same(a.weights(), b.weights()), a.epoch


def test_weights_are_taken_from_anothers_state_where_it_has_no_snapshot(tmp_path, steps):
    run(CONSTANT, tmp_path, at=[4], keep=[3])
    steps.clear()
    found = run(DECAY, tmp_path, at=[3, 4])
    assert [s.epoch for s in found] == [3, 4] and len(steps) == 4
    (alone,) = run(DECAY, tmp_path / "alone", at=[3])
    assert same(found[0].weights(), alone.weights())


def test_runs_that_differ_share_nothing(tmp_path, steps):
    run(CONSTANT, tmp_path, keep=[1, 2, 3])
    for changes in (
        {"seed": 1},
        {"nesterov": True},
        {"schedule": Step(0.04)},
        {"weight_decay": 0.0},
    ):
        steps.clear()
        run(replace(CONSTANT, **changes), tmp_path, at=[1])
        assert len(steps) == 4, changes


def test_kept_states_stay_and_the_others_go(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", 0.0)
    kept, own = [], []
    for _ in start(replace(SPEC, epochs=6), tmp_path, keep=[2, 5.5]):
        kept.append(len(states_at(tmp_path)))
        own.append([int(name[:7]) for name in names(tmp_path, "resume")])
    assert states_at(tmp_path) == [8, 22] and kept == [0, 1, 1, 1, 1, 2]
    assert own == [[], [4], [8], [12], [16], [22]]  # of the last stop before
    assert not names(tmp_path, "resume") and len(names(tmp_path, "weights")) == 6


def test_states_are_saved_at_most_once_a_minute(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    write = snapshots.write
    monkeypatch.setattr(snapshots, "write", lambda p, *a, **b: written.append((now[0], p.name)) or write(p, *a, **b))
    for _ in start(replace(SPEC, epochs=12), tmp_path, keep=[7]):
        now[0] += 25.0
    assert [at for at, name in written if ".resume." in name] == [75.0, 150.0, 225.0, 300.0][:-1]
    assert [int(name[:7]) for _, name in written if ".state." in name] == [28]
    assert not names(tmp_path, "resume")


@pytest.mark.parametrize("stop", ["close", "tick", "interrupt"])
def test_a_run_stopped_between_two_steps_loses_none(stop, tmp_path, steps):
    def tick():
        if stop != "close" and len(steps) == 8:
            raise KeyboardInterrupt if stop == "interrupt" else TimeoutError

    going = start(SPEC, tmp_path, tick=tick)
    if stop == "close":
        next(going), next(going)
        going.close()
    else:
        with pytest.raises((KeyboardInterrupt, TimeoutError)):
            list(going)
    assert len(steps) == 8
    assert len(run(SPEC, tmp_path)) == 3 and len(steps) == 12


def test_a_run_leaves_the_states_of_others_alone(tmp_path):
    run(CONSTANT, tmp_path, keep=[1, 2, 3])
    before = set(names(tmp_path, "state"))
    run(replace(DECAY, epochs=6), tmp_path)
    assert before <= set(names(tmp_path, "state"))


# --------------------------------------------------------------------------- leaves nothing behind


def test_torchs_generators_are_left_as_they_were(tmp_path, monkeypatch):
    def seeded(*_):
        raise AssertionError("CUDA's generators were seeded")

    torch.manual_seed(5)
    torch.rand(3)
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    run(SPEC, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_does_not_depend_on_torchs_generator(tmp_path):
    torch.manual_seed(1)
    first = run(SPEC, tmp_path / "a", at=[1])
    torch.manual_seed(2)
    assert same(first[0].weights(), run(SPEC, tmp_path / "b", at=[1])[0].weights())


def test_memory_is_flat_in_epochs(tmp_path):
    spec = replace(SPEC, batch=200, epochs=60, width=32)
    resident, traced = [], []
    page = os.sysconf("SC_PAGE_SIZE")
    tracemalloc.start()
    try:
        for snapshot in start(spec, tmp_path):
            size = snapshot.path.stat().st_size
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
            traced.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    leaked = 40 * size  # what keeping each epoch's weights would add between epochs 20 and 60
    assert leaked > 8e6
    assert resident[-1] - resident[19] < leaked / 2
    assert traced[-1] - traced[19] < leaked / 10


# ------------------------------------------------------------------------------------- what goes wrong


def test_a_run_that_diverges_says_when_and_keeps_what_came_before(tmp_path):
    spec = replace(SPEC, schedule=OneCycle(1e30, start=1e32), batch=200)  # 0.01, then 1e30
    found = []
    with pytest.raises(TrainingDiverged, match=r"at epoch [23]\.00 of cnn \(seed 0\); lower the learning"):
        for snapshot in start(spec, tmp_path):
            found.append(snapshot)
    assert found and names(tmp_path, "weights") == [s.path.name for s in found]
    for snapshot in found:
        assert all(v.isfinite().all() for v in snapshot.weights().values())


def test_weights_that_are_not_finite_never_become_a_snapshot(tmp_path):
    spec = replace(SPEC, schedule=Step(1e39), batch=200)  # the first loss is fine, its step is not
    with pytest.raises(TrainingDiverged, match="weights that are not finite at epoch 1.00"):
        run(spec, tmp_path)
    assert not (tmp_path / "snapshots").exists()


def test_a_damaged_state_is_set_aside_and_training_goes_on_from_the_one_before(tmp_path, steps):
    quiet = run(CONSTANT, tmp_path / "quiet", at=[4])
    for damaged, fewer in (({3}, 8), ({2, 3}, 4), ({1, 2, 3}, 0)):
        cache = tmp_path / str(fewer)
        list(start(CONSTANT, cache, at=[3], keep=[1, 2, 3]))
        for path in (cache / "snapshots").glob("*.state.*"):
            if int(path.name[:7]) // 4 in damaged:
                content = path.read_bytes()
                path.write_bytes(content[:-99] + bytes([content[-99] ^ 64]) + content[-98:])  # an exponent's bit
        for path in (cache / "snapshots").glob("*.resume.*"):
            path.unlink()
        steps.clear()
        with pytest.warns(RuntimeWarning, match="its content is not what was written.*set aside as") as said:
            (last,) = run(CONSTANT, cache, at=[4])
        assert len(said) == len(damaged) and len(steps) == 16 - fewer
        assert last.path.read_bytes() == quiet[0].path.read_bytes()
        assert len(list((cache / "snapshots").glob("*.state.damaged"))) == len(damaged)
        assert len(run(CONSTANT, cache, at=[2, 4])) == 2  # without another word


@pytest.mark.parametrize("epoch", [0, -1, 3.01, math.nan, math.inf])
def test_an_epoch_outside_the_run_is_refused_before_anything_is_trained(epoch, tmp_path):
    with pytest.raises(SpecError, match=rf"at epoch {epoch}; the run covers \(0, 3\]"):
        start(SPEC, tmp_path, at=[1, epoch])  # nothing has been asked of the generator
    with pytest.raises(SpecError, match="the run covers"):
        start(SPEC, tmp_path, keep=[epoch])


@pytest.mark.parametrize("name", ["at", "keep"])
@pytest.mark.parametrize("epochs", [0.5, 3, "3"])
def test_epochs_that_are_no_list_are_refused_in_one_sentence(name, epochs, tmp_path):
    with pytest.raises(SpecError, match=rf"^{name} is {epochs!r}; give a list of epochs, such as \[3\]\.$"):
        start(SPEC, tmp_path, **{name: epochs})


def test_a_data_set_by_name_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(SpecError, match=r"^dataset is a str; give data.load\('digits'\).cut\(\*spec.cut\), or None\.$"):
        training.train(SPEC, dataset="digits", cache=tmp_path)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    with pytest.raises(SpecError, match="batch is 201, but there are only 200 training images"):
        start(replace(SPEC, batch=201), tmp_path)


def test_unknown_networks_data_and_devices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="resnet19"):
        start(replace(SPEC, arch="resnet19"), tmp_path)  # before anything is trained
    with pytest.raises(ValueError, match="mnist"):
        training.train(replace(SPEC, data="mnist"), cache=tmp_path)
    with pytest.raises(ValueError, match="device is 'tpu'"):
        start(SPEC, tmp_path, device="tpu")


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_full_disk_is_a_sentence_and_costs_nothing_that_was_finished(call, allowed, tmp_path, monkeypatch):
    quiet = run(SPEC, tmp_path / "quiet")
    original, calls = getattr(os, call), []

    def full(*args):
        calls.append(args)
        if len(calls) > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    found = []
    with monkeypatch.context() as patched:
        patched.setattr(files.os, call, full)
        with pytest.raises(files.DiskFull, match="No room on the disk for .*free some space"):
            for snapshot in start(SPEC, tmp_path / "full"):
                found.append((snapshot, snapshot.path.read_bytes()))
    assert len(found) == allowed
    assert all(s.path.read_bytes() == content for s, content in found)
    assert not list((tmp_path / "full" / "snapshots").glob(".*"))
    resumed = run(SPEC, tmp_path / "full")
    assert [s.path.read_bytes() for s in resumed] == [s.path.read_bytes() for s in quiet]


# --------------------------------------------------------------------------------- on which data


def negative(dataset: data.Dataset) -> data.Dataset:
    return replace(dataset, train_images=255 - dataset.train_images)


def permuted(dataset: data.Dataset) -> data.Dataset:
    order = torch.randperm(len(dataset.train_labels), generator=torch.Generator().manual_seed(0))
    return replace(dataset, train_labels=dataset.train_labels[order])


@pytest.mark.parametrize(
    "other", [negative, permuted, lambda d: replace(d, mean=(0.5,)), lambda d: replace(d, flip=True)]
)
def test_the_same_spec_on_other_data_is_another_network(other, tmp_path):
    """It used to be given the first one's snapshots, or to go on from its state."""
    (first,) = run(SPEC, tmp_path, at=[1], keep=[1])
    (second,) = scenes.start(other(DIGITS), SPEC, tmp_path, [1])
    assert first.key != second.key and first.history == second.history
    assert not same(first.weights(), second.weights())
    (alone,) = scenes.start(other(DIGITS), SPEC, tmp_path / "alone", [1])
    assert second.digest == alone.digest != first.digest
    (later,), (alone,) = (scenes.start(other(DIGITS), SPEC, cache, [2]) for cache in (tmp_path, tmp_path / "alone"))
    assert later.digest == alone.digest


def test_a_spec_that_does_not_describe_its_data_is_refused(tmp_path):
    whole, built = data.load("digits"), replace(DIGITS, name="digits-D-R-0123", built_from="digits")
    features = FeatureSet("inverted", SPEC, steps=3)
    for dataset, changes, said in (
        (DIGITS, {"data": "cifar10"}, "data is 'cifar10', but the data set is 'digits'; give both one name."),
        (DIGITS, {"n_train": 100}, "n_train is 100, but the data set has a part, of 200 training images; give"),
        (DIGITS, {"n_train": None}, "n_train is None, but the data set has a part, of 200 training images; give"),
        (DIGITS, {"skip": 100}, r"label_noise and its seed \(100, 0.0, 0\), and the data set has \(0, 0.0, 0\); give"),
        (DIGITS.noisy(0.1, 5), {}, r"the spec asks for .* \(0, 0.0, 0\), and the data set has \(0, 0.1, 5\); give"),
        (DIGITS.noisy(0.1, 5), {"label_noise": 0.1}, r"asks for .* data set has \(0, 0.1, 5\); give data.load"),
        (whole, {}, "n_train is 200, but the data set has 1297 training images; give n_train=1297."),
        (built, {}, "data is 'digits', but the data set is 'digits-D-R-0123'; give both one name."),
        (DIGITS, {"features": features}, "the spec trains on a set built from 'digits', and 'digits' is none;"),
        (
            replace(built, built_from="cifar10"),
            {"features": features},
            "set built from 'digits', and 'digits-D-R-0123'",
        ),
    ):
        with pytest.raises(SpecError, match=said):
            scenes.start(dataset, replace(SPEC, **changes), tmp_path)
    for dataset, changes in (
        (whole, {"n_train": None}),
        (whole, {"n_train": 1297}),
        (built, {"features": features}),
        (built, {"data": built.name}),
        (replace(DIGITS, n_train=None), {"n_train": None}),
    ):
        assert len(list(scenes.start(dataset, replace(SPEC, **changes), tmp_path, [0.1]))) == 1


def test_a_data_set_of_ones_own_is_trained_on_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_SOURCES", dict(data._SOURCES))
    own = {"train_images": DIGITS.train_images.repeat(1, 3, 1, 1), "mean": (0.3,) * 3, "std": (0.4,) * 3}
    data.register("own", lambda root: replace(data.load("digits").subset(200), name="own", n_train=None, **own))
    spec = replace(SPEC, data="own", n_train=None)
    (snapshot,) = training.train(spec, [1], cache=tmp_path, progress=False)
    assert training.network(spec, data.load("own")).state_dict().keys() == snapshot.weights().keys()


# ----------------------------------------------------------------------------- several at a time


def test_threads_that_train_one_spec_in_one_cache_end_with_the_same_bits(tmp_path, monkeypatch):
    """A state that one had found used to be gone when it came to read it, replaced by another's later one."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", 0.0)
    (quiet,) = run(SPEC, tmp_path / "quiet", at=[3])
    failed = []

    def work():
        try:
            for _ in range(3):
                for at in ([1], [2], [3]):
                    run(SPEC, tmp_path / "shared", at=at)[0].path.unlink(missing_ok=True)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    (last,) = run(SPEC, tmp_path / "shared", at=[3])
    assert last.path.read_bytes() == quiet.path.read_bytes()
    assert not list((tmp_path / "shared" / "snapshots").glob(".*"))


def test_a_state_that_another_process_replaces_while_it_is_looked_for_is_no_error(tmp_path, monkeypatch, steps):
    run(SPEC, tmp_path, at=[2], keep=[1])
    read = snapshots.read

    def gone(path, *args):
        if ".resume." in path.name:
            path.unlink()
        return read(path, *args)

    monkeypatch.setattr(snapshots, "read", gone)
    steps.clear()
    assert len(run(SPEC, tmp_path, at=[3])) == 1 and len(steps) == 8


# ------------------------------------------------------------------------------------ how it is run


def test_under_bf16_the_network_computes_in_bf16_and_its_weights_stay_fp32(tmp_path, monkeypatch):
    seen = set()
    forward = nn.Conv2d.forward

    def spy(self, x):
        out = forward(self, x)
        seen.add((self.weight.dtype, out.dtype))
        return out

    full = run(SPEC, tmp_path / "fp32", at=[1])[0].weights()
    monkeypatch.setattr(nn.Conv2d, "forward", spy)
    half = run(SPEC, tmp_path / "bf16", at=[1], precision="bf16")[0].weights()
    assert seen == {(torch.float32, torch.bfloat16)}
    assert {v.dtype for v in half.values()} == {torch.float32, torch.int64}
    for name, value in full.items():
        torch.testing.assert_close(half[name], value, rtol=0.05, atol=0.05)
    assert not same(full, half)


@pytest.mark.skipif(not execution.can_compile("cpu"), reason="torch.compile finds no C++ compiler")
def test_compiled_training_gives_the_losses_of_eager_training(tmp_path, monkeypatch):
    losses = []

    def spy(*args, **options):
        losses.append(F.cross_entropy(*args, **options))
        return losses[-1]

    class Spied:
        cross_entropy = staticmethod(spy)

    monkeypatch.setattr(objectives, "F", Spied)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda m, real=torch.compile, **how: compiled.append(m) or real(m, **how))
    spec = replace(SPEC, width=8)  # with fewer channels than lanes, what torch 2.11 compiles for AVX2 gives nan
    run(spec, tmp_path / "eager", at=[2])
    assert not compiled
    run(spec, tmp_path / "compiled", at=[2], compile=True)
    assert len(compiled) == 1
    found = torch.stack([loss.detach() for loss in losses]).reshape(2, 8)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
    assert found[0].std() > 0.01
