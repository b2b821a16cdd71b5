"""What the paper's reviewers and its readers asked, x1 to x31, and what is found here, in a line each, by records.

The reviews are at https://openreview.net/forum?id=8vT0f6x1BY. What was asked stands in `QUESTIONS` in our words; an
answer is a function of the lab, which raises `MissingRecord` as long as its records are not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pandas as pd

from rfnlib import words
from rfnlib.intervals import over_seeds
from rfnlib.lab import Lab, MissingRecord
from rfnlib.studies import (
    better_surrogate,
    counting,
    features,
    lr_decay,
    pilots,
    rfn_gains,
    sharpness_drop,
    threat_model,
    why,
)
from rfnlib.studies import state_of_the_art as rivals
from rfnlib.studies.interventions import complete


@dataclass(frozen=True)
class Question:
    """One that was asked.

    Attributes:
        id: such as "x5".
        asked: in a few words.
        study: whose notebook shows more.
        answer: from the records, in a line.
    """

    id: str
    asked: str
    study: ModuleType
    answer: Callable[[Lab], str]


def table(lab: Lab) -> pd.DataFrame:
    """A row a question: what was asked, the notebook, and the answer; or that its records are not there yet."""
    rows = {}
    for question in QUESTIONS:
        try:
            said = question.answer(lab)
        except MissingRecord:
            said = "not recorded yet"
        rows[question.id] = {"asked": question.asked, "notebook": question.study.NOTEBOOK[:2], "answer": said}
    return pd.DataFrame(rows).T.rename_axis("")


# --- answers ----------------------------------------------------------------------------------------------


def _definitions(lab: Lab) -> str:
    return (
        "Notebook 04 states SAM and RFN as equations, the API reference of `rfnlib.minimizers` the others; notebook 01 "
        "says what is robust and what is not."
    )


def _slightly_robust(lab: Lab) -> str:
    found = features.measure(lab)
    if "D_NR" not in found.robustness:
        raise MissingRecord("robust accuracy along the training on D_NR is not recorded")
    run, stop = found.robustness["D_NR"], found.stops["D_NR"]
    there, end = run.at(run.nearest(stop), features.WEAK), run.at(attack=features.WEAK)
    return (
        f"Stopped early on D_NR, robust accuracy ({features.WEAK}) is {words.against(there - end)} that at the end, "
        f"and success {words.against(found.help('D_NR'))}."
    )


def _with_lgv(lab: Lab) -> str:
    found = better_surrogate.measure(lab).curves
    over = {name: found["LGV from RFN"].at() - found[name].at() for name in ("LGV", "RFN")}
    said = "; ".join(f"{words.points(gain)} over {name}" for name, gain in over.items())
    return f"LGV from RFN, in points: {said}."


def _equal_robustness(lab: Lab) -> str:
    """RFN beside SAT on judged seeds, and at equal robustness on a pilot where that is recorded."""
    found = rivals.measure(lab).rivalry
    correct = {name: complete(found.robustness, name).at(attack=rivals.WEAK) for name in ("SGD", "SAT", "RFN")}
    of = ", ".join(f"{name} {words.percent(rate)}" for name, rate in correct.items())
    more = words.points(correct["RFN"] - correct["SAT"])
    told = (
        f"Robust accuracy ({rivals.WEAK}): {of}. RFN less SAT, in points: robust accuracy {more}, success "
        f"{words.points(found.against('SAT'))}."
    )
    frame = rivals.at_equal_robustness(rivals.trade_off(lab))
    if not frame.empty:
        said = [f"ρ {rho}: {gain}" for rho, gain in frame["RFN less SAT, points"].items() if gain]
        told += f" Less SAT that is as robust, one pilot: {'; '.join(said) or 'no SAT is as robust'}."
    return told


def _measures(lab: Lab) -> str:
    frame = sharpness_drop.measure(lab).by_measure()["below the constant run by"]
    return f"The decay lowers, by the factor: {'; '.join(f'{name} {said}' for name, said in frame.items())}."


def _other_schedules(lab: Lab) -> str:
    curves = lr_decay.measure(lab).curves
    said = []
    for name in ("cosine", "cyclic"):
        run = complete(curves, name)
        said.append(f"{name} {words.points((run.at(run.best) - run.at()).value)} (epoch {run.best:g})")
    return (
        f"Highest success less that at the end, in points: {'; '.join(said)}; without intervals, for the highest of "
        "many epochs is above the end by luck alone."
    )


def _relative_flatness(lab: Lab) -> str:
    drop = sharpness_drop.measure(lab).drop("relative")
    return f"Relative flatness of the last layer is {words.lower(drop)} after the decay."


def _late(lab: Lab) -> str:
    return _candidates(lab, "late RFN", "RFN, then SGD")


def _warm_start(lab: Lab) -> str:
    return _candidates(lab, "RFN after a warm start")


def _candidates(lab: Lab, *names: str) -> str:
    """Candidates of the search beside RFN, on the first pilot seed and validation targets."""
    found = better_surrogate.searched(lab)
    arm = pilots.arms(lab)[f"ρ = {pilots.chosen_rho(lab):g}"]
    curve = pilots.validated(lab, arm).first(1)
    said = [f"{name} {words.points(found[name].at() - curve.at())}" for name in names]
    return f"Less RFN all along, one pilot, in points: {'; '.join(said)}."


def _sharper_yet_better(lab: Lab) -> str:
    found = rfn_gains.sweep(lab)
    both = [rho for rho in found.success if rho in found.sharpness]
    if len(both) < 3:
        raise MissingRecord("sharpness by ρ is not recorded")
    said = [f"{rho:g}: λ₁ {words.level(found.sharpness[rho].level())}, success "
            f"{words.percent(found.success[rho].at())}" for rho in both]  # fmt: skip
    return f"By ρ (0 is SGD to its end): {'; '.join(said)}."


def _length(lab: Lab) -> str:
    curves, said = rivals.measure(lab).rivalry.curves, []
    for name in (rivals.STOPPED, "SAM", "RFN"):
        more = over_seeds(complete(curves, name).l2[:, -1] - curves["SGD"].l2[:, -1])
        between = f"{words.signed(more.low, 3)} to {words.signed(more.high, 3)}" if more.seeds > 1 else "one seed"
        said.append(f"{name} {words.signed(more.value, 3)} ({between})")
    return f"Mean l2 length of SGD's perturbations: {curves['SGD'].mean('l2'):.3f}. More than that: {'; '.join(said)}."


def _equal_compute(lab: Lab) -> str:
    said = _candidates(lab, "SGD stopped early, ensemble", "RFN in half the epochs, ensemble")
    return f"At no more than RFN's cost. {said}"


def _counted(lab: Lab) -> str:
    found = rfn_gains.measure(lab)
    ways = {**counting.other_images(), "targets as random": {"random_targets": True}}
    gains = counting.estimates(lambda **how: found.gain("RFN", **how), ways)
    return f"RFN over SGD stopped early, in points: {'; '.join(f'{w} {words.points(e)}' for w, e in gains.items())}."


def _asked(x: str, asked: str, study: ModuleType) -> Question:
    """One whose answer the study's own result gives."""
    return Question(x, asked, study, lambda lab: study.measure(lab).answer(x))


QUESTIONS = (
    Question("x1", "state the minimizers as equations; define robust and non-robust use", rfn_gains, _definitions),
    Question("x2", "are early-stopped networks on D_NR just slightly robust?", features, _slightly_robust),
    Question("x3", "LGV, RFN, and both together", better_surrogate, _with_lgv),
    _asked("x4", "does success go with sharpness at the same loss, at the same accuracy?", why),
    _asked("x5", "adversarially trained targets", threat_model),
    _asked("x6", "does success go with sharpness across methods?", why),
    Question("x7", "is RFN just a little robustness?", rivals, _equal_robustness),
    _asked("x8", "is it SAM's flatness, or any perturbation as large?", why),
    _asked("x9", "attacks that look for flatness in the input", threat_model),
    _asked("x10", "a measured picture of the loss surface in place of a drawn one", why),
    Question("x11", "more measures than the Hessian's", sharpness_drop, _measures),
    Question("x12", "schedules without a sudden decay", lr_decay, _other_schedules),
    _asked("x13", "all networks by all measures", why),
    _asked("x14", "does the rate, or what it does, cause transfer? Interventions at one checkpoint", why),
    _asked("x15", "what are exploration and basins? Barriers between checkpoints", why),
    _asked("x16", "an attacker with other data, augmentation or labels", threat_model),
    _asked("x17", "attacks other than plain BIM", threat_model),
    _asked("x18", "robust against non-robust features, at several ε", threat_model),
    _asked("x19", "flatness in weights or in inputs?", why),
    Question("x20", "relative flatness", sharpness_drop, _relative_flatness),
    _asked("x21", "is it the smaller loss alone that flattens?", why),
    _asked("x22", "the edge of stability: λ₁ against 2/η around the decay", why),
    Question("x23", "does RFN late in training do?", better_surrogate, _late),
    Question("x24", "does a large ρ need a warm start?", better_surrogate, _warm_start),
    _asked("x25", "gradient similarity and smoothness in the input", why),
    _asked("x26", "does input diversity still help a flat surrogate?", threat_model),
    _asked("x27", "targets that were trained otherwise", threat_model),
    Question("x28", "is SAM always flatter, and flatter always better?", rfn_gains, _sharper_yet_better),
    Question("x29", "are perturbations longer in l2?", rivals, _length),
    Question("x30", "equal compute", better_surrogate, _equal_compute),
    Question("x31", "which images, which targets", rfn_gains, _counted),
)
