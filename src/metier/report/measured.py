"""Who was measured in a run, on what, and with what success: what every page about runs starts from.

Evaluate stages are taken in the order of the run. Success is the feedback on criterion "success"; where several
verifiers spoke, all must agree, and where one could not, the episode is unscored: left out and counted. Tasks are
paired by id; tasks of one `Task.cluster` may agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from metier.feedback.verify import SUCCESS
from metier.records.types import Episode, Feedback, Run, Task
from metier.records.values import lowest_by_episode
from metier.report.data import Change, ModelInfo
from metier.report.wording import label_of
from metier.stats.intervals import Interval, share_interval
from metier.stats.paired import paired

__all__ = [
    "MeasuredModel",
    "change_of",
    "in_range",
    "is_right",
    "measured_models",
    "share_of",
    "splits_of",
    "text_losses",
]

LADDER = (
    "heldout",
    "unseen_tool",
    "changed_policy",
    "unseen_desk",
    "general.chat",
    "general.instructions",
    "general.arithmetic",
)


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One model's evaluation: its episodes and their values by split, task and attempt."""

    info: ModelInfo
    episodes: tuple[Episode, ...]
    values: Mapping[str, Mapping[str, tuple[float | None, ...]]]  # split -> task id -> by attempt


def measured_models(run: Run, episodes: Sequence[Episode], feedback: Sequence[Feedback]) -> list[MeasuredModel]:
    """The models that the run's evaluate stages measured, in their order; episodes and feedback are the run's."""
    verdicts = lowest_by_episode(row for row in feedback if row.criterion == SUCCESS)
    by_stage: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_stage.setdefault(episode.stage, []).append(episode)
    out = []
    for stage in run.stages:
        rows = by_stage.get(stage.name)
        if stage.kind != "evaluate" or not rows:
            continue
        rows.sort(key=lambda e: e.index)
        values: dict[str, dict[str, tuple[float | None, ...]]] = {}
        for episode in rows:
            split = values.setdefault(episode.split, {})
            split[episode.task_id] = (*split.get(episode.task_id, ()), verdicts.get(episode.id))
        measured = stage.inputs[0] if stage.inputs else stage.name
        info = ModelInfo(
            stage=stage.name,
            measured=measured,
            label=label_of(measured),
            checkpoint=rows[0].weights.checkpoint,
            episodes=len(rows),
            unscored=sum(verdicts.get(episode.id) is None for episode in rows),
        )
        out.append(MeasuredModel(info=info, episodes=tuple(rows), values=values))
    return _told_apart(out)


def _told_apart(measured: Sequence[MeasuredModel]) -> list[MeasuredModel]:
    """Where several stages measured the same model, its labels name the stage as well."""
    times = Counter(one.info.label for one in measured)
    return [
        one
        if times[one.info.label] == 1
        else replace(one, info=replace(one.info, label=f"{one.info.label}, {one.info.stage.removeprefix('evaluate-')}"))
        for one in measured
    ]


def splits_of(measured: Sequence[MeasuredModel]) -> list[str]:
    """The splits that were measured, the ladder's first and in its order."""
    seen = dict.fromkeys(split for one in measured for split in one.values)
    return [split for split in LADDER if split in seen] + sorted(split for split in seen if split not in LADDER)


def share_of(one: MeasuredModel, split: str, tasks: Mapping[str, Task], among: Iterable[str] | None = None) -> Interval:
    """The share of a model's attempts on a split that succeeded; on the tasks `among` alone, where given."""
    by_task = one.values.get(split, {})
    picked = by_task if among is None else [task_id for task_id in among if task_id in by_task]
    rows = [(value, tasks[task_id].cluster) for task_id in picked for value in by_task[task_id]]
    return share_interval([in_range(value) for value, _ in rows], clusters=[cluster for _, cluster in rows])


def change_of(
    measured: Sequence[MeasuredModel],
    before: int,
    after: int,
    split: str,
    tasks: Mapping[str, Task],
    among: Iterable[str] | None = None,
) -> Change:
    """The paired difference of two models on a split."""
    a, b = measured[after].values.get(split, {}), measured[before].values.get(split, {})
    if among is not None:
        kept = set(among)
        a, b = {k: v for k, v in a.items() if k in kept}, {k: v for k, v in b.items() if k in kept}
    clusters = {task_id: tasks[task_id].cluster for task_id in [*a, *b]}
    return Change(before=before, after=after, paired=paired(a, b, clusters=clusters))


def is_right(value: float | None) -> bool:
    """Whether a verdict is full success."""
    return value is not None and value >= 1.0


def text_losses(
    one: MeasuredModel, episodes: Sequence[Episode], feedback: Sequence[Feedback]
) -> dict[str, list[float]]:
    """The loss of held-out text under a model, by passage, in nats per token; empty where it was not read."""
    loss = {f.about[0]: float(f.value) for f in feedback if f.criterion == "text_loss" and f.value is not None}
    stage = f"{one.info.stage}/text"
    return {e.task_id: [loss[e.id]] for e in episodes if e.stage == stage and e.id in loss}


def in_range(value: float | None) -> float | None:
    """A verdict as a part of a share: cut to 0 to 1."""
    return None if value is None else min(1.0, max(0.0, value))
