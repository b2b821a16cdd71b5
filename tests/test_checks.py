"""Refusals: what passes, what does not, and whose error it is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfnlib.checks import is_number, is_whole, require
from rfnlib.specs import SpecError


@pytest.mark.parametrize("error", [ValueError, SpecError])
def test_what_does_not_hold_is_refused_with_the_callers_error_and_sentence(error):
    require(["something"], "unseen", error)
    with pytest.raises(error, match="^x is 3; give 4.$") as refused:
        require([], "x is 3; give 4.", error)
    assert type(refused.value) is error


def test_without_an_error_of_ones_own_it_is_a_value_error():
    with pytest.raises(ValueError, match="no"):
        require(False, "no")


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(), st.integers(-9, 9), st.integers(0, 9))
def test_a_number_is_finite_and_in_its_range_ends_included(value, low, width):
    assert is_number(value, low, low + width) == (low <= value <= low + width)
    assert is_whole(value, low, low + width) == (isinstance(value, int) and low <= value <= low + width)


@pytest.mark.parametrize("value", [True, None, "1", "1.0", [1], math.nan, math.inf, -math.inf, 1j])
def test_what_is_no_number_is_neither_a_number_nor_whole(value):
    assert not is_number(value) and not is_whole(value)
