"""What `smoke`, `laptop` and `paper` mean, and nothing else. One code path: a scale is data, never an `if`.

Settings were fixed before any test image was attacked, and are not tuned towards a claim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rfnlib.attacks import BIM, PGD, IterativeAttack
from rfnlib.minimizers import method
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


@dataclass(frozen=True)
class Target:
    """A network to fool. Validation targets choose (an epoch, a ρ); test targets judge; robust ones resist.

    Those whose role is "robust" are trained on images made by `adversary`.
    """

    arch: str
    width: int | None
    role: str = "test"
    adversary: Adversary | None = None

    @property
    def name(self) -> str:
        plain = self.arch if self.width is None else f"{self.arch} (width {self.width})"
        return plain if self.adversary is None else f"{plain}, {budget(self.adversary.norm, self.adversary.eps)}"


def budget(norm: str, eps: float) -> str:
    """A name of a ball, such as "l2 0.25" or "linf 1/255"."""
    return f"{norm} {255 * eps:g}/255" if norm == "linf" else f"{norm} {eps:g}"


@dataclass(frozen=True)
class SharpnessProbe:
    """How the sharpness of a snapshot is measured: settings of `rfnlib.sharpness`.

    `images` training images, not augmented; `tol` of the top eigenvalue; `probes` and `deflate` of the trace; `rho`
    of the worst case; `level`, the loss at which networks are compared once their logits are scaled to have it.
    """

    images: int
    tol: float = 1e-2
    products: int = 60
    probes: int = 5
    deflate: int = 5
    rho: float = 0.05
    level: float = 1.8


@dataclass(frozen=True)
class RobustnessProbe:
    """How the robust accuracy of a snapshot is measured: PGD from random starts on the first `images` test images.

    `budgets` are pairs of norm and ε; a step has the length 2.5 ε/`steps` (Madry et al. 2018).
    """

    images: int
    budgets: tuple[tuple[str, float], ...] = (("l2", 0.25), ("l2", 0.5), ("linf", 1 / 255), ("linf", 2 / 255))
    steps: int = 10
    restarts: int = 2

    def attacks(self) -> dict[str, IterativeAttack]:
        """The attack of each budget, by its name."""
        return {
            budget(norm, eps): PGD(eps, norm=norm, steps=self.steps, step=2.5 * eps / self.steps)
            for norm, eps in self.budgets
        }

    @property
    def passes(self) -> int:
        """Forward-backward passes at most, one an image."""
        return self.images * self.steps * self.restarts * len(self.budgets)


@dataclass(frozen=True)
class FeatureStudy:
    """The data sets of claim C1 and what is trained on them.

    `arch` and its width: of the surrogates, and of the networks inverted. `adversary` trains the robust one. The
    inversion takes `steps` of length `step`; `tried` are other numbers of steps, to see what is lost. D_rand and D_det
    take `targeted` steps in a ball of each of `radii`; surrogates are trained on those of the first. `budgets` are the
    other ε of the attack.
    """

    arch: tuple[str, int | None]
    steps: int
    tried: tuple[int, ...]
    step: float
    adversary: Adversary
    targeted: int
    budgets: tuple[float, ...]
    radii: tuple[float, ...] = (0.5,)


@dataclass(frozen=True)
class RivalStudy:
    """The other surrogates of claim C7, and what claim C8 combines them with.

    LGV, the More-Bayesian surrogate and model alignment go on for `epochs` from the end of the standard run; the first
    two collect weights `per_epoch`, the second draws `draws` networks. `slight` are the candidates for slight
    adversarial training; `penalty` is λ of SAM with input-gradient regularisation. `techniques` are names in
    `experiments.techniques`; variance tuning takes `neighbours`.
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

    Images: `test_images` and `validation_images` are attacked (two disjoint draws from the test set),
    natural accuracy is taken on `accuracy_images`. Epochs: surrogates are probed every `every` epochs
    and, after each decay of a step schedule, at the offsets `fine`; `judged_after` is the offset at
    which claims C2 and C3 are judged. Sharpness is measured every `sharp_every` epochs and around decays.
    Flat surrogates: `rhos` are the radii of the sweep, the first that of SAM, the others RFN's candidates;
    `budgets` the other ε at which the main surrogates are compared.
    """

    name: str
    data: str
    n_train: int | None
    surrogates: tuple[tuple[str, int | None], ...]
    epochs: int
    lr: float
    batch: int
    decays: tuple[int, ...]
    standard: tuple[int, ...]
    cycle: int
    target_epochs: int
    targets: tuple[Target, ...]
    attack: IterativeAttack
    test_images: int
    validation_images: int
    accuracy_images: int
    seeds: tuple[int, ...]
    sharpness: SharpnessProbe
    sharp_every: int
    robustness: RobustnessProbe
    checks: RobustnessProbe
    features: FeatureStudy
    rivals: RivalStudy
    rhos: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    budgets: tuple[float, ...] = (2 / 255, 8 / 255)
    every: int = 1
    fine: tuple[float, ...] = (0.25, 0.5)
    judged_after: float = 1.0
    cell_timeout: int = 3600

    def schedules(self) -> dict[str, Schedule]:
        """The learning-rate schedules that claim C2 is about, by the names its figure uses."""
        single = {f"decay at {m}": Step(self.lr, (m,)) for m in self.decays}
        both = " and ".join(map(str, self.standard))
        return {
            "constant": Step(self.lr),
            **single,
            f"decay at {both}": Step(self.lr, self.standard),
            "cosine": Cosine(self.lr),
            "cyclic": Cyclic(self.lr, self.cycle),
        }

    def surrogate(self, schedule: Schedule, seed: int, which: int = 0, minimizer: Minimizer | None = None) -> TrainSpec:
        """The training run of surrogate architecture number `which` under `schedule`."""
        arch, width = self.surrogates[which]
        return TrainSpec(
            data=self.data, arch=arch, width=width, n_train=self.n_train, schedule=schedule,
            epochs=self.epochs, batch=self.batch, seed=seed, minimizer=minimizer,
        )  # fmt: skip

    def minimizers(self) -> dict[str, Minimizer]:
        """The seven minimizers of claim C5, each with its usual ρ; those that average begin halfway."""
        usual = {"SAM": self.rhos[0], "ASAM": 0.5, "GSAM": 0.05, "LookSAM": 0.1, "GAM": 0.2, "WASAM": 0.05, "SWA": 0.0}
        half = float(self.epochs // 2)
        return {m: Minimizer(m, rho, average_from=half if method(m).averages else None) for m, rho in usual.items()}

    def flat(self, minimizer: Minimizer | None, seed: int, which: int = 0) -> TrainSpec:
        """A surrogate trained by `minimizer` under the standard schedule.

        A mean of weights is worth taking only where they still move: as in SWA's recipe, its learning rate is halved
        halfway and stays.
        """
        averaging = minimizer is not None and minimizer.average_from is not None
        schedule = Step(self.lr, (self.epochs // 2,), gamma=0.5) if averaging else Step(self.lr, self.standard)
        return self.surrogate(schedule, seed, which, minimizer)

    def slight(self, adversary: Adversary, seed: int) -> TrainSpec:
        """Slight adversarial training (Springer et al. 2021), under the standard schedule."""
        return replace(self.flat(None, seed), adversary=adversary)

    def rivals_of(self, seed: int) -> dict[str, TrainSpec]:
        """The runs behind the other surrogates of claim C7, all from the standard run or for as long.

        LGV: half the first learning rate, constant, and its own weight decay. The More-Bayesian surrogate: the same
        rate, with the gradient's norm penalised. Alignment: a tenth of the first rate, towards the standard network of
        claim C1, which is no target. Rates and lengths are as in the publications where the scale has room for them.
        """
        base, study = self.flat(None, seed), self.rivals
        onwards = replace(base, schedule=Step(self.lr / 2), epochs=study.epochs, start=base)
        witness = self.inverted(False).model
        return {
            "LGV": replace(onwards, weight_decay=1e-4),
            "More Bayesian": replace(onwards, minimizer=Minimizer("GNP", 0.1)),
            "aligned": replace(onwards, schedule=Step(self.lr / 10), witness=witness),
            "SAM & IR": replace(self.flat(Minimizer("SAM", self.rhos[0]), seed), input_penalty=study.penalty),
        }

    def target(self, target: Target) -> TrainSpec:
        """The training run of `target`: one cycle, with a seed that no surrogate uses."""
        return TrainSpec(
            data=self.data, arch=target.arch, width=target.width, n_train=self.n_train,
            schedule=OneCycle(self.lr), epochs=self.target_epochs, batch=self.batch, seed=1000,
            adversary=target.adversary,
        )  # fmt: skip

    def inverted(self, robust: bool, steps: int | None = None) -> FeatureSet:
        """D_R (`robust`) or D_NR: the features of a network that is trained as the targets are, on other seeds."""
        study = self.features
        arch, width = study.arch
        plain = replace(self.target(Target(arch, width)), seed=1001)
        model = replace(plain, adversary=study.adversary) if robust else plain
        return FeatureSet("inverted", model, steps or study.steps, study.step)

    def feature_sets(self) -> dict[str, FeatureSet | None]:
        """What the surrogates of claim C1 are trained on: D itself, D_R, D_NR, and the controls D_rand, D_det."""
        first = self.controls(self.features.radii[0])
        return {"D": None, "D_R": self.inverted(True), "D_NR": self.inverted(False), **first}

    def controls(self, radius: float) -> dict[str, FeatureSet]:
        """D_rand and D_det in a ball of this radius, against the network behind D_NR."""
        steps, model = self.features.targeted, self.inverted(False).model
        sets = [FeatureSet(m, model, steps, radius / 5, eps=radius) for m in ("random-label", "next-label")]
        return {f.name: f for f in sets}

    def probed(self, schedule: Schedule) -> list[float]:
        """The epochs at which a surrogate trained by `schedule` is attacked."""
        coarse = [float(e) for e in range(self.every, self.epochs + 1, self.every)]
        decays = getattr(schedule, "milestones", ())
        around = [m + d for m in decays for d in (0.0, *self.fine, self.judged_after)]
        judged = [m + d for m in self.decays for d in (0.0, self.judged_after)]  # runs are compared there
        return sorted({*coarse, *around, *judged, float(self.epochs)})

    def sharp(self, schedule: Schedule, fine: bool = True) -> list[float]:
        """The epochs at which sharpness is measured: a coarse grid, and around the decays (`fine`: closely).

        A run that decays once is followed only from the coarse point at its decay to the epoch where it is
        judged: before, it is the run without decay; what comes later, the standard schedule shows.
        """
        decays = schedule.milestones
        offsets = (0.0, *(self.fine if fine else ()), self.judged_after)
        around = {m + d for m in decays for d in offsets}
        if len(decays) == 1:
            return sorted(around)
        coarse = {float(e) for e in range(self.sharp_every, self.epochs + 1, self.sharp_every)}
        judged = set() if decays else {m + d for m in self.decays for d in (0.0, self.judged_after)}
        return sorted({*coarse, *around, *judged, float(self.epochs)})


SMOKE = Scale(
    name="smoke",
    data="digits",
    n_train=1000,
    surrogates=(("resnet18", 8),),
    epochs=6,
    lr=0.05,
    batch=50,
    decays=(2, 3, 4),
    standard=(2, 4),
    cycle=3,
    target_epochs=8,
    targets=(
        Target("vgg11", 8),
        Target("cnn", 16),
        Target("wrn16", 8),
        Target("senet18", 8, "validation"),
        Target("vgg11", 8, "robust", Adversary("l2", 0.5, steps=1)),
        Target("vgg11", 8, "robust", Adversary("linf", 8 / 255, steps=1)),
    ),
    attack=BIM(eps=40 / 255, steps=10),
    test_images=200,
    validation_images=50,
    accuracy_images=500,
    seeds=(0,),
    sharpness=SharpnessProbe(images=32),
    sharp_every=3,
    robustness=RobustnessProbe(images=100, budgets=(("l2", 0.25), ("l2", 0.5)), steps=5, restarts=1),
    checks=RobustnessProbe(images=200, budgets=(("l2", 0.25),), steps=5, restarts=1),
    features=FeatureStudy(
        arch=("cnn", 8),
        steps=10,
        tried=(),
        step=0.2,
        adversary=Adversary("l2", 0.5, steps=1),
        targeted=5,
        budgets=(20 / 255,),
    ),
    rivals=RivalStudy(
        epochs=1, slight=(Adversary("l2", 0.25, steps=1),), per_epoch=2, draws=4, techniques=("MI", "DI", "SGM")
    ),
    rhos=(0.05, 0.2),
    budgets=(20 / 255,),
    fine=(0.5,),
    cell_timeout=300,
)

LAPTOP = Scale(
    name="laptop",
    data="cifar10",
    n_train=10_000,
    surrogates=(("resnet18", 16), ("vgg11", 16)),
    epochs=18,
    lr=0.1,
    batch=128,
    decays=(6, 9, 12),
    standard=(6, 12),
    cycle=6,
    target_epochs=12,
    targets=(
        Target("vgg13", 16),
        Target("cnn", 24),
        Target("senet18", 12),
        Target("densenet22", 8),
        Target("wrn16", 12, "validation"),
        Target("convmixer", 48, "validation"),
        Target("vgg13", 16, "robust", Adversary("l2", 0.5, steps=2)),
        Target("vgg13", 16, "robust", Adversary("linf", 4 / 255, steps=2)),
    ),
    attack=BIM(eps=4 / 255, steps=15),
    test_images=200,
    validation_images=56,
    accuracy_images=1000,
    seeds=(0, 1, 2),
    sharpness=SharpnessProbe(images=128),
    sharp_every=3,
    robustness=RobustnessProbe(images=200),
    checks=RobustnessProbe(images=2000, budgets=(("l2", 0.25),)),
    features=FeatureStudy(
        arch=("vgg11", 16),
        steps=20,
        tried=(5, 40),
        step=0.5,
        adversary=Adversary("l2", 0.5, steps=2),
        targeted=10,
        budgets=(2 / 255, 8 / 255),
        radii=(0.5, 1.0),
    ),
    rivals=RivalStudy(epochs=6, slight=tuple(Adversary("l2", eps, steps=1) for eps in (0.05, 0.1, 0.25)), neighbours=5),
)

PAPER = Scale(
    name="paper",
    data="cifar10",
    n_train=None,
    surrogates=(("resnet18", None), ("resnet50", None)),
    epochs=150,
    lr=0.1,
    batch=128,
    decays=(50, 75, 100),
    standard=(50, 100),
    cycle=50,
    target_epochs=60,
    targets=(
        Target("vgg13", None),
        Target("vgg19", None),
        Target("densenet121", None),
        Target("wrn28", None),
        Target("resnext29", None),
        Target("mobilenetv2", None),
        Target("senet18", None),
        Target("googlenet", None),
        Target("resnet101", None),
        Target("preresnet18", None),
        Target("cnn", None, "validation"),
        Target("vgg16", None, "validation"),
        Target("densenet40", None, "validation"),
        Target("resnext29", None, "robust", Adversary("l2", 0.5)),
        Target("resnext29", None, "robust", Adversary("linf", 8 / 255)),
    ),
    attack=BIM(eps=4 / 255, steps=50),
    test_images=2000,
    validation_images=500,
    accuracy_images=10_000,
    seeds=(0, 1, 2),
    sharpness=SharpnessProbe(images=10_000, tol=1e-3, products=100, probes=15, deflate=15),
    sharp_every=10,
    robustness=RobustnessProbe(images=2000, steps=20, restarts=5),
    checks=RobustnessProbe(images=10_000, budgets=(("l2", 0.25),), steps=20, restarts=5),
    features=FeatureStudy(
        arch=("resnet50", None),
        steps=1000,
        tried=(100,),
        step=0.1,
        adversary=Adversary("l2", 0.5, steps=7, step=0.1),
        targeted=100,
        budgets=(2 / 255, 8 / 255, 16 / 255),
    ),
    rivals=RivalStudy(epochs=10, slight=tuple(Adversary("l2", eps) for eps in (0.03, 0.05, 0.1, 0.2, 0.3, 0.5))),
    rhos=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0),
    every=5,
    fine=(0.1, 0.25, 0.5, 2.0, 3.0),
    cell_timeout=7200,
)

SCALES = {scale.name: scale for scale in (SMOKE, LAPTOP, PAPER)}


def get(name: str) -> Scale:
    """The scale called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SCALES:
        raise ValueError(f"scale is {name!r}; give one of {', '.join(map(repr, SCALES))}.")
    return SCALES[name]
