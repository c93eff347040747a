"""Argilla's records, as `dataset.records.to_json` and the older FeedbackDataset write them.

Fields that are named like answers (response, completion, output …) are answers, the others
what was asked. A number is a score; a choice that names an answer is a preference; a
ranking of answers is a ranking; any other text or list is a label. Suggestions are a
judge's, responses a person's. Discarded responses are abstentions; drafts are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metier.records.layouts.items import Item, Said, asked_and_answered
from metier.records.traces.calls import Skipped, mapping, number
from metier.records.types import Source

__all__ = ["fits", "item", "statement"]

_EDGES = {"left": 0, "right": 1, "tie": 0.5, "equal": 0.5}


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return isinstance(row.get("fields"), Mapping) and bool({"responses", "suggestions"} & row.keys())


def item(place: str, row: Mapping[str, Any]) -> Item:
    """What one record holds. Raises `DataError`; see `guarded`."""
    prompt, answers, names = asked_and_answered(row["fields"])
    said: list[Said] = []
    skipped: list[Skipped] = []
    for question, user, value, status in _responses(row.get("responses")):
        person = Source(kind="person", name=user, version="1")
        where = f"{place}, response of {user}"
        if status == "draft":
            skipped.append(Skipped(where, "a draft, which its author has not submitted"))
        elif status == "discarded":
            said.append(_silent(question, person, len(answers)))
        else:
            _add(said, skipped, where, question, value, person, names)
    for question, one in _suggestions(row.get("suggestions")):
        agent = Source(kind="judge", name=str(one.get("agent") or "suggestion"), version="1")
        _add(said, skipped, f"{place}, suggestion", question, one.get("value"), agent, names, number(one.get("score")))
    meta = {"item": str(row.get("id") or row.get("external_id") or ""), **mapping(row.get("metadata"))}
    return Item(place=place, prompt=prompt, answers=answers, said=tuple(said), skipped=tuple(skipped), meta=meta)


def _add(
    said: list[Said],
    skipped: list[Skipped],
    where: str,
    question: str,
    value: Any,
    source: Source,
    names: Sequence[str],
    confidence: float | None = None,
) -> None:
    made = statement(question, value, source, names, confidence=confidence)
    if made is None:
        skipped.append(Skipped(where, f"{question!r} has a value that is no number, text, choice or ranking"))
    else:
        said.append(made)


def _silent(question: str, source: Source, answers: int) -> Said:
    about = tuple(range(answers))
    return Said(about=about, criterion=question, kind="label", value=None, abstention="discarded", source=source)


def statement(
    criterion: str,
    value: Any,
    source: Source,
    names: Sequence[str],
    *,
    confidence: float | None = None,
    at: float | None = None,
    seconds: float = 0.0,
) -> Said | None:
    """What a value of a labelling tool says, or None. `names` are those of the answers, for choices among them."""
    every = tuple(range(len(names)))
    common: dict[str, Any] = {"criterion": criterion, "source": source, "at": at, "seconds": seconds}
    common["confidence"] = confidence if confidence is not None and 0.0 <= confidence <= 1.0 else None
    if isinstance(value, (bool, int, float)):
        found = number(value)
        return None if found is None else Said(about=every[:1], kind="score", value=found, **common)
    if isinstance(value, str) and value:
        choice: float | None = _EDGES.get(value.lower())
        if value in names:
            choice = names.index(value)
        if choice is not None and len(names) == 2:
            return Said(about=every, kind="preference", value=choice, **common)
        return Said(about=every, kind="label", value=value, **common)
    if not isinstance(value, Sequence) or not value:
        return None
    if all(isinstance(one, Mapping) and one.get("value") in names for one in value):
        order = [names.index(one["value"]) for one in sorted(value, key=lambda one: one.get("rank", 0))]
        return Said(about=every, kind="ranking", value=order, **common)
    if all(isinstance(one, str) for one in value):
        if len(names) > 1 and sorted(value) == sorted(names):
            return Said(about=every, kind="ranking", value=[names.index(one) for one in value], **common)
        return Said(about=every, kind="label", value=value[0] if len(value) == 1 else list(value), **common)
    return None


def _responses(raw: Any) -> Iterator[tuple[str, str, Any, str]]:
    """Question, user, value and status of each response, in both forms."""
    if isinstance(raw, Mapping):
        for question, given in raw.items():
            for one in given or ():
                yield str(question), str(one.get("user_id") or "unknown"), one.get("value"), _status(one)
    for answer in raw if isinstance(raw, list) else ():
        for question, held in (answer.get("values") or {}).items():
            value = held.get("value") if isinstance(held, Mapping) else held
            yield str(question), str(answer.get("user_id") or "unknown"), value, _status(answer)


def _status(raw: Mapping[str, Any]) -> str:
    return str(raw.get("status") or "submitted").rpartition(".")[2].lower()


def _suggestions(raw: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(raw, Mapping):
        yield from ((str(question), one) for question, one in raw.items() if isinstance(one, Mapping))
    for one in raw if isinstance(raw, list) else ():
        yield str(one.get("question_name")), one
