"""One label for each task out of many votes, by a method that is named, or by `auto`.

`auto` must not do worse than the plain count, so it departs from it only on evidence.

Without gold the evidence is of two kinds, and it asks for both. The sources must be many
(at least `MANY`): with a handful, two that share their mistakes look like the two good ones,
and nothing in the votes can tell. And knowing each source must foresee votes that the fit
has not seen: over five folds, its gain over a model in which all sources are alike has to be
at least `GAIN` nats a vote and clearly above zero, and the label that it gives a task must
agree with held-out votes clearly more often than the plain count does.

With gold the fits are judged by it: they never see the gold, so their accuracy on it is
honest. A fit that the votes alone support is kept unless the gold says that the plain count
is right more often; any other has to beat the plain count clearly there, with a one-sided
exact test over the tasks on which they differ, corrected for the number of fits tried.

Left out: gold as training data. It would help the fits, but then a task's gold could not
check its label, and the table of sources could not be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metier.base.errors import DataError
from metier.stats.intervals import mean_interval
from metier.stats.truth import Truth, dawid_skene, glad, log_likelihoods, one_coin
from metier.stats.votes import CELLS, Floats, Majority, Places, Votes, majority

__all__ = ["METHODS", "Aggregate", "GoldCheck", "aggregate"]

METHODS = ("auto", "majority", "dawid-skene", "glad", "one-coin")

MANY = 10  # sources, without gold
GAIN = 0.02  # nats a vote that knowing the sources must be worth, without gold
SURE = 0.997  # confidence of "clearly above zero": three standard errors
FOLDS = 5
ALPHA = 0.05  # chance of leaving the plain count for a fit that gold cannot tell from it

_FITS = {"one-coin": one_coin, "dawid-skene": dawid_skene, "glad": glad}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldCheck:
    """How often a method's labels are the gold ones."""

    method: str
    n: int  # gold tasks with at least one vote
    right: int
    better: int  # gold tasks right here and wrong by majority
    worse: int  # gold tasks wrong here and right by majority

    @property
    def accuracy(self) -> float:
        """The share of gold tasks that are right."""
        return self.right / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """One label a task, with the probability that the method gives it."""

    method: str  # the one that was used; never auto
    why: str  # what decided for it
    label: Places  # [T] place in votes.labels
    confidence: Floats  # [T] posterior of the label; for majority the share of votes
    tied: int  # tasks on which the plain count is a tie
    plain: Majority
    truth: Truth | None  # the fit; None for majority
    checks: tuple[GoldCheck, ...] = ()  # of each method looked at, majority first; empty without gold


def aggregate(votes: Votes, *, method: str = "auto", gold: Mapping[str, str] | None = None) -> Aggregate:
    """The label of each task. `gold` maps task ids to the truth, for a check, and for `auto` to choose by."""
    if method not in METHODS:
        raise DataError(f"there is no method {method!r}; use one of {', '.join(METHODS)}")
    plain = majority(votes)
    known = votes.known(gold)
    if method == "auto":
        return _auto(votes, plain, known)
    truth = None if method == "majority" else _FITS[method](votes)
    checks = _checks(plain, {} if truth is None else {method: truth}, known)
    return _result(method, "as asked", plain, truth, checks)


def _auto(votes: Votes, plain: Majority, known: Places) -> Aggregate:
    given = (known >= 0).any()
    if len(votes.labels) == 1:
        return _result("majority", "all votes say the same", plain, None, _checks(plain, {}, known))
    if len(votes.tasks) * len(votes.labels) > CELLS or len(votes.sources) * len(votes.labels) ** 2 > CELLS:
        why = "there are too many different labels for a model of the sources"
        return _result("majority", why, plain, None, _checks(plain, {}, known))
    chosen, why = _from_votes(votes, plain)
    if not given:
        return _result(chosen, why, plain, _FITS[chosen](votes) if chosen in _FITS else None)
    fits = {name: fit(votes) for name, fit in _FITS.items()}
    checks = _checks(plain, fits, known)
    by_name = {check.method: check for check in checks}
    if chosen in fits and by_name[chosen].better < by_name[chosen].worse:
        chosen, why = "majority", f"{chosen} is right less often than majority on the gold tasks"
    elif chosen in fits:
        why += "; the gold tasks do not speak against it"
    if chosen == "majority":
        best = max(checks, key=lambda check: check.right)
        odds = min(1.0, _one_sided(best.better, best.worse) * len(fits))
        if best.method in fits and odds <= ALPHA:
            chosen = best.method
            why = f"right on {best.right} of {best.n} gold tasks, majority on {checks[0].right} (p = {odds:.2g})"
        else:
            why += "; no model is clearly right more often on the gold tasks"
    return _result(chosen, why, plain, fits.get(chosen), checks)


def _from_votes(votes: Votes, plain: Majority) -> tuple[str, str]:
    """What the votes alone support, and why."""
    sources = int((votes.per_source() > 0).sum())
    if sources < MANY:
        return "majority", f"{sources} sources are too few to tell skill from shared mistakes (from {MANY} on)"
    if (votes.per_task() < 2).all():
        return "majority", "no task has two votes, so nothing can be learned about the sources"
    fold_N = np.random.default_rng(0).permutation(votes.task.size) % FOLDS
    agree_N = _agreement(votes, fold_N)
    best, gain_N, better_N = "majority", np.zeros(0), np.zeros(0)
    top = -math.inf
    for name, fit in (("one-coin", one_coin), ("dawid-skene", dawid_skene)):
        own_N, alike_N, hit_N = (np.zeros(votes.task.size) for _ in range(3))
        for fold in range(FOLDS):
            rest, held = votes.subset(fold_N != fold), votes.subset(fold_N == fold)
            truth = fit(rest)
            own_N[fold_N == fold] = log_likelihoods(truth, held)
            alike_N[fold_N == fold] = log_likelihoods(fit(rest, alike=True), held)
            hit_N[fold_N == fold] = truth.posterior_TK.argmax(axis=1)[held.task] == held.label
        if own_N.mean() > top:
            top, best, gain_N, better_N = float(own_N.mean()), name, own_N - alike_N, hit_N - agree_N
    gain = mean_interval(gain_N.tolist(), clusters=votes.task.tolist(), confidence=SURE)
    assert gain.mean is not None
    worth = f"knowing the sources is worth {gain.mean:.3f} nats on a vote not seen"
    if gain.mean < GAIN or gain.low is None or gain.low <= 0:
        return "majority", f"{worth}, which is too little or too unsure"
    seen = np.isfinite(better_N)
    better = mean_interval(better_N[seen].tolist(), clusters=votes.task[seen].tolist())
    if better.low is None or better.low <= 0:
        return "majority", f"{worth}, but its labels do not clearly agree with such votes more often than majority's"
    return best, f"{worth}, and its labels agree with such votes more often than majority's"


def _agreement(votes: Votes, fold_N: Places) -> Floats:
    """Whether each vote is what the majority of the other folds says [N]; NaN where they have no vote on the task."""
    counts_TK = votes.counts()
    out = np.full(votes.task.size, np.nan)
    for fold in range(FOLDS):
        held = votes.subset(fold_N == fold)
        rest_TK = counts_TK - held.counts()
        said = rest_TK.argmax(axis=1)[held.task] == held.label
        out[fold_N == fold] = np.where(rest_TK.sum(axis=1)[held.task] > 0, said, np.nan)
    return out


def _checks(plain: Majority, fits: Mapping[str, Truth], known: Places) -> tuple[GoldCheck, ...]:
    has = known >= 0
    if not has.any():
        return ()
    base = plain.label[has] == known[has]
    out = []
    for name, label in (("majority", plain.label), *((n, f.posterior_TK.argmax(axis=1)) for n, f in fits.items())):
        right: NDArray[np.bool_] = label[has] == known[has]
        better, worse = int((right & ~base).sum()), int((base & ~right).sum())
        out.append(GoldCheck(method=name, n=int(has.sum()), right=int(right.sum()), better=better, worse=worse))
    return tuple(out)


def _one_sided(better: int, worse: int) -> float:
    """P(Bin(better + worse, 1/2) >= better): how often chance alone does so well."""
    from scipy.special import bdtr

    return float(bdtr(worse, better + worse, 0.5))


def _result(
    method: str, why: str, plain: Majority, truth: Truth | None, checks: tuple[GoldCheck, ...] = ()
) -> Aggregate:
    label, confidence = plain.label, plain.share
    if truth is not None:
        label, confidence = truth.posterior_TK.argmax(axis=1), truth.posterior_TK.max(axis=1)
    return Aggregate(
        method=method,
        why=why,
        label=label,
        confidence=confidence,
        tied=int(plain.tied.sum()),
        plain=plain,
        truth=truth,
        checks=checks,
    )
