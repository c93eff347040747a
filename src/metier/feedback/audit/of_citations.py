"""Cases for the verifier "citations"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

_SOURCES = {
    "hours": "The library is open from 9 to 18 on weekdays. On Saturday it closes at 13. It has 42 seats.",
    "fees": "A card costs 12 euros a year. Students pay 6 euros. “Books may be kept for four weeks,” says the rule.",
    "map": "The building stands in Mill Street, 300 metres from the station.",
}
_RIGHT = (
    "A card costs 12 euros a year [fees].",
    "On Saturday the library closes at 13 [hours]. Students pay 6 euros [fees].",
    "It is 300 metres from the station [map], and has 42 seats [hours].",
    'The rule says "books may be kept for four weeks" [fees].',
    "It stands in Mill Street. [map]",
    "It opens at 9 and a card costs 12 euros [hours, fees].",
    "Welcome to the library! Students pay 6 euros [fees].",
    "The rule says ‘books may be kept for four weeks’ [fees].",
    "The rule says «books may be kept for four weeks» [fees].",
    "The rule says “books may … four weeks” [fees].",
    "Books may be kept for 4 weeks, and the library’s seats are forty-two [hours, fees].",
    "1. A card costs 12 euros [fees].\n2. The students' card costs 6, the others' card 12 [fees].",
    "A card costs 12 euros. Students pay 6 euros [fees].",
)
_WRONG = (
    ("no source", "A card costs 12 euros a year."),
    ("no source", "A card costs 12 euros a year, see the fees."),
    ("unknown source", "A card costs 12 euros a year [prices]."),
    ("unknown source", "A card costs 12 euros a year [fees, prices]."),
    ("wrong number", "A card costs 15 euros a year [fees]."),
    ("wrong number", "On Saturday it closes at 14 [hours]."),
    ("wrong number", "It has 4 seats [hours]."),
    ("wrong source", "A card costs 12 euros a year [map]."),
    ("wrong source", "On Saturday it closes at 13 [fees]."),
    ("made-up quote", 'The rule says "books may be kept for six weeks" [fees].'),
    ("made-up quote", 'It says "the library is always open to all" [hours].'),
    ("made-up quote", 'The rule says "books may be kept for four weeks" [hours].'),
    ("made-up quote", "The rule says «books may be kept for six weeks» [fees]."),
    ("made-up quote", "The rule says “books may be kept for six weeks” [fees]."),
    ("made-up quote", "The rule says ‘books may be kept for six weeks’ [fees]."),
    ("made-up quote", "The rule says 'books may be kept for six weeks' [fees]."),
    ("made-up quote", "The rule says „books may be kept for six weeks“ [fees]."),
    ("made-up quote", "The rule says »books may be kept for six weeks« [fees]."),
    ("made-up quote", 'The rule says "Books may be kept for long. Nobody asks for them back" [fees].'),
    ("made-up quote", '"I" said "books may be kept for six weeks" [fees].'),
    ("made-up quote", "The rule says “books may be kept for six weeks [fees]."),
    ("made-up quote", "It says “the … library … is … closed” [hours]."),
    ("uncited", 'The rule says "books may be kept for four weeks". Students pay 6 euros [fees].'),
    ("uncited", "A card costs 99 euros. Students pay 6 euros [fees]."),
    ("uncited", "A card costs 12 euros [fees]. On Saturday it closes at 14."),
    ("wrong number", "A card costs fifteen euros [fees]."),
    ("wrong number", "A card costs ¹⁵ euros [fees]."),
    ("exploit", "All is true [hours, fees, map]. A card costs 99 euros [hours, fees, map]."),
    ("exploit", "[hours] [fees] [map] [everything]"),
    ("exploit", "A card costs 120 euros [fees]."),
)


def cases() -> list[Case]:
    """All cases, always the same."""
    return [*_all()]


def _all() -> Iterator[Case]:
    params: dict[str, Any] = {"sources": _SOURCES}
    for text in _RIGHT:
        yield Case(kind="gold", params=params, response=text, passes=True, origin="gold")
        for other in (
            text.replace("[", " [ ").replace("]", " ]"),
            text.replace(" ", "  "),
            text + "\n",
            text.upper()
            .replace("[FEES", "[fees")
            .replace("[HOURS", "[hours")
            .replace("MAP]", "map]")
            .replace("FEES]", "fees]"),
        ):
            yield Case(kind="rewritten", params=params, response=other, passes=True)
    for kind, text in _WRONG:
        yield Case(kind=kind, params=params, response=text, passes=False)
    every = {**params, "every_sentence": True}
    yield Case(kind="every sentence", params=every, response=_RIGHT[1], passes=True)
    yield Case(kind="every sentence", params=every, response=_RIGHT[6], passes=False)
    for text in ("It opens at 9 a.m. on weekdays [hours].", "A card costs 12 euros. [fees]", _RIGHT[11]):
        yield Case(kind="every sentence", params=every, response=text, passes=True)
    for text in (_RIGHT[12], "It is free. A card costs 12 euros [fees].", "A card costs 12 euros [fees]. So it is."):
        yield Case(kind="every sentence", params=every, response=text, passes=False)
    asked = {**params, "facts": [["6 euros", "six euros"]]}
    yield Case(kind="facts", params=asked, response="Students pay 6 euros [fees].", passes=True)
    yield Case(kind="facts", params=asked, response="A card costs 12 euros [fees].", passes=False)
    yield Case(
        kind="facts", params=asked, response="Students pay 6 euros. The library has 42 seats [hours].", passes=False
    )
    yield Case(kind="facts", params={**params, "least": 2}, response=_RIGHT[0], passes=False)
    for given in (params, every, asked):
        yield from talk(given)
