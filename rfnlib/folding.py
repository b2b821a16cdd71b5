"""Batch norms in eval mode folded into the layers before them: the same function of the images, at less cost.

    γ (W∗x + b − μ)/√(σ² + ε) + β  =  W'∗x + b',     W' = s W,  b' = s (b − μ) + β,  s = γ/√(σ² + ε)

with one s for each output channel of a convolution, or of a linear layer. W' of a convolution on a CPU is laid out
channels last, which saves an eighth (ResNet-18 of width 16). For the time of a `with` block layers hold W'
and b', and their norms return what they are given; the modules themselves stay in place, and so does all Python
that their `forward` runs. The input's normalisation stays too: zeros of padding are no pixels, they follow after it.

Nothing is folded that could be told from the network as it is, beyond rounding: see `folded`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from rfnlib.bricks import Sampled

LAYERS: dict[type, type] = {nn.Conv2d: nn.BatchNorm2d, Sampled: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
"""Layer -> the norm that may follow it. Subclasses may mean something else by `forward`, and are left alone."""

Pair = tuple[str, str]  # the names of a layer and of its norm
TRIED = 2  # images on which a network is compared with itself


@contextmanager
def folded(models: Iterable[Callable[[Tensor], Tensor]], images: Tensor) -> Iterator[None]:
    """`models` with their batch norms folded where that is safe; on leaving, to the bit as they were.

    A network is left alone if it is no module, or compiled, or has a hook in it (for one may look between layer and
    norm), or if it stands inside a surrogate that hooks it. Of the others, those pairs are folded of which

    - the norm follows the layer, and nothing else sees what the layer returns: by `torch.fx`, which runs `forward`
      on a copy of the modules, else, where Python's control flow forbids that, because they are neighbours in an
      `nn.Sequential`;
    - neither is used twice, by this network or by another of `models`;
    - the norm uses its running statistics;

    and all of that only if the logits of the first `images` stay the same up to rounding.

    Args:
        models: in eval mode, and with weights that no gradient is asked for.
        images: (N, C, H, W), of which the first two are tried.
    """
    networks = list(_networks(models))
    uses = Counter(id(m) for network in networks for m in network.modules())
    weights = Counter(id(t) for network in networks for m in network.modules() for t in m._parameters.values())
    undo: list[Callable[[], None]] = []
    try:
        for network in networks:
            found = [
                (layer, norm)
                for layer, norm in pairs(network)
                if all(uses[id(m)] == 1 for m in (network.get_submodule(layer), network.get_submodule(norm)))
                and weights[id(network.get_submodule(layer).weight)] == 1
            ]
            if found and _indifferent(network, found, images[:TRIED]):
                for pair in found:
                    _fold(network, pair, undo)
        yield
    finally:
        for each in reversed(undo):
            each()


def pairs(network: nn.Module) -> list[Pair]:
    """The names of layers, and of the norms in eval mode that alone see what these return."""
    try:
        graph = _Tracer().trace(_twin(network))
        calls = [node for node in graph.nodes if node.op == "call_module"]
        often = Counter(network.get_submodule(node.target) for node in calls)
        once = [n for n in calls if often[network.get_submodule(n.target)] == 1 and len(n.args) == 1 and not n.kwargs]
        at = {node: node.target for node in once}
        found = [(at[n.args[0]], at[n]) for n in once if n.args[0] in at and len(n.args[0].users) == 1]
    except Exception:  # whatever `forward` does with what is no tensor
        found = list(_neighbours(network))
    return [pair for pair in found if _fits(*map(network.get_submodule, pair))]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return type(m) in LAYERS or super().is_leaf_module(m, name)


def _neighbours(network: nn.Module) -> Iterator[Pair]:
    for name, module in network.named_modules():
        if type(module) is nn.Sequential:
            prefix = f"{name}." if name else ""
            yield from pairwise(prefix + child for child in module._modules)


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    return (
        type(norm) is LAYERS.get(type(layer))
        and not norm.training
        and norm.running_mean is not None
        and len(layer.weight) == norm.num_features
        and "forward" not in {**vars(layer), **vars(norm)}
    )


def _networks(models: Iterable[Any]) -> Iterator[nn.Module]:
    """The modules that are called as they are, of `models` and of the members of surrogates, each once."""
    models = list(models)
    if not all(isinstance(model, nn.Module) for model in models):
        return  # a function may call anything, such as half of a network that another one is
    inside = {id(m): m for model in models for m in model.modules()}
    hooking = [m for m in inside.values() if hasattr(m, "at_iteration") and not getattr(m, "folds", False)]
    hooked = {id(m) for outer in hooking for m in outer.modules()}
    for network in {id(n): n for model in models for n in _members(model)}.values():
        if not any(id(m) in hooked or _watched(m) for m in network.modules()):
            yield network


def _members(model: nn.Module) -> Iterator[nn.Module]:
    if hasattr(model, "at_iteration"):
        yield from chain.from_iterable(map(_members, model.members if getattr(model, "folds", False) else ()))
    else:
        yield model


def _watched(module: nn.Module) -> bool:
    """Whether `module` has hooks, or is compiled."""
    hooks = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
    return compiled or isinstance(module, torch.jit.ScriptModule) or any(hooks)


def _twin(network: nn.Module) -> nn.Module:
    """A copy of the modules that holds the same tensors."""
    return copy.deepcopy(network, {id(t): t for t in chain(network.parameters(), network.buffers())})


@torch.no_grad()
def _indifferent(network: nn.Module, found: Sequence[Pair], images: Tensor) -> bool:
    """Whether a copy of `network` gives the same logits with `found` folded, which are drawn alike."""
    devices = [images.device] if images.is_cuda else []
    try:
        twin = _twin(network)
        with torch.random.fork_rng(devices), torch.autocast(images.device.type, enabled=False):
            state = torch.get_rng_state()
            plain = twin(images)
            for pair in found:
                _fold(twin, pair, [])
            torch.set_rng_state(state)
            other = twin(images)
        bound = torch.finfo(plain.dtype).eps ** 0.5 * plain.abs().max()
        return plain.shape == other.shape and bool(((other - plain).abs() <= bound).all())
    except Exception:  # what cannot be copied, or does not give a tensor, is not folded; the attack says what is wrong
        return False


@torch.no_grad()
def _fold(network: nn.Module, pair: Pair, undo: list[Callable[[], None]]) -> None:
    layer, norm = map(network.get_submodule, pair)
    old = dict(layer._parameters)
    undo += [lambda: layer._parameters.update(old), lambda: vars(norm).pop("forward")]
    weight, bias = absorbed(layer, norm)
    layer._parameters.update(weight=nn.Parameter(weight, False), bias=nn.Parameter(bias, False))
    norm.forward = _same


def _same(x: Tensor) -> Tensor:
    return x


def absorbed(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """W' and b' of the equation at the top, in the type of W.

    >>> layer, norm = nn.Linear(3, 2).double(), nn.BatchNorm1d(2).double()
    >>> x = torch.rand(5, 3).double()
    >>> before = norm.train()(layer(x)) * 0 + norm.eval()(layer(x))
    >>> weight, bias = absorbed(layer, norm)
    >>> torch.allclose(x @ weight.T + bias, before)
    True
    """
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.to(wide)
    shift = -norm.running_mean.to(wide) if layer.bias is None else layer.bias.to(wide) - norm.running_mean.to(wide)
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.to(wide)
    weight = layer.weight.to(wide) * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    if weight.dim() == 4 and weight.device.type == "cpu":
        weight = weight.contiguous(memory_format=torch.channels_last)
    return weight.to(layer.weight.dtype), shift.to(layer.weight.dtype)
