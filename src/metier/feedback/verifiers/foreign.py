"""The verifiers "inspect" and "verifiers": what the package that a task comes from says of an answer.

Parameters: `source`, `config` (JSON) and `number`, which name the task there. Full success is 1 from
every scorer, or from every reward of positive weight; each is a part. Where the source asks
something else now than it did when the episode was made, or a scorer fails, the episode is
`unscored`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict
from metier.records.types import Task
from metier.tasks.foreign import ForeignFamily
from metier.tasks.inspect_tasks import InspectFamily
from metier.tasks.verifiers_tasks import VerifiersFamily

__all__ = ["Inspect", "Verifiers"]


class _Foreign(Described):
    """Scores by the family's own source."""

    version = "1"
    parameters: ClassVar = {"source, config, number": "the task in its package"}
    family: ClassVar[type[ForeignFamily]]

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where all that counts is full, else 0."""
        where = (params["source"], params["config"], params["number"])
        if self.family.question(*where) != task.messages:
            return Verdict(score=None, status="unscored", reason=f"{where[0]} asks something else now")
        try:
            grades = self.family.grade(*where, attempt.messages)
        except Exception as error:  # of somebody else's code, whatever it raises
            return Verdict(score=None, status="unscored", reason=f"it failed to score: {type(error).__name__}: {error}")
        counting = [grade.value for grade in grades.values() if grade.counts]
        return Verdict(
            score=float(bool(counting) and all(value >= 1.0 for value in counting)),
            reason="; ".join(grade.why for grade in grades.values() if grade.why)[:300],
            parts={name: min(1.0, max(0.0, grade.value)) for name, grade in grades.items()},
        )


class Inspect(_Foreign):
    """The scorers of a task of Inspect."""

    name = "inspect"
    family = InspectFamily


class Verifiers(_Foreign):
    """The rewards of a taskset of the verifiers package."""

    name = "verifiers"
    family = VerifiersFamily
