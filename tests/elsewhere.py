"""A device that is not the CPU, made of nothing but Python: what runs here without a complaint is ready for a GPU.

Tensors of it hold their numbers in a CPU tensor that only this module sees, so that results equal the CPU's to the
bit. Like CUDA it refuses operations that mix its tensors with others, and draws from a CPU's generator. Every moment
at which a GPU would have to be waited for is written down.

>>> with Elsewhere() as device:
...     x = torch.ones(2, device="lazy") + 1
...     float(x.sum()), device.waits
(4.0, ['_local_scalar_dense'])

(Its name is that of torch's own lazy device, for which autograd needs no driver. That one has no views such as
`split`, and takes a second to compile each new graph.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = "lazy"
aten = torch.ops.aten
# What a GPU's results must be known for: a number, or how many there are.
WAITED_FOR = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "bincount", "_unique2", "is_nonzero"}


class Elsewhere(TorchDispatchMode):
    """The device exists inside the block. `waits` names the operations that a GPU would have been waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        flat, form = tree_flatten((args, kwargs))
        tensors = [t for t in flat if isinstance(t, Tensor)]
        there, name = any(isinstance(t, _There) for t in tensors), func.overloadpacket.__name__
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if there and name not in ("_to_copy", "copy_"):
            scalars = name not in ("cat", "stack", "index", "index_put_")
            here = [t for t in tensors if not isinstance(t, _There) and not (scalars and t.dim() == 0)]
            told = [f"{t.dtype} of shape {tuple(t.shape)}" for t in here]
            assert not here, f"{name} mixes tensors of the device with {told[0]} on the CPU"
        if there or to == NAME:
            drawn = [g for g in flat if isinstance(g, torch.Generator)]
            assert not drawn, f"{name} on the device draws from a generator of the CPU"
        mask = name in ("index", "index_put_") and any(t.dtype == torch.bool for t in tensors[1:])
        back = name == "_to_copy" and there and to == "cpu" or name == "copy_" and not isinstance(args[0], _There)
        if there and (mask or back or name in WAITED_FOR):
            self.waits.append(name)
        near_args, near = tree_unflatten([t.near if isinstance(t, _There) else t for t in flat], form)
        out = func(*near_args, **(near | {"device": "cpu"} if to == NAME else near))
        stays = name == "_to_copy" and to == "cpu" or name == "copy_"
        if stays or not (there or to == NAME):
            return args[0] if name == "copy_" else out
        out = tree_map(lambda t: _There(t) if isinstance(t, Tensor) else t, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if there else out


class _There(Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, near: Tensor) -> _There:
        laid = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        return Tensor._make_wrapper_subclass(cls, near.size(), **laid, device=f"{NAME}:0", requires_grad=False)

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise AssertionError(f"{func} on a tensor of a device that is gone: outside `with Elsewhere()`")
