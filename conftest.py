"""What pytest needs for `tests/` and, through nbval, for `notebooks/` alike."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # The kernels that nbval starts inherit this: no progress lines, which differ at every run.
    os.environ["RFN_QUIET"] = "1"


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Keep nbval from comparing what may differ without meaning anything.

    Standard error holds warnings and progress, HTML is the twin of a plain-text table.
    """
    if hasattr(collector, "skip_compare"):  # a notebook, and nbval is on
        collector.skip_compare += ("stderr", "text/html")
