"""Adversarial training: what stands between a batch of images and the step of the weights on it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rfnlib import attacks, execution
from rfnlib.keys import stream
from rfnlib.specs import Adversary, TrainSpec
from rfnlib.transforms import norms


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
        """What step `i` trains on, (B, C, H, W) in [0, 1], in the place of `x` with the labels `y`."""
        return x

    def stepped(self) -> None:
        """The step is done."""


class PGDTraining(Natural):
    """PGD on the network as it is, anew for every batch (Madry et al. 2018, ICLR):

    x₀ = x or a random point of the ball;  xⱼ₊₁ = clip₀₁( Π( xⱼ + step · d(∇ₓ CE(f(xⱼ), y)) ) ),  j < k

    in the notation of `attacks.IterativeAttack`, and CE without label smoothing. f is in eval mode meanwhile, as in
    MadryLab's robustness library; Pang et al. (2021, ICLR) find clean accuracy a little better so. Hence crafting
    leaves BatchNorm's statistics alone: they are those of the adversarial batch that the step is made on.
    """

    def __init__(self, adversary: Adversary, seed: int, forward: nn.Module, how: execution.Execution) -> None:
        super().__init__()
        self.seed, self.forward, self.how = seed, forward, how
        self.attack = attacks.IterativeAttack(
            eps=adversary.eps,
            step=adversary.step_size,
            steps=adversary.steps,
            norm=adversary.norm,
            random_start=adversary.random_start,
        )

    def images(self, x: Tensor, y: Tensor, i: int) -> Tensor:
        attack = replace(self.attack, seed=stream(self.seed, "adversary", i) % 2**32)
        # Not `attack(…)`: training checks its images once, and its numbers are those of networks as they are.
        with attacks.frozen([self.forward]), self.how.autocast():
            return attack.perturbed([self.forward], x, y)


class FreeTraining(Natural):
    """One pass moves the weights and the perturbation δ, (B, C, H, W) (Shafahi et al. 2019, NeurIPS, algorithm 1):

    L = L(w; clip₀₁(x + δ), y);  w steps along ∇_w L;  δ ← Π( δ + step · d(∇_δ L) )

    where Π keeps ‖δ‖ ≤ eps for each image. δ is 0 at first; image n of each batch inherits that of image n before it.
    L is the loss that is trained, label smoothing included, in training mode.
    """

    def __init__(self, adversary: Adversary) -> None:
        super().__init__()
        self.adversary, self.replay = adversary, adversary.replay

    def images(self, x: Tensor, y: Tensor, i: int) -> Tensor:
        # Laid out as x is, so that one read from disk gives the same bits as one from memory.
        delta = torch.zeros_like(x)
        if self.state:
            delta.copy_(self.state["delta"])
        self.state["delta"] = delta.requires_grad_()
        return (x + delta).clamp(0.0, 1.0)

    @torch.no_grad()
    def stepped(self) -> None:
        delta, a = self.state["delta"].detach(), self.adversary
        gradient = self.state["delta"].grad
        if a.norm == "linf":
            moved = (delta + a.step_size * gradient.sign()).clamp(-a.eps, a.eps)
        else:
            moved = delta + a.step_size * gradient / norms(gradient).clamp_min(1e-12)
            moved = moved * (a.eps / norms(moved).clamp_min(1e-12)).clamp_max(1.0)
        self.state["delta"] = moved


def of(spec: TrainSpec, forward: nn.Module, how: execution.Execution) -> Natural:
    """What `spec` puts between a batch and the step on it."""
    if spec.adversary is None:
        return Natural()
    if spec.adversary.replay is not None:
        return FreeTraining(spec.adversary)
    return PGDTraining(spec.adversary, spec.seed, forward, how)
