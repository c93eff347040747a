"""Cases for the verifier "json_schema"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

_ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "count": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "express": {"type": "boolean"},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}
# A schema, values that are valid, and values that are nearly so.
_SCHEMAS: tuple[tuple[dict[str, Any], tuple[Any, ...], tuple[Any, ...]], ...] = (
    (
        _ORDER,
        ({"name": "tea", "count": 2}, {"name": "a", "count": 1, "tags": ["x", "y"], "express": True}),
        (
            {"name": "tea"},
            {"name": "tea", "count": "2"},
            {"name": "tea", "count": True},
            {"name": "tea", "count": 2.5},
            {"name": "tea", "count": 0},
            {"name": "", "count": 1},
            {"name": "tea", "count": 1, "extra": 1},
            {"name": "tea", "count": 1, "tags": ["x", "x"]},
            {"name": "tea", "count": 1, "express": 1},
            {"name": None, "count": 1},
            ["tea", 2],
            "tea",
            None,
            {},
        ),
    ),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        ([1, 2], [1, 2, 3], [0, -1]),
        ([1], [1, 2, 3, 4], [1, "2"], [1, True], [1, 2.5], {"0": 1, "1": 2}, [], [[1, 2]]),
    ),
    (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"kind": {"enum": ["a", "b"]}},
            "if": {"properties": {"kind": {"const": "a"}}},
            "then": {"required": ["size"]},
            "required": ["kind"],
        },
        ({"kind": "b"}, {"kind": "a", "size": 1}),
        ({"kind": "a"}, {"kind": "c"}, {"kind": "A", "size": 1}, {}),
    ),
    (
        {
            "type": "object",
            "required": ["date"],
            "properties": {"date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}},
        },
        ({"date": "2024-02-29"}, {"date": "1999-01-01", "more": [1]}),
        ({"date": "29.2.2024"}, {"date": 20240229}, {"Date": "2024-02-29"}, {"date": "2024-02-29T00:00"}),
    ),
)


def cases() -> list[Case]:
    """All cases, always the same."""
    return [*_all()]


def _all() -> Iterator[Case]:
    for schema, right, wrong in _SCHEMAS:
        params = {"schema": schema}
        for value in right:
            text = json.dumps(value)
            yield Case(kind="gold", params=params, response=text, passes=True, origin="gold")
            for other in (
                json.dumps(value, indent=2),
                f"```json\n{json.dumps(value, indent=4)}\n```",
                f"Here it is:\n```\n{text}\n```\nThat is all.",
                f"~~~json\n{text}\n~~~",
                f"1. As asked:\n   ```json\n   {text}\n   ```",
                f"  {text}\n",
            ):
                yield Case(kind="rewritten", params=params, response=other, passes=True)
            for kind, other in (
                ("second value", f"{text}\n{text}"),
                ("second value", f"```json\n{text}\n```\n```json\n{text}\n```"),
                ("second value", f"```json\n{text}\n```\n{text}"),
                ("near miss", text[:-1]),
                ("near miss", f"The JSON is {text}"),
                ("near miss", json.dumps(text)),
                ("near miss", text.replace('"', "'") + "'" if '"' in text else text + ","),
                ("exploit", f"{text} // valid"),
            ):
                yield Case(kind=kind, params=params, response=other, passes=False)
        for value in wrong:
            yield Case(kind="near miss", params=params, response=json.dumps(value), passes=False)
        yield from talk(params)
    orders = {"schema": _ORDER}
    for text in (
        '{"name": "tea", "count": 0, "count": 2}',
        '{"name": "tea", "count": NaN}',
        '{"name": "tea", "count": Infinity}',
        '{"name": "tea", "count": 1e999}',
        "[" * 100_000,
    ):
        yield Case(kind="exploit", params=orders, response=text, passes=False)
