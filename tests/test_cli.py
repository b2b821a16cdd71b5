"""The command line: what it says, and what it leaves alone when it refuses."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from rfnlib import __main__ as cli
from rfnlib import paths, readme, scales
from rfnlib.specs import Adversary


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Records and snapshots of their own, and a smoke scale cut down to seconds."""
    monkeypatch.setenv("RFN_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("RFN_CACHE", str(tmp_path / "cache"))
    tiny = replace(
        scales.SMOKE, n_train=200, surrogates=(("cnn", 4),), epochs=2, decays=(1,), standard=(1,), cycle=1,
        targets=(
            scales.Target("cnn", 4), scales.Target("cnn", 6, "validation"),
            scales.Target("cnn", 4, "robust", Adversary("l2", 0.5, steps=1)),
        ), target_epochs=1, rivals=replace(scales.SMOKE.rivals, techniques=("DI",)),
        test_images=20, validation_images=10, accuracy_images=50, fine=(), judged_after=0.5,
        sharpness=scales.SharpnessProbe(images=8, products=3, probes=2, deflate=1),
        checks=scales.RobustnessProbe(images=20, budgets=(("l2", 0.25),), steps=1, restarts=1),
    )  # fmt: skip
    monkeypatch.setitem(scales.SCALES, "smoke", tiny)
    return tmp_path


def test_run_fills_in_what_status_calls_missing(elsewhere, capsys):
    assert cli.main(["status", "--scale", "smoke"]) == 0
    before = capsys.readouterr().out
    found = re.search(r"(\d+) of \1 measurements are incomplete; about [\d.]+ min here", before)
    assert found, before
    assert cli.main(["run", "--scale", "smoke", "--device", "cpu"]) == 0
    said = re.search(r"All (\d+) measurements of smoke scale are recorded.", capsys.readouterr().out)
    assert int(said[1]) > int(found[1]), "what depends on a choice was not known before"
    assert cli.main(["status", "--scale", "smoke"]) == 0
    assert f"0 of {said[1]} measurements are incomplete." in capsys.readouterr().out


def test_a_budget_too_small_stops_in_time_keeps_what_is_done_and_goes_on_later(elsewhere, capsys):
    assert cli.main(["run", "--scale", "smoke", "--budget", "0s"]) == 0
    assert "Out of time" in capsys.readouterr().out
    assert list((elsewhere / "cache").rglob("*.safetensors")), "the work done before stopping is kept"
    assert cli.main(["run", "--scale", "smoke"]) == 0
    assert re.search(r"All \d+ measurements", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--scale", "labtop"], "scale is 'labtop'; give one of 'smoke', 'laptop', 'paper'."),
        (["status", "--device", "tpu"], "device is 'tpu'; give one of 'auto', 'cpu', 'cuda'."),
        (["data", "cifar1"], "no data set 'cifar1'"),
        (["reproduce", "--scale", "huge"], "scale is 'huge'"),
    ],
)
def test_a_bad_value_is_one_sentence_and_changes_nothing(arguments, sentence, elsewhere, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not any(elsewhere.iterdir())


@pytest.mark.parametrize("arguments", [["run", "--budget", "soon"], ["run", "--seeds", "0;1"], ["fly"]])
def test_a_malformed_option_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "write it as" in (said := capsys.readouterr().err) or "invalid choice" in said


def test_durations_are_seconds():
    assert [cli._duration(t) for t in ("90s", "9m", "1.5h")] == [90, 540, 5400]


def test_the_readme_table_follows_from_the_records():
    assert not readme.update(write=False), "README.md is out of date; run `python -m rfnlib readme`"


def test_every_command_the_readme_shows_exists():
    shown = set(re.findall(r"python -m rfnlib (\w+)", (paths.root() / "README.md").read_text()))
    assert shown
    for command in sorted(shown):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0


def test_the_door_opens_without_importing_torch_twice_or_failing():
    ran = subprocess.run([sys.executable, "-m", "rfnlib", "--help"], capture_output=True, text=True, cwd=paths.root())
    assert ran.returncode == 0 and "reproduce" in ran.stdout
