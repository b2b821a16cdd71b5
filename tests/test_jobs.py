"""`jobs.run`: the same records whoever computes them, on one worker or two, undisturbed or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from scenes import TINY

from rfnlib import costs, jobs, paths, probes, studies, training, workers
from rfnlib.lab import Lab
from rfnlib.measurements import At, Measurement
from rfnlib.specs import Adversary, Minimizer, Step

ROBUST = At(TINY.robustness, (1.0, 2.0, 3.0))


def planned(lab: Lab, claims=None) -> list[Measurement]:
    """Targets, two runs that share their first epoch, each attacked, and one of them asked for more."""
    runs = [lab.scale.surrogate(Step(0.05, at), 0) for at in ((1,), ())]
    attacked = [Measurement(spec, At(lab.scale.transfer, (1.0, 2.0, 3.0))) for spec in runs]
    return [*attacked[0].needs(lab.scale), *attacked, Measurement(runs[1], ROBUST)]


def lab_in(folder: Path, mode: str = "run", scale=TINY) -> Lab:
    return Lab(scale, mode, device="cpu", records_dir=folder / "records", cache_dir=folder / "cache",
               weights_dir=folder / "weights")  # fmt: skip


def found(folder: Path) -> dict[str, list[dict]]:
    """The rows of all records in `folder`, but for who made them and how long it took."""
    kept = lab_in(folder, "replay").records.values()
    return {r.name: [{k: v for k, v in row.items() if k not in ("made", "seconds")} for row in r.rows] for r in kept}


@pytest.fixture(autouse=True)
def plan(monkeypatch) -> None:
    monkeypatch.setattr(studies, "plan", planned)
    monkeypatch.setenv("RFN_QUIET", "1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, list[dict]]:
    """What one process records that does one thing after the other, as a notebook does."""
    folder = tmp_path_factory.mktemp("alone")
    lab = lab_in(folder)
    for m in planned(lab):
        lab.measure(m)
    return found(folder)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The scheduler of a cluster that somebody else started."""
    with workers.cluster(2) as client:
        yield client.scheduler.address


def children() -> list[psutil.Process]:
    """The processes that compute for this one."""
    return [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


# --- the same records -------------------------------------------------------------------------------


def test_two_workers_of_a_cluster_record_what_one_process_does(alone, address, tmp_path):
    lab, said = lab_in(tmp_path), []
    report = jobs.run(lab, scheduler=address, say=said.append)
    assert report.complete and report.planned == len(planned(lab)) and not report.failed and report.in_time
    assert found(tmp_path) == alone
    assert len([line for line in said if line.startswith("[")]) == report.planned
    again = jobs.run(lab_in(tmp_path), workers=1, say=said.append)
    assert again == report, "nothing is left, so nothing is started"


def test_snapshots_that_nothing_needs_any_more_can_be_deleted_on_the_way(alone, address, tmp_path):
    lab, folder = lab_in(tmp_path), tmp_path / "cache" / "tiny" / "snapshots"
    constant = lab.scale.surrogate(Step(0.05), 0)
    list(training.train(constant, [1.0], dataset=lab.dataset(), cache=lab.cache, device="cpu", progress=False))
    other = replace(constant, seed=7)  # which no measurement needs
    (unwanted,) = training.train(other, [1.0], dataset=lab.dataset(), cache=lab.cache, device="cpu", progress=False)
    jobs.Todo(lab).prune()
    assert len(list(folder.glob("*.weights.*"))) == 1 and not unwanted.path.exists()
    assert jobs.run(lab, scheduler=address, prune=True, say=lambda line: None).complete
    assert not list(folder.iterdir()) and found(tmp_path) == alone


def test_runs_on_another_cut_are_looked_for_under_its_digest(tmp_path, monkeypatch):
    lab = lab_in(tmp_path)
    spec = replace(lab.scale.flat(None, 0), n_train=80, skip=200, label_noise=0.2)
    m = Measurement(spec, At(lab.scale.transfer, (1.0, 2.0)))
    monkeypatch.setattr(studies, "plan", lambda lab, claims=None: [m])
    before = costs.Ledger(lab).left(m)
    assert sorted(unit.passes for unit in before.values())[:2] == [80, 80], "an epoch is of its own 80 images"
    options = {"cache": lab.cache, "device": "cpu", "progress": False}
    (first,) = training.train(spec, [1.0], dataset=lab.trained_on(spec), **options)
    assert len(costs.Ledger(lab).left(m)) == len(before) - 1
    jobs.Todo(lab).prune()
    assert first.path.exists()


def test_a_pace_is_taken_of_a_cores_own_time(tmp_path, monkeypatch):
    """What waits meanwhile, for other processes or a disk, is no property of the machine."""
    lab, seen, nap = lab_in(tmp_path), [], 3.0
    (tmp_path / "slow_disk.py").write_text(
        "import time\nfrom rfnlib import probes\nrow = probes.Clean.row\n"
        f"probes.Clean.row = lambda *about: time.sleep({nap}) or row(*about)\n"
    )
    monkeypatch.setenv("RFN_EXTENSIONS", "slow_disk")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probes.Clean, "row", probes.Clean.row)  # at the end as it was, for this process loads it too
    monkeypatch.setattr(costs.Pace, "observe", lambda self, units, seconds: seen.append(seconds))
    monkeypatch.setattr(studies, "plan", lambda lab, claims=None: [lab.scale.clean(lab.scale.targets[0])])
    assert jobs.run(lab, workers=1, say=lambda line: None).complete
    assert len(seen) == 1 and 0 < seen[0] < nap


def test_a_worker_killed_in_the_middle_loses_nothing(alone, tmp_path, monkeypatch):
    lab, killed, before = lab_in(tmp_path), [], {p.pid for p in children()}
    add = lab.add

    def kill_once(m, row, made):
        add(m, row, made)
        if m.probe.kind == "transfer" and not killed:
            killed.extend(p.pid for p in children() if p.pid not in before)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(lab, "add", kill_once)
    report = jobs.run(lab, workers=1, say=lambda line: None)
    assert len(killed) >= 1 and report.complete
    assert found(tmp_path) == alone
    assert {p.pid for p in children()} <= before, "its processes end with it"


# A process begun in the background of a shell is told to ignore Ctrl-C, and hands that on.
RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from scenes import TINY
from test_jobs import planned
from rfnlib import scales, studies
from rfnlib.__main__ import main
scales.SCALES["tiny"], studies.plan = TINY, planned
sys.exit(main(["run", "--scale", "tiny", "--device", "cpu", "--workers", "1"]))
"""


@pytest.mark.parametrize(("sent", "status"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_run_that_is_killed_leaves_no_process_and_goes_on_by_the_same_command(sent, status, alone, tmp_path):
    folders = {f"RFN_{name.upper()}": str(tmp_path / name) for name in ("records", "cache", "weights")}
    known = os.pathsep.join([str(paths.root()), str(paths.root() / "tests")])
    command = [sys.executable, "-c", RUN]
    how = {"env": {**os.environ, **folders, "PYTHONPATH": known}, "stderr": subprocess.STDOUT}
    how |= {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **how) as run:
        while not list(tmp_path.glob("records/tiny/*.json")):  # the first: the rest takes a while yet
            assert run.poll() is None, run.stdout.read()
            time.sleep(0.02)
        theirs = psutil.Process(run.pid).children(recursive=True)
        assert any("spawn_main" in " ".join(p.cmdline()) for p in theirs)
        run.send_signal(getattr(signal, sent))
        said = run.communicate(timeout=60)[0]
    assert run.returncode == status, said
    if status > 0:
        assert said.splitlines()[-1] == "Stopped. What was finished is kept; the same command goes on from there."
        assert "Traceback" not in said
    assert not psutil.wait_procs(theirs, timeout=30)[1], "orphans"
    assert found(tmp_path) != alone
    if sent != "SIGKILL":  # of the three it leaves the most behind
        return
    ended = subprocess.run(command, **how)
    assert ended.returncode == 0, ended.stdout
    assert found(tmp_path) == alone


# --- what can go wrong ------------------------------------------------------------------------------


def test_a_run_that_diverges_fails_alone(address, tmp_path, monkeypatch):
    def wild(lab, claims=None):
        spec = lab.scale.surrogate(Step(1e30), 0)
        return [Measurement(spec, ROBUST), *planned(lab)[:1]]

    monkeypatch.setattr(studies, "plan", wild)
    report = jobs.run(lab_in(tmp_path), scheduler=address, say=lambda line: None)
    ((m, why),) = report.failed.items()
    assert m.label.startswith("robust accuracy: resnet18") and "lower the learning rate" in why
    assert (report.recorded, report.planned, report.complete, report.in_time) == (1, 2, False, True)


def test_a_damaged_record_stops_the_run_in_one_sentence(address, tmp_path):
    lab = lab_in(tmp_path)
    jobs.run(lab, scheduler=address, say=lambda line: None, budget=0)
    lab.folder.mkdir(parents=True)
    (lab.folder / "clean-x.json").write_text("{")
    with pytest.raises(ValueError, match="clean-x.json is refused"):
        jobs.run(lab, scheduler=address, say=lambda line: None)


def test_no_time_is_said_and_wastes_none(address, tmp_path):
    report = jobs.run(lab_in(tmp_path), scheduler=address, budget=0, say=lambda line: None)
    assert (report.recorded, report.in_time) == (0, False)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"workers": 0}, "workers is 0; give at least 1."),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "workers is 2 with a scheduler"),
        ({"scheduler": "nowhere"}, "no Dask scheduler answers at nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(asked, sentence, tmp_path):
    with pytest.raises(ValueError) as refusal:
        jobs.run(lab_in(tmp_path), **asked)
    assert sentence in str(refusal.value)


def test_time_is_up_when_the_longest_unit_does_not_fit_and_the_first_does_not_count():
    now = [0.0]
    clock = workers.Clock(lambda: now[0])
    clock.begin(100)

    def unit(seconds: float) -> None:
        now[0] += seconds
        clock.tick()

    unit(50)  # compiles
    unit(10)
    with pytest.raises(workers.OutOfTime):
        unit(20)  # at 80: another of 20 with a fifth more does not fit


# --- who gets what ----------------------------------------------------------------------------------


def test_measurements_wait_for_their_targets_and_for_a_past_that_is_being_trained(tmp_path):
    lab = lab_in(tmp_path)
    todo = jobs.Todo(lab)
    *targets, decays, constant, robust = planned(lab)
    first = dict(todo.ready(()))
    assert list(first) == [*targets, robust], "transfer needs its targets recorded"
    assert targets[0] not in dict(todo.ready(first[targets[0]]))
    assert not {constant, robust} & dict(todo.ready(first[robust])).keys(), "two would train the same epochs"


def test_a_judged_seed_waits_for_the_pilots_before_it_in_the_plan(tmp_path, monkeypatch):
    lab = lab_in(tmp_path)
    pilot, judged, later = (Measurement(lab.scale.flat(None, seed), ROBUST) for seed in (100, 0, 100))
    later = later.of((1.0,))
    monkeypatch.setattr(studies, "plan", lambda *_: [pilot, judged])
    assert list(dict(jobs.Todo(lab).ready(()))) == [pilot]
    monkeypatch.setattr(studies, "plan", lambda *_: [judged, later])
    assert list(dict(jobs.Todo(lab).ready(()))) == [judged, later]


def epochs_left(lab: Lab, ledger: costs.Ledger, m: Measurement) -> int:
    """How many epochs of `m`'s training are left."""
    return len(costs._training(m.spec, lab.scale.epochs, ledger.n_train).keys() & ledger.left(m).keys())


def test_units_are_counted_once_and_as_they_are():
    lab = Lab(replace(TINY, name="nowhere"), "replay", device="cpu")
    ledger = costs.Ledger(lab)
    *_, decays, constant, robust = planned(lab)
    assert epochs_left(lab, ledger, robust) == 3 and len(ledger.left(robust)) == 9  # and three rows, three accuracies
    shared = ledger.left(constant).keys() & ledger.left(decays).keys()
    assert len(shared) == 3  # the first epoch, and the row and the accuracies after it
    ledger.finish(robust, (1.0, 2.0))
    assert len(ledger.left(robust)) == 3
    assert epochs_left(lab, ledger, constant) == 1 and len(ledger.left(constant)) == 5  # three rows, one's accuracies


def test_a_row_that_is_copied_takes_no_training_and_leaves_it_to_do():
    lab = Lab(replace(TINY, name="nowhere"), "replay", device="cpu")
    ledger = costs.Ledger(lab)
    *_, decays, constant, _ = planned(lab)
    shared = {name: u for name, u in ledger.left(decays).items() if name in ledger.left(constant)}
    ledger.done |= {name for name, u in shared.items() if u.passes != 200}  # recorded, and its network gone
    assert ledger.left(constant.of((1.0,))) == {}
    ledger.finish(constant, (1.0,))
    assert epochs_left(lab, ledger, constant) == 3 and len(ledger.left(constant)) == 7  # two rows, two accuracies


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 1), ({"minimizer": Minimizer("SAM", 0.05)}, 2), ({"minimizer": Minimizer("GAM", 0.05)}, 4),
        ({"adversary": Adversary("l2", 0.5, steps=7)}, 8), ({"input_penalty": 0.1}, 3),
        ({"minimizer": Minimizer("SAM", 0.05), "input_penalty": 0.1}, 6),
    ],
)  # fmt: skip
def test_passes_of_a_step(changes, passes):
    assert costs.passes_per_step(replace(TINY.surrogate(Step(0.05), 0), **changes)) == passes


def test_speed_is_what_was_measured_and_is_remembered(tmp_path):
    lab = lab_in(tmp_path)
    unit = costs.Unit(("cnn", 8, 1), 1000)
    pace = costs.Pace(lab)
    assert 0 < pace.seconds([unit]) < 60  # a few steps were timed
    pace.observe([unit, unit], 4.0)
    assert costs.Pace(lab).seconds([unit]) == pytest.approx(2.0)
    pace.path.write_text(json.dumps([1]))
    assert costs.Pace(lab).seen == {}


def test_what_lies_in_the_cache_is_not_counted_and_what_was_lost_is(tmp_path):
    lab = lab_in(tmp_path)
    *_, robust = planned(lab)

    def epochs() -> int:
        return epochs_left(lab, costs.Ledger(lab), robust)

    rows = lab.rows(robust)
    assert epochs() == 3
    lab.add(robust, *next(rows))
    rows.close()
    assert epochs() == 2, "the second goes on from the state after the first"
    for _ in lab.rows(robust):  # not recorded
        pass
    assert epochs() == 0 and len(costs.Ledger(lab).left(robust)) == 4, "two rows, two accuracies"
    for file in (lab.cache / "snapshots").iterdir():
        file.unlink()
    assert epochs() == 3


def test_released_weights_are_not_counted_as_training(tmp_path):
    lab = lab_in(tmp_path)
    target, *_ = planned(lab)
    assert len(costs.Ledger(lab).left(target)) == target.spec.epochs + 2
    list(lab.rows(target))  # not recorded
    for file in (lab.cache / "snapshots").iterdir():
        file.unlink()
    assert len(costs.Ledger(lab).left(target)) == 2, "the row and the accuracies alone"
