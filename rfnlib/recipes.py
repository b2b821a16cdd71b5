"""Recipes: from the weights of a training run to the surrogate that is attacked.

>>> lab.read(Arm("LGV", specs, At(lab.scale.transfer, [10.0], Collected(per_epoch=4))))  # doctest: +SKIP

A recipe is called with a network, the weights it collects along the run (the last ones are the network's) and batches
of training images that are not augmented, and gives the module to attack. It is a frozen dataclass or a function of a
module, for a record names the surrogate by it. One with an attribute `per_epoch` is given that many weights an epoch,
any other the last ones alone; one with `members`, other runs, is given their networks as a fourth argument. One with a
true attribute `merges` gives the network itself with other weights: these are rounded, named by their digest and
released like those of any network. A recipe of your own:

>>> def blurred(network, weights, batches):  # doctest: +SKIP
...     return nn.Sequential(GaussianBlur(3), network)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from rfnlib import keys
from rfnlib.checks import require
from rfnlib.outside import Outside
from rfnlib.specs import TrainSpec
from rfnlib.surrogates import Cycle, Ensemble, GhostNetwork, SkipGradient, Swag, Weights, average, loaded
from rfnlib.transforms import named

Recipe = Callable[..., nn.Module]


def collected(recipe: Recipe | None, end: float) -> list[float]:
    """The epochs of the weights that `recipe` collects of a run that is attacked at epoch `end`."""
    per_epoch = getattr(recipe, "per_epoch", 0)
    return [i / per_epoch for i in range(1, round(end * per_epoch) + 1)] if per_epoch else [end]


@dataclass(frozen=True)
class Member:
    """Another run that a recipe takes the network of.

    Attributes:
        spec: the run, whatever its seed: it and the run that it starts from get that of the run itself and `apart`.
        epoch: of the network.
        recipe: what is made of its weights.
        apart: how far the seeds are apart.
    """

    spec: TrainSpec
    epoch: float
    recipe: Recipe | None = None
    apart: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", _seeded(self.spec, 0))  # so that equal members have one name


def members(recipe: Recipe | None, spec: TrainSpec | Outside) -> list[tuple[TrainSpec, float, Recipe | None]]:
    """The other runs that `recipe` rests on where it is applied to `spec`: run, epoch, and what is made of it."""
    found: Sequence[Member] = getattr(recipe, "members", ())
    return [(_seeded(m.spec, (spec.seed or 0) + m.apart), m.epoch, m.recipe) for m in found]


def networks(recipe: Recipe | None, end: float) -> int:
    """How many networks predict together in what `recipe` makes of a run that is attacked at epoch `end`."""
    others = sum(networks(m.recipe, m.epoch) for m in getattr(recipe, "members", ()))
    if others:
        return networks(getattr(recipe, "own", None), end) + others
    return 1 if merges(recipe) else getattr(recipe, "draws", 0) or len(collected(recipe, end))


def merges(recipe: Recipe | None) -> bool:
    """Whether `recipe` gives the network itself, with weights of its own making."""
    return getattr(recipe, "merges", False)


def history(recipe: Recipe | None, run: str) -> str:
    """The key of what lies behind the weights that are attacked, where `run` is that of the run's own."""
    others = merges(recipe) or bool(getattr(recipe, "members", ()))
    return keys.key("made", run, named(recipe)) if others else run


def _seeded(spec: TrainSpec, seed: int) -> TrainSpec:
    return replace(spec, seed=seed, start=spec.start and _seeded(spec.start, seed))


@dataclass(frozen=True)
class Together:
    """An ensemble by mean logits of the run's own surrogate, made by `own`, and of those of other runs.

    Sources: Liu et al. 2017, ICLR; Dong et al. 2018, CVPR.
    """

    members: tuple[Member, ...]
    own: Recipe | None = None

    @property
    def per_epoch(self) -> int:
        """How many weights an epoch `own` collects."""
        return getattr(self.own, "per_epoch", 0)

    def __call__(
        self, network: nn.Module, weights: Sequence[Weights], batches: Iterable[Tensor], others: Sequence[nn.Module]
    ) -> nn.Module:
        return Ensemble([self.own(network, weights, batches) if self.own else network, *others])


@dataclass(frozen=True)
class Skips:
    """The network by skip gradients (SGM): `surrogates.SkipGradient`."""

    gamma: float = 0.2

    def __call__(self, network: nn.Module, weights: Sequence[Weights], batches: Iterable[Tensor]) -> nn.Module:
        return SkipGradient(network, self.gamma)


@dataclass(frozen=True)
class Ghosts:
    """Ghosts of the network, another one at every pass: `surrogates.GhostNetwork`."""

    strength: float = 0.22

    def __call__(self, network: nn.Module, weights: Sequence[Weights], batches: Iterable[Tensor]) -> nn.Module:
        return GhostNetwork(network, self.strength)


@dataclass(frozen=True)
class Collected:
    """LGV: the collected weights, one an iteration in random order (Gubri et al. 2022, ECCV)."""

    per_epoch: int = 4

    def __call__(self, network: nn.Module, weights: Sequence[Weights], batches: Iterable[Tensor]) -> nn.Module:
        return Cycle([loaded(network, w) for w in weights])


@dataclass(frozen=True)
class Averaged:
    """LGV-SWA: the mean of the collected weights, with BatchNorm's statistics re-estimated (Gubri et al. 2022)."""

    per_epoch: int = 4
    merges: ClassVar[bool] = True

    def __call__(self, network: nn.Module, weights: Sequence[Weights], batches: Iterable[Tensor]) -> nn.Module:
        return average(network, weights, batches)


@dataclass(frozen=True)
class Drawn:
    """Draws from a Gaussian fitted to the collected weights, one an iteration: `surrogates.Swag`.

    The defaults are those of the More-Bayesian surrogate (Li et al. 2023, ICLR): a diagonal, widened, 20 draws that
    share BatchNorm's statistics, which are those of the mean.
    """

    per_epoch: int = 4
    draws: int = 20
    scale: float = 1.5
    rank: int = 0

    def __call__(self, network: nn.Module, weights: Sequence[Weights], batches: Iterable[Tensor]) -> nn.Module:
        mean = average(network, weights, batches).state_dict()
        swag = replace(Swag.fit(network, weights, self.rank), mean=mean)
        return Cycle([loaded(network, swag.sample(seed, self.scale)) for seed in range(self.draws)])


def parse(described: dict[str, Any] | None) -> Recipe | None:
    """The recipe that a released file describes, of those here that merge weights.

    Raises:
        ValueError: another one.
    """
    if described is None:
        return None
    about = dict(described)
    known = about.pop("is", "") == Averaged.__name__
    require(known, f"a released network is made by {described!r}; this version knows {Averaged.__name__}.")
    return Averaged(**about)
