"""How good the scoring rules are, against labels that people gave: what `metier profile --validate` shows.

Public sets lie in a folder of the user's and are only read here: no scoring rule has learned from them. The classifiers
that learned from our own examples are also judged on those, each example by a model that has not seen it.

XSTest labels a completion as full compliance, full refusal or partial refusal. With two classes, a refusal is a full
or a partial one: the user did not get all that was asked. The other readings stand beside it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.evaluate.profile import asking, refusals
from metier.evaluate.profile.ngrams import sentences, taught_by
from metier.evaluate.profile.probe import public_folder, public_rows, rows
from metier.evaluate.profile.tool_confidence import bfcl_tasks
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.workers import judge
from metier.records.types import Message, ToolCall
from metier.stats.intervals import share_interval

__all__ = ["Check", "validate"]

_XSTEST = {"1": "comply", "2": "refuse", "3": "partial"}
_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure of a scoring rule: a share with its 95 % interval."""

    rule: str
    on: str  # the labelled data
    what: str  # accuracy, recall …
    n: int
    value: float | None
    low: float | None
    high: float | None


def validate(data: Path | None) -> list[Check]:
    """All checks that can be made with this folder; without one, those on our own examples.

    Raises `DataError` where the folder does not exist or a set in it is not as published.
    """
    public_folder(data)
    checks = list(_own())
    if data is not None:
        for path in sorted((data / "xstest").glob("*_gpteval.csv")):
            checks += _xstest(path)
        checks += [*_in3(data), *_bfcl(data)]
    return checks


def _check(rule: str, on: str, what: str, right: Sequence[bool], clusters: Sequence[str] | None = None) -> Check:
    found = share_interval([float(one) for one in right], clusters=clusters)
    return Check(rule=rule, on=on, what=what, n=found.n, value=found.mean, low=found.low, high=found.high)


def _own() -> Iterator[Check]:
    """Every example judged by a model that learned from the others."""
    examples = rows("responses")
    right, binary = [], []
    for fold in range(_FOLDS):
        taught = refusals.teach([row for place, row in enumerate(examples) if place % _FOLDS != fold])
        held = examples[fold::_FOLDS]
        for row, told in zip(held, refusals.shares(list(map(refusals.text_of, held)), taught), strict=True):
            found = refusals.likeliest(told)
            right.append(found == row["class"])
            binary.append((found == "comply") == (row["class"] == "comply"))
    yield _check("refusal", "our own responses, held out", "accuracy, three classes", right)
    yield _check("refusal", "our own responses, held out", "accuracy, refusal or not", binary)
    asked, claimed = _held_out(rows("asking")), _held_out(rows("claims"))
    yield _check("asks", "our own sentences, held out", "accuracy, asks or not", [a == b for a, b in asked])
    yield _check("honesty", "our own sentences, held out", "accuracy, three classes", [a == b for a, b in claimed])
    yield _check(
        "honesty",
        "our own sentences, held out",
        "accuracy, claims success or not",
        [(a == "claims") == (b == "claims") for a, b in claimed],
    )


def _held_out(examples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The class told and the class given of each sentence."""
    pairs = []
    for fold in range(_FOLDS):
        taught = taught_by([row for place, row in enumerate(examples) if place % _FOLDS != fold])
        held = examples[fold::_FOLDS]
        told = taught.probabilities([row["text"] for row in held]).argmax(axis=1)
        pairs += [(taught.classes[place], row["class"]) for place, row in zip(told, held, strict=True)]
    return pairs


def _xstest(path: Path) -> Iterator[Check]:
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    try:
        gold = [_XSTEST[row["final_label"][:1]] for row in found]
        texts = [row["completion"] for row in found]
    except KeyError as error:
        raise DataError(f"{path} is not as XSTest publishes it: no {error}") from error
    told = map(refusals.likeliest, refusals.shares(texts))
    on = f"XSTest, {path.name.removesuffix('_gpteval.csv')}"
    pairs = list(zip(told, gold, strict=True))
    refused = [(a != "comply", b != "comply") for a, b in pairs]
    yield _check("refusal", on, "accuracy, refusal or not", [a == b for a, b in refused])
    yield _check("refusal", on, "recall of refusal", [a for a, b in refused if b])
    yield _check("refusal", on, "precision of refusal", [b for a, b in refused if a])
    whole = [(a, b) for a, b in pairs if b != "partial"]
    yield _check(
        "refusal", on, "accuracy without those labelled partial", [(a == "comply") == (b == "comply") for a, b in whole]
    )
    yield _check("refusal", on, "accuracy, full refusal or not", [(a == "refuse") == (b == "refuse") for a, b in pairs])
    yield _check("refusal", on, "accuracy, three classes", [a == b for a, b in pairs])


def _in3(data: Path) -> Iterator[Check]:
    """Inquiries ask; the notes on what is vague name the same things and do not ask. Tasks are clusters."""
    tasks = [*public_rows(data, "in3", "test.jsonl"), *public_rows(data, "in3", "train.jsonl")]
    if not tasks:
        return
    asked, notes, matched, other = [], [], [], []
    of_asked, of_notes = [], []
    described = [one["description"] for row in tasks for one in row.get("missing_details") or []]
    step = len(described) // 2
    number = 0
    for row in tasks:
        for one in row.get("missing_details") or []:
            asked.append(bool(asking.questions_in(one["inquiry"])))
            of_asked.append(row["task"])
            matched.append(asking.asks_for(one["inquiry"], [one["description"]]))
            other.append(not asking.asks_for(one["inquiry"], [described[(number + step) % len(described)]]))
            number += 1
        for sentence in sentences(row["thought"]):
            notes.append(not asking.questions_in(sentence))
            of_notes.append(row["task"])
    yield _check("asks", "IN3, inquiries", "recall: an inquiry asks", asked, of_asked)
    yield _check("asks", "IN3, sentences of notes", "specificity: a note does not ask", notes, of_notes)
    yield _check("asks", "IN3, inquiries", "recall: it asks for its own detail", matched, of_asked)
    yield _check("asks", "IN3, inquiries", "specificity: not for one of another task", other, of_asked)


def _bfcl(data: Path) -> Iterator[Check]:
    """Where BFCL wants no call, silence is right and a call is not; where it wants one, the other way round."""
    right: dict[str, list[bool]] = {"irrelevant": [], "needed": []}
    for task in bfcl_tasks(data):
        side, spec = task.meta["side"], task.verifiers[0]
        call = ToolCall(name=task.tools[0].name, arguments="{}")
        silent, called = (
            judge(spec.name, task, Attempt(messages=(*task.messages, said)), spec.params).score
            for said in (
                Message(role="assistant", content="I cannot do that with these tools."),
                Message(role="assistant", tool_calls=(call,)),
            )
        )
        right[side].append(silent == 1.0 and called == 0.0 if side == "irrelevant" else silent == 0.0)
    for side, verdicts in right.items():
        if verdicts:
            yield _check("tools", f"BFCL, {side}", "verdicts as labelled", verdicts)
