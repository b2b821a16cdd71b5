"""One setting says where the project is; all that names an address follows, and what is unknown is left out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from rfnlib import addresses, paths

ROOT = Path(__file__).parents[1]
REPOSITORY, ARCHIVE = "https://github.com/owner/rfnlib", "https://doi.org/10.5281/zenodo.12345"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """What names addresses, in a folder of its own; the function that it gives says which are known."""
    shutil.copy(ROOT / "CITATION.cff", tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "00_start_here.ipynb", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)

    def known(*lines: str) -> Path:
        (tmp_path / "pyproject.toml").write_text("\n".join(["[project.urls]", *lines]))
        return tmp_path

    return known


def test_committed_files_say_what_pyproject_says():
    assert addresses.update(write=False) == [], "run `python -m rfnlib readme`"


def test_what_is_unknown_is_left_out(checkout):
    folder = checkout()
    addresses.update()
    assert addresses.badges() == ""
    written = (folder / "CITATION.cff").read_text() + addresses.first_cell()
    assert "git clone" not in written and not re.search("^(doi|repository-code|url):", written, re.MULTILINE)


def test_one_setting_adds_them_all_and_takes_them_away(checkout):
    folder = checkout()
    addresses.update()
    before = [path.read_bytes() for path in (folder / "CITATION.cff", *folder.glob("notebooks/*"))]
    checkout(f'Repository = "{REPOSITORY}/"', f'Archive = "{ARCHIVE}"')
    assert addresses.update() == ["CITATION.cff", "00_start_here.ipynb"] and addresses.update() == []
    cff = (folder / "CITATION.cff").read_text()
    assert f'repository-code: "{REPOSITORY}"\n' in cff and '\ndoi: "10.5281/zenodo.12345"\n' in cff
    cell = nbformat.read(folder / "notebooks" / "00_start_here.ipynb", as_version=4).cells[1]
    assert f"git clone --quiet --depth 1 {REPOSITORY} rfn\n" in cell.source
    badges = addresses.badges()
    assert all(part in badges for part in ("colab", "binder", REPOSITORY, ARCHIVE)) and "![" not in badges
    checkout()
    addresses.update()
    assert [path.read_bytes() for path in (folder / "CITATION.cff", *folder.glob("notebooks/*"))] == before


@pytest.mark.parametrize("line", ['Repository = "http://example.org/x"', 'Homepage = "https://example.org/x"',
                                  'Archive = "https://example.org/x; rm -r ~"'])  # fmt: skip
def test_what_is_no_address_is_refused(checkout, line):
    checkout(line)
    with pytest.raises(ValueError, match="it can have Repository, Archive, Book, each an address such as"):
        addresses.addresses()


def test_a_notebook_without_the_cell_is_refused(checkout):
    folder = checkout()
    content = nbformat.read(folder / "notebooks" / "00_start_here.ipynb", as_version=4)
    del content.cells[1]
    nbformat.write(content, folder / "notebooks" / "00_start_here.ipynb")
    with pytest.raises(ValueError, match="00_start_here.ipynb must begin with the cell"):
        addresses.update()


# A kernel, as far as the cell can tell: its magics are noted instead of run, but for the test of a shell.
KERNEL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
noted = []
shell.register_magic_function(lambda line: noted.append(line), "line", "pip")
ran = shell.run_cell(sys.argv[1])
ran.raise_error()
print(noted, sys.path[0])
if noted:
    import rfnlib
    from rfnlib.lab import Lab
    print(rfnlib.__file__)
    print(Lab("smoke", "replay").source())
"""


def run(folder: Path, *search: Path) -> subprocess.CompletedProcess:
    """The cell in a process of its own, in `folder`, with `search` in the path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search)), "IPYTHONDIR": str(folder / "ipython")}
    command = [sys.executable, "-c", KERNEL, addresses.first_cell()]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_first_cell_leads_to_a_replay_on_colab_and_does_nothing_elsewhere(tmp_path, monkeypatch):
    colab = tmp_path / "preinstalled" / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").touch()
    monkeypatch.setattr(addresses, "addresses", dict)
    here = tmp_path / "here"
    here.mkdir()
    assert run(here).stdout.startswith("[] ")
    without = run(here, colab.parents[1])
    assert "Put a copy of the repository here first" in without.stderr + without.stdout
    (here / "rfn").symlink_to(ROOT)
    done = run(here, colab.parents[1])
    assert done.returncode == 0, done.stderr
    asked, *said = done.stdout.splitlines()
    assert asked.startswith("['install --quiet --no-deps --editable ./rfn'] ")
    assert Path(said[0]).parents[1].samefile(ROOT) and re.match("smoke scale: records", said[-1])
