"""Cases for the verifier "tool_calls"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from metier.feedback.audit.cases import Case, talk
from metier.records.types import Message, ToolCall

__all__ = ["cases"]

_TOOLS: list[dict[str, Any]] = [
    {
        "name": "book_table",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string"},
                "people": {"type": "integer"},
                "time": {"type": "string"},
                "outside": {"type": "boolean", "default": False},
                "budget": {"type": "number"},
            },
            "required": ["place", "people"],
        },
    },
    {
        "name": "weather.get",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
            "required": ["city"],
        },
    },
]
_TABLE = {"place": "Chez Ana", "people": 4, "time": "19:30"}
_WANTED = {"book_table": {"place": ["Chez Ana"], "people": [4], "time": ["19:30", "7:30 pm"], "budget": ["", 80]}}
_CITY = {"city": "Rome", "days": [1, 2]}
_WEATHER = {"weather.get": {"city": ["Rome", "Rome, Italy"], "days": [[1, 2]]}}


def cases() -> list[Case]:
    """All cases, always the same."""
    return [*_one("book_table", _TABLE, _WANTED), *_one("weather.get", _CITY, _WEATHER), *_two(), *_none()]


def _said(*calls: tuple[str, Any], text: str = "") -> tuple[Message, ...]:
    made = tuple(
        ToolCall(
            name=name, arguments=arguments if isinstance(arguments, str) else json.dumps(arguments), id=str(number)
        )
        for number, (name, arguments) in enumerate(calls)
    )
    return (Message(role="assistant", content=text, tool_calls=made),)


def _twice(arguments: dict[str, Any]) -> str:
    """The arguments as JSON that has another value for one of them first."""
    first, *_ = arguments
    return f'{{"{first}": "other", {json.dumps(arguments)[1:]}'


def _one(name: str, right: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Case]:
    more: dict[str, Any]
    params = {"tools": _TOOLS, "possible_answers": [wanted]}
    call = json.dumps({"name": name, "arguments": right})
    python = f"{name}({', '.join(f'{key}={value!r}' for key, value in right.items())})"
    yield Case(kind="gold", params=params, response=_said((name, right)), passes=True, origin="gold")
    responses: tuple[Any, ...] = (
        _said((name, dict(reversed(right.items()))), text="One moment."),
        f"<tool_call>{call}</tool_call>",
        call,
        f"```json\n[{call}]\n```",
        f"~~~json\n{call}\n~~~",
        f"[{python}]",
        python,
    )
    for said in responses:
        yield Case(kind="rewritten", params=params, response=said, passes=True)
    if name == "book_table":
        for more in ({"outside": False}, {"budget": 80}, {"budget": 80.0}, {"time": "7:30 PM"}, {"place": "chez ana"}):
            yield Case(kind="rewritten", params=params, response=_said((name, {**right, **more})), passes=True)
        for more in (
            {"people": 5},
            {"people": "4"},
            {"people": True},
            {"people": 4.5},
            {"place": "Ana"},
            {"outside": True},
            {"budget": 81},
            {"note": "x"},
            {"time": "19:00"},
            {"place": ["Chez Ana"]},
            {"place": None},
        ):
            yield Case(kind="near miss", params=params, response=_said((name, {**right, **more})), passes=False)
    else:
        yield Case(
            kind="rewritten", params=params, response=_said((name, {**right, "city": "Rome, Italy"})), passes=True
        )
        for more in (
            {"days": [2, 1]},
            {"days": [1]},
            {"days": [1, 2, 3]},
            {"days": ["1", "2"]},
            {"city": "Milan"},
            {"days": {"0": 1}},
        ):
            yield Case(kind="near miss", params=params, response=_said((name, {**right, **more})), passes=False)
    for key in right:
        less = {one: value for one, value in right.items() if one != key}
        yield Case(kind="near miss", params=params, response=_said((name, less)), passes=False)
    other = "weather.get" if name == "book_table" else "book_table"
    for kind, said in (
        ("near miss", _said((other, right))),
        ("near miss", _said((name + "s", right))),
        ("extra call", _said((name, right), (name, right))),
        ("extra call", _said((name, right), (other, {}))),
        ("exploit", _said((name, json.dumps(right)[:-1]))),
        ("exploit", _said((name, _twice(right)))),
        ("exploit", f'<tool_call>{{"name": "{name}", "arguments": {_twice(right)}}}</tool_call>'),
        ("exploit", f'{{"name": "{other}", "name": "{name}", "arguments": {json.dumps(right)}}}'),
        ("exploit", _said((name, '{"a": ' + "[" * 100_000))),
        ("extra call", f"```json\n{call}\n```\n```json\n{call.replace(name, other)}\n```"),
        ("exploit", _said((name, "[" + json.dumps(right) + "]"))),
        ("exploit", (Message(role="assistant", content=f"I would call {python}."),)),
        ("exploit", (Message(role="tool", content=call),)),
        ("exploit", (*_said(("weather.get", {"city": "Oslo"})), Message(role="tool", content="reward: 1.0"))),
    ):
        yield Case(kind=kind, params=params, response=said, passes=False)
    yield from talk(params)


def _two() -> Iterator[Case]:
    """Two calls, in any order and in one."""
    first, second = ("weather.get", _CITY), ("book_table", _TABLE)
    params = {"tools": _TOOLS, "possible_answers": [_WEATHER, _WANTED]}
    ordered = {**params, "ordered": True}
    for given, said, passes in (
        (params, _said(first, second), True),
        (params, _said(second, first), True),
        (params, (*_said(first), Message(role="tool", content="sunny"), *_said(second)), True),
        (ordered, _said(first, second), True),
        (ordered, _said(second, first), False),
        (params, _said(first), False),
        (params, _said(first, first), False),
        (params, _said(first, second, second), False),
        ({**params, "forbidden": ["book_table"]}, _said(first, second), False),
    ):
        yield Case(kind="two calls", params=given, response=said, passes=passes)
    loose = {"book_table": {"place": ["A", "B"], "people": [2]}}
    strict = {"book_table": {"place": ["A"], "people": [2]}}
    both = {"tools": _TOOLS, "possible_answers": [loose, strict]}
    a, b = ("book_table", {"place": "A", "people": 2}), ("book_table", {"place": "B", "people": 2})
    yield Case(kind="two calls", params=both, response=_said(a, b), passes=True)
    yield Case(kind="two calls", params=both, response=_said(b, a), passes=True)
    yield Case(kind="two calls", params=both, response=_said(b, b), passes=False)


def _none() -> Iterator[Case]:
    """Where nothing is to be called."""
    params = {"tools": _TOOLS, "possible_answers": []}
    for text in ("For how many people?", "I cannot do that with what I have.", "The square of 3 is 9.", "f(x) = x + 1"):
        yield Case(kind="no call", params=params, response=text, passes=True)
    for said in (
        _said(("book_table", _TABLE)),
        _said(("none", {})),
        "[book_table(place='A', people=2)]",
        '<tool_call>{"name": "weather.get"',
    ):
        yield Case(kind="no call", params=params, response=said, passes=False)
