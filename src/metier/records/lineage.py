"""Walking the ledger both ways: what made these weights, and what did this record reach.

`why` goes back from a checkpoint to the base model, and from each checkpoint through its
datasets to the exact feedback rows, with their sources and versions. `reached` goes
forward from a task, an episode or a statement of feedback to every dataset that holds it
and every checkpoint trained on one, or descended from one that was. `forget` erases the
record and marks all that as stale, in one transaction.

What is not followed: episodes that a reached checkpoint sampled, and so datasets made of
those. Weights do remember, but following them would mark everything after the first
training run; whoever needs that strictness forgets by `Episode.weights`. Files outside
the ledger (checkpoint folders, reports, exports) are named by the marks, not deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select, union

from metier.base.errors import LedgerError
from metier.records.ledger import Ledger
from metier.records.rows import feedback_ids_about, mark_stale, rows_among
from metier.records.schema import (
    checkpoint_datasets,
    checkpoints,
    dataset_records,
    episodes,
    feedback,
    feedback_about,
    tasks,
)
from metier.records.types import Checkpoint, Feedback, Source, Status, Weights
from metier.records.values import lowest, mean_score

__all__ = [
    "CheckpointLineage",
    "DatasetLineage",
    "EpisodeSlice",
    "Evidence",
    "FeedbackSlice",
    "Lineage",
    "Reach",
    "TaskSlice",
    "behind",
    "forget",
    "reached",
    "why",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackSlice:
    """The statements of one source on one criterion, of one status, that a dataset holds."""

    source: Source
    criterion: str
    status: Status
    feedback_ids: tuple[str, ...]
    mean: float | None  # over scores; None where nothing was scored

    @property
    def n(self) -> int:
        """How many statements."""
        return len(self.feedback_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSlice:
    """How many of a dataset's episodes were sampled from these weights."""

    weights: Weights
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSlice:
    """How many of a dataset's tasks are of this family and split."""

    family: str
    split: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetLineage:
    """What a dataset was made of.

    Its episodes are those in the manifest and those that its feedback is about; its tasks
    are those in the manifest and those of its episodes.
    """

    id: str
    kind: str
    name: str
    run_id: str
    stage: str
    query: Mapping[str, Any]
    stale: str | None
    superseded: int  # of its feedback rows, how many have been corrected or retracted since
    feedback: tuple[FeedbackSlice, ...]
    episodes: tuple[EpisodeSlice, ...]
    tasks: tuple[TaskSlice, ...]

    @property
    def n_feedback(self) -> int:
        """How many statements of feedback."""
        return sum(part.n for part in self.feedback)

    @property
    def n_episodes(self) -> int:
        """How many episodes."""
        return sum(part.n for part in self.episodes)

    @property
    def n_tasks(self) -> int:
        """How many tasks."""
        return sum(part.n for part in self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLineage:
    """A checkpoint and the datasets that it was trained on."""

    checkpoint: Checkpoint
    datasets: tuple[DatasetLineage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The chain of checkpoints, from the one asked about back to the first."""

    checkpoints: tuple[CheckpointLineage, ...]
    base: str | None  # the parent of the first, where it is not in the ledger: a model name

    @property
    def stale(self) -> bool:
        """Whether anything in the chain is marked."""
        return any(c.checkpoint.stale or any(d.stale for d in c.datasets) for c in self.checkpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one record went."""

    record_id: str
    kind: str  # task, episode or feedback
    records: tuple[str, ...]  # the record and what quotes it: a task's episodes, the feedback about an episode
    datasets: tuple[str, ...]
    checkpoints: tuple[str, ...]


def why(ledger: Ledger, checkpoint_id: str) -> Lineage:
    """What made these weights. Raises `LedgerError` for a checkpoint that the ledger does not know."""
    chain: list[CheckpointLineage] = []
    known = {checkpoint.id: checkpoint for checkpoint in ledger.checkpoints()}
    ahead: str | None = ledger.checkpoint(checkpoint_id).id
    seen: set[str] = set()
    while ahead in known and ahead not in seen:
        seen.add(ahead)
        checkpoint = known[ahead]
        datasets = tuple(_dataset(ledger, dataset_id) for dataset_id in checkpoint.dataset_ids)
        chain.append(CheckpointLineage(checkpoint=checkpoint, datasets=datasets))
        ahead = checkpoint.parent
    return Lineage(checkpoints=tuple(chain), base=None if ahead in seen else ahead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One episode of a measurement and what was said about it."""

    episode_id: str
    task_id: str
    split: str
    value: float | None  # the lowest of its scores; None where it is unscored
    feedback: tuple[Feedback, ...]


def behind(ledger: Ledger, run_id: str, stage: str, split: str | None = None) -> list[Evidence]:
    """The rows that a stage's figures are made of. Raises `LedgerError` where there are none."""
    episodes = ledger.episodes(run_id=run_id, stage=stage, split=split)
    if not episodes:
        what = f"stage {stage!r}" + (f", split {split!r}" if split else "")
        raise LedgerError(f"run {run_id} holds no episodes of {what}; metier runs show {run_id} names what it measured")
    about: dict[str, list[Feedback]] = {}
    for row in ledger.feedback(run_id=run_id, about=[episode.id for episode in episodes]):
        about.setdefault(row.about[0], []).append(row)
    found = []
    for episode in episodes:
        rows = tuple(about.get(episode.id, ()))
        found.append(
            Evidence(
                episode_id=episode.id, task_id=episode.task_id, split=episode.split, value=lowest(rows), feedback=rows
            )
        )
    return found


def reached(ledger: Ledger, record_id: str) -> Reach:
    """The datasets and checkpoints that a task, an episode or a statement of feedback went into."""
    with ledger.reading() as connection:
        return _reach(connection, record_id)


def forget(ledger: Ledger, record_id: str, *, why: str) -> Reach:
    """Erase a record and what quotes it, and mark as stale all that it reached.

    Forgetting again changes nothing and names the same reach.
    """
    with ledger.writing() as connection:
        reach = _reach(connection, record_id)
        ledger.erase_in(connection, reach.records, why=why)
        mark_stale(connection, (*reach.datasets, *reach.checkpoints), [f"{record_id} was forgotten: {why}"])
    ledger.flush_log()
    return reach


def _reach(connection: Connection, record_id: str) -> Reach:
    kind = _kind(connection, record_id)
    members: dict[str, list[str]] = {"task": [], "episode": [], "feedback": []}
    members[kind].append(record_id)
    if kind == "task":
        rows = connection.execute(select(episodes.c.id).where(episodes.c.task_id == record_id).order_by(episodes.c.seq))
        members["episode"] = list(rows.scalars())
    if kind != "feedback":
        members["feedback"] = feedback_ids_about(connection, members["episode"])
    dataset_ids: dict[str, None] = {}
    for member_kind, ids in members.items():
        query = select(dataset_records.c.dataset_id).where(dataset_records.c.kind == member_kind).distinct()
        for row in rows_among(connection, query, dataset_records.c.record_id, ids):
            dataset_ids[row.dataset_id] = None
    return Reach(
        record_id=record_id,
        kind=kind,
        records=tuple(dict.fromkeys(record for ids in members.values() for record in ids)),
        datasets=tuple(dataset_ids),
        checkpoints=_trained_on(connection, list(dataset_ids)),
    )


def _kind(connection: Connection, record_id: str) -> str:
    for kind, table in (("task", tasks), ("episode", episodes), ("feedback", feedback)):
        if connection.execute(select(table.c.id).where(table.c.id == record_id)).first() is not None:
            return kind
    raise LedgerError(f"there is no task, episode or feedback {record_id!r} in the ledger; nothing was done")


def _trained_on(connection: Connection, dataset_ids: list[str]) -> tuple[str, ...]:
    """Checkpoints trained on any of these datasets, and all their descendants."""
    query = select(checkpoint_datasets.c.checkpoint_id)
    found: dict[str, None] = {}
    ahead = [row.checkpoint_id for row in rows_among(connection, query, checkpoint_datasets.c.dataset_id, dataset_ids)]
    while ahead:
        found.update(dict.fromkeys(ahead))
        children = rows_among(connection, select(checkpoints.c.id), checkpoints.c.parent, ahead)
        ahead = [row.id for row in children if row.id not in found]
    return tuple(found)


def _dataset(ledger: Ledger, dataset_id: str) -> DatasetLineage:
    dataset = ledger.dataset(dataset_id)
    slices: dict[tuple[Source, str, Status], list[Feedback]] = {}
    for statement in ledger.feedback(ids=dataset.feedback_ids, current=False):
        slices.setdefault((statement.source, statement.criterion, statement.status), []).append(statement)
    with ledger.reading() as connection:
        superseded = connection.execute(_superseded(dataset_id)).scalar_one()
        by_weights = connection.execute(_by_weights(dataset_id)).all()
        by_family = connection.execute(_by_family(dataset_id)).all()
    return DatasetLineage(
        id=dataset.id,
        kind=dataset.kind,
        name=dataset.name,
        run_id=dataset.run_id,
        stage=dataset.stage,
        query=dataset.query,
        stale=dataset.stale,
        superseded=superseded,
        feedback=tuple(
            FeedbackSlice(
                source=source,
                criterion=criterion,
                status=status,
                feedback_ids=tuple(statement.id for statement in part),
                mean=mean_score(part).mean,
            )
            for (source, criterion, status), part in slices.items()
        ),
        episodes=tuple(EpisodeSlice(weights=Weights(checkpoint=row[0], step=row[1]), n=row[2]) for row in by_weights),
        tasks=tuple(TaskSlice(family=row[0], split=row[1], n=row[2]) for row in by_family),
    )


def _held(dataset_id: str, kind: str) -> Select[tuple[str | None]]:
    links = dataset_records
    return select(links.c.record_id).where(links.c.dataset_id == dataset_id, links.c.kind == kind)


def _episode_ids(dataset_id: str) -> Select[Any]:
    about = select(feedback_about.c.episode_id).where(feedback_about.c.feedback_id.in_(_held(dataset_id, "feedback")))
    return select(union(_held(dataset_id, "episode"), about).subquery())


def _superseded(dataset_id: str) -> Select[Any]:
    query = select(func.count(feedback.c.supersedes.distinct()))
    return query.where(feedback.c.supersedes.in_(_held(dataset_id, "feedback")))


def _by_weights(dataset_id: str) -> Select[Any]:
    keys = (episodes.c.checkpoint, episodes.c.step)
    query = select(*keys, func.count()).where(episodes.c.id.in_(_episode_ids(dataset_id)))
    return query.group_by(*keys).order_by(func.min(episodes.c.seq))


def _by_family(dataset_id: str) -> Select[Any]:
    keys = (tasks.c.family, tasks.c.split)
    of_episodes = select(episodes.c.task_id).where(episodes.c.id.in_(_episode_ids(dataset_id)))
    ids = select(union(_held(dataset_id, "task"), of_episodes).subquery())
    query = select(*keys, func.count()).where(tasks.c.id.in_(ids))
    return query.group_by(*keys).order_by(*keys)
