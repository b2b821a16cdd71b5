"""One function a figure: data in, a matplotlib figure out; and `show`, which writes and displays it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from torch import Tensor

from rfnlib import paths
from rfnlib.claims import counted_seeds
from rfnlib.features import image_grid
from rfnlib.findings import MEASURES, EarlyStopping, Gains
from rfnlib.intervals import interval
from rfnlib.rivalry import Grid, Rivalry
from rfnlib.series import Flatness, Series

WIDTH = 7.0  # inches: the text width of most venues' two columns
STYLE = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.3,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,
    "text.usetex": False,
}
# One colour and one marker a method, everywhere.
_PALETTE = sns.color_palette("colorblind")
GREY = "0.45"
KINDS = {
    "constant": (GREY, "o"),
    "decay": (_PALETTE[0], "s"),
    "cosine": (_PALETTE[2], "^"),
    "cyclic": (_PALETTE[1], "D"),
    "SGD": (_PALETTE[0], "s"),
    "SAM": (_PALETTE[4], "v"),
    "RFN": (_PALETTE[3], "P"),
}


def show(figure: Figure, name: str, alt: str) -> None:
    """Write `figure` to the figures' folder as PNG and PDF, byte-stable, and display it with its alt text."""
    folder = paths.figures_dir()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None, "Description": alt})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def decay_curves(series: dict[str, Series], decays: Sequence[int], epochs: float) -> Figure:
    """Success rate and learning rate on one time axis, a panel a schedule; last, all single decays aligned.

    Bands are 95 % intervals over images and seeds; the grey curve in every panel is the run whose
    learning rate stays constant.
    """
    with plt.rc_context(STYLE):
        columns = 4
        rows = -(-(len(series) + 1) // columns)
        figure = plt.figure(figsize=(WIDTH, 2.15 * rows), layout="constrained")
        grid = figure.add_gridspec(rows * 2, columns, height_ratios=[3, 1] * rows)
        rates = {name: [interval(s.at(e)) for e in s.epochs] for name, s in series.items()}
        top = 100 * max(r.high for rs in rates.values() for r in rs)
        first = None
        for k, (name, s) in enumerate(series.items()):
            row, column = divmod(k, columns)
            axis = figure.add_subplot(grid[2 * row, column], sharex=first, sharey=first)
            first = first or axis
            colour, marker = KINDS[name.split()[0]]
            if name != "constant":
                _curve(axis, series["constant"].epochs, rates["constant"], GREY, None, faint=True)
            _curve(axis, s.epochs, rates[name], colour, marker)
            _decays(axis, getattr(s.spec.schedule, "milestones", ()))
            axis.set_title(name, loc="left")
            axis.set_ylim(0, min(100, top * 1.05))
            axis.tick_params(labelbottom=False, labelleft=column == 0)
            below = figure.add_subplot(grid[2 * row + 1, column], sharex=axis)
            times = np.linspace(0, epochs, 400, endpoint=False)
            below.plot(times, [s.spec.schedule.at(t, epochs) for t in times], color=colour)
            below.set_yscale("log")
            below.set_ylim(5e-4, 0.2)
            below.set_yticks([1e-3, 1e-1], ["0.001", "0.1"])
            below.minorticks_off()
            below.tick_params(labelleft=column == 0)
            below.set_xlim(0, epochs)
            if column == 0:
                axis.set_ylabel("success rate, %")
                below.set_ylabel("learning\nrate")
            below.set_xlabel("epoch")
        row, column = divmod(len(series), columns)
        aligned = figure.add_subplot(grid[2 * row : 2 * row + 2, column])
        for shade, d in zip((1.0, 0.7, 0.45), decays, strict=False):
            s, r = series[f"decay at {d}"], rates[f"decay at {d}"]
            near = [i for i, e in enumerate(s.epochs) if d - 2.01 <= e <= d + 3.01]
            aligned.plot(
                [s.epochs[i] - d for i in near], [100 * r[i].value for i in near],
                color=(*KINDS["decay"][0], shade), marker=KINDS["decay"][1], markersize=2.5, label=f"at {d}",
            )  # fmt: skip
        _decays(aligned, [0])
        aligned.set_title("around the decay", loc="left")
        aligned.set_xlabel("epochs since the decay")
        aligned.legend(frameon=False, handlelength=1.2)
    return figure


def feature_curves(study: EarlyStopping) -> Figure:
    """Success, natural and robust accuracy by epoch, a column a training set; the star is where SGD is stopped early.

    Bands are 95 % intervals over images and seeds. The star is chosen on other images and other targets.
    """
    with plt.rc_context(STYLE):
        names = list(study.robustness)
        figure, axes = plt.subplots(
            3, len(names), figsize=(WIDTH, 4.6), layout="constrained", sharey="row", sharex=True, squeeze=False
        )
        attacks = list(next(iter(study.robustness.values())).stands)
        for column, name in enumerate(names):
            seen, run = study.series[name], study.robustness[name]
            colour, marker = KINDS["decay"]
            _curve(axes[0, column], seen.epochs, [interval(seen.at(e)) for e in seen.epochs], colour, marker)
            stop = study.stops[name]
            axes[0, column].plot(stop, 100 * seen.at(stop).value, "*", color="black", markersize=9, zorder=5)
            _curve(axes[1, column], run.epochs, [interval(run.at(e)) for e in run.epochs], colour, marker)
            for attack, kind in zip(attacks[1:], ("decay", "cosine", "cyclic", "SAM"), strict=False):
                colour, marker = KINDS[kind]
                values = [100 * run.at(e, attack).value for e in run.epochs]
                axes[2, column].plot(run.epochs, values, color=colour, marker=marker, markersize=2.5, label=attack)
            for axis in axes[:, column]:
                _decays(axis, run.spec.schedule.milestones)
                axis.set_ylim(bottom=0)
            seeds = run.stands["none"].shape[0]
            axes[0, column].set_title(f"{name} ({counted_seeds(seeds)})", loc="left")
            axes[2, column].set_xlabel("epoch")
        for row, label in enumerate(("success rate, %", "natural accuracy, %", "robust accuracy, %")):
            axes[row, 0].set_ylabel(label)
        axes[2, -1].legend(frameon=False, handlelength=1.4, loc="upper right")
    return figure


def feature_budgets(study: EarlyStopping) -> Figure:
    """Success by epoch under several ε, a panel a training set, first seed; dots are each curve's highest point."""
    with plt.rc_context(STYLE):
        names = list(next(iter(study.budgets.values())))
        figure, axes = plt.subplots(1, len(names), figsize=(WIDTH, 2.1), layout="constrained", squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            for (eps, found), alpha in zip(sorted(study.budgets.items()), (0.35, 0.6, 0.8, 1.0), strict=False):
                run = found[name]
                rates = [100 * run.at(e).value for e in run.epochs]
                best = int(np.argmax(rates))
                axis.plot(run.epochs, rates, color=(*KINDS["decay"][0], alpha), label=f"ε = {255 * eps:g}/255")
                axis.plot(run.epochs[best], rates[best], "o", color=(*KINDS["decay"][0], alpha), markersize=4)
            _decays(axis, run.spec.schedule.milestones)
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
    with plt.rc_context(STYLE):
        size = (0.6 * n + 0.9, 0.6 * len(rows) + 0.3)
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        axis.imshow(grid, interpolation="nearest")
        axis.set_yticks([(i + 0.5) * height - 1 for i in range(len(rows))], list(rows))
        axis.set_xticks([(j + 0.5) * width - 1 for j in range(n)], captions)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return figure


def peak_table(series: dict[str, Series]) -> pd.DataFrame:
    """Where each mean curve is highest, there and at the end: a description, chosen after the fact."""
    rows = {}
    for name, s in series.items():
        curve = [s.at(e).value for e in s.epochs]
        best = int(np.argmax(curve))
        rows[name] = {
            "peak epoch": f"{s.epochs[best]:g}",
            "success there": f"{curve[best]:.1%}",
            "success at the end": f"{curve[-1]:.1%}",
            "natural accuracy there": f"{s.accuracy[:, best].mean():.1%}",
            "at the end": f"{s.accuracy[:, -1].mean():.1%}",
        }
    return pd.DataFrame(rows).T.rename_axis("schedule")


def sharpness_curves(series: dict[str, Series], flatness: dict[str, Flatness], decays: Sequence[int]) -> Figure:
    """Success rate, sharpness and training loss on one time axis; three groups of runs side by side.

    Left: the standard schedule against no decay. Middle: one decay at different epochs, aligned at it. Right: SGD,
    SAM and RFN under the standard schedule. Dots are seeds, lines their means (geometric, for sharpness); a group
    shows the seeds that all its runs have.
    """
    standard = next(n for n, f in flatness.items() if len(getattr(f.spec.schedule, "milestones", ())) > 1)
    groups = [
        ("two decays, none", {"constant": GREY, standard: KINDS["decay"][0]}),
        ("one decay", {f"decay at {d}": c for d, c in zip(decays, _shades(len(decays)), strict=True)}),
        (
            "minimizers",
            {standard: KINDS["SGD"][0], **{n: KINDS[n][0] for n in ("SAM", "RFN") if n in flatness}},
        ),
    ]
    rows = ["success rate, %", *MEASURES]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows), 3, figsize=(WIDTH, 1.45 * len(rows)), layout="constrained", sharey="row", sharex="col"
        )
        for column, (title, members) in enumerate(groups):
            seeds = min(len(flatness[name].values["top"]) for name in members)
            axes[0, column].set_title(f"{title} ({counted_seeds(seeds)})", loc="left")
            axes[-1, column].set_xlabel("epochs since the decay" if column == 1 else "epoch")
            for name, colour in members.items():
                run, seen = flatness[name], series[name].first(seeds)
                since = run.spec.schedule.milestones[0] if column == 1 else 0
                at = [e - since for e in run.epochs]
                marker = KINDS["decay" if name.startswith("decay") else name][1]
                label = "SGD" if column == 2 and name == standard else name
                rates = 100 * np.array([seen.at(e).value for e in run.epochs])
                axes[0, column].plot(at, rates, color=colour, marker=marker, markersize=2.5, label=label)
                for row, measure in enumerate(MEASURES, 1):
                    values = run.values[measure][:seeds]
                    axes[row, column].plot(at, values.T, ".", color=colour, markersize=2, alpha=0.5)
                    mean = np.exp(np.log(np.where(values > 0, values, np.nan)).mean(0))
                    axes[row, column].plot(at, mean, color=colour, marker=marker, markersize=2.5)
            for row in range(len(rows)):
                axis = axes[row, column]
                _decays(axis, [0] if column == 1 else flatness[standard].spec.schedule.milestones)
                if row:
                    _logarithmic(axis)
                if column == 0:
                    axis.set_ylabel(rows[row] if row == 0 else MEASURES[rows[row]])
            axes[0, column].legend(frameon=False, handlelength=1.4, loc="best")
    return figure


def _logarithmic(axis: Any) -> None:
    """A logarithmic y axis whose ticks are plain numbers, few decades or many."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(NullLocator())


def _shades(n: int) -> list[Any]:
    return [(*KINDS["decay"][0], a) for a in np.linspace(1.0, 0.4, n)]


def gain_chart(found: dict[str, Gains]) -> Figure:
    """Gains over SGD stopped early, in points: dots are targets, bars the mean with its 95 % interval.

    One panel a surrogate architecture; 0 is SGD stopped early, "SGD" the same trained to its end.
    """
    with plt.rc_context(STYLE):
        most = max(len(g.series) for g in found.values())
        figure, axes = plt.subplots(
            1, len(found), figsize=(WIDTH, 0.26 * most + 1.0), layout="constrained", sharex=True, squeeze=False
        )
        for axis, (arch, gains) in zip(axes[0], found.items(), strict=True):
            names = list(gains.series)[::-1]
            for y, name in enumerate(names):
                colour = KINDS.get(name, (GREY, "o"))[0]
                each = [100 * f.difference.value for f in gains.against_stopping(name)]
                axis.plot(each, [y] * len(each), ".", color=colour, alpha=0.6, markersize=4)
                d = interval(gains.gain(name, gains.stop))
                error = [[100 * (d.value - d.low)], [100 * (d.high - d.value)]]
                axis.errorbar(100 * d.value, y, xerr=error, fmt=KINDS.get(name, (GREY, "o"))[1], color=colour,
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
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 1.9), layout="constrained")
        for (arch, frame), (colour, marker) in zip(found.items(), (KINDS["RFN"], KINDS["cosine"]), strict=False):
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
            _logarithmic(axis)
        axes[0].legend(frameon=False, handlelength=1.4)
    return figure


def rival_chart(found: Rivalry) -> Figure:
    """Success of every surrogate on standard and on robust targets, with 95 % intervals; dotted: RFN's mean."""
    with plt.rc_context(STYLE):
        panels = {"standard targets": found.series, "robust targets": found.robust}
        names = found.by_success()[::-1]  # from below
        figure, axes = plt.subplots(
            1, 2, figsize=(WIDTH, 0.24 * len(names) + 0.9), layout="constrained", sharey=True, width_ratios=(3, 2)
        )
        for axis, (title, series) in zip(axes, panels.items(), strict=True):
            for y, name in enumerate(names):
                rate = interval(series[name].at(series[name].end))
                error = [[100 * (rate.value - rate.low)], [100 * (rate.high - rate.value)]]
                colour, marker = KINDS.get(name.split(",")[0], (GREY, "o"))
                axis.errorbar(100 * rate.value, y, xerr=error, fmt=marker, color=colour, markersize=4, capsize=2,
                              linewidth=1)  # fmt: skip
            axis.axvline(100 * series["RFN"].at(series["RFN"].end).value, color=KINDS["RFN"][0], linewidth=0.8,
                         linestyle=":", zorder=0)  # fmt: skip
            axis.set_xlim(left=0)
            axis.set_title(title, loc="left")
            axis.set_xlabel("success rate, %")
        axes[0].set_yticks(range(len(names)), [f"{n} ({len(found.series[n].accuracy)})" for n in names])
        axes[0].set_ylabel("surrogate (seeds)")
    return figure


def technique_chart(found: Grid) -> Figure:
    """Success of every surrogate, a row, under every technique, a column, in per cent; first seed."""
    rates = 100 * found.success()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 0.32 * len(rates) + 0.9), layout="constrained")
        sns.heatmap(
            rates, annot=True, fmt=".0f", cmap="viridis", ax=axis, linewidths=0.5, cbar_kws={"label": "success rate, %"}
        )
        axis.tick_params(length=0, labelrotation=0)
        axis.set_xlabel("")
    return figure


def trade_off_chart(frame: pd.DataFrame) -> Figure:
    """Success over white-box robust accuracy: SAT by ε and RFN by ρ; both begin at SGD, which has 0 of either."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.6 * WIDTH, 2.4), layout="constrained")
        for (name, of), kind, sign in zip(frame.groupby(level=0, sort=False), ("cosine", "RFN"), "ερ", strict=True):
            colour, marker = KINDS[kind]
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


def examples(clean: np.ndarray, adversarial: np.ndarray, captions: Sequence[tuple[str, str]], gain: float) -> Figure:
    """Rows of clean image, perturbation × `gain` and adversarial image, a column an image.

    Images are (N, H, W) in [0, 1]; `captions` are (before, after) predictions.
    """
    with plt.rc_context(STYLE):
        n = len(clean)
        figure, axes = plt.subplots(3, n, figsize=(0.85 * n + 0.9, 3.0), layout="constrained", squeeze=False)
        shown = (clean, 0.5 + gain * (adversarial - clean) / 2, adversarial)
        for row, (images, label) in enumerate(
            zip(shown, ("clean", f"perturbation × {gain:g}", "adversarial"), strict=True)
        ):
            for column in range(n):
                axis = axes[row, column]
                axis.imshow(
                    images[column],
                    cmap="gray" if row != 1 else "RdBu_r",
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                )
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                if row != 1:
                    axis.set_xlabel(captions[column][row // 2], labelpad=1.5)
            axes[row, 0].set_ylabel(label)
    return figure


def _decays(axis: Any, epochs: Sequence[float]) -> None:
    """Where the learning rate decays."""
    for d in epochs:
        axis.axvline(d, color="0.75", linewidth=0.8, linestyle=":", zorder=0)


def _curve(
    axis: Any,
    epochs: list[float],
    rates: list,
    colour: Any,
    marker: str | None,
    faint: bool = False,
) -> None:
    middle, low, high = (100 * np.array([getattr(r, k) for r in rates]) for k in ("value", "low", "high"))
    if faint:
        axis.plot(epochs, middle, color=colour, linewidth=0.8, zorder=1)
        return
    axis.plot(epochs, middle, color=colour, marker=marker, markersize=2.5)
    axis.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
