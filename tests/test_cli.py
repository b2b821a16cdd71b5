"""The command line: what it says, and what it leaves alone when it refuses."""

import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from scenes import TINY

import rfnlib
from rfnlib import __main__ as cli
from rfnlib import paths, readme, scales, status, studies
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import At, Measurement
from rfnlib.specs import Step


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Folders of their own, and a smoke scale and a plan cut down to seconds: its targets, attacked networks of one."""
    for name in ("records", "cache", "weights"):
        monkeypatch.setenv(f"RFN_{name.upper()}", str(tmp_path / name))
    monkeypatch.setitem(scales.SCALES, "smoke", replace(TINY, name="smoke"))

    def plan(lab, claims=None):
        for claim in claims or ():
            studies.of(claim)
        m = Measurement(lab.scale.surrogate(Step(0.05), 0), At(lab.scale.transfer, (1.0, 2.0)))
        return [*m.needs(lab.scale), m] if claims is None or claims else m.needs(lab.scale)

    monkeypatch.setattr(studies, "plan", plan)
    return tmp_path


def test_run_fills_in_what_status_calls_missing(elsewhere, capsys):
    def status(*more: str) -> list[list[str]]:
        assert cli.main(["status", "--scale", "smoke", "--device", "cpu", *more]) == cli.DONE
        return [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]

    head, pilots, *others, total, words = status()
    assert head == ["rows", "recorded", "missing", "about", "needed for verdicts"]
    assert pilots[:4] == ["targets, pilots", "3", "0", "3"] and total[:4] == ["all", "5", "0", "5"]
    assert [o[1:4] for o in others] == [["2", "0", "2"], *[["0", "0", "0"]] * (len(others) - 1)], "each is counted once"
    assert pilots[-1] == "3" and {o[-1] for o in others[1:3]} == {"after the pilots"} and int(total[-1]) >= 3
    assert "passes of an image are left" in " ".join(words)
    _, *every, _, _ = status("--all")
    assert [line[0] for line in every] == ["targets, pilots"] * 3 + ["C2"]
    assert all("s1000" in line[2] and line[2].endswith(".json") for line in every[:3]), "the file of its record"

    assert cli.main(["run", "--scale", "smoke", "--device", "cpu", "--budget", "0s"]) == cli.OUT_OF_TIME
    assert "Out of time: 0 of 4 measurements are complete; the same command goes on" in capsys.readouterr().out
    assert cli.main(["run", "--scale", "smoke", "--device", "cpu", "--workers", "1"]) == cli.DONE
    assert "All 4 measurements of smoke scale are recorded." in capsys.readouterr().out
    assert status()[-1] == ["all", "5", "5", "0", "0"]


def test_what_is_left_until_claims_are_judged_counts_each_epoch_and_row_once(tmp_path, monkeypatch):
    def study(claims: str, epochs: tuple[float, ...], waits: bool = False) -> SimpleNamespace:
        def plan(lab):
            if waits:
                raise MissingRecord("a choice")
            yield Measurement(lab.scale.surrogate(Step(0.05), 0), At(lab.scale.transfer, epochs))

        return SimpleNamespace(CLAIMS=dict.fromkeys(claims.split()), plan=plan)

    apart = [study("A B", (1.0, 2.0)), study("C", (2.0, 3.0)), study("D", (2.0,), waits=True)]
    monkeypatch.setattr(studies, "STUDIES", apart)
    lab = Lab(TINY, "replay", records_dir=tmp_path, cache_dir=tmp_path, weights_dir=tmp_path, device="cpu")
    left = status.until_judged(lab)
    assert list(left) == ["A, B", "C"]
    epoch = TINY.n_train // TINY.batch * TINY.batch  # the third epoch and its row are all that C adds
    row = left["C"] - epoch
    assert row > 0 and left["A, B"] > 2 * (epoch + row), "targets are trained and looked at first"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--scale", "labtop"], "scale is 'labtop'; give one of 'smoke', 'laptop', 'gpu', 'paper'."),
        (["status", "--device", "tpu"], "device is 'tpu'; give one of 'auto', 'cpu', 'cuda'."),
        (["status", "--device", "cuda:0"], "give one of 'auto', 'cpu', 'cuda'; CUDA_VISIBLE_DEVICES says which GPU."),
        (["data", "imagenet"], "no data set 'imagenet'"),
        (["data", "svhn"], "train_32x32.mat is missing: download http"),
        (["run", "--only", "C99"], "no study judges 'C99'"),
        (["status", "--only", "C99"], "no study judges 'C99'"),
        (["run", "--scheduler", "nowhere"], "no Dask scheduler answers at nowhere"),
        (["reproduce", "--scale", "huge"], "scale is 'huge'"),
    ],
)
def test_a_bad_value_is_one_sentence_and_changes_nothing(arguments, sentence, elsewhere, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not any(elsewhere.iterdir())


USAGE = ["run --budget soon", "run --workers 0", "run --seeds 0;1", "fly", "records --seeds 0"]


@pytest.mark.parametrize("arguments", USAGE)
def test_a_malformed_option_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert any(words in said for words in ("write it as", "invalid choice", "unrecognized arguments"))


def test_without_a_command_all_of_them_are_listed(capsys):
    assert cli.main([]) == cli.REFUSED
    assert "reproduce" in (said := capsys.readouterr()).err and not said.out


def test_who_reads_no_further_is_not_told_about_it():
    command = f"{sys.executable} -m rfnlib records --scale smoke"
    done = subprocess.run(f"({command}; echo $? >&2) | head -1", shell=True, cwd=paths.root(), capture_output=True)
    assert done.stderr == b"141\n" and done.stdout.startswith(b"kind,")


@pytest.mark.parametrize(("name", "goes_on"), [("run", True), ("bench", False)])
def test_what_is_stopped_says_whether_it_goes_on(name, goes_on, monkeypatch, capsys):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, f"_{name}", stop)
    stop.__name__ = name
    assert cli.main([name]) == cli.INTERRUPTED
    assert ("goes on from there" in capsys.readouterr().err) == goes_on


def test_the_version_and_the_exit_codes_are_told(capsys):
    for asked, told in (("--version", f"rfnlib {rfnlib.__version__}"), ("run --help", "3 the budget is used up")):
        with pytest.raises(SystemExit) as stop:
            cli.main(asked.split())
        assert stop.value.code == 0 and told in " ".join(capsys.readouterr().out.split())


def test_a_data_set_that_is_there_is_called_by_its_name(capsys):
    assert cli.main(["data", "digits"]) == cli.DONE
    assert capsys.readouterr().out.startswith("digits is there: 1297 training and 500 test images")


def test_a_claim_may_be_written_in_small_letters():
    assert studies.of("c2") is studies.of("C2")


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
