"""What judging may cost: calls, tokens, US dollars, seconds; who asks beyond it gets nothing.

A call is granted while what was spent, with the dearest call so far counted for each one under way, is below every
limit. So at most the first calls at once, of which nothing is known yet, can go beyond a limit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from metier.base.clock import monotonic
from metier.base.config import did_you_mean
from metier.base.errors import ConfigError
from metier.records.types import Cost

__all__ = ["Budget", "Limits", "OverBudget", "parse_limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that may be spent."""

    calls: float = math.inf
    tokens: float = math.inf  # read and written
    usd: float = math.inf
    seconds: float = math.inf  # wall time since the budget was made


class OverBudget(Exception):
    """There is nothing left to ask with."""


def parse_limits(text: str) -> Limits:
    """Limits as `usd=2,tokens=1e6`. Raises `ConfigError` naming what is wrong."""
    known = [field.name for field in fields(Limits)]
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise ConfigError(f"a budget has no {name!r}{did_you_mean(name, known) or '.'} It has {', '.join(known)}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name in given or not number >= 0:
            raise ConfigError(f"the budget {text!r} cannot be read at {part!r}; write it as usd=2,tokens=1e6")
        given[name] = number
    return Limits(**given)


class Budget:
    """Counts, for any number of threads."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.calls, self.tokens, self.usd = 0, 0, 0.0
        self._under_way = 0
        self._dearest_tokens, self._dearest_usd = 0, 0.0
        self._began = monotonic()
        self._lock = threading.Lock()

    @contextmanager
    def call(self) -> Iterator[list[Cost]]:
        """Hold a call; what it cost goes into the list. Raises `OverBudget`."""
        with self._lock:
            self._check()
            self._under_way += 1
        costs: list[Cost] = []
        try:
            yield costs
        finally:
            with self._lock:
                self._under_way -= 1
                self.calls += 1
                for cost in costs:
                    tokens = cost.prompt_tokens + cost.completion_tokens
                    self.tokens += tokens
                    self.usd += cost.usd
                    self._dearest_tokens = max(self._dearest_tokens, tokens)
                    self._dearest_usd = max(self._dearest_usd, cost.usd)

    def _check(self) -> None:
        held = self._under_way
        spent = {
            "calls": self.calls + held,
            "tokens": self.tokens + held * self._dearest_tokens,
            "usd": self.usd + held * self._dearest_usd,
            "seconds": monotonic() - self._began,
        }
        for name, amount in spent.items():
            most = getattr(self.limits, name)
            if amount >= most:
                raise OverBudget(f"budget: {most:g} {name} are spent")
