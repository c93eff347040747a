"""How feedback becomes one number: a small, stated policy.

    reward = success * [all verifiers score 1] + partial * (mean of the verdicts' parts) - overlong

An episode with any unscored verdict has no reward (None), which is not zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metier.records.types import Feedback
from metier.records.values import lowest

__all__ = ["Overlong", "RewardPolicy"]


@dataclass(frozen=True, slots=True)
class Overlong:
    """DAPO's soft punishment of long episodes (arXiv:2503.14476, eq. 13), times `weight`."""

    limit: int
    buffer: int
    weight: float = 1.0

    def penalty(self, tokens: int) -> float:
        """0 up to `limit` - `buffer` tokens, then linear to `weight` at `limit`, and `weight` beyond."""
        return self.weight * min(1.0, max(0.0, (tokens - (self.limit - self.buffer)) / self.buffer))


@dataclass(frozen=True, slots=True)
class RewardPolicy:
    """Weights of full success and of partial credit, and what length costs."""

    success: float = 1.0
    partial: float = 0.0
    overlong: Overlong | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> RewardPolicy:
        """The policy of a stage's setting `reward`, as the run's configuration holds it."""
        given = {name: told[name] for name in ("success", "partial") if name in told}
        return cls(**given, overlong=Overlong(**told["overlong"]) if told.get("overlong") else None)

    def reward(self, feedback: Sequence[Feedback], tokens: int = 0) -> float | None:
        """The reward of one episode of so many tokens from all scores about it; None where any is unscored."""
        won = lowest(feedback)
        if won is None:
            return None
        parts = [float(v) for f in feedback for v in _parts(f)]
        earned = self.success * float(won == 1.0) + self.partial * (sum(parts) / len(parts) if parts else float(won))
        return earned if self.overlong is None else earned - self.overlong.penalty(tokens)


def _parts(feedback: Feedback) -> Iterable[float]:
    parts = feedback.evidence.get("parts", {})
    return parts.values() if isinstance(parts, Mapping) else ()
