"""The versions of the ledger's schema: numbered functions, applied in order.

A new ledger and an old one take the same road: every migration that is not yet in
`schema_version`, all in one transaction. The SQL here is frozen once released; a change
to `schema.py` comes with a new function at the end. A ledger of a newer version is
refused before anything is written.

The law that the ledger only grows is kept by triggers on SQLite: they stop accidents
(UPDATE, DELETE, INSERT OR REPLACE), not an owner of the file who drops them. Other
databases get the tables and indexes but not yet the triggers.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, inspect, text

from metier.base.clock import now
from metier.base.errors import LedgerError

__all__ = ["MIGRATIONS", "NEWEST", "migrate", "stored_version"]

_V1_TABLES = (
    "CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at DOUBLE PRECISION NOT NULL)",
    "CREATE TABLE runs ({seq}, id TEXT NOT NULL UNIQUE, created_at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE tasks ({seq}, id TEXT NOT NULL UNIQUE, family TEXT NOT NULL, kind TEXT NOT NULL,"
    " split TEXT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE suites ({seq}, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, version TEXT NOT NULL,"
    " body TEXT NOT NULL)",
    "CREATE TABLE episode_groups ({seq}, id TEXT NOT NULL UNIQUE, task_id TEXT NOT NULL REFERENCES tasks(id),"
    " body TEXT NOT NULL)",
    "CREATE TABLE episodes ({seq}, id TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL REFERENCES runs(id),"
    " task_id TEXT NOT NULL REFERENCES tasks(id), stage TEXT NOT NULL, split TEXT NOT NULL, group_id TEXT,"
    " checkpoint TEXT NOT NULL, step INTEGER NOT NULL, shard TEXT, created_at DOUBLE PRECISION NOT NULL,"
    " body TEXT NOT NULL)",
    "CREATE TABLE feedback ({seq}, id TEXT NOT NULL UNIQUE, run_id TEXT REFERENCES runs(id), criterion TEXT NOT NULL,"
    " kind TEXT NOT NULL, source_kind TEXT NOT NULL, source_name TEXT NOT NULL, source_version TEXT NOT NULL,"
    " status TEXT NOT NULL, supersedes TEXT REFERENCES feedback(id), due_at DOUBLE PRECISION,"
    " created_at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE feedback_about (feedback_id TEXT NOT NULL REFERENCES feedback(id), position INTEGER NOT NULL,"
    " episode_id TEXT NOT NULL REFERENCES episodes(id), PRIMARY KEY (feedback_id, position))",
    "CREATE TABLE datasets ({seq}, id TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL REFERENCES runs(id),"
    " stage TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE dataset_records (dataset_id TEXT NOT NULL REFERENCES datasets(id), kind TEXT NOT NULL,"
    " position INTEGER NOT NULL, record_id TEXT NOT NULL, PRIMARY KEY (dataset_id, kind, position))",
    "CREATE TABLE checkpoints ({seq}, id TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL REFERENCES runs(id),"
    " stage TEXT NOT NULL, step INTEGER NOT NULL, parent TEXT, body TEXT NOT NULL)",
    "CREATE TABLE checkpoint_datasets (checkpoint_id TEXT NOT NULL REFERENCES checkpoints(id),"
    " position INTEGER NOT NULL, dataset_id TEXT NOT NULL REFERENCES datasets(id),"
    " PRIMARY KEY (checkpoint_id, position))",
    "CREATE TABLE profiles ({seq}, id TEXT NOT NULL UNIQUE, checkpoint TEXT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE gates ({seq}, id TEXT NOT NULL UNIQUE, checkpoint TEXT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE payloads ({seq}, kind TEXT NOT NULL, record_id TEXT NOT NULL, body TEXT NOT NULL,"
    " UNIQUE (record_id, kind))",
    "CREATE TABLE erasures ({seq}, kind TEXT NOT NULL, record_id TEXT NOT NULL, why TEXT NOT NULL,"
    " created_at DOUBLE PRECISION NOT NULL, UNIQUE (record_id, kind))",
    "CREATE TABLE marks ({seq}, record_id TEXT NOT NULL, mark TEXT NOT NULL, why TEXT NOT NULL,"
    " created_at DOUBLE PRECISION NOT NULL)",
)

# Table -> the columns by which a row is the same row; an insert of the same row again is refused, so that
# INSERT OR REPLACE, which deletes without firing delete triggers, cannot rewrite history.
_V1_KEYS = {
    "schema_version": ("version",),
    "runs": ("id",),
    "tasks": ("id",),
    "suites": ("id",),
    "episode_groups": ("id",),
    "episodes": ("id",),
    "feedback": ("id",),
    "feedback_about": ("feedback_id", "position"),
    "datasets": ("id",),
    "dataset_records": ("dataset_id", "kind", "position"),
    "checkpoints": ("id",),
    "checkpoint_datasets": ("checkpoint_id", "position"),
    "profiles": ("id",),
    "gates": ("id",),
    "payloads": ("record_id", "kind"),
    "erasures": ("record_id", "kind"),
    "marks": ("seq",),
}

_V1_LINKS = ("schema_version", "feedback_about", "dataset_records", "checkpoint_datasets")  # have no seq

_V2_INDEXES = (
    "CREATE INDEX ix_episodes_run ON episodes (run_id, stage)",
    "CREATE INDEX ix_episodes_task ON episodes (task_id)",
    "CREATE INDEX ix_episodes_group ON episodes (group_id)",
    "CREATE INDEX ix_feedback_run ON feedback (run_id, criterion)",
    "CREATE INDEX ix_feedback_supersedes ON feedback (supersedes)",
    "CREATE INDEX ix_feedback_about_episode ON feedback_about (episode_id)",
    "CREATE INDEX ix_dataset_records_record ON dataset_records (record_id, kind)",
    "CREATE INDEX ix_datasets_run ON datasets (run_id)",
    "CREATE INDEX ix_checkpoints_run ON checkpoints (run_id)",
    "CREATE INDEX ix_checkpoints_parent ON checkpoints (parent)",
    "CREATE INDEX ix_checkpoint_datasets_dataset ON checkpoint_datasets (dataset_id)",
    "CREATE INDEX ix_marks_record ON marks (record_id)",
)


def _1_tables(connection: Connection) -> None:
    """The tables, and the triggers that let them only grow."""
    sqlite = connection.dialect.name == "sqlite"
    seq = "seq INTEGER PRIMARY KEY" if sqlite else "seq BIGSERIAL PRIMARY KEY"
    for statement in _V1_TABLES:
        connection.execute(text(statement.format(seq=seq)))
    if not sqlite:
        return
    refuse = "BEGIN SELECT RAISE(ABORT, 'the ledger only grows: {}'); END"
    for table, keys in _V1_KEYS.items():
        same = " AND ".join(f"{key} = NEW.{key}" for key in keys)
        if table not in _V1_LINKS:
            same = f"({same}) OR seq = NEW.seq"
        erased = "WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE record_id = OLD.record_id AND kind = OLD.kind) "
        for event, condition, why in (
            ("UPDATE", "", "add a row that supersedes this one"),
            ("DELETE", erased if table == "payloads" else "", "erase a record with `metier ledger forget`"),
            ("INSERT", f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) ", "this row is there already"),
        ):
            name = f"{table}_no_{event.lower()}"
            connection.execute(text(f"CREATE TRIGGER {name} BEFORE {event} ON {table} {condition}{refuse.format(why)}"))


def _2_indexes(connection: Connection) -> None:
    """Indexes for what runs, reports and lineage ask."""
    for statement in _V2_INDEXES:
        connection.execute(text(statement))


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_1_tables, _2_indexes)
NEWEST = len(MIGRATIONS)


def stored_version(connection: Connection) -> int:
    """The version of the ledger behind `connection`; 0 for an empty database. Writes nothing.

    Raises `LedgerError` for a database that is not a ledger or is a newer one.
    """
    names = inspect(connection).get_table_names()
    if "schema_version" not in names or "feedback" not in names:
        if names:
            raise LedgerError(
                f"the database {_where(connection)} holds other tables ({', '.join(sorted(names)[:3])}) and is not a"
                " Metier ledger; name another file and a ledger is made there"
            )
        return 0
    version = int(connection.execute(text("SELECT MAX(version) FROM schema_version")).scalar() or 0)
    if version > NEWEST:
        raise LedgerError(
            f"the ledger {_where(connection)} has schema version {version} and this metier knows versions up to"
            f" {NEWEST}: upgrade metier; nothing was written"
        )
    return version


def migrate(connection: Connection, *, to: int = NEWEST) -> int:
    """Apply what is missing up to version `to`, inside the caller's transaction; returns how many were applied."""
    version = stored_version(connection)
    for number in range(version + 1, to + 1):
        MIGRATIONS[number - 1](connection)
        connection.execute(
            text("INSERT INTO schema_version (version, applied_at) VALUES (:version, :applied_at)"),
            {"version": number, "applied_at": now()},
        )
    return max(0, to - version)


def _where(connection: Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True).removeprefix("sqlite:///")
