"""How a record is laid out: what stays in its row, what can be erased, what lies elsewhere.

A record's *payload* is what it says: messages, tools, hidden answers, feedback values and
reasons, final states. It is kept apart from the row that says that the record exists, who
made it and from what, so that the first can be erased and the second cannot. After an
erasure a record reads back hollow: empty messages; on feedback the reason `[erased]` and,
where it had a value, an abstention.

Feedback and episodes, which come in millions, leave out of their body what columns hold and
what is a field's default.

Rows still hold ids, which for tasks are hashes of their content; whoever can guess the
whole content can recognise it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from pydantic_core import from_json

from metier.base.errors import DataError
from metier.base.ids import canonical_json
from metier.records import types
from metier.records.types import from_plain, to_plain

__all__ = ["ERASABLE", "ERASED", "Layout", "layout_of"]

ERASED = "[erased]"

R = TypeVar("R")


@dataclass(frozen=True)
class Layout(Generic[R]):
    """Where each field of one noun is kept; a field not named here is in the row's body."""

    noun: type[R]
    kind: str  # what erasures and dataset links call it
    payload: frozenset[str] = frozenset()  # erasable
    apart: frozenset[str] = frozenset()  # in link tables, marks or array files
    volatile: frozenset[str] = frozenset()  # may differ when the same record is written again
    columns: frozenset[str] = frozenset()  # in columns of the row alone
    names: tuple[str, ...] = ()  # all fields
    defaults: Mapping[str, Any] = field(default_factory=dict)  # a field that has its default is left out of the body

    def split(self, record: R) -> tuple[str, str | None]:
        """The JSON of the row's body, and of the payload where the noun has one."""
        body, payload, defaults = {}, {}, self.defaults
        for name in self._written:
            value = getattr(record, name)
            if name in defaults and type(value) is type(defaults[name]) and value == defaults[name]:
                continue
            if type(value) not in _PLAIN:
                value = to_plain(value)
            if name in self.payload:
                payload[name] = value
            else:
                body[name] = value
        return _dump(body, record), _dump(payload, record) if self.payload else None

    def join(self, body: str, payload: str | None, apart: Mapping[str, Any], *, erased: str | None = None) -> R:
        """The record again, with what lies in columns or apart; `erased` says why its payload is gone, where it is."""
        fields = {**apart, **_load(body)}
        if payload is not None:
            fields.update(_load(payload))
        elif self.payload:
            fields.update(_hollow(self.kind, fields, erased))
        return from_plain(self.noun, fields)

    def kept(self, record: R) -> R:
        """The record as it would read back if it were added: an int given for a float is one, logprobs are float32."""
        apart = {name: getattr(record, name) for name in (*self.apart, *self.columns)}
        if apart.get("sampler_logprobs"):
            apart["sampler_logprobs"] = array("f", apart["sampler_logprobs"]).tolist()
        return self.join(*self.split(record), apart)

    def fingerprint(self, record: R) -> str:
        """Text that is equal for two writings of the same record, whenever each was made."""
        fields: dict[str, Any] = {
            # what lies apart is a flat tuple, perhaps a long one: no need to look inside
            name: list(getattr(record, name)) if name in self.apart else to_plain(getattr(record, name))
            for name in self.names
            if name not in self.volatile
        }
        if isinstance(fields.get("cost"), dict):
            fields["cost"].pop("seconds", None)
        if type(fields.get("value")) is int and abs(fields["value"]) < 2**53:
            fields["value"] = float(fields["value"])  # a table of numbers does not tell 1 from 1.0
        return canonical_json(fields)

    @functools.cached_property
    def _written(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in self.apart and name not in self.columns)


_PLAIN = frozenset((str, float, int, bool, type(None)))  # are what `to_plain` would make of them


def layout_of(noun: type[R]) -> Layout[R]:
    """The layout of a noun."""
    return _LAYOUTS[noun]


_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def _dump(fields: dict[str, Any], record: object) -> str:
    try:
        return _ENCODE(fields)
    except (TypeError, ValueError) as error:
        name = getattr(record, "id", type(record).__name__)
        raise DataError(f"{name} holds a value that JSON cannot carry: {error}; use numbers, text, lists") from error


def _load(text: str) -> dict[str, Any]:
    """What `_dump` wrote, twice as fast as the standard library reads it."""
    try:
        return cast(dict[str, Any], from_json(text))
    except ValueError:
        return cast(dict[str, Any], json.loads(text))  # half of a surrogate pair, say, which is no text in Rust


def _hollow(kind: str, body: Mapping[str, Any], why: str | None) -> dict[str, Any]:
    """What stands in for an erased payload."""
    if kind == "task":
        return {"messages": [], "meta": {**body.get("meta", {}), "erased": why or ""}}
    if kind == "episode":
        return {"messages": [], "error": ERASED if body.get("error_boundary") else None}
    # A scored statement must say something; what it still says is that it will not.
    silent = {"abstention": {"why": ERASED}} if body.get("status") == "scored" else {}
    return {"value": None, "reason": ERASED, **silent}


def _layout(
    noun: type[R], kind: str, *, payload: str = "", apart: str = "", volatile: str = "created_at", columns: str = ""
) -> tuple[type[R], Layout[R]]:
    fields = dataclasses.fields(noun)  # type: ignore[arg-type]
    names = tuple(f.name for f in fields)
    parts = (frozenset(text.split()) for text in (payload, apart, volatile, columns))
    erasable, elsewhere, may_differ, held = parts
    defaults = _defaults(fields) if columns else {}
    return noun, Layout(noun, kind, erasable, elsewhere, may_differ, held, names, defaults)


def _defaults(fields: Iterable[dataclasses.Field[Any]]) -> dict[str, Any]:
    made = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    made.update({f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING})
    return made


_LAYOUTS: dict[type[Any], Layout[Any]] = dict(
    [
        _layout(types.Run, "run", volatile="created_at hardware folder"),
        _layout(
            types.Task,
            "task",
            payload="messages tools answer verifiers environment",
            volatile="source licence meta",  # how a task is described; what it asks is its id
        ),
        _layout(types.Suite, "suite"),
        _layout(types.Group, "group"),
        _layout(
            types.Episode,
            "episode",
            payload="messages final_state error meta",
            apart="token_ids sampler_logprobs loss_mask",
            columns="id run_id task_id stage split group_id created_at",
        ),
        _layout(
            types.Feedback,
            "feedback",
            payload="value abstention reason evidence",
            volatile="created_at observed_at",
            columns="id run_id criterion kind source status supersedes due_at created_at",
        ),
        _layout(
            types.DatasetManifest,
            "dataset",
            apart="feedback_ids episode_ids task_ids stale",
            volatile="created_at stale",
        ),
        _layout(types.Checkpoint, "checkpoint", apart="stale", volatile="created_at stale metrics"),
        _layout(types.Profile, "profile"),
        _layout(types.GateDecision, "gate"),
    ]
)

ERASABLE = tuple(layout for layout in _LAYOUTS.values() if layout.payload)
"""Layouts of the nouns that have something to erase."""
