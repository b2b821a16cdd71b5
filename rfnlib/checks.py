"""What a value is, for those who refuse others. Each module raises an error of its own, with its own way out."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite number (no bool) from `low` to `high`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high


def is_whole(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is an integer (no bool) from `low` to `high`."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
