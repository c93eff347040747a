"""The tables of the ledger, as the newest version has them.

Every noun has a table of its own: a running number `seq` (the order of insertion), its
`id`, the columns that are asked for by value, and `body`, the rest of the record as JSON.
What a record *says* (messages, answers, values, reasons) is not in its body but in
`payloads`, which can be erased while the row stays. Membership of datasets and the
episodes that feedback is about are link tables, indexed both ways. What happens to a
record later (a mark, an erasure) is a row of its own.

These definitions are for building queries. The tables are made by `migrations.py`, whose
SQL is frozen; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, MetaData, Table, Text

__all__ = [
    "APPEND_ONLY",
    "checkpoint_datasets",
    "checkpoints",
    "dataset_records",
    "datasets",
    "episode_groups",
    "episodes",
    "erasures",
    "feedback",
    "feedback_about",
    "gates",
    "marks",
    "metadata",
    "payloads",
    "profiles",
    "runs",
    "schema_version",
    "suites",
    "tasks",
]

metadata = MetaData()


def _text(name: str) -> Column[str]:
    return Column(name, Text)


def _record(name: str, *columns: Column[str] | Column[int] | Column[float]) -> Table:
    return Table(name, metadata, Column("seq", Integer, primary_key=True), _text("id"), *columns, _text("body"))


schema_version = Table(
    "schema_version", metadata, Column("version", Integer, primary_key=True), Column("applied_at", Float)
)

runs = _record("runs", Column("created_at", Float))
tasks = _record("tasks", _text("family"), _text("kind"), _text("split"))
suites = _record("suites", _text("name"), _text("version"))
episode_groups = _record("episode_groups", _text("task_id"))
episodes = _record(
    "episodes",
    _text("run_id"),
    _text("task_id"),
    _text("stage"),
    _text("split"),
    _text("group_id"),
    _text("checkpoint"),
    Column("step", Integer),
    _text("shard"),  # file of its token arrays, or NULL where it has none
    Column("created_at", Float),
)
feedback = _record(
    "feedback",
    _text("run_id"),
    _text("criterion"),
    _text("kind"),
    _text("source_kind"),
    _text("source_name"),
    _text("source_version"),
    _text("status"),
    _text("supersedes"),
    Column("due_at", Float),
    Column("created_at", Float),
)
datasets = _record("datasets", _text("run_id"), _text("stage"), _text("kind"), _text("name"))
checkpoints = _record("checkpoints", _text("run_id"), _text("stage"), Column("step", Integer), _text("parent"))
profiles = _record("profiles", _text("checkpoint"))
gates = _record("gates", _text("checkpoint"))

feedback_about = Table(
    "feedback_about",
    metadata,
    Column("feedback_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    _text("episode_id"),
)
dataset_records = Table(
    "dataset_records",
    metadata,
    Column("dataset_id", Text, primary_key=True),
    Column("kind", Text, primary_key=True),  # feedback, episode or task
    Column("position", Integer, primary_key=True),
    _text("record_id"),
)
checkpoint_datasets = Table(
    "checkpoint_datasets",
    metadata,
    Column("checkpoint_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    _text("dataset_id"),
)

payloads = Table(
    "payloads", metadata, Column("seq", Integer, primary_key=True), _text("kind"), _text("record_id"), _text("body")
)
erasures = Table(
    "erasures",
    metadata,
    Column("seq", Integer, primary_key=True),
    _text("kind"),
    _text("record_id"),
    _text("why"),
    Column("created_at", Float),
)
marks = Table(
    "marks",
    metadata,
    Column("seq", Integer, primary_key=True),
    _text("record_id"),
    _text("mark"),
    _text("why"),
    Column("created_at", Float),
)

Index("ix_episodes_run", episodes.c.run_id, episodes.c.stage)
Index("ix_episodes_task", episodes.c.task_id)
Index("ix_episodes_group", episodes.c.group_id)
Index("ix_feedback_run", feedback.c.run_id, feedback.c.criterion)
Index("ix_feedback_supersedes", feedback.c.supersedes)
Index("ix_feedback_about_episode", feedback_about.c.episode_id)
Index("ix_dataset_records_record", dataset_records.c.record_id, dataset_records.c.kind)
Index("ix_datasets_run", datasets.c.run_id)
Index("ix_checkpoints_run", checkpoints.c.run_id)
Index("ix_checkpoints_parent", checkpoints.c.parent)
Index("ix_checkpoint_datasets_dataset", checkpoint_datasets.c.dataset_id)
Index("ix_marks_record", marks.c.record_id)

APPEND_ONLY = tuple(table for table in metadata.sorted_tables if table is not payloads)
"""Tables whose rows are never updated or deleted; `payloads` rows may go once an erasure names them."""
