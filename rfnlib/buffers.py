"""A module's buffers (BatchNorm's running statistics above all): kept, and put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfnlib.vectors import copies, copy_all

Held = list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]


@torch.no_grad()
def hold(model: nn.Module) -> Held:
    """For each buffer of `model`: the dictionary that it hangs in, its name, itself, and a copy of its values."""
    homes = [(m._buffers, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    return [(*home, copy) for home, copy in zip(homes, copies([b for *_, b in homes]), strict=True)]


@torch.no_grad()
def put_back(held: Held) -> None:
    """Give the buffers that `hold` saw their values back, and hang up again those that were replaced."""
    for home, name, buffer, _ in held:
        if home[name] is not buffer:  # some modules hang up a new tensor instead of writing into the old
            home[name] = buffer
    copy_all([buffer for *_, buffer, _ in held], [copy for *_, copy in held])
