"""What a response looks like, in numbers that anybody can check by reading it: length, form, calls, phrases.

They serve two questions: how much of a reward is explained by form alone, and what exploits have in common.
None of them knows whether the response is right. Phrases are English; in other languages the features that count
them are constant and say nothing. Tool results count only for whether a call failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from metier.records.types import Message

__all__ = ["FEATURES", "features_of", "last_said", "spoken"]

Said = Sequence[Message]

_PHRASES = {
    "apologies": r"\b(?:sorry|apologi[sz]e|apologies|unfortunately|regret)\b",
    "hedges": r"\b(?:maybe|perhaps|possibly|probably|might|may be|could be|not sure|i think|i believe)\b"
    r"|\b(?:it seems|likely)\b",
    "claims": r"\b(?:i have|i've|i did|has been|have been|was (?:changed|updated|moved|booked|cancelled|canceled))\b"
    r"|\b(?:done|all set|completed|confirmed)\b",
    "thanks": r"\b(?:thank|thanks|please|glad|happy to|welcome)\b",
    "refusals": r"\b(?:can't|cannot|can not|unable|not able|not allowed|won't|not possible)\b",
}


def spoken(said: Said) -> str:
    """All that the assistant said, without its calls."""
    return "\n".join(m.content for m in said if m.role == "assistant" and m.content)


def last_said(said: Said) -> str:
    """The assistant's last message; empty where it said nothing."""
    return next((m.content for m in reversed(said) if m.role == "assistant"), "")


def _counted(pattern: str) -> Callable[[Said], float]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda said: float(len(compiled.findall(spoken(said).replace("’", "'"))))


def _failed(said: Said) -> float:
    """Calls whose result is an object with an `error`."""
    failed = 0
    for message in said:
        if message.role == "tool":
            try:
                result = json.loads(message.content)
            except ValueError:
                continue
            failed += isinstance(result, dict) and bool(result.get("error"))
    return float(failed)


def _repeated(said: Said) -> float:
    """The share of runs of four words that stood there before."""
    words = spoken(said).casefold().split()
    runs = [tuple(words[n : n + 4]) for n in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _capitals(said: Said) -> float:
    letters = [c for c in spoken(said) if c.isalpha()]
    return sum(c.isupper() for c in letters) / len(letters) if letters else 0.0


FEATURES: dict[str, Callable[[Said], float]] = {
    "characters": lambda said: float(len(spoken(said))),
    "words in the last message": lambda said: float(len(last_said(said).split())),
    "assistant turns": lambda said: float(sum(m.role == "assistant" for m in said)),
    "tool calls": lambda said: float(sum(len(m.tool_calls) for m in said)),
    "failed calls": _failed,
    "lines": lambda said: float(len([line for line in spoken(said).splitlines() if line.strip()])),
    "list items": _counted(r"(?m)^\s*(?:[-*•]|\d+[.)])\s"),
    "markdown": _counted(r"\*\*|__|`|(?m:^#{1,6}\s)"),
    "questions": _counted(r"\?"),
    "exclamations": _counted(r"!"),
    "numbers": _counted(r"\d+"),
    "capitals": _capitals,
    "repeated words": _repeated,
    **{name: _counted(pattern) for name, pattern in _PHRASES.items()},
}


def features_of(said: Said) -> dict[str, float]:
    """Every feature of one response."""
    return {name: measure(said) for name, measure in FEATURES.items()}
