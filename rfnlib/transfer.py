"""From hits to success rates: who was fooled, counted over which images, and how sure that is; robust accuracy.

The unit is a hit: target t misclassifies the adversarial image made from image i by the surrogate of
seed s. Hits are kept for every image and target; a denominator chooses which of them count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rfnlib.attacks import Function, IterativeAttack, frozen
from rfnlib.checks import logits_of, require_images
from rfnlib.intervals import Estimate, Influence, interval
from rfnlib.transforms import AttackError, require, require_whole

DENOMINATORS = {
    "all-targets-correct": "images that every target classifies correctly (the authors' rule)",
    "target-correct": "for each target, the images it classifies correctly",
    "surrogate-correct": "images that every target and the surrogate classify correctly",
    "all": "all images: a target's clean errors count as hits",
}
DEFAULT = "all-targets-correct"


@torch.no_grad()
def predict(model: Function, images: Tensor, batch_size: int = 500) -> Tensor:
    """Predicted classes, int64 (N,): the largest logit's.

    Args:
        model: a module, put in eval mode meanwhile and left as found; or a function.
        images: float (N, C, H, W) in [0, 1], on the model's device.
        batch_size: images predicted together.

    Raises:
        AttackError: images that are no such tensor, what is no logits, or logits of which none is the largest: NaN
            must not pass for a wrong class, as which it would count for a success of the attack.
    """
    require_images(images, AttackError)
    if not len(images):
        return torch.zeros(0, dtype=torch.int64, device=images.device)
    with frozen([model]):
        logits = torch.cat([logits_of(model, part, AttackError) for part in images.split(batch_size)])
    lost = int((~logits.amax(1).isfinite()).sum())
    way_out = "so they are of no class; look for what overflows, as it does in half precision"
    require(not lost, f"the logits of {lost} of {len(images)} images are not finite, {way_out}.")
    return logits.argmax(1)


# --- robust accuracy -----------------------------------------------------------------------------------------------


def is_robust(
    model: Function,
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
        AttackError: restarts that would repeat each other, what is no attack or a targeted one, or what cannot be
            attacked.
    """
    require_whole("restarts", restarts, 1)
    made = isinstance(attack, IterativeAttack)
    require(made, f"attack is {attack!r}; give one that is made, such as PGD(eps=8 / 255, steps=20).")
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
    model: Function, images: Tensor, labels: Tensor, attack: IterativeAttack, restarts: int = 1, batch_size: int = 256
) -> float:
    """The share of images that `is_robust` finds so, of all that are given (Madry et al. 2018, ICLR)."""
    require(len(images) > 0, "there are no images; give at least one.")
    return float(is_robust(model, images, labels, attack, restarts, batch_size).float().mean())


# --- hits and rates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hits:
    """Outcomes of one attack on one set of images; every array is bool.

    Attributes:
        adv_wrong: (S, N, T), target t is wrong on the adversarial image i of the surrogate of seed s; if the attack is
            targeted, it says the wanted class.
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
    counted = m.any((0, 2))
    apart = counted[:, None] * (rate - rate.mean()) / counted.mean()  # nothing on the mean of the targets
    return Influence(float(rate.mean()), m * (y - rate) / share + apart, counted, (0.0, 1.0))


def success(hits: Hits, denominator: str = DEFAULT, targets: list[int] | None = None) -> Estimate:
    """The success rate with its 95 % interval: `interval(influence(...))`."""
    return interval(influence(hits, denominator, targets))
