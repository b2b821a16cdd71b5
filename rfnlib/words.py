"""Values in words and units, the same in every table and headline.

Shares of images are in per cent and differences of shares in points, both with one decimal; an estimate never stands
without its interval, at 95 %, or, where that rests on two seeds alone, without the value of either: see `bounds`.
`MISSING` says that there is no value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, isfinite
from typing import Any

from rfnlib.attacks import IterativeAttack
from rfnlib.intervals import Estimate, Influence, interval
from rfnlib.outside import Outside
from rfnlib.recipes import Averaged, Collected, Drawn, Recipe
from rfnlib.specs import Adversary, Cosine, Cyclic, Minimizer, Schedule, Step, TrainSpec

MISSING = "not measured"
ONE_SEED = "(one seed)"
MEASURES = {
    "top": "λ₁",
    "trace": "trace",
    "matched": "λ₁ at equal loss",
    "relative": "relative flatness",
    "worst_case": "worst case in a ball",
    "input_gradient": "input-gradient norm",
}
COUNTED = {  # the names of `transfer.DENOMINATORS`, short enough for a table
    "all-targets-correct": "images right for all targets",
    "target-correct": "images right for each target",
    "surrogate-correct": "images right for targets and surrogate",
    "all": "all images",
}
TECHNIQUES = {
    "momentum": "momentum",
    "nesterov": "Nesterov",
    "views": "views",
    "around": "gradients around",
    "variance": "variance tuning",
    "smoothing": "smoothing",
    "loss": "loss",
}
SYMBOLS = {"alpha": "α", "lam": "λ", "steps": "k"}


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign; the minus is as wide as the plus, and nothing has the sign of zero.

    >>> signed(3.14), signed(-0.5), signed(-0.04)
    ('+3.1', '−0.5', '0.0')
    """
    rounded = round(float(value), digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def percent(share: Influence | Estimate | float | None) -> str:
    """A share of images, in per cent.

    >>> percent(0.641), percent(Estimate(0.641, 0.641, 0.01071, 1e6, 5)), percent(None)
    ('64.1 %', '64.1 % (62.0 to 66.2)', 'not measured')
    """
    if share is None:
        return MISSING
    if isinstance(share, float | int):
        return f"{100 * share:.1f} %"
    share = _estimate(share)
    return f"{100 * share.value:.1f} % {bounds(share, _hundredths)}"


def points(difference: Influence | Estimate | float | None) -> str:
    """A difference of two shares, in points of per cent.

    >>> points(Estimate(0.049, 0.049, 0.01276, 1e6, 5)), points(-0.012)
    ('+4.9 (+2.4 to +7.4)', '−1.2')
    """
    if difference is None:
        return MISSING
    if isinstance(difference, float | int):
        return signed(100 * difference)
    difference = _estimate(difference)
    return f"{signed(100 * difference.value)} {bounds(difference, lambda x: signed(100 * x))}"


def against(difference: Influence | Estimate) -> str:
    """A difference of two shares in a sentence, such as "success is … the end of the run".

    >>> against(Estimate(0.049, 0.049, 0.01276, 1e6, 5)), against(Estimate(-0.01, -0.01, 0.01531, 1e6, 5))
    ('4.9 points (2.4 to 7.4) above', '1.0 points (−2.0 to 4.0) below')
    """
    difference = _estimate(difference)
    way, e = ("below", -difference) if difference.value < 0 else ("above", difference)
    return f"{100 * e.value:.1f} points {bounds(e, _hundredths)} {way}"


def bounds(e: Estimate, shown: Callable[[float], str]) -> str:
    """The 95 % interval of an estimate in brackets, its ends as `shown` tells them.

    Over two seeds it tells nothing, and says on how many it rests; of what is one number a seed (no images are
    counted) the two numbers stand in its place, which lie a standard error to either side of their mean.

    >>> bounds(Estimate(2.0, 2.0, 0.5, 1e6, 5), "{:.1f}".format), bounds(Estimate(2.0, 2.0, 0.5, 1, 2), "{:.1f}".format)
    ('(1.0 to 3.0)', '(2 seeds: 1.5 and 2.5)')
    """
    if not isfinite(e.high - e.low):
        return ONE_SEED
    if not e.telling and not e.images:
        return f"(2 seeds: {shown(e.value - e.error)} and {shown(e.value + e.error)})"
    return f"({shown(e.low)} to {shown(e.high)}{'' if e.telling else '; 2 seeds'})"


def level(log: Estimate | None) -> str:
    """A positive quantity whose logarithm is estimated: its geometric mean.

    >>> level(Estimate(5.3, 5.3, 0.1531, 1e6, 5))
    '200 (148 to 270)'
    """
    return MISSING if log is None else f"{number(exp(log.value))} {bounds(log, lambda x: number(exp(x)))}"


def factor(log: Estimate | float | None) -> str:
    """What a difference of natural logarithms is as a factor.

    >>> factor(Estimate(0.0, 0.0, 0.3536, 1e6, 5))
    '×1.00 (0.50 to 2.00)'
    """
    if log is None:
        return MISSING
    if not isinstance(log, Estimate):
        return f"×{_times(log)}"
    return f"×{_times(log.value)} {bounds(log, _times)}"


def lower(log: Estimate | None) -> str:
    """How far one positive quantity is below another, by the difference of their logarithms, in a sentence.

    >>> lower(Estimate(0.6931, 0.6931, 0.2, 1e6, 5)), lower(Estimate(-0.1, -0.1, 0.2, 1e6, 5))
    ('lower by the factor 2.00 (1.35 to 2.96)', 'higher by the factor 1.11 (0.75 to 1.64)')
    """
    if log is None:
        return MISSING
    way, e = ("lower", log) if log.value >= 0 else ("higher", -log)
    return f"{way} by the factor {_times(e.value)} {bounds(e, _times)}"


def number(value: float | None) -> str:
    """A positive number with three significant digits, thousands set apart.

    >>> number(1234.5), number(56.78), number(0.8752), number(float("nan"))
    ('1,230', '56.8', '0.875', 'not measured')
    """
    if value is None or not isfinite(value):
        return MISSING
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:#.3g}"


def count(n: float, thing: str) -> str:
    """Such as "1 seed" or "3 seeds".

    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{n:,g} {thing}{'' if n == 1 else 's'}"


def listed(things: Sequence[Any]) -> str:
    """Things in a row.

    >>> listed([25, 50, 75]), listed(["λ₁"])
    ('25, 50 and 75', 'λ₁')
    """
    *some, last = (f"{t:g}" if isinstance(t, float) else str(t) for t in things)
    return f"{', '.join(some)} and {last}" if some else last


def attack(a: IterativeAttack) -> str:
    """An attack.

    >>> attack(IterativeAttack(eps=4 / 255, steps=15))
    'BIM, ε 4/255, 15 steps of 0.4/255'
    >>> attack(IterativeAttack(eps=0.5, step=0.1, steps=1, norm="l2"))
    'FGSM in l2, ε 0.5'
    """
    name = "PGD" if a.random_start else "FGSM" if a.steps == 1 else "BIM"
    said = [f"{'targeted ' if a.targeted else ''}{name}{'' if a.norm == 'linf' else f' in {a.norm}'}"]
    said += [f"ε {length(a.radius, a.norm)}"]
    said += [] if name == "FGSM" else [f"{a.steps} steps of {length(a.step_size, a.norm)}"]
    for name, word in TECHNIQUES.items():
        value = getattr(a, name)
        if value != type(a).__dataclass_fields__[name].default:
            said.append(word if value is True else f"{word} {_part(value)}")
    return ", ".join(said)


def adversary(a: Adversary) -> str:
    """What a network is trained against.

    >>> adversary(Adversary("l2", 0.5, steps=7)), adversary(Adversary("linf", 8 / 255, 1, random_start=False, replay=8))
    ('PGD in l2, ε 0.5, 7 steps', 'free PGD, ε 8/255, 8 replays')
    """
    name = f"{'free ' if a.replay else ''}PGD{'' if a.norm == 'linf' else f' in {a.norm}'}"
    steps = count(a.replay, "replay") if a.replay else count(a.steps, "step")
    return f"{name}, ε {length(a.eps, a.norm)}, {steps}"


def length(value: float, norm: str = "linf") -> str:
    """A length of a perturbation: of a pixel, in grey levels, or of the whole image.

    >>> length(4 / 255), length(0.5, "l2")
    ('4/255', '0.5')
    """
    return f"{255 * value:.3g}/255" if norm == "linf" else f"{value:.3g}"


def minimizer(m: Minimizer | None) -> str:
    """A minimizer with its settings.

    >>> minimizer(None), minimizer(Minimizer("SAM", 0.2)), minimizer(Minimizer("GSAM", 0.1, options=(("alpha", 0.4),)))
    ('SGD', 'SAM, ρ 0.2', 'GSAM, ρ 0.1, α 0.4')
    """
    if m is None:
        return "SGD"
    said = [m.method, *([f"ρ {m.rho:g}"] if m.rho else [])]
    said += [f"ρ rising over {count(int(m.warmup), 'epoch')}"] if m.warmup else []
    said += [f"weights averaged from epoch {m.average_from:g} on"] if m.average_from is not None else []
    return ", ".join([*said, *(f"{SYMBOLS.get(name, name.replace('_', ' '))} {_part(v)}" for name, v in m.options)])


def trained(spec: TrainSpec | Outside) -> str:
    """How a network is trained, but for its learning rate."""
    said = [minimizer(spec.minimizer)]
    said += [f"against {adversary(spec.adversary)}"] if spec.adversary else []
    said += [f"input-gradient penalty λ {spec.input_penalty:g}"] if spec.input_penalty else []
    said += ["towards another network's predictions"] if spec.witness else []
    if spec.start and spec.schedule:
        said.append(f"onwards from SGD's end, learning rate {schedule(spec.schedule)}")
    return "; ".join(said)


def recipe(r: Recipe | None) -> str:
    """What is attacked of a training run.

    >>> recipe(None), recipe(Averaged(4))
    ('the network', 'the mean of weights collected 4 times an epoch')
    """
    match r:
        case Collected(n):
            return f"weights collected {n} times an epoch, one an iteration"
        case Averaged(n):
            return f"the mean of weights collected {n} times an epoch"
        case Drawn(draws=draws):
            return f"{draws} draws around the mean of collected weights, one an iteration"
    return "the network"


def schedule(s: Schedule) -> str:
    """A schedule of the learning rate.

    >>> schedule(Step(0.1)), schedule(Step(0.1, (50, 75))), schedule(Cosine(0.1)), schedule(Cyclic(0.1, 25))
    ('0.1 throughout', '0.1, times 0.1 at epochs 50 and 75', '0.1 to 0 by half a cosine', 'half a cosine from 0.1 to 0 every 25 epochs')
    """  # noqa: E501
    warmup = getattr(s, "warmup", 0)
    warm = f", after {warmup:g} epochs of warm-up" if warmup else ""
    if isinstance(s, Step):
        at = (
            f"epoch{'s' if len(s.milestones) > 1 else ''} {listed([f'{m:g}' for m in s.milestones])}"
            if s.milestones
            else ""
        )
        return f"{s.lr:g}{f', times {s.gamma:g} at {at}' if at else ' throughout'}{warm}"
    if isinstance(s, Cosine):
        return f"{s.lr:g} to {s.final:g} by half a cosine{warm}"
    if isinstance(s, Cyclic):
        return f"half a cosine from {s.lr:g} to {s.low:g} every {s.period:g} epochs"
    return f"one cycle: {s.lr / s.start:g} to {s.lr:g} at {s.peak:.0%} of the run, then to 0"


def _estimate(of: Influence | Estimate) -> Estimate:
    return interval(of) if isinstance(of, Influence) else of


def _hundredths(x: float) -> str:
    return f"{100 * x:.1f}".replace("-", "−")


def _times(log: float) -> str:
    return f"{exp(log):.2f}" if exp(log) < 10 else number(exp(log))


def _part(value: Any) -> str:
    if isinstance(value, tuple):
        return listed([_part(v) for v in value])
    if isinstance(value, (int, float, str)):
        return str(value) if isinstance(value, str) else f"{value:g}"
    return getattr(value, "__name__", type(value).__name__)
