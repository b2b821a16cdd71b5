"""Figures of notebook 05: other surrogates, and techniques on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rfnlib.intervals import interval
from rfnlib.plots import style

if TYPE_CHECKING:
    from rfnlib.studies.state_of_the_art import Grid, Rivalry


def rival_chart(found: Rivalry) -> Figure:
    """Success of every surrogate on standard and on robust targets, with 95 % intervals; dotted: RFN's mean."""
    with style.styled():
        panels = {"standard targets": found.curves, "robust targets": found.robust}
        names = found.by_success()[::-1]  # from below
        figure, axes = plt.subplots(
            1, 2, figsize=(style.WIDTH, 0.24 * len(names) + 0.9), layout="constrained", sharey=True, width_ratios=(3, 2)
        )
        for axis, (title, series) in zip(axes, panels.items(), strict=True):
            for y, name in enumerate(names):
                rate = interval(series[name].at(series[name].end))
                error = [[100 * (rate.value - rate.low)], [100 * (rate.high - rate.value)]]
                colour, marker = style.KINDS.get(name.split(",")[0], (style.GREY, "o"))
                axis.errorbar(100 * rate.value, y, xerr=error, fmt=marker, color=colour, markersize=4, capsize=2,
                              linewidth=1)  # fmt: skip
            axis.axvline(100 * series["RFN"].at(series["RFN"].end).value, color=style.KINDS["RFN"][0], linewidth=0.8,
                         linestyle=":", zorder=0)  # fmt: skip
            axis.set_xlim(left=0)
            axis.set_title(title, loc="left")
            axis.set_xlabel("success rate, %")
        axes[0].set_yticks(range(len(names)), [f"{n} ({len(found.curves[n].accuracy)})" for n in names])
        axes[0].set_ylabel("surrogate (seeds)")
    return figure


def technique_chart(found: Grid) -> Figure:
    """Success of every surrogate, a row, under every technique, a column, in per cent; first seed."""
    rates = 100 * found.success()
    with style.styled():
        figure, axis = plt.subplots(figsize=(style.WIDTH, 0.32 * len(rates) + 0.9), layout="constrained")
        sns.heatmap(
            rates, annot=True, fmt=".0f", cmap="viridis", ax=axis, linewidths=0.5, cbar_kws={"label": "success rate, %"}
        )
        axis.tick_params(length=0, labelrotation=0)
        axis.set_xlabel("")
    return figure


def trade_off_chart(frame: pd.DataFrame) -> Figure:
    """Success over white-box robust accuracy: SAT by ε and RFN by ρ; both begin at SGD, which has 0 of either."""
    with style.styled():
        figure, axis = plt.subplots(figsize=(0.6 * style.WIDTH, 2.4), layout="constrained")
        for (name, of), kind, sign in zip(frame.groupby(level=0, sort=False), ("cosine", "RFN"), "ερ", strict=True):
            colour, marker = style.KINDS[kind]
            of = of.droplevel(0)
            axis.plot(100 * of["robust"], 100 * of["success"], color=colour, marker=marker, markersize=4, label=name)
            for i, (x, row) in enumerate(of[of.index > 0].iterrows()):
                place = (4, -8 if i % 2 else 3)  # above and below by turns: neighbours lie close
                axis.annotate(f"{sign} = {x:g}", (100 * row["robust"], 100 * row["success"]), xytext=place,
                              textcoords="offset points", fontsize=6, color=colour)  # fmt: skip
        axis.set_xlabel("white-box robust accuracy (l2 0.25), %")
        axis.set_ylabel("success rate, %")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    return figure
