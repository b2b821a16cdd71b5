"""Where things are: the one module that paths come from.

Papermill, Jupyter and nbval run a notebook in different folders, so no notebook and no other
module names a path. Every folder can be moved by an environment variable. Outside a checkout each one that is not
moved is looked for, and made, below the working folder: see `root`.
"""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The checkout: where this file lies, else the nearest one above the working folder.

    The second half serves a copy installed without its checkout: its notebooks still run inside
    one. Failing that too, the working folder itself: there `data/` is looked for, and a cache and records are written,
    unless `RFN_DATA`, `RFN_RECORDS`, `RFN_WEIGHTS` and `RFN_CACHE` name other places.
    """
    for folder in (Path(__file__).resolve().parents[1], *(here := Path.cwd(), *here.parents)):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return Path.cwd()


def data_dir() -> Path:
    """Where data sets are read: `RFN_DATA`, else `data/` of the checkout."""
    return _folder("RFN_DATA", "data")


def records_dir() -> Path:
    """Where records are read and written: `RFN_RECORDS`, else `data/records/`, which git keeps."""
    return _folder("RFN_RECORDS", "data/records")


def cache_dir() -> Path:
    """Where snapshots and all else that can be made again lie: `RFN_CACHE`, else `data/cache/`, which git ignores."""
    return _folder("RFN_CACHE", "data/cache")


def weights_dir() -> Path:
    """Where released weights lie: `RFN_WEIGHTS`, else `data/weights/`, which git keeps."""
    return _folder("RFN_WEIGHTS", "data/weights")


def figures_dir() -> Path:
    """Where figures are written: `RFN_FIGURES`, else `figures/`."""
    return _folder("RFN_FIGURES", "figures")


def notebooks_dir() -> Path:
    """Where the notebooks are."""
    return root() / "notebooks"


def shown(path: Path) -> str:
    """The path as seen from here where that is shorter."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _folder(variable: str, default: str) -> Path:
    # An empty variable counts as unset, as in a shell's ${VAR:-default}.
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser().resolve() if chosen else root() / default
