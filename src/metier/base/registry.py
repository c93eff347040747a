"""Things that have names: built-in ones by import path, others registered or offered by another package.

What is asked for first is imported then, so that listing names costs nothing. Left out: versions side by side; a name
means one thing in one process.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from metier.base.errors import DataError

__all__ = ["Registry", "offered"]

T = TypeVar("T")


class Registry(Generic[T]):
    """What is known of one kind, which `what` calls it; `group` is where other packages offer theirs."""

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        self.what, self.group, self.built_in = what, group, built_in
        self.registered: dict[str, T] = {}

    def find(self, name: str) -> T:
        """The thing of that name; a class is made without arguments, once.

        Raises `DataError` naming the nearest known one where there is none.
        """
        if name not in self.registered:
            made = self.load(name)
            self.registered[name] = made() if isinstance(made, type) else made
        return self.registered[name]

    def load(self, name: str) -> Any:
        """What stands behind that name, as it was registered, imported or offered. Raises as `find` does."""
        if name in self.registered:
            return self.registered[name]
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        for made in offered(self.group, name):
            return made
        known = self.names()
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise DataError(f"there is no {self.what} {name!r}; the nearest is {near[0]!r}, known are {', '.join(known)}")

    def names(self) -> list[str]:
        """Every name that `find` knows, sorted."""
        return sorted({*self.built_in, *self.registered, *(point.name for point in entry_points(group=self.group))})


def offered(group: str, name: str) -> Iterator[Any]:
    """What other packages offer under that name, loaded as it is taken."""
    return (point.load() for point in entry_points(group=group) if point.name == name)
