"""Whether a ledger is whole: `metier ledger check`.

Looked at: the database's own structure; that numbers have no gaps; that every reference
leads to a row; that every record either says something or was erased; that episodes with
arrays find them in their shards, of the right lengths; that the guards against change are
there; that moments agree with the tables. Every question is one query or one pass over the
shards, in bounded memory; nothing is changed.

Does not tell: content that somebody with the database's password changed by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, literal, select, text

from metier.base.errors import DataError, LedgerError
from metier.records import schema
from metier.records.payloads import ERASABLE
from metier.records.rows import TABLES
from metier.records.view import LedgerView

__all__ = ["Problem", "check"]

_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    what: str
    n: int
    examples: tuple[str, ...] = ()


def check(ledger: LedgerView) -> list[Problem]:
    """All that is wrong with a ledger; nothing, where it is whole. Raises `LedgerError` where it cannot be read."""
    with ledger.reading() as connection:
        return [
            *_structure(connection),
            *_guards(connection),
            *_numbers(connection),
            *_references(connection),
            *_payloads(connection),
            *_moments(connection),
            *_shards(ledger, connection),
        ]


def _structure(connection: Connection) -> Iterator[Problem]:
    if connection.dialect.name != "sqlite":
        return  # PostgreSQL has pg_amcheck for it
    said = list(connection.exec_driver_sql("PRAGMA quick_check").scalars())
    if said != ["ok"]:
        yield Problem(what="the file is damaged: restore a copy", n=len(said), examples=tuple(said[:_SHOWN]))


def _guards(connection: Connection) -> Iterator[Problem]:
    """Triggers that let tables only grow."""
    if connection.dialect.name == "sqlite":
        there = set(connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars())
        wanted = {f"{name}_no_{event}" for name in schema.metadata.tables for event in ("update", "delete", "insert")}
    else:
        query = (
            "SELECT c.relname || '.' || t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND pg_table_is_visible(c.oid)"
        )
        there = set(connection.execute(text(query)).scalars())
        guards = ("only_grows", "no_delete", "no_truncate")
        wanted = {f"{name}.{guard}" for name in schema.metadata.tables for guard in guards}
    if missing := sorted(wanted - there):
        yield Problem(what="guards against change are gone", n=len(missing), examples=tuple(missing[:_SHOWN]))


def _numbers(connection: Connection) -> Iterator[Problem]:
    for table in schema.metadata.sorted_tables:
        if "seq" not in table.c or table in schema.PAYLOADS.values():
            continue
        query = select(func.count(), func.coalesce(func.max(table.c.seq), 0), func.coalesce(func.min(table.c.seq), 1))
        n, last, first = connection.execute(query.select_from(table)).one()
        if n != last or first != 1:
            yield Problem(what=f"rows of {table.name} are missing: {n} of {last} are there", n=last - n)


def _references(connection: Connection) -> Iterator[Problem]:
    s = schema
    for table, column, target, key in (
        (s.feedback_sorts, s.feedback_sorts.c.run_id, s.runs, s.runs.c.id),
        (s.feedback, s.feedback.c.sort, s.feedback_sorts, s.feedback_sorts.c.seq),
        (s.feedback, s.feedback.c.supersedes, s.feedback.alias("older"), None),
        (s.feedback_about, s.feedback_about.c.feedback, s.feedback, s.feedback.c.seq),
        (s.feedback_about, s.feedback_about.c.episode, s.episodes, s.episodes.c.seq),
        (s.episodes, s.episodes.c.run_id, s.runs, s.runs.c.id),
        (s.episodes, s.episodes.c.task_id, s.tasks, s.tasks.c.id),
        (s.episode_groups, s.episode_groups.c.task_id, s.tasks, s.tasks.c.id),
        (s.datasets, s.datasets.c.run_id, s.runs, s.runs.c.id),
        (s.dataset_records, s.dataset_records.c.dataset, s.datasets, s.datasets.c.seq),
        (s.checkpoints, s.checkpoints.c.run_id, s.runs, s.runs.c.id),
        (s.checkpoint_datasets, s.checkpoint_datasets.c.dataset_id, s.datasets, s.datasets.c.id),
        (s.checkpoint_datasets, s.checkpoint_datasets.c.checkpoint_id, s.checkpoints, s.checkpoints.c.id),
    ):
        key = target.c.id if key is None else key
        there = select(literal(1)).where(key == column).exists()
        yield from _found(
            connection,
            select(column).select_from(table).where(column.is_not(None), ~there),
            f"{table.name} names a {column.name} that is not there",
        )
    links = s.dataset_records
    for kind, table, what in (
        ("feedback", s.feedback, "feedback"),
        ("episode", s.episodes, "episode"),
        ("about", s.episodes, "feedback about an episode"),
        ("task", s.tasks, "task"),
    ):
        there = select(literal(1)).where(table.c.seq == links.c.record).exists()
        query = select(links.c.record).where(links.c.kind == kind, ~there)
        yield from _found(connection, query, f"a dataset holds {what} that is not there")
    yield from _about(connection)


def _about(connection: Connection) -> Iterator[Problem]:
    """A statement's links are as many as its body names."""
    table, links = schema.feedback, schema.feedback_about
    length = (
        "json_array_length(feedback.body, '$.about')"
        if connection.dialect.name == "sqlite"
        else "json_array_length(feedback.body::json -> 'about')"
    )
    named = connection.execute(select(func.sum(text(length))).select_from(table)).scalar() or 0
    linked = connection.execute(select(func.count()).select_from(links)).scalar_one()
    if named != linked:
        yield Problem(what="feedback and the episodes it is about are not linked one to one", n=abs(named - linked))


def _payloads(connection: Connection) -> Iterator[Problem]:
    for layout in ERASABLE:
        table, payload, erasure = TABLES[layout.noun], schema.PAYLOADS[layout.kind], schema.erasures
        said = select(literal(1)).where(payload.c.seq == table.c.seq).exists()
        erased = select(literal(1)).where(erasure.c.record_id == table.c.id, erasure.c.kind == layout.kind).exists()
        yield from _found(
            connection, select(table.c.id).where(~said, ~erased), f"{layout.kind} has lost what it says, and no erasure"
        )
        yield from _found(
            connection, select(table.c.id).where(said, erased), f"{layout.kind} was erased and still says something"
        )
        owner = select(literal(1)).where(table.c.seq == payload.c.seq).exists()
        yield from _found(connection, select(payload.c.seq).where(~owner), f"a payload belongs to no {layout.kind}")


def _moments(connection: Connection) -> Iterator[Problem]:
    moments = schema.moments
    newest = connection.execute(select(moments).order_by(moments.c.seq.desc()).limit(1)).first()
    if newest is None:
        yield Problem(what="there is no moment", n=1)
        return
    for table in schema.GROWING:
        last = connection.execute(select(func.coalesce(func.max(table.c.seq), 0))).scalar_one()
        if last != getattr(newest, table.name):
            yield Problem(what=f"moments know {getattr(newest, table.name)} rows of {table.name}", n=1)
    older, newer = moments.alias("older"), moments.alias("newer")
    falls = select(newer.c.seq).join(older, and_(older.c.seq == newer.c.seq - 1, older.c.at > newer.c.at))
    yield from _found(connection, falls, "time goes back at a moment")


def _shards(ledger: LedgerView, connection: Connection) -> Iterator[Problem]:
    """Every episode that has arrays finds them."""
    table = schema.episodes
    shards = connection.execute(select(table.c.shard).where(table.c.shard.is_not(None)).distinct()).scalars().all()
    bad: list[str] = []
    for shard in shards:
        assert shard is not None
        said = schema.episode_payloads
        query = select(table.c.id).join(said, said.c.seq == table.c.seq).where(table.c.shard == shard)
        ids = list(connection.execute(query).scalars())
        try:
            bad += [f"{i} in {shard}" for i in ledger.arrays_missing(shard, ids)]
        except (LedgerError, DataError) as error:
            bad.append(str(error))
    if bad:
        yield Problem(
            what="episodes whose token arrays are missing or damaged", n=len(bad), examples=tuple(bad[:_SHOWN])
        )


def _found(connection: Connection, query: object, what: str) -> Iterator[Problem]:
    found = [str(value) for value in connection.execute(query.limit(1000)).scalars()]  # type: ignore[attr-defined]
    if found:
        yield Problem(what=what, n=len(found), examples=tuple(found[:_SHOWN]))
