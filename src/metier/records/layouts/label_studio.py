"""Label Studio's JSON export: tasks with annotations and predictions.

Fields of `data` that are named like answers are answers, the others what was asked. Taken
are choices, taxonomies, ratings, numbers, pairwise, rankers, text areas and labels of text;
what marks pictures or sound is named and left out. An annotation that was cancelled is an
abstention; predictions are a judge's. The flat exports (CSV, JSON-MIN) say too little of
who said what, and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from metier.records.layouts.argilla import statement
from metier.records.layouts.items import Item, Said, asked_and_answered
from metier.records.traces.calls import Skipped, mapping, number, seconds_of
from metier.records.types import Source

__all__ = ["fits", "item"]


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list)


def item(place: str, row: Mapping[str, Any]) -> Item:
    """What one task holds. Raises `DataError`; see `guarded`."""
    prompt, answers, names = asked_and_answered(row["data"])
    said: list[Said] = []
    skipped: list[Skipped] = []
    for count, given in enumerate([*row["annotations"], *(row.get("predictions") or ())]):
        human = count < len(row["annotations"])
        where = f"{place}, {'annotation' if human else 'prediction'} {given.get('id', count + 1)}"
        source = _person(given) if human else _model(given)
        at, seconds = seconds_of(given.get("updated_at") or given.get("created_at")), number(given.get("lead_time"))
        if given.get("was_cancelled"):
            every = tuple(range(len(answers)))
            said.append(
                Said(
                    about=every,
                    criterion="annotation",
                    kind="label",
                    value=None,
                    abstention="skipped",
                    source=source,
                    at=at,
                )
            )
            continue
        for part in given.get("result") or ():
            made = _part(part, source, names, at, seconds or 0.0, number(given.get("score")))
            if made is None:
                skipped.append(Skipped(where, f"a result of type {part.get('type')!r}, which cannot be taken"))
            else:
                said.append(made)
    meta = {"item": str(row.get("id", "")), **mapping(row.get("meta"))}
    return Item(place=place, prompt=prompt, answers=answers, said=tuple(said), skipped=tuple(skipped), meta=meta)


def _person(given: Mapping[str, Any]) -> Source:
    by = given.get("completed_by")
    name = by.get("email") or by.get("id") if isinstance(by, Mapping) else by
    return Source(kind="person", name="unknown" if name is None else str(name), version="1")


def _model(given: Mapping[str, Any]) -> Source:
    return Source(kind="judge", name="prediction", version=str(given.get("model_version") or "1"))


def _part(
    part: Mapping[str, Any],
    source: Source,
    names: Sequence[str],
    at: float | None,
    seconds: float,
    confidence: float | None,
) -> Said | None:
    kind, value, name = str(part.get("type", "")).lower(), mapping(part.get("value")), str(part.get("from_name") or "")
    found: Any = None
    if kind == "pairwise":
        found = value.get("selected")
    elif kind in ("rating", "number", "choices"):
        found = value.get(kind)
    elif kind == "textarea":
        text = value.get("text")
        found = text[0] if isinstance(text, list) and len(text) == 1 else text
    elif kind == "taxonomy":
        found = ["/".join(map(str, path)) for path in value.get("taxonomy") or ()]
    elif kind == "ranker":
        held = value.get("ranker")
        found = held if isinstance(held, list) else None
    elif kind == "labels" and "labels" in value and "start" in value:
        made = statement(name, value["labels"], source, (), confidence=confidence, at=at, seconds=seconds)
        return made and _spanned(made, value)
    return statement(name, found, source, names, confidence=confidence, at=at, seconds=seconds)


def _spanned(made: Said, value: Mapping[str, Any]) -> Said | None:
    start, end = number(value.get("start")), number(value.get("end"))
    if start is None or end is None:
        return None
    return replace(made, characters=(int(start), int(end)), key=f"{int(start)}-{int(end)}")
