"""The verifier "exact": the last assistant message, stripped, equals the answer.

The smallest useful verifier, and a pattern for writing one. It looks at no state, leaves thinking aside, and
compares text as it stands: case and punctuation count. An empty answer is none: doing nothing would give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, unscored
from metier.records.types import Task

__all__ = ["Exact"]


class Exact(Described):
    """Parameters: `answer`, the text wanted."""

    name = "exact"
    version = "2"
    parameters: ClassVar = {"answer": "the text wanted"}

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where the last assistant message is the answer, else 0."""
        answer = params.get("answer")
        if answer is None or not str(answer).strip():
            return unscored('the parameter "answer" is missing or empty')
        if last_words(attempt) == str(answer).strip():
            return Verdict(score=1.0, reason="the answer is right", parts={"answer": 1.0})
        return Verdict(score=0.0, reason="the answer is not the one wanted", parts={"answer": 0.0})
