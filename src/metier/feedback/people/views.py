"""Pages out of records: what of an item is shown, and the templates that show it.

All of it was written by models, users or tools and is untrusted: the template engine escapes
everything, control characters are replaced, and long texts are cut and can be had
whole as a download, which no browser renders. Who wrote an answer is not on any page that labels.

Places in a text are those of the message itself (one character shown for one there), so
that words can be marked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from metier.feedback.people.labelling import Shown
from metier.feedback.people.queue import Question, Queue
from metier.feedback.people.statements import last_said
from metier.records.transcript import Turn, printable, stylesheet, turns
from metier.records.types import Episode

__all__ = ["Line", "asset", "item_html", "page"]

LETTERS = "ABCDEFGHI"
_ROOM = 60_000  # characters of a conversation that are shown …
_LEAST = 4_000  # … and of a message at least
_LONGEST_EDIT = 200_000
_MEDIA = {"label.css": "text/css", "label.js": "text/javascript", "owner.js": "text/javascript"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One message as the page shows it."""

    index: int  # in the episode
    turn: Turn
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    place: int  # in the order shown
    letter: str
    lines: tuple[Line, ...]
    plain: bool  # nothing but one message


def page(name: str, **values: Any) -> str:
    """A whole page."""
    return _environment().get_template(f"{name}.html.jinja").render(**values)


def item_html(shown: Shown, queue: Queue, base: str) -> str:
    """What stands between the head and the foot of the page: the question and what it is about."""
    question = queue.question
    context = _lines(shown, shown.episodes[0], 0, shown.given)
    answers = [
        _answer(place, _lines(shown, episode, shown.given, len(episode.messages)))
        for place, episode in enumerate(shown.episodes)
    ]
    return page(
        "item",
        question=question,
        context=context,
        answers=answers,
        item=shown.slot.item,
        base=base,
        again=shown.answer is not None,
        erased=shown.erased,
        edit=_edited(question, shown),
    )


def asset(name: str) -> tuple[str, str] | None:
    """A style sheet or script of ours with its media type; None where there is none of this name."""
    if name not in _MEDIA:
        return None
    text = _text(name)
    return (stylesheet() + text if name == "label.css" else text), _MEDIA[name]


def _answer(place: int, lines: tuple[Line, ...]) -> _Answer:
    plain = len(lines) == 1 and not lines[0].turn.calls
    return _Answer(place=place, letter=LETTERS[place], lines=lines, plain=plain)


def _lines(shown: Shown, episode: Episode, start: int, end: int) -> tuple[Line, ...]:
    messages = episode.messages[start:end]
    limit = max(_LEAST, _ROOM // max(1, len(messages)))
    seen = turns(messages, tools=shown.tools, limit=limit)
    return tuple(
        Line(index=start + n, turn=turn, text=printable(turn.text.replace("\r", " "))) for n, turn in enumerate(seen)
    )


def _edited(question: Question, shown: Shown) -> str | None:
    """The text that is to be edited; None where nothing is, or it is too long for that."""
    if question.kind != "edit" or shown.erased:
        return None
    episode = shown.episodes[0]
    text = episode.messages[last_said(episode)].content
    return text if len(text) <= _LONGEST_EDIT else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _paragraphs(text: str) -> list[tuple[bool, list[str]]]:
    """Paragraphs of lines; True goes with a list of points, whose lines begin with a dash or star."""
    found = []
    for part in text.split("\n\n"):
        lines = [line.strip() for line in part.splitlines() if line.strip()]
        points = bool(lines) and all(line.startswith(("- ", "* ")) for line in lines)
        if lines:
            found.append((points, [line[2:].strip() for line in lines] if points else lines))
    return found


@functools.cache
def _environment() -> Environment:
    from jinja2 import FunctionLoader

    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=_duration, paragraphs=_paragraphs, printable=printable)
    environment.globals.update(share=_share, letters=LETTERS)
    return environment


@functools.cache
def _text(name: str) -> str:
    return files("metier.feedback.people").joinpath(name).read_text(encoding="utf-8")
