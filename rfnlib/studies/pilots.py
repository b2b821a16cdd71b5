"""Pilot seeds: the gates that a scale must pass, and every choice. They judge nothing, and judged seeds choose nothing.

A gate looks at training, never at a difference between methods. A choice is the candidate with the most success on
*validation* images and *validation* targets, mean over the pilot seeds; hits on test images are read by nothing here.
Both are made once, for all judged seeds, before the first of them is trained: see `PREREGISTRATION.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from rfnlib.claims import Claim, Gate
from rfnlib.curves import TransferCurve
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.minimizers import method
from rfnlib.probes import Transfer
from rfnlib.recipes import Collected
from rfnlib.scale import Arch, Scale
from rfnlib.specs import Adversary, Minimizer, Step, TrainSpec

NOTEBOOK = ""
CLAIMS: dict[str, Claim] = {}

K = TypeVar("K")

# The gates' thresholds; success and accuracies in [0, 1].
PLATEAU = 0.01  # change of success an epoch, at a constant rate, over a tenth of the run before the first judged decay
FIT = 0.95  # training accuracy of SGD at its end, at least
STILL = 0.02  # change of natural accuracy over the last quarter
ENOUGH = (0.15, 0.85)  # success of SGD at its end

STOPPED = "SGD, stopped early"  # the name of that surrogate in every study
RIVALS = ("LGV", "SAT")  # the better of them, on pilots, is whom claim C7 compares RFN with


# --- training runs, as pilots and judged seeds have them ----------------------------------------------


def sam(scale: Scale, rho: float, seed: int, arch: Arch | None = None) -> TrainSpec:
    """SAM with radius `rho` under the standard schedule; with a large one it is RFN."""
    return scale.flat(Minimizer("SAM", rho), seed, arch)


def minimizers(scale: Scale) -> dict[str, Minimizer]:
    """The minimizers of claim C5 that the scale compares, at their usual settings; those that average begin halfway."""
    usual = {"SAM": scale.rhos[0], "ASAM": 0.5, "GSAM": 0.05, "LookSAM": 0.1, "GAM": 0.2, "WASAM": 0.05, "SWA": 0.0}
    half = float(scale.epochs // 2)
    return {m: Minimizer(m, usual[m], average_from=half if method(m).averages else None) for m in scale.minimizers}


def slight(scale: Scale, adversary: Adversary, seed: int) -> TrainSpec:
    """Slight adversarial training, SAT (Springer et al. 2021), under the standard schedule."""
    return replace(scale.flat(None, seed), adversary=adversary)


def lgv(scale: Scale, seed: int) -> TrainSpec:
    """The run whose weights LGV collects (Gubri et al. 2022): from SGD's end, at half its first rate, which stays."""
    return onwards(scale.flat(None, seed), scale.lr / 2, scale.rivals.epochs, weight_decay=1e-4)


def onwards(start: TrainSpec, rate: float, epochs: int, **how: Any) -> TrainSpec:
    """The run that goes on from the end of `start` at a rate that stays; `how` names fields that change."""
    return replace(start, schedule=Step(rate), epochs=epochs, start=start, **how)


def halved(scale: Scale, spec: TrainSpec) -> TrainSpec:
    """`spec` under the standard schedule in half the epochs, decays included."""
    sooner = Step(scale.lr, tuple(m / 2 for m in scale.standard))
    return replace(spec, epochs=scale.epochs // 2, schedule=sooner)


def checkpoint(scale: Scale, seed: int) -> TrainSpec:
    """The run whose rate is constant, up to the first decay of the standard schedule."""
    return replace(scale.surrogate(Step(scale.lr), seed), epochs=min(scale.standard))


# --- arms -----------------------------------------------------------------------------------------------


def late(end: float) -> float:
    """The epoch at which the last quarter of a training of so many epochs begins."""
    return 0.75 * end


def arms(lab: Lab, arch: Arch | None = None) -> dict[str, Arm]:
    """What the gates and the choices of ρ and of the stopping epoch rest on: SGD, and SAM over the grid of ρ.

    Args:
        arch: None: the architecture that claims are judged on, with every pilot seed; else another, with the first.
    """
    scale = lab.scale
    first = arch in (None, scale.surrogates[0])
    seeds = scale.pilots if first else scale.pilots[:1]
    standard = [scale.flat(None, seed, arch) for seed in seeds]
    along = At(scale.transfer, (*scale.attacked_at(standard[0].schedule), late(scale.end)))
    found = [Arm("SGD", standard, along)]
    if first:
        constant = [scale.surrogate(Step(scale.lr), seed) for seed in seeds]
        before = [e for e in scale.attacked_at(constant[0].schedule) if e <= min(scale.decays)]
        found.append(Arm("constant", constant, At(scale.transfer, tuple(before))))
    at_end = At(scale.transfer, (late(scale.end), scale.end))
    found += [Arm(f"ρ = {rho:g}", [sam(scale, rho, s, arch) for s in seeds], at_end) for rho in scale.rhos]
    return by_name(*found)


def rival_arms(lab: Lab) -> dict[str, Arm]:
    """What the choices among other surrogates rest on: SAT over its grid of ε, and LGV, on the first pilot seed."""
    scale, seeds = lab.scale, lab.scale.pilots[:1]
    at_end = At(scale.transfer, (scale.end,))
    found = [Arm(_sat(a), [slight(scale, a, seed) for seed in seeds], at_end) for a in scale.rivals.slight]
    last, recipe = (float(scale.rivals.epochs),), Collected(per_epoch=scale.rivals.per_epoch)
    found.append(Arm("LGV", [lgv(scale, seed) for seed in seeds], At(scale.transfer, last, recipe)))
    return by_name(*found)


def minimizer_arms(lab: Lab) -> dict[str, Arm]:
    """The minimizers other than SAM, on the first pilot seed: what they decide is secondary."""
    scale, at_end = lab.scale, At(lab.scale.transfer, (lab.scale.end,))
    others = {name: m for name, m in minimizers(scale).items() if name != "SAM"}
    return {name: Arm(name, [scale.flat(m, scale.pilots[0])], at_end) for name, m in others.items()}


def plan(lab: Lab) -> Iterator[Measurement]:
    """What gates and primary differences need: SGD and the grid of ρ on the first architecture, then SAT and LGV.

    What only secondary differences need stands in the plans of the studies that have them.
    """
    yield from by_seed(arms(lab).values())
    yield from by_seed(rival_arms(lab).values())


# --- choices --------------------------------------------------------------------------------------------
# In replay each raises MissingRecord while what it rests on is not complete.


def stopping_epoch(lab: Lab, arch: Arch | None = None) -> float:
    """When to stop SGD early: the attacked epoch with the most success."""
    return validated(lab, arms(lab, arch)["SGD"]).best


def by_rho(lab: Lab, arch: Arch | None = None) -> dict[float, float]:
    """Success at the end of training, by ρ."""
    found = arms(lab, arch)
    return {rho: _at_end(lab, found[f"ρ = {rho:g}"]) for rho in lab.scale.rhos}


def chosen_rho(lab: Lab, arch: Arch | None = None) -> float:
    """RFN's ρ: of the radii above SAM's, the one with the most success at the end of training."""
    success = by_rho(lab, arch)
    return most({rho: success[rho] for rho in lab.scale.rhos[1:]})


def chosen_slight(lab: Lab) -> Adversary:
    """SAT's adversary: the candidate with the most success at the end of training."""
    return most(_by_adversary(lab))


def best_minimizer(lab: Lab) -> str:
    """The minimizer other than SAM with the most success at the end of training, on the first pilot seed."""
    return most({name: _at_end(lab, arm) for name, arm in minimizer_arms(lab).items()})


def best_rival(lab: Lab) -> str:
    """The better of `RIVALS`; SAT with its chosen adversary."""
    success = {"LGV": _at_end(lab, rival_arms(lab)["LGV"]), "SAT": max(_by_adversary(lab).values())}
    return most({name: success[name] for name in RIVALS})


def most(success: Mapping[K, float]) -> K:
    """The candidate with the most success; of equal ones the first."""
    return max(success, key=lambda candidate: success[candidate])


def validated(lab: Lab, arm: Arm) -> TransferCurve:
    """The curve of `arm` on validation images and targets."""
    return lab.read(arm, role="validation")


def _sat(adversary: Adversary) -> str:
    return f"SAT ε = {adversary.eps:g}"


def _by_adversary(lab: Lab) -> dict[Adversary, float]:
    found = rival_arms(lab)
    return {adversary: _at_end(lab, found[_sat(adversary)]) for adversary in lab.scale.rivals.slight}


def _at_end(lab: Lab, arm: Arm) -> float:
    return validated(lab, arm).at().value


# --- gates ----------------------------------------------------------------------------------------------


def plateau(lab: Lab) -> Gate:
    """At a constant rate success stands still over a tenth of the run before the first judged decay.

    Its slope by least squares over the attacked epochs from there on, and the one before if there is no other.
    """
    seen = validated(lab, arms(lab)["constant"])
    begin = min(lab.scale.decays) - lab.scale.end / 10
    within = max(2, sum(e >= begin for e in seen.epochs))
    return plateau_of(seen.epochs[-within:], [seen.at(e).value for e in seen.epochs[-within:]])


def plateau_of(epochs: Sequence[float], success: Sequence[float]) -> Gate:
    """The gate's judgement of these rates at these epochs."""
    if len(epochs) < 2:
        return Gate("plateau", False, f"attacked at epoch {epochs[0]:g} alone before the first judged decay")
    slope = float(np.polyfit(epochs, success, 1)[0])
    between = f"from epoch {epochs[0]:g} to {epochs[-1]:g}"
    figure = f"success {100 * slope:+.2f} points an epoch {between} (less than {100 * PLATEAU:g})"
    return Gate("plateau", abs(slope) < PLATEAU, figure)


def fit(lab: Lab) -> Gate:
    """SGD fits its training images, un-augmented, at its end."""
    reached = validated(lab, arms(lab)["SGD"]).mean("training")
    return Gate("fit", reached >= FIT, f"training accuracy of SGD {reached:.1%} (at least {FIT:.0%})")


def long_enough(lab: Lab) -> Gate:
    """Natural accuracy of SGD stands still over the last quarter."""
    return _long_enough("long enough, SGD", {"SGD": validated(lab, arms(lab)["SGD"])})


def flat_long_enough(lab: Lab) -> Gate:
    """So does that of SAM at each ρ up to the chosen one."""
    found = arms(lab)
    judged = [f"ρ = {rho:g}" for rho in lab.scale.rhos if rho <= chosen_rho(lab)]
    return _long_enough("long enough, SAM", {name: validated(lab, found[name]) for name in judged})


def change(run: TransferCurve) -> float:
    """Of natural accuracy over the last quarter of training, mean over seeds."""
    return float((run.accuracy[:, -1] - run.accuracy[:, run.index(late(run.end))]).mean())


def settled(run: TransferCurve) -> bool:
    """Whether natural accuracy stands still there."""
    return abs(change(run)) < STILL


def _long_enough(name: str, runs: Mapping[str, TransferCurve]) -> Gate:
    worst = max(runs, key=lambda arm: abs(change(runs[arm])))
    at = "" if len(runs) == 1 else f" at {worst}, where it changes most"
    found = f"natural accuracy {100 * change(runs[worst]):+.1f} points over the last quarter{at}"
    return Gate(name, settled(runs[worst]), f"{found} (less than {100 * STILL:g})")


def enough(lab: Lab) -> Gate:
    """SGD at its end succeeds neither too seldom nor too often for differences to show."""
    rate, (low, high) = _at_end(lab, arms(lab)["SGD"]), ENOUGH
    found = f"success of SGD on validation targets {rate:.1%} ({low:.0%} to {high:.0%})"
    return Gate("enough", low <= rate <= high, found)


def rho_bracketed(lab: Lab) -> Gate:
    """The most successful ρ is not at an edge of its grid."""
    return bracketed("ρ bracketed", "ρ", by_rho(lab))


def eps_bracketed(lab: Lab) -> Gate:
    """Neither is the ε of SAT."""
    return bracketed("ε bracketed", "SAT's ε", {a.eps: rate for a, rate in _by_adversary(lab).items()})


def bracketed(name: str, letter: str, success: dict[float, float]) -> Gate:
    """Whether the most successful of a grid's values is inside it."""
    best, grid = most(success), sorted(success)
    of = ", ".join(f"{x:g}" for x in grid)
    return Gate(name, grid[0] < best < grid[-1], f"most success at {letter} = {best:g} of {of} (not at an edge)")


EVERY = {
    "plateau": plateau,
    "fit": fit,
    "long enough, SGD": long_enough,
    "enough": enough,
    "long enough, SAM": flat_long_enough,
    "ρ bracketed": rho_bracketed,
    "ε bracketed": eps_bracketed,
}
TRAINED = ("plateau", "fit", "long enough, SGD", "enough")
FLAT = (*TRAINED, "long enough, SAM", "ρ bracketed")
GATES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("C1", "C2", "C3"), TRAINED),
    **dict.fromkeys(("C4", "C5", "C6", "C8"), FLAT),
    "C7": (*FLAT, "ε bracketed"),
}


def gates(lab: Lab, claim: str | None = None) -> list[Gate]:
    """The gates that must be passed before `claim` is judged; None: all that there are.

    Raises:
        MissingRecord: in replay, what a gate looks at is not complete.
    """
    return [EVERY[name](lab) for name in (GATES[claim] if claim else EVERY)]


def excluded(lab: Lab) -> str:
    """Which judged runs the plan excludes, in a sentence: the loss is not finite, or accuracy below half the pilots'.

    Of all claims, as far as they are recorded; runs on built sets are exempt. `PREREGISTRATION.md` says what follows
    for a comparison. Nothing is left out here: so far nothing had to be.
    """
    least, found = validated(lab, arms(lab)["SGD"]).mean("accuracy") / 2, []
    for record in lab.records.values():
        spec = record.spec
        if not isinstance(spec, TrainSpec) or record.kind != Transfer.kind or spec.features:
            continue
        row = record.at(spec.epochs)
        if spec.seed in lab.seeds and row and (row["train_loss"] is None or row["accuracy"] < least):
            found.append(f"{spec.short_name}: loss {row['train_loss']}, natural accuracy {row['accuracy']:.1%}")
    return f"Excluded by the plan: {'; '.join(sorted(set(found)))}." if found else "No run was excluded."


# --- for readers ----------------------------------------------------------------------------------------


def gate_table(lab: Lab) -> pd.DataFrame:
    """A row a gate: its figure, whether it is passed, and the claims that ask for it. Never computes."""
    rows, lab = {}, lab.replaying()
    for name, gate in EVERY.items():
        found, passed = "not recorded yet", ""
        with suppress(MissingRecord):
            judged = gate(lab)
            found, passed = judged.figure, "yes" if judged.passed else "no"
        asked = ", ".join(sorted(claim for claim, of in GATES.items() if name in of))
        rows[name] = {"found": found, "passed": passed, "claims": asked}
    return pd.DataFrame(rows).T.rename_axis("gate")


def choice_table(lab: Lab) -> pd.DataFrame:
    """A row a choice that is made on pilot seeds, as far as it can be made from the records. Never computes."""
    lab = lab.replaying()
    choices: dict[str, Callable[[], str]] = {
        "epoch at which SGD is stopped early": lambda: f"{stopping_epoch(lab):g} of {lab.scale.epochs}",
        "ρ of RFN": lambda: f"{chosen_rho(lab):g}",
        "ε of SAT (l2)": lambda: f"{chosen_slight(lab).eps:g}",
        "the best minimizer besides SAM": lambda: best_minimizer(lab),
        "the better of LGV and SAT": lambda: best_rival(lab),
    }
    for i, arch in enumerate(lab.scale.surrogates[1:], 2):
        choices[f"architecture {i}: stopping epoch"] = partial(_said, stopping_epoch, lab, arch)
        choices[f"architecture {i}: ρ of RFN"] = partial(_said, chosen_rho, lab, arch)
    return choice_rows(choices)


def choice_rows(choices: Mapping[str, Callable[[], str]]) -> pd.DataFrame:
    """A row a choice, as far as it can be made."""
    found = dict.fromkeys(choices, "not possible yet")
    for name, choose in choices.items():
        with suppress(MissingRecord):
            found[name] = choose()
    return pd.DataFrame({"chosen": found}).rename_axis("choice")


def _said(choose: Callable[[Lab, Arch], float], lab: Lab, arch: Arch) -> str:
    return f"{choose(lab, arch):g}"
