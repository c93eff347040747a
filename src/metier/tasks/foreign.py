"""Families whose tasks come from other packages: how such tasks are found, split and named.

A task of another package is named by where its source is (`file.py:name` or `module:name`), by
how that was configured (JSON) and by its number there. From those three the family makes the
question again and grades an answer to it, so that a task of ours holds nothing but what JSON can.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from metier.base.errors import ConfigError, DataError
from metier.base.ids import content_hash
from metier.base.plugins import import_file
from metier.base.seeds import rng_for
from metier.records.types import Message, Task, VerifierSpec
from metier.tasks.protocol import Environment, NoEnvironment

__all__ = ["ForeignFamily", "Grade", "import_object", "in_share"]

# Of a hundred hashes of a question: no question is in two of the last three splits.
_SHARES = {"all": range(0, 100), "heldout": range(0, 20), "demo": range(20, 40), "train": range(40, 100)}


@dataclass(frozen=True, slots=True)
class Grade:
    """What one scorer or reward of the other package says of an answer."""

    value: float  # 1 is full success
    why: str = ""
    counts: bool = True  # for success


class ForeignFamily(ABC):
    """The tasks of one source in another package.

    Its splits are `all`, and `demo`, `train` and `heldout`, which have no question in common.
    """

    name: ClassVar[str]
    version = "1"
    options: ClassVar[tuple[str, str]]  # that name the source and its configuration
    kind: ClassVar[str]  # of Python object that the source is

    def __init__(self, source: str = "", config: Mapping[str, Any] | None = None) -> None:
        """`source` is `file.py:name` or `module:name`. Raises `ConfigError` where it does not fit."""
        self.where = (source, json.dumps(dict(config or {}), sort_keys=True))
        if source:
            self.count(*self.where)

    def configured(self, options: Mapping[str, Any]) -> Self:
        """The family of one source. Raises `ConfigError`."""
        source, config = self.options
        if not isinstance(options.get(source), str) or not options.keys() <= {source, config}:
            raise ConfigError(
                f"{self.name} has the options `{source}`, as file.py:{self.kind} or module:{self.kind}, and `{config}`"
            )
        return type(self)(options[source], options.get(config))

    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return tuple(_SHARES)

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """Up to `n` of the source's tasks, in an order that the seed shuffles. Raises `DataError`."""
        if not self.where[0]:
            source = f"{self.options[0]}: file.py:{self.kind}"
            raise DataError(f"{self.name} has no tasks of its own; name some: `options: {{{source}}}`")
        if split not in _SHARES:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(_SHARES)}")
        numbers = list(range(self.count(*self.where)))
        rng_for(seed, self.name, *self.where).shuffle(numbers)
        found: dict[str, Task] = {}
        for number in numbers:
            if len(found) == n:
                break
            messages = self.question(*self.where, number)
            if in_share(messages, split):
                task = self._task(number, messages, split)
                found.setdefault(task.id, task)
        return list(found.values())

    def _task(self, number: int, messages: tuple[Message, ...], split: str) -> Task:
        source, config = self.where
        return Task(
            family=self.name,
            kind=source.rpartition(":")[2],
            messages=messages,
            answer=self.answer(source, config, number),
            verifiers=(VerifierSpec(name=self.name, params={"source": source, "config": config, "number": number}),),
            split=split,
            source=source,
        )

    def environment(self, task: Task) -> Environment:
        """Nothing to act on."""
        return NoEnvironment()

    @abstractmethod
    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """See `TaskFamily.demonstrate`."""

    @staticmethod
    @abstractmethod
    def count(source: str, config: str) -> int:
        """How many tasks a source has, loaded and looked at. Raises `ConfigError` where it does not fit."""

    @staticmethod
    @abstractmethod
    def question(source: str, config: str, number: int) -> tuple[Message, ...]:
        """What the model is asked in a task. Raises `DataError` for what is no text."""

    @staticmethod
    def answer(source: str, config: str, number: int) -> Mapping[str, Any]:
        """What is known of the answer, hidden from the policy."""
        return {}

    @staticmethod
    @abstractmethod
    def grade(source: str, config: str, number: int, messages: Sequence[Message]) -> Mapping[str, Grade]:
        """What each scorer or reward says of a whole conversation. May raise whatever they do."""


def in_share(messages: Sequence[Message], split: str) -> bool:
    """Whether the question belongs to the split: its hash says so, whatever the order and number of questions."""
    return int(content_hash([m.to_openai() for m in messages], length=8), 16) % 100 in _SHARES[split]


def import_object(where: str, what: str) -> Any:
    """The object that `file.py:name` or `module:name` names. Raises `ConfigError`."""
    place, _, name = where.rpartition(":")
    try:
        if not place.endswith(".py"):
            return getattr(importlib.import_module(place), name)
        if not Path(place).is_file():
            raise OSError("no such file")
        return getattr(import_file(Path(place), what), name)
    except (OSError, ImportError, AttributeError) as error:
        raise ConfigError(f"there is no {what} {where!r}: {error}") from error
