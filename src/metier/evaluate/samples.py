"""The samples of an evaluation, one row for each attempt at a task: what statistics, gates and other tools read.

`score` is full success, 1 or 0; `value` is what the lowest of the verifiers said, for those that give part of the
credit. Both are None where a sample is *unscored*, and `reason` says why: something broke, a verifier could not tell,
or it was not run. The rows are those of the ledger, so they can be written again at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from metier.records.types import Episode, Feedback, Task
from metier.records.values import by_episode, last_tries, lowest
from metier.records.view import LedgerView

__all__ = ["Sample", "not_run", "numbers", "reasons", "samples"]

_KINDS = 20  # reasons that are counted apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One attempt at one task."""

    id: str  # of the task
    repeat: int  # which attempt at it, from 0
    score: float | None  # full success, 1 or 0
    value: float | None  # the lowest verdict, 0 to 1
    status: Literal["scored", "unscored"]
    reason: str  # what the verifiers say, or why there is no score
    cluster: str  # tasks whose results may agree share it
    kind: str  # of work
    split: str
    suite: str  # the stage of the run
    model: str  # the weights that spoke
    stop: str = ""  # why the episode ended
    tokens: int | None = None  # written; None, as the next ones, where it was not run
    prompt_tokens: int | None = None  # read
    tool_calls: int | None = None
    seconds: float | None = None  # from the start of its chunk to its end
    usd: float | None = None
    episode: str = ""  # its id in the ledger; empty where it was not run

    def to_json(self) -> dict[str, Any]:
        """The row of a samples file."""
        return asdict(self)


def samples(ledger: LedgerView, run_id: str, stage: str) -> list[Sample]:
    """The samples of one stage of a run, in the order in which they were run."""
    episodes = list(last_tries(ledger.episodes(run_id=run_id, stage=stage)).values())
    said = by_episode(ledger.feedback(run_id=run_id, about=[episode.id for episode in episodes]))
    tasks = ledger.tasks(episode.task_id for episode in episodes)
    return [_sample(episode, tasks[episode.task_id], said.get(episode.id, [])) for episode in episodes]


def not_run(task: Task, repeat: int, *, suite: str, model: str, why: str) -> Sample:
    """The row of an attempt that was not made."""
    return Sample(
        id=task.id,
        repeat=repeat,
        score=None,
        value=None,
        status="unscored",
        reason=f"not run: {why}",
        cluster=task.cluster,
        kind=task.kind,
        split=task.split,
        suite=suite,
        model=model,
    )


def numbers(rows: Sequence[Sample]) -> list[str]:
    """The fields of samples that a comparison can take as its metric."""
    found = {name for row in rows for name, value in row.to_json().items() if isinstance(value, (int, float))}
    return sorted(found - {"repeat"})


def reasons(rows: Sequence[Sample]) -> Mapping[str, int]:
    """Why samples are unscored, and how many each; the commonest first."""
    counted = Counter(row.reason[:100] for row in rows if row.status == "unscored")
    return dict(counted.most_common(_KINDS))


def _sample(episode: Episode, task: Task, said: Sequence[Feedback]) -> Sample:
    value = lowest(said)
    if value is None:
        why = [row.reason or row.status for row in said if row.value is None] or ["the task has no verifier"]
    else:
        why = [row.reason for row in said if row.reason]
    return Sample(
        id=episode.task_id,
        repeat=episode.index,
        score=None if value is None else float(value == 1.0),
        value=value,
        status="unscored" if value is None else "scored",
        reason="; ".join(dict.fromkeys(why)),
        cluster=task.cluster,
        kind=task.kind,
        split=episode.split,
        suite=episode.stage,
        model=episode.weights.checkpoint,
        stop=episode.stop_reason,
        tokens=episode.cost.completion_tokens,
        prompt_tokens=episode.cost.prompt_tokens,
        tool_calls=episode.cost.tool_calls,
        seconds=round(episode.cost.seconds, 3),
        usd=episode.cost.usd,
        episode=episode.id,
    )
