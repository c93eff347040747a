"""What families have in common whose tasks come from other packages: how they are found, and how they are split."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metier.base.errors import ConfigError
from metier.base.ids import content_hash
from metier.records.types import Message

__all__ = ["SHARES", "import_object", "in_share"]

# Of a hundred hashes of a question: no question is in two of the last three splits.
SHARES = {"all": range(0, 100), "heldout": range(0, 20), "demo": range(20, 40), "train": range(40, 100)}


def in_share(messages: Sequence[Message], split: str) -> bool:
    """Whether the question belongs to the split: its hash says so, whatever the order and number of questions."""
    return int(content_hash([m.to_openai() for m in messages], length=8), 16) % 100 in SHARES[split]


def import_object(where: str, what: str) -> Any:
    """The object that `file.py:name` or `module:name` names. Raises `ConfigError`."""
    place, _, name = where.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place)
            spec = importlib.util.spec_from_file_location(f"metier_foreign_{path.stem}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # where classes look their annotations up
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, name)
    except (OSError, ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"there is no {what} {where!r}: {error}") from error
