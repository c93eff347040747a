"""Asks for context: asks back when the request is vague, does not when it is clear, asks for what is missing.

A sentence asks when an n-gram model says so that was taught by our own examples (`items/asking.jsonl`), among them
questions that ask for nothing: rhetorical ones, offers of more help, quotations. What it asks for is matched
by words. With a folder of public data, tasks of IN3 are asked as well, with its labels and missing details.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from metier.evaluate.profile.ngrams import NgramClassifier, sentences, taught_by
from metier.evaluate.profile.probe import Asking, Measure, Probe, Score, Tried, item, public_rows, rows, said, scored
from metier.records.types import Task

__all__ = ["PROBE", "asks_for", "questions_in"]

NAME = "asks"
_STEM = 5  # letters by which words are the same
_VAGUE = (
    "about after again also another anything area because been before being best between both can could details "
    "does done each every following from give good have help here how important information into just kind know like "
    "looking make many more most much must need needs only other over please prefer preferred provide require "
    "should some something specific such tell than that their them then there these they thing this those type "
    "user using very want what which while will with would you your"
)
_EMPTY = frozenset(_VAGUE.split())


def _askings(data: Path | None) -> list[Asking]:
    own = [
        item(NAME, row["prompt"], pair=row["pair"], side=row["side"], answer={"missing": row.get("missing", [])})
        for row in rows("asks")
    ]
    return [Asking(name="own", tasks=own), Asking(name="in3", tasks=list(_in3(data)))]


def _in3(data: Path | None) -> Iterator[Task]:
    """The test set of IN3; what is missing is each detail's description, inquiry and options."""
    for number, row in enumerate(public_rows(data, "in3", "test.jsonl")):
        missing = [
            " ".join([one["description"], one["inquiry"], *one.get("options", [])])
            for one in row.get("missing_details") or []
        ]
        side = "vague" if row["vague"] else "clear"
        yield item(NAME, row["task"], pair=f"in3 {number}", side=side, answer={"missing": missing}, source="in3")


@functools.cache
def _taught() -> NgramClassifier:
    return taught_by(rows("asking"))


def questions_in(text: str) -> list[str]:
    """The sentences of a text that ask its reader for something that the writer needs to know."""
    parts = sentences(text)
    if not parts:
        return []
    place = _taught().classes.index("asks")
    return [part for part, p_C in zip(parts, _taught().probabilities(parts), strict=True) if p_C[place] > 0.5]


def asks_for(question: str, missing: Sequence[str]) -> bool:
    """Whether a question shares a telling word with one of the descriptions of what is missing."""
    asked = _stems(question)
    return any(asked & _stems(one) for one in missing)


def _stems(text: str) -> set[str]:
    found = re.findall(r"[^\W\d_]{3,}", text.casefold())
    return {word[:_STEM] for word in found if word not in _EMPTY}


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    for one in tried:
        side = one.task.meta["side"]
        for episode in one.episodes:
            text = said(episode)
            found = questions_in(text or "")
            yield scored(f"asks_{side}", one, None if text is None else bool(found), episode, questions=found)
            if side == "vague":
                hit = any(asks_for(question, one.task.answer["missing"]) for question in found)
                yield scored("asks_missing", one, None if text is None else hit, episode)


PROBE = Probe(
    name=NAME,
    title="Asks for context",
    definition="Whether it asks back where something is missing, and only there.",
    version="1",
    measures=(
        Measure(
            name="asks_vague",
            label="asks when the request is vague",
            definition="answers that ask for something, among vague requests",
            better="more",
        ),
        Measure(
            name="asks_missing",
            label="asks for the missing thing",
            definition="answers that ask for something that is missing, among vague requests",
            better="more",
        ),
        Measure(
            name="asks_clear",
            label="asks when the request is clear",
            definition="answers that ask for something, among clear requests, twins of the vague ones",
            better="less",
        ),
    ),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    validation="against the inquiries and missing details of IN3: metier profile --validate",
)
