"""Binder's environment is a small part of the whole one, and enough for what the notebooks import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
from packaging.specifiers import SpecifierSet
from test_packaging import declared, in_environment, project

ROOT = Path(__file__).parents[1]
PYPI_NAMES = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}
IMPORT_NAMES = {"scikit-learn": "sklearn"}
LARGE = {"torchvision", "distributed", "dask", "papermill", "nbval", "pytest", "sphinx"}  # what Binder does without

GUARD = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"no {{name}} on Binder")
sys.meta_path.insert(0, Absent())
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


def test_notebooks_import_nothing_else():
    """All imports of all notebooks, in one process where what Binder lacks cannot be imported."""
    lines = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            source = "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("!", "%")))
            tree = ast.parse(source if cell.cell_type == "code" else "")
            lines |= {ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    has = {PYPI_NAMES.get(name, name) for name in in_environment(".binder/environment.yml")}
    absent = {IMPORT_NAMES.get(name, name).replace("-", "_") for name in set(declared()) - has} | LARGE
    program = "\n".join([GUARD.format(absent=absent), *sorted(lines)])
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert len(lines) >= 10 and run.returncode == 0, run.stderr
