"""Curves that no network made, for tests of what studies conclude from curves.

`FakeLab` stands for a lab whose success rates and accuracies are functions of the arm and the epoch, so that a
test can say what is true and see whether the study finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rfnlib.curves import RobustnessCurve, SharpnessCurve, TransferCurve
from rfnlib.lab import MissingRecord
from rfnlib.measurements import Arm, At
from rfnlib.probes import Robustness, Sharpness
from rfnlib.scale import Scale
from rfnlib.transfer import Hits

Rate = Callable[[str, float], float]


def curve(
    arm: Arm,
    success: Callable[[float], float],
    accuracy: Callable[[float], float] = lambda e: 0.8,
    training: float = 0.97,
    images: int = 400,
    targets: int = 3,
    seed_sd: float = 0.0,
) -> TransferCurve:
    """The curve of `arm` if its success at an epoch were `success(epoch)`, the more so by seed as `seed_sd` says.

    Image i is fooled where its difficulty, the same in every curve, is below the rate: as with networks, mostly the
    same images are fooled by similar surrogates.
    """
    (epochs,), specs = {at.epochs for at in arm.asked[:1]}, arm.specs
    difficulty = np.random.default_rng(1).permutation((np.arange(images) + 0.5) / images)
    hits = []
    for e in epochs:
        rates = [success(e) + seed_sd * np.random.default_rng([s.seed, len(arm.name)]).normal() for s in specs]
        # Every target finds other images hard.
        wrong = [[np.roll(difficulty, 7 * t) < rate for t in range(targets)] for rate in rates]
        shape = (len(specs), images)
        hits.append(Hits(np.array(wrong).transpose(0, 2, 1), np.zeros((images, targets), bool), np.zeros(shape, bool)))
    table = np.array([[accuracy(e) for e in epochs] for _ in specs])
    passes = np.array([epochs for _ in specs])
    names = tuple(f"target {t + 1}" for t in range(targets))
    return TransferCurve(arm.name, specs[0], epochs, names, tuple(hits), table, np.full(table.shape, training),
                         np.full(table.shape, 0.1), passes, np.full(table.shape, 1.0))  # fmt: skip


def robustness(arm: Arm, at: At, rate: Callable[[str, float], float]) -> RobustnessCurve:
    """The curve of `arm` if its accuracy under an attack ("none" being one) at an epoch were `rate(attack, epoch)`."""

    def correct(attack: str) -> np.ndarray:
        ease = (np.arange(at.probe.images) + 0.5) / at.probe.images
        return np.array([[ease < rate(attack, e) for e in at.epochs] for _ in arm.specs])

    names = ("none", *at.probe.attacks())
    return RobustnessCurve(arm.name, arm.specs[0], at.epochs, {name: correct(name) for name in names})


@dataclass
class FakeLab:
    """As a `Lab` in replay, with all recorded but the arms in `missing`, those of pilot seeds being called "pilot …".

    "sharpness of SGD" in it is that question alone.

    λ₁ and the like are 100 and some, the same at every epoch. `roles` are those that were read.
    """

    scale: Scale
    success: Rate = lambda name, e: 0.3
    accuracy: Rate = lambda name, e: 0.8
    training: Callable[[str], float] = lambda name: 0.97
    missing: tuple[str, ...] = ()
    seed_sd: float = 0.0
    robust: Rate = lambda name, e: 0.2
    roles: set = field(default_factory=set)
    records: dict = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return list(self.scale.seeds)

    @property
    def few(self) -> list[int]:
        return self.seeds[: self.scale.few]

    def replaying(self) -> FakeLab:
        return self

    def complete(self, arm: Arm, at: At) -> bool:
        pilot = arm.specs[0].seed in self.scale.pilots
        name = f"{'pilot ' * pilot}{arm.name}"
        return not {name, f"{at.probe.kind} of {name}"} & {*self.missing}

    def shown(self, arms, needed=(), probe=None):
        found = {key: arm for key, arm in arms.items() if self.complete(arm, arm.question(probe))}
        if set(needed) - found.keys():
            raise MissingRecord(f"{set(needed) - found.keys()} is missing")
        return found

    def curves(self, arms, probe=None, needed=()):
        return {key: self.read(arm, probe) for key, arm in self.shown(arms, needed, probe).items()}

    def read(self, arm: Arm, probe=None, role: str = "test"):
        at = arm.question(probe)
        if not self.complete(arm, at):
            raise MissingRecord(f"{arm.name} is missing")
        if isinstance(at.probe, Robustness):
            of = {"none": self.accuracy}
            return robustness(arm, at, lambda attack, e: of.get(attack, self.robust)(arm.name, e))
        if isinstance(at.probe, Sharpness):
            level = 100.0 + len(arm.name)
            flat = {m: np.full((len(arm.specs), len(at.epochs)), level) for m in (*Sharpness.measures, "loss")}
            return SharpnessCurve(arm.name, arm.specs[0], at.epochs, flat)
        self.roles.add(role)
        return curve(Arm(arm.name, arm.specs, at), lambda e: self.success(arm.name, e),
                     lambda e: self.accuracy(arm.name, e), self.training(arm.name), seed_sd=self.seed_sd)  # fmt: skip
