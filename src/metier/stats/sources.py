"""How good each source of labels is: information per unit of cost, accuracy on gold, and signs of spam.

Information is what a label tells about the truth, so it compares a source that is often
right with one that is wrong in a way that can be read. It is measured against what all
others say of the same tasks: a source's own vote is taken out of the posterior first, or
each would seem to know what only it says.

What spam detection does not protect against: sources that copy the majority rather than
each other, and copiers who meet on fewer than `SHARED` tasks.

Legend: N votes, T tasks, W sources, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metier.stats.paired import holm
from metier.stats.truth import Truth, glad, one_coin
from metier.stats.votes import CELLS, Floats, Mask, Places, Votes

__all__ = ["Source", "Suspicion", "beta_interval", "sources", "suspicions"]

SHARED = 10  # tasks below which nothing is said of a source or a pair
SUSPECT = 0.01  # chance of any false alarm of one kind, over all sources or pairs
GUESS = 2.0  # standard errors above its own labels in random order that show a source to read
SAME = 0.9  # share of one label from which a source may be a constant one
COPIED = 0.5  # share of tasks on which a pair has to have copied to be called copiers
ODD = 2.5  # standard errors of agreement from which a pair is looked at again
PAIRS = 20_000_000  # pairs of votes beyond which copiers are not looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of labels, measured."""

    name: str
    votes: int
    bits: float | None  # of information about the truth in one label; None where no vote of it can be checked
    bits_per_cost: float | None  # bits divided by what a label costs
    agreement: float | None  # how often it says what the others make most probable
    gold: int  # its votes on gold tasks
    right: int  # of those, right
    accuracy: float | None  # posterior mean of its accuracy on gold; None where it voted on no gold task
    low: float | None  # bounds of the accuracy
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """A source, or a pair of them, whose labels look made without reading."""

    kind: Literal["random", "constant", "copier"]
    sources: tuple[str, ...]
    n: int  # votes, or tasks that the pair shares
    observed: float  # agreement with the others (random), share of its main label (constant), agreement of the pair
    expected: float  # the same for an ordinary source or pair on the same tasks
    p: float  # chance of this much where nothing is wrong, adjusted for all that were looked at


def sources(
    votes: Votes,
    truth: Truth | None = None,
    *,
    gold: Mapping[str, str] | None = None,
    cost: Mapping[str, float] | None = None,
    confidence: float = 0.95,
) -> list[Source]:
    """Each source in the order of `votes.sources`; `cost` is of one label of a source, 1 where not named.

        I = sum_kl P(k, l) log2( P(k, l) / (P(k) P(l)) ) - (K_t - 1)(K_l - 1) / (2 n ln 2),   at least 0

    with P(k, l) the share of its votes that say l while the others' posterior is k: the mutual
    information of its labels with the truth, in bits, less its bias in n votes (Miller 1955;
    K_t and K_l are the truths and labels that it met). Without a fit the others' posterior is
    their share of votes. On gold, with a uniform prior: accuracy ~ Beta(1 + right, 1 + wrong). Raises `DataError`
    for gold of which no task was labelled.
    """
    others_NK, known_N = others(votes, truth)
    size, width = len(votes.sources), len(votes.labels)
    joint_WKL = np.zeros((size, width, width))
    np.add.at(joint_WKL.transpose(0, 2, 1), (votes.source[known_N], votes.label[known_N]), others_NK[known_N])
    alike_N = others_NK.argmax(axis=1) == votes.label
    gold_N = votes.known(gold)[votes.task]
    n_W = votes.per_source()
    checked_W = np.bincount(votes.source, known_N, size)
    agree_W = np.bincount(votes.source, known_N & alike_N, size)
    gold_W = np.bincount(votes.source, gold_N >= 0, size)
    right_W = np.bincount(votes.source, gold_N == votes.label, size)
    out = []
    for w, name in enumerate(votes.sources):
        bits = _bits(joint_WKL[w]) if checked_W[w] else None
        price = 1.0 if cost is None else cost.get(name, 1.0)
        if not price > 0:
            raise ValueError(f"a label of {name} costs {price}; a cost must be above 0")
        low = high = None
        if gold_W[w]:
            low, high = beta_interval(int(right_W[w]), int(gold_W[w]), confidence=confidence)
        out.append(
            Source(
                name=name,
                votes=int(n_W[w]),
                bits=bits,
                bits_per_cost=None if bits is None else bits / price,
                agreement=float(agree_W[w] / checked_W[w]) if checked_W[w] else None,
                gold=int(gold_W[w]),
                right=int(right_W[w]),
                accuracy=float((1 + right_W[w]) / (2 + gold_W[w])) if gold_W[w] else None,
                low=low,
                high=high,
            )
        )
    return out


def beta_interval(right: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The central interval of Beta(1 + right, 1 + n - right): an accuracy seen in n trials, under a uniform prior."""
    from scipy.special import betaincinv

    if not 0 <= right <= n:
        raise ValueError(f"{right} right among {n} is no share")
    low, high = betaincinv(1 + right, 1 + n - right, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def others(votes: Votes, truth: Truth | None = None) -> tuple[Floats, Mask]:
    """What all but the voter make of the task of each vote [N, K], and whether there is anyone else [N]."""
    if truth is not None and truth.confusion_WKK is not None:
        # P(k | others) ~ P(k | all) / A_w[k, l]
        said_NK = truth.confusion_WKK[votes.source, :, votes.label]
        left_NK = truth.posterior_TK[votes.task] / np.maximum(said_NK, 1e-12)
    else:
        counts_TK = votes.counts()
        left_NK = counts_TK[votes.task]
        left_NK[np.arange(votes.task.size), votes.label] -= 1
    total_N1 = left_NK.sum(axis=1, keepdims=True)
    known_N = votes.per_task()[votes.task] > 1
    return np.where(total_N1 > 0, left_NK / np.where(total_N1 > 0, total_N1, 1), 1 / left_NK.shape[1]), known_N


def suspicions(votes: Votes) -> list[Suspicion]:
    """Sources that guess, that always say the same, and pairs that copy; with what was seen and what was expected.

    random: agrees with the others clearly less than an ordinary source does, and not clearly
    (`GUESS` standard errors) more than its own labels would in random order.
    constant: gives one label at least `SAME` of the time, where others of the same tasks do so far less.
    copier: a pair that agrees as if one had copied at least `COPIED` of the tasks. With p and q
    how probably each is right on the task (GLAD, which tells hard tasks from easy ones),
    independent sources agree with probability p q + (1 - p)(1 - q) s, s being how often two
    wrong votes are alike.

    All are normal tests, named where the Holm-adjusted p is at most `SUSPECT`; nothing is said
    on fewer than `SHARED` votes or shared tasks.
    """
    if len(votes.labels) < 2:
        return []
    return [*_random(votes), *_constant(votes), *_copiers(votes)]


def _bits(joint_KL: Floats) -> float:
    n = joint_KL.sum()
    joint_KL = joint_KL / n
    row_K, column_L = joint_KL.sum(axis=1), joint_KL.sum(axis=0)
    outer_KL = row_K[:, None] * column_L[None, :]
    some_KL = joint_KL > 0
    plain = float((joint_KL[some_KL] * np.log2(joint_KL[some_KL] / outer_KL[some_KL])).sum())
    bias = (max((row_K * n > 0.5).sum(), 1) - 1) * ((column_L > 0).sum() - 1) / (2 * n * np.log(2))
    return max(0.0, plain - float(bias))


def _random(votes: Votes) -> list[Suspicion]:
    fit = one_coin(votes)
    given_W, share_WL = _habits(votes)
    left_NK, known_N = others(votes, fit)
    agree_N = left_NK[np.arange(votes.task.size), votes.label]
    usual = float(fit.accuracy_W @ given_W) / votes.task.size
    # What an ordinary source says, and what this one would say if its own labels were in random order.
    said_NK = usual * left_NK + (1 - usual) * (1 - left_NK) / (len(votes.labels) - 1)
    mine_NK = share_WL[votes.source]

    def by_source(values_N: Floats) -> Floats:
        return np.bincount(votes.source, values_N * known_N, len(votes.sources)).astype(np.float64)

    def against(said_NK: Floats) -> tuple[Floats, Floats]:
        """The agreement expected of each source [W], and how far it is from that in standard errors [W]."""
        want_N = (said_NK * left_NK).sum(axis=1)
        error_W = np.sqrt(by_source((said_NK * left_NK**2).sum(axis=1) - want_N**2) + 0.25)
        return by_source(want_N), (by_source(agree_N) - by_source(want_N)) / error_W

    n_W = by_source(np.ones(votes.task.size)).astype(np.intp)
    seen_W = by_source(agree_N)
    (usual_W, below_W), (_, above_W) = against(said_NK), against(mine_NK)
    rows = np.flatnonzero((n_W >= SHARED) & (share_WL.max(axis=1) < SAME))
    found = _named("random", votes, [(int(w),) for w in rows], n_W[rows], seen_W[rows], usual_W[rows], below_W[rows])
    guesses = {votes.sources[w] for w in rows if above_W[w] < GUESS}
    return [one for one in found if one.sources[0] in guesses]


def _constant(votes: Votes) -> list[Suspicion]:
    others_NK, known_N = others(votes)
    n_W, share_WL = _habits(votes.subset(known_N))
    main_W = share_WL.argmax(axis=1)
    want_N = np.where(known_N, others_NK[np.arange(votes.task.size), main_W[votes.source]], 0)
    want_W = np.bincount(votes.source, want_N, n_W.size).astype(np.float64)
    error_W = np.sqrt(np.bincount(votes.source, want_N * (1 - want_N), n_W.size) + 0.25)
    seen_W = share_WL.max(axis=1) * n_W
    rows = np.flatnonzero((n_W >= SHARED) & (share_WL.max(axis=1) >= SAME))
    low_W = (want_W - seen_W) / error_W
    return _named("constant", votes, [(int(w),) for w in rows], n_W[rows], seen_W[rows], want_W[rows], low_W[rows])


def _copiers(votes: Votes) -> list[Suspicion]:
    from scipy.special import expit

    n_T = votes.per_task()
    if (n_T * (n_T - 1) // 2).sum() > PAIRS or len(votes.tasks) * len(votes.labels) > CELLS:
        return []
    one_P, two_P = _pairs(votes, n_T)
    names_P = votes.source[one_P] * len(votes.sources) + votes.source[two_P]
    names_Q, pair_P, shared_Q = np.unique(names_P, return_inverse=True, return_counts=True)
    busy_Q = shared_Q >= SHARED
    if not busy_Q.any():
        return []
    same_P = votes.label[one_P] == votes.label[two_P]
    seen_Q = np.bincount(pair_P, same_P).astype(np.float64)
    whose_Q2 = np.stack((names_Q // len(votes.sources), names_Q % len(votes.sources)), axis=1)

    def expected(fit: Truth, ability_W: Floats) -> tuple[Floats, Floats]:
        """How often each pair should agree [Q], and how far below what was seen that is, in standard errors [Q]."""
        assert fit.easiness_T is not None
        right_N = expit(ability_W[votes.source] * fit.easiness_T[votes.task])
        wrong_N = fit.posterior_TK.argmax(axis=1)[votes.task] != votes.label
        wrong_P = wrong_N[one_P] & wrong_N[two_P]
        alike = float(same_P[wrong_P].mean()) if wrong_P.any() else 1.0
        p_P, q_P = right_N[one_P], right_N[two_P]
        want_P = p_P * q_P + (1 - p_P) * (1 - q_P) * alike
        want_Q = np.bincount(pair_P, want_P).astype(np.float64)
        return want_Q, (want_Q - seen_Q) / np.sqrt(np.bincount(pair_P, want_P * (1 - want_P)) + 0.25)

    fit = glad(votes)
    assert fit.ability_W is not None
    want_Q, low_Q = expected(fit, fit.ability_W)
    # Copiers confirm each other, so they look able and their agreement looks earned. Pairs that agree oddly often
    # are therefore looked at again by a fit that has one of them only, and the other is taken to be as able.
    twin: dict[int, int] = {}
    for q in np.argsort(low_Q):
        one, two = (int(w) for w in whose_Q2[q])
        if low_Q[q] > -ODD:
            break
        if busy_Q[q] and one not in twin and two not in twin:
            twin[two] = one
    if twin:
        fit = glad(votes.subset(~np.isin(votes.source, list(twin))))
        assert fit.ability_W is not None
        ability_W = fit.ability_W.copy()
        ability_W[list(twin)] = ability_W[list(twin.values())]
        again_Q = np.asarray([twin.get(int(two)) == one for one, two in whose_Q2])
        new_want_Q, new_low_Q = expected(fit, ability_W)
        want_Q, low_Q = np.where(again_Q, new_want_Q, want_Q), np.where(again_Q, new_low_Q, low_Q)
    rows = np.flatnonzero(busy_Q)
    pairs = [(int(one), int(two)) for one, two in whose_Q2[rows]]
    found = _named("copier", votes, pairs, shared_Q[rows], seen_Q[rows], want_Q[rows], low_Q[rows])
    return [one for one in found if one.observed - one.expected >= COPIED * (1 - one.expected)]


def _habits(votes: Votes) -> tuple[Places, Floats]:
    """How many votes each source gave [W], and the share of each label among them [W, K]."""
    size, width = len(votes.sources), len(votes.labels)
    flat = np.bincount(votes.source * width + votes.label, minlength=size * width).reshape(size, width)
    n_W = flat.sum(axis=1)
    return n_W, flat / np.maximum(n_W, 1)[:, None]


def _pairs(votes: Votes, n_T: Places) -> tuple[Places, Places]:
    """All pairs of votes on one task, as places of votes, the source with the lower number first."""
    order = np.lexsort((votes.source, votes.task))
    start_T = np.cumsum(n_T) - n_T
    ones, twos = [], []
    for n in np.unique(n_T[n_T > 1]):
        i, j = np.triu_indices(n, 1)
        first = start_T[n_T == n][:, None]
        ones.append((first + i).ravel())
        twos.append((first + j).ravel())
    if not ones:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    return order[np.concatenate(ones)], order[np.concatenate(twos)]


def _named(
    kind: Literal["random", "constant", "copier"],
    votes: Votes,
    who: Sequence[tuple[int, ...]],
    n_R: Places,
    seen_R: Floats,
    want_R: Floats,
    z_R: Floats,
) -> list[Suspicion]:
    """Those whose lower-tail normal p of `z_R` stays at most `SUSPECT` after Holm's correction over all rows."""
    from scipy.special import ndtr

    return [
        Suspicion(
            kind=kind,
            sources=tuple(votes.sources[w] for w in which),
            n=int(n),
            observed=float(seen / n),
            expected=float(want / n),
            p=p,
        )
        for which, n, seen, want, p in zip(who, n_R, seen_R, want_R, holm(ndtr(z_R).tolist()), strict=True)
        if p is not None and p <= SUSPECT
    ]
