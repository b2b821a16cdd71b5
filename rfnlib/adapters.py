"""Models from elsewhere made to map images in [0, 1] to logits, and what speaks against one that does not.

>>> Adapted(resnet, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224)  # doctest: +SKIP
>>> Adapted(transformer, pick="logits", classes=[404, [436, 817]])  # a dictionary, 2 of its classes  # doctest: +SKIP
>>> Asked(lambda images: requests.post(url, …).json()["labels"], "api of 2026-11", classes=10)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib.attacks import frozen
from rfnlib.checks import logits_of, require
from rfnlib.surrogates import Logits

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation a channel, as most libraries have them
CHANCE, BETTER, SURELY = 3.0, 0.03, 4.0  # deviations above chance, a gain that counts, deviations that it takes


class Adapted(nn.Module):
    """A model behind what it wants of its images, in front of what is wanted of its outputs.

    x ← resized;  x ← (x − mean) / std;  x ← in the type of the weights;  z = pick(model(x)) in float32, then z_classes

    Args:
        model: a module.
        mean, std: a channel, in units of [0, 1]. Three of them make three channels of a grey image.
        size: of a side, or (height, width): bilinear, with antialiasing.
        pick: where the logits are in what the model returns, see `surrogates.Logits`.
        classes: which outputs are the classes, in the order of the labels; a list of several of them is a class that
            has the logarithm of their summed exponentials for logit.

    Raises:
        ValueError: no module, or a mean without a deviation.
    """

    mean: Tensor | None
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | tuple[int, int] | None = None,
        pick: str | int | Callable[[Any], Tensor] | None = None,
        classes: Sequence[int | Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        kind = type(model).__name__
        require(isinstance(model, nn.Module), f"the model is a {kind}; give a module, or Asked(function, version).")
        require((mean is None) == (std is None), f"mean is {mean}, std {std}; give both, or none of them.")
        self.model = model if pick is None else Logits(model, pick)
        self.size = (size, size) if isinstance(size, int) else size
        self.pick = pick
        self.groups = classes and [list(c) if isinstance(c, Sequence) else [c] for c in classes]
        for name, value in (("mean", mean), ("std", std)):
            held = None if value is None else torch.tensor(value, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, held)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K), float32, of images (N, C, H, W) in [0, 1]."""
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        if self.mean is not None:
            x = (x - self.mean.to(x)) / self.std.to(x)
        weights = next((p for p in self.model.parameters() if p.is_floating_point()), x)
        returned = self.model(x.to(weights.dtype))
        if not isinstance(returned, Tensor):
            return returned  # whoever asked says what to do about it
        logits = returned.float() if returned.dtype in (torch.float16, torch.bfloat16) else returned
        if self.groups is None:
            return logits
        return torch.stack([logits[:, group].logsumexp(1) for group in self.groups], 1)

    def extra_repr(self) -> str:
        """All that is no weight: part of the digest that records know it by."""
        pick = getattr(self.pick, "__qualname__", self.pick)
        return f"size={self.size}, pick={pick!r}, classes={self.groups}"


class Asked(nn.Module):
    """A function as a module: another library's model, a service. As a target it need give labels alone.

    Args:
        ask: from images, float (N, C, H, W) in [0, 1], to logits or other scores (N, K), or to labels (N,); tensors,
            arrays or lists. To be attacked it must let gradients through.
        version: what records know it by, since there are no weights to take a digest of: a checksum, a release, a day.
        classes: how many there are, where it gives labels.
        batch_size: images asked about at once, at most.

    Raises:
        ValueError: no version; labels without `classes`; and a gradient that it does not give.
    """

    def __init__(
        self, ask: Callable[[Tensor], Any], version: str, classes: int | None = None, batch_size: int = 256
    ) -> None:
        super().__init__()
        require(isinstance(version, str) and version, f"version is {version!r}; give a text that tells this one apart.")
        self.ask, self.version, self.classes, self.batch_size = ask, version, classes, batch_size

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K); of labels, 1 for the class and 0 for the others."""
        answers = torch.cat([torch.as_tensor(self.ask(part)) for part in x.split(self.batch_size)]).to(x.device)
        if answers.dim() == 1:
            require(self.classes, f"{len(x)} images give {len(answers)} labels; give classes=, their number.")
            answers = F.one_hot(answers.long(), self.classes or -1).to(x)
        asked = x.requires_grad and torch.is_grad_enabled()
        require(
            answers.requires_grad or not asked,
            "this function gives no gradient, so it is a target and no surrogate; attack another network, and try the "
            "examples on this one.",
        )
        return answers

    def extra_repr(self) -> str:
        """What records know it by."""
        return f"version={self.version!r}, classes={self.classes}"

    def __deepcopy__(self, memo: dict) -> Asked:
        return self  # a connection is not copied


def doubt(
    model: nn.Module, images: Tensor, labels: Tensor, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> str:
    """What speaks against using `model` as it is, in a sentence; empty if nothing does.

    That is: accuracy near chance, or accuracy that is surely higher once images are normalised, by `mean` and `std`,
    by ImageNet's, to [−1, 1] or to levels of 255.

    Args:
        images: float (N, C, H, W) in [0, 1], such as the first 200 test images.
        labels: int64 (N,).
    """
    n = len(labels)
    right, k = _right(model, images, labels)
    ways = {"the data's": (mean, std)} if len(mean) else {}
    ways |= {"ImageNet's": IMAGENET} if images.shape[1] == 3 else {}
    ways |= {"those of [−1, 1]": ((0.5,), (0.5,)), "those of levels": ((0.0,), (1 / 255,))}
    said = f"the model is right on {float(right.float().mean()):.1%} of {n} images"
    found = {of: _right(Adapted(model, mean=m, std=s), images, labels)[0] for of, (m, s) in ways.items()}
    of, better = max(found.items(), key=lambda item: int(item[1].sum()))
    gained, lost = int((better & ~right).sum()), int((right & ~better).sum())
    chance = n / k + CHANCE * math.sqrt(n / k * (1 - 1 / k))  # images that a guess would hardly get right
    if int(better.sum()) > 2 * chance and gained - lost > max(BETTER * n, SURELY * math.sqrt(gained + lost)):
        m, s = ([round(float(v), 4) for v in values] for values in ways[of])
        return (
            f"{said} as they are and on {float(better.float().mean()):.1%} of them normalised by {of} mean and "
            f"deviation; give Adapted(model, mean={m}, std={s})."
        )
    if int(right.sum()) <= chance:
        return (
            f"{said}, which is chance for its {k} classes; look for another order of the classes "
            "(Adapted(model, classes=…)), other images, or weights that were not loaded."
        )
    return ""


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """On which images the model is right, bool (N,), and how many classes it has."""
    with frozen([model]):
        logits = torch.cat([logits_of(model, part) for part in images.split(250)])
    return logits.argmax(1) == labels, logits.shape[1]
