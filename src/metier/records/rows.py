"""Rows of the ledger and the records they hold: the queries that its methods share.

Every function works on a connection that the caller opened, inside the caller's
transaction. Lists of ids may have any length; they go to the database in chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, and_, insert, literal, or_, select

from metier.base.clock import now
from metier.base.errors import LedgerError
from metier.records import schema
from metier.records.payloads import layout_of
from metier.records.types import (
    Checkpoint,
    DatasetManifest,
    Episode,
    Feedback,
    GateDecision,
    Group,
    Profile,
    Run,
    Suite,
    Task,
)

__all__ = [
    "STALE",
    "TABLES",
    "chunks",
    "erased_among",
    "erased_members",
    "feedback_ids_about",
    "fields_apart",
    "insert_rows",
    "mark_stale",
    "read_record",
    "require",
    "rows_among",
    "select_rows",
    "stale_reasons",
]

R = TypeVar("R")
STALE = "stale"
_CHUNK = 500  # values in one IN (...) list

TABLES: dict[type[Any], Table] = {
    Run: schema.runs,
    Task: schema.tasks,
    Suite: schema.suites,
    Group: schema.episode_groups,
    Episode: schema.episodes,
    Feedback: schema.feedback,
    DatasetManifest: schema.datasets,
    Checkpoint: schema.checkpoints,
    Profile: schema.profiles,
    GateDecision: schema.gates,
}


def mark_stale(connection: Connection, record_ids: Iterable[str], whys: Sequence[str]) -> None:
    """Mark records as stale for the reasons given, unless the same mark is there already. No reason, no mark."""
    ids = list(record_ids)
    if not whys or not ids:
        return
    why = "; ".join(dict.fromkeys(whys))
    marks = schema.marks
    query = select(marks.c.record_id).where(marks.c.mark == STALE, marks.c.why == why)
    there = {row.record_id for row in rows_among(connection, query, marks.c.record_id, ids)}
    rows = [
        {"record_id": record_id, "mark": STALE, "why": why, "created_at": now()}
        for record_id in ids
        if record_id not in there
    ]
    insert_rows(connection, marks, rows)


def select_rows(
    connection: Connection,
    noun: type[Any],
    where: Iterable[ColumnElement[bool]],
    among: Iterable[tuple[Any, Sequence[str] | None]],
    *,
    extra: Sequence[Any] = (),
) -> list[Row[Any]]:
    """Rows with their payload and the reason of their erasure, in the order of insertion.

    `among` restricts columns to lists of values of any length; None is no restriction.
    """
    table, layout = TABLES[noun], layout_of(noun)
    columns = [table.c.seq, table.c.id, table.c.body, *extra]
    if layout.payload:
        payload, erasure = schema.payloads, schema.erasures
        with_payload = table.outerjoin(
            payload, and_(payload.c.record_id == table.c.id, payload.c.kind == layout.kind)
        ).outerjoin(erasure, and_(erasure.c.record_id == table.c.id, erasure.c.kind == layout.kind))
        columns += [payload.c.body.label("payload"), erasure.c.why.label("erased")]
        query = select(*columns).select_from(with_payload)
    else:
        query = select(*columns, literal(None).label("payload"), literal(None).label("erased"))
    query = query.where(*where)
    lists = [(column, values) for column, values in among if values is not None]
    if not lists:
        return list(connection.execute(query.order_by(table.c.seq)).all())
    lists.sort(key=lambda item: len(item[1]))
    (first, values), rest = lists[0], lists[1:]
    for column, others in rest:
        if len(others) <= _CHUNK:
            query = query.where(column.in_(others))
        else:  # too long for one statement: take the rows that each chunk allows
            query = query.where(or_(*(column.in_(chunk) for chunk in chunks(others))))
    return sorted(rows_among(connection, query, first, values), key=lambda row: int(row.seq))


def read_record(noun: type[R], row: Row[Any], apart: dict[str, Any] | None = None) -> R:
    """The record in a row; `apart` is what its row does not hold."""
    return layout_of(noun).join(row.body, row.payload, apart or {}, erased=row.erased)


def fields_apart(connection: Connection, noun: type[Any], rows: Sequence[Row[Any]]) -> dict[str, dict[str, Any]]:
    """Fields that lie in link tables and marks, by record id."""
    ids = [row.id for row in rows]
    if noun is Checkpoint:
        return {record_id: {"stale": why} for record_id, why in stale_reasons(connection, ids).items()}
    if noun is not DatasetManifest:
        return {}
    links = schema.dataset_records
    out: dict[str, dict[str, Any]] = {i: {"feedback_ids": [], "episode_ids": [], "task_ids": []} for i in ids}
    query = select(links).order_by(links.c.dataset_id, links.c.kind, links.c.position)
    for row in rows_among(connection, query, links.c.dataset_id, ids):
        out[row.dataset_id][f"{row.kind}_ids"].append(row.record_id)
    for record_id, why in stale_reasons(connection, ids).items():
        out[record_id]["stale"] = why
    return out


def stale_reasons(connection: Connection, record_ids: Sequence[str]) -> dict[str, str]:
    """The newest reason for which each of these records is stale."""
    marks = schema.marks
    query = select(marks.c.record_id, marks.c.why).where(marks.c.mark == STALE).order_by(marks.c.seq)
    return {row.record_id: row.why for row in rows_among(connection, query, marks.c.record_id, record_ids)}


def erased_among(connection: Connection, record_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Which of these records were erased, as (kind, id)."""
    erasures = schema.erasures
    query = select(erasures.c.kind, erasures.c.record_id)
    return {(row.kind, row.record_id) for row in rows_among(connection, query, erasures.c.record_id, record_ids)}


def erased_members(connection: Connection, dataset_id: str) -> list[str]:
    """A reason to mark the dataset, where a row in it was erased: one sentence, or nothing."""
    links, erasures = schema.dataset_records, schema.erasures
    same = and_(erasures.c.record_id == links.c.record_id, erasures.c.kind == links.c.kind)
    query = select(links.c.record_id).join(erasures, same).where(links.c.dataset_id == dataset_id)
    return [f"{record_id} was erased" for record_id in connection.execute(query.limit(1)).scalars()]


def feedback_ids_about(connection: Connection, episode_ids: Sequence[str]) -> list[str]:
    """Ids of the feedback about any of these episodes, each once."""
    links = schema.feedback_about
    rows = rows_among(connection, select(links.c.feedback_id), links.c.episode_id, episode_ids)
    return list(dict.fromkeys(row.feedback_id for row in rows))


def require(connection: Connection, table: Table, ids: Iterable[str], who: str) -> None:
    """Raise `LedgerError`, beginning with `who`, for the first id that the table lacks."""
    wanted = list(dict.fromkeys(ids))
    there = {row.id for row in rows_among(connection, select(table.c.id), table.c.id, wanted)}
    for record_id in wanted:
        if record_id not in there:
            raise LedgerError(f"{who} {record_id!r}, which is not in the ledger; add it first")


def rows_among(connection: Connection, query: Select[Any], column: Any, values: Sequence[str]) -> list[Row[Any]]:
    """The rows of `query` where `column` is one of `values`, of which there may be any number."""
    return [row for chunk in chunks(values) for row in connection.execute(query.where(column.in_(chunk)))]


def insert_rows(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert all rows in one go; none is no error."""
    if rows:
        connection.execute(insert(table), rows)


def chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """The values in runs that fit one statement."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
