"""How sharp the loss is: at a network's weights, and at its inputs.

>>> batches = [(images, labels)]  # images in [0, 1]; a list, since it is passed over many times
>>> top_eigenvalue(model, batches, split="train, not augmented")
Measured(value=19.3, error=0.007, images=500, split='train, not augmented', passes=40.0)

========================  ==========================================================================
`top_eigenvalue`          λ₁ of ∇²L(w), algebraically the largest: not the largest magnitude
`eigenvalues`             λ₁ ≥ … ≥ λₖ of ∇²L(w)
`trace`                   tr ∇²L(w)
`worst_case`              max of L(w+δ) − L(w) over ‖δ‖₂ ≤ ρ, plain or adaptive
`average_case`            mean of L(w+δ) − L(w) over δ ~ N(0, ρ²), plain or adaptive
`relative_flatness`       Σ ⟨wₛ, wₜ⟩ tr Hₛₜ over the rows s, t of the head (Petzka et al. 2021)
`input_gradient_norm`     mean over images of ‖∇ₓℓ‖₂
`input_top_eigenvalue`    mean over images of λ₁ of ∇ₓ²ℓ
========================  ==========================================================================

L(w) is the mean cross-entropy ℓ over *all* images of `batches`, however they are split. w holds all
parameters, frozen ones too; `parameters` chooses some of them. All is computed in eval mode (batch
norms use their running statistics, at w+δ as well), in full fp32 or fp64 (autocast and TF32 off),
on the original of a model that `torch.compile` wrapped: what is compiled has no double backward.
The model is left bit for bit as found. The same `seed` gives the same result, on a CPU to the bit.

Any module from images to logits (N, C) will do: nothing here knows of this project's experiments.
Networks with ReLUs have no curvature at their kinks; what is measured is that of the smooth pieces.
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
from torch.nn.modules.batchnorm import _BatchNorm

from rfnlib.attacks import frozen
from rfnlib.checks import is_number, is_whole

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images, float (B, C, H, W), and labels, int64 (B,): the same at every iteration."""

FORWARD, GRADIENT, PRODUCT = 1 / 3, 1, 3
"""Passes that a loss costs; a gradient, or the graph of one; and each Hessian-vector product on such a
graph, so 4 with its own. (Measured, a ResNet-18 on one CPU core: 0.32, 1, 2.3, and 3.3 together.)"""


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


def top_eigenvalue(model: nn.Module, batches: Batches, **options: Any) -> Measured:
    """λ₁ of ∇²L(w), algebraically the largest: `eigenvalues` with k = 1."""
    return eigenvalues(model, batches, 1, **options)[0]


def eigenvalues(
    model: nn.Module, batches: Batches, k: int, *, tol: float = 1e-3, products: int = 100,
    parameters: Iterable[nn.Parameter] | None = None, keep_graph: bool = False, seed: int = 0, split: str = "",
) -> tuple[Measured, ...]:  # fmt: skip
    """The k algebraically largest eigenvalues of ∇²L(w), largest first, by Lanczos.

    Args:
        tol: stop when the error of each is at most `tol` times its magnitude.
        products: Hessian-vector products at most; the errors tell when they did not suffice.
        parameters: the weights to differentiate by; None: all of the model's.
        keep_graph: keep the graph of all batches from product to product. Saves a quarter of the
            time and holds all activations three times over: for few images.
        seed: of the starting vector.
        split: what to call the images in the result.

    Returns:
        k results; `passes` is that of the whole call in each. `error` is the residual r = ‖Hv − θv‖
        plus rounding: an eigenvalue within r there is for certain, and mostly one far nearer, about
        r² over the distance to the next. (To stop at r², or when θ no longer moves, is how larger
        eigenvalues are missed.) Of repeated eigenvalues, one copy may be found.

    Raises:
        ValueError: an argument out of range, batches that cannot be used, a model that is no plain
            fp32 or fp64 one, a loss or a product that is not finite.

    Lanczos 1950, reorthogonalised in full: about ten products, where power iteration takes tens and
    finds the largest magnitude instead, and scipy's `eigsh` takes 20 before it looks at any.
    """
    _number("tol", tol, "such as 1e-3")
    _whole("products", products, 1, "such as 100")
    with _opened(model, batches, parameters, seed, keep_graph) as loss:
        most = min(products, len(loss.w))
        _whole("k", k, 1, f"at most {most}, for {products} products and {len(loss.w)} weights", most)
        values, errors, _ = _largest(loss.products, loss.noise(1), k, tol, products)
        pairs = zip(values[0].tolist(), errors[0].tolist(), strict=True)
        return tuple(loss.measured(value, error, split) for value, error in pairs)


def trace(
    model: nn.Module, batches: Batches, *, probes: int = 15, deflate: int = 15,
    parameters: Iterable[nn.Parameter] | None = None, keep_graph: bool = False, seed: int = 0, split: str = "",
) -> Measured:  # fmt: skip
    """tr ∇²L(w) = tr QᵀHQ + E[zᵀ(I−QQᵀ)H(I−QQᵀ)z], z of random signs, Q a basis of a Krylov space.

    The first term is exact, and known from the Lanczos steps that build Q. It holds the few large
    eigenvalues of a network, which make nearly all of the variance of Hutchinson's estimator.
    Unbiased for any Q (Chen & Hallman 2023, Krylov-aware stochastic trace estimation).

    Args:
        probes: vectors z, a fixed number: to stop when their mean looks settled would bias it.
        deflate: dimensions of Q. 0 is Hutchinson's estimator; the number of weights makes it exact.
        parameters, keep_graph, seed, split: as in `eigenvalues`, which raises the same too.

    Returns:
        the estimate from `probes` + `deflate` products; `error` is its standard error over probes.
    """
    _whole("probes", probes, 2, "such as 15; a single one has no standard error")
    _whole("deflate", deflate, 0, "such as 15, or 0 for Hutchinson's estimator")
    with _opened(model, batches, parameters, seed, keep_graph) as loss:
        steps = [*_krylov(loss.products, loss.noise(1), deflate)]
        basis, inside = (steps[-1][0], float(steps[-1][1][0].trace())) if steps else ([], 0.0)
        if len(basis) == len(loss.w):
            return loss.measured(inside, 0.0, split)
        z = _orthogonal(loss.noise(probes).sign(), basis)
        outside, error = _mean((z * loss.products(z)).sum(1))
        return loss.measured(inside + outside, error, split)


def worst_case(
    model: nn.Module, batches: Batches, rho: float, *, steps: int = 1, adaptive: bool = False,
    per_batch: bool = False, parameters: Iterable[nn.Parameter] | None = None, split: str = "",
) -> Measured:  # fmt: skip
    """max of L(w+δ) − L(w) over ‖δ/T‖₂ ≤ ρ, with T = 1 or, adaptive, T = |w| elementwise; from below.

    With u = δ/T:   u ← Π( u + ρ d/‖d‖ ),   d = T ∇L(w + Tu),   Π the projection on ‖u‖ ≤ ρ.

    Args:
        rho: the radius ρ of a ball around all weights together.
        steps: of the ascent. One is SAM's, δ = ρ T²∇L/‖T∇L‖ (ASAM's with η = 0, if adaptive). More
            go on from there, and the best point visited counts: more never give less.
        adaptive: the ball shrinks with each weight, and follows when layers are rescaled.
        per_batch: each batch, of m images, has a δ of its own (m-sharpness), and the value is the
            mean over images of their batches' maxima. If not, all images share one δ.
        parameters, split: as in `eigenvalues`, which raises the same too.

    Returns:
        `error` is what is left to climb to first order, ρ‖d‖ − ⟨d, u⟩ at the best point: 0 where no
        direction climbs, which is also so at a start without gradient.

    Foret et al. 2021 (SAM), Kwon et al. 2021 (ASAM), Andriushchenko & Flammarion 2022 (m-sharpness).
    """
    _number("rho", rho, "a radius such as 0.05")
    _whole("steps", steps, 1, "1 for SAM's")
    with _opened(model, batches, parameters) as loss:
        if not per_batch:
            return loss.measured(*_ascend(loss, rho, steps, adaptive), split)
        value = error = 0.0
        for part in loss.parts():
            share, (best, rest) = part.images / loss.images, _ascend(part, rho, steps, adaptive)
            value, error = value + share * best, error + share * rest
            loss.passes += share * part.passes
        return loss.measured(value, error, split)


def _ascend(loss: _Loss, rho: float, steps: int, adaptive: bool) -> tuple[float, float]:
    scale = loss.w.abs() if adaptive else torch.ones_like(loss.w)
    tiny = torch.finfo(scale.dtype).tiny
    start, gradient = loss.gradient(loss.w)
    u, best, error = torch.zeros_like(scale), -math.inf, 0.0
    for _ in range(steps):
        d = scale * gradient
        u = u + rho * d / d.norm().clamp_min(tiny)
        u = u * (rho / u.norm().clamp_min(tiny)).clamp_max(1.0)
        value, gradient = loss.gradient(loss.w + scale * u)
        if value - start > best:
            d = scale * gradient
            best, error = value - start, max(0.0, float(rho * d.norm() - d @ u))
    return best, error


def average_case(
    model: nn.Module, batches: Batches, rho: float, *, draws: int = 20, adaptive: bool = False,
    parameters: Iterable[nn.Parameter] | None = None, seed: int = 0, split: str = "",
) -> Measured:  # fmt: skip
    """E[ L(w+δ) − L(w) ] over δ ~ N(0, ρ²) a weight or, adaptive, N(0, ρ²w²); near ρ²/2 tr ∇²L for small ρ.

    Args:
        rho: ρ, the standard deviation of one weight and no norm: E‖δ‖₂² is ρ² times their number.
        draws: of δ, an even number: they come as pairs ±δ, which cancel the gradient's part.
        adaptive: ρ is relative to each weight's magnitude.
        parameters, seed, split: as in `eigenvalues`, which raises the same too.

    Returns:
        the mean over draws; `error` is its standard error over the pairs.

    Andriushchenko et al. 2023, A modern look at the relationship between sharpness and generalization.
    """
    _number("rho", rho, "a standard deviation such as 0.01")
    _whole("draws", draws, 4, "such as 20")
    _require(draws % 2 == 0, f"draws is {draws}; give an even number, since they come as pairs.")
    with _opened(model, batches, parameters, seed) as loss:
        scale = rho * loss.w.abs() if adaptive else rho
        start, means = loss.value(loss.w), []
        for _ in range(draws // 2):
            delta = scale * loss.noise(1)[0]
            means.append((loss.value(loss.w + delta) + loss.value(loss.w - delta)) / 2 - start)
        return loss.measured(*_mean(torch.tensor(means, dtype=torch.float64)), split)


def relative_flatness(
    model: nn.Module, batches: Batches, *, head: nn.Linear | None = None, unit_std: bool = False, split: str = ""
) -> Measured:
    """κ = Σₛₜ ⟨wₛ, wₜ⟩ tr Hₛₜ over the rows of the layer W from features to logits: large is sharp.

    Hₛₜ = ∂²L/∂wₛ∂wₜ. For logits Wφ + b of softmax p an image's are (δₛₜpₛ − pₛpₜ) φφᵀ, and therefore

    κ = mean over images of ‖φ‖² · ½ Σₛₜ pₛ pₜ ‖wₛ − wₜ‖²,   exact, for a forward pass.

    κ stays the same when W is multiplied and φ divided by a number; the Hessian does not.

    Args:
        head: the linear layer whose output is the logits; None: `model.head`.
        unit_std: divide each feature by its standard deviation over the images first, and multiply
            its weights, as the authors' code does: κ stays when neurons are rescaled one by one.
        split: as in `eigenvalues`, which raises the same too.

    Returns:
        `error` is the standard error over images (`nan` for a single one): the value itself is exact.

    Petzka et al. 2021, Relative flatness and generalization.
    """
    head = getattr(_original(model), "head", None) if head is None else head
    way_out = "give head=, the nn.Linear whose output is the logits"
    _require(isinstance(head, nn.Linear), f"the head is {type(head).__name__}; {way_out}.")
    seen, features, chances = [], [], []
    with _opened(model, batches) as loss, torch.no_grad():
        hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        try:
            for x, _ in loss.pairs():
                seen.clear()
                logits = loss.logits(loss.w, x)
                last = len(seen) == 1 and torch.equal(seen[0][1], logits)
                _require(last, f"the output of the head is not the model's; {way_out}.")
                features.append(seen[0][0])
                chances.append(logits.softmax(1))
        finally:
            hook.remove()
        phi, p, weight = torch.cat(features), torch.cat(chances), head.weight.detach()
        if unit_std:
            std = phi.std(0, correction=0)
            phi, weight = phi / torch.where(std > 0, std, 1.0), weight * std
        apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").square()
        loss.passes += FORWARD
        return loss.measured(*_mean(phi.square().sum(1) * (p @ apart * p).sum(1) / 2), split)


def input_gradient_norm(model: nn.Module, batches: Batches, *, split: str = "") -> Measured:
    """Mean over images of ‖∇ₓ ℓ(x, y)‖₂, per [0, 1] pixel; `error` is the standard error over images.

    Raises:
        ValueError: as `eigenvalues`.
    """
    with _opened(model, batches) as loss:
        norms = [_grad(*loss.at_images(x, y)).flatten(1).norm(dim=1) for x, y in loss.pairs()]
        loss.passes += GRADIENT
        return loss.measured(*_mean(_finite(torch.cat(norms), "an input gradient")), split)


def input_top_eigenvalue(
    model: nn.Module, batches: Batches, *, tol: float = 1e-3, products: int = 100, seed: int = 0, split: str = ""
) -> Measured:
    """Mean over images of λ₁ of ∇ₓ² ℓ(x, y), algebraically the largest.

    One double backward multiplies the Hessian of each image with a vector of its own. An image
    starts from what `seed` and its position draw, and stops by itself: its result does not depend
    on its batch mates. `tol` and `products` (for each image): as in `eigenvalues`.

    Returns:
        `error` is the standard error over images (`nan` for a single one) plus the mean of Lanczos' own.

    Raises:
        ValueError: as `eigenvalues`.
    """
    _number("tol", tol, "such as 1e-3")
    _whole("products", products, 1, "such as 100")
    values, errors, first = [], [], 0
    with _opened(model, batches, seed=seed) as loss:
        for x, y in loss.pairs():
            ell, x = loss.at_images(x, y)
            gradient = _grad(ell, x, create_graph=True)

            def times(v: Tensor, g: Tensor = gradient, x: Tensor = x) -> Tensor:
                return _finite(_grad(g, x, v.view_as(g), retain_graph=True), "a Hessian-vector product").flatten(1)

            start = torch.empty(x.shape, dtype=x.dtype).flatten(1)
            for i, row in enumerate(start, first):
                # torch's CPU generator looks at the low 32 bits alone: spread the seed over all of them.
                row.normal_(generator=loss.random.manual_seed((seed * 0x9E3779B1 + i) % 2**32))
            value, error, used = _largest(times, start.to(x), 1, tol, products)
            values.append(value[:, 0])
            errors.append(error[:, 0])
            first += len(y)
            loss.passes += (GRADIENT + used * PRODUCT) * len(y) / loss.images
        value, spread = _mean(torch.cat(values))
        return loss.measured(value, spread + float(torch.cat(errors).mean()), split)


# ------------------------------------------------------------- the loss, as a function of the weights


class _Loss:
    """L as a function of one flat vector w (P,), counting its passes. The model's own weights stay put."""

    def __init__(self, model, batches, parameters=None, seed: int = 0, keep_graph: bool = False):
        wanted = list(model.parameters() if parameters is None else parameters)
        ids = {id(p) for p in wanted}
        own = {name: p for name, p in model.named_parameters() if id(p) in ids}
        _require(
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

    def parts(self) -> Iterator[_Loss]:
        """The loss of each batch alone."""
        return (_Loss(self.model, [pair], self.parameters, self.seed) for pair in self.pairs())

    def logits(self, w: Tensor, x: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in self.shapes.values()])
        weights = {name: v.view(shape) for v, (name, shape) in zip(pieces, self.shapes.items(), strict=True)}
        z = functional_call(self.model, {**self.buffers, **weights}, (x,))
        flat = isinstance(z, Tensor) and z.dim() == 2 and len(z) == len(x)
        _require(flat, "the model does not map B images to logits (B, C); wrap it in a module that does.")
        top, last = self.top_label, z.shape[1] - 1
        _require(top <= last, f"labels hold {top}; the model has classes 0 to {last}.")
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
            gradient += _grad(share, leaf)
        return self._checked(total, w), _finite(gradient, "a gradient")

    def products(self, vectors: Tensor) -> Tensor:
        """∇²L(w) times each row of (k, P), by double backward; a batch's graph serves all rows."""
        self.passes += PRODUCT * len(vectors)
        out = torch.zeros_like(vectors)
        for gradient, leaf in self.graphs():
            for i, v in enumerate(vectors):
                more = self.keep_graph or i + 1 < len(vectors)
                out[i] += _grad(gradient, leaf, v, retain_graph=more)
        return _finite(out, "a Hessian-vector product")

    def graphs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """∇L(w) with its graph, and w: in one piece for each batch or, if kept, in one for all."""
        if self.kept is None:
            self.passes += GRADIENT
            leaf, total, whole = self.w.clone().requires_grad_(), 0.0, 0.0
            for share in self.shares(leaf):
                total += share.item()
                # Not backward(create_graph=True), which leaves weights and graph in a cycle.
                gradient = _grad(share, leaf, create_graph=True)
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
        _require(math.isfinite(total), f"the loss is {total}; give weights, or a rho, that do not overflow.")
        if w is self.w:
            self.known = total if self.known is None else self.known
            same = math.isclose(total, self.known, rel_tol=1e-4, abs_tol=1e-6)
            was = f"the loss was {self.known:.6g} and is now {total:.6g}"
            _require(same, f"{was}; give batches that are the same at every iteration, not augmented.")
        return total


@contextmanager
def _opened(model: nn.Module, batches, parameters=None, seed: int = 0, keep_graph: bool = False) -> Iterator[_Loss]:
    """The loss of a model in eval mode and full precision; on leaving, all is as it was."""
    _whole("seed", seed, 0, "less than 2**32", 2**32 - 1)
    model = _original(model)
    kinds = {(p.dtype, p.device) for p in model.parameters()}
    dtype, device = min(kinds, key=str, default=(None, None))
    _require(
        len(kinds) == 1 and dtype in (torch.float32, torch.float64),
        f"the model's weights are {' and '.join(sorted(f'{d} on {at}' for d, at in kinds)) or 'none'}; give a model "
        "whose weights are all float32 or all float64, on one device, such as copy.deepcopy(model).float().",
    )
    gpu = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        for context in (
            frozen([model]), torch.random.fork_rng(gpu), torch.inference_mode(False), torch.enable_grad(),
            torch.autocast(device.type, enabled=False), _affine_batchnorm(model),
        ):  # fmt: skip
            stack.enter_context(context)
        if gpu:  # cuDNN's convolutions are TF32, of 10 bits, unless told otherwise
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        yield _Loss(model, batches, parameters, seed, keep_graph)


@contextmanager
def _affine_batchnorm(model: nn.Module) -> Iterator[None]:
    """Batch norms in eval mode written as the affine maps they are: as such they have cheap second derivatives.

    Those of torch's own kernel took a third of a Hessian-vector product.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    layers = [m for m in layers if "forward" not in vars(m)]  # leave what others have put there
    for m in layers:
        m.forward = functools.partial(_affine, m)
    try:
        yield
    finally:
        for m in layers:
            del m.forward


def _affine(norm: _BatchNorm, x: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    return x * scale.view(shape) + shift.view(shape)


def _original(model: nn.Module) -> nn.Module:
    """The model itself, or what `torch.compile` wrapped; with nothing compiled or hooked inside."""
    model = getattr(model, "_orig_mod", model)
    for name, m in model.named_modules():
        compiled = hasattr(m, "_orig_mod") or m._compiled_call_impl is not None
        _require(not compiled, f"module {name!r} is compiled, so has no double backward; give it uncompiled.")
        hooked = m._backward_hooks or m._backward_pre_hooks
        _require(not hooked, f"module {name!r} has a backward hook, which changes gradients; remove it.")
    return model


def _count(batches: Batches) -> tuple[int, int]:
    """How many images there are, and the largest label."""
    again = isinstance(batches, Iterable) and not isinstance(batches, Iterator)
    kind = type(batches).__name__
    _require(again, f"batches is a {kind}, which cannot be passed over again and again; give a list of pairs.")
    images, top = 0, 0
    for pair in batches:
        two = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)
        _require(two, "batches holds something else than pairs of tensors; give [(images, labels), …].")
        x, y = pair
        _require(x.is_floating_point(), f"images are {x.dtype}; give floats in [0, 1], uint8 divided by 255.")
        fits = y.dtype == torch.int64 and y.shape == x.shape[:1]
        _require(fits, f"labels are {y.dtype} of shape {tuple(y.shape)}; give int64 of shape ({len(x)},).")
        if len(y):
            _require(int(y.min()) >= 0, f"labels hold {int(y.min())}; classes count from 0.")
            images, top = images + len(y), max(top, int(y.max()))
    _require(images > 0, "batches hold no image; give at least one.")
    return images, top


# -------------------------------------------------------------------------------------------- Lanczos


def _largest(
    product: Callable[[Tensor], Tensor], start: Tensor, k: int, tol: float, most: int
) -> tuple[Tensor, Tensor, int]:
    """The k largest eigenvalues of B symmetric matrices and their errors, (B, k), and the products used.

    A matrix keeps what it had when its own errors fell below `tol`, whatever its neighbours need.
    """
    done = torch.zeros(len(start), 1, dtype=torch.bool)
    value = error = torch.full((len(start), k), math.nan, dtype=torch.float64)
    for basis, t, rest in _krylov(product, start, most):
        if len(basis) < k:
            continue
        ritz, vectors = torch.linalg.eigh(t)
        residuals = rest[:, None] * vectors[:, -1].abs()
        scale = ritz.abs().amax(1, keepdim=True)
        theta, r = ritz.flip(1)[:, :k], residuals.flip(1)[:, :k] + torch.finfo(start.dtype).eps * scale
        value, error = torch.where(done, value, theta), torch.where(done, error, r)
        # Of eigenvalues a hundred times smaller than others, further digits are rounding.
        done = done | (r <= tol * theta.abs().maximum(1e-2 * scale)).all(1, keepdim=True)
        if done.all():
            break
    return value, error, len(basis)


def _krylov(
    product: Callable[[Tensor], Tensor], start: Tensor, most: int
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Lanczos with full reorthogonalisation, from random rows (B, n), for B symmetric matrices side by side.

    `product` multiplies each row of (B, n) with its own matrix. After each of `most` steps (n at most):
    the basis so far, m tensors of unit rows; T (B, m, m), in float64 on the CPU; and the norm (B,) of
    what the last product has outside the basis. A matrix whose Krylov space is exhausted goes on in a
    fresh direction.
    """
    basis, diagonal, beside, v = [], [], [], start
    for step in range(min(most, start.shape[1])):
        basis.append(v / v.norm(dim=1, keepdim=True))
        v = product(basis[-1])
        diagonal.append((basis[-1] * v).sum(1).double().cpu())
        v = _orthogonal(v, basis)
        rest = v.norm(dim=1).double().cpu()
        t = torch.diag_embed(torch.stack(diagonal, 1))
        if beside:
            off = torch.stack(beside, 1)
            t += torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        yield basis, t, rest
        spent = rest <= torch.finfo(v.dtype).eps * t.abs().amax((1, 2))
        if spent.any():  # random numbers, rolled, are as good as new ones
            v = torch.where(spent[:, None].to(v.device), _orthogonal(start.roll(step + 1, 1), basis), v)
        beside.append(torch.where(spent, 0.0, rest))


def _orthogonal(v: Tensor, basis: list[Tensor]) -> Tensor:
    """Rows of (B, n) less their parts along the basis: twice, which settles the last digits."""
    for _ in range(2):
        for q in basis:
            v = v - (q * v).sum(1, keepdim=True) * q
    return v


# --------------------------------------------------------------------------------------- small things


def _grad(*args: Any, **options: Any) -> Tensor:
    return torch.autograd.grad(*args, **options)[0]


def _mean(samples: Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    n, samples = len(samples), samples.double()
    return float(samples.mean()), float(samples.std()) / math.sqrt(n) if n > 1 else math.nan


def _finite(values: Tensor, what: str) -> Tensor:
    fine = bool(torch.isfinite(values).all())
    _require(fine, f"{what} is not finite; give weights and images that do not overflow.")
    return values


def _whole(name: str, value: object, least: int, way_out: str, most: float = math.inf) -> None:
    _require(is_whole(value, least, most), f"{name} is {value!r}; give a whole number of at least {least}, {way_out}.")


def _number(name: str, value: object, way_out: str) -> None:
    _require(is_number(value, 0), f"{name} is {value!r}; give a number of at least 0, {way_out}.")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)
