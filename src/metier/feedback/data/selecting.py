"""Reading the ledger for a view: the statements that fit, and where the episodes they are about belong.

Superseded, retracted and erased statements are never seen. Those without a value (unscored, pending, declined)
are, because of a verifier that could not say the others' scores say nothing either; `usable` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from sqlalchemy import select as sql

from metier.base.errors import DataError
from metier.feedback.data.declaration import Where, seconds_of
from metier.records import schema
from metier.records.rows import rows_among
from metier.records.types import Episode, Feedback, Task
from metier.records.view import LedgerView

__all__ = ["Place", "as_it_stood", "batches", "load", "places", "statements", "task_ids", "usable"]

T = TypeVar("T")

_BATCH = 2_000  # episodes held at once


class Place(NamedTuple):
    """Where an episode belongs."""

    task_id: str
    split: str
    checkpoint: str
    seq: int  # its number in the ledger


def as_it_stood(ledger: LedgerView, where: Where) -> LedgerView:
    """The ledger as it is, or as it stood when `as_of` says."""
    if where.as_of is None:
        return ledger
    try:
        return ledger.as_of(seconds_of(where.as_of))
    except ValueError:
        return ledger.as_of(where.as_of)


def statements(ledger: LedgerView, where: Where, kinds: Sequence[str]) -> Iterator[Feedback]:
    """The current statements of these kinds that fit, in the order in which they were written."""
    since = None if where.since is None else seconds_of(where.since)
    until = None if where.until is None else seconds_of(where.until)
    found = ledger.iter_feedback(
        run_id=_only(where.runs),
        criterion=_only(where.criteria),
        kind=_only(kinds),
        erased=False,
    )
    for one in found:
        names = {one.source.name, f"{one.source.name}@{one.source.version}"}
        if (
            one.kind in kinds
            and (not where.runs or one.run_id in where.runs)
            and (not where.criteria or one.criterion in where.criteria)
            and (not where.source_kinds or one.source.kind in where.source_kinds)
            and (not where.sources or not names.isdisjoint(where.sources))
            and names.isdisjoint(where.but_sources)
            and (since is None or one.created_at >= since)
            and (until is None or one.created_at < until)
        ):
            yield one


def usable(one: Feedback) -> bool:
    """Whether it says anything."""
    return one.status == "scored" and one.abstention is None and one.value is not None


def places(ledger: LedgerView, episode_ids: Iterable[str], splits: Sequence[str]) -> dict[str, Place]:
    """Where these episodes belong; those of other splits are left out."""
    table = schema.episodes
    query = sql(table.c.id, table.c.task_id, table.c.split, table.c.checkpoint, table.c.seq)
    ids = list(dict.fromkeys(episode_ids))
    with ledger.reading() as connection:
        rows = rows_among(connection, query, table.c.id, ids)
    return {row.id: Place(row.task_id, row.split, row.checkpoint, row.seq) for row in rows if row.split in splits}


def task_ids(ledger: LedgerView, *, splits: Sequence[str] = (), but_splits: Sequence[str] = ()) -> list[str]:
    """The tasks of these splits, or of all others than `but_splits`, in the order in which they came."""
    table = schema.tasks
    query = sql(table.c.id).where(*ledger.within(table)).order_by(table.c.seq)
    if splits:
        query = query.where(table.c.split.in_(splits))
    if but_splits:
        query = query.where(table.c.split.not_in(but_splits))
    with ledger.reading() as connection:
        return list(connection.execute(query).scalars())


def load(ledger: LedgerView, episode_ids: Iterable[str]) -> tuple[dict[str, Episode], dict[str, Task]]:
    """Episodes that still say something, and their tasks."""
    episodes = {one.id: one for one in ledger.episodes(ids=episode_ids) if one.messages}
    tasks = ledger.tasks({one.task_id for one in episodes.values()}) if episodes else {}
    return episodes, tasks


def batches(items: Sequence[T], size: int = _BATCH) -> Iterator[Sequence[T]]:
    """The items, some at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _only(values: Sequence[str]) -> str | None:
    """The one value, for a query that knows one; several are sorted out afterwards."""
    if any(not value for value in values):
        raise DataError("an empty text selects nothing; leave it out to select everything")
    return values[0] if len(values) == 1 else None
