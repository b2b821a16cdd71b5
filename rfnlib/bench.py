"""Speed as ratios taken within one run, which hold on a noisy machine; memory and time as they grow.

Data are random and of the laptop scale's shape, but for the Hessian's: that of a network which has learnt nothing has
other eigenvalues. Without CIFAR-10 this part is left out.
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
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from rfnlib import data, execution, scales, training, transfer
from rfnlib.attacks import BIM, frozen
from rfnlib.folding import folded
from rfnlib.minimizers import AGSAM, ASAM, GAM, GNP, GSAM, RFN, SAM, SWA, WASAM, LookSAM, update_batchnorm
from rfnlib.sharpness import top_eigenvalue
from rfnlib.specs import Step, TrainSpec

ROUNDS = 5
TOLERANCES = [10 ** (-i / 2) for i in range(2, 14)]  # 0.1 to 3e-7


def bench(device: str = "auto", say: Callable[[str], None] = print) -> None:
    """Print training throughput, minimizers and Hessians against yardsticks, then memory, then how time grows."""
    say(f"{execution.resolve(device).describe()}\n")
    throughput(device, say)
    minimizers(device, say)
    attacking(device, say)
    hessian(device, say)
    memory(device, say)
    growth(device, say)


def throughput(device: str, say: Callable[[str], None]) -> dict[str, float]:
    """Images a second of `train` at the laptop scale, and of loops to compare it with, turn by turn.

    "bare" is a compiled forward-backward-step loop on one fixed batch of random tensors: no data, no
    augmentation, no schedule, no snapshots. "DataLoader" is what a tutorial does: eager fp32,
    torchvision transforms on PIL images, two workers.
    """
    scale = scales.LAPTOP
    dataset = _random_data(20 * scale.batch)
    spec = _spec(epochs=ROUNDS + 1, n_train=len(dataset.train_labels))
    auto = execution.resolve(device, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        run = training.train(
            spec,
            dataset=dataset,
            cache=Path(folder),
            device=device,
            compile=auto.compile,
            progress=False,
        )
        loops: dict[str, Iterator] = {
            "train(spec)": run,
            f"bare, compiled {auto.precision}": _bare(spec, dataset, auto),
            "eager fp32 DataLoader": _loader(spec, dataset, execution.Execution(auto.device, channels_last=False)),
        }
        if auto.precision != "bf16":
            slow = execution.Execution(auto.device, "bf16", auto.compile)
            loops["bare, compiled bf16"] = _bare(spec, dataset, slow)
        for loop in loops.values():
            next(loop)  # compiles
        taken: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(ROUNDS):
            for name, loop in loops.items():
                start = time.perf_counter()
                next(loop)
                _wait(auto.device)
                taken[name].append(time.perf_counter() - start)
        for loop in loops.values():
            loop.close()
    speed = {name: len(dataset.train_labels) / statistics.median(times) for name, times in taken.items()}
    for name, rate in speed.items():
        ratio = statistics.median(t / own for t, own in zip(taken[name], taken["train(spec)"], strict=True))
        say(f"{name:32s} {rate:8.0f} images/s   train(spec) is {ratio:.2f} of it")
    return speed


def _bare(spec: TrainSpec, dataset: data.Dataset, how: execution.Execution) -> Iterator[None]:
    model = how.place(training.network(spec, dataset)).train()
    forward, optimizer = how.compiled(model), _sgd(model, spec)
    x = torch.rand(spec.batch, *dataset.image_shape, device=how.device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(dataset.n_classes, (spec.batch,), device=how.device)
    while True:
        for _ in range(len(dataset.train_labels) // spec.batch):
            optimizer.zero_grad()
            with how.autocast():
                logits = forward(x)
            F.cross_entropy(logits.float(), y).backward()
            optimizer.step()
        yield


class _Pictures(torch.utils.data.Dataset):
    def __init__(self, dataset: data.Dataset):
        self.images = [to_pil_image(i) for i in dataset.train_images]
        self.labels = dataset.train_labels
        steps = [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[i]), self.labels[i]


def _loader(spec: TrainSpec, dataset: data.Dataset, how: execution.Execution) -> Iterator[None]:
    model = how.place(training.network(spec, dataset)).train()
    optimizer = _sgd(model, spec, fused=False)
    loader = torch.utils.data.DataLoader(
        _Pictures(dataset),
        spec.batch,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(how.device)), y.to(how.device)).backward()
            optimizer.step()
        yield


def minimizers(device: str, say: Callable[[str], None]) -> dict[str, float]:
    """The time of a step of each minimizer over that of plain SGD on the same batch, turn by turn."""
    how = execution.resolve(device)
    dataset = _random_data(scales.LAPTOP.batch)
    spec = _spec(epochs=1, n_train=len(dataset.train_labels))
    images = data.to_float(dataset.train_images).to(how.device)
    labels = dataset.train_labels.to(how.device)

    def turns(method: Callable | None) -> Iterator[tuple[float, float]]:
        """Seconds and passes a step."""
        model = how.place(training.network(spec, dataset)).train()
        optimizer = _sgd(model, spec)
        if method:
            optimizer = method(model, optimizer)
        passes = 0

        def closure() -> torch.Tensor:
            nonlocal passes
            passes += 1
            optimizer.zero_grad()
            with how.autocast():
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            return loss

        steps = getattr(optimizer, "k", 1)  # LookSAM's are not alike: a whole cycle
        while True:
            passes, start = 0, time.perf_counter()
            for _ in range(steps):
                optimizer.step(closure)
            _wait(how.device)
            yield (time.perf_counter() - start) / steps, passes / steps

    methods = (None, SAM, RFN, ASAM, GSAM, AGSAM, GNP, LookSAM, GAM, WASAM, SWA)
    runs = {method.__name__ if method else "SGD": turns(method) for method in methods}
    cost = {name: next(run)[1] for name, run in runs.items()}  # and all is warm
    rounds = [{name: next(run)[0] for name, run in runs.items()} for _ in range(ROUNDS)]
    found = {name: statistics.median(taken[name] / taken["SGD"] for taken in rounds) for name in runs}
    say("\ntime of a step over SGD's (passes): " + ", ".join(f"{m} {r:.2f} ({cost[m]:g})" for m, r in found.items()))
    return found


def attacking(device: str, say: Callable[[str], None], stems: Sequence[int] = (1, 2), n: int = 128,
              steps: int = 50) -> dict[int, dict[str, float]]:  # fmt: skip
    """How many times as fast `BIM` is as others' and as bare loops, for the laptop scale's surrogate, turn by turn.

    "bare" asks for the gradient of the images alone, takes its sign and clips; "folded" does so on a network whose
    batch norms are folded. The network is laid out as torch does by default. torchattack and torchattacks are
    measured where installed, in seconds of the processor or, on a GPU, of the clock.
    """
    how, clock = execution.resolve(device), time.process_time
    if how.device == "cuda":
        clock = time.perf_counter
    dataset, found = _random_data(n), {}
    x, y = data.to_float(dataset.train_images).to(how.device), dataset.train_labels.to(how.device)
    eps, step = 4 / 255, 4 / 2550
    for stem in stems:
        spec = replace(_spec(epochs=1, n_train=n), stem=stem)
        model = training.network(spec, dataset).to(how.device)
        # With BatchNorm's numbers as drawn, logits are so large that gradients are denormal, which takes its own time.
        update_batchnorm(model, [x])
        # Attacks of others compute weight gradients unless told not to: what they are given asks for none.
        model.eval().requires_grad_(False)
        runs = {
            "BIM": lambda model=model: BIM(eps, steps=steps)(model, x, y),
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
        rounds = []
        for _ in range(ROUNDS + 1):  # the first warms up
            taken = {}
            for name, run in runs.items():
                _wait(how.device)
                start = clock()
                run()
                _wait(how.device)
                taken[name] = clock() - start
            rounds.append(taken)
        found[stem] = {name: statistics.median(t[name] / t["BIM"] for t in rounds[1:]) for name in runs}
        speed = n * steps / statistics.median(t["BIM"] for t in rounds[1:])
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found[stem].items() if name != "BIM")
        say(f"\nBIM, stem {stem}: {speed:.0f} image-steps/s; as many times as fast as {ratios}")
    return found


def _bare_attack(model, x, y, eps, step, steps, folds: bool = False) -> torch.Tensor:
    adv = x
    with frozen([model]), folded([model] if folds else [], x):
        for _ in range(steps):
            adv = adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y, reduction="sum"), adv)
            adv = torch.clamp(adv.detach() + step * gradient.sign(), x - eps, x + eps).clamp_(0, 1)
    return adv


def hessian(
    device: str, say: Callable[[str], None], dataset: data.Dataset | None = None, epochs: int = 3,
    within: Sequence[float] = (1e-3,),
) -> dict[float, float]:  # fmt: skip
    """Seconds to λ₁ of the Hessian to relative errors, ours over PyHessian's, each at the loosest tolerance that does.

    Network and images are the laptop scale's: its surrogate after `epochs`, the images its sharpness is measured on.
    Tolerances are no common measure: ours bounds the error, PyHessian's the change from one iteration to the next.
    Both keep the graph of the batch. Median over starting vectors.
    """
    scale = scales.LAPTOP
    how, spec, n = execution.resolve(device), _spec(epochs, scale.n_train), scale.sharpness.images
    try:
        import pyhessian

        dataset = dataset or data.load(spec.data).subset(spec.n_train)
    except ImportError:
        say("λ₁: PyHessian, which ours is compared with, is not installed (pip install 'rfnlib[test]')")
        return {}
    except data.DataError as missing:
        say(f"λ₁ is that of a trained network: {missing}")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        options = {"cache": Path(folder), "device": device, "progress": False}
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

    exact = ours(TOLERANCES[-1], ROUNDS)

    def seconds(method: Callable[[float, int], float], seed: int) -> list[float]:
        """To come `within` each of the errors."""
        found: dict[float, float] = {}
        for tol in TOLERANCES:
            start = time.perf_counter()
            error = abs(method(tol, seed) / exact - 1)
            taken = time.perf_counter() - start
            found |= {e: taken for e in within if error <= e and e not in found}
            if len(found) == len(within):
                break
        return [found.get(e, float("nan")) for e in within]

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")  # theirs, and true: see above
        taken = [(seconds(ours, seed), seconds(theirs, seed)) for seed in range(3)]
    ratios = {}
    for error, mine, other in zip(within, *np.median(taken, axis=0).tolist(), strict=True):
        ratios[error] = mine / other
        say(f"λ₁ of {n} images to {error:g}: {mine:.2f} s, PyHessian {other:.2f} s, ratio {ratios[error]:.2f}")
    return ratios


def memory(device: str, say: Callable[[str], None]) -> dict[int, float]:
    """Resident memory after more and more epochs, each with a snapshot: flat, if nothing is kept."""
    dataset = _random_data(scales.LAPTOP.batch)
    spec = _spec(epochs=64, n_train=len(dataset.train_labels))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run = training.train(spec, dataset=dataset, cache=Path(folder), device=device, compile=False, progress=False)
        for snapshot in run:
            if snapshot.epoch in (16, 32, 64):
                gc.collect()
                found[int(snapshot.epoch)] = _resident_mb()
    say("\nmemory after " + ", ".join(f"{e} epochs {mb:.0f} MB" for e, mb in found.items()))
    return found


def growth(device: str, say: Callable[[str], None]) -> dict[str, float]:
    """The time for twice the work over the time for the work; 2 is linear, less has a fixed part."""
    how = execution.resolve(device)
    dataset = _random_data(512)
    model = how.place(training.network(_spec(1, 512), dataset))
    images = data.to_float(dataset.train_images).to(how.device)
    labels = dataset.train_labels.to(how.device)

    def epochs(n: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            spec = _spec(epochs=n, n_train=512)
            options = {"cache": Path(folder), "device": device, "compile": False, "progress": False}
            list(training.train(spec, [n], dataset=dataset, **options))

    work = {
        "training epochs": (epochs, 2),
        "attacked images": (
            lambda n: BIM(steps=5)(model, images[:n], labels[:n], batch_size=128),
            256,
        ),
        "attack steps": (lambda n: BIM(steps=n)(model, images[:128], labels[:128]), 10),
        "targets": (lambda n: [transfer.predict(model, images) for _ in range(n)], 4),
    }
    found = {}
    for name, (task, n) in work.items():
        task(n)
        found[name] = statistics.median(_seconds(task, 2 * n, how) / _seconds(task, n, how) for _ in range(ROUNDS))
    say("time for twice as many " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()))
    return found


def _seconds(task: Callable[[int], object], n: int, how: execution.Execution) -> float:
    start = time.perf_counter()
    task(n)
    _wait(how.device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _spec(epochs: int, n_train: int) -> TrainSpec:
    scale, arch = scales.LAPTOP, scales.LAPTOP.surrogates[0]
    size = {"width": arch.width, "stem": arch.stem, "batch": scale.batch}
    return TrainSpec("cifar10", arch.name, Step(scale.lr), epochs, n_train=n_train, **size)


def _sgd(model: torch.nn.Module, spec: TrainSpec, fused: bool = True) -> torch.optim.Optimizer:
    options = {"momentum": spec.momentum, "weight_decay": spec.weight_decay, "fused": fused}
    return torch.optim.SGD(model.parameters(), lr=spec.schedule.lr, **options)


def _random_data(n: int) -> data.Dataset:
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    labels = torch.randint(10, (n,), generator=drawn)
    return data.Dataset(
        "random",
        images,
        labels,
        images[:10],
        labels[:10],
        (0.5,) * 3,
        (0.25,) * 3,
        "",
        tuple("0123456789"),
    )


def _resident_mb() -> float:
    """Resident memory of this process now; where the system does not tell, its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    import resource  # absent on Windows, which has neither

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
