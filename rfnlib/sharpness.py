"""How sharp the loss is: at a network's weights, and at its inputs.

>>> batches = [(images, labels)]  # images in [0, 1]; a list, since it is passed over many times  # doctest: +SKIP
>>> top_eigenvalue(model, batches, split="train, not augmented")  # doctest: +SKIP
Measured(value=19.3, error=0.007, images=500, split='train, not augmented', passes=40.0)

========================  ==========================================================================
`top_eigenvalue`          λ₁ of ∇²L(w), algebraically the largest: not the largest magnitude
`eigenvalues`             λ₁ ≥ … ≥ λₖ of ∇²L(w)
`trace`                   tr ∇²L(w)
`worst_case`              max of L(w+δ) − L(w) over ‖δ‖₂ ≤ ρ, plain or adaptive
`average_case`            mean of L(w+δ) − L(w) over δ ~ N(0, ρ²), plain or adaptive
`relative_flatness`       Σ ⟨wₛ, wₜ⟩ tr Hₛₜ over the rows s, t of the head (Petzka et al. 2021)
`input_gradient_norm`     mean over images of ‖∇ₓℓ‖₂; the gradients themselves: `input_gradients`
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

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rfnlib.checks import require
from rfnlib.lanczos import krylov, largest, orthogonal
from rfnlib.landscape import (
    FORWARD,
    GRADIENT,
    PRODUCT,
    Batches,
    Loss,
    Measured,
    finite,
    gradient_of,
    loss_of,
    original,
    require_number,
    require_whole,
)  # fmt: skip


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
        keep_graph: keep the graph of all batches from product to product. Saves a third of the
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
    require_number("tol", tol, "such as 1e-3")
    require_whole("products", products, 1, "such as 100")
    with loss_of(model, batches, parameters, seed, keep_graph) as loss:
        most = min(products, len(loss.w))
        require_whole("k", k, 1, f"at most {most}, for {products} products and {len(loss.w)} weights", most)
        values, errors, _ = largest(loss.products, loss.noise(1), k, tol, products)
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
    require_whole("probes", probes, 2, "such as 15; a single one has no standard error")
    require_whole("deflate", deflate, 0, "such as 15, or 0 for Hutchinson's estimator")
    with loss_of(model, batches, parameters, seed, keep_graph) as loss:
        steps = [*krylov(loss.products, loss.noise(1), deflate)]
        basis, inside = (steps[-1][0], float(steps[-1][1][0].trace())) if steps else ([], 0.0)
        if len(basis) == len(loss.w):
            return loss.measured(inside, 0.0, split)
        z = orthogonal(loss.noise(probes).sign(), basis)
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
    require_number("rho", rho, "a radius such as 0.05")
    require_whole("steps", steps, 1, "1 for SAM's")
    with loss_of(model, batches, parameters) as loss:
        if not per_batch:
            return loss.measured(*_ascend(loss, rho, steps, adaptive), split)
        value = error = 0.0
        for part in loss.parts():
            share, (best, rest) = part.images / loss.images, _ascend(part, rho, steps, adaptive)
            value, error = value + share * best, error + share * rest
            loss.passes += share * part.passes
        return loss.measured(value, error, split)


def _ascend(loss: Loss, rho: float, steps: int, adaptive: bool) -> tuple[float, float]:
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
    require_number("rho", rho, "a standard deviation such as 0.01")
    require_whole("draws", draws, 4, "such as 20")
    require(draws % 2 == 0, f"draws is {draws}; give an even number, since they come as pairs.")
    with loss_of(model, batches, parameters, seed) as loss:
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
    head = getattr(original(model), "head", None) if head is None else head
    way_out = "give head=, the nn.Linear whose output is the logits"
    require(isinstance(head, nn.Linear), f"the head is {type(head).__name__}; {way_out}.")
    seen, features, chances = [], [], []
    with loss_of(model, batches) as loss, torch.no_grad():
        hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        try:
            for x, _ in loss.pairs():
                seen.clear()
                logits = loss.logits(loss.w, x)
                last = len(seen) == 1 and torch.equal(seen[0][1], logits)
                require(last, f"the output of the head is not the model's; {way_out}.")
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
    with loss_of(model, batches) as loss:
        return loss.measured(*_mean(_input_gradients(loss).norm(dim=1)), split)


def input_gradients(model: nn.Module, batches: Batches) -> Tensor:
    """∇ₓ ℓ(x, y) of every image, one as a row: (N, C·H·W), on the model's device.

    Raises:
        ValueError: as `eigenvalues`.
    """
    with loss_of(model, batches) as loss:
        return _input_gradients(loss)


def _input_gradients(loss: Loss) -> Tensor:
    loss.passes += GRADIENT
    rows = [gradient_of(*loss.at_images(x, y)).flatten(1) for x, y in loss.pairs()]
    return finite(torch.cat(rows), "an input gradient")


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
    require_number("tol", tol, "such as 1e-3")
    require_whole("products", products, 1, "such as 100")
    values, errors, first = [], [], 0
    with loss_of(model, batches, seed=seed) as loss:
        for x, y in loss.pairs():
            ell, x = loss.at_images(x, y)
            gradient = gradient_of(ell, x, create_graph=True)

            def times(v: Tensor, g: Tensor = gradient, x: Tensor = x) -> Tensor:
                return finite(gradient_of(g, x, v.view_as(g), retain_graph=True), "a Hessian-vector product").flatten(1)

            start = torch.empty(x.shape, dtype=x.dtype).flatten(1)
            for i, row in enumerate(start, first):
                # torch's CPU generator looks at the low 32 bits alone: spread the seed over all of them.
                row.normal_(generator=loss.random.manual_seed((seed * 0x9E3779B1 + i) % 2**32))
            value, error, used = largest(times, start.to(x), 1, tol, products)
            values.append(value[:, 0])
            errors.append(error[:, 0])
            first += len(y)
            loss.passes += (GRADIENT + used * PRODUCT) * len(y) / loss.images
        value, spread = _mean(torch.cat(values))
        return loss.measured(value, spread + float(torch.cat(errors).mean()), split)


def _mean(samples: Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    n, samples = len(samples), samples.double()
    return float(samples.mean()), float(samples.std()) / math.sqrt(n) if n > 1 else math.nan
