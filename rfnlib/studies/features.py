"""Claim C1: early stopping helps surrogates trained on robust and on non-robust features alike. Notebook 01.

Surrogates are trained on the images D, on D_R (robust features alone) and on D_NR (what a standard network uses), see
`rfnlib.features`. With s_X(e) the success rate of those trained on X at epoch e, E the last epoch and e_X the epoch at
which they are stopped early, chosen on pilots for each set, the claim is about h_X = s_X(e_X) − s_X(E). A gate asks
that h_D > 0 at 95 %, for where stopping does not help at all there is nothing to explain; then h_{D_NR} is judged,
with h_{D_R} beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from rfnlib import claims, words
from rfnlib.claims import Claim, Gate
from rfnlib.curves import RobustnessCurve, TransferCurve
from rfnlib.intervals import Influence, interval
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.scale import Scale
from rfnlib.specs import FeatureSet, TrainSpec
from rfnlib.studies import counting, pilots

NOTEBOOK = "01_non_robust_features"
CLAIMS = claims.by_id(
    Claim(
        "C1",
        "Early stopping helps surrogates trained on robust and on non-robust features alike",
        ("stopped early − at the end, trained on non-robust features",),
        margin=0.02,
        answer="early stopping {helps|hurts|makes no difference that matters} on non-robust features",
        follows=(
            "What makes an early-stopped surrogate better is not which features it has had time to learn; the next "
            "notebooks look at the learning rate and at flatness.",
            "The older explanation, that later epochs learn what does not transfer, stands at this scale.",
            "The older explanation, that later epochs learn what does not transfer, is not ruled out: on non-robust "
            "features stopping early gains nothing that matters. How much it gains on D itself says how much there is "
            "to explain.",
        ),
    )
)

MAIN = ("D", "D_R", "D_NR")
COMPARED = ("D", "D_NR")  # by the gate and by the verdict
CONTROLS = ("D_rand", "D_det")
WEAK = "l2 0.25"  # the ball in which robust accuracy is compared
# Natural accuracy, and robust accuracy at l2 0.25, of ResNet-50 on the whole of CIFAR-10: the README of the
# data sets that Ilyas et al. published (MadryLab/constructed-datasets). Not numbers of the paper reproduced here.
PUBLISHED = {
    "D_R": (0.84, 0.48),
    "D_NR": (0.88, 0.0),
    "D_rand, radius 0.5": (0.63, 0.0),
    "D_det, radius 0.5": (0.44, 0.0),
}


# --- data sets ------------------------------------------------------------------------------------------


def standard_model(scale: Scale) -> TrainSpec:
    """The standard network whose features D_NR holds, trained as the targets are, from a seed of its own."""
    return scale.cycled(scale.features.arch, scale.features.model_epochs, seed=1100)


def inverted(scale: Scale, robust: bool, steps: int | None = None) -> FeatureSet:
    """D_R (`robust`) or D_NR; `steps` None: the scale's."""
    study, model = scale.features, standard_model(scale)
    return FeatureSet(
        "inverted", replace(model, adversary=study.adversary) if robust else model, steps or study.steps, study.step
    )


def controls(scale: Scale, radius: float) -> dict[str, FeatureSet]:
    """D_rand and D_det in a ball of this radius, against the network behind D_NR."""
    steps, model = scale.features.targeted, standard_model(scale)
    sets = [FeatureSet(m, model, steps, radius / 5, eps=radius) for m in ("random-label", "next-label")]
    return {f.name: f for f in sets}


def sets(scale: Scale) -> dict[str, FeatureSet | None]:
    """What surrogates are trained on: D itself, D_R, D_NR, and the controls D_rand and D_det of the first radius."""
    built = {"D_R": inverted(scale, True), "D_NR": inverted(scale, False)}
    return {"D": None, **built, **controls(scale, scale.features.radii[0])}


def _trained(scale: Scale, features: FeatureSet | None, seeds: Sequence[int]) -> list[TrainSpec]:
    return [replace(scale.flat(None, seed, scale.features.arch), features=features) for seed in seeds]


# --- arms -----------------------------------------------------------------------------------------------


def pilot_arms(lab: Lab) -> dict[str, Arm]:
    """Surrogates on each set, attacked all along, the first pilot seed: when to stop."""
    scale, found = lab.scale, {}
    for name, features in sets(scale).items():
        specs = _trained(scale, features, scale.pilots[:1])
        found[name] = Arm(name, specs, At(scale.transfer, scale.attacked_at(specs[0].schedule)))
    return found


def arms(lab: Lab) -> dict[str, Arm]:
    """Surrogates on each set under the standard schedule: transfer all along, robust accuracy on a coarse grid.

    D, D_R and D_NR have every seed, the controls the first.
    """
    scale, found = lab.scale, {}
    for name, features in sets(scale).items():
        specs = _trained(scale, features, lab.seeds if name in MAIN else lab.seeds[:1])
        coarse = At(scale.robustness, scale.sharp_at(specs[0].schedule, fine=False))
        found[name] = Arm(name, specs, At(scale.transfer, scale.attacked_at(specs[0].schedule)), coarse)
    return found


def other_eps(lab: Lab) -> dict[tuple[float, str], Arm]:
    """The first seed of the main arms, attacked on a coarse grid, by ε."""
    scale, main = lab.scale, arms(lab)
    return {
        (eps, name): Arm(
            name,
            main[name].specs[:1],
            At(replace(scale.transfer, attack=replace(scale.attack, eps=eps)), main[name].asked[1].epochs),
        )
        for eps in sorted({scale.attack.radius, *scale.features.other_eps})
        for name in MAIN
    }


def checks(lab: Lab) -> dict[str, Arm]:
    """Networks trained on each built set at their end, on many images: are the sets what they should be?"""
    scale, at = lab.scale, At(lab.scale.features.check, (lab.scale.end,))
    both = (inverted(scale, robust) for robust in (True, False))
    found = [Arm(features.name, _trained(scale, features, lab.seeds), at) for features in both]
    for radius in scale.features.radii:
        for name, features in controls(scale, radius).items():
            found.append(Arm(f"{name}, radius {radius:g}", _trained(scale, features, lab.seeds[:1]), at))
    return by_name(*found)


def by_steps(lab: Lab) -> dict[tuple[int, str], Arm]:
    """Networks trained on D_R and D_NR at their end, by the number of steps of the inversion: the first seed."""
    scale, at = lab.scale, At(lab.scale.features.check, (lab.scale.end,))
    found = {}
    for steps in sorted({*scale.features.tried, scale.features.steps}):
        for features in (inverted(scale, True, steps), inverted(scale, False, steps)):
            name = f"{features.name} by {steps} steps"
            found[steps, features.name] = Arm(name, _trained(scale, features, lab.seeds[:1]), at)
    return found


def plan(lab: Lab) -> Iterator[Measurement]:
    """Pilots, and what is compared, seed by seed."""
    pilot, found = pilot_arms(lab), arms(lab)
    yield from by_seed(pilot[name] for name in MAIN)
    yield from by_seed(found[name] for name in COMPARED)


def later(lab: Lab) -> Iterator[Measurement]:
    """Robust features, which stand beside; checks of the sets; the controls; other ε; other numbers of steps."""
    pilot, found = pilot_arms(lab), arms(lab)
    yield from by_seed([found["D_R"]])
    yield from by_seed(checks(lab).values())
    yield from by_seed(pilot[name] for name in CONTROLS)
    yield from by_seed(found[name] for name in CONTROLS)
    yield from by_seed(other_eps(lab).values())
    yield from by_seed(by_steps(lab).values())


# --- the result -----------------------------------------------------------------------------------------


def stopping_epoch(lab: Lab, name: str) -> float:
    """When to stop a surrogate trained on the set `name`: the attacked epoch with the most success on pilots."""
    return pilots.validated(lab, pilot_arms(lab)[name]).best


def choice_table(lab: Lab) -> pd.DataFrame:
    """When surrogates on each main set are stopped early, as far as it can be chosen. Never computes."""
    lab = lab.replaying()

    def said(name: str) -> str:
        return f"{stopping_epoch(lab, name):g}"

    stops = {f"C1: epoch at which training on {name} is stopped early": partial(said, name) for name in MAIN}
    return pilots.choice_rows(stops)


def measure(lab: Lab) -> EarlyStopping:
    """Transfer and robustness of surrogates trained on robust and on non-robust features, at `lab`'s scale.

    Raises:
        MissingRecord: in replay, a run on D or D_NR is not recorded.
    """
    pilot = lab.shown(pilot_arms(lab), needed=COMPARED)
    found = {name: arm for name, arm in arms(lab).items() if name in pilot}
    curves = lab.curves(found, needed=COMPARED)
    stops = {name: stopping_epoch(lab, name) for name in curves}
    robustness = lab.curves({name: found[name] for name in curves}, lab.scale.robustness)
    return EarlyStopping(stops, curves, robustness, lab.curves(other_eps(lab)), pilots.gates(lab, "C1"))


@dataclass(frozen=True)
class EarlyStopping:
    """Surrogates trained on D, D_R, D_NR (and the controls): transfer and robustness along their training.

    Attributes:
        stops: when each is stopped early.
        curves: on test images and test targets, of those that are recorded; D and D_NR are.
        robustness: white-box, of those of which it is recorded.
        other_eps: the same as `curves` for the first seed, by ε and set, on a coarse grid.
        training_gates: that the scale must pass.
    """

    stops: dict[str, float]
    curves: dict[str, TransferCurve]
    robustness: dict[str, RobustnessCurve]
    other_eps: dict[tuple[float, str], TransferCurve]
    training_gates: list[Gate]

    def help(self, name: str, **how: Any) -> Influence:
        """h: success where the surrogate is stopped early less that at its end.

        Args:
            how: how images and targets are counted, as `TransferCurve.at` takes it.
        """
        return self.curves[name].at(self.stops[name], **how) - self.curves[name].at(**how)

    @property
    def shown(self) -> list[str]:
        """The main sets that are recorded."""
        return [name for name in MAIN if name in self.curves]

    @property
    def gates(self) -> list[Gate]:
        """Those of the scale, and that early stopping helps on the images themselves."""
        return [*self.training_gates, claims.positive("early stopping helps on D", self.help("D"))]

    def verdict(self, claim: str = "C1") -> claims.Verdict:
        """The verdict on D_NR, before Holm's correction over all claims."""
        return claims.judge(CLAIMS[claim], self.help("D_NR"), gates=self.gates)

    def headline(self, claim: str = "C1") -> str:
        """What was found, in a sentence, and whether pilots stop at all."""
        shown = self.shown[::-1]
        said = words.listed([f"{words.points(self.help(n))} on {n} (epoch {self.stops[n]:g})" for n in shown])
        beside = "".join(f" {name} is not recorded yet." for name in MAIN if name not in shown)
        late = [name for name in shown if self.stops[name] == self.curves[name].end]
        none = f" On {words.listed(late)} pilots are best at the end, so that nothing is stopped early." if late else ""
        return (
            f"{self.verdict(claim).answer}: stopped early, each set at an epoch of its own, rather than trained to its "
            f"end, a surrogate gains {said}, in points of success, of which {100 * CLAIMS[claim].margin:g} would "
            f"matter.{none}{beside}"
        )

    def sensitivity(self) -> pd.DataFrame:
        """What stopping early gains, counted in other ways, from the same records; in points."""
        gains = {f"on {name}": partial(self.help, name) for name in self.shown[::-1]}
        return counting.table(gains, counting.otherwise(self.curves["D"].targets), "counted")

    def gains(self) -> pd.DataFrame:
        """When each surrogate is stopped, its success there and at the end, and the difference."""
        rows = {
            name: {
                "seeds": str(run.seeds),
                "stopped at epoch": f"{self.stops[name]:g}",
                "success there": words.percent(run.at(self.stops[name])),
                "success at the end": words.percent(run.at()),
                "gain, points": words.points(self.help(name)),
            }
            for name, run in self.curves.items()
        }
        return pd.DataFrame(rows).T.rename_axis("trained on")

    def peaks(self) -> pd.DataFrame:
        """Robust accuracy where the surrogate is stopped (or at the nearest epoch measured), at its end and at most."""
        rows = {}
        for name, run in self.robustness.items():
            robust = {e: run.at(e, WEAK).value for e in run.epochs}
            best, close = pilots.most(robust), run.nearest(self.stops[name])
            rows[name] = {
                "stopped at epoch": f"{self.stops[name]:g}",
                "robust accuracy there": f"{words.percent(run.at(close, WEAK))}, epoch {close:g}",
                "at the end": words.percent(run.at(attack=WEAK)),
                "highest": f"{words.percent(robust[best])}, epoch {best:g}",
            }
        return pd.DataFrame(rows).T.rename_axis("trained on")


def set_table(lab: Lab) -> pd.DataFrame:
    """How each set is built, and of which network."""
    labels = {"inverted": "its own", "random-label": "a random class", "next-label": "the next class"}
    rows = {}
    for name, features in sets(lab.scale).items():
        if features:
            inside = f", in l2 within {words.length(features.eps, 'l2')}" if features.eps else ""
            adversary = features.model.adversary
            rows[name] = {
                "steps": f"{words.count(features.steps, 'step')} of {words.length(features.step, 'l2')}{inside}",
                "label": labels[features.method],
                "network's training": words.adversary(adversary) if adversary else "standard",
            }
    return pd.DataFrame(rows).T.rename_axis("set")


def check_table(lab: Lab) -> pd.DataFrame:
    """What networks trained on each built set should show, and show at the end of their training."""
    return table_of_checks(lab.curves(checks(lab)))


def table_of_checks(runs: dict[str, RobustnessCurve]) -> pd.DataFrame:
    """Natural and robust accuracy of `runs`, named as in `PUBLISHED`, and whether they are as they should be."""
    chance, rows = 0.1, {}
    for name, run in runs.items():
        natural, weak = interval(run.at()), interval(run.at(attack=WEAK))
        fine = {"D_R": weak.low > chance, "D_NR": weak.high < chance}.get(name, True)
        wanted = {"D_R": "accurate and robust", "D_NR": "accurate, not robust"}.get(name, "above chance")
        rows[name] = {
            "a network trained on it is": wanted,
            "seeds": str(run.seeds),
            "natural accuracy": words.percent(natural),
            f"robust accuracy ({WEAK})": words.percent(weak),
            "published": ", ".join(f"{share:.0%}" for share in PUBLISHED.get(name, ())) or "not published",
            "as it should be": "yes" if natural.low > chance and fine else "not shown",
        }
    return pd.DataFrame(rows).T.rename_axis("trained on")


def step_table(lab: Lab) -> pd.DataFrame:
    """Accuracy and robustness of networks trained on D_R and D_NR, by the steps that the inversion took."""
    rows: dict[int, dict[str, str]] = {}
    for (steps, name), run in lab.curves(by_steps(lab)).items():
        for attack, label in (("none", "natural"), (WEAK, f"robust, {WEAK}")):
            rows.setdefault(steps, {})[f"{name}, {label}"] = words.percent(run.at(attack=attack))
    return pd.DataFrame(rows).T.fillna(words.MISSING).rename_axis("steps of inversion")


def gap_by_eps(lab: Lab) -> pd.DataFrame:
    """By ε: D_R less D_NR where each is stopped early, and what stopping early gains on each, the first seed alone.

    At the epoch of the coarse grid that is nearest to the one chosen on pilots; intervals are over images.
    """
    runs = lab.curves(other_eps(lab))
    rows = {}
    for eps in sorted({eps for eps, _ in runs}):
        of = {name: runs[eps, name] for name in ("D_R", "D_NR") if (eps, name) in runs}
        if len(of) == 2:
            at = {name: run.at(run.nearest(stopping_epoch(lab, name))) for name, run in of.items()}
            rows[f"ε {words.length(eps)}"] = {
                "D_R − D_NR, both stopped early": words.points(at["D_R"] - at["D_NR"]),
                **{f"{name}, stopped early − at its end": words.points(at[name] - of[name].at()) for name in of},
            }
    return pd.DataFrame(rows).T.rename_axis("radius")
