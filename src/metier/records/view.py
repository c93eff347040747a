"""What can be asked of a ledger: as it is now, or as it stood at a moment.

A view of a moment sees the rows that were there then, and their state of then: what was
superseded or marked later is not yet. Erasures are the exception: what was erased since is
hollow in every view, because it is gone. Moments go by the order in which rows were added,
which clocks of writers that are wrong cannot change.

`feedback` and `episodes` return lists; `iter_feedback` and `iter_episodes` go through any
number of rows in bounded memory, over what was there when they began.

Left out: which records to select for what (`feedback/`), and what reached what
(`lineage.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Table, func, literal, select

from metier.base.errors import LedgerError
from metier.records import schema
from metier.records.arrays import ArrayStore
from metier.records.database import Database
from metier.records.moments import horizon_at, horizon_of
from metier.records.payloads import layout_of
from metier.records.rows import (
    STALE,
    TABLES,
    erased_among,
    feedback_ids_about,
    manifest_members,
    rows_among,
    select_rows,
    stale_reasons,
)
from metier.records.sorts import Sort, Sorts
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

__all__ = ["Erasure", "LedgerView", "erasure_of", "suite_id"]

R = TypeVar("R")
_WINDOW = {Feedback: 10_000, Episode: 500}  # running numbers that a stream reads at once
_MANY = 64  # sorts that are looked up one by one; more are picked out of all rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """The fact that a record's payload was removed."""

    record_id: str
    kind: str  # task, episode or feedback
    why: str
    created_at: float  # UTC seconds


class LedgerView:
    """A ledger to read from; threads may share it."""

    def __init__(
        self, database: Database, arrays: ArrayStore, sorts: Sorts, upto: Mapping[str, int] | None = None
    ) -> None:
        self._database = database
        self._arrays = arrays
        self._sorts = sorts
        self._upto = upto

    @property
    def path(self) -> Path | None:
        """The file, where the ledger is one."""
        return self._database.path

    @property
    def label(self) -> str:
        """The file or URL, for people: without a password."""
        return self._database.label

    @property
    def arrays_folder(self) -> Path:
        """Where the token arrays lie."""
        return self._arrays.folder

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent snapshot, for queries of other modules of `records/`."""
        with self._database.reading() as connection:
            yield connection

    def as_of(self, when: float | str) -> LedgerView:
        """The ledger as it stood at a time (UTC seconds), or when the checkpoint, dataset or run of this id was added.

        A checkpoint is added when it was trained, after its datasets; both are in the view. Raises
        `LedgerError` for what is not there, and for what was added before the ledger kept moments.
        """
        with self.reading() as connection:
            upto = horizon_of(connection, when) if isinstance(when, str) else horizon_at(connection, when)
        return LedgerView(self._database, self._arrays, self._sorts, upto)

    def within(self, table: Table) -> list[ColumnElement[bool]]:
        """The condition that keeps a query on this table to the view's moment; none for the ledger as it is."""
        return [] if self._upto is None else [table.c.seq <= self._upto[table.name]]

    # --- one noun after the other ----------------------------------------------------

    def run(self, run_id: str) -> Run:
        """The run with this id."""
        return self._one(Run, run_id)

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return list(reversed(self._all(Run)))

    def task(self, task_id: str) -> Task:
        """The task with this id. An erased one has no messages, and `meta["erased"]` says why; its own `id` is then
        not `task_id`, because an id is the hash of content that is gone."""
        return self._one(Task, task_id)

    def tasks(self, task_ids: Iterable[str]) -> dict[str, Task]:
        """Those tasks, by id. Raises `LedgerError` where one is missing."""
        wanted = list(dict.fromkeys(task_ids))
        with self.reading() as connection:
            found = self._by_ids(connection, Task, wanted)
        for task_id in wanted:
            if task_id not in found:
                raise self._missing(Task, task_id)
        return {task_id: found[task_id] for task_id in wanted}

    def suite(self, name: str, version: str | None = None) -> Suite:
        """The suite of this name and version, or the version added last."""
        if version is not None:
            return self._one(Suite, suite_id(name, version))
        suites = self._all(Suite, schema.suites.c.name == name)
        if not suites:
            raise self._missing(Suite, name)
        return suites[-1]

    def suites(self) -> list[Suite]:
        """All suites, oldest first."""
        return self._all(Suite)

    def groups(self, run_id: str | None = None) -> list[Group]:
        """Groups, of one run or of all, in the order of insertion."""
        if run_id is None:
            return self._all(Group)
        of_run = select(schema.episodes.c.group_id).where(schema.episodes.c.run_id == run_id)
        return self._all(Group, schema.episode_groups.c.id.in_(of_run))

    def episode(self, episode_id: str, *, arrays: bool = False) -> Episode:
        """The episode with this id; with its token arrays if asked."""
        found = self.episodes(ids=[episode_id], arrays=arrays)
        if not found:
            raise self._missing(Episode, episode_id)
        return found[0]

    def episodes(
        self,
        *,
        run_id: str | None = None,
        stage: str | None = None,
        split: str | None = None,
        task_ids: Iterable[str] | None = None,
        ids: Iterable[str] | None = None,
        group_id: str | None = None,
        arrays: bool = False,
    ) -> list[Episode]:
        """Episodes that fit all that is given, in the order of insertion; with token arrays if asked.

        Ids that are not in the ledger are left out.
        """
        table = schema.episodes
        where = _equal(table, run_id=run_id, stage=stage, split=split, group_id=group_id)
        among = [(table.c.id, _distinct(ids)), (table.c.task_id, _distinct(task_ids))]
        with self.reading() as connection:
            rows = select_rows(connection, Episode, [*where, *self.within(table)], among)
        return self._episodes(rows, arrays)

    def iter_episodes(
        self,
        *,
        run_id: str | None = None,
        stage: str | None = None,
        split: str | None = None,
        arrays: bool = False,
        erased: bool = True,
    ) -> Iterator[Episode]:
        """Episodes that fit all that is given, one after the other in the order of insertion; without `erased`,
        those that still say something."""
        table = schema.episodes
        where = _equal(table, run_id=run_id, stage=stage, split=split)
        if not erased:
            where.append(schema.episode_payloads.c.body.is_not(None))
        for lower, upper in _windows(self._last(table), _WINDOW[Episode]):
            with self.reading() as connection:
                within = [table.c.seq > lower, table.c.seq <= upper]
                rows = select_rows(connection, Episode, [*where, *within])
            yield from self._episodes(rows, arrays)

    def feedback(
        self,
        *,
        run_id: str | None = None,
        about: Iterable[str] | None = None,
        ids: Iterable[str] | None = None,
        criterion: str | None = None,
        kind: str | None = None,
        source: str | None = None,
        status: str | None = None,
        current: bool = True,
        erased: bool = True,
    ) -> list[Feedback]:
        """Feedback that fits all that is given, in the order of insertion.

        `about` is episode ids, any of which it may be about; `source` is a source's name.
        With `current`, what another row supersedes is left out, and so are retractions. Without
        `erased`, so is what was erased, which else reads back hollow.
        """
        table = schema.feedback
        with self.reading() as connection:
            sorts = self._sorts.matching(
                connection, run_id=run_id, criterion=criterion, kind=kind, source_name=source, status=status
            )
            among: list[tuple[Any, list[Any] | None]] = [(table.c.id, _distinct(ids)), (table.c.sort, sorts)]
            if about is not None:
                among.append((table.c.id, feedback_ids_about(connection, list(dict.fromkeys(about)))))
            where = self._said(current, erased, None if self._upto is None else self._upto[table.name])
            rows = select_rows(connection, Feedback, [*where, *self.within(table)], among)
            return self._statements(connection, rows, current)

    def iter_feedback(
        self,
        *,
        run_id: str | None = None,
        criterion: str | None = None,
        kind: str | None = None,
        source: str | None = None,
        status: str | None = None,
        current: bool = True,
        erased: bool = True,
    ) -> Iterator[Feedback]:
        """The same, one statement after the other, of any number, in bounded memory."""
        table = schema.feedback
        with self.reading() as connection:
            sorts = self._sorts.matching(
                connection, run_id=run_id, criterion=criterion, kind=kind, source_name=source, status=status
            )
        if sorts is not None and not sorts:
            return
        few = sorts is not None and len(sorts) <= _MANY
        allowed = None if sorts is None or few else set(sorts)
        last, lower, most = self._last(table), 0, _WINDOW[Feedback]
        span = most
        while lower < last:
            where = [*self._said(current, erased, last), table.c.seq > lower, table.c.seq <= lower + span]
            if last < lower + span:
                where.append(table.c.seq <= last)
            if few and sorts is not None:
                where.append(table.c.sort.in_(sorts))
            with self.reading() as connection:
                rows = select_rows(connection, Feedback, where, most=most)
                fit = rows if allowed is None else [row for row in rows if row.sort in allowed]
                found = self._statements(connection, fit, current)
            lower = rows[-1].seq if len(rows) == most else lower + span
            if len(rows) < most // 4:  # few of the rows fit: look at more of them at once
                span *= 2
            yield from found

    def dataset(self, dataset_id: str) -> DatasetManifest:
        """The dataset's manifest; `stale` says why it must be rebuilt, where it must."""
        return self._one(DatasetManifest, dataset_id)

    def datasets(self, run_id: str | None = None) -> list[DatasetManifest]:
        """Datasets, of one run or of all, in the order of insertion."""
        return self._all(DatasetManifest, *_equal(schema.datasets, run_id=run_id))

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """The checkpoint; `stale` says why it is marked, where it is."""
        return self._one(Checkpoint, checkpoint_id)

    def checkpoints(self, run_id: str | None = None) -> list[Checkpoint]:
        """Checkpoints, of one run or of all, in the order of insertion."""
        return self._all(Checkpoint, *_equal(schema.checkpoints, run_id=run_id))

    def profiles(self, checkpoint: str | None = None) -> list[Profile]:
        """Profiles, of one checkpoint or of all, in the order of insertion."""
        return self._all(Profile, *_equal(schema.profiles, checkpoint=checkpoint))

    def gates(self, checkpoint: str | None = None) -> list[GateDecision]:
        """Release decisions, on one checkpoint or on all, in the order of insertion."""
        return self._all(GateDecision, *_equal(schema.gates, checkpoint=checkpoint))

    def erasures(self) -> list[Erasure]:
        """What was erased, when and why, in order."""
        with self.reading() as connection:
            rows = connection.execute(select(schema.erasures).order_by(schema.erasures.c.seq)).all()
        return [erasure_of(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many records of each noun there are, how many were erased and how many are marked stale."""
        names = {layout_of(noun).kind: table for noun, table in TABLES.items()}
        plural = {kind: kind if kind == "feedback" else f"{kind}s" for kind in names}
        marks = schema.marks
        with self.reading() as connection:
            counts = {
                plural[kind]: connection.execute(
                    select(func.count()).select_from(table).where(*self.within(table))
                ).scalar_one()
                for kind, table in names.items()
            }
            erasures = select(func.count()).select_from(schema.erasures)
            counts["erasures"] = connection.execute(erasures).scalar_one()
            stale = select(func.count(marks.c.record_id.distinct())).where(marks.c.mark == STALE, *self.within(marks))
            counts[STALE] = connection.execute(stale).scalar_one()
        return counts

    def feedback_counts(self) -> list[tuple[Sort, int]]:
        """How many statements there are of each sort (run, criterion, kind, source, status), the commonest first."""
        table = schema.feedback
        query = select(table.c.sort, func.count()).where(*self.within(table)).group_by(table.c.sort)
        with self.reading() as connection:
            sorts = self._sorts.all(connection)
            found = [(sorts[number], n) for number, n in connection.execute(query)]
        return sorted(found, key=lambda item: -item[1])

    def erased_counts(self) -> dict[Sort, int]:
        """How many statements of each sort were erased, which `feedback_counts` counts too."""
        table, erasures = schema.feedback, schema.erasures
        query = select(table.c.sort, func.count()).join(erasures, erasures.c.record_id == table.c.id)
        query = query.where(erasures.c.kind == "feedback", *self.within(table)).group_by(table.c.sort)
        with self.reading() as connection:
            sorts = self._sorts.all(connection)
            return {sorts[number]: n for number, n in connection.execute(query)}

    def arrays_missing(self, shard: str, episode_ids: Sequence[str]) -> list[str]:
        """Those of these episodes whose arrays the shard lacks, or has of differing lengths."""
        found = self._arrays.read(shard, episode_ids)
        whole = {i for i, a in found.items() if len(a.token_ids) and {len(a[1]), len(a[2])} <= {0, len(a.token_ids)}}
        return [episode_id for episode_id in episode_ids if episode_id not in whole]

    def known(self, table: Table, ids: Iterable[str]) -> set[str]:
        """Those of the ids that the table has, now."""
        wanted = list(dict.fromkeys(ids))
        with self.reading() as connection:
            return {row.id for row in rows_among(connection, select(table.c.id), table.c.id, wanted)}

    # --- the parts -------------------------------------------------------------------

    def _by_ids(
        self, connection: Connection, noun: type[R], ids: Sequence[str], *, arrays: bool = False
    ) -> dict[str, R]:
        table = TABLES[noun]
        rows = select_rows(connection, noun, self.within(table), [(table.c.id, ids)])
        return {row.id: record for row, record in zip(rows, self._records(connection, noun, rows, arrays), strict=True)}

    def _all(self, noun: type[R], *where: ColumnElement[bool]) -> list[R]:
        with self.reading() as connection:
            rows = select_rows(connection, noun, [*where, *self.within(TABLES[noun])])
            return self._records(connection, noun, rows)

    def _one(self, noun: type[R], record_id: str) -> R:
        with self.reading() as connection:
            found = self._by_ids(connection, noun, [record_id])
        if record_id not in found:
            raise self._missing(noun, record_id)
        return found[record_id]

    def _missing(self, noun: type[Any], record_id: str) -> LedgerError:
        return LedgerError(f"there is no {layout_of(noun).kind} {record_id!r} in the ledger {self.label}")

    def _records(
        self, connection: Connection, noun: type[R], rows: Sequence[Row[Any]], arrays: bool = False
    ) -> list[R]:
        """The records in rows, with the fields that lie in columns, link tables, marks and arrays."""
        apart: dict[str, dict[str, Any]] = {}
        if noun is DatasetManifest:
            apart = dict(manifest_members(connection, {row.seq: row.id for row in rows}))
        if noun in (DatasetManifest, Checkpoint):
            ids = [row.id for row in rows]
            for record_id, why in stale_reasons(connection, ids, self.within(schema.marks)).items():
                apart.setdefault(record_id, {})["stale"] = why
        if noun is Episode and arrays:
            apart = self._load_arrays(rows)
        layout, records = layout_of(noun), []
        # By place: a row looks its columns up by name some ten times slower, and there may be millions.
        names = rows[0]._fields if rows else ()
        place = {name: names.index(name) for name in names}
        columns = [(name, place[name]) for name in layout.columns if name in place]
        for row in rows:
            values = tuple(row)
            fields = {name: values[n] for name, n in columns}
            if noun is Feedback:
                fields.update(self._sorts.fields(connection, values[place["sort"]]))
            if apart:
                fields.update(apart.get(values[place["id"]], {}))
            body, payload, erased = (values[place[name]] for name in ("body", "payload", "erased"))
            records.append(layout.join(body, payload, fields, erased=erased))
        return records

    def _episodes(self, rows: Sequence[Row[Any]], arrays: bool) -> list[Episode]:
        with self.reading() as connection:
            return self._records(connection, Episode, rows, arrays)

    def _statements(self, connection: Connection, rows: Sequence[Row[Any]], current: bool) -> list[Feedback]:
        found = self._records(connection, Feedback, rows)
        return [statement for statement in found if not current or statement.status != "retracted"]

    def _said(self, current: bool, erased: bool, last: int | None) -> list[ColumnElement[bool]]:
        """Conditions on feedback: not superseded by a row up to `last`, not erased."""
        where: list[ColumnElement[bool]] = []
        if current:
            newer = schema.feedback.alias("newer")
            superseding = select(literal(1)).where(newer.c.supersedes == schema.feedback.c.id)
            where.append(~(superseding if last is None else superseding.where(newer.c.seq <= last)).exists())
        if not erased:
            where.append(schema.feedback_payloads.c.body.is_not(None))
        return where

    def _last(self, table: Table) -> int:
        if self._upto is not None:
            return self._upto[table.name]
        with self.reading() as connection:
            return int(connection.execute(select(func.coalesce(func.max(table.c.seq), 0))).scalar_one())

    def _load_arrays(self, rows: Sequence[Row[Any]]) -> dict[str, dict[str, Any]]:
        shards: dict[str, set[str]] = {}
        for row in rows:
            if row.shard is not None and row.erased is None:
                shards.setdefault(row.shard, set()).add(row.id)
        loaded: dict[str, dict[str, Any]] = {}
        for shard, ids in shards.items():
            found = self._arrays.read(shard, ids)
            loaded.update({episode_id: values._asdict() for episode_id, values in found.items()})
            if lost := ids - found.keys():
                self._check_erased(lost, shard)
        return loaded

    def _check_erased(self, episode_ids: Collection[str], shard: str) -> None:
        """Arrays may be gone because an erasure came between two reads; anything else is damage."""
        with self.reading() as connection:
            gone = {record_id for _, record_id in erased_among(connection, list(episode_ids))}
        for episode_id in episode_ids:
            if episode_id not in gone:
                raise LedgerError(f"the arrays of episode {episode_id} are not in {shard}; restore it from a copy")


def suite_id(name: str, version: str) -> str:
    """The id of a suite's row."""
    return f"{name}@{version}"


def erasure_of(row: Row[Any]) -> Erasure:
    """The erasure in a row."""
    return Erasure(record_id=row.record_id, kind=row.kind, why=row.why, created_at=row.created_at)


def _windows(last: int, size: int) -> Iterator[tuple[int, int]]:
    for lower in range(0, last, size):
        yield lower, min(lower + size, last)


def _equal(table: Table, **values: str | None) -> list[ColumnElement[bool]]:
    return [table.c[name] == value for name, value in values.items() if value is not None]


def _distinct(values: Iterable[str] | None) -> list[Any] | None:
    return None if values is None else list(dict.fromkeys(values))
