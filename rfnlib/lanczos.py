"""Lanczos: eigenvalues of symmetric matrices of which nothing but products with vectors is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def largest(
    product: Callable[[Tensor], Tensor], start: Tensor, k: int, tol: float, most: int
) -> tuple[Tensor, Tensor, int]:
    """The k largest eigenvalues of B symmetric matrices and their errors, (B, k), and the products used.

    A matrix keeps what it had when its own errors fell below `tol`, whatever its neighbours need.
    """
    done = torch.zeros(len(start), 1, dtype=torch.bool)
    value = error = torch.full((len(start), k), math.nan, dtype=torch.float64)
    for basis, t, rest in krylov(product, start, most):
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


def krylov(
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
        v = orthogonal(v, basis)
        rest = v.norm(dim=1).double().cpu()
        t = torch.diag_embed(torch.stack(diagonal, 1))
        if beside:
            off = torch.stack(beside, 1)
            t += torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        yield basis, t, rest
        spent = rest <= torch.finfo(v.dtype).eps * t.abs().amax((1, 2))
        if spent.any():  # random numbers, rolled, are as good as new ones
            v = torch.where(spent[:, None].to(v.device), orthogonal(start.roll(step + 1, 1), basis), v)
        beside.append(torch.where(spent, 0.0, rest))


def orthogonal(v: Tensor, basis: list[Tensor]) -> Tensor:
    """Rows of (B, n) less their parts along the basis: twice, which settles the last digits."""
    for _ in range(2):
        for q in basis:
            v = v - (q * v).sum(1, keepdim=True) * q
    return v
