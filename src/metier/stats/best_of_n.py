"""Best of n: what is to be expected of the response that a reward likes best among n, from N samples of each prompt.

Choosing the best of n is optimisation that can be done offline, at every strength up to N, from one
pool of samples. Both curves come from the same choice: the reward's own, and that of any other
value of the chosen response (gold). Prompts are independent, samples of one prompt are not, so
intervals resample prompts, or the clusters into which they fall.

Legend: P prompts, N samples of one prompt, K values of n, B bootstrap draws, G clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from metier.stats.intervals import numbered

__all__ = ["best_of_n", "best_weights", "kl_of_best", "n_of_kl", "resample", "spread_within"]

Floats = NDArray[np.float64]


def kl_of_best(n: float) -> float:
    """KL from the policy to its best of n, in nats: ln n - (n-1)/n. Exact where no two samples tie."""
    if not n >= 1:
        raise ValueError(f"n is {n}; it is a number of samples, at least 1")
    return math.log(n) - (n - 1) / n


def n_of_kl(kl: float) -> float:
    """The n, not a whole number, whose best of n lies `kl` nats away; the inverse of `kl_of_best`."""
    from scipy.optimize import brentq

    if not kl >= 0:
        raise ValueError(f"a KL divergence is at least 0, not {kl}")
    if kl == 0:
        return 1.0
    return float(math.exp(brentq(lambda x: kl_of_best(math.exp(x)) - kl, 0.0, kl + 1.0, xtol=1e-13)))


def best_weights(size: int, n: int) -> Floats:
    """The chance of each rank, the worst first [N], to be the best of n drawn without replacement from N samples.

        w_i = C(i-1, n-1) / C(N, n),    i = 1 .. N

    Unbiased for the best of n fresh samples, where the n-th power of the empirical distribution is
    not (Nakano et al. 2021, arXiv 2112.09332, appendix I).
    """
    if not 1 <= n <= size:
        raise ValueError(f"{size} samples say nothing of the best of {n}; need 1 <= n <= N")
    whole = math.comb(size, n)
    return np.array([math.comb(rank, n - 1) / whole for rank in range(size)])


def best_of_n(reward_N: Sequence[float], value_N: Sequence[float], ns: Sequence[int]) -> Floats:
    """The expected value [K] of the sample with the highest reward among n, for each n; ties are drawn at random.

    With `value_N` the reward itself this is the reward's own curve. Unit: that of the values.
    """
    reward = np.asarray(reward_N, dtype=np.float64)
    value = np.asarray(value_N, dtype=np.float64)
    if reward.shape != value.shape or reward.ndim != 1:
        raise ValueError(f"{reward.size} rewards but {value.size} values; give one of each for each sample")
    _, place, count = np.unique(reward, return_inverse=True, return_counts=True)
    mean = np.bincount(place, value) / count  # of samples that tie, each is as likely
    ranked = mean[np.sort(place)]
    return np.array([best_weights(reward.size, n) @ ranked for n in ns])


def spread_within(value_N: Sequence[float]) -> float:
    """The unbiased variance of one prompt's samples: what a choice among them has to work with."""
    if len(value_N) < 2:
        raise ValueError("one sample has no spread; need at least two")
    return float(np.var(np.asarray(value_N, dtype=np.float64), ddof=1))


def resample(clusters: Sequence[Hashable], draws: int, seed: int) -> Floats:
    """How often each item counts in each bootstrap draw [B, P]: G clusters drawn with replacement, each whole.

    Efron 1979, by cluster. A mean under draw b is `(weights[b] @ values) / weights[b].sum()`.
    """
    place, groups = numbered(clusters)
    if groups < 2:
        raise ValueError("one cluster cannot be resampled; need at least two")
    times_BG = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return times_BG[:, place].astype(np.float64)
