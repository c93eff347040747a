"""Moments: how far every table had grown when a transaction ended.

A moment is a row of high-water marks, one for each table that grows. Since rows are
numbered in the order of insertion and never go, the marks are all that a view of the past
needs. A moment's time is the writer's clock, but never earlier than the moment before: a
clock that is behind cannot make the ledger's past change.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Table, func, select

from metier.base.clock import iso, now
from metier.base.errors import LedgerError
from metier.records import schema
from metier.records.rows import insert_rows

__all__ = ["horizon_at", "horizon_of", "note_moment"]

_MOMENTS = schema.moments
_NAMED = (("checkpoint", schema.checkpoints), ("dataset", schema.datasets), ("run", schema.runs))


def note_moment(connection: Connection) -> None:
    """Add a moment where any table has grown, at the end of a `writing` transaction."""
    newest = [func.coalesce(select(func.max(table.c.seq)).scalar_subquery(), 0) for table in schema.GROWING]
    grown = dict(zip((table.name for table in schema.GROWING), connection.execute(select(*newest)).one(), strict=True))
    before = connection.execute(select(_MOMENTS).order_by(_MOMENTS.c.seq.desc()).limit(1)).one()
    if any(getattr(before, name) != mark for name, mark in grown.items()):
        insert_rows(connection, _MOMENTS, [{"at": max(now(), before.at), **grown}])


def horizon_at(connection: Connection, when: float) -> dict[str, int]:
    """The marks at a time. Raises `LedgerError` for one before the ledger kept moments."""
    number = _search(connection, "at", when, last=True)
    if number == 0:
        first = _moment(connection, 1)
        raise LedgerError(f"the ledger has kept moments since {iso(first.at)} and cannot tell how it stood before that")
    return _marks(_moment(connection, number))


def horizon_of(connection: Connection, record_id: str) -> dict[str, int]:
    """The marks when a checkpoint, a dataset or a run was added."""
    for kind, table in _NAMED:
        seq = connection.execute(select(table.c.seq).where(table.c.id == record_id)).scalar()
        if seq is None:
            continue
        number = _search(connection, table.name, seq, last=False)
        if number == 1:
            first = _moment(connection, 1)
            raise LedgerError(
                f"{kind} {record_id} was added before {iso(first.at)}, since when the ledger keeps moments; how it"
                " stood then is not known"
            )
        return _marks(_moment(connection, number))
    raise LedgerError(f"there is no checkpoint, dataset or run {record_id!r} in the ledger; name one, or a time")


def _search(connection: Connection, name: str, value: float, *, last: bool) -> int:
    """The first moment whose column, which never falls, is at least `value`; with `last`, the last that is at most it.

    Moments are numbered without gaps, so that halving finds it in a few look-ups.
    """
    lower, upper = 1, int(connection.execute(select(func.max(_MOMENTS.c.seq))).scalar_one()) + 1
    while lower < upper:
        middle = (lower + upper) // 2
        found = getattr(_moment(connection, middle), name)
        if found > value or (found == value and not last):
            upper = middle
        else:
            lower = middle + 1
    return lower - 1 if last else lower


def _moment(connection: Connection, number: int) -> Row[Any]:
    return connection.execute(select(_MOMENTS).where(_MOMENTS.c.seq == number)).one()


def _marks(moment: Row[Any]) -> dict[str, int]:
    tables: tuple[Table, ...] = schema.GROWING
    return {table.name: getattr(moment, table.name) for table in tables}
