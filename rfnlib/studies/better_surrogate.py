"""Questions Q7 and Q8: is there a better surrogate at no more than twice SGD's cost? Notebook 08.

With E the epochs of SGD, a candidate costs at most 2E passes through the training set, all of its networks together.
The candidates are listed here; the one with the most success on validation images and targets, on the first pilot seed,
is the *winner*. On judged seeds, not looked at when the list was written, s_M is the success rate:

- Q7: s_winner − s_R for each rival R of `RIVALS`, LGV and the More-Bayesian surrogate from RFN among them;
- Q8: s_winner − s_SGD on robust targets: not below −margin (non-inferiority).

Both are means over the targets, paired by seed and image. All else is secondary and has no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

import pandas as pd

from rfnlib import claims, words
from rfnlib.claims import Claim, Gate
from rfnlib.costs import passes_per_step
from rfnlib.curves import TransferCurve
from rfnlib.intervals import Influence
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.recipes import Collected, Member, Recipe, Together, members
from rfnlib.scale import Arch
from rfnlib.specs import Minimizer, Step, TrainSpec
from rfnlib.studies import pilots, state_of_the_art

NOTEBOOK = "08_better_surrogate"
RIVALS = ("RFN", "SAT", "LGV", "More Bayesian", "aligned", "LGV from RFN", "More Bayesian from RFN")
BUDGET = 2.0  # times SGD's passes
APART = 200  # between the seeds of an ensemble's members: none is a judged seed or a pilot
CLAIMS = claims.by_id(
    Claim(
        "Q7",
        "A surrogate of at most twice SGD's cost beats every other one here",
        tuple(f"winner − {rival}" for rival in RIVALS),
        margin=0.03,
        answer="the surrogate that pilots choose {beats each of its rivals|loses to one of its rivals at least|"
        "is no better than one of its rivals at least}",
        follows=(
            "Train the winner: at twice SGD's cost nothing recorded here succeeds as often.",
            "Keep the rival that the table names: a search over cheap combinations has not found a better one.",
            "Keep the cheapest surrogate of those that succeed as often: the search has found none that matters more.",
        ),
    ),
    Claim(
        "Q8",
        "It does not fall behind SGD on robust targets",
        ("winner − SGD, robust targets",),
        margin=0.02,
        non_inferiority=True,
        answer="on robust targets the winner {keeps up with|falls behind} SGD",
        follows=(
            "What the winner gains on standard targets it does not lose on robust ones.",
            "The winner is a specialist: on robust targets plain SGD fools more.",
        ),
    ),
)


# --- who takes part ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A surrogate to try: the run, the epoch at which its network is used, and what is made of it."""

    spec: TrainSpec
    epoch: float
    recipe: Recipe | None = None

    @property
    def cost(self) -> float:
        """Of all its training, in passes through the training set."""
        others = members(self.recipe, self.spec)
        return _cost(self.spec, self.epoch) + sum(_cost(spec, epoch) for spec, epoch, _ in others)


def _cost(spec: TrainSpec, epoch: float) -> float:
    before = _cost(spec.start, float(spec.start.epochs)) if spec.start else 0.0
    return before + passes_per_step(spec) * epoch


def candidates(lab: Lab, seed: int) -> dict[str, Candidate]:
    """All that are searched, none dearer than the budget.

    An ensemble has as many members as the budget allows, whose seeds are `APART`. Those that begin late go on from the
    run whose rate is constant, at the first decay of the standard schedule, by the decayed rate.
    """
    scale, stop, rho = lab.scale, pilots.stopping_epoch(lab), pilots.chosen_rho(lab)
    end, per, most = scale.epochs, scale.rivals.per_epoch, BUDGET * scale.epochs
    decay, tuned = scale.standard[0], scale.rivals.epochs
    flat = Minimizer("SAM", rho)

    def ensemble(one: Candidate, others: list[Candidate] | None = None) -> Candidate:
        """`one` with itself, or with `others` in turn, from other seeds, as often as the budget allows."""
        turn, left = others or [one], most - one.cost
        more: list[Member] = []
        while (new := turn[len(more) % len(turn)]).cost <= left:
            more.append(Member(new.spec, new.epoch, new.recipe, apart=APART * (len(more) + 1)))
            left -= new.cost
        return replace(one, recipe=Together(tuple(more), one.recipe))

    def early(arch: Arch | None = None) -> Candidate:
        return Candidate(scale.flat(None, seed, arch), stop)

    def collected(start: TrainSpec) -> Candidate:
        """LGV from the end of a run."""
        run = pilots.onwards(start, scale.lr / 2, tuned, weight_decay=1e-4, minimizer=None)
        return Candidate(run, float(tuned), Collected(per))

    def halved(spec: TrainSpec) -> Candidate:
        return Candidate(pilots.halved(scale, spec), float(end // 2))

    def late(epochs: int) -> Candidate:
        """SGD up to the decay, then RFN at the decayed rate."""
        run = pilots.onwards(pilots.checkpoint(scale, seed), scale.lr / 10, epochs, minimizer=flat)
        return Candidate(run, float(epochs))

    stopped = replace(scale.flat(None, seed), epochs=ceil(stop))
    rfn, warm = pilots.sam(scale, rho, seed), max(1, end // 10)
    begun = replace(scale.surrogate(Step(scale.lr), seed), epochs=warm)
    after = Step(scale.lr, tuple(m - warm for m in scale.standard))
    warmed = replace(begun, schedule=after, epochs=end - warm, start=begun, minimizer=flat)
    first = replace(rfn, schedule=Step(scale.lr), epochs=decay)
    then_sgd = pilots.onwards(first, scale.lr / 10, end - decay, minimizer=None)
    mean = scale.flat(Minimizer("WASAM", rho, average_from=float(end // 2)), seed)
    found = {
        "SGD stopped early, ensemble": ensemble(early()),
        "LGV from SGD stopped early, ensemble": ensemble(collected(stopped)),
        "late RFN, ensemble": ensemble(late((end - decay) // 2)),
        "LGV from late RFN, ensemble": ensemble(collected(late((end - decay - tuned) // 2).spec)),
        "RFN in half the epochs, ensemble": ensemble(halved(rfn)),
        "SAT in half the epochs, ensemble": ensemble(halved(pilots.slight(scale, pilots.chosen_slight(lab), seed))),
        "late RFN": late(end - decay),
        "RFN after a warm start": Candidate(warmed, float(end - warm)),
        "RFN, then SGD": Candidate(then_sgd, float(end - decay)),
        "RFN, weights averaged": Candidate(mean, float(end)),
    }
    if scale.surrogates[1:]:
        several = [early(arch) for arch in (*scale.surrogates[1:], scale.surrogates[0])]
        found["SGD stopped early, ensemble of architectures"] = ensemble(early(), several)
    return {name: c for name, c in found.items() if c.cost <= most}


def search(lab: Lab) -> dict[str, Arm]:
    """Every candidate on the first pilot seed."""
    found = candidates(lab, lab.scale.pilots[0]).items()
    return {name: Arm(name, [c.spec], At(lab.scale.transfer, (c.epoch,), c.recipe)) for name, c in found}


def searched(lab: Lab) -> dict[str, TransferCurve]:
    """Success of every candidate on validation images and targets, the first pilot seed.

    Raises:
        MissingRecord: in replay, a candidate is not recorded.
    """
    return {name: pilots.validated(lab, arm) for name, arm in search(lab).items()}


def winner(lab: Lab) -> str:
    """The candidate with the most success there; of equal ones the first."""
    return pilots.most({name: run.at().value for name, run in searched(lab).items()})


def rivals(lab: Lab) -> dict[str, Arm]:
    """SGD, and whom the winner is judged against: those of claim C7, and two that go on from RFN in place of SGD."""
    scale, known = lab.scale, state_of_the_art.arms(lab)
    found = {}
    for name in ("SGD", *RIVALS):
        source = known[name.removesuffix(" from RFN")]
        specs = [s for s in source.specs if isinstance(s, TrainSpec)]
        if name.endswith(" from RFN"):
            specs = [replace(s, start=pilots.sam(scale, pilots.chosen_rho(lab), s.seed)) for s in specs]
        found[name] = Arm(name, specs, *source.asked[:2])  # success on standard and on robust targets
    return found


def arms(lab: Lab) -> dict[str, Arm]:
    """The winner, SGD and the rivals on the judged seeds.

    Raises:
        MissingRecord: in replay, the search is not complete.
    """
    best = winner(lab)
    made = [candidates(lab, seed)[best] for seed in lab.seeds]
    asked = [At(probe, (made[0].epoch,), made[0].recipe) for probe in state_of_the_art.questions(lab.scale)[:2]]
    return by_name(Arm("winner", [c.spec for c in made], *asked)) | rivals(lab)


def plan(lab: Lab) -> Iterator[Measurement]:
    """The rivals that go on from RFN, the search, then the winner."""
    yield from by_seed(rivals(lab).values())
    yield from by_seed(search(lab).values())
    yield from by_seed(arms(lab).values())


# --- what was found ---------------------------------------------------------------------------------------


def measure(lab: Lab) -> Better:
    """The search and the judgement, as far as they are recorded.

    Raises:
        MissingRecord: in replay, the search is not complete.
    """
    standard, robust, *_ = state_of_the_art.questions(lab.scale)
    named, found = winner(lab), arms(lab)
    return Better(
        named,
        candidates(lab, lab.scale.pilots[0])[named].cost,
        searched(lab),
        lab.curves(found, standard, needed=("winner", "SGD", *RIVALS)),
        lab.curves(found, robust, needed=("winner", "SGD")),
        pilots.gates(lab, "C7"),
    )


@dataclass(frozen=True)
class Better:
    """The search on pilots, and the winner beside its rivals.

    Attributes:
        winner: the candidate's name. `cost`: of it, in epochs of SGD.
        searched: the candidates on validation images and targets, one pilot seed.
        curves: the winner, SGD and the rivals on test images and targets. `robust`: on robust targets.
        gates: that the scale must pass.
    """

    winner: str
    cost: float
    searched: dict[str, TransferCurve]
    curves: dict[str, TransferCurve]
    robust: dict[str, TransferCurve]
    gates: list[Gate]

    def over(self, name: str, robust: bool = False) -> Influence:
        """Success of the winner less that of `name`: same seeds, same images."""
        found = self.robust if robust else self.curves
        return found["winner"].at() - found[name].at()

    def closest(self) -> str:
        """The rival that the winner gains least over."""
        return min(RIVALS, key=lambda name: self.over(name).value)

    def verdict(self, claim: str) -> claims.Verdict:
        """The verdict on a question, before Holm's correction over those of its kind."""
        if claim == "Q8":
            return claims.judge(CLAIMS[claim], self.over("SGD", robust=True), gates=self.gates)
        what = [f"{self.winner} − {rival}" for rival in RIVALS]
        return claims.judge(CLAIMS[claim], [self.over(rival) for rival in RIVALS], what, self.gates)

    def headline(self, claim: str) -> str:
        """What was found, in one sentence."""
        answer, costs = self.verdict(claim).answer, f"{self.cost:.0f} epochs of SGD in all"
        if claim == "Q8":
            return f"{answer}: success there is {words.against(self.over('SGD', robust=True))} that of SGD."
        least = self.closest()
        return (
            f"{answer}: success of {self.winner} ({costs}) is {words.against(self.over(least))} that of {least}, the "
            f"strongest rival, and {words.against(self.over('RFN'))} that of RFN."
        )

    def search_table(self) -> pd.DataFrame:
        """A row a candidate: success on validation images and targets, natural accuracy, cost; the best first."""
        rows = {
            name: {
                "success, validation": words.percent(run.at()),
                "natural accuracy": words.percent(run.mean("accuracy")),
                "cost, epochs of SGD": f"{run.mean('passes'):.0f}",
            }
            for name, run in sorted(self.searched.items(), key=lambda item: -item[1].at().value)
        }
        return pd.DataFrame(rows).T.rename_axis("candidate")

    def table(self) -> pd.DataFrame:
        """A row a surrogate: success on standard and robust targets, what the winner gains over it, cost."""
        rows = {}
        for name in sorted(self.curves, key=lambda name: -self.curves[name].at().value):
            run, robust = self.curves[name], self.robust.get(name)
            rows[self.winner if name == "winner" else name] = {
                "seeds": str(run.seeds),
                "success": words.percent(run.at()),
                "winner less this, points": "" if name == "winner" else words.points(self.over(name)),
                "success on robust targets": words.percent(robust.at() if robust else None),
                "natural accuracy": words.percent(run.mean("accuracy")),
                "cost, epochs of SGD": f"{run.mean('passes'):.0f}",
            }
        return pd.DataFrame(rows).T.rename_axis("surrogate")
