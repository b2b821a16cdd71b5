"""Surrogates: what turns trained networks, or their weights, into something to attack.

>>> attack(SkipGradient(network), images, labels)  # another gradient  # doctest: +SKIP
>>> attack(GhostNetwork(SkipGradient(network, 0.5)), images, labels)  # wrappers combine  # doctest: +SKIP
>>> lgv = Cycle([loaded(network, w) for w in collected])  # of SGD at a high learning rate  # doctest: +SKIP
>>> lgv_swa = average(network, collected, batches)  # doctest: +SKIP
>>> swag = Swag.fit(network, collected)  # doctest: +SKIP
>>> lgv_swag = Cycle([loaded(network, swag.sample(seed), batches) for seed in range(40)])  # doctest: +SKIP

==============  =========================================================  =====================================
name            what is attacked                                           source
==============  =========================================================  =====================================
`SkipGradient`  the network, less of the gradient through its branches     Wu et al. 2020, ICLR
`GhostNetwork`  the network with its skips or layers eroded at random      Li et al. 2020, AAAI
`Ensemble`      several at once, over logits, probabilities or losses      Liu et al. 2017, Dong et al. 2018
`Cycle`         one of several at an iteration, in random order (LGV)      Gubri et al. 2022, ECCV
`average`       the network at the mean of several weights (LGV-SWA)       Izmailov et al. 2018, UAI
`Swag`          the network at weights drawn from a Gaussian fitted to     Maddox et al. 2019, NeurIPS
                several (LGV-SWAG, the More-Bayesian surrogate)            Li et al. 2023, ICLR
==============  =========================================================  =====================================

Wrappers hold the network they are given, not a copy. Their hooks on it last for one forward pass and count for its
gradient, so the network stays what it was. A compiled one would not notice them and is refused: give it as it was
before. (Members of a `Cycle` or an `Ensemble` may be compiled.)

A surrogate of your own that changes from iteration to iteration says by `at_iteration` what it is at each of them:

>>> class Noisy(Surrogate):  # doctest: +SKIP
...     def __init__(self, network):
...         super().__init__()
...         self.network = network
...
...     def at_iteration(self, batch):
...         def noisy(function):
...             return lambda x: function(x + 0.01 * batch.normal(*x.shape[1:]).to(x))
...
...         return [noisy(function) for function in at_iteration(self.network, batch)]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rfnlib.attacks import Function, at_iteration
from rfnlib.bricks import Dense, Residual
from rfnlib.minimizers import update_batchnorm
from rfnlib.transforms import Batch, require, require_number, require_seed, require_whole

State = Mapping[str, Tensor]  # a state dict
Weights = State | Any  # or what gives one by `weights()`, as snapshots do
Batches = Iterable[Tensor | Sequence[Tensor]]  # images, or (images, …)

# Attacks draw with seeds below 2**32: what surrogates draw is another stream, of the same seed too.
GHOSTS, ORDERS = 2**32, 2**33


class Surrogate(nn.Module):
    """A module that is something else at each iteration of an attack; `at_iteration` says what.

    Outside of an attack, each forward pass is an iteration of its own, images (N, C, H, W) in [0, 1] to logits (N, K);
    `passed` counts them. Other people's attacks may therefore use it, but they cannot tell it that a batch begins.

    Raises:
        AttackError: on a forward pass with gradients, where it stands for several functions; such a pass
            (without gradients) returns the mean of their log-probabilities.
    """

    passes = 1  # of the networks inside, for one of its own
    folds = False  # whether it calls `members` as they are, so that these may be folded: see `folding`

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    def at_iteration(self, batch: Batch) -> Sequence[Function]:
        """The functions from images to logits whose mean loss is climbed at this iteration: see `attacks`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        batch = Batch(torch.zeros(len(x), device=x.device), iteration=self.passed)
        self.passed += 1
        outputs = [function(x) for function in self.at_iteration(batch)]
        if len(outputs) == 1:
            return outputs[0]
        require(
            not outputs[0].requires_grad,
            "a mean of losses is the loss of no logits, so they have no gradient to give; attack this ensemble "
            "by an attack of rfnlib, take over='logits', or ask for its predictions under torch.no_grad().",
        )
        return _stacked(outputs).log_softmax(2).mean(0)


# --- one network, another gradient or other skips ----------------------------------------------------------


class SkipGradient(Surrogate):
    """The skip gradient method (SGM): the gradient comes back through the skips rather than the branches.

    z = shortcut(x) + f(x),  and backwards  ∂z/∂x = ∂shortcut/∂x + γ ∂f/∂x

    Values are the network's to the bit. γ acts once for each block, at the end of its branch: in every `Residual` and
    every `Dense` of `rfnlib.models`.

    Source: Wu et al. 2020 (γ 0.2 for ResNets, 0.5 for DenseNets, ten steps). Their code and those after it hook ReLUs
    by their names in torchvision: so block 0 of each stage gets no γ (nor do blocks 10 and 20), and a network with
    other names, silently, gets none at all.

    Args:
        model: a network with residual or dense blocks, or a wrapper of one.
        gamma: γ, from 0 to 1; 1 is the network itself.

    Raises:
        AttackError: a network without such blocks, or compiled.
    """

    def __init__(self, model: nn.Module, gamma: float = 0.2) -> None:
        super().__init__()
        require_number("gamma", gamma, 0, 1)
        self.model, self.gamma = model, gamma
        self._branches = [block.branch for block in _found(_blocks, model)]

    @property
    def passes(self) -> float:
        """Those of what it wraps."""
        return getattr(self.model, "passes", 1)

    def at_iteration(self, batch: Batch) -> list[Function]:
        return [partial(self._decayed, function) for function in at_iteration(self.model, batch)]

    def _decayed(self, function: Function, x: Tensor) -> Tensor:
        with _hooked(self._branches, lambda module, inputs, output: _Decayed.apply(output, self.gamma)):
            return function(x)


class _Decayed(torch.autograd.Function):
    """The identity, but for its gradient; γ f + (1 − γ) f.detach() would differ from f in the last bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: float) -> Tensor:
        ctx.gamma = gamma
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.gamma * gradient, None


class GhostNetwork(Surrogate):
    """A ghost network: at every forward pass another one, made from one network by erosion.

    "skip":     z = λ · shortcut(x) + f(x),  λ uniform in [1 − Λ, 1 + Λ]
    "dropout":  every convolution but the first sees m · x / (1 − Λ),  m = 0 with chance Λ, else 1

    λ is drawn for each block and channel (for transformers: each feature), m for each element. Each example has ghosts
    of its own, known by its position, the iteration and the pass in it, so that they depend neither on its batch mates
    nor on the batch size; the authors draw one a batch. Every pass has its own, within an iteration too.

    Source: Li et al. 2020. Skips as in their code for ResNets (Λ 0.22, 0.16, 0.12 for 50, 101, 152 layers), also where
    they are projections; in DenseNets, which they leave out, the skip is what a layer hands on. Dropout as in the
    paper's equation (their code drops outputs of whole Inception blocks, Λ 0.006 or 0.012).

    Args:
        model: a network with residual or dense blocks for "skip", with convolutions for "dropout"; or a wrapper of one.
        strength: Λ, at least 0 (dropout: below 1); None: 0.22 for "skip", 0.006 for "dropout". 0 is the network itself.
        seed: give the members of an ensemble different ones.
        erosion: "skip" or "dropout"; None: "skip" where there are blocks for it.

    Raises:
        AttackError: a network without what is to be eroded, or compiled.
    """

    def __init__(
        self, model: nn.Module, strength: float | None = None, seed: int = 0, erosion: str | None = None
    ) -> None:
        super().__init__()
        erosion = erosion or ("skip" if _blocks(model) else "dropout")
        require(erosion in ("skip", "dropout"), f"erosion is {erosion!r}; give one of 'skip', 'dropout'.")
        skip = erosion == "skip"
        strength = (0.22 if skip else 0.006) if strength is None else strength
        require_number("strength", strength, 0, math.inf if skip else 0.99)
        require_seed(seed)
        self.model, self.strength, self.seed, self.erosion = model, strength, seed, erosion
        found = _found(_blocks if skip else _inner_convolutions, model)
        self._places = [block.shortcut for block in found] if skip else found

    @property
    def passes(self) -> float:
        """Those of what it wraps."""
        return getattr(self.model, "passes", 1)

    def at_iteration(self, batch: Batch) -> list[Function]:
        numbers = replace(batch, seed=GHOSTS + self.seed, calls=0)
        return [partial(self._eroded, numbers, function) for function in at_iteration(self.model, batch)]

    def _eroded(self, numbers: Batch, function: Function, x: Tensor) -> Tensor:
        def scaled(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            channels = (output.shape[1], 1, 1) if output.dim() == 4 else (1, output.shape[-1])
            return output * (1 + self.strength * (2 * numbers.uniform(*channels) - 1)).to(output)

        def dropped(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            kept = numbers.uniform(*inputs[0].shape[1:]) >= self.strength
            return inputs[0] * kept.to(inputs[0]) / (1 - self.strength)

        skip = self.erosion == "skip"
        with _hooked(self._places, scaled if skip else dropped, before=not skip):
            return function(x)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (Residual, Dense))]


def _inner_convolutions(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)][1:]


def _found(find: Callable[[nn.Module], list[nn.Module]], model: nn.Module) -> list[nn.Module]:
    """What `find` finds in `model`, or in all of those that it wraps: something in each."""
    compiled = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())
    require(not compiled, "the network is compiled and would not notice hooks; give it as it was before.")
    if isinstance(model, (Surrogate, nn.ModuleList)):
        return [m for inner in model.children() for m in _found(find, inner)]
    found, what = find(model), "Residual or Dense of rfnlib.models" if find is _blocks else "second convolution"
    require(bool(found), f"{type(model).__name__} has no {what}; attack it as it is, or wrap another network.")
    return found


@contextmanager
def _hooked(modules: Iterable[nn.Module], hook: Callable[..., Tensor], before: bool = False) -> Iterator[None]:
    """`hook` on the inputs (`before`) or the output of each of `modules`, for the time of the block."""
    register = nn.Module.register_forward_pre_hook if before else nn.Module.register_forward_hook
    handles = [register(module, hook) for module in dict.fromkeys(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Logits(nn.Module):
    """The logits of a model that returns them among other things, or under a name.

    >>> model = Logits(lambda x: {"logits": x.flatten(1), "loss": None}, "logits")
    >>> model(torch.zeros(2, 3, 1, 1)).shape
    torch.Size([2, 3])

    Args:
        model: a module, or a function.
        pick: the key or the position of the logits in what it returns, or a function that takes them out of it.
    """

    def __init__(self, model: Callable[[Tensor], Any], pick: str | int | Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        returned = self.model(x)
        return self.pick(returned) if callable(self.pick) else returned[self.pick]


# --- several networks --------------------------------------------------------------------------------------


def _mean_logits(outputs: Sequence[Tensor]) -> Tensor:
    return _stacked(outputs).mean(0)


def _mean_probabilities(outputs: Sequence[Tensor]) -> Tensor:
    return _stacked(outputs).log_softmax(2).logsumexp(0) - math.log(len(outputs))


FUSIONS = {"logits": _mean_logits, "probabilities": _mean_probabilities}


class Ensemble(Surrogate):
    """Several networks attacked at once.

    With p_m the probabilities of the m-th of M, the cross-entropy is

    over="logits":         −log( q_y / Σ_k q_k ),  q = (Π_m p_m)^(1/M)
    over="probabilities":  −log( 1/M Σ_m p_m,y )
    over="losses":         1/M Σ_m −log p_m,y

    The first is that of the mean logits, as in most published attacks. The second has the logarithm of the mean
    probabilities for logits; as these sum to 1, softmax leaves them alone. The third is greater than the first by
    −log Σ_k q_k, and the cross-entropy of no K logits: there the attack takes the mean of the members' losses itself,
    whichever loss it has (see `attacks.at_iteration`). Members may be wrappers.

    Sources: Liu et al. 2017, ICLR (probabilities); Dong et al. 2018, CVPR (which compares the three).

    Args:
        members: networks with the same classes. One pass of an attack costs a pass of each.
        over: "logits", "probabilities" or "losses".

    Raises:
        AttackError: no members, or one that is an ensemble over losses itself.
    """

    folds = True

    def __init__(self, members: Iterable[nn.Module], over: str = "logits") -> None:
        super().__init__()
        known = [*FUSIONS, "losses"]
        require(over in known, f"over is {over!r}; give one of {', '.join(map(repr, known))}.")
        self.members, self.over = _members(members), over

    @property
    def passes(self) -> float:
        """The sum of its members'."""
        return sum(getattr(member, "passes", 1) for member in self.members)

    def at_iteration(self, batch: Batch) -> list[Function]:
        functions = [at_iteration(member, batch) for member in self.members]
        require(
            all(len(f) == 1 for f in functions),
            f"a member of the ensemble over {self.over!r} is one over 'losses'; such a one cannot be a member.",
        )
        single = [f for (f,) in functions]
        if self.over == "losses":
            return single
        return [lambda x: FUSIONS[self.over]([f(x) for f in single])]


class Cycle(Surrogate):
    """One of several networks at each iteration of an attack, in a random order that is drawn anew when it is through.

    At iteration i: the member π_⌊i/M⌋(i mod M), the π being random permutations of the M members.

    All examples of all batches meet the same member at the same iteration, and all passes of an iteration (of
    views, variance tuning and the like) go to one member. Source: Gubri et al. 2022 (LGV); their code shuffles
    once and repeats that order. For a fixed order, give the attack a plain list.

    Args:
        members: networks, or wrappers.
        seed: of the orders.

    Raises:
        AttackError: no members.
    """

    folds = True

    def __init__(self, members: Iterable[nn.Module], seed: int = 0) -> None:
        super().__init__()
        require_seed(seed)
        self.members, self.seed = _members(members), seed

    @property
    def passes(self) -> float:
        """The mean of its members'."""
        return sum(getattr(member, "passes", 1) for member in self.members) / len(self.members)

    def at_iteration(self, batch: Batch) -> Sequence[Function]:
        turn, place = divmod(batch.iteration, len(self.members))
        return at_iteration(self.members[self.order(turn)[place]], batch)

    def order(self, turn: int) -> list[int]:
        """The `turn`-th permutation, from 0."""
        drawn = Batch(torch.zeros(1), seed=ORDERS + self.seed, iteration=turn).uniform(len(self.members))[0]
        return drawn.argsort(stable=True).tolist()


def predictor(model: nn.Module) -> nn.Module:
    """What predicts for `model`: itself; for several networks, one an iteration, the mean of their probabilities.

    Of an ensemble each member predicts so.
    """
    if isinstance(model, Cycle):
        return Ensemble(map(predictor, model.members), "probabilities")
    if isinstance(model, Ensemble) and model.over != "losses":
        return Ensemble(map(predictor, model.members), model.over)
    return model


def _members(members: Iterable[nn.Module]) -> nn.ModuleList:
    members = list(members)
    fine = members and all(isinstance(member, nn.Module) for member in members)
    require(bool(fine), f"members is {members!r}; give one module or more.")
    return nn.ModuleList(members)


def _stacked(outputs: Sequence[Tensor]) -> Tensor:
    """(M, N, K), in float32 at least: members may be computing in bfloat16."""
    shapes = {tuple(z.shape) for z in outputs}
    require(len(shapes) == 1, f"members give logits of shapes {sorted(shapes)}; give members with the same classes.")
    return torch.stack([z.to(torch.promote_types(z.dtype, torch.float32)) for z in outputs])


# --- several weights of one network ------------------------------------------------------------------------


def loaded(model: nn.Module, weights: Weights, batches: Batches | None = None) -> nn.Module:
    """A copy of `model` with other weights, in eval mode.

    Args:
        weights: a state dict that fits `model`, or a snapshot.
        batches: images for BatchNorm's statistics, see `minimizers.update_batchnorm`; None: those of `weights`.

    Raises:
        AttackError: weights that do not fit.
        MinimizerError: no batches for a network with BatchNorm.
    """
    state, model = _state(model, weights), copy.deepcopy(model)
    model.load_state_dict(state)
    if batches is not None:
        update_batchnorm(model, batches)
    return model.eval()


def average(model: nn.Module, weights: Iterable[Weights], batches: Batches | None) -> nn.Module:
    """A copy of `model` at w̄ = (1/T) Σ_t w_t, BatchNorm's statistics re-estimated on `batches`, in eval mode.

    All entries that are floating-point numbers are averaged (in float64), others are the last weights'. Of weights
    collected by SGD with a high learning rate this is LGV-SWA (Gubri et al. 2022), of those along a training SWA.

    Args:
        weights: state dicts that fit `model`, or snapshots; read one at a time, once.
        batches: un-augmented training images, or (images, …) (LGV: a tenth of the training set); None: BatchNorm's
            statistics are averaged too, which are not those of the mean weights.

    Raises:
        AttackError: no weights, or some that do not fit.
        MinimizerError: no batches for a network with BatchNorm.
    """
    return loaded(model, _mean(model, weights), batches)


@dataclass(frozen=True, eq=False)
class Swag:
    """SWAG: a Gaussian over weights, diagonal plus low rank, fitted to T weights.

    w = w̄ + s · ( σ ⊙ z/√2 + 1/√(2(K−1)) Σ_k z'_k (w_k − w̄) ),  σ² = (1/T) Σ_t (w_t − w̄)²,  z, z' standard normal

    with w_k the last K weights; with K = 0, w = w̄ + s · σ ⊙ z. Only parameters are drawn, and buffers are
    those of the mean: `loaded(model, swag.sample(seed), batches)` gives BatchNorm statistics of its own.

    Source: Maddox et al. 2019 (K 20), whose columns are deviations from the mean of the weights up to then, for want
    of the final mean. The More-Bayesian surrogate of Li et al. 2023 is K = 0 and s = 1.5, a new draw an iteration,
    and (in their code) BatchNorm's statistics of the mean.

    Attributes:
        mean: w̄ as a state dict.
        shapes: of the parameters, by name; D numbers in all.
        deviation: σ, (D,).
        columns: w_k − w̄, (K, D).
    """

    mean: State
    shapes: dict[str, torch.Size]
    deviation: Tensor
    columns: Tensor

    @classmethod
    def fit(cls, model: nn.Module, weights: Iterable[Weights], rank: int = 20) -> Swag:
        """The Gaussian of `weights`.

        Args:
            model: says which of the weights are parameters.
            weights: at least two state dicts that fit `model`, or snapshots, in order.
            rank: K, 0 or at least 2; of fewer weights, all are columns.

        Raises:
            AttackError: fewer than two weights, some that do not fit, or another rank.
        """
        require_whole("rank", rank, 0)
        require(rank != 1, "rank is 1, and the covariance would be divided by 0; give 0, or at least 2.")
        weights = list(weights)
        require(len(weights) > 1, f"a Gaussian is to be fitted to {len(weights)} weights; give at least 2.")
        mean, shapes = _mean(model, weights), {name: p.shape for name, p in model.named_parameters()}

        def flat(state: State) -> Tensor:
            return torch.cat([state[name].flatten() for name in shapes])

        apart = torch.stack([flat(_state(model, each)) for each in weights]) - flat(mean)
        return cls(mean, shapes, apart.square().mean(0).sqrt(), apart[max(0, len(apart) - rank) :].clone())

    def sample(self, seed: int, scale: float = 1.0) -> State:
        """A state dict: weights drawn from `seed`, at s = `scale`."""
        require_seed(seed)
        require_number("scale", scale, 0)
        drawn, k = torch.Generator().manual_seed(seed), len(self.columns)  # on the CPU: everywhere the same

        def normal(n: int) -> Tensor:
            return torch.randn(n, generator=drawn).to(self.deviation)

        noise = self.deviation * normal(len(self.deviation))
        if k:
            noise = (noise + normal(k) @ self.columns / math.sqrt(k - 1)) / math.sqrt(2)
        parts, state = noise.split([shape.numel() for shape in self.shapes.values()]), dict(self.mean)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            state[name] = state[name] + scale * part.view(shape).to(state[name])
        return state


def _mean(model: nn.Module, weights: Iterable[Weights]) -> State:
    total, n = {}, 0
    for each in weights:
        state, n = _state(model, each), n + 1
        for name, value in state.items():
            total[name] = value.double() + total.get(name, 0) if value.is_floating_point() else value
    require(n > 0, "there are no weights to average; give at least one.")
    return {name: (total[name] / n).to(v.dtype) if v.is_floating_point() else v for name, v in state.items()}


def _state(model: nn.Module, weights: Weights) -> State:
    """`weights` as a state dict, if they fit `model`."""
    state = weights.weights() if hasattr(weights, "weights") else weights
    require(isinstance(state, Mapping), f"weights are a {type(state).__name__}; give a state dict, or a snapshot.")
    ours, theirs = ({name: tuple(v.shape) for name, v in each.items()} for each in (model.state_dict(), state))
    unlike = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    require(not unlike, f"the weights do not fit: {', '.join(unlike[:3])} differ; give those of such a network.")
    return state
