"""What a scale is: one size of the whole reproduction as data, and the training runs and measurements it stands for."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Any

from rfnlib.attacks import IterativeAttack
from rfnlib.measurements import At, Measurement
from rfnlib.outside import Outside
from rfnlib.probes import Clean, Robustness, Sharpness, Transfer, ball
from rfnlib.specs import (
    Adversary,
    Cosine,
    Cyclic,
    Minimizer,
    OneCycle,
    Schedule,
    Step,
    TrainSpec,
)

STANDARD = ("test", "validation")  # the roles of targets that are trained on images as they are
ROLES = (*STANDARD, "robust")
VARIED = "varied"  # the role of targets that are derived from these: see `Scale.targets_of`
CONSTANT = "constant"  # the schedule whose rate stays


def decaying(*epochs: float) -> str:
    """The name of the schedule whose rate decays at `epochs`.

    >>> decaying(25), decaying(50, 75)
    ('decay at 25', 'decay at 50 and 75')
    """
    return f"decay at {' and '.join(f'{e:g}' for e in epochs)}"


@dataclass(frozen=True)
class Arch:
    """A network of the zoo: its name, width (None: published) and the stride of its first convolution."""

    name: str
    width: int | None = None
    stem: int = 1

    @property
    def label(self) -> str:
        """Such as "resnet18 (width 16, stem 2)"."""
        said = [f"width {self.width}"] if self.width else []
        said += [f"stem {self.stem}"] if self.stem > 1 else []
        return f"{self.name} ({', '.join(said)})" if said else self.name


@dataclass(frozen=True)
class Target:
    """A network to fool. Validation targets choose (an epoch, a ρ); test targets judge; robust ones resist.

    Attributes:
        arch: the network; or one that was trained elsewhere, with `epochs` 1.
        role: one of `ROLES`, or `VARIED`; those whose role is "robust" are trained on images made by `adversary`.
        epochs: of its training, by one cycle of the learning rate.
        seed: no surrogate has one of 1000 or more.
        lr: the highest rate of the cycle; None: the scale's.
        minimizer: None: SGD alone.
    """

    arch: Arch | Outside
    epochs: int
    role: str = "test"
    seed: int = 1000
    adversary: Adversary | None = None
    lr: float | None = None
    minimizer: Minimizer | None = None

    @property
    def name(self) -> str:
        said = [self.arch.label, *([f"seed {self.seed}"] if self.seed != 1000 else [])]
        said += [f"{self.epochs} epochs"] if self.role == VARIED else []
        said += [f"rate {self.lr:g}"] if self.lr else []
        said += [f"{self.minimizer.method} ρ {self.minimizer.rho:g}"] if self.minimizer else []
        said += [ball(self.adversary.norm, self.adversary.eps)] if self.adversary else []
        return ", ".join(said)


@dataclass(frozen=True)
class FeatureStudy:
    """The data sets of claim C1 and what is trained on them.

    Attributes:
        arch: of the surrogates, and of the networks inverted.
        steps, step: of the inversion: how many, and their length in l2, in units of [0, 1] pixels of the whole image.
        tried: other numbers of steps, to see what is lost.
        adversary: trains the robust network.
        model_epochs: of the training of the networks inverted.
        targeted: steps towards another class, for D_rand and D_det.
        radii: of their balls; surrogates are trained on those of the first.
        other_eps: other radii of the attack.
        check: how a network trained on a built set is shown to be what it should be.
    """

    arch: Arch
    steps: int
    tried: tuple[int, ...]
    step: float
    adversary: Adversary
    model_epochs: int
    targeted: int
    other_eps: tuple[float, ...]
    check: Robustness
    radii: tuple[float, ...] = (0.5,)


@dataclass(frozen=True)
class RivalStudy:
    """The other surrogates of claim C7, and what claim C8 combines them with.

    LGV, the More-Bayesian surrogate and model alignment go on for `epochs` from the end of the standard run; the first
    two collect weights `per_epoch`, the second draws `draws` networks. `slight` are the candidates for slight
    adversarial training; `penalty` is λ of SAM with input-gradient regularisation. `techniques` are names that
    `studies.state_of_the_art.techniques` knows; variance tuning takes `neighbours`.
    """

    epochs: int
    slight: tuple[Adversary, ...]
    per_epoch: int = 4
    draws: int = 20
    penalty: float = 0.1
    neighbours: int = 20
    techniques: tuple[str, ...] = ("MI", "NI", "DI", "TI", "SI", "VMI", "MI+DI+TI", "SGM", "ghosts")


@dataclass(frozen=True)
class Scale:
    """One size of the whole reproduction.

    Attributes:
        n_train: training images; None: all.
        surrogates: architectures; claims are judged on the first.
        epochs, lr, batch: of the surrogates' training.
        decays: epochs at which the learning rate decays in the runs with one decay, which claims C2 and C3 judge.
        standard: decays of the standard schedule.
        cycle: epochs of a cycle of the cyclic schedule.
        test_images, validation_images: attacked: two disjoint draws from the test set.
        accuracy_images: natural accuracy is taken on these.
        seeds: of the judged surrogates. `pilots`: those that gates and choices are made by, never judged.
        few: so many of `seeds`, the first, do for what is secondary and dear.
        minimizers: those of claim C5 that are compared, of the seven in `studies.pilots`.
        rhos: radii of the sweep, the first that of SAM, the others RFN's candidates.
        other_eps: other radii of the attack at which the main surrogates are compared.
        every: surrogates are attacked every so many epochs, and after each decay of a step schedule at the offsets
            `fine` and `judged_after`, at which claims C2 and C3 are judged.
        sharp_every: sharpness is measured every so many epochs, and around decays.
        cell_timeout: the most seconds that a cell of a notebook may take.
        apart: `reproduce` keeps its records and cache out of the project's and begins without any.
    """

    name: str
    data: str
    n_train: int | None
    surrogates: tuple[Arch, ...]
    epochs: int
    lr: float
    batch: int
    decays: tuple[int, ...]
    standard: tuple[int, ...]
    cycle: int
    targets: tuple[Target, ...]
    attack: IterativeAttack
    test_images: int
    validation_images: int
    accuracy_images: int
    seeds: tuple[int, ...]
    pilots: tuple[int, ...]
    sharpness: Sharpness
    sharp_every: int
    robustness: Robustness
    features: FeatureStudy
    rivals: RivalStudy
    few: int = 2
    minimizers: tuple[str, ...] = ("SAM", "ASAM", "GSAM", "LookSAM", "GAM", "WASAM", "SWA")
    rhos: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    other_eps: tuple[float, ...] = (2 / 255, 8 / 255)
    every: int = 1
    fine: tuple[float, ...] = (0.25, 0.5)
    judged_after: float = 1.0
    cell_timeout: int = 3600
    apart: bool = False

    # --- training runs ---

    @property
    def end(self) -> float:
        """The last epoch of a surrogate's training."""
        return float(self.epochs)

    def schedules(self) -> dict[str, Schedule]:
        """The learning-rate schedules that claim C2 is about, by the names its figure uses."""
        return {
            CONSTANT: Step(self.lr),
            **{decaying(m): Step(self.lr, (m,)) for m in self.decays},
            decaying(*self.standard): Step(self.lr, self.standard),
            "cosine": Cosine(self.lr),
            "cyclic": Cyclic(self.lr, self.cycle),
        }

    def surrogate(
        self, schedule: Schedule, seed: int, minimizer: Minimizer | None = None, arch: Arch | None = None
    ) -> TrainSpec:
        """The training run of a surrogate under `schedule`; `arch` None: the first architecture."""
        return self._run(arch or self.surrogates[0], schedule, self.epochs, seed, minimizer=minimizer)

    def flat(self, minimizer: Minimizer | None, seed: int, arch: Arch | None = None) -> TrainSpec:
        """A surrogate trained by `minimizer` (None: SGD alone) under the standard schedule.

        A mean of weights is worth taking only where they still move: as where SWA was proposed, the learning rate is
        halved halfway and stays.
        """
        averaging = minimizer is not None and minimizer.average_from is not None
        schedule = Step(self.lr, (self.epochs // 2,), gamma=0.5) if averaging else Step(self.lr, self.standard)
        return self.surrogate(schedule, seed, minimizer, arch)

    def target(self, target: Target) -> TrainSpec | Outside:
        """The training run of `target`: one cycle of the learning rate; or the network from outside that it is."""
        if isinstance(target.arch, Outside):
            return target.arch
        how = {"adversary": target.adversary, "minimizer": target.minimizer}
        return self.cycled(target.arch, target.epochs, target.seed, target.lr, **how)

    def cycled(self, arch: Arch, epochs: int, seed: int, lr: float | None = None, **how: Any) -> TrainSpec:
        """A network trained by one cycle of the learning rate, as the targets are; `how` names further fields."""
        return self._run(arch, OneCycle(lr or self.lr), epochs, seed, **how)

    def _run(self, arch: Arch, schedule: Schedule, epochs: int, seed: int, **how: Any) -> TrainSpec:
        return TrainSpec(self.data, arch.name, schedule, epochs, n_train=self.n_train, width=arch.width, stem=arch.stem,
                         batch=self.batch, seed=seed, **how)  # fmt: skip

    # --- what is measured ---

    @property
    def transfer(self) -> Transfer:
        """The scale's attack on its standard targets."""
        return Transfer(self.attack)

    def targets_of(self, against: str) -> list[Target]:
        """The targets that an attack `against` "standard", "robust" or "varied" ones is tried on, test ones first.

        Varied are the first test target trained at a tenth of the rate, by SAM at its usual ρ and for half the epochs,
        and the robust ones.
        """
        if against == VARIED:
            trained = [t for t in self.targets if t.role == "test" and isinstance(t.arch, Arch)]
            otherwise = [
                replace(t, **how)
                for t in trained[:1]
                for how in (
                    {"lr": self.lr / 10},
                    {"minimizer": Minimizer("SAM", self.rhos[0])},
                    {"epochs": -(-t.epochs // 2)},
                )
            ]
            return [replace(t, role=VARIED) for t in (*otherwise, *self.targets_of("robust"))]
        wanted = STANDARD if against == "standard" else (against,)
        return sorted((t for t in self.targets if t.role in wanted), key=lambda t: t.role != "test")

    @functools.cached_property
    def cleans(self) -> dict[str, tuple[Measurement, ...]]:
        """`clean` of all that `targets_of` gives, by its argument: every measurement of transfer needs them."""
        return {name: tuple(map(self.clean, self.targets_of(name))) for name in ("standard", *ROLES, VARIED)}

    @functools.cached_property
    def target_keys(self) -> dict[str, tuple[str, ...]]:
        """The keys of the same targets: every record of transfer has them."""
        return {name: tuple(m.spec.key() for m in cleans) for name, cleans in self.cleans.items()}

    def called(self, spec: TrainSpec) -> str:
        """What a varied target's released file is called, for `short_name` leaves out rate and epochs; else ""."""
        names = {self.target(t): t.name for t in self.targets_of(VARIED) if not t.adversary}
        return re.sub(r"[^a-zA-Z0-9.]+", "-", names.get(spec, ""))

    def clean(self, target: Target) -> Measurement:
        """The measurement of a target as it is."""
        spec = self.target(target)
        return Measurement(spec, At(Clean(), (spec.epochs,)))

    def images(self) -> dict[str, int]:
        """How many images are attacked and looked at: part of what a row depends on."""
        return {name: getattr(self, name) for name in ("test_images", "validation_images", "accuracy_images")}

    def attacked_at(self, schedule: Schedule) -> tuple[float, ...]:
        """The epochs at which a surrogate trained by `schedule` is attacked."""
        coarse = [float(e) for e in range(self.every, self.epochs + 1, self.every)]
        decays = schedule.milestones
        around = [m + d for m in decays for d in (0.0, *self.fine, self.judged_after)]
        judged = [m + d for m in self.decays for d in (0.0, self.judged_after)]  # runs are compared there
        return tuple(sorted({*coarse, *around, *judged, self.end}))

    def sharp_at(self, schedule: Schedule, fine: bool = True) -> tuple[float, ...]:
        """The epochs at which sharpness is measured: a coarse grid, and around the decays (`fine`: closely).

        A run that decays once is followed only from the coarse point at its decay to the epoch where it is
        judged: before, it is the run without decay; what comes later, the standard schedule shows.
        """
        decays = schedule.milestones
        offsets = (0.0, *(self.fine if fine else ()), self.judged_after)
        around = {m + d for m in decays for d in offsets}
        if len(decays) == 1:
            return tuple(sorted(around))
        coarse = {float(e) for e in range(self.sharp_every, self.epochs + 1, self.sharp_every)}
        judged = set() if decays else {m + d for m in self.decays for d in (0.0, self.judged_after)}
        return tuple(sorted({*coarse, *around, *judged, self.end}))
