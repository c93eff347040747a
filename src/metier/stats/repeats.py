"""Several attempts at each task: how often one, at least one, or all of k succeed.

pass@k = 1 - C(n-c, k) / C(n, k) and pass^k = C(c, k) / C(n, k), for c successes in n attempts, are
unbiased for "one of k" (Chen et al. 2021, arXiv 2107.03374) and "all of k" (Yao et al. 2024,
arXiv 2406.12045); the k-th power of the mean is not. Attempts at one task are a cluster, so
the error of the mean is that of the tasks' means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metier.base.errors import DataError
from metier.stats.intervals import clustered_se

__all__ = ["Passes", "pass_all_k", "pass_at_k", "passes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Shares over tasks, each task counting once."""

    k: int
    tasks: int  # with a scored attempt
    attempts: int  # scored
    pass_1: float  # mean of the tasks' success rates
    pass_at_k: float  # over tasks with at least k attempts
    pass_all_k: float
    se_naive: float | None  # of pass_1, as if attempts were independent
    se_clustered: float | None  # of pass_1, attempts at one task being a cluster
    se_at_k: float | None
    se_all_k: float | None
    short: int  # tasks with fewer than k attempts, in pass_1 only
    unscored: int  # attempts that are None
    caveats: tuple[str, ...] = ()


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of `k` attempts succeeds, from `c` successes in `n` attempts."""
    _check(n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_all_k(n: int, c: int, k: int) -> float:
    """The chance that all of `k` attempts succeed, from `c` successes in `n` attempts."""
    _check(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def passes(scores: Mapping[str, Sequence[float | None]], k: int) -> Passes:
    """Of each task's scores, 1 for success and 0 for not; a None is unscored and no attempt."""
    if k < 1:
        raise DataError(f"k is {k}; it is a number of attempts, at least 1")
    scored = {task: [value for value in values if value is not None] for task, values in scores.items()}
    scored = {task: values for task, values in scored.items() if values}
    if not scored:
        raise DataError("no attempt is scored, so nothing can be said")
    for task, values in scored.items():
        other = [value for value in values if value not in (0.0, 1.0)]
        if other:
            raise DataError(
                f"task {task} has the score {other[0]}, and pass@k counts successes; say with --threshold from which "
                "score on an attempt is one"
            )
    enough = [(len(values), int(sum(values))) for values in scored.values() if len(values) >= k]
    if not enough:
        most = max(len(values) for values in scored.values())
        raise DataError(f"no task has {k} scored attempts (the most is {most}); use a smaller k")
    means = [sum(values) / len(values) for values in scored.values()]
    at = [pass_at_k(n, c, k) for n, c in enough]
    every = [pass_all_k(n, c, k) for n, c in enough]
    attempts = [value for values in scored.values() for value in values]
    se_1, se_at_k, se_all_k = (clustered_se(values) for values in (means, at, every))
    caveats = []
    if len(scored) == 1:
        caveats.append("one task: there is no error to be known")
    elif len(enough) == 1:
        caveats.append(f"one task with {k} attempts: there is no error of pass@{k} and pass^{k} to be known")
    even = [name for name, se in (("pass@1", se_1), (f"pass@{k}", se_at_k), (f"pass^{k}", se_all_k)) if se == 0]
    if even:
        same = " and ".join(dict.fromkeys(even))
        caveats.append(f"all tasks have the same {same}: no spread was seen, so an error of 0 is no certainty")
    return Passes(
        k=k,
        tasks=len(scored),
        attempts=len(attempts),
        pass_1=math.fsum(means) / len(means),
        pass_at_k=math.fsum(at) / len(at),
        pass_all_k=math.fsum(every) / len(every),
        se_naive=clustered_se(attempts),
        se_clustered=se_1,
        se_at_k=se_at_k,
        se_all_k=se_all_k,
        short=len(scored) - len(enough),
        unscored=sum(value is None for values in scores.values() for value in values),
        caveats=tuple(caveats),
    )


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"{c} successes in {n} attempts say nothing of {k}; need 0 <= c <= n and 1 <= k <= n")
