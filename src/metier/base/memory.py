"""Keep freed memory for the next step instead of handing it back to the system.

Training frees and takes the same large tensors again and again. glibc maps each of them
anew, and touching fresh pages then costs about a sixth of a training step on the CPU. But
what is kept for ever falls to pieces, because batches differ in size: now and then it has
to be handed back all the same. Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["hand_back_freed_memory", "keep_freed_memory", "resident_bytes"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGE = 1 << 30


def keep_freed_memory() -> bool:
    """Ask glibc to keep and reuse large blocks; returns whether it will."""
    mallopt = _glibc("mallopt")
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE - 1))


def hand_back_freed_memory() -> None:
    """Hand every free page back to the system, once; touching them again costs about a second for 3 GB.

    What only refers to itself, as a model and its trainer may, is free but for that, and is let go first.
    """
    gc.collect()
    _glibc("malloc_trim")(0)


def resident_bytes() -> int:
    """The memory that this process holds now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _glibc(name: str) -> Callable[..., int]:
    """A function of glibc, or one that does nothing and returns 0."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            found: Callable[..., int] = getattr(ctypes.CDLL("libc.so.6"), name)
            return found
    return lambda *_: 0
