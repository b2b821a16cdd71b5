"""From hits to success rates: who was fooled, counted over which images, and how sure that is; robust accuracy.

The unit is a hit: target t misclassifies the adversarial image made from image i by the surrogate of
seed s. Hits are kept for every image and target; a denominator chooses which of them count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from rfnlib.attacks import IterativeAttack
from rfnlib.transforms import require, require_whole

DENOMINATORS = {
    "all-targets-correct": "images that every target classifies correctly (the authors' rule)",
    "target-correct": "for each target, the images it classifies correctly",
    "surrogate-correct": "images that every target and the surrogate classify correctly",
    "all": "all images: a target's clean errors count as hits",
}
DEFAULT = "all-targets-correct"


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Predicted classes, int64 (N,), of `images` (N, C, H, W) in [0, 1], in eval mode; modes are restored."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        return torch.cat([model(part).argmax(1) for part in images.split(batch_size)])
    finally:
        for m, training in modes:
            m.training = training


# --- robust accuracy -----------------------------------------------------------------------------------------------


def is_robust(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: IterativeAttack,
    restarts: int = 1,
    batch_size: int = 256,
) -> Tensor:
    """Which images the model classifies correctly, as they are and after every restart of `attack`: bool (N,).

    Restart r is `attack` with the seed `attack.seed` + r on the images that have withstood so far, for the others
    are lost already. For several radii call it several times: `PGD(eps=e, steps=20)` for e in a list.

    Args:
        model: put in eval mode meanwhile, and left as found.
        images: float (N, C, H, W) in [0, 1], on the model's device.
        labels: int64 (N,).
        attack: untargeted; with a random start if `restarts` is more than 1.

    Raises:
        AttackError: restarts that would repeat each other, a targeted attack, or what cannot be attacked.
    """
    require_whole("restarts", restarts, 1)
    same = restarts > 1 and not attack.random_start
    require(not same, f"{restarts} restarts without a random start would be one; use PGD, or restarts=1.")
    require(not attack.targeted, "the attack is targeted; robust accuracy is about any other class.")
    left = predict(model, images, batch_size) == labels
    for r in range(restarts):
        at = left.nonzero()[:, 0]
        if not len(at):
            break
        again = replace(attack, seed=(attack.seed + r) % 2**32)
        adversarial = again(model, images[at], labels[at], batch_size=batch_size)
        left[at] = predict(model, adversarial, batch_size) == labels[at]
    return left


def robust_accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, attack: IterativeAttack, restarts: int = 1, batch_size: int = 256
) -> float:
    """The share of images that `is_robust` finds so, of all that are given (Madry et al. 2018, ICLR)."""
    require(len(images) > 0, "there are no images; give at least one.")
    return float(is_robust(model, images, labels, attack, restarts, batch_size).float().mean())


# --- hits and rates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hits:
    """Outcomes of one attack on one set of images; every array is bool.

    Attributes:
        adv_wrong: (S, N, T), target t is wrong on the adversarial image i of the surrogate of seed s.
        clean_wrong: (N, T), target t is wrong on the clean image.
        surrogate_wrong: (S, N), the surrogate is wrong on the clean image.
    """

    adv_wrong: np.ndarray
    clean_wrong: np.ndarray
    surrogate_wrong: np.ndarray

    def __post_init__(self) -> None:
        for name in ("adv_wrong", "clean_wrong", "surrogate_wrong"):
            dtype = getattr(self, name).dtype
            if dtype != np.bool_:  # ~ means another thing for integers
                raise ValueError(f"{name} is of dtype {dtype}; give bool.")
        s, n, t = self.adv_wrong.shape
        if self.clean_wrong.shape != (n, t) or self.surrogate_wrong.shape != (s, n):
            raise ValueError(
                f"clean_wrong is {self.clean_wrong.shape} and surrogate_wrong {self.surrogate_wrong.shape}; "
                f"with adv_wrong {self.adv_wrong.shape} they must be {(n, t)} and {(s, n)}."
            )

    def counted(self, denominator: str = DEFAULT) -> np.ndarray:
        """Which hits count, bool (S, N, T).

        Raises:
            ValueError: an unknown denominator.
        """
        shape = self.adv_wrong.shape
        every = ~self.clean_wrong.any(1)[None, :, None]
        if denominator == "all":
            return np.ones(shape, bool)
        if denominator == "target-correct":
            return np.broadcast_to(~self.clean_wrong, shape)
        if denominator == "all-targets-correct":
            return np.broadcast_to(every, shape)
        if denominator == "surrogate-correct":
            return np.broadcast_to(every & ~self.surrogate_wrong[:, :, None], shape)
        raise ValueError(f"denominator is {denominator!r}; give one of {', '.join(map(repr, DENOMINATORS))}.")


@dataclass(frozen=True)
class Estimate:
    """A rate, or a difference of rates, with its confidence interval (not clipped to [0, 1]) and what it rests on."""

    value: float
    low: float
    high: float
    seeds: int
    images: int


@dataclass(frozen=True)
class Influence:
    """A rate and each observation's influence on it: what intervals, and those of differences, are made of.

    For a ratio R = Σ m·y / Σ m the influence is z = m·(y − R)/mean(m), whose mean is 0 and whose
    spread is that of R (linearisation, Särndal et al. 1992, §5.5). `z` is (S, N): averaged over targets.
    """

    value: float
    z: np.ndarray
    images: int

    def __sub__(self, other: Influence) -> Influence:
        """The paired difference: same seeds, same images."""
        if self.z.shape != other.z.shape:
            raise ValueError(f"paired rates need the same seeds and images, not {self.z.shape} and {other.z.shape}.")
        return Influence(self.value - other.value, self.z - other.z, min(self.images, other.images))


def influence(hits: Hits, denominator: str = DEFAULT, targets: list[int] | None = None) -> Influence:
    """Success rate, the mean over `targets` (None: all) of each target's rate, with its influence.

    Raises:
        ValueError: an unknown denominator, no target, or no image left under it.
    """
    chosen = slice(None) if targets is None else targets
    y = hits.adv_wrong[:, :, chosen].astype(float)
    m = hits.counted(denominator)[:, :, chosen].astype(float)
    if not m.shape[2]:
        raise ValueError(f"targets is {targets!r}; choose at least one.")
    share = m.mean((0, 1))
    if not (share > 0).all():
        raise ValueError(f"no image counts under {denominator!r}; use more images, or the denominator 'all'.")
    rate = (m * y).mean((0, 1)) / share
    z = (m * (y - rate) / share).mean(2)
    return Influence(float(rate.mean()), z, int(m.any((0, 2)).sum()))


def share(outcomes: np.ndarray) -> Influence:
    """The share of images for which something holds, bool (S, N), with its influence: the simplest rate."""
    value = float(outcomes.mean())
    return Influence(value, outcomes - value, outcomes.shape[1])


def average(rates: list[Influence]) -> Influence:
    """The mean of several rates (or differences) over the same seeds and images."""
    if len({r.z.shape for r in rates}) != 1:
        raise ValueError(f"an average needs rates of the same seeds and images, not {[r.z.shape for r in rates]}.")
    value = float(np.mean([r.value for r in rates]))
    return Influence(value, np.mean([r.z for r in rates], axis=0), min(r.images for r in rates))


def interval(rate: Influence, confidence: float = 0.95) -> Estimate:
    """A confidence interval over images *and* seeds.

    Seeds and images are crossed random effects: z = seed + image + rest, and

        Var(mean) = (MS_seed + MS_image − MS_rest) / (S·N)

    from the mean squares of the two-way table (Searle et al. 1992, §4.5), with Satterthwaite's degrees
    of freedom and Student's t. With one seed the interval covers images alone: `seeds` says so.

    Raises:
        ValueError: fewer than two images, which do not tell how images vary.
    """
    s, n = rate.z.shape
    if n < 2:
        raise ValueError(f"an interval over images needs at least 2 of them, not {n}.")
    z = rate.z - rate.z.mean()
    if s == 1:
        ms_image, ms_seed, ms_rest = z.var(ddof=1), 0.0, 0.0
        total, freedom = ms_image, n - 1
    else:
        by_seed, by_image = z.mean(1), z.mean(0)
        rest = z - by_seed[:, None] - by_image[None, :]
        ms_seed = n * by_seed.var(ddof=1)
        ms_image = s * by_image.var(ddof=1)
        ms_rest = (rest**2).sum() / ((s - 1) * (n - 1))
        # Below the pure noise the difference is an accident of estimation.
        total = max(ms_seed + ms_image - ms_rest, ms_seed, ms_image)
        spread = ms_seed**2 / (s - 1) + ms_image**2 / (n - 1) + ms_rest**2 / ((s - 1) * (n - 1))
        freedom = total**2 / spread if spread > 0 else s - 1
    half = stats.t.ppf((1 + confidence) / 2, max(freedom, 1.0)) * np.sqrt(total / (s * n))
    return Estimate(rate.value, rate.value - half, rate.value + half, s, rate.images)


def over_seeds(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The mean of one value a seed (S,), with Student's interval on S − 1 degrees of freedom.

    For what is one number a surrogate (a sharpness, an accuracy), so that only seeds vary. With one seed the
    interval is the whole line. `images` is 0: none were counted.
    """
    s, mean = len(values), float(np.mean(values))
    half = stats.t.ppf((1 + confidence) / 2, s - 1) * np.std(values, ddof=1) / np.sqrt(s) if s > 1 else np.inf
    return Estimate(mean, mean - half, mean + half, s, 0)


def success(hits: Hits, denominator: str = DEFAULT, targets: list[int] | None = None) -> Estimate:
    """The success rate with its 95 % interval: `interval(influence(...))`."""
    return interval(influence(hits, denominator, targets))
