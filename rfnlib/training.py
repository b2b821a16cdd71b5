"""`train(spec)`: train a network and hand out its snapshots; killed at any moment, it goes on to the same bits.

The state after `i` steps is a function of the spec's history up to `i` alone: the initial weights, the
order of the images and the augmentation of every batch are drawn from streams named by seed, purpose
and step, so no generator's state has to be saved. A state on disk is named by the key of that history.
Resuming after a kill, and starting a run from another one that it shares its past with (a later learning-
rate decay, say), are therefore the same thing: load the latest state that this run would have reached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rfnlib import adversaries, attacks, data, execution, minimizers, models, objectives, paths
from rfnlib.files import write_atomic
from rfnlib.keys import canonical, stream
from rfnlib.progress import Progress
from rfnlib.specs import Minimizer, SpecError, TrainSpec, require


class TrainingDiverged(FloatingPointError):
    """The training loss is no longer a number."""


class DamagedSnapshot(ValueError):
    """A snapshot file that cannot be read."""


@dataclass(frozen=True)
class Snapshot:
    """The weights of a run after `iteration` steps, on disk at `path`; `key` names the history behind them."""

    spec: TrainSpec
    iteration: int
    per_epoch: int
    path: Path

    @property
    def epoch(self) -> float:
        return self.iteration / self.per_epoch

    @property
    def key(self) -> str:
        return self.spec.history_key(self.iteration, self.per_epoch)

    @property
    def cost(self) -> dict[str, int]:
        """What the training took: `passes`, forward-backward passes of a batch; `skipped`, steps that were void."""
        with _opened(self.path) as f:
            return json.loads(f.metadata()["rfnlib"]).get("cost", {"passes": self.iteration, "skipped": 0})

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU.

        Raises:
            DamagedSnapshot: the file is truncated or no safetensors file.
        """
        return _read(self.path)

    def load_into(self, model: nn.Module) -> nn.Module:
        """`model` with these weights, in eval mode."""
        model.load_state_dict(self.weights())
        return model.eval()


def network(spec: TrainSpec, dataset: data.Dataset) -> nn.Module:
    """The untrained network of `spec`, its weights drawn from the spec's seed; leaves torch's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(spec.seed, "init"))  # and not CUDA's
        return models.build(
            spec.arch,
            width=spec.width,
            stem=spec.stem,
            n_classes=dataset.n_classes,
            image_shape=dataset.image_shape,
            mean=dataset.mean,
            std=dataset.std,
        )


def steps_per_epoch(spec: TrainSpec, dataset: data.Dataset) -> int:
    """Whole batches in an epoch; the rest of the (freshly shuffled) images waits for the next epoch."""
    n = len(dataset.train_labels)
    require(
        spec.batch <= n,
        f"batch is {spec.batch}, but there are only {n} training images; give at most {n}.",
    )
    return n // spec.batch


def train(
    spec: TrainSpec,
    at: Iterable[float] | None = None,
    *,
    dataset: data.Dataset | None = None,
    cache: Path | None = None,
    keep: Iterable[float] = (),
    device: str = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    channels_last: bool | str = "auto",
    progress: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Snapshot]:
    """Train `spec` by SGD, yielding a snapshot at each epoch of `at` as soon as it is on disk.

    Minimises the mean cross-entropy (with `label_smoothing`) over shuffled, augmented batches:
    v ← momentum·v + g + weight_decay·w;  w ← w − lr(t)·v  (with Nesterov's variant where asked),
    where g is the gradient, or the direction that `spec.minimizer` puts in its place.
    With `spec.adversary` the batch is made adversarial to the network as it is, once before each step: see
    `rfnlib.adversaries`; for other losses, `rfnlib.objectives`. The runs that `spec` builds on (its `start`, its
    `witness`) are trained first, unless their last snapshot is on disk.
    Snapshots that are on disk already are yielded without training. A killed run resumes from the
    last finished epoch or snapshot and, on the same machine and execution, ends with the same bits.

    Args:
        at: epochs in (0, spec.epochs], fractions allowed (rounded to a whole step); None: every epoch.
        dataset: the data, if loaded already (its training set is used whole).
        cache: where snapshots live; None: the project's cache.
        keep: epochs whose full state (momentum too) stays on disk, for other runs to start from.
        device, precision, compile, channels_last: see `execution.resolve`.
        tick: called after every state saved; may raise to stop in time.

    Raises:
        SpecError: `at` outside the run, a batch larger than the training set, or `features` without a `dataset`.
        ValueError: an unknown architecture, data set or execution.
        TrainingDiverged: the loss became infinite or NaN.
        DiskFull: no room for a snapshot; everything finished is kept.
    """
    require(dataset or not spec.features, "the spec trains on a built set; build it with rfnlib.features, as dataset.")
    if spec.minimizer:
        _method(spec.minimizer)
    dataset = dataset or data.load(spec.data).subset(spec.n_train)
    per_epoch = steps_per_epoch(spec, dataset)
    wanted = _iterations(range(1, spec.epochs + 1) if at is None else at, spec, per_epoch)
    kept = set(_iterations(keep, spec, per_epoch)) | {max(wanted, default=0)}
    how = execution.resolve(device, precision, compile, channels_last)
    folder = cache or paths.cache_dir()

    def trained(other: TrainSpec) -> nn.Module:
        options = {"dataset": dataset, "cache": folder, "device": device, "precision": precision, "compile": compile}
        same = {**options, "channels_last": channels_last, "progress": progress, "tick": tick}
        return next(train(other, [float(other.epochs)], **same)).load_into(network(other, dataset))

    return _run(spec, dataset, per_epoch, wanted, kept, how, folder, progress, tick, trained)


def _run(
    spec: TrainSpec,
    dataset: data.Dataset,
    per_epoch: int,
    wanted: list[int],
    kept: set[int],
    how: execution.Execution,
    folder: Path,
    progress: bool,
    tick: Callable[[], None],
    trained: Callable[[TrainSpec], nn.Module],
) -> Iterator[Snapshot]:
    def snapshot(i: int) -> Snapshot:
        return Snapshot(spec, i, per_epoch, _file(folder, "weights", spec, i, per_epoch))

    ready = 0
    while ready < len(wanted) and snapshot(wanted[ready]).path.exists():
        yield snapshot(wanted[ready])
        ready += 1
    todo = wanted[ready:]
    if not todo:
        return

    model = trained(spec.start) if spec.start else network(spec, dataset)
    witness = how.place(trained(spec.witness)).requires_grad_(False) if spec.witness else None
    start = _latest_state(folder, spec, per_epoch, before=todo[0])
    model = how.place(model).train()
    optimizer = _optimizer(spec, model, per_epoch)
    images = dataset.train_images.to(how.device)
    labels = dataset.train_labels.to(how.device)
    if not spec.input_penalty:  # whose objective needs second derivatives, which compiled networks have none of
        passes = 1 + (spec.adversary.passes if spec.adversary else 0)
        example = data.to_float(images[: spec.batch]).contiguous(memory_format=how.layout)
        how = execution.choose(how, model, example, (todo[-1] - start) * spec.batch * passes, folder)
    forward = how.compiled(model)
    objective = objectives.of(spec, model, forward, witness, how)
    adversary = adversaries.of(spec, forward, how)
    if start:
        _restore(_file(folder, "state", spec, start, per_epoch), model, optimizer, adversary)
    drawn = torch.Generator()
    own_states: list[Path] = []

    if start == todo[0]:  # killed between a state and its weights, or the state is another run's
        write_atomic(snapshot(start).path, _weights(model, optimizer, spec, start, how, images))
        yield snapshot(start)

    label = f"{spec.arch}, seed {spec.seed}"
    with Progress((todo[-1] - start) / per_epoch, label, progress) as bar:
        for i in range(start, todo[-1]):
            epoch, b = divmod(i // adversary.replay, per_epoch)
            if b == 0 or i == start:
                drawn.manual_seed(stream(spec.seed, "order", epoch))
                order = torch.randperm(len(labels), generator=drawn).to(how.device)
            chosen = order[b * spec.batch : (b + 1) * spec.batch]
            x = images[chosen]
            if spec.augment:
                drawn.manual_seed(stream(spec.seed, "augment", i // adversary.replay))
                x = data.augment(x, drawn, flip=dataset.flip)
            else:
                x = data.to_float(x)
            if how.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            try:
                x = adversary.images(x, labels[chosen], i)
            except attacks.AttackError as error:
                raise _diverged(f"attack on the network failed ({error})", spec, i / per_epoch) from error
            for group in optimizer.param_groups:
                group["lr"] = spec.schedule.at(i / per_epoch, spec.epochs)

            def closure(x: Tensor = x, y: Tensor = labels[chosen]) -> Tensor:
                optimizer.zero_grad(set_to_none=True)
                loss = objective(x, y)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            adversary.stepped()

            done = i + 1
            if done in todo or done in kept or done % per_epoch == 0:
                _check_finite(loss, model, spec, done / per_epoch)
                state = _file(folder, "state", spec, done, per_epoch)
                write_atomic(state, _state(model, optimizer, adversary, spec, done, how))
                for old in own_states:
                    old.unlink(missing_ok=True)
                own_states = [] if done in kept else [state]
                if done in todo:
                    target = snapshot(done)
                    if not target.path.exists():
                        write_atomic(target.path, _weights(model, optimizer, spec, done, how, images))
                    yield target
                tick()
            if done % per_epoch == 0:
                bar.advance(
                    min(1.0, (done - start) / per_epoch),
                    f"epoch {done // per_epoch}, loss {loss.item():.3f}",
                )


def _optimizer(spec: TrainSpec, model: nn.Module, per_epoch: int) -> torch.optim.Optimizer | minimizers.SAM:
    """SGD, or the spec's minimizer around it: both have `step(closure)`, `zero_grad`, `param_groups`.

    Raises:
        SpecError: an option that the method does not have, or does not take.
    """
    sgd = torch.optim.SGD(
        model.parameters(),
        lr=spec.schedule.at(0, spec.epochs),
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov,
        fused=True,
    )
    m = spec.minimizer
    if m is None:
        return sgd
    method, options = _method(m), dict(m.options)
    if method.averages:
        options |= {"start": round(m.average_from * per_epoch), "every": per_epoch}
    if method.perturbs:
        options["rho"] = minimizers.warmup(m.rho, round(m.warmup * per_epoch)) if m.warmup else m.rho
    try:
        return method(model, sgd, **options)
    except (TypeError, minimizers.MinimizerError) as error:
        raise SpecError(f"{m.method} does not take {dict(m.options)}: {error}") from error


def _method(m: Minimizer) -> type[minimizers.SAM]:
    """The class that `m` names.

    Raises:
        SpecError: there is none, or `m` gives it a ρ or a mean of weights that it does not have, or leaves it out.
    """
    try:
        method = minimizers.method(m.method)
    except minimizers.MinimizerError as error:
        raise SpecError(str(error)) from error
    wanted = "a number above 0" if method.perturbs else "0, for it has no neighbourhood"
    require(method.perturbs == (m.rho > 0), f"rho is {m.rho} with {m.method}; give {wanted}.")
    wanted = "an epoch of 0 or more" if method.averages else f"None, since {m.method} averages no weights"
    given = m.average_from is not None
    require(method.averages == given, f"average_from is {m.average_from} with {m.method}; give {wanted}.")
    return method


def _iterations(epochs: Iterable[float], spec: TrainSpec, per_epoch: int) -> list[int]:
    epochs = list(epochs)
    for e in epochs:
        require(
            0 < e <= spec.epochs,
            f"a snapshot is asked for at epoch {e}; the run covers (0, {spec.epochs}].",
        )
    return sorted({max(1, round(e * per_epoch)) for e in epochs})


def _check_finite(loss: Tensor, model: nn.Module, spec: TrainSpec, epoch: float) -> None:
    if not torch.isfinite(loss):
        what = f"training loss is {loss.item()}"
    elif not all(v.isfinite().all() for v in model.state_dict().values()):
        what = "last step left weights that are not finite"  # the loss was taken before it
    else:
        return
    raise _diverged(what, spec, epoch)


def _diverged(what: str, spec: TrainSpec, epoch: float) -> TrainingDiverged:
    return TrainingDiverged(
        f"The {what} at epoch {epoch:.2f} of {spec.arch} (seed {spec.seed}); "
        "lower the learning rate, or give it a warm-up."
    )


# --- states on disk ---------------------------------------------------------------------------------


def _file(folder: Path, kind: str, spec: TrainSpec, iteration: int, per_epoch: int) -> Path:
    name = f"{iteration:07d}-{spec.history_key(iteration, per_epoch)}.{kind}.safetensors"
    return folder / "snapshots" / name


def _latest_state(folder: Path, spec: TrainSpec, per_epoch: int, before: int) -> int:
    """The last step, at most `before`, of which a full state lies on disk; 0 if there is none."""
    found = {int(p.name[:7]) for p in (folder / "snapshots").glob("*.state.safetensors")}
    for i in sorted((i for i in found if i <= before), reverse=True):
        if _file(folder, "state", spec, i, per_epoch).exists():
            return i
    return 0


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}


def _meta(spec: TrainSpec, iteration: int, how: execution.Execution, **more: Any) -> dict[str, str]:
    # One entry, because safetensors writes several in an order that differs from run to run.
    values = {"spec": canonical(spec), "iteration": iteration, "execution": how.describe(), **more}
    return {"rfnlib": json.dumps(values)}


def _weights(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | minimizers.SAM,
    spec: TrainSpec,
    iteration: int,
    how: execution.Execution,
    images: Tensor,
) -> bytes:
    """What others get to see: the weights, or their mean where the minimizer has begun one."""
    plain = not isinstance(optimizer, minimizers.SAM)
    passes, skipped = (iteration, 0) if plain else (optimizer.passes, optimizer.skipped)
    passes *= objectives.PENALISED if spec.input_penalty else 1
    passes += iteration * spec.adversary.passes if spec.adversary else 0
    # Where a step is one pass the metadata stay what they were before there was anything to count.
    cost = {} if plain and passes == iteration else {"cost": {"passes": passes, "skipped": skipped}}
    meta = _meta(spec, iteration, how, **cost)
    if plain or not optimizer.kept.get("models"):
        return save(_plain(model.state_dict()), meta)
    with optimizer.averaged() as mean:
        minimizers.update_batchnorm(mean, (data.to_float(part) for part in images.split(500)))
        return save(_plain(mean.state_dict()), meta)


def _state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | minimizers.SAM,
    adversary: adversaries.Natural,
    spec: TrainSpec,
    iteration: int,
    how: execution.Execution,
) -> bytes:
    """Everything that the next steps depend on. A minimizer's lists of tensors go by `kept.name.index`."""
    state, counts = optimizer.state_dict(), {}
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"adversary.{k}": v for k, v in adversary.state.items()}
    if isinstance(optimizer, minimizers.SAM):
        counts = {k: v for k, v in state.items() if k not in ("base", "kept")}
        counts["kept"] = {k: v for k, v in state["kept"].items() if not isinstance(v, list)}
        lists = {k: v for k, v in state["kept"].items() if isinstance(v, list)}
        tensors |= {f"kept.{k}.{i}": v for k, vs in lists.items() for i, v in enumerate(vs)}
        state = state["base"]
    for index, slots in state["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
    return save(_plain(tensors), _meta(spec, iteration, how, minimizer=counts))


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | minimizers.SAM, adversary: adversaries.Natural
) -> None:
    tensors = _read(path)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    wrapped = isinstance(optimizer, minimizers.SAM)
    base = optimizer.base if wrapped else optimizer
    weights = list(model.parameters())
    slots: dict[int, dict[str, Tensor]] = {}
    kept: dict[str, list[tuple[int, Tensor]]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, slot = rest.split(".", 1)
            # The fused step walks through memory: a buffer must lie as its weights do.
            laid = torch.empty_like(weights[int(index)]).copy_(value)
            slots.setdefault(int(index), {})[slot] = laid
        elif kind == "adversary":
            adversary.state[rest] = value
        elif kind == "kept":
            of, index = rest.rsplit(".", 1)
            kept.setdefault(of, []).append((int(index), value))
    state = {**base.state_dict(), "state": slots}
    if not wrapped:
        base.load_state_dict(state)
        return
    with _opened(path) as f:
        counts = json.loads(f.metadata()["rfnlib"])["minimizer"]
    lists = {k: [v for _, v in sorted(vs, key=lambda pair: pair[0])] for k, vs in kept.items()}
    optimizer.load_state_dict({**counts, "base": state, "kept": {**counts["kept"], **lists}})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as f:
            yield f
    except SafetensorError as error:
        raise DamagedSnapshot(f"{path.name} is damaged ({error}); delete it, and it is trained again.") from error


def _read(path: Path) -> dict[str, Tensor]:
    with _opened(path) as f:
        return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no dict)
