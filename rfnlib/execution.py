"""How something is computed: device, precision, memory layout, compiler. Never *what*.

>>> how = resolve("cpu", compile=False)
>>> how.device, how.precision, how.compile
('cpu', 'fp32', False)

`resolve` turns what a user asks for into an `Execution`; `choose` then settles by measurement whether a network is
worth compiling, where the user left that to us; `Execution.place` puts the network where it belongs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rfnlib import paths
from rfnlib.checks import require
from rfnlib.files import DiskFull, write_atomic

GRAPHS = 4096
"""Graphs that torch may compile of one piece of code in a process. Past its own limit of 8 it compiles nothing more,
and says so only in a log."""

WORTH_MEASURING = 50_000
"""Images through the network below which nothing is measured, so that short work begins at once."""

SECONDS_TO_COMPILE = {"cpu": 30.0, "cuda": 60.0}
MOST_SAVED = {"cpu": 0.3, "cuda": 0.6}
"""What a graph takes, about, and the largest share of the time that compiling is likely to save: work that is over
before this could repay itself is not compiled even to measure. (Seen on a CPU; of a GPU an assumption.)"""

TF32 = True
"""On CUDA fp32 multiplies in TF32: 10 bits of mantissa, where bf16 has 7. `full_precision` goes without."""

ROUNDS = 5


@dataclass(frozen=True)
class Execution:
    """A resolved choice of device, precision, compiler and layout.

    Attributes:
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" under autocast.
        compile: whether networks go through `torch.compile`; None where `choose` has yet to find out (till then: no).
        channels_last: memory layout of images and convolutions.
        graphs: what has been compiled so far, the number of operations of each graph.
    """

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool | None = False
    channels_last: bool = True
    graphs: list[int] = field(default_factory=list, compare=False, repr=False)

    def autocast(self) -> AbstractContextManager:
        """bf16 autocast, or nothing: weights and gradients stay fp32 either way."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """`model` on the device, in the memory layout; on CUDA, torch is set up first: see `set_up_cuda`."""
        if self.device == "cuda":
            set_up_cuda()
        return model.to(self.device, memory_format=self.layout)

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of images and convolutions, as torch calls it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def compiled(self, model: nn.Module) -> nn.Module:
        """`model` through `torch.compile`, or as it is. Parameters are shared with `model`.

        Each shape of the images gets a graph of its own, for symbolic shapes are slower and would hold for all that
        comes later. CPU kernels are compiled for the number of threads, which torch 2.11 leaves out of its cache's key
        (pytorch #160812): here it is a part of it. `graphs` tells what was compiled.
        """
        if not self.compile:
            return model
        import torch._dynamo  # takes a second, for those who need it
        from torch._inductor import compile_fx

        for limit in ("recompile_limit", "accumulated_recompile_limit"):
            setattr(torch._dynamo.config, limit, max(GRAPHS, getattr(torch._dynamo.config, limit)))

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
            operations = len(graph.graph.nodes)
            made = compile_fx.compile_fx(graph, inputs, config_patches={"cpp.threads": torch.get_num_threads()})
            self.graphs.append(operations)
            return made

        return torch.compile(model, dynamic=False, backend=backend)

    def describe(self) -> dict[str, Any]:
        """What a record says of the machine: enough to judge the last bits, nothing that names it.

        `compile` is what happened, not what was asked for: whether anything was compiled so far.
        """
        name = torch.cuda.get_device_name() if self.device == "cuda" else cpu_name()
        # Where oneDNN may use no newer instructions than these, other processors give the same bits.
        limit = {k: os.environ[v] for k, v in (("isa", "ONEDNN_MAX_CPU_ISA"),) if v in os.environ}
        if self.device == "cuda":
            limit |= {"tf32": TF32, "deterministic": deterministic()}
        about = {"device": self.device, "precision": self.precision, "compile": bool(self.graphs)}
        return {**about, "channels_last": self.channels_last, "hardware": name, "threads": torch.get_num_threads(),
                **limit, "torch": torch.__version__, "python": platform.python_version()}  # fmt: skip


def resolve(
    device: str = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    channels_last: bool | str = "auto",
) -> Execution:
    """Turn `"auto"`s into choices, but for compiling, which depends on the network: see `choose`.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        precision: "auto" (bf16 where the hardware multiplies it natively; elsewhere it is emulated
            and several times slower than fp32), "fp32" or "bf16".
        compile: "auto" (what `choose` finds faster; no, where no compiler is found), True or False.
        channels_last: "auto" (yes), True or False.

    Raises:
        ValueError: a value that is not allowed, or CUDA asked for where there is none.
    """
    for name, value, allowed in (
        ("device", device, ("auto", "cpu", "cuda")),
        ("precision", precision, ("auto", "fp32", "bf16")),
        ("compile", compile, ("auto", True, False)),
        ("channels_last", channels_last, ("auto", True, False)),
    ):
        if value not in allowed:
            which = "; CUDA_VISIBLE_DEVICES says which GPU" if str(value).startswith("cuda:") else ""
            raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(repr, allowed))}{which}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no CUDA device here; give 'cpu' or 'auto'.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    if compile == "auto":
        compile = None if can_compile(device) else False
    elif compile and not can_compile(device):
        raise ValueError(
            "compile is True, but no C++ compiler (g++, clang++) is on the PATH; install one or give False."
        )
    return Execution(device, precision, compile, channels_last in ("auto", True))


# --- torch's own settings ---------------------------------------------------------------------------


def deterministic() -> bool:
    """Whether a GPU must give the same bits every time, which resuming to the bit needs: `RFN_DETERMINISTIC`, else yes.

    Raises:
        ValueError: the variable is neither "0" nor "1".
    """
    told = os.environ.get("RFN_DETERMINISTIC") or "1"
    require(told in ("0", "1"), f"RFN_DETERMINISTIC is {told!r}; give 1, or 0 for speed at the price of the last bits.")
    return told == "1"


def set_up_cuda() -> None:
    """Set torch's switches of the whole process for CUDA, all of them here.

    Where bits need not repeat, cuDNN times its algorithms for each shape and takes the fastest. Where they must, what
    has no such kernel warns.
    """
    same = deterministic()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS promises no bits
    torch.set_float32_matmul_precision("high" if TF32 else "highest")
    torch.backends.cudnn.allow_tf32 = TF32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = same, not same
    torch.use_deterministic_algorithms(same, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # else every new tensor is written twice


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """fp32 that is fp32 for the time of the block: neither autocast nor, on CUDA, TF32; then all as it was."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # cuDNN's convolutions are TF32 unless told otherwise
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


# --- whether to compile -----------------------------------------------------------------------------


def choose(how: Execution, model: nn.Module, images: Tensor, work: int, cache: Path | None = None) -> Execution:
    """`how` with `compile` settled: whether `model` is faster compiled, for as much work as there is.

    With t seconds a batch eager, t′ compiled and c to compile, and n = `work` / batch: compile if n (t − t′) > c. All
    three are measured on a copy of the model, once for each architecture, shape and number of images, device,
    precision, layout and number of threads, and then remembered on disk, so that a resumed run makes the same choice.
    Work that could not repay half a minute of compiling decides without compiling, and short work without measuring.

    Args:
        how: from `resolve`; one whose `compile` is settled is returned as it is.
        model: on the device, in the mode (train or eval) of the work. Where its weights require a gradient the
            gradient by the weights is timed, else the one by the images. Left as found.
        images: a batch as the work will have it, float (B, C, H, W) on the device, in its layout.
        work: images that will go forward and backward through the network in all.
        cache: the folder in which speeds are remembered; None: the project's cache.

    Returns:
        `how` with `compile` True or False.
    """
    if how.compile is not None:
        return how
    if work < WORTH_MEASURING:
        return replace(how, compile=False)
    path = (cache or paths.cache_dir()) / "speeds" / f"{_key(how, model, images)}.json"
    found, batches = _remembered(path), work / len(images)
    if "eager" not in found:
        found = _remember(path, {"eager": min(_seconds(_step(how, model, images), ROUNDS, _clock(how)))})
    if batches * found["eager"] * MOST_SAVED[how.device] < SECONDS_TO_COMPILE[how.device]:
        return replace(how, compile=False)
    if "compiled" not in found:
        found = _remember(path, speeds(how, model, images))
    saved = batches * (found["eager"] - found["compiled"])
    return replace(how, compile=saved > found["compiling"])


def speeds(how: Execution, model: nn.Module, images: Tensor) -> dict[str, float]:
    """Seconds a batch, `eager` and `compiled`, measured turn by turn; and those that `compiling` took.

    Args:
        how, model, images: as in `choose`.
    """
    plain = _step(replace(how, compile=False), model, images)
    fast = _step(replace(how, compile=True, graphs=[]), model, images)
    try:
        (compiling,) = _seconds(fast, 1, time.perf_counter)
    except RuntimeError:  # torch's compiler has no common error; whatever it was, eager code works
        return {"eager": min(_seconds(plain, ROUNDS, _clock(how))), "compiled": float("inf"), "compiling": 0.0}
    turns = [(*_seconds(plain, 1, _clock(how)), *_seconds(fast, 1, _clock(how))) for _ in range(ROUNDS + 1)]
    eager, compiled = (min(taken) for taken in zip(*turns, strict=True))
    return {"eager": eager, "compiled": compiled, "compiling": compiling}


def _step(how: Execution, model: nn.Module, images: Tensor) -> Callable[[], None]:
    """A forward-backward pass through a copy of `model`, done when the device has done it."""
    own = copy.deepcopy(model)
    weights = [p for p in own.parameters() if p.requires_grad]
    x = images.detach().clone(memory_format=torch.preserve_format).requires_grad_(not weights)
    forward, gpu = how.compiled(own), [images.device] if how.device == "cuda" else []

    def step() -> None:
        with torch.random.fork_rng(gpu), torch.enable_grad():
            with how.autocast():
                out = forward(x)
            torch.autograd.grad(out.float().logsumexp(-1).sum(), weights or [x], allow_unused=True)
        if how.device == "cuda":
            torch.cuda.synchronize()

    return step


def _clock(how: Execution) -> Callable[[], float]:
    """Seconds: a CPU's are those that it spent on this process, a thread, so that other processes count little."""
    return time.perf_counter if how.device == "cuda" else lambda: time.process_time() / torch.get_num_threads()


def _seconds(step: Callable[[], None], times: int, clock: Callable[[], float]) -> list[float]:
    """What each of `times` steps takes. The least is the one to trust: other work on the machine only adds."""
    taken = []
    for _ in range(times):
        start = clock()
        step()
        taken.append(clock() - start)
    return taken


def _key(how: Execution, model: nn.Module, images: Tensor) -> str:
    """Names what a speed depends on. A module's text tells its architecture: all layers and their sizes."""
    weights = any(p.requires_grad for p in model.parameters())
    on = (how.device, how.precision, how.channels_last, torch.get_num_threads(), torch.__version__)
    name = torch.cuda.get_device_name() if how.device == "cuda" else cpu_name()
    about = (repr(model), model.training, weights, tuple(images.shape), *on, name)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _remembered(path: Path) -> dict[str, float]:
    """The speeds in a file; none where it is absent or damaged, for they can be measured again."""
    try:
        speeds = json.loads(path.read_text())
        fine = isinstance(speeds, dict) and all(isinstance(v, float) and v >= 0 for v in speeds.values())
    except (OSError, ValueError):
        return {}
    known = ({"eager"}, {"eager", "compiled", "compiling"})
    return speeds if fine and speeds.keys() in known else {}


def _remember(path: Path, speeds: dict[str, float]) -> dict[str, float]:
    try:
        write_atomic(path, json.dumps(speeds).encode())
    except (DiskFull, PermissionError):
        pass  # measured again next time
    return speeds


# --- what the machine has ---------------------------------------------------------------------------


def has_bf16(device: str) -> bool:
    """Whether `device` multiplies bf16 in hardware, and gains by it.

    On a CPU only AMX counts: with AVX512_BF16 alone, compiled bf16 training ran at 0.7 times the speed of fp32.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)


def can_compile(device: str) -> bool:
    """Whether torch.compile finds the compiler it needs."""
    if os.name == "nt" or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return False
    names = ("gcc", "clang", "cc") if device == "cuda" else ("g++", "clang++", "c++")
    return any(shutil.which(n) for n in (os.environ.get("CXX", ""), *names) if n)


def cpu_name() -> str:
    """The processor's kind, such as "x86_64 AVX512": enough to judge speed, too little to name a machine."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
