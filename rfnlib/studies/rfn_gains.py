"""Claims C4 to C6: what flat surrogates gain over early stopping. Notebook 04.

With s_M(e) the success rate of a surrogate trained by M at epoch e, E the last epoch, e* the epoch at which SGD is
stopped early and ρ* the radius of RFN, both chosen on pilots, three differences are judged:

- C4: s_RFN(E) − s_SGD(e*), RFN being SAM with ρ*;
- C5: s_SAM(E) − s_SGD(e*), SAM with its usual ρ;
- C6: the least-squares slope of s(E) on log₂ ρ over the grid up to ρ*, in points a doubling of ρ.

Each is the mean over the targets, paired by seed and image. All else is secondary and has no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pandas as pd

from rfnlib import claims, words
from rfnlib.attacks import IterativeAttack
from rfnlib.curves import SharpnessCurve, TransferCurve
from rfnlib.intervals import Estimate, Influence, interval, over_seeds, slope
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.scale import Arch
from rfnlib.specs import Step
from rfnlib.studies import pilots
from rfnlib.transfer import DEFAULT, DENOMINATORS

NOTEBOOK = "04_rfn_gains"
CLAIMS = ("C4", "C5", "C6")

RUNS = {"C4": "RFN", "C5": "SAM"}  # whose gain each is about
ANSWERS = {
    claim: {
        "supported": f"{name} beats SGD stopped early",
        "contradicted": f"SGD stopped early beats {name}",
        "no effect": f"{name} and SGD stopped early succeed alike",
        "inconclusive": f"Whether {name} beats SGD stopped early is not decided",
        "not testable": f"Whether {name} beats SGD stopped early cannot be tested at this scale",
    }
    for claim, name in (("C4", "RFN"), ("C5", "SAM at its usual ρ"))
}
ANSWERS["C6"] = {
    "supported": "Larger neighbourhoods raise success",
    "contradicted": "Larger neighbourhoods lower success",
    "no effect": "Success does not depend on the size of the neighbourhood",
    "inconclusive": "Whether larger neighbourhoods raise success is not decided",
    "not testable": "Whether larger neighbourhoods raise success cannot be tested at this scale",
}
FOLLOWS = {
    "supported": "Train the surrogate with SAM, at a ρ chosen on validation targets: a step costs twice as much, and "
    "the surrogate is better than any that early stopping finds.",
    "contradicted": "Stop SGD early rather than train with a large ρ: half the cost, and more success at this scale.",
    "no effect": "RFN is worth its second pass only where no validation targets tell when to stop: SGD stopped early "
    "does as well at this scale, at half the cost.",
    "inconclusive": "No advice follows yet: the interval holds gains and losses that would matter, and more seeds "
    "would narrow it.",
    "not testable": "Nothing follows: a gate says that training at this scale is not what the claims are about. The "
    "differences are printed all the same, as a description.",
}

LONG = 50  # steps of the longer attack that is a sensitivity


# --- arms -----------------------------------------------------------------------------------------------


def main(lab: Lab, arch: Arch | None = None, attack: IterativeAttack | None = None) -> dict[str, Arm]:
    """SGD where it is stopped early and at its end, RFN and SAM at their end: who is compared everywhere.

    By the scale's attack RFN and SAM are attacked along their training too, where notebook 03 looks at their sharpness.

    Args:
        arch: None: the architecture that claims are judged on, with every seed; else another, with the first few.
        attack: None: the scale's.
    """
    scale, seeds = lab.scale, lab.few if arch not in (None, lab.scale.surrogates[0]) else lab.seeds
    probe = replace(scale.transfer, attack=attack or scale.attack)
    stopped = At(probe, (pilots.stopping_epoch(lab, arch), scale.end))
    found = [Arm("SGD", [scale.flat(None, seed, arch) for seed in seeds], stopped)]
    for name, rho in (("RFN", pilots.chosen_rho(lab, arch)), ("SAM", scale.rhos[0])):
        specs = [pilots.sam(scale, rho, seed, arch) for seed in seeds]
        epochs = (scale.end,) if attack else (*scale.sharp_at(specs[0].schedule, fine=False), pilots.late(scale))
        found.append(Arm(name, specs, At(probe, epochs)))
    return {arm.name: arm for arm in found}


def grid(lab: Lab, above: bool = False) -> dict[float, Arm]:
    """SAM by ρ at its end: up to RFN's with every seed, which claim C6 judges, or those `above` with the first few."""
    scale, most, seeds = lab.scale, pilots.chosen_rho(lab), lab.few if above else lab.seeds
    at_end = At(scale.transfer, (scale.end,))
    rhos = [rho for rho in scale.rhos if (rho > most) == above]
    return {rho: Arm(f"ρ = {rho:g}", [pilots.sam(scale, rho, seed) for seed in seeds], at_end) for rho in rhos}


def others(lab: Lab) -> dict[str, Arm]:
    """The other minimizers at their usual settings, and RFN in as many passes as SGD: the first few seeds.

    Minimizers are attacked also where their last quarter begins, to see whether they are trained to the end.
    """
    scale, seeds = lab.scale, lab.few
    at = At(scale.transfer, (pilots.late(scale), scale.end))
    usual = {name: m for name, m in pilots.minimizers(scale).items() if name != "SAM"}
    found = [Arm(name, [scale.flat(m, seed) for seed in seeds], at) for name, m in usual.items()]
    whole = [pilots.sam(scale, pilots.chosen_rho(lab), seed) for seed in seeds]
    half, sooner = scale.epochs // 2, Step(scale.lr, tuple(m / 2 for m in scale.standard))
    found.append(Arm("RFN, half the epochs", [replace(s, epochs=half, schedule=sooner) for s in whole],
                     At(scale.transfer, (0.75 * half, float(half)))))  # fmt: skip
    return {arm.name: arm for arm in found}


def sharp(lab: Lab) -> dict[float, Arm]:
    """SGD (ρ = 0) and SAM by ρ: success and sharpness at their end, the first few seeds."""
    scale, seeds = lab.scale, lab.few
    runs = {0.0: [scale.flat(None, seed) for seed in seeds]}
    runs |= {rho: [pilots.sam(scale, rho, seed) for seed in seeds] for rho in scale.rhos}
    asked = [At(probe, (scale.end,)) for probe in (scale.transfer, scale.sharpness)]
    return {rho: Arm(f"ρ = {rho:g}", specs, *asked) for rho, specs in runs.items()}


def other_attacks(lab: Lab) -> dict[str, IterativeAttack]:
    """The scale's attack with other ε, and with more steps."""
    plain = lab.scale.attack
    found = {f"ε {words.length(eps)}": replace(plain, eps=eps) for eps in lab.scale.other_eps}
    return found | ({f"{LONG} steps": replace(plain, steps=LONG)} if plain.steps < LONG else {})


def arms(lab: Lab) -> dict[str, Arm]:
    """What claims C4 to C6 are judged by."""
    return main(lab) | {arm.name: arm for arm in grid(lab).values()}


def plan(lab: Lab) -> Iterator[Measurement]:
    """SGD, RFN and SAM; the grid of ρ; the main arms under other attacks; sharpness by ρ."""
    yield from by_seed(main(lab).values())
    yield from by_seed(grid(lab).values())
    yield from chain.from_iterable(by_seed(main(lab, attack=a).values()) for a in other_attacks(lab).values())
    yield from by_seed(sharp(lab).values())


def later(lab: Lab) -> Iterator[Measurement]:
    """The other minimizers, and the other architectures."""
    yield from by_seed(others(lab).values())
    for arch in lab.scale.surrogates[1:]:
        yield from by_seed(main(lab, arch).values())


# --- what was found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gains:
    """Flat surrogates of one architecture against SGD stopped early.

    Attributes:
        stop, rho: when SGD is stopped, and RFN's ρ: chosen on pilots.
        curves: by name, on test images and test targets: SGD, RFN and SAM, and of the others those that are complete.
        by_rho: SAM by ρ up to RFN's, every seed; empty while one of them is not complete.
        above: SAM by ρ above it, fewer seeds.
        targets: the names of the test targets.
        best: the minimizer other than SAM that pilots name; None while they cannot.
        gates: of each claim; empty for an architecture that claims are not judged on.
    """

    stop: float
    rho: float
    curves: dict[str, TransferCurve]
    by_rho: dict[float, TransferCurve]
    above: dict[float, TransferCurve]
    targets: list[str]
    best: str | None
    gates: dict[str, list[claims.Gate]]

    # --- differences ---

    def gain(self, name: str, over: float | None = None, targets: list[int] | None = None, **how: str) -> Influence:
        """Success of `name` at its end less that of SGD at epoch `over` (None: stopped early), paired.

        Args:
            how: `denominator`.
        """
        run, epoch = self.curves[name], self.stop if over is None else over
        sgd = self.curves["SGD"].first(run.seeds)
        return run.at(run.end, targets=targets, **how) - sgd.at(epoch, targets=targets, **how)

    def by_target(self, name: str) -> dict[str, Estimate]:
        """The gain of `name` over SGD stopped early, on each target."""
        return {target: interval(self.gain(name, targets=[t])) for t, target in enumerate(self.targets)}

    def success_by_doubling(self, **how: str) -> Influence:
        """The change of success a doubling of ρ, up to RFN's.

        Raises:
            MissingRecord: the grid is not complete.
        """
        runs = self._complete_grid()
        return slope([run.at(run.end, **how) for run in runs], [np.log2(rho) for rho in self.by_rho])

    def accuracy_by_doubling(self) -> Estimate:
        """The change of natural accuracy a doubling of ρ, up to RFN's."""
        table = np.array([run.accuracy[:, run.index(run.end)] for run in self._complete_grid()])
        return over_seeds(np.polyfit([np.log2(rho) for rho in self.by_rho], table, 1)[0])

    def _complete_grid(self) -> list[TransferCurve]:
        if not self.by_rho:
            raise MissingRecord("SAM over the grid of ρ is not complete; compute it with `python -m rfnlib run`.")
        return list(self.by_rho.values())

    def primary(self, claim: str, **how: str) -> Influence:
        """The difference that `claim` is judged by."""
        if claim == "C6":
            return self.success_by_doubling(**how)
        return self.gain(RUNS[claim], **how)

    # --- judgement ---

    def verdict(self, claim: str) -> claims.Verdict:
        """The verdict on `claim`, before Holm's correction over all of them."""
        return claims.judge(claim, self.primary(claim), gates=self.gates[claim])

    def headline(self, claim: str) -> str:
        """What was found on `claim`, in one sentence."""
        found, answer = interval(self.primary(claim)), ANSWERS[claim][self.verdict(claim).word]
        if claim == "C6":
            return (
                f"{answer}: each doubling of ρ up to {self.rho:g} changes it by {words.points(found)} points, and "
                f"natural accuracy by {words.points(self.accuracy_by_doubling())}."
            )
        run, sgd = self.curves[RUNS[claim]], self.curves["SGD"]
        before, after = (words.percent(rate.value) for rate in (sgd.at(self.stop), run.at(run.end)))
        said = (
            f"{answer}: with ρ = {run.spec.minimizer.rho:g} success is {after}, that of SGD stopped at epoch "
            f"{self.stop:g} {before}, a difference of {words.points(found)} points"
        )
        if claim == "C5" and self.best in self.curves:
            seeds = words.count(self.curves[self.best].seeds, "seed")
            gain = words.points(interval(self.gain(self.best)))
            said += f"; {self.best}, the best other minimizer on pilots, differs by {gain} ({seeds})"
        return f"{said}."

    def follows(self) -> str:
        """What the verdict on RFN means for someone who trains a surrogate."""
        return FOLLOWS[self.verdict("C4").word]

    def always(self) -> str:
        """Whether RFN gains on each target: the paper's "always", which no verdict answers."""
        return f"RFN over SGD stopped early, by target: {words.signs(self.by_target('RFN'))}"

    # --- tables ---

    def table(self) -> pd.DataFrame:
        """A row a surrogate: seeds, accuracies, success, gains over SGD stopped early and at its end, passes."""
        rows = {"SGD, stopped early": self._row("SGD", self.stop)}
        rows |= {name: self._row(name, run.end) for name, run in self.curves.items()}
        return pd.DataFrame(rows).T.rename_axis("surrogate")

    def _row(self, name: str, epoch: float) -> dict[str, str]:
        run, sgd = self.curves[name], self.curves["SGD"]
        at, plain = run.index(epoch), name == "SGD"
        early, followed = plain and epoch == self.stop, not plain and len(run.epochs) > 1
        return {
            "seeds": str(run.seeds),
            "success": words.percent(interval(run.at(epoch))),
            "over SGD stopped early, points": "" if early else words.points(interval(self.gain(name))),
            "over SGD at its end, points": "" if plain else words.points(interval(self.gain(name, sgd.end))),
            "natural accuracy": words.percent(float(run.accuracy[:, at].mean())),
            "training accuracy": words.percent(float(run.training[:, at].mean())),
            "trained to the end": ("yes" if self.settled(name) else "no") if followed else "",
            "passes, in epochs": f"{run.passes[:, at].mean():.0f}",
        }

    def settled(self, name: str) -> bool:
        """Whether natural accuracy of `name` stands still over its last quarter, as the gates ask of SGD and SAM."""
        run = self.curves[name]
        accuracy = run.accuracy
        return bool(abs((accuracy[:, -1] - accuracy[:, run.index(0.75 * run.end)]).mean()) < pilots.STILL)

    def target_table(self, names: Sequence[str] = tuple(RUNS.values())) -> pd.DataFrame:
        """The gain over SGD stopped early, a row a target, a column a surrogate."""
        found = {name: {t: words.points(e) for t, e in self.by_target(name).items()} for name in names}
        return pd.DataFrame(found).rename_axis("target")

    def sensitivity(self) -> pd.DataFrame:
        """The primary differences counted in other ways, from the same records; in points (C6: a doubling of ρ)."""
        judged = [claim for claim in CLAIMS if claim != "C6" or self.by_rho]
        found = {"as judged": {claim: interval(self.primary(claim)) for claim in judged}}
        for denominator, said in DENOMINATORS.items():
            if denominator != DEFAULT:
                found[said] = {claim: interval(self.primary(claim, denominator=denominator)) for claim in judged}
        if len(self.targets) > 1:
            drawn = {claim: interval(self.primary(claim), random_targets=True) for claim in judged}
            found["targets as a random sample of such targets"] = drawn
            left = {claim: self._without_one(claim) for claim in RUNS}
            for word, pick in (("least", min), ("most", max)):
                found[f"without the target that leaves the {word}"] = {
                    claim: pick(each, key=lambda e: e.value) for claim, each in left.items()
                }
        shown = {name: {claim: words.points(e) for claim, e in of.items()} for name, of in found.items()}
        return pd.DataFrame(shown).T.fillna("").rename_axis("counted")

    def _without_one(self, claim: str) -> list[Estimate]:
        name, every = RUNS[claim], range(len(self.targets))
        return [interval(self.gain(name, targets=[t for t in every if t != left])) for left in every]


def measure(lab: Lab, arch: Arch | None = None) -> Gains:
    """Claims C4 to C6 at `lab`'s scale; of another architecture the main arms, which judge nothing.

    Raises:
        MissingRecord: in replay, SGD, RFN or SAM are not complete.
    """
    first = arch in (None, lab.scale.surrogates[0])
    curves = _read(lab, lab.shown(main(lab, arch), needed=("SGD", *RUNS.values())))
    stop, rho = pilots.stopping_epoch(lab, arch), pilots.chosen_rho(lab, arch)
    names = [t.name for t in lab.scale.targets_of("standard") if t.role == "test"]
    if not first:
        return Gains(stop, rho, curves, {}, {}, names, None, {})
    curves |= _read(lab, lab.shown(others(lab)))
    by_rho, above = grid(lab), grid(lab, above=True)
    complete = len(lab.shown(by_rho.values())) == len(by_rho)
    return Gains(
        stop,
        rho,
        curves,
        {r: lab.read(arm) for r, arm in by_rho.items()} if complete else {},
        {r: lab.read(arm) for r, arm in above.items() if arm.name in lab.shown(above.values())},
        names,
        _known(lab),
        {claim: pilots.gates(lab, claim) for claim in CLAIMS},
    )


def architectures(lab: Lab) -> dict[str, Gains]:
    """As `measure`, of each architecture that is complete."""
    found = {lab.scale.surrogates[0].label: measure(lab)}
    for arch in lab.scale.surrogates[1:]:
        try:
            found[arch.label] = measure(lab, arch)
        except MissingRecord:
            continue
    return found


def under_other_attacks(lab: Lab) -> pd.DataFrame:
    """Gains of RFN and SAM over SGD stopped early under other attacks, those that are complete; in points."""
    rows = {}
    for name, attack in {"as judged": None, **other_attacks(lab)}.items():
        shown = lab.shown(main(lab, attack=attack))
        if {"SGD", *RUNS.values()} <= shown.keys():
            curves = _read(lab, shown)
            sgd = curves["SGD"]
            early = sgd.at(sgd.epochs[0])
            rows[name] = {"SGD, stopped early": words.percent(interval(early))}
            rows[name] |= {n: words.points(interval(curves[n].at(curves[n].end) - early)) for n in RUNS.values()}
    return pd.DataFrame(rows).T.rename_axis("attack")


@dataclass(frozen=True)
class Sweep:
    """Success and sharpness at the end of training by ρ, 0 being SGD."""

    success: dict[float, TransferCurve]
    sharpness: dict[float, SharpnessCurve]

    def table(self) -> pd.DataFrame:
        """A row a ρ; sharpness in means over seeds."""
        rows = {}
        for rho, run in self.success.items():
            flat = self.sharpness[rho]
            means = {label: words.number(float(flat.at(flat.end, m).mean())) for m, label in MEASURES.items()}
            accuracy = words.percent(float(run.accuracy[:, -1].mean()))
            rows[f"{rho:g}" if rho else "0 (SGD)"] = {
                "seeds": str(run.seeds), "success": words.percent(interval(run.at(run.end))),
                "natural accuracy": accuracy, **means,
            }  # fmt: skip
        return pd.DataFrame(rows).T.rename_axis("ρ")


MEASURES = {m: words.MEASURES[m] for m in ("top", "matched", "trace")} | {"loss": "training loss"}


def sweep(lab: Lab) -> Sweep:
    """Success and sharpness by ρ, of those that are complete."""
    found, shown = sharp(lab), lab.shown(sharp(lab).values())
    found = {rho: arm for rho, arm in found.items() if arm.name in shown}
    return Sweep(_read(lab, found), {rho: lab.read(arm, lab.scale.sharpness) for rho, arm in found.items()})


def _read(lab: Lab, shown: dict) -> dict:
    return {name: lab.read(arm) for name, arm in shown.items()}


def _known(lab: Lab) -> str | None:
    try:
        return pilots.best_minimizer(lab)
    except MissingRecord:
        return None
