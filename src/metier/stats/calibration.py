"""Whether stated probabilities can be believed: calibration, and how well they tell yes from no.

A bare calibration error says little: a perfect forecaster has one too, by chance. So each
comes with its null band, the errors of a forecaster whose outcomes are drawn from these very
probabilities. The Brier score is split without a rest: with at most `DISTINCT` different
probabilities into Murphy's groups of equal ones, else by isotonic recalibration (CORP,
Dimitriadis, Gneiting and Jordan 2021), because parts from bins of unequal ones do not add up.

Legend: n forecasts, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metier.base.errors import DataError
from metier.stats.votes import Floats, Places

__all__ = ["Band", "Bin", "Calibration", "Split", "auroc", "brier_split", "calibration", "chance_band"]

BINS = 10
DISTINCT = 20  # different probabilities up to which equal ones are groups
CLIP = 1e-9  # the log score takes no probability to be smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What a perfectly calibrated forecaster with these probabilities would have."""

    mean: float
    low: float  # 2.5 % of its values lie below
    high: float  # 2.5 % lie above


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Forecasts of one bin of equal width."""

    n: int
    forecast: float  # mean probability
    observed: float  # share of outcomes that are 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """brier = reliability - resolution + uncertainty, exactly."""

    reliability: float  # what recalibrating would save; 0 is perfect
    resolution: float  # what the recalibrated forecasts gain on always saying the base rate
    uncertainty: float  # the Brier score of always saying the base rate
    by: Literal["equal forecasts", "isotonic recalibration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All that is said of a set of forecasts."""

    n: int
    base_rate: float
    mean_forecast: float
    ece: float
    ece_null: Band
    adaptive_ece: float
    adaptive_ece_null: Band
    brier: float
    split: Split
    log_score: float  # mean of -ln of the probability of what happened; lower is better
    clipped: int  # forecasts for which that probability was below `CLIP`
    auroc: float | None  # None where all outcomes are the same
    bins: tuple[Bin, ...]  # those with forecasts in them


def calibration(p: Sequence[float], y: Sequence[float], *, seed: int = 0, draws: int = 2000) -> Calibration:
    """Judge forecasts `p` [n], each in [0, 1], by their outcomes `y` [n], each 0 or 1.

        ECE = sum_b (n_b / n) |mean p_b - mean y_b|

    over `BINS` bins of equal width, closed below (the last one on both sides), or, adaptive, of
    equal numbers of forecasts by rank. Equal forecasts stay together, in the bin of the middle one
    of them, so adaptive bins may be uneven and fewer. The band is that of `draws` sets of outcomes.
    The order of the rows changes nothing.
    """
    from scipy.stats import rankdata

    p_n, y_n = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if p_n.size == 0 or p_n.size != y_n.size:
        raise DataError(f"{p_n.size} probabilities and {y_n.size} outcomes; there must be as many, and at least one")
    if not ((p_n >= 0) & (p_n <= 1)).all():
        raise DataError("a probability lies in [0, 1]")
    if not np.isin(y_n, (0.0, 1.0)).all():
        raise DataError("an outcome is 0 or 1")
    order = np.lexsort((y_n, p_n))  # one order, so that the same outcomes are drawn
    p_n, y_n = p_n[order], y_n[order]
    wide_n = np.minimum((p_n * BINS).astype(np.intp), BINS - 1)
    deep_n = ((rankdata(p_n) - 1) * min(BINS, p_n.size) // p_n.size).astype(np.intp)
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // p_n.size)
    null_wide, null_deep = [], []
    for done in range(0, draws, step):
        drawn = (rng.random((min(step, draws - done), p_n.size)) < p_n).astype(np.float64)
        null_wide.append(_errors(p_n, drawn, wide_n))
        null_deep.append(_errors(p_n, drawn, deep_n))
    happened = np.where(y_n == 1, p_n, 1 - p_n)
    count, forecast, observed = (np.bincount(wide_n, weights, BINS) for weights in (None, p_n, y_n))
    return Calibration(
        n=p_n.size,
        base_rate=float(y_n.mean()),
        mean_forecast=float(p_n.mean()),
        ece=float(_errors(p_n, y_n[None], wide_n)[0]),
        ece_null=_band(np.concatenate(null_wide)),
        adaptive_ece=float(_errors(p_n, y_n[None], deep_n)[0]),
        adaptive_ece_null=_band(np.concatenate(null_deep)),
        brier=float(((p_n - y_n) ** 2).mean()),
        split=brier_split(p_n, y_n),
        log_score=float(-np.log(np.maximum(happened, CLIP)).mean()),
        clipped=int((happened < CLIP).sum()),
        auroc=auroc(p_n, y_n),
        bins=tuple(
            Bin(n=int(count[b]), forecast=float(forecast[b] / count[b]), observed=float(observed[b] / count[b]))
            for b in np.flatnonzero(count)
        ),
    )


def chance_band(one: Bin) -> tuple[float, float]:
    """Between which shares of 1 a bin lies by chance, 19 times out of 20, if its mean forecast is right.

        low, high = F^-1(.025), F^-1(.975) of Bin(n, forecast), over n

    Forecasts of a bin differ a little, and then the band is a little wide: their sum varies less than the binomial.
    """
    from scipy.stats import binom

    low, high = binom.ppf((0.025, 0.975), one.n, one.forecast)
    return max(0.0, float(low) / one.n), float(high) / one.n


def brier_split(p_n: Floats, y_n: Floats) -> Split:
    """The parts of the Brier score.

        reliability = BS(p) - BS(r),   resolution = BS(base rate) - BS(r),   uncertainty = BS(base rate)

    with r the recalibrated forecast: the share of 1 among equal forecasts (Murphy 1973, for which
    these are sum n_k (p_k - r_k)^2 / n and sum n_k (r_k - base)^2 / n), or the isotonic fit.
    """
    from scipy.optimize import isotonic_regression

    values, group_n, count = np.unique(p_n, return_inverse=True, return_counts=True)
    share = np.bincount(group_n, y_n) / count
    few = values.size <= DISTINCT
    if not few:
        share = isotonic_regression(share, weights=count.astype(np.float64)).x
    calibrated = ((share[group_n] - y_n) ** 2).mean()
    base = float(((y_n.mean() - y_n) ** 2).mean())
    return Split(
        reliability=max(0.0, float(((p_n - y_n) ** 2).mean() - calibrated)),
        resolution=max(0.0, float(base - calibrated)),
        uncertainty=base,
        by="equal forecasts" if few else "isotonic recalibration",
    )


def auroc(p_n: Floats, y_n: Floats) -> float | None:
    """The chance that a 1 has the higher forecast than a 0, ties counting half; None where one kind is missing."""
    from scipy.stats import rankdata

    ones = int(y_n.sum())
    zeros = y_n.size - ones
    if ones == 0 or zeros == 0:
        return None
    return float((rankdata(p_n)[y_n == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _errors(p_n: Floats, y_Dn: Floats, bin_n: Places) -> Floats:
    """The calibration error of each of D sets of outcomes."""
    gap_DB = np.zeros((y_Dn.shape[0], int(bin_n.max()) + 1))
    for b in np.unique(bin_n):
        inside = bin_n == b
        gap_DB[:, b] = np.abs(p_n[inside].sum() - y_Dn[:, inside].sum(axis=1))
    return np.asarray(gap_DB.sum(axis=1) / p_n.size)


def _band(values: Floats) -> Band:
    low, high = np.quantile(values, [0.025, 0.975])
    return Band(mean=float(values.mean()), low=float(low), high=float(high))
