"""What is measured, as values: a `Measurement`, and the `Arm`, which asks for the same ones of several seeds.

>>> sgd = [scale.surrogate(Step(0.1), seed) for seed in (0, 1)]  # doctest: +SKIP
>>> arm = Arm("SGD", sgd, At(Transfer(scale.attack), [50.0, 100.0]), At(scale.sharpness, [100.0]))  # doctest: +SKIP
>>> lab.read(arm)  # its first question, all its seeds: a `TransferCurve`  # doctest: +SKIP

A study states its arms once. What is to be computed, what is shown and what is read all follow from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rfnlib.outside import Outside
from rfnlib.recipes import Recipe
from rfnlib.specs import TrainSpec, said

if TYPE_CHECKING:
    from rfnlib.probes import Probe
    from rfnlib.scale import Scale


@dataclass(frozen=True)
class At:
    """A question to a training run: `probe` at each of `epochs`, of its network or of what `recipe` makes of it."""

    probe: Probe
    epochs: tuple[float, ...]
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", tuple(sorted({float(e) for e in self.epochs})))


@dataclass(frozen=True)
class Measurement:
    """One probe along one training run. Its record, its label and its cost follow from it.

    Attributes:
        spec: the training run, or what stands for a network from outside.
        at: what is asked of it.
    """

    spec: TrainSpec | Outside
    at: At

    @property
    def probe(self) -> Probe:
        return self.at.probe

    @property
    def epochs(self) -> tuple[float, ...]:
        return self.at.epochs

    @property
    def recipe(self) -> Recipe | None:
        return self.at.recipe

    @property
    def label(self) -> str:
        """A line for people: kind, architecture, how it is trained, what is made of it, seed."""
        s = self.spec
        by = s.traits or ([said(s.schedule)] if s.schedule else [])
        made = [getattr(self.recipe, "__name__", type(self.recipe).__name__)] if self.recipe else []
        seed = [] if s.seed is None else [f"seed {s.seed}"]
        return ", ".join([f"{self.probe.label}: {s.arch}", *by, *made, *seed])

    def needs(self, scale: Scale) -> list[Measurement]:
        """The measurements without which no row of this one can be made: none, unless the probe says so."""
        found = getattr(self.probe, "needs", None)
        return found(scale) if found else []

    def of(self, epochs: Iterable[float]) -> Measurement:
        """The same at other epochs."""
        return replace(self, at=replace(self.at, epochs=tuple(epochs)))


@dataclass(frozen=True)
class Arm:
    """The same questions to one training run a seed: what a curve, a bar or a row of a table is made of.

    Attributes:
        name: as figures and tables call it.
        specs: the training runs, one a seed, in the order of seeds.
        asked: what is asked of each of them; `Lab.read` gives a curve for each question.
    """

    name: str
    specs: tuple[TrainSpec | Outside, ...]
    asked: tuple[At, ...]

    def __init__(self, name: str, specs: Sequence[TrainSpec | Outside], *asked: At):
        for field, value in (("name", name), ("specs", tuple(specs)), ("asked", tuple(asked))):
            object.__setattr__(self, field, value)

    def question(self, probe: Probe | None = None) -> At:
        """The question that is asked with `probe`; None: the first.

        Raises:
            LookupError: the arm does not ask it.
        """
        for at in self.asked:
            if probe is None or at.probe == probe:
                return at
        raise LookupError(f"{self.name} asks for {[at.probe.label for at in self.asked]}, not for {probe}.")

    def measurements(self, seed: int | None = None) -> list[Measurement]:
        """What is asked of the run number `seed`, or of all of them."""
        specs = self.specs if seed is None else self.specs[seed : seed + 1]
        return [Measurement(spec, at) for spec in specs for at in self.asked]


def by_name(*arms: Arm) -> dict[str, Arm]:
    """Arms by their names."""
    return {arm.name: arm for arm in arms}


def by_seed(arms: Iterable[Arm]) -> Iterator[Measurement]:
    """The measurements of `arms`, the first seed of each, then the second …: so that work cut short compares."""
    arms = list(arms)
    for seed in range(max((len(arm.specs) for arm in arms), default=0)):
        for arm in arms:
            yield from arm.measurements(seed)
