"""Two models on the same tasks: the comparison that every before and after uses.

Pairing removes what makes tasks hard from the noise, so the interval of the
difference decides, never whether two intervals overlap. Repeats of one task are
averaged first; a task that either side has no scored value for is left out and
counted. Where the data cannot bound the difference (fewer than two clusters, or no
spread at all among the differences), `low` and `high` are None.

Left out: unpaired tests, which waste power on paired data.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from metier.base.errors import DataError
from metier.stats.intervals import clustered_se, t_quantile

__all__ = ["Paired", "average", "holm", "joint_clusters", "mcnemar_exact", "paired"]

_COUNTED = 1000  # trials up to which a binomial tail is added up in whole numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A against B on the tasks that both were scored on; `diff` is A minus B."""

    n: int  # tasks compared
    mean_a: float | None  # None where n is 0
    mean_b: float | None
    diff: float | None  # mean_a - mean_b
    se: float | None  # of diff; None where fewer than two clusters
    low: float | None  # bounds of the interval of diff; None where the data give none
    high: float | None
    p: float | None  # two-sided, of "no difference"
    clusters: int = 0  # independent groups among the tasks
    left_out: int = 0  # tasks that one side or both had no scored value for

    @property
    def clear(self) -> bool:
        """Whether the interval is known and does not cover zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired(
    a: Mapping[str, Sequence[float | None]],
    b: Mapping[str, Sequence[float | None]],
    *,
    clusters: Mapping[str, Hashable] | None = None,
    confidence: float = 0.95,
) -> Paired:
    """Compare A with B, each a mapping from task id to the values of its repeats.

        d_i  = mean(a_i) - mean(b_i)                          one per task, repeats averaged
        diff = mean(d),   SE = sd(d)/sqrt(n)                  clustered where `clusters` groups tasks
        interval: diff +- t_{(1+confidence)/2, G-1} * SE,     p = 2 P(T_{G-1} > |diff|/SE)

    Miller 2024, arXiv 2411.00640, section 4. `clusters` maps task ids to groups (a
    task that it does not name is its own). Where all d_i are equal SE is 0, which says
    that the sample has shown no spread, not that there is none: the bounds are None
    and p is that of the exact sign-flip test, 2^(1-G), or 1 where diff is 0.
    Unit of all but n and p: that of the values.
    """
    ids = list(dict.fromkeys([*a, *b]))
    kept: list[str] = []
    means_a: list[float] = []
    means_b: list[float] = []
    for task in ids:
        mean_a, mean_b = average(a.get(task, ())), average(b.get(task, ()))
        if mean_a is not None and mean_b is not None:
            kept.append(task)
            means_a.append(mean_a)
            means_b.append(mean_b)
    n, left_out = len(kept), len(ids) - len(kept)
    if n == 0:
        return Paired(n=0, mean_a=None, mean_b=None, diff=None, se=None, low=None, high=None, p=None, left_out=left_out)
    labels: list[Hashable] = [task if clusters is None else clusters.get(task, task) for task in kept]
    groups = len(set(labels))
    differences = [x - y for x, y in zip(means_a, means_b, strict=True)]
    diff = math.fsum(differences) / n
    se = clustered_se(differences, labels)
    low: float | None = None
    high: float | None = None
    p: float | None = None
    if se is not None and se > 0:
        from scipy.special import stdtr

        half = t_quantile((1 + confidence) / 2, groups - 1) * se
        low, high = diff - half, diff + half
        p = min(1.0, 2 * float(stdtr(groups - 1, -abs(diff) / se)))
    elif se is not None:
        p = 1.0 if diff == 0 else math.ldexp(1.0, 1 - groups)
    return Paired(
        n=n,
        mean_a=math.fsum(means_a) / n,
        mean_b=math.fsum(means_b) / n,
        diff=diff,
        se=se,
        low=low,
        high=high,
        p=p,
        clusters=groups,
        left_out=left_out,
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """P value of "A and B succeed equally often", from the tasks on which they disagree.

        p = min(1, 2 P(Bin(b + c, 1/2) <= min(b, c)))

    with b = `only_a`, tasks that only A solved, and c = `only_b`. McNemar 1947, in its
    exact form. Needs one 0/1 outcome per task and side.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts of tasks cannot be negative: {only_a}, {only_b}")
    n = only_a + only_b
    if n > _COUNTED:
        from scipy.special import bdtr

        return min(1.0, 2 * float(bdtr(min(only_a, only_b), n, 0.5)))
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << n))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for having looked at all of them, in the order given.

        sorted p_(1) <= ... <= p_(m):   adjusted_(k) = max_{j <= k} min(1, (m - j + 1) p_(j))

    Holm 1979: rejecting where adjusted <= alpha keeps the chance of any false rejection
    at most alpha, whatever the dependence. A None (no test was possible) stays None and
    is not counted in m.
    """
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    out: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, (p, place) in enumerate(known):
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{p} is not a p value; it must lie in [0, 1]")
        running = max(running, min(1.0, (len(known) - rank) * p))
        out[place] = running
    return out


def joint_clusters(a: Mapping[str, Hashable], b: Mapping[str, Hashable], names: tuple[str, str]) -> dict[str, Hashable]:
    """The clusters of the items of two sides together. Raises `DataError` where the sides, called `names`, differ."""
    for item, group in a.items():
        if b.get(item, group) != group:
            raise DataError(f"item {item} is in cluster {group} of {names[0]} and {b[item]} of {names[1]}")
    return {**a, **b}


def average(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there, or None where none is."""
    if len(values) == 1:
        return values[0]
    scored = [value for value in values if value is not None]
    return math.fsum(scored) / len(scored) if scored else None
