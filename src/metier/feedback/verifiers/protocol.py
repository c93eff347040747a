"""What a verifier is: code that makes one verdict about one episode.

`score` is None exactly when `status` is "unscored": a failure of the machine is never a
zero. `parts` keeps every part's own verdict, so that a reward policy can give partial
credit and a reader can see why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from metier.records.types import Message, Task

__all__ = ["Attempt", "Verdict", "Verifier"]


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
