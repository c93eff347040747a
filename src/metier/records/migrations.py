"""The versions of the ledger's schema: numbered functions, applied in order.

A new ledger and an old one take the same road: every migration that is not yet in
`schema_version`, all in one transaction. The SQL here is frozen once released; a change
to `schema.py` comes with a new function at the end. A ledger of a newer version is
refused before anything is written.

The law that the ledger only grows is kept by triggers: they stop accidents (UPDATE,
DELETE, TRUNCATE, INSERT OR REPLACE), not an owner of the database who drops them.

Version 3 makes the ledger fit for millions of rows. Links and payloads go by number where
they went by id; what many statements of feedback share becomes a row of its own. What an
older ledger holds is copied in SQL, in the order in which it was added; when each of those
rows came is not known, so they share one moment.

Version 4 links datasets to the episodes that their feedback is about, where the manifest does not name them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from sqlalchemy import Connection, inspect, text

from metier.base.clock import now
from metier.base.errors import LedgerError

__all__ = ["MIGRATIONS", "NEWEST", "insert_guards", "migrate", "stored_version"]

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


_V3_TABLES = (
    "CREATE TABLE feedback_sorts ({seq}, run_id TEXT REFERENCES runs(id), criterion TEXT NOT NULL, kind TEXT NOT NULL,"
    " source_kind TEXT NOT NULL, source_name TEXT NOT NULL, source_version TEXT NOT NULL, status TEXT NOT NULL)",
    "CREATE TABLE feedback ({seq}, id TEXT NOT NULL UNIQUE, sort BIGINT NOT NULL REFERENCES feedback_sorts(seq),"
    " supersedes TEXT, due_at DOUBLE PRECISION, created_at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE feedback_about (episode BIGINT NOT NULL, feedback BIGINT NOT NULL, position INTEGER NOT NULL,"
    " PRIMARY KEY (episode, feedback, position)){rowless}",
    "CREATE TABLE dataset_records (dataset BIGINT NOT NULL, kind TEXT NOT NULL, position INTEGER NOT NULL,"
    " record BIGINT NOT NULL, PRIMARY KEY (dataset, kind, position)){rowless}",
    "CREATE TABLE task_payloads ({seq}, body TEXT NOT NULL)",
    "CREATE TABLE episode_payloads ({seq}, body TEXT NOT NULL)",
    "CREATE TABLE feedback_payloads ({seq}, body TEXT NOT NULL)",
    "CREATE TABLE moments ({seq}, at DOUBLE PRECISION NOT NULL, runs BIGINT NOT NULL, tasks BIGINT NOT NULL,"
    " suites BIGINT NOT NULL, episode_groups BIGINT NOT NULL, episodes BIGINT NOT NULL, feedback BIGINT NOT NULL,"
    " datasets BIGINT NOT NULL, checkpoints BIGINT NOT NULL, profiles BIGINT NOT NULL, gates BIGINT NOT NULL,"
    " marks BIGINT NOT NULL)",
    "CREATE TABLE identity (id TEXT PRIMARY KEY)",
)

_V3_SORT = ("run_id", "criterion", "kind", "source_kind", "source_name", "source_version", "status")
_V3_COUNTED = (
    *("runs", "tasks", "suites", "episode_groups", "episodes", "feedback"),
    *("datasets", "checkpoints", "profiles", "gates", "marks"),
)

# The old tables are renamed first, under the names that stand here.
_V3_COPY = (
    f"INSERT INTO feedback_sorts (seq, {', '.join(_V3_SORT)}) SELECT row_number() OVER (ORDER BY min(seq)),"
    f" {', '.join(_V3_SORT)} FROM feedback_2 GROUP BY {', '.join(_V3_SORT)}",
    "INSERT INTO feedback (seq, id, sort, supersedes, due_at, created_at, body)"
    " SELECT row_number() OVER (ORDER BY f.seq), f.id, s.seq, f.supersedes, f.due_at, f.created_at, f.body"
    " FROM feedback_2 f JOIN feedback_sorts s ON coalesce(s.run_id, '') = coalesce(f.run_id, '')"
    f" AND {' AND '.join(f's.{name} = f.{name}' for name in _V3_SORT[1:])}",
    "INSERT INTO feedback_about (episode, feedback, position) SELECT e.seq, f.seq, a.position FROM feedback_about_2 a"
    " JOIN feedback f ON f.id = a.feedback_id JOIN episodes e ON e.id = a.episode_id ORDER BY e.seq, f.seq",
    *(
        "INSERT INTO dataset_records (dataset, kind, position, record) SELECT d.seq, r.kind, r.position, t.seq"
        f" FROM dataset_records_2 r JOIN datasets d ON d.id = r.dataset_id JOIN {table} t ON t.id = r.record_id"
        f" WHERE r.kind = '{kind}'"
        for kind, table in (("feedback", "feedback"), ("episode", "episodes"), ("task", "tasks"))
    ),
    *(
        f"INSERT INTO {kind}_payloads (seq, body) SELECT t.seq, p.body FROM payloads p JOIN {table} t"
        f" ON t.id = p.record_id WHERE p.kind = '{kind}' ORDER BY t.seq"
        for kind, table in (("feedback", "feedback"), ("episode", "episodes"), ("task", "tasks"))
    ),
    f"INSERT INTO moments (seq, at, {', '.join(_V3_COUNTED)}) SELECT 1, :now,"
    f" {', '.join(f'(SELECT coalesce(max(seq), 0) FROM {table})' for table in _V3_COUNTED)}",
    "INSERT INTO identity (id) VALUES (:identity)",
)

_V3_INDEXES = (
    "DROP INDEX ix_episodes_run",
    "CREATE INDEX ix_episodes_run ON episodes (run_id, seq)",
    "CREATE INDEX ix_feedback_sort ON feedback (sort, seq)",
    "CREATE INDEX ix_feedback_supersedes ON feedback (supersedes) WHERE supersedes IS NOT NULL",
    "CREATE INDEX ix_dataset_records_record ON dataset_records (record, kind)",
)

_V3_KEYS = {
    "feedback_sorts": ("seq",),
    "feedback": ("id", "seq"),
    "feedback_about": ("episode", "feedback", "position"),
    "dataset_records": ("dataset", "kind", "position"),
    "task_payloads": ("seq",),
    "episode_payloads": ("seq",),
    "feedback_payloads": ("seq",),
    "moments": ("seq",),
    "identity": ("id",),
}
_V3_LINKS = ("feedback_about", "dataset_records")  # their columns are one key; elsewhere each is a key of its own
_V3_ERASABLE = {"task_payloads": "tasks", "episode_payloads": "episodes", "feedback_payloads": "feedback"}

_REPLACED = ("feedback_about", "dataset_records", "feedback", "payloads")

_PG_REFUSE = """
CREATE FUNCTION metier_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the ledger only grows: % of %', TG_OP, TG_TABLE_NAME
    USING ERRCODE = 'integrity_constraint_violation';
END $$
"""
_PG_ONLY_ERASED = """
CREATE FUNCTION {table}_only_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT {erased} THEN
    RAISE EXCEPTION 'the ledger only grows: DELETE of {table}' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN OLD;
END $$
"""


def _1_tables(connection: Connection) -> None:
    """The tables, and the triggers that let them only grow."""
    sqlite = connection.dialect.name == "sqlite"
    seq = "seq INTEGER PRIMARY KEY" if sqlite else "seq BIGSERIAL PRIMARY KEY"
    for statement in _V1_TABLES:
        connection.execute(text(statement.format(seq=seq)))
    if not sqlite:
        return  # from version 3 on
    for table, keys in _V1_KEYS.items():
        same = " AND ".join(f"{key} = NEW.{key}" for key in keys)
        if table not in _V1_LINKS:
            same = f"({same}) OR seq = NEW.seq"
        erased = "WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE record_id = OLD.record_id AND kind = OLD.kind) "
        _guard(connection, table, "UPDATE", "")
        _guard(connection, table, "DELETE", erased if table == "payloads" else "")
        _guard(connection, table, "INSERT", f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) ")


_WHY = {
    "UPDATE": "add a row that supersedes this one",
    "DELETE": "erase a record with `metier ledger forget`",
    "INSERT": "this row is there already",
}


def _guard(connection: Connection, table: str, event: str, condition: str) -> None:
    refuse = f"BEGIN SELECT RAISE(ABORT, 'the ledger only grows: {_WHY[event]}'); END"
    name = f"{table}_no_{event.lower()}"
    connection.execute(text(f"CREATE TRIGGER {name} BEFORE {event} ON {table} {condition}{refuse}"))


def _2_indexes(connection: Connection) -> None:
    """Indexes for what runs, reports and lineage ask."""
    for statement in _V2_INDEXES:
        connection.execute(text(statement))


def _3_numbers(connection: Connection) -> None:
    """Links and payloads by number, sorts of feedback, moments; the law on PostgreSQL too."""
    sqlite = connection.dialect.name == "sqlite"
    for index in ("supersedes", "about_episode", "run"):
        connection.execute(text(f"DROP INDEX ix_feedback_{index}"))
    connection.execute(text("DROP INDEX ix_dataset_records_record"))
    for table in ("feedback_about", "dataset_records", "feedback"):
        connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_2"))
        if not sqlite:  # a renamed table keeps the names of its keys, which the new one needs
            connection.execute(text(f"ALTER INDEX {table}_pkey RENAME TO {table}_2_pkey"))
    if not sqlite:
        connection.execute(text("ALTER INDEX feedback_id_key RENAME TO feedback_2_id_key"))
    seq = "seq INTEGER PRIMARY KEY" if sqlite else "seq BIGINT PRIMARY KEY"
    for statement in _V3_TABLES:
        connection.execute(text(statement.format(seq=seq, rowless=" WITHOUT ROWID" if sqlite else "")))
    for statement in _V3_COPY:
        parameters = {"now": now(), "identity": uuid.uuid4().hex}
        connection.execute(text(statement), {k: v for k, v in parameters.items() if f":{k}" in statement})
    for table in ("feedback_about_2", "dataset_records_2", "feedback_2", "payloads"):
        connection.execute(text(f"DROP TABLE {table}"))
    for statement in _V3_INDEXES:
        connection.execute(text(statement))
    if sqlite:
        for table in _V3_KEYS:
            owner = _V3_ERASABLE.get(table)
            _guard(connection, table, "UPDATE", "")
            _guard(connection, table, "DELETE", "" if owner is None else f"WHEN NOT {_erased(owner, table)} ")
            connection.execute(text(insert_guards([table])[table]))
        return
    connection.execute(text(_PG_REFUSE))
    for table in (*(t for t in _V1_KEYS if t not in _REPLACED), *_V3_KEYS):
        owner = _V3_ERASABLE.get(table)
        refuse = "EXECUTE FUNCTION metier_only_grows()"
        connection.execute(text(f"CREATE TRIGGER only_grows BEFORE UPDATE ON {table} FOR EACH ROW {refuse}"))
        connection.execute(text(f"CREATE TRIGGER no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}"))
        if owner is None:
            connection.execute(text(f"CREATE TRIGGER no_delete BEFORE DELETE ON {table} FOR EACH ROW {refuse}"))
            continue
        connection.execute(text(_PG_ONLY_ERASED.format(table=table, erased=_erased(owner, table))))
        check = f"EXECUTE FUNCTION {table}_only_erased()"
        connection.execute(text(f"CREATE TRIGGER no_delete BEFORE DELETE ON {table} FOR EACH ROW {check}"))


_V4_ABOUT = """
INSERT INTO dataset_records (dataset, kind, position, record)
SELECT dataset, 'about', row_number() OVER (PARTITION BY dataset ORDER BY record) - 1, record FROM (
  SELECT DISTINCT held.dataset AS dataset, links.episode AS record
  FROM feedback_about links JOIN dataset_records held ON held.record = links.feedback AND held.kind = 'feedback'
  WHERE NOT EXISTS (
    SELECT 1 FROM dataset_records own
    WHERE own.dataset = held.dataset AND own.kind = 'episode' AND own.record = links.episode
  )
) found
"""


def _4_about(connection: Connection) -> None:
    """The episodes of a dataset, by number, without reading what its feedback says it is about."""
    connection.execute(text(_V4_ABOUT))


def _erased(owner: str, table: str) -> str:
    kind = table.removesuffix("_payloads")
    return (
        f"EXISTS (SELECT 1 FROM erasures e JOIN {owner} t ON t.id = e.record_id"
        f" WHERE t.seq = OLD.seq AND e.kind = '{kind}')"
    )


def insert_guards(tables: Iterable[str]) -> dict[str, str]:
    """The statement that makes the trigger of SQLite against INSERT OR REPLACE, for tables of version 3.

    REPLACE deletes without firing delete triggers. A plain INSERT needs no such guard, so whoever
    inserts very many rows may drop them and make them again within one transaction.
    """
    made = {}
    for table in tables:
        keys = _V3_KEYS[table]
        sames = [f"{key} = NEW.{key}" for key in keys]
        if table in _V3_LINKS:
            sames = [" AND ".join(sames)]
        there = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {same})" for same in sames)
        made[table] = (
            f"CREATE TRIGGER {table}_no_insert BEFORE INSERT ON {table} WHEN {there}"
            f" BEGIN SELECT RAISE(ABORT, 'the ledger only grows: {_WHY['INSERT']}'); END"
        )
    return made


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_1_tables, _2_indexes, _3_numbers, _4_about)
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
