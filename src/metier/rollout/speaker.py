"""One engine for many callers: conversations are handed to a thread that steps a session.

A caller gets a *ticket* whose words arrive as they are drawn. Callers that give up, or have
heard enough (a stop string), cancel theirs and free its slot. When too many wait, a new one
is refused at once: a queue that only grows serves nobody.

Left out: several engines, priorities.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from metier.base.errors import MetierError
from metier.rollout.engine import Request, Word
from metier.rollout.torch_engine import TorchEngine

__all__ = ["BusyError", "Ending", "OnEvent", "Speaker", "Ticket"]

Ending = Literal["stop", "length", "cancelled", "failed"]
OnEvent = Callable[["Word | Ending"], None]  # called in the speaker's thread: words, and then one ending


class BusyError(MetierError):
    """Too many callers wait already."""


@dataclass(slots=True)
class Ticket:
    """A conversation in the speaker's hands."""

    number: int
    request: Request
    on_event: OnEvent
    cancelled: bool = False
    error: str = ""  # of a `failed` ending


@dataclass(slots=True)
class _Inbox:
    """What callers have asked for and the thread has not seen yet."""

    new: list[Ticket] = field(default_factory=list)
    cancelled: list[Ticket] = field(default_factory=list)
    closing: bool = False


class Speaker:
    """A thread that speaks for all callers. Use it as a context manager, or `close` it."""

    def __init__(self, engine: TorchEngine, *, max_waiting: int = 64) -> None:
        """`max_waiting` is how many may wait beside those that the engine has slots for."""
        self._engine = engine
        self._session = engine.session(self._spoke)
        self._most = engine.rows + max_waiting
        self._live: dict[int, Ticket] = {}
        self._count = 0
        self._inbox = _Inbox()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="metier-speaker", daemon=True)
        self._thread.start()

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def load(self) -> int:
        """Conversations under way or waiting."""
        return len(self._live)

    @property
    def most(self) -> int:
        """Conversations that it takes at once, at most."""
        return self._most

    def submit(self, asked: Sequence[tuple[Request, OnEvent]]) -> list[Ticket]:
        """Begin conversations of one turn, all or none. Raises `BusyError` where too many wait or it is closing."""
        with self._wake:
            if self._inbox.closing or not self._thread.is_alive():
                raise BusyError("the server is shutting down; ask another one")
            if len(self._live) + len(asked) > self._most:
                raise BusyError(
                    f"{len(self._live)} requests are under way and this server takes {self._most}; ask again later"
                )
            tickets = []
            for request, on_event in asked:
                self._count += 1
                tickets.append(Ticket(self._count, request, on_event))
            self._live.update({ticket.number: ticket for ticket in tickets})
            self._inbox.new += tickets
            self._wake.notify()
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """Let go of a conversation; its words end."""
        with self._wake:
            if ticket.number in self._live and not ticket.cancelled:
                ticket.cancelled = True
                self._inbox.cancelled.append(ticket)
                self._wake.notify()

    def close(self, timeout: float = 0.0) -> None:
        """Take nothing new, finish what is under way in so many seconds, and cancel the rest."""
        with self._wake:
            self._inbox.closing = True
            self._wake.notify()
        self._thread.join(timeout)
        with self._wake:
            self._inbox.cancelled += [ticket for ticket in self._live.values() if not ticket.cancelled]
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox.new or self._inbox.cancelled or self._session.speaking):
                    if self._inbox.closing:
                        return
                    self._wake.wait()
                inbox, self._inbox = self._inbox, _Inbox(closing=self._inbox.closing)
            try:
                self._turn(inbox)
            except Exception as error:  # the callers must hear of it, whatever it is
                self._fail(f"{type(error).__name__}: {error}")

    def _turn(self, inbox: _Inbox) -> None:
        for ticket in inbox.new:
            self._begin(ticket)
        for ticket in inbox.cancelled:
            self._end(ticket, "cancelled")
        for number, drawn in self._session.step():
            if number in self._live:
                self._end(self._live[number], drawn.stop)
            else:
                self._session.end(number)

    def _begin(self, ticket: Ticket) -> None:
        if ticket.number not in self._live:  # it has failed before it began
            return
        try:
            if len(self._live) == 1:  # nobody else is speaking
                self._engine.tidy()
                self._session = self._engine.session(self._spoke)
            self._session.add(ticket.number, ticket.request)
        except MetierError as error:
            ticket.error = str(error)
            self._end(ticket, "failed")

    def _spoke(self, number: int, word: Word) -> None:
        ticket = self._live.get(number)
        if ticket is not None and not ticket.cancelled:
            self._tell(ticket, word)

    def _end(self, ticket: Ticket, how: Ending) -> None:
        with self._wake:
            if self._live.pop(ticket.number, None) is None:
                return
        self._session.end(ticket.number)
        self._tell(ticket, how)

    def _tell(self, ticket: Ticket, event: Word | Ending) -> None:
        with contextlib.suppress(Exception):  # a caller that is gone is no reason to leave the others
            ticket.on_event(event)

    def _fail(self, why: str) -> None:
        for ticket in list(self._live.values()):
            ticket.error = why
            self._end(ticket, "failed")
        self._session = self._engine.session(self._spoke)
