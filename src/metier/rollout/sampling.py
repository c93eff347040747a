"""How a policy's tokens are drawn, as recipes and suites say it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from metier.base.config import Settings
from metier.records.types import Sampling

__all__ = ["SamplingSettings"]

Positive = Annotated[int, Field(gt=0)]


class SamplingSettings(Settings):
    """How the policy's tokens are drawn."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_turn_tokens: Positive = 72
    max_tokens: Positive = 320
    max_turns: Positive = 8
    max_calls: Positive = 64  # tool calls of an episode
    max_seconds: Annotated[float, Field(ge=0)] = 0.0  # of an episode, looked at between turns; 0 is no bound

    def record(self) -> Sampling:
        """The same as a record."""
        return Sampling(**self.model_dump())
