"""Rows of the ledger and the records they hold: the queries that its methods share.

Every function works on a connection that the caller opened, inside the caller's
transaction. Lists of ids may have any length.

A row's number `seq` is given here, under the write lock: the next one. So numbers tell the
order of insertion and have no gaps, and `metier ledger check` finds a row that went missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    any_,
    bindparam,
    func,
    insert,
    literal,
    select,
    text,
)

from metier.base.clock import now
from metier.base.errors import DataError, LedgerError
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
    "check_text",
    "count_anew",
    "erased_among",
    "erased_members",
    "feedback_ids_about",
    "insert_feedback",
    "insert_many",
    "insert_rows",
    "manifest_members",
    "mark",
    "mark_stale",
    "next_seq",
    "numbers_of",
    "one_of",
    "require",
    "rows_among",
    "select_rows",
    "stale_reasons",
]

STALE = "stale"
_FEW = 50  # values that are given one by one, which needs no list
_UNCOUNTED = 10_000  # rows from which on it matters what PostgreSQL knows of their number

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
    if whys:
        mark(connection, record_ids, STALE, "; ".join(dict.fromkeys(whys)))


def mark(connection: Connection, record_ids: Iterable[str], name: str, why: str) -> None:
    """Mark records, unless the same mark is there already."""
    ids = list(record_ids)
    marks = schema.marks
    query = select(marks.c.record_id).where(marks.c.mark == name, marks.c.why == why)
    there = {row.record_id for row in rows_among(connection, query, marks.c.record_id, ids)}
    rows = [
        {"record_id": record_id, "mark": name, "why": why, "created_at": now()}
        for record_id in ids
        if record_id not in there
    ]
    insert_rows(connection, marks, rows)


def select_rows(
    connection: Connection,
    noun: type[Any],
    where: Iterable[ColumnElement[bool]],
    among: Iterable[tuple[Any, Sequence[Any] | None]] = (),
    *,
    most: int | None = None,
) -> list[Row[Any]]:
    """Rows with their payload and the reason of their erasure, in the order of insertion.

    `among` restricts columns to lists of values of any length; None is no restriction. `most`, which
    is for queries without lists, is how many rows to take.
    """
    table, layout = TABLES[noun], layout_of(noun)
    if layout.payload:
        payload, erasure = schema.PAYLOADS[layout.kind], schema.erasures
        with_payload = table.outerjoin(payload, payload.c.seq == table.c.seq).outerjoin(
            erasure, and_(erasure.c.record_id == table.c.id, erasure.c.kind == layout.kind)
        )
        query = select(table, payload.c.body.label("payload"), erasure.c.why.label("erased"))
        query = query.select_from(with_payload)
    else:
        query = select(table, literal(None).label("payload"), literal(None).label("erased"))
    query = query.where(*where)
    lists = [(column, values) for column, values in among if values is not None]
    if not lists:
        return list(connection.execute(query.order_by(table.c.seq).limit(most)).all())
    lists.sort(key=lambda item: len(item[1]))
    (first, values), rest = lists[0], lists[1:]
    for column, others in rest:
        query = query.where(one_of(connection, column, others))
    place = list(table.c.keys()).index("seq")
    return sorted(rows_among(connection, query, first, values), key=lambda row: int(row[place]))


def manifest_members(connection: Connection, datasets: Mapping[int, str]) -> dict[str, dict[str, list[str]]]:
    """The ids of each dataset's feedback, episodes and tasks, in the manifest's order; `datasets` is ids by number."""
    links = schema.dataset_records
    out: dict[str, dict[str, list[str]]] = {
        i: {"feedback_ids": [], "episode_ids": [], "task_ids": []} for i in datasets.values()
    }
    for kind, table in (("feedback", schema.feedback), ("episode", schema.episodes), ("task", schema.tasks)):
        query = select(links.c.dataset, table.c.id).join(table, table.c.seq == links.c.record)
        query = query.where(links.c.kind == kind).order_by(links.c.dataset, links.c.position)
        for row in rows_among(connection, query, links.c.dataset, list(datasets)):
            out[datasets[row.dataset]][f"{kind}_ids"].append(row.id)
    return out


def stale_reasons(
    connection: Connection, record_ids: Sequence[str], where: Iterable[ColumnElement[bool]] = ()
) -> dict[str, str]:
    """The newest reason for which each of these records is stale."""
    marks = schema.marks
    query = select(marks.c.record_id, marks.c.why).where(marks.c.mark == STALE, *where).order_by(marks.c.seq)
    return {row.record_id: row.why for row in rows_among(connection, query, marks.c.record_id, record_ids)}


def erased_among(connection: Connection, record_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Which of these records were erased, as (kind, id)."""
    erasures = schema.erasures
    query = select(erasures.c.kind, erasures.c.record_id)
    return {(row.kind, row.record_id) for row in rows_among(connection, query, erasures.c.record_id, record_ids)}


def erased_members(connection: Connection, dataset_id: str) -> list[str]:
    """A reason to mark the dataset, where a row in it was erased: one sentence, or nothing."""
    links, erasures = schema.dataset_records, schema.erasures
    of_dataset = select(schema.datasets.c.seq).where(schema.datasets.c.id == dataset_id).scalar_subquery()
    for kind, table in (("feedback", schema.feedback), ("episode", schema.episodes), ("task", schema.tasks)):
        query = select(erasures.c.record_id).join(table, table.c.id == erasures.c.record_id)
        query = query.join(links, and_(links.c.record == table.c.seq, links.c.kind == kind))
        query = query.where(links.c.dataset == of_dataset, erasures.c.kind == kind).order_by(erasures.c.seq).limit(1)
        if (record_id := connection.execute(query).scalar()) is not None:
            return [f"{record_id} was erased"]
    return []


def feedback_ids_about(connection: Connection, episode_ids: Sequence[str]) -> list[str]:
    """Ids of the feedback about any of these episodes, each once."""
    links, episodes, feedback = schema.feedback_about, schema.episodes, schema.feedback
    numbers = list(numbers_of(connection, episodes, episode_ids).values())
    if not numbers:
        return []
    query = select(feedback.c.seq, feedback.c.id).join(links, links.c.feedback == feedback.c.seq).distinct()
    query = query.where(one_of(connection, links.c.episode, numbers)).order_by(feedback.c.seq)
    return [row.id for row in connection.execute(query)]


def require(connection: Connection, table: Table, ids: Iterable[str], who: str) -> dict[str, int]:
    """The numbers of these records. Raises `LedgerError`, beginning with `who`, for the first id that is not there."""
    wanted = list(dict.fromkeys(ids))
    there = numbers_of(connection, table, wanted)
    for record_id in wanted:
        if record_id not in there:
            raise LedgerError(f"{who} {record_id!r}, which is not in the ledger; add it first")
    return there


def numbers_of(connection: Connection, table: Table, ids: Iterable[str]) -> dict[str, int]:
    """The numbers of those of these records that are there, by id."""
    ids = sorted(ids)  # neighbours in the index one after the other
    if not ids:
        return {}
    together = "".join(ids)
    if "\0" in together or not together.isascii():
        for record_id in ids:
            check_text(record_id)
    raw = connection.connection.driver_connection  # in bulk there are hundreds of thousands, and a row object each
    assert raw is not None
    sqlite = connection.dialect.name == "sqlite"
    among = "IN (SELECT value FROM json_each(?))" if sqlite else "= ANY(%s)"
    found = raw.execute(f"SELECT id, seq FROM {table.name} WHERE id {among}", (json.dumps(ids) if sqlite else ids,))
    return dict(found.fetchall())


def one_of(connection: Connection, column: Any, values: Sequence[Any]) -> ColumnElement[bool]:
    """That a column is one of these values, however many: the list is one value to the database."""
    if len(values) <= _FEW:
        return cast(ColumnElement[bool], column.in_(values))
    if connection.dialect.name == "sqlite":
        return cast(
            ColumnElement[bool], column.in_(select(func.json_each(json.dumps(list(values))).table_valued("value")))
        )
    return cast(ColumnElement[bool], column == any_(bindparam(None, list(values), ARRAY(column.type))))


def rows_among(connection: Connection, query: Select[Any], column: Any, values: Sequence[Any]) -> list[Row[Any]]:
    """The rows of `query` where `column` is one of `values`, of which there may be any number."""
    return list(connection.execute(query.where(one_of(connection, column, values))).all()) if values else []


def next_seq(connection: Connection, table: Table) -> int:
    """The number of the next row, within a `writing` transaction."""
    return int(connection.execute(select(func.coalesce(func.max(table.c.seq), 0))).scalar_one()) + 1


def insert_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert all rows in one go, numbered where the table is; none is no error."""
    if not rows:
        return
    if "seq" in table.c and "seq" not in rows[0]:
        first = next_seq(connection, table)
        rows = [{"seq": seq, **row} for seq, row in enumerate(rows, first)]
    for row in rows:
        for value in row.values():
            if isinstance(value, str):
                check_text(value)
    connection.execute(insert(table), rows)


def insert_many(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows by the driver's fastest way: prepared once on SQLite, COPY on PostgreSQL. Columns in their order."""
    raw = connection.connection.driver_connection
    assert raw is not None
    names = ", ".join(columns)
    if connection.dialect.name == "sqlite":
        raw.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(columns))})", rows)
        return
    with raw.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def insert_feedback(
    connection: Connection,
    rows: Iterable[Sequence[Any]],
    payloads: Iterable[Sequence[Any]],
    about: Iterable[Sequence[Any]],
) -> None:
    """Insert statements, what they say and which episodes they are about; columns in the order of `schema.py`."""
    for table, given in (
        (schema.feedback, rows),
        (schema.feedback_payloads, payloads),
        (schema.feedback_about, about),
    ):
        insert_many(connection, table, table.c.keys(), given)
    count_anew(connection, schema.feedback, schema.feedback_payloads, schema.feedback_about)


def count_anew(connection: Connection, table: Table, *beside: Table) -> None:
    """Have PostgreSQL's planner count a table, and those beside it, that grew by a quarter since it last did.

    Its own daemon does so too, but comes a minute late; until then a few rows may cost a read of the whole table.
    """
    if connection.dialect.name == "sqlite":
        return
    known = f"SELECT reltuples FROM pg_class WHERE oid = '{table.name}'::regclass"
    last, counted = connection.execute(text(f"SELECT (SELECT max(seq) FROM {table.name}), ({known})")).one()
    if last is not None and last >= _UNCOUNTED and last > 1.25 * counted:
        connection.execute(text(f"ANALYZE {', '.join(one.name for one in (table, *beside))}"))


def check_text(value: str) -> None:
    """Raise `DataError` for a text that not every database keeps as it is."""
    if "\0" in value:
        raise DataError(f"{value!r:.80} holds a NUL character, which PostgreSQL does not keep; leave it out")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{value!r:.80} holds half of a surrogate pair, which no database keeps") from error
