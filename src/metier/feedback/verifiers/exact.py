"""The verifier "exact": the last assistant message, stripped, equals the answer.

The smallest useful verifier, and a pattern for writing one. It looks at no state, and
compares text as it stands: case and punctuation count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict
from metier.records.types import Task

__all__ = ["Exact"]


class Exact(Described):
    """Parameters: `answer`, the text wanted."""

    name = "exact"
    version = "1"
    parameters: ClassVar = {"answer": "the text wanted"}

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where the last assistant message is the answer, else 0."""
        if "answer" not in params:
            return Verdict(score=None, status="unscored", reason='the parameter "answer" is missing')
        said = [m.content.strip() for m in attempt.messages if m.role == "assistant"]
        if said and said[-1] == str(params["answer"]).strip():
            return Verdict(score=1.0, reason="the answer is right", parts={"answer": 1.0})
        return Verdict(score=0.0, reason="the answer is not the one wanted", parts={"answer": 0.0})
