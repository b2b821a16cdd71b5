"""Figures of notebook 02: success along training, and the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfnlib.curves import TransferCurve
from rfnlib.intervals import Estimate, interval
from rfnlib.plots import style
from rfnlib.scale import CONSTANT, decaying

if TYPE_CHECKING:
    from rfnlib.studies.lr_decay import Peak


def peak(found: Peak) -> Figure:
    """Plateau, jump and decline: success of the runs with one decay and of that with none, above their learning rates.

    Each run is drawn from its decay on, for before it is the run with a constant rate. Bands are 95 % intervals over
    images and seeds; rings mark where runs are judged.
    """
    with style.styled():
        figure, (axis, below) = plt.subplots(
            2, 1, figsize=(style.WIDTH, 4.4), sharex=True, gridspec_kw={"height_ratios": [4, 1]}
        )
        runs = {CONSTANT: (style.GREY, "o", 0.0)}
        shades = style.shades(len(found.decays))
        runs |= {decaying(d): (c, "s", d) for d, c in zip(found.decays, shades, strict=True)}
        for name, (colour, marker, start) in runs.items():
            curve = found.curves[name]
            epochs, rates = along(curve, start)
            label = "constant rate" if name == CONSTANT else name
            style.curve(axis, epochs, rates, colour, marker, label=label)
            learning_rate(below, curve, colour, start)
            if name != CONSTANT:
                at = start + found.after
                axis.plot(at, 100 * curve.at(at).value, "o", color=colour, markersize=9, fillstyle="none")
        for each in (axis, below):
            style.decays(each, found.decays)
        axis.set_ylabel("success rate, %")
        axis.set_ylim(bottom=0)
        figure.legend(ncols=len(runs), loc="outside upper center")
        below.set_ylabel("learning\nrate")
        below.set_xlabel("epoch")
        below.set_xlim(0, found.curves[CONSTANT].end)
    return figure


def schedules(found: Peak) -> Figure:
    """Success under every schedule, a panel each, above its learning rate; last, the single decays aligned.

    Bands are 95 % intervals over images and seeds. The grey line in every panel is the run with a constant rate.
    """
    columns = 2
    rows = -(-(len(found.curves) + 1) // columns)
    with style.styled():
        figure = plt.figure(figsize=(style.WIDTH, 2.2 * rows))
        grid = figure.add_gridspec(rows, columns)
        highest = max(interval(c.at(e)).high for c in found.curves.values() for e in c.epochs)
        for k, (name, curve) in enumerate(found.curves.items()):
            axis, below = _pair(figure, grid[divmod(k, columns)])
            if name != CONSTANT:
                plain = found.curves[CONSTANT]
                axis.plot(
                    plain.epochs, [100 * plain.at(e).value for e in plain.epochs], color=style.GREY, linewidth=0.8
                )
            colour, marker = style.kind(name)
            style.curve(axis, *along(curve), colour, marker)
            learning_rate(below, curve, colour)
            style.decays(axis, curve.milestones)
            axis.set_title(name)
            axis.set_ylim(0, min(100, 105 * highest))
            below.set_xlim(0, curve.end)
            if k % columns == 0:
                axis.set_ylabel("success, %")
                below.set_ylabel("rate")
        row, column = divmod(len(found.curves), columns)
        _aligned(figure.add_subplot(grid[row, column if column else slice(None)]), found)
        figure.supxlabel("epoch", fontsize=style.STYLE["axes.labelsize"])
    return figure


def _pair(figure: Figure, place) -> tuple[Axes, Axes]:
    """An axis for success above a lower one for the learning rate, on one axis of time."""
    inner = place.subgridspec(2, 1, height_ratios=[4, 1], hspace=0)
    axis = figure.add_subplot(inner[0])
    below = figure.add_subplot(inner[1], sharex=axis)
    axis.tick_params(labelbottom=False)
    return axis, below


def _aligned(axis: Axes, found: Peak) -> None:
    """The runs with one decay from shortly before it until shortly after they are judged."""
    reach = 4 * found.after
    for d, colour in zip(found.decays, style.shades(len(found.decays)), strict=True):
        curve = found.curves[decaying(d)]
        near = [e for e in curve.epochs if -found.after - 0.02 <= e - d <= reach + 0.02]
        rates = [interval(curve.at(e)) for e in near]
        style.curve(axis, [e - d for e in near], rates, colour, "s", label=f"at {d:g}")
    style.decays(axis, [0])
    axis.set_title("epochs since the decay")
    axis.legend()


def along(curve: TransferCurve, start: float = 0.0) -> tuple[list[float], list[Estimate]]:
    """The epochs of `curve` from `start` on, and success there with its interval."""
    epochs = [e for e in curve.epochs if e >= start - 0.02]
    return epochs, [interval(curve.at(e)) for e in epochs]


def learning_rate(axis: Axes, curve: TransferCurve, colour: object, start: float = 0.0) -> None:
    """The learning rate of `curve` from `start` on, logarithmic over three decades below the highest."""
    epochs, schedule = curve.spec.epochs, curve.spec.schedule
    if schedule is None:  # of a network from outside
        return
    before = max(start - 1e-3, 0)  # so that the decay itself is drawn
    times = np.r_[before, np.linspace(start, epochs, 600, endpoint=False)]
    axis.plot(times, [schedule.at(t, epochs) for t in times], color=colour)
    axis.set_yscale("log")
    axis.set_ylim(schedule.lr / 300, 3 * schedule.lr)
    low, middle, high = schedule.lr / 100, schedule.lr / 10, schedule.lr
    axis.set_yticks([low, middle, high], [f"{low:g}", "", f"{high:g}"])  # three would not fit in a low panel
    axis.minorticks_off()
