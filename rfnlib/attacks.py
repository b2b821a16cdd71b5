"""Iterative gradient attacks: `attack(surrogate, images, labels)` returns adversarial images.

They know nothing of this project's experiments: any module that maps images in [0, 1] to logits will do.
A technique is a setting of `IterativeAttack`, and a named attack one line that sets it; `|` combines them:

>>> attack = MI() | DI() | TI()  # doctest: +SKIP
>>> adversarial = attack(surrogate, images, labels)  # doctest: +SKIP
>>> for adversarial, labels in attack.over(surrogate, loader): ...  # an epoch, with progress  # doctest: +SKIP

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial, wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib.checks import is_model, is_number, is_whole, logits_of, require_images, require_labels, require_model
from rfnlib.folding import folded
from rfnlib.progress import Progress
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
    narrowed,
    require,
    require_number,
    require_seed,
    require_whole,
    seen,
    widened,
)

NORMS = ("linf", "l2")
DEFAULT_EPS = {"linf": 4 / 255, "l2": 0.5}
WORTH_FOLDING = 5  # passes from which on a tenth of a second is repaid by networks that take one for a pass
ELSEWHERE = {  # what other libraries call settings, and what to give here
    "epsilon": "eps",
    **dict.fromkeys(("alpha", "step_size", "eps_iter"), "step"),
    **dict.fromkeys(("n_iter", "nb_iter", "num_iter", "max_iter", "num_steps", "n_steps", "iterations"), "steps"),
    "decay": "momentum",
    **dict.fromkeys(("restarts", "n_restarts"), "restarts to rfnlib.transfer.robust_accuracy"),
}

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N, K) and labels (N,) to one number an image, (N,)


# --- losses ------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(z)_y."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k ≠ y} z_k − z_y, positive where the image is fooled (Carlini & Wagner 2017, S&P).

    >>> margin(torch.tensor([[1.0, 4.0, 2.0]]).expand(2, 3), torch.tensor([1, 0]))
    tensor([-2.,  3.])
    """
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -math.inf).amax(1) - logits.gather(1, labels[:, None])[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin over z₍₁₎ − z₍₃₎, the gap from the largest to the third logit (Croce & Hein 2020, ICML).

    It does not change when logits are scaled or shifted; it is 1, without a gradient, where y has the third
    largest logit, and the margin itself where these three are equal. Needs three classes. Targeted, it is this with
    the sign turned, for only the wanted class is known, and not Croce & Hein's targeted loss, which needs the true
    one too.

    >>> dlr(torch.tensor([[1.0, 4.0, 2.0]]).expand(2, 3), torch.tensor([1, 0]))
    tensor([-0.6667,  1.0000])
    """
    require(logits.shape[1] >= 3, f"the dlr loss needs 3 classes, the surrogate has {logits.shape[1]}; use 'margin'.")
    top = logits.topk(3, dim=1).values
    gap = top[:, 0] - top[:, 2]
    return margin(logits, labels) / torch.where(gap > 0, gap, 1.0)


def logit(logits: Tensor, labels: Tensor) -> Tensor:
    """−z_y; targeted, z_y rises without ever saturating (Zhao et al. 2021, NeurIPS)."""
    return -logits.gather(1, labels[:, None])[:, 0]


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "logit": logit}


# --- the attack --------------------------------------------------------------------------------------------


Of = TypeVar("Of")


def _refusing(attack: type[Of]) -> type[Of]:
    """`attack`, whose constructor says what the names of `ELSEWHERE` are here."""
    init: Callable[..., None] = attack.__init__

    @wraps(init)
    def checked(self: Of, *given: Any, **options: Any) -> None:
        for name in options:
            require(name not in ELSEWHERE, f"an attack has no {name}; give {ELSEWHERE.get(name)}.")
        init(self, *given, **options)

    attack.__init__ = checked
    return attack


@_refusing
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
        step: step size; None: eps/10, or eps/steps in fewer than 10 steps, so that they reach the edge of the ball.
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

    Images in half precision are shown to the surrogate as such, but moved in float32, since a step of theirs may be
    less than a pixel's last digit; what comes back is rounded towards the image.

    Raises:
        AttackError: on construction for a negative radius and the like, one in units of 255 levels, or a name that
            only other libraries have; on use for what is no surrogate, images outside [0, 1], labels that do not fit,
            a gradient that is not finite, or under `torch.inference_mode`, where there is none.
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
            levels = v is not None and self.norm == "linf" and v > 1
            require(not levels, f"{name} is {v!r}, but pixels reach from 0 to 1; for levels of 255 give {v!r}/255.")
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
        return self.radius / min(self.steps, 10) if self.step is None else float(self.step)

    @property
    def ball(self) -> Ball:
        """Where the attack may go, and the length of its steps."""
        return Ball(self.norm, self.radius, self.step_size)

    @property
    def passes(self) -> int:
        """Forward-backward passes that one image costs at most; a part costs as many as its `passes` says, or one.

        A surrogate may take several for one: see `passes_on`.
        """
        each = math.prod(getattr(part, "passes", 1) for part in (*self.views, *self.around))
        tuning = (self.steps - 1) * getattr(self.variance, "passes", 1) if self.variance is not None else 0
        return each * (self.steps + tuning)

    def passes_on(self, surrogate: Function | Sequence[Function]) -> float:
        """The same through all members of `surrogate`, of several the mean: an ensemble of M takes M times as many."""
        each = [getattr(model, "passes", 1) for model in listed(surrogate)]
        return self.passes * sum(each) / len(each)

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
        surrogate: Function | Sequence[Function],
        images: Tensor,
        labels: Tensor,
        batch_size: int = 256,
    ) -> Tensor:
        """Adversarial images for `images`.

        Args:
            surrogate: a module, or a sequence of modules used one an iteration; put in eval mode for
                the time of the attack and left as found (mode, requires_grad, buffers, gradients).
                Its batch norms are folded meanwhile where that is safe: see `folding.folded`.
                One that changes from iteration to iteration says how by `at_iteration`, see there.
                A function will do too, whose networks are then as they are, eval mode being its own business.
            images: float (N, C, H, W) in [0, 1], on the surrogate's device.
            labels: int64 (N,), the true classes; if `targeted`, the wanted ones.
            batch_size: images attacked together; changes speed and memory, not the result.

        Returns:
            float (N, C, H, W) in [0, 1], within `eps` of `images`, detached.
        """
        return self._adversarial(listed(surrogate), images, labels, batch_size, 0)

    def over(
        self,
        surrogate: Function | Sequence[Function],
        loader: Iterable[Sequence[Tensor]],
        batch_size: int = 256,
        progress: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Adversarial images batch by batch, with their labels: what `attack` makes of all of them together.

        Positions, by which random numbers are drawn, go on from batch to batch; shuffling changes them.

        Args:
            surrogate: as for the attack itself. Between batches it is as found.
            loader: of pairs (images, labels), such as a `DataLoader`, on any device.
            batch_size: images attacked together, if the loader's batches are larger.
            progress: say in text how much is left, if the loader knows its length.

        Yields:
            Images, float (B, C, H, W) in [0, 1], and labels, int64 (B,), on the surrogate's device.

        Raises:
            AttackError: as the attack, and for batches that are no pairs.
        """
        models, first = listed(surrogate), 0
        weights = (p for model in models if isinstance(model, nn.Module) for p in model.parameters())
        device = next((p.device for p in weights), None)
        known = hasattr(loader, "__len__")
        with Progress(len(loader) if known else 1, "attack", progress and known) as bar:
            for pair in loader:
                two = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)
                require(two, f"the loader gives a {type(pair).__name__}; give pairs of tensors, (images, labels).")
                images, labels = (t.to(device) for t in pair)
                yield self._adversarial(models, images, labels, batch_size, first), labels
                first += len(labels)
                bar.advance()

    def _adversarial(
        self, models: Sequence[Function], images: Tensor, labels: Tensor, batch_size: int, first: int
    ) -> Tensor:
        require(len(models) > 0, "no surrogate is given; give a module or a non-empty sequence of modules.")
        require(is_whole(batch_size, 1), f"batch_size is {batch_size}; give at least 1.")
        require_images(images, AttackError)
        require_labels(labels, len(images), AttackError)
        at = range(0, len(images), batch_size)
        with frozen(models), folded(models if self.passes >= WORTH_FOLDING else (), images):
            parts = zip(images.split(batch_size), labels.split(batch_size), at, strict=False)
            done = [self.perturbed(models, x, y, first + i) for x, y, i in parts]
        return torch.cat(done) if done else images.detach().clone()

    def perturbed(self, models: Sequence[Function], x: Tensor, y: Tensor, first: int = 0) -> Tensor:
        """The attack itself on one batch: without a look at the arguments, and on networks as they are.

        For loops that check their images once, and whose networks are `frozen`.

        Args:
            models: used one an iteration.
            x: float (B, C, H, W) in [0, 1].
            y: int64 (B,).
            first: the position of x[0] among all images.
        """
        given, x = x, widened(x.detach())
        adv = self._start(x, first) if self.random_start else x
        ball, memory, passes = self.ball, {}, _Passes(given.dtype, y)
        velocity = variance = torch.zeros_like(x)
        for i in range(self.steps):
            batch = Batch(y, first, self.seed, i, memory)
            estimate = self._estimate(models[i % len(models)], batch, passes)
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
        passes.require_finite()
        return narrowed(adv, given)

    def _estimate(self, model: Function, batch: Batch, passes: _Passes) -> Gradient:
        """∇L of the class docstring, at one iteration."""
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        sign = -1 if self.targeted else 1
        functions = at_iteration(model, batch)

        def gradient(x: Tensor) -> Tensor:
            each = [passes.gradient(f, x, lambda logits, y: sign * loss(logits, y)) for f in functions]
            return sum(each[1:], each[0]) / len(each)

        if self.views:
            gradient = seen(self.views, gradient, batch)
        for part in self.around:
            gradient = estimated(part, gradient, self.ball, batch)
        return gradient

    def _start(self, x: Tensor, first: int) -> Tensor:
        noise = random_start(x.shape, self.ball, self.seed, first)
        return self.ball.project(x + noise.to(x), x)


def random_start(shape: Sequence[int], ball: Ball, seed: int, first: int = 0) -> Tensor:
    """Points drawn uniformly from a ball around 0, float32 of `shape` (N, C, H, W), on the CPU.

    Args:
        ball: of which norm and radius; its step does not matter.
        seed: of all images; each has a stream of its own, by its position.
        first: the position of the first one.
    """
    drawn = torch.Generator()  # not `Batch`: starts stay those of the attacks already on record
    noise = torch.empty(tuple(shape))
    for i, image in enumerate(noise, first):
        # torch's CPU generator looks at the low 32 bits alone: spread the seed over all of them.
        drawn.manual_seed((seed * 0x9E3779B1 + i) % 2**32)
        if ball.norm == "linf":
            image.uniform_(-ball.radius, ball.radius, generator=drawn)
        else:  # a uniform direction, and a radius with density ~ r^(d-1)
            image.normal_(generator=drawn)
            r = ball.radius * torch.rand((), generator=drawn) ** (1 / image.numel())
            image *= r / image.norm()
    return noise


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


def listed(surrogate: Function | Sequence[Function]) -> Sequence[Function]:
    """The surrogates, one an iteration: a module or a function is the only one."""
    if is_model(surrogate):
        return [surrogate]
    several = isinstance(surrogate, Iterable) and not isinstance(surrogate, str | Tensor)
    models = list(surrogate) if several else [surrogate]
    for model in models:
        way_out = "a module, a function, or a sequence of them, before the images and labels"
        require_model(model, AttackError, "the surrogate", way_out)
    return models


def input_gradient(model: Function, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Tensor:
    """∇ₓ of the summed loss, (N, C, H, W): each image's own gradient, whatever its batch.

    Args:
        model: from images to logits (N, K).
        x: float (N, C, H, W).
        y: int64 (N,).
        loss: from logits and labels to one number an image.

    Raises:
        AttackError: labels outside the model's classes, no logits, or a gradient that is not finite, or forbidden by
            `torch.inference_mode`.
    """
    passes = _Passes(x.dtype, y)
    gradient = passes.gradient(model, x, loss)
    passes.require_finite()
    return gradient


class _Passes:
    """Passes with the same labels, shown images of type `dtype`.

    To look at numbers once, not at every pass, keeps a GPU from waiting: labels are looked at first, and last whether
    all gradients were finite.
    """

    def __init__(self, dtype: torch.dtype, labels: Tensor) -> None:
        self.dtype, self.labels = dtype, labels
        self.top = int(labels.max()) if labels.numel() else 0
        self.finite: list[Tensor] = []

    def gradient(self, model: Function, x: Tensor, loss: Loss) -> Tensor:
        cut = torch.is_inference_mode_enabled() or x.is_inference() or self.labels.is_inference()
        require(not cut, "torch.inference_mode() leaves no gradients; use torch.no_grad(), for images and labels too.")
        x, y = x.detach().requires_grad_(), self.labels
        with torch.enable_grad():
            logits = logits_of(model, x.to(self.dtype), AttackError).float()
            classes = logits.shape[1]
            require(self.top < classes, f"labels hold {self.top}; the surrogate has classes 0 to {classes - 1}.")
            losses = loss(logits, y)
            require(
                losses.shape == y.shape,
                f"the loss is of shape {tuple(losses.shape)}; give one number an image, of shape {tuple(y.shape)}.",
            )
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        self.finite.append(torch.isfinite(gradient).all())
        return gradient

    def require_finite(self) -> None:
        fine = not self.finite or bool(torch.stack(self.finite).all())
        require(fine, "the surrogate's input gradient is not finite; its weights or its outputs overflow.")


@contextmanager
def frozen(models: Sequence[Function]) -> Iterator[None]:
    """`models` in eval mode and without weight gradients; on leaving, as they were, whatever happened.

    Functions among them are passed over.
    """
    models = [model for model in models if isinstance(model, nn.Module)]
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
