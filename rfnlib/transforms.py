"""The parts of an attack: what it does to images before the surrogate sees them, and to gradients after it.

A **view** is any callable `view(images, batch)`: it gets the images (N, C, H, W) as they are attacked and returns
what the surrogate is shown instead, one batch of N images or a list of them. The attack averages the gradients
over all copies, through the view. `batch` knows the examples (`labels`, `iteration`) and draws random numbers for
each of them alone, so that no example depends on its batch mates or on the size of the batch:

>>> def brightness(images, batch):  # doctest: +SKIP
...     factor = 0.8 + 0.4 * batch.uniform(1, 1, 1)  # (N, 1, 1, 1): one number an example
...     return images * factor.to(images)
>>> attack = MI(views=(brightness,))  # doctest: +SKIP

An **estimator** is any callable `estimator(gradient, x, ball, batch)` that returns what the attack shall take for the
gradient at `x`, (N, C, H, W). `gradient` is a function from images to gradients; `ball` knows the attack's radius, norm
and step. A **smoothing** is any callable from gradients to gradients. To keep something of the examples from one
iteration to the next there is `batch.memory`; and a part that is a frozen dataclass, or a function of a module,
can be described in records.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfnlib import checks
from rfnlib.checks import is_number, is_whole
from rfnlib.specs import TrainSpec

MODES = ("bilinear", "nearest")


class AttackError(ValueError):
    """Arguments that an attack cannot work with."""


require = partial(checks.require, error=AttackError)


# --- the examples at hand, and their random numbers --------------------------------------------------------


@dataclass
class Batch:
    """The examples attacked together at one iteration, and a source of random numbers for each of them.

    The numbers are those of SplitMix64 (Steele et al. 2014), started for every call from the seed, the position
    of the example in `images`, the iteration, and how many calls came before in it. They are computed, not drawn
    from torch's generators: the same on every device, and those are left alone.

    Attributes:
        labels: int64 (N,), the classes given to the attack (if targeted, the wanted ones).
        first: position in `images` of the first of them.
        seed: the attack's.
        iteration: from 0.
        memory: whatever a technique wants to keep of these examples from one iteration to the next.
    """

    labels: Tensor
    first: int = 0
    seed: int = 0
    iteration: int = 0
    memory: dict[Any, Any] = field(default_factory=dict)
    calls: int = 0

    def uniform(self, *shape: int) -> Tensor:
        """float32 (N, *shape), uniform on the multiples of 2⁻²⁴ in [0, 1)."""
        n, size = len(self.labels), math.prod(shape)
        keys = torch.arange(self.first, self.first + n, device=self.labels.device)
        for part in (self.seed, self.iteration, self.calls):
            keys = _mixed((keys + 1) * _GOLDEN + part)
        self.calls += 1
        counter = torch.arange(1, size // 2 + 2, device=keys.device)  # 64 bits make two numbers
        bits = _mixed(keys[:, None] + counter * _GOLDEN).view(torch.int32)[:, :size]
        return ((bits >> 8) & 0xFFFFFF).float().mul_(2**-24).view(n, *shape)

    def normal(self, *shape: int) -> Tensor:
        """float32 (N, *shape), standard normal."""
        centred = 2 * self.uniform(*shape) - 1 + 2**-24  # exact, symmetric, and never ±1
        return torch.erfinv(centred) * math.sqrt(2)

    def below(self, count: int | Tensor) -> Tensor:
        """int64 (N,), uniform from 0 to `count` − 1; `count` may be a tensor (N,), one for each example."""
        return (self.uniform() * 2**24).long() * count >> 24


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # int64 arithmetic wraps around, as SplitMix64 wants it


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function of int64 `z`, which is used up; the masks make the shifts unsigned."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)):
        z ^= (z >> shift).bitwise_and_(2 ** (64 - shift) - 1)
        z *= factor
    return z


# --- geometry ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ball:
    """The points within `radius` of an image in `norm` ("linf" or "l2"), and steps of length `step` in it."""

    norm: str
    radius: float
    step: float

    def times(self, factor: float) -> Ball:
        """The ball of `factor` times the radius, with the same step."""
        return replace(self, radius=factor * self.radius)

    def direction(self, gradient: Tensor) -> Tensor:
        """d(g): where a step of length 1 in this norm raises the loss most, (N, C, H, W)."""
        if self.norm == "linf":
            return gradient.sign()
        # An image whose gradient vanishes stays where it is, instead of turning into NaN.
        return (gradient / norms(gradient).clamp_min(1e-12)).to(gradient)

    def scaled(self, gradient: Tensor) -> Tensor:
        """g/‖g‖ as in `IterativeAttack`: about as long as the direction, but not bent by the sign."""
        sizes = widened(gradient).abs().flatten(1).mean(1)
        sizes = sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
        if self.norm == "l2":
            sizes = sizes * math.sqrt(gradient[0].numel())
        return (gradient / sizes.view(-1, 1, 1, 1)).to(gradient)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point to `adv` in the ball around x, then clipped to [0, 1]."""
        if self.norm == "linf":
            near = torch.minimum(torch.maximum(adv, x - self.radius), x + self.radius)
        else:
            offset = adv - x
            near = (x + offset * (self.radius / norms(offset).clamp_min(1e-12)).clamp_max(1.0)).to(x)
        return near.clamp(0.0, 1.0)

    def noise(self, x: Tensor, batch: Batch) -> Tensor:
        """Offsets uniform in the ball, each example its own, in the shape and type of `x`."""
        if self.norm == "linf":
            return ((2 * batch.uniform(*x.shape[1:]) - 1) * self.radius).to(x)
        # A uniform direction, and a length with density ~ r^(d-1).
        normal = batch.normal(*x.shape[1:])
        return (normal / norms(normal) * self.radius * batch.uniform(1, 1, 1) ** (1 / normal[0].numel())).to(x)


def norms(batch: Tensor) -> Tensor:
    """‖·‖₂ of each image, in float32 at least and of a shape that divides the batch: (N, 1, 1, 1).

    >>> norms(torch.full((1, 1, 2, 2), 2.0**-24, dtype=torch.float16)).item() == 2.0**-23
    True
    """
    return widened(batch).flatten(1).norm(dim=1).view(-1, *[1] * (batch.dim() - 1))


def widened(x: Tensor) -> Tensor:
    """`x` in float32, unless it has more digits: 1e-12 is 0 in float16, and a step of 1/255 often none in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrowed(adv: Tensor, x: Tensor) -> Tensor:
    """`adv` in the type of `x`, no pixel farther from x than it was: rounding does not leave a ball around x.

    >>> x = torch.tensor([0.5], dtype=torch.bfloat16)  # the next numbers are 0.498 and 0.504
    >>> narrowed(torch.tensor([0.503]), x).item(), narrowed(torch.tensor([0.498]), x).item()
    (0.5, 0.498046875)
    """
    if adv.dtype == x.dtype:
        return adv
    near = adv.to(x.dtype)
    far = (near.to(adv) - x).abs() > (adv - x).abs()
    inward = near.view(torch.int16) + (x - near).sign().to(torch.int16)  # numbers of one sign are in order as integers
    return torch.where(far, inward.view(x.dtype), near)


# --- views -------------------------------------------------------------------------------------------------

View = Callable[[Tensor, Batch], Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Diversity:
    """Input diversity (DI): with chance `p`, resize the image and put it at a random place of a black canvas.

    view(x) = back( pad( resize(x, s) ) ),  s uniform from the image's side H to the canvas's S, both included

    Each example has its own chance, s and place. `back` resizes the S × S canvas to H × H, so that the surrogate
    sees the shape it knows. By default S is a tenth more than H, and at least two pixels more: sides 8 to 10
    for images of 8 × 8, 32 to 36 for 32 × 32, 224 to 247 for 224 × 224. Of images that are not square, width and
    height follow the same rule. With a `rate` below 1, s runs from rate · H to H, the canvas is H × H and nothing
    is resized back.

    Source: Xie et al. 2019, CVPR (299 to 330 pixels, p 0.5; their code resizes by `mode="nearest"`).

    Attributes:
        p: the chance, from 0 to 1.
        rate: the other end of the range of s, as a multiple of H, rounded; None: see above.
        mode: "bilinear" or "nearest".
    """

    p: float = 0.5
    rate: float | None = None
    mode: str = "bilinear"

    def __post_init__(self) -> None:
        require_number("p", self.p, 0, 1)
        if self.rate is not None:
            require_number("rate", self.rate, 0.1, 10)
        require(self.mode in MODES, f"mode is {self.mode!r}; give one of {', '.join(map(repr, MODES))}.")

    def sides(self, side: int) -> tuple[int, int]:
        """The smallest and the largest s for images of `side` pixels; the latter is the canvas's."""
        other = side + max(2, math.ceil(side / 10)) if self.rate is None else max(1, round(self.rate * side))
        return min(side, other), max(side, other)

    def __call__(self, images: Tensor, batch: Batch) -> Tensor:
        chosen = batch.uniform() < self.p
        size = batch.uniform()  # one for both axes keeps the shape of what is in the image
        rows, columns = (self._axis(side, size, batch, chosen).to(images) for side in images.shape[2:])
        return resample(images, rows, columns)

    def _axis(self, side: int, size: Tensor, batch: Batch, chosen: Tensor) -> Tensor:
        low, canvas = self.sides(side)
        sizes = (low + (size * (canvas - low + 1)).long()).clamp_max(canvas)
        placed = placing(side, canvas, sizes, batch.below(canvas - sizes + 1), self.mode)
        if canvas != side:
            whole = torch.full_like(sizes[:1], side)
            placed = placing(canvas, side, whole, torch.zeros_like(whole), self.mode) @ placed
        return torch.where(chosen[:, None, None], placed, torch.eye(side, device=placed.device))


def placing(side: int, canvas: int, sizes: Tensor, offsets: Tensor, mode: str = "bilinear") -> Tensor:
    """float32 (N, canvas, side): matrices that resize `side` pixels to `sizes` and put them at `offsets` of a canvas.

    The same numbers as `torch.nn.functional.interpolate` (without corners aligned) and `pad`, but for each example
    its own. As matrices they are differentiable, and deterministic on a GPU too.
    """
    at = torch.arange(canvas, device=sizes.device) - offsets[:, None]
    sizes, pixels = sizes[:, None], torch.arange(side, device=sizes.device)
    if mode == "nearest":
        weights = (at * side // sizes)[..., None] == pixels
    else:
        source = ((at + 0.5) * side / sizes - 0.5).clamp(0, side - 1)
        weights = (1 - (source[..., None] - pixels).abs()).clamp_min(0)
    return weights * ((at >= 0) & (at < sizes))[..., None].float()


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows · image · columnsᵀ for each channel: (N, C, H, W), (N, H', H) and (N, W', W) to (N, C, H', W')."""
    return rows[:, None] @ images @ columns[:, None].mT


@dataclass(frozen=True)
class Scales:
    """Scale invariance (SI): the copies x, x/2, …, x/2^(m−1). Source: Lin et al. 2020, ICLR (m 5).

    Attributes:
        m: number of copies, at least 1.
    """

    m: int = 5

    def __post_init__(self) -> None:
        require_whole("m", self.m, 1)

    @property
    def passes(self) -> int:
        return self.m

    def __call__(self, images: Tensor, batch: Batch) -> list[Tensor]:
        return [images / 2**i for i in range(self.m)]


@dataclass(frozen=True, eq=False)
class Mix:
    """Admix's mixing: the copies x + η x' with `copies` images x' drawn from a pool, each example its own.

    The published attack draws x' among the batch mates; from a pool, an example does not depend on them. The
    result is not clipped to [0, 1]. Source: Wang et al. 2021, ICCV (η 0.2, 3 copies, each then scaled as in SI).

    Attributes:
        pool: float (P, C, H, W) in [0, 1], the images that are mixed in.
        labels: int64 (P,), their classes: x' is then of another class than the label given to the attack.
            None: x' may be of any class.
        eta: strength, at least 0.
        copies: number of x' for each example and iteration, at least 1.

    Raises:
        AttackError: on use, for a pool of another shape, or without an image of another class.
    """

    pool: Tensor
    labels: Tensor | None = None
    eta: float = 0.2
    copies: int = 3

    def __post_init__(self) -> None:
        pool, labels = self.pool, self.labels
        fits = isinstance(pool, Tensor) and pool.dim() == 4 and len(pool) > 0 and pool.is_floating_point()
        require(fits, "the pool to mix from is no image tensor; give floats of shape (P, C, H, W), P at least 1.")
        low, high = float(pool.min()), float(pool.max())
        require(0 <= low and high <= 1, f"the pool ranges over [{low:.4g}, {high:.4g}]; scale it to [0, 1].")
        fits = labels is None or (
            isinstance(labels, Tensor) and labels.shape == pool.shape[:1] and labels.dtype == torch.int64
        )
        require(fits, f"the labels of the pool do not fit it; give int64 of shape ({len(pool)},).")
        require_number("eta", self.eta, 0)
        require_whole("copies", self.copies, 1)

    @property
    def passes(self) -> int:
        return self.copies

    def __call__(self, images: Tensor, batch: Batch) -> list[Tensor]:
        pool = self.pool.detach().to(images)
        ours, theirs = tuple(pool.shape[1:]), tuple(images.shape[1:])
        require(ours == theirs, f"the pool's images are of shape {ours}, those attacked of {theirs}; give equal ones.")
        allowed = self._allowed(batch.labels).long().cumsum(1)
        return [images + self.eta * pool[self._chosen(allowed, batch)] for _ in range(self.copies)]

    def _allowed(self, labels: Tensor) -> Tensor:
        """bool (N, P): which images of the pool may be mixed into which example."""
        if self.labels is None:
            return torch.ones(len(labels), len(self.pool), dtype=torch.bool, device=labels.device)
        allowed = self.labels.to(labels.device) != labels[:, None]
        for label in labels[~allowed.any(1)].tolist():
            raise AttackError(f"the pool has only images of class {label}; give others, or give no labels for it.")
        return allowed

    @staticmethod
    def _chosen(counted: Tensor, batch: Batch) -> Tensor:
        """int64 (N,): one of the allowed images for each example, `counted` being how many are allowed up to each."""
        return (counted <= batch.below(counted[:, -1])[:, None]).sum(1)


# --- smoothing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Smoothing:
    """Translation invariance (TI): the gradient convolved with a Gaussian, each image and channel on its own.

    W ∗ ∇L,  W_ij ∝ exp(−(i² + j²) / 2σ²) for |i|, |j| ≤ k,  summing to 1; zeros beyond the border

    In the limit of small shifts this is the gradient of the loss averaged over shifted copies of the image.
    By default the kernel's size is an eighth of the image's side, odd, from 3 to 15: 3 at 8 and 16, 5 at 32, 9 at
    64, 15 from 112 on; and σ = k/√3. Source: Dong et al. 2019, CVPR (15 × 15 at 299; their code has σ = k/3).

    Attributes:
        size: 2k + 1, odd, in pixels; None: see above.
        sigma: σ in pixels; None: k/√3.
    """

    size: int | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            require_whole("size", self.size, 1)
            require(self.size % 2 == 1, f"size is {self.size}; give an odd number of pixels, such as {self.size + 1}.")
        if self.sigma is not None:
            require_number("sigma", self.sigma, 1e-6)

    def kernel(self, side: int) -> Tensor:
        """float64 (size,), whose outer product with itself is W for images of `side` pixels."""
        half = (self.size or max(3, min(15, side // 8 | 1))) // 2
        sigma = self.sigma or max(half, 1) / math.sqrt(3)
        return torch.softmax(-(torch.arange(-half, half + 1.0).double() ** 2) / (2 * sigma**2), 0)

    def __call__(self, gradient: Tensor) -> Tensor:
        kernel = self.kernel(min(gradient.shape[2:])).to(gradient)
        planes, half = gradient.flatten(0, 1)[:, None], len(kernel) // 2
        planes = F.conv2d(planes, kernel.view(1, 1, -1, 1), padding=(half, 0))
        return F.conv2d(planes, kernel.view(1, 1, 1, -1), padding=(0, half)).view_as(gradient)


# --- gradients around a point ------------------------------------------------------------------------------

Gradient = Callable[[Tensor], Tensor]  # images to the gradients there, both (N, C, H, W)
Estimator = Callable[[Gradient, Tensor, Ball, Batch], Tensor]


@dataclass(frozen=True)
class Neighbours:
    """V(x) = 1/n Σⱼ ∇L(x + rⱼ), with rⱼ uniform in the ball of radius beta · eps (Wang & He 2021, CVPR).

    As `variance` this is variance tuning (VT): what the neighbours' mean gradient differed by at the last iterate
    is added to the gradient at this one. In `around`, the neighbours' mean takes the gradient's place.

    Attributes:
        n: number of neighbours (paper: 20).
        beta: the neighbourhood's radius, in units of eps (paper: 1.5).
    """

    n: int = 20
    beta: float = 1.5

    def __post_init__(self) -> None:
        require_whole("n", self.n, 1)
        require_number("beta", self.beta, 0)

    @property
    def passes(self) -> int:
        return self.n

    def __call__(self, gradient: Gradient, x: Tensor, ball: Ball, batch: Batch) -> Tensor:
        return sum(gradient(x + ball.times(self.beta).noise(x, batch)) for _ in range(self.n)) / self.n


@dataclass(frozen=True)
class GradientNorm:
    """Penalised gradient norm (PGN): climb where the loss is high and its gradient small (Ge et al. 2023, NeurIPS).

    ∇(L − λ‖∇L‖) ≈ 1/n Σⱼ (1 − δ) ∇L(xⱼ) + δ ∇L(xⱼ − step · ∇L(xⱼ)/‖∇L(xⱼ)‖),  δ = λ/step

    with xⱼ uniform in the ball of radius zeta · eps around x, and ‖·‖ as in `IterativeAttack`.

    Attributes:
        n: number of points (paper: 20), each of two passes.
        zeta: the ball's radius, in units of eps (paper: 3).
        delta: δ, from 0 to 1 (paper: 0.5).
    """

    n: int = 20
    zeta: float = 3.0
    delta: float = 0.5

    def __post_init__(self) -> None:
        require_whole("n", self.n, 1)
        require_number("zeta", self.zeta, 0)
        require_number("delta", self.delta, 0, 1)

    @property
    def passes(self) -> int:
        return 2 * self.n

    def __call__(self, gradient: Gradient, x: Tensor, ball: Ball, batch: Batch) -> Tensor:
        total = torch.zeros_like(x)
        for _ in range(self.n):
            near = x + ball.times(self.zeta).noise(x, batch)
            here = gradient(near)
            total += (1 - self.delta) * here + self.delta * gradient(near - ball.step * ball.scaled(here))
        return total / self.n


@dataclass(frozen=True)
class Reverse:
    """Reverse adversarial perturbation (RAP): the gradient at the worst point near x (Qin et al. 2022, NeurIPS).

    ∇L(x + n*),  n* = argmin L(x + n) over the ball of radius ratio · eps

    found from a random start by `steps` steps down, of the radius over `steps` each, inside [0, 1].

    Attributes:
        ratio: the ball's radius, in units of eps (paper: 1, both 16/255).
        steps: steps of the inner minimisation, at least 1 (paper: 8).
        start: the first iteration, from 0, that looks for n*; before it n* = 0 (the paper's late start: 100 of 400).
    """

    ratio: float = 1.0
    steps: int = 8
    start: int = 0

    def __post_init__(self) -> None:
        require_number("ratio", self.ratio, 0)
        require_whole("steps", self.steps, 1)
        require_whole("start", self.start, 0)

    @property
    def passes(self) -> int:
        return self.steps + 1

    def __call__(self, gradient: Gradient, x: Tensor, ball: Ball, batch: Batch) -> Tensor:
        if batch.iteration < self.start:
            return gradient(x)
        inner = ball.times(self.ratio)
        worst = inner.project(x + inner.noise(x, batch), x)
        for _ in range(self.steps):
            worst = inner.project(worst - inner.radius / self.steps * inner.direction(gradient(worst)), x)
        return gradient(worst)


# --- how an attack uses them -------------------------------------------------------------------------------


def seen(views: Sequence[View], gradient: Gradient, batch: Batch) -> Gradient:
    """The gradient of the mean loss over all copies that `views` make, one after the other."""

    def mean(x: Tensor) -> Tensor:
        with torch.enable_grad(), full_precision(x):
            x = x.detach().requires_grad_()
            copies = [x]
            for view in views:
                copies = [_copy(view, made, x) for copy in copies for made in _listed(view(copy, batch))]
        # The views' graph is small: go through the surrogate one copy at a time, and through all views at once.
        pulled = [gradient(copy) for copy in copies]
        with full_precision(x):
            return torch.autograd.grad(copies, x, pulled)[0] / len(copies)

    return mean


def estimated(part: Estimator, gradient: Gradient, ball: Ball, batch: Batch) -> Gradient:
    """The gradient that `part` makes of `gradient`."""
    return lambda x: like(x, part(gradient, x, ball, batch), part)


def _listed(made: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)


def _copy(view: View, made: Tensor, x: Tensor) -> Tensor:
    require(
        isinstance(made, Tensor) and len(made) == len(x) and made.requires_grad,
        f"the view {view!r} returns no images to differentiate through; return {len(x)} that depend on those given.",
    )
    return made


def like(x: Tensor, made: Tensor, part: Any) -> Tensor:
    """`made`, refused if `part` has given it another shape than that of x."""
    shape = tuple(made.shape) if isinstance(made, Tensor) else None
    require(shape == x.shape, f"{part!r} returns gradients of shape {shape}; give back {tuple(x.shape)}.")
    return made


def full_precision(x: Tensor) -> torch.autocast:
    """Autocast is the surrogate's business: images and their gradients keep all their digits."""
    return torch.autocast(x.device.type, enabled=False)


# --- checks and names ------------------------------------------------------------------------------------------------


def require_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Refuse what is no number from `low` to `high`."""
    allowed = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
    require(is_number(value, low, high), f"{name} is {value!r}; give {allowed}.")


def require_whole(name: str, value: Any, low: int) -> None:
    """Refuse what is no integer of at least `low`."""
    require(is_whole(value, low), f"{name} is {value!r}; give a whole number of at least {low}.")


def require_seed(seed: Any) -> None:
    """Refuse what is no seed of the views' random numbers."""
    require(is_whole(seed, 0, 2**32 - 1), f"seed is {seed!r}; give a whole number from 0 to 2**32 - 1.")


def named(value: Any) -> Any:
    """`value` as JSON data that tells it from others."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [named(v) for v in value]
    if isinstance(value, Tensor):
        content = hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": content[:16]}
    if isinstance(value, TrainSpec):  # whose key stays when specs get another field
        return {"is": "TrainSpec", "run": value.short_name, "key": value.key()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__, **{f.name: named(getattr(value, f.name)) for f in fields(value)}}
    name = getattr(value, "__qualname__", "<nameless>")
    require("<" not in name, f"{value!r} has no name to record; give a frozen dataclass, or a function of a module.")
    return f"{value.__module__}.{name}"
