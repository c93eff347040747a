"""The ledger: every record of a project, in one database that only grows.

Each `add_*` is one transaction: all of its records are kept, or none. Adding a record
again is no error and changes nothing, so a step that is done again after a crash writes
its rows again freely; the same id with other content is refused. Fields that may differ
between two writings of one record (`created_at`, `observed_at`, `cost.seconds`, a run's
hardware and folder, a checkpoint's metrics, how a task is described) keep their first value.

What happens to a record later is a row of its own: feedback that supersedes other
feedback, a mark (`stale`), an erasure. Readers put these together: the newest mark is
the record's `stale`, and an erased record reads back hollow (see `payloads.py`).

Sequences inside values (`Feedback.value`, `evidence`, `config` …) read back as lists, and
log-probabilities as float32.

Left out: which records to select for what (`feedback/`), and what reached what
(`lineage.py`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, and_, func, literal, select

from metier.base.clock import now
from metier.base.errors import LedgerError
from metier.records import schema
from metier.records.arrays import ArrayStore
from metier.records.database import Database, disk_errors
from metier.records.payloads import ERASABLE, layout_of
from metier.records.rows import (
    STALE,
    TABLES,
    chunks,
    erased_among,
    erased_members,
    feedback_ids_about,
    fields_apart,
    insert_rows,
    mark_stale,
    read_record,
    require,
    rows_among,
    select_rows,
    stale_reasons,
)
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

__all__ = ["Erasure", "Ledger"]

R = TypeVar("R")
Columns = Callable[[R], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """The fact that a record's payload was removed."""

    record_id: str
    kind: str  # task, episode or feedback
    why: str
    created_at: float  # UTC seconds


class Ledger:
    """An open ledger. Use it as a context manager, or `close` it; threads may share it."""

    def __init__(self, database: Database, arrays: Path) -> None:
        self._database = database
        self._arrays = ArrayStore(arrays)

    @classmethod
    def open(cls, where: str | Path, *, create: bool = True, arrays: str | Path | None = None) -> Ledger:
        """Open the ledger in a SQLite file or behind an SQLAlchemy URL, bringing an older one up to date.

        Token arrays lie in the folder `<file stem>-arrays` beside the file, or in `arrays`,
        which a URL without a file needs. Raises `LedgerError` for a file that is no ledger
        or belongs to a newer metier; nothing is written to it then.
        """
        database = Database(where, create=create)
        if arrays is not None:
            return cls(database, Path(arrays))
        if database.path is None:
            database.close()
            raise LedgerError(f"the ledger {database.label} needs a folder for token arrays; name it: arrays=FOLDER")
        return cls(database, database.path.with_name(f"{database.path.stem}-arrays"))

    @property
    def path(self) -> Path | None:
        """The file, where the ledger is one."""
        return self._database.path

    @property
    def arrays_folder(self) -> Path:
        """Where the token arrays lie."""
        return self._arrays.folder

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
    def reading(self) -> Iterator[Connection]:
        """One consistent snapshot, for queries of other modules of `records/`."""
        with self._database.reading() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, for other modules of `records/`."""
        with self._database.writing() as connection:
            yield connection

    # --- adding ----------------------------------------------------------------------

    def add_run(self, run: Run) -> None:
        """Add a run."""
        with self.writing() as connection:
            self._insert(connection, Run, {run.id: run}, lambda r: {"created_at": r.created_at})

    def add_tasks(self, tasks: Sequence[Task]) -> None:
        """Add tasks. The same task may not be in two splits: what is held out stays held out."""
        with self.writing() as connection:
            records = _by_id(Task, ((task.id, task) for task in tasks))
            self._insert(connection, Task, records, lambda t: {"family": t.family, "kind": t.kind, "split": t.split})

    def add_suite(self, suite: Suite) -> None:
        """Add a suite; its tasks must be in the ledger."""
        with self.writing() as connection:
            require(connection, schema.tasks, suite.task_ids, f"suite {suite.name} {suite.version} names task")
            records = {_suite_id(suite.name, suite.version): suite}
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

    def add_feedback(self, feedback: Sequence[Feedback]) -> None:
        """Add feedback. The episodes it is about must be in the ledger, and so must what it supersedes (or be given
        earlier in this call)."""
        records = _by_id(Feedback, ((statement.id, statement) for statement in feedback))
        with self.writing() as connection:
            about = (episode_id for statement in feedback for episode_id in statement.about)
            require(connection, schema.episodes, about, "feedback is about episode")
            runs = (statement.run_id for statement in feedback if statement.run_id is not None)
            require(connection, schema.runs, runs, "feedback names run")
            older = (f.supersedes for f in feedback if f.supersedes is not None and f.supersedes not in records)
            require(connection, schema.feedback, older, "feedback supersedes feedback")
            new = self._insert(
                connection,
                Feedback,
                records,
                lambda f: {
                    "run_id": f.run_id,
                    "criterion": f.criterion,
                    "kind": f.kind,
                    "source_kind": f.source.kind,
                    "source_name": f.source.name,
                    "source_version": f.source.version,
                    "status": f.status,
                    "supersedes": f.supersedes,
                    "due_at": f.due_at,
                    "created_at": f.created_at,
                },
            )
            links = [
                {"feedback_id": statement.id, "position": position, "episode_id": episode_id}
                for statement in new.values()
                for position, episode_id in enumerate(statement.about)
            ]
            insert_rows(connection, schema.feedback_about, links)

    def add_dataset(self, dataset: DatasetManifest) -> None:
        """Add a dataset's manifest; its rows must be in the ledger. One that holds an erased row is marked stale."""
        members = _members(dataset)
        with self.writing() as connection:
            require(connection, schema.runs, [dataset.run_id], f"dataset {dataset.id} names run")
            tables = {"feedback": schema.feedback, "episode": schema.episodes, "task": schema.tasks}
            for kind, ids in members.items():
                require(connection, tables[kind], ids, f"dataset {dataset.id} holds {kind}")
            new = self._insert(
                connection,
                DatasetManifest,
                {dataset.id: dataset},
                lambda d: {"run_id": d.run_id, "stage": d.stage, "kind": d.kind, "name": d.name},
            )
            if not new:
                return
            links = [
                {"dataset_id": dataset.id, "kind": kind, "position": position, "record_id": record_id}
                for kind, ids in members.items()
                for position, record_id in enumerate(ids)
            ]
            insert_rows(connection, schema.dataset_records, links)
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

    # --- reading ---------------------------------------------------------------------

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
            return self._one(Suite, _suite_id(name, version))
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
        where = [
            column == value
            for column, value in (
                (table.c.run_id, run_id),
                (table.c.stage, stage),
                (table.c.split, split),
                (table.c.group_id, group_id),
            )
            if value is not None
        ]
        among = [(table.c.id, _distinct(ids)), (table.c.task_id, _distinct(task_ids))]
        with self.reading() as connection:
            rows = select_rows(connection, Episode, where, among, extra=[table.c.shard])
        loaded = self._load_arrays(rows) if arrays else {}
        return [read_record(Episode, row, loaded.get(row.id, {})) for row in rows]

    def feedback(
        self,
        *,
        run_id: str | None = None,
        about: Iterable[str] | None = None,
        ids: Iterable[str] | None = None,
        criterion: str | None = None,
        source: str | None = None,
        status: str | None = None,
        current: bool = True,
    ) -> list[Feedback]:
        """Feedback that fits all that is given, in the order of insertion.

        `about` is episode ids, any of which it may be about; `source` is a source's name.
        With `current`, what another row supersedes is left out, and so are retractions.
        """
        table = schema.feedback
        where = [
            column == value
            for column, value in (
                (table.c.run_id, run_id),
                (table.c.criterion, criterion),
                (table.c.source_name, source),
                (table.c.status, status),
            )
            if value is not None
        ]
        if current:
            newer = table.alias("newer")
            where.append(~select(literal(1)).where(newer.c.supersedes == table.c.id).exists())
            where.append(table.c.status != "retracted")
        with self.reading() as connection:
            among = [(table.c.id, _distinct(ids))]
            if about is not None:
                among.append((table.c.id, feedback_ids_about(connection, list(dict.fromkeys(about)))))
            rows = select_rows(connection, Feedback, where, among)
        return [read_record(Feedback, row) for row in rows]

    def dataset(self, dataset_id: str) -> DatasetManifest:
        """The dataset's manifest; `stale` says why it must be rebuilt, where it must."""
        return self._one(DatasetManifest, dataset_id)

    def datasets(self, run_id: str | None = None) -> list[DatasetManifest]:
        """Datasets, of one run or of all, in the order of insertion."""
        return self._all(DatasetManifest, *([] if run_id is None else [schema.datasets.c.run_id == run_id]))

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """The checkpoint; `stale` says why it is marked, where it is."""
        return self._one(Checkpoint, checkpoint_id)

    def checkpoints(self, run_id: str | None = None) -> list[Checkpoint]:
        """Checkpoints, of one run or of all, in the order of insertion."""
        return self._all(Checkpoint, *([] if run_id is None else [schema.checkpoints.c.run_id == run_id]))

    def profiles(self, checkpoint: str | None = None) -> list[Profile]:
        """Profiles, of one checkpoint or of all, in the order of insertion."""
        return self._all(Profile, *([] if checkpoint is None else [schema.profiles.c.checkpoint == checkpoint]))

    def gates(self, checkpoint: str | None = None) -> list[GateDecision]:
        """Release decisions, on one checkpoint or on all, in the order of insertion."""
        return self._all(GateDecision, *([] if checkpoint is None else [schema.gates.c.checkpoint == checkpoint]))

    def erasures(self) -> list[Erasure]:
        """What was erased, when and why, in order."""
        with self.reading() as connection:
            rows = connection.execute(select(schema.erasures).order_by(schema.erasures.c.seq)).all()
        return [_erasure(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many records of each noun there are, how many were erased and how many are marked stale."""
        names = {
            "runs": schema.runs,
            "tasks": schema.tasks,
            "suites": schema.suites,
            "groups": schema.episode_groups,
            "episodes": schema.episodes,
            "feedback": schema.feedback,
            "datasets": schema.datasets,
            "checkpoints": schema.checkpoints,
            "profiles": schema.profiles,
            "gates": schema.gates,
            "erasures": schema.erasures,
        }
        with self.reading() as connection:
            counts = {
                name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for name, table in names.items()
            }
            stale = select(func.count(schema.marks.c.record_id.distinct())).where(schema.marks.c.mark == STALE)
            counts[STALE] = connection.execute(stale).scalar_one()
        return counts

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
        self._database.flush_log()
        return _erasure(row)

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
            for chunk in chunks(fresh):
                of_these = and_(schema.payloads.c.kind == layout.kind, schema.payloads.c.record_id.in_(chunk))
                connection.execute(schema.payloads.delete().where(of_these))

    def flush_log(self) -> None:
        """Make sure that erased content is not left in the write-ahead log (readers that are open may delay it)."""
        self._database.flush_log()

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
        layout = layout_of(noun)
        rows, payloads = [], []
        for record_id, record in new.items():
            body, payload = layout.split(record)
            rows.append({"id": record_id, "body": body, **columns(record)})
            if payload is not None:
                payloads.append({"kind": layout.kind, "record_id": record_id, "body": payload})
        insert_rows(connection, TABLES[noun], rows)
        insert_rows(connection, schema.payloads, payloads)
        return new

    def _unknown(self, connection: Connection, noun: type[R], records: dict[str, R]) -> dict[str, R]:
        known = self._by_ids(connection, noun, list(records), arrays=True)
        layout = layout_of(noun)
        gone = {record_id for kind, record_id in erased_among(connection, list(known)) if kind == layout.kind}
        for record_id, stored in known.items():
            if record_id in gone:
                continue  # what it said is no longer there to compare with
            given = layout.kept(records[record_id])
            if layout.fingerprint(stored) != layout.fingerprint(given):
                raise LedgerError(_conflict(layout.kind, record_id, stored, given, layout.volatile))
        return {record_id: record for record_id, record in records.items() if record_id not in known}

    def _by_ids(
        self, connection: Connection, noun: type[R], ids: Sequence[str], *, arrays: bool = False
    ) -> dict[str, R]:
        table = TABLES[noun]
        extra = [table.c.shard] if noun is Episode else []
        rows = select_rows(connection, noun, [], [(table.c.id, ids)], extra=extra)
        apart = fields_apart(connection, noun, rows)
        if noun is Episode and arrays:
            apart = self._load_arrays(rows)
        return {row.id: read_record(noun, row, apart.get(row.id, {})) for row in rows}

    def _all(self, noun: type[R], *where: ColumnElement[bool]) -> list[R]:
        with self.reading() as connection:
            rows = select_rows(connection, noun, where, [])
            apart = fields_apart(connection, noun, rows)
        return [read_record(noun, row, apart.get(row.id, {})) for row in rows]

    def _one(self, noun: type[R], record_id: str) -> R:
        with self.reading() as connection:
            found = self._by_ids(connection, noun, [record_id])
        if record_id not in found:
            raise self._missing(noun, record_id)
        return found[record_id]

    def _missing(self, noun: type[Any], record_id: str) -> LedgerError:
        return LedgerError(f"there is no {layout_of(noun).kind} {record_id!r} in the ledger {self._database.label}")

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


def _distinct(values: Iterable[str] | None) -> list[str] | None:
    return None if values is None else list(dict.fromkeys(values))


def _by_id(noun: type[R], pairs: Iterable[tuple[str, R]]) -> dict[str, R]:
    """Records by id; the same one twice is one, two with the same id are refused."""
    layout, records = layout_of(noun), dict[str, R]()
    for record_id, record in pairs:
        first = records.setdefault(record_id, record)
        if first is not record and layout.fingerprint(first) != layout.fingerprint(record):
            raise LedgerError(_conflict(layout.kind, record_id, first, record, layout.volatile))
    return records


def _members(dataset: DatasetManifest) -> dict[str, tuple[str, ...]]:
    members = {"feedback": dataset.feedback_ids, "episode": dataset.episode_ids, "task": dataset.task_ids}
    for kind, ids in members.items():
        if twice := [record_id for record_id, n in Counter(ids).items() if n > 1]:
            raise LedgerError(f"dataset {dataset.id} names {kind} {twice[0]!r} twice; a manifest names each row once")
    return members


def _suite_id(name: str, version: str) -> str:
    return f"{name}@{version}"


def _erasure(row: Row[Any]) -> Erasure:
    return Erasure(record_id=row.record_id, kind=row.kind, why=row.why, created_at=row.created_at)
