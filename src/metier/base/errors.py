"""The errors that users meet.

Every error that a user can cause is a `MetierError` (a `ValueError`): its text says
what happened, why, and what to do instead, in one clear sentence or two. The command
line prints that text and exits with code 2, without a traceback. Our own bugs are
`assert`s and stay tracebacks.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "DiskFullError",
    "LedgerError",
    "MetierError",
    "ModelError",
    "RunLockedError",
]


class MetierError(ValueError):
    """Base of all errors that a user can cause and mend."""


class ConfigError(MetierError):
    """A recipe or setting is wrong: unknown key, wrong type, bad combination."""


class DataError(MetierError):
    """Tasks, splits, datasets or files cannot be used as they are."""


class ModelError(MetierError):
    """A model, tokenizer or chat template is missing or unusable."""


class LedgerError(MetierError):
    """The ledger cannot be opened, read or written as asked."""


class RunLockedError(MetierError):
    """A second process wants a run folder that another one is writing."""


class DiskFullError(MetierError):
    """The disk has no room left; what was written before is kept."""
