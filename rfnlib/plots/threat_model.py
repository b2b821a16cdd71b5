"""Figures of notebook 07: what RFN gains in each setting, and how often each surrogate fools there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfnlib.intervals import Estimate, Influence, interval
from rfnlib.lab import MissingRecord
from rfnlib.plots import style

if TYPE_CHECKING:
    from rfnlib.studies.threat_model import ThreatModel

TITLES = {"Q4": "the attacker's training set", "Q5": "the targets' training", "Q6": "the attack"}
SHOWN = ("SGD, stopped early", "SGD", "RFN")
MEAN = "mean, which is judged"
SHIFTS = (-0.22, 0.0, 0.22)


def gains(found: ThreatModel, margin: float) -> Figure:
    """The headline: what RFN gains over SGD stopped early in every setting, a panel a question.

    Grey: the setting of notebook 04, and for Q5 the target there that most of its targets are once more, same seeds.
    Bold: what is judged, where it is a mean that mean. Bars are 95 % intervals over images and seeds; within the grey
    band, ± `margin` (in [0, 1]), a difference is too small to matter.
    """
    panels = {claim: list(_differences(found, claim)) for claim in TITLES}
    with style.styled():
        figure, axes = _panels({claim: len(rows) for claim, rows in panels.items()})
        for axis, rows in zip(axes, panels.values(), strict=True):
            style.band(axis, margin)
            for y, (_, difference, judged) in enumerate(rows):
                colour, marker = style.kind("RFN" if judged is not None else "others")
                style.whisker(axis, interval(difference), y, colour, "D" if judged else marker)
            _rows(axis, [name for name, *_ in rows], bold=next((y for y, row in enumerate(rows) if row[2]), None))
        axes[-1].set_xlabel("gain in success of RFN over SGD stopped early, points")
    return figure


def levels(found: ThreatModel) -> Figure:
    """In detail: success of each surrogate in every setting that has it, with 95 % intervals."""
    panels = {claim: dict(_rates(found, claim)) for claim in TITLES}
    with style.styled():
        figure, axes = _panels({claim: 1.3 * len(rows) for claim, rows in panels.items()})
        for axis, rows in zip(axes, panels.values(), strict=True):
            for y, rates in enumerate(rows.values()):
                for shift, (name, rate) in zip(SHIFTS, rates.items(), strict=True):
                    colour, marker = style.kind(name)
                    if rate is not None:
                        faded = style.GREY if name == SHOWN[0] else colour
                        style.whisker(axis, rate, y + shift, faded, marker)
            _rows(axis, list(rows))
        for name in SHOWN:
            colour, marker = style.kind(name)
            axes[0].plot([], [], marker, color=style.GREY if name == SHOWN[0] else colour, label=name)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(SHOWN))
        axes[-1].set_xlabel("success, %")
    return figure


def _differences(found: ThreatModel, claim: str) -> Iterator[tuple[str, Influence, bool | None]]:
    """The rows of a question and whether each is judged: those of the primary difference, their mean.

    Before them, for comparison (None), the usual setting, and for Q5 the first target there.
    """
    try:
        yield found.usual, found.gain(claim, found.usual), None
        if claim == "Q5":
            yield found.first_target, found.gain(claim, found.usual, targets=[0]), None
    except MissingRecord:
        pass
    try:
        ways = found.ways(claim)
        for name, way in ways.items():
            yield name, found.gain(claim, **way), len(ways) == 1
        if len(ways) > 1:
            yield MEAN, found.primary(claim), True
    except MissingRecord:
        return


def _rates(found: ThreatModel, claim: str) -> Iterator[tuple[str, dict[str, Estimate | None]]]:
    curves = found.curves[claim]
    try:
        ways = {found.usual: {"setting": found.usual}, **found.ways(claim)}
    except MissingRecord:
        return
    beside = {name: {"setting": name} for name, _ in curves if name not in ways} if claim != "Q5" else {}
    for name, way in {**ways, **beside}.items():
        targets = way.get("targets")
        seen = {s: curves.get((way["setting"], s)) for s in SHOWN}
        if any(seen.values()):
            yield name, {s: interval(c.at(targets=targets)) if c else None for s, c in seen.items()}


def _panels(rows: dict[str, float]) -> tuple[Figure, list[Axes]]:
    """A panel a question, one below the other, as high as it has rows."""
    heights = [max(n, 1) for n in rows.values()]
    size = (style.WIDTH, 0.27 * sum(heights) + 0.4 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), 1, figsize=size, sharex=True, height_ratios=heights)
    for axis, claim in zip(axes, rows, strict=True):
        axis.set_title(f"{claim}: {TITLES[claim]}")
    return figure, list(axes)


def _rows(axis: Axes, names: list[str], bold: int | None = None) -> None:
    """Rows from above, with their names; one of them in bold. Without any, it says so."""
    style.rows(axis, names, bold=bold)
    if not names:
        style.vacant(axis)
