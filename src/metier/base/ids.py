"""Identity: content hashes and ids that do not depend on time or machine.

An id made here is a pure function of its parts, so that a step that is done again
after a crash writes the same rows under the same ids, and the ledger keeps one copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["canonical_json", "content_hash", "derive_id"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def content_hash(value: Any, *, length: int = 32) -> str:
    """The first `length` hex digits of the SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def derive_id(prefix: str, *parts: str | int) -> str:
    """A readable id, `prefix-<20 hex digits>`, that is the same for the same parts."""
    return f"{prefix}-{content_hash([prefix, *parts], length=20)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"cannot hash a {type(value).__name__}")
