"""Adversarial training: what stands between a batch of images and the step of the weights on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib import attacks, execution
from rfnlib.keys import stream
from rfnlib.specs import Adversary, TrainSpec
from rfnlib.transforms import Ball, norms


class Natural:
    """What stands between a batch and the step, for images as they are: nothing.

    Attributes:
        replay: steps that a batch is taken for.
        state: the tensors that the next steps depend on.
    """

    replay = 1

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def images(self, x: Tensor, y: Tensor, i: int) -> Tensor:
        """What step `i` trains on in the place of a batch.

        Args:
            x: the batch, float (B, C, H, W) in [0, 1].
            y: its labels, int64 (B,).
            i: the step's index in the run.

        Returns:
            Images of the same shape in [0, 1].
        """
        return x

    def stepped(self) -> None:
        """Learn from the gradients of the step that was just made."""


class PGDTraining(Natural):
    """PGD on the network as it is, anew for every batch (Madry et al. 2018, ICLR).

    x₀ = x or a random point of the ball;  xⱼ₊₁ = clip₀₁( Π( xⱼ + step · d(∇ₓ CE(f(xⱼ), y)) ) ),  j < k

    in the notation of `attacks.IterativeAttack`, and CE without label smoothing. f is in eval mode meanwhile, as in
    MadryLab's robustness library; Pang et al. (2021, ICLR) find clean accuracy a little better so. Hence crafting
    leaves BatchNorm's statistics alone: they are those of the adversarial batch that the step is made on.
    """

    def __init__(self, adversary: Adversary, seed: int, forward: nn.Module, how: execution.Execution) -> None:
        super().__init__()
        self.adversary, self.seed, self.forward, self.how = adversary, seed, forward, how
        self.ball = Ball(adversary.norm, float(adversary.eps), adversary.step_size)
        self._ahead: tuple[int, Tensor] | None = None  # a step, and the noise that it begins with

    def images(self, x: Tensor, y: Tensor, i: int) -> Tensor:
        """The adversarial images of step `i`, without waiting for the device; see `Natural.images`."""
        adv = x
        if self.adversary.random_start:
            ready = self._ahead is not None and self._ahead[0] == i
            noise = self._ahead[1] if ready else self._noise(x, i)
            adv = self.ball.project(x + noise.to(x, non_blocking=True), x)
        with attacks.frozen([self.forward]), self.how.autocast():
            for _ in range(self.adversary.steps):
                adv = adv.detach().requires_grad_()
                losses = F.cross_entropy(self.forward(adv).float(), y, reduction="none")
                (gradient,) = torch.autograd.grad(losses.sum(), adv)
                adv = self.ball.project(adv.detach() + self.ball.step * self.ball.direction(gradient), x)
        if self.adversary.random_start:  # on the CPU, which has nothing else to do while a GPU works on the above
            self._ahead = i + 1, self._noise(x, i + 1)
        return adv

    def _noise(self, x: Tensor, i: int) -> Tensor:
        noise = attacks.random_start(x.shape, self.ball, stream(self.seed, "adversary", i) % 2**32)
        return noise.pin_memory() if x.is_cuda else noise


class FreeTraining(Natural):
    """One pass moves the weights and the perturbation δ, (B, C, H, W) (Shafahi et al. 2019, NeurIPS, algorithm 1).

    L = L(w; clip₀₁(x + δ), y);  w steps along ∇_w L;  δ ← Π( δ + step · d(∇_δ L) )

    where Π keeps ‖δ‖ ≤ eps for each image. δ is 0 at first; image n of each batch inherits that of image n before it.
    L is the loss that is trained, label smoothing included, in training mode.
    """

    def __init__(self, adversary: Adversary) -> None:
        super().__init__()
        self.adversary, self.replay = adversary, adversary.replay

    def images(self, x: Tensor, y: Tensor, i: int) -> Tensor:
        """x + δ in [0, 1]; see `Natural.images`."""
        # Laid out as x is, so that one read from disk gives the same bits as one from memory.
        delta = torch.zeros_like(x)
        if self.state:
            delta.copy_(self.state["delta"])
        self.state["delta"] = delta.requires_grad_()
        return (x + delta).clamp(0.0, 1.0)

    @torch.no_grad()
    def stepped(self) -> None:
        """Move δ along the gradient that the step's own pass left on it."""
        delta, a = self.state["delta"].detach(), self.adversary
        gradient = self.state["delta"].grad
        if a.norm == "linf":
            moved = (delta + a.step_size * gradient.sign()).clamp(-a.eps, a.eps)
        else:
            moved = delta + a.step_size * gradient / norms(gradient).clamp_min(1e-12)
            moved = moved * (a.eps / norms(moved).clamp_min(1e-12)).clamp_max(1.0)
        self.state["delta"] = moved


def build(spec: TrainSpec, forward: nn.Module, how: execution.Execution) -> Natural:
    """What `spec` puts between a batch and the step on it.

    Args:
        spec: of the run.
        forward: the network that is trained, compiled if that pays.
        how: what it is computed with.
    """
    if spec.adversary is None:
        return Natural()
    if spec.adversary.replay is not None:
        return FreeTraining(spec.adversary)
    return PGDTraining(spec.adversary, spec.seed, forward, how)
