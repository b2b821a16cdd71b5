"""`train(spec)`: train a network and hand out its snapshots; killed at any moment, it goes on to the same bits.

The state after `i` steps is a function of the data and of the spec's history up to `i` alone: the initial weights, the
order of the images and the augmentation of every batch are drawn from streams named by seed, purpose and step, so no
generator's state has to be saved. A state on disk is named by the key of that history. Resuming after a kill, and
starting a run from another one that it shares its past with (a later learning-rate decay, say), are therefore the
same thing: load the latest state that this run would have reached.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from rfnlib import adversaries, data, execution, files, keys, minimizers, models, objectives, paths, snapshots
from rfnlib.progress import Progress
from rfnlib.snapshots import DamagedSnapshot, Run, Snapshot
from rfnlib.specs import Minimizer, SpecError, TrainSpec, require

SECONDS_BETWEEN_STATES = 60.0  # of one run, which a kill loses at most, and an epoch
_DRAWING = threading.Lock()  # held while weights are drawn from torch's one generator


class TrainingDiverged(FloatingPointError):
    """The training loss is no longer a number."""


def network(spec: TrainSpec, dataset: data.Dataset) -> nn.Module:
    """The untrained network of `spec`, its weights drawn from the spec's seed; leaves torch's generator alone."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(keys.stream(spec.seed, "init"))  # and not CUDA's
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
    """Whole batches in an epoch; the rest of the (freshly shuffled) images waits for the next epoch.

    Raises:
        SpecError: a batch larger than the training set.
    """
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

    Snapshots that are on disk already are yielded without training. A run that is stopped, by its caller, by `tick`
    or by an error, goes on from where it was; one that is killed, from a state at most a minute and an epoch old;
    on the same machine and execution both end with the same bits. A state that is damaged is set aside with a
    warning, and training goes on from an earlier one. Threads and processes may train one spec in one cache at a time.

    Args:
        at: epochs in (0, spec.epochs], fractions allowed (rounded to a whole step); None: every epoch.
        dataset: the data, if loaded already; the spec must describe it.
        cache: where snapshots live; None: the project's cache.
        keep: epochs whose full state (momentum too) stays on disk, for other runs to start from.
        device, precision, compile, channels_last: see `execution.resolve`.
        progress: whether to say how far it is.
        tick: called after every epoch and snapshot; may raise to stop in time.

    Returns:
        An iterator of snapshots in the order of their epochs. Each may be deleted when it has been used.

    Raises:
        SpecError: `at` outside the run or no list, a batch larger than the training set, an unknown minimizer, or a
            data set that is not the spec's.
        ValueError: an unknown architecture, data set or execution.
        TrainingDiverged: the loss became infinite or NaN.
        DamagedSnapshot: the last snapshot of a run that this one builds on is damaged.
        DiskFull: no room for a snapshot; everything finished is kept.
    """
    require(dataset or not spec.features, "the spec trains on a built set; build it with rfnlib.features, as dataset.")
    if spec.minimizer:
        _method(spec.minimizer)
    models.require_known(spec.arch)
    dataset = dataset or data.load(spec.data).cut(*spec.cut)
    _check_described(dataset, spec)
    per_epoch = steps_per_epoch(spec, dataset)
    run = Run(spec, dataset.digest, per_epoch, cache or paths.cache_dir())
    wanted = _iterations("at", range(1, spec.epochs + 1) if at is None else at, spec, per_epoch)
    kept = _iterations("keep", keep, spec, per_epoch)
    how = execution.resolve(device, precision, compile, channels_last)

    def trained(other: TrainSpec) -> nn.Module:
        options = {"dataset": dataset, "cache": cache, "device": device, "precision": precision, "compile": compile}
        same = {**options, "channels_last": channels_last, "progress": progress, "tick": tick}
        (last,) = train(other, [float(other.epochs)], **same)
        return last.load_into(network(other, dataset))

    def begun() -> _Training:
        return _Training(run, dataset, how, trained)

    return _snapshots([run.snapshot(i) for i in wanted], kept, begun, progress, tick)


def _snapshots(
    todo: list[Snapshot], kept: list[int], begun: Callable[[], _Training], progress: bool, tick: Callable[[], None]
) -> Iterator[Snapshot]:
    """Yield those of `todo` that are on disk, then train to the others; the states after `kept` steps stay on disk."""
    while todo and todo[0].path.exists():
        yield todo.pop(0)
    if not todo:
        return
    training, last = begun(), todo[-1].iteration
    start = training.resume(before=todo[0].iteration)
    spec, per_epoch = training.spec, training.run.per_epoch
    on_the_way = {i for i in (*kept, *range(per_epoch, last, per_epoch)) if start < i < last}
    stops = sorted(on_the_way | {snapshot.iteration for snapshot in todo})
    with Progress((last - start) / per_epoch, f"{spec.arch}, seed {spec.seed}", progress) as bar:
        for i in stops:
            before = training.done
            while training.done < i:
                training.step()
            training.check()
            if i in kept:
                training.keep_state()
            with training.saved_if_stopped():
                if i == todo[0].iteration:
                    training.write(todo[0])
                    yield todo.pop(0)
                training.save_now_and_then()
                tick()
                bar.advance((i - before) / per_epoch, f"epoch {i / per_epoch:.3g}, loss {training.loss:.3f}")
    training.save()


class _Training:
    """A run on its way: all that the next step depends on, and the step.

    Attributes:
        done: the number of steps made.
    """

    def __init__(
        self, run: Run, dataset: data.Dataset, how: execution.Execution, trained: Callable[[TrainSpec], nn.Module]
    ) -> None:
        self.run, self.how, self.done = run, how, 0
        self.spec = spec = run.spec
        files.sweep(run.folder)
        model = trained(spec.start) if spec.start else network(spec, dataset)
        witness = how.place(trained(spec.witness)).requires_grad_(False) if spec.witness else None
        self.model = how.place(model).train()
        self.optimizer = _optimizer(spec, self.model, run.per_epoch)
        self.batches = _Batches(spec, dataset, run.per_epoch, how)
        self.how = how = self._compiling()
        forward = how.compiled(self.model)
        self.objective = objectives.build(spec, self.model, forward, witness, how)
        self.adversary = adversaries.build(spec, forward, how)
        self._loss: Tensor | None = None
        self._saved = time.monotonic()

    def _compiling(self) -> execution.Execution:
        """Whether to compile: for the work of the whole run, so that a resumed one makes the same choice."""
        spec, images = self.spec, self.batches.images[: self.spec.batch]
        if spec.input_penalty:  # whose objective needs second derivatives, which compiled networks have none of
            return self.how
        work = spec.epochs * self.run.per_epoch * spec.batch * (1 + (spec.adversary.passes if spec.adversary else 0))
        example = data.to_float(images).contiguous(memory_format=self.how.layout)
        return execution.choose(self.how, self.model, example, work, self.run.cache)

    def step(self) -> None:
        """One step of the optimizer, without waiting for the device."""
        x, y = self.batches(self.done // self.adversary.replay)
        x = self.adversary.images(x, y, self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.schedule.at(self.done / self.run.per_epoch, self.spec.epochs)

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.objective(x, y)
            loss.backward()
            return loss

        self._loss = self.optimizer.step(closure).detach()
        self.adversary.stepped()
        self.done += 1

    @property
    def loss(self) -> float:
        """That of the last step; NaN before the first."""
        return float("nan") if self._loss is None else self._loss.item()

    def check(self) -> None:
        """Raise `TrainingDiverged` unless the last loss, and the weights after it, are finite."""
        if self._loss is None:
            return
        values = [v.isfinite().all() for v in self.model.state_dict().values()]
        finite, loss = torch.stack(values).all(), self._loss
        if not (loss.isfinite() & finite):
            left = "last step left weights that are not finite"
            raise self._diverged(left if loss.isfinite() else f"training loss is {self.loss}")

    def _diverged(self, what: str) -> TrainingDiverged:
        epoch, spec = self.done / self.run.per_epoch, self.spec
        return TrainingDiverged(
            f"The {what} at epoch {epoch:.2f} of {spec.arch} (seed {spec.seed}); "
            "lower the learning rate, or give it a warm-up."
        )

    # --- to disk and back ---

    def write(self, snapshot: Snapshot) -> None:
        """Write what others get to see: the weights, or their mean where the minimizer has begun one."""
        if snapshot.path.exists():
            return
        about = {"cost": self._cost(), **self._about()}

        def written(model: nn.Module) -> None:
            snapshots.write(snapshot.path, model.state_dict(), "weights", snapshot.key, **about)

        if not isinstance(self.optimizer, minimizers.SAM) or not self.optimizer.kept.get("models"):
            return written(self.model)
        with self.optimizer.averaged() as mean:
            minimizers.update_batchnorm(mean, (data.to_float(part) for part in self.batches.images.split(500)))
            written(mean)

    def keep_state(self) -> None:
        """Write the state for good, for every run that shares this one's past."""
        path = self.run.kept_state(self.done)
        if not path.exists():
            self._write_state(path)

    def save(self) -> None:
        """Write the state in the place of this run's last one; at the end of the run there is nothing to go on to."""
        ended = self.done >= self.spec.epochs * self.run.per_epoch
        path = self.run.own_state(self.done)
        if not ended and not path.exists():
            self._write_state(path)
        for old in self.run.own_states():
            if ended or old < path:
                old.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def save_now_and_then(self) -> None:
        """As `save`, at most once a minute."""
        if time.monotonic() - self._saved >= SECONDS_BETWEEN_STATES:
            self.save()

    @contextmanager
    def saved_if_stopped(self) -> Iterator[None]:
        """Save before whatever stops the run between two steps goes on its way."""
        try:
            yield
        except BaseException:
            self.save()
            raise

    def resume(self, before: int) -> int:
        """Go to the latest state on disk that is whole, at most `before` steps after the beginning; return its step."""
        for i, path in self.run.states(before):
            try:
                tensors, about = snapshots.read(path, "state", self.run.key(i))
            except FileNotFoundError:  # another process has a later one by now
                continue
            except DamagedSnapshot as error:
                aside = path.with_suffix(".damaged")
                with suppress(FileNotFoundError):  # another process was faster
                    path.replace(aside)
                warnings.warn(
                    f"{path.name} is damaged ({error.why}); it is set aside as {aside.name}, and training goes on "
                    "from an earlier state.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            snapshots.restore(tensors, about["minimizer"], self.model, self.optimizer, self.adversary)
            self.done = i
            break
        return self.done

    def _write_state(self, path: Path) -> None:
        tensors, counts = snapshots.state_of(self.model, self.optimizer, self.adversary)
        snapshots.write(path, tensors, "state", self.run.key(self.done), minimizer=counts, **self._about())

    def _about(self) -> dict[str, object]:
        spec = keys.canonical(self.spec)
        return {"spec": spec, "data": self.run.data, "iteration": self.done, "execution": self.how.describe()}

    def _cost(self) -> dict[str, int]:
        counted = isinstance(self.optimizer, minimizers.SAM)
        passes, skipped = (self.optimizer.passes, self.optimizer.skipped) if counted else (self.done, 0)
        passes *= objectives.PASSES_PENALISED if self.spec.input_penalty else 1
        passes += self.done * self.spec.adversary.passes if self.spec.adversary else 0
        return {"passes": passes, "skipped": skipped}


class _Batches:
    """The batches of a run by their number, augmented; all that an epoch draws is drawn and moved at once."""

    def __init__(self, spec: TrainSpec, dataset: data.Dataset, per_epoch: int, how: execution.Execution) -> None:
        self.spec, self.per_epoch, self.how, self.flip = spec, per_epoch, how, dataset.flip
        self.images, self.labels = dataset.train_images.to(how.device), dataset.train_labels.to(how.device)
        self.pad = dataset.image_shape[1] // 8
        self.epoch = -1

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number` of the run: float32 (B, C, H, W) in [0, 1] and labels (B,)."""
        epoch, b = divmod(number, self.per_epoch)
        if epoch != self.epoch:
            self._draw(epoch)
        chosen = self.order[b]
        x = self.images[chosen]
        x = data.crop(x, self.drawn[b], self.pad) if self.spec.augment else data.to_float(x)
        return x.contiguous(memory_format=self.how.layout), self.labels[chosen]

    def _draw(self, epoch: int) -> None:
        """The order of an epoch's images, and their crops: each batch has its own stream, so that any can be next."""
        seed, n, drawn = self.spec.seed, self.spec.batch, torch.Generator()
        order = torch.randperm(len(self.labels), generator=drawn.manual_seed(keys.stream(seed, "order", epoch)))
        self.order = order[: self.per_epoch * n].view(self.per_epoch, n).to(self.how.device)
        if self.spec.augment:
            first = epoch * self.per_epoch
            streams = [keys.stream(seed, "augment", first + b) for b in range(self.per_epoch)]
            crops = [data.draws(n, drawn.manual_seed(of), self.pad, self.flip) for of in streams]
            self.drawn = torch.stack(crops).to(self.how.device)
        self.epoch = epoch


def _optimizer(spec: TrainSpec, model: nn.Module, per_epoch: int) -> torch.optim.Optimizer:
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
    if method.draws:
        options["seed"] = spec.seed
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


def _iterations(name: str, epochs: Iterable[float], spec: TrainSpec, per_epoch: int) -> list[int]:
    several = isinstance(epochs, Iterable) and not isinstance(epochs, str)
    require(several, f"{name} is {epochs!r}; give a list of epochs, such as [{spec.epochs}].")
    epochs = list(epochs)
    for e in epochs:
        require(
            0 < e <= spec.epochs,
            f"a snapshot is asked for at epoch {e}; the run covers (0, {spec.epochs}].",
        )
    return sorted({max(1, round(e * per_epoch)) for e in epochs})


def _check_described(dataset: data.Dataset, spec: TrainSpec) -> None:
    """Refuse a data set that is not what the spec says."""
    loaded = isinstance(dataset, data.Dataset)
    require(loaded, f"dataset is a {type(dataset).__name__}; give data.load({spec.data!r}).cut(*spec.cut), or None.")
    name, n = dataset.name, len(dataset.train_labels)
    if spec.features:
        built = dataset.built_from == spec.data
        require(built, f"the spec trains on a set built from {spec.data!r}, and {name!r} is none; build it as dataset.")
    else:
        require(name == spec.data, f"data is {spec.data!r}, but the data set is {name!r}; give both one name.")
    fits = dataset.n_train is None if spec.n_train is None else n == spec.n_train
    whole = "a part, of " if dataset.n_train else ""
    require(fits, f"n_train is {spec.n_train}, but the data set has {whole}{n} training images; give n_train={n}.")
    there = (dataset.skip, *(dataset.noise or (0.0, 0)))
    asked = f"the spec asks for skip, label_noise and its seed {spec.cut[1:]}, and the data set has {there}"
    require(there == spec.cut[1:], f"{asked}; give data.load({spec.data!r}).cut(*spec.cut).")
