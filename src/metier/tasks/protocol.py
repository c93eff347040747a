"""What a task family and an environment must offer.

A family makes unlimited tasks from a seed; an environment holds the state that one
episode acts on, runs its tool calls and speaks for the user. A call that the policy
got wrong (unknown tool, missing argument, no such record) is answered with an error in
the tool's result: that is the policy's fault. `EnvironmentFailure` is raised only when
the environment itself is broken, and makes the episode unscored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from metier.records.types import Message, Task, ToolCall

__all__ = ["Environment", "EnvironmentFailure", "NoEnvironment", "TaskFamily"]


class EnvironmentFailure(Exception):
    """The environment broke; never charged to the policy."""


class Environment(Protocol):
    """The state behind one episode."""

    def call(self, call: ToolCall) -> str:
        """Run one tool call and return the text that the policy reads."""
        ...

    def reply(self, text: str) -> str | None:
        """The user's answer to what the assistant said, or None when the user is done."""
        ...

    def state(self) -> Mapping[str, Any]:
        """The state now, as JSON-ready values; verifiers read it at the end."""
        ...

    def close(self) -> None:
        """Let go of what it holds. Nothing is called afterwards."""
        ...


class NoEnvironment:
    """No tools, and a user who says nothing more."""

    def call(self, call: ToolCall) -> str:
        """See `Environment.call`."""
        return '{"error": "there are no tools"}'

    def reply(self, text: str) -> str | None:
        """See `Environment.reply`."""
        return None

    def state(self) -> Mapping[str, Any]:
        """See `Environment.state`."""
        return {}

    def close(self) -> None:
        """See `Environment.close`."""


class TaskFamily(Protocol):
    """Makes tasks, their environments and their gold demonstrations.

    One that takes options has `configured(options)` too, which gives the family that they describe.
    """

    name: str
    version: str

    def splits(self) -> Sequence[str]:
        """The names of the splits that it can make."""
        ...

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """`n` different tasks of a split, or as many as there are; the same for the same arguments.

        Raises `DataError` where the split is unknown.
        """
        ...

    def environment(self, task: Task) -> Environment:
        """A fresh environment in the state where the task starts."""
        ...

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The whole conversation as the oracle would hold it, made in a real environment."""
        ...
