"""Keys: equal for equal meanings, different for all else, and the same for ever."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from rfnlib.keys import canonical, key, stream
from rfnlib.specs import Cosine, Step

plain = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3))


@dataclass(frozen=True)
class Now:
    """As `Before`, with a field that was added later."""

    a: float
    b: int = 3


def test_these_keys_and_streams_never_change():
    assert key("train", 1, 2.5, [None, True]) == "af6eecf15c0f0631"
    assert stream(0, "order", 3) == 8483304753239185838
    assert canonical(Now(2.0)) == {"is": "Now", "a": 2}


def test_equal_meanings_have_equal_keys():
    assert key(2, [1.0, 3]) == key(2.0, (1, 3))
    assert key({"b": 1, "a": 2}) == key({"a": 2.0, "b": 1.0})


def test_different_values_have_different_keys():
    parts = [2, 2.5, "2", True, None, [2], [[2]], {"2": 2}, "", [], Step(), Cosine(), {"is": "x"}, Now(2), Now(2, 4)]
    assert len({key(p) for p in parts}) == len(parts)
    assert key(1, 2) != key([1, 2]) != key(2, 1)


def test_a_field_at_its_default_is_in_no_key_and_any_other_value_is():
    before = {"is": "Now", "a": 1}
    assert key(Now(1)) == key(Now(1.0, 3)) == key(before) != key(Now(1, 2))


@given(values)
def test_the_canonical_form_is_its_own(value):
    assert canonical(canonical(value)) == canonical(value)


@given(values, values)
def test_values_with_one_key_have_one_canonical_form(a, b):
    assert key(a) != key(b) or canonical(a) == canonical(b)


@given(st.integers(0, 2**31), st.lists(st.integers(0, 99) | st.text(max_size=3), max_size=3))
def test_streams_are_seeds_that_torch_takes_and_differ_by_every_name(seed, names):
    found = stream(seed, *names)
    assert 0 <= found < 2**63
    assert len({found, stream(seed + 1, *names), stream(seed, *names, "more")}) == 3
