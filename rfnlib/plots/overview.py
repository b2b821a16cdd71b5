"""The figure of all claims, for notebook 00: each primary difference beside what would matter."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rfnlib.claims import Verdict
from rfnlib.plots import style

COLOURS = {"supported": style.PALETTE[2], "contradicted": style.PALETTE[3], "no effect": style.PALETTE[0]}


def verdicts(found: Sequence[Verdict]) -> Figure:
    """The primary differences of the claims in units of their margins, with 95 % intervals, and the verdicts in words.

    Within the grey band a difference is too small to matter. What claims no more than to be no worse must lie above
    −1, the dashed mark. An interval that is not known, or wider than the figure, ends at its edge.
    """
    rows = [(v, what, e) for v in found for what, e in zip(v.what, v.estimates, strict=True)]
    with style.styled():
        figure, axis = plt.subplots(figsize=(style.WIDTH, 0.42 * len(rows) + 0.9))
        style.band(axis, 0.01)
        spans = [(max(-e.low, e.high) / v.claim.margin, abs(e.value) / v.claim.margin) for v, _, e in rows]
        reach = max([3.0, *(min(1.05 * end, 2 * value + 3) for end, value in spans)])
        for y, (v, _, e) in enumerate(rows):
            colour, unit = COLOURS.get(v.word, style.GREY), v.claim.margin
            low, high = np.clip([e.low / unit, e.high / unit], -reach, reach)
            axis.plot([low, high], [y, y], color=colour)
            axis.plot(e.value / unit, y, "o", color=colour, markersize=6)
            if v.claim.non_inferiority:  # it is no worse: what must lie above this line
                axis.plot([-1, -1], [y - 0.35, y + 0.35], color="0.3", linestyle="--", linewidth=1)
            axis.annotate(v.word, (1.02, y), xycoords=("axes fraction", "data"), va="center", color=colour)
        style.rows(axis, [f"{v.claim.id}: {what}" for v, what, _ in rows])
        axis.set_xlim(-reach, reach)
        axis.set_xlabel("difference, in units of what would matter (the margin of each claim)")
    return figure
