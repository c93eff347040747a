"""The verifier "combination": several verifiers, one verdict, each part's own verdict kept.

    all       1 where every part scores 1
    weighted  the mean of the parts' scores by their `weight` (1 where none is given)
    gated     0 where a part with `gate: true` scores less than 1, else the weighted mean of the others

Each part is a verifier with its parameters as in `metier verify`: {"name": "math", "answer": 7, "weight": 2}.
Where a part is unscored, so is the whole: what it would have said is not known. Each part keeps its own
deadline, and the whole may take as long as all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, unscored
from metier.feedback.verifiers.workers import judge, longest
from metier.records.types import Task

__all__ = ["Combination"]

_OWN = ("name", "weight", "gate")


class Combination(Described):
    """Puts parts together."""

    name = "combination"
    version = "2"
    parameters: ClassVar = {
        "how": '"all" (default), "weighted" or "gated"',
        "verifiers": 'a list of {"name", …its parameters, "weight"?, "gate"?}',
    }

    def allowed(self, params: Mapping[str, Any]) -> float:
        """The sum of what the parts may take."""
        parts = params.get("verifiers")
        wanted = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, (list, tuple)) else []
        return sum(longest(str(part.get("name")), _own(part)) for part in wanted)

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """The verdict of all parts; `parts` has each one's score by its name."""
        how, parts = params.get("how", "all"), params.get("verifiers")
        if how not in ("all", "weighted", "gated"):
            return unscored(f'"how" is "all", "weighted" or "gated", not {how!r}')
        if not isinstance(parts, (list, tuple)) or not parts:
            return unscored('the parameter "verifiers" is missing or empty')
        if not all(isinstance(part, Mapping) and isinstance(part.get("name"), str) for part in parts):
            return unscored('an entry of "verifiers" is {"name", …its parameters}')
        weights = [part.get("weight", 1.0) for part in parts]
        if any(isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 <= one < 1e9 for one in weights):
            return unscored("a weight is a number, 0 or more")
        verdicts = [judge(part["name"], task, attempt, _own(part)) for part in parts]
        names = _names([str(part["name"]) for part in parts])
        told = {name: verdict.score for name, verdict in zip(names, verdicts, strict=True) if verdict.score is not None}
        reasons = "; ".join(f"{name}: {verdict.reason}" for name, verdict in zip(names, verdicts, strict=True))
        if len(told) < len(parts):
            return Verdict(score=None, status="unscored", reason=reasons, parts=told)
        scores = list(told.values())
        gates = [bool(part.get("gate")) for part in parts] if how == "gated" else [False] * len(parts)
        if how == "all":
            score = float(all(one == 1.0 for one in scores))
        elif any(gate and one < 1.0 for gate, one in zip(gates, scores, strict=True)):
            score = 0.0
        else:
            open_ = [(weight, one) for weight, one, gate in zip(weights, scores, gates, strict=True) if not gate]
            total = sum(weight for weight, _ in open_)
            if not total and open_:
                return unscored("the weights add up to nothing")
            score = sum(weight * one for weight, one in open_) / total if open_ else 1.0
        return Verdict(score=score, reason=reasons, parts=told)


def _own(part: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a part's own verifier."""
    return {key: value for key, value in part.items() if key not in _OWN}


def _names(names: list[str]) -> list[str]:
    """Each with its number where it stands twice."""
    return [
        f"{name}_{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]
