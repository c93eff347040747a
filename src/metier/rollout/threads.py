"""Threads for work that waits on something, and may never come back.

A job that takes too long is given up: its thread is left behind (it cannot be stopped), and
another one takes its place, so that work that hangs holds up nothing but itself. Threads do
not keep the process from ending.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from metier.base.clock import monotonic

__all__ = ["LateError", "Workers"]

T = TypeVar("T")


class LateError(Exception):
    """A job took longer than it may."""


class Workers(Generic[T]):
    """Runs jobs, `most` at once, for `seconds` each; the caller takes results when it likes."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._waiting: deque[tuple[int, Callable[[threading.Event], T]]] = deque()
        self._running: dict[int, tuple[float, threading.Event]] = {}  # until when, and what tells it that it was left
        self._done: queue.SimpleQueue[tuple[int, threading.Event, T | Exception]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether there are results to come."""
        return bool(self._waiting or self._running)

    def submit(self, number: int, job: Callable[[threading.Event], T]) -> None:
        """Run `job` as soon as there is a thread for it; it is handed what is set once nobody waits for it any more."""
        self._waiting.append((number, job))
        self._start()

    def take(self, *, wait: bool) -> list[tuple[int, T | Exception]]:
        """Results that are there, in the order of their numbers; with `wait`, at least one where any is to come.

        A job that raised gives its exception, one that took too long a `LateError`.
        """
        found = self._drain()
        while wait and not found and self.busy:
            self._start()
            first = min(until for until, _ in self._running.values())
            with contextlib.suppress(queue.Empty):
                found = self._kept(self._done.get(timeout=max(0.0, first - monotonic())))
            found += self._drain()
        self._start()
        return sorted(found, key=lambda pair: pair[0])

    def _drain(self) -> list[tuple[int, T | Exception]]:
        found = []
        while not self._done.empty():
            found += self._kept(self._done.get_nowait())
        for number, (until, left) in list(self._running.items()):
            if until <= monotonic():
                left.set()
                del self._running[number]
                found.append((number, LateError(f"a tool took longer than {self._seconds:g} s")))
        return found

    def _kept(self, result: tuple[int, threading.Event, T | Exception]) -> list[tuple[int, T | Exception]]:
        number, left, value = result
        if left.is_set():  # it was given up, and has come after all
            return []
        del self._running[number]
        return [(number, value)]

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._most:
            number, job = self._waiting.popleft()
            left = threading.Event()
            self._running[number] = (monotonic() + self._seconds, left)
            threading.Thread(target=self._work, args=(number, job, left), name="metier-tool", daemon=True).start()

    def _work(self, number: int, job: Callable[[threading.Event], T], left: threading.Event) -> None:
        try:
            value: T | Exception = job(left)
        except Exception as error:
            value = error
        self._done.put((number, left, value))
