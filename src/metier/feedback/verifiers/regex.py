"""The verifier "regex": the last assistant message matches a pattern of Python's `re`.

By default the whole message, without white space at its ends, must match; `search` takes a match
anywhere. A pattern that takes exponential time on what was said is cut off with the process that
it runs in, and the episode is unscored: the pattern is at fault.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, unscored
from metier.records.types import Task

__all__ = ["Regex"]

_FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


class Regex(Described):
    """Matches, or does not."""

    name = "regex"
    version = "2"
    parameters: ClassVar = {
        "pattern": "what must match",
        "search": "true: a match anywhere is enough; default false",
        "flags": 'letters of "aimsx", as in re; with "a" a digit is 0 to 9',
    }
    seconds = 2.0

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where it matches, else 0; unscored for a pattern that is none, or that is missing."""
        pattern, flags = params.get("pattern"), params.get("flags", "")
        if not isinstance(pattern, str) or not pattern:
            return unscored('the parameter "pattern" is missing or no text')
        if not isinstance(flags, str) or set(flags) - _FLAGS.keys():
            return unscored(f'the parameter "flags" takes letters of "aimsx", not {flags!r}')
        try:
            compiled = re.compile(pattern, sum(_FLAGS[one] for one in set(flags)))
        except (re.error, OverflowError, RecursionError) as error:
            return unscored(f"the pattern is none: {error}")
        said = last_words(attempt)
        found = compiled.search(said) if params.get("search") else compiled.fullmatch(said)
        if found is not None and said:
            return Verdict(score=1.0, reason="it matches", parts={"match": 1.0})
        return Verdict(score=0.0, reason="it does not match" if said else "nothing was said", parts={"match": 0.0})
