"""Two columns of scores by item, compared: a paired test, and what a test of this size could have seen.

`paired` makes the decision. Beside it stand the standard error that unpaired data would have
(what pairing saved), McNemar's exact test where every score is 0 or 1, and the smallest
difference that a comparison of this size finds four times out of five. Each number comes
with its caveat where the data are too few or too even for it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from metier.base.errors import DataError
from metier.stats.intervals import clustered_se
from metier.stats.paired import Paired, average, mcnemar_exact, paired
from metier.stats.power import detectable

__all__ = ["Compared", "compare"]

Scores = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A against B on the items that both were scored on."""

    paired: Paired
    se_unpaired: float | None  # of the difference, were the items of the two sides not the same
    mcnemar_p: float | None  # exact; None where a mean score of an item is neither 0 nor 1
    only_a: int | None  # items that only A has right; None as above
    only_b: int | None
    mde: float | None  # smallest true difference found with 80 % power at this se, two-sided at 5 %
    only_in_a: int  # items that B has no score for
    only_in_b: int
    repeats: int  # scores beyond the first of an item, on both sides
    unscored: int  # scores that are None, on both sides
    caveats: tuple[str, ...]


def compare(a: Scores, b: Scores, *, clusters: Mapping[str, Hashable] | None = None) -> Compared:
    """Compare two mappings from item ids to the scores of its repeats. Raises `DataError` where no item is on both.

    se_unpaired = sqrt(SE(mean a)^2 + SE(mean b)^2),   each clustered;   mde = (z_.975 + z_.8) se_paired
    """
    means_a, means_b = _means(a), _means(b)
    shared = [item for item in means_a if item in means_b]
    if not shared:
        raise DataError(
            f"the two sides share no scored item ({len(means_a)} on one, {len(means_b)} on the other); "
            "check that both name their items by the same ids"
        )
    found = paired(a, b, clusters=clusters)
    labels: list[Hashable] = [item if clusters is None else clusters.get(item, item) for item in shared]
    se_a = clustered_se([means_a[item] for item in shared], labels)
    se_b = clustered_se([means_b[item] for item in shared], labels)
    one_zero = all(means[item] in (0.0, 1.0) for means in (means_a, means_b) for item in shared)
    only_a = sum(means_a[item] > means_b[item] for item in shared) if one_zero else None
    only_b = sum(means_a[item] < means_b[item] for item in shared) if one_zero else None
    return Compared(
        paired=found,
        se_unpaired=None if se_a is None or se_b is None else math.hypot(se_a, se_b),
        mcnemar_p=None if only_a is None or only_b is None else mcnemar_exact(only_a, only_b),
        only_a=only_a,
        only_b=only_b,
        mde=detectable(found.se) if found.se else None,
        only_in_a=sum(item not in means_b for item in means_a),
        only_in_b=sum(item not in means_a for item in means_b),
        repeats=sum(max(0, len(scores) - 1) for side in (a, b) for scores in side.values()),
        unscored=sum(score is None for side in (a, b) for scores in side.values() for score in scores),
        caveats=tuple(_caveats(found, clusters is not None, one_zero)),
    )


def _means(side: Scores) -> dict[str, float]:
    means = {item: average(scores) for item, scores in side.items()}
    return {item: mean for item, mean in means.items() if mean is not None}


def _caveats(found: Paired, clustered: bool, one_zero: bool) -> list[str]:
    out = []
    if found.n == 1:
        out.append("one item: there is no error to be known, so no interval")
    elif found.clusters == 1:
        out.append("one cluster: there is no error to be known, so no interval")
    elif found.se == 0 and found.diff == 0:
        out.append("the two sides are alike on every item: no spread was seen, so no interval")
    elif found.se == 0:
        out.append(
            "all items differ by the same amount: no spread was seen, so no interval; p is of the sign-flip test"
        )
    elif found.clusters < 30:
        out.append(f"{found.clusters} {'clusters' if clustered else 'items'}: few, so the interval is rough")
    if one_zero and clustered and found.clusters < found.n:
        out.append("mcnemar_p takes items to be independent and knows nothing of the clusters")
    return out
