"""The verifier "citations": what is said is found in the sources that are named for it.

The last assistant message names sources as in [id]. Checked, in this order, each a part:

    known     every source that is named is one of those given
    cited     at least `least` are named, or every sentence names one (`every_sentence`)
    quoted    every passage in quotation marks of four words or more stands in a source that its sentence
              names, whatever its case, spacing and typography; what is left out of it, as in "a … b", may
              stand between
    numbers   every number of a sentence that names sources stands in one of these, and of one that names none,
              in one of those that are named anywhere
    facts     every one of `facts` (each a list of spellings) is in a sentence that names a source which
              has it as well

Quotation marks are those of all of Europe: "…", '…', “…”, ‘…’, „…“, «…», »…«, ‹…› and their kin; one that is opened
and never closed goes on to the line's end. A sentence does not end inside of them, nor behind "a.m.",
"Dr." and the like. Numbers from eleven on count in words as well, and in a source small ones do.

A text that names every source for everything does not pass `numbers` and `quoted` by that: what is not in
a source is wrong wherever it is said to be from. Left out: whether a paraphrase is true, a judge's work;
numbers up to ten in words, which may count what is said itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, unscored
from metier.records.types import Task
from metier.tasks.facts import names_fact, normalise

__all__ = ["Citations"]

_CITED = re.compile(r"\[([^\[\]]{1,80})\]")
_LEFT_OUT = re.compile(r"\[\s*(?:…|\.\.\.)\s*\]|…|\.\.\.")
_CLOSES = {
    opening: re.compile(closing)
    for opening, closing in {
        **{"“": '[”“"]', "„": '[“”"]', '"': '["”]', "「": "」"},
        **{"«": "»", "»": "[«»]", "‹": "›", "›": "[‹›]"},
        **{"‘": r"[’‘](?!\w)", "‚": r"[‘’](?!\w)", "'": r"['’](?!\w)"},  # an apostrophe between letters closes nothing
    }.items()
}
_QUOTING = re.compile(r"[\"“„«»‹›‘‚「]|(?<!\w)'(?=\w)")
_NUMBER = re.compile(r"\d[\d,.]*")
_LIST_MARK = re.compile(r"^[ \t]*\d{1,3}[.)](?=\s)", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?])(?:[\"”’»'*)]*)(?:\s*\[[^\[\]]{1,80}\])*(?:\s+|\Z)|\n+")
_NO_END = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|approx|no|dr|mr|mrs|ms|st|prof|fig|pp?)|(?<![\w.])(?-i:[A-Z]))\.\s*$",
    re.IGNORECASE,
)
_MAY_END = re.compile(r"\b(?:[ap]\.m|etc|inc|ltd)\.\s*$", re.IGNORECASE)  # where a small letter follows, it does not
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: number for number, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_IN_WORDS = re.compile(
    rf"\b(?:({'|'.join(_TENS)})[ -]({'|'.join(_UNITS[1:10])})|({'|'.join(_WORDS)}))"
    r"(?:[ -](hundred|thousand|million))?\b"
)
_SIZES = {"": 1, "hundred": 100, "thousand": 1000, "million": 1000000}


class _Source:
    """A source, read once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.plain = f" {normalise(text)} "
        self.numbers = frozenset(_numbers(text, least_in_words=0))


class Citations(Described):
    """Quotations, numbers and facts against the sources named for them."""

    name = "citations"
    version = "2"
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
        named = [
            [one for found in _CITED.findall(_LEFT_OUT.sub("…", text)) for one in _ids(found)] for text in sentences
        ]
        bare = [_CITED.sub(" ", _LEFT_OUT.sub("…", text)) for text in sentences]
        faults: dict[str, str] = {}
        stray = [one for ids in named for one in ids if one not in sources]
        if stray:
            faults["known"] = f"there is no source {stray[0]!r}"
        everywhere = {one for ids in named for one in ids if one in sources}
        count = len({one for ids in named for one in ids})
        silent = [text for text, ids in zip(bare, named, strict=True) if not ids and re.search(r"\w", text)]
        if count < int(params.get("least", 1)):
            faults["cited"] = f"it names {count} sources"
        elif params.get("every_sentence") and silent:
            faults["cited"] = f"no source for {silent[0].strip()[:60]!r}"
        read = {one: _Source(sources[one]) for one in everywhere}
        texts = [[read[one] for one in ids if one in sources] for ids in named]
        for text, theirs in zip(bare, texts, strict=True):
            for quote in _quotes(text):
                if len(quote.split()) >= 4 and not any(_stands(quote, one) for one in theirs):
                    faults.setdefault("quoted", f"{quote[:60]!r} is in no source that is named for it")
            known = [one.numbers for one in theirs or read.values()]
            for number in _numbers(_LIST_MARK.sub(" ", text), least_in_words=11):
                if known and not any(number in one for one in known):
                    faults.setdefault("numbers", f"{number} is in no source that is named for it")
        for fact in facts:
            said = [theirs for text, theirs in zip(bare, texts, strict=True) if names_fact(text, fact)]
            if not any(names_fact(one.text, fact) for one in {one for theirs in said for one in theirs}):
                faults.setdefault("facts", f"{fact[0]!r} is not said with a source that has it")
        parts = {name: float(name not in faults) for name in ("known", "cited", "quoted", "numbers", "facts")}
        reason = "; ".join(faults.values()) or "it stands in the sources"
        return Verdict(score=float(not faults), reason=reason, parts=parts)


def _sentences(text: str) -> list[str]:
    """Sentences, with the sources that follow their full stop."""
    text = unicodedata.normalize("NFC", text)
    inside = list(_spans(text))
    pieces, start, quote = [], 0, 0
    for gap in _SENTENCE.finditer(text):
        while quote < len(inside) and inside[quote][1] <= gap.start():
            quote += 1
        if quote < len(inside) and inside[quote][0] < gap.start() and "\n" not in gap[0]:
            continue
        before, after = text[max(start, gap.start() - 24) : gap.start()], text[gap.end() : gap.end() + 1]
        counted = gap.start() - start < 8 and _LIST_MARK.match(before + " ")
        unended = counted or _NO_END.search(before) or (_MAY_END.search(before) and after.islower())
        if unended and not re.search(r"[\[\n]", gap[0]):
            continue
        pieces.append(text[start : gap.end()])
        start = gap.end()
    return [piece for piece in (*pieces, text[start:]) if piece.strip()]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where what is quoted begins and ends: behind the opening mark, and at the closing one."""
    place, line, unclosed = 0, -1, set[str]()  # marks that nothing closes in this line
    while (opened := _QUOTING.search(text, place)) is not None:
        mark, place = opened[0], opened.end()
        if place > line:
            line, unclosed = text.find("\n", place), set()
            line = len(text) if line < 0 else line
        closed = None if mark in unclosed else _CLOSES[mark].search(text, place, line)
        if closed is not None:
            yield place, closed.start()
            place = closed.end()
        elif mark in "“„«‹「":
            yield place, line
            place = line
        else:
            unclosed.add(mark)


def _quotes(text: str) -> list[str]:
    return [text[start:end] for start, end in _spans(text)]


def _ids(found: str) -> Sequence[str]:
    return [one.strip() for one in re.split(r"[,;]", found) if one.strip()]


def _stands(quote: str, source: _Source) -> bool:
    """Whether the parts of a quotation stand in a source, one after the other, each of two words or more."""
    whole, place = source.plain, 0
    parts = [normalise(part) for part in quote.split("…")]
    parts = [part for part in parts if part]
    for part in parts:
        found = whole.find(f" {part} ", place)
        if found < 0 or (len(parts) > 1 and len(part.split()) < 2):
            return False
        place = found + len(part) + 1
    return True


def _numbers(text: str, *, least_in_words: int) -> list[str]:
    """The numbers of a text, those in words among them from so many on."""
    text = unicodedata.normalize("NFKC", text)
    found = [found.replace(",", "").rstrip(".") for found in _NUMBER.findall(text)]
    for tens, unit, single, size in _IN_WORDS.findall(text.lower()):
        number = (_WORDS[tens] + _WORDS[unit] if tens else _WORDS[single]) * _SIZES[size]
        if number >= least_in_words:
            found.append(str(number))
    return found
