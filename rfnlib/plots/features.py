"""Figures of notebook 01: early stopping on robust and on non-robust features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from rfnlib import words
from rfnlib.features import image_grid
from rfnlib.intervals import interval
from rfnlib.plots import style

if TYPE_CHECKING:
    from rfnlib.studies.features import EarlyStopping

# One colour and one marker a training set.
SETS = {name: (style.PALETTE[i], marker) for name, i, marker in (
    ("D", 0, "s"), ("D_R", 2, "^"), ("D_NR", 3, "P"), ("D_rand", 1, "D"), ("D_det", 4, "v"))}  # fmt: skip


def early_stopping(study: EarlyStopping, names: Sequence[str], margin: float) -> Figure:
    """The headline of C1: success by epoch on each of the sets `names`, and what stopping early gains on it.

    Bands and bars are 95 % intervals over images and seeds. The star is where the surrogate is stopped, chosen on other
    images, other targets and other seeds; within the grey band (± `margin`, in [0, 1]) a difference is none.
    """
    with style.styled():
        figure = plt.figure(figsize=(style.WIDTH, 4.2))
        grid = figure.add_gridspec(2, len(names), height_ratios=(3, 1.3))
        first = None
        for column, name in enumerate(names):
            axis = first = figure.add_subplot(grid[0, column], sharey=first)
            _success(axis, study, name)
            axis.set_title(f"trained on {name} ({words.count(study.curves[name].seeds, 'seed')})")
            axis.set_xlabel("epoch")
            axis.locator_params("x", integer=True)
            axis.tick_params(labelleft=column == 0)
        figure.axes[0].set_ylabel("success rate, %")
        figure.axes[0].set_ylim(bottom=0)
        below = figure.add_subplot(grid[1, :])
        style.band(below, margin)
        for y, name in enumerate(names):
            style.whisker(below, interval(study.help(name)), y, *SETS[name])
        style.rows(below, names)
        below.set_xlabel("gain in success by stopping early, points")
    return figure


def details(study: EarlyStopping, attack: str) -> Figure:
    """Success, natural accuracy and robust accuracy under `attack` by epoch, a line a training set, controls included.

    Bands are 95 % intervals over images and seeds; stars are where surrogates are stopped early.
    """
    with style.styled():
        labels = ("success rate, %", "natural accuracy, %", f"robust accuracy, %\n({attack})")
        figure, axes = plt.subplots(3, 1, figsize=(style.WIDTH, 6.0), sharex=True)
        for name, run in study.robustness.items():
            _success(axes[0], study, name)
            for axis, against in zip(axes[1:], ("none", attack), strict=True):
                rates = [interval(run.at(e, against)) for e in run.epochs]
                style.curve(axis, run.epochs, rates, *SETS[name], label=f"{name} ({words.count(run.seeds, 'seed')})")
        style.decays(axes[1], study.curves["D"].milestones)
        style.decays(axes[2], study.curves["D"].milestones)
        for axis, label in zip(axes, labels, strict=True):
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
        axes[-1].set_xlabel("epoch")
        axes[-1].locator_params("x", integer=True)
        labels = axes[1].get_legend_handles_labels()
        figure.legend(*labels, ncols=max(1, len(study.robustness)), loc="outside upper center")
    return figure


def _success(axis: Axes, study: EarlyStopping, name: str) -> None:
    run, stop = study.curves[name], study.stops[name]
    style.curve(axis, run.epochs, [interval(run.at(e)) for e in run.epochs], *SETS[name])
    axis.plot(stop, 100 * run.at(stop).value, "*", color="black", markersize=9, zorder=5)
    style.decays(axis, run.milestones)


def other_eps(study: EarlyStopping) -> Figure:
    """Success by epoch under several ε, a panel a training set, first seed; bands are 95 % intervals over images."""
    with style.styled():
        names = list(dict.fromkeys(name for _, name in study.other_eps))
        figure, axes = plt.subplots(
            1, max(len(names), 1), figsize=(style.WIDTH, 2.6), sharey=True, squeeze=False, sharex=True
        )
        lines = ("-", "--", "-.", ":")
        for axis, name in zip(axes[0], names, strict=False):
            for (eps, _), line in zip(sorted(key for key in study.other_eps if key[1] == name), lines, strict=False):
                run, label = study.other_eps[eps, name], f"ε = {words.length(eps)}"
                rates = [interval(run.at(e)) for e in run.epochs]
                style.curve(axis, run.epochs, rates, *SETS[name], linestyle=line, label=label)
            style.decays(axis, run.milestones)
            axis.set_title(f"trained on {name}")
            axis.set_xlabel("epoch")
            axis.locator_params("x", integer=True)
            axis.set_ylim(bottom=0)
        axes[0, 0].set_ylabel("success rate, %")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        in_grey = [Line2D([], [], color=style.GREY, linestyle=of.get_linestyle()) for of in handles]
        figure.legend(in_grey, labels, ncols=max(1, len(labels)), handlelength=2.4, loc="outside upper center")
    return figure


def pictures(rows: dict[str, Tensor], captions: Sequence[str]) -> Figure:
    """Rows of images, uint8 or float in [0, 1], (N, C, H, W), a row a name, a caption a column."""
    grid, n = image_grid(*rows.values()), len(captions)
    height, width = ((side + 1) / parts for side, parts in zip(grid.shape[:2], (len(rows), n), strict=True))
    with style.styled():
        figure, axis = plt.subplots(figsize=(style.WIDTH, (style.WIDTH - 0.9) * len(rows) / n + 0.3))
        axis.imshow(grid, interpolation="nearest")
        axis.set_yticks([(i + 0.5) * height - 1 for i in range(len(rows))], list(rows))
        axis.set_xticks([(j + 0.5) * width - 1 for j in range(n)], captions)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return figure
