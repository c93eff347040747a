"""How feedback becomes one number: a small, stated policy.

    reward = success * [all verifiers score 1] + partial * (mean of the verdicts' parts)

An episode with any unscored verdict has no reward (None), which is not zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metier.records.types import Feedback
from metier.records.values import lowest

__all__ = ["RewardPolicy"]


@dataclass(frozen=True, slots=True)
class RewardPolicy:
    """Weights of full success and of partial credit."""

    success: float = 1.0
    partial: float = 0.0

    def reward(self, feedback: Sequence[Feedback]) -> float | None:
        """The reward of one episode from all scores about it; None where any is unscored."""
        won = lowest(feedback)
        if won is None:
            return None
        parts = [float(v) for f in feedback for v in _parts(f)]
        return self.success * float(won == 1.0) + self.partial * (sum(parts) / len(parts) if parts else float(won))


def _parts(feedback: Feedback) -> Iterable[float]:
    parts = feedback.evidence.get("parts", {})
    return parts.values() if isinstance(parts, Mapping) else ()
