"""Does flatness cause transfer? Claims Q1 to Q3, which are not the paper's but answer what it leaves open. Notebook 06.

Four parts: six ways to go on from one checkpoint, which the claims are judged by (`interventions`); rank correlations
over all recorded networks (`predictors`); λ₁ against 2/η around a decay (`edge`); planes, paths and barriers
(`journey`). With s_A the success of arm A at its end, three claims are judged:

- Q1: s_RFN − s_unchanged and s_RFN − s_noise, both of which must be positive, where RFN has lowered λ₁;
- Q2: s_lower rate − s_RFN, where RFN has λ₁ at least as low;
- Q3: s_averaged − s_unchanged and s_larger batch − s_unchanged, both of which must be positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from rfnlib import claims, words
from rfnlib.claims import Claim
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Measurement
from rfnlib.studies import edge, interventions, journey, predictors
from rfnlib.studies.interventions import BATCH, LOWER, MEAN, NOISE, RFN, SAME

NOTEBOOK = "06_why"
CLAIMS = claims.by_id(
    Claim(
        "Q1",
        "Flatness raises transferability without a lower learning rate",
        ("RFN − unchanged", "RFN − noise of the same norm"),
        margin=0.03,
        answer="training for flatness at an unchanged rate "
        "{raises success, and more than random perturbations of the weights do|"
        "lowers success, or raises it less than random perturbations of the weights do|"
        "does not raise success, or no more than random perturbations of the weights do}",
        follows=(
            "Training for flatness is worth something by itself: at the same rate, from the same network, it made a "
            "better surrogate, and a better one than random perturbations as large did. Whether flatness is the reason "
            "it does not say, for other measures moved with it.",
            "Training for flatness is no reason to expect transfer: at the same rate it cost success, or random "
            "perturbations as large did better. What RFN gains over whole trainings has another cause.",
            "Training for flatness, at the same rate, gives nothing that matters beyond what going on, or random "
            "perturbations as large, give within so short a training.",
        ),
    ),
    Claim(
        "Q2",
        "A lower learning rate raises transferability by more than flatness does",
        ("lower rate − RFN at the unchanged rate",),
        margin=0.03,
        answer="a lower rate {leads to more success than|leads to less success than|does as much for success as} "
        "flatness at the unchanged rate",
        follows=(
            "The peak after a decay is not flatness alone: a network as flat or flatter, without the lower rate, "
            "succeeds less. The loss, which falls with the rate, is the next suspect.",
            "A lower rate is not needed for what it is said to bring: flatness at the old rate does more.",
            "What a lower rate does for success, training for flatness at the old rate does as well. That both gain as "
            "much does not say that they work alike: other measures moved.",
        ),
    ),
    Claim(
        "Q3",
        "Averaging out the noise of SGD raises transferability without a lower learning rate",
        ("averaged weights − unchanged", "ten times the batch − unchanged"),
        margin=0.03,
        answer="averaging weights and enlarging the batch "
        "{both raise success without a lower rate|do not both raise success: one lowers it|do not both raise success}",
        follows=(
            "It need not be the rate: averaging weights raises success without a lower one, and so do larger batches, "
            "which take fewer steps for the same images.",
            "Less noise does not do what a lower rate does: one of the two ways costs success.",
            "Less noise, in at least one of the two ways, does not do what a lower rate does.",
        ),
    ),
)

CORRELATED = ("x4", "x6", "x13", "x19", "x25")  # those that rest on correlations alone


def plan(lab: Lab) -> Iterator[Measurement]:
    """The interventions; likeness of the surrogates of notebook 04; the fine grid around the decay."""
    for part in (interventions, predictors, edge):
        with suppress(MissingRecord):  # none waits for another's choices
            yield from part.plan(lab)


def later(lab: Lab) -> Iterator[Measurement]:
    """Paths and planes."""
    yield from journey.plan(lab)
    yield from journey.later(lab)


def measure(lab: Lab) -> Why:
    """All four parts at `lab`'s scale, each read when it is asked for."""
    return Why(lab)


@dataclass(frozen=True)
class Why:
    """The four parts of notebook 06; none waits for the records of another.

    Each raises `MissingRecord` in replay, where its own records are not complete.
    """

    lab: Lab

    @cached_property
    def interventions(self) -> interventions.Interventions:
        """Six ways to go on from one checkpoint."""
        return interventions.measure(self.lab)

    @cached_property
    def predictors(self) -> predictors.Predictors:
        """Which measure goes with success over all recorded networks."""
        return predictors.measure(self.lab)

    @cached_property
    def edge(self) -> edge.Edge:
        """λ₁ against 2/η around the decay."""
        return edge.measure(self.lab)

    @cached_property
    def journeys(self) -> journey.Journeys:
        """Paths and barriers."""
        return journey.journeys(self.lab)

    @cached_property
    def landscapes(self) -> list[journey.Landscape]:
        """The planes that are recorded."""
        return journey.landscapes(self.lab)

    # --- the judgement ---

    def verdict(self, claim: str) -> claims.Verdict:
        """The verdict on a claim, before Holm's correction over all questions.

        Raises:
            MissingRecord: in replay, what it is judged by is not recorded.
        """
        found = self.interventions
        return claims.judge(CLAIMS[claim], found.primaries(claim), gates=found.gates(claim))

    def headline(self, claim: str) -> str:
        """What was found on a claim, in one sentence."""
        ends, after = self.interventions.ends, words.count(self.interventions.length, "epoch")
        said = f"{self.verdict(claim).answer}: after as many passes as {after} of SGD take, success"
        if claim == "Q1":
            over, noise = (words.against(ends.gain(RFN, over=other)) for other in (SAME, NOISE))
            flat = words.lower(ends.change(SAME, "top", over=RFN))
            beside = f"{noise} that with random perturbations; λ₁ is {flat}."
            return f"{said} of RFN is {over} that of the unchanged run, {beside}"
        if claim == "Q2":
            gain = words.against(ends.gain(LOWER, over=RFN))
            both = [f"{words.points(ends.gain(name))} ({name})" for name in (LOWER, RFN)]
            return f"{said} is {gain} that of RFN; over the unchanged run, in points: {words.listed(both)}."
        mean, batch = (words.against(ends.gain(name)) for name in (MEAN, BATCH))
        return f"{said} of averaged weights is {mean} that of the unchanged run, that of larger batches {batch}."

    # --- reviewers ---

    def answer(self, x: str) -> str:
        """What notebook 06 says to a reviewer's question, in a line with its interval.

        Raises:
            MissingRecord: in replay, what it rests on is not recorded.
            KeyError: this study does not answer it.
        """
        answers: dict[str, Callable[[], str]] = {
            "x4": lambda: f"{self.predictors.over()}, success with λ₁: {self.partial('top')}",
            "x6": lambda: f"{self.predictors.over(predictors.ENDS)}, success with {self._across('top')}",
            "x8": lambda: self._against_noise(),
            "x10": lambda: self._coloured(),
            "x13": lambda: f"{self.predictors.over()}, success with {self._every()}",
            "x14": lambda: self._chain(),
            "x15": lambda: self.journeys.headline(),
            "x19": lambda: (
                f"in weights {self.predictors.said('top')}; in the input "
                f"{self.predictors.said('input_gradient')}, {self.predictors.said('input_top')}"
            ),
            "x21": lambda: f"success by {self.predictors.said('matched')}; {self.edge.headline()}",
            "x22": lambda: self.edge.headline(),
            "x25": self._alike,
        }
        if x in CORRELATED and self.predictors.frame.empty:
            raise MissingRecord("no network of a judged seed has both its success and a measure recorded")
        said = answers[x]()
        return f"{said[:1].upper()}{said[1:].rstrip('.')}."

    def partial(self, measure: str) -> str:
        """A measure's correlation with success, and the partial ones, in words."""
        found = [f"{self.predictors.of(measure)} as it is"]
        for given, label in predictors.GIVEN.items():
            found.append(f"{self.predictors.of(measure, given)} {label}")
        return ", ".join(found)

    def _across(self, measure: str) -> str:
        frame = self.predictors.ways[predictors.ENDS]
        return f"{predictors.MEASURES[measure]} {predictors.correlation(frame, measure)}"

    def _every(self) -> str:
        found = self.predictors
        return "; ".join(found.said(measure) for measure in found.ranked())

    def _alike(self) -> str:
        if not self.predictors.frame["cosine"].notna().any():
            raise MissingRecord("likeness to the targets is not recorded of any network")
        of = {measure: self.predictors.said(measure) for measure in ("cosine", "input_top", "top")}
        return f"{of['cosine']}, {of['input_top']}, against {of['top']}"

    def _against_noise(self) -> str:
        gain = words.points(self.interventions.ends.gain(RFN, over=NOISE))
        flat = words.factor(self.interventions.ends.change(NOISE, "top"))
        return f"RFN over random perturbations as large: {gain} points; these leave λ₁ at {flat} of that without them"

    def _chain(self) -> str:
        ends = self.interventions.ends
        names = [name for name in ends.success if name != SAME]
        if not names:
            raise MissingRecord("no intervention is recorded; compute them with `python -m rfnlib run` at this scale.")
        said = [f"{n} {words.points(ends.gain(n))}, λ₁ {words.factor(ends.change(n, 'top'))}" for n in names]
        return f"against going on unchanged, success in points and λ₁: {'; '.join(said)}"

    def _coloured(self) -> str:
        if not self.landscapes:
            raise MissingRecord("no plane is recorded; compute it with `python -m rfnlib run` at this scale.")
        said = [f"{plane.name}: {words.signed(plane.along(), 2)}" for plane in self.landscapes]
        return f"measured planes; rank correlation of loss and success over the grid, {'; '.join(said)}"
