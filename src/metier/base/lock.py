"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metier.base.errors import RunLockedError

__all__ = ["only_one"]


@contextmanager
def only_one(folder: Path, remedy: str) -> Iterator[None]:
    """Hold the folder's lock. Raises `RunLockedError`, which ends with `remedy`, where another process holds it."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(f"another process is working in {folder}; wait for it, or {remedy}") from None
        yield
