"""From episodes to feedback: every verifier that a task names speaks about its episodes.

A verifier that raises, and an episode whose environment failed, give unscored feedback
with the reason: the policy is never charged for them. None can hang a step: see
`metier.feedback.verifiers.workers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metier.base.clock import monotonic, now
from metier.base.executor import Executor
from metier.base.ids import derive_id
from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import get_verifier
from metier.feedback.verifiers.workers import judge
from metier.records.types import Cost, Episode, Feedback, Source, Task

__all__ = ["SUCCESS", "verify_episodes"]

SUCCESS = "success"  # the criterion: did the attempt do all of what was asked


def verify_episodes(
    tasks: Mapping[str, Task], episodes: Sequence[Episode], executor: Executor, *, run_id: str | None = None
) -> list[Feedback]:
    """One score per episode and verifier, in the order of the episodes."""

    def verify(episode: Episode) -> list[Feedback]:
        task = tasks[episode.task_id]
        return [_one(task, episode, number, run_id) for number in range(len(task.verifiers))]

    return [feedback for made in executor.map(verify, episodes) for feedback in made]


def _one(task: Task, episode: Episode, number: int, run_id: str | None) -> Feedback:
    spec = task.verifiers[number]
    verifier = get_verifier(spec.name)
    began = monotonic()
    if episode.error is not None and episode.error_boundary != "policy":
        verdict = Verdict(score=None, status="unscored", reason=f"{episode.error_boundary}: {episode.error}")
    else:
        verdict = judge(
            spec.name, task, Attempt(messages=episode.messages, final_state=episode.final_state), spec.params
        )
    return Feedback(
        id=derive_id("fb", episode.id, spec.name, number),
        about=(episode.id,),
        criterion=SUCCESS,
        kind="score",
        value=verdict.score,
        status=verdict.status,
        source=Source(kind="verifier", name=verifier.name, version=verifier.version),
        reason=verdict.reason,
        evidence={"parts": dict(verdict.parts)},
        cost=Cost(seconds=monotonic() - began),
        created_at=now(),
        run_id=run_id,
    )
