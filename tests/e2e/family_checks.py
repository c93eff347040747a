"""What the tests of families out of other packages share; run by those packages' own Pythons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from metier.base.errors import ConfigError
from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import get_verifier
from metier.records.types import Message, Task

Family = Callable[..., Any]  # of the name of a source and its configuration


def verdict(task: Task, said: str) -> Verdict:
    """What the task's own verifier says of an answer."""
    (spec,) = task.verifiers
    attempt = Attempt(messages=(*task.messages, Message(role="assistant", content=said)))
    return get_verifier(spec.name).verify(task, attempt, spec.params)


def check_splits(family: Family, source: str) -> None:
    """A source of 40 tasks, or of `n`: splits have no task in common; what asks otherwise is unscored."""
    made = family(source).tasks("all", 100, 1)
    assert len(made) == 40
    assert verdict(replace(made[0], messages=made[0].messages[1:]), "14").status == "unscored"
    parts = [{t.id for t in family(source).tasks(split, 100, 1)} for split in ("train", "heldout", "demo")]
    assert sum(map(len, parts)) == 40 and len(set.union(*parts)) == 40
    assert len(family(source, n=3).tasks("all", 100, 1)) == 3


def check_refused(family: Family, sources: Sequence[tuple[str, str]]) -> None:
    """Each source is refused with its reason."""
    for name, why in sources:
        try:
            family(name)
        except ConfigError as error:
            assert why in str(error), error
        else:
            raise AssertionError(f"{name} was taken")
