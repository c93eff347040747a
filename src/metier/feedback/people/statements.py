"""From what a page sends to feedback, and back: pure.

An answer is JSON, its places in the order in which things were shown: `{"choice": 0 | 1 | 0.5}`,
`{"order": [2, 0, 1]}`, `{"score": 4}`, `{"labels": […]}`, `{"text": "…"}` or
`{"marks": [{"turn", "label", "start"?, "end"?}]}`. Of most answers comes one row of feedback, of
marks one for each; that nothing is to be marked is said by the label `none`. A later answer
supersedes the rows of the one before, one by one, and retracts those that are left over.

`said` is an answer in words that do not depend on the order shown, so that people can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import derive_id
from metier.feedback.people.queue import Question
from metier.records.types import Abstention, Cost, Episode, Feedback, FeedbackKind, Source, Span, to_plain

__all__ = ["NONE", "Asked", "answer_of", "answered", "last_said", "retracted", "said", "said_by_gold", "skipped"]

NONE = "none"  # the label of an item in which nothing is to be marked
_LONGEST = 400_000  # characters of an edit
_MOST_MARKS = 200

_KINDS: dict[str, FeedbackKind] = {
    "pair": "preference",
    "ranking": "ranking",
    "rating": "score",
    "labels": "label",
    "marks": "label",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One judgement as it was asked of one person."""

    queue: str  # NAME@VERSION
    question: Question
    item: str
    slot: int
    revision: int
    person: str
    about: tuple[str, ...]  # episode ids, in the order shown
    given: int  # messages of the episodes that are the task's own
    gold: bool
    propensity: float | None
    run_id: str | None
    at: float  # UTC seconds
    seconds: float  # that the item was looked at


def answered(
    asked: Asked, answer: Any, episodes: Sequence[Episode], before: Sequence[str], note: str = ""
) -> list[Feedback]:
    """The rows that an answer makes; `episodes` in the order shown, `before` the ids of the rows that it replaces.

    Raises `DataError` where the answer is none to this question.
    """
    if not isinstance(answer, Mapping):
        raise DataError("an answer must be an object")
    question = asked.question
    rows: list[Feedback] = []
    for value, span, evidence in _values(question, answer, episodes, asked.given):
        row = _row(asked, len(rows))
        statement = replace(row, value=value, abstention=None, span=span, reason=note)
        rows.append(replace(statement, evidence={**row.evidence, **evidence}))
    rows = [replace(row, supersedes=old) for row, old in zip(rows, before, strict=False)] + rows[len(before) :]
    return rows + _retractions(asked, before[len(rows) :], len(rows))


def skipped(asked: Asked, why: str, before: Sequence[str]) -> list[Feedback]:
    """The rows of a person who looked and would not say."""
    row = replace(_row(asked, 0), abstention=Abstention(why=why), supersedes=before[0] if before else None)
    return [row, *_retractions(asked, before[1:], 1)]


def retracted(asked: Asked, before: Sequence[str]) -> list[Feedback]:
    """The rows that take these back."""
    return _retractions(asked, before, 0)


def answer_of(question: Question, rows: Sequence[Feedback]) -> dict[str, Any] | None:
    """The answer of which these rows came, its places in the order shown; None for a skip or what was erased."""
    rows = [row for row in rows if row.status == "scored"]
    if not rows or any(row.abstention is not None for row in rows):
        return None
    value = rows[0].value
    if question.kind == "pair":
        return {"choice": value}
    if question.kind == "ranking":
        return {"order": list(value)}
    if question.kind == "rating":
        return {"score": value}
    if question.kind == "labels":
        return {"labels": str(value).split(", ")}
    if question.kind == "edit":
        return {"text": next(m["content"] for m in reversed(value) if m["role"] == "assistant")}
    marks = [{**to_plain(row.span), "label": row.value} for row in rows if row.span is not None]
    return {"marks": marks}


def said(question: Question, rows: Sequence[Feedback], episodes: Sequence[str]) -> str | None:
    """The answer in words that hold for any order; `episodes` in the item's own. None for a skip or an edit."""
    answer = answer_of(question, rows)
    if answer is None or question.kind == "edit":
        return None
    if question.kind in ("pair", "ranking"):
        own = [episodes.index(one) for one in rows[0].about]
        if question.kind == "ranking":
            return ">".join(str(own[place]) for place in answer["order"])
        return "tie" if answer["choice"] == 0.5 else str(own[int(answer["choice"])])
    return _in_words(question, answer)


def said_by_gold(question: Question, right: Any) -> str:
    """A right answer out of the gold file, in the words of `said`."""
    if question.kind == "pair":
        return "tie" if right == 0.5 else str(right)
    if question.kind == "ranking":
        return ">".join(map(str, right))
    if question.kind == "rating":
        return str(right)
    name = "labels" if question.kind == "labels" else "marks"
    return _in_words(question, {name: right if isinstance(right, list) else [right]})


def _in_words(question: Question, answer: Mapping[str, Any]) -> str:
    if question.kind == "rating":
        return str(answer["score"])
    if question.kind == "labels":
        return ", ".join(label for label in question.labels if label in answer["labels"])
    marks = sorted({(int(mark["turn"]), str(mark["label"])) for mark in answer["marks"]})
    return "; ".join(f"{turn}:{label}" for turn, label in marks) or NONE


def _values(
    question: Question, answer: Mapping[str, Any], episodes: Sequence[Episode], given: int
) -> list[tuple[Any, Span | None, dict[str, Any]]]:
    """Value, span and evidence of each row."""
    if question.kind == "pair":
        choice = answer.get("choice")
        if isinstance(choice, bool) or choice not in ((0, 1, 0.5) if question.ties else (0, 1)):
            raise DataError(f"the choice must be 0, 1, or 0.5 where ties are allowed, not {choice!r}")
        return [(choice, None, {})]
    if question.kind == "ranking":
        order = answer.get("order")
        whole = isinstance(order, list) and all(type(place) is int for place in order)
        if not isinstance(order, list) or not whole or sorted(order) != list(range(len(episodes))):
            raise DataError(f"the order must name each of {len(episodes)} answers once, not {order!r}")
        return [(order, None, {})]
    if question.kind == "rating":
        score = answer.get("score")
        if type(score) is not int or not question.scale[0] <= score <= question.scale[1]:
            raise DataError(f"the score must be a whole number from {question.scale[0]} to {question.scale[1]}")
        return [(score, None, {})]
    if question.kind == "labels":
        chosen = answer.get("labels")
        if not isinstance(chosen, list) or not chosen or any(label not in question.labels for label in chosen):
            raise DataError(f"choose at least one of {', '.join(question.labels)}")
        if len(chosen) > 1 and not question.multiple:
            raise DataError("choose one label")
        return [(", ".join(label for label in question.labels if label in chosen), None, {})]
    if question.kind == "edit":
        return [_edited(answer.get("text"), episodes[0], given)]
    return _marked(question, answer.get("marks"), episodes[0])


def _edited(text: Any, episode: Episode, given: int) -> tuple[Any, None, dict[str, Any]]:
    """The conversation after what was given as it should have been: its last message of the policy replaced."""
    if not isinstance(text, str) or not text.strip():
        raise DataError("an empty answer is none; skip the item if there is nothing to say")
    if len(text) > _LONGEST:
        raise DataError(f"an edited answer may have {_LONGEST} characters, not {len(text)}")
    turn = last_said(episode)
    messages = list(episode.messages)
    changed = text != messages[turn].content.replace("\r\n", "\n")  # a browser knows one kind of line break
    if changed:
        messages[turn] = replace(messages[turn], content=text)
    return [m.to_openai() for m in messages[given : turn + 1]], None, {"changed": changed, "turn": turn}


def last_said(episode: Episode) -> int:
    """Which message an edit is of: the last that the policy said."""
    turns = [n for n, m in enumerate(episode.messages) if m.role == "assistant"]
    if not turns:
        raise DataError(f"nobody answers in episode {episode.id}; there is nothing to edit")
    return turns[-1]


def _marked(question: Question, marks: Any, episode: Episode) -> list[tuple[Any, Span | None, dict[str, Any]]]:
    if not isinstance(marks, list) or len(marks) > _MOST_MARKS:
        raise DataError(f"marks must be a list of at most {_MOST_MARKS}")
    made: dict[tuple[Any, ...], tuple[Any, Span | None, dict[str, Any]]] = {}
    for mark in marks:
        if not isinstance(mark, Mapping) or mark.get("label") not in question.labels:
            raise DataError(f"a mark needs a label out of {', '.join(question.labels)}")
        turn, start, end = mark.get("turn"), mark.get("start"), mark.get("end")
        if type(turn) is not int or not 0 <= turn < len(episode.messages):
            raise DataError(f"a mark is on a turn that there is, not {turn!r}")
        if start is not None or end is not None:
            length = len(episode.messages[turn].content)
            fits = type(start) is int and type(end) is int and 0 <= start < end <= length
            if question.part != "span" or not fits:
                raise DataError(f"these words cannot be marked: {start!r} to {end!r} of {length} characters")
        made[turn, start if start is not None else -1, end or -1, mark["label"]] = (
            mark["label"],
            Span(turn=turn, start=start, end=end),
            {},
        )
    return [made[place] for place in sorted(made)] or [(NONE, None, {})]


def _row(asked: Asked, part: int) -> Feedback:
    """A row of this decision that says nothing yet."""
    question = asked.question
    kind: FeedbackKind = question.makes if question.kind == "edit" else _KINDS[question.kind]
    return Feedback(
        id=derive_id("fb", "label", asked.queue, asked.item, asked.slot, asked.revision, part),
        about=asked.about,
        criterion=asked.question.criterion,
        kind=kind,
        source=Source(kind="person", name=asked.person, version=asked.queue),
        abstention=Abstention(),
        evidence={"item": asked.item, "slot": asked.slot, "revision": asked.revision},
        cost=Cost(seconds=asked.seconds),
        created_at=asked.at,
        observed_at=asked.at,
        propensity=asked.propensity,
        assignment=f"label {asked.queue}" + (" gold" if asked.gold else ""),
        run_id=asked.run_id,
    )


def _retractions(asked: Asked, before: Sequence[str], part: int) -> list[Feedback]:
    return [
        replace(_row(asked, part + n), abstention=None, status="retracted", supersedes=old)
        for n, old in enumerate(before)
    ]
