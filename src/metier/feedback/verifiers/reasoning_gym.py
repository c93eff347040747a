"""The verifier "reasoning_gym": a task's own dataset scores the answer.

Parameters: `dataset`, `config`, `seed` and `place`, which make the entry again, and the
`version` of the package that made it. The answer is what stands between the last
`<answer>` and `</answer>` of the last message; without them there is none. Full success
is the dataset's 1; what it gives for less stands in the part `score`. Some datasets give
a little for any answer that contains the right one, which is why less is not success.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict
from metier.records.types import Task
from metier.tasks.reasoning_gym import OPEN, SHUT, entry_of, score

__all__ = ["ReasoningGym"]


class ReasoningGym(Described):
    """Scores by the package that made the question."""

    name = "reasoning_gym"
    version = "2"
    parameters: ClassVar = {
        "dataset, config, seed, place": "what makes the entry again",
        "version": "of the package that made it",
    }

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where the dataset gives full marks, else 0; `unscored` where it makes another question now."""
        where = (params["dataset"], json.dumps(params["config"]), params["seed"], params["place"])
        if str(entry_of(*where)["question"]) not in task.messages[-1].content:
            reason = f"reasoning-gym {version('reasoning-gym')} makes another question than {params['version']} did"
            return Verdict(score=None, status="unscored", reason=reason)
        said = attempt.messages[-1]
        answer = _answer(said.content) if said.role == "assistant" else None
        if answer is None:
            return Verdict(score=0.0, reason=f"there is no {OPEN}…{SHUT}", parts={"answered": 0.0, "score": 0.0})
        given = score(*where, answer)
        right = given >= 1.0
        reason = "the answer is right" if right else f"the dataset gives {given:g}"
        return Verdict(score=float(right), reason=reason, parts={"answered": 1.0, "score": min(1.0, max(0.0, given))})


def _answer(text: str) -> str | None:
    end = text.rfind(SHUT)
    start = text.rfind(OPEN, 0, max(end, 0))
    return None if end < 0 or start < 0 else text[start + len(OPEN) : end].strip()
