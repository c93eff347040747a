"""Few human labels and many judgements, combined: prediction-powered means, and Rogan and Gladen's corrected rate.

A judge's mean over many items is precise and biased; people's mean over few is unbiased and
wide. The first is corrected here by what the judge gets wrong on the items that people
labelled. What this does not protect against: labelled items that are no random sample of
all items. They must be one, or come with the probability with which each was chosen.

Legend: n labelled items with value y and judgement j, N further items with a judgement only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metier.base.errors import DataError
from metier.stats.intervals import t_quantile
from metier.stats.votes import Floats

__all__ = ["PredictionPowered", "RoganGladen", "prediction_powered", "rogan_gladen"]

FEW = 30  # labelled items below which the interval is rough


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionPowered:
    """The mean of the true values over all items, from both kinds of items."""

    n: int  # labelled items
    N: int  # items with a judgement only
    estimate: float
    se: float | None  # None where n < 2
    low: float | None  # None where n < 2, and where no spread was seen
    high: float | None
    lam: float  # weight of the judge: 0 leaves it out, 1 trusts it as far as can be
    classical: float  # the labelled items alone
    classical_se: float | None
    judged: float  # the judge alone, over all items; its bias is in it
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoganGladen:
    """A rate that a judge of known errors reported, corrected for them."""

    estimate: float  # in [0, 1]
    low: float
    high: float
    sensitivity: float  # of the judge: P(says yes | is yes)
    specificity: float  # P(says no | is no)


def prediction_powered(
    y: Sequence[float],
    judged: Sequence[float],
    rest: Sequence[float],
    *,
    propensity: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> PredictionPowered:
    """PPI++ for a mean: `y` and `judged` [n] of the labelled items, `rest` [N] judgements of the others.

        theta = l mean_N(j) + mean_n(y - l j)
        l     = cov(y, j) / ((1 + n/N) var j), clipped to [0, 1];  0 where N = 0 or the judge or the labels are constant
        SE^2  = l^2 var_N(j) / N + sum_i (w_i (r_i - mean r))^2 n/(n-1),    r = y - l j

    Angelopoulos et al. 2023, arXiv 2311.01453, with w_i = 1/n. The interval uses t with n - 1
    degrees of freedom. Where SE is 0 the labels have shown no spread, which does not say that there
    is none, so there is no interval. The bounds are not cut where no value can lie.

    With `propensity`, the probability with which each labelled item was chosen, the others are
    no random sample either. Then w_i is proportional to 1/propensity and of sum 1, the mean of j
    is over all n + N items, and SE^2 = sum_i (l (j_i - mean j)/(n+N) + w_i (r_i - mean r))^2, w_i
    being 0 where there is no label.
    """
    y_n, j_n, j_N = (np.asarray(values, dtype=np.float64) for values in (y, judged, rest))
    n, N = y_n.size, j_N.size
    if n == 0:
        raise DataError("no item has both a label and a judgement; at least one is needed, and two for an interval")
    if j_n.size != n:
        raise ValueError(f"{n} labels but {j_n.size} judgements of them; give one for each")
    if not all(np.isfinite(values).all() for values in (y_n, j_n, j_N)):
        raise DataError("labels and judgements must be finite numbers")
    w_n = np.full(n, 1 / n)
    all_j = np.concatenate((j_n, j_N))
    if propensity is not None:
        chance_n = np.asarray(propensity, dtype=np.float64)
        if chance_n.size != n or not ((chance_n > 0) & (chance_n <= 1)).all():
            raise DataError("a propensity is the probability that an item was chosen for labelling: above 0, at most 1")
        w_n = 1 / chance_n / (1 / chance_n).sum()
    spread = float(all_j.var())  # labelled or not, items have one distribution of j
    covariance = float(w_n @ ((y_n - w_n @ y_n) * (j_n - w_n @ j_n)))
    far_j = j_N if propensity is None else all_j
    classical_se = _se(y_n, w_n) if n > 1 else None
    lam = 0.0
    if N > 0 and spread > 0 and classical_se:
        lam = min(1.0, max(0.0, covariance / ((1 + n / far_j.size) * spread)))
    far = float(far_j.mean()) if N else 0.0
    estimate = lam * far + float(w_n @ (y_n - lam * j_n))
    se = low = high = None
    left_n = y_n - lam * j_n
    if n > 1:
        if not classical_se:
            se = 0.0
        elif propensity is None:
            se = math.hypot(lam * math.sqrt(float(j_N.var(ddof=1)) / N) if N > 1 else 0.0, _se(left_n, w_n))
        else:
            part = lam * (all_j - all_j.mean()) / all_j.size
            part[:n] += w_n * (left_n - w_n @ left_n)
            se = math.sqrt(float((part**2).sum()) * n / (n - 1))
        if se > 0:
            half = t_quantile((1 + confidence) / 2, n - 1) * se
            low, high = estimate - half, estimate + half
    caveats = []
    if n == 1:
        caveats.append("one labelled item: there is no error to be known, so no interval")
    elif se == 0:
        caveats.append(f"the {n} labelled items show no spread, so no interval")
    elif n < FEW:
        caveats.append(f"{n} labelled items: few, so the interval is rough")
    if se and _se(left_n, w_n) == 0:
        caveats.append("the judge errs by the same amount on all labelled items: no spread of its errors was seen")
    is_rate = bool(np.isin(np.concatenate((y_n, all_j)), (0.0, 1.0)).all())
    if is_rate and low is not None and high is not None and (low < 0 or high > 1):
        caveats.append("the interval goes beyond 0 and 1, where no rate lies: read it as ending there")
    return PredictionPowered(
        n=n,
        N=N,
        estimate=estimate,
        se=se,
        low=low,
        high=high,
        lam=lam,
        classical=float(w_n @ y_n),
        classical_se=classical_se,
        judged=float(all_j.mean()),
        caveats=tuple(caveats),
    )


def rogan_gladen(
    y: Sequence[float], judged: Sequence[float], rest: Sequence[float], *, confidence: float = 0.95
) -> RoganGladen:
    """The true rate behind a judge's rate, for values of 0 and 1.

        theta = (p + sp - 1) / (se + sp - 1)
        var   = (p(1-p)/N + theta^2 se(1-se)/n_1 + (1-theta)^2 sp(1-sp)/n_0) / (se + sp - 1)^2

    with p the judge's rate over `rest`, se and sp its sensitivity and specificity on the n_1 and
    n_0 labelled items that are 1 and 0. Rogan and Gladen 1978; the variance is the delta method's.
    """
    from scipy.special import ndtri

    y_n, j_n, j_N = (np.asarray(values, dtype=np.float64) for values in (y, judged, rest))
    if not np.isin(np.concatenate((y_n, j_n, j_N)), (0.0, 1.0)).all():
        raise DataError("Rogan and Gladen's correction needs labels and judgements of 0 and 1")
    yes, no = y_n == 1, y_n == 0
    if not yes.any() or not no.any() or j_N.size == 0:
        raise DataError("the judge's errors need labelled items of both kinds, and items that only the judge has seen")
    hit, clear = float(j_n[yes].mean()), float(1 - j_n[no].mean())
    skill = hit + clear - 1
    if skill <= 0:
        raise DataError(
            f"the judge is no better than chance on the labelled items (sensitivity {hit:.2f}, specificity "
            f"{clear:.2f}), so its rate says nothing; use the labels alone"
        )
    rate = float(j_N.mean())
    raw = (rate + clear - 1) / skill
    theta = min(1.0, max(0.0, raw))
    spread = rate * (1 - rate) / j_N.size
    spread += theta**2 * hit * (1 - hit) / yes.sum() + (1 - theta) ** 2 * clear * (1 - clear) / no.sum()
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(spread) / skill
    return RoganGladen(
        estimate=theta,
        low=max(0.0, raw - half),
        high=min(1.0, raw + half),
        sensitivity=hit,
        specificity=clear,
    )


def _se(values: Floats, weights: Floats) -> float:
    """Standard error of a weighted mean whose weights sum to 1; sd/sqrt(n) where they are equal."""
    n = values.size
    error = math.sqrt(float(((weights * (values - weights @ values)) ** 2).sum()) * n / (n - 1))
    return 0.0 if error < 1e-12 * max(1.0, float(np.abs(values).max())) else error
