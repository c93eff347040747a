"""Several sources about one thing: one verdict, with how sure it is and how far the votes favour it. Pure.

A source votes once on a thing, and of what it said the last counts. By default the label with the most votes
(or the most weight, where sources have weights) wins, and a tie wins nothing. The other methods are those of
metier.stats.aggregate, which learn how good each source is from the votes themselves.

Verifiers that score one episode on one criterion are parts of one verdict, not voters: the lowest counts, and
where one of them has no value there is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metier.feedback.data.declaration import Pool
from metier.records.types import Feedback, Source
from metier.stats.aggregate import aggregate
from metier.stats.votes import Votes

__all__ = ["Pooled", "Vote", "last_of_each", "of_code", "pool", "scored_values", "source_key", "weight_of"]

CODE = ("verifier", "execution", "tool")  # kinds of source whose scores are parts of one verdict
VERIFIERS = "verifiers"  # how these vote together


@dataclass(frozen=True, slots=True)
class Vote:
    """What one source says of one thing."""

    item: str
    source: str
    label: str
    weight: float
    feedback_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """One verdict."""

    label: str
    confidence: float  # probability that the method gives the label; the share of weight, by majority
    margin: float  # the label's share less that of the runner-up
    support: float  # weight of the votes for it
    sources: tuple[str, ...]  # all that voted
    feedback_ids: tuple[str, ...]  # all that they said


def source_key(source: Source) -> str:
    """What is one voter: a person under any version of a queue; a judge or a verifier in one version."""
    return source.name if source.kind in ("person", "production") else f"{source.name}@{source.version}"


def weight_of(source: Source, weights: Mapping[str, float]) -> float:
    """The weight of a source's votes."""
    return weights.get(f"{source.name}@{source.version}", weights.get(source.name, 1.0))


def of_code(source: Source) -> bool:
    """Whether its scores are parts of one verdict."""
    return source.kind in CODE


def last_of_each(votes: Iterable[Vote]) -> list[Vote]:
    """One vote of each source on each thing: the last."""
    found: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        found[vote.item, vote.source] = vote
    return list(found.values())


def pool(votes: Iterable[Vote], how: Pool) -> tuple[dict[str, Pooled], dict[str, int]]:
    """A verdict for each thing that has one, and how many have none, by reason."""
    single = last_of_each(votes)
    by_item: dict[str, list[Vote]] = defaultdict(list)
    for vote in single:
        by_item[vote.item].append(vote)
    left: dict[str, int] = {}
    enough = {item: told for item, told in by_item.items() if len(told) >= how.least_sources}
    _count(left, "too few sources", len(by_item) - len(enough))
    if not enough:
        return {}, left
    shares = _by_weight(enough) if how.method == "majority" else _by_model(enough, how.method)
    out: dict[str, Pooled] = {}
    for item, told in enough.items():
        label, confidence, margin = shares[item]
        if margin <= 0:
            _count(left, "the sources are tied", 1)
        elif confidence < how.least_confidence:
            _count(left, "too little confidence", 1)
        else:
            out[item] = Pooled(
                label=label,
                confidence=confidence,
                margin=margin,
                support=sum(vote.weight for vote in told if vote.label == label),
                sources=tuple(sorted({vote.source for vote in told})),
                feedback_ids=tuple(dict.fromkeys(one for vote in told for one in vote.feedback_ids)),
            )
    return out, left


def scored_values(
    statements: Iterable[Feedback], weights: Mapping[str, float]
) -> dict[str, tuple[float | None, tuple[str, ...]]]:
    """The score of each episode, and the statements behind it; None where a criterion has none.

    Of one criterion the weighted mean over sources (verifiers together are one source); of several criteria
    the lowest. Only scores of whole, single episodes count.
    """
    told: dict[str, dict[str, dict[str, list[Feedback]]]] = {}
    for one in statements:
        if one.kind != "score" or len(one.about) != 1 or one.span is not None or one.status == "retracted":
            continue
        who = VERIFIERS if of_code(one.source) else source_key(one.source)
        told.setdefault(one.about[0], {}).setdefault(one.criterion, {}).setdefault(who, []).append(one)
    out: dict[str, tuple[float | None, tuple[str, ...]]] = {}
    for episode, by_criterion in told.items():
        values = [_mean(by_source, weights) for by_source in by_criterion.values()]
        ids = tuple(one.id for by_source in by_criterion.values() for rows in by_source.values() for one in rows)
        known = [value for value in values if value is not None]
        out[episode] = (min(known) if len(known) == len(values) else None, ids)
    return out


def _mean(by_source: Mapping[str, Sequence[Feedback]], weights: Mapping[str, float]) -> float | None:
    """The mean over the sources that say something; None where verifiers, asked, could not say."""
    total = mass = 0.0
    for who, rows in by_source.items():
        values = [one.value for one in rows]
        if who == VERIFIERS:
            if None in values:
                return None
            value, weight = min(values), 1.0
        elif values[-1] is None:
            continue
        else:
            value, weight = values[-1], weight_of(rows[-1].source, weights)
        total, mass = total + weight * float(value), mass + weight
    return total / mass if mass else None


def _by_weight(by_item: Mapping[str, Sequence[Vote]]) -> dict[str, tuple[str, float, float]]:
    out = {}
    for item, told in by_item.items():
        mass: dict[str, float] = {}
        for vote in told:
            mass[vote.label] = mass.get(vote.label, 0.0) + vote.weight
        ranked = sorted(mass.items(), key=lambda pair: (-pair[1], pair[0]))
        total = sum(mass.values())
        best, second = ranked[0][1] / total, ranked[1][1] / total if len(ranked) > 1 else 0.0
        out[item] = ranked[0][0], best, best - second if best - second > 1e-12 else 0.0
    return out


def _by_model(by_item: Mapping[str, Sequence[Vote]], method: str) -> dict[str, tuple[str, float, float]]:
    votes = Votes.of((vote.item, vote.source, vote.label) for told in by_item.values() for vote in told)
    found = aggregate(votes, method=method)
    if found.truth is None:
        margins = found.plain.margin
    else:
        ranked = np.sort(found.truth.posterior_TK, axis=1)
        margins = ranked[:, -1] - (ranked[:, -2] if ranked.shape[1] > 1 else 0.0)
    return {
        item: (votes.labels[label], float(sure), float(margin))
        for item, label, sure, margin in zip(votes.tasks, found.label, found.confidence, margins, strict=True)
    }


def _count(left: dict[str, int], why: str, n: int) -> None:
    if n:
        left[why] = left.get(why, 0) + n
