"""Everything there is to measure at a scale, as a list of jobs, and about how long it takes here."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from rfnlib import data, execution, minimizers, models, objectives, records
from rfnlib.attacks import IterativeAttack
from rfnlib.experiments import (
    ADDED_TO,
    CONTROLS,
    JUDGED,
    attacked_at,
    chosen_rho,
    decay_runs,
    every_check,
    every_contender,
    every_inversion,
    slight_runs,
    stopping_epoch,
    techniques,
    trained_on,
)
from rfnlib.keys import key
from rfnlib.lab import Lab, missing_epochs
from rfnlib.recipes import Recipe
from rfnlib.specs import Minimizer, TrainSpec


@dataclass(frozen=True)
class Job:
    """One measurement to make, or to complete: a probe along one training run."""

    label: str
    lab: Lab
    kind: str
    spec: TrainSpec
    epochs: list[float]
    attack: IterativeAttack | None = None
    recipe: Recipe | None = None
    robust: bool = False

    def record(self) -> records.Record:
        return self.lab.find(self.kind, self.spec, self.attack, self.recipe, self.robust)

    def missing(self) -> list[float]:
        """The epochs not yet recorded."""
        return missing_epochs(self.record(), self.epochs)

    def compute(self) -> records.Record:
        return self.lab.measure(self.kind, self.spec, self.epochs, self.attack, self.recipe, self.robust)


def work(lab: Lab) -> list[Job]:
    """Every measurement of `lab`'s scale that is known to be needed, most useful first.

    Targets first (nothing is measured without them), then claim by claim. What depends on a choice is listed once
    the choice can be made: when the list is done, ask again.
    """
    jobs = [*_targets(lab), *_schedules(lab)]
    for which in range(len(lab.scale.surrogates)):
        jobs += _flat(lab, which)
    jobs += _features(lab)
    jobs += _rivals(lab)
    done = {}
    for job in jobs:  # what two claims need is one measurement
        key = job.record().key
        epochs = sorted({*done[key].epochs, *job.epochs}) if key in done else job.epochs
        done[key] = replace(done.get(key, job), epochs=epochs)
    return list(done.values())


def _targets(lab: Lab, *roles: str) -> Iterator[Job]:
    for t in lab.targets(*roles):
        spec = lab.scale.target(t)
        yield Job(f"target {t.name}", lab, "clean", spec, [float(spec.epochs)])


def _schedules(lab: Lab) -> Iterator[Job]:
    named = decay_runs(lab)
    for i, seed in enumerate(lab.seeds):
        for name, specs in named.items():
            yield Job(f"{name}, seed {seed}", lab, "transfer", specs[i], lab.scale.probed(specs[i].schedule))
    for i, seed in enumerate(lab.seeds):
        for name, specs in named.items():
            if hasattr(specs[i].schedule, "milestones"):
                epochs = lab.scale.sharp(specs[i].schedule)
                yield Job(f"sharpness, {name}, seed {seed}", lab, "sharpness", specs[i], epochs)


def _flat(lab: Lab, which: int) -> Iterator[Job]:
    end, arch, first = [float(lab.scale.epochs)], lab.scale.surrogates[which][0], lab.seeds[0]

    def both(name: str, minimizer: Minimizer | None, seed: int) -> Iterator[Job]:
        spec = lab.scale.flat(minimizer, seed, which)
        yield Job(f"{arch}, {name}, seed {seed}", lab, "transfer", spec, attacked_at(lab, spec))
        yield Job(f"sharpness, {arch}, {name}, seed {seed}", lab, "sharpness", spec, end)

    yield from both("SGD", None, first)
    sweep = [job for rho in lab.scale.rhos for job in both(f"SAM ρ = {rho:g}", Minimizer("SAM", rho), first)]
    yield from sweep
    usual = lab.scale.minimizers()
    if not any(job.missing() for job in sweep if job.kind == "transfer"):
        rfn = Minimizer("SAM", chosen_rho(lab, which))
        main = {"SGD": None, "SAM": usual["SAM"], "RFN": rfn}
        for seed in lab.seeds[1:]:
            for name, minimizer in main.items():
                yield from both(name, minimizer, seed)
        if which == 0 and _can_stop(lab):
            for seed in lab.seeds:
                for name, minimizer in main.items():
                    yield from _closer(lab, name, lab.scale.flat(minimizer, seed), minimizer is None)
    for seed in lab.seeds:
        for name, minimizer in usual.items():
            yield from both(name, minimizer, seed)


def _can_stop(lab: Lab) -> bool:
    """Whether all is recorded by which the epoch of early stopping is chosen; asking for it would compute it."""
    specs = [lab.scale.flat(None, seed) for seed in lab.seeds]
    return all(lab.recorded("transfer", spec, attacked_at(lab, spec)) for spec in specs)


def _closer(lab: Lab, name: str, spec: TrainSpec, stops: bool) -> Iterator[Job]:
    """The main surrogates at the other ε, and the flat ones along their training."""
    end = [float(lab.scale.epochs)]
    for eps in lab.scale.budgets:
        epochs = sorted({stopping_epoch(lab), *end}) if stops else end
        label = f"{name}, ε {255 * eps:g}/255, seed {spec.seed}"
        yield Job(label, lab, "transfer", spec, epochs, replace(lab.scale.attack, eps=eps))
    if not stops:
        axis = lab.scale.sharp(spec.schedule, fine=False)
        for kind in ("transfer", "sharpness"):
            yield Job(f"{kind} by epoch, {name}, seed {spec.seed}", lab, kind, spec, axis)


def _features(lab: Lab) -> Iterator[Job]:
    end, first = [float(lab.scale.epochs)], lab.seeds[0]
    for seed in lab.seeds:
        for name, features in lab.scale.feature_sets().items():
            (spec,) = trained_on(lab, features, [seed])
            coarse = lab.scale.sharp(spec.schedule, fine=False)
            if name in CONTROLS and seed != first:
                continue
            label = f"on {name}, seed {seed}"
            yield Job(f"transfer, {label}", lab, "transfer", spec, lab.scale.probed(spec.schedule))
            yield Job(f"robust accuracy, {label}", lab, "robust", spec, coarse)
            for eps in lab.scale.features.budgets if seed == first and name not in CONTROLS else ():
                attack = replace(lab.scale.attack, eps=eps)
                yield Job(f"ε {255 * eps:g}/255, {label}", lab, "transfer", spec, coarse, attack)
    for name, specs in every_check(lab).items():
        for spec in specs:
            yield Job(f"check, {name}, seed {spec.seed}", lab, "check", spec, end)
    for steps, runs in every_inversion(lab).items():
        for name, (spec,) in runs.items():
            yield Job(f"check, {name} by {steps} steps, seed {first}", lab, "check", spec, end)


def _rivals(lab: Lab) -> Iterator[Job]:
    yield from _targets(lab, "robust")
    end = [float(lab.scale.epochs)]
    swept = [lab.scale.flat(Minimizer("SAM", rho), lab.seeds[0]) for rho in lab.scale.rhos]
    candidates = list(slight_runs(lab).values())
    choice = [Job(f"SAT ε = {s.adversary.eps:g}", lab, "transfer", s, end) for s in candidates]
    yield from choice
    for spec in (*candidates, *swept):
        yield Job(f"robust accuracy, {', '.join(spec.traits)}", lab, "robust", spec, end)
    choices = not any(job.missing() for job in choice) and all(lab.recorded("transfer", spec, end) for spec in swept)
    if not (choices and _can_stop(lab)):
        return
    main = every_contender(lab)
    for i, seed in enumerate(lab.seeds):
        for name, c in main.items():
            spec, at = c.specs[i], [c.epoch]
            for robust in (False, True):
                label = f"{name}{' on robust targets' * robust}, seed {seed}"
                yield Job(label, lab, "transfer", spec, at, recipe=c.recipe, robust=robust)
            yield Job(f"sharpness, {name}, seed {seed}", lab, "sharpness", spec, at, recipe=c.single)
            yield Job(f"robust accuracy, {name}, seed {seed}", lab, "robust", spec, at, recipe=c.single)
    for i, seed in enumerate(lab.seeds):
        for technique, (attack, recipe) in techniques(lab).items():
            for name in ADDED_TO if i == 0 else JUDGED:
                spec, at = main[name].specs[i], [main[name].epoch]
                yield Job(f"{name} + {technique}, seed {seed}", lab, "transfer", spec, at, attack, recipe)


def estimate(lab: Lab, jobs: list[Job]) -> list[float]:
    """About how many seconds the missing part of each of `jobs` takes here.

    Counts forward-backward passes (epochs not yet trained by an earlier job, probes not yet made) and times a few on
    this machine; a tuned run on a GPU can be a good deal faster.
    """
    n_train = lab.scale.n_train or len(data.load(lab.scale.data).train_labels)
    images = lab.scale.test_images + lab.scale.validation_images
    probe = lab.scale.sharpness
    # A Hessian-vector product takes three passes on its graph; Lanczos needs about ten of them, twice.
    cost = {
        "clean": 0,
        "transfer": lab.scale.attack.passes * images,
        "sharpness": probe.images * 3 * (20 + probe.probes + probe.deflate),
        "robust": lab.scale.robustness.passes,
        "check": lab.scale.checks.passes,
    }
    pace = functools.lru_cache(functools.partial(_pace, lab))
    seen: set[str] = set()

    def training(spec: TrainSpec, last: float) -> int:
        """Passes that training `spec` up to epoch `last` takes beyond what was seen before; its data set, too."""
        per_epoch = n_train // spec.batch
        epochs = {spec.history_key(e * per_epoch, per_epoch) for e in range(1, int(last) + 1)} - seen
        seen.update(epochs)
        m = spec.minimizer
        a_step = minimizers.method(m.method).passes_per_step(**dict(m.options)) if m else 1
        a_step *= objectives.PENALISED if spec.input_penalty else 1
        a_step += spec.adversary.passes if spec.adversary else 0
        passes, features = len(epochs) * per_epoch * spec.batch * a_step, spec.features
        if epochs and features and key(features) not in seen:
            seen.add(key(features))
            passes += n_train * features.steps + training(features.model, features.model.epochs)
        others = [other for other in (spec.start, spec.witness) if epochs and other]
        return passes + sum(training(other, other.epochs) for other in others)

    seconds = []
    for job in jobs:
        per_epoch = n_train // job.spec.batch
        states = [job.spec.history_key(round(e * per_epoch), per_epoch) for e in job.missing()]
        probed = {f"{key(job.kind, job.record().probe)} {state}" for state in states} - seen
        seen |= probed
        each = job.attack.passes * images if job.attack else cost[job.kind]
        passes = training(job.spec, max(job.missing(), default=0)) + each * len(probed)
        seconds.append(passes * pace(job.spec.arch, job.spec.width) if passes else 0.0)
    return seconds


def _pace(lab: Lab, arch: str, width: int | None) -> float:
    """Seconds of one image's forward-backward pass through `arch`, eager, on this machine."""
    shape = data.image_shape(lab.scale.data)
    model = execution.resolve(lab.device).place(models.build(arch, width=width, image_shape=shape)).train()
    x = torch.rand(32, *shape, device=lab.device)
    for _ in range(2):  # the first time is not typical
        start = time.perf_counter()
        model(x).sum().backward()
        if lab.device == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
    return taken / len(x)
