"""The strict runner: order, refusals, and what counts as having run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock

from rfnlib import paths, studies
from rfnlib.claims import Gate, judge
from rfnlib.intervals import Estimate
from rfnlib.parameters import defaults
from rfnlib.reproduce import KERNELSPEC, find_notebooks, refresh, reproduce

PARAMETERS = 'mode = "replay"  # replay | run\nscale = "laptop"\nseeds = [0, 1]\ndevice = "auto"'


def write(folder: Path, name: str, *sources: str, parameters: str = PARAMETERS) -> Path:
    """A notebook of a heading, a parameters cell and one code cell for each source."""
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# A title"), v4.new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [v4.new_code_cell(source) for source in sources]
    path = folder / name
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty notebooks folder, in a checkout that is empty too."""
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def test_every_notebook_is_run_and_accounted_for(folder, tmp_path, capsys):
    """One run of all that can happen to a notebook; each costs the start of a kernel."""
    write(folder, "10_last.ipynb", "print('C9 inconclusive: unsure')", "pass")
    write(folder, "02_fails.ipynb", "print('C2 supported: yes')", "x = 1\n1 / 0", "print('C3 supported: yes')")
    write(folder, "03_exits.ipynb", "import sys\nsys.exit(0)", "print('C4 supported: yes')")
    write(folder, "04_hangs.ipynb", "import time", "time.sleep(60)")
    write(
        folder,
        "01_reports.ipynb",
        "import os, pathlib\n"
        "assert (mode, scale, seeds, device) == ('run', 'smoke', [3], 'cpu')\n"
        "folders = {pathlib.Path(os.environ[f'RFN_{n}']).parent for n in ('FIGURES', 'RECORDS')}\n"
        "assert folders == {pathlib.Path('../build/smoke').resolve()}\n"
        "x = bytearray(300 * 2**20)",
        "print('C1 supported: yes')\nprint('C1b contradicted: by far\\nC: no verdict')",
    )
    gates = [Gate("fit", False, "86.4% (at least 95%)"), Gate("ρ, too", False, "0.05 (not at an edge)")]
    untested = judge(studies.every_claim()["C4"], Estimate(0.1, 0.1, 0.01, 9.0, 1), gates=gates)
    write(folder, "11_untested.ipynb", f"print({str(untested)!r})", f"print({str(untested).replace('C4', 'C5')!r})")

    assert reproduce("smoke", seeds=[3], device="cpu", timeout=3) == 1

    said = capsys.readouterr().out
    progress, table, failed = said.split("\n\n")[:3]
    starts = [line.split(" ...")[0] for line in progress.splitlines()]
    names = ["01_reports", "02_fails", "03_exits", "04_hangs", "10_last", "11_untested"]
    assert starts == [f"[{n}/6] {name}" for n, name in enumerate(names, 1)]
    assert "FAILED at cell 4 of 5: ZeroDivisionError: division by zero" in progress
    assert "FAILED at cell 3 of 4: SystemExit: 0" in progress
    assert "FAILED at cell 4 of 4: CellTimeoutError: A cell timed out" in progress
    rows = [line.split(maxsplit=4) for line in table.splitlines()]
    assert [row[0] for row in rows] == ["notebook", *names[:1], "C1b", *names[1:], "C5"]
    assert [row[1] for row in rows if row[0] in names] == ["ok", "failed", "failed", "failed", "ok", "ok"]
    assert rows[1][4] == "C1 supported: yes" and rows[3][4] == "C2 supported: yes"
    assert rows[-2][4] == "C4 not testable: fit; ρ, too"
    assert failed.splitlines()[1:3] == ["  fit: 86.4% (at least 95%)", "  ρ, too: 0.05 (not at an edge)"]
    assert "At smoke scale that is expected" in failed
    assert float(rows[1][3]) > float(rows[-2][3]) + 250  # peak memory is of one notebook alone
    assert "C1b contradicted: by far" in table and "no verdict" not in table
    assert "3 of 6 notebooks ran to their end" in said
    executed = {path.stem for path in (tmp_path / "build" / "smoke").glob("*.ipynb")}
    assert executed == set(names)


def test_what_an_earlier_run_recorded_is_kept_until_anew_forgets_it(folder, tmp_path, capsys):
    write(folder, "01_one.ipynb", "pass")
    left = tmp_path / "build" / "smoke" / "records" / "smoke" / "old.json"

    def again(**how) -> bool:
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
        assert reproduce("smoke", device="cpu", **how) == 0
        return "is not computed again; --anew" in capsys.readouterr().out and left.exists()

    assert again() and again(only="01") and again()
    assert not again(anew=True) and not left.exists()
    with pytest.raises(ValueError, match="anew is True, but records of laptop scale are not in build/laptop"):
        reproduce("laptop", anew=True)


def test_a_second_one_in_the_same_folder_is_refused_and_takes_nothing(folder, tmp_path):
    write(folder, "01_one.ipynb", "pass")
    theirs = tmp_path / "build" / "smoke" / "records" / "theirs.json"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    with FileLock(tmp_path / "build" / ".smoke.lock"):
        with pytest.raises(ValueError, match="another process is at work in .*smoke/") as refusal:
            reproduce("smoke", device="cpu", anew=True)
    assert theirs.exists() and "\n" not in str(refusal.value)


ENDLESS = """
import sys
from pathlib import Path
from rfnlib import paths, studies
from rfnlib.parameters import defaults
paths.root = lambda: Path(sys.argv[1])
from rfnlib.__main__ import main
sys.exit(main(["reproduce", "--scale", "laptop", "--mode", "replay", "--workers", "2"]))
"""


@pytest.mark.parametrize(("sent", "status"), [("SIGTERM", 143), ("SIGKILL", -9)])
def test_who_is_ended_ends_papermill_and_its_kernel(sent, status, folder, tmp_path):
    begun = [tmp_path / "one", tmp_path / "two"]
    for number, path in enumerate(begun):
        source = f"import pathlib, time\npathlib.Path({str(path)!r}).touch()\ntime.sleep(600)"
        write(folder, f"0{number}_endless.ipynb", source)
    write(folder, "09_never_begun.ipynb", "raise AssertionError")
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], env=known, stderr=subprocess.PIPE) as run:
        while not all(path.exists() for path in begun):  # side by side
            assert run.poll() is None
            time.sleep(0.05)
        theirs = psutil.Process(run.pid).children(recursive=True)
        assert any("ipykernel" in " ".join(p.cmdline()) for p in theirs)
        run.send_signal(getattr(signal, sent))
        said = run.communicate(timeout=60)[1].decode()
    assert run.returncode == status, said
    assert not psutil.wait_procs(theirs, timeout=30)[1], "orphans"
    assert not (tmp_path / "build/laptop/09_never_begun.ipynb").exists()


def test_success_is_zero_and_project_records_are_used_beyond_smoke(folder, tmp_path, capsys):
    source = "import os\nassert 'RFN_RECORDS' not in os.environ and seeds == [0, 1, 2, 3, 4]"
    write(folder, "01_one.ipynb", source)
    write(folder, "02_two.ipynb", "1 / 0")
    assert reproduce("laptop", only="01", out=tmp_path / "elsewhere") == 0
    assert (tmp_path / "elsewhere" / "01_one.ipynb").exists()
    assert "1 of 1 notebooks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"scale": "smoke", "seeds": 0}, "seeds is 0 (int); 01_one.ipynb takes list of int"),
        ({"scale": "smoke", "seeds": "01"}, "seeds is '01' (str)"),
        ({"scale": "smoke", "seeds": []}, "list of nothing"),
        ({"scale": "smoke", "seeds": [True]}, "list of bool"),
        ({"scale": "smoke", "seeds": [0.5]}, "list of float"),
        ({"scale": "smoke", "device": 0}, "device is 0 (int)"),
        ({"scale": 3}, "scale is 3; give one of 'smoke', 'laptop', 'gpu', 'paper'."),
        ({"scale": "smok"}, "scale is 'smok'"),
        ({"scale": "smoke", "mode": "rerun"}, "mode is 'rerun'; it can be 'replay' or 'run'"),
        ({"scale": "smoke", "only": "07"}, "No notebook begins with '07'; there are 01_one"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(folder, tmp_path, given, sentence):
    write(folder, "01_one.ipynb", "pass")
    with pytest.raises(ValueError) as refusal:
        reproduce(**given)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (PARAMETERS.replace("seeds", "sedes"), "has no parameter 'seeds'"),
        (PARAMETERS.replace("[0, 1]", "list(range(2))"), "must be a literal"),
        ("", "defines nothing, and must define mode, scale, seeds, device"),
    ],
)
def test_a_notebook_with_other_parameters_stops_the_run(folder, tmp_path, parameters, sentence):
    write(folder, "01_fine.ipynb", "pass")
    write(folder, "02_misspelt.ipynb", "pass", parameters=parameters)
    with pytest.raises(ValueError, match="02_misspelt.ipynb") as refusal:
        reproduce("smoke")
    assert sentence in str(refusal.value)
    assert not (tmp_path / "build").exists()


def test_a_parameter_that_no_notebook_has_is_refused(folder):
    path = write(folder, "01_one.ipynb", "pass")
    assert defaults(path, {"mode": "run"})["seeds"] == [0, 1]
    path = write(folder, "02_two.ipynb", parameters=PARAMETERS.replace("seeds = [0, 1]", "seeds: list = None"))
    assert defaults(path, {"seeds": [3]})["seeds"] is None
    with pytest.raises(ValueError, match=r"seeds is 3 \(int\); 02_two.ipynb takes list\."):
        defaults(path, {"seeds": 3})
    with pytest.raises(ValueError, match="no parameter 'sede'"):
        defaults(path, {"sede": [0]})


def test_notebooks_are_found_in_numeric_order_or_refused(folder):
    with pytest.raises(ValueError, match="no notebook"):
        find_notebooks()
    for name in ("10_c.ipynb", "9_b.ipynb", "00_a.ipynb"):
        write(folder, name)
    assert [p.stem for p in find_notebooks()] == ["00_a", "9_b", "10_c"]
    assert [p.stem for p in find_notebooks(["10", "00_"])] == ["00_a", "10_c"]
    write(folder, "Untitled.ipynb")
    with pytest.raises(ValueError, match="Untitled.ipynb has no number"):
        find_notebooks()


def test_refresh_rewrites_in_place_or_not_at_all(folder, monkeypatch):
    source = "import os\nprint(mode, os.environ['RFN_QUIET'])"
    path = write(folder, "01_one.ipynb", source)
    refresh()
    content = nbformat.read(path, as_version=4)
    assert content.cells[-1].outputs[0].text == "replay 1\n"
    assert [c.execution_count for c in content.cells if c.cell_type == "code"] == [1, 2]
    assert content.metadata == {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    assert all("execution" not in cell.metadata for cell in content.cells)

    monkeypatch.setattr(studies, "decided_at", {"01_one": "paper"}.get)
    typed = PARAMETERS.replace('scale = "laptop"', 'scale: str = "smoke"  # a comment')
    write(folder, "01_one.ipynb", "print(scale)", parameters=typed)
    refresh()
    content = nbformat.read(path, as_version=4)
    assert content.cells[-1].outputs[0].text == "paper\n" and '"paper"  # a comment' in content.cells[1].source

    write(folder, "01_one.ipynb", source, parameters=PARAMETERS.replace("replay", "run", 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="mode = 'run'"):
        refresh()
    assert path.read_bytes() == before
