"""Names for what was computed: the canonical form of plain values, the keys they hash to, digests, random streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def canonical(value: Any) -> Any:
    """`value` as JSON data, the same for equal meanings.

    Dataclasses become dicts with their class under `is`. Fields at their default are left out, so that a field
    added later leaves old keys alone; hence a default never changes.

    >>> canonical((2.0, {1: None}))
    [2, {'1': None}]
    """
    if value is None or isinstance(value, str | int):  # most of what is asked for
        return value
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: canonical(getattr(value, f.name)) for f in fields(value) if not _default(f, value)}
        return {"is": type(value).__name__, **kept}
    if isinstance(value, dict):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 2 and 2.0 mean the same
    return value


def _default(field: Field, owner: Any) -> bool:
    return field.default is not MISSING and getattr(owner, field.name) == field.default


def key(*parts: Any) -> str:
    """16 hexadecimal digits of SHA-256 over the canonical JSON of `parts`.

    >>> key("clean", 2.0) == key("clean", 2) != key("clean", "2")
    True
    """
    text = json.dumps(canonical(list(parts)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(tensors: Mapping[str, Tensor], *about: Any) -> str:
    """16 hexadecimal digits of SHA-256 over what tensors hold, and over the canonical JSON of `about`.

    Args:
        tensors: by name, in any order, on any device and in any memory layout; names, types, shapes and values count.
        about: plain values that count as well.

    >>> digest({"a": torch.zeros(2), "b": torch.ones(1)}) == digest({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    """
    found = hashlib.sha256(key(*about).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        found.update(repr((name, str(values.dtype), tuple(values.shape))).encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def stream(seed: int, *names: object) -> int:
    """A 63-bit seed for the random stream with these names: adding a stream never shifts another.

    >>> stream(0, "order", 1) == stream(0, "order", 1) != stream(0, "order", 2)
    True
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
