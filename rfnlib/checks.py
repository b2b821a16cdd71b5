"""What a value is, and the refusal of one that is not what it must be: in one sentence that says the way out."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn


def require(ok: Any, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless `ok`.

    Args:
        ok: anything with a truth value.
        message: one sentence that names the value, what is allowed, and the way out.
        error: the caller's own, so that it can be told from others.
    """
    if not ok:
        raise error(message)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite number (no bool) from `low` to `high`.

    >>> is_number(0.5, 0, 1), is_number(True), is_number("0.5"), is_number(math.nan)
    (True, False, False, False)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max and low <= value <= high


def is_whole(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is an integer (no bool) from `low` to `high`.

    >>> is_whole(3, 1), is_whole(3.0), is_whole(False)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def meant(name: Any, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is nearest, if one is near.

    >>> meant("sam", ["SAM", "GNP"]), meant("x", ["SAM", "GNP"])
    ("; 'SAM' may be meant", '')
    """
    names = {of.lower(): of for of in known}
    return "".join(f"; {names[near]!r} may be meant" for near in get_close_matches(str(name).lower(), names, 1))


# --- images, labels and logits -----------------------------------------------------------------------------


def require_images(images: Any, error: type[Exception] = ValueError) -> None:
    """Refuse `images` unless they are a tensor of floats (N, C, H, W), N from 0, in [0, 1]."""
    _require_tensor("images", images, "floats", error)
    require(
        images.dim() == 4 and images.is_floating_point(),
        f"images are {images.dtype} of shape {tuple(images.shape)}; give floats of shape (N, C, H, W) in [0, 1].",
        error,
    )
    if len(images):
        low, high = map(float, images.detach().aminmax())
        inside = 0 <= low and high <= 1  # False for NaN too
        way_out = "divide them by 255" if 0 <= low and 1 < high <= 255 else "scale them to [0, 1]"
        require(inside, f"images range over [{low:.4g}, {high:.4g}]; {way_out} (normalise in the model).", error)


def require_labels(labels: Any, n: int, error: type[Exception] = ValueError) -> None:
    """Refuse `labels` unless they are a tensor int64 (n,) of classes from 0."""
    _require_tensor("labels", labels, "int64", error)
    fits = labels.shape == (n,) and labels.dtype == torch.int64
    given = f"labels are {labels.dtype} of shape {tuple(labels.shape)}"
    require(fits, f"{given}; give torch.int64 of shape ({n},).", error)
    if n:
        require(int(labels.min()) >= 0, f"labels hold {int(labels.min())}; classes count from 0.", error)


def _require_tensor(name: str, value: Any, kind: str, error: type[Exception]) -> None:
    way_out = f"torch.from_numpy({name})" if type(value).__module__ == "numpy" else f"a torch.Tensor of {kind}"
    require(isinstance(value, Tensor), f"{name} are a {_kind(value)}; give {way_out}.", error)


def is_model(value: Any) -> bool:
    """Whether `value` can be called on images: a `ModuleList` has no `forward`."""
    return callable(value) and type(value) is not nn.ModuleList


def require_model(
    model: Any,
    error: type[Exception] = ValueError,
    name: str = "the model",
    way_out: str = "one module or function (surrogates.Ensemble makes one of several)",
) -> None:
    """Refuse what is no model, such as the name of one."""
    if is_model(model):
        return
    if isinstance(model, str):
        raise error(f"{name} is {model!r}; give the network of this name, rfnlib.zoo.load({model!r}).")
    of = f" of shape {tuple(model.shape)}" if isinstance(model, Tensor) else ""
    raise error(f"{name} is a {_kind(model)}{of}; give {way_out}.")


def logits_of(model: Callable[[Tensor], Any], images: Tensor, error: type[Exception] = ValueError) -> Tensor:
    """`model(images)`: logits (N, K) of images (N, C, H, W).

    Raises:
        error: for what is no model, or returns something else, or whose weights are of another type or device than
            `images`, or which begins with a convolution of other channels.
    """
    require_model(model, error)
    try:
        logits = model(images)
    except RuntimeError as reason:
        if isinstance(model, nn.Module) and (why := _unlike(model, images)):
            first, *_ = str(reason).split("\n")
            raise error(f"{why} ({first}).") from reason
        raise
    if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(images):
        return logits
    if isinstance(logits, Tensor):
        shape, n = tuple(logits.shape), len(images)
        raise error(f"the model returns {shape} for {n} images; give one that returns logits ({n}, classes).")
    names = f" of {', '.join(map(repr, logits))}" if isinstance(logits, Mapping) else ""
    pick = repr(next(iter(logits), "logits")) if isinstance(logits, Mapping) else "0"
    raise error(f"the model returns a {_kind(logits)}{names}, not logits; give surrogates.Logits(model, {pick}).")


def _unlike(model: nn.Module, images: Tensor) -> str:
    """What tells `images` from those that `model` takes, and the way out; else nothing."""
    kinds = {(p.dtype, p.device) for p in model.parameters()}
    if len(kinds) == 1 and kinds != {(images.dtype, images.device)}:
        ((dtype, device),) = kinds
        given = f"images are {images.dtype} on {images.device}, the model's weights {dtype} on {device}"
        return f"{given}; give images.to({str(device)!r}, {dtype}), or move the model"
    shape = tuple(images.shape)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if channels is None or len(shape) != 4 or channels == shape[1]:
        return ""
    way_out = "images.permute(0, 3, 1, 2)" if channels == shape[-1] else "such images"
    return f"images are of shape {shape}, the model's first convolution takes (N, {channels}, H, W); give {way_out}"


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
