"""Speed as ratios taken within one run, turn by turn, each with its goal; memory and time as they grow.

Seconds are those of the processor, or on a GPU of the clock: ratios hold on a noisy machine, though a core that
others use as well has no cache of its own. Data are random and of the laptop scale's shape, but for the Hessian's:
that of a network which has learnt nothing has other eigenvalues. Without CIFAR-10 this part is left out.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib import data, execution, scales, training, transfer
from rfnlib.attacks import BIM, frozen
from rfnlib.execution import Execution
from rfnlib.folding import folded
from rfnlib.minimizers import METHODS, RFN, update_batchnorm
from rfnlib.sharpness import top_eigenvalue
from rfnlib.specs import Adversary, Step, TrainSpec

ROUNDS = 5
BATCHES = 10  # in an epoch of training
CYCLE = 5  # steps of a minimizer that are timed together: LookSAM's are not alike
TOLERANCES = [10 ** (-i / 2) for i in range(2, 14)]  # 0.1 to 3e-7

Say = Callable[[str], None]


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be reached.

    Attributes:
        name: what is compared with what.
        ratios: one a round; their median counts.
        goal: the number; `least`: whether it is the least allowed, or the most.
        limit: what stands in the way where it is not met.
    """

    name: str
    ratios: Sequence[float]
    goal: float
    least: bool
    limit: str

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        """Whether the median reaches the goal."""
        return self.ratio >= self.goal if self.least else self.ratio <= self.goal

    def __str__(self) -> str:
        verdict = "met"
        if not self.met:
            low, high = min(self.ratios), max(self.ratios)
            near = high >= self.goal if self.least else low <= self.goal
            busy = f"rounds ran from {low:.2f} to {high:.2f}: the machine is busy"
            verdict = f"not met, because {busy if near else self.limit}"
        return f"{self.name:52s} {self.ratio:6.2f}   goal {'≥' if self.least else '≤'} {self.goal:.2f}   {verdict}"


def bench(device: str = "auto", say: Say = print) -> list[Goal]:
    """Print each goal as it is measured, then memory, then how time grows. Takes a few minutes on one core.

    Args:
        device: see `execution.resolve`.
        say: takes a line.
    """
    say(f"{execution.resolve(device).describe()}\n")
    goals = [goal for part in (trained, crafted, stepped, curvature) for goal in part(device, say)]
    compiling(device, say)
    memory(device, say)
    growth(device, say)
    say(f"\n{sum(goal.met for goal in goals)} of {len(goals)} goals met")
    return goals


def trained(device: str, say: Say) -> list[Goal]:
    """`train(spec)` against a bare loop: forward, backward and step on one batch, without data, schedule, snapshots."""
    goals = []
    adversary = Adversary("l2", 0.5, steps=7)
    why = "augmentation, the schedule and a snapshot an epoch take the rest"
    with_pgd = "BatchNorm's second mode, random starts and their projection take the rest"
    for stem, trains, goal, limit in ((2, None, 0.95, why), (1, None, 0.95, why), (2, adversary, 0.9, with_pgd)):
        batches = BATCHES if trains is None else 2
        dataset = _random_data(batches * scales.LAPTOP.batch)
        spec = replace(_spec(ROUNDS + 1, len(dataset.train_labels)), stem=stem, adversary=trains)
        how = execution.resolve(device, compile=False)
        with tempfile.TemporaryDirectory() as folder:
            options = {"cache": Path(folder), "device": device, "compile": False, "progress": False}
            loops = {"train": training.train(spec, dataset=dataset, **options), "bare": _bare(spec, dataset, how)}
            rounds = _turns({name: (lambda loop=loop: next(loop)) for name, loop in loops.items()}, how)
            for loop in loops.values():
                loop.close()
        speed = len(dataset.train_labels) / statistics.median(t["train"] for t in rounds)
        name = f"training{' by PGD-7' if trains else ''}, stem {stem}, against the bare loop"
        goals.append(Goal(name, [t["bare"] / t["train"] for t in rounds], goal, True, limit))
        say(f"{goals[-1]}   ({speed:.0f} images/s)")
    return goals


def _bare(spec: TrainSpec, dataset: data.Dataset, how: Execution) -> Iterator[None]:
    model = how.place(training.network(spec, dataset)).train()
    optimizer, adversary = _sgd(model, spec), spec.adversary
    x = torch.rand(spec.batch, *dataset.image_shape, device=how.device).contiguous(memory_format=how.layout)
    y = torch.randint(dataset.n_classes, (spec.batch,), device=how.device)
    while True:
        for _ in range(len(dataset.train_labels) // spec.batch):
            seen = x
            if adversary:
                model.eval()
                seen = _bare_attack(model, x, y, adversary.eps, adversary.step_size, adversary.steps)
                model.train()
            optimizer.zero_grad()
            with how.autocast():
                logits = model(seen)
            F.cross_entropy(logits.float(), y).backward()
            optimizer.step()
        yield


def crafted(device: str, say: Say, stems: Sequence[int] = (2, 1), n: int = 128, steps: int = 10) -> list[Goal]:
    """`BIM` against that of others and against bare loops, on the laptop scale's surrogate.

    "bare" asks for the gradient of the images alone, takes its sign and clips; "folded" does so on a network whose
    batch norms are folded. The network is laid out as torch does by default. torchattack and torchattacks are
    measured where installed.
    """
    how, goals, dataset = execution.resolve(device), [], _random_data(n)
    x, y = data.to_float(dataset.train_images).to(how.device), dataset.train_labels.to(how.device)
    eps, step = 4 / 255, 4 / 2550
    for stem in stems:
        spec = replace(_spec(1, n), stem=stem)
        model = training.network(spec, dataset).to(how.device)
        # With BatchNorm's numbers as drawn, logits are so large that gradients are denormal, which takes its own time.
        update_batchnorm(model, [x])
        # Attacks of others compute weight gradients unless told not to: what they are given asks for none.
        model.eval().requires_grad_(False)
        runs = {
            "BIM": lambda model=model: BIM(eps, step=step, steps=steps)(model, x, y),
            "bare": lambda model=model: _bare_attack(model, x, y, eps, step, steps),
            "folded": lambda model=model: _bare_attack(model, x, y, eps, step, steps, folds=True),
        }
        with contextlib.suppress(ImportError):
            options = {"eps": eps, "alpha": step, "steps": steps, "random_start": False}
            theirs = importlib.import_module("torchattack").PGD(model, device=torch.device(how.device), **options)
            runs["torchattack"] = lambda theirs=theirs: theirs(x, y)
        with contextlib.suppress(ImportError):
            others = importlib.import_module("torchattacks").PGD(model, eps, step, steps, random_start=False)
            runs["torchattacks"] = lambda others=others: others(x, y)
        rounds = _turns(runs, how)
        speed = n * steps / statistics.median(t["BIM"] for t in rounds)
        said = f"   ({speed:.0f} image-steps/s)"
        limits = {
            "folded": (0.9, "folding once a call, projecting and checking that gradients are finite take the rest"),
            "torchattack": (1.4, "what is folded away, the batch norms, is less of the time here"),
        }
        limits["torchattacks"] = limits["torchattack"]
        for name, (goal, limit) in limits.items():
            if name in runs:
                ratios = [t[name] / t["BIM"] for t in rounds]
                goals.append(Goal(f"BIM, stem {stem}, against {name}", ratios, goal, True, limit))
                say(f"{goals[-1]}{said}")
                said = ""
    return goals


def _bare_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, folds: bool = False):
    adv = x
    with frozen([model]), folded([model] if folds else [], x):
        for _ in range(steps):
            adv = adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y, reduction="sum"), adv)
            adv = torch.clamp(adv.detach() + step * gradient.sign(), x - eps, x + eps).clamp_(0, 1)
    return adv


def stepped(device: str, say: Say) -> list[Goal]:
    """A step of each minimizer against one of SGD on the same batch; the goal is SAM's, the others are told."""
    how = execution.resolve(device)
    dataset = _random_data(scales.LAPTOP.batch)
    spec = _spec(1, len(dataset.train_labels))
    images = data.to_float(dataset.train_images).to(how.device).contiguous(memory_format=how.layout)
    labels, passes = dataset.train_labels.to(how.device), {}

    def steps(name: str, method: Callable | None) -> Callable[[], None]:
        model = how.place(training.network(spec, dataset)).train()
        optimizer = _sgd(model, spec)
        optimizer = method(model, optimizer) if method else optimizer

        def closure() -> Tensor:
            passes[name] += 1
            optimizer.zero_grad()
            with how.autocast():
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            return loss

        def cycle() -> None:
            passes[name] = 0
            for _ in range(CYCLE):
                optimizer.step(closure)

        return cycle

    rounds = _turns({name: steps(name, m) for name, m in {"SGD": None, "RFN": RFN, **METHODS}.items()}, how)
    told = {name: statistics.median(t[name] / t["SGD"] for t in rounds) for name in rounds[0]}
    limit = "copies of weights and buffers, and the norm of the gradient, are more than a twentieth of a pass"
    goal = Goal("a step of SAM against one of SGD", [t["SAM"] / t["SGD"] for t in rounds], 2.1, False, limit)
    say(f"{goal}")
    say("  of each, and its passes: " + ", ".join(f"{m} {r:.2f} ({passes[m] / CYCLE:g})" for m, r in told.items()))
    return [goal]


def curvature(
    device: str, say: Say, dataset: data.Dataset | None = None, epochs: int = 3, within: float = 1e-3, seeds: int = 3
) -> list[Goal]:
    """Seconds to λ₁ of the Hessian to a relative error, ours over PyHessian's, each at the loosest tolerance that does.

    Network and images are the laptop scale's: its surrogate after `epochs`, the images its sharpness is measured on.
    Tolerances are no common measure: ours bounds the error, PyHessian's the change from one iteration to the next.
    Both keep the graph of the batch. One round a starting vector.
    """
    how, spec, n = execution.resolve(device), _spec(epochs, scales.LAPTOP.n_train), scales.LAPTOP.sharpness.images
    try:
        import pyhessian

        dataset = dataset or data.load(spec.data).subset(spec.n_train)
    except ImportError:
        say("λ₁: PyHessian, which ours is compared with, is not installed (pip install 'rfnlib[test]')")
        return []
    except data.DataError as missing:
        say(f"λ₁ is that of a trained network: {missing}")
        return []
    with tempfile.TemporaryDirectory() as folder:
        options = {"cache": Path(folder), "device": device, "compile": False, "progress": False}
        (last,) = training.train(spec, [epochs], dataset=dataset, **options)
        model = how.place(last.load_into(training.network(spec, dataset)))
    batch = data.to_float(dataset.train_images[:n]).to(how.device), dataset.train_labels[:n].to(how.device)

    def ours(tol: float, seed: int) -> float:
        return top_eigenvalue(model, [batch], tol=tol, keep_graph=True, seed=seed).value

    def theirs(tol: float, seed: int) -> float:
        torch.manual_seed(seed)
        found = pyhessian.hessian(model, F.cross_entropy, data=batch, cuda=how.device == "cuda")
        value = found.eigenvalues(maxIter=1000, tol=tol)[0][0]
        model.zero_grad()  # PyHessian leaves the graph in a cycle with it
        return value

    exact = ours(TOLERANCES[-1], seeds)

    def seconds(method: Callable[[float, int], float], seed: int) -> float:
        """To come within the error."""
        for tol in TOLERANCES:
            found: list[float] = []
            taken = _seconds(lambda tol=tol, found=found: found.append(method(tol, seed)), how)
            if abs(found[0] / exact - 1) <= within:
                return taken
        return float("nan")

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")  # theirs, and true: see above
        taken = [(seconds(ours, seed), seconds(theirs, seed)) for seed in range(seeds)]
    name = f"λ₁ of {n} images to {within:g}, against PyHessian"
    limit = "the second eigenvalue is far below the first, and power iteration as good as Lanczos"
    goal = Goal(name, [mine / other for mine, other in taken], 1 / 3, False, limit)
    say(f"{goal}   ({statistics.median(mine for mine, _ in taken):.2f} s)")
    return [goal]


def compiling(device: str, say: Say) -> dict[str, float]:
    """A step eager and compiled, and what `auto` makes of it for a run of the laptop scale."""
    how, batch = execution.resolve(device), scales.LAPTOP.batch
    if how.compile is False:
        say("\neager against compiled: no compiler is found")
        return {}
    dataset = _random_data(batch)
    spec = _spec(scales.LAPTOP.epochs, scales.LAPTOP.n_train)
    model = how.place(training.network(spec, dataset)).train()
    images = data.to_float(dataset.train_images).to(how.device).contiguous(memory_format=how.layout)
    work = spec.epochs * (spec.n_train or 50_000)
    with tempfile.TemporaryDirectory() as folder:
        chosen = execution.choose(how, model, images, work, Path(folder)).compile
    found = execution.speeds(how, model, images)
    said = f"{batch / found['eager']:.0f} images/s, compiled {batch / found['compiled']:.0f}"
    say(f"\neager {said} after {found['compiling']:.0f} s: auto {'compiles' if chosen else 'does not compile'}")
    return found


def memory(device: str, say: Say) -> dict[int, float]:
    """Resident memory after more and more epochs, each with a snapshot: flat, if nothing is kept."""
    dataset = _random_data(scales.LAPTOP.batch)
    spec, found = _spec(64, len(dataset.train_labels)), {}
    with tempfile.TemporaryDirectory() as folder:
        options = {"cache": Path(folder), "device": device, "compile": False, "progress": False}
        for snapshot in training.train(spec, dataset=dataset, **options):
            if snapshot.epoch in (16, 32, 64):
                gc.collect()
                found[int(snapshot.epoch)] = _resident_mb()
    say("memory after " + ", ".join(f"{e} epochs {mb:.0f} MB" for e, mb in found.items()))
    return found


def growth(device: str, say: Say) -> dict[str, float]:
    """The time for twice the work over the time for the work; 2 is linear, less has a fixed part."""
    how, dataset = execution.resolve(device), _random_data(256)
    model = how.place(training.network(_spec(1, 256), dataset))
    x, y = data.to_float(dataset.train_images).to(how.device), dataset.train_labels.to(how.device)

    def epochs(n: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = {"cache": Path(folder), "device": device, "compile": False, "progress": False}
            list(training.train(_spec(n, 256), [n], dataset=dataset, **options))

    work = {
        "training epochs": (epochs, 2),
        "attacked images": (lambda n: BIM(steps=5)(model, x[:n], y[:n], batch_size=64), 128),
        "attack steps": (lambda n: BIM(steps=n)(model, x[:64], y[:64]), 10),
        "targets": (lambda n: [transfer.predict(model, x) for _ in range(n)], 4),
    }
    found = {}
    for name, (task, n) in work.items():
        rounds = _turns({"once": lambda t=task, n=n: t(n), "twice": lambda t=task, n=n: t(2 * n)}, how)
        found[name] = statistics.median(t["twice"] / t["once"] for t in rounds)
    say("time for twice as many " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()))
    return found


def _turns(runs: dict[str, Callable[[], object]], how: Execution) -> list[dict[str, float]]:
    """Seconds of each, turn by turn, in each round; a first one warms up."""
    rounds = [{name: _seconds(run, how) for name, run in runs.items()} for _ in range(ROUNDS + 1)]
    return rounds[1:]


def _seconds(run: Callable[[], object], how: Execution) -> float:
    clock = time.perf_counter if how.device == "cuda" else time.process_time
    start = clock()
    run()
    if how.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _spec(epochs: int, n_train: int | None) -> TrainSpec:
    scale, arch = scales.LAPTOP, scales.LAPTOP.surrogates[0]
    size = {"width": arch.width, "stem": arch.stem, "batch": scale.batch}
    return TrainSpec("cifar10", arch.name, Step(scale.lr), epochs, n_train=n_train, **size)


def _sgd(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    options = {"momentum": spec.momentum, "weight_decay": spec.weight_decay, "fused": True}
    return torch.optim.SGD(model.parameters(), lr=spec.schedule.lr, **options)


def _random_data(n: int) -> data.Dataset:
    """`n` training images of CIFAR-10's shape, under its name."""
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    labels = torch.randint(10, (n,), generator=drawn)
    some = (images, labels, images[:10], labels[:10])
    return data.Dataset("cifar10", *some, (0.5,) * 3, (0.25,) * 3, "", tuple("0123456789"))


def _resident_mb() -> float:
    """Resident memory of this process now; where the system does not tell, its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    import resource  # absent on Windows, which has neither

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
