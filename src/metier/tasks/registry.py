"""Task families by name: built-in ones by import path, others by `register` or entry point.

Another package offers a family through an entry point of the group
`metier.task_families` whose object is the family, or a class that makes it without
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metier.base.errors import ConfigError
from metier.base.registry import Registry
from metier.tasks.protocol import TaskFamily

__all__ = ["get_family", "names", "register"]

GROUP = "metier.task_families"
BUILT_IN = {
    "desk": "metier.tasks.desk.family:DeskFamily",
    "functions": "metier.tasks.functions:FunctionsFamily",
    "general": "metier.tasks.general:GeneralFamily",
    "inspect": "metier.tasks.inspect_tasks:InspectFamily",
    "reasoning_gym": "metier.tasks.reasoning_gym:ReasoningGymFamily",
    "verifiers": "metier.tasks.verifiers_tasks:VerifiersFamily",
}
_known: Registry[TaskFamily] = Registry("task family", GROUP, BUILT_IN)


def register(family: TaskFamily) -> TaskFamily:
    """Make a family known under its own name; a later one of the same name replaces it."""
    _known.registered[family.name] = family
    return family


def get_family(name: str, options: Mapping[str, Any] | None = None) -> TaskFamily:
    """The family of that name, as its options describe it.

    Raises `DataError` naming the nearest known one where there is none, and `ConfigError`
    for options that it does not take.
    """
    family = _known.find(name)
    if not options:
        return family
    configure: Callable[[Mapping[str, Any]], TaskFamily] | None = getattr(family, "configured", None)
    if configure is None:
        raise ConfigError(f"task family {name!r} takes no options")
    return configure(options)


def names() -> list[str]:
    """Every name that `get_family` knows, sorted."""
    return _known.names()
