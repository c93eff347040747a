"""A share among items that were drawn with unequal chances, weighted back to all items.

    p  = sum_i w_i x_i / sum_i w_i,    w_i = 1 / propensity_i             (Hajek 1971)
    SE = sqrt( G/(G-1) * sum_c ( sum_{i in c} w_i (x_i - p) )^2 ) / sum_i w_i

The interval is Wilson's with the effective sample size min(p(1-p)/SE^2, (sum w)^2 / sum w^2), and where all
items agree with the smaller of the latter (Kish 1965) and G. With equal weights this is `share_interval` but for a
sample's share in SE. What it does not protect against: items whose chance was 0.

Legend: n items, G clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from metier.stats.intervals import Interval, numbered, wilson

__all__ = ["weighted_share"]


def weighted_share(
    values: Sequence[float | None],
    propensity: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """The share [0, 1] of `values` [n], each drawn with its `propensity`; None is unscored and left out."""
    labels: Sequence[Hashable] = range(len(values)) if clusters is None else clusters
    if not len(values) == len(propensity) == len(labels):
        raise ValueError("give one propensity and one cluster for each value")
    rows = [(v, p, c) for v, p, c in zip(values, propensity, labels, strict=True) if v is not None]
    left_out = len(values) - len(rows)
    if not rows:
        return Interval(n=0, clusters=0, left_out=left_out, mean=None, se=None, low=None, high=None)
    x = np.array([row[0] for row in rows], dtype=np.float64)
    chance = np.array([row[1] for row in rows], dtype=np.float64)
    if not ((chance > 0) & (chance <= 1)).all():
        raise ValueError("a propensity is the probability that an item was drawn: above 0, at most 1")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"shares lie in [0, 1], but values run from {x.min()} to {x.max()}")
    w = 1 / chance
    share = float(min(1.0, max(0.0, (w @ x) / w.sum())))
    place, groups = numbered(row[2] for row in rows)
    kish = float(w.sum() ** 2 / (w @ w))
    se = None
    effective = min(kish, float(groups))
    if groups > 1:
        totals = np.bincount(place, w * (x - share))
        se = math.sqrt(groups / (groups - 1) * float(totals @ totals)) / float(w.sum())
        se = 0.0 if se < 1e-12 else se
        if se > 0 and 0 < share < 1:
            effective = min(kish, share * (1 - share) / (se * se))
    low, high = wilson(share * effective, effective, confidence=confidence)
    return Interval(n=len(rows), clusters=groups, left_out=left_out, mean=share, se=se, low=low, high=high)
