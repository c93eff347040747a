"""The verifier "format": the form of the last assistant message, whatever it says.

Parameters, all optional, one at least:

    words, min_words, max_words   how many words; a word is a run without spaces that holds
                                  a letter or digit
    case        "upper" or "lower": of every letter
    starts, ends  the first or last word; case, quotes and punctuation around it do not count
    mark        the last character that is not a quote
    holds       words or phrases that must be there, case aside, on word boundaries
    lacks       such that must not
    lines       how many lines that are not empty
    line_start  what each of them starts with
    items       how many parts between commas (and before "and"), none of them empty
    tags        names of tags, each of which must stand there once, with something in it
    think       "open": thinking between `<think>` and `</think>`, once and first, then an answer;
                "prefilled": likewise where the chat template has written the first tag already

Score 1 where all that is asked holds, else 0; `parts` has each by its name. Left out: what
needs a language to be known, such as sentences or rhymes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict
from metier.records.types import Task
from metier.tasks.facts import names_fact

__all__ = ["Format"]


class Format(Described):
    """Checks of form, each by its parameter."""

    name = "format"
    version = "2"
    parameters: ClassVar = {
        "words, min_words, max_words": "how many words",
        "case": '"upper" or "lower"',
        "starts, ends": "the first or last word",
        "mark": "the last character that is not a quote",
        "holds, lacks": "words or phrases that must or must not be there",
        "lines, line_start": "how many lines, and what each starts with",
        "items": "how many parts between commas",
        "tags": "names of tags that must stand there once, not empty",
        "think": '"open" or "prefilled": thinking in tags, then an answer',
    }

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where the last assistant message has the form wanted, else 0; `unscored` for unknown parameters."""
        unknown = sorted(params.keys() - _CHECKS.keys())
        if unknown or not params:
            reason = f"there is no parameter {unknown[0]!r}" if unknown else "no parameter is given"
            return Verdict(score=None, status="unscored", reason=reason)
        said = [m.content.strip() for m in attempt.messages if m.role == "assistant" and not m.tool_calls]
        if not said or not said[-1]:
            return Verdict(score=0.0, reason="nothing was said", parts=dict.fromkeys(params, 0.0))
        whole = said[-1]
        if "think" in params and params["think"] not in ("open", "prefilled"):
            return Verdict(
                score=None, status="unscored", reason=f'"think" is "open" or "prefilled", not {params["think"]!r}'
            )
        answer = whole.rpartition("</think>")[2].strip() if "think" in params else whole
        try:
            parts = {
                name: float(_CHECKS[name](whole if name == "think" else answer, wanted))
                for name, wanted in params.items()
            }
        except (TypeError, AttributeError) as error:
            return Verdict(score=None, status="unscored", reason=f"a parameter has the wrong type: {error}")
        missed = [f"{name} {params[name]!r}" for name, right in parts.items() if not right]
        if missed:
            return Verdict(score=0.0, reason="it does not keep to " + ", ".join(missed), parts=parts)
        return Verdict(score=1.0, reason="the form is right", parts=parts)


def _has_tag(text: str, name: str) -> bool:
    opened, closed = f"<{name}>", f"</{name}>"
    inner = text.partition(opened)[2].partition(closed)[0]
    return text.count(opened) == text.count(closed) == 1 and bool(inner.strip()) and closed in text.partition(opened)[2]


def _thinks(text: str, how: str) -> bool:
    if how == "open":
        if not text.startswith("<think>"):
            return False
        text = text.removeprefix("<think>")
    thought, closed, answer = text.partition("</think>")
    again = "<think>" in text or "</think>" in answer
    return bool(closed and thought.strip() and answer.strip() and not again)


def _words(text: str) -> list[str]:
    return [word for word in text.split() if any(letter.isalnum() for letter in word)]


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word).casefold()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _items(text: str) -> list[str]:
    return [item.strip(" .!\n") for item in re.split(r",\s*and\s|,|\sand\s", text)]


_CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "words": lambda text, n: len(_words(text)) == n,
    "min_words": lambda text, n: len(_words(text)) >= n,
    "max_words": lambda text, n: len(_words(text)) <= n,
    "case": lambda text, case: text == (text.upper() if case == "upper" else text.lower()),
    "starts": lambda text, word: bool(_words(text)) and _bare(_words(text)[0]) == _bare(word),
    "ends": lambda text, word: bool(_words(text)) and _bare(_words(text)[-1]) == _bare(word),
    "mark": lambda text, mark: text.rstrip("\"'”’ ").endswith(mark),
    "holds": lambda text, wanted: all(names_fact(text, [one]) for one in wanted),
    "lacks": lambda text, unwanted: not any(names_fact(text, [one]) for one in unwanted),
    "lines": lambda text, n: len(_lines(text)) == n,
    "line_start": lambda text, start: all(line.startswith(start) for line in _lines(text)),
    "tags": lambda text, names: all(_has_tag(text, name) for name in names),
    "think": _thinks,
    "items": lambda text, n: len(_items(text)) == n and all(_items(text)),
}
