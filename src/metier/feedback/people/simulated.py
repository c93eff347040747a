"""People who do not exist: comparisons with known habits, to try what becomes of feedback before anyone is asked.

    careful      sees the better answer 92 times in 100
    hasty        62 times in 100
    length       takes the longer answer 85 times in 100, else judges as a careful person does
    correlated   repeats what its clique says 9 times in 10, and the clique is right 58 times in 100; else it is hasty
    adversarial  names the worse answer 85 times in 100

Nobody here ever says tie: the pairs have a better answer. The clique has one opinion of a pair, so its members
agree far more than they are right, which is what makes a crowd of them look good to a method that takes
agreement for skill.

Their source is a person of version `simulated`; nothing else in the ledger has that.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from metier.base.clock import now
from metier.base.errors import DataError
from metier.base.ids import derive_id
from metier.base.seeds import rng_for
from metier.records.types import Feedback, Source

__all__ = ["SIMULATED", "Habit", "Pair", "asked"]

Habit = Literal["careful", "hasty", "length", "correlated", "adversarial"]
SIMULATED = "simulated"
CAREFUL, HASTY, LONGER, REPEATS, CLIQUE, ADVERSARIAL = 0.92, 0.62, 0.85, 0.9, 0.58, 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers to one task, one of which is better."""

    episodes: tuple[str, str]
    better: Literal[0, 1]  # which of them
    lengths: tuple[int, int]  # characters of what was answered


def asked(
    pairs: Sequence[Pair],
    people: Mapping[Habit, int],
    *,
    votes: int,
    criterion: str,
    seed: int,
    run_id: str | None = None,
) -> list[Feedback]:
    """What these people say: `votes` of them, drawn evenly for each pair, `people[habit]` being of each habit.

    Pairs are shown in an order drawn for each person. What is drawn depends on the seed and on a pair's place among
    the pairs alone, and not on ids, which may be of a run. Raises `DataError` where there are fewer people than votes.
    """
    crowd = [(habit, f"{habit}-{n}") for habit in get_args(Habit) for n in range(1, people.get(habit, 0) + 1)]
    if len(crowd) < votes:
        raise DataError(f"{votes} people are to be asked of each pair, and there are {len(crowd)}")
    said = []
    for number, pair in enumerate(pairs):
        rng = rng_for(seed, "asked", number)
        clique = _better(pair, CLIQUE, rng)
        for habit, name in rng.sample(crowd, votes):
            choice = _choice(habit, pair, clique, rng)
            turned = rng.random() < 0.5
            about = pair.episodes[::-1] if turned else pair.episodes
            said.append(
                Feedback(
                    id=derive_id("fb", run_id or "", criterion, *pair.episodes, name),
                    about=about,
                    criterion=criterion,
                    kind="preference",
                    value=1 - choice if turned else choice,
                    source=Source(kind="person", name=name, version=SIMULATED),
                    propensity=votes / len(crowd),
                    assignment="drawn evenly",
                    created_at=now(),
                    run_id=run_id,
                )
            )
    return said


def _choice(habit: Habit, pair: Pair, clique: int, rng: random.Random) -> int:
    """Which of the two this person prefers."""
    if habit == "length" and pair.lengths[0] != pair.lengths[1] and rng.random() < LONGER:
        return int(pair.lengths[1] > pair.lengths[0])
    if habit == "correlated" and rng.random() < REPEATS:
        return clique
    right = {"careful": CAREFUL, "length": CAREFUL, "adversarial": ADVERSARIAL}.get(habit, HASTY)
    return _better(pair, right, rng)


def _better(pair: Pair, right: float, rng: random.Random) -> int:
    return pair.better if rng.random() < right else 1 - pair.better
