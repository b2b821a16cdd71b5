"""What was asked for, as plain values: learning-rate schedules, minimizers, adversaries, training specs.

A spec says *what* is computed. *How* it is computed (device, precision, compiler) is
`rfnlib.execution`'s business and is kept as provenance: it moves the last bits, not the meaning.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from rfnlib import checks
from rfnlib.checks import is_number, is_whole
from rfnlib.keys import key

RECIPE = 1  # raised when the same spec would, by a change of the code, train another network


class SpecError(ValueError):
    """A spec that cannot be meant."""


require = partial(checks.require, error=SpecError)


# --- learning-rate schedules: lr(t) with t in epochs, t = 0 at the first step -----------------------


@dataclass(frozen=True)
class Step:
    """lr · gamma^(number of milestones reached), after a linear warm-up over the first `warmup` epochs.

    Without milestones: a constant learning rate.
    """

    lr: float = 0.1
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "milestones", tuple(sorted(self.milestones)))
        require(0 < self.gamma <= 1, f"gamma is {self.gamma}; give a factor in (0, 1].")
        require(
            all(m > 0 for m in self.milestones),
            f"milestones are {self.milestones}; give epochs after 0.",
        )

    def at(self, t: float, epochs: float) -> float:
        reached = sum(t >= m - 1e-9 for m in self.milestones)
        return self.lr * self.gamma**reached * _warm(t, self.warmup)

    def until(self, t: float) -> Step:
        """The same history up to epoch `t`: milestones not yet acted on are dropped."""
        return replace(self, milestones=tuple(m for m in self.milestones if m < t - 1e-9))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `lr` to `final` over the run, after a linear warm-up (Loshchilov & Hutter 2017)."""

    lr: float = 0.1
    final: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        require(0 <= self.final <= self.lr, f"final is {self.final}; give a rate in [0, {self.lr}].")

    def at(self, t: float, epochs: float) -> float:
        done = min(max(t - self.warmup, 0.0) / max(epochs - self.warmup, 1e-9), 1.0)
        return (self.final + (self.lr - self.final) * (1 + math.cos(math.pi * done)) / 2) * _warm(t, self.warmup)


@dataclass(frozen=True)
class OneCycle:
    """Linear from `lr`/`start` up to `lr` at the fraction `peak` of the run, then linear to 0 (Smith 2018)."""

    lr: float = 0.1
    peak: float = 0.3
    start: float = 25.0

    def __post_init__(self) -> None:
        _check(self)
        require(0 < self.peak < 1, f"peak is {self.peak}; give a fraction of the run in (0, 1).")
        require(
            self.start >= 1,
            f"start is {self.start}; give the divisor of the first rate, at least 1.",
        )

    def at(self, t: float, epochs: float) -> float:
        top, low = self.peak * epochs, self.lr / self.start
        if t < top:
            return low + (self.lr - low) * t / top
        return self.lr * max(epochs - t, 0.0) / (epochs - top)


@dataclass(frozen=True)
class Cyclic:
    """Cycles of `period` epochs, each half a cosine from `lr` to `low` (SGDR, Loshchilov & Hutter 2017)."""

    lr: float = 0.1
    period: float = 10.0
    low: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        require(self.period > 0, f"period is {self.period}; give a positive number of epochs.")
        require(0 <= self.low <= self.lr, f"low is {self.low}; give a rate in [0, {self.lr}].")

    def at(self, t: float, epochs: float) -> float:
        done = (t % self.period) / self.period
        return self.low + (self.lr - self.low) * (1 + math.cos(math.pi * done)) / 2


Schedule = Step | Cosine | OneCycle | Cyclic


def said(schedule: Schedule) -> str:
    """A schedule in words, such as "decays at 50 and 75".

    >>> said(Step(0.1, (50, 75))), said(Cosine())
    ('decays at 50 and 75', 'cosine')
    """
    if isinstance(schedule, Step):
        at = " and ".join(f"{m:g}" for m in schedule.milestones)
        return f"decay{'s' if len(schedule.milestones) > 1 else ''} at {at}" if at else "constant rate"
    return {"Cosine": "cosine", "OneCycle": "one cycle", "Cyclic": "cyclic"}[type(schedule).__name__]


def _warm(t: float, warmup: float) -> float:
    return min(1.0, (t + 1e-3) / warmup) if warmup > 0 else 1.0


def _check(schedule: Any) -> None:
    lr, warmup = schedule.lr, getattr(schedule, "warmup", 0.0)
    require(lr > 0 and math.isfinite(lr), f"lr is {lr}; give a positive learning rate.")
    require(0 <= warmup < math.inf, f"warmup is {warmup}; give a number of epochs, 0 or more.")


# --- minimizers -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Minimizer:
    """A method of `rfnlib.minimizers` around SGD. RFN is SAM with a large `rho`, and has no name of its own here.

    Whether there is such a method, and takes these options, is known where it trains: see `training.train`.

    Attributes:
        method: a name in `minimizers.METHODS`.
        rho: radius of the neighbourhood, in units of the weights; 0 for SWA, which has none.
        warmup: epochs over which ρ rises linearly from 0.
        average_from: the epoch after which WASAM and SWA take the weights into their mean, once an epoch. From
            the first of them on, a snapshot holds the mean, with BatchNorm re-estimated on the training images.
        options: the method's further options, as pairs such as ("alpha", 0.4); those left out have the default.
    """

    method: str
    rho: float = 0.0
    warmup: float = 0.0
    average_from: float | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        named = isinstance(self.method, str) and self.method.isidentifier()
        require(named, f"method is {self.method!r}; give the name of a minimizer, such as 'SAM'.")
        for name in ("rho", "warmup"):
            value = getattr(self, name)
            require(is_number(value, 0), f"{name} is {value!r}; give a number of 0 or more.")
        start = self.average_from
        fine = start is None or is_number(start, 0)
        require(fine, f"average_from is {start!r}; give an epoch of 0 or more, or None.")
        options = sorted((str(name), _tuple(value)) for name, value in dict(self.options).items())
        object.__setattr__(self, "options", tuple(options))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# --- adversarial training ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Adversary:
    """Train on adversarial images: min_w E max_{‖δ‖ ≤ eps} L(w; x + δ, y), the inner maximum by gradient steps.

    >>> Adversary("l2", 0.5, steps=7, step=0.1)                                    # PGD-7 (Madry et al. 2018, ICLR)
    >>> Adversary("linf", 8 / 255, steps=1)                                        # "fast" (Wong et al. 2020, ICLR)
    >>> Adversary("linf", 8 / 255, steps=1, random_start=False, replay=8)  # "free" (Shafahi et al. 2019, NeurIPS)

    Attributes:
        norm: "linf" or "l2".
        eps: radius of the ball, in units of [0, 1] pixels (for l2: of the whole image).
        steps: gradient steps k from the image, or from a random point of the ball, before each step of the weights.
        step: their length. None: 2.5 eps/k, enough to cross the ball and move along its edge (Madry et al.); eps in a
            single step from the image, 1.25 eps in one from a random point (Wong et al.).
        random_start: begin uniformly in the ball.
        replay: m for "free" training: every batch is taken for m steps, and the pass that moves the weights moves δ
            too. δ begins at 0 and goes on from replay to replay and from batch to batch. Epochs count steps as ever:
            in m of them the images are gone through once, at the cost of ordinary training. None: PGD.
    """

    norm: str
    eps: float
    steps: int = 7
    step: float | None = None
    random_start: bool = True
    replay: int | None = None

    def __post_init__(self) -> None:
        require(self.norm in ("linf", "l2"), f"norm is {self.norm!r}; give 'linf' or 'l2'.")
        most, unit = (1, "a number in (0, 1]") if self.norm == "linf" else (math.inf, "a positive number")
        fine = _positive(self.eps) and self.eps <= most
        require(fine, f"eps is {self.eps!r} in {self.norm}; give {unit}, in units of [0, 1] pixels, such as 4/255.")
        fine = self.step is None or _positive(self.step)
        require(fine, f"step is {self.step!r}; give a positive number, or None for the usual rule.")
        require(is_whole(self.steps, 1), f"steps is {self.steps!r}; give an integer of at least 1.")
        require(isinstance(self.random_start, bool), f"random_start is {self.random_start!r}; give True or False.")
        if self.replay is None:
            return
        require(is_whole(self.replay, 1), f"replay is {self.replay!r}; give an integer of at least 1, or None for PGD.")
        fine = self.steps == 1 and not self.random_start
        found = f"steps={self.steps}, random_start={self.random_start}"
        require(fine, f"replay is {self.replay} with {found}; free training takes steps=1, random_start=False.")

    @property
    def step_size(self) -> float:
        """`step`, or what the rule says."""
        if self.step is not None:
            return float(self.step)
        if self.steps > 1:
            return 2.5 * self.eps / self.steps
        return 1.25 * self.eps if self.random_start else float(self.eps)

    @property
    def passes(self) -> int:
        """Forward-backward passes that crafting adds to a step of the weights."""
        return self.steps if self.replay is None else 0


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


# --- training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainSpec:
    """One training run: SGD with momentum on a data set, by a schedule, from a seed.

    `minimizer` None means SGD alone, else a method around it; `adversary` None means images as they are, else
    adversarial ones; `features` None means the training set itself, else one built from it. `n_train` None means the
    whole training set; `width` None the published width; `stem` is the stride of the first convolution.
    `start` None means new weights, else the last ones of that run, with a fresh momentum (LGV's collection, say).
    `witness` and `input_penalty` change what is minimised: see `rfnlib.objectives`.
    `seed` draws the initial weights, the order of the images, their augmentation and the adversary's
    random starts, each from its own stream. Defaults are the authors' earlier public settings for CIFAR
    (see README, *Settings*).
    """

    data: str
    arch: str
    schedule: Schedule
    epochs: int
    n_train: int | None = None
    width: int | None = None
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    label_smoothing: float = 0.0
    augment: bool = True
    seed: int = 0
    minimizer: Minimizer | None = None
    adversary: Adversary | None = None
    features: FeatureSet | None = None
    start: TrainSpec | None = None
    witness: TrainSpec | None = None
    input_penalty: float = 0.0
    stem: int = 1

    def __post_init__(self) -> None:
        kind = isinstance(self.minimizer, Minimizer | None)
        require(kind, f"minimizer is {self.minimizer!r}; give a Minimizer, or None for SGD alone.")
        kind = isinstance(self.adversary, Adversary | None)
        require(kind, f"adversary is {self.adversary!r}; give an Adversary, or None for images as they are.")
        kind = isinstance(self.features, FeatureSet | None)
        require(kind, f"features is {self.features!r}; give a FeatureSet, or None for the training set itself.")
        of = self.features.model if self.features else self
        same = (of.data, of.n_train) == (self.data, self.n_train)
        require(same, "features are those of a network trained on other images; give both specs one data and n_train.")
        self._check_others()
        free = self.adversary is not None and self.adversary.replay is not None
        require(
            not (free and self.minimizer),
            f"adversary replays batches (free training) and minimizer is {self.minimizer!r}, whose several passes "
            "would each give another perturbation; give minimizer=None, or an adversary without replay.",
        )
        require(isinstance(self.schedule, Schedule), f"schedule is {self.schedule!r}; give {_names()}.")
        for name, low in (("epochs", 1), ("batch", 1), ("seed", 0), ("stem", 1)):
            value = getattr(self, name)
            require(is_whole(value, low), f"{name} is {value!r}; give an integer of at least {low}.")
        for name in ("n_train", "width"):
            value = getattr(self, name)
            require(
                value is None or is_whole(value, 1),
                f"{name} is {value!r}; give an integer of at least 1, or None.",
            )
        require(0 <= self.momentum < 1, f"momentum is {self.momentum}; give a number in [0, 1).")
        require(
            0 <= self.weight_decay < math.inf,
            f"weight_decay is {self.weight_decay}; give 0 or more.",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing is {self.label_smoothing}; give a number in [0, 1).",
        )
        require(not self.nesterov or self.momentum > 0, "nesterov needs momentum above 0.")

    def _check_others(self) -> None:
        """The runs that this one builds on, and what they are for."""
        for name in ("start", "witness"):
            other = getattr(self, name)
            kind = isinstance(other, TrainSpec | None)
            require(kind, f"{name} is {other!r}; give the TrainSpec of a run, or None.")
            same = not other or all(getattr(other, on) == getattr(self, on) for on in ("data", "n_train", "features"))
            require(same, f"{name} is trained on other images; give both specs one data, n_train and features.")
        of = self.start
        same = of is None or (of.arch, of.width, of.stem) == (self.arch, self.width, self.stem)
        require(
            same, "start is of another architecture, width or stem, and its weights do not fit; give a run of this one."
        )
        fine = is_number(self.input_penalty, 0)
        require(fine, f"input_penalty is {self.input_penalty!r}; give a number of 0 or more.")
        fine = not (self.witness and (self.input_penalty or self.label_smoothing))
        require(fine, "a witness takes the place of the labels; leave input_penalty and label_smoothing at 0.")

    def key(self) -> str:
        """The name under which everything made from this spec is kept."""
        return key("train", RECIPE, self)

    def history_key(self, iteration: int, per_epoch: int) -> str:
        """The key of what `iteration` steps of this run depend on.

        Runs that differ only in what comes later (a milestone not yet reached, more epochs after the
        last decay) share it: they *are* the same network up to there, bit for bit.
        """
        past: Any = self
        if isinstance(self.schedule, Step):
            past = replace(self, epochs=1, schedule=self.schedule.until(iteration / per_epoch))
        return key("snapshot", RECIPE, past, iteration)

    @property
    def traits(self) -> list[str]:
        """What tells this run from plain training on the images as they are, in short words for names and labels."""
        m, a = self.minimizer, self.adversary
        by = [f"{m.method.lower()}{m.rho:g}"] if m else []
        against = [f"{f'free{a.replay}' if a.replay else f'pgd{a.steps}'}-{a.norm}-{a.eps:.3g}"] if a else []
        penalty = [f"ir{self.input_penalty:g}"] if self.input_penalty else []
        onwards = [f"{name}-{other.key()[:4]}" for name, other in (("from", self.start), ("as", self.witness)) if other]
        return [*by, *against, *penalty, *onwards, *([self.features.name] if self.features else [])]

    @property
    def short_name(self) -> str:
        """What a file of this run is called: architecture, schedule, how it is trained, seed."""
        arch = f"{self.arch}-{f'w{self.width}' if self.width else 'full'}" + (f"-stem{self.stem}" if self.stem > 1 else "")
        at = "-".join(f"{m:g}" for m in getattr(self.schedule, "milestones", ()))
        schedule = f"{type(self.schedule).__name__.lower()}{at}"
        return "-".join([arch, schedule, *self.traits, f"s{self.seed}"])

    def describe(self) -> dict[str, Any]:
        """Every field as JSON data, defaults included: what a record shows its reader."""
        plain = asdict(self)
        if self.features:
            plain["features"]["model"] = self.features.model.describe()
        plain |= {name: other.describe() for name in ("start", "witness") if (other := getattr(self, name))}
        return {**plain, "schedule": {"is": type(self.schedule).__name__, **plain["schedule"]}}


@dataclass(frozen=True)
class FeatureSet:
    """Training images built from those of `model`'s run, after Ilyas et al. (2019); made by `rfnlib.features`.

    Attributes:
        method: "inverted": unrelated images with the features that `model` sees in the original ones, D_R if it was
            trained adversarially, else D_NR; "random-label", D_rand, and "next-label", D_det: images moved towards
            another class, which is their label.
        model: the training run whose last network is used.
        steps, step: gradient steps an image, and their length in l2, in units of [0, 1] pixels of the whole image.
        eps: radius of the l2 ball of D_rand and D_det; None for inversion, which has none.
        seed: of the starting images, or of the classes.
    """

    method: str
    model: TrainSpec
    steps: int
    step: float = 0.1
    eps: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.method in FEATURES, f"method is {self.method!r}; give one of {', '.join(map(repr, FEATURES))}.")
        require(isinstance(self.model, TrainSpec), f"model is {self.model!r}; give the TrainSpec of a network.")
        require(is_whole(self.steps, 1), f"steps is {self.steps!r}; give an integer of at least 1.")
        require(_positive(self.step), f"step is {self.step!r}; give a positive number.")
        ball = self.eps is None if self.method == "inverted" else _positive(self.eps)
        wanted = "None, since inversion has no ball" if self.method == "inverted" else "a positive radius"
        require(ball, f"eps is {self.eps!r} with {self.method}; give {wanted}.")
        require(is_whole(self.seed, 0), f"seed is {self.seed!r}; give an integer of at least 0.")

    @property
    def name(self) -> str:
        """D_R, D_NR, D_rand or D_det."""
        inverted = "D_R" if self.model.adversary else "D_NR"
        return {"inverted": inverted, "random-label": "D_rand", "next-label": "D_det"}[self.method]


FEATURES = ("inverted", "random-label", "next-label")


def _names() -> str:
    return "one of " + ", ".join(c.__name__ for c in (Step, Cosine, OneCycle, Cyclic))


def parse(plain: dict[str, Any]) -> TrainSpec:
    """The spec that `describe` wrote.

    Raises:
        SpecError: a field this version does not know, or one that is missing or out of range.
    """
    try:
        kinds = {c.__name__: c for c in (Step, Cosine, OneCycle, Cyclic)}
        schedule = {k: _tuple(v) for k, v in plain["schedule"].items() if k != "is"}
        minimizer, adversary, features = (plain.get(k) for k in ("minimizer", "adversary", "features"))
        built = {
            "schedule": kinds[plain["schedule"]["is"]](**schedule),
            "minimizer": Minimizer(**minimizer) if minimizer else None,
            "adversary": Adversary(**adversary) if adversary else None,
            "features": FeatureSet(**{**features, "model": parse(features["model"])}) if features else None,
            **{name: parse(plain[name]) for name in ("start", "witness") if plain.get(name)},
        }
        return TrainSpec(**{**plain, **built})
    except (AttributeError, KeyError, TypeError) as error:
        raise SpecError(f"not a training spec of this version: {error}.") from error
