"""Stopping a comparison as soon as it is decided, and however often one looks: betting on the difference.

A bettor who stakes on "A is better" multiplies their wealth by 1 + l_t d_t at each item. If A
is not better, the wealth is expected not to grow, so it reaches 1/alpha with probability at
most alpha, ever (Ville); Waudby-Smith and Ramdas 2024, arXiv 2010.09686. The stake l_t may
depend on the past only. What it does not protect against: items that come in an order that
depends on their outcomes, or repeats of one item given as separate differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Verdict", "sequential"]

Outcome = Literal["better", "worse", "equivalent", "inconclusive"]

STAKE = 0.75  # the largest share of the wealth that one item can lose


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the differences seen so far allow to say."""

    outcome: Outcome
    n: int  # differences looked at, up to the decision
    better: float  # largest wealth of who bet that A is better
    worse: float
    not_above: float | None  # of who bet that A is not better by the margin; None without a margin
    not_below: float | None


@dataclass(slots=True)
class _Bettor:
    """Bets that the mean of x in [-1, 1] is above 0; the stake is from the mean and variance of what came before."""

    wealth: float = 1.0
    most: float = 1.0
    n: int = 0
    total: float = 0.0
    square: float = 0.0

    def bet(self, x: float) -> None:
        mean = self.total / (self.n + 1)
        variance = (0.25 + self.square - self.n * mean * mean if self.n else 0.25) / (self.n + 1)
        stake = min(STAKE, max(0.0, mean / (max(variance, 1e-9) + mean * mean)))
        self.wealth *= 1 + stake * x
        self.most = max(self.most, self.wealth)
        self.n += 1
        self.total += x
        self.square += x * x


def sequential(differences: Sequence[float], *, margin: float | None = None, alpha: float = 0.05) -> Verdict:
    """Go through `differences` (A minus B, each in [-1, 1], one an item, in the order in which they came).

        W_t = prod (1 + l_t d_t);   better: W(d) >= 2/alpha;   worse: W(-d) >= 2/alpha
        equivalent: W((margin - d) / (1 + margin)) >= 1/alpha and W((margin + d) / (1 + margin)) >= 1/alpha

    The first that is reached is the outcome. The chance of ever calling A better or worse where
    there is no difference is at most alpha, and of ever calling it equivalent where the
    difference is `margin` or more likewise (two one-sided tests, both needed).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it lies between 0 and 1")
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"the margin is {margin}; it lies between 0 and 1")
    above, below, under, over = _Bettor(), _Bettor(), _Bettor(), _Bettor()
    outcome: Outcome = "inconclusive"
    for d in differences:
        if not math.isfinite(d) or not -1 <= d <= 1:
            raise ValueError(f"{d} is no difference in [-1, 1]; divide the scores by their range first")
        above.bet(d)
        below.bet(-d)
        if margin is not None:
            under.bet((margin - d) / (1 + margin))
            over.bet((margin + d) / (1 + margin))
        if above.most >= 2 / alpha:
            outcome = "better"
        elif below.most >= 2 / alpha:
            outcome = "worse"
        elif margin is not None and min(under.most, over.most) >= 1 / alpha:
            outcome = "equivalent"
        if outcome != "inconclusive":
            break
    return Verdict(
        outcome=outcome,
        n=above.n,
        better=above.most,
        worse=below.most,
        not_above=None if margin is None else under.most,
        not_below=None if margin is None else over.most,
    )
