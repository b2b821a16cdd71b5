"""What a training run minimises on a batch, beyond the cross-entropy of its labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib import execution
from rfnlib.specs import TrainSpec

Objective = Callable[[Tensor, Tensor], Tensor]  # images (B, C, H, W) in [0, 1] and labels (B,) to the loss, a number

PASSES_PENALISED = 3  # what a pass with the penalty costs, in forward-backward passes: it differentiates a gradient


def labels(spec: TrainSpec, forward: nn.Module, how: execution.Execution) -> Objective:
    """The mean cross-entropy, with the spec's label smoothing."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with how.autocast():
            logits = forward(x)
        return F.cross_entropy(logits.float(), y, label_smoothing=spec.label_smoothing)

    return loss


def penalised(spec: TrainSpec, model: nn.Module, how: execution.Execution) -> Objective:
    """The same with a penalty on the gradient by the images: L + λ · 1/B Σ_b ‖∇_x ℓ_b‖²,  λ = `spec.input_penalty`.

    ℓ_b is the loss of image b and L their mean; the norm is l2, of images in [0, 1]. In training mode BatchNorm ties
    the images of a batch together, so that the gradient is that of Σ_b ℓ_b. With SAM this is "SAM & IR", what
    Zhang et al. (2024, IEEE S&P) recommend for surrogates; the penalty goes back to Drucker & LeCun (1992).
    The model must not be compiled, for compiled ones have no second derivatives.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with how.autocast():
            logits = model(x)
        each = F.cross_entropy(logits.float(), y, label_smoothing=spec.label_smoothing, reduction="none")
        (gradient,) = torch.autograd.grad(each.sum(), x, create_graph=True)
        return each.mean() + spec.input_penalty * gradient.flatten(1).square().sum(1).mean()

    return loss


def aligned(witness: nn.Module, forward: nn.Module, how: execution.Execution) -> Objective:
    """Model alignment: the mean over images of KL(q ‖ p), q what the witness predicts for them, p the network.

    The labels play no part. The witness is in eval mode and does not change. Source: Ma et al. 2024, ECCV, who
    fine-tune a trained surrogate with it.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), how.autocast():
            wanted = witness(x).float().log_softmax(1)
        with how.autocast():
            logits = forward(x)
        return F.kl_div(logits.float().log_softmax(1), wanted, reduction="batchmean", log_target=True)

    return loss


def build(
    spec: TrainSpec, model: nn.Module, forward: nn.Module, witness: nn.Module | None, how: execution.Execution
) -> Objective:
    """What `spec` minimises.

    Args:
        spec: of the run.
        model: the network that is trained.
        forward: the same, compiled if that pays.
        witness: the trained network of `spec.witness`, if it has one.
        how: what it is computed with.
    """
    if witness is not None:
        return aligned(witness, forward, how)
    return penalised(spec, model, how) if spec.input_penalty else labels(spec, forward, how)
