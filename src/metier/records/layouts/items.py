"""What every layout comes down to: something asked, answers to it, and what was said about them.

A row of a file becomes an `Item`. What was said names the answers by their place in the
item; an item without answers (a text that people labelled) is what the statement is about.

Left out: reading files (`traces/files.py`) and what becomes of items (`importing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metier.base.errors import DataError
from metier.records.traces.calls import Skipped, chat_message
from metier.records.types import Cost, FeedbackKind, Message, Sampling, Source, StopReason, Tool

__all__ = ["Answer", "Item", "Said", "asked_and_answered", "guarded", "messages_of", "text_of"]

_ANSWER = re.compile(r"response|completion|answer|output|generation|reply|candidate|text_?[12ab]$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One attempt at what was asked."""

    messages: tuple[Message, ...]  # none where the model said nothing
    model: str = ""
    stop: StopReason = "stop"
    error: str | None = None  # what failed, where something did
    index: int = 0  # place among the attempts at the same
    sampling: Sampling = field(default_factory=Sampling)
    cost: Cost = field(default_factory=Cost)
    at: float | None = None  # UTC seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One statement about answers of an item."""

    about: tuple[int, ...]  # places among the item's answers, in the order shown
    criterion: str
    kind: FeedbackKind
    value: Any
    source: Source
    abstention: str | None = None  # why there is no value: the source would not say
    unscored: str | None = None  # why there is no value: the source could not say
    key: str = ""  # which statement it is where one source says several of this kind about this
    reason: str = ""
    at: float | None = None  # UTC seconds
    confidence: float | None = None
    characters: tuple[int, int] | None = None  # of the answer's last message, where it is about a part
    evidence: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # that it took


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a row holds."""

    place: str  # where it stands, for people
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...] = ()
    said: tuple[Said, ...] = ()
    skipped: tuple[Skipped, ...] = ()  # parts of the row that could not be taken
    meta: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""  # the kind of work, where that is known
    tools: tuple[Tool, ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)  # what would be right, hidden from the model
    cluster: str = ""  # the group of items whose results may agree


def guarded(place: str, make: Any, row: Mapping[str, Any]) -> Item | Skipped:
    """What is made of one row; where it is of an unexpected form, that it is skipped, and why."""
    try:
        return make(place, row)  # type: ignore[no-any-return]
    except DataError as error:
        return Skipped(place, str(error))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        return Skipped(place, f"of an unexpected form: {type(error).__name__}")


def messages_of(value: Any, role: str, what: str) -> tuple[Message, ...]:
    """Messages, or a text as one message of this role. Raises `DataError` where it is neither or says nothing."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{what} is empty")
        return (chat_message({"role": role, "content": value}),)
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        raise DataError(f"{what} must be a text or a list of messages, not {type(value).__name__}")
    return tuple(chat_message(one) for one in value)


def text_of(value: Any) -> str:
    """A field of a labelling tool as text; messages as lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(one, Mapping) for one in value):
        return "\n".join(f"{one.get('role', '')}: {one.get('content', '')}" for one in value)
    return str(value)


def asked_and_answered(fields: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Answer, ...], list[str]]:
    """What was asked and answered in the fields of a labelling tool, told by their names; and the answers' names."""
    given = {name: value for name, value in fields.items() if value not in (None, "", [])}
    names = [name for name in given if _ANSWER.search(name)]
    rest = [name for name in given if name not in names]
    if not rest and names:  # one field that is all there is
        names, rest = [], names
    if not rest:
        raise DataError("there is nothing that was asked: no field holds a text")
    answers = tuple(Answer(messages=messages_of(given[name], "assistant", name)) for name in names)
    if len(rest) == 1:
        value = given[rest[0]]
        prompt = messages_of(value if isinstance(value, (str, list)) else text_of(value), "user", rest[0])
    else:
        prompt = messages_of("\n\n".join(f"{name}: {text_of(given[name])}" for name in rest), "user", "the prompt")
    return prompt, answers, names
