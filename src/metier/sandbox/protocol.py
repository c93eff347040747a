"""What running a model's code means: what is asked, what it may use, how it can end.

Three things are asked of a sandbox. `calls` runs a function on arguments and brings back plain
values; `program` runs a whole program on standard input; `tests` runs asserts in a process of
their own, which reaches the function through calls with plain values alone. What an answer is
compared with stays outside of the process that runs it.

A machine's fault is `unavailable`, which is never a verdict on the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["CHECKER_BROKEN", "Answer", "Kind", "Limits", "Result", "Sandbox", "SandboxUnavailableError", "kind_of"]

CHECKER_BROKEN = "the checker does not run"  # how the words begin of a checker that is broken by itself
Kind = Literal["ok", "wrong", "timeout", "memory", "output", "disk", "crashed", "unavailable"]


class SandboxUnavailableError(Exception):
    """No sandbox holds on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sample may use, all its calls together."""

    seconds: float = 10.0
    memory_mb: int = 512  # of address space
    output_bytes: int = 1_000_000  # of what it prints; an answer to a call may have four times as many


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one call gave: a value as `metier.sandbox.plain` writes it, or why there is none."""

    value: Any = None
    after: Any = None  # of a call, where asked for: {"args", "named"} as it left them, or whatever it sent instead
    raised: str = ""  # the exception's name and words, or what kind of value cannot be brought out

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return bool(self.raised)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a sample ended."""

    kind: Kind
    answers: tuple[Answer, ...] = ()  # of `calls`: one for each that was answered, in order
    said: str = ""  # of `program`: standard output; else why it ended as it did
    seconds: float = 0.0


def kind_of(said: str) -> Kind:
    """What an exception's words tell, as `child.py` spells them."""
    if said.startswith("MemoryError"):
        return "memory"
    if said.startswith(("OSError[28]", "OSError[27]", "OSError[122]")):  # no space, too large, over quota
        return "disk"
    return "crashed"


class Sandbox(Protocol):
    """A place that holds. Safe to use from several threads at once."""

    name: str

    def calls(
        self,
        code: str,
        entry_point: str,
        arguments: Sequence[Sequence[Any]],
        limits: Limits | None = None,
        after: bool = False,
    ) -> Result:
        """Run `entry_point` of `code` on each list of arguments, in one process; `after` brings these back as well.

        `arguments` are written as `metier.sandbox.plain` does. "ok" where every call was answered, be it
        with an exception.
        """
        ...

    def program(self, code: str, stdin: str = "", limits: Limits | None = None) -> Result:
        """Run a whole program; "ok" where it ended with status 0."""
        ...

    def tests(
        self, code: str, entry_point: str, test: str, *, prompt: str = "", limits: Limits | None = None
    ) -> Result:
        """Run asserts against `entry_point` of `code`, from another process.

        `prompt` runs before the test, on the test's side, for the names that tests take from there. "ok"
        where the tests passed and called it, "wrong" where they did not pass; "unavailable" where the tests
        themselves are broken, or call nothing.
        """
        ...

    def checks(self, checker: str, items: Sequence[Mapping[str, Any]], limits: Limits | None = None) -> Result:
        """Run a task's own checker on values that have been brought out: `check(**item)` for each item.

        An answer for each item, whose value is true or false.
        """
        ...

    def close(self) -> None:
        """End all that it started."""
        ...
