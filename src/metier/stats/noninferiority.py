"""How much better A is than B at least, and at most: one-sided bounds that a decision can rest on.

A release decision is wrong where it lets something worse pass, so a bound has to hold on one side alone, and there
Student's t is too sure where the differences are skewed: a few items that got worse among many that did not change. The
bound is therefore t's with a correction for skewness (Hall 1992), made only where it widens:

    low = mean(d) - (q + max(0, -g (2 q^2 + 1) / (6 sqrt G))) SE,     q = t_{1-alpha, G-1}
    d_i = mean(a_i) - mean(b_i), SE clustered, g the skewness of the G clusters' deviations

and where changes are rare events (most clusters differ by the same amount, fewer than 30 by another) the lower of that
and

    the alpha quantile of (sum_c w_c T_c - w_0 m R) / (sum_c w_c n_c + w_0 m),     w ~ Dirichlet(1, ..., 1)

with T_c the sum of the n_c differences in cluster c, m their mean number, and R the largest difference that there can
be: one more cluster is thought of that went as badly as possible. For clusters of one this is the bound of Gaffke
(2005), which Learned-Miller and Thomas (2019, arXiv 1905.06208) found to hold for all bounded variables and never
refuted; where all differences are alike it is Clopper and Pearson's exact bound, 1 - alpha^(1/n). It needs the range
of the scores; without one, differences without spread have no bound.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metier.stats.intervals import clustered_se, numbered, t_quantile
from metier.stats.paired import average

__all__ = ["Bounds", "one_sided"]

Scores = Mapping[str, Sequence[float | None]]

_RARE = 30  # clusters that changed, from which on their mean is near enough to normal
_BLOCK = 4_000_000  # numbers that are drawn at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A minus B on the items that both were scored on, with a bound on each side, each wrong with probability alpha."""

    n: int  # items
    clusters: int
    mean_a: float | None  # None where n is 0
    mean_b: float | None
    diff: float | None
    se: float | None  # None where fewer than two clusters
    low: float | None  # the true difference is above it; None where the data give no bound
    high: float | None  # the true difference is below it


def one_sided(
    a: Scores,
    b: Scores,
    *,
    alpha: float = 0.05,
    alpha_high: float | None = None,
    clusters: Mapping[str, Hashable] | None = None,
    span: float | None = None,
    seed: int = 0,
    draws: int = 20_000,
) -> Bounds:
    """The bounds of the difference; repeats of an item are averaged, items of one side only are left out.

    `alpha` is of the lower bound and, unless `alpha_high` is told, of the upper one. `span` is the highest possible
    score minus the lowest. The same seed gives the same bounds. Unit of all but n: that of the scores.
    """
    for chance in (alpha, alpha if alpha_high is None else alpha_high):
        if not 0 < chance < 0.5:
            raise ValueError(f"alpha is {chance}; it lies between 0 and one half")
    pairs = [(item, average(values), average(b[item])) for item, values in a.items() if item in b]
    kept = [(item, x, y) for item, x, y in pairs if x is not None and y is not None]
    n = len(kept)
    if n == 0:
        return Bounds(n=0, clusters=0, mean_a=None, mean_b=None, diff=None, se=None, low=None, high=None)
    labels: list[Hashable] = [item if clusters is None else clusters.get(item, item) for item, _, _ in kept]
    differences = [x - y for _, x, y in kept]
    if span is not None and max(map(abs, differences)) > span * (1 + 1e-9):
        raise ValueError(f"a difference of {max(map(abs, differences))} is larger than the range {span} of the scores")
    diff, groups = math.fsum(differences) / n, len(set(labels))
    se = clustered_se(differences, labels)
    above = alpha if alpha_high is None else alpha_high
    sums, sizes = _by_cluster(differences, labels)
    lows: list[float] = []
    highs: list[float] = []
    if se:
        tilt = _skewness(sums - sizes * diff) / math.sqrt(groups)
        lows.append(diff - _wide(t_quantile(1 - alpha, groups - 1), -tilt) * se)
        highs.append(diff + _wide(t_quantile(1 - above, groups - 1), tilt) * se)
    if span is not None:
        atoms = _atoms(sums, sizes)
        same = int(np.unique((sums / sizes).round(12), return_counts=True)[1].max())
        if same > groups / 2 and groups - same < _RARE:
            lows.append(_worst(atoms, span, alpha, seed, draws))
            highs.append(-_worst(atoms * np.array([-1.0, 1.0, 1.0]), span, above, seed, draws))
    return Bounds(
        n=n,
        clusters=groups,
        mean_a=math.fsum(x for _, x, _ in kept) / n,
        mean_b=math.fsum(y for _, _, y in kept) / n,
        diff=diff,
        se=se,
        low=min(lows, default=None),
        high=max(highs, default=None),
    )


def _by_cluster(
    differences: Sequence[float], labels: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum of the differences of each cluster [G], and how many there are [G]."""
    place, _ = numbered(labels)
    return np.bincount(place, differences).astype(np.float64), np.bincount(place).astype(np.float64)


def _skewness(deviations: NDArray[np.float64]) -> float:
    """The third standardised moment of numbers whose mean is 0 and that are not all 0."""
    scaled = deviations / np.abs(deviations).max()  # third powers of large numbers are not finite
    return float((scaled**3).mean() / (scaled**2).mean() ** 1.5)


def _wide(quantile: float, tilt: float) -> float:
    """Standard errors to go: the quantile, and what skewness adds to it."""
    return quantile + max(0.0, tilt * (2 * quantile**2 + 1) / 6)


def _atoms(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distinct clusters [U, 3]: the sum of their differences, how many these are, and how many such clusters."""
    distinct, counts = np.unique(np.stack([sums.round(12), sizes], axis=1), axis=0, return_counts=True)
    return np.column_stack([distinct, counts])


def _worst(atoms: NDArray[np.float64], span: float, alpha: float, seed: int, draws: int) -> float:
    """The alpha quantile of the weighted mean with one cluster more, which went as badly as can be."""
    totals, sizes, counts = atoms.T
    usual = float((sizes * counts).sum() / counts.sum())
    if len(atoms) == 1:  # exact: the weight of the one thought of is Beta(1, G)
        weight = 1 - alpha ** (1 / float(counts[0]))
        return float((1 - weight) * totals[0] / sizes[0] - weight * span)
    rng = np.random.default_rng(seed)
    found, block = [], max(1, _BLOCK // len(atoms))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        weights = rng.standard_gamma(counts, size=(size, len(atoms)))
        bad = rng.standard_exponential(size) * usual
        found.append((weights @ totals - bad * span) / (weights @ sizes + bad))
    return float(np.quantile(np.concatenate(found), alpha))
