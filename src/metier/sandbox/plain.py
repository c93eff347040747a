"""Plain values as JSON, so that nothing with behaviour of its own leaves a sandbox.

    None, bool, str, float, list   as themselves; floats that JSON lacks as {"float": "nan"}
    int                            as itself, or {"int": "0x…"} where it is long
    tuple, set, frozenset, dict    {"tuple": […]}, {"set": […]}, {"frozenset": […]}, {"dict": [[key, value], …]}
    bytes, complex                 {"bytes": "…"} in hexadecimal, {"complex": [re, im]}
    deque, range                   {"deque": […]}, {"range": [start, stop, step]}
    iterators, where asked for     {"iterator": […]}: what is left in a generator, map, zip or dict's view

A value of a subclass is read by the methods of the plain type that it comes from: what it
overrides, `__eq__` before all, counts for nothing. Only what goes in or out of a function may be an iterator: it is
emptied where it was made, and its items are what counts. Two written values are compared as they are
written (`same`), without making sets or dicts of what a sandbox sent. Standard library only:
both sides import it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from itertools import islice
from typing import Any

__all__ = ["NotPlainError", "TooMuchError", "decode", "encode", "from_json", "listed", "same"]

_DEEPEST = 100
_MOST_ITEMS = 100_000  # of an iterator
_CONTAINERS: tuple[Any, ...] = (list, tuple, set, frozenset, deque)
_SEQUENCES = ("tuple", "deque", "range", "iterator")  # as good as a list, where JSON can say nothing else


class NotPlainError(Exception):
    """A value that is no plain one."""


class TooMuchError(NotPlainError):
    """A value that is too deep or too long."""


def encode(value: Any, depth: int = 0, *, iterators: bool = False) -> Any:
    """The value in JSON. Raises `NotPlainError`, naming its type.

    With `iterators` these are written as well, emptied, and what they raise is raised.
    """
    if depth > _DEEPEST:
        raise TooMuchError(f"a value nested deeper than {_DEEPEST}")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        whole = int.__add__(value, 0)
        return whole if -(2**63) < whole < 2**63 else {"int": hex(whole)}
    if isinstance(value, str):
        return str.__getitem__(value, slice(None))
    if isinstance(value, float):
        number = float.__add__(value, 0.0)
        return number if math.isfinite(number) else {"float": repr(number)}
    for kind in _CONTAINERS:
        if isinstance(value, kind):
            items = [encode(one, depth + 1, iterators=iterators) for one in kind.__iter__(value)]
            return items if kind is list else {kind.__name__: items}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(one, depth + 1, iterators=iterators) for one in pair] for pair in pairs]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, range):
        return {"range": [encode(value.start), encode(value.stop), encode(value.step)]}
    if iterators and isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
        drawn = list(islice(value, _MOST_ITEMS + 1))
        if len(drawn) > _MOST_ITEMS:
            raise TooMuchError(f"an iterator of more than {_MOST_ITEMS} items")
        return {"iterator": [encode(one, depth + 1, iterators=True) for one in drawn]}
    raise NotPlainError(f"a value of type {type(value).__name__}")


def listed(written: Any) -> Any:
    """A written value, an iterator as the list of its items: for whom it is to be looked at more than once."""
    kind, items = _items(written)
    return items if kind == "iterator" else written


def decode(written: Any) -> Any:
    """The value of what `encode` wrote. Raises `ValueError` or `TypeError` for anything else."""
    if isinstance(written, list):
        return [decode(one) for one in written]
    if not isinstance(written, dict):
        return written
    (kind, inner), *more = written.items()
    if more or kind not in _MAKERS:
        raise ValueError("not a written value")
    return _MAKERS[kind](inner)


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda inner: int(inner, 16),
    "float": float,
    "tuple": lambda inner: tuple(decode(one) for one in inner),
    "set": lambda inner: {decode(one) for one in inner},
    "frozenset": lambda inner: frozenset(decode(one) for one in inner),
    "dict": lambda inner: {decode(key): decode(one) for key, one in inner},
    "bytes": bytes.fromhex,
    "complex": lambda inner: complex(decode(inner[0]), decode(inner[1])),
    "deque": lambda inner: deque(decode(one) for one in inner),
    "range": lambda inner: range(*map(decode, inner)),
    "iterator": lambda inner: iter([decode(one) for one in inner]),
}


def from_json(value: Any) -> Any:
    """A value out of a JSON file, as `encode` would write it: its objects are dicts."""
    if isinstance(value, list):
        return [from_json(one) for one in value]
    if isinstance(value, dict):
        return {"dict": [[key, from_json(one)] for key, one in value.items()]}
    return encode(value)


def same(got: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether a written value is the expected one, itself written by `from_json` or `encode`.

    As Python's `==`, but that true is not 1 and that JSON's spelling is met half-way: where a list is
    expected, a tuple, a deque, a range and an iterator are as good with the same items in the same order, a set
    never is; a key of a dict is as good as its spelling. A float may be off by `tolerance`, relative or
    absolute. What is nested too deeply, or is no written value, is the same as nothing.
    """
    try:
        return _same(got, expected, tolerance)
    except NotPlainError:
        return False


def _same(got: Any, expected: Any, tolerance: float, depth: int = 0) -> bool:
    if depth > _DEEPEST + 2:
        return False
    if isinstance(got, bool) or isinstance(expected, bool) or got is None or expected is None:
        return got is expected
    if isinstance(got, str) or isinstance(expected, str):
        return isinstance(got, str) and isinstance(expected, str) and got == expected
    one, other = _number(got), _number(expected)
    if one is not None or other is not None:
        if one is None or other is None:
            return False
        if one == other or (one != one and other != other):
            return True
        return bool(tolerance) and _close(one, other, tolerance)
    (kind, items), (wanted, others) = _items(got), _items(expected)
    if wanted == "list" and kind in _SEQUENCES:
        kind = "list"
    if kind == "frozenset" and wanted == "set":
        kind = "set"
    if kind != wanted or kind is None or len(items) != len(others):
        return False
    if kind in ("list", "deque", *_SEQUENCES):
        return all(_same(a, b, tolerance, depth + 1) for a, b in zip(items, others, strict=True))
    if kind == "dict":
        have = {_spelling(pair[0]): pair[1] for pair in items if isinstance(pair, list) and len(pair) == 2}
        want = {_spelling(pair[0]): pair[1] for pair in others}
        return have.keys() == want.keys() and all(_same(have[key], want[key], tolerance, depth + 1) for key in want)
    if kind in ("set", "frozenset"):
        return sorted(map(_key, items)) == sorted(map(_key, others))
    return bool(items == others)


def _close(one: Any, other: Any, tolerance: float) -> bool:
    try:
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    except (OverflowError, TypeError):
        return False


def _number(written: Any) -> Any:
    """The number that a written value is, or None."""
    if isinstance(written, (int, float)):
        return written
    if isinstance(written, dict) and len(written) == 1:
        for kind in ("int", "float"):
            if isinstance(written.get(kind), str):
                try:
                    return _MAKERS[kind](written[kind])
                except ValueError:
                    return None
    return None


def _items(written: Any) -> tuple[str | None, list[Any]]:
    if isinstance(written, list):
        return "list", written
    if isinstance(written, dict) and len(written) == 1:
        ((kind, inner),) = written.items()
        if kind in ("bytes", "complex"):
            return kind, [inner]
        if kind == "range":
            return kind, _counted(inner)
        if isinstance(inner, list):
            return kind, inner
    return None, []


def _counted(inner: Any) -> list[Any]:
    """The numbers of a range, which may have been forged, and of any length."""
    try:
        found = _MAKERS["range"](inner)
        return [encode(one) for one in islice(found, _MOST_ITEMS)] if len(found) <= _MOST_ITEMS else [None]
    except (TypeError, ValueError, OverflowError, RecursionError):
        return [None]


def _key(written: Any, depth: int = 0) -> str:
    """A set's member as text, so that equal ones have equal texts and their hash cannot be chosen.

    Raises `NotPlainError` for what is nested too deeply.
    """
    if depth > _DEEPEST:
        raise NotPlainError("too deep")
    if isinstance(written, (bool, str)) or written is None:
        return json.dumps(written)
    number = _number(written)
    if number is not None:
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        return hex(number) if isinstance(number, int) and abs(number) >= 2**63 else str(number)
    kind, items = _items(written)
    inner = [_key(one, depth + 1) if isinstance(one, (str, list, dict)) else str(one) for one in items]
    return f"{kind}({','.join(sorted(inner) if kind in ('set', 'frozenset') else inner)})"


def _spelling(key: Any) -> str:
    """A dict's key as JSON would have it: a string."""
    return key if isinstance(key, str) else _key(key)
