"""Figures of notebook 08: the search for a better surrogate, and the winner beside its rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from rfnlib.intervals import interval
from rfnlib.plots import style
from rfnlib.plots.state_of_the_art import kind

if TYPE_CHECKING:
    from rfnlib.studies.better_surrogate import Better

WINNER = (style.KINDS["RFN"][0], "*")


def judged(found: Better, margin: float) -> Figure:
    """The headline of Q7 and Q8: success on standard and on robust targets over the cost of training, and the gains.

    Left, what is bought, with 95 % intervals over images and seeds; grey squares are on robust targets. Middle, the
    winner less each rival; within the grey band (± `margin`, in [0, 1]) a difference is too small to matter.
    """
    with style.styled():
        names = sorted(found.curves, key=lambda name: -found.curves[name].at().value)
        size = (style.WIDTH, 0.36 * len(names) + 1.1)
        figure, (left, right, cost) = plt.subplots(1, 3, figsize=size, sharey=True, width_ratios=(3, 3, 1.6))
        style.band(right, margin)
        for y, name in enumerate(names):
            colour, marker = WINNER if name == "winner" else kind(name)
            style.whisker(left, interval(found.curves[name].at()), y - 0.12, colour, marker)
            if name in found.robust:
                style.whisker(left, interval(found.robust[name].at()), y + 0.18, "0.55", "s")
            if name != "winner":
                style.whisker(right, interval(found.over(name)), y, colour, marker)
            passes = found.curves[name].mean("passes")
            cost.barh(y, passes, height=0.55, color=colour)
            cost.annotate(f" {passes:,.0f}", (passes, y), va="center", fontsize=8)
        left.plot([], [], "s", color="0.55", markersize=4, label="on robust targets")
        left.legend(loc="lower right")
        left.set_xlim(left=0)
        left.set_xlabel("success rate, %")
        right.set_xlabel("success of the winner less this, points")
        cost.set_xlabel("cost, epochs of SGD")
        cost.set_xlim(0, 1.35 * cost.get_xlim()[1])
        cost.locator_params(nbins=3)
        called = found.winner.replace(", ", ",\n")
        style.rows(left, [called if n == "winner" else n for n in names], bold=names.index("winner"))
    return figure


def search(found: Better) -> Figure:
    """Success of every candidate on validation images and targets, one pilot seed, over the cost of its training."""
    with style.styled():
        names = sorted(found.searched, key=lambda name: -found.searched[name].at().value)
        size = (style.WIDTH, 0.32 * len(names) + 0.9)
        figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(3, 1.6))
        for y, name in enumerate(names):
            run = found.searched[name]
            style.whisker(left, interval(run.at()), y, *(WINNER if y == 0 else (style.GREY, "o")))
            right.barh(y, run.mean("passes"), height=0.55, color="0.7")
            right.annotate(f" {run.mean('passes'):,.0f}", (run.mean("passes"), y), va="center", fontsize=8)
        left.set_xlim(left=0)
        left.set_xlabel("success rate on validation targets, %")
        right.set_xlabel("cost, epochs of SGD")
        right.set_xlim(0, 1.35 * right.get_xlim()[1])
        style.rows(left, names, bold=0)
    return figure
