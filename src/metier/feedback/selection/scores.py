"""What an answer about an item is worth, before anybody gives it: pure functions over arrays.

The value of an item is information about what people would say, times how much its kind of task needs any:

    value = (uncertainty + disagreement + ensemble) * coverage * weakness

and per cost it is divided by the seconds that an answer takes, or by 1 where people are paid for items.

The three parts of information are in bits, each at most 1, and an item of which nothing is known is worth 1. Only
the order that values give counts further on (`design.py`), so no scale between the parts has to be right.

Legend: N items, S sources, M members of an ensemble, K kinds of task. NaN where a source or member says nothing.

Left out: what an answer about one item tells of the others. Draws are spread over kinds and tasks instead.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

__all__ = ["coverage", "entropy", "mutual_information", "pair_probability", "reading_seconds", "value", "weakness"]

Floats = NDArray[np.float64]

SURE = 0.02  # no source is believed beyond 1 - SURE
PAST = 5.0  # answers' worth of the assumed pace, against the pace that was seen
BEGIN_SECONDS = 6.0  # that a person takes for any item
PACE = 20.0  # characters that a person reads in a second


def entropy(p: Floats) -> Floats:
    """Bits by which the answer is open where its probability is p.

        H(p) = -p log2 p - (1 - p) log2 (1 - p)

    NaN stays NaN. Unit: bits, 0 to 1.
    """
    p = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    bits: Floats = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return bits


def mutual_information(p_MN: Floats) -> Floats:
    """Bits that the answer tells about which of M members is right [N].

        I = H( mean_m p_m ) - mean_m H(p_m)

    Over the members of an ensemble this is BALD (Houlsby et al. 2011, arXiv 1112.5745): the part of the uncertainty
    that more labels can remove, as each member is sure of something else. Over sources it is the generalised
    Jensen-Shannon divergence, their disagreement. 0 where fewer than two say anything.
    """
    p_MN = np.asarray(p_MN, dtype=np.float64)
    if p_MN.shape[0] == 0:
        return np.zeros(p_MN.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        bits = entropy(np.nanmean(p_MN, axis=0)) - np.nanmean(entropy(p_MN), axis=0)
    known: Floats = np.maximum(np.nan_to_num(bits), 0.0)
    return known


def pair_probability(first: Floats | float, second: Floats | float) -> Floats:
    """Probability that the first of two is better, half of the ties counted, from scores that are chances of success.

        P(1 > 2) + P(tie)/2 = s_1 (1 - s_2) + (s_1 s_2 + (1 - s_1)(1 - s_2))/2 = (1 + s_1 - s_2)/2

    where success of the two is independent given their scores.
    """
    p: Floats = (1 + np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)) / 2
    return np.clip(p, SURE, 1 - SURE)


def coverage(labelled_K: Floats) -> Floats:
    """How badly each kind of task is known, 1 for one with a mean number of labels [K].

        c_k = sqrt( (1 + mean_j n_j) / (1 + n_k) )

    the standard error of a mean over the kind's n_k labels, one added, relative to that of a kind of mean count.
    """
    labelled_K = np.asarray(labelled_K, dtype=np.float64)
    return np.sqrt((1 + labelled_K.mean()) / (1 + labelled_K)) if labelled_K.size else np.zeros(0)


def weakness(failed_K: Floats, n_K: Floats) -> Floats:
    """How often the last evaluation failed in each kind, 1 for as often as in all together [K].

        w_k = (f_k + a f) / (n_k + a) / f,    f = (sum f_k + 1) / (sum n_k + 2),  a = 2

    `failed_K` of `n_K` tasks failed. A kind that was not evaluated has 1, and one that is solved never 0.
    """
    failed_K, n_K = np.asarray(failed_K, dtype=np.float64), np.asarray(n_K, dtype=np.float64)
    overall = (failed_K.sum() + 1) / (n_K.sum() + 2)
    weak: Floats = (failed_K + 2 * overall) / (n_K + 2) / overall
    return weak


def reading_seconds(characters_N: Floats, seen: Floats, took: Floats) -> Floats:
    """Seconds that an answer about items of so many characters takes [N], by the answers so far.

        t = g (BEGIN_SECONDS + characters / PACE),    ln g = sum_i ln( took_i / t_i ) / (m + PAST)

    for m answers of `took` seconds about items of `seen` characters: the pace that was seen, drawn towards the
    assumed one by `PAST` answers' worth.
    """

    def assumed(characters: Floats) -> Floats:
        seconds: Floats = BEGIN_SECONDS + np.asarray(characters, dtype=np.float64) / PACE
        return seconds

    known = np.asarray(took, dtype=np.float64) > 0
    ratio = np.log(np.asarray(took, dtype=np.float64)[known] / assumed(seen)[known])
    return assumed(characters_N) * float(np.exp(ratio.sum() / (ratio.size + PAST)))


def value(uncertainty: Floats, disagreement: Floats, ensemble: Floats, needed: Floats) -> Floats:
    """The value of each item [N]; `needed` is coverage times weakness of its kind."""
    worth: Floats = (uncertainty + disagreement + ensemble) * needed
    return worth
