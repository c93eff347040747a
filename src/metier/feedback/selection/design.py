"""Which items are drawn, so that the chance of every item is known exactly.

n of N items are drawn without replacement, in two arms: u of them at random from all N, the others by rank.

    a_i = u / N                                                   chance in the uniform arm, the same for all
    b_i = min( c exp(-2 (r_i - 1) / n), 1 - a_i ),  sum b = n - u   chance in the arm by priority; r_i the item's rank
    propensity_i = a_i + b_i

The best n/2 are nearly sure to be asked, and after them every n/2 ranks make it e times less likely; equal values
share their mean rank, so that where nothing is known the draw is uniform. Ranks, and no powers of values, because the
scale of a value means nothing; and a draw, no cut, because only what had a chance can be weighted.

The draw is dependent rounding of the N x 2 table of chances (Gandhi, Khuller, Parthasarathy, Srinivasan 2006, J. ACM
53): chance is moved between cells, in a random direction that leaves every expectation as it was, until all are 0 or
1. Row sums (an item is asked once) and column sums (exactly u and n - u) hold for each draw, not on average.
Neighbours compete first, so a draw is spread over the order in which the items come.

A mean over all N is then estimated without bias by weighting each answer with 1/propensity (Horvitz and Thompson
1952), and over the uniform arm alone by its plain mean. A plain mean over everything asked is biased towards what
is valued.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRIORITY", "UNIFORM", "Design", "design", "draw"]

Floats = NDArray[np.float64]

UNIFORM, PRIORITY = 0, 1  # the arms
_STEEP = 2.0  # steeper saves a few more answers, and leaves less to weigh an estimate with
_CRUMB = 1e-9  # chance that is rounding error


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How n of N items are to be drawn."""

    n: int
    uniform: int  # of them, drawn at random from all
    rank: Floats  # [N] 1 is the best; equal values share their mean rank
    chance_NA: Floats  # [N, 2] of each item in each arm

    @property
    def propensity(self) -> Floats:
        """The chance of each item to be asked [N]."""
        total: Floats = np.minimum(self.chance_NA.sum(axis=1), 1.0)
        return total


def design(value_N: Floats, n: int, *, uniform: float = 0.1) -> Design:
    """The design for n items of these values; `uniform` is the share of n, rounded up, that is drawn from all alike."""
    from scipy.stats import rankdata

    size = len(value_N)
    n = min(n, size)
    at_random = min(n, math.ceil(uniform * n - _CRUMB))
    rank = rankdata(-np.asarray(value_N, dtype=np.float64))
    flat = at_random / size if size else 0.0
    by_rank = _capped(np.exp(-_STEEP * (rank - 1) / max(n, 1)), n - at_random, 1.0 - flat)
    return Design(n=n, uniform=at_random, rank=rank, chance_NA=np.stack([np.full(size, flat), by_rank], axis=1))


def _capped(weight: Floats, total: int, cap: float) -> Floats:
    """Chances in proportion to the weights, none above `cap`, that sum to `total`."""
    chance = np.zeros(weight.size)
    free = np.ones(weight.size, dtype=bool)
    while free.any():
        left = total - cap * (~free).sum()
        chance[free] = weight[free] * (left / weight[free].sum()) if left > 0 else 0.0
        over = free & (chance > cap)
        if not over.any():
            break
        chance[over], free[over] = cap, False
    return chance


def draw(chance_NA: Floats, rng: random.Random) -> list[int | None]:
    """The arm in which each item is drawn, or None. Column sums must be whole numbers, row sums at most 1."""
    cell = [[_snapped(value) for value in row] for row in chance_NA.tolist()]
    both: int | None = None  # an item whose two cells are open
    one: list[int | None] = [None, None]  # by arm, an item with only that cell open
    for item in range(len(cell)):
        waiting = [item]
        while waiting:
            now = waiting.pop()
            open_arms = [arm for arm in (UNIFORM, PRIORITY) if 0.0 < cell[now][arm] < 1.0]
            if not open_arms:
                continue
            if len(open_arms) == 2:
                if both is None:
                    both = now
                    continue
                other, both = both, None
                _shift(cell, [(now, UNIFORM), (other, PRIORITY)], [(now, PRIORITY), (other, UNIFORM)], rng)
            else:
                (arm,) = open_arms
                held = one[arm]
                if held is None:
                    one[arm] = now
                    continue
                other, one[arm] = held, None
                _shift(cell, [(now, arm)], [(other, arm)], rng)
            waiting += [now, other]
    up, down = one
    if both is not None and up is not None and down is not None:
        _shift(cell, [(both, UNIFORM), (down, PRIORITY)], [(both, PRIORITY), (up, UNIFORM)], rng)
    # What is still open is one chain of cells whose columns sum to whole numbers: a single coin, or rounding error.
    return _settled(cell, [item for item in (both, *one) if item is not None], rng)


def _settled(cell: list[list[float]], last: list[int], rng: random.Random) -> list[int | None]:
    for arm in (UNIFORM, PRIORITY):
        open_items = [item for item in last if 0.0 < cell[item][arm] < 1.0]
        while len(open_items) > 1:
            _shift(cell, [(open_items[0], arm)], [(open_items[1], arm)], rng)
            open_items = [item for item in open_items if 0.0 < cell[item][arm] < 1.0]
        for item in open_items:
            cell[item][arm] = float(round(cell[item][arm]))
    return [UNIFORM if row[UNIFORM] == 1.0 else PRIORITY if row[PRIORITY] == 1.0 else None for row in cell]


def _shift(
    cell: list[list[float]], plus: list[tuple[int, int]], minus: list[tuple[int, int]], rng: random.Random
) -> None:
    """Move as much chance as there is from `minus` to `plus` or the other way, so that no expectation changes."""
    there = back = 1.0
    for i, arm in plus:
        there, back = min(there, 1.0 - cell[i][arm]), min(back, cell[i][arm])
    for i, arm in minus:
        there, back = min(there, cell[i][arm]), min(back, 1.0 - cell[i][arm])
    move = there if rng.random() * (there + back) < back else -back
    for i, arm in plus:
        cell[i][arm] = _snapped(cell[i][arm] + move)
    for i, arm in minus:
        cell[i][arm] = _snapped(cell[i][arm] - move)


def _snapped(value: float) -> float:
    return 0.0 if value < _CRUMB else 1.0 if value > 1.0 - _CRUMB else value
