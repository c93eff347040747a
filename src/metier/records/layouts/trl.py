"""TRL's dataset types, standard and conversational: prompt-completion, preference, unpaired preference, stepwise.

    {"prompt", "completion"}               a demonstration
    {"prompt"?, "chosen", "rejected"}      a preference; without a prompt, what both begin with is the prompt
    {"prompt", "completion", "label"}      good or not
    {"prompt", "completions", "labels"}    steps of one answer, each right or not
    {"prompt"}                             a task

A text is one message: the user's as prompt, the assistant's as completion. In which order a
pair was shown is not known; it is put in the order of the texts' hashes, so that a place
says nothing. `score_chosen`, `score_rejected` and `margin` are kept as evidence, `source` or `annotator` as
who said it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import content_hash
from metier.records.layouts.items import Answer, Item, Said, messages_of
from metier.records.traces.calls import number
from metier.records.types import Message, Source

__all__ = ["SOURCE", "fits", "item"]

SOURCE = Source(kind="person", name="dataset", version="1")
_EVIDENCE = ("score_chosen", "score_rejected", "margin")
_BETWEEN = "\n"  # steps


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return {"chosen", "rejected"} <= row.keys() or ("prompt" in row and "messages" not in row)


def item(place: str, row: Mapping[str, Any]) -> Item:
    """What one row holds. Raises `DataError`; see `guarded`."""
    named = row.get("annotator") or row.get("source")
    source = Source(kind="person", name=str(named), version="1") if named else SOURCE
    if "chosen" in row or "rejected" in row:
        return _pair(place, row, source)
    prompt = messages_of(row.get("prompt"), "user", "`prompt`")
    if "completions" in row:
        return _steps(place, prompt, row, source)
    if "completion" not in row:
        return Item(place=place, prompt=prompt)
    answer = messages_of(row["completion"], "assistant", "`completion`")
    if "label" not in row:
        shown = [message.to_openai() for message in answer]
        said = Said(about=(0,), criterion="demonstration", kind="demonstration", value=shown, source=source)
    else:
        value = _truth(row["label"], "`label`")
        said = Said(about=(0,), criterion="preferred", kind="score", value=value, source=source)
    return Item(place=place, prompt=prompt, answers=(Answer(messages=answer),), said=(said,))


def _pair(place: str, row: Mapping[str, Any], source: Source) -> Item:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise DataError(f"half a pair: `{name}` is missing")
    chosen = messages_of(row["chosen"], "assistant", "`chosen`")
    rejected = messages_of(row["rejected"], "assistant", "`rejected`")
    if row.get("prompt") is not None:
        prompt = messages_of(row["prompt"], "user", "`prompt`")
        if chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:  # whole conversations beside it
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise DataError("there is no `prompt`, and `chosen` and `rejected` begin with no message in common")
    if chosen == rejected:
        raise DataError("`chosen` and `rejected` are the same")
    first = _hash(chosen) < _hash(rejected)
    answers = (chosen, rejected) if first else (rejected, chosen)
    evidence = {name: row[name] for name in _EVIDENCE if number(row.get(name)) is not None}
    said = Said(
        about=(0, 1),
        criterion="better",
        kind="preference",
        value=0 if first else 1,
        source=source,
        evidence=evidence,
    )
    return Item(place=place, prompt=prompt, answers=tuple(Answer(messages=one) for one in answers), said=(said,))


def _steps(place: str, prompt: tuple[Message, ...], row: Mapping[str, Any], source: Source) -> Item:
    steps, labels = row["completions"], row.get("labels")
    if not isinstance(steps, (list, tuple)) or not isinstance(labels, (list, tuple)) or len(steps) != len(labels):
        raise DataError("`completions` and `labels` must be lists of the same length")
    if not steps or not all(isinstance(step, str) for step in steps):
        raise DataError("`completions` must be texts, one for each step")
    said, start = [], 0
    for count, (step, label) in enumerate(zip(steps, labels, strict=True)):
        said.append(
            Said(
                about=(0,),
                criterion="step",
                kind="score",
                value=_truth(label, f"label {count}"),
                source=source,
                key=str(count),
                characters=(start, start + len(step)),
            )
        )
        start += len(step) + len(_BETWEEN)
    answer = messages_of(_BETWEEN.join(steps), "assistant", "`completions`")
    return Item(place=place, prompt=prompt, answers=(Answer(messages=answer),), said=tuple(said))


def _truth(value: Any, what: str) -> float:
    found = number(value.lower() == "true" if isinstance(value, str) and value.lower() in ("true", "false") else value)
    if found is None or not 0.0 <= found <= 1.0:
        raise DataError(f"{what} must be true or false, not {value!r:.40}")
    return found


def _hash(messages: tuple[Message, ...]) -> str:
    return content_hash([message.to_openai() for message in messages])
