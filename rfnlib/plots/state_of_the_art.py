"""Figures of notebook 05: other surrogates, and techniques on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rfnlib.intervals import interval
from rfnlib.plots import style

if TYPE_CHECKING:
    from rfnlib.studies.state_of_the_art import Grid, Rivalry


def rivals(found: Rivalry, margin: float) -> Figure:
    """The headline of C7: success of every surrogate, how far RFN is from it, and what it costs to train.

    Bars are 95 % intervals over images and seeds, dotted is RFN. Left of the dashed line, −`margin` (in [0, 1]), RFN
    would fall behind. Bold: whom RFN is judged against.
    """
    with style.styled():
        names = found.by_success()
        figure, axes = plt.subplots(
            1, 3, figsize=(style.WIDTH, 0.34 * len(names) + 0.9), sharey=True, width_ratios=(3, 3, 1.6)
        )
        for y, name in enumerate(names):
            run, (colour, marker) = found.curves[name], kind(name)
            style.whisker(axes[0], interval(run.at(run.end)), y, colour, marker)
            if name != "RFN":
                style.whisker(axes[1], interval(found.against(name)), y, colour, marker)
            cost = float(run.passes[:, -1].mean())
            axes[2].barh(y, cost, height=0.55, color=colour)
            axes[2].annotate(f" {cost:,.0f}", (cost, y), va="center", fontsize=8)
        rfn = found.curves["RFN"]
        axes[0].axvline(100 * rfn.at(rfn.end).value, color=style.KINDS["RFN"][0], linestyle=":", zorder=0)
        axes[0].set_xlim(left=0)
        axes[0].set_xlabel("success rate, %")
        axes[1].axvline(0, color="0.5", linewidth=0.8)
        axes[1].axvline(-100 * margin, color="0.5", linestyle="--", linewidth=0.8)
        axes[1].set_xlabel("success of RFN less this, points")
        axes[2].set_xlabel("cost, epochs of SGD")
        axes[2].set_xlim(0, 1.35 * axes[2].get_xlim()[1])
        axes[2].locator_params(nbins=3)
        style.rows(axes[0], [f"{n} ({found.curves[n].seeds})" for n in names], bold=names.index(found.rival))
        axes[0].set_ylabel("surrogate (seeds)")
    return figure


def details(found: Rivalry, attack: str) -> Figure:
    """Success on robust targets, robust accuracy under `attack`, and λ₁, where measured, with 95 % intervals.

    That of λ₁, a geometric mean, is over seeds, and is not drawn where there is one.
    """
    with style.styled():
        names = found.by_success()
        figure, axes = plt.subplots(1, 3, figsize=(style.WIDTH, 0.34 * len(names) + 0.9), sharey=True)
        axes[2].set_xscale("log")
        for y, name in enumerate(names):
            colour, marker = kind(name)
            if name in found.robust:
                style.whisker(axes[0], interval(found.robust[name].at()), y, colour, marker)
            if name in found.robustness:
                style.whisker(axes[1], interval(found.robustness[name].at(attack=attack)), y, colour, marker)
            if name in found.sharpness and (log := found.sharpness[name].level()):
                axes[2].plot(np.exp(log.value), y, marker, color=colour, markersize=5)
                if log.seeds > 1:
                    axes[2].plot(np.exp([log.low, log.high]), [y, y], color=colour, linewidth=1.2)
        titles = ("success on robust targets, %", f"robust accuracy ({attack}), %", "λ₁")
        for axis, title in zip(axes, titles, strict=True):
            axis.set_xlabel(title)
        for axis in axes[:2]:
            axis.set_xlim(left=0)
        style.logarithmic(axes[2], "x")
        style.rows(axes[0], [f"{n} ({found.curves[n].seeds})" for n in names])
        axes[0].set_ylabel("surrogate (seeds)")
    return figure


def techniques(found: Grid, margin: float) -> Figure:
    """The headline of C8: success of each technique on SGD and on RFN, and what it gives over the better of the parts.

    Bars are 95 % intervals over images and seeds. Lines, left: the plain attack on SGD (dashed) and on RFN (dotted).
    Within the grey band (± `margin`, in [0, 1]) a difference is none. The mean is that of all planned techniques.
    """
    with style.styled():
        names, better = found.techniques, [found.over_better(t) for t in found.techniques]
        mean = [found.added()] if names == list(found.planned) else []
        figure, (axis, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 0.42 * (len(names) + 1) + 0.9), sharey=True)
        for surrogate, shift, line in (("SGD", -0.15, "--"), ("RFN", 0.15, ":")):
            colour, marker = style.KINDS[surrogate]
            for y, technique in enumerate(names, 1):
                style.whisker(axis, interval(found.rate(surrogate, technique)), y + shift, colour, marker)
            if names:
                alone = 100 * found.rate(surrogate, "none").value
                axis.axvline(alone, color=colour, linestyle=line, linewidth=1, zorder=0)
            axis.plot([], [], color=colour, marker=marker, linestyle=line, label=f"on {surrogate} (line: plain attack)")
        axis.set_xlim(left=0)
        axis.set_xlabel("success rate, %")
        style.band(right, margin)
        for y, difference in enumerate([*mean, *better], 1 - len(mean)):
            style.whisker(right, interval(difference), y, *style.KINDS["RFN"])
        right.axhline(0.5, color="0.8", linewidth=0.6)
        right.set_xlabel("on RFN less the better of: on SGD, RFN alone; points")
        style.rows(axis, ["mean", *names], bold=0)
        figure.legend(*axis.get_legend_handles_labels(), ncols=2, loc="outside upper center", handlelength=2.4)
    return figure


def on_top(found: Grid) -> Figure:
    """What each technique adds to the plain attack, a panel a surrogate, with 95 % intervals over images and seeds."""
    with style.styled():
        added = found.on_top()
        names = [t for t in found.planned if any(t in gains for gains in added.values())]
        size, panels = (style.WIDTH, 0.3 * len(names) + 1.1), max(1, len(added))
        figure, axes = plt.subplots(1, panels, figsize=size, sharey=True, sharex=True, squeeze=False)
        for axis, (surrogate, gains) in zip(axes[0], added.items(), strict=False):
            colour, marker = kind(surrogate)
            axis.axvline(0, color="0.5", linewidth=0.8)
            for technique, gain in gains.items():
                style.whisker(axis, interval(gain), names.index(technique), colour, marker)
            axis.set_title(surrogate.replace(", ", ",\n"))
        style.rows(axes[0, 0], names)
        figure.supxlabel("what the technique adds to the plain attack, points", fontsize=style.STYLE["axes.labelsize"])
    return figure


def trade_off(frame: pd.DataFrame) -> Figure:
    """Success on validation targets over white-box robust accuracy: SAT by ε and RFN by ρ; both begin at SGD.

    Bars are 95 % intervals over images and seeds, numbers the ε and the ρ.
    """
    with style.styled():
        figure, axis = plt.subplots(figsize=(style.WIDTH, 3.4))
        for name, of in frame.groupby(level=0):
            (colour, marker), (sign, above) = style.KINDS[name], {"RFN": ("ρ", 7), "SAT": ("ε", -12)}[name]
            of = 100 * of.droplevel(0)
            errors = [abs(of[[f"{what} low", f"{what} high"]].sub(of[f"{what} value"], axis=0)).to_numpy().T
                      for what in ("robust", "success")]  # fmt: skip
            axis.errorbar(of["robust value"], of["success value"], xerr=errors[0], yerr=errors[1], color=colour,
                          marker=marker, markersize=5, elinewidth=0.5, label=f"{name}, by {sign}")  # fmt: skip
            for x, row in of.iterrows():
                at = (row["robust value"], row["success value"])
                axis.annotate(f"{x:g}" if x else "SGD", at, xytext=(6, above), textcoords="offset points", color=colour,
                              fontsize=8)  # fmt: skip
        axis.set_xlabel("white-box robust accuracy (l2 0.25), %")
        axis.set_ylabel("success rate, %")
        axis.set_ylim(bottom=0)
        if len(frame):
            axis.legend()
        else:
            style.vacant(axis)
    return figure


def kind(name: str) -> tuple[Any, str]:
    """As `style.kind`; another way to train is another method though its name begins alike, as "SAM & IR" does."""
    return style.KINDS.get(name.split(",")[0], (style.GREY, "o"))
