"""What `smoke`, `laptop`, `gpu` and `paper` mean, and nothing else. One code path: a scale is data, never an `if`.

Settings and choices are fixed on pilot seeds, before a judged seed is trained: see `PREREGISTRATION.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rfnlib.attacks import BIM, IterativeAttack
from rfnlib.measurements import At, Measurement
from rfnlib.probes import Clean, Robustness, Sharpness, Transfer, ball
from rfnlib.specs import (
    Adversary,
    Cosine,
    Cyclic,
    FeatureSet,
    Minimizer,
    OneCycle,
    Schedule,
    Step,
    TrainSpec,
)

STANDARD = ("test", "validation")  # the roles of targets that are trained on images as they are
ROLES = (*STANDARD, "robust")
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
        arch: the network.
        role: one of `ROLES`; those whose role is "robust" are trained on images made by `adversary`.
        epochs: of its training, by one cycle of the learning rate.
        seed: no surrogate has one of 1000 or more.
    """

    arch: Arch
    epochs: int
    role: str = "test"
    seed: int = 1000
    adversary: Adversary | None = None

    @property
    def name(self) -> str:
        again = f", seed {self.seed}" if self.seed != 1000 else ""
        against = f", {ball(self.adversary.norm, self.adversary.eps)}" if self.adversary else ""
        return f"{self.arch.label}{again}{against}"


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
    adversarial training; `penalty` is λ of SAM with input-gradient regularisation. `techniques` are names in
    `studies.state_of_the_art.TECHNIQUES`; variance tuning takes `neighbours`.
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

        A mean of weights is worth taking only where they still move: as in SWA's recipe, its learning rate is halved
        halfway and stays.
        """
        averaging = minimizer is not None and minimizer.average_from is not None
        schedule = Step(self.lr, (self.epochs // 2,), gamma=0.5) if averaging else Step(self.lr, self.standard)
        return self.surrogate(schedule, seed, minimizer, arch)

    def target(self, target: Target) -> TrainSpec:
        """The training run of `target`: one cycle of the learning rate."""
        return self.cycled(target.arch, target.epochs, target.seed, target.adversary)

    def cycled(self, arch: Arch, epochs: int, seed: int, adversary: Adversary | None = None) -> TrainSpec:
        """A network trained by one cycle of the learning rate, as the targets are."""
        return self._run(arch, OneCycle(self.lr), epochs, seed, adversary=adversary)

    def _run(self, arch: Arch, schedule: Schedule, epochs: int, seed: int, **how: Any) -> TrainSpec:
        return TrainSpec(self.data, arch.name, schedule, epochs, n_train=self.n_train, width=arch.width, stem=arch.stem,
                         batch=self.batch, seed=seed, **how)  # fmt: skip

    # --- what is measured ---

    @property
    def transfer(self) -> Transfer:
        """The scale's attack on its standard targets."""
        return Transfer(self.attack)

    def targets_of(self, against: str) -> list[Target]:
        """The targets that an attack `against` "standard" or "robust" ones is tried on, test ones first."""
        wanted = STANDARD if against == "standard" else (against,)
        return sorted((t for t in self.targets if t.role in wanted), key=lambda t: t.role != "test")

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
        decays = getattr(schedule, "milestones", ())
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


SMOKE = Scale(
    name="smoke",
    data="digits",
    n_train=1000,
    surrogates=(Arch("resnet18", 8),),
    epochs=6,
    lr=0.05,
    batch=50,
    decays=(2, 3, 4),
    standard=(2, 4),
    cycle=3,
    targets=(
        Target(Arch("vgg11", 8), 8),
        Target(Arch("cnn", 16), 8),
        Target(Arch("wrn16", 8), 8),
        Target(Arch("senet18", 8), 8, "validation"),
        Target(Arch("vgg11", 8), 8, "robust", adversary=Adversary("l2", 0.5, steps=1)),
        Target(Arch("vgg11", 8), 8, "robust", adversary=Adversary("linf", 8 / 255, steps=1)),
    ),
    attack=BIM(eps=40 / 255, steps=10),
    test_images=200,
    validation_images=50,
    accuracy_images=500,
    seeds=(0,),
    pilots=(100,),
    sharpness=Sharpness(images=32),
    sharp_every=3,
    robustness=Robustness(images=100, balls=(("l2", 0.25), ("l2", 0.5)), steps=5, restarts=1),
    features=FeatureStudy(
        arch=Arch("cnn", 8),
        steps=10,
        tried=(),
        step=0.2,
        adversary=Adversary("l2", 0.5, steps=1),
        model_epochs=8,
        targeted=5,
        other_eps=(20 / 255,),
        check=Robustness(images=200, balls=(("l2", 0.25),), steps=5, restarts=1),
    ),
    rivals=RivalStudy(
        epochs=1, slight=(Adversary("l2", 0.25, steps=1),), per_epoch=2, draws=4, techniques=("MI", "DI", "SGM")
    ),
    minimizers=("SAM", "ASAM", "SWA"),
    rhos=(0.05, 0.2),
    other_eps=(20 / 255,),
    fine=(0.5,),
    cell_timeout=300,
    apart=True,
)

LAPTOP = Scale(
    name="laptop",
    data="cifar10",
    n_train=12_000,
    surrogates=(Arch("resnet18", 16, stem=2), Arch("vgg11", 16, stem=2)),
    epochs=100,
    lr=0.1,
    batch=128,
    decays=(25, 50, 75),
    standard=(50, 75),
    cycle=25,
    targets=(
        Target(Arch("vgg13", 16), 50),
        Target(Arch("vgg13", 16), 50, seed=1001),
        Target(Arch("cnn", 24), 50),
        Target(Arch("senet18", 16, stem=2), 50),
        Target(Arch("senet18", 16, stem=2), 50, seed=1001),
        Target(Arch("densenet22", 12, stem=2), 50),
        Target(Arch("mobilenetv2", 16, stem=2), 50),
        Target(Arch("wrn16", 32, stem=2), 50),
        Target(Arch("vgg11", 16), 50, "validation"),
        Target(Arch("resnext20", 16, stem=2), 50, "validation"),
        Target(Arch("vgg13", 16, stem=2), 50, "robust", adversary=Adversary("l2", 0.5, steps=2)),
        Target(Arch("senet18", 16, stem=2), 50, "robust", adversary=Adversary("linf", 4 / 255, steps=2)),
    ),
    attack=BIM(eps=4 / 255, steps=15),
    test_images=1000,
    validation_images=256,
    accuracy_images=5000,
    seeds=(0, 1, 2, 3, 4),
    pilots=(100, 101),
    sharpness=Sharpness(images=512),
    sharp_every=20,
    robustness=Robustness(images=500),
    features=FeatureStudy(
        arch=Arch("resnet18", 16, stem=2),
        steps=20,
        tried=(5, 40),
        step=0.5,
        adversary=Adversary("l2", 0.5, steps=2),
        model_epochs=50,
        targeted=10,
        other_eps=(2 / 255, 8 / 255),
        check=Robustness(images=2000, balls=(("l2", 0.25),)),
        radii=(0.5, 1.0),
    ),
    rivals=RivalStudy(
        epochs=10, slight=tuple(Adversary("l2", eps, steps=1) for eps in (0.03, 0.05, 0.1, 0.25)), neighbours=5
    ),
    rhos=(0.05, 0.1, 0.2, 0.4),
    every=4,
    fine=(0.25, 0.5, 1.0, 3.0, 4.0, 6.0),
    judged_after=2.0,
)

GPU = Scale(
    name="gpu",
    data="cifar10",
    n_train=None,
    surrogates=(Arch("resnet18"), Arch("vgg11")),
    epochs=60,
    lr=0.1,
    batch=128,
    decays=(20, 30, 40),
    standard=(20, 40),
    cycle=20,
    targets=(  # narrow, so that the weights of all of them can be carried: 33 MB in half precision
        Target(Arch("vgg13", 32), 60),
        Target(Arch("cnn", 96), 60),
        Target(Arch("cnn", 96), 60, seed=1001),
        Target(Arch("senet18", 24), 60),
        Target(Arch("senet18", 24), 60, seed=1001),
        Target(Arch("densenet22", 40, stem=2), 60),
        Target(Arch("mobilenetv2"), 60),
        Target(Arch("wrn16", 64, stem=2), 60),
        Target(Arch("googlenet", 32), 60, "validation"),
        Target(Arch("resnext20", 32), 60, "validation"),
        Target(Arch("vgg13", 16), 60, "robust", adversary=Adversary("l2", 0.5, steps=3)),
        Target(Arch("senet18", 16), 60, "robust", adversary=Adversary("linf", 4 / 255, steps=3)),
    ),
    attack=BIM(eps=4 / 255, steps=50),
    test_images=2000,
    validation_images=500,
    accuracy_images=10_000,
    seeds=(0, 1, 2),
    pilots=(100, 101),
    sharpness=Sharpness(images=2000, tol=1e-2),
    sharp_every=10,
    robustness=Robustness(images=1000, steps=20, restarts=2),
    features=FeatureStudy(
        arch=Arch("vgg11", 32),
        steps=200,
        tried=(20,),
        step=0.1,
        adversary=Adversary("l2", 0.5, steps=3),
        model_epochs=60,
        targeted=50,
        other_eps=(2 / 255, 8 / 255),
        check=Robustness(images=2000, balls=(("l2", 0.25),), steps=20, restarts=2),
    ),
    rivals=RivalStudy(epochs=10, slight=tuple(Adversary("l2", eps, steps=3) for eps in (0.03, 0.05, 0.1, 0.25, 0.5))),
    rhos=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    every=4,
    fine=(0.25, 0.5, 2.0, 4.0),
    cell_timeout=7200,
)

PAPER = Scale(
    name="paper",
    data="cifar10",
    n_train=None,
    surrogates=(Arch("resnet18"), Arch("resnet50")),
    epochs=150,
    lr=0.1,
    batch=128,
    decays=(50, 75, 100),
    standard=(50, 100),
    cycle=50,
    targets=(
        Target(Arch("vgg13"), 60),
        Target(Arch("vgg19"), 60),
        Target(Arch("densenet121"), 60),
        Target(Arch("wrn28"), 60),
        Target(Arch("resnext29"), 60),
        Target(Arch("mobilenetv2"), 60),
        Target(Arch("senet18"), 60),
        Target(Arch("googlenet"), 60),
        Target(Arch("resnet101"), 60),
        Target(Arch("preresnet18"), 60),
        Target(Arch("cnn"), 60, "validation"),
        Target(Arch("vgg16"), 60, "validation"),
        Target(Arch("densenet40"), 60, "validation"),
        Target(Arch("resnext29"), 60, "robust", adversary=Adversary("l2", 0.5)),
        Target(Arch("resnext29"), 60, "robust", adversary=Adversary("linf", 8 / 255)),
    ),
    attack=BIM(eps=4 / 255, steps=50),
    test_images=2000,
    validation_images=500,
    accuracy_images=10_000,
    seeds=(0, 1, 2),
    pilots=(100,),
    sharpness=Sharpness(images=10_000, tol=1e-3, products=100, probes=15, deflate=15),
    sharp_every=10,
    robustness=Robustness(images=2000, steps=20, restarts=5),
    features=FeatureStudy(
        arch=Arch("resnet50"),
        steps=1000,
        tried=(100,),
        step=0.1,
        adversary=Adversary("l2", 0.5, steps=7, step=0.1),
        model_epochs=60,
        targeted=100,
        other_eps=(2 / 255, 8 / 255, 16 / 255),
        check=Robustness(images=10_000, balls=(("l2", 0.25),), steps=20, restarts=5),
    ),
    rivals=RivalStudy(epochs=10, slight=tuple(Adversary("l2", eps) for eps in (0.03, 0.05, 0.1, 0.2, 0.3, 0.5))),
    rhos=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0),
    every=5,
    fine=(0.1, 0.25, 0.5, 2.0, 3.0),
    cell_timeout=7200,
)

SCALES = {scale.name: scale for scale in (SMOKE, LAPTOP, GPU, PAPER)}


def get(name: str) -> Scale:
    """The scale called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SCALES:
        raise ValueError(f"scale is {name!r}; give one of {', '.join(map(repr, SCALES))}.")
    return SCALES[name]
