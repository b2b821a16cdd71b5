"""Iterative gradient attacks: `attack(surrogate, images, labels)` returns adversarial images.

They know nothing of this project's experiments: any module that maps images in [0, 1] to logits will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("linf", "l2")
DEFAULT_EPS = {"linf": 4 / 255, "l2": 0.5}


class AttackError(ValueError):
    """Arguments that an attack cannot work with."""


@dataclass(frozen=True)
class IterativeAttack:
    """Maximise the cross-entropy of a surrogate inside a ball around each image.

    x₀ = x (or a random point of the ball);  xᵢ₊₁ = clip₀₁( Π( xᵢ + step · d(∇ₓ CE(fᵢ(xᵢ), y)) ) )

    with d the sign for `norm="linf"` and g/‖g‖₂ for each image for `"l2"`, Π the projection on the
    ball of radius `eps` around x, and the clip to [0, 1] last. Given several surrogates, step i uses
    the (i mod K)-th, starting anew for every batch, so that no example depends on its batch mates.

    Attributes:
        eps: radius, in units of [0, 1] pixels; None: 4/255 (linf), 0.5 (l2: of the whole image).
        step: step size; None: eps/10.
        steps: number of iterations.
        norm: "linf" or "l2".
        random_start: start uniformly in the ball instead of at the image.
        seed: of the random start, drawn for each example by its position in `images`.

    The defaults (eps 4/255, step eps/10, 50 steps, no random start) are those of the authors' earlier
    public code (LGV, ECCV 2022). BIM: Kurakin et al. 2017; PGD: Madry et al. 2018.

    Raises:
        AttackError: on construction for a negative radius and the like; on use for images outside
            [0, 1], labels that do not fit, or a gradient that is not finite.
    """

    eps: float | None = None
    step: float | None = None
    steps: int = 50
    norm: str = "linf"
    random_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.norm in NORMS, f"norm is {self.norm!r}; give one of {', '.join(map(repr, NORMS))}.")
        for name in ("eps", "step"):
            v = getattr(self, name)
            number = isinstance(v, (int, float)) and not isinstance(v, bool)
            fine = v is None or (number and math.isfinite(v) and v >= 0)
            _require(
                fine,
                f"{name} is {v!r}; give a radius of 0 or more in units of [0, 1] pixels, such as 4/255.",
            )
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 1
        _require(whole, f"steps is {self.steps!r}; give a whole number of at least 1.")
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool) and 0 <= self.seed < 2**32
        _require(whole, f"seed is {self.seed!r}; give a whole number from 0 to 2**32 - 1.")

    @property
    def radius(self) -> float:
        return DEFAULT_EPS[self.norm] if self.eps is None else float(self.eps)

    @property
    def step_size(self) -> float:
        return self.radius / 10 if self.step is None else float(self.step)

    def describe(self) -> dict[str, Any]:
        """The resolved settings as JSON data."""
        plain = {"norm": self.norm, "eps": self.radius, "step": self.step_size, "steps": self.steps}
        return plain | ({"random_start": True, "seed": self.seed} if self.random_start else {})

    def __call__(
        self,
        surrogate: nn.Module | Sequence[nn.Module],
        images: Tensor,
        labels: Tensor,
        batch_size: int = 256,
    ) -> Tensor:
        """Adversarial images for `images`.

        Args:
            surrogate: a module, or a sequence of modules used one an iteration; put in eval mode for
                the time of the attack and left as found (mode, requires_grad, buffers, gradients).
            images: float (N, C, H, W) in [0, 1], on the surrogate's device.
            labels: int64 (N,), the true classes.
            batch_size: images attacked together; changes speed and memory, not the result.

        Returns:
            float (N, C, H, W) in [0, 1], within `eps` of `images`, detached.
        """
        models = [surrogate] if isinstance(surrogate, nn.Module) else list(surrogate)
        images = images.detach()
        _check_inputs(models, images, labels, batch_size)
        with frozen(models):
            done = [
                self._batch(models, images[i : i + batch_size], labels[i : i + batch_size], i)
                for i in range(0, len(images), batch_size)
            ]
        return torch.cat(done) if done else images.clone()

    def _batch(self, models: list[nn.Module], x: Tensor, y: Tensor, first: int) -> Tensor:
        adv = self._start(x, first) if self.random_start else x
        for i in range(self.steps):
            gradient = input_gradient(models[i % len(models)], adv, y)
            adv = self._project(adv + self.step_size * self._direction(gradient), x)
        return adv

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        # An image whose gradient vanishes stays where it is, instead of turning into NaN.
        return gradient / _norms(gradient).clamp_min(1e-12)

    def _project(self, adv: Tensor, x: Tensor) -> Tensor:
        if self.norm == "linf":
            near = torch.minimum(torch.maximum(adv, x - self.radius), x + self.radius)
        else:
            offset = adv - x
            near = x + offset * (self.radius / _norms(offset).clamp_min(1e-12)).clamp_max(1.0)
        return near.clamp(0.0, 1.0)

    def _start(self, x: Tensor, first: int) -> Tensor:
        drawn = torch.Generator()
        noise = torch.empty(x.shape)
        for i in range(len(x)):
            # torch's CPU generator looks at the low 32 bits alone: spread the seed over all of them.
            drawn.manual_seed((self.seed * 0x9E3779B1 + first + i) % 2**32)
            if self.norm == "linf":
                noise[i].uniform_(-self.radius, self.radius, generator=drawn)
            else:  # uniform in the ball: a uniform direction, and a radius with density ~ r^(d-1)
                noise[i].normal_(generator=drawn)
                r = self.radius * torch.rand((), generator=drawn) ** (1 / noise[i].numel())
                noise[i] *= r / noise[i].norm()
        return self._project(x + noise.to(x), x)


def FGSM(eps: float | None = None, **options: Any) -> IterativeAttack:
    """One step of the whole radius (Goodfellow et al. 2015)."""
    radius = IterativeAttack(eps=eps, norm=options.get("norm", "linf")).radius
    return IterativeAttack(eps=eps, **{"step": radius, "steps": 1, **options})


def BIM(eps: float | None = None, **options: Any) -> IterativeAttack:
    """The basic iterative method, I-FGSM: no random start (Kurakin et al. 2017). The paper's attack."""
    return IterativeAttack(eps=eps, **options)


def PGD(eps: float | None = None, **options: Any) -> IterativeAttack:
    """BIM from a uniformly random start in the ball (Madry et al. 2018)."""
    return IterativeAttack(eps=eps, **{"random_start": True, **options})


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """∇ₓ of the summed cross-entropy, (N, C, H, W): each image's own gradient, whatever its batch.

    Raises:
        AttackError: labels outside the model's classes, or a gradient that is not finite.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x).float()
        if y.numel() and int(y.max()) >= logits.shape[1]:
            raise AttackError(f"labels hold {int(y.max())}; the surrogate has classes 0 to {logits.shape[1] - 1}.")
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    if not torch.isfinite(gradient).all():
        raise AttackError("the surrogate's input gradient is not finite; its weights or its outputs overflow.")
    return gradient


@contextmanager
def frozen(models: Sequence[nn.Module]) -> Iterator[None]:
    """`models` in eval mode and without weight gradients; on leaving, as they were, whatever happened."""
    modules = [m for model in models for m in model.modules()]
    weights = [p for model in models for p in model.parameters()]
    modes, grads = [m.training for m in modules], [p.requires_grad for p in weights]
    try:
        for model in models:
            model.eval()
            model.requires_grad_(False)
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode
        for p, grad in zip(weights, grads, strict=True):
            p.requires_grad_(grad)


def _norms(batch: Tensor) -> Tensor:
    return batch.flatten(1).norm(dim=1).view(-1, *[1] * (batch.dim() - 1))


def _check_inputs(models: list[nn.Module], images: Tensor, labels: Tensor, batch_size: int) -> None:
    _require(bool(models), "no surrogate is given; give a module or a non-empty sequence of modules.")
    _require(batch_size >= 1, f"batch_size is {batch_size}; give at least 1.")
    _require(
        images.dim() == 4 and images.is_floating_point(),
        f"images are {images.dtype} of shape {tuple(images.shape)}; give floats of shape (N, C, H, W) in [0, 1].",
    )
    _require(
        labels.shape == images.shape[:1] and labels.dtype == torch.int64,
        f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give int64 of shape ({len(images)},).",
    )
    if len(images):
        low, high = float(images.min()), float(images.max())
        inside = 0.0 <= low and high <= 1.0  # False for NaN too
        _require(
            inside,
            f"images range over [{low:.4g}, {high:.4g}]; scale them to [0, 1] (normalise in the model).",
        )
        _require(int(labels.min()) >= 0, f"labels hold {int(labels.min())}; classes count from 0.")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise AttackError(message)
