"""The tables of the ledger, as the newest version has them.

Every noun has a table of its own: a running number `seq` (the order of insertion, from 1
and without gaps), its `id`, the columns that are asked for by value, and `body`, the rest
of the record as JSON. What a record *says* (messages, answers, values, reasons) is not in
its body but in a payload table, under the same `seq`, which can be erased while the row
stays. Membership of datasets and the episodes that feedback is about are link tables of
such numbers; which episodes a statement is about, in order, is in its body too. What
happens to a record later (a mark, an erasure) is a row of its own.

Feedback is the table that grows to millions. What many statements share (run, criterion,
kind, source, status) is one row of `feedback_sorts`, which a statement names by number:
rows stay small, and one index answers every question by value.

`moments` has a row for each transaction that added something: when, and how far each table
had grown. Time never goes back there, whatever the writers' clocks say.

These definitions are for building queries. The tables are made by `migrations.py`, whose
SQL is frozen; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, Table, Text

__all__ = [
    "GROWING",
    "PAYLOADS",
    "checkpoint_datasets",
    "checkpoints",
    "dataset_records",
    "datasets",
    "episode_groups",
    "episode_payloads",
    "episodes",
    "erasures",
    "feedback",
    "feedback_about",
    "feedback_payloads",
    "feedback_sorts",
    "gates",
    "identity",
    "marks",
    "metadata",
    "moments",
    "profiles",
    "runs",
    "schema_version",
    "suites",
    "task_payloads",
    "tasks",
]

metadata = MetaData()


def _text(name: str) -> Column[str]:
    return Column(name, Text)


def _record(name: str, *columns: Column[Any]) -> Table:
    return Table(name, metadata, _seq(), _text("id"), *columns, _text("body"))


def _seq() -> Column[int]:
    return Column("seq", BigInteger, primary_key=True, autoincrement=False)


def _payloads(name: str) -> Table:
    return Table(name, metadata, _seq(), _text("body"))


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
feedback_sorts = Table(
    "feedback_sorts",
    metadata,
    _seq(),
    _text("run_id"),
    _text("criterion"),
    _text("kind"),
    _text("source_kind"),
    _text("source_name"),
    _text("source_version"),
    _text("status"),
)
feedback = _record(
    "feedback",
    Column("sort", BigInteger),  # seq of its row in feedback_sorts
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
    Column("episode", BigInteger, primary_key=True),
    Column("feedback", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),  # in the statement's `about`
)
dataset_records = Table(
    "dataset_records",
    metadata,
    Column("dataset", BigInteger, primary_key=True),
    # feedback, episode or task, as in the manifest; about: an episode that its feedback is about and it does not name
    Column("kind", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("record", BigInteger),
)
checkpoint_datasets = Table(
    "checkpoint_datasets",
    metadata,
    Column("checkpoint_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    _text("dataset_id"),
)

task_payloads = _payloads("task_payloads")
episode_payloads = _payloads("episode_payloads")
feedback_payloads = _payloads("feedback_payloads")

erasures = Table(
    "erasures",
    metadata,
    _seq(),
    _text("kind"),
    _text("record_id"),
    _text("why"),
    Column("created_at", Float),
)
marks = Table(
    "marks",
    metadata,
    _seq(),
    _text("record_id"),
    _text("mark"),
    _text("why"),
    Column("created_at", Float),
)

GROWING = (runs, tasks, suites, episode_groups, episodes, feedback, datasets, checkpoints, profiles, gates, marks)
"""Tables whose growth `moments` keeps, each in a column of its name."""

moments = Table(
    "moments", metadata, _seq(), Column("at", Float), *(Column(table.name, BigInteger) for table in GROWING)
)
identity = Table("identity", metadata, Column("id", Text, primary_key=True))  # one row, made with the ledger

Index("ix_episodes_run", episodes.c.run_id, episodes.c.seq)
Index("ix_episodes_task", episodes.c.task_id)
Index("ix_episodes_group", episodes.c.group_id)
Index("ix_feedback_sort", feedback.c.sort, feedback.c.seq)
Index("ix_feedback_supersedes", feedback.c.supersedes)
Index("ix_dataset_records_record", dataset_records.c.record, dataset_records.c.kind)
Index("ix_datasets_run", datasets.c.run_id)
Index("ix_checkpoints_run", checkpoints.c.run_id)
Index("ix_checkpoints_parent", checkpoints.c.parent)
Index("ix_checkpoint_datasets_dataset", checkpoint_datasets.c.dataset_id)
Index("ix_marks_record", marks.c.record_id)

PAYLOADS = {"task": task_payloads, "episode": episode_payloads, "feedback": feedback_payloads}
"""What records say, by the kind of record; the only rows that may go, once an erasure names them."""
