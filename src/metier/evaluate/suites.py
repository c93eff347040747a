"""Suites to numbers: run a policy on pinned tasks and keep what the verifiers say.

Episodes are run in chunks of a fixed composition and each chunk is kept in the ledger as
soon as it is done, so a crash costs one chunk, and the numbers do not depend on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metier.base.executor import Executor
from metier.base.seeds import derive_seed
from metier.feedback.verify import verify_episodes
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Sampling, Task, Weights
from metier.records.values import lowest_by_episode
from metier.rollout.episodes import Plan, ToolLimits, kept_episodes, plan_id, run_episodes
from metier.rollout.policy import Policy
from metier.stats.intervals import share_interval

__all__ = ["evaluate", "successes", "summary"]


def evaluate(
    ledger: Ledger,
    policy: Policy,
    splits: Mapping[str, Sequence[Task]],
    *,
    sampling: Sampling,
    weights: Weights,
    run_id: str,
    stage: str,
    seed: int,
    chunk: int,
    executor: Executor,
    on_chunk: Callable[[int, int, Sequence[Episode], Sequence[Feedback]], None],
    tools: ToolLimits | None = None,
) -> dict[str, list[float | None]]:
    """Success of each task by split, in the order of the tasks; None where it is unscored.

    `on_chunk(done, total, episodes, feedback)` is told of each new chunk. Chunks that the
    ledger already holds for this run and stage are not run again.
    """
    tasks = [task for split in splits.values() for task in split]
    ledger.add_tasks(tasks)
    by_id = {task.id: task for task in tasks}
    kept = {episode.id for episode in ledger.episodes(run_id=run_id, stage=stage)}
    judged = {f.about[0] for f in ledger.feedback(run_id=run_id, about=sorted(kept))} if kept else set()
    for start in range(0, len(tasks), chunk):
        part = tasks[start : start + chunk]
        plans = [
            Plan(id=plan_id(run_id, stage, task.id), task=task, seed=derive_seed(seed, stage, task.id)) for task in part
        ]
        if all(plan.id in judged for plan in plans):
            continue
        draw = functools.partial(
            run_episodes,
            policy,
            plans,
            sampling=sampling,
            weights=weights,
            run_id=run_id,
            stage=stage,
            tools=tools,
        )
        episodes = kept_episodes(ledger, plans, draw)
        feedback = verify_episodes(by_id, episodes, executor, run_id=run_id)
        ledger.add_feedback(feedback)
        on_chunk(min(start + chunk, len(tasks)), len(tasks), episodes, feedback)
    found = successes(ledger, run_id, stage)
    return {name: [found.get(plan_id(run_id, stage, task.id)) for task in split] for name, split in splits.items()}


def successes(ledger: Ledger, run_id: str, stage: str) -> dict[str, float | None]:
    """Full success (1 or 0, None where unscored) of every episode of a stage."""
    episodes = [episode.id for episode in ledger.episodes(run_id=run_id, stage=stage)]
    values = lowest_by_episode(ledger.feedback(run_id=run_id, about=episodes))
    return {episode: None if (v := values.get(episode)) is None else float(v == 1.0) for episode in episodes}


def summary(values: Sequence[float | None], clusters: Sequence[str] | None = None) -> dict[str, Any]:
    """Share of successes with its 95 % interval, and how many were unscored."""
    interval = share_interval(values, clusters=clusters)
    return {
        "success": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "unscored": sum(v is None for v in values),
    }
