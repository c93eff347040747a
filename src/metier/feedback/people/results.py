"""How a queue stands: progress, agreement, gold, and the labels themselves. Pure but for reading.

Agreement is over items that at least two people answered, gold ones left out: the share of pairs
of people who said the same, and Krippendorff's alpha (ordinal for ratings), which is 0 where they
agree as often as chance would make them. Skips count for neither. Of edits there is none.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

from metier.feedback.people.labelling import Labelling
from metier.feedback.people.queue import Question
from metier.feedback.people.statements import said, said_by_gold
from metier.records.types import Feedback, to_plain
from metier.stats.agreement import Scale, krippendorff
from metier.stats.votes import Votes

__all__ = ["Agreement", "Results", "Worker", "as_csv", "as_jsonl", "results"]

_DRAWS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One person's part."""

    name: str
    answered: int
    skipped: int
    gold: int  # gold items answered
    gold_right: int
    seconds: float | None  # median of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far people say the same of the same item."""

    items: int  # with at least two answers
    pairs: int  # of answers to one item
    agreeing: int
    alpha: float | None  # Krippendorff's; None where everybody always says the same one thing
    low: float | None  # its 95 % interval over items
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """How a queue stands."""

    queue: str
    wanted: int  # judgements of ordinary items
    done: int
    skipped: int
    workers: tuple[Worker, ...]
    agreement: Agreement | None  # None for edits
    first: int  # pairs, gold too: how often the answer shown first was chosen …
    chosen: int  # … of those in which one was chosen

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Told:
    item: str
    person: str
    label: str | None
    skip: bool
    seconds: float
    rows: list[Feedback]


def results(labelling: Labelling) -> Results:
    """How the queue stands now."""
    queue = labelling.queue
    told = list(_told(labelling))
    ordinary = [one for one in told if one.item not in queue.gold]
    wanted = {item.id: item.overlap for item in queue.items if item.id not in queue.gold}
    got: dict[str, int] = {}
    for one in ordinary:
        got[one.item] = got.get(one.item, 0) + (not one.skip)
    chosen = [one.rows[0].value for one in told if queue.question.kind == "pair" and one.label not in (None, "tie")]
    return Results(
        queue=queue.key,
        wanted=sum(wanted.values()),
        done=sum(min(n, wanted.get(item, 0)) for item, n in got.items()),
        skipped=sum(one.skip for one in told),
        workers=tuple(_worker(labelling, name, told) for name in sorted({one.person for one in told})),
        agreement=None if queue.question.kind == "edit" else _agreement(ordinary, queue.question),
        first=sum(value == 0 for value in chosen),
        chosen=len(chosen),
    )


def as_csv(labelling: Labelling) -> str:
    """Columns task, worker, label, as `metier stats aggregate` reads them; labels hold for any order shown."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["task", "worker", "label"])
    for one in _told(labelling):
        if one.label is not None:
            rows.writerow([_cell(one.item), _cell(one.person), _cell(one.label)])
    return out.getvalue()


def as_jsonl(labelling: Labelling) -> str:
    """The rows of feedback that stand, one a line."""
    rows = (row for _, decided in labelling.decided() for row in decided if row.status != "retracted")
    return "".join(json.dumps(to_plain(row), ensure_ascii=False) + "\n" for row in rows)


def _told(labelling: Labelling) -> Iterator[_Told]:
    for decision, rows in labelling.decided():
        own = labelling.own_order(decision.item) if labelling.has(decision.item) else None
        if own is None or not rows:
            continue  # an item that is no longer in the file
        label = None if decision.what == "skip" else said(labelling.queue.question, rows, own)
        yield _Told(decision.item, decision.person, label, decision.what == "skip", decision.seconds, rows)


def _worker(labelling: Labelling, name: str, told: Sequence[_Told]) -> Worker:
    mine = [one for one in told if one.person == name]
    gold = [one for one in mine if one.item in labelling.queue.gold and one.label is not None]
    right = sum(one.label == said_by_gold(labelling.queue.question, labelling.queue.gold[one.item]) for one in gold)
    seconds = [one.seconds for one in mine if not one.skip and one.seconds > 0]
    return Worker(
        name=name,
        answered=sum(not one.skip for one in mine),
        skipped=sum(one.skip for one in mine),
        gold=len(gold),
        gold_right=right,
        seconds=round(median(seconds), 1) if seconds else None,
    )


def _agreement(told: Sequence[_Told], question: Question) -> Agreement:
    votes = [(one.item, one.person, one.label) for one in told if one.label is not None]
    labels: dict[str, list[str]] = {}
    for item, _, label in votes:
        labels.setdefault(item, []).append(label)
    shared = [found for found in labels.values() if len(found) > 1]
    pairs = [pair for found in shared for pair in combinations(found, 2)]
    scale: Scale = "ordinal" if question.kind == "rating" else "nominal"
    alpha = krippendorff(Votes.of(votes), scale=scale, draws=_DRAWS) if shared else None
    return Agreement(
        items=len(shared),
        pairs=len(pairs),
        agreeing=sum(one == other for one, other in pairs),
        alpha=alpha.value if alpha else None,
        low=alpha.low if alpha else None,
        high=alpha.high if alpha else None,
    )


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
