"""The ledger: every record of a project, in one database that only grows.

Each `add_*` is one transaction: all of its records are kept, or none. Adding a record
again is no error and changes nothing, so a step that is done again after a crash writes
its rows again freely; the same id with other content is refused. Fields that may differ
between two writings of one record (`created_at`, `observed_at`, `cost.seconds`, a run's
hardware and folder, a checkpoint's metrics, how a task is described) keep their first value.

What happens to a record later is a row of its own: feedback that supersedes other
feedback, a mark (`stale`), an erasure. Readers put these together (`view.py`): the newest
mark is the record's `stale`, and an erased record reads back hollow (see `payloads.py`).

Sequences inside values (`Feedback.value`, `evidence`, `config` …) read back as lists, and
log-probabilities as float32.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, select

from metier.base.clock import now
from metier.base.errors import LedgerError
from metier.records import schema
from metier.records.arrays import ArrayStore
from metier.records.database import Database, disk_errors
from metier.records.moments import note_moment
from metier.records.payloads import ERASABLE, layout_of
from metier.records.rows import (
    TABLES,
    check_text,
    count_anew,
    erased_among,
    erased_members,
    insert_feedback,
    insert_many,
    insert_rows,
    mark_stale,
    next_seq,
    numbers_of,
    one_of,
    require,
    rows_among,
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
    Stage,
    Suite,
    Task,
)
from metier.records.view import Erasure, LedgerView, erasure_of, suite_id

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Erasure", "Ledger"]

R = TypeVar("R")
Columns = Callable[[R], dict[str, Any]]


class Ledger(LedgerView):
    """An open ledger. Use it as a context manager, or `close` it; threads may share it."""

    @classmethod
    def open(cls, where: str | Path, *, create: bool = True, arrays: str | Path | None = None) -> Ledger:
        """Open the ledger in a SQLite file or in PostgreSQL by URL, bringing an older one up to date.

        Token arrays lie in `arrays`, else in the folder that the URL names (`?arrays=FOLDER`), else
        beside the file as `<file stem>-arrays`. A database has no folder, so the project's own serves:
        `runs/<database>-<its identity>-arrays`, where a file would have them too; machines that share
        the database and need each other's arrays name a folder that they share. Raises `LedgerError`
        for a file that is no ledger or belongs to a newer metier; nothing is written to it then.
        """
        database = Database(where, create=create)
        if arrays is None:
            arrays = database.arrays or (
                Path("runs") / f"{database.url.database}-{database.identity[:8]}-arrays"
                if database.path is None
                else database.path.with_name(f"{database.path.stem}-arrays")
            )
        return cls(database, ArrayStore(Path(arrays)), Sorts())

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def writing(self, *, bulk: bool = False) -> Iterator[Connection]:
        """One transaction, for other modules of `records/`. With `bulk`, the caller has looked up foreign keys."""
        try:
            with self._database.writing(bulk=bulk) as connection:
                try:
                    yield connection
                except BaseException:
                    self._sorts.forget()
                    raise
                note_moment(connection)
        except BaseException:
            self._sorts.forget()
            raise

    # --- adding ----------------------------------------------------------------------

    def add_run(self, run: Run) -> None:
        """Add a run."""
        with self.writing() as connection:
            self._insert(connection, Run, {run.id: run}, lambda r: {"created_at": r.created_at})

    def ensure_run(
        self, run_id: str, recipe: str, config: Mapping[str, Any], *, seed: int = 0, stages: tuple[Stage, ...] = ()
    ) -> None:
        """Add the run that stands for work outside of recipes, where it is not there yet.

        It is looked up first: one that an older version of the code made stays as it is.
        """
        if not self.known(schema.runs, [run_id]):
            self.add_run(
                Run(
                    id=run_id,
                    recipe=recipe,
                    config=config,
                    seed=seed,
                    folder="",
                    code_version=version("metier"),
                    stages=stages,
                    created_at=now(),
                )
            )

    def add_tasks(self, tasks: Sequence[Task]) -> None:
        """Add tasks. The same task may not be in two splits: what is held out stays held out."""
        with self.writing() as connection:
            records = _by_id(Task, ((task.id, task) for task in tasks))
            self._insert(connection, Task, records, lambda t: {"family": t.family, "kind": t.kind, "split": t.split})

    def add_suite(self, suite: Suite) -> None:
        """Add a suite; its tasks must be in the ledger."""
        with self.writing() as connection:
            require(connection, schema.tasks, suite.task_ids, f"suite {suite.name} {suite.version} names task")
            records = {suite_id(suite.name, suite.version): suite}
            self._insert(connection, Suite, records, lambda s: {"name": s.name, "version": s.version})

    def add_groups(self, groups: Sequence[Group]) -> None:
        """Add groups of sibling episodes; before or after the episodes themselves."""
        with self.writing() as connection:
            records = _by_id(Group, ((group.id, group) for group in groups))
            require(connection, schema.tasks, (g.task_id for g in groups), "a group names task")
            self._insert(connection, Group, records, lambda g: {"task_id": g.task_id})

    def add_episodes(self, episodes: Sequence[Episode]) -> None:
        """Add episodes with their token arrays; their runs and tasks must be in the ledger."""
        records = _by_id(Episode, ((episode.id, episode) for episode in episodes))
        with self.writing() as connection:
            require(connection, schema.runs, (e.run_id for e in episodes), "an episode names run")
            require(connection, schema.tasks, (e.task_id for e in episodes), "an episode names task")
            new = self._unknown(connection, Episode, records)
            with_arrays = [episode for episode in new.values() if episode.token_ids]
            shard = None
            if with_arrays:
                with disk_errors(str(self._arrays.folder)):
                    shard = self._arrays.write(with_arrays)
            self._insert_new(
                connection,
                Episode,
                new,
                lambda e: {
                    "run_id": e.run_id,
                    "task_id": e.task_id,
                    "stage": e.stage,
                    "split": e.split,
                    "group_id": e.group_id,
                    "checkpoint": e.weights.checkpoint,
                    "step": e.weights.step,
                    "shard": shard if e.token_ids else None,
                    "created_at": e.created_at,
                },
            )
            count_anew(connection, schema.episodes, schema.episode_payloads)

    def add_feedback(self, feedback: Sequence[Feedback]) -> None:
        """Add feedback. The episodes it is about must be in the ledger, and so must what it supersedes (or be given
        earlier in this call)."""
        records = _by_id(Feedback, ((statement.id, statement) for statement in feedback))
        with self.writing() as connection:
            about = (episode_id for statement in feedback for episode_id in statement.about)
            episodes = require(connection, schema.episodes, about, "feedback is about episode")
            runs = (statement.run_id for statement in feedback if statement.run_id is not None)
            require(connection, schema.runs, runs, "feedback names run")
            older = (f.supersedes for f in feedback if f.supersedes is not None and f.supersedes not in records)
            require(connection, schema.feedback, older, "feedback supersedes feedback")
            new = self._unknown(connection, Feedback, records).values()
            self._insert_feedback(connection, new, episodes)

    def append_arrow(self, table: pa.Table) -> int:
        """Add feedback from an Arrow table in the layout of `arrow.py`, very many rows fast; returns how many were new.

        Rows go in transactions of 250,000, so that other writers get their turn: after a failure those
        that were done stay, and adding the table again adds the rest. In each the rows are written in the
        order of their ids, which is far faster. A known id is not compared with what is there. Raises
        `DataError` naming the first row that is no feedback.
        """
        from metier.records.arrow import append

        return append(self, self._sorts, table)

    def add_dataset(self, dataset: DatasetManifest) -> None:
        """Add a dataset's manifest; its rows must be in the ledger. One that holds an erased row is marked stale."""
        members = _members(dataset)
        with self.writing() as connection:
            require(connection, schema.runs, [dataset.run_id], f"dataset {dataset.id} names run")
            tables = {"feedback": schema.feedback, "episode": schema.episodes, "task": schema.tasks}
            held = {
                kind: require(connection, tables[kind], ids, f"dataset {dataset.id} holds {kind}")
                for kind, ids in members.items()
            }
            new = self._insert(
                connection,
                DatasetManifest,
                {dataset.id: dataset},
                lambda d: {"run_id": d.run_id, "stage": d.stage, "kind": d.kind, "name": d.name},
            )
            if not new:
                return
            (number,) = require(connection, schema.datasets, [dataset.id], "dataset").values()
            numbers = {kind: [held[kind][i] for i in ids] for kind, ids in members.items()}
            numbers["about"] = _about(connection, numbers["feedback"], members["episode"])
            for kind, records in numbers.items():
                links = ((number, kind, position, record) for position, record in enumerate(records))
                insert_many(connection, schema.dataset_records, ("dataset", "kind", "position", "record"), links)
            whys = [dataset.stale] if dataset.stale is not None else erased_members(connection, dataset.id)
            mark_stale(connection, [dataset.id], whys)

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint; its datasets must be in the ledger. One that comes from anything stale is marked too."""
        with self.writing() as connection:
            require(connection, schema.runs, [checkpoint.run_id], f"checkpoint {checkpoint.id} names run")
            require(connection, schema.datasets, checkpoint.dataset_ids, f"checkpoint {checkpoint.id} names dataset")
            new = self._insert(
                connection,
                Checkpoint,
                {checkpoint.id: checkpoint},
                lambda c: {"run_id": c.run_id, "stage": c.stage, "step": c.step, "parent": c.parent},
            )
            if not new:
                return
            links = [
                {"checkpoint_id": checkpoint.id, "position": position, "dataset_id": dataset_id}
                for position, dataset_id in enumerate(checkpoint.dataset_ids)
            ]
            insert_rows(connection, schema.checkpoint_datasets, links)
            origins = [*checkpoint.dataset_ids, *([checkpoint.parent] if checkpoint.parent else [])]
            inherited = list(stale_reasons(connection, origins).values())
            mark_stale(connection, [checkpoint.id], [checkpoint.stale] if checkpoint.stale is not None else inherited)

    def add_profile(self, profile: Profile) -> None:
        """Add a profile."""
        with self.writing() as connection:
            self._insert(connection, Profile, {profile.id: profile}, lambda p: {"checkpoint": p.checkpoint})

    def add_gate(self, gate: GateDecision) -> None:
        """Add a release decision."""
        with self.writing() as connection:
            self._insert(connection, GateDecision, {gate.id: gate}, lambda g: {"checkpoint": g.checkpoint})

    # --- erasing ---------------------------------------------------------------------

    def erase(self, record_id: str, *, why: str) -> Erasure:
        """Remove what a task, episode or feedback says, token arrays included; its row stays.

        Erasing again changes nothing. This erases one record alone: `lineage.forget` also
        erases what quotes it and marks what was made of it.
        """
        with self.writing() as connection:
            self.erase_in(connection, [record_id], why=why)
            row = connection.execute(select(schema.erasures).where(schema.erasures.c.record_id == record_id)).first()
        assert row is not None
        self.scrub()
        return erasure_of(row)

    def erase_in(self, connection: Connection, record_ids: Sequence[str], *, why: str) -> None:
        """Erase within a `writing` transaction. Arrays go first: a crash may lose them, never keep them unrecorded."""
        if not why.strip():
            raise LedgerError("an erasure needs a reason; say why")
        known: dict[str, list[str]] = {}
        for layout in ERASABLE:
            table = TABLES[layout.noun]
            rows = rows_among(connection, select(table.c.id), table.c.id, record_ids)
            known[layout.kind] = [row.id for row in rows]
        for record_id in set(record_ids).difference(*known.values()):
            raise LedgerError(
                f"there is no task, episode or feedback {record_id!r} in {self._database.label}; nothing was erased"
            )
        gone = erased_among(connection, record_ids)
        for layout in ERASABLE:
            ids = known[layout.kind]
            fresh = [record_id for record_id in ids if (layout.kind, record_id) not in gone]
            if not fresh:
                continue
            if layout.noun is Episode:
                self._drop_arrays(connection, fresh)
            facts = [{"kind": layout.kind, "record_id": i, "why": why, "created_at": now()} for i in fresh]
            insert_rows(connection, schema.erasures, facts)
            payloads, table = schema.PAYLOADS[layout.kind], TABLES[layout.noun]
            numbers = list(numbers_of(connection, table, fresh).values())
            connection.execute(payloads.delete().where(one_of(connection, payloads.c.seq, numbers)))

    def scrub(self) -> None:
        """Make sure that nothing erased is left in the database's files (readers that are open may delay it)."""
        self._database.scrub(schema.PAYLOADS.values())

    def _drop_arrays(self, connection: Connection, episode_ids: Sequence[str]) -> None:
        table = schema.episodes
        shards: dict[str, set[str]] = {}
        for row in rows_among(connection, select(table.c.id, table.c.shard), table.c.id, episode_ids):
            if row.shard is not None:
                shards.setdefault(row.shard, set()).add(row.id)
        with disk_errors(str(self._arrays.folder)):
            for shard, ids in shards.items():
                self._arrays.drop(shard, ids)
            # A shard left by a crash could hold the same episode; the write lock says that nobody is about to use one.
            named = connection.execute(select(table.c.shard).where(table.c.shard.is_not(None)).distinct()).scalars()
            self._arrays.sweep(named)

    # --- the parts -------------------------------------------------------------------

    def _insert(
        self, connection: Connection, noun: type[R], records: dict[str, R], columns: Columns[R]
    ) -> dict[str, R]:
        """Insert those records that are new; returns them. Raises where a known id comes with other content."""
        return self._insert_new(connection, noun, self._unknown(connection, noun, records), columns)

    def _insert_new(
        self, connection: Connection, noun: type[R], new: dict[str, R], columns: Columns[R]
    ) -> dict[str, R]:
        layout, table = layout_of(noun), TABLES[noun]
        rows, payloads = [], []
        for seq, (record_id, record) in enumerate(new.items(), next_seq(connection, table)):
            body, payload = layout.split(record)
            rows.append({"seq": seq, "id": record_id, "body": body, **columns(record)})
            if payload is not None:
                payloads.append({"seq": seq, "body": payload})
        insert_rows(connection, table, rows)
        if payloads:
            insert_rows(connection, schema.PAYLOADS[layout.kind], payloads)
        return new

    def _insert_feedback(self, connection: Connection, new: Collection[Feedback], episodes: dict[str, int]) -> None:
        """Statements go by the driver's fastest way: they come in millions."""
        if not new:
            return
        for sort in (sorts := {Sort.of(statement) for statement in new}):
            for value in sort:
                check_text(value or "")
        numbers = self._sorts.numbers(connection, sorts)
        split = layout_of(Feedback).split
        rows, payloads, about = [], [], []
        for seq, statement in enumerate(new, next_seq(connection, schema.feedback)):
            check_text(statement.id)
            body, payload = split(statement)
            number = numbers[Sort.of(statement)]
            rows.append((seq, statement.id, number, statement.supersedes, statement.due_at, statement.created_at, body))
            payloads.append((seq, payload))
            about += [(episodes[episode], seq, position) for position, episode in enumerate(statement.about)]
        insert_feedback(connection, rows, payloads, sorted(about))  # in the order of the table

    def _unknown(self, connection: Connection, noun: type[R], records: dict[str, R]) -> dict[str, R]:
        table, layout = TABLES[noun], layout_of(noun)
        there = list(numbers_of(connection, table, list(records)))
        if not there:
            return records
        known = self._by_ids(connection, noun, there, arrays=True)
        gone = {record_id for kind, record_id in erased_among(connection, there) if kind == layout.kind}
        for record_id, stored in known.items():
            if record_id in gone:
                continue  # what it said is no longer there to compare with
            given = layout.kept(records[record_id])
            if layout.fingerprint(stored) != layout.fingerprint(given):
                raise LedgerError(_conflict(layout.kind, record_id, stored, given, layout.volatile))
        return {record_id: record for record_id, record in records.items() if record_id not in known}


def _conflict(kind: str, record_id: str, stored: object, given: object, volatile: Collection[str]) -> str:
    names = [
        field.name
        for field in dataclasses.fields(stored)  # type: ignore[arg-type]
        if field.name not in volatile and getattr(stored, field.name) != getattr(given, field.name)
    ]
    what = f" ({', '.join(names)})" if names else ""
    if kind == "task" and "split" in names:
        return (
            f"task {record_id} is in split {getattr(stored, 'split', '')!r} of the ledger and was given as"
            f" {getattr(given, 'split', '')!r}: a task stays in one split, or held-out figures mean nothing;"
            " keep the split or use another ledger"
        )
    return (
        f"{kind} {record_id} is in the ledger with other content{what}: the ledger only grows;"
        " give the new content an id of its own, and name the old one in `supersedes` where it corrects it"
    )


def _by_id(noun: type[R], pairs: Iterable[tuple[str, R]]) -> dict[str, R]:
    """Records by id; the same one twice is one, two with the same id are refused."""
    layout, records = layout_of(noun), dict[str, R]()
    for record_id, record in pairs:
        first = records.setdefault(record_id, record)
        if first is not record and layout.fingerprint(first) != layout.fingerprint(record):
            raise LedgerError(_conflict(layout.kind, record_id, first, record, layout.volatile))
    return records


def _about(connection: Connection, numbers: Sequence[int], named: Collection[str]) -> list[int]:
    """The numbers of the episodes that these statements are about, without those that the manifest names itself."""
    held = rows_among(connection, select(schema.feedback.c.body), schema.feedback.c.seq, numbers)
    bodies = json.loads(f"[{','.join(row.body for row in held)}]")  # one text is read in half the time of many
    ids = set(itertools.chain.from_iterable(body["about"] for body in bodies)).difference(named)
    return sorted(numbers_of(connection, schema.episodes, ids).values())


def _members(dataset: DatasetManifest) -> dict[str, tuple[str, ...]]:
    members = {"feedback": dataset.feedback_ids, "episode": dataset.episode_ids, "task": dataset.task_ids}
    for kind, ids in members.items():
        if twice := [record_id for record_id, n in Counter(ids).items() if n > 1]:
            raise LedgerError(f"dataset {dataset.id} names {kind} {twice[0]!r} twice; a manifest names each row once")
    return members
