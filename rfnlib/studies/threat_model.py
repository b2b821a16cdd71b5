"""Questions Q4 to Q6: does what RFN gains survive a weaker attacker, other targets, another attack? Notebook 07.

With s_M the success rate of surrogate M in a setting c, RFN at the end of its training, SGD at the epoch e* at which it
is stopped early, ρ and e* chosen once, on pilots with the scale's own images, labels and targets,

    d(c) = s_RFN(E; c) − s_SGD(e*; c)

is judged three times, each time the mean over the test targets, paired by seed and image:

- Q4: d for an attacker who trains on as many other images, none of which a target was trained on;
- Q5: d on targets that were trained otherwise, the mean of these;
- Q6: the mean of d over attacks that differ from BIM in the start, the direction, the loss or the norm.

Beside them stand SGD at its end; attackers with half of these images, without augmentation, or with wrong labels;
attacks that are flat in the input (RAP, PGN); a targeted one, where a hit is a target that says the wanted class; and
input diversity on flat surrogates. They have no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from rfnlib import claims, transfer, words
from rfnlib.claims import Claim, Gate
from rfnlib.curves import TransferCurve
from rfnlib.intervals import Influence, average
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.probes import Clean
from rfnlib.scale import VARIED, Scale
from rfnlib.studies import counting, features, pilots, state_of_the_art
from rfnlib.studies.interventions import complete
from rfnlib.studies.threats import USUAL, left, own_images, settings

NOTEBOOK = "07_threat_model"
CLAIMS = claims.by_id(
    Claim(
        "Q4",
        "RFN beats early stopping also for an attacker without the targets' images",
        ("RFN − early stopping, both trained on other images than the targets",),
        margin=0.03,
        answer="without the targets' images RFN {beats|loses to|does as well as} SGD stopped early",
        follows=(
            "What RFN gains does not need the targets' images: an attacker who collects others gains too.",
            "An attacker with other images stops SGD early: with those, RFN costs twice as much and gives less.",
            "An attacker with other images stops SGD early: with those, the second pass of RFN buys nothing.",
        ),
    ),
    Claim(
        "Q5",
        "RFN beats early stopping also on targets that were trained otherwise",
        ("RFN − early stopping, mean of targets trained otherwise",),
        margin=0.03,
        answer="on targets that were trained otherwise RFN {beats|loses to|does as well as} SGD stopped early",
        follows=(
            "What RFN gains does not rest on how the targets were trained: it is no artefact of their learning rate.",
            "What RFN gains is gone where the defender trains otherwise: there SGD stopped early is the better one.",
            "Where the defender trains otherwise, RFN does no better than SGD stopped early, at twice the cost.",
        ),
    ),
    Claim(
        "Q6",
        "RFN beats early stopping also under attacks other than plain BIM",
        ("RFN − early stopping, mean over attacks",),
        margin=0.03,
        answer="under attacks other than plain BIM RFN {beats|loses to|does as well as} SGD stopped early",
        follows=(
            "What RFN gains belongs to the surrogate and not to BIM: choose the attack freely.",
            "What RFN gains under BIM is lost under other attacks: with those, stop SGD early.",
            "Under other attacks than BIM, RFN does no better than SGD stopped early, at twice the cost.",
        ),
    ),
)

EARLY, END, FLAT = pilots.STOPPED, "SGD", "RFN"
AS_USUAL = "{}, as usual"  # a target
FLAT_INPUTS = ("RAP", "PGN")


# --- arms -----------------------------------------------------------------------------------------------

Arms = dict[tuple[str, str], Arm]


def arms(lab: Lab, claim: str) -> Arms:
    """Surrogates in each setting of a question: by setting and surrogate, each at the epoch where it is used."""
    scale, rho, stop = lab.scale, pilots.chosen_rho(lab), pilots.stopping_epoch(lab)
    found: Arms = {}
    for name, c in settings(scale, claim).items():
        seeds = lab.few if c.few else lab.seeds
        sgd = [replace(scale.flat(None, seed), **c.changed) for seed in seeds]
        flat = [replace(pilots.sam(scale, rho, seed), **c.changed) for seed in seeds]
        used = {EARLY: (sgd, stop), FLAT: (flat, scale.end), END: (sgd, scale.end)}
        for surrogate, (specs, epoch) in used.items():
            if surrogate != END or claim != "Q6" or name == USUAL:
                found[name, surrogate] = Arm(f"{surrogate}: {name}", specs, At(c.probe, (epoch,)))
    return found


def _beside(lab: Lab, claim: str) -> set[tuple[str, str]]:
    """Of a question's arms those that no primary difference waits for, and that cost something."""
    every = {name: c for name, c in settings(lab.scale, claim).items() if name != USUAL}
    of_none = {(name, surrogate) for name, c in every.items() if not c.judged for surrogate in (EARLY, FLAT)}
    return of_none | ({(name, END) for name in every} if claim == "Q4" else set())


def plan(lab: Lab) -> Iterator[Measurement]:
    """What is judged: targets trained otherwise, other attacks, and last the attacker's images, which cost most."""
    for claim in ("Q5", "Q6", "Q4"):
        beside = _beside(lab, claim)
        yield from by_seed(arm for key, arm in arms(lab, claim).items() if key not in beside)


def later(lab: Lab) -> Iterator[Measurement]:
    """What stands beside: other attacks, and SGD trained to its end on the attacker's images."""
    for claim in ("Q6", "Q4"):
        beside = _beside(lab, claim)
        yield from by_seed(arm for key, arm in arms(lab, claim).items() if key in beside)


# --- the result -----------------------------------------------------------------------------------------


def measure(lab: Lab) -> ThreatModel:
    """Q4 to Q6 at `lab`'s scale, each read when it is asked for."""
    return ThreatModel(lab)


def images_left(scale: Scale) -> Gate:
    """There are images that no target was trained on: without them Q4 asks nothing."""
    return Gate("images left", left(scale) > 0, f"{left(scale):,} images that no target is trained on (more than 0)")


@dataclass(frozen=True)
class ThreatModel:
    """RFN against SGD stopped early in each setting; no question waits for the records of another."""

    lab: Lab
    usual: ClassVar[str] = USUAL

    @cached_property
    def curves(self) -> dict[str, dict[tuple[str, str], TransferCurve]]:
        """By question, then by setting and surrogate: those that are complete."""
        return {claim: self.lab.curves(arms(self.lab, claim)) for claim in CLAIMS}

    def of(self, claim: str, setting: str, surrogate: str) -> TransferCurve:
        """The curve of a surrogate in a setting.

        Raises:
            MissingRecord: it is not complete.
        """
        return complete(self.curves[claim], (setting, surrogate), f"{surrogate}, {setting}")

    def has(self, claim: str, *settings: str) -> bool:
        """Whether RFN and SGD stopped early are complete in these settings."""
        return {(name, s) for name in settings for s in (EARLY, FLAT)} <= self.curves[claim].keys()

    # --- differences ---

    def gain(self, claim: str, setting: str, over: str = EARLY, **how: Any) -> Influence:
        """d(c): success of RFN in a setting less that of another surrogate (SGD stopped early), paired."""
        return self.of(claim, setting, FLAT).at(**how) - self.of(claim, setting, over).at(**how)

    def change(self, claim: str, setting: str) -> Influence:
        """d(c) less what it is in the setting of notebook 04, same seeds: for settings whose targets are the same."""
        seeds = self.of(claim, setting, FLAT).seeds
        flat, early = (self.of(claim, USUAL, s).first(seeds).at() for s in (FLAT, EARLY))
        return self.gain(claim, setting) - (flat - early)

    @property
    def first_target(self) -> str:
        """The test target that most of those trained otherwise are once more."""
        return AS_USUAL.format(self.of("Q5", USUAL, FLAT).targets[0])

    def judged(self, claim: str) -> list[str]:
        """The settings whose mean is judged."""
        return [name for name, c in settings(self.lab.scale, claim).items() if c.judged]

    def primary(self, claim: str, **how: Any) -> Influence:
        """The difference that a question is judged by: the mean of d over its settings."""
        return average([self.gain(claim, name, **how) for name in self.judged(claim)])

    def ways(self, claim: str) -> dict[str, dict[str, Any]]:
        """What the primary difference is the mean of, by name: settings, or for Q5 the targets of the only one."""
        if claim != "Q5":
            return {name: {"setting": name} for name in self.judged(claim)}
        targets = self.of(claim, VARIED, FLAT).targets
        return {name: {"setting": VARIED, **of} for name, of in counting.each(targets).items()}

    def signs(self, claim: str) -> str:
        """In how many of its settings (or on how many targets) RFN is above SGD stopped early, and where least."""
        return counting.signs(partial(self.gain, claim), self.ways(claim))

    def diversity(self, surrogate: str) -> Influence:
        """What input diversity adds to BIM on a surrogate."""
        return self.of("Q6", "DI", surrogate).at() - self.of("Q6", USUAL, surrogate).at()

    def flat_inputs(self, attack: str) -> Influence:
        """BIM on RFN, flat in the weights, less a `FLAT_INPUTS` attack on SGD stopped early, flat in the input."""
        return self.of("Q6", USUAL, FLAT).at() - self.of("Q6", attack, EARLY).at()

    def harder(self, surrogate: str) -> dict[str, Influence]:
        """Success on each target trained otherwise less that on the first test target as the scale trains it.

        Counted on the images that all of these classify correctly.
        """
        usual, varied = self.of("Q5", USUAL, surrogate), self.of("Q5", VARIED, surrogate)
        a, b = usual.hits[-1], varied.hits[-1]
        both = transfer.Hits(
            np.concatenate([a.adv_wrong[:, :, :1], b.adv_wrong], 2),
            np.concatenate([a.clean_wrong[:, :1], b.clean_wrong], 1),
            b.surrogate_wrong,
        )
        first, *others = (transfer.influence(both, targets=[i]) for i in range(1 + len(varied.targets)))
        return {name: other - first for name, other in zip(varied.targets, others, strict=True)}

    # --- judgement ---

    def verdict(self, claim: str) -> claims.Verdict:
        """The verdict on a question, before Holm's correction; the gates are those of C4, whose surrogates these are.

        Raises:
            MissingRecord: in replay, what it is judged by is not recorded.
        """
        gates = pilots.gates(self.lab, "C4") + ([images_left(self.lab.scale)] if claim == "Q4" else [])
        return claims.judge(CLAIMS[claim], self.primary(claim), gates=gates)

    def headline(self, claim: str) -> str:
        """What was found, in one sentence."""
        over, said = {"Q5": "target", "Q6": "attack"}, words.against(self.primary(claim))
        usual = f"; {USUAL}, {words.against(self.gain(claim, USUAL))}" if self.has(claim, USUAL) else ""
        told = f"success of RFN is {said} that of SGD stopped early{usual}"
        if claim in over:
            mean = words.count(len(self.ways(claim)), over[claim])
            told = f"on average over {mean}, {told}; {self.signs(claim)}"
        return f"{self.verdict(claim).answer}: {told}."

    def answer(self, x: str) -> str:
        """What is found on a reviewer's point, such as "x16", in one line.

        Raises:
            KeyError: this study does not answer it.
            MissingRecord: in replay, it is not recorded.
        """
        return ANSWERS[x](self)

    def answers(self, *points: str) -> str:
        """What is found on each of several points, a line each; of those that are not recorded that they are not."""
        said = []
        for x in points:
            try:
                said.append(self.answer(x))
            except MissingRecord as missing:
                said.append(f"not recorded yet: {missing}")
        return "\n".join(said)

    # --- tables ---

    def table(self, claim: str) -> pd.DataFrame:
        """A row a setting: success of each surrogate, what RFN gains, and for Q4 the accuracies of RFN."""
        rows, surrogates = {}, (EARLY, FLAT) if claim == "Q6" else (EARLY, END, FLAT)
        for name, c in settings(self.lab.scale, claim).items():
            seen = {s: curve for (of, s), curve in self.curves[claim].items() if of == name}
            if {EARLY, FLAT} <= seen.keys():
                rows[name] = {
                    "judged": "yes" if c.judged else "",
                    "seeds": str(seen[FLAT].seeds),
                    **{s: words.percent(seen[s].at() if s in seen else None) for s in surrogates},
                    "RFN over SGD stopped early, points": words.points(self.gain(claim, name)),
                }
                if claim != "Q5":  # whose targets are others
                    less = "" if name == USUAL else words.points(self.change(claim, name))
                    rows[name] |= {"less as in notebook 04": less}
                if claim == "Q4":
                    of = {"natural accuracy of RFN": "accuracy", "on the targets' training images": "training"}
                    rows[name] |= {label: words.percent(seen[FLAT].mean(what)) for label, what in of.items()}
        return pd.DataFrame(rows).T.rename_axis({"Q4": "trained on", "Q6": "attack"}.get(claim, "targets"))

    def target_table(self) -> pd.DataFrame:
        """A row a target trained otherwise: its accuracy, success on it, what RFN gains, how far success differs.

        First the test target that most of them are once more, as the scale trains it.
        """
        if not self.has("Q5", USUAL, VARIED):
            return pd.DataFrame().rename_axis("target")
        accuracy, harder = target_accuracy(self.lab), {s: self.harder(s) for s in (FLAT, EARLY)}
        varied = [(name, VARIED, i) for i, name in enumerate(self.of("Q5", VARIED, FLAT).targets)]
        rows = {}
        for name, setting, i in [(self.first_target, USUAL, 0), *varied]:
            less = {s: words.points(d[name]) if name in d else "" for s, d in harder.items()}
            rows[name] = {
                "natural accuracy": words.percent(accuracy.get(name)),
                **{s: words.percent(self.of("Q5", setting, s).at(targets=[i])) for s in (EARLY, FLAT)},
                "RFN over SGD stopped early, points": words.points(self.gain("Q5", setting, targets=[i])),
                "success less usual training, by RFN": less[FLAT],
                "by SGD stopped early": less[EARLY],
            }
        return pd.DataFrame(rows).T.rename_axis("target")

    def sensitivity(self) -> pd.DataFrame:
        """The primary differences of those questions that are complete, over other images; in points."""
        complete = {claim: partial(self.primary, claim) for claim in CLAIMS if self.has(claim, *self.judged(claim))}
        return counting.table(complete, counting.other_images(), "counted")


# --- what reviewers asked ---------------------------------------------------------------------------------


def _robust_targets(found: ThreatModel) -> str:
    robust = state_of_the_art.measure(found.lab).rivalry.robust
    flat, early = (complete(robust, name, f"{name}, robust targets").at() for name in (FLAT, EARLY))
    said = f"by RFN on {words.percent(flat)}, by SGD stopped early on {words.percent(early)}"
    return (
        f"Adversarially trained targets are fooled {said}: {words.points(flat - early)} points, over images that each "
        "of them classifies correctly."
    )


def _flat_inputs(found: ThreatModel) -> str:
    said = [
        f"BIM on RFN is {words.against(found.flat_inputs(a))} {a} on SGD stopped early, and under {a} RFN "
        f"gains {words.points(found.gain('Q6', a))} points over it"
        for a in FLAT_INPUTS
    ]
    return f"{'; '.join(said)}."


def _own_images(found: ThreatModel) -> str:
    trained = [name for name in own_images(found.lab.scale) if found.has("Q4", name) or name in found.judged("Q4")]
    said = [f"{name} {words.points(found.gain('Q4', name))}" for name in trained]
    return f"RFN over SGD stopped early, in points, by what both train on: {'; '.join(said)}."


def _attacks(found: ThreatModel) -> str:
    return f"RFN over SGD stopped early: {words.points(found.primary('Q6'))} points; {found.signs('Q6')}."


def _slow_targets(found: ThreatModel) -> str:
    (slow, *_), by = found.of("Q5", VARIED, FLAT).targets, {s: found.harder(s) for s in (FLAT, EARLY)}
    flat, early = (words.points(by[s][slow]) for s in (FLAT, EARLY))
    return (
        "Success on a target trained at a tenth of the rate less that on the same one at the usual rate: "
        f"{flat} points by RFN, {early} by SGD stopped early."
    )


def _diversity(found: ThreatModel) -> str:
    added = {s: found.diversity(s) for s in (FLAT, EARLY)}
    less = words.points(added[FLAT] - added[EARLY])
    return (
        f"Input diversity changes success by {words.points(added[FLAT])} points on RFN and by "
        f"{words.points(added[EARLY])} on SGD stopped early, a difference of {less}."
    )


def _feature_gap(found: ThreatModel) -> str:
    table = features.gap_by_eps(found.lab)
    if table.empty:
        raise MissingRecord("surrogates on D_R and D_NR by ε are not complete; compute them with "
                            "`python -m rfnlib run` at this scale.")  # fmt: skip
    said = [f"at {eps} {', '.join(f'{what} {value}' for what, value in row.items())}" for eps, row in table.iterrows()]
    return f"Points of success: {'; '.join(said)}."


ANSWERS: dict[str, Callable[[ThreatModel], str]] = {
    "x5": _robust_targets,
    "x9": _flat_inputs,
    "x16": _own_images,
    "x17": _attacks,
    "x18": _feature_gap,
    "x26": _diversity,
    "x27": _slow_targets,
}


# --- for readers ------------------------------------------------------------------------------------------


def target_accuracy(lab: Lab) -> dict[str, float]:
    """Natural accuracy of the targets trained otherwise, and of the first test target, those that are recorded."""
    usual = lab.scale.targets_of("standard")[0]
    named = {AS_USUAL.format(usual.name): usual, **{t.name: t for t in lab.scale.targets_of(VARIED)}}
    targets = {name: lab.scale.target(t) for name, t in named.items()}
    found = lab.curves({name: Arm(name, [s], At(Clean(), (s.epochs,))) for name, s in targets.items()})
    return {name: accuracy for name, (accuracy,) in found.items()}
