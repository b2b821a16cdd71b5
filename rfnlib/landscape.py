"""The loss of a network as a function of its weights: values, gradients and Hessian-vector products.

What `rfnlib.sharpness` measures is measured on this. L(w) is the mean cross-entropy over *all* images of the
batches, w one flat vector of the weights that are differentiated by. The model is left bit for bit as found.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from rfnlib import execution
from rfnlib.attacks import frozen
from rfnlib.checks import is_number, is_whole, require, require_labels

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images, float (B, C, H, W), and labels, int64 (B,): the same at every iteration."""

FORWARD, GRADIENT, PRODUCT = 1 / 3, 1, 3
"""Passes that a loss costs; a gradient, or the graph of one; and each Hessian-vector product on such a
graph, so 4 with its own. (Measured, a ResNet-18 on one CPU core: 0.32, 1, 2.0, and 3.0 together.)"""


@dataclass(frozen=True)
class Measured:
    """One number, and how far to trust it.

    Attributes:
        value: the measure; eigenvalues and traces in units of loss per squared weight (or pixel).
        error: an estimate of its error, in the same units; each function says of which kind.
        images: how many images L is the mean over.
        split: which images those are, in the caller's words.
        passes: what it cost, in forward-backward passes over all of them.
    """

    value: float
    error: float
    images: int
    split: str
    passes: float


class Loss:
    """L as a function of one flat vector w (P,), counting its passes. The model's own weights stay put."""

    def __init__(self, model, batches, parameters=None, seed: int = 0, keep_graph: bool = False):
        wanted = list(model.parameters() if parameters is None else parameters)
        ids = {id(p) for p in wanted}
        own = {name: p for name, p in model.named_parameters() if id(p) in ids}
        require(
            len(own) == len(ids) > 0,
            f"parameters holds {len(ids)} tensors, {len(own)} of them the model's; give some of model.parameters().",
        )
        self.model, self.batches, self.parameters, self.seed = model, batches, wanted, seed
        self.images, self.top_label = _count(batches)
        self.shapes = {name: p.shape for name, p in own.items()}
        self.buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        self.w = torch.cat([p.detach().reshape(-1) for p in own.values()])
        self.random = torch.Generator().manual_seed(seed)
        self.passes, self.keep_graph = 0.0, keep_graph
        self.known: float | None = None
        self.kept: tuple[Tensor, Tensor] | None = None

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, where and of what kind the weights are. A model that draws draws the same again."""
        torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reach every device
        if self.w.is_cuda:
            torch.cuda.default_generators[self.w.device.index].manual_seed(self.seed)
        return ((x.detach().to(self.w), y.to(self.w.device)) for x, y in self.batches if len(y))

    def parts(self) -> Iterator[Loss]:
        """The loss of each batch alone."""
        return (Loss(self.model, [pair], self.parameters, self.seed) for pair in self.pairs())

    def logits(self, w: Tensor, x: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in self.shapes.values()])
        weights = {name: v.view(shape) for v, (name, shape) in zip(pieces, self.shapes.items(), strict=True)}
        z = functional_call(self.model, {**self.buffers, **weights}, (x,))
        flat = isinstance(z, Tensor) and z.dim() == 2 and len(z) == len(x)
        require(flat, "the model does not map B images to logits (B, C); wrap it in a module that does.")
        top, last = self.top_label, z.shape[1] - 1
        require(top <= last, f"labels hold {top}; the model has classes 0 to {last}.")
        return z

    def shares(self, w: Tensor) -> Iterator[Tensor]:
        """What each batch adds to L(w)."""
        for x, y in self.pairs():
            yield F.cross_entropy(self.logits(w, x), y, reduction="sum") / self.images

    def value(self, w: Tensor) -> float:
        """L(w)."""
        self.passes += FORWARD
        with torch.no_grad():
            return self._checked(sum(share.item() for share in self.shares(w)), w)

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """L(w) and ∇L(w), (P,)."""
        self.passes += GRADIENT
        leaf, total, gradient = w.detach().requires_grad_(), 0.0, torch.zeros_like(w)
        for share in self.shares(leaf):
            total += share.item()
            gradient += gradient_of(share, leaf)
        return self._checked(total, w), finite(gradient, "a gradient")

    def products(self, vectors: Tensor) -> Tensor:
        """∇²L(w) times each row of (k, P), by double backward; a batch's graph serves all rows."""
        self.passes += PRODUCT * len(vectors)
        out = torch.zeros_like(vectors)
        for gradient, leaf in self.graphs():
            for i, v in enumerate(vectors):
                more = self.keep_graph or i + 1 < len(vectors)
                out[i] += gradient_of(gradient, leaf, v, retain_graph=more)
        return finite(out, "a Hessian-vector product")

    def graphs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """∇L(w) with its graph, and w: in one piece for each batch or, if kept, in one for all."""
        if self.kept is None:
            self.passes += GRADIENT
            leaf, total, whole = self.w.clone().requires_grad_(), 0.0, 0.0
            for share in self.shares(leaf):
                total += share.item()
                # Not backward(create_graph=True), which leaves weights and graph in a cycle.
                gradient = gradient_of(share, leaf, create_graph=True)
                if self.keep_graph:
                    whole = whole + gradient
                else:
                    yield gradient, leaf
            self._checked(total, self.w)
            if not self.keep_graph:
                return
            self.kept = whole, leaf
        yield self.kept

    def at_images(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Σℓ, whose derivatives by each image are its own, and the images as a leaf."""
        leaf = x.clone().requires_grad_()
        return F.cross_entropy(self.logits(self.w, leaf), y, reduction="sum"), leaf

    def noise(self, k: int) -> Tensor:
        """(k, P) standard normal numbers, the same on every device."""
        return torch.randn(k, len(self.w), generator=self.random, dtype=self.w.dtype).to(self.w.device)

    def measured(self, value: float, error: float, split: str) -> Measured:
        return Measured(value, error, self.images, split, round(self.passes, 3))

    def _checked(self, total: float, w: Tensor) -> float:
        require(math.isfinite(total), f"the loss is {total}; give weights, or a rho, that do not overflow.")
        if w is self.w:
            self.known = total if self.known is None else self.known
            same = math.isclose(total, self.known, rel_tol=1e-4, abs_tol=1e-6)
            was = f"the loss was {self.known:.6g} and is now {total:.6g}"
            require(same, f"{was}; give batches that are the same at every iteration, not augmented.")
        return total


@contextmanager
def loss_of(model: nn.Module, batches, parameters=None, seed: int = 0, keep_graph: bool = False) -> Iterator[Loss]:
    """The loss of a model in eval mode and full precision; on leaving, all is as it was."""
    require_whole("seed", seed, 0, "less than 2**32", 2**32 - 1)
    model = original(model)
    kinds = {(p.dtype, p.device) for p in model.parameters()}
    dtype, device = min(kinds, key=str, default=(None, None))
    require(
        len(kinds) == 1 and dtype in (torch.float32, torch.float64),
        f"the model's weights are {' and '.join(sorted(f'{d} on {at}' for d, at in kinds)) or 'none'}; give a model "
        "whose weights are all float32 or all float64, on one device, such as copy.deepcopy(model).float().",
    )
    gpu = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        for context in (
            frozen([model]), torch.random.fork_rng(gpu), torch.inference_mode(False), torch.enable_grad(),
            execution.full_precision(device), _twice_differentiable(model),
            sdpa_kernel(SDPBackend.MATH),  # the other kernels of attention have no second derivative
        ):  # fmt: skip
            stack.enter_context(context)
        yield Loss(model, batches, parameters, seed, keep_graph)


@contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Batch norms and convolutions written so that their second derivatives cost less: a third of a product's time."""
    free = [m for m in model.modules() if "forward" not in vars(m)]  # leave what others have put there
    layers = {m: forward for m in free if (forward := _cheap(m))}
    for m, forward in layers.items():
        m.forward = functools.partial(forward, m)
    try:
        yield
    finally:
        for m in layers:
            del m.forward


def _cheap(m: nn.Module) -> Callable[[nn.Module, Tensor], Tensor] | None:
    if isinstance(m, _BatchNorm) and m.running_mean is not None:
        return _affine
    plain = type(m).forward is nn.Conv2d.forward and m.padding_mode == "zeros" and not isinstance(m.padding, str)
    return _convolution if plain else None


def _affine(norm: _BatchNorm, x: Tensor) -> Tensor:
    """A batch norm in eval mode."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    return x * scale.view(shape) + shift.view(shape)


def _convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    y = _Convolution.apply(x, conv.weight, (conv.stride, conv.padding, conv.dilation), conv.groups)
    return y if conv.bias is None else y + conv.bias.view(-1, 1, 1)


class _Convolution(torch.autograd.Function):
    """y = w * x. Bilinear, so all its derivatives are convolutions and their adjoints again.

    torch's own second derivative by w is a convolution with kernels as large as images.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, how: tuple, groups: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how, ctx.groups = how, groups
        return torch.conv2d(x, w, None, *how, groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:2]
        return *_Adjoints.apply(g, *ctx.saved_tensors, wanted, ctx.how, ctx.groups), None, None


class _Adjoints(torch.autograd.Function):
    """The gradients of ⟨g, w * x⟩ by x and by w, where `wanted`."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool], how: tuple, groups: int):
        ctx.save_for_backward(g, x, w)
        ctx.how, ctx.groups = how, groups
        ctx.set_materialize_grads(False)
        return _adjoints(g, x, w, wanted, how, groups)

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, w = ctx.saved_tensors
        # ⟨vx, its gradient⟩ + ⟨vw, its gradient⟩ = ⟨g, w * vx + vw * x⟩
        given = [pair for pair in ((vx, w), (x, vw)) if all(t is not None for t in pair)]
        by_g = functools.reduce(torch.add, [torch.conv2d(*pair, None, *ctx.how, ctx.groups) for pair in given])
        wanted = vw is not None and ctx.needs_input_grad[1], vx is not None and ctx.needs_input_grad[2]
        by_x, by_w = _adjoints(g, x if vx is None else vx, w if vw is None else vw, wanted, ctx.how, ctx.groups)
        return by_g, by_x, by_w, None, None, None


def _adjoints(g, x, w, wanted: tuple[bool, bool], how: tuple, groups: int) -> tuple[Tensor | None, Tensor | None]:
    return torch.ops.aten.convolution_backward(g, x, w, None, *how, False, (0, 0), groups, (*wanted, False))[:2]


def original(model: nn.Module) -> nn.Module:
    """The model itself, or what `torch.compile` wrapped; with nothing compiled or hooked inside."""
    model = getattr(model, "_orig_mod", model)
    for name, m in model.named_modules():
        compiled = hasattr(m, "_orig_mod") or m._compiled_call_impl is not None
        require(not compiled, f"module {name!r} is compiled, so has no double backward; give it uncompiled.")
        hooked = m._backward_hooks or m._backward_pre_hooks
        require(not hooked, f"module {name!r} has a backward hook, which changes gradients; remove it.")
    return model


def _count(batches: Batches) -> tuple[int, int]:
    """How many images there are, and the largest label."""
    again = isinstance(batches, Iterable) and not isinstance(batches, Iterator)
    kind = type(batches).__name__
    require(again, f"batches is a {kind}, which cannot be passed over again and again; give a list of pairs.")
    images, top = 0, 0
    for pair in batches:
        two = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)
        require(two, "batches holds something else than pairs of tensors; give [(images, labels), …].")
        x, y = pair
        require(x.is_floating_point(), f"images are {x.dtype}; give floats in [0, 1], uint8 divided by 255.")
        require_labels(y, len(x))
        if len(y):
            low, high = map(float, x.detach().aminmax())
            # Images that were normalised before the model go below 0; what does not, and beyond 1, is in levels.
            levels = x.dim() == 4 and low >= 0 and high > 1
            require(not levels, f"images range over [{low:.4g}, {high:.4g}]; divide them by 255.")
            images, top = images + len(y), max(top, int(y.max()))
    require(images > 0, "batches hold no image; give at least one.")
    return images, top


def gradient_of(*args: Any, **options: Any) -> Tensor:
    """The gradient with respect to one tensor: `torch.autograd.grad`, its only result."""
    return torch.autograd.grad(*args, **options)[0]


def finite(values: Tensor, what: str) -> Tensor:
    """`values`, refused if one of them is not finite."""
    fine = bool(torch.isfinite(values).all())
    require(fine, f"{what} is not finite; give weights and images that do not overflow.")
    return values


def require_whole(name: str, value: object, least: int, way_out: str, most: float = math.inf) -> None:
    """Refuse what is no integer from `least` to `most`."""
    require(is_whole(value, least, most), f"{name} is {value!r}; give a whole number of at least {least}, {way_out}.")


def require_number(name: str, value: object, way_out: str) -> None:
    """Refuse what is no number of at least 0."""
    require(is_number(value, 0), f"{name} is {value!r}; give a number of at least 0, {way_out}.")
