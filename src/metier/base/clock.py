"""Time, in one place, so that tests can hold it still.

Wall time is UTC seconds since 1970 and is only ever recorded, never used to decide
what a run computes.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["iso", "monotonic", "now"]


def now() -> float:
    """UTC seconds since 1970."""
    return time.time()


def monotonic() -> float:
    """Seconds on a clock that never goes back; for durations."""
    return time.monotonic()


def iso(seconds: float) -> str:
    """`2026-01-31T12:00:00Z` for UTC seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
