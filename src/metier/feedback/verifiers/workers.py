"""Verdicts by name, with a deadline: what may hang runs in a process of its own.

A verifier that has `seconds` is asked in a worker process, a few of which are kept. One that is late is
killed, whatever it holds, and asked once more on a new worker; so is one whose worker died. What is
late twice has no verdict, unless only the response can be what holds it up (`late_is_wrong`), which
is then wrong. How long a verdict may take is known in one place, `longest`: of a verifier that waits for others,
it is the sum of theirs. Any number of threads may ask at once. Nothing a verifier raises gets out of here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from metier.base.errors import DataError
from metier.base.plugins import import_file, imported_files
from metier.feedback.verifiers.protocol import Attempt, Verdict, Verifier, unscored
from metier.feedback.verifiers.registry import get_verifier
from metier.records.types import Task

__all__ = ["Workers", "judge", "longest", "main"]

_START = 120.0  # seconds for a worker to be there and to import what a verifier needs
_UNTIMED = 60.0  # seconds for a verifier that says nothing of its own


def judge(name: str, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    """What the verifier of that name says of an attempt.

    Raises `DataError` where there is none; whatever else goes wrong makes the verdict unscored.
    """
    verifier = get_verifier(name)
    if _seconds(verifier) is None:
        return _verify(verifier, task, attempt, params)
    return _shared(os.getpid()).judge(name, task, attempt, params)


def _seconds(verifier: Verifier) -> float | None:
    """The deadline of a verifier; a plain class with name, version and verify has none."""
    return getattr(verifier, "seconds", None)


def longest(name: str, params: Mapping[str, Any]) -> float:
    """Seconds within which a verdict is there at the latest, tries and starts of workers included.

    Raises `DataError` where there is no verifier of that name.
    """
    verifier = get_verifier(name)
    own = _seconds(verifier)
    if own is not None:
        return 2 * (own + _START)
    allowed: float | None = getattr(verifier, "allowed", lambda _: None)(params)
    return _UNTIMED if allowed is None else allowed


def _verify(verifier: Verifier, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    try:
        verdict = verifier.verify(task, attempt, params)
        if verdict.score is not None and not 0 <= verdict.score <= 1:
            return unscored(f"the score {verdict.score} is not between 0 and 1")
        return verdict
    except Exception as error:  # a verifier's own bug must not cost the policy
        return unscored(f"verifier failed: {type(error).__name__}: {error}")


def _allowed(name: str, params: Mapping[str, Any]) -> float:
    """As `longest`, whatever the parameters are: those that cannot be read make no verdict, which takes no time."""
    try:
        return longest(name, params)
    except Exception:  # parts that are none, or verifiers that nobody knows: the verifier itself says so
        return 0.0


class _Late(Exception):
    """No answer in time."""


class _Worker:
    """One process that verifies, one attempt after the other."""

    def __init__(self) -> None:
        self._mine, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from metier.feedback.verifiers.workers import main; main({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._knows: set[str] = set()
        try:
            self._ask(imported_files(), _START)
        except BaseException:
            self.end()
            raise

    def verify(self, name: str, seconds: float, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        if name not in self._knows:
            self._ask(name, _START)
            self._knows.add(name)
        verdict: Verdict = self._ask((name, seconds, task, attempt, params), seconds)
        return verdict

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._mine.close()

    def _ask(self, what: Any, seconds: float) -> Any:
        """Raises `_Late`, or `EOFError` or `OSError` where the worker is gone."""
        self._mine.send(what)
        if not self._mine.poll(seconds):
            raise _Late
        return self._mine.recv()


class Workers:
    """At most so many processes that verify; started when they are needed."""

    def __init__(self, most: int | None = None) -> None:
        self._room = threading.BoundedSemaphore(most or os.cpu_count() or 1)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()

    def judge(
        self,
        name: str,
        task: Task,
        attempt: Attempt,
        params: Mapping[str, Any],
        *,
        untimed: float = _UNTIMED,
    ) -> Verdict:
        """The verdict, in at most two tries; a verifier without a deadline has what it may take, or `untimed` seconds.

        Raises `DataError` where there is no verifier of that name.
        """
        verifier, why = get_verifier(name), ""
        own = _seconds(verifier)
        seconds = max(untimed, _allowed(name, params)) if own is None else own
        with self._room:
            for _ in range(2):
                worker = None
                try:
                    worker = self._take()
                    verdict = worker.verify(name, seconds, task, attempt, params)
                except _Late:
                    why = f"it could not be judged within {seconds:g} s"
                except (EOFError, OSError) as error:
                    why = f"the process that judged it ended: {type(error).__name__}"
                else:
                    with self._lock:
                        self._idle.append(worker)
                    return verdict
                self._drop(worker)
        if getattr(verifier, "late_is_wrong", False) and why.startswith("it could"):
            return Verdict(score=0.0, reason=why)
        return unscored(why)

    def close(self) -> None:
        """End them all."""
        with self._lock:
            workers, self._all = list(self._all), set()
            self._idle.clear()
        for worker in workers:
            worker.end()

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = _Worker()
        with self._lock:
            self._all.add(worker)
        return worker

    def _drop(self, worker: _Worker | None) -> None:
        if worker is not None:
            with self._lock:
                self._all.discard(worker)
            worker.end()


@functools.cache
def _shared(pid: int) -> Workers:
    """This process's workers; a process that was forked has its own."""
    workers = Workers()
    atexit.register(workers.close)
    return workers


def main(number: int) -> None:
    """Be a worker on the pipe of that number until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(number)
    with contextlib.suppress(EOFError, OSError):
        for path, what in pipe.recv():
            import_file(path, what)
        pipe.send(None)
        while True:
            asked = pipe.recv()
            if isinstance(asked, str):
                with contextlib.suppress(Exception):  # it will say so when it verifies
                    getattr(get_verifier(asked), "prepare", lambda: None)()
                pipe.send(None)
                continue
            name, seconds, task, attempt, params = asked
            signal.alarm(int(seconds) + 5)  # where nobody is left to kill it
            try:
                verdict = _verify(get_verifier(name), task, attempt, params)
            except DataError as error:
                verdict = unscored(f"{error} (a verifier with a deadline comes from a package or a plugin's file)")
            signal.alarm(0)
            pipe.send(verdict)
