"""What all figures share: size, type, a colour and a marker a method, curves with intervals; and how cells show it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from rfnlib import data, paths, zoo
from rfnlib.intervals import Estimate

WIDTH = 8.0  # inches: a page's column, at 110 pixels an inch
PIXELS_PER_INCH = 110  # as shown; files hold twice as many
UNSEEN = 40  # levels of 255 that the colour of a pixel may be off: more is seen on a line or a marker
ROOM = {12: "white-space: nowrap", 60: "min-width: 6em", 100: "min-width: 9em"}  # by the length of a cell's text
STYLE = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.5,
    "lines.markersize": 3,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "figure.dpi": PIXELS_PER_INCH,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 2 * PIXELS_PER_INCH,
    "pdf.fonttype": 42,
    "text.usetex": False,
}
PALETTE = sns.color_palette("colorblind")
GREY = "0.45"
# One colour and one marker a method, everywhere; the names of arms begin with these.
KINDS: dict[str, tuple[Any, str]] = {
    "constant": (GREY, "o"),
    "decay": (PALETTE[0], "s"),
    "cosine": (PALETTE[2], "^"),
    "cyclic": (PALETTE[1], "D"),
    "SGD": (PALETTE[0], "s"),
    "SAM": (PALETTE[4], "v"),
    "RFN": (PALETTE[3], "P"),
    "SAT": (PALETTE[5], "X"),
    "LGV": (PALETTE[9], "^"),
}


def kind(name: str) -> tuple[Any, str]:
    """Colour and marker of the arm called `name`, such as "decay at 50" or "RFN, ρ 0.3"; grey for the others.

    >>> kind("SAM, ρ 0.05") == kind("SAM")
    True
    """
    return KINDS.get(name.replace(",", " ").split()[0], (GREY, "o"))


def shades(n: int) -> list[Any]:
    """`n` shades of the colour of decays, full first, for those at several epochs."""
    colour = np.array(KINDS["decay"][0])
    return [tuple(1 - a * (1 - colour)) for a in np.linspace(1.0, 0.5, n)]


def band(axis: Axes, margin: float) -> None:
    """Grey where a difference in points is too small to matter, ± `margin` (in [0, 1]), and a line at 0."""
    axis.axvspan(-100 * margin, 100 * margin, color="0.93", linewidth=0, zorder=0)
    axis.axvline(0, color="0.5", linewidth=0.8)


def vacant(axis: Axes) -> None:
    """Say of a panel without data why it has none."""
    axis.text(0.5, 0.5, "not recorded yet", transform=axis.transAxes, ha="center", va="center", color=GREY)


def rows(axis: Axes, labels: Sequence[str], bold: int | None = None) -> None:
    """Rows called `labels` from the top, one of them in bold."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    if bold is not None:
        axis.get_yticklabels()[bold].set_fontweight("bold")


def styled() -> Any:
    """A context in which figures are drawn: `with style.styled():`."""
    return plt.rc_context(STYLE)


def show(figure: Figure, name: str, alt: str) -> None:
    """Write `figure` to the figures' folder as PNG and PDF, byte-stable, and display it.

    Args:
        name: of the files, without an ending.
        alt: what the figure shows, in words, for those who do not see it. It goes into the PNG, into the metadata of
            the output, and stands for the figure where only text is shown.
    """
    folder = paths.figures_dir()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _png(figure, alt)
    (folder / f"{name}.png").write_bytes(drawn)
    with styled():
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    _display(drawn, figure, alt)


def flash(figure: Figure, alt: str) -> None:
    """Display `figure` and write it nowhere: where a slider draws a new one at every move."""
    _display(_png(figure, alt), figure, alt)


def _png(figure: Figure, alt: str) -> bytes:
    """`figure` in 256 colours, which take a third of the bytes, for a notebook holds several of them.

    One that has more shades than these can show, such as a picture with lines on it, keeps its own.
    """
    drawn, smaller, described = io.BytesIO(), io.BytesIO(), PngInfo()
    described.add_itxt("Description", alt)
    with styled():
        figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        every = image.convert("RGB")
    few = every.quantize(256, dither=Image.Dither.NONE, kmeans=1)
    off = np.asarray(ImageChops.difference(every, few.convert("RGB"))).max()
    (few if off <= UNSEEN else every).save(smaller, "png", pnginfo=described, optimize=True)
    return smaller.getvalue()


def _display(png: bytes, figure: Figure, alt: str) -> None:
    width, height = (round(PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    shown = {"alt": alt, "width": width, "height": height}
    content = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(content, metadata={"image/png": shown}, raw=True)
    plt.close(figure)


def table(frame: pd.DataFrame) -> None:
    """Display a table of words, whole: no cell is cut short, text begins at the left, and lines break where they may.

    Cells with an interval or a sentence are given the room for it, and those with a word no more than that.
    """
    if frame.empty:
        display({"text/plain": "not recorded yet"}, raw=True)
        return
    named = frame.rename_axis(columns=frame.index.name).rename_axis(index=None)  # one row of headings
    with pd.option_context("display.max_colwidth", None, "display.width", 200):
        html = re.sub("<(t[dh])>([^<]*)", _cell, named.to_html(border=0, justify="left"))
        display({"text/html": html, "text/plain": named.to_string()}, raw=True)


def _cell(of: re.Match[str]) -> str:
    kind, text = of.groups()
    room = next((how for most, how in ROOM.items() if len(text) <= most), "min-width: 16em")
    free = kind == "th" and len(text) > min(ROOM)  # a long heading is as wide as its column
    return f'<{kind} style="text-align: left{"" if free else f"; {room}"}">{text}'


@contextmanager
def or_say_why() -> Iterator[None]:
    """What is computed inside of it, or a sentence: that weights are not released, or that images are not here."""
    try:
        yield
    except (zoo.NotReleased, data.DataError) as why:
        print(f"Nothing is computed here: {why}")


def curve(
    axis: Axes,
    epochs: Sequence[float],
    rates: Sequence[Estimate],
    colour: Any,
    marker: str | None = None,
    factor: float = 100,
    **line: Any,
) -> None:
    """A line through the values of `rates`, times `factor`, and a band over their intervals, where these are known.

    Of two seeds there is no band: their interval reaches 12.7 standard errors to either side.
    """
    middle, low, high = (factor * np.array([getattr(r, k) for r in rates]) for k in ("value", "low", "high"))
    known = np.isfinite(high - low) & np.array([r.telling for r in rates])
    axis.plot(epochs, middle, color=colour, marker=marker, **line)
    axis.fill_between(epochs, low, high, where=known, color=colour, alpha=0.18, linewidth=0)


def whisker(axis: Axes, at: Estimate, y: float, colour: Any, marker: str = "o", factor: float = 100) -> None:
    """A marker at the value of `at`, times `factor`, in row `y`, with a horizontal bar over its interval.

    Of two seeds there is none, as in `curve`.
    """
    # Near 0 and 1 the middle of an interval lies inside of the value, which may then be beyond its end.
    below, above = factor * max(at.value - at.low, 0), factor * max(at.high - at.value, 0)
    error = [[below], [above]] if at.telling else None
    axis.errorbar(factor * at.value, y, xerr=error, fmt=marker, color=colour, markersize=5, capsize=2.5, linewidth=1.2)


def decays(axis: Axes, epochs: Iterable[float]) -> None:
    """Dotted lines where the learning rate decays."""
    for epoch in epochs:
        axis.axvline(epoch, color="0.7", linewidth=0.8, linestyle=":", zorder=0)


def logarithmic(axis: Axes, which: str = "y") -> None:
    """A logarithmic axis, "x" or "y", whose ticks are plain numbers, few decades or many, and never fewer than two."""
    line = axis.xaxis if which == "x" else axis.yaxis
    axis.set(**{f"{which}scale": "log"})
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    if high / low < 2.5:  # two neighbours among the fine ticks are never further apart than this
        low, high = (np.sqrt(low * high) * r for r in (2.5**-0.5, 2.5**0.5))
        axis.set(**{f"{which}lim": (low, high)})
    fine = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    subs = fine if high / low < 10 else (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    line.set_major_locator(LogLocator(subs=subs))
    line.set_major_formatter(FormatStrFormatter("%g"))
    line.set_minor_locator(NullLocator())
