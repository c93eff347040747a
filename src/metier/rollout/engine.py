"""What an engine is: something that continues conversations, token by token.

An engine is handed requests and calls back at the end of each assistant turn with the
exact tokens that it drew; the callback returns the tokens that come next (what a tool or
the user said), or None when the conversation is over. Nothing is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from metier.records.types import Sampling

__all__ = ["Drawn", "Engine", "OnTurn", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation to continue. The first `prefix` tokens are likely shared with others."""

    prompt: tuple[int, ...]
    prefix: int
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """One assistant turn as it was drawn, its end-of-turn token included."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # natural log, at the sampling temperature (1 where greedy), before truncation
    stop: Literal["stop", "length"]


OnTurn = Callable[[int, Drawn], "tuple[int, ...] | None"]


class Engine(Protocol):
    """Continues many conversations at once."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: frozenset[int], on_turn: OnTurn
    ) -> None:
        """Run every request until `on_turn(number of the request, turn)` returns None for it.

        The same requests give the same tokens on the same machine.
        """
        ...
