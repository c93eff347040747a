"""The verifier "inspect": the scorers of a task of Inspect.

Parameters: `task`, `arguments` (JSON) and `sample`, which name the sample. Full success is 1 from
every scorer; each one's value is a part. Where the task asks something else now than it did
when the episode was made, or a scorer fails, the episode is `unscored`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.records.types import Task
from metier.tasks.inspect_tasks import grade, question

__all__ = ["Inspect"]


class Inspect:
    """Scores by the task's own scorers."""

    name = "inspect"
    version = "1"

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where every scorer gives 1, else 0."""
        where = (params["task"], params["arguments"], params["sample"])
        if question(*where) != task.messages:
            return Verdict(score=None, status="unscored", reason=f"{where[0]} asks something else now")
        said = attempt.messages[-1]
        text = said.content if said.role == "assistant" else ""
        try:
            found = grade(*where, text)
        except Exception as error:  # a scorer of somebody else's, whatever it raises
            return Verdict(score=None, status="unscored", reason=f"its scorer failed: {type(error).__name__}: {error}")
        parts = {name: min(1.0, max(0.0, value)) for name, (value, _) in found.items()}
        reason = "; ".join(why for _, why in found.values() if why)[:300]
        return Verdict(score=float(all(value >= 1.0 for value, _ in found.values())), reason=reason, parts=parts)
