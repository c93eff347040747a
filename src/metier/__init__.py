"""Post-training: feedback in, behaviour out, and proof that it holds.

What is offered here is imported when it is first asked for, so that `import metier`,
and with it every command of the command line, starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metier.base.errors import MetierError
    from metier.recipes.runner import RunResult, run
    from metier.recipes.settings import Recipe
    from metier.records.ledger import Ledger
    from metier.records.types import Checkpoint, Episode, Feedback, Message, Source, Task, VerifierSpec
    from metier.rollout.tools import tool

__all__ = [
    "Checkpoint",
    "Episode",
    "Feedback",
    "Ledger",
    "Message",
    "MetierError",
    "Recipe",
    "RunResult",
    "Source",
    "Task",
    "VerifierSpec",
    "run",
    "tool",
]

_HOMES = {
    "metier.base.errors": ("MetierError",),
    "metier.recipes.runner": ("RunResult", "run"),
    "metier.recipes.settings": ("Recipe",),
    "metier.records.ledger": ("Ledger",),
    "metier.records.types": ("Checkpoint", "Episode", "Feedback", "Message", "Source", "Task", "VerifierSpec"),
    "metier.rollout.tools": ("tool",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
