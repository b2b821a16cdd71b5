"""A difference counted in several ways: on each target, over other images, after each decay; in tables and sentences.

>>> differences = {"RFN over SGD": partial(gains.gain, "RFN")}                   # doctest: +SKIP
>>> table(differences, each(["vgg11", "cnn"]), "target")                        # doctest: +SKIP

A *way* is what is passed to the difference, such as `{"targets": [0]}`; `random_targets` is passed to the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from rfnlib import words
from rfnlib.intervals import Estimate, Influence, interval

Difference = Callable[..., Any]  # of the way: an `Influence`, or an `Estimate`, None where it is not defined
Ways = Mapping[str, Mapping[str, Any]]


def each(targets: Sequence[str]) -> Ways:
    """On each target."""
    return {target: {"targets": [i]} for i, target in enumerate(targets)}


def other_images() -> Ways:
    """Over the images of each denominator of `rfnlib.transfer`."""
    return {label: {"denominator": name} for name, label in words.COUNTED.items()}


def other_targets(targets: Sequence[str]) -> Ways:
    """If targets were drawn from others like them, and without each of them; one target can do neither."""
    if len(targets) == 1:
        return {}
    rest = {f"without {t}": {"targets": [j for j in range(len(targets)) if j != i]} for i, t in enumerate(targets)}
    return {"targets as a random sample of such targets": {"random_targets": True}, **rest}


def otherwise(targets: Sequence[str]) -> Ways:
    """As judged, over other images, and over other targets: what a plan's sensitivities count from the same records."""
    as_judged, *others = other_images().items()
    return {"as judged": as_judged[1], **dict(others), **other_targets(targets)}


def estimates(difference: Difference, ways: Ways) -> dict[str, Any]:
    """The difference in each way, with its interval."""

    def counted(random_targets: bool = False, **how: Any) -> Estimate | None:
        found = difference(**how)
        return interval(found, random_targets=random_targets) if isinstance(found, Influence) else found

    return {way: counted(**how) for way, how in ways.items()}


def table(
    differences: Mapping[str, Difference], ways: Ways, axis: str, shown: Callable[[Any], str] = words.points
) -> pd.DataFrame:
    """A row a way, a column a difference."""
    found = {name: estimates(difference, ways) for name, difference in differences.items()}
    frame = pd.DataFrame({name: {way: shown(e) for way, e in of.items()} for name, of in found.items()})
    return frame.rename_axis(axis)


def signs(difference: Difference, ways: Ways) -> str:
    """In how many ways the difference is above and below 0, in how many surely at 95 %, and where it is least.

    >>> by_decay = {"decay at 25": 0.02, "decay at 50": 0.04}
    >>> signs(lambda x: Estimate(x, x, 0.01531, 1e6, 5), {d: {"x": x} for d, x in by_decay.items()})
    '2 of 2 above 0 (1 at 95 %); smallest, in points: decay at 25, +2.0 (−1.0 to +5.0)'
    """
    found = estimates(difference, ways)
    above, surely = sum(e.value > 0 for e in found.values()), sum(e.low > 0 for e in found.values())
    below, sure_below = sum(e.value < 0 for e in found.values()), sum(e.high < 0 for e in found.values())
    beside = f", {below} below 0 ({sure_below} at 95 %)" if below else ""
    way, least = min(found.items(), key=lambda item: item[1].value)
    said = f"{above} of {len(found)} above 0 ({surely or 'none'} at 95 %){beside}"
    return f"{said}; smallest, in points: {way}, {words.points(least)}"
