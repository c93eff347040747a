"""Where a stage's parallel work runs: here now, on other machines later.

A stage hands over a pure function and its items; the executor returns the results in
the order of the items. Nothing in a result may depend on which worker computed it.
The torch engine and the training loop use all cores by themselves and are not sent
through here; verifiers, oracles and generators are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

__all__ = ["Executor", "LocalExecutor"]

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Maps a function over items, keeping their order."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`[function(item) for item in items]`, perhaps in parallel.

        Raises what the first item that failed, in their order, raised; nothing runs on after that.
        """
        ...


class LocalExecutor:
    """Threads of this process; one worker is the calling thread itself."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """See `Executor.map`."""
        if self.workers == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self.workers) as pool:  # waits for what has begun
            return list(pool.map(function, items))  # where one failed, those not yet begun are cancelled
