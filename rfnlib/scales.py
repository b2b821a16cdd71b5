"""What `smoke`, `laptop`, `gpu` and `paper` mean, and nothing else. One code path: a scale is data, never an `if`.

Settings and choices are fixed on pilot seeds, before a judged seed is trained: see `PREREGISTRATION.md`. A scale of
one's own is one more `Scale`; `SCALES[name] = …` makes it known by its name.
"""

from __future__ import annotations

from rfnlib.attacks import BIM
from rfnlib.probes import Robustness, Sharpness
from rfnlib.scale import Arch, FeatureStudy, RivalStudy, Scale, Target
from rfnlib.specs import Adversary

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
        epochs=1,
        slight=(Adversary("l2", 0.25, steps=1),),
        per_epoch=2,
        draws=4,
        neighbours=2,
        techniques=("MI", "DI", "SGM"),
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
    test_images=1200,
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
    every=5,
    fine=(0.25, 0.5, 1.0, 3.0),
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
