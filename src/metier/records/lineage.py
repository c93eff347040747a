"""Walking the ledger both ways: what made these weights, and what did this record reach.

`why` goes back from a checkpoint to the base model, and from each checkpoint through its
datasets to the exact feedback rows, with their sources and versions. `reached` goes
forward from a task, an episode or a statement of feedback to every dataset that holds it
and every checkpoint trained on one, or descended from one that was. What is to be
forgotten goes the same way (`forgetting.py`).

What is not followed: episodes that a reached checkpoint sampled, and so datasets made of
those. Weights do remember, but following them would mark everything after the first
training run; whoever needs that strictness forgets by `Episode.weights`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Select, and_, func, select

from metier.base.errors import LedgerError
from metier.records.rows import feedback_ids_about, numbers_of, rows_among, stale_reasons
from metier.records.schema import (
    checkpoint_datasets,
    checkpoints,
    dataset_records,
    datasets,
    episodes,
    feedback,
    feedback_payloads,
    feedback_sorts,
    marks,
    tasks,
)
from metier.records.types import Checkpoint, Feedback, Source, Status, Weights
from metier.records.values import lowest
from metier.records.view import LedgerView

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
    "kind_of",
    "reach",
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
    """How far a record, or all records of a person or source, went."""

    record_id: str
    kind: str  # task, episode or feedback; person or source
    # The records and what quotes them: a task's episodes, tasks drafted from an episode, the feedback about one.
    records: tuple[str, ...]
    datasets: tuple[str, ...]
    checkpoints: tuple[str, ...]


def why(ledger: LedgerView, checkpoint_id: str) -> Lineage:
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


def behind(ledger: LedgerView, run_id: str, stage: str, split: str | None = None) -> list[Evidence]:
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


def reached(ledger: LedgerView, record_id: str) -> Reach:
    """The datasets and checkpoints that a task, an episode or a statement of feedback went into."""
    with ledger.reading() as connection:
        kind = kind_of(connection, record_id)
        if kind is None:
            raise LedgerError(f"there is no task, episode or feedback {record_id!r} in the ledger; nothing was done")
        return reach(connection, record_id, kind, {kind: [record_id]})


def reach(connection: Connection, name: str, kind: str, start: Mapping[str, Sequence[str]]) -> Reach:
    """How far these records went, with what quotes them; `start` is ids by kind of record.

    A task quotes the episode that it was drafted from, an episode its task, and feedback what it is about.
    """
    members = {each: list(start.get(each, ())) for each in ("task", "episode", "feedback")}
    query = select(episodes.c.id).order_by(episodes.c.seq)
    new, members["task"] = members["task"] + _drafted_from(connection, set(members["episode"])), []
    while new:  # a task's episodes may have been drafted from in turn
        members["task"] += new
        spoken = [row.id for row in rows_among(connection, query, episodes.c.task_id, new)]
        members["episode"] += spoken
        new = [one for one in _drafted_from(connection, set(spoken)) if one not in members["task"]]
    members["feedback"] += feedback_ids_about(connection, members["episode"])
    found: dict[int, str] = {}
    for table, each in ((tasks, "task"), (episodes, "episode"), (feedback, "feedback")):
        links = and_(dataset_records.c.record == table.c.seq, dataset_records.c.kind == each)
        query = select(datasets.c.seq, datasets.c.id).join(dataset_records, dataset_records.c.dataset == datasets.c.seq)
        query = query.join(table, links).distinct()
        found.update((row.seq, row.id) for row in rows_among(connection, query, table.c.id, members[each]))
    held = [found[seq] for seq in sorted(found)]
    return Reach(
        record_id=name,
        kind=kind,
        records=tuple(dict.fromkeys(record for ids in members.values() for record in ids)),
        datasets=tuple(held),
        checkpoints=_trained_on(connection, held),
    )


def _drafted_from(connection: Connection, episode_ids: set[str]) -> list[str]:
    """Tasks that were made of these episodes. Few are drafted, so their bodies are searched as text first."""
    if not episode_ids:
        return []
    query = select(tasks.c.id, tasks.c.body).where(tasks.c.body.contains('"drafted"')).order_by(tasks.c.seq)
    held = ((row.id, json.loads(row.body).get("meta", {})) for row in connection.execute(query))
    return [task_id for task_id, meta in held if meta.get("drafted") and meta.get("episode") in episode_ids]


def kind_of(connection: Connection, record_id: str) -> str | None:
    """Whether this is a task, an episode or feedback, or nothing of these."""
    for kind, table in (("task", tasks), ("episode", episodes), ("feedback", feedback)):
        if connection.execute(select(table.c.id).where(table.c.id == record_id)).first() is not None:
            return kind
    return None


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


def _dataset(ledger: LedgerView, dataset_id: str) -> DatasetLineage:
    """What a dataset holds, counted where it lies: a dataset may hold hundreds of thousands of rows."""
    with ledger.reading() as connection:
        held = connection.execute(select(datasets).where(datasets.c.id == dataset_id)).one()
        stale = stale_reasons(connection, [dataset_id], ledger.within(marks)).get(dataset_id)
        later = ledger.within(feedback)
        superseded = connection.execute(_superseded(held.seq).where(*later)).scalar_one()
        slices: dict[tuple[Source, str, Status], tuple[list[str], list[float]]] = {}
        of_sort: dict[int, tuple[bool, tuple[list[str], list[float]]]] = {}  # whether it has a mean, and its slice
        for sort in connection.execute(select(feedback_sorts)).all():
            source = Source(kind=sort.source_kind, name=sort.source_name, version=sort.source_version)
            part = slices.setdefault((source, sort.criterion, cast(Status, sort.status)), ([], []))
            of_sort[sort.seq] = (sort.kind == "score" and sort.status == "scored", part)
        said = connection.execute(_said(held.seq)).all()
        for number, record_id in said:
            of_sort[number][1][0].append(record_id)
        scored = [number for number in {row.sort for row in said} if of_sort[number][0]]
        for row in rows_among(connection, _payloads(held.seq), feedback.c.sort, scored):
            if (value := json.loads(row.body).get("value")) is not None:
                of_sort[row.sort][1][1].append(float(value))
        by_weights, task_ids = _by_weights(connection, held.seq)
        by_family = _by_family(connection, held.seq, task_ids)
    return DatasetLineage(
        id=dataset_id,
        kind=held.kind,
        name=held.name,
        run_id=held.run_id,
        stage=held.stage,
        query=json.loads(held.body).get("query", {}),
        stale=stale,
        superseded=superseded,
        feedback=tuple(
            FeedbackSlice(
                source=source,
                criterion=criterion,
                status=status,
                feedback_ids=tuple(ids),
                mean=sum(values) / len(values) if values else None,
            )
            for (source, criterion, status), (ids, values) in slices.items()
            if ids
        ),
        episodes=tuple(EpisodeSlice(weights=Weights(checkpoint=row[0], step=row[1]), n=row[2]) for row in by_weights),
        tasks=tuple(TaskSlice(family=row[0], split=row[1], n=row[2]) for row in by_family),
    )


def _said(dataset: int) -> Select[Any]:
    """Sort and id of the dataset's statements, in the order in which they were added."""
    query = select(feedback.c.sort, feedback.c.id)
    return query.where(feedback.c.seq.in_(_held(dataset, "feedback"))).order_by(feedback.c.seq)


def _payloads(dataset: int) -> Select[Any]:
    """Sort and payload of those statements, likewise."""
    payload = feedback_payloads
    query = select(feedback.c.sort, payload.c.body).join(payload, payload.c.seq == feedback.c.seq)
    return query.where(feedback.c.seq.in_(_held(dataset, "feedback"))).order_by(feedback.c.seq)


def _held(dataset: int, *kinds: str) -> Select[Any]:
    links = dataset_records
    return select(links.c.record).where(links.c.dataset == dataset, links.c.kind.in_(kinds))


def _superseded(dataset: int) -> Select[Any]:
    """From what supersedes anything, which is little, to what is in the dataset."""
    older, links = feedback.alias("older"), dataset_records
    query = select(func.count(feedback.c.supersedes.distinct())).join(older, older.c.id == feedback.c.supersedes)
    query = query.join(links, and_(links.c.record == older.c.seq, links.c.kind == "feedback"))
    return query.where(feedback.c.supersedes.is_not(None), links.c.dataset == dataset)


def _by_weights(connection: Connection, dataset: int) -> tuple[list[tuple[str, int, int]], list[str]]:
    """How many episodes each weights spoke, in the order in which they first did, and the episodes' tasks: of those
    in the manifest, and of those that its feedback is about."""
    keys = (episodes.c.checkpoint, episodes.c.step, episodes.c.task_id)
    among = episodes.c.seq.in_(_held(dataset, "episode", "about"))
    query = select(*keys, func.count()).where(among).group_by(*keys).order_by(func.min(episodes.c.seq))
    counts: dict[tuple[str, int], int] = {}
    of_tasks: dict[str, None] = {}
    for checkpoint, step, task_id, n in connection.execute(query).all():
        counts[checkpoint, step] = counts.get((checkpoint, step), 0) + n
        of_tasks[task_id] = None
    return [(checkpoint, step, n) for (checkpoint, step), n in counts.items()], list(of_tasks)


def _by_family(connection: Connection, dataset: int, task_ids: list[str]) -> list[tuple[str, str, int]]:
    """How many tasks of each family and split: those in the manifest, and these."""
    numbers = set(connection.execute(_held(dataset, "task")).scalars())
    numbers.update(numbers_of(connection, tasks, task_ids).values())
    query = select(tasks.c.family, tasks.c.split)
    counts = Counter((row.family, row.split) for row in rows_among(connection, query, tasks.c.seq, sorted(numbers)))
    return [(family, split, n) for (family, split), n in sorted(counts.items())]
