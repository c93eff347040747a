"""Intervals for one sample: means, shares, and anything else by bootstrap.

Scores that share a cause move together (repeats of one prompt, the two sides of a
pair), so every function takes the clusters that the values fall into and counts
clusters, not values, as the evidence. A value of None is *unscored*: it is left out
and counted in `left_out`, never read as zero. Where the data cannot give a standard
error (fewer than two clusters) the bounds are None, not a guess.

Legend of shapes: n values, G clusters. All intervals are two-sided.
Left out: Bayesian intervals and weights; nothing here needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "bootstrap_interval",
    "clustered_se",
    "mean_interval",
    "numbered",
    "share_interval",
    "t_quantile",
    "wilson",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its uncertainty, in the unit of the values."""

    n: int  # values that counted
    clusters: int  # independent groups among them
    left_out: int  # values that were None
    mean: float | None  # None where nothing counted
    se: float | None  # standard error; None where fewer than two clusters
    low: float | None  # lower bound
    high: float | None  # upper bound


def t_quantile(probability: float, df: int) -> float:
    """The point below which Student's t with `df` degrees of freedom has `probability`."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def numbered(labels: Iterable[Hashable]) -> tuple[NDArray[np.intp], int]:
    """The number of each label [n], in the order in which they first come, and how many labels there are."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.intp), len(numbers)


def clustered_se(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float | None:
    """Standard error of the mean of `values` [n], whose errors may agree inside `clusters` [n].

        SE = sqrt( G/(G-1) * sum_c ( sum_{i in c} (s_i - mean) )^2 ) / n

    Miller 2024, arXiv 2411.00640, with the usual small-sample factor G/(G-1) of
    cluster-robust variances, so that clusters of one give exactly sd/sqrt(n). Without
    `clusters` each value is its own. None where G < 2. Unit: that of the values.
    """
    scores = np.asarray(values, dtype=np.float64)
    n = scores.size
    labels: Sequence[Hashable] = range(n) if clusters is None else clusters
    if len(labels) != n:
        raise ValueError(f"{n} values but {len(labels)} cluster labels; give one label for each value")
    place, groups = numbered(labels)
    if groups < 2:
        return None
    totals = np.bincount(place, scores - scores.mean())
    square = float((totals * totals).sum())
    spread = math.sqrt(groups / (groups - 1) * square) / n
    # Rounding of the mean leaves crumbs where all values are equal; they are no spread.
    return 0.0 if spread < 1e-12 * max(1.0, float(np.abs(scores).max())) else spread


def mean_interval(
    values: Sequence[float | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Mean of `values` [n] with its clustered standard error and t interval.

        mean +- t_{(1+confidence)/2, G-1} * SE        (SE as in `clustered_se`)

    Values of None are left out with their cluster labels. Unit: that of the values.
    """
    kept, labels, left_out = _scored(values, clusters)
    if not kept:
        return Interval(n=0, clusters=0, left_out=left_out, mean=None, se=None, low=None, high=None)
    mean = math.fsum(kept) / len(kept)
    groups = len(set(labels))
    se = clustered_se(kept, labels)
    if se is None:
        return Interval(n=len(kept), clusters=groups, left_out=left_out, mean=mean, se=None, low=None, high=None)
    half = t_quantile((1 + confidence) / 2, groups - 1) * se
    return Interval(
        n=len(kept), clusters=groups, left_out=left_out, mean=mean, se=se, low=mean - half, high=mean + half
    )


def wilson(successes: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval for a share of `successes` among `n` independent trials.

        centre = (p + z^2/2n) / (1 + z^2/n)
        half   = z/(1 + z^2/n) * sqrt( p(1-p)/n + z^2/4n^2 ),   p = successes/n

    Wilson 1927. It stays inside [0, 1] and has width even at 0 % and 100 %. Both
    arguments may be fractions, for an effective sample size. Unit: share.
    """
    from scipy.special import ndtri

    if not n > 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes among {n} trials is no share; need 0 <= successes <= n and n > 0")
    z = float(ndtri((1 + confidence) / 2))
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(
    values: Sequence[float | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """A share, the mean of `values` [n] in [0, 1], with a Wilson interval that respects clusters.

    The interval is `wilson(p * n_eff, n_eff)` with the effective sample size

        n_eff = min(n, p(1-p) / SE^2)        (SE as in `clustered_se`)

    and n_eff = G where p is 0 or 1, or SE is 0 or unknown: then only whole clusters count.
    The idea of the effective sample size is Korn and Graubard's (Survey Methodology
    24, 1998). Independent 0/1 values give, but for a factor (n-1)/n, the plain Wilson interval.
    """
    kept, labels, left_out = _scored(values, clusters)
    if not kept:
        return Interval(n=0, clusters=0, left_out=left_out, mean=None, se=None, low=None, high=None)
    if min(kept) < 0 or max(kept) > 1:
        raise ValueError(f"shares lie in [0, 1], but values run from {min(kept)} to {max(kept)}; use mean_interval")
    share = min(1.0, math.fsum(kept) / len(kept))
    groups = len(set(labels))
    se = clustered_se(kept, labels)
    effective = float(groups)
    if se is not None and se > 0 and 0 < share < 1:
        effective = min(float(len(kept)), share * (1 - share) / (se * se))
    low, high = wilson(share * effective, effective, confidence=confidence)
    return Interval(n=len(kept), clusters=groups, left_out=left_out, mean=share, se=se, low=low, high=high)


def bootstrap_interval(
    values: Sequence[float | None],
    statistic: Callable[[NDArray[np.float64]], float] | None = None,
    *,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap of any `statistic` of `values` [n]; the mean by default.

    Each of `draws` times, G clusters are drawn with replacement, whole, and the statistic
    is taken of their values; the bounds are the (1-confidence)/2 and (1+confidence)/2
    quantiles, `se` the standard deviation of the draws, and `mean` the statistic of the
    values as they are. Efron 1979. The same seed gives the same interval. Unit: that of
    the statistic.
    """
    kept, labels, left_out = _scored(values, clusters)
    if not kept:
        return Interval(n=0, clusters=0, left_out=left_out, mean=None, se=None, low=None, high=None)
    measure = _mean if statistic is None else statistic
    scores = np.asarray(kept, dtype=np.float64)
    members: dict[Hashable, list[int]] = {}
    for place, label in enumerate(labels):
        members.setdefault(label, []).append(place)
    places = [np.asarray(rows) for rows in members.values()]
    groups = len(places)
    point = float(measure(scores))
    if groups < 2:
        return Interval(n=len(kept), clusters=groups, left_out=left_out, mean=point, se=None, low=None, high=None)
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        rows = np.concatenate([places[pick] for pick in rng.integers(0, groups, size=groups)])
        found[draw] = measure(scores[rows])
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        n=len(kept),
        clusters=groups,
        left_out=left_out,
        mean=point,
        se=float(found.std(ddof=1)),
        low=float(low),
        high=float(high),
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def _scored(
    values: Sequence[float | None], clusters: Sequence[Hashable] | None
) -> tuple[list[float], list[Hashable], int]:
    """The values that are there, their cluster labels, and how many were None."""
    labels: Sequence[Hashable] = range(len(values)) if clusters is None else clusters
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} values but {len(labels)} cluster labels; give one label for each value")
    kept: list[float] = []
    kept_labels: list[Hashable] = []
    for value, label in zip(values, labels, strict=True):
        if value is not None:
            kept.append(float(value))
            kept_labels.append(label)
    return kept, kept_labels, len(values) - len(kept)
