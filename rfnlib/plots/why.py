"""Figures of notebook 06: interventions, what goes with success, λ₁ around a decay, planes of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfnlib.intervals import Estimate, interval
from rfnlib.plots import style
from rfnlib.scale import CONSTANT

if TYPE_CHECKING:
    from rfnlib.studies.edge import Edge
    from rfnlib.studies.interventions import Interventions
    from rfnlib.studies.journey import Landscape
    from rfnlib.studies.predictors import Predictors

ARMS: dict[str, tuple[Any, str]] = {  # RFN, the constant rate and the decay look as everywhere
    "lower rate": style.kind("decay"),
    "averaged": (style.PALETTE[2], "^"),
    "larger batch": (style.PALETTE[1], "D"),
    "RFN": style.kind("RFN"),
    "noise": (style.PALETTE[4], "v"),
    "unchanged": style.kind("constant"),
}
WAY = {"top": "λ₁", "train_loss": "training loss", "cosine": "gradient similarity"}
SHOWN = {
    "": ("all networks", "o"),
    "train_loss": ("given training loss", "s"),
    "accuracy": ("given natural accuracy", "^"),
}


# --- interventions --------------------------------------------------------------------------------------


def interventions(found: Interventions, margin: float) -> Figure:
    """The headline: what each way to go on from one checkpoint does to success, and to λ₁, against going on unchanged.

    The arm that gains most comes first. Bars are 95 % intervals, for success over images and seeds, for λ₁ over seeds;
    the grey band is ± `margin` (in [0, 1]), within which a difference of success does not matter.
    """
    names = [name for name in ARMS if name in found.ends.success and name != "unchanged"]
    names.sort(key=lambda name: -found.ends.gain(name).value)
    with style.styled():
        size = (style.WIDTH, 0.42 * len(names) + 1.1)
        figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True)
        style.band(left, margin)
        right.axvline(1, color="0.5", linewidth=0.8)
        for y, name in enumerate(names):
            style.whisker(left, interval(found.ends.gain(name)), y, *ARMS[name])
            change = found.ends.change(name, "top") if name in found.ends.sharpness else None
            if change:
                _factor(right, change, y, *ARMS[name])
        style.rows(left, names)
        left.set_xlabel("gain in success, points")
        right.set_xlabel("λ₁, factor: flatter to the left")
        left.set_title("success against going on unchanged")
        right.set_title("sharpness against going on unchanged")
        right.margins(x=0.1)
        style.logarithmic(right, "x")
    return figure


def _factor(axis: Axes, log: Estimate, y: float, colour: Any, marker: str) -> None:
    value, low, high = np.exp([log.value, log.low, log.high])
    error = [[value - low], [high - value]] if np.isfinite(log.error) else None
    axis.errorbar(value, y, xerr=error, fmt=marker, color=colour, markersize=5, capsize=2.5, linewidth=1.2)


def way(found: Interventions) -> Figure:
    """In detail: success and three measures after the checkpoint, against passes, means over the first seeds.

    Geometric means, of success and of the similarity means, with each seed as a dot but for success.
    """
    labels = ["success rate, %", *WAY.values()]
    with style.styled():
        figure, axes = plt.subplots(2, 2, figsize=(style.WIDTH, 3.9), sharex=True)
        for name, (colour, marker) in ARMS.items():
            if (run := found.way.success.get(name)) is None:
                continue
            start = ["checkpoint"] * ("checkpoint" in found.way.success)
            stops = [(of, 1.0, 0.0) for of in start]
            stops += [(name, e / run.end, found.length * e / run.end) for e in run.epochs]
            rates = [100 * found.way.rate(of, moment).value for of, moment, _ in stops]
            axes.flat[0].plot([t for *_, t in stops], rates, color=colour, marker=marker, label=name)
            for axis, measure in zip(axes.flat[1:], WAY, strict=True):
                _measured(axis, found, measure, stops, colour, marker)
        for axis, label in zip(axes.flat, labels, strict=True):
            axis.set_title(label)
            if label not in ("success rate, %", WAY["cosine"]) and _drawn(axis):
                style.logarithmic(axis)
            axis.set_xscale("symlog", linthresh=found.length / 40, linscale=0.3)
            ticks = [0, *(found.length * m for m in found.moments)]
            axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axis.minorticks_off()
        figure.legend(*axes.flat[0].get_legend_handles_labels(), ncols=len(ARMS), loc="outside upper center")
        figure.supxlabel("passes since the checkpoint, in epochs of SGD", fontsize=9)
    return figure


def _drawn(axis: Axes) -> bool:
    """Whether anything is there: a measure may be defined for no network."""
    return any(np.size(line.get_ydata()) for line in axis.lines)


def _measured(
    axis: Axes, found: Interventions, measure: str, stops: Sequence[tuple[str, float, float]], colour: Any, marker: str
) -> None:
    """A measure at each stop that has it (arm, share of its run, place on the axis)."""
    curves = found.way.similarity if measure == "cosine" else found.way.sharpness
    known = [(t, found.way.values(of, measure, moment)) for of, moment, t in stops if of in curves]
    known = [(t, v) for t, v in known if np.isfinite(v).all()]
    shown = (lambda v: v) if measure == "cosine" else np.exp
    for t, values in known:
        axis.plot([t] * len(values), shown(values), ".", color=colour, alpha=0.4, markersize=3)
    axis.plot([t for t, _ in known], [shown(v.mean()) for _, v in known], marker=marker, color=colour)


# --- what goes with success --------------------------------------------------------------------------------


def predictors(found: Predictors) -> Figure:
    """Rank correlation of success with each measure over all recorded networks, and success over two of them.

    Left: circles as it is, squares given training loss, triangles given natural accuracy; bars are 95 % intervals over
    training runs. Right: success over λ₁, and over the measure that goes with it most closely; full dots are networks
    at the end of their training.
    """
    known = [m for m in found.labels if found.frame[m].notna().any()]
    with style.styled():
        layout = "AB\nAC"
        figure, axes = plt.subplot_mosaic(layout, figsize=(style.WIDTH, 4.2), width_ratios=[1.5, 1])
        left = axes["A"]
        left.axvline(0, color="0.5", linewidth=0.8)
        for shift, (given, (label, marker)) in zip((-0.22, 0, 0.22), SHOWN.items(), strict=True):
            correlations = {m: found.of(m, given or None) for m in known}
            colour = style.PALETTE[0] if not given else style.PALETTE[1] if given == "train_loss" else style.PALETTE[2]
            drawn = [(y, correlations[m]) for y, m in enumerate(known) if np.isfinite(correlations[m].value)]
            for i, (y, c) in enumerate(drawn):
                error = [[max(c.value - c.low, 0)], [max(c.high - c.value, 0)]] if np.isfinite(c.low) else None
                left.errorbar(c.value, y + shift, xerr=error, fmt=marker, color=colour, markersize=4, capsize=2,
                              linewidth=1, label=label if i == 0 else None)  # fmt: skip
        left.set_yticks(range(len(known)), [found.labels[m] for m in known])
        left.set_ylim(len(known) - 0.4, -0.6)
        left.set_xlim(-1.05, 1.05)
        left.set_xlabel("rank correlation with success")
        if known:
            left.legend(ncols=1, loc="best")
        best = next((m for m in found.ranked() if m not in ("top", *SHOWN)), "matched")
        for axis, measure in ((axes["B"], "top"), (axes["C"], best)):
            for end, fill in ((False, "none"), (True, "full")):
                part = found.frame[found.frame["end"].astype(bool) == end]
                axis.plot(part[measure], 100 * part["success"], "o", color=style.PALETTE[0], fillstyle=fill,
                          markersize=3, markeredgewidth=0.6)  # fmt: skip
            axis.set_xlabel(found.labels[measure])
            axis.set_ylabel("success, %")
            if (found.frame[measure].dropna() > 0).all() and found.frame[measure].notna().any() and measure != "cosine":
                style.logarithmic(axis, "x")
    return figure


# --- λ₁ around a decay ----------------------------------------------------------------------------------------


def edge(found: Edge) -> Figure:
    """λ₁ after the first decay with and without it, against 2(1 + β)/η of either rate; right: at equal loss.

    Geometric means over seeds, each seed as a dot; dashed is where heavy-ball descent on a quadratic loss diverges.
    """
    with style.styled():
        figure, axes = plt.subplots(1, 2, figsize=(style.WIDTH, 2.6), sharex=True)
        for name, label in (("decay", "after the decay"), (CONSTANT, "constant rate")):
            colour, marker = style.kind(name)
            for axis, measure in zip(axes, ("top", "matched"), strict=True):
                logs = [found.log(name, after, measure) for after in found.after]
                known = [(t, v) for t, v in zip(found.after, logs, strict=True) if np.isfinite(v).all()]
                for t, values in known:
                    axis.plot([t] * len(values), np.exp(values), ".", color=colour, alpha=0.4, markersize=3)
                axis.plot([t for t, _ in known], [np.exp(v.mean()) for _, v in known], marker=marker, color=colour,
                          label=label)  # fmt: skip
            axes[0].axhline(found.limit(name), color=colour, linestyle="--", linewidth=0.9)
        for axis, title in zip(axes, ("λ₁; dashed: 2(1 + β)/η", "λ₁ at equal loss"), strict=True):
            axis.set_title(title)
            axis.set_xlabel("epochs since the decay")
            if _drawn(axis):
                style.logarithmic(axis)
        axes[1].legend(*axes[0].get_legend_handles_labels(), loc="best")
    return figure


# --- planes ----------------------------------------------------------------------------------------


def planes(found: Sequence[Landscape]) -> Figure:
    """Planes of weights: colour is success of an attack from the network at each point, lines are levels of the loss.

    Networks of each path, projected on the plane, are joined in the order of their epochs; each marker has the colour
    of its own success, where that is recorded, for it may lie off the plane.
    """
    with style.styled():
        figure, axes = plt.subplots(1, len(found), figsize=(style.WIDTH, 0.75 * style.WIDTH / len(found) + 1.2),
                                    squeeze=False)  # fmt: skip
        own = [s.success for plane in found for s in plane.spots if s.success is not None]
        top = 100 * max([np.nanmax(plane.success) for plane in found] + own)
        image: Any = None
        for axis, plane in zip(axes[0], found, strict=True):
            image = axis.pcolormesh(plane.x, plane.y, 100 * plane.success, vmin=0, vmax=top, cmap="viridis",
                                    shading="nearest", rasterized=True)  # fmt: skip
            levels = np.quantile(plane.loss[np.isfinite(plane.loss)], [0.05, 0.15, 0.3, 0.5, 0.7])
            lines = axis.contour(plane.x, plane.y, plane.loss, np.unique(levels), colors="white", linewidths=0.7)
            axis.clabel(lines, fmt="%.2g", fontsize=6)
            _paths(axis, plane, top)
            axis.set_title(plane.name)
            axis.set_aspect("equal")
            axis.set_xlabel("distance in weights")
        axes[0][0].set_ylabel("distance in weights")
        if image is not None:
            figure.colorbar(image, ax=axes[0].tolist(), label="success rate, %", shrink=0.8)
    return figure


def _paths(axis: Axes, plane: Landscape, top: float) -> None:
    start = plane.spots[0]
    for name in dict.fromkeys(spot.arm for spot in plane.spots[1:]):
        spots = sorted((s for s in plane.spots[1:] if s.arm == name), key=lambda s: s.epoch)
        joined = [start, *spots] if start.arm == "checkpoint" else sorted(
            [s for s in plane.spots if s.arm == name], key=lambda s: s.epoch)  # fmt: skip
        colour, marker = ARMS.get(name, style.kind(name))
        axis.plot([s.x for s in joined], [s.y for s in joined], color="black", linewidth=2.0)
        axis.plot([s.x for s in joined], [s.y for s in joined], color=colour, linewidth=1.2)
        axis.plot([], [], marker, color=colour, linestyle="-", linewidth=1.2, markersize=5, label=name)
        for s in joined:
            face = "none" if s.success is None else plt.get_cmap("viridis")(100 * s.success / top)
            axis.plot(s.x, s.y, marker, color=face, markeredgecolor=colour, markeredgewidth=1.0, markersize=5)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, columnspacing=1.0)
