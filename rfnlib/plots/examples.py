"""The figure of notebook 00: adversarial examples, and what they differ in."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rfnlib.plots import style


def examples(clean: np.ndarray, adversarial: np.ndarray, captions: Sequence[tuple[str, str]], gain: float) -> Figure:
    """Rows of clean image, perturbation × `gain` and adversarial image, a column an image.

    Images are (N, H, W) in [0, 1]; `captions` are (before, after) predictions.
    """
    with style.styled():
        n = len(clean)
        figure, axes = plt.subplots(3, n, figsize=(0.85 * n + 0.9, 3.0), layout="constrained", squeeze=False)
        shown = (clean, 0.5 + gain * (adversarial - clean) / 2, adversarial)
        for row, (images, label) in enumerate(
            zip(shown, ("clean", f"perturbation\n× {gain:g}", "adversarial"), strict=True)
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
