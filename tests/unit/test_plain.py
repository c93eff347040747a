"""Plain values: what leaves a sandbox, and when two of them are the same."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier.sandbox.plain import NotPlainError, decode, encode, from_json, same

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
HASHABLE = st.recursive(LEAVES, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_a_plain_value_comes_back_as_it_was(value: Any) -> None:
    written = encode(value)
    assert decode(written) == value and type(decode(written)) is type(value)
    assert same(written, encode(value))


@given(VALUES, VALUES)
def test_same_is_equal_for_values_without_bools_among_numbers(one: Any, other: Any) -> None:
    if same(encode(one), encode(other)):
        assert repr(one) == repr(other) or one == other or isinstance(other, (list, dict, set, float, int))


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __add__(self, other: object) -> Any:
        return 4

    def __int__(self) -> int:
        return 4

    def __index__(self) -> int:
        return 4


class Colour(IntEnum):
    RED = 1


def test_subclasses_are_read_by_what_they_are_made_of() -> None:
    pair = namedtuple("pair", "a b")
    assert decode(encode(Liar(7))) == 7
    assert decode(encode(Counter("aab"))) == {"a": 2, "b": 1}
    assert decode(encode(OrderedDict(a=1))) == {"a": 1} == decode(encode(defaultdict(int, a=1)))
    assert decode(encode(pair(1, 2))) == (1, 2)
    assert decode(encode([Colour.RED])) == [1]
    assert not same(encode(Liar(7)), 4)


def test_what_has_behaviour_is_not_plain() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value, said in (
        (object(), "object"),
        (len, "builtin"),
        ((x for x in ()), "generator"),
        (loop, "nested deeper"),
    ):
        with pytest.raises(NotPlainError, match=said):
            encode(value)


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "equal"),
    [
        (1, 1.0, 0, True),
        (1, True, 0, False),
        (True, 1, 0, False),
        (0, False, 0, False),
        (0, None, 0, False),
        ("1", 1, 0, False),
        (0.1 + 0.2, 0.3, 0, False),
        (0.1 + 0.2, 0.3, 1e-9, True),
        (float("nan"), float("nan"), 0, True),
        (math.inf, math.inf, 0, True),
        (math.inf, -math.inf, 0.1, False),
        (10**400, 1e308, 0.1, False),
        ((1, 2), [1, 2], 0, True),
        ([1, 2], (1, 2), 0, False),
        ([1, 2], [2, 1], 0, False),
        ({1: "a"}, {"1": "a"}, 0, True),
        ({True: 1}, {"true": 1}, 0, True),
        ({"a": 1}, {"a": 1, "b": 2}, 0, False),
        ({1, 2}, {2, 1}, 0, True),
        ({1, 2.0}, {2, 1}, 0, True),
        ({"1"}, {1}, 0, False),
        ({1, 2}, [1, 2], 0, False),
        (frozenset({1}), {1}, 0, True),
        (b"a", "a", 0, False),
        (1j, 1j, 0, True),
        ([], {}, 0, False),
        ("", [], 0, False),
    ],
)
def test_when_values_are_the_same(got: Any, expected: Any, tolerance: float, equal: bool) -> None:
    assert same(encode(got), encode(expected), tolerance) is equal


def test_out_of_json_objects_are_dicts() -> None:
    assert decode(from_json({"set": [1, {"tuple": 2}]})) == {"set": [1, {"tuple": 2}]}
    assert same(encode({"set": [1]}), from_json({"set": [1]}))
    assert not same({"set": [1]}, from_json({"set": [1]}))  # which a sandbox wrote as a set


@pytest.mark.parametrize(
    "sent",
    [{}, {"a": 1, "b": 2}, {"int": 3}, {"int": "x"}, {"dict": [[1]]}, {"dict": 5}, {"set": [[1]]}, {"nothing": []}],
)
def test_what_no_child_of_ours_writes_is_the_same_as_nothing(sent: Any) -> None:
    for expected in (1, "a", [1], {"a": 1}, None, {1}):
        assert not same(sent, encode(expected))
        assert not same([sent], encode([expected]))
