"""Sharpness-aware minimizers: SAM and its family behind one `step(closure)`, around any torch optimizer.

>>> model = nn.Linear(2, 1)
>>> minimizer = SAM(model, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9, weight_decay=5e-4)
>>> def closure():
...     minimizer.zero_grad()
...     loss = model(torch.ones(1, 2)).square().mean()
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

- ‖·‖ is the norm over all parameters together: those of the base optimizer that require a gradient. Complex
  parameters count as pairs of real ones.
- Weight decay is the base optimizer's alone: no penalty enters g or g₊ (in Google's JAX code it enters both).
- Buffers, BatchNorm's statistics among them, stay as the first pass left them.
- After every pass the weights are put back from a copy, to the bit. A parameter without a gradient in the
  first pass is not perturbed, one without a gradient in the last pass is not updated.
- ρ = 0 is the base optimizer, to the bit, in one pass.
- If a loss or a gradient is not finite, the step is skipped: weights, buffers and base optimizer stay as
  before it, `skipped` counts it, and the first one warns. Where ρ = 0 nothing is checked.
- Dropout and the like draw anew in each pass, as in the reference implementations.
- A step waits for the device once, to learn whether all was finite; not at all where ρ = 0.

How they go with the rest of torch:

- Schedulers (`torch.optim.lr_scheduler`) take the minimizer or its `base`.
- Gradients are accumulated in the closure: clear them once, back-propagate each part of the batch, return the sum.
- To clip the direction that is stepped along, clip in a hook: `minimizer.base.register_step_pre_hook`. Clipping in
  the closure bounds each pass's gradient, and leaves ε's direction alone.
- In `DistributedDataParallel` gradients are means over all processes, so ε is that of the whole batch (no
  "m-sharpness"). Whenever `torch.distributed` is initialised all processes skip a step if one has to, so all must
  take the same steps.
- Parameters change in place: compiled models work, and autocast to bfloat16 in the closure. A `GradScaler` around
  the step is refused, for it would have to see each pass. Weights that are themselves in half precision are warned
  of where rounding takes most of ε.
"""

from __future__ import annotations

import math
import numbers
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer

from rfnlib.buffers import hold, put_back
from rfnlib.checks import is_whole, require
from rfnlib.vectors import HALVES, Tensors, copies, copy_all, dot, largest, norm, orthogonal, scaled_to, stack

Parameters = nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]]
Base = Callable[..., Optimizer] | Optimizer
Closure = Callable[[], Tensor]
Schedule = Callable[[int, float], float]  # ρ from the step's index and the first parameter group's learning rate
Rho = float | Schedule
Gradient = Callable[[Tensors], Tensors]


class MinimizerError(ValueError):
    """Arguments that a minimizer cannot work with."""


def constant(rho: float) -> Schedule:
    """ρ at every step.

    >>> constant(0.3)(500, 0.1)
    0.3
    """
    rho = _number("rho", rho)
    return lambda step, lr: rho


def warmup(rho: float, steps: int) -> Schedule:
    """From 0 at the first step linearly to ρ at the step with index `steps`; ρ from there on.

    >>> [warmup(0.4, 4)(step, 0.1) for step in (0, 1, 4, 5)]
    [0.0, 0.1, 0.4, 0.4]
    """
    rho, steps = _number("rho", rho), _whole("steps", steps, 0)
    return lambda step, lr: rho * min(1.0, step / steps) if steps else rho


def proportional_to_lr(rho: float, lr_max: float, rho_min: float = 0.0, lr_min: float = 0.0) -> Schedule:
    """ρ_min + (ρ − ρ_min) (lr − lr_min)/(lr_max − lr_min): GSAM's schedule, ρ at the learning rate lr_max.

    >>> proportional_to_lr(0.4, lr_max=0.1)(0, 0.05)
    0.2

    Raises:
        MinimizerError: no range of learning rates, or a negative number.
    """
    rho, lr_max, rho_min, lr_min = map(_number, ("rho", "lr_max", "rho_min", "lr_min"), (rho, lr_max, rho_min, lr_min))
    _need(lr_max > lr_min, f"lr_max is {lr_max}, lr_min {lr_min}; give a larger lr_max.")
    return lambda step, lr: rho_min + (rho - rho_min) * (lr - lr_min) / (lr_max - lr_min)


class SAM(Optimizer):
    """Minimise L(w + ε) for the worst ε of norm ρ, to first order (Foret et al. 2021).

    ε = ρ g/‖g‖, g = ∇L(w);  the base optimizer steps from w with ∇L(w + ε).

    It is a `torch.optim.Optimizer` whose `param_groups`, `state` and `defaults` are the base optimizer's: learning
    rate schedulers and step hooks take either of the two.

    Args:
        params: the module that is trained; or its parameters (or groups of them) as torch's optimizers take them,
            with `model` beside them.
        base: class of the base optimizer, or one that is built already (for several parameter groups).
        rho: radius of the neighbourhood, in units of the weights; or a schedule such as `warmup(0.3, 500)`.
        model: the module whose buffers are put back after each pass; needed where `params` is not that module.
        log: measure what `last` describes.
        base_options: the base optimizer's (`lr`, `momentum`, …), which rejects those it does not know.

    Attributes:
        base: the base optimizer.
        passes: forward-backward passes so far, the unit of cost.
        steps, skipped: calls of `step`, and how many of them a loss or gradient that is not finite made void.
        last: of the last step, `rho` and `skipped`; with `log` also `rise` = L(w + ε) − L(w), `norm` = ‖g‖ and
            `cosine` = cos(g, g₊), the first and last NaN in steps of one pass (GAM: of its first perturbed pass).
        averages: whether the method gives a mean of weights: it has `averaged()` and takes `start` and `every`.
        perturbs: whether the method takes a ρ.

    Raises:
        MinimizerError: a negative radius, a base optimizer of another model and the like.
    """

    averages, perturbs = False, True
    _step_supports_amp_scaling = True  # so that a GradScaler hands its scale over, and `step` can refuse it

    def __init__(
        self,
        params: Parameters,
        base: Base = SGD,
        rho: Rho = 0.05,
        *,
        model: nn.Module | None = None,
        log: bool = False,
        **base_options: Any,
    ) -> None:
        built, given = isinstance(base, Optimizer), ", ".join(base_options)
        _need(not (built and given), f"the base optimizer is built already; give {given} to it.")
        whole = isinstance(params, nn.Module)
        self.model, self.log = (params if whole else model), log
        _need(
            self.model is not None,
            "parameters alone do not show the buffers (BatchNorm's statistics) that each pass would move; "
            "give the model in their place, or as model= beside them.",
        )
        self.rho = rho if callable(rho) else _number("rho", rho)
        self.base = base if built else base(params.parameters() if whole else params, **base_options)
        own, weights = set(self.model.parameters()), self._weights()
        foreign = sum(p not in own for p in weights)
        _need(
            not foreign,
            f"{foreign} of the {len(weights)} parameters of the base optimizer are not the model's; build it from the "
            "parameters of this very model, no copy of it (nn.ModuleList holds several models as one).",
        )
        self.steps = self.passes = self.skipped = 0
        self.last: dict[str, float] = {}
        self.kept: dict[str, Any] = {}  # what a method remembers from step to step: lists of tensors, and counts
        self._losses: deque[Tensor] = deque(maxlen=50)  # the last ones at w, left on their device
        self._first: Tensor | None = None
        self._taken = 0  # steps behind them
        self._coarse = self._told = False  # what was warned of: ε is rounded away, training stalls
        self.__setstate__({})  # gives an Optimizer its hooks; parameters and state stay with the base optimizer

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "step"}  # a scheduler's, of this object

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's own."""
        return self.base.param_groups

    @property
    def state(self) -> dict[Tensor, Any]:
        """The base optimizer's own."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's own."""
        return self.base.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Hand a further group of the model's parameters to the base optimizer."""
        self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        self.base.zero_grad(set_to_none)

    @classmethod
    def passes_per_step(cls, **options: Any) -> float:
        """Forward-backward passes a step while ρ > 0, on the mean; `options` are the method's own (LookSAM's `k`)."""
        return 2.0

    def ascent(self, params: Tensors, g: Tensors, rho: float) -> Tensors:
        """ε; 0 where the gradient vanishes."""
        return scaled_to(rho, g)

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        """d, which the base optimizer gets as gradient; `at(offset)` is ∇L(w + offset) and costs a pass."""
        return at(self.ascent(params, g, rho))

    def step(self, closure: Closure | None = None) -> Tensor:
        """One step of the base optimizer along the method's direction.

        Args:
            closure: clears the gradients, computes the loss, back-propagates and returns it; called once a pass.

        Returns:
            The loss of the first pass, at w.

        Raises:
            MinimizerError: no closure, one that leaves no gradients, or a `GradScaler` around the step.

        Whatever the closure raises passes through; weights and buffers are then as before the step.
        """
        _need(closure is not None, f"{type(self).__name__} takes several gradients a step; give step(closure).")
        _need(
            (self.__dict__.pop("grad_scale", None), self.__dict__.pop("found_inf", None)) == (None, None),
            "a GradScaler does not see the passes inside of a step; autocast to bfloat16, which needs none, or let the "
            "closure multiply the loss by a constant and divide the gradients by it.",
        )
        rho = self.rho(self.steps, float(self.param_groups[0]["lr"])) if callable(self.rho) else self.rho
        rho = _number("rho", rho)
        self.last = {"rho": rho} | ({"rise": math.nan, "norm": math.nan, "cosine": math.nan} if self.log else {})
        buffers, kept, losses, fine = hold(self.model), dict(self.kept), [], False
        try:
            losses.append(self._pass(closure, static=rho == 0))
            with torch.no_grad():
                fine = self._redirect(closure, losses, rho)
        finally:
            if not fine:
                self.kept = kept
                put_back(buffers)
        if fine:
            self.base.step()
        else:
            self.zero_grad()
        self.last["skipped"] = not fine
        self.skipped += not fine
        self.steps += 1
        if fine:
            self._first = losses[0] if self._first is None else self._first
            self._losses.append(losses[0])
            self._taken += 1
            self._stepped()
        elif self.skipped == 1:
            _warn(
                f"Step {self.steps} is skipped: with rho = {rho:.4g} a loss or gradient is not finite. Others like it "
                "will be skipped without a word (`skipped` counts them). Lower rho, or give it a warm-up."
            )
        return losses[0]

    def _redirect(self, closure: Closure, losses: list[Tensor], rho: float) -> bool:
        """Put d in the place of the gradients; False if something is not finite."""
        params = [p for p in self._weights() if p.requires_grad]
        if rho == 0:
            if self.log:
                self.last["norm"] = float(norm([p.grad for p in params if p.grad is not None]))
            return True
        g, has_gradient = _take(params)
        saved, buffers = copies(params), hold(self.model)
        measured = {"norm": norm(g)} if self.log else {}

        def at(offset: Tensors) -> Tensors:
            nonlocal has_gradient
            try:
                torch._foreach_add_(params, offset)
                if any(p.dtype in HALVES for p in params) and not self._coarse:
                    lost = norm(torch._foreach_sub(torch._foreach_sub(params, saved), offset))
                    measured["lost"] = lost / norm(offset).clamp_min(1e-30)
                losses.append(self._pass(closure))
            finally:
                copy_all(params, saved)
                put_back(buffers)
            there, has_gradient = _take(params)
            if self.log and len(losses) == 2:
                measured["rise"] = losses[1] - losses[0]
                measured["cosine"] = dot(g, there) / (norm(g) * norm(there))
            return there

        d = self.direction(params, g, at, rho)
        fine = _everywhere(stack([*losses, *largest(d)]).isfinite().all())
        # All that the processor has to know of this step comes from the device at once.
        known, *values = stack([fine, *measured.values()]).tolist()
        told = dict(zip(measured, values, strict=True))
        if told.pop("lost", 0.0) > 0.5:
            self._coarse = True
            _warn(
                f"Half-precision weights round most of the perturbation away (rho = {rho:.4g}); keep the weights in "
                "float32 and autocast the forward pass in the closure.",
            )
        self.last |= told
        if not known:
            return False
        for p, new, has in zip(params, d, has_gradient, strict=True):
            p.grad = new.to(p.dtype) if has else None
        return True

    def _pass(self, closure: Closure, static: bool = False) -> Tensor:
        """The loss, after the closure left its gradients; `static`: which may be those of old, written unseen."""
        self.passes += 1
        weights = [p for p in self._weights() if p.requires_grad]
        before = [(weakref.ref(g), g._version) if (g := p.grad) is not None else (lambda: None, 0) for p in weights]
        with torch.enable_grad():
            loss = closure()
        _need(loss is not None, "the closure returned None; let it return the loss.")
        news = (
            p.grad is not None and (static or p.grad is not old() or p.grad._version != version)
            for p, (old, version) in zip(weights, before, strict=True)
        )
        _need(any(news) or not weights, "the closure left no gradients; let it call zero_grad() and loss.backward().")
        return torch.as_tensor(loss).detach().reshape(())

    def _weights(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _stepped(self) -> None:
        """What a method does after each step that was not skipped."""

    def stalled(self) -> bool:
        """Whether the loss at w is still where it began, 500 or more steps after this object was built.

        With too large a ρ the gradients at w + ε may hold a network at its initialization, in good numbers all along.
        True where the mean of the last 50 losses exceeds 95 % of the first one. (‖g‖ does not tell: it was 0.13 and
        0.27 in networks that had stalled, 0.12 to 0.41 in those that fitted.) `state_dict` warns of it, once.
        """
        if self._taken < 500 or not self.last["rho"]:
            return False
        first, mean = torch.stack([self._first, torch.stack([*self._losses]).mean()]).tolist()
        return 0 < 0.95 * first < mean

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on besides the model, the base optimizer's state nested as `base`."""
        if not self._told and self.stalled():
            self._told = True
            _warn(
                f"The loss has not fallen in {self._taken} steps: with rho = {self.last['rho']:.4g} training may have "
                "stalled. Lower rho, or give it a warm-up.",
                depth=3,
            )
        counts = {"steps": self.steps, "passes": self.passes, "skipped": self.skipped}
        return {"method": type(self).__name__, **counts, "base": self.base.state_dict(), "kept": dict(self.kept)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the bit. The options are not part of it: give the same ones.

        Raises:
            MinimizerError: the state of another minimizer. (`minimizer.base` takes over another's `base`.)
        """
        of, mine = state_dict.get("method", "another optimizer"), type(self).__name__
        _need(of == mine, f"this is a state of {of}, not of {mine}.")
        self.base.load_state_dict(state_dict["base"])
        self.steps, self.passes, self.skipped = (state_dict[name] for name in ("steps", "passes", "skipped"))
        everything = self._weights()

        def own(kept: Any) -> Any:
            if not isinstance(kept, list):
                return kept
            params = everything if len(kept) == len(everything) else [p for p in everything if p.requires_grad]
            return [torch.empty_like(p, dtype=t.dtype).copy_(t) for p, t in zip(params, kept, strict=True)]

        with torch.no_grad():
            self.kept = {name: own(kept) for name, kept in state_dict["kept"].items()}


def RFN(params: Parameters, base: Base = SGD, rho: Rho = 0.2, **options: Any) -> SAM:
    """SAM in a large neighbourhood (Gubri et al. 2023), called l-SAM in the second version of the paper.

    The paper's ρ could not be verified. The default, four times SAM's, is the middle of the range that is swept here
    (0.05 to 0.4), and small networks stand it from the first step on. Larger ones hold some of them where they
    started: of three perceptrons and small convolutional networks on digits 0.5 stopped two, and none with a `warmup`
    over a quarter of the training. So sweep ρ, give a large one a warm-up, and see `SAM.stalled`. The large variants
    of the others are `GSAM(model, rho=0.2)` and so on.
    """
    return SAM(params, base, rho, **options)


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
        self, params: Parameters, base: Base = SGD, rho: Rho = 0.5, *, eta: float = 0.01, scaled=_is_weight, **options
    ):
        super().__init__(params, base, rho, **options)
        self.eta = _number("eta", eta)
        self._scaled = {p for name, p in self.model.named_parameters() if scaled(name)}

    def ascent(self, params: Tensors, g: Tensors, rho: float) -> Tensors:
        t = torch._foreach_abs(params)
        torch._foreach_add_(t, self.eta)
        for p, its in zip(params, t, strict=True):
            if p not in self._scaled:
                its.fill_(1.0)
        return torch._foreach_mul(scaled_to(rho, torch._foreach_mul(t, g)), t)


class GSAM(SAM):
    """SAM that also closes the gap L(w + ε) − L(w), as far as L(w + ε) does not mind (Zhuang et al. 2022).

    d = g₊ − α g_⊥,  g_⊥ = g − (⟨g, g₊⟩/‖g₊‖²) g₊.

    In the paper ρ falls with the learning rate: `rho=proportional_to_lr(…)`. α = 0 is SAM.
    """

    def __init__(self, params: Parameters, base: Base = SGD, rho: Rho = 0.05, *, alpha: float = 0.4, **options):
        super().__init__(params, base, rho, **options)
        self.alpha = _number("alpha", alpha)

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        g_plus = super().direction(params, g, at, rho)
        return torch._foreach_sub(g_plus, orthogonal(g, g_plus), alpha=self.alpha)


class AGSAM(GSAM, ASAM):
    """GSAM with ASAM's ε. g_⊥ stays that of the plain inner product, as in GSAM's code. α = 0 is ASAM."""

    def __init__(self, params: Parameters, base: Base = SGD, rho: Rho = 0.5, **options):
        super().__init__(params, base, rho, **options)


class GNP(SAM):
    """Penalise the norm of the gradient, L(w) + λ‖∇L(w)‖, by finite differences (Zhao et al. 2022).

    d = g + α (g₊ − g),  α = λ/ρ.

    α = 1 is SAM; the authors take less. More extrapolates it: the More-Bayesian surrogate (Li et al. 2023, ICLR) is
    fine-tuned with λ = 1 and ρ = 0.1, the defaults here.
    """

    def __init__(self, params: Parameters, base: Base = SGD, rho: Rho = 0.1, *, alpha: float = 10.0, **options):
        super().__init__(params, base, rho, **options)
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
        self, params: Parameters, base: Base = SGD, rho: Rho = 0.1, *, k: int = 5, alpha: float = 0.7, **options
    ):
        super().__init__(params, base, rho, **options)
        self.k, self.alpha = _whole("k", k, 1), _number("alpha", alpha)

    @classmethod
    def passes_per_step(cls, *, k: int = 5, **options: Any) -> float:
        """1 + 1/k."""
        return 1 + 1 / k

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        known = len(self.kept.get("g_v", ())) == len(g)  # not at the start, nor when parameters were (un)frozen
        if known and self.steps % self.k:
            return torch._foreach_add(g, scaled_to(self.alpha * norm(g), self.kept["g_v"]))
        g_plus = super().direction(params, g, at, rho)
        self.kept["g_v"] = list(orthogonal(g_plus, g))
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
        params: Parameters,
        base: Base = SGD,
        rho: Rho = 0.2,
        *,
        probe=0.03,
        betas=(0.1, 0.9, 0.9),
        gamma=0.05,
        **options,
    ):
        super().__init__(params, base, rho, **options)
        _need(len(betas) == 3, f"betas are {betas!r}; give three numbers, for g1, g2 and g3.")
        self.betas = [_number("a beta", b) for b in betas]
        self.probe, self.gamma = _number("probe", probe), _number("gamma", gamma)

    @classmethod
    def passes_per_step(cls, **options: Any) -> float:
        """4."""
        return 4.0

    def direction(self, params: Tensors, g: Tensors, at: Gradient, rho: float) -> Tensors:
        beta1, beta2, beta3 = self.betas
        g1 = at(scaled_to(self.probe, g))
        up = scaled_to(rho, torch._foreach_sub(g1, g))
        g2 = at(up)
        g3 = at(torch._foreach_add(up, scaled_to(self.probe, g2)))
        h = torch._foreach_add(torch._foreach_mul(g1, beta1), g3, alpha=beta3)
        m = torch._foreach_add(g, g2, alpha=beta2)
        return torch._foreach_sub(h, orthogonal(m, h), alpha=self.gamma)


class WASAM(SAM):
    """SAM, and the mean of the weights it passes through (Kaddour et al. 2022).

    w̄ = (1/n) Σ wᵢ over the weights after start + every, start + 2 every, … steps; skipped steps add nothing.

    The authors start at three quarters of the training and take weights once an epoch (`every` = steps an epoch).
    The training is SAM's own; the mean is lent out:

        with minimizer.averaged() as model:
            update_batchnorm(model, batches)
            weights = copy.deepcopy(model.state_dict())
    """

    averages = True

    def __init__(
        self, params: Parameters, base: Base = SGD, rho: Rho = 0.05, *, start: int = 0, every: int = 1, **options
    ):
        super().__init__(params, base, rho, **options)
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
        _need(n > 0, f"after {self.steps} steps no weights are averaged; averaging starts after step {self.start}.")
        weights, buffers = self._weights(), hold(self.model)
        with torch.no_grad():
            saved = copies(weights)
            copy_all(weights, self.kept["mean"])
        try:
            yield self.model
        finally:
            with torch.no_grad():
                copy_all(weights, saved)
            put_back(buffers)


class SWA(WASAM):
    """The base optimizer and the mean of its weights (Izmailov et al. 2018): WASAM with ρ = 0."""

    perturbs = False

    def __init__(self, params: Parameters, base: Base = SGD, *, start: int = 0, every: int = 1, **options: Any):
        super().__init__(params, base, 0.0, start=start, every=every, **options)

    @classmethod
    def passes_per_step(cls, **options: Any) -> float:
        """1."""
        return 1.0


# --- methods by name ------------------------------------------------------------------------------------

METHODS: dict[str, type[SAM]] = {c.__name__: c for c in (SAM, ASAM, GSAM, AGSAM, GNP, LookSAM, GAM, WASAM, SWA)}


def register(name: str, method: type[SAM]) -> None:
    """Let specs call `method` by `name`: with it `specs.Minimizer(name, rho)` trains as with those built in.

    Args:
        name: an identifier that is free in `METHODS`.
        method: a subclass of `SAM`. It states its own `passes_per_step` where that is not 2.

    Raises:
        MinimizerError: no identifier, no subclass of `SAM`, or a name that is taken.
    """
    _need(isinstance(name, str) and name.isidentifier(), f"name is {name!r}; give an identifier.")
    fine = isinstance(method, type) and issubclass(method, SAM)
    _need(fine, f"method is {method!r}; give a subclass of SAM.")
    _need(METHODS.get(name, method) is method, f"{name} is {METHODS.get(name)} already; give another name.")
    METHODS[name] = method


def method(name: str) -> type[SAM]:
    """The minimizer called `name` in `METHODS`.

    Raises:
        MinimizerError: there is none.
    """
    _need(name in METHODS, f"method is {name!r}; give one of {', '.join(METHODS)}, or `register` it.")
    return METHODS[name]


# --- BatchNorm of averaged weights ----------------------------------------------------------------------


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
    modes, momenta, old = [(m, m.training) for m in model.modules()], [m.momentum for m in layers], hold(model)
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
        _need(not empty, "there are no batches; give some, or an iterator that is not used up.")
    except BaseException:
        put_back(old)
        raise
    finally:
        for m, mode in modes:
            m.training = mode
        for m, momentum in zip(layers, momenta, strict=True):
            m.momentum = momentum


# --- inside a step --------------------------------------------------------------------------------------


def _take(params: Tensors) -> tuple[list[Tensor], list[bool]]:
    """Copies of the gradients (0 where there is none), and where there is one. The originals are let go.

    For the next pass may add to them or write over them: zeroing in place, CUDA graphs, DDP's buckets.
    """
    has = [p.grad is not None for p in params]
    taken = copies([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
    for p in params:
        p.grad = None
    return taken, has


def _everywhere(fine: Tensor) -> Tensor:
    """Whether `fine` holds in every process of `torch.distributed`: they step together or not at all."""
    if not (dist.is_available() and dist.is_initialized()):
        return fine
    least = fine.to(torch.int32)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least.bool()


def _warn(message: str, depth: int = 4) -> None:
    """Warn on behalf of the caller of `step`, which torch wraps; it is `depth` calls up from `warnings`."""
    warnings.warn(message, RuntimeWarning, stacklevel=depth)


# --- arguments ------------------------------------------------------------------------------------------


def _number(name: str, value: Any) -> float:
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value < math.inf
    _need(fine, f"{name} is {value!r}; give a finite number of 0 or more.")
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    _need(is_whole(value, least), f"{name} is {value!r}; give a whole number of at least {least}.")
    return value


def _need(ok: Any, message: str) -> None:
    require(ok, message, MinimizerError)
