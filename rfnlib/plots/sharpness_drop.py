"""Figures of notebook 03: success, sharpness and training loss along training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfnlib.intervals import over_seeds
from rfnlib.plots import style
from rfnlib.plots.lr_decay import along
from rfnlib.scale import CONSTANT, decaying
from rfnlib.words import MEASURES

if TYPE_CHECKING:
    from rfnlib.studies.sharpness_drop import Drop

DETAILS = ("top", "trace", "matched")


def drop(found: Drop) -> Figure:
    """Success, λ₁ and training loss on one axis of time, for the standard schedule and a rate that stays.

    Short lines are the runs with one decay, from it on for as long as sharpness is followed. Bands are 95 % intervals,
    for success over images and seeds, for the others over seeds; λ₁ and loss are geometric means.
    """
    with style.styled():
        figure, axes = plt.subplots(3, 1, figsize=(style.WIDTH, 5.6), sharex=True)
        starts = {decaying(d): float(d) for d in found.decays}
        singles = dict(zip(starts, style.shades(len(starts)), strict=True))
        colours = {CONSTANT: style.GREY, found.standard: "black", **singles}
        colours = {name: colour for name, colour in colours.items() if name in found.sharpness}
        for name, colour in colours.items():
            start = starts.get(name, 0.0)
            stop = found.sharpness[name].end if name in starts else np.inf
            marker = style.kind(name)[1]
            success(axes[0], found, name, colour, marker, start, stop)
            measured(axes[1], found, name, "top", colour, marker)
            training_loss(axes[2], found, name, colour, marker, start, stop)
        for axis, label in zip(axes, ("success rate, %", MEASURES["top"], "training loss"), strict=True):
            style.decays(axis, {*found.decays, *found.milestones})
            axis.set_ylabel(label)
        axes[0].set_ylim(bottom=0)
        for axis in axes[1:]:
            style.logarithmic(axis)
        figure.legend(*axes[0].get_legend_handles_labels(), ncols=len(colours), loc="outside upper center")
        axes[-1].set_xlabel("epoch")
        axes[-1].set_xlim(0, found.sharpness[CONSTANT].end)
    return figure


def details(found: Drop) -> Figure:
    """Success, three measures of sharpness and training loss; left: decays, right: minimizers.

    Left, the standard schedule and a rate that stays; right, SGD, SAM and RFN under the standard schedule, those that
    are measured. Bands are 95 % intervals, for success over images and seeds, for the others over seeds: two seeds are
    shown as dots.
    """
    every = {"learning rate": (CONSTANT, found.standard), "minimizer": (found.standard, "SAM", "RFN")}
    recorded = {title: [name for name in names if name in found.sharpness] for title, names in every.items()}
    groups = {title: names for title, names in recorded.items() if names}
    labels = ["success rate, %", *(MEASURES[m] for m in DETAILS), "training loss"]
    size = style.WIDTH, 1.6 * len(labels)
    with style.styled():
        figure, axes = plt.subplots(len(labels), len(groups), figsize=size, sharex=True, sharey="row", squeeze=False)
        for column, (title, names) in enumerate(groups.items()):
            for name in names:
                label = "SGD" if title == "minimizer" and name == found.standard else name
                colour, marker = style.kind(label)
                success(axes[0, column], found, name, colour, marker, label=label)
                for row, measure in enumerate(DETAILS, 1):
                    measured(axes[row, column], found, name, measure, colour, marker)
                training_loss(axes[-1, column], found, name, colour, marker)
            for axis in axes[:, column]:
                style.decays(axis, found.milestones)
            axes[0, column].set_title(f"by {title}")
            axes[0, column].legend(loc="lower right", ncols=len(names))  # one row, below every line
            axes[-1, column].set_xlabel("epoch")
        for axis, label in zip(axes[:, 0], labels, strict=True):
            axis.set_ylabel(label)
        axes[0, 0].set_ylim(bottom=0)
        for axis in axes[1:].flat:
            style.logarithmic(axis)
    return figure


def success(
    axis: Axes,
    found: Drop,
    name: str,
    colour: Any,
    marker: str,
    start: float = 0.0,
    stop: float = np.inf,
    label: str | None = None,
) -> None:
    """Success of a run from `start` to `stop`, in per cent, if it is measured."""
    if name not in found.success:
        axis.plot([], [], marker=marker, color=colour, label=label or name)
        return
    epochs, rates = along(found.success[name], start)
    kept = [i for i, e in enumerate(epochs) if e <= stop + 0.02]
    style.curve(axis, [epochs[i] for i in kept], [rates[i] for i in kept], colour, marker, label=label or name)


def measured(axis: Axes, found: Drop, name: str, measure: str, colour: Any, marker: str) -> None:
    """A measure of sharpness along a run, where it is defined."""
    run = found.sharpness[name]
    _geometric(axis, run.epochs, [run.at(e, measure) for e in run.epochs], colour, marker)


def training_loss(
    axis: Axes, found: Drop, name: str, colour: Any, marker: str, start: float = 0.0, stop: float = np.inf
) -> None:
    """The mean cross-entropy on the training images, un-augmented, along a run from `start` to `stop`."""
    if (run := found.success.get(name)) is None:
        return
    kept = [i for i, e in enumerate(run.epochs) if start - 0.02 <= e <= stop + 0.02]
    _geometric(axis, [run.epochs[i] for i in kept], [run.loss[:, i] for i in kept], colour, marker)


def _geometric(axis: Axes, epochs: Sequence[float], values: Sequence[np.ndarray], colour: Any, marker: str) -> None:
    """A line through the geometric means of `values`, each (seeds,), where all are positive.

    A band over their intervals; of two seeds, whose interval tells nothing, the seeds as dots.
    """
    known = [(e, v) for e, v in zip(epochs, values, strict=True) if (v > 0).all()]
    if not known:
        return
    at, of = zip(*known, strict=True)
    means = [over_seeds(np.log(v)) for v in of]
    axis.plot(at, np.exp([m.value for m in means]), color=colour, marker=marker)
    if means[0].seeds == 2:
        axis.plot(at, np.array(of), ".", color=colour, alpha=0.4, markersize=3)
        return
    low, high = (np.exp([getattr(m, k) for m in means]) for k in ("low", "high"))
    axis.fill_between(at, low, high, where=np.isfinite(high), color=colour, alpha=0.18, linewidth=0)
