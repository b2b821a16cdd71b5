"""Binder's environment is a small part of the whole one, and enough for every notebook, within Binder's limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.specifiers import SpecifierSet
from test_packaging import declared, in_environment, project

from rfnlib.reproduce import find_notebooks

ROOT = Path(__file__).parents[1]
PYPI_NAMES = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}
IMPORT_NAMES = {"scikit-learn": "sklearn"}
LARGE = {"torchvision", "distributed", "dask", "papermill", "nbval", "pytest", "sphinx"}  # what Binder does without

GIGABYTES, SECONDS = 2, 60

# Notebooks one after another in one process, as their kernels run them; what it needs to hold is that of all together.
# What is limited is memory of its own: the pages of libraries, which CUDA's alone would fill, belong to their files.
REPLAY = """
import json, os, resource, sys, time
from importlib.machinery import PathFinder
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, *rest)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
resource.setrlimit(resource.RLIMIT_DATA, ({bytes}, {bytes}))
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
try:
    bytearray({bytes})
    sys.exit("memory is not limited here")
except MemoryError:
    pass
from IPython.core.interactiveshell import InteractiveShell
shell, told = InteractiveShell.instance(), {{}}
for name, sources in json.load(sys.stdin).items():
    shell.reset(new_session=True)
    start = time.process_time()
    for number, source in enumerate(sources, 1):
        if not shell.run_cell(source, store_history=True).success:
            sys.exit(f"{{name}} stopped in its cell {{number}} of code")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told[name] = [round(time.process_time() - start, 1), round(peak, 2)]
print("\\n" + json.dumps(told))
"""


def test_its_ranges_are_those_of_pyproject():
    theirs = in_environment(".binder/environment.yml")
    assert theirs.pop("python").specifier == SpecifierSet(project()["requires-python"])
    del theirs["pip"]
    assert "pytorch-cpu" in theirs, "CUDA is gigabytes that Binder has no use for"
    ours = declared()
    for name, need in theirs.items():
        assert need.specifier == ours[PYPI_NAMES.get(name, name)].specifier, name


def test_it_has_no_compiler_and_none_of_what_is_large():
    names = set(in_environment(".binder/environment.yml"))
    assert not names & LARGE and not any("compiler" in name or name in ("gcc", "gxx", "cuda") for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="memory and processors are limited in Linux's way")
def test_every_notebook_replays_within_its_limits(tmp_path):
    """2 GB, one thread, no compiler, no CIFAR-10, none of the packages that are left out: under a minute each."""
    sources = {
        path.stem: [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        for path in find_notebooks()
    }
    has = {PYPI_NAMES.get(name, name) for name in in_environment(".binder/environment.yml")}
    absent = {IMPORT_NAMES.get(name, name).replace("-", "_") for name in set(declared()) - has} | LARGE
    folders = {name: tmp_path / name.lower() for name in ("RFN_DATA", "RFN_CACHE", "RFN_FIGURES", "IPYTHONDIR", "PATH")}
    for folder in folders.values():
        folder.mkdir()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    run = subprocess.run(
        [sys.executable, "-c", REPLAY.format(absent=absent, bytes=GIGABYTES * 10**9)],
        input=json.dumps(sources),
        env={**kept, **threads, **{name: str(path) for name, path in folders.items()}, "MPLBACKEND": "Agg"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    print(told)
    assert told.keys() == sources.keys()
    assert all(seconds < SECONDS and peak < GIGABYTES for seconds, peak in told.values()), told
