"""How far sources agree beyond chance: Krippendorff's alpha and Gwet's AC1 and AC2.

Both take any number of sources and missing votes; what they call chance differs. Alpha
takes it from the labels as they were given, so where nearly all labels are one class it can
be near zero though nearly all votes agree; Gwet's coefficient does not collapse there. They
stand beside each other for that reason. The interval is a percentile bootstrap over tasks,
since the sources of one task share it.

Each coefficient is a function of sums over tasks, so a bootstrap draw is one matrix product.

Legend: T tasks with at least one vote, K labels, n_uk votes of task u for label k.
Left out: Cohen's and Fleiss' kappa, which need complete votes and are special cases of alpha's idea.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metier.base.errors import DataError
from metier.stats.tables import number
from metier.stats.votes import CELLS, Floats, Votes

__all__ = ["Agreement", "Scale", "gwet", "krippendorff", "numbers"]

Scale = Literal["nominal", "ordinal", "interval"]

TABLE = 60  # labels beyond which an ordinal alpha would need tables too large to draw from


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A coefficient: 1 is full agreement, 0 is chance, below 0 is worse than chance."""

    name: str  # alpha, AC1 or AC2
    scale: Scale
    value: float | None  # None where chance agreement is certain or no task has two votes
    low: float | None  # None where fewer than two tasks have two votes, or draws give no value
    high: float | None
    tasks: int  # with at least two votes
    left_out: int  # tasks with one vote


def krippendorff(
    votes: Votes, *, scale: Scale = "nominal", seed: int = 0, draws: int = 1000, confidence: float = 0.95
) -> Agreement:
    """Krippendorff's alpha, 1 - D_o / D_e, over tasks with at least two votes.

        D_o = (1/n) sum_u sum_{c,k} n_uc n_uk d(c, k) / (n_u - 1)
        D_e = sum_{c,k} n_c n_k d(c, k) / (n (n - 1)),      n = sum_k n_k

    d is 1 for different labels (nominal), (c - k)^2 (interval), or
    (sum_{g=c..k} n_g - (n_c + n_k)/2)^2 (ordinal). Krippendorff 2011, Computing
    Krippendorff's Alpha-Reliability. The labels of the other two scales have to be numbers.
    """
    counts_TK = votes.counts()
    counts_TK = counts_TK[counts_TK.sum(axis=1) >= 2]
    sums_TS, value = _alpha_parts(counts_TK, votes.labels, scale)
    return _measured("alpha", scale, sums_TS, value, len(votes.tasks), seed, draws, confidence)


def gwet(
    votes: Votes, *, scale: Scale = "nominal", seed: int = 0, draws: int = 1000, confidence: float = 0.95
) -> Agreement:
    """Gwet's AC1 (nominal) and AC2 (ordinal, interval), (p_a - p_e) / (1 - p_e).

        p_a = mean over tasks with two votes of sum_k n_uk (sum_l w_kl n_ul - 1) / (n_u (n_u - 1))
        p_e = sum_kl w_kl / (K (K - 1)) * sum_k q_k (1 - q_k),    q_k = mean over all tasks of n_uk / n_u

    with weights w_kl of 1 for equal labels and else 0 (nominal), 1 - (k - l)^2 / (max - min)^2
    of the labels' values (interval), or 1 - C(|r_k - r_l| + 1, 2) / C(K, 2) of their ranks
    (ordinal). Gwet 2008, Br. J. Math. Stat. Psychol. 61; Handbook of Inter-Rater Reliability, 2014.
    """
    counts_TK = votes.counts()
    weights_KK = _weights(votes.labels, scale)
    size = len(votes.labels)
    total_T = counts_TK.sum(axis=1)
    pairs_T = total_T * (total_T - 1)
    near_TK = counts_TK @ weights_KK
    agree_T = (counts_TK * (near_TK - 1)).sum(axis=1) / np.where(pairs_T > 0, pairs_T, 1)
    two_T = (total_T >= 2).astype(np.float64)
    sums_TS = np.column_stack((two_T, agree_T * two_T, np.ones_like(total_T), counts_TK / total_T[:, None]))
    spread = weights_KK.sum() / (size * (size - 1)) if size > 1 else 0.0

    def value(sums_DS: Floats) -> Floats:
        agree = sums_DS[:, 1] / sums_DS[:, 0]
        share = sums_DS[:, 3:] / sums_DS[:, 2:3]
        chance = spread * (share * (1 - share)).sum(axis=1)
        return np.asarray((agree - chance) / (1 - chance))

    name = "AC1" if scale == "nominal" else "AC2"
    if size == 1:  # everyone says the same and could have said nothing else
        return _nothing(name, scale, int(two_T.sum()), int((two_T == 0).sum()))
    return _measured(name, scale, sums_TS, value, len(votes.tasks), seed, draws, confidence)


def numbers(labels: Sequence[str]) -> Floats:
    """Labels as numbers, for the scales that need them."""
    try:
        return np.asarray([number(label) for label in labels])
    except DataError as error:
        raise DataError(f"an ordinal or interval scale needs labels that are numbers: {error}; use nominal") from error


def _alpha_parts(counts_TK: Floats, labels: Sequence[str], scale: Scale) -> tuple[Floats, Callable[[Floats], Floats]]:
    """What to sum over tasks [T, S], and alpha of draws of such sums [D, S] -> [D]."""
    total_T = counts_TK.sum(axis=1)
    if scale == "nominal":
        apart_T = (total_T**2 - (counts_TK**2).sum(axis=1)) / (total_T - 1)

        def nominal(sums_DS: Floats) -> Floats:
            each, n = sums_DS[:, 1:], sums_DS[:, 1:].sum(axis=1)
            return _ratio(sums_DS[:, 0], (n**2 - (each**2).sum(axis=1)) / (n - 1))

        return np.column_stack((apart_T, counts_TK)), nominal
    values_K = numbers(labels)
    if scale == "interval":
        values_K = values_K - values_K.mean()  # squares of large numbers lose digits
        first_T, second_T = counts_TK @ values_K, counts_TK @ values_K**2
        apart_T = 2 * (total_T * second_T - first_T**2) / (total_T - 1)

        def interval(sums_DS: Floats) -> Floats:
            apart, n, first, second = sums_DS.T
            return _ratio(apart, 2 * (n * second - first**2) / (n - 1))

        return np.column_stack((apart_T, total_T, first_T, second_T)), interval
    size = len(labels)
    if size > TABLE or size * size * counts_TK.shape[0] > CELLS:
        raise DataError(f"{size} ordered labels are too many for an ordinal alpha; use interval")
    counts_TK = counts_TK[:, np.argsort(values_K)]
    both_TKK = counts_TK[:, :, None] * counts_TK[:, None, :]
    both_TKK[:, range(size), range(size)] -= counts_TK
    sums_TS = (both_TKK / (total_T - 1)[:, None, None]).reshape(-1, size * size)

    def ordinal(sums_DS: Floats) -> Floats:
        table_DKK = sums_DS.reshape(-1, size, size)
        each_DK = table_DKK.sum(axis=2)
        # Midpoints of the labels on the scale of how many votes lie below: their distance is the ordinal one.
        middle_DK = np.cumsum(each_DK, axis=1) - each_DK / 2
        apart_DKK = (middle_DK[:, :, None] - middle_DK[:, None, :]) ** 2
        chance_DKK = each_DK[:, :, None] * each_DK[:, None, :] / (each_DK.sum(axis=1) - 1)[:, None, None]
        return _ratio((table_DKK * apart_DKK).sum(axis=(1, 2)), (chance_DKK * apart_DKK).sum(axis=(1, 2)))

    return sums_TS, ordinal


def _weights(labels: Sequence[str], scale: Scale) -> Floats:
    size = len(labels)
    if scale == "nominal" or size == 1:
        return np.eye(size)
    values_K = numbers(labels)
    if scale == "interval":
        gap_KK = values_K[:, None] - values_K[None, :]
        return np.asarray(1 - gap_KK**2 / (values_K.max() - values_K.min()) ** 2)
    rank_K = np.argsort(np.argsort(values_K))
    far_KK = np.abs(rank_K[:, None] - rank_K[None, :])
    return np.asarray(1 - far_KK * (far_KK + 1) / (size * (size - 1)))


def _ratio(observed_D: Floats, expected_D: Floats) -> Floats:
    """1 - observed / expected; NaN where nothing else could be expected."""
    sure_D = expected_D > 1e-12
    return np.where(sure_D, 1 - observed_D / np.where(sure_D, expected_D, 1), np.nan)


def _measured(
    name: str,
    scale: Scale,
    sums_TS: Floats,
    value: Callable[[Floats], Floats],
    tasks: int,
    seed: int,
    draws: int,
    confidence: float,
) -> Agreement:
    rows = sums_TS.shape[0]
    usable = rows if name == "alpha" else int(sums_TS[:, 0].sum())
    if usable == 0:
        return _nothing(name, scale, 0, tasks)
    point = float(value(sums_TS.sum(axis=0, keepdims=True))[0])
    if np.isnan(point):
        return _nothing(name, scale, usable, tasks - usable)
    low = high = None
    if usable > 1:
        rng = np.random.default_rng(seed)
        # Tasks with the same votes are drawn together: the draws have the same distribution, and are far fewer numbers.
        kinds_US, alike_U = np.unique(sums_TS, axis=0, return_counts=True)
        chunk = max(1, min(draws, 4_000_000 // alike_U.size))
        found = [
            _drawn(value, rng.multinomial(rows, alike_U / rows, size=min(chunk, draws - done)) @ kinds_US)
            for done in range(0, draws, chunk)
        ]
        good = np.concatenate(found)
        good = good[np.isfinite(good)]
        if good.size >= 0.9 * draws:
            bounds = np.quantile(good, [(1 - confidence) / 2, (1 + confidence) / 2])
            low, high = float(bounds[0]), float(bounds[1])
    return Agreement(name=name, scale=scale, value=point, low=low, high=high, tasks=usable, left_out=tasks - usable)


def _drawn(value: Callable[[Floats], Floats], sums_DS: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold no task with two votes
        return value(sums_DS)


def _nothing(name: str, scale: Scale, tasks: int, left_out: int) -> Agreement:
    return Agreement(name=name, scale=scale, value=None, low=None, high=None, tasks=tasks, left_out=left_out)
