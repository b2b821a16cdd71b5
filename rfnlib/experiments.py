"""What each claim needs measured: the training runs, by name.

A run's name is that of its curve. Choices that an experiment makes on the way (the epoch at which to stop early, the
ρ of RFN) are made here, on validation images and validation targets, and judged elsewhere on the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rfnlib.attacks import DI, MI, NI, SI, TI, IterativeAttack
from rfnlib.lab import Lab
from rfnlib.recipes import Averaged, Collected, Drawn, Ghosts, Recipe, Skips
from rfnlib.specs import Adversary, FeatureSet, Minimizer, TrainSpec
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
    every = {name: trained_on(lab, features, lab.seeds) for name, features in lab.scale.feature_sets().items()}
    main = {name: specs for name, specs in every.items() if name not in CONTROLS}
    seeds = _without_gap(lab, lambda seed: all(_followed(lab, specs[seed]) for specs in main.values()), every=True)
    controls = {name: every[name][:1] for name in CONTROLS}
    known = {n: specs for n, specs in controls.items() if lab.mode == "run" or _followed(lab, specs[0])}
    return {name: specs[:seeds] for name, specs in main.items()} | known


def inversion_runs(lab: Lab) -> dict[int, Runs]:
    """Surrogates trained on D_R and D_NR by the number of inversion steps: the first seed, in replay those recorded."""
    end = [float(lab.scale.epochs)]

    def known(runs: Runs) -> bool:
        return lab.mode == "run" or all(lab.recorded("check", specs[0], end) for specs in runs.values())

    return {steps: runs for steps, runs in every_inversion(lab).items() if known(runs)}


def every_inversion(lab: Lab) -> dict[int, Runs]:
    """As `inversion_runs`, recorded or not."""
    found = {}
    for steps in sorted({*lab.scale.features.tried, lab.scale.features.steps}):
        sets = [lab.scale.inverted(robust, steps) for robust in (True, False)]
        found[steps] = {features.name: trained_on(lab, features, lab.seeds[:1]) for features in sets}
    return found


def checked_runs(lab: Lab) -> Runs:
    """Surrogates trained on D_R and D_NR, and on the controls by radius (one seed); in replay those recorded."""
    end = [float(lab.scale.epochs)]

    def known(spec: TrainSpec) -> bool:
        return lab.mode == "run" or lab.recorded("check", spec, end)

    runs = {name: list(itertools.takewhile(known, specs)) for name, specs in every_check(lab).items()}
    return {name: specs for name, specs in runs.items() if specs}


def every_check(lab: Lab) -> Runs:
    """As `checked_runs`, recorded or not."""
    inverted = {f.name: trained_on(lab, f, lab.seeds) for f in map(lab.scale.inverted, (True, False))}
    controls = {
        f"{name}, ε = {radius:g}": trained_on(lab, features, lab.seeds[:1])
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


def trained_on(lab: Lab, features: FeatureSet | None, seeds: Sequence[int]) -> list[TrainSpec]:
    """Surrogates of claim C1 trained on a built set; None: on D itself."""
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
        both = all(
            lab.recorded("transfer", s, attacked_at(lab, s)) and lab.recorded("sharpness", s, end) for s in specs
        )
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
        return all(lab.recorded("transfer", specs[seed], attacked_at(lab, specs[seed])) for specs in runs)

    count = _without_gap(lab, recorded, every)
    return [specs[:count] for specs in runs]


def _without_gap(lab: Lab, recorded: Callable[[int], bool], every: bool = False) -> int:
    """How many seeds to take: the first, and those after it up to one that is not `recorded`.

    With `every`, a run that may compute has all of them.
    """
    if every and lab.mode == "run":
        return len(lab.seeds)
    return next((n for n in range(1, len(lab.seeds)) if not recorded(n)), len(lab.seeds))


def attacked_at(lab: Lab, spec: TrainSpec) -> list[float]:
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
    for name, whole in every_contender(lab).items():

        def recorded(seed: int, c: Contender = whole) -> bool:
            spec, at = c.specs[seed], [c.epoch]
            transferred = all(lab.recorded("transfer", spec, at, None, c.recipe, robust) for robust in (False, True))
            return transferred and all(lab.recorded(k, spec, at, None, c.single) for k in ("sharpness", "robust"))

        if lab.mode == "run" or name in JUDGED or recorded(0):
            found[name] = replace(whole, specs=whole.specs[: _without_gap(lab, recorded, every=True)])
    return found


def every_contender(lab: Lab) -> dict[str, Contender]:
    """As `contenders`, recorded or not, with all seeds; SAT once its ε can be chosen."""
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
