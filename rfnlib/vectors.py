"""Lists of tensors treated as one long vector: what optimizers do with all parameters of a network together.

>>> x, y = [torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 1.0])]
>>> norm(x), dot(x, y)
(tensor(3.), tensor(3.))
>>> scaled_to(1.0, x), orthogonal(y, to=x)
((tensor([1., 0.]),), (tensor([0., 1.]),))

Types and devices may differ within a list. Complex tensors count as pairs of real numbers, as they do in torch's
optimizers. Sums of half-precision tensors are taken in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
HALVES = (torch.float16, torch.bfloat16)


def norm(x: Tensors) -> Tensor:
    """‖x‖, the Euclidean norm over all elements; 0 of an empty list."""
    return stack(torch._foreach_norm(_wide(x))).norm() if x else torch.zeros(())


def dot(x: Tensors, y: Tensors) -> Tensor:
    """⟨x, y⟩ = Re Σ xᵢ ȳᵢ."""
    conjugate = [t.conj() if t.is_complex() else t for t in _wide(y)]
    sums = [product.sum() for product in torch._foreach_mul(_wide(x), conjugate)]
    return stack([s.real if s.is_complex() else s for s in sums]).sum()


def scaled_to(length: float | Tensor, x: Tensors) -> Tensors:
    """x with the norm `length`; 0 stays 0."""
    return torch._foreach_mul(x, length / norm(x).clamp_min(1e-30))


def orthogonal(x: Tensors, to: Tensors) -> Tensors:
    """The part of x orthogonal to `to`, x − (⟨x, to⟩/‖to‖²) to; all of x if `to` is 0."""
    unit = scaled_to(1.0, to)
    return torch._foreach_sub(x, torch._foreach_mul(unit, dot(x, unit)))


def stack(scalars: Tensors) -> Tensor:
    """One vector of numbers whose types may differ, in float32 at least."""
    dtype = reduce(torch.promote_types, {s.dtype for s in scalars}, torch.float32)
    return torch.stack([s.to(scalars[-1].device, dtype) for s in scalars])


def copies(tensors: Tensors) -> list[Tensor]:
    """New tensors with the values and the memory layout of `tensors`."""
    new = [torch.empty_like(t) for t in tensors]
    copy_all(new, tensors)
    return new


def copy_all(into: Tensors, values: Tensors) -> None:
    """Write `values` into the tensors `into`, in one kernel for each type and device.

    A single call for tensors of several types would make torch copy them one by one.
    """
    groups: dict[tuple, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for target, value in zip(into, values, strict=True):
        group = groups[target.device, target.dtype, value.device, value.dtype]
        group[0].append(target)
        group[1].append(value)
    for targets, sources in groups.values():
        torch._foreach_copy_(targets, sources)


def _wide(x: Tensors) -> Tensors:
    """x, half precision taken to float32: its sums overflow at 65504 or lose most of their digits."""
    return [t.float() if t.dtype in HALVES else t for t in x]
