"""Figures of notebook 04: what flat surrogates gain over early stopping, and at which ρ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from rfnlib.intervals import interval
from rfnlib.plots import style

if TYPE_CHECKING:
    from rfnlib.studies.rfn_gains import Gains


def gain_chart(found: dict[str, Gains]) -> Figure:
    """Gains over SGD stopped early, in points: dots are targets, bars the mean with its 95 % interval.

    One panel a surrogate architecture; 0 is SGD stopped early, "SGD" the same trained to its end.
    """
    with style.styled():
        most = max(len(g.series) for g in found.values())
        figure, axes = plt.subplots(
            1, len(found), figsize=(style.WIDTH, 0.26 * most + 1.0), layout="constrained", sharex=True, squeeze=False
        )
        for axis, (arch, gains) in zip(axes[0], found.items(), strict=True):
            names = list(gains.series)[::-1]
            for y, name in enumerate(names):
                colour, marker = style.kind(name)
                each = [100 * f.difference.value for f in gains.against_stopping(name)]
                axis.plot(each, [y] * len(each), ".", color=colour, alpha=0.6, markersize=4)
                d = interval(gains.gain(name, gains.stop))
                error = [[100 * (d.value - d.low)], [100 * (d.high - d.value)]]
                axis.errorbar(100 * d.value, y, xerr=error, fmt=marker, color=colour,
                              markersize=4, capsize=2, linewidth=1)  # fmt: skip
            seeds = [len(gains.series[n].accuracy) for n in names]
            axis.set_yticks(range(len(names)), [f"{n} ({s})" for n, s in zip(names, seeds, strict=True)])
            axis.axvline(0, color="0.6", linewidth=0.8)
            axis.set_title(f"{arch}; stopped at epoch {gains.stop:g}, RFN's ρ = {gains.rho:g}", loc="left")
            axis.set_xlabel("gain over early stopping, points")
        axes[0, 0].set_ylabel("minimizer (seeds)")
    return figure


def rho_sweep(found: dict[str, pd.DataFrame]) -> Figure:
    """Success, natural accuracy and sharpness over ρ, a colour an architecture; dashed: SGD, which has no ρ."""
    rows = {"success": "success rate, %", "accuracy": "natural accuracy, %", "top": "λ₁", "matched": "λ₁ at equal loss"}
    with style.styled():
        figure, axes = plt.subplots(1, 4, figsize=(style.WIDTH, 1.9), layout="constrained")
        for (arch, frame), (colour, marker) in zip(
            found.items(), (style.KINDS["RFN"], style.KINDS["cosine"]), strict=False
        ):
            sgd, swept = frame.loc[0.0], frame.drop(index=0.0)
            for axis, (column, label) in zip(axes, rows.items(), strict=True):
                factor = 100 if label.endswith("%") else 1
                axis.plot(swept.index, factor * swept[column], color=colour, marker=marker, markersize=3, label=arch)
                axis.axhline(factor * sgd[column], color=colour, linewidth=0.8, linestyle="--")
                if column == "success":
                    axis.fill_between(swept.index, 100 * swept["low"], 100 * swept["high"], color=colour, alpha=0.15,
                                      linewidth=0)  # fmt: skip
                axis.set_ylabel(label)
        for axis in axes:
            axis.set_xscale("log")
            axis.set_xlabel("ρ")
            ticks = sorted({r for frame in found.values() for r in frame.index if r})
            axis.set_xticks(ticks, [f"{r:g}" for r in ticks])
            axis.minorticks_off()
        for axis in axes[2:]:
            style.logarithmic(axis)
        axes[0].legend(frameon=False, handlelength=1.4)
    return figure
