"""Figures of notebook 04: what flat surrogates gain over early stopping, by target and by ρ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfnlib.intervals import interval, over_seeds
from rfnlib.plots import style

if TYPE_CHECKING:
    from rfnlib.curves import SharpnessCurve, TransferCurve
    from rfnlib.studies.rfn_gains import Gains, Sweep

GAIN = "gain in success over SGD stopped early, points"


def by_target(gains: Gains, margin: float) -> Figure:
    """The headline of C4 and C5: what RFN and SAM gain over SGD stopped early, on average and on each target.

    Bars are 95 % intervals over images and seeds; the grey band is ± `margin` (in [0, 1]), within which a
    difference is none.
    """
    with style.styled():
        rows = ["mean of the targets", *gains.targets]
        figure, axis = plt.subplots(figsize=(style.WIDTH, 0.42 * len(rows) + 0.9))
        style.band(axis, margin)
        for name, shift in (("RFN", -0.16), ("SAM", 0.16)):
            colour, marker = style.kind(name)
            found = [interval(gains.gain(name)), *gains.by_target(name).values()]
            for y, at in enumerate(found):
                style.whisker(axis, at, y + shift, colour, marker)
            rho = getattr(gains.curves[name].spec.minimizer, "rho", 0.0)
            axis.plot([], [], marker, color=colour, label=f"{name}, ρ = {rho:g}")
        axis.axhline(0.5, color="0.8", linewidth=0.6)
        style.rows(axis, rows, bold=0)
        axis.set_xlabel(GAIN)
        axis.legend(loc="best")
    return figure


def by_rho(gains: Gains) -> Figure:
    """The headline of C6: success and natural accuracy at the end of training, over ρ.

    Filled: the grid that is judged, up to RFN's ρ, with every seed; hollow: above it, with fewer. Bars are 95 %
    intervals; dashed: SGD at its end, dotted: SGD stopped early.
    """
    with style.styled():
        figure, axes = plt.subplots(1, 2, figsize=(style.WIDTH, 2.7))
        colour, marker = style.kind("RFN")
        sgd, early, (blue, _) = gains.curves["SGD"], f"SGD stopped at epoch {gains.stop:g}", style.kind("SGD")
        for axis, what, label in zip(axes, (_success, _accuracy), ("success, %", "natural accuracy, %"), strict=True):
            for runs, filled in ((gains.by_rho, True), (gains.above, False)):
                found = [what(run, run.end) for run in runs.values()]
                middle = [100 * f.value for f in found]
                reach = [[100 * f.value - 100 * f.low for f in found], [100 * f.high - 100 * f.value for f in found]]
                axis.errorbar(list(runs), middle, yerr=np.where(np.isfinite(reach), reach, 0), fmt=marker,
                              color=colour, markersize=6, capsize=2.5, linewidth=1.2, linestyle="-" if filled else "",
                              markerfacecolor=colour if filled else "white")  # fmt: skip
            for line, epoch, name in (("--", sgd.end, "SGD at its end"), (":", gains.stop, early)):
                axis.axhline(100 * what(sgd, epoch).value, color=blue, linestyle=line, linewidth=1, label=name)
            axis.set_ylabel(label)
            _rhos(axis, [*gains.by_rho, *gains.above])
        axes[0].plot([], [], marker + "-", color=colour, label="SAM by ρ, up to RFN's")
        if gains.above:
            axes[0].plot([], [], marker, color=colour, markersize=6, markerfacecolor="white", label="above RFN's ρ")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def by_minimizer(found: Mapping[str, Gains]) -> Figure:
    """In detail: the gain of every surrogate over SGD stopped early. Dots are targets, bars their mean's interval.

    A panel an architecture; "SGD" is the same run at its end; in brackets: seeds.
    """
    with style.styled():
        most = max(len(g.curves) for g in found.values())
        size = (style.WIDTH, 0.28 * most + 1.0)
        figure, axes = plt.subplots(1, len(found), figsize=size, sharex=True, squeeze=False)
        for axis, (arch, gains) in zip(axes[0], found.items(), strict=True):
            names = list(gains.curves)
            for y, name in enumerate(names):
                colour, marker = style.kind(name)
                each = [100 * e.value for e in gains.by_target(name).values()]
                axis.plot(each, [y] * len(each), ".", color=colour, alpha=0.55, markersize=5)
                style.whisker(axis, interval(gains.gain(name)), y, colour, marker)
            style.rows(axis, [f"{n} ({gains.curves[n].seeds})" for n in names])
            axis.axvline(0, color="0.5", linewidth=0.8)
            axis.set_title(f"{arch}:\nSGD stopped at epoch {gains.stop:g}, RFN's ρ = {gains.rho:g}")
        figure.supxlabel(GAIN, fontsize=9)
    return figure


def sharpness_by_rho(sweep: Sweep) -> Figure:
    """In detail: sharpness at the end of training over ρ, geometric means of the seeds, which are dots.

    Dashed: SGD at its end, dotted: SGD stopped early.
    """
    with style.styled():
        shown = {"top": "λ₁", "matched": "λ₁ at equal loss", "trace": "trace"}
        figure, axes = plt.subplots(1, len(shown), figsize=(style.WIDTH, 2.5))
        colour, marker = style.kind("RFN")
        runs, blue = {rho: run for rho, run in sweep.sharpness.items() if rho}, style.kind("SGD")[0]
        plain = [("--", "SGD at its end", sweep.sharpness[0.0])] if 0.0 in sweep.sharpness else []
        plain += [(":", "SGD stopped early", sweep.early[1])] if sweep.early else []
        for axis, (measure, label) in zip(axes, shown.items(), strict=True):
            for rho, run in runs.items():
                axis.plot([rho] * run.seeds, run.at(run.end, measure), ".", color=colour, alpha=0.55)
            axis.plot(list(runs), [_middle(run, measure) for run in runs.values()], marker + "-", color=colour)
            for line, name, run in plain:
                axis.axhline(_middle(run, measure), color=blue, linestyle=line, linewidth=1, label=name)
            axis.set_title(label)
            style.logarithmic(axis)
            _rhos(axis, runs)
        axes[0].plot([], [], marker + "-", color=colour, label="SAM by ρ")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _success(run: TransferCurve, epoch: float):
    return interval(run.at(epoch))


def _accuracy(run: TransferCurve, epoch: float):
    return over_seeds(run.accuracy[:, run.index(epoch)])


def _middle(run: SharpnessCurve, measure: str) -> float:
    """The geometric mean over seeds at the end of training; NaN where a seed's value has no logarithm."""
    return float(np.exp(run.log(run.end, measure).mean()))


def _rhos(axis: Axes, rhos) -> None:
    """A logarithmic axis of ρ with a tick at each."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(rhos), [f"{rho:g}" for rho in sorted(rhos)])
    axis.minorticks_off()
    axis.set_xlabel("ρ")
