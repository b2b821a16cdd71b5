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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from rfnlib import claims, words
from rfnlib.attacks import IterativeAttack
from rfnlib.claims import Claim, Gate
from rfnlib.curves import SharpnessCurve, TransferCurve
from rfnlib.intervals import Estimate, Influence, over_seeds, slope
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.scale import Arch
from rfnlib.specs import Step
from rfnlib.studies import counting, pilots

NOTEBOOK = "04_rfn_gains"
CLAIMS = claims.by_id(
    Claim(
        "C4",
        "RFN always improves over early stopping",
        ("RFN − early stopping",),
        margin=0.03,
        paper="by up to 47 points (v1)",
        answer="RFN {beats|loses to|does as well as} SGD stopped early",
        follows=(
            "Train the surrogate with SAM, at a ρ chosen on validation targets: a step costs twice as much, and the "
            "surrogate is better than the one that is stopped early.",
            "Stop SGD early rather than train with a large ρ: half the cost, and more success at this scale.",
            "SGD stopped early does as well as RFN at this scale, at half the cost a step; either needs validation "
            "targets, the one for when to stop, the other for ρ.",
        ),
    ),
    Claim(
        "C5",
        "Of seven minimizers SAM consistently beats early stopping",
        ("SAM − early stopping",),
        margin=0.03,
        paper="by up to 28.8 points (v2)",
        answer="SAM at its usual ρ {beats|loses to|does as well as} SGD stopped early",
    ),
    Claim(
        "C6",
        "Large flat neighbourhoods raise transferability, at a cost in natural accuracy",
        ("success by log ρ",),
        margin=0.03,
        unit="points a doubling",
        answer="larger neighbourhoods {raise|lower|do not change} success",
    ),
)
RUNS = {"C4": "RFN", "C5": "SAM"}  # whose gain each is about

LONG = 50  # steps of the longer attack that is a sensitivity


# --- arms -----------------------------------------------------------------------------------------------


def main(lab: Lab, arch: Arch | None = None, attack: IterativeAttack | None = None) -> dict[str, Arm]:
    """SGD where it is stopped early and at its end, RFN and SAM at their end: who is compared everywhere.

    Args:
        arch: None: the architecture that claims are judged on, with every seed; else another, with the first few.
        attack: None: the scale's.
    """
    scale, seeds = lab.scale, lab.few if arch not in (None, lab.scale.surrogates[0]) else lab.seeds
    probe = replace(scale.transfer, attack=attack or scale.attack)
    rhos = {"RFN": pilots.chosen_rho(lab, arch), "SAM": scale.rhos[0]}
    sgd = [scale.flat(None, seed, arch) for seed in seeds]
    found = [Arm("SGD", sgd, At(probe, (pilots.stopping_epoch(lab, arch), scale.end)))]
    for name, rho in rhos.items():
        found.append(Arm(name, [pilots.sam(scale, rho, s, arch) for s in seeds], At(probe, (scale.end,))))
    return by_name(*found)


def along(lab: Lab, arch: Arch | None = None) -> dict[str, Arm]:
    """RFN and SAM along their training: are they trained to the end? Notebook 03 looks at their sharpness there."""
    scale, of = lab.scale, main(lab, arch)
    epochs = (*scale.sharp_at(Step(scale.lr, scale.standard), fine=False), pilots.late(scale.end))
    at = At(scale.transfer, epochs)
    return {name: Arm(f"{name} along its training", of[name].specs, at) for name in RUNS.values()}


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
    at = At(scale.transfer, (pilots.late(scale.end), scale.end))
    usual = {name: m for name, m in pilots.minimizers(scale).items() if name != "SAM"}
    found = [Arm(name, [scale.flat(m, seed) for seed in seeds], at) for name, m in usual.items()]
    whole = [pilots.sam(scale, pilots.chosen_rho(lab), seed) for seed in seeds]
    shorter = [pilots.halved(scale, spec) for spec in whole]
    half = float(shorter[0].epochs)
    found.append(Arm("RFN, half the epochs", shorter, At(scale.transfer, (pilots.late(half), half))))
    return by_name(*found)


def sharp(lab: Lab) -> dict[float, Arm]:
    """SGD (ρ = 0) and SAM by ρ: success and sharpness at their end; the seeds are those of `grid`.

    Raises:
        MissingRecord: in replay, RFN's ρ is not chosen yet.
    """
    scale, by_rho = lab.scale, grid(lab) | grid(lab, above=True)
    runs = {0.0: [scale.flat(None, seed) for seed in lab.seeds], **{rho: arm.specs for rho, arm in by_rho.items()}}
    asked = [At(probe, (scale.end,)) for probe in (scale.transfer, scale.sharpness)]
    return {rho: Arm(f"ρ = {rho:g}", specs, *asked) for rho, specs in runs.items()}


def sharp_early(lab: Lab) -> Arm:
    """SGD where it is stopped early, asked the same."""
    scale, at = lab.scale, (pilots.stopping_epoch(lab),)
    asked = [At(probe, at) for probe in (scale.transfer, scale.sharpness)]
    return Arm(pilots.STOPPED, [scale.flat(None, seed) for seed in lab.seeds], *asked)


def other_attacks(lab: Lab) -> dict[str, IterativeAttack]:
    """The scale's attack with other ε, and with more steps."""
    plain = lab.scale.attack
    found = {f"ε {words.length(eps)}": replace(plain, eps=eps) for eps in lab.scale.other_eps}
    return found | ({f"{LONG} steps": replace(plain, steps=LONG)} if plain.steps < LONG else {})


def plan(lab: Lab) -> Iterator[Measurement]:
    """SGD, RFN and SAM; the grid of ρ."""
    yield from by_seed(main(lab).values())
    yield from by_seed(along(lab).values())
    yield from by_seed(grid(lab).values())


def later(lab: Lab) -> Iterator[Measurement]:
    """The main arms under other attacks; sharpness by ρ; other minimizers and architectures, after their pilots."""
    yield from chain.from_iterable(by_seed(main(lab, attack=a).values()) for a in other_attacks(lab).values())
    yield from by_seed([sharp_early(lab), *sharp(lab).values()])
    yield from by_seed(pilots.minimizer_arms(lab).values())
    yield from by_seed(others(lab).values())
    for arch in lab.scale.surrogates[1:]:
        yield from by_seed(pilots.arms(lab, arch).values())
        yield from by_seed(main(lab, arch).values())
        yield from by_seed(along(lab, arch).values())


# --- what was found ---------------------------------------------------------------------------------------


def measure(lab: Lab, arch: Arch | None = None) -> Gains:
    """Claims C4 to C6 at `lab`'s scale; of another architecture the main arms, which judge nothing.

    Raises:
        MissingRecord: in replay, SGD, RFN or SAM are not complete.
    """
    curves = lab.curves(main(lab, arch), needed=("SGD", *RUNS.values()))
    followed = lab.curves(along(lab, arch))
    found = Gains(pilots.stopping_epoch(lab, arch), pilots.chosen_rho(lab, arch), curves, followed)
    if arch not in (None, lab.scale.surrogates[0]):
        return found
    judged = grid(lab)
    by_rho = lab.curves(judged)
    best = None
    with suppress(MissingRecord):
        best = pilots.best_minimizer(lab)
    return replace(
        found,
        curves=curves | lab.curves(others(lab)),
        by_rho=by_rho if by_rho.keys() == judged.keys() else {},
        above=lab.curves(grid(lab, above=True)),
        best=best,
        gates={claim: pilots.gates(lab, claim) for claim in CLAIMS},
    )


@dataclass(frozen=True)
class Gains:
    """Flat surrogates of one architecture against SGD stopped early.

    Attributes:
        stop, rho: when SGD is stopped, and RFN's ρ: chosen on pilots.
        curves: by name, on test images and test targets: SGD, RFN and SAM, and of the others those that are complete.
        along: RFN and SAM along their training, if it is complete.
        by_rho: SAM by ρ up to RFN's, every seed; empty while one of them is not complete.
        above: SAM by ρ above it, fewer seeds.
        best: the minimizer other than SAM that pilots name; None while they cannot.
        gates: of each claim; empty for an architecture that claims are not judged on.
    """

    stop: float
    rho: float
    curves: dict[str, TransferCurve]
    along: dict[str, TransferCurve]
    by_rho: dict[float, TransferCurve] = field(default_factory=dict)
    above: dict[float, TransferCurve] = field(default_factory=dict)
    best: str | None = None
    gates: dict[str, list[Gate]] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the test targets."""
        return self.curves["SGD"].targets

    # --- differences ---

    def gain(self, name: str, over: float | None = None, **how: Any) -> Influence:
        """Success of `name` at its end less that of SGD at epoch `over` (None: stopped early), paired.

        Args:
            how: how images and targets are counted, as `TransferCurve.at` takes it.
        """
        run = self.curves[name]
        return run.at(**how) - self.curves["SGD"].first(run.seeds).at(self.stop if over is None else over, **how)

    def by_target(self, name: str) -> dict[str, Estimate]:
        """The gain of `name` over SGD stopped early, on each target."""
        return counting.estimates(partial(self.gain, name), counting.each(self.targets))

    def success_by_doubling(self, **how: Any) -> Influence:
        """The change of success a doubling of ρ, up to RFN's.

        Raises:
            MissingRecord: the grid is not complete.
        """
        if not self.by_rho:
            raise MissingRecord("SAM by ρ is not complete; compute it with `python -m rfnlib run` at this scale.")
        return slope([run.at(**how) for run in self.by_rho.values()], np.log2(list(self.by_rho)).tolist())

    def accuracy_by_doubling(self) -> Estimate:
        """The change of natural accuracy a doubling of ρ, up to RFN's."""
        table = np.array([run.accuracy[:, -1] for run in self.by_rho.values()])
        return over_seeds(np.polyfit(np.log2(list(self.by_rho)), table, 1)[0])

    def primary(self, claim: str, **how: Any) -> Influence:
        """The difference that `claim` is judged by."""
        return self.gain(RUNS[claim], **how) if claim in RUNS else self.success_by_doubling(**how)

    # --- judgement ---

    def verdict(self, claim: str) -> claims.Verdict:
        """The verdict on `claim`, before Holm's correction over all of them."""
        return claims.judge(CLAIMS[claim], self.primary(claim), gates=self.gates[claim])

    def headline(self, claim: str) -> str:
        """What was found on `claim`, in one sentence."""
        found, answer = words.points(self.primary(claim)), self.verdict(claim).answer
        if claim == "C6":
            accuracy = words.points(self.accuracy_by_doubling())
            return (
                f"{answer}: each doubling of ρ from {min(self.by_rho):g} to {self.rho:g}, the best one on pilots, "
                f"changes it by {found} points, and natural accuracy, which is not judged, by {accuracy} points."
            )
        run, sgd = self.curves[RUNS[claim]], self.curves["SGD"]
        rho = getattr(run.spec.minimizer, "rho", 0.0)
        said = (
            f"{answer}: success is {words.percent(run.at().value)} for {RUNS[claim]} (ρ = {rho:g}) and "
            f"{words.percent(sgd.at(self.stop).value)} for SGD stopped at epoch {self.stop:g}, a difference of {found} "
            "points"
        )
        if claim == "C5" and self.best in self.curves:
            seeds = words.count(self.curves[self.best].seeds, "seed")
            gain = words.points(self.gain(self.best))
            said += f"; {self.best}, the best other minimizer on pilots, differs by {gain} ({seeds})"
        return f"{said}."

    def always(self) -> str:
        """Whether RFN gains on each target: the paper's "always", which no verdict answers."""
        signs = counting.signs(partial(self.gain, "RFN"), counting.each(self.targets))
        return f"RFN over SGD stopped early, by target: {signs}"

    # --- tables ---

    def table(self) -> pd.DataFrame:
        """A row a surrogate: seeds, accuracies, success, gains over SGD stopped early and at its end, passes."""
        rows = {pilots.STOPPED: self._row("SGD", self.stop)}
        rows |= {name: self._row(name, run.end) for name, run in self.curves.items()}
        return pd.DataFrame(rows).T.rename_axis("surrogate")

    def _row(self, name: str, epoch: float) -> dict[str, str]:
        run, plain, end = self.curves[name], name == "SGD", self.curves["SGD"].end
        early, followed = plain and epoch == self.stop, self.along.get(name, run)
        settled = "" if plain or len(followed.epochs) == 1 else "yes" if pilots.settled(followed) else "no"
        return {
            "seeds": str(run.seeds),
            "success": words.percent(run.at(epoch)),
            "over SGD stopped early, points": "" if early else words.points(self.gain(name)),
            "over SGD at its end, points": "" if plain else words.points(self.gain(name, end)),
            "natural accuracy": words.percent(run.mean("accuracy", epoch)),
            "training accuracy": words.percent(run.mean("training", epoch)),
            "trained to the end": settled,
            "passes, in epochs": f"{run.mean('passes', epoch):.0f}",
        }

    def target_table(self, names: Sequence[str] = tuple(RUNS.values())) -> pd.DataFrame:
        """The gain over SGD stopped early, a row a target, a column a surrogate."""
        gains = {name: partial(self.gain, name) for name in names}
        return counting.table(gains, counting.each(self.targets), "target")

    def sensitivity(self) -> pd.DataFrame:
        """The primary differences counted in other ways, from the same records; in points (C6: a doubling of ρ)."""
        judged = {claim: partial(self.primary, claim) for claim in CLAIMS if claim in RUNS or self.by_rho}
        return counting.table(judged, counting.otherwise(self.targets), "counted")


def architectures(lab: Lab) -> dict[str, Gains]:
    """As `measure`, of each architecture that is complete."""
    found = {lab.scale.surrogates[0].label: measure(lab)}
    for arch in lab.scale.surrogates[1:]:
        with suppress(MissingRecord):
            found[arch.label] = measure(lab, arch)
    return found


def under_other_attacks(lab: Lab) -> pd.DataFrame:
    """Gains of RFN and SAM over SGD stopped early under other attacks, those that are complete; in points."""
    rows = {}
    for name, attack in {"as judged": None, **other_attacks(lab)}.items():
        with suppress(MissingRecord):
            curves = lab.curves(main(lab, attack=attack), needed=("SGD", *RUNS.values()))
            early = curves["SGD"].at(curves["SGD"].epochs[0])
            gains = {n: words.points(curves[n].at() - early) for n in RUNS.values()}
            rows[name] = {pilots.STOPPED: words.percent(early), **gains}
    return pd.DataFrame(rows).T.rename_axis("attack")


@dataclass(frozen=True)
class Sweep:
    """Success and sharpness at the end of training by ρ, 0 being SGD, and of SGD stopped early; those complete."""

    success: dict[float, TransferCurve]
    sharpness: dict[float, SharpnessCurve]
    early: tuple[TransferCurve, SharpnessCurve] | None = None

    def table(self) -> pd.DataFrame:
        """A row a ρ; of sharpness and training loss geometric means over seeds."""
        rows = {"0 (SGD), stopped early": _swept(*self.early)} if self.early else {}
        for rho, run in self.success.items():
            rows[f"{rho:g}" if rho else "0 (SGD)"] = _swept(run, self.sharpness.get(rho))
        return pd.DataFrame(rows).T.rename_axis("ρ")


def _swept(run: TransferCurve, flat: SharpnessCurve | None) -> dict[str, str]:
    return {
        "seeds": str(run.seeds),
        "success": words.percent(run.at()),
        "natural accuracy": words.percent(run.mean("accuracy")),
        **{label: words.level(flat.level(measure=m) if flat else None) for m, label in MEASURES.items()},
    }


MEASURES = {m: words.MEASURES[m] for m in ("top", "matched", "trace")} | {"loss": "training loss"}


def sweep(lab: Lab) -> Sweep:
    """Success and sharpness by ρ, of those that are complete."""
    found = Sweep(lab.curves(sharp(lab)), lab.curves(sharp(lab), lab.scale.sharpness))
    probes, early = (lab.scale.transfer, lab.scale.sharpness), sharp_early(lab)
    complete = all(lab.shown({"": early}, probe=probe) for probe in probes)
    return replace(found, early=tuple(lab.read(early, probe) for probe in probes)) if complete else found
