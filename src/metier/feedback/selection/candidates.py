"""What could be asked: episodes, or pairs of siblings, about which people have not said enough.

Siblings are episodes of one group; where there are no groups, of one task.

Never a candidate: what was erased; what a machine failed and no policy; an episode in which nothing is said; a
demonstration; and, where training is what the answers are for, any task of a suite, and of a split that a suite (but
for `train`) or a run's configuration measures. Two siblings that say the same are no pair.

Left out: near-duplicates of held-out tasks, which the building of datasets looks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import Literal

from metier.feedback.selection.evidence import Evidence, Known
from metier.feedback.verify import SUCCESS
from metier.records.types import Episode, Task
from metier.records.values import lowest_by_episode
from metier.records.view import LedgerView

__all__ = ["Asking", "Candidate", "Found", "Purpose", "Taken", "find_candidates"]

Purpose = Literal["training", "evaluation"]

_MOST_SIBLINGS = 16  # of a group; the first ones
_ANY_SPLIT = "train"  # a task's split unless told: that one of it is in a suite says nothing of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What people are to be asked."""

    criterion: str
    size: int = 2  # episodes of an item: one, or a pair
    people: int = 1  # whose answers are enough
    purpose: Purpose = "training"
    evidence: tuple[str, ...] = (SUCCESS,)  # criteria, beside the one asked about, that tell something of it
    run_id: str | None = None  # whose episodes; None is all


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One thing that could be asked, and what is known of it."""

    episodes: tuple[str, ...]
    arms: tuple[str, ...]  # what is compared: the weights where all siblings differ in them, else the episodes
    task_id: str
    kind: str  # of its task
    characters: int  # that a person reads
    known: Known


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """How long one answer of a person took."""

    characters: int  # of what it was about
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The candidates, in the order of kind, task and episodes, and what weighs them."""

    candidates: tuple[Candidate, ...]
    answered: tuple[Candidate, ...]  # what would be one, had people not said enough
    left_out: Mapping[str, int]  # why -> how many episodes or pairs are no candidates
    labelled: Mapping[str, int]  # kind of task -> answers of people
    taken: tuple[Taken, ...]
    measured: Mapping[str, tuple[int, int]]  # kind of task -> failures and tasks of the last evaluation


@dataclass(frozen=True, slots=True)
class _Sibling:
    id: str
    task_id: str
    kind: str
    weights: str
    said: int  # hash of the conversation
    characters: int


def find_candidates(ledger: LedgerView, asking: Asking) -> Found:
    """Go through the ledger for what could be asked."""
    criteria = dict.fromkeys((asking.criterion, *asking.evidence))
    rows = chain.from_iterable(ledger.iter_feedback(criterion=one, erased=False) for one in criteria)
    evidence = Evidence(rows, asking.criterion)
    left_out: Counter[str] = Counter()
    groups: dict[str, list[_Sibling]] = {}
    characters: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for episode, task, why in _episodes(ledger, asking):
        length = sum(len(m.content) + sum(len(call.arguments) for call in m.tool_calls) for m in episode.messages)
        characters[episode.id], kinds[episode.id] = length, task.kind
        if why is not None:
            left_out[why] += 1
            continue
        weights = f"{episode.weights.checkpoint}@{episode.weights.step}"
        one = _Sibling(episode.id, episode.task_id, task.kind, weights, hash(episode.messages), length)
        groups.setdefault(episode.group_id or episode.task_id, []).append(one)
    found = [one for siblings in groups.values() for one in _among(siblings, asking, evidence, left_out)]
    found.sort(key=lambda one: (one.kind, one.task_id, one.episodes))
    answers = [row for row in evidence.answered if row.about[0] in kinds]
    return Found(
        candidates=tuple(one for one in found if one.known.people < asking.people),
        answered=tuple(one for one in found if one.known.people >= asking.people),
        left_out=dict(sorted(left_out.items())),
        labelled=Counter(kinds[row.about[0]] for row in answers),
        taken=tuple(
            Taken(characters=sum(characters.get(one, 0) for one in row.about), seconds=row.cost.seconds)
            for row in answers
            if row.cost.seconds > 0
        ),
        measured=_last_evaluation(ledger),
    )


def _among(
    siblings: Sequence[_Sibling], asking: Asking, evidence: Evidence, left_out: Counter[str]
) -> Iterator[Candidate]:
    if asking.size == 2 and len(siblings) > _MOST_SIBLINGS:
        left_out[f"sibling beyond the first {_MOST_SIBLINGS}"] += len(siblings) - _MOST_SIBLINGS
        siblings = siblings[:_MOST_SIBLINGS]
    if asking.size == 2 and len(siblings) == 1:
        left_out["no sibling"] += 1
    by_weights = len({one.weights for one in siblings}) == len(siblings)
    for some in combinations(siblings, asking.size):
        if len({one.said for one in some}) < len(some):
            left_out["both say the same"] += 1
            continue
        episodes = tuple(one.id for one in some)
        yield Candidate(
            episodes=episodes,
            arms=tuple(one.weights if by_weights else one.id for one in some),
            task_id=some[0].task_id,
            kind=some[0].kind,
            characters=sum(one.characters for one in some),
            known=evidence.of(episodes),
        )


def _episodes(ledger: LedgerView, asking: Asking) -> Iterator[tuple[Episode, Task, str | None]]:
    """Episodes that were not erased, their tasks, and why they cannot be asked about."""
    held = _held_out(ledger)
    shown = {row.about[0] for row in ledger.iter_feedback(kind="demonstration") if row.source.kind != "person"}
    stream = ledger.iter_episodes(run_id=asking.run_id, erased=False)
    while part := list(islice(stream, 500)):
        tasks = ledger.tasks({episode.task_id for episode in part})
        for episode in part:
            task = tasks[episode.task_id]
            is_held = bool({episode.task_id, task.split, f"{task.family}.{task.split}"} & held)
            yield episode, task, _unfit(episode, task, is_held, episode.id in shown, asking)


def _unfit(episode: Episode, task: Task, is_held: bool, is_shown: bool, asking: Asking) -> str | None:
    if "erased" in task.meta:
        return "the task was erased"
    if is_held and asking.purpose == "training":
        return "held out"
    if not is_held and asking.purpose == "evaluation":
        return "not held out"
    if is_shown:
        return "a demonstration"
    if episode.error is not None and episode.error_boundary != "policy":
        return "failed by a machine"
    if not any(message.role == "assistant" for message in episode.messages[len(task.messages) :]):
        return "nothing is said"
    return None


def _held_out(ledger: LedgerView) -> set[str]:
    """Ids of tasks that a suite holds, and names of splits that are measured, FAMILY.SPLIT or bare."""
    ids = {task_id for suite in ledger.suites() for task_id in suite.task_ids}
    tasks = ledger.tasks(ids).values() if ids else ()
    splits = {f"{task.family}.{task.split}" for task in tasks if task.split != _ANY_SPLIT}
    for run in ledger.runs():
        stages = run.config.get("stages")
        for stage in stages if isinstance(stages, list) else ():
            if isinstance(stage, Mapping):
                splits.update(stage["splits"] if isinstance(stage.get("splits"), Mapping) else ())
                splits.update([stage["eval_split"]] if isinstance(stage.get("eval_split"), str) else ())
    return ids | splits


def _last_evaluation(ledger: LedgerView) -> dict[str, tuple[int, int]]:
    """Failures and tasks by kind, in the stage that last measured a suite."""
    ids = {task_id for suite in ledger.suites() for task_id in suite.task_ids}
    episodes = ledger.episodes(task_ids=ids) if ids else []
    values = lowest_by_episode(ledger.feedback(about=[one.id for one in episodes], criterion=SUCCESS))
    scored = [one for one in episodes if values.get(one.id) is not None]
    counts: dict[str, tuple[int, int]] = {}
    if not scored:
        return counts
    last = scored[-1].run_id, scored[-1].stage
    tasks = ledger.tasks({one.task_id for one in scored})
    for one in scored:
        if (one.run_id, one.stage) == last:
            failed, n = counts.get(tasks[one.task_id].kind, (0, 0))
            counts[tasks[one.task_id].kind] = failed + (values[one.id] != 1.0), n + 1
    return counts
