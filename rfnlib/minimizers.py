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
`Noise`    2        ∇L(w + ρu), u random: SAM's control             after Wen et al. 2018, arXiv 1805.07898
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

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from rfnlib import keys
from rfnlib.buffers import hold, put_back
from rfnlib.checks import meant
from rfnlib.sam import (
    SAM,
    Base,
    Gradient,
    MinimizerError,
    Parameters,
    Rho,
    constant,
    need,
    number,
    proportional_to_lr,
    warmup,
    whole,
)
from rfnlib.vectors import Tensors, copies, copy_all, norm, orthogonal, scaled_to

__all__ = [
    "AGSAM",
    "ASAM",
    "GAM",
    "GNP",
    "GSAM",
    "METHODS",
    "RFN",
    "SAM",
    "SWA",
    "WASAM",
    "LookSAM",
    "MinimizerError",
    "Noise",
    "constant",
    "method",
    "proportional_to_lr",
    "register",
    "update_batchnorm",
    "warmup",
]


def RFN(params: Parameters, base: Base = SGD, rho: Rho = 0.2, **options: Any) -> SAM:
    """SAM in a large neighbourhood (Gubri et al. 2023), called l-SAM in the second version of the paper.

    The paper's ρ could not be verified. The default, four times SAM's, is the middle of the range that is swept here
    (0.05 to 0.4), and small networks stand it from the first step on. Larger ones hold some of them where they
    started: of two perceptrons and two small convolutional networks on digits 0.5 held both perceptrons, and none with
    a `warmup` over a quarter of the training. So sweep ρ, give a large one a warm-up, and see `SAM.stalled`. The
    large variants of the others are `GSAM(model, rho=0.2)` and so on.
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
        self.eta = number("eta", eta)
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
        self.alpha = number("alpha", alpha)

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
        self.alpha = number("alpha", alpha)

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
        self.k, self.alpha = whole("k", k, 1), number("alpha", alpha)

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
        need(len(betas) == 3, f"betas are {betas!r}; give three numbers, for g1, g2 and g3.")
        self.betas = [number("a beta", b) for b in betas]
        self.probe, self.gamma = number("probe", probe), number("gamma", gamma)

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
        self.start, self.every = whole("start", start, 0), whole("every", every, 1)

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
        need(n > 0, f"after {self.steps} steps no weights are averaged; averaging starts after step {self.start}.")
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


class Noise(SAM):
    """SAM with a random direction in the place of the gradient's: what a perturbation as large does without sharpness.

    d = ∇L(w + ρu),  u uniform on the unit sphere of all weights, another one at every step.

    It is SAM's control: the same steps, passes and BatchNorm statistics (of the first pass, at w), and ε as long, only
    not towards what is sharp. SmoothOut (Wen et al. 2018) draws from a cube, and takes the first pass at w + ε.
    u is drawn from a stream of its own, by `seed` and the step's number, so that a resumed run draws the same.
    """

    draws = True

    def __init__(self, params: Parameters, base: Base = SGD, rho: Rho = 0.05, *, seed: int = 0, **options: Any):
        super().__init__(params, base, rho, **options)
        self.seed = whole("seed", seed, 0)

    def ascent(self, params: Tensors, g: Tensors, rho: float) -> Tensors:
        drawn = torch.Generator()  # the processor's, so that u is the same on every device
        drawn.manual_seed(keys.stream(self.seed, "noise", self.steps))
        return scaled_to(rho, [torch.randn(p.shape, generator=drawn, dtype=p.dtype).to(p.device) for p in params])


# --- methods by name ------------------------------------------------------------------------------------

KNOWN = (SAM, ASAM, GSAM, AGSAM, GNP, LookSAM, GAM, Noise, WASAM, SWA)
METHODS: dict[str, type[SAM]] = {c.__name__: c for c in KNOWN}


def register(name: str, method: type[SAM]) -> None:
    """Let specs call `method` by `name`: with it `specs.Minimizer(name, rho)` trains as with those built in.

    Args:
        name: an identifier that is free in `METHODS`.
        method: a subclass of `SAM`. It states its own `passes_per_step` where that is not 2.

    Raises:
        MinimizerError: no identifier, no subclass of `SAM`, or a name that is taken, as RFN is by SAM.
    """
    need(isinstance(name, str) and name.isidentifier(), f"name is {name!r}; give an identifier.")
    fine = isinstance(method, type) and issubclass(method, SAM)
    need(fine, f"method is {method!r}; give a subclass of SAM.")
    need(name.upper() != "RFN", "RFN is SAM with a large rho; give another name.")
    need(METHODS.get(name, method) is method, f"{name} is {METHODS.get(name)} already; give another name.")
    METHODS[name] = method


def method(name: str) -> type[SAM]:
    """The minimizer called `name` in `METHODS`.

    Raises:
        MinimizerError: there is none.
    """
    way_out = f"give one of {', '.join(METHODS)}, or `register` it{meant(name, METHODS)}"
    need(name in METHODS, f"method is {name!r}; {way_out}.")
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
        need(not empty, "there are no batches; give some, or an iterator that is not used up.")
    except BaseException:
        put_back(old)
        raise
    finally:
        for m, mode in modes:
            m.training = mode
        for m, momentum in zip(layers, momenta, strict=True):
            m.momentum = momentum
