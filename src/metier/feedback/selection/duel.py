"""Double Thompson sampling: which two of K arms to compare next, to find the best with few comparisons.

    u_ij, l_ij = w_ij / m_ij +- sqrt( ALPHA ln t / m_ij ),   m_ij = w_ij + w_ji,  t = sum m / 2;  1, 0 where m_ij = 0
    first      among the arms that may beat most others (by u), the one that beats most in a draw
               theta_ij ~ Beta(1 + w_ij, 1 + w_ji)
    second     among the arms that the first does not surely beat (l <= 1/2), the one that does best against it in
               a second draw; the first itself stands there with 1/2

Wu and Liu 2016, arXiv 1604.07101. The first arm twice means that nothing needs to be asked. Many draws at once give
the chance of each pair (`duel_shares`), by which a queue is filled; a single draw would leave its chance unknown.

Legend: K arms; w_ij how often i was preferred to j, half of each tie on either side; any number at least 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["double_thompson", "duel_shares"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

ALPHA = 0.51  # width of the bounds; above 1/2


def double_thompson(wins_KK: Floats, rng: np.random.Generator) -> tuple[int, int]:
    """The two arms to compare; the same arm twice where the best is known well enough for now."""
    first_D, second_D = _draws(wins_KK, rng, 1)
    return int(first_D[0]), int(second_D[0])


def duel_shares(wins_KK: Floats, rng: np.random.Generator, draws: int = 200) -> Floats:
    """How often `double_thompson` asks for each pair, over so many draws [K, K]; rows are the lower arm's place.

    On the diagonal stand the draws that ask for nothing.
    """
    first_D, second_D = _draws(wins_KK, rng, draws)
    shares_KK = np.zeros(wins_KK.shape)
    np.add.at(shares_KK, (np.minimum(first_D, second_D), np.maximum(first_D, second_D)), 1 / draws)
    return shares_KK


def _draws(wins_KK: Floats, rng: np.random.Generator, draws: int) -> tuple[Places, Places]:
    size = len(wins_KK)
    total_KK = wins_KK + wins_KK.T
    known_KK = total_KK > 0
    many_KK = np.where(known_KK, total_KK, 1.0)
    half_KK = np.sqrt(ALPHA * np.log(max(total_KK.sum() / 2, 1.0)) / many_KK)
    upper_KK = np.where(known_KK, wins_KK / many_KK + half_KK, 1.0)
    lower_KK = np.where(known_KK, wins_KK / many_KK - half_KK, 0.0)
    np.fill_diagonal(upper_KK, 0.5)
    np.fill_diagonal(lower_KK, 0.5)
    could_K = (upper_KK > 0.5).sum(axis=1)
    drawn_DKK = np.triu(rng.beta(1 + wins_KK, 1 + wins_KK.T, (draws, size, size)), 1)
    drawn_DKK += np.tril(1 - drawn_DKK.transpose(0, 2, 1), -1)
    beats_DK = (drawn_DKK > 0.5).sum(axis=2) + rng.random((draws, size))  # of equal ones, any
    first_D = np.where(could_K == could_K.max(), beats_DK, -1.0).argmax(axis=1)
    second_DK = rng.beta(1 + wins_KK.T[first_D], 1 + wins_KK[first_D])
    second_DK[np.arange(draws), first_D] = 0.5
    second_DK[lower_KK.T[first_D] > 0.5] = -1.0
    return first_D, second_DK.argmax(axis=1)
