"""What an engine is: something that continues conversations, token by token.

A *session* is a set of conversations under way. `add` begins one; `step` draws on for all
that speak and returns the turns that ended, with the exact tokens that were drawn; then
`reply` says what comes next in a conversation (what a tool or the user said), at once or
steps later; `end` lets go of it. While a conversation waits for its tool the others go
on. Nothing is ever tokenised again.

`converse` is the loop over a session for those who answer every turn at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from metier.records.types import Sampling

__all__ = ["Drawn", "Engine", "OnTurn", "OnWord", "Request", "Session", "Word", "converse"]


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation to continue. The first `prefix` tokens are likely shared with others."""

    prompt: tuple[int, ...]
    prefix: int
    seed: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()  # a turn ends with one of these
    others: int = 0  # likeliest tokens to tell with each word


@dataclass(frozen=True, slots=True)
class Drawn:
    """One assistant turn as it was drawn, its end-of-turn token included."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # natural log, at the sampling temperature (1 where greedy), before truncation
    stop: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Word:
    """One token of a turn, as it is drawn."""

    token: int
    logprob: float  # as in `Drawn`
    others: tuple[tuple[int, float], ...] = ()  # the likeliest tokens with theirs, as many as the request asks for


OnWord = Callable[[int, Word], None]


class Session(Protocol):
    """Conversations under way. The same ones, answered at the same steps, give the same tokens on one machine."""

    def add(self, number: int, request: Request) -> None:
        """Begin a conversation under a number of its own."""
        ...

    def step(self) -> list[tuple[int, Drawn]]:
        """Draw on for all that speak; the turns that have ended. Returns at once where nobody can speak."""
        ...

    def reply(self, number: int, token_ids: tuple[int, ...]) -> None:
        """What comes next in a conversation whose turn has ended."""
        ...

    def end(self, number: int) -> None:
        """Let go of a conversation, whatever it is doing."""
        ...

    @property
    def speaking(self) -> bool:
        """Whether `step` has something to draw."""
        ...


class Engine(Protocol):
    """Holds many conversations at once."""

    context: int  # tokens that a conversation may have

    def session(self, on_word: OnWord | None = None) -> Session:
        """A new set of conversations, one set at a time; `on_word` is told of every token as it is drawn."""
        ...


OnTurn = Callable[[int, Drawn], "tuple[int, ...] | None"]


def converse(engine: Engine, requests: Sequence[Request], on_turn: OnTurn) -> None:
    """Run every request until `on_turn(its number, turn)` returns None instead of what comes next."""
    session = engine.session()
    for number, request in enumerate(requests):
        session.add(number, request)
    while session.speaking:
        for number, drawn in session.step():
            said = on_turn(number, drawn)
            if said is None:
                session.end(number)
            else:
                session.reply(number, said)
