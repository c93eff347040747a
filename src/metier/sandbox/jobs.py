"""What all sandboxes do alike: the jobs that their children take, and what the children's words mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from metier.sandbox.protocol import Answer, Kind, Limits, Result

__all__ = ["Jobs", "answer", "job", "verdict"]


class Jobs(ABC):
    """A sandbox's calls and checks, both of which ask one child one thing after the other."""

    def calls(
        self,
        code: str,
        entry_point: str,
        arguments: Sequence[Sequence[Any]],
        limits: Limits | None = None,
        after: bool = False,
    ) -> Result:
        """See `Sandbox.calls`."""
        serve = {"do": "serve", "code": code, "entry_point": entry_point}
        more = {"after": "always"} if after else {}
        return self._ask(serve, [{"args": list(one), **more} for one in arguments], limits or Limits())

    def checks(self, checker: str, items: Sequence[Mapping[str, Any]], limits: Limits | None = None) -> Result:
        """See `Sandbox.checks`."""
        return self._ask({"do": "check", "checker": checker}, items, limits or Limits())

    @abstractmethod
    def _ask(self, what: Mapping[str, Any], items: Sequence[Mapping[str, Any]], limits: Limits) -> Result:
        """Give a child the job, and then the items; an answer for each."""


def job(what: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """A job as a child reads it, with its limits."""
    return {**what, "limits": {"seconds": limits.seconds, "memory": limits.memory_mb << 20}}


def answer(said: Mapping[str, Any]) -> Answer:
    """What a child said to a call or a check."""
    if "value" in said:
        return Answer(value=said["value"], after=said.get("after"))
    return Answer(raised=str(said.get("raised") or "it gave no answer")[:300])


def verdict(said: Mapping[str, Any]) -> tuple[Kind, str]:
    """What the tests said at their end, and why where they did not pass."""
    if "passed" in said:
        return ("ok", "") if said["calls"] else ("unavailable", "the tests call nothing")
    if "broken" in said:
        return "unavailable", str(said["broken"])
    words = str(said.get("failed", "the tests did not pass"))
    return ("wrong", words) if said.get("calls") else ("unavailable", f"the tests fail by themselves: {words}")
