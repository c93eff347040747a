"""What has been said that bears on a candidate: by machines, as probabilities; by people, as answers.

What is read, as the probability that an episode is good, or that the first of two is better:

    verifiers       the lowest of an episode's scores, as one source
    judges          each a source, by its scores or by its comparisons
    reward models   members of one ensemble: a judge's rows with `evidence.reward` or `evidence.rewards`, or a row's
                    `evidence.ensemble`: what each head of one model says, as a reward, or for a comparison as a
                    pair of rewards
    people so far   (k + 1/2) / (n + 1), where k of n gave the most common answer, or the first of a pair

Scores outside 0 to 1 are no probabilities and are not read. A reward r is s(r), two are s(r_1 - r_2), s the logistic
function. Statements about a part of an episode tell nothing of the whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from metier.feedback.selection.scores import SURE, pair_probability
from metier.records.types import Feedback
from metier.records.values import lowest

__all__ = ["Evidence", "Known"]

Pair = tuple[str, str]  # episode ids, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of one candidate."""

    people: int  # who have answered
    sources: dict[str, float]  # source -> its probability; the ensemble and people so far are one source each
    ensemble: tuple[float, ...]  # each member's


@dataclass(slots=True)
class _Answers:
    """What people said of one thing."""

    people: set[str] = field(default_factory=set)
    answers: list[Any] = field(default_factory=list)  # for a pair, the chance that the first in sorted order is better


class Evidence:
    """All that was said under some criteria, by what it is about."""

    def __init__(self, rows: Iterable[Feedback], criterion: str) -> None:
        """`rows` may be of several criteria; people's answers count under `criterion` alone."""
        self.answered: list[Feedback] = []  # people's, first row of each decision
        self._checks: dict[str, list[Feedback]] = {}
        self._scores: dict[str, dict[str, float]] = {}
        self._rewards: dict[str, dict[str, float]] = {}
        self._pairs: dict[Pair, dict[str, float]] = {}
        self._members: dict[Pair, dict[str, float]] = {}
        self._one: dict[str, _Answers] = {}
        self._two: dict[Pair, _Answers] = {}
        for row in rows:
            if row.source.kind == "person":
                if row.criterion == criterion:
                    self._person(row)
            elif row.status == "scored" and row.abstention is None and row.span is None:
                self._machine(row)

    def of(self, episodes: Sequence[str]) -> Known:
        """What is known of an episode, or of a pair in this order."""
        return self._of_pair(episodes[0], episodes[1]) if len(episodes) == 2 else self._of_one(episodes[0])

    # --- reading rows ------------------------------------------------------------------

    def _person(self, row: Feedback) -> None:
        if row.status != "scored" or row.abstention is not None:
            return
        fresh = False
        if len(row.about) == 1:
            said = self._one.setdefault(row.about[0], _Answers())
            fresh = row.source.name not in said.people
            said.people.add(row.source.name)
            said.answers.append(row.value if row.kind in ("label", "score") and row.span is None else None)
        for pair, first in _compared(row):
            said = self._two.setdefault(pair, _Answers())
            fresh = fresh or row.source.name not in said.people
            said.people.add(row.source.name)
            said.answers.append(first)
        if fresh:
            self.answered.append(row)

    def _machine(self, row: Feedback) -> None:
        source = f"{row.source.name}@{row.source.version}"
        for pair, first in _compared(row):
            rewards, heads, u = (row.evidence.get(name) for name in ("rewards", "ensemble", "u"))
            flip = row.about[0] != pair[0]
            if heads or rewards:
                for n, (a, b) in enumerate(heads or [rewards]):
                    self._members.setdefault(pair, {})[f"{source}#{n}"] = _logistic((b - a) if flip else (a - b))
            elif isinstance(u, (int, float)):
                self._pairs.setdefault(pair, {})[source] = _believed(1 - u if flip else u)
            else:
                self._pairs.setdefault(pair, {})[source] = _believed(0.5 + (first - 0.5) * 0.8)
        if row.kind != "score" or len(row.about) != 1 or row.value is None:
            return
        (episode,) = row.about
        reward, heads = row.evidence.get("reward"), row.evidence.get("ensemble")
        if heads or isinstance(reward, (int, float)):
            for n, one in enumerate(heads or [reward]):
                self._rewards.setdefault(episode, {})[f"{source}#{n}"] = float(one)
        elif 0 <= row.value <= 1:
            if row.source.kind == "verifier":
                self._checks.setdefault(episode, []).append(row)
            else:
                self._scores.setdefault(episode, {})[source] = float(row.value)

    # --- what is known -----------------------------------------------------------------

    def _of_one(self, episode: str) -> Known:
        said = self._one.get(episode, _Answers())
        sources = {name: _believed(score) for name, score in self._of_machines(episode).items()}
        members = tuple(_logistic(reward) for reward in self._rewards.get(episode, {}).values())
        counts = Counter(str(one) for one in said.answers if one is not None)
        if counts:
            sources["people"] = (counts.most_common(1)[0][1] + 0.5) / (counts.total() + 1)
        return _known(len(said.people), sources, members)

    def _of_pair(self, first: str, second: str) -> Known:
        pair, flip = ((first, second), False) if first < second else ((second, first), True)
        said = self._two.get(pair, _Answers())
        one, other = self._of_machines(first), self._of_machines(second)
        sources = {name: float(pair_probability(one[name], other[name])) for name in one.keys() & other.keys()}
        sources |= {name: 1 - p if flip else p for name, p in self._pairs.get(pair, {}).items()}
        rewards, others = self._rewards.get(first, {}), self._rewards.get(second, {})
        members = {name: _logistic(rewards[name] - others[name]) for name in rewards if name in others}
        members |= {name: 1 - p if flip else p for name, p in self._members.get(pair, {}).items()}
        if said.answers:
            won = sum(1 - p if flip else p for p in said.answers)
            sources["people"] = (won + 0.5) / (len(said.answers) + 1)
        return _known(len(said.people), sources, tuple(members.values()))

    def _of_machines(self, episode: str) -> dict[str, float]:
        scores = dict(self._scores.get(episode, {}))
        checked = lowest(self._checks.get(episode, ()))
        if checked is not None:
            scores["verifiers"] = checked
        return scores


def _known(people: int, sources: dict[str, float], members: tuple[float, ...]) -> Known:
    if members:
        sources["ensemble"] = float(np.mean(members))
    return Known(people=people, sources=dict(sorted(sources.items())), ensemble=members)


def _compared(row: Feedback) -> Iterator[tuple[Pair, float]]:
    """The pairs that a row compares, with the chance it gives the first in sorted order: 1, 0 or .5."""
    if row.kind == "preference" and len(row.about) == 2 and isinstance(row.value, (int, float)):
        first = 0.5 if row.value == 0.5 else 1.0 - float(row.value)
        a, b = row.about
        yield ((a, b), first) if a < b else ((b, a), 1 - first)
    elif row.kind == "ranking" and isinstance(row.value, (list, tuple)):
        place = {row.about[index]: rank for rank, index in enumerate(row.value)}
        for a, b in combinations(sorted(place), 2):
            yield (a, b), float(place[a] < place[b])


def _believed(p: float) -> float:
    return min(max(float(p), SURE), 1 - SURE)


def _logistic(x: float) -> float:
    return _believed(1 / (1 + math.exp(-max(-700.0, min(700.0, float(x))))))
