"""Claims C7 and C8: flat surrogates against other ways to train one, and under other techniques. Notebook 05.

With s_M the success rate of surrogate M, each at the epoch where it is used, and s_{M+t} under technique t:

- C7: s_RFN − s_R, R being the better of LGV and SAT, named on pilots: not below −margin (non-inferiority);
- C8: the mean over techniques of s_{RFN+t} − max(s_{SGD+t}, s_RFN): a technique on RFN against the same one on SGD, and
  against RFN alone, whichever succeeds more. That the larger is taken from the judged data makes C8 harder to
  support, and a little easier to contradict where neither is clearly larger.

Both are means over the targets, paired by seed and image. All else is secondary and has no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rfnlib import claims, words
from rfnlib.attacks import DI, MI, NI, SI, TI, IterativeAttack
from rfnlib.claims import Claim
from rfnlib.curves import RobustnessCurve, SharpnessCurve, TransferCurve
from rfnlib.intervals import Influence, average, interval
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.probes import Probe, Robustness, Transfer
from rfnlib.recipes import Averaged, Collected, Drawn, Ghosts, Recipe, Skips
from rfnlib.scale import Scale
from rfnlib.specs import Minimizer, TrainSpec
from rfnlib.studies import counting, features, pilots
from rfnlib.studies.pilots import STOPPED
from rfnlib.transforms import Neighbours

NOTEBOOK = "05_state_of_the_art"
CLAIMS = claims.by_id(
    Claim(
        "C7",
        "RFN rivals the best other ways to train a surrogate",
        ("RFN − the better of LGV and SAT",),
        margin=0.05,
        non_inferiority=True,
        answer="RFN {keeps up with|falls behind} the one of LGV and SAT that pilots chose",
        follows=(
            "Training for flatness is one way to a good surrogate: RFN is no worse, within the margin, than the rival "
            "that pilots chose. What either costs, and how the others do that are not judged, stands in the table.",
            "Who wants success above all takes the better of LGV and SAT: RFN stays behind by more than the margin at "
            "this scale.",
        ),
    ),
    Claim(
        "C8",
        "RFN adds to other transfer techniques",
        ("RFN + technique − the better of SGD + technique and RFN alone",),
        margin=0.03,
        answer="a technique on RFN {gives more than|gives less than|gives as much as} the better of its two parts",
        follows=(
            "Combine them: a technique on RFN gives more than the better of its two parts.",
            "Not every technique is worth adding: on average, one on RFN gives less than the better of its two parts. "
            "The table of techniques tells which are.",
            "Choose one: a technique on RFN gives no more, and no less, than the better of its two parts.",
        ),
    ),
)

ADDED_TO = (STOPPED, "SGD", "SAM", "RFN", "SAT")  # plain networks, which techniques are added to
JUDGED = ("SGD", "RFN")  # those of them that claim C8 is about: every seed, the others the first
SLOW = ("SAM & IR",)  # six passes a step: the first seed
WEAK = features.WEAK
ENDS = ("value", "low", "high")


# --- arms: surrogates, and techniques on them -------------------------------------------------------------


def questions(scale: Scale) -> tuple[Probe, Probe, Probe, Robustness]:
    """What is asked of each surrogate: success on standard and on robust targets, sharpness, robustness."""
    return Transfer(scale.attack), Transfer(scale.attack, "robust"), scale.sharpness, scale.robustness


def arms(lab: Lab) -> dict[str, Arm]:
    """Every surrogate at the epoch where it is used, on standard and on robust targets, and what is looked at beside.

    LGV, the More-Bayesian surrogate and alignment go on from SGD's end: LGV at half the first learning rate, constant,
    with its own weight decay; the More-Bayesian surrogate at the same rate, with the gradient's norm penalised;
    alignment at a tenth of the first rate, towards the standard network of claim C1, which is no target. Rates and
    lengths are as in the publications where the scale has room for them.
    """
    scale, study, end, last = lab.scale, lab.scale.rivals, lab.scale.end, float(lab.scale.rivals.epochs)
    rho, adversary, mean = pilots.chosen_rho(lab), pilots.chosen_slight(lab), Averaged(study.per_epoch)
    sgd = [scale.flat(None, seed) for seed in lab.seeds]
    sam = [pilots.sam(scale, scale.rhos[0], seed) for seed in lab.seeds]
    lgv = [pilots.lgv(scale, seed) for seed in lab.seeds]

    def onwards(rate: float, **how: Any) -> list[TrainSpec]:
        return [pilots.onwards(s, rate, study.epochs, **how) for s in sgd]

    def used(
        name: str, of: list[TrainSpec], at: float = end, recipe: Recipe | None = None, single: Recipe | None = None
    ) -> Arm:
        """A surrogate made of runs by `recipe`; `single` makes the one network that is looked at, if they are many."""
        made = (recipe, recipe, single, single)
        return Arm(name, of, *(At(probe, (at,), what) for probe, what in zip(questions(scale), made, strict=True)))

    penalised = onwards(scale.lr / 2, minimizer=Minimizer("GNP", 0.1))
    return by_name(
        used(STOPPED, sgd, pilots.stopping_epoch(lab)),
        used("SGD", sgd),
        used("SAM", sam),
        used("RFN", [pilots.sam(scale, rho, seed) for seed in lab.seeds]),
        used("SAT", [pilots.slight(scale, adversary, seed) for seed in lab.seeds]),
        used("LGV", lgv, last, Collected(study.per_epoch)),
        used("LGV-SWA", lgv, last, mean, mean),
        used("More Bayesian", penalised, last, Drawn(study.per_epoch, draws=study.draws)),
        used("aligned", onwards(scale.lr / 10, witness=features.standard_model(scale)), last),
        used("SAM & IR", [replace(spec, input_penalty=study.penalty) for spec in sam[:1]]),
    )


def contender_table(lab: Lab) -> pd.DataFrame:
    """How each surrogate is trained, when it is used, and what of it is attacked."""
    rows = {
        name: {
            "trained by": words.trained(arm.specs[0]),
            "used at epoch": f"{arm.question().epochs[-1]:g} of {arm.specs[0].epochs}",
            "attacked": words.recipe(arm.question().recipe),
            "seeds": str(len(arm.specs)),
        }
        for name, arm in arms(lab).items()
    }
    return pd.DataFrame(rows).T.rename_axis("surrogate")


Technique = tuple[IterativeAttack, Recipe | None]


def techniques(scale: Scale) -> dict[str, Technique]:
    """The scale's techniques of claim C8 around its attack; the last two are recipes for the network attacked."""
    plain, near = scale.attack, Neighbours(scale.rivals.neighbours)
    attacks = {
        "MI": plain | MI(),
        "NI": plain | NI(),
        "DI": plain | DI(),
        "TI": plain | TI(),
        "SI": plain | SI(),
        "VMI": plain | MI(variance=near),
        "MI+DI+TI": plain | MI() | DI() | TI(),
    }
    known: dict[str, Technique] = {name: (attack, None) for name, attack in attacks.items()}
    known |= {"SGM": (plain, Skips()), "ghosts": (plain, Ghosts())}
    return {"none": (plain, None), **{name: known[name] for name in scale.rivals.techniques}}


def grid(lab: Lab) -> dict[tuple[str, str], Arm]:
    """Surrogates under techniques: SGD and RFN, which are judged, with every seed, the others with the first."""
    runs, found = arms(lab), {}
    for technique, (attack, recipe) in techniques(lab.scale).items():
        for name in ADDED_TO:
            specs = runs[name].specs if name in JUDGED else runs[name].specs[:1]
            at = At(Transfer(attack), runs[name].question().epochs, recipe)
            found[name, technique] = Arm(f"{name} + {technique}", specs, at)
    return found


def traded(lab: Lab) -> dict[tuple[str, float], Arm]:
    """SAT by its ε and SAM by its ρ, both from SGD (0) on: success and robust accuracy of one pilot, at its end."""
    scale, seed = lab.scale, lab.scale.pilots[0]
    runs = {("SAT", a.eps): [pilots.slight(scale, a, seed)] for a in scale.rivals.slight}
    runs |= {("RFN", rho): [pilots.sam(scale, rho, seed)] for rho in scale.rhos}
    runs |= {(name, 0.0): [scale.flat(None, seed)] for name in ("SAT", "RFN")}
    asked = [At(probe, (scale.end,)) for probe in (scale.transfer, scale.robustness)]
    return {(name, x): Arm(f"{name}, {x:g}", specs, *asked) for (name, x), specs in runs.items()}


def plan(lab: Lab) -> Iterator[Measurement]:
    """What C7 is judged by, then C8."""
    main, added = arms(lab), grid(lab)
    yield from by_seed(main[name] for name in _compared(lab))
    yield from by_seed(arm for (name, _), arm in added.items() if name in JUDGED)


def later(lab: Lab) -> Iterator[Measurement]:
    """The other surrogates, and techniques on them; the trade-off; the slow ones."""
    main, added, first = arms(lab), grid(lab), _compared(lab)
    yield from by_seed(arm for name, arm in main.items() if name not in (*first, *SLOW))
    yield from by_seed(arm for (name, _), arm in added.items() if name not in JUDGED)
    yield from by_seed(traded(lab).values())
    yield from by_seed(main[name] for name in SLOW)


def _compared(lab: Lab) -> tuple[str, ...]:
    return ("SGD", "RFN", pilots.best_rival(lab))


# --- the results ------------------------------------------------------------------------------------------


def measure(lab: Lab) -> StateOfTheArt:
    """Surrogates trained in different ways under one protocol, and techniques, at `lab`'s scale."""
    return StateOfTheArt(lab)


@dataclass(frozen=True)
class StateOfTheArt:
    """Both halves of notebook 05, each read when it is asked for: neither claim waits for the other's records."""

    lab: Lab

    @cached_property
    def rivalry(self) -> Rivalry:
        """Claim C7's half.

        Raises:
            MissingRecord: in replay, RFN or its rival is not recorded.
        """
        rival, found = pilots.best_rival(self.lab), arms(self.lab)
        curves = self.lab.curves(found, needed=("RFN", rival))
        _, *beside = questions(self.lab.scale)
        return Rivalry(rival, curves, *(self.lab.curves(found, probe) for probe in beside))

    @cached_property
    def grid(self) -> Grid:
        """Claim C8's half, as far as it is recorded."""
        return Grid(self.lab.curves(grid(self.lab)), self.lab.scale.rivals.techniques)

    def verdict(self, claim: str) -> claims.Verdict:
        """The verdict on a claim, before Holm's correction over all claims.

        Raises:
            MissingRecord: in replay, what it is judged by is not recorded.
        """
        gates = pilots.gates(self.lab, claim)
        if claim == "C8":
            return claims.judge(CLAIMS[claim], self.grid.added(), gates=gates)
        rival = self.rivalry.rival
        return claims.judge(CLAIMS[claim], self.rivalry.against(rival), f"RFN − {rival}", gates)

    def headline(self, claim: str) -> str:
        """What was found, in one sentence."""
        answer = self.verdict(claim).answer
        if claim == "C7":
            rival, (other,) = self.rivalry.rival, {*pilots.RIVALS} - {self.rivalry.rival}
            over = self.rivalry.against(rival)
            told = f"{answer}: success of RFN is {words.against(over)} that of {rival}."
            beside = dict.fromkeys([*([other] if other in self.rivalry.curves else []), self.rivalry.closest()])
            said = [f"{words.against(self.rivalry.against(name))} that of {name}" for name in beside if name != rival]
            return f"{told} Not judged: it is {words.listed(said)}." if said else told
        techniques = self.grid.techniques
        over_sgd = sum(self.grid.over_sgd(t).value > 0 for t in techniques)
        over_alone = sum(self.grid.over_alone(t).value > 0 for t in techniques)
        added = words.against(self.grid.added())
        return (
            f"{answer}: on average over {words.count(len(techniques), 'technique')} success is {added} that of the "
            f"better one, the technique on SGD or RFN without it. {self.grid.driven()}One by one {over_sgd} of "
            f"{len(techniques)} succeed more on RFN than on SGD at its end, and {over_alone} more than RFN alone."
        )

    def sensitivity(self) -> pd.DataFrame:
        """The judged differences counted in other ways, from the same records; in points."""
        judged: dict[str, counting.Difference] = {"C7": partial(self.rivalry.against, self.rivalry.rival)}
        if not self.grid.left:
            judged["C8"] = self.grid.added
        return counting.table(judged, counting.otherwise(self.targets), "counted")

    def by_target(self) -> str:
        """Whether RFN is above its rival on each target, in words."""
        gain = partial(self.rivalry.against, self.rivalry.rival)
        return f"RFN over {self.rivalry.rival}, by target: {counting.signs(gain, counting.each(self.targets))}"

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the test targets."""
        return self.rivalry.curves["RFN"].targets


@dataclass(frozen=True)
class Rivalry:
    """Surrogates trained in different ways, under one protocol; each at the epoch where it is used.

    Attributes:
        rival: whom RFN is judged against.
        curves: on the test targets. `robust`: on those trained adversarially.
        sharpness, robustness: of one network where several are attacked. These and `robust` may lack surrogates.
    """

    rival: str
    curves: dict[str, TransferCurve]
    robust: dict[str, TransferCurve]
    sharpness: dict[str, SharpnessCurve]
    robustness: dict[str, RobustnessCurve]

    def against(self, name: str, **how: Any) -> Influence:
        """Success of RFN less that of surrogate `name`: same seeds, same images.

        Args:
            how: how images and targets are counted, as `TransferCurve.at` takes it.
        """
        seeds = min(self.curves["RFN"].seeds, self.curves[name].seeds)
        return self.curves["RFN"].first(seeds).at(**how) - self.curves[name].first(seeds).at(**how)

    def by_success(self) -> list[str]:
        """The surrogates, the most successful first."""
        return sorted(self.curves, key=lambda name: -self.curves[name].at().value)

    def closest(self) -> str:
        """Of the others the surrogate that RFN gains least over."""
        return min((n for n in self.curves if n != "RFN"), key=lambda name: self.against(name).value)

    def ranks(self) -> dict[str, float]:
        """The mean rank by success, 1 being the best, over targets and the seeds that all have."""
        seeds = min(c.seeds for c in self.curves.values())
        rates = []
        for c in self.curves.values():
            hits = c.first(seeds).hits[-1]
            rates.append(hits.adv_wrong[:, ~hits.clean_wrong.any(1)].mean(1))
        ranks = rankdata(-np.array(rates), axis=0).mean((1, 2))
        return dict(zip(self.curves, ranks.tolist(), strict=True))

    def table(self) -> pd.DataFrame:
        """One row a surrogate, the most successful first."""
        rows, ranks = {}, self.ranks()
        for name in self.by_success():
            c = self.curves[name]
            rows[name] = {
                "seeds": str(c.seeds),
                "success": words.percent(c.at()),
                "RFN less this, points": "" if name == "RFN" else words.points(self.against(name)),
                "mean rank": f"{ranks[name]:.1f}",
                **cells(c, self.robust.get(name), self.sharpness.get(name), self.robustness.get(name)),
            }
        return pd.DataFrame(rows).T.rename_axis("surrogate")


def cells(
    c: TransferCurve, robust: TransferCurve | None, sharp: SharpnessCurve | None, correct: RobustnessCurve | None,
    weak: str = WEAK,
) -> dict[str, str]:  # fmt: skip
    """What is said of a surrogate beside its success, as far as it is measured; `weak` is the ball of `correct`."""
    passes = c.mean("passes")  # NaN of a network from outside
    flat = sharp.level() if sharp else None
    return {
        "success on robust targets": words.percent(robust.at() if robust else None),
        "natural accuracy": words.percent(c.mean("accuracy")),
        f"robust accuracy ({weak})": words.percent(correct.at(attack=weak).value if correct else None),
        # Of one network its λ₁ alone: where the network is from outside there is no seed to speak of.
        "λ₁": words.number(np.exp(flat.value)) if flat and flat.seeds == 1 else words.level(flat),
        "cost, epochs of SGD": words.MISSING if np.isnan(passes) else f"{passes:.0f}",
    }


@dataclass(frozen=True)
class Grid:
    """Success under techniques.

    Attributes:
        curves: by surrogate and technique; SGD and RFN on every seed, the others on the first.
        planned: the techniques that claim C8 is about.
    """

    curves: dict[tuple[str, str], TransferCurve]
    planned: tuple[str, ...]

    def rate(self, surrogate: str, technique: str, **how: Any) -> Influence:
        """Success of `technique` on `surrogate`; `how` images and targets are counted, `TransferCurve.at` tells."""
        return self.curves[surrogate, technique].at(**how)

    @property
    def techniques(self) -> list[str]:
        """Those that are recorded for SGD and for RFN, if the plain attack is."""
        both = [t for t in ("none", *self.planned) if all((s, t) in self.curves for s in JUDGED)]
        return both[1:] if "none" in both else []

    @property
    def left(self) -> list[str]:
        """Techniques that claim C8 is about and that are not recorded."""
        return [t for t in self.planned if t not in self.techniques]

    def over_sgd(self, technique: str, **how: Any) -> Influence:
        """Success of a technique on RFN less that on SGD trained to its end."""
        return self.rate("RFN", technique, **how) - self.rate("SGD", technique, **how)

    def over_alone(self, technique: str, **how: Any) -> Influence:
        """Success of a technique on RFN less that of RFN alone."""
        return self.rate("RFN", technique, **how) - self.rate("RFN", "none", **how)

    def over_better(self, technique: str, **how: Any) -> Influence:
        """Success of a technique on RFN less the better of SGD under it and RFN alone: the smaller difference."""
        return min(self.over_sgd(technique, **how), self.over_alone(technique, **how), key=lambda d: d.value)

    def added(self, **how: Any) -> Influence:
        """The primary difference of C8: the mean over techniques of `over_better`.

        Raises:
            MissingRecord: a technique is not recorded.
        """
        if left := self.left:
            raise MissingRecord(f"{words.listed(left)} on SGD and RFN: not recorded; compute them with "
                                "`python -m rfnlib run` at this scale.")  # fmt: skip
        return average([self.over_better(t, **how) for t in self.planned])

    def driven(self) -> str:
        """Which techniques lose more than the margin of C8 at 95 %, and the mean without them; "" where none does."""
        margin = CLAIMS["C8"].margin
        worst = [t for t in self.planned if interval(self.over_better(t)).high < -margin]
        rest = [t for t in self.planned if t not in worst]
        if not worst or not rest:
            return ""
        mean = words.points(average([self.over_better(t) for t in rest]))
        return f"Further below than the margin: {words.listed(worst)}; without them the mean is {mean} points. "

    def gain(self, surrogate: str, technique: str) -> Influence | None:
        """What a technique adds to the plain attack on the same surrogate; None where one is not recorded."""
        if {(surrogate, technique), (surrogate, "none")} <= self.curves.keys():
            return self.rate(surrogate, technique) - self.rate(surrogate, "none")
        return None

    def on_top(self) -> dict[str, dict[str, Influence]]:
        """All that techniques add, by surrogate and technique."""
        found: dict[str, dict[str, Influence]] = {}
        for surrogate, technique in self.curves:
            if technique != "none" and (gain := self.gain(surrogate, technique)):
                found.setdefault(surrogate, {})[technique] = gain
        return found

    def table(self) -> pd.DataFrame:
        """What each technique gives on RFN and on SGD, and the two differences."""
        ways = {t: {"technique": t} for t in self.techniques}
        rates = {f"on {surrogate}": partial(self.rate, surrogate) for surrogate in JUDGED}
        differences = {"RFN over SGD, points": self.over_sgd, "over RFN alone, points": self.over_alone}
        level = counting.table(rates, ways, "technique", words.percent)
        return level.join(counting.table(differences, ways, "technique"))

    def help(self) -> pd.DataFrame:
        """What each technique adds to the plain attack on the same surrogate, in points; a column a surrogate."""
        seeds = {s: words.count(self.curves[s, "none"].seeds, "seed") for s in self.on_top()}
        gains = {f"{s} ({n})": partial(self.gain, s) for s, n in seeds.items()}
        ways = {t: {"technique": t} for of in self.on_top().values() for t in of}
        return counting.table(gains, ways, "technique")


def trade_off(lab: Lab) -> pd.DataFrame:
    """Success on validation targets and robust accuracy of the pilots: SAT by ε, RFN by ρ, both from SGD (0) on."""
    correct, rows = lab.curves(traded(lab), lab.scale.robustness), {}
    for key, arm in lab.shown(traded(lab)).items():
        if key in correct:
            success, robust = interval(pilots.validated(lab, arm).at()), interval(correct[key].at(attack=WEAK))
            rates = {"success": success, "robust": robust}
            rows[key] = {f"{what} {part}": getattr(e, part) for what, e in rates.items() for part in ENDS}
    names = [f"{what} {part}" for what in ("success", "robust") for part in ENDS]
    index = pd.MultiIndex.from_tuples(rows, names=("surrogate", "ε or ρ")) if rows else None
    return pd.DataFrame(list(rows.values()), index, names).sort_index()


def at_equal_robustness(frame: pd.DataFrame) -> pd.DataFrame:
    """RFN's success for each ρ, and that of SAT at the same robust accuracy, linearly between its ε (SGD being 0).

    A ρ whose robust accuracy SAT has nowhere has no number beside it. Empty where either is not complete.
    """
    if not {"SAT", "RFN"} <= set(frame.index.get_level_values(0)):
        return pd.DataFrame()
    sat, rfn, rows = frame.loc["SAT"].sort_values("robust value"), frame.loc["RFN"], {}
    for rho, row in rfn[rfn.index > 0].iterrows():
        success, robust = row["success value"], row["robust value"]
        other = float(np.interp(robust, sat["robust value"], sat["success value"], left=np.nan, right=np.nan))
        rows[f"{rho:g}"] = {
            f"robust accuracy ({WEAK})": words.percent(robust),
            "success of RFN": words.percent(success),
            "of SAT as robust": "none is" if np.isnan(other) else words.percent(other),
            "RFN less SAT, points": "" if np.isnan(other) else words.points(success - other),
        }
    return pd.DataFrame(rows).T.rename_axis("ρ")
