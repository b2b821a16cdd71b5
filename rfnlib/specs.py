"""What was asked for, as plain values: learning-rate schedules, minimizers, adversaries, training specs.

A spec says *what* is computed. *How* it is computed (device, precision, compiler) is
`rfnlib.execution`'s business and is kept as provenance: it moves the last bits, not the meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

from rfnlib import checks
from rfnlib.checks import is_number, is_whole
from rfnlib.keys import key

NUMERICS_VERSION = 1  # raised when the same spec would, by a change of the code, train another network


class SpecError(ValueError):
    """A spec that cannot be meant."""


require = partial(checks.require, error=SpecError)


def _require_whole(owner: Any, low: int, *names: str, optional: bool = False) -> None:
    """Refuse fields that are not integers of at least `low`, or, where they are optional, None."""
    for name in names:
        value = getattr(owner, name)
        fine = is_whole(value, low) or (optional and value is None)
        require(fine, f"{name} is {value!r}; give an integer of at least {low}{', or None' if optional else ''}.")


def _require_bool(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        require(isinstance(value, bool), f"{name} is {value!r}; give True or False.")


def _require_name(owner: Any, *names: str) -> None:
    """Refuse fields that could not be a part of a file's name."""
    for name in names:
        value = getattr(owner, name)
        plain = isinstance(value, str) and value.replace("-", "").replace("_", "").isalnum()
        require(plain, f"{name} is {value!r}; give a name of letters, digits, hyphens and underscores.")


def _is_plain(value: Any) -> bool:
    """Whether `value` is made of numbers, strings, truth values, None and tuples."""
    return is_number(value) or isinstance(value, str | bool | None) or _is_tuple(value, _is_plain)


def _is_tuple(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(map(of, value))


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
        given = _tuple(self.milestones)
        fine = _is_tuple(given, _is_positive)
        require(fine, f"milestones are {self.milestones!r}; give a tuple of epochs after 0.")
        object.__setattr__(self, "milestones", tuple(sorted(given)))
        fine = is_number(self.gamma, 0, 1) and self.gamma > 0
        require(fine, f"gamma is {self.gamma!r}; give a factor in (0, 1].")

    def at(self, t: float, epochs: float) -> float:
        reached = sum(t >= m - 1e-9 for m in self.milestones)
        return self.lr * self.gamma**reached * _warm(t, self.warmup)

    def until(self, t: float) -> Step:
        """The same history up to epoch `t`: milestones not yet acted on are dropped."""
        return replace(self, milestones=tuple(m for m in self.milestones if m < t - 1e-9))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `lr` to `final` over the run, after a linear warm-up (Loshchilov & Hutter 2017)."""

    milestones: ClassVar[tuple[float, ...]] = ()  # it has none
    lr: float = 0.1
    final: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        require(is_number(self.final, 0, self.lr), f"final is {self.final!r}; give a rate in [0, {self.lr}].")

    def at(self, t: float, epochs: float) -> float:
        done = min(max(t - self.warmup, 0.0) / max(epochs - self.warmup, 1e-9), 1.0)
        return (self.final + (self.lr - self.final) * (1 + math.cos(math.pi * done)) / 2) * _warm(t, self.warmup)


@dataclass(frozen=True)
class OneCycle:
    """Linear from `lr`/`start` up to `lr` at the fraction `peak` of the run, then linear to 0 (Smith 2018)."""

    milestones: ClassVar[tuple[float, ...]] = ()  # it has none
    lr: float = 0.1
    peak: float = 0.3
    start: float = 25.0

    def __post_init__(self) -> None:
        _check(self)
        fine = is_number(self.peak) and 0 < self.peak < 1
        require(fine, f"peak is {self.peak!r}; give a fraction of the run in (0, 1).")
        fine = is_number(self.start, 1)
        require(fine, f"start is {self.start!r}; give the divisor of the first rate, at least 1.")

    def at(self, t: float, epochs: float) -> float:
        top, low = self.peak * epochs, self.lr / self.start
        if t < top:
            return low + (self.lr - low) * t / top
        return self.lr * max(epochs - t, 0.0) / (epochs - top)


@dataclass(frozen=True)
class Cyclic:
    """Cycles of `period` epochs, each half a cosine from `lr` to `low` (SGDR, Loshchilov & Hutter 2017)."""

    milestones: ClassVar[tuple[float, ...]] = ()  # it has none
    lr: float = 0.1
    period: float = 10.0
    low: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        require(_is_positive(self.period), f"period is {self.period!r}; give a positive number of epochs.")
        require(is_number(self.low, 0, self.lr), f"low is {self.low!r}; give a rate in [0, {self.lr}].")

    def at(self, t: float, epochs: float) -> float:
        done = (t % self.period) / self.period
        return self.low + (self.lr - self.low) * (1 + math.cos(math.pi * done)) / 2


Schedule = Step | Cosine | OneCycle | Cyclic
_SCHEDULES = {c.__name__: c for c in (Step, Cosine, OneCycle, Cyclic)}


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
    require(_is_positive(lr), f"lr is {lr!r}; give a positive learning rate.")
    require(is_number(warmup, 0), f"warmup is {warmup!r}; give a number of epochs, 0 or more.")


# --- minimizers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minimizer:
    """A method of `rfnlib.minimizers` around SGD. RFN is SAM with a large `rho`, and has no name of its own here.

    Whether there is such a method, which may be registered later, and takes these options, is known where it trains:
    see `training.train`.

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
        sam = f"Minimizer('SAM', {self.rho or 0.2})"
        require(self.method.upper() != "RFN", f"method is {self.method!r}, which is SAM with a large rho; give {sam}.")
        start = self.average_from
        fine = start is None or is_number(start, 0)
        require(fine, f"average_from is {start!r}; give an epoch of 0 or more, or None.")
        given = tuple(self.options.items()) if isinstance(self.options, dict) else _tuple(self.options)
        fine = _is_tuple(given, _is_option) and len(dict(given)) == len(given)
        require(fine, f"options are {self.options!r}; give different pairs of a name and a plain value.")
        object.__setattr__(self, "options", tuple(sorted((str(name), value) for name, value in given)))


def _is_option(pair: Any) -> bool:
    return _is_tuple(pair, _is_plain) and len(pair) == 2 and isinstance(pair[0], str)


def _tuple(value: Any) -> Any:
    """`value` with tuples in the place of lists."""
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


# --- adversarial training ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Adversary:
    """Train on adversarial images: min_w E max_{‖δ‖ ≤ eps} L(w; x + δ, y), the inner maximum by gradient steps.

    >>> madry = Adversary("l2", 0.5, steps=7, step=0.1)  # PGD-7 (Madry et al. 2018, ICLR)
    >>> fast = Adversary("linf", 8 / 255, steps=1)  # Wong et al. 2020, ICLR
    >>> free = Adversary("linf", 8 / 255, steps=1, random_start=False, replay=8)  # Shafahi et al. 2019, NeurIPS
    >>> madry.passes, fast.passes, free.passes
    (7, 1, 0)

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
        require(
            isinstance(self.norm, str) and self.norm in ("linf", "l2"), f"norm is {self.norm!r}; give 'linf' or 'l2'."
        )
        most, unit = (1, "a number in (0, 1]") if self.norm == "linf" else (math.inf, "a positive number")
        fine = _is_positive(self.eps) and self.eps <= most
        require(fine, f"eps is {self.eps!r} in {self.norm}; give {unit}, in units of [0, 1] pixels, such as 4/255.")
        fine = self.step is None or _is_positive(self.step)
        require(fine, f"step is {self.step!r}; give a positive number, or None for the usual rule.")
        _require_whole(self, 1, "steps")
        _require_bool(self, "random_start")
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


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


# --- training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainSpec:
    """One training run: SGD with momentum on a data set, by a schedule, from a seed.

    `minimizer` None means SGD alone, else a method around it; `adversary` None means images as they are, else
    adversarial ones; `features` None means the training set itself, else one built from it. `n_train` None means the
    whole training set, else so many of its images, the first `skip` of them left out; `label_noise` is the share of
    labels that are replaced (see `Dataset.subset` and `Dataset.noisy`). `width` None the published width; `stem` is the
    stride of the first convolution. `start` None means new weights, else the last ones of that run, with a fresh
    momentum (LGV's collection, say).
    `witness` and `input_penalty` change what is minimised: see `rfnlib.objectives`.
    `seed` draws the initial weights, the order of the images, their augmentation, the adversary's random starts, a
    minimizer's noise and the labels that are replaced, each from its own stream. Defaults are the authors' earlier
    public settings for CIFAR (see README, *Install*).
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
    skip: int = 0
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        _require_name(self, "data", "arch")
        require(
            isinstance(self.schedule, Schedule), f"schedule is {self.schedule!r}; give one of {', '.join(_SCHEDULES)}."
        )
        _require_whole(self, 1, "epochs", "batch", "stem")
        _require_whole(self, 0, "seed", "skip")
        _require_whole(self, 1, "n_train", "width", optional=True)
        _require_bool(self, "nesterov", "augment")
        for name in ("momentum", "label_smoothing", "label_noise"):
            value = getattr(self, name)
            require(is_number(value, 0) and value < 1, f"{name} is {value!r}; give a number in [0, 1).")
        for name in ("weight_decay", "input_penalty"):
            value = getattr(self, name)
            require(is_number(value, 0), f"{name} is {value!r}; give a number of 0 or more.")
        require(not self.nesterov or self.momentum > 0, "nesterov needs momentum above 0.")
        require(not self.skip or self.n_train, f"skip is {self.skip} without n_train; say how many images to take.")
        for name, kind, default in (
            ("minimizer", Minimizer, "for SGD alone"),
            ("adversary", Adversary, "for images as they are"),
            ("features", FeatureSet, "for the training set itself"),
            ("start", TrainSpec, "for new weights"),
            ("witness", TrainSpec, "for the labels"),
        ):
            value, a = getattr(self, name), "an" if kind is Adversary else "a"
            fine = isinstance(value, kind | None)
            require(fine, f"{name} is {value!r}; give {a} {kind.__name__}, or None {default}.")
        free = self.adversary is not None and self.adversary.replay is not None
        require(
            not (free and self.minimizer),
            f"adversary replays batches (free training) and minimizer is {self.minimizer!r}, whose several passes "
            "would each give another perturbation; give minimizer=None, or an adversary without replay.",
        )
        self._check_others()

    def _check_others(self) -> None:
        """Refuse runs to build on that do not fit this one."""
        of = self.features.model if self.features else self
        same = (of.data, of.cut) == (self.data, self.cut) and not (self.features and (self.skip or self.label_noise))
        require(same, "features are those of a network trained on other images; give both specs one data and n_train.")
        for name in ("start", "witness"):
            other = getattr(self, name)
            same = not other or all(getattr(other, on) == getattr(self, on) for on in ("data", "cut", "features"))
            way_out = "give both specs one data, n_train, skip, label_noise and features"
            require(same, f"{name} is trained on other images; {way_out}.")
        of = self.start
        same = of is None or (of.arch, of.width, of.stem) == (self.arch, self.width, self.stem)
        way_out = "and its weights do not fit; give a run of this one"
        require(same, f"start is of another architecture, width or stem, {way_out}.")
        fine = not (self.witness and (self.input_penalty or self.label_smoothing))
        require(fine, "a witness takes the place of the labels; leave input_penalty and label_smoothing at 0.")

    @property
    def cut(self) -> tuple[int | None, int, float, int]:
        """What `Dataset.cut` makes of the data set: how many images, after how many; labels replaced, by which seed."""
        return self.n_train, self.skip, self.label_noise, self.seed if self.label_noise else 0

    def key(self) -> str:
        """The name under which everything made from this spec is kept."""
        return key("train", NUMERICS_VERSION, self)

    def history_key(self, iteration: int, per_epoch: int) -> str:
        """The key of what `iteration` steps of this run depend on.

        Runs that differ only in what comes later (a milestone not yet reached, more epochs after the
        last decay) share it: they *are* the same network up to there, bit for bit.
        """
        past: Any = self
        if isinstance(self.schedule, Step):
            past = replace(self, epochs=1, schedule=self.schedule.until(iteration / per_epoch))
        return key("snapshot", NUMERICS_VERSION, past, iteration)

    def lineage(self) -> Iterator[TrainSpec]:
        """This run, and every other that it rests on: where it starts from, its witness, its features' network."""
        yield self
        for other in (self.start, self.witness, self.features and self.features.model):
            if other:
                yield from other.lineage()

    @property
    def traits(self) -> list[str]:
        """What tells this run from plain training on the images as they are, in short words for names and labels."""
        m, a = self.minimizer, self.adversary
        by = [f"{m.method.lower()}{m.rho:g}"] if m else []
        against = [f"{f'free{a.replay}' if a.replay else f'pgd{a.steps}'}-{a.norm}-{a.eps:.3g}"] if a else []
        penalty = [f"ir{self.input_penalty:g}"] if self.input_penalty else []
        onwards = [f"{name}-{other.key()[:4]}" for name, other in (("from", self.start), ("as", self.witness)) if other]
        images = [f"{self.n_train}after{self.skip}"] if self.skip else []
        images += [f"noise{self.label_noise:g}"] if self.label_noise else []
        images += [] if self.augment else ["plain"]
        return [*by, *against, *penalty, *onwards, *([self.features.name] if self.features else []), *images]

    @property
    def short_name(self) -> str:
        """What a file of this run is called: architecture, schedule, how it is trained, seed."""
        arch = f"{self.arch}-{f'w{self.width}' if self.width else 'full'}" + (
            f"-stem{self.stem}" if self.stem > 1 else ""
        )
        at = "-".join(f"{m:g}" for m in self.schedule.milestones)
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
        known = isinstance(self.method, str) and self.method in FEATURES
        require(known, f"method is {self.method!r}; give one of {', '.join(map(repr, FEATURES))}.")
        require(isinstance(self.model, TrainSpec), f"model is {self.model!r}; give the TrainSpec of a network.")
        _require_whole(self, 1, "steps")
        require(_is_positive(self.step), f"step is {self.step!r}; give a positive number.")
        ball = self.eps is None if self.method == "inverted" else _is_positive(self.eps)
        wanted = "None, since inversion has no ball" if self.method == "inverted" else "a positive radius"
        require(ball, f"eps is {self.eps!r} with {self.method}; give {wanted}.")
        _require_whole(self, 0, "seed")

    @property
    def name(self) -> str:
        """D_R, D_NR, D_rand or D_det."""
        inverted = "D_R" if self.model.adversary else "D_NR"
        return {"inverted": inverted, "random-label": "D_rand", "next-label": "D_det"}[self.method]


FEATURES = ("inverted", "random-label", "next-label")


def parse(plain: dict[str, Any]) -> TrainSpec:
    """The spec that `describe` wrote.

    Raises:
        SpecError: a field this version does not know, or one that is missing or out of range.
    """
    try:
        schedule = {k: v for k, v in plain["schedule"].items() if k != "is"}
        built: dict[str, Any] = {"schedule": _SCHEDULES[plain["schedule"]["is"]](**schedule)}
        for name, kind in (("minimizer", Minimizer), ("adversary", Adversary)):
            if plain.get(name) is not None:
                built[name] = kind(**plain[name])
        if (features := plain.get("features")) is not None:
            built["features"] = FeatureSet(**{**features, "model": parse(features["model"])})
        for name in ("start", "witness"):
            if plain.get(name) is not None:
                built[name] = parse(plain[name])
        return TrainSpec(**{**plain, **built})
    except (AttributeError, KeyError, TypeError) as error:
        raise SpecError(f"not a training spec of this version: {error}.") from error
