"""Sharpness-aware minimizers: SAM and its family behind one `step(closure)`, around any torch optimizer.

>>> minimizer = SAM(model, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9, weight_decay=5e-4)
>>> def closure():
...     minimizer.zero_grad()
...     loss = F.cross_entropy(model(images), labels)
...     loss.backward()
...     return loss
>>> loss = minimizer.step(closure)  # the loss at w, before the step

With w the weights, g = ∇L(w), ε = ρ g/‖g‖ and g₊ = ∇L(w + ε), the base optimizer steps from w along d:

=========  =======  ==============================================  ===================================
minimizer  passes   d                                               source
=========  =======  ==============================================  ===================================
`SAM`      2        g₊                                              Foret et al. 2021, ICLR
`RFN`      2        g₊, with a large ρ; also called l-SAM           Gubri et al. 2023, arXiv 2304.02688
`ASAM`     2        g₊, with ε = ρ T²g/‖Tg‖ and T = |w| + η         Kwon et al. 2021, ICML
`GSAM`     2        g₊ − α g_⊥, g_⊥ the part of g orthogonal to g₊  Zhuang et al. 2022, ICLR
`AGSAM`    2        GSAM's, with ASAM's ε                           both
`GNP`      2        g + α (g₊ − g): the gradient's norm, penalised  Zhao et al. 2022, ICML
`LookSAM`  1 + 1/k  every k-th step g₊, else from g alone           Liu et al. 2022, CVPR
`GAM`      4        see there                                       Zhang et al. 2023, CVPR
`WASAM`    2        g₊; gives the mean of the weights               Kaddour et al. 2022, NeurIPS
`SWA`      1        g; gives the mean of the weights                Izmailov et al. 2018, UAI
=========  =======  ==============================================  ===================================

What holds for all of them, and differs between the published implementations:

- ‖·‖ is the norm over all parameters together: those of the base optimizer that require a gradient.
- Weight decay is the base optimizer's alone: no penalty enters g or g₊ (in Google's JAX code it enters both).
- Buffers, BatchNorm's statistics among them, stay as the first pass left them.
- After every pass the weights are put back from a copy, to the bit. A parameter without a gradient in the
  first pass is not perturbed, one without a gradient in the last pass is not updated.
- ρ = 0 is the base optimizer, to the bit, in one pass.
- If a loss or a gradient is not finite, the step is skipped: weights, buffers and base optimizer stay as
  before it, `skipped` counts it, and the first one warns. Where ρ = 0 nothing is checked.
- Dropout and the like draw anew in each pass, as in the reference implementations.
- Parameters change in place: compiled models and autocast to bf16 in the closure work. Gradient scalers do
  not, for they would have to see each pass. ε is that of the whole batch (no "m-sharpness").
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer

from rfnlib.checks import is_whole

Base = Callable[..., Optimizer] | Optimizer
Schedule = Callable[[int, float], float]  # ρ from the step's index and the first parameter group's learning rate
Rho = float | Schedule
Tensors = list[Tensor]
Gradient = Callable[[Tensors], Tensors]
Held = list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]


class MinimizerError(ValueError):
    """Arguments that a minimizer cannot work with."""


def constant(rho: float) -> Schedule:
    """ρ at every step."""
    rho = _number("rho", rho)
    return lambda step, lr: rho


def warmup(rho: float, steps: int) -> Schedule:
    """From 0 at the first step linearly to ρ at the step with index `steps`; ρ from there on."""
    rho, steps = _number("rho", rho), _whole("steps", steps, 0)
    return lambda step, lr: rho * min(1.0, step / steps) if steps else rho


def proportional_to_lr(rho: float, lr_max: float, rho_min: float = 0.0, lr_min: float = 0.0) -> Schedule:
    """ρ_min + (ρ − ρ_min) (lr − lr_min)/(lr_max − lr_min): GSAM's schedule, ρ at the learning rate lr_max."""
    rho, lr_max, rho_min, lr_min = map(_number, ("rho", "lr_max", "rho_min", "lr_min"), (rho, lr_max, rho_min, lr_min))
    _require(lr_max > lr_min, f"lr_max is {lr_max}, lr_min {lr_min}; give a larger lr_max.")
    return lambda step, lr: rho_min + (rho - rho_min) * (lr - lr_min) / (lr_max - lr_min)


class SAM:
    """Minimise L(w + ε) for the worst ε of norm ρ, to first order (Foret et al. 2021).

    ε = ρ g/‖g‖, g = ∇L(w);  the base optimizer steps from w with ∇L(w + ε).

    Args:
        model: the module that is trained; its buffers are looked after.
        base: class of the base optimizer, or one that is built already (for several parameter groups).
        rho: radius of the neighbourhood, in units of the weights; or a schedule such as `warmup(0.3, 500)`.
        log: measure what `last` describes.
        base_options: the base optimizer's (`lr`, `momentum`, …), which rejects those it does not know.

    Attributes:
        base: the base optimizer; torch's learning rate schedulers take this one.
        passes: forward-backward passes so far, the unit of cost.
        steps, skipped: calls of `step`, and how many of them a loss or gradient that is not finite made void.
        last: of the last step, `rho` and `skipped`; with `log` also `rise` = L(w + ε) − L(w), `norm` = ‖g‖ and
            `cosine` = cos(g, g₊), the first and last NaN in steps of one pass (GAM: of its first perturbed pass).

    Raises:
        MinimizerError: a negative radius and the like.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Base = SGD,
        rho: Rho = 0.05,
        *,
        log: bool = False,
        **base_options: Any,
    ) -> None:
        built, given = isinstance(base, Optimizer), ", ".join(base_options)
        _require(not (built and given), f"the base optimizer is built already; give {given} to it.")
        self.model, self.log = model, log
        self.rho = rho if callable(rho) else _number("rho", rho)
        self.base = base if built else base(model.parameters(), **base_options)
        self.steps = self.passes = self.skipped = 0
        self.last: dict[str, float] = {}
        self.kept: dict[str, Any] = {}  # what a method remembers from step to step: lists of tensors, and counts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's own."""
        return self.base.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def ascent(self, params: Tensors, g: Tensors, rho: float) -> Tensors:
        """ε; 0 where the gradient vanishes."""
        return _scaled_to(rho, g)

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        """d, which the base optimizer gets as gradient; `at(offset)` is ∇L(w + offset) and costs a pass."""
        return at(self.ascent(params, g, rho))

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step of the base optimizer along the method's direction.

        Args:
            closure: clears the gradients, computes the loss, back-propagates and returns it; called once a pass.

        Returns:
            The loss of the first pass, at w.

        Whatever the closure raises passes through; weights and buffers are then as before the step.
        """
        lr = float(self.param_groups[0]["lr"])
        rho = _number("rho", self.rho(self.steps, lr) if callable(self.rho) else self.rho)
        self.last = {"rho": rho} | ({"rise": math.nan, "norm": math.nan, "cosine": math.nan} if self.log else {})
        buffers, kept, losses, fine = _hold(self.model), dict(self.kept), [], False
        try:
            losses.append(self._pass(closure))
            with torch.no_grad():
                fine = self._redirect(closure, losses, rho)
        finally:
            if not fine:
                self.kept = kept
                _put_back(buffers)
        if fine:
            self.base.step()
        else:
            self.zero_grad()
        self.last["skipped"] = not fine
        self.skipped += not fine
        self.steps += 1
        if fine:
            self._stepped()
        elif self.skipped == 1:
            warnings.warn(
                f"Step {self.steps} is skipped: with rho = {rho:.4g} a loss or gradient is not finite. Others like it "
                "will be skipped without a word (`skipped` counts them). Lower rho, or give it a warm-up.",
                RuntimeWarning,
                stacklevel=2,
            )
        return losses[0]

    def _redirect(self, closure: Callable[[], Tensor], losses: Tensors, rho: float) -> bool:
        """Put d in the place of the gradients; False if something is not finite."""
        params = [p for p in self._weights() if p.requires_grad]
        if self.log:
            self.last["norm"] = float(_norm([p.grad for p in params if p.grad is not None]))
        if rho == 0:
            return True
        g, has_gradient = _take(params)
        saved, buffers = _copies(params), _hold(self.model)

        def at(offset: Tensors) -> Tensors:
            nonlocal has_gradient
            try:
                torch._foreach_add_(params, offset)
                losses.append(self._pass(closure))
            finally:
                torch._foreach_copy_(params, saved)
                _put_back(buffers)
            there, has_gradient = _take(params)
            if self.log and len(losses) == 2:
                self.last["rise"] = float(losses[1] - losses[0])
                self.last["cosine"] = float(_dot(g, there) / (_norm(g) * _norm(there)))
            return there

        d = self.direction(params, g, at, rho)
        largest = torch._foreach_norm([x for x in d if x.numel()], math.inf)
        if not _stack([*losses, *largest]).isfinite().all():
            return False
        for p, new, has in zip(params, d, has_gradient, strict=True):
            p.grad = new.to(p.dtype) if has else None
        return True

    def _pass(self, closure: Callable[[], Tensor]) -> Tensor:
        self.passes += 1
        with torch.enable_grad():
            loss = closure()
        _require(loss is not None, "the closure returned None; let it return the loss.")
        return torch.as_tensor(loss).detach().reshape(())

    def _weights(self) -> Tensors:
        return [p for group in self.param_groups for p in group["params"]]

    def _stepped(self) -> None:
        """What a method does after each step that was not skipped."""

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on besides the model, the base optimizer's state nested as `base`."""
        counts = {"steps": self.steps, "passes": self.passes, "skipped": self.skipped}
        return {"method": type(self).__name__, **counts, "base": self.base.state_dict(), "kept": dict(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, to the bit. The options are not part of it: give the same ones.

        Raises:
            MinimizerError: the state of another minimizer. (`minimizer.base` takes over another's `base`.)
        """
        of, mine = state.get("method", "another optimizer"), type(self).__name__
        _require(of == mine, f"this is a state of {of}, not of {mine}.")
        self.base.load_state_dict(state["base"])
        self.steps, self.passes, self.skipped = state["steps"], state["passes"], state["skipped"]
        everything = self._weights()

        def own(kept: Any) -> Any:
            if not isinstance(kept, list):
                return kept
            params = everything if len(kept) == len(everything) else [p for p in everything if p.requires_grad]
            return [torch.empty_like(p, dtype=t.dtype).copy_(t) for p, t in zip(params, kept, strict=True)]

        with torch.no_grad():
            self.kept = {name: own(kept) for name, kept in state["kept"].items()}


def RFN(model: nn.Module, base: Base = SGD, rho: Rho = 0.3, **options: Any) -> SAM:
    """SAM in a large neighbourhood (Gubri et al. 2023), called l-SAM in the second version of the paper.

    The paper's ρ could not be verified: 0.3 is six times the usual 0.05; sweep it, and give it a `warmup` where it
    breaks down. The large variants of the others are `GSAM(model, rho=0.3)` and so on.
    """
    return SAM(model, base, rho, **options)


def _is_weight(name: str) -> bool:
    return "weight" in name


class ASAM(SAM):
    """SAM in a neighbourhood that follows the scale of each weight, ‖T⁻¹ε‖ = ρ (Kwon et al. 2021).

    ε = ρ T²g/‖Tg‖,  T = |w| + η elementwise.

    Multiplying one layer by c and dividing the next by c leaves the network alone, and this ball too, not SAM's.
    `scaled` says by name which parameters have this T; for the others T is 1. As in the authors' code it takes the
    names with "weight" in them (BatchNorm's too), not biases: these begin at 0, where T would hold them fast.
    (davda54's `adaptive` scales all, without η, and its usual ρ is 2.)
    """

    def __init__(
        self, model: nn.Module, base: Base = SGD, rho: Rho = 0.5, *, eta: float = 0.01, scaled=_is_weight, **options
    ):
        super().__init__(model, base, rho, **options)
        self.eta = _number("eta", eta)
        self._scaled = {p for name, p in model.named_parameters() if scaled(name)}

    def ascent(self, params: Tensors, g: Tensors, rho: float) -> Tensors:
        t = torch._foreach_abs(params)
        torch._foreach_add_(t, self.eta)
        for p, its in zip(params, t, strict=True):
            if p not in self._scaled:
                its.fill_(1.0)
        return torch._foreach_mul(_scaled_to(rho, torch._foreach_mul(t, g)), t)


class GSAM(SAM):
    """SAM that also closes the gap L(w + ε) − L(w), as far as L(w + ε) does not mind (Zhuang et al. 2022).

    d = g₊ − α g_⊥,  g_⊥ = g − (⟨g, g₊⟩/‖g₊‖²) g₊.

    In the paper ρ falls with the learning rate: `rho=proportional_to_lr(…)`. α = 0 is SAM.
    """

    def __init__(self, model: nn.Module, base: Base = SGD, rho: Rho = 0.05, *, alpha: float = 0.4, **options):
        super().__init__(model, base, rho, **options)
        self.alpha = _number("alpha", alpha)

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        g_plus = super().direction(params, g, at, rho)
        return torch._foreach_sub(g_plus, _orthogonal(g, g_plus), alpha=self.alpha)


class AGSAM(GSAM, ASAM):
    """GSAM with ASAM's ε. g_⊥ stays that of the plain inner product, as in GSAM's code. α = 0 is ASAM."""

    def __init__(self, model: nn.Module, base: Base = SGD, rho: Rho = 0.5, **options):
        super().__init__(model, base, rho, **options)


class GNP(SAM):
    """Penalise the norm of the gradient, L(w) + λ‖∇L(w)‖, by finite differences (Zhao et al. 2022).

    d = g + α (g₊ − g),  α = λ/ρ.

    α = 1 is SAM; the authors take less. More extrapolates it: the More-Bayesian surrogate (Li et al. 2023, ICLR) is
    fine-tuned with λ = 1 and ρ = 0.1, the defaults here.
    """

    def __init__(self, model: nn.Module, base: Base = SGD, rho: Rho = 0.1, *, alpha: float = 10.0, **options):
        super().__init__(model, base, rho, **options)
        self.alpha = _number("alpha", alpha)

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        return torch._foreach_lerp(g, super().direction(params, g, at, rho), self.alpha)


class LookSAM(SAM):
    """SAM every k-th step, and in between the turn it gave to the gradient (Liu et al. 2022).

    Every k-th step d = g₊, and g_v = g₊ − (⟨g, g₊⟩/‖g‖²) g is kept; else d = g + α (‖g‖/‖g_v‖) g_v.

    Norms are over all parameters, not by layer as in the paper's variant for large batches. No code of the authors
    is known: ρ and α are those of github.com/Leminhbinh0209/LookSAM. k = 1 is SAM.
    """

    def __init__(
        self, model: nn.Module, base: Base = SGD, rho: Rho = 0.1, *, k: int = 5, alpha: float = 0.7, **options
    ):
        super().__init__(model, base, rho, **options)
        self.k, self.alpha = _whole("k", k, 1), _number("alpha", alpha)

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        known = len(self.kept.get("g_v", ())) == len(g)  # not at the start, nor when parameters were (un)frozen
        if known and self.steps % self.k:
            return torch._foreach_add(g, _scaled_to(self.alpha * _norm(g), self.kept["g_v"]))
        g_plus = super().direction(params, g, at, rho)
        self.kept["g_v"] = list(_orthogonal(g_plus, g))
        return g_plus


class GAM(SAM):
    """Gradient norm aware minimization, in the authors' form with finite differences (Zhang et al. 2023, app. D).

    g₁ = ∇L(w + ρ′ g/‖g‖);  f = g₁ − g ≈ ρ′ ∇‖∇L(w)‖;  w₂ = w + ρ f/‖f‖;
    g₂ = ∇L(w₂);  g₃ = ∇L(w₂ + ρ′ g₂/‖g₂‖);
    d = h − γ m_⊥,  h = β₁ g₁ + β₃ g₃,  m = g + β₂ g₂,  m_⊥ the part of m orthogonal to h.

    `rho` is grad_norm_rho and `probe` = ρ′ is grad_rho in their code (xxgege/GAM). The defaults are what it sets for
    ResNets on CIFAR-10. (Those of its argument parser, ρ′ = 0.02, β = 1, γ = 0.03, are overridden on CIFAR, and would
    double the step, for β₁ + β₃ is the gradient's weight.) As everywhere, ρ = 0 is the base optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Base = SGD,
        rho: Rho = 0.2,
        *,
        probe=0.03,
        betas=(0.1, 0.9, 0.9),
        gamma=0.05,
        **options,
    ):
        super().__init__(model, base, rho, **options)
        _require(len(betas) == 3, f"betas are {betas!r}; give three numbers, for g1, g2 and g3.")
        self.betas = [_number("a beta", b) for b in betas]
        self.probe, self.gamma = _number("probe", probe), _number("gamma", gamma)

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        beta1, beta2, beta3 = self.betas
        g1 = at(_scaled_to(self.probe, g))
        up = _scaled_to(rho, torch._foreach_sub(g1, g))
        g2 = at(up)
        g3 = at(torch._foreach_add(up, _scaled_to(self.probe, g2)))
        h = torch._foreach_add(torch._foreach_mul(g1, beta1), g3, alpha=beta3)
        m = torch._foreach_add(g, g2, alpha=beta2)
        return torch._foreach_sub(h, _orthogonal(m, h), alpha=self.gamma)


class WASAM(SAM):
    """SAM, and the mean of the weights it passes through (Kaddour et al. 2022).

    w̄ = (1/n) Σ wᵢ over the weights after start + every, start + 2 every, … steps; skipped steps add nothing.

    The authors start at three quarters of the training and take weights once an epoch (`every` = steps an epoch).
    The training is SAM's own; the mean is lent out:

    >>> with minimizer.averaged() as model:
    ...     update_batchnorm(model, batches)
    ...     weights = copy.deepcopy(model.state_dict())
    """

    def __init__(
        self, model: nn.Module, base: Base = SGD, rho: Rho = 0.05, *, start: int = 0, every: int = 1, **options
    ):
        super().__init__(model, base, rho, **options)
        self.start, self.every = _whole("start", start, 0), _whole("every", every, 1)

    @torch.no_grad()
    def _stepped(self) -> None:
        past = self.steps - self.start
        if past <= 0 or past % self.every:
            return
        weights = self._weights()
        n = self.kept["models"] = self.kept.get("models", 0) + 1
        if n == 1:  # in float32 at least: a mean in bfloat16 would soon stand still
            self.kept["mean"] = [w.to(torch.promote_types(w.dtype, torch.float32), copy=True) for w in weights]
        else:
            mean = self.kept["mean"]
            torch._foreach_lerp_(mean, [w.to(m.dtype) for w, m in zip(weights, mean, strict=True)], 1 / n)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with the mean weights, for the time of the block; then weights and buffers as before.

        BatchNorm's statistics are not those of the mean until `update_batchnorm` is called in the block.

        Raises:
            MinimizerError: no weights have been averaged yet.
        """
        n = self.kept.get("models", 0)
        _require(n > 0, f"after {self.steps} steps no weights are averaged; averaging starts after step {self.start}.")
        weights, buffers = self._weights(), _hold(self.model)
        with torch.no_grad():
            saved = _copies(weights)
            torch._foreach_copy_(weights, self.kept["mean"])
        try:
            yield self.model
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, saved)
            _put_back(buffers)


def SWA(model: nn.Module, base: Base = SGD, *, start: int = 0, every: int = 1, **options: Any) -> WASAM:
    """The base optimizer and the mean of its weights (Izmailov et al. 2018): WASAM with ρ = 0."""
    return WASAM(model, base, rho=0.0, start=start, every=every, **options)


def update_batchnorm(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Forget BatchNorm's running statistics and set them to their plain mean over `batches`.

    For averaged weights, whose activations no training step has seen. Only the BatchNorm layers are in training
    mode meanwhile, so that dropout neither acts nor draws; all modes end as they were.

    Args:
        model: any module; left alone if it holds no BatchNorm with running statistics.
        batches: un-augmented training images, or (images, …); each counts the same, so make them of equal size.

    Raises:
        MinimizerError: there are no batches. After this, or any error, the statistics are the old ones.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return
    modes, momenta, old = [(m, m.training) for m in model.modules()], [m.momentum for m in layers], _hold(model)
    try:
        model.eval()
        for m in layers:
            m.train()
            m.reset_running_stats()
            m.momentum = None  # torch's word for a plain mean
        empty = True
        with torch.no_grad():
            for batch in batches:
                model(batch if isinstance(batch, Tensor) else batch[0])
                empty = False
        _require(not empty, "there are no batches; give some, or an iterator that is not used up.")
    except BaseException:
        _put_back(old)
        raise
    finally:
        for m, mode in modes:
            m.training = mode
        for m, momentum in zip(layers, momenta, strict=True):
            m.momentum = momentum


# --- lists of tensors as one vector ---------------------------------------------------------------------


def _norm(x: Tensors) -> Tensor:
    return _stack(torch._foreach_norm(x)).norm() if x else torch.zeros(())


def _dot(x: Tensors, y: Tensors) -> Tensor:
    return _stack([product.sum() for product in torch._foreach_mul(x, y)]).sum()


def _scaled_to(length: float | Tensor, x: Tensors) -> Tensors:
    """x with the norm `length`; 0 stays 0."""
    return torch._foreach_mul(x, length / _norm(x).clamp_min(1e-30))


def _orthogonal(x: Tensors, to: Tensors) -> Tensors:
    """The part of x orthogonal to `to`, x − (⟨x, to⟩/‖to‖²) to; all of x if `to` is 0."""
    unit = _scaled_to(1.0, to)
    return torch._foreach_sub(x, torch._foreach_mul(unit, _dot(x, unit)))


def _stack(scalars: Sequence[Tensor]) -> Tensor:
    """One vector of numbers whose types may differ, in float32 at least."""
    dtype = reduce(torch.promote_types, {s.dtype for s in scalars}, torch.float32)
    return torch.stack([s.to(scalars[-1].device, dtype) for s in scalars])


def _copies(tensors: Tensors) -> Tensors:
    copies = [torch.empty_like(t) for t in tensors]
    if copies:
        torch._foreach_copy_(copies, tensors)
    return copies


def _take(params: Tensors) -> tuple[Tensors, list[bool]]:
    """Copies of the gradients (0 where there is none), and where there is one. The originals are let go.

    For the next pass may add to them or write over them: zeroing in place, CUDA graphs, DDP's buckets.
    """
    has = [p.grad is not None for p in params]
    taken = _copies([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
    for p in params:
        p.grad = None
    return taken, has


@torch.no_grad()
def _hold(model: nn.Module) -> Held:
    """For each buffer: where it hangs, its name, itself, and a copy."""
    homes = [(m._buffers, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    return [(*home, copy) for home, copy in zip(homes, _copies([b for *_, b in homes]), strict=True)]


@torch.no_grad()
def _put_back(held: Held) -> None:
    for home, name, buffer, _ in held:
        if home[name] is not buffer:  # some modules hang up a new tensor instead of writing into the old
            home[name] = buffer
    if held:
        torch._foreach_copy_([buffer for *_, buffer, _ in held], [copy for *_, copy in held])


# --- arguments ------------------------------------------------------------------------------------------


def _number(name: str, value: Any) -> float:
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value < math.inf
    _require(fine, f"{name} is {value!r}; give a finite number of 0 or more.")
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    _require(is_whole(value, least), f"{name} is {value!r}; give a whole number of at least {least}.")
    return value


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise MinimizerError(message)
