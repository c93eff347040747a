"""One queue being labelled: what the page and the command line do, over a ledger and a store.

A decision is written down in the store first and then put into the ledger, and only then
acknowledged. Its rows have ids made of queue, item, slot and revision, so that doing
the second step again, after a crash or by the page that had no answer, adds nothing twice.
`flush` does it for whatever is still to be done; it runs at the beginning and with every decision.

The ledger's file may be moved away and put back while the page is open: nothing is acknowledged
meanwhile, and it is opened anew where it is not the file that was opened.

Does not protect: a ledger put back from an old copy lacks what was said since; the store
keeps no second copy of that, so that erasing it in the ledger erases it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.base.clock import now
from metier.base.errors import DataError, LedgerError
from metier.base.seeds import rng_for
from metier.feedback.people.access import Links
from metier.feedback.people.intake import take_in
from metier.feedback.people.queue import Queue
from metier.feedback.people.statements import Asked, answer_of, answered, retracted, skipped
from metier.feedback.people.store import Decision, Slot, Store
from metier.feedback.people.tables import LabelDatabase
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Tool, from_plain, to_plain

__all__ = ["Labelling", "Shown"]

_BATCH = 500
_LONGEST_NOTE = 4000
_MOST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An item as one person sees it."""

    slot: Slot
    episodes: tuple[Episode, ...]  # in the order shown
    given: int  # messages that all of them begin with: the task's, and what else they share
    tools: tuple[Tool, ...]
    answer: dict[str, Any] | None  # what this person said before and took back
    draft: Any  # what they left unfinished, as the page sent it

    @property
    def erased(self) -> bool:
        """Whether what is to be judged is no longer in the ledger."""
        return any(not episode.messages for episode in self.episodes)


class Labelling:
    """An open queue. Use it as a context manager, or `close` it; threads may share it."""

    def __init__(self, queue: Queue, ledger: str | Path) -> None:
        """Open the queue over the ledger in this file or behind this URL, and take its items in."""
        self.queue = queue
        self._where = ledger
        self._handle = threading.Lock()  # held for a moment, within any other lock
        self._flushing = threading.Lock()  # held before the store's own
        self._items = {item.id: item for item in queue.items}
        self._ledger = Ledger.open(ledger)
        self._file = _identity(self._ledger.path)
        try:
            self._episodes = take_in(self._ledger, queue)
            path = self._ledger.path
            database = LabelDatabase(str(ledger) if path is None else path.with_name("labels.sqlite"), queue.key)
        except BaseException:
            self._ledger.close()
            raise
        self.database = database
        try:
            self.store = Store(database)
            self.store.begin(queue)
            self.links = Links(database)
            self.flush()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back ledger and store."""
        self.database.close()
        self._ledger.close()

    def __enter__(self) -> Labelling:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what a person sees ------------------------------------------------------------

    def shown(self, person: str) -> Shown | None:
        """What this person is to judge now, or None where nothing is left for them."""
        slot = self.store.hold(person, self.queue.seed)
        if slot is None:
            return None
        episodes = self._in_order(slot)
        task = self._open_ledger().task(episodes[0].task_id)
        draft = self.store.draft(person, slot.item)
        before = self.store.said_before(slot)
        return Shown(
            slot=slot,
            episodes=episodes,
            given=self._given(episodes),
            tools=task.tools,
            answer=answer_of(self.queue.question, self.rows(before)) if before else None,
            draft=None if draft is None else json.loads(draft),
        )

    def order(self, item: str, slot: int) -> tuple[str, ...]:
        """The episodes of an item as this slot shows them. The two orders of a pair take turns from slot to slot."""
        own = self._episodes[item]
        rng = rng_for(self.queue.seed, "order", self.queue.key, item)
        if len(own) == 2:
            return own if (rng.random() < 0.5) != bool(slot % 2) else own[::-1]
        return tuple(rng_for(self.queue.seed, "order", self.queue.key, item, slot).sample(own, len(own)))

    def whole(self, person: str, item: str, place: int, turn: int) -> str:
        """All that one message of an item says. Raises `DataError` where it is not before this person."""
        slot = self.store.slot(person, item) if self.has(item) else None
        episodes = () if slot is None else self._in_order(slot)
        if not 0 <= place < len(episodes) or not 0 <= turn < len(episodes[place].messages):
            raise DataError("there is no such message in what you judge")
        return episodes[place].messages[turn].content

    # --- what a person says ------------------------------------------------------------

    def answer(self, person: str, item: str, answer: Any, click: str, *, note: str = "", seconds: float = 0.0) -> None:
        """Keep an answer; it is in the ledger when this returns. The same click again changes nothing."""
        self._check(item)
        if not isinstance(note, str) or len(note) > _LONGEST_NOTE:
            raise DataError(f"a note may have {_LONGEST_NOTE} characters")
        seconds = min(max(seconds, 0.0), _MOST_SECONDS)

        def rows(slot: Slot, revision: int, before: tuple[str, ...]) -> list[tuple[str, str]]:
            episodes = self._in_order(slot)
            asked = self._asked(slot, revision, episodes, seconds)
            return _bodies(answered(asked, answer, episodes, before, note.strip()))

        self.store.decide(person, item, "answer", click, rows, seconds=seconds)
        self.flush()

    def skip(self, person: str, item: str, why: str, click: str) -> None:
        """Keep that this person would not judge this item, and why; somebody else is asked then."""
        self._check(item)
        if not isinstance(why, str) or not why.strip() or len(why) > _LONGEST_NOTE:
            raise DataError("say in a few words why you skip this")

        def rows(slot: Slot, revision: int, before: tuple[str, ...]) -> list[tuple[str, str]]:
            asked = self._asked(slot, revision, self._in_order(slot), 0.0)
            return _bodies(skipped(asked, why.strip(), before))

        self.store.decide(person, item, "skip", click, rows)
        self.flush()

    def undo(self, person: str, click: str) -> bool:
        """Take back this person's newest decision, which is then before them again; False where there is none."""

        def rows(slot: Slot, revision: int, before: tuple[str, ...]) -> list[tuple[str, str]]:
            return _bodies(retracted(self._asked(slot, revision, self._in_order(slot), 0.0), before))

        found = self.store.undo(person, click, rows)
        self.flush()
        return found is not None

    def draft(self, person: str, item: str, body: Any) -> None:
        """Keep what is not finished."""
        self._check(item)
        self.store.save_draft(person, item, json.dumps(body))

    def ping(self) -> None:
        """Raises `LedgerError` where ledger or store do not answer."""
        self.store.ping()
        self._open_ledger().episodes(ids=self.queue.items[0].episodes[:1] or ["-"])

    # --- the ledger --------------------------------------------------------------------

    def flush(self) -> None:
        """Put into the ledger what is not there yet."""
        with self._flushing:
            ledger = self._open_ledger()
            while pending := self.store.pending(_BATCH):
                ledger.add_feedback([from_plain(Feedback, json.loads(body)) for _, body in pending])
                self.store.kept([feedback_id for feedback_id, _ in pending])

    def rows(self, ids: Sequence[str]) -> list[Feedback]:
        """These rows of the ledger, superseded ones too, in the order given."""
        found = {row.id: row for row in self._open_ledger().feedback(ids=ids, current=False)}
        return [found[one] for one in ids if one in found]

    def decided(self) -> list[tuple[Decision, list[Feedback]]]:
        """The decisions that stand, with their rows."""
        decisions = self.store.decisions()
        rows = {row.id: row for row in self.rows([one for decision in decisions for one in decision.feedback])}
        return [(d, [rows[one] for one in d.feedback if one in rows]) for d in decisions]

    def has(self, item: str) -> bool:
        """Whether the queue has this item."""
        return item in self._items

    def own_order(self, item: str) -> tuple[str, ...]:
        """The episodes of an item, as its file has them."""
        return self._episodes[item]

    def _open_ledger(self) -> Ledger:
        """The ledger, opened anew where its file is another one than it was."""
        with self._handle:
            found = _identity(self._ledger.path)
            if found is None and self._file is not None:
                raise LedgerError(f"the ledger {self._ledger.path} is gone; nothing can be saved until it is back")
            if found != self._file:
                fresh = Ledger.open(self._where, create=False)
                self._ledger.close()
                self._ledger, self._file = fresh, found
            return self._ledger

    def _check(self, item: str) -> None:
        if item not in self._items:
            raise DataError("the queue has no such item; load the page again")

    def _in_order(self, slot: Slot) -> tuple[Episode, ...]:
        order = self.order(slot.item, slot.slot)
        found = {episode.id: episode for episode in self._open_ledger().episodes(ids=order)}
        return tuple(found[one] for one in order)

    def _given(self, episodes: Sequence[Episode]) -> int:
        """How many messages come before what is judged."""
        task = self._open_ledger().task(episodes[0].task_id)
        given = len(task.messages)
        if any(episode.messages[:given] != task.messages for episode in episodes):
            given = 0
        while len(episodes) > 1:
            following = {episode.messages[given : given + 1] for episode in episodes}
            if len(following) > 1 or following == {()} or any(len(e.messages) <= given + 1 for e in episodes):
                break
            given += 1
        return given

    def _asked(self, slot: Slot, revision: int, episodes: Sequence[Episode], seconds: float) -> Asked:
        item = self._items[slot.item]
        return Asked(
            queue=self.queue.key,
            question=self.queue.question,
            item=slot.item,
            slot=slot.slot,
            revision=revision,
            person=slot.person,
            about=tuple(episode.id for episode in episodes),
            given=self._given(episodes),
            gold=slot.item in self.queue.gold,
            propensity=item.propensity,
            run_id=None if item.episodes else episodes[0].run_id,
            at=now(),
            seconds=seconds,
        )


def _bodies(rows: Sequence[Feedback]) -> list[tuple[str, str]]:
    return [(row.id, json.dumps(to_plain(row))) for row in rows]


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file this is on the disk; None where there is none."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)
