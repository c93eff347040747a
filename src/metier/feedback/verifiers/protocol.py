"""What a verifier is: code that makes one verdict about one episode.

`score` is None exactly when `status` is "unscored": a failure of the machine is never a
zero. `parts` keeps every part's own verdict, so that a reward policy can give partial
credit and a reader can see why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from metier.records.types import Message, Task, ToolCall

__all__ = ["Attempt", "Described", "Verdict", "Verifier", "arguments_of", "last_words", "once", "unscored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What a verifier sees of an episode."""

    messages: tuple[Message, ...]  # the whole conversation, first messages of the task included
    final_state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier says."""

    score: float | None  # 0 to 1; 1 is full success
    status: Literal["scored", "unscored"] = "scored"
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)  # each 0 to 1


class Verifier(Protocol):
    """A registered check; `version` changes whenever its verdicts may."""

    name: str
    version: str

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """The verdict on one attempt. Must not raise for anything the policy wrote."""
        ...


class Described:
    """What a verifier may say of itself besides; those that ship do."""

    parameters: ClassVar[Mapping[str, str]] = {}  # what it reads of `params`, each with a line of words
    seconds: ClassVar[float | None] = None  # where set, it runs in a process of its own, ended after so long
    late_is_wrong: ClassVar[bool] = False  # whether only what the policy wrote can make it late

    def allowed(self, params: Mapping[str, Any]) -> float | None:
        """How many seconds a verdict with these parameters may take where `seconds` does not say; None: no one knows.

        What runs the verifier gives it at least so long. One that waits for deadlines of its own says their sum.
        """
        return None

    def prepare(self) -> None:
        """Import what takes long, before time counts."""


def unscored(reason: str) -> Verdict:
    """No verdict, and why."""
    return Verdict(score=None, status="unscored", reason=reason)


def last_words(attempt: Attempt, *, strip: bool = True) -> str:
    """The last assistant message without its thinking: what stands after the last `</think>`.

    Without white space at its ends, unless that counts. Empty where there is none, where the last
    message is another's, and where thinking never ends.
    """
    last = attempt.messages[-1] if attempt.messages else None
    if last is None or last.role != "assistant":
        return ""
    _, closed, said = last.content.rpartition("</think>")
    if not closed and last.content.lstrip().startswith("<think>"):
        return ""
    return said.strip() if strip else said


def arguments_of(call: ToolCall) -> dict[str, Any] | None:
    """A call's arguments; None where they are no JSON object, name one twice, or cannot be read for their depth."""
    try:
        value = json.loads(call.arguments, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; `ValueError` where it has one name twice, which readers take one way or the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has one name twice")
    return found
