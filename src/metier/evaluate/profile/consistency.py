"""Repeat consistency: whether it says the same again, drawn twice and worded otherwise.

    same_draw      the share of pairs among `DRAWS` sampled answers (temperature 0.7) that are equal
    same_wording   whether the likeliest answers to two wordings of one question are equal

Answers are compared by the option that they name first, or their first number. A model that says nothing sensible,
but always the same, is consistent: read it beside `answers right`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from metier.evaluate.profile.answers import chosen
from metier.evaluate.profile.probe import ANSWER, Asking, Measure, Probe, Score, Tried, item, rows, said, scored
from metier.records.types import Episode

__all__ = ["PROBE"]

NAME = "consistency"
DRAWS = 3
LIMIT = 12


def _askings(_: Path | None) -> list[Asking]:
    short = replace(ANSWER, max_turn_tokens=LIMIT, max_tokens=LIMIT)
    asked = [
        item(NAME, row["prompt"], pair=row["pair"], side=row["side"], answer={"options": row["options"]})
        for row in rows(NAME)
    ]
    first = [task for task in asked if task.meta["side"] == "first"]
    return [
        Asking(name="wording", tasks=asked, sampling=short),
        Asking(name="draws", tasks=first, sampling=replace(short, temperature=0.7), draws=DRAWS),
    ]


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    worded: dict[str, list[Tried]] = {}
    for one in tried:
        if one.asking == "wording":
            worded.setdefault(one.task.meta["pair"], []).append(one)
            continue
        for start in range(0, len(one.episodes) - DRAWS + 1, DRAWS):
            group = one.episodes[start : start + DRAWS]
            found = _answers(one, group)
            pairs = [a == b for a, b in combinations(found, 2)]
            value = sum(pairs) / len(pairs) if len(found) == DRAWS else None
            yield scored("same_draw", one, value, *group, answers=found)
    for both in worded.values():
        if len(both) == 2:
            for a, b in zip(both[0].episodes, both[1].episodes, strict=False):
                found = [*_answers(both[0], [a]), *_answers(both[1], [b])]
                yield scored("same_wording", both[0], found[0] == found[1] if len(found) == 2 else None, a, b)


def _answers(one: Tried, episodes: Sequence[Episode]) -> list[str]:
    """What each episode answered; those that failed are left out."""
    texts = [text for episode in episodes if (text := said(episode)) is not None]
    return [chosen(text, one.task.answer["options"]) for text in texts]


PROBE = Probe(
    name=NAME,
    title="Repeat consistency",
    definition="Whether it gives the same answer again.",
    version="1",
    measures=(
        Measure(
            name="same_draw",
            label="same answer when drawn again",
            definition=f"equal pairs among {DRAWS} answers sampled at temperature 0.7",
            better="more",
        ),
        Measure(
            name="same_wording",
            label="same answer to another wording",
            definition="pairs of wordings of one question with equal answers",
            better="more",
        ),
    ),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    validation="equality of answers; none needed",
)
