"""Modules of one's own that `RFN_EXTENSIONS` names: every process that makes a `Lab` imports them first.

What they register (a minimizer, a data set, an architecture, a scale, a study) is then known to `run` and its workers,
to `status` and in notebooks, without an edit of the library:

    RFN_EXTENSIONS=my_minimizer,my_study PYTHONPATH=. python -m rfnlib run --scale smoke
"""

from __future__ import annotations

import importlib
import os

from rfnlib.checks import require


def load() -> tuple[str, ...]:
    """Import the modules that `RFN_EXTENSIONS` names, separated by commas; gives their names.

    Raises:
        ValueError: there is no module of a name.
    """
    names = tuple(filter(None, map(str.strip, os.environ.get("RFN_EXTENSIONS", "").split(","))))
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            require(error.name != name, f"RFN_EXTENSIONS names {name!r}, which Python does not find; put its folder "
                                        "into PYTHONPATH, or take the name out.")  # fmt: skip
            raise
    return names
