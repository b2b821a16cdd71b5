"""Released weights: networks in half precision, small enough to be committed, and named by the digest of what they are.

Every network is measured after rounding, so that records are about these very weights wherever they are read. A target
is put here as soon as it is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfnlib import snapshots
from rfnlib.specs import TrainSpec

Weights = dict[str, Tensor]


def rounded(weights: Weights) -> Weights:
    """Floating-point weights to half precision and back; a tensor that half precision cannot hold stays as it is."""
    return {name: _half(value).to(value.dtype) for name, value in weights.items()}


def _half(value: Tensor) -> Tensor:
    half = value.half() if value.is_floating_point() else value
    return half if half.isfinite().all() else value


def path_of(folder: Path, spec: TrainSpec) -> Path:
    """The file of `spec`'s last network in `folder`, there or not."""
    return folder / f"{spec.short_name}-{spec.key()}.safetensors"


def obtain(
    folder: Path, spec: TrainSpec, trained: Callable[[], tuple[Weights, dict[str, Any]]]
) -> tuple[Weights, dict[str, Any]]:
    """The released weights of `spec`'s last network in float32, and what their file says about them.

    Args:
        trained: gives weights and facts about them where nothing is released; they are rounded and written.

    Raises:
        DamagedSnapshot: the file was altered since it was written.
    """
    path = path_of(folder, spec)
    if not path.exists():
        weights, about = trained()
        write(path, weights, spec=spec.describe(), **about)
    return read(path)


def write(path: Path, weights: Weights, **about: Any) -> None:
    """Write `weights`, rounded, to `path`, with more about them that is JSON."""
    halves = {name: _half(value) for name, value in weights.items()}
    snapshots.write(path, halves, "released", path.stem, **about)


def read(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The weights at `path` in float32, and what the file says about them.

    Raises:
        DamagedSnapshot: it was altered since it was written, or is another one under this name.
    """
    halves, about = snapshots.read(path, "released", path.stem)
    return {k: v.to(torch.float32) if v.dtype == torch.float16 else v for k, v in halves.items()}, about
