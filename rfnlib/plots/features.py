"""Figures of notebook 01: early stopping on robust and on non-robust features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from rfnlib import words
from rfnlib.features import image_grid
from rfnlib.intervals import interval
from rfnlib.plots import style

if TYPE_CHECKING:
    from rfnlib.studies.features import EarlyStopping


def feature_curves(study: EarlyStopping) -> Figure:
    """Success, natural and robust accuracy by epoch, a column a training set; the star is where SGD is stopped early.

    Bands are 95 % intervals over images and seeds. The star is chosen on other images and other targets.
    """
    with style.styled():
        names = list(study.robustness)
        figure, axes = plt.subplots(
            3, len(names), figsize=(style.WIDTH, 4.6), layout="constrained", sharey="row", sharex=True, squeeze=False
        )
        attacks = list(next(iter(study.robustness.values())).correct)
        for column, name in enumerate(names):
            seen, run = study.curves[name], study.robustness[name]
            colour, marker = style.KINDS["decay"]
            style.curve(axes[0, column], seen.epochs, [interval(seen.at(e)) for e in seen.epochs], colour, marker)
            stop = study.stops[name]
            axes[0, column].plot(stop, 100 * seen.at(stop).value, "*", color="black", markersize=9, zorder=5)
            style.curve(axes[1, column], run.epochs, [interval(run.at(e)) for e in run.epochs], colour, marker)
            for attack, kind in zip(attacks[1:], ("decay", "cosine", "cyclic", "SAM"), strict=False):
                colour, marker = style.KINDS[kind]
                values = [100 * run.at(e, attack).value for e in run.epochs]
                axes[2, column].plot(run.epochs, values, color=colour, marker=marker, markersize=2.5, label=attack)
            for axis in axes[:, column]:
                style.decays(axis, run.spec.schedule.milestones)
                axis.set_ylim(bottom=0)
            seeds = run.seeds
            axes[0, column].set_title(f"{name} ({words.count(seeds, 'seed')})", loc="left")
            axes[2, column].set_xlabel("epoch")
        for row, label in enumerate(("success rate, %", "natural accuracy, %", "robust accuracy, %")):
            axes[row, 0].set_ylabel(label)
        axes[2, -1].legend(frameon=False, handlelength=1.4, loc="upper right")
    return figure


def other_eps(study: EarlyStopping) -> Figure:
    """Success by epoch under several ε, a panel a training set, first seed; dots are each curve's highest point."""
    with style.styled():
        names = list(next(iter(study.other_eps.values())))
        figure, axes = plt.subplots(1, len(names), figsize=(style.WIDTH, 2.1), layout="constrained", squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            for (eps, found), alpha in zip(sorted(study.other_eps.items()), (0.35, 0.6, 0.8, 1.0), strict=False):
                run = found[name]
                rates = [100 * run.at(e).value for e in run.epochs]
                best = int(np.argmax(rates))
                axis.plot(run.epochs, rates, color=(*style.KINDS["decay"][0], alpha), label=f"ε = {255 * eps:g}/255")
                axis.plot(run.epochs[best], rates[best], "o", color=(*style.KINDS["decay"][0], alpha), markersize=4)
            style.decays(axis, run.spec.schedule.milestones)
            axis.set_title(name, loc="left")
            axis.set_xlabel("epoch")
            axis.set_ylim(bottom=0)
        axes[0, 0].set_ylabel("success rate, %")
        axes[0, -1].legend(frameon=False, handlelength=1.4, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def pictures(rows: dict[str, Tensor], captions: Sequence[str]) -> Figure:
    """Rows of images, uint8 or float in [0, 1], (N, C, H, W), a row a name, a caption a column."""
    grid, n = image_grid(*rows.values()), len(captions)
    height, width = ((side + 1) / parts for side, parts in zip(grid.shape[:2], (len(rows), n), strict=True))
    with style.styled():
        size = (0.6 * n + 0.9, 0.6 * len(rows) + 0.3)
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        axis.imshow(grid, interpolation="nearest")
        axis.set_yticks([(i + 0.5) * height - 1 for i in range(len(rows))], list(rows))
        axis.set_xticks([(j + 0.5) * width - 1 for j in range(n)], captions)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return figure
