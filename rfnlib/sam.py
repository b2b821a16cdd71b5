"""SAM, and what every minimizer of its family shares: several gradients for one step, weights and buffers put back.

A method of one's own overrides `SAM.ascent` (ε) or `SAM.direction` (d); see `rfnlib.minimizers` for the family, for
what holds for all of them, and for how they go with the rest of torch.
"""

from __future__ import annotations

import math
import numbers
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from rfnlib.buffers import hold, put_back
from rfnlib.checks import is_whole, require
from rfnlib.vectors import HALVES, Tensors, copies, copy_all, dot, norm, scaled_to, stack

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
    rho = number("rho", rho)
    return lambda step, lr: rho


def warmup(rho: float, steps: int) -> Schedule:
    """From 0 at the first step linearly to ρ at the step with index `steps`; ρ from there on.

    >>> [warmup(0.4, 4)(step, 0.1) for step in (0, 1, 4, 5)]
    [0.0, 0.1, 0.4, 0.4]
    """
    rho, steps = number("rho", rho), whole("steps", steps, 0)
    return lambda step, lr: rho * min(1.0, step / steps) if steps else rho


def proportional_to_lr(rho: float, lr_max: float, rho_min: float = 0.0, lr_min: float = 0.0) -> Schedule:
    """ρ_min + (ρ − ρ_min) (lr − lr_min)/(lr_max − lr_min): GSAM's schedule, ρ at the learning rate lr_max.

    >>> proportional_to_lr(0.5, lr_max=1.0)(0, 0.5)
    0.25

    Raises:
        MinimizerError: no range of learning rates, or a negative number.
    """
    rho, lr_max, rho_min, lr_min = map(number, ("rho", "lr_max", "rho_min", "lr_min"), (rho, lr_max, rho_min, lr_min))
    need(lr_max > lr_min, f"lr_max is {lr_max}, lr_min {lr_min}; give a larger lr_max.")
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
        draws: whether it draws random numbers: it takes a `seed`.

    Raises:
        MinimizerError: a negative radius, what is no optimizer or that of another model, and the like.
    """

    averages, perturbs, draws = False, True, False
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
        adaptive = "what is adaptive is a class of its own here: take ASAM, or AGSAM for GSAM"
        need("adaptive" not in base_options, f"adaptive is {base_options.get('adaptive')!r}; {adaptive}.")
        built, given = isinstance(base, Optimizer), ", ".join(base_options)
        need(built or callable(base), f"base is {base!r}; give a class such as torch.optim.SGD, or one that is built.")
        need(not (built and given), f"the base optimizer is built already; give {given} to it.")
        whole = isinstance(params, nn.Module)
        self.model, self.log = (params if whole else model), log
        need(
            self.model is not None,
            "parameters alone do not show the buffers (BatchNorm's statistics) that each pass would move; "
            "give the model in their place, or as model= beside them.",
        )
        self.rho = rho if callable(rho) else number("rho", rho)
        self.base = base if built else base(params.parameters() if whole else params, **base_options)
        own, weights = set(self.model.parameters()), self._weights()
        foreign = sum(p not in own for p in weights)
        need(
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
    def first_step(self) -> Any:
        """Only other libraries have it, and `second_step`: `step` makes both passes, and `hasattr` says no."""
        raise AttributeError(f"{type(self).__name__} has no first_step and second_step; give step(closure), for both.")

    second_step = first_step

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
        need(closure is not None, f"{type(self).__name__} takes several gradients a step; give step(closure).")
        need(
            (self.__dict__.pop("grad_scale", None), self.__dict__.pop("found_inf", None)) == (None, None),
            "a GradScaler does not see the passes inside of a step; autocast to bfloat16, which needs none, or let the "
            "closure multiply the loss by a constant and divide the gradients by it.",
        )
        rho = self.rho(self.steps, float(self.param_groups[0]["lr"])) if callable(self.rho) else self.rho
        rho = number("rho", rho)
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
        if rho == 0 or not params:
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
        fine = _everywhere(stack([*losses, norm(d)]).isfinite().all())
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
        need(loss is not None, "the closure returned None; let it return the loss.")
        news = (
            p.grad is not None and (static or p.grad is not old() or p.grad._version != version)
            for p, (old, version) in zip(weights, before, strict=True)
        )
        need(any(news) or not weights, "the closure left no gradients; let it call zero_grad() and loss.backward().")
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
        need(of == mine, f"this is a state of {of}, not of {mine}.")
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


def number(name: str, value: Any) -> float:
    """`value` as a float, if it is a finite number of 0 or more (no bool)."""
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value < math.inf
    need(fine, f"{name} is {value!r}; give a finite number of 0 or more.")
    return float(value)


def whole(name: str, value: Any, least: int) -> int:
    """`value`, if it is an integer of at least `least`."""
    need(is_whole(value, least), f"{name} is {value!r}; give a whole number of at least {least}.")
    return value


def need(ok: Any, message: str) -> None:
    """Raise `MinimizerError(message)` unless `ok`."""
    require(ok, message, MinimizerError)
