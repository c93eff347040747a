"""Models of how labels come about, fitted without the truth: what each task's label is, and how good each source.

Three models, from few to many parameters: `one_coin` (a source is right with one
probability), `glad` (and tasks differ in how hard they are), `dawid_skene` (a source has a
whole table of what it says when the truth is k). All take errors to be independent once the
truth is given. Where sources share their mistakes that is false, and a shared mistake looks
like skill: metier.stats.aggregate says when to trust a fit.

crowd-kit has the same models; it is not used because it brings scikit-learn, nltk and
transformers, and these are a page each. A test holds them to its accuracies.

Legend: N votes, T tasks, W sources, K labels; suffixes name the axes: `posterior_TK`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metier.base.errors import DataError
from metier.stats.votes import CELLS, Floats, Votes

__all__ = ["PRIOR", "Truth", "dawid_skene", "glad", "log_likelihoods", "one_coin"]

PRIOR = 10.0  # votes' worth of what all sources do, given to each one
COIN_PRIOR = 4.0  # the same for the single probability of `one_coin`
FLOOR = 1e-10  # no answer is impossible, so one odd vote cannot decide a task
ROUNDS = 500
TOLERANCE = 1e-6  # of the posterior; smaller steps change no label


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A fit: the probability of each label for each task, and how well each source does."""

    method: str
    posterior_TK: Floats
    prior_K: Floats  # the share of each label, before any vote
    accuracy_W: Floats  # probability that the source is right, over the tasks it saw
    confusion_WKK: Floats | None  # P(source says l | truth is k); None for glad, where it depends on the task
    ability_W: Floats | None = None  # glad's a; None elsewhere
    easiness_T: Floats | None = None  # glad's b > 0; None elsewhere
    rounds: int  # steps of the fit
    converged: bool


def dawid_skene(votes: Votes, *, prior: float = PRIOR, alike: bool = False) -> Truth:
    """Dawid and Skene 1979, by EM, each source's table drawn towards that of all together.

        P(t_i = k) ~ p_k prod_j A_j[k, l_ij]
        A_j[k, l] = (n_j[k, l] + prior * A[k, l]) / (n_j[k] + prior)

    with n_j the expected counts of source j and A the pooled table of all of them. `prior`
    is in votes; 0 is maximum likelihood as published, which overfits where a source gave few
    votes. `alike` gives every source the pooled table. Starts from the shares of the votes.
    """
    sources, size = len(votes.sources), len(votes.labels)
    if sources * size * size > CELLS:
        raise DataError(
            f"{size:,} labels and {sources:,} sources make tables of {sources * size * size:,} numbers, more than "
            "dawid-skene can learn from such labels; use majority, or group the labels first"
        )
    posterior_TK = _shares(votes)
    cell = votes.source * size + votes.label
    smooth = min(prior, 1.0)
    rounds, moved = 0, np.inf
    while rounds < ROUNDS and moved > TOLERANCE:
        prior_K = (posterior_TK.sum(axis=0) + smooth) / (len(votes.tasks) + smooth * size)
        seen_WLK = np.stack(
            [np.bincount(cell, posterior_TK[votes.task, k], sources * size) for k in range(size)], axis=-1
        )
        seen_WKL = seen_WLK.reshape(sources, size, size).transpose(0, 2, 1).astype(np.float64)
        confusion_WKK = _tables(seen_WKL, prior, alike)
        log_TK = np.tile(np.log(np.maximum(prior_K, FLOOR)), (len(votes.tasks), 1))
        log_WKL = np.log(np.maximum(confusion_WKK, FLOOR))
        for k in range(size):
            log_TK[:, k] += np.bincount(votes.task, log_WKL[votes.source, k, votes.label], len(votes.tasks))
        new_TK = _softmax(log_TK)
        moved = float(np.abs(new_TK - posterior_TK).max())
        posterior_TK, rounds = new_TK, rounds + 1
    return Truth(
        method="dawid-skene",
        posterior_TK=posterior_TK,
        prior_K=prior_K,
        accuracy_W=np.einsum("k,wkk->w", prior_K, confusion_WKK),
        confusion_WKK=confusion_WKK,
        rounds=rounds,
        converged=moved <= TOLERANCE,
    )


def one_coin(votes: Votes, *, prior: float = COIN_PRIOR, alike: bool = False) -> Truth:
    """Each source is right with one probability a_j, and says any other label equally often; by EM.

        P(t_i = k) ~ p_k prod_j (a_j if l_ij = k else (1 - a_j) / (K - 1))
        a_j = (expected votes that are right + prior * a) / (votes + prior)

    with a the share of all votes that are right. Zhang et al. 2014, arXiv 1406.3824. `alike`
    gives every source a.
    """
    tasks, sources, size = len(votes.tasks), len(votes.sources), len(votes.labels)
    others = max(size - 1, 1)
    cell = votes.task * size + votes.label
    given_W = votes.per_source()
    posterior_TK = _shares(votes)
    rounds, moved = 0, np.inf
    while rounds < ROUNDS and moved > TOLERANCE:
        prior_K = (posterior_TK.sum(axis=0) + 1) / (tasks + size)
        right_W = np.bincount(votes.source, posterior_TK[votes.task, votes.label], sources)
        pooled = (right_W.sum() + 1) / (votes.task.size + 2)
        accuracy_W = np.full(sources, pooled) if alike else (right_W + prior * pooled) / (given_W + prior)
        weight_W = np.log(accuracy_W) - np.log(np.maximum(1 - accuracy_W, FLOOR) / others)
        counted = np.bincount(cell, weight_W[votes.source], tasks * size).reshape(tasks, size)
        new_TK = _softmax(np.log(prior_K) + counted)
        moved = float(np.abs(new_TK - posterior_TK).max())
        posterior_TK, rounds = new_TK, rounds + 1
    confusion_WKK = None
    if sources * size * size <= CELLS:
        confusion_WKK = np.repeat(((1 - accuracy_W) / others)[:, None], size * size, axis=1).reshape(-1, size, size)
        confusion_WKK[:, range(size), range(size)] = accuracy_W[:, None]
    return Truth(
        method="one-coin",
        posterior_TK=posterior_TK,
        prior_K=prior_K,
        accuracy_W=accuracy_W,
        confusion_WKK=confusion_WKK,
        rounds=rounds,
        converged=moved <= TOLERANCE,
    )


def glad(votes: Votes) -> Truth:
    """Whitehill et al. 2009: sources differ in ability, tasks in how easy they are.

        P(l_ij = t_i) = sigma(a_j b_i),   b_i = exp(c_i),   other labels share the rest equally

    with a_j ~ N(1, 1) and c_i ~ N(0, 1) as published, and all labels equally likely before
    any vote. The marginal likelihood is climbed directly (L-BFGS): its gradient is that of
    the E step, (r - p) for each vote, with r the posterior that the vote is right and p the
    model's probability that it is.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit, logsumexp

    tasks, sources, size = len(votes.tasks), len(votes.sources), len(votes.labels)
    cell = votes.task * size + votes.label
    others = max(size - 1, 1)

    def scores(x: Floats) -> tuple[Floats, Floats]:
        """Each vote's a_j b_i [N], and the log of prior times likelihood [T, K]."""
        product_N = x[votes.source] * np.exp(x[sources + votes.task])
        wrong_N = log_expit(-product_N) - np.log(others)
        gain_N = log_expit(product_N) - wrong_N
        log_TK = np.bincount(cell, gain_N, tasks * size).reshape(tasks, size)
        return product_N, log_TK + np.bincount(votes.task, wrong_N, tasks)[:, None] - np.log(size)

    def climb(x: Floats) -> tuple[float, Floats]:
        product_N, log_TK = scores(x)
        total_T = logsumexp(log_TK, axis=1)
        right_N = np.exp(log_TK[votes.task, votes.label] - total_T[votes.task])
        slope_N = right_N - expit(product_N)
        ability, ease = x[:sources], x[sources:]
        slope = np.concatenate(
            (
                np.bincount(votes.source, slope_N * np.exp(ease)[votes.task], sources) - (ability - 1),
                np.bincount(votes.task, slope_N * product_N, tasks) - ease,
            )
        )
        value = total_T.sum() - ((ability - 1) ** 2).sum() / 2 - (ease**2).sum() / 2
        return -float(value), -slope

    start = np.concatenate((np.ones(sources), np.zeros(tasks)))
    # A product of a and b needs no more room than this, and exp stays finite.
    room = [(-20.0, 20.0)] * sources + [(-5.0, 5.0)] * tasks
    found = minimize(climb, start, jac=True, method="L-BFGS-B", bounds=room, options={"maxiter": 500})
    product_N, log_TK = scores(found.x)
    posterior_TK = _softmax(log_TK)
    right_W = np.bincount(votes.source, expit(product_N), sources)
    return Truth(
        method="glad",
        posterior_TK=posterior_TK,
        prior_K=np.full(size, 1 / size),
        accuracy_W=right_W / np.maximum(votes.per_source(), 1),
        confusion_WKK=None,
        ability_W=found.x[:sources],
        easiness_T=np.exp(found.x[sources:]),
        rounds=int(found.nit),
        converged=bool(found.success),
    )


def log_likelihoods(truth: Truth, votes: Votes) -> Floats:
    """How well a fit foresees votes that it has not seen: ln sum_k P(t_i = k) A_j[k, l_ij], each [N], in nats."""
    assert truth.confusion_WKK is not None
    said_NK = truth.confusion_WKK[votes.source, :, votes.label]
    foreseen_N = (truth.posterior_TK[votes.task] * said_NK).sum(axis=1)
    return np.asarray(np.log(np.maximum(foreseen_N, FLOOR)))


def _tables(seen_WKL: Floats, prior: float, alike: bool) -> Floats:
    """Each source's table from its expected counts and those of all sources."""
    seen_KL = seen_WKL.sum(axis=0)
    size = seen_KL.shape[0]
    # What all sources do is itself drawn, by one vote per label, towards one accuracy and even errors.
    right = (np.trace(seen_KL) + 1) / (seen_KL.sum() + 2)
    even_KL = np.full((size, size), (1 - right) / max(size - 1, 1))
    np.fill_diagonal(even_KL, right)
    pooled_KL = (seen_KL + size * even_KL) / (seen_KL.sum(axis=1, keepdims=True) + size)
    if alike:
        return np.asarray(np.broadcast_to(pooled_KL, seen_WKL.shape))
    rows = seen_WKL.sum(axis=2, keepdims=True)
    # The crumb makes a row even where nothing was seen and nothing is drawn from the others.
    return np.asarray((seen_WKL + prior * pooled_KL + FLOOR) / (rows + prior + size * FLOOR))


def _shares(votes: Votes) -> Floats:
    """The votes of each task as shares; even where it has none."""
    counts_TK = votes.counts()
    total_T1 = counts_TK.sum(axis=1, keepdims=True)
    return np.asarray(np.where(total_T1 > 0, counts_TK / np.maximum(total_T1, 1), 1 / counts_TK.shape[1]))


def _softmax(log_TK: Floats) -> Floats:
    top: Floats = np.exp(log_TK - log_TK.max(axis=1, keepdims=True))
    share_TK: Floats = top / top.sum(axis=1, keepdims=True)
    return share_TK
