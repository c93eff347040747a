"""Seeds: every random choice hangs from one root seed by a path of names.

`derive_seed(7, "rollout", step, task_id, 3)` is the same number on every machine and
in every order of evaluation, so nothing depends on which worker drew first.
"""

from __future__ import annotations

import hashlib
import random

__all__ = ["derive_seed", "rng_for"]


def derive_seed(root: int, *path: str | int) -> int:
    """A 63-bit seed for the place that `path` names, under the root seed."""
    text = "\x1f".join([str(root), *(str(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng_for(root: int, *path: str | int) -> random.Random:
    """A `random.Random` of its own for the place that `path` names."""
    return random.Random(derive_seed(root, *path))
