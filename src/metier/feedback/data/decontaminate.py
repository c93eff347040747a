"""Rows that hold what a model is tested on, found and named.

Items are the tasks of every suite in the ledger and of every split that is held out. What of an item is looked
for is what its user says, message by message, and any long text in its hidden answer. A row holds an item where
one of the row's messages

    words    has `words` of the item's words in a row (13), or all of a shorter item's (at least 8); an item
             shorter than that has to be the whole message
    near     is alike to the item as a whole (MinHash, Jaccard of five-character pieces at least .8)
    same     or where the row was made of the item's very task

Words that more than `common` different items share are a form, not an item: the tasks of a family are alike in
how they ask, and a row of the family's training split is so too (the filter of GPT-3, arXiv 2005.14165, appendix
C, on the side of the tests). `near` asks for the same numbers, too.

What it cannot find: translations and free paraphrases, and an item of fewer than eight words inside a longer message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metier.feedback.data.declaration import TRAINING, Decontaminate
from metier.feedback.data.minhash import Index, pieces, signature
from metier.feedback.data.rows import Row, letters, numbers, passages, words
from metier.feedback.data.selecting import batches, task_ids
from metier.records.types import Task
from metier.records.view import LedgerView

__all__ = ["Contamination", "HeldOut", "held_out"]

SHORT = 8  # words below which an item has to be the whole message
_NEAR_WORDS = 8  # words below which likeness of characters means nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """A row that holds an item."""

    row_id: str
    suite: str  # NAME@VERSION, or `split NAME` of a held-out split
    task_id: str  # the item
    part: str  # question or answer
    how: str  # words, near or same
    of_row: tuple[str, ...]  # feedback behind the row, or its tasks

    def to_json(self) -> dict[str, Any]:
        """Ids and no texts: what was found must not keep what is forgotten."""
        return {
            "row": self.row_id,
            "suite": self.suite,
            "item": self.task_id,
            "part": self.part,
            "how": self.how,
            "made_of": list(self.of_row),
        }


@dataclass(frozen=True, slots=True)
class _Item:
    task_id: str
    suite: str
    part: str


class HeldOut:
    """Everything that a model is tested on, ready to be looked for."""

    def __init__(self, how: Decontaminate) -> None:
        self._how = how
        self._suite: dict[str, str] = {}
        self._items: list[_Item] = []
        self._long: dict[tuple[str, ...], list[int]] = {}  # words in a row -> items
        self._whole: dict[int, dict[tuple[str, ...], int]] = {}  # by length: all words of an item -> the item
        self._near: dict[tuple[str, ...], tuple[Index, list[int]]] = {}
        self._texts: set[str] = set()

    def __len__(self) -> int:
        return len(self._suite)

    def add(self, task: Task, suite: str) -> None:
        """Add an item; one that says what another said already is known by the first."""
        if not task.messages or task.id in self._suite:
            return
        self._suite[task.id] = suite
        for part, text in _looked_for(task):
            said = words(text)
            key = " ".join(said)
            if not said or key in self._texts:
                continue
            self._texts.add(key)
            number = len(self._items)
            self._items.append(_Item(task.id, suite, part))
            size = self._how.words
            if len(said) < size:
                self._whole.setdefault(len(said), {}).setdefault(tuple(said), number)
            for start in {tuple(said[n : n + size]) for n in range(len(said) - size + 1)}:
                self._long.setdefault(start, []).append(number)
            if len(said) >= _NEAR_WORDS:
                index, members = self._near.setdefault(numbers(text), (Index(self._how.near), []))
                found = pieces(key)
                index.add(found, signature(found))
                members.append(number)

    def find(self, row: Row) -> Contamination | None:
        """The item that a row holds, if any."""
        for task_id in row.task_ids:
            if task_id in self._suite:
                return self._told(row, _Item(task_id, self._suite[task_id], "question"), "same")
        for text in passages(row.data):
            said = words(text)
            for number, how in self._in_words(said):
                return self._told(row, self._items[number], how)
            known = self._near.get(numbers(text))
            if known is not None and len(said) >= _NEAR_WORDS:
                found = pieces(letters(text))
                alike = known[0].alike(found, signature(found))
                if alike:
                    return self._told(row, self._items[known[1][alike[0][0]]], "near")
        return None

    def _in_words(self, said: Sequence[str]) -> Iterable[tuple[int, str]]:
        whole = self._whole.get(len(said), {}).get(tuple(said))
        if whole is not None:
            yield whole, "words"
        size = self._how.words
        for n in range(len(said) - size + 1):
            found = self._long.get(tuple(said[n : n + size]))
            if found is not None and len(found) <= self._how.common:
                yield found[0], "words"
        for length, items in self._whole.items():
            if length >= SHORT:
                for n in range(len(said) - length + 1):
                    inside = items.get(tuple(said[n : n + length]))
                    if inside is not None:
                        yield inside, "words"

    def _told(self, row: Row, item: _Item, how: str) -> Contamination:
        return Contamination(
            row_id=row.id,
            suite=item.suite,
            task_id=item.task_id,
            part=item.part,
            how=how,
            of_row=row.feedback_ids or row.task_ids,
        )


def held_out(ledger: LedgerView, how: Decontaminate, training: Iterable[str]) -> HeldOut:
    """The items of every suite, and of every split that is neither in `training` nor named by `how`."""
    tests = HeldOut(how)
    for suite in ledger.suites():
        for some in batches(suite.task_ids):
            for task in ledger.tasks(some).values():
                tests.add(task, f"{suite.name}@{suite.version}")
    apart = sorted({*TRAINING, *training, *how.training_splits})
    for some in batches(task_ids(ledger, but_splits=apart)):
        for task in ledger.tasks(some).values():
            tests.add(task, f"split {task.split}")
    return tests


def _looked_for(task: Task) -> Iterable[tuple[str, str]]:
    for message in task.messages:
        if message.role == "user":
            yield "question", message.content
    for text in _texts_in(task.answer):
        if len(words(text)) >= 13:  # a shorter answer is the answer to much else
            yield "answer", text


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts_in(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts_in(one)
