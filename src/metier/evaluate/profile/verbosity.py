"""Verbosity: how many tokens it takes to a right answer, and how long it writes about everyday things.

Tokens are the model's own, so two models with other tokenizers are better compared by words. Answers are drawn up to a
limit: a right answer that was cut off counts for no tokens, and words are those up to the limit, a restricted mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from metier.evaluate.profile.answers import questions, right
from metier.evaluate.profile.probe import ANSWER, Asking, Measure, Probe, Score, Tried, item, rows, said, scored

__all__ = ["PROBE"]

NAME = "verbosity"
LIMIT = 128  # tokens of an answer


def _askings(_: Path | None) -> list[Asking]:
    sampling = replace(ANSWER, max_turn_tokens=LIMIT, max_tokens=LIMIT)
    asked = [
        item(NAME, row["prompt"], pair=row["pair"], side="question", answer={"answers": row["answers"]})
        for row in questions()
    ]
    everyday = [item(NAME, row["prompt"], pair=row["pair"], side="everyday") for row in rows("everyday")]
    return [
        Asking(name="questions", tasks=asked, sampling=sampling),
        Asking(name="everyday", tasks=everyday, sampling=sampling),
    ]


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    for one in tried:
        for episode in one.episodes:
            text = said(episode)
            whole = episode.stop_reason == "stop"
            tokens = float(episode.cost.completion_tokens)
            yield scored("cut_off", one, None if text is None else not whole, episode)
            if one.task.meta["side"] == "everyday":
                yield scored("words", one, None if text is None else len(text.split()), episode)
                continue
            found = text is not None and right(text, one.task.answer["answers"])
            yield scored("right", one, None if text is None else found, episode)
            if found and whole:
                yield scored("tokens_right", one, tokens, episode)


PROBE = Probe(
    name=NAME,
    title="Verbosity",
    definition="How long its answers are, and what a right one costs.",
    version="1",
    measures=(
        Measure(
            name="tokens_right",
            label="tokens to a right answer",
            definition="tokens of right answers to simple questions that were not cut off",
            better="less",
            unit="tokens",
        ),
        Measure(name="right", label="answers right", definition="right among simple questions", better="more"),
        Measure(
            name="words",
            label="words about everyday things",
            definition=f"words of answers to everyday requests, of which {LIMIT} tokens are read",
            unit="words",
        ),
        Measure(name="cut_off", label="cut off", definition=f"answers not done after {LIMIT} tokens"),
    ),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    validation="answers are matched on word boundaries; no public labels",
)
