"""Tasks as rows: a set for reinforcement learning, without those that teach nothing where that is asked for."""

from __future__ import annotations

from typing import Any

from metier.base.ids import content_hash
from metier.feedback.data.declaration import TaskView
from metier.feedback.data.health import faults_of, task_health
from metier.feedback.data.rows import Row, plain
from metier.feedback.data.selecting import batches, task_ids
from metier.feedback.data.views import Made
from metier.records.types import Task
from metier.records.view import LedgerView

__all__ = ["task_rows"]

_WORDS = {"never": "never solved", "always": "always solved", "faulty": "faulty"}


def task_rows(ledger: LedgerView, view: TaskView) -> Made:
    """Rows of tasks, as task files have them. A task that was drafted from an erased episode is left out."""
    made = Made()
    ids = task_ids(ledger, splits=view.where.splits)
    sick: dict[str, str] = {}
    behind: dict[str, tuple[str, ...]] = {}
    if view.drop:
        for health in task_health(ledger, splits=view.where.splits, policy=view.policy):
            fault = next((one for one in faults_of(health) if one in view.drop), None)
            if fault is not None:
                sick[health.task_id] = fault
            behind[health.task_id] = health.feedback_ids
    for some in batches(ids):
        found = ledger.tasks(some)
        drafted = {str(t.meta["episode"]) for t in found.values() if t.meta.get("drafted") and t.meta.get("episode")}
        there = {one.id for one in ledger.episodes(ids=drafted) if one.messages} if drafted else set()
        for task_id, task in found.items():
            episode = str(task.meta.get("episode") or "") if task.meta.get("drafted") else ""
            if (view.families and task.family not in view.families) or (view.kinds and task.kind not in view.kinds):
                continue
            if not task.messages:
                made.left["the task was erased"] += 1
            elif episode and episode not in there:
                made.left["the episode that it was drafted from was erased"] += 1
            elif task_id in sick:
                made.left[_WORDS[sick[task_id]]] += 1
            else:
                made.rows.append(
                    Row(
                        data=_line(task),
                        feedback_ids=behind.get(task_id, ()),
                        episode_ids=(episode,) if episode else (),
                        task_ids=(task_id,),
                        kind=task.kind,
                        sources=(task.source or task.family,),
                        support=float(len(behind.get(task_id, ()))),
                        licence=task.licence,
                        twin=content_hash([task.answer, [[v.name, v.params] for v in task.verifiers]]),
                    )
                )
    return made


def _line(task: Task) -> dict[str, Any]:
    """The task as a line of a task file; an environment of a family goes with it, which a file cannot make."""
    line: dict[str, Any] = {"messages": plain(task.messages)}
    if task.tools:
        line["tools"] = [tool.to_openai() for tool in task.tools]
    if task.answer:
        line["answer"] = dict(task.answer)
    checks = [{"name": spec.name, **spec.params} for spec in task.verifiers]
    if checks:
        line["verifier"] = checks[0] if len(checks) == 1 else {"name": "combination", "how": "all", "verifiers": checks}
    if task.environment is not None:
        if task.environment.name == "file":
            line.update(
                {key: task.environment.state[key] for key in ("user", "workspace") if key in task.environment.state}
            )
        else:
            line["environment"] = {"family": task.family, "name": task.environment.name, "task": task.id}
    if task.cluster != task.id:
        line["cluster"] = task.cluster
    return {**line, "split": task.split, "kind": task.kind, "licence": task.licence}
