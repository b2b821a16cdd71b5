"""Under plain papermill too, a wrong parameter stops a notebook in the first cell that can see it, in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.cli import _resolve_type
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from rfnlib import parameters
from rfnlib.reproduce import find_notebooks

NOTEBOOKS = find_notebooks()
# What is said on papermill's command line after -p, and in the cell that makes the lab.
WRONG = {
    ("seeds", "0"): "seeds is 0; give one or more different integers from 0 to 999 in a list, such as [0, 1]",
    ("seeds", "[0, 7]"): "seeds is '[0, 7]'; give one or more different integers from 0 to 999 in a list",
    ("scale", "lapto"): "scale is 'lapto'; give one of 'smoke', 'laptop', 'gpu', 'paper'.",
    ("scale", "3"): "scale is 3; give one of 'smoke', 'laptop', 'gpu', 'paper'.",
    ("mode", "rerun"): "mode is 'rerun'; give one of 'replay', 'run'.",
    ("device", "gpu"): "device is 'gpu'",
    ("sclae", "smoke"): "'sclae' is no parameter of this notebook, which takes mode, scale, seeds, device; 'scale' may",
    ("epochs", "3"): "'epochs' is no parameter of this notebook, which takes mode, scale, seeds, device.",
}

# Cells of several notebooks, each in a namespace of its own, as a kernel runs them: what stops each.
SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
stopped = []
for cells in json.load(sys.stdin):
    shell.reset(new_session=True)
    for number, source in enumerate(cells, 1):
        ran = shell.run_cell(source, store_history=True, silent=False)
        if not ran.success:
            break
    stopped.append([number, str(ran.error_in_exec or "")])
print("\\n" + json.dumps(stopped))
"""


def injected(path: Path, name: str, value: str) -> list[str]:
    """The code of a notebook as papermill runs it for `-p name value`, as far as the cell that makes the lab."""
    content = parameterize_notebook(load_notebook_node(str(path)), {name: _resolve_type(value)})
    cells = [cell.source for cell in content.cells if cell.cell_type == "code"]
    (last,) = (n for n, source in enumerate(cells) if "lab = Lab(scale, mode, seeds, device)" in source)
    return cells[: last + 1]


def test_every_notebook_refuses_it_in_the_first_cell_that_can_see_it(tmp_path):
    asked = [(path, name, value) for path in NOTEBOOKS for name, value in WRONG]
    cells = [injected(*one) for one in asked]
    env = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    command = [sys.executable, "-c", SHELL]
    run = subprocess.run(command, input=json.dumps(cells), env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    stopped = json.loads(run.stdout.splitlines()[-1])
    for (path, *given), sources, (number, said) in zip(asked, cells, stopped, strict=True):
        assert number == len(sources) == 4, f"{path.stem}, {given}: cell {number} {said}"
        assert WRONG[tuple(given)] in said and "\n" not in said, f"{path.stem}, {given}: {said}"


def test_papermill_itself_ends_there(tmp_path):
    out, notebook = tmp_path / "out.ipynb", NOTEBOOKS[2]
    command = [sys.executable, "-m", "papermill", notebook, out, "--cwd", notebook.parent, "--no-progress-bar"]
    run = subprocess.run([*command, "-p", "sclae", "smoke"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode != 0 and WRONG["sclae", "smoke"] in run.stderr
    ran = [cell for cell in nbformat.read(out, as_version=4).cells if cell.get("execution_count")]
    assert ran[-1].source.startswith("from rfnlib import") and ran[-1].outputs[-1].output_type == "error"


@pytest.mark.parametrize("run", [None, [], ["x = 1", "scal = 2"], ["mode: str = ''", "# Parameters\nmode = 'run'"]])
def test_whatever_papermill_did_not_inject_is_left_alone(run):
    parameters.check(run)
