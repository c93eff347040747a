"""Task families by name: built-in ones by import path, others by `register` or entry point.

A family is imported when it is first asked for, so that listing names costs nothing.
Another package offers a family through an entry point of the group
`metier.task_families` whose object is the family, or a class that makes it without
arguments. Left out: versions side by side; a name means one family in one process.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from metier.base.errors import ConfigError, DataError
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
_registered: dict[str, TaskFamily] = {}


def register(family: TaskFamily) -> TaskFamily:
    """Make a family known under its own name; a later one of the same name replaces it."""
    _registered[family.name] = family
    return family


def get_family(name: str, options: Mapping[str, Any] | None = None) -> TaskFamily:
    """The family of that name, as its options describe it.

    Raises `DataError` naming the nearest known one where there is none, and `ConfigError`
    for options that it does not take.
    """
    family = _get_family(name)
    if not options:
        return family
    configure: Callable[[Mapping[str, Any]], TaskFamily] | None = getattr(family, "configured", None)
    if configure is None:
        raise ConfigError(f"task family {name!r} takes no options")
    return configure(options)


def _get_family(name: str) -> TaskFamily:
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        made = getattr(importlib.import_module(module), attribute)
    else:
        for point in entry_points(group=GROUP):
            if point.name == name:
                made = point.load()
                break
        else:
            near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
            raise DataError(
                f"there is no task family {name!r}; the nearest is {near[0]!r}, known are {', '.join(names())}"
            )
    family: TaskFamily = made() if isinstance(made, type) else made
    _registered[name] = family
    return family


def names() -> list[str]:
    """Every name that `get_family` knows, sorted."""
    return sorted({*BUILT_IN, *_registered, *(point.name for point in entry_points(group=GROUP))})
