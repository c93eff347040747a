"""How healthy tasks are, as their episodes show: too hard, too easy, wrong themselves, or worth training on.

    never, always   no success, or nothing else, in at least `LEAST` scored attempts of the policies looked at
    faulty          the answer that it should have fails its verifier, or what code says of its attempts is not
                    what people say, on at least two attempts and on half of those that both judged

A group of sibling attempts is saturated where all of its scores are equal: it carries no gradient.

Attempts without a score are counted and prove nothing. Nothing here says why a task is never solved: a verifier
that is too strict looks like a task that is too hard, so read one attempt before dropping it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metier.feedback.data.declaration import TRAINING
from metier.feedback.data.pooling import of_code
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.workers import judge
from metier.records.types import Episode, Feedback, Message, Task
from metier.records.values import lowest
from metier.records.view import LedgerView
from metier.stats.intervals import wilson

__all__ = ["Difficulty", "Health", "Suggestion", "by_policy", "faults_of", "suggest", "task_health"]

LEAST = 4  # scored attempts below which a task is not called never or always solved
_BATCH = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """How often one policy succeeds at a task."""

    policy: str  # the checkpoint
    n: int  # scored attempts
    successes: int
    unscored: int
    low: float | None  # Wilson interval of the share; None where nothing was scored
    high: float | None

    @property
    def share(self) -> float | None:
        """The share of successes; None where nothing was scored."""
        return self.successes / self.n if self.n else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the ledger shows of one task."""

    task_id: str
    family: str
    kind: str
    split: str
    policies: tuple[Difficulty, ...]
    groups: int  # of at least two scored siblings
    saturated: int  # of those, with equal scores
    gold: int  # answers that it should have, whose verdict is known
    gold_failed: int
    judged_twice: int  # attempts that both code and people judged
    disagreed: int
    feedback_ids: tuple[str, ...] = ()  # what all of this was read from

    @property
    def n(self) -> int:
        """Scored attempts of all policies."""
        return sum(one.n for one in self.policies)

    @property
    def successes(self) -> int:
        """Successes of all policies."""
        return sum(one.successes for one in self.policies)

    def to_json(self) -> dict[str, Any]:
        """As plain values, without the statements behind it."""
        return {
            "task": self.task_id,
            "family": self.family,
            "kind": self.kind,
            "split": self.split,
            "policies": [
                {
                    "policy": one.policy,
                    "n": one.n,
                    "successes": one.successes,
                    "unscored": one.unscored,
                    "low": one.low,
                    "high": one.high,
                }
                for one in self.policies
            ],
            "groups": self.groups,
            "saturated": self.saturated,
            "gold": self.gold,
            "gold_failed": self.gold_failed,
            "judged_twice": self.judged_twice,
            "disagreed": self.disagreed,
            "faults": faults_of(self),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A task to leave out or to mend, and why."""

    task_id: str
    fault: str  # never, always or faulty
    what: str  # drop or mend
    why: str


@dataclass(slots=True)
class _Seen:
    """What has been read of one task."""

    split: str
    by_policy: dict[str, list[bool | None]] = field(default_factory=dict)
    groups: dict[str, list[float]] = field(default_factory=dict)
    gold: list[bool] = field(default_factory=list)
    twice: list[bool] = field(default_factory=list)  # whether code and people agreed
    ids: list[str] = field(default_factory=list)


def faults_of(health: Health) -> list[str]:
    """Which of faulty, never and always it is; a faulty task first, because its successes mean nothing."""
    found = []
    apart = health.disagreed >= 2 and 2 * health.disagreed >= health.judged_twice
    if health.gold_failed or apart:
        found.append("faulty")
    if health.n >= LEAST and health.successes == 0:
        found.append("never")
    if health.n >= LEAST and health.successes == health.n:
        found.append("always")
    return found


def suggest(found: Iterable[Health]) -> list[Suggestion]:
    """Tasks to leave out of training, and tasks to mend, with why."""
    out = []
    for one in found:
        for fault in faults_of(one)[:1]:
            if fault == "faulty" and one.gold_failed:
                why = f"{one.gold_failed} of {one.gold} answers that it should have fail its verifier"
            elif fault == "faulty":
                why = f"code and people disagree on {one.disagreed} of {one.judged_twice} attempts"
            else:
                low, high = wilson(one.successes, one.n)
                bound = f"at most {high:.0%}" if fault == "never" else f"at least {low:.0%}"
                why = f"{one.successes} of {one.n} attempts succeed ({bound}, 95 %)"
            out.append(
                Suggestion(task_id=one.task_id, fault=fault, what="mend" if fault == "faulty" else "drop", why=why)
            )
    return out


def task_health(
    ledger: LedgerView,
    *,
    run_id: str | None = None,
    splits: Sequence[str] = TRAINING,
    policy: str | None = None,
    verify: bool = False,
) -> list[Health]:
    """The health of every task of these splits that was attempted, in the order of the first attempt.

    `policy` is the checkpoint whose attempts count; else all do. With `verify`, what people and oracles showed as
    the right answer is put to the task's verifiers now, where these look at nothing but messages.
    """
    seen: dict[str, _Seen] = {}
    some: list[Episode] = []
    for episode in ledger.iter_episodes(run_id=run_id, erased=False):
        if episode.split in splits:
            some.append(episode)
        if len(some) == _BATCH:
            _read(ledger, some, seen, policy, verify)
            some = []
    _read(ledger, some, seen, policy, verify)
    tasks: dict[str, Task] = {}
    ids = list(seen)
    for start in range(0, len(ids), _BATCH):
        tasks.update(ledger.tasks(ids[start : start + _BATCH]))
    return [_health(task_id, tasks[task_id], one) for task_id, one in seen.items()]


def _read(
    ledger: LedgerView, episodes: Sequence[Episode], seen: dict[str, _Seen], policy: str | None, verify: bool
) -> None:
    about: dict[str, list[Feedback]] = {}
    for one in ledger.feedback(about=[episode.id for episode in episodes], erased=False):
        if len(one.about) == 1 and one.span is None:
            about.setdefault(one.about[0], []).append(one)
    tasks = ledger.tasks({e.task_id for e in episodes}) if verify else {}
    for episode in episodes:
        of_task = seen.setdefault(episode.task_id, _Seen(episode.split))
        rows = about.get(episode.id, [])
        scores = [one for one in rows if one.kind == "score"]
        by_code = [one for one in scores if of_code(one.source)]
        won = lowest(by_code) if by_code else lowest(scores)
        of_task.ids += [one.id for one in scores]
        shown = [one for one in rows if one.kind == "demonstration" and one.source.kind != "judge" and one.value]
        if shown:
            of_task.ids += [one.id for one in shown]
            if verify:
                of_task.gold += _verified(tasks[episode.task_id], episode, shown)
            elif won is not None:
                of_task.gold.append(won >= 1.0)
            continue  # what an oracle does says nothing of a policy
        if policy is not None and episode.weights.checkpoint != policy:
            continue
        if scores:
            success = None if won is None else won >= 1.0
            of_task.by_policy.setdefault(episode.weights.checkpoint, []).append(success)
        if episode.group_id is not None and won is not None:
            of_task.groups.setdefault(episode.group_id, []).append(won)
        agreed = _agree(by_code, [one for one in scores if one.source.kind in ("person", "production")])
        if agreed is not None:
            of_task.twice.append(agreed)


def _agree(by_code: Sequence[Feedback], by_people: Sequence[Feedback]) -> bool | None:
    """Whether code and people say the same; None where one side does not say. People's scores are of 0 to 1."""
    won = lowest(by_code)
    values = [float(one.value) for one in by_people if one.value is not None and 0 <= one.value <= 1]
    if won is None or not values or len(values) < len(by_people):
        return None
    mean = sum(values) / len(values)
    return None if mean == 0.5 else (won >= 1.0) == (mean > 0.5)


def _verified(task: Task, episode: Episode, shown: Sequence[Feedback]) -> list[bool]:
    """Whether each right answer passes; none where a verifier cannot say."""
    out = []
    for one in shown:
        answer = tuple(Message.from_openai(raw) for raw in one.value)
        attempt = Attempt(messages=(*task.messages, *answer), final_state=episode.final_state)
        verdicts = [judge(spec.name, task, attempt, spec.params) for spec in task.verifiers]
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        if scores and len(scores) == len(verdicts):
            out.append(min(scores) >= 1.0)
    return out


def _health(task_id: str, task: Task, one: _Seen) -> Health:
    groups = [values for values in one.groups.values() if len(values) > 1]
    return Health(
        task_id=task_id,
        family=task.family,
        kind=task.kind,
        split=one.split,
        policies=tuple(_difficulty(name, values) for name, values in one.by_policy.items()),
        groups=len(groups),
        saturated=sum(min(values) == max(values) for values in groups),
        gold=len(one.gold),
        gold_failed=one.gold.count(False),
        judged_twice=len(one.twice),
        disagreed=one.twice.count(False),
        feedback_ids=tuple(one.ids),
    )


def _difficulty(policy: str, values: Sequence[bool | None]) -> Difficulty:
    scored = [value for value in values if value is not None]
    bounds: tuple[float | None, float | None] = wilson(sum(scored), len(scored)) if scored else (None, None)
    return Difficulty(
        policy=policy,
        n=len(scored),
        successes=sum(scored),
        unscored=len(values) - len(scored),
        low=bounds[0],
        high=bounds[1],
    )


def by_policy(found: Iterable[Health]) -> Mapping[str, tuple[int, int]]:
    """Successes and scored attempts of every policy, over all tasks."""
    out: dict[str, tuple[int, int]] = {}
    for health in found:
        for one in health.policies:
            won, n = out.get(one.policy, (0, 0))
            out[one.policy] = won + one.successes, n + one.n
    return out
