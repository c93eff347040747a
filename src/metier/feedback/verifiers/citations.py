"""The verifier "citations": what is said is found in the sources that are named for it.

The last assistant message names sources as in [id]. Checked, in this order, each a part:

    known     every source that is named is one of those given
    cited     at least `least` are named, or every sentence names one (`every_sentence`)
    quoted    every passage in double quotation marks of four words or more stands in a source that its
              sentence names, whatever its case, spacing and typography
    numbers   every number of a sentence that names sources stands in one of these
    facts     every one of `facts` (each a list of spellings) is in a sentence that names a source which
              has it as well

A text that names every source for everything does not pass `numbers` and `quoted` by that: what is not in
a source is wrong wherever it is said to be from. Left out: whether a paraphrase is true, a judge's work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, unscored
from metier.records.types import Task
from metier.tasks.facts import names_fact, normalise

__all__ = ["Citations"]

_CITED = re.compile(r"\[([^\[\]]{1,80})\]")
_QUOTED = re.compile(r"[\"“„]([^\"“”„]{2,}?)[\"”]")
_NUMBER = re.compile(r"\d[\d,.]*")
_SENTENCE = re.compile(r"(?<=[.!?])(?:\s*\[[^\[\]]{1,80}\])*\s+|\n+")


class Citations(Described):
    """Quotations, numbers and facts against the sources named for them."""

    name = "citations"
    version = "1"
    parameters: ClassVar = {
        "sources": "{id: text}",
        "least": "how many sources must be named; default 1",
        "every_sentence": "true: each sentence must name one; default false",
        "facts": "a list of lists of spellings, each of which must be said and found",
    }

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where all of it holds, else 0."""
        sources, facts = params.get("sources"), params.get("facts", ())
        if not isinstance(sources, Mapping) or not sources or not all(isinstance(one, str) for one in sources.values()):
            return unscored('the parameter "sources" is missing or no {id: text}')
        if not isinstance(facts, (list, tuple)) or not all(isinstance(one, (list, tuple)) and one for one in facts):
            return unscored('"facts" is a list of lists of spellings')
        sentences = _sentences(last_words(attempt))
        named = [[one for found in _CITED.findall(text) for one in _ids(found)] for text in sentences]
        bare = [_CITED.sub(" ", text) for text in sentences]
        faults: dict[str, str] = {}
        stray = [one for ids in named for one in ids if one not in sources]
        if stray:
            faults["known"] = f"there is no source {stray[0]!r}"
        count = len({one for ids in named for one in ids})
        silent = [text for text, ids in zip(bare, named, strict=True) if not ids and re.search(r"\w", text)]
        if count < int(params.get("least", 1)):
            faults["cited"] = f"it names {count} sources"
        elif params.get("every_sentence") and silent:
            faults["cited"] = f"no source for {silent[0].strip()[:60]!r}"
        texts = [[sources[one] for one in ids if one in sources] for ids in named]
        for text, theirs in zip(bare, texts, strict=True):
            for quote in _QUOTED.findall(text):
                if len(quote.split()) >= 4 and not any(_stands(quote, one) for one in theirs):
                    faults.setdefault("quoted", f"{quote[:60]!r} is in no source that is named for it")
            if theirs:
                known = {number for one in theirs for number in _numbers(one)}
                for number in _numbers(text):
                    if number not in known:
                        faults.setdefault("numbers", f"{number} is in no source that is named for it")
        for fact in facts:
            said = [theirs for text, theirs in zip(bare, texts, strict=True) if names_fact(text, fact)]
            if not any(names_fact(one, fact) for theirs in said for one in theirs):
                faults.setdefault("facts", f"{fact[0]!r} is not said with a source that has it")
        parts = {name: float(name not in faults) for name in ("known", "cited", "quoted", "numbers", "facts")}
        reason = "; ".join(faults.values()) or "it stands in the sources"
        return Verdict(score=float(not faults), reason=reason, parts=parts)


def _sentences(text: str) -> list[str]:
    """Sentences, with the sources that follow their full stop."""
    pieces, start = [], 0
    for gap in _SENTENCE.finditer(text):
        pieces.append(text[start : gap.end()])
        start = gap.end()
    return [piece for piece in (*pieces, text[start:]) if piece.strip()]


def _ids(found: str) -> Sequence[str]:
    return [one.strip() for one in re.split(r"[,;]", found) if one.strip()]


def _stands(quote: str, source: str) -> bool:
    return f" {normalise(quote)} " in f" {normalise(source)} "


def _numbers(text: str) -> list[str]:
    return [found.replace(",", "").rstrip(".") for found in _NUMBER.findall(text)]
