"""What a set of feedback says in numbers, keeping the second law: unscored is not zero.

A mean is taken over statements that were scored. What failed to be scored, what the
source declined to say and what is still pending are counted beside it, never in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from metier.records.types import Episode, Feedback

__all__ = ["MeanScore", "Place", "by_episode", "last_tries", "lowest", "lowest_by_episode", "mean_score"]

Place = tuple[str, int]
"""A task's id and the number of the attempt at it, from 0."""


class MeanScore(NamedTuple):
    """The mean of what was scored, and how much of each sort there was."""

    mean: float | None  # None where nothing was scored
    n_scored: int
    n_unscored: int  # failed or abstained
    n_pending: int


def mean_score(feedback: Iterable[Feedback]) -> MeanScore:
    """The mean over feedback of kind `score`; other kinds and retractions are left out."""
    total, scored, unscored, pending = 0.0, 0, 0, 0
    for statement in feedback:
        if statement.kind != "score" or statement.status == "retracted":
            continue
        if statement.status == "pending":
            pending += 1
        elif statement.status == "unscored" or statement.abstention is not None or statement.value is None:
            unscored += 1
        else:
            total += float(statement.value)
            scored += 1
    return MeanScore(total / scored if scored else None, scored, unscored, pending)


def lowest(feedback: Iterable[Feedback]) -> float | None:
    """The lowest of the scores, or None where there is none or one of them has no value yet."""
    values = [row.value for row in feedback if row.kind == "score" and row.status != "retracted"]
    return None if not values or None in values else float(min(values))


def last_tries(episodes: Iterable[Episode]) -> dict[Place, Episode]:
    """Of each attempt the episode that counts: the last try."""
    return {(episode.task_id, episode.index): episode for episode in episodes}


def by_episode(feedback: Iterable[Feedback]) -> dict[str, list[Feedback]]:
    """What is said about each episode alone and as a whole."""
    said: dict[str, list[Feedback]] = {}
    for row in feedback:
        if len(row.about) == 1 and row.span is None:
            said.setdefault(row.about[0], []).append(row)
    return said


def lowest_by_episode(feedback: Iterable[Feedback]) -> dict[str, float | None]:
    """`lowest` for each episode, of what is said about it alone and as a whole."""
    return {episode: lowest(rows) for episode, rows in by_episode(feedback).items()}
