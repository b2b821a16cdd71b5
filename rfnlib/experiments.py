"""What each claim needs measured: the training runs, by name, and the list of everything there is to do.

A run's name is that of its curve. Choices that an experiment makes on the way (the epoch at which to stop early, the
ρ of RFN) are made here, on validation images and validation targets, and judged elsewhere on the others.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rfnlib import data, execution, models, objectives, records
from rfnlib.attacks import DI, MI, NI, SI, TI, IterativeAttack
from rfnlib.lab import Lab, missing_epochs
from rfnlib.recipes import Averaged, Collected, Drawn, Ghosts, Recipe, Skips
from rfnlib.specs import Adversary, FeatureSet, Minimizer, TrainSpec, key
from rfnlib.transforms import Neighbours

Runs = dict[str, list[TrainSpec]]


# --- C2, C3: runs that differ in their schedule -----------------------------------------------------


def decay_runs(lab: Lab) -> Runs:
    """The training runs of claim C2, by schedule, one a seed."""
    named = lab.scale.schedules().items()
    return {name: [lab.scale.surrogate(s, seed) for seed in lab.seeds] for name, s in named}


def sharpness_runs(lab: Lab) -> dict[str, tuple[list[TrainSpec], list[float]]]:
    """The runs of claim C3, and the epochs at which their sharpness is measured.

    Those of C2 whose learning rate decays in steps, or never; and SAM and RFN under the standard schedule. The first
    seed, and those that follow it in the records without a gap, the same for all runs of SGD. Replay leaves out SAM
    or RFN while nothing is recorded of it.
    """
    usual = {"SAM": lab.scale.rhos[0], "RFN": chosen_rho(lab)}
    flat = {name: [lab.scale.flat(Minimizer("SAM", rho), s) for s in lab.seeds] for name, rho in usual.items()}
    steps = {n: runs for n, runs in decay_runs(lab).items() if hasattr(runs[0].schedule, "milestones")}
    found = {}
    for group, fine in ((steps, True), *(({name: flat[name]}, False) for name in flat)):
        epochs = {name: lab.scale.sharp(runs[0].schedule, fine) for name, runs in group.items()}

        def recorded(seed: int, group: Runs = group, epochs: dict[str, list[float]] = epochs) -> bool:
            both = ("transfer", "sharpness")
            return all(lab.recorded(kind, runs[seed], epochs[n]) for n, runs in group.items() for kind in both)

        if fine or lab.mode == "run" or recorded(0):
            seeds = _without_gap(lab, recorded)
            found |= {name: (runs[:seeds], epochs[name]) for name, runs in group.items()}
    return found


# --- C1: features -----------------------------------------------------------------------------------

CONTROLS = ("D_rand", "D_det")


def feature_runs(lab: Lab) -> Runs:
    """Surrogates trained on D, D_R and D_NR, and on the controls, by the standard schedule.

    In replay: the first seed of D, D_R and D_NR and those that follow it in the records without a gap, the same for all
    three; and the controls, of which there is one seed, if they are recorded.
    """
    every = {name: _on(lab, features, lab.seeds) for name, features in lab.scale.feature_sets().items()}
    main = {name: specs for name, specs in every.items() if name not in CONTROLS}
    seeds = _without_gap(lab, lambda seed: all(_followed(lab, specs[seed]) for specs in main.values()), every=True)
    controls = {name: every[name][:1] for name in CONTROLS}
    known = {n: specs for n, specs in controls.items() if lab.mode == "run" or _followed(lab, specs[0])}
    return {name: specs[:seeds] for name, specs in main.items()} | known


def inversion_runs(lab: Lab) -> dict[int, Runs]:
    """Surrogates trained on D_R and D_NR by the number of inversion steps: the first seed, in replay those recorded."""
    end, found = [float(lab.scale.epochs)], {}
    for steps in sorted({*lab.scale.features.tried, lab.scale.features.steps}):
        sets = [lab.scale.inverted(robust, steps) for robust in (True, False)]
        runs = {features.name: _on(lab, features, lab.seeds[:1]) for features in sets}
        if lab.mode == "run" or all(lab.recorded("check", specs[0], end) for specs in runs.values()):
            found[steps] = runs
    return found


def checked_runs(lab: Lab) -> Runs:
    """Surrogates trained on D_R and D_NR, and on the controls by radius (one seed); in replay those recorded."""
    end = [float(lab.scale.epochs)]

    def known(spec: TrainSpec) -> bool:
        return lab.mode == "run" or lab.recorded("check", spec, end)

    runs = {name: list(itertools.takewhile(known, specs)) for name, specs in _all_checked(lab).items()}
    return {name: specs for name, specs in runs.items() if specs}


def _all_checked(lab: Lab) -> Runs:
    inverted = {f.name: _on(lab, f, lab.seeds) for f in map(lab.scale.inverted, (True, False))}
    controls = {
        f"{name}, ε = {radius:g}": _on(lab, features, lab.seeds[:1])
        for radius in lab.scale.features.radii
        for name, features in lab.scale.controls(radius).items()
    }
    return inverted | controls


def feature_stops(lab: Lab, runs: Runs) -> dict[str, float]:
    """For each of `runs`, when to stop: as `stopping_epoch`."""
    return {name: _best_epoch(lab, specs) for name, specs in runs.items()}


def attacked(lab: Lab, runs: Runs, epochs: list[float], eps: float) -> bool:
    """Whether all of `runs` have been attacked under `eps` at all of `epochs`."""
    attack = replace(lab.scale.attack, eps=eps)
    return all(lab.recorded("transfer", spec, epochs, attack) for specs in runs.values() for spec in specs)


def _on(lab: Lab, features: FeatureSet | None, seeds: Sequence[int]) -> list[TrainSpec]:
    arch, width = lab.scale.features.arch
    return [replace(lab.scale.flat(None, seed), arch=arch, width=width, features=features) for seed in seeds]


def _followed(lab: Lab, spec: TrainSpec) -> bool:
    """Whether transfer and robust accuracy of `spec` are recorded along its training."""
    coarse = lab.scale.sharp(spec.schedule, fine=False)
    return lab.recorded("transfer", spec, lab.scale.probed(spec.schedule)) and lab.recorded("robust", spec, coarse)


# --- C4 to C6: flat surrogates ----------------------------------------------------------------------


def architectures(lab: Lab) -> dict[str, int]:
    """The surrogate architectures and their numbers; in replay the first, and those of which all ρ are recorded."""
    end, first = [float(lab.scale.epochs)], lab.seeds[0]

    def known(which: int) -> bool:
        specs = [lab.scale.flat(m, first, which) for m in (None, *(Minimizer("SAM", rho) for rho in lab.scale.rhos))]
        both = all(lab.recorded("transfer", s, _epochs(lab, s)) and lab.recorded("sharpness", s, end) for s in specs)
        return lab.mode == "run" or which == 0 or both

    return {arch: i for i, (arch, _) in enumerate(lab.scale.surrogates) if known(i)}


def sweep_runs(lab: Lab, which: int = 0) -> Runs:
    """SAM over ρ on surrogate architecture number `which`: the first seed, and others where they are recorded."""
    return {f"ρ = {rho:g}": _seeds(lab, [Minimizer("SAM", rho)], which)[0] for rho in lab.scale.rhos}


def flat_runs(lab: Lab, which: int = 0) -> Runs:
    """SGD, RFN and the seven minimizers on architecture `which`.

    In replay: the first seed, and those that follow it in the records without a gap, the same for SGD, SAM and RFN,
    which are judged; a minimizer of which nothing is recorded is left out. In a run these three have every seed on
    the first architecture, all else has the first.
    """
    usual = lab.scale.minimizers()
    judged = {"SGD": None, "RFN": Minimizer("SAM", chosen_rho(lab, which)), "SAM": usual["SAM"]}
    runs = dict(zip(judged, _seeds(lab, list(judged.values()), which, every=which == 0), strict=True))
    others = {name: _seeds(lab, [m], which)[0] for name, m in usual.items() if name not in judged}
    end = [float(lab.scale.epochs)]
    known = {n: r for n, r in others.items() if lab.mode == "run" or lab.recorded("transfer", r[0], end)}
    return runs | known


def _seeds(
    lab: Lab, minimizers: Sequence[Minimizer | None], which: int = 0, every: bool = False
) -> list[list[TrainSpec]]:
    """Runs of each of `minimizers` for the first seed, and those after it that are recorded for all of them.

    With `every`, a run that may compute has all seeds.
    """
    runs = [[lab.scale.flat(m, seed, which) for seed in lab.seeds] for m in minimizers]

    def recorded(seed: int) -> bool:
        return all(lab.recorded("transfer", specs[seed], _epochs(lab, specs[seed])) for specs in runs)

    count = _without_gap(lab, recorded, every)
    return [specs[:count] for specs in runs]


def _without_gap(lab: Lab, recorded: Callable[[int], bool], every: bool = False) -> int:
    """How many seeds to take: the first, and those after it up to one that is not `recorded`.

    With `every`, a run that may compute has all of them.
    """
    if every and lab.mode == "run":
        return len(lab.seeds)
    return next((n for n in range(1, len(lab.seeds)) if not recorded(n)), len(lab.seeds))


def _epochs(lab: Lab, spec: TrainSpec) -> list[float]:
    """When a surrogate is attacked: SGD all along, since it may be stopped early; the others at their end."""
    return lab.scale.probed(spec.schedule) if spec.minimizer is None else [float(lab.scale.epochs)]


def chosen_rho(lab: Lab, which: int = 0) -> float:
    """RFN's ρ: of the radii above SAM's, the one with the most success on validation images and targets.

    Chosen from the first seed alone, at the end of training; MissingRecord if the sweep is not recorded, in replay.
    """
    return _best(lab, {rho: lab.scale.flat(Minimizer("SAM", rho), lab.seeds[0], which) for rho in lab.scale.rhos[1:]})


def _best(lab: Lab, candidates: dict[Any, TrainSpec]) -> Any:
    """The candidate with the most success on validation images and targets, at the end of its training."""
    end = float(lab.scale.epochs)
    runs = {str(name): [spec] for name, spec in candidates.items()}
    seen = lab.transfer(runs, epochs=[end], role="validation")
    return max(candidates, key=lambda name: seen[str(name)].at(end).value)


def stopping_epoch(lab: Lab, which: int = 0) -> float:
    """When to stop SGD: the probed epoch with the most success on validation images and targets, mean over seeds."""
    (specs,) = _seeds(lab, [None], which, every=which == 0)
    return _best_epoch(lab, specs)


def _best_epoch(lab: Lab, specs: list[TrainSpec]) -> float:
    (seen,) = lab.transfer({"SGD": specs}, role="validation").values()
    return max(seen.epochs, key=lambda e: seen.at(e).value)


def budget_runs(lab: Lab, stop: float) -> Runs:
    """SGD, SAM and RFN on the first architecture: the seeds that have been attacked under every ε."""
    runs, end = flat_runs(lab), [float(lab.scale.epochs)]
    runs = {name: runs[name] for name in ("SGD", "SAM", "RFN")}

    def done(seed: int) -> bool:
        asked = [(specs[seed], [stop, *end] if name == "SGD" else end) for name, specs in runs.items()]
        attacks = [replace(lab.scale.attack, eps=eps) for eps in lab.scale.budgets]
        return all(lab.recorded("transfer", spec, at, attack) for spec, at in asked for attack in attacks)

    count = min(_without_gap(lab, done, every=True), len(runs["SGD"]))
    return {name: specs[:count] for name, specs in runs.items()}


# --- C7, C8: other surrogates, and techniques -------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A surrogate as it is compared with others: the networks of `specs`, one a seed, at `epoch`.

    `recipe` makes of a run what is attacked; where that is several networks, `single` makes the one whose sharpness
    and robust accuracy are measured (None: the last weights).
    """

    specs: list[TrainSpec]
    epoch: float
    recipe: Recipe | None = None
    single: Recipe | None = None


def contenders(lab: Lab) -> dict[str, Contender]:
    """Every surrogate of claim C7, on the first architecture.

    In replay: of each the first seed, and those after it that are recorded without a gap; one of which nothing is
    recorded is left out, unless it is SGD or RFN, without which there is nothing to compare.
    """
    found = {}
    for name, whole in _all_contenders(lab).items():

        def recorded(seed: int, c: Contender = whole) -> bool:
            spec, at = c.specs[seed], [c.epoch]
            transferred = all(lab.recorded("transfer", spec, at, None, c.recipe, robust) for robust in (False, True))
            return transferred and all(lab.recorded(k, spec, at, None, c.single) for k in ("sharpness", "robust"))

        if lab.mode == "run" or name in JUDGED or recorded(0):
            found[name] = replace(whole, specs=whole.specs[: _without_gap(lab, recorded, every=True)])
    return found


def _all_contenders(lab: Lab) -> dict[str, Contender]:
    scale, end = lab.scale, float(lab.scale.epochs)

    def under(minimizer: Minimizer | None) -> list[TrainSpec]:
        return [scale.flat(minimizer, seed) for seed in lab.seeds]

    runs = {"SGD, stopped early": under(None), "SGD": under(None), "SAM": under(Minimizer("SAM", scale.rhos[0]))}
    runs |= {"RFN": under(Minimizer("SAM", chosen_rho(lab)))}
    found = {name: Contender(specs, end) for name, specs in runs.items()}
    found["SGD, stopped early"] = replace(found["SGD, stopped early"], epoch=stopping_epoch(lab))
    known = all(lab.recorded("transfer", spec, [end]) for spec in slight_runs(lab).values())
    if lab.mode == "run" or known:
        found["SAT"] = Contender([scale.slight(chosen_slight(lab), seed) for seed in lab.seeds], end)
    collects = {"per_epoch": scale.rivals.per_epoch}
    mean = Averaged(**collects)
    others = [scale.rivals_of(seed) for seed in lab.seeds]
    for name, run, recipe in (
        ("LGV", "LGV", Collected(**collects)),
        ("LGV-SWA", "LGV", mean),
        ("More Bayesian", "More Bayesian", Drawn(**collects, draws=scale.rivals.draws)),
        ("aligned", "aligned", None),
        ("SAM & IR", "SAM & IR", None),
    ):
        specs = [each[run] for each in others]
        found[name] = Contender(specs, float(specs[0].epochs), recipe, recipe if recipe == mean else None)
    return found


def slight_runs(lab: Lab) -> dict[Adversary, TrainSpec]:
    """Slight adversarial training over its candidates, first seed."""
    return {adversary: lab.scale.slight(adversary, lab.seeds[0]) for adversary in lab.scale.rivals.slight}


def chosen_slight(lab: Lab) -> Adversary:
    """SAT's adversary: the candidate with the most success on validation images and targets, as RFN's ρ is chosen."""
    return _best(lab, slight_runs(lab))


Technique = tuple[IterativeAttack, Recipe | None]


def techniques(lab: Lab) -> dict[str, Technique]:
    """The scale's techniques of claim C8 around its attack; the last two are recipes for the network attacked."""
    plain, near = lab.scale.attack, Neighbours(lab.scale.rivals.neighbours)
    attacks = {
        "MI": plain | MI(),
        "NI": plain | NI(),
        "DI": plain | DI(),
        "TI": plain | TI(),
        "SI": plain | SI(),
        "VMI": plain | MI(variance=near),
        "MI+DI+TI": plain | MI() | DI() | TI(),
    }
    known = {n: (a, None) for n, a in attacks.items()} | {"SGM": (plain, Skips()), "ghosts": (plain, Ghosts())}
    return {"none": (plain, None)} | {name: known[name] for name in lab.scale.rivals.techniques}


ADDED_TO = ("SGD, stopped early", "SGD", "SAM", "RFN", "SAT")  # surrogates that techniques are added to
JUDGED = ("SGD", "RFN")  # those of them that claim C8 is about


def technique_grid(lab: Lab) -> tuple[dict[str, Contender], dict[str, Technique]]:
    """The surrogates and techniques of claim C8; SGD and RFN, which are judged, with every seed, the others with one.

    In replay: the techniques and surrogates that are recorded, and the seeds that SGD and RFN both have.
    """
    known = {name: c for name, c in contenders(lab).items() if name in ADDED_TO}

    def done(name: str, technique: Technique, seed: int) -> bool:
        c = known[name]
        return seed < len(c.specs) and lab.recorded("transfer", c.specs[seed], [c.epoch], *technique)

    def kept(name: str, technique: Technique, seed: int = 0) -> bool:
        return lab.mode == "run" or done(name, technique, seed)

    added = {t: how for t, how in techniques(lab).items() if all(kept(name, how) for name in JUDGED)}
    rows = {name: c for name, c in known.items() if all(kept(name, how) for how in added.values())}
    every = [(name, how) for name in JUDGED for how in added.values()]
    seeds = _without_gap(lab, lambda seed: all(done(*each, seed) for each in every), every=True)
    return {n: replace(c, specs=c.specs[: seeds if n in JUDGED else 1]) for n, c in rows.items()}, added


def trade_off(lab: Lab) -> dict[str, dict[float, TrainSpec]]:
    """SAT by its ε and SAM by its ρ, the first seed, in replay those recorded: success against robust accuracy."""
    runs = {
        "SAT": {a.eps: spec for a, spec in slight_runs(lab).items()},
        "RFN": {rho: lab.scale.flat(Minimizer("SAM", rho), lab.seeds[0]) for rho in lab.scale.rhos},
    }
    end = [float(lab.scale.epochs)]

    def known(spec: TrainSpec) -> bool:
        return lab.mode == "run" or all(lab.recorded(kind, spec, end) for kind in ("transfer", "robust"))

    return {name: {x: spec for x, spec in of.items() if known(spec)} for name, of in runs.items()}


# --- everything there is to do ----------------------------------------------------------------------


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


def _targets(lab: Lab) -> Iterator[Job]:
    for t in lab.targets():
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
        yield Job(f"{arch}, {name}, seed {seed}", lab, "transfer", spec, _epochs(lab, spec))
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
    return all(lab.recorded("transfer", spec, _epochs(lab, spec)) for spec in specs)


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
            (spec,) = _on(lab, features, [seed])
            coarse = lab.scale.sharp(spec.schedule, fine=False)
            if name in CONTROLS and seed != first:
                continue
            label = f"on {name}, seed {seed}"
            yield Job(f"transfer, {label}", lab, "transfer", spec, lab.scale.probed(spec.schedule))
            yield Job(f"robust accuracy, {label}", lab, "robust", spec, coarse)
            for eps in lab.scale.features.budgets if seed == first and name not in CONTROLS else ():
                attack = replace(lab.scale.attack, eps=eps)
                yield Job(f"ε {255 * eps:g}/255, {label}", lab, "transfer", spec, coarse, attack)
    for name, specs in _all_checked(lab).items():
        for spec in specs:
            yield Job(f"check, {name}, seed {spec.seed}", lab, "check", spec, end)
    for steps in lab.scale.features.tried:
        for robust in (True, False):
            features = lab.scale.inverted(robust, steps)
            (spec,) = _on(lab, features, [first])
            yield Job(f"check, {features.name} by {steps} steps, seed {first}", lab, "check", spec, end)


def _rivals(lab: Lab) -> Iterator[Job]:
    for t in lab.targets("robust"):
        spec = lab.scale.target(t)
        yield Job(f"target {t.name}", lab, "clean", spec, [float(spec.epochs)])
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
    main = _all_contenders(lab)
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
        a_step = {"SGD": 1, "SWA": 1, "GAM": 4}.get(spec.minimizer.method if spec.minimizer else "SGD", 2)
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
    shape = data.SHAPES[lab.scale.data]
    model = execution.resolve(lab.device).place(models.build(arch, width=width, image_shape=shape)).train()
    x = torch.rand(32, *shape, device=lab.device)
    for _ in range(2):  # the first time is not typical
        start = time.perf_counter()
        model(x).sum().backward()
        if lab.device == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
    return taken / len(x)
