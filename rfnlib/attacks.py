"""Iterative gradient attacks: `attack(surrogate, images, labels)` returns adversarial images.

They know nothing of this project's experiments: any module that maps images in [0, 1] to logits will do.
A technique is a setting of `IterativeAttack`, and a named attack one line that sets it; `|` combines them:

>>> attack = MI() | DI() | TI()
>>> adversarial = attack(surrogate, images, labels)

==============  ==========================================  =================================================
attack          what it sets                                source
==============  ==========================================  =================================================
`FGSM`          one step of the whole radius                Goodfellow et al. 2015, ICLR
`BIM`           nothing (I-FGSM)                            Kurakin et al. 2017, ICLR workshop
`PGD`           `random_start`                              Madry et al. 2018, ICLR
`MI`            `momentum`                                  Dong et al. 2018, CVPR
`NI`            `momentum`, `nesterov`                      Lin et al. 2020, ICLR
`VMI`, `VNI`    those of MI, NI, and `variance`             Wang & He 2021, CVPR
`DI`            `views=(Diversity(),)`                      Xie et al. 2019, CVPR
`SI`            `views=(Scales(),)`                         Lin et al. 2020, ICLR (there with NI)
`Admix`         `momentum`, `views=(Mix(pool), Scales())`   Wang et al. 2021, ICCV
`TI`            `smoothing=Smoothing()`                     Dong et al. 2019, CVPR
`RAP`           `around=(Reverse(),)`                       Qin et al. 2022, NeurIPS
`PGN`           `momentum`, `around=(GradientNorm(),)`      Ge et al. 2023, NeurIPS
==============  ==========================================  =================================================

A technique of your own is a function or a small class given to one of these settings: `views` (what the surrogate
is shown), `around` or `variance` (which gradients are taken around a point, and what is made of them), `smoothing`
(what becomes of the gradient) or `loss`. `rfnlib.transforms` says what goes in and what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib.checks import is_number
from rfnlib.transforms import (
    AttackError,
    Ball,
    Batch,
    Diversity,
    Estimator,
    Gradient,
    GradientNorm,
    Mix,
    Neighbours,
    Reverse,
    Scales,
    Smoothing,
    View,
    estimated,
    full_precision,
    like,
    named,
    require,
    require_number,
    require_seed,
    require_whole,
    seen,
)

NORMS = ("linf", "l2")
DEFAULT_EPS = {"linf": 4 / 255, "l2": 0.5}

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N, K) and labels (N,) to one number an image, (N,)


# --- losses ------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(z)_y."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k ≠ y} z_k − z_y, positive where the image is fooled (Carlini & Wagner 2017, S&P)."""
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -math.inf).amax(1) - logits.gather(1, labels[:, None])[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin over z₍₁₎ − z₍₃₎, the gap from the largest to the third logit (Croce & Hein 2020, ICML).

    It does not change when logits are scaled or shifted; it is 1, without a gradient, where y has the third
    largest logit. Needs three classes. Targeted, it is this with the sign
    turned, for only the wanted class is known, and not Croce & Hein's targeted loss, which needs the true one too.
    """
    require(logits.shape[1] >= 3, f"the dlr loss needs 3 classes, the surrogate has {logits.shape[1]}; use 'margin'.")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def logit(logits: Tensor, labels: Tensor) -> Tensor:
    """−z_y; targeted, z_y rises without ever saturating (Zhao et al. 2021, NeurIPS)."""
    return -logits.gather(1, labels[:, None])[:, 0]


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "logit": logit}


# --- the attack --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IterativeAttack:
    """Maximise a loss of a surrogate inside a ball around each image.

    x₀ = x (or a random point of the ball);  xᵢ₊₁ = clip₀₁( Π( xᵢ + step · d(gᵢ) ) )

    with d the sign for `norm="linf"` and g/‖g‖₂ for each image for `"l2"`, Π the projection on the
    ball of radius `eps` around x, and the clip to [0, 1] last. Given several surrogates, step i uses
    the (i mod K)-th, starting anew for every batch, so that no example depends on its batch mates.

    By default gᵢ = ∇ₓ CE(fᵢ(xᵢ), y). The techniques change gᵢ, always in this order:

        ∇L(z) = ∇_z of the mean of loss(fᵢ(v), y) over the copies v that `views` make of z, else over z alone
        ∇L ← what the estimators in `around` make of it
        hᵢ = ∇L(xᵢ + step · μ · gᵢ₋₁)        with `nesterov`, else ∇L(xᵢ)
        hᵢ ← hᵢ + vᵢ₋₁,  vᵢ = V(xᵢ) − hᵢ     with `variance` (V: `Neighbours`; hᵢ as it was before; v₋₁ = 0)
        hᵢ ← W ∗ hᵢ                          with `smoothing`
        gᵢ = μ gᵢ₋₁ + hᵢ/‖hᵢ‖                with `momentum` μ (g₋₁ = 0), else hᵢ

    ‖·‖ is the mean absolute value: ‖·‖₁ of the papers over the number of pixels, as in their authors' code, without
    which `nesterov` would not look ahead at all. For l2 it is √(C·H·W) times that, so that a step has length `step`.

    Attributes:
        eps: radius, in units of [0, 1] pixels; None: 4/255 (linf), 0.5 (l2: of the whole image).
        step: step size; None: eps/10.
        steps: number of iterations.
        norm: "linf" or "l2".
        random_start: start uniformly in the ball instead of at the image.
        seed: of the random start and of all that techniques draw, for each example by its position in `images`.
        momentum: μ; 0: none.
        nesterov: take the gradient where the momentum leads.
        views: callables that make of the images what the surrogate is shown; the first works on the images.
        around: estimators of the gradient from gradients around a point; the first works on that of the views.
        variance: an estimator V for variance tuning, such as `Neighbours()`.
        smoothing: a callable from gradients to gradients, such as `Smoothing()`.
        loss: "ce", "margin", "dlr", "logit", or a callable from logits and labels to one number an image.
        targeted: minimise the loss: `labels` are the wanted classes.

    The defaults (eps 4/255, step eps/10, 50 steps, no random start) are those of the authors' earlier
    public code (LGV, ECCV 2022).

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
    momentum: float = 0.0
    nesterov: bool = False
    views: tuple[View, ...] = ()
    around: tuple[Estimator, ...] = ()
    variance: Estimator | None = None
    smoothing: Callable[[Tensor], Tensor] | None = None
    loss: str | Loss = "ce"
    targeted: bool = False

    def __post_init__(self) -> None:
        require(self.norm in NORMS, f"norm is {self.norm!r}; give one of {', '.join(map(repr, NORMS))}.")
        for name in ("eps", "step"):
            v = getattr(self, name)
            require(
                v is None or is_number(v, 0),
                f"{name} is {v!r}; give a radius of 0 or more in units of [0, 1] pixels, such as 4/255.",
            )
        require_whole("steps", self.steps, 1)
        require_seed(self.seed)
        self._check_techniques()

    def _check_techniques(self) -> None:
        require_number("momentum", self.momentum, 0)
        require(not self.nesterov or self.momentum > 0, "nesterov looks along the momentum, which is 0; give one.")
        for name in ("views", "around"):
            parts = getattr(self, name)
            fine = isinstance(parts, (tuple, list)) and all(map(_usable, parts))
            require(fine, f"{name} is {parts!r}; give a tuple of functions or objects to call, such as (Scales(),).")
            object.__setattr__(self, name, tuple(parts))
        for name in ("variance", "smoothing"):
            part = getattr(self, name)
            require(part is None or _usable(part), f"{name} is {part!r}; give None, or something to call.")
        known = self.loss in LOSSES if isinstance(self.loss, str) else _usable(self.loss)
        require(known, f"loss is {self.loss!r}; give one of {', '.join(map(repr, LOSSES))}, or a function.")

    @property
    def radius(self) -> float:
        return DEFAULT_EPS[self.norm] if self.eps is None else float(self.eps)

    @property
    def step_size(self) -> float:
        return self.radius / 10 if self.step is None else float(self.step)

    @property
    def ball(self) -> Ball:
        """Where the attack may go, and the length of its steps."""
        return Ball(self.norm, self.radius, self.step_size)

    @property
    def passes(self) -> int:
        """Forward-backward passes that one image costs at most; a part costs as many as its `passes` says, or one."""
        each = math.prod(getattr(part, "passes", 1) for part in (*self.views, *self.around))
        tuning = (self.steps - 1) * getattr(self.variance, "passes", 1) if self.variance is not None else 0
        return each * (self.steps + tuning)

    def describe(self) -> dict[str, Any]:
        """The resolved settings as JSON data, and those techniques that are on: keys made earlier stay what they were.

        Raises:
            AttackError: for a part that has no name to tell it from others, such as a lambda.
        """
        plain = {"norm": self.norm, "eps": self.radius, "step": self.step_size, "steps": self.steps}
        basic = plain.keys() | {"random_start", "seed"}
        used = {name: value for name, value in self._set().items() if name not in basic}
        start = {"random_start": True} if self.random_start else {}
        draws = self.random_start or used.keys() & {"views", "around", "variance"}
        techniques = {name: named(value) for name, value in used.items()}
        return plain | start | ({"seed": self.seed} if draws else {}) | techniques

    def __or__(self, other: IterativeAttack) -> IterativeAttack:
        """Both sets of techniques. Where both have a setting, the right one's; views and around add up, left first."""
        if not isinstance(other, IterativeAttack):
            return NotImplemented
        sums = {"views": self.views + other.views, "around": self.around + other.around}
        return replace(self, **other._set() | sums)

    def _set(self) -> dict[str, Any]:
        """The settings that are not at their default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

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
                One that changes from iteration to iteration says how by `at_iteration`, see there.
            images: float (N, C, H, W) in [0, 1], on the surrogate's device.
            labels: int64 (N,), the true classes; if `targeted`, the wanted ones.
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
        ball, memory = self.ball, {}
        velocity = variance = torch.zeros_like(x)
        for i in range(self.steps):
            batch = Batch(y, first, self.seed, i, memory)
            estimate = self._estimate(models[i % len(models)], batch)
            gradient = estimate(adv + self.step_size * self.momentum * velocity if self.nesterov else adv)
            if self.variance is not None:
                plain, gradient = gradient, gradient + variance
                if i + 1 < self.steps:  # the last one would serve nobody
                    variance = estimated(self.variance, estimate, ball, batch)(adv) - plain
            if self.smoothing is not None:
                with full_precision(x):
                    gradient = like(x, self.smoothing(gradient), self.smoothing)
            if self.momentum:
                velocity = gradient = self.momentum * velocity + ball.scaled(gradient)
            adv = ball.project(adv + self.step_size * ball.direction(gradient), x)
        return adv

    def _estimate(self, model: nn.Module, batch: Batch) -> Gradient:
        """∇L of the class docstring, at one iteration."""
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        sign = -1 if self.targeted else 1
        functions = at_iteration(model, batch)

        def gradient(x: Tensor) -> Tensor:
            each = [input_gradient(f, x, batch.labels, lambda logits, y: sign * loss(logits, y)) for f in functions]
            return sum(each[1:], each[0]) / len(each)

        if self.views:
            gradient = seen(self.views, gradient, batch)
        for part in self.around:
            gradient = estimated(part, gradient, self.ball, batch)
        return gradient

    def _start(self, x: Tensor, first: int) -> Tensor:
        drawn = torch.Generator()  # not `Batch`: starts stay those of the attacks already on record
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
        return self.ball.project(x + noise.to(x), x)


# --- named attacks, explained at the top -------------------------------------------------------------------


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


def Admix(pool: Tensor, pool_labels: Tensor | None = None, eps: float | None = None, **options: Any) -> IterativeAttack:
    """MI on scaled mixtures with images of a pool, of other classes if it has labels (Wang et al. 2021)."""
    return IterativeAttack(eps=eps, **{"momentum": 1.0, "views": (Mix(pool, pool_labels), Scales()), **options})


MI = partial(IterativeAttack, momentum=1.0)
NI = partial(MI, nesterov=True)
VMI = partial(MI, variance=Neighbours())
VNI = partial(NI, variance=Neighbours())
DI = partial(IterativeAttack, views=(Diversity(),))
SI = partial(IterativeAttack, views=(Scales(),))
TI = partial(IterativeAttack, smoothing=Smoothing())
RAP = partial(IterativeAttack, around=(Reverse(),))
PGN = partial(MI, around=(GradientNorm(),))


# --- the machinery -----------------------------------------------------------------------------------------


Function = Callable[[Tensor], Tensor]  # images (N, C, H, W) to logits (N, K); any module is one


def at_iteration(surrogate: Function, batch: Batch) -> Sequence[Function]:
    """What stands for `surrogate` at one iteration: functions whose mean loss is the one to climb.

    That is the surrogate alone, unless it has a method `at_iteration(batch)` that returns others. It is called once
    an iteration and batch, and learns from `batch` (as a view does) all that may tell iterations and examples apart;
    the functions serve every pass of the iteration. `rfnlib.surrogates` has some.
    """
    own = getattr(surrogate, "at_iteration", None)
    return [surrogate] if own is None else own(batch)


def input_gradient(model: Function, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Tensor:
    """∇ₓ of the summed loss, (N, C, H, W): each image's own gradient, whatever its batch.

    Raises:
        AttackError: labels outside the model's classes, or a gradient that is not finite.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x).float()
        if y.numel() and int(y.max()) >= logits.shape[1]:
            raise AttackError(f"labels hold {int(y.max())}; the surrogate has classes 0 to {logits.shape[1] - 1}.")
        losses = loss(logits, y)
        require(
            losses.shape == y.shape,
            f"the loss is of shape {tuple(losses.shape)}; give one number an image, of shape {tuple(y.shape)}.",
        )
        (gradient,) = torch.autograd.grad(losses.sum(), x)
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


def _usable(part: Any) -> bool:
    return callable(part) and not isinstance(part, type)  # Diversity() is a view, Diversity is not


def _check_inputs(models: list[nn.Module], images: Tensor, labels: Tensor, batch_size: int) -> None:
    require(bool(models), "no surrogate is given; give a module or a non-empty sequence of modules.")
    require(batch_size >= 1, f"batch_size is {batch_size}; give at least 1.")
    require(
        images.dim() == 4 and images.is_floating_point(),
        f"images are {images.dtype} of shape {tuple(images.shape)}; give floats of shape (N, C, H, W) in [0, 1].",
    )
    require(
        labels.shape == images.shape[:1] and labels.dtype == torch.int64,
        f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give int64 of shape ({len(images)},).",
    )
    if len(images):
        low, high = float(images.min()), float(images.max())
        inside = 0.0 <= low and high <= 1.0  # False for NaN too
        require(
            inside,
            f"images range over [{low:.4g}, {high:.4g}]; scale them to [0, 1] (normalise in the model).",
        )
        require(int(labels.min()) >= 0, f"labels hold {int(labels.min())}; classes count from 0.")
