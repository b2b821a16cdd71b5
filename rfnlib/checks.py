"""What a value is, and the refusal of one that is not what it must be: in one sentence that says the way out."""

from __future__ import annotations

import math
from typing import Any


def require(ok: Any, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless `ok`.

    Args:
        ok: anything with a truth value.
        message: one sentence that names the value, what is allowed, and the way out.
        error: the caller's own, so that it can be told from others.
    """
    if not ok:
        raise error(message)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite number (no bool) from `low` to `high`.

    >>> is_number(0.5, 0, 1), is_number(True), is_number("0.5"), is_number(math.nan)
    (True, False, False, False)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high


def is_whole(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is an integer (no bool) from `low` to `high`.

    >>> is_whole(3, 1), is_whole(3.0), is_whole(False)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
