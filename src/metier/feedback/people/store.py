"""Who judges what: links, slots, leases, drafts and a log of decisions, beside the ledger.

The ledger holds what people said; this holds only how they came to say it, in tables of its
own: in the ledger's database where that is a server, else in `labels.sqlite` beside its file.
What a decision says lies here just until it is in the ledger (`pending`), so that erasing it there
erases it.

A *slot* is one judgement that is wanted of one item. It belongs to one person at a time, through
a lease; a lease that ran out may be taken over while nothing was said. A slot in which something
was said is never given to another person; where that was a skip, another slot is opened. Each
decision in a slot is a *revision*. A decision carries the `click` that made it: the
same click again changes nothing and is answered as before.

Every change is one transaction that first locks its queue, so that no two processes give
away the same slot. Leases go by the clock of the machine that serves; a clock that jumps
may end a lease early, and then the item may be judged once more than was asked, but no
decision is refused or lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, exists, func, insert, or_, select, update

from metier.base.clock import now
from metier.base.errors import DataError
from metier.base.seeds import rng_for
from metier.feedback.people.queue import Queue
from metier.feedback.people.tables import LabelDatabase, drafts, items, log, pending, queues, slots

__all__ = ["Bodies", "Decision", "Slot", "Store"]

LEASE_SECONDS = 1800.0
_GOLD_GAP = (3, 9)  # ordinary items between two gold ones of a person


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One judgement that is wanted, in the hands of one person."""

    item: str
    slot: int
    person: str
    state: str
    revision: int
    decided: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One entry of the log."""

    item: str
    slot: int
    revision: int
    person: str
    what: str
    feedback: tuple[str, ...]
    at: float
    seconds: float


Bodies = Callable[[Slot, int, tuple[str, ...]], Sequence[tuple[str, str]]]
"""Of a slot, a new revision and the ids of the rows before: ids and bodies of the new rows."""


class Store:
    """The open tables of one queue. Threads may share it."""

    def __init__(self, database: LabelDatabase, *, clock: Callable[[], float] = now) -> None:
        self._database = database
        self._queue = database.queue
        self._clock = clock

    def begin(self, queue: Queue) -> None:
        """Take note of what is asked, and of its items.

        Raises `DataError` where it was asked otherwise before under this name and version.
        """
        with self._database.writing() as connection:
            stored = connection.execute(select(queues.c.identity).where(queues.c.queue == queue.key)).scalar()
            if stored is None:
                row = {"queue": queue.key, "identity": queue.identity, "created_at": self._clock()}
                connection.execute(insert(queues), row)
            elif stored != queue.identity:
                raise DataError(
                    f"queue {queue.key} asked something else, or with other instructions, when it was begun;"
                    " give what is asked now a version of its own"
                )
            before = select(items.c.item, items.c.hash).where(items.c.queue == queue.key)
            known = {row.item: row.hash for row in connection.execute(before)}
            rows = [
                {
                    "queue": queue.key,
                    "item": item.id,
                    "position": position,
                    "overlap": item.overlap,
                    "gold": item.id in queue.gold,
                    "hash": item.hash,
                }
                for position, item in enumerate(queue.items)
            ]
            for row in rows:
                if known.get(row["item"], row["hash"]) != row["hash"]:
                    raise DataError(
                        f"item {row['item']!r} of queue {queue.key} said something else when it was begun;"
                        " give it an id of its own, or the queue a new version"
                    )
            connection.execute(delete(items).where(items.c.queue == queue.key))
            connection.execute(insert(items), rows)

    def ping(self) -> None:
        """Raises `LedgerError` where the database does not answer."""
        with self._database.reading() as connection:
            connection.execute(select(queues.c.queue).limit(1)).all()

    # --- slots -------------------------------------------------------------------------

    def hold(self, person: str, seed: int) -> Slot | None:
        """What this person is to judge now: what they hold already, or the next that is open to them."""
        with self._database.writing() as connection:
            mine = self._of(person)
            held = select(slots).where(mine, slots.c.state == "leased")
            row = connection.execute(held.order_by(slots.c.decided.desc(), slots.c.lease_until).limit(1)).first()
            if row is None:
                item = self._next_item(connection, person, seed)
                if item is None:
                    return None
                self._open(connection, item, person)
                row = connection.execute(held).one()
            here = and_(mine, slots.c.item == row.item)
            connection.execute(update(slots).where(here).values(lease_until=self._clock() + LEASE_SECONDS))
        return _slot(row)

    def slot(self, person: str, item: str) -> Slot | None:
        """This person's slot of an item, where they have or had one."""
        with self._database.reading() as connection:
            return self._slot_of(connection, person, item)

    def done(self, person: str) -> int:
        """How many items this person has answered."""
        with self._database.reading() as connection:
            mine = and_(self._of(person), slots.c.state == "answered")
            return connection.execute(select(func.count()).select_from(slots).where(mine)).scalar_one()

    def can_undo(self, person: str) -> bool:
        """Whether anything that this person decided stands."""
        with self._database.reading() as connection:
            stands = and_(self._of(person), slots.c.state.in_(("answered", "skipped")))
            return connection.execute(select(slots.c.item).where(stands).limit(1)).first() is not None

    def left(self, person: str) -> int:
        """How many items are open to this person, beside those that they hold or have judged."""
        with self._database.reading() as connection:
            return sum(
                connection.execute(
                    select(func.count()).select_from(self._open_to(person, gold).subquery())
                ).scalar_one()
                for gold in (False, True)
            )

    def _open(self, connection: Connection, item: str, person: str) -> None:
        """A slot of the item for this person: one whose lease ran out unused, else a new one."""
        here = and_(slots.c.queue == self._queue, slots.c.item == item)
        idle = and_(
            here,
            slots.c.state == "leased",
            slots.c.revision == 0,
            slots.c.lease_until <= self._clock(),
        )
        row = connection.execute(select(slots.c.slot).where(idle).order_by(slots.c.slot).limit(1)).first()
        until = self._clock() + LEASE_SECONDS
        if row is not None:
            taken = and_(here, slots.c.slot == row.slot)
            connection.execute(update(slots).where(taken).values(person=person, lease_until=until))
            return
        slot = connection.execute(select(func.coalesce(func.max(slots.c.slot), -1) + 1).where(here)).scalar_one()
        fresh = {"state": "leased", "lease_until": until, "revision": 0, "decided": 0}
        connection.execute(insert(slots), {"queue": self._queue, "item": item, "slot": slot, "person": person, **fresh})

    def _next_item(self, connection: Connection, person: str, seed: int) -> str | None:
        mine = and_(slots.c.queue == self._queue, slots.c.person == person)
        same = and_(items.c.queue == slots.c.queue, items.c.item == slots.c.item)
        seen = select(items.c.gold).join_from(slots, items, same).where(mine)
        of_gold = [bool(gold) for gold in connection.execute(seen).scalars()]
        gold_seen = sum(of_gold)
        rng = rng_for(seed, self._queue, "gold", person)
        due = sum(rng.randint(*_GOLD_GAP) for _ in range(gold_seen + 1)) <= len(of_gold) - gold_seen
        for gold in (due, not due):
            query = self._open_to(person, gold).order_by(items.c.position).limit(1)
            row = connection.execute(query).first()
            if row is not None:
                return str(row.item)
        return None

    def _open_to(self, person: str, gold: bool) -> Select[Any]:
        """Items that this person may be given: not theirs before, and, but for gold, in need of a judgement."""
        here = and_(slots.c.queue == self._queue, slots.c.item == items.c.item)
        query = select(items.c.item, items.c.position).where(
            items.c.queue == self._queue,
            items.c.gold == gold,
            ~exists(select(slots.c.slot).where(here, slots.c.person == person)),
        )
        if gold:
            return query
        held = or_(
            slots.c.state == "answered",
            and_(slots.c.state == "leased", slots.c.lease_until > self._clock()),
        )
        taken = select(func.count()).select_from(slots).where(here, held).scalar_subquery()
        return query.where(taken < items.c.overlap)

    def _of(self, person: str) -> ColumnElement[bool]:
        """Slots of this person, of items that the queue still has."""
        here = select(items.c.item).where(items.c.queue == self._queue)
        return and_(slots.c.queue == self._queue, slots.c.person == person, slots.c.item.in_(here))

    def _slot_of(self, connection: Connection, person: str, item: str) -> Slot | None:
        mine = and_(slots.c.queue == self._queue, slots.c.person == person, slots.c.item == item)
        row = connection.execute(select(slots).where(mine)).first()
        return None if row is None else _slot(row)

    # --- decisions ---------------------------------------------------------------------

    def decide(
        self, person: str, item: str, what: str, click: str, bodies: Bodies, *, seconds: float = 0.0
    ) -> tuple[str, ...]:
        """Write down a decision and what it says, to be put into the ledger. Returns the ids of its rows."""
        with self._database.writing() as connection:
            if (done := self._clicked(connection, person, click)) is not None:
                return done
            if self._slot_of(connection, person, item) is None:  # their lease ran out, and somebody took over
                self._open(connection, item, person)
            slot = self._slot_of(connection, person, item)
            assert slot is not None
            return self._write(connection, slot, what, click, bodies, seconds)

    def undo(self, person: str, click: str, bodies: Bodies) -> Slot | None:
        """Take back this person's newest decision that stands; None where there is none."""
        with self._database.writing() as connection:
            if self._clicked(connection, person, click) is None:
                stands = and_(self._of(person), slots.c.state.in_(("answered", "skipped")))
                row = connection.execute(select(slots).where(stands).order_by(slots.c.decided.desc()).limit(1)).first()
                if row is None:
                    return None
                self._write(connection, _slot(row), "undo", click, bodies, 0.0)
            same = and_(log.c.queue == self._queue, log.c.person == person, log.c.click == click)
            item = connection.execute(select(log.c.item).where(same)).scalar_one()
            return self._slot_of(connection, person, item)

    def _clicked(self, connection: Connection, person: str, click: str) -> tuple[str, ...] | None:
        same = and_(log.c.queue == self._queue, log.c.person == person, log.c.click == click)
        ids = connection.execute(select(log.c.feedback).where(same)).scalar()
        return None if ids is None else tuple(json.loads(ids))

    def _write(
        self, connection: Connection, slot: Slot, what: str, click: str, bodies: Bodies, seconds: float
    ) -> tuple[str, ...]:
        here = and_(log.c.queue == self._queue, log.c.item == slot.item, log.c.slot == slot.slot)
        before = connection.execute(select(log.c.feedback).where(here, log.c.revision == slot.revision)).scalar()
        revision = slot.revision + 1
        made = bodies(slot, revision, tuple(json.loads(before)) if before else ())
        ids = tuple(feedback_id for feedback_id, _ in made)
        entry = {"queue": self._queue, "item": slot.item, "slot": slot.slot, "revision": revision, "what": what}
        entry |= {"person": slot.person, "click": click, "at": self._clock(), "seconds": seconds}
        written = connection.execute(insert(log), {**entry, "feedback": json.dumps(ids)})
        assert written.inserted_primary_key is not None
        decided = written.inserted_primary_key[0]
        rows = [
            {"feedback": feedback_id, "queue": self._queue, "decided": decided, "part": part, "body": body}
            for part, (feedback_id, body) in enumerate(made)
        ]
        connection.execute(insert(pending), rows)
        state = {"answer": "answered", "skip": "skipped", "undo": "leased"}[what]
        connection.execute(
            update(slots)
            .where(slots.c.queue == self._queue, slots.c.item == slot.item, slots.c.slot == slot.slot)
            .values(
                state=state,
                revision=revision,
                decided=decided,
                lease_until=self._clock() + LEASE_SECONDS,
            )
        )
        if what != "undo":
            connection.execute(delete(drafts).where(self._draft(slot.person, slot.item)))
        return ids

    def pending(self, most: int) -> list[tuple[str, str]]:
        """What is not in the ledger yet, in the order of decisions: ids and bodies."""
        with self._database.reading() as connection:
            query = select(pending.c.feedback, pending.c.body).where(pending.c.queue == self._queue)
            rows = connection.execute(query.order_by(pending.c.decided, pending.c.part).limit(most))
            return [(row.feedback, row.body) for row in rows]

    def kept(self, ids: Sequence[str]) -> None:
        """These are in the ledger now."""
        with self._database.writing() as connection:
            connection.execute(delete(pending).where(pending.c.feedback.in_(ids)))

    def said_before(self, slot: Slot) -> tuple[str, ...]:
        """The rows of the newest answer in this slot, taken back or not."""
        with self._database.reading() as connection:
            here = and_(log.c.queue == self._queue, log.c.item == slot.item, log.c.slot == slot.slot)
            answers = select(log.c.feedback).where(here, log.c.what == "answer").order_by(log.c.seq.desc()).limit(1)
            ids = connection.execute(answers).scalar()
        return tuple(json.loads(ids)) if ids else ()

    def decisions(self) -> list[Decision]:
        """The newest decision of each slot in which something stands, in the order of making."""
        with self._database.reading() as connection:
            stands = slots.c.state.in_(("answered", "skipped"))
            newest = and_(log.c.seq == slots.c.decided, slots.c.queue == log.c.queue)
            query = select(log).join(slots, newest).where(log.c.queue == self._queue, stands).order_by(log.c.seq)
            return [_decision(row) for row in connection.execute(query)]

    # --- drafts ------------------------------------------------------------------------

    def save_draft(self, person: str, item: str, body: str) -> None:
        """Keep what is not finished, and hold on to the item; of an item that is no longer held, nothing."""
        with self._database.writing() as connection:
            slot = self._slot_of(connection, person, item)
            if slot is None or slot.state != "leased":
                return  # it was sent before an answer and came after it
            here = and_(slots.c.queue == self._queue, slots.c.item == item, slots.c.slot == slot.slot)
            connection.execute(update(slots).where(here).values(lease_until=self._clock() + LEASE_SECONDS))
            connection.execute(delete(drafts).where(self._draft(person, item)))
            row = {"queue": self._queue, "item": item, "person": person, "body": body, "at": self._clock()}
            connection.execute(insert(drafts), row)

    def draft(self, person: str, item: str) -> str | None:
        """What was kept unfinished."""
        with self._database.reading() as connection:
            return connection.execute(select(drafts.c.body).where(self._draft(person, item))).scalar()

    def _draft(self, person: str, item: str) -> Any:
        return and_(drafts.c.queue == self._queue, drafts.c.person == person, drafts.c.item == item)


def _slot(row: Row[Any]) -> Slot:
    return Slot(
        item=row.item, slot=row.slot, person=row.person, state=row.state, revision=row.revision, decided=row.decided
    )


def _decision(row: Row[Any]) -> Decision:
    return Decision(
        item=row.item,
        slot=row.slot,
        revision=row.revision,
        person=row.person,
        what=row.what,
        feedback=tuple(json.loads(row.feedback)),
        at=row.at,
        seconds=row.seconds,
    )
