"""Suites to numbers: run a policy on pinned tasks and keep what the verifiers say.

Episodes are run in chunks of a fixed composition and each chunk is kept in the ledger as
soon as it is done, so a crash costs one chunk, and the numbers do not depend on it. A task's
second attempt has an id and a seed of its own, so more repeats go on from fewer. What the
ledger holds for a run and stage is never run again, which is also how results are cached: an
evaluation whose run id is made of everything that its results depend on (`evaluation.py`)
finds them there.

A budget ends an evaluation between two chunks; what was not run is missing, not zero. What it
does not protect against: tools and users whose answers change from day to day.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metier.base.clock import monotonic
from metier.base.errors import DataError
from metier.base.executor import Executor
from metier.base.seeds import derive_seed
from metier.feedback.verify import verify_episodes
from metier.records.ledger import Ledger
from metier.records.lineage import why
from metier.records.types import Cost, Episode, Feedback, Sampling, Task, Weights
from metier.records.values import Place, last_tries, lowest_by_episode
from metier.records.view import LedgerView
from metier.rollout.episodes import Plan, ToolLimits, plan_id, run_episodes
from metier.rollout.policy import Policy
from metier.stats.intervals import share_interval

__all__ = ["Budget", "evaluate", "refuse_trained", "summary"]

_FIRST = 8  # episodes that tell what one takes, where that is bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that an evaluation may take. What it did before a stop counts, but for the seconds.

    An episode is begun where the dearest so far would still fit; of the first few, nothing is known yet.
    """

    episodes: float = math.inf
    tokens: float = math.inf  # read and written
    usd: float = math.inf
    seconds: float = math.inf  # wall time of one call of `evaluate`, looked at between chunks

    def room(self, done: Sequence[Episode], seconds: float) -> int:
        """How many episodes may be begun now, after these."""
        left = self.episodes - len(done)
        costs: tuple[tuple[float, Callable[[Cost], float]], ...] = (
            (self.tokens, lambda cost: cost.prompt_tokens + cost.completion_tokens),
            (self.usd, lambda cost: cost.usd),
        )
        for most, cost_of in costs:
            if not math.isfinite(most):
                continue
            spent = [cost_of(episode.cost) for episode in done]
            if not spent:
                left = min(left, _FIRST)
            elif max(spent):
                left = min(left, (most - math.fsum(spent)) / max(spent))
        return 0 if seconds >= self.seconds else int(min(max(left, 0.0), 1 << 60))


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
    repeats: int = 1,
    budget: Budget | None = None,
    again: bool = False,
    enough: Callable[[], bool] | None = None,
) -> dict[str, list[float | None]]:
    """Success of each task by split, in the order of the tasks, each with its `repeats` one after the other.

    None where it is unscored or was not run. `on_chunk(done, total, episodes, feedback)` is told of each
    new chunk. Chunks that the ledger already holds for this run and stage are not run again; with `again`,
    episodes that failed are, under ids of their own. Before each chunk `enough()` may end it.
    """
    tasks = [task for split in splits.values() for task in split]
    ledger.add_tasks(tasks)
    by_id = {task.id: task for task in tasks}
    kept = ledger.episodes(run_id=run_id, stage=stage)
    judged = {f.about[0] for f in ledger.feedback(run_id=run_id, about=[e.id for e in kept])} if kept else set()
    tries: dict[Place, list[Episode]] = {}
    for episode in kept:
        tries.setdefault((episode.task_id, episode.index), []).append(episode)
    limits, began, total = budget or Budget(), monotonic(), repeats * len(tasks)
    for repeat, start in itertools.product(range(repeats), range(0, len(tasks), chunk)):
        here = tasks[start : start + chunk]
        held = [tries[task.id, repeat][-1] for task in here if (task.id, repeat) in tries]
        failed = {e.task_id for e in held if again and _failed(e)}
        present = {e.task_id for e in held} - failed
        due = [task for task in here if task.id not in present]
        unjudged = [e for e in held if e.task_id in present and e.id not in judged]  # it was stopped between the two
        if (due or unjudged) and enough is not None and enough():
            break
        while due or unjudged:
            plans = [
                _plan(run_id, stage, seed, task, repeat, len(tries.get((task.id, repeat), ())))
                for task in due[: limits.room(kept, monotonic() - began)]
            ]
            if not plans and not unjudged:
                break
            drawn = run_episodes(
                policy, plans, sampling=sampling, weights=weights, run_id=run_id, stage=stage, tools=tools
            )
            ledger.add_episodes(drawn)
            kept += drawn
            due = due[len(drawn) :]
            episodes, unjudged = [*unjudged, *drawn], []
            feedback = verify_episodes(by_id, episodes, executor, run_id=run_id)
            ledger.add_feedback(feedback)
            on_chunk(repeat * len(tasks) + start + len(here) - len(due), total, episodes, feedback)
        if due:
            break
    counts = last_tries(kept)
    said = ledger.feedback(run_id=run_id, about=[episode.id for episode in counts.values()])
    verdicts = lowest_by_episode(said)
    scores = {
        place: None if (value := verdicts.get(episode.id)) is None else float(value == 1.0)
        for place, episode in counts.items()
    }
    return {
        name: [scores.get((task.id, repeat)) for task in split for repeat in range(repeats)]
        for name, split in splits.items()
    }


def _plan(run_id: str, stage: str, seed: int, task: Task, repeat: int, tried: int) -> Plan:
    """The first attempt at a task is named by the task alone; the others and later tries say which they are."""
    place: list[str | int] = [task.id, *([repeat] if repeat or tried else []), *([tried] if tried else [])]
    return Plan(id=plan_id(run_id, stage, *place), task=task, seed=derive_seed(seed, stage, *place), index=repeat)


def _failed(episode: Episode) -> bool:
    """Whether something broke that was not the policy's."""
    return episode.error is not None and episode.error_boundary != "policy"


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


def refuse_trained(ledger: LedgerView, checkpoint_id: str, tasks: Sequence[Task], what: str) -> None:
    """What a checkpoint learnt from says nothing about how good it is. Raises `DataError`."""
    datasets = [d.id for link in why(ledger, checkpoint_id).checkpoints for d in link.datasets]
    trained = {task_id for dataset in datasets for task_id in ledger.dataset(dataset).task_ids}
    caught = next((task for task in tasks if task.id in trained), None)
    if caught is not None:
        raise DataError(f"{what}: {checkpoint_id} was trained on task {caught.id}; measure it on others")
