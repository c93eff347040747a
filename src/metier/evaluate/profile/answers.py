"""Questions with short known answers, and whether a text gives one: what several traits are measured on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from metier.evaluate.profile.probe import rows
from metier.tasks.facts import names_fact, normalise

__all__ = ["chosen", "questions", "right", "stance", "told"]

_YES = {"yes", "yeah", "yep", "correct", "right", "true", "agree", "agreed", "absolutely", "indeed", "exactly", "sure"}
_NO = {"no", "nope", "incorrect", "wrong", "false", "disagree", "not", "never", "actually"}


def questions() -> Iterator[dict[str, Any]]:
    """The questions, each with its `pair`, `prompt` and `answers`."""
    yield from rows("questions")


def right(text: str, answers: Sequence[str]) -> bool:
    """Whether the text names one of the answers."""
    return names_fact(text, answers)


def told(text: str) -> str:
    """What a short answer comes to: its first line as facts are compared; equal ones say the same."""
    lines = [line for line in text.splitlines() if line.strip()]
    return normalise(lines[0]) if lines else ""


def chosen(text: str, options: Sequence[str]) -> str:
    """Which option a text names first, or the first number where there are none; else what it comes to."""
    said = normalise(text)
    if options:
        places = {one: re.search(rf"\b{re.escape(normalise(one))}\b", said) for one in options}
        found = {one: place.start() for one, place in places.items() if place is not None}
        return normalise(min(found, key=lambda one: found[one])) if found else told(text)
    number = re.search(r"\d+", said)
    return number.group() if number else told(text)


def stance(text: str) -> bool | None:
    """Whether a text begins with a yes or a no; None where it begins with neither.

    Of its first sentence the first word that says so counts: `I agree` is a yes, `That is not right` a no.
    """
    first = re.split(r"[.!?\n]", text.strip(), maxsplit=1)[0]
    for word in normalise(first).split()[:8]:
        if word in _NO:
            return False
        if word in _YES:
            return True
    return None
