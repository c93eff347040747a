"""The verifier "verifiers": the reward functions of a taskset of the verifiers package.

Parameters: `taskset`, `config` (JSON) and `task`, which name the task. Full success is 1 from every
reward of positive weight; each reward is a part. Where the taskset asks something else now than
it did when the episode was made, or a reward fails, the episode is `unscored`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.records.types import Task
from metier.tasks.verifiers_tasks import grade, question

__all__ = ["TasksetRewards"]


class TasksetRewards:
    """Scores by the taskset's own rewards."""

    name = "verifiers"
    version = "1"

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where every reward that counts is full, else 0."""
        where = (params["taskset"], params["config"], params["task"])
        if question(*where) != task.messages:
            return Verdict(score=None, status="unscored", reason=f"{where[0]} asks something else now")
        try:
            found = grade(*where, attempt.messages)
        except Exception as error:  # a reward of somebody else's, whatever it raises
            return Verdict(score=None, status="unscored", reason=f"its reward failed: {type(error).__name__}: {error}")
        counting = [score for score, weight in found.values() if weight > 0]
        parts = {name: min(1.0, max(0.0, score)) for name, (score, _) in found.items()}
        reason = ", ".join(f"{name} {score:g}" for name, (score, _) in found.items())
        return Verdict(score=float(bool(counting) and all(s >= 1.0 for s in counting)), reason=reason, parts=parts)
