"""What `smoke`, `laptop` and `paper` mean, and nothing else. One code path: a scale is data, never an `if`.

Settings were fixed before any test image was attacked, and are not tuned towards a claim.
"""

from __future__ import annotations

from dataclasses import dataclass

from rfnlib.attacks import BIM, IterativeAttack
from rfnlib.specs import Cosine, Cyclic, OneCycle, Schedule, Step, TrainSpec


@dataclass(frozen=True)
class Target:
    """A network to fool. Validation targets choose (an epoch, a ρ); test targets judge."""

    arch: str
    width: int | None
    role: str = "test"

    @property
    def name(self) -> str:
        return self.arch if self.width is None else f"{self.arch} (width {self.width})"


@dataclass(frozen=True)
class Scale:
    """One size of the whole reproduction.

    Images: `test_images` and `validation_images` are attacked (two disjoint draws from the test set),
    natural accuracy is taken on `accuracy_images`. Epochs: surrogates are probed every `every` epochs
    and, after each decay of a step schedule, at the offsets `fine`; `judged_after` is the offset at
    which claim C2 is judged.
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

    def surrogate(self, schedule: Schedule, seed: int, which: int = 0) -> TrainSpec:
        """The training run of surrogate architecture number `which` under `schedule`."""
        arch, width = self.surrogates[which]
        return TrainSpec(
            data=self.data, arch=arch, width=width, n_train=self.n_train, schedule=schedule,
            epochs=self.epochs, batch=self.batch, seed=seed,
        )  # fmt: skip

    def target(self, target: Target) -> TrainSpec:
        """The training run of `target`: one cycle, with a seed that no surrogate uses."""
        return TrainSpec(
            data=self.data, arch=target.arch, width=target.width, n_train=self.n_train,
            schedule=OneCycle(self.lr), epochs=self.target_epochs, batch=self.batch, seed=1000,
        )  # fmt: skip

    def probed(self, schedule: Schedule) -> list[float]:
        """The epochs at which a surrogate trained by `schedule` is attacked."""
        coarse = [float(e) for e in range(self.every, self.epochs + 1, self.every)]
        decays = getattr(schedule, "milestones", ())
        around = [m + d for m in decays for d in (0.0, *self.fine, self.judged_after)]
        judged = [m + d for m in self.decays for d in (0.0, self.judged_after)]  # runs are compared there
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
    target_epochs=12,
    targets=(
        Target("vgg11", 8),
        Target("cnn", 16),
        Target("wrn16", 8),
        Target("senet18", 8, "validation"),
    ),
    attack=BIM(eps=40 / 255, steps=10),
    test_images=200,
    validation_images=50,
    accuracy_images=500,
    seeds=(0,),
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
    ),
    attack=BIM(eps=4 / 255, steps=15),
    test_images=200,
    validation_images=56,
    accuracy_images=1000,
    seeds=(0, 1, 2),
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
    ),
    attack=BIM(eps=4 / 255, steps=50),
    test_images=2000,
    validation_images=500,
    accuracy_images=10_000,
    seeds=(0, 1, 2),
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
