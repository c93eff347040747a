"""A production episode becomes the draft of a task: what was asked, what would have been right, and a check of it.

The candidate answer is what somebody made of the model's (a correction or demonstration), or the model's own where it
was accepted. The verifier is proposed by rule, from the strictest that the answer allows:

    the answer calls tools            tool_calls   the same calls with the same arguments
    the episode ended in a state      conduct      what changed in it
    it is one JSON value              json_schema  the fields and types of the value
    it is a number or a few words     exact        the text
    it names numbers or codes         regex        all of them, in any order: weak, it says nothing of the rest

A draft is only proposed where its verifier takes the answer, refuses silence, and refuses what was corrected. A
person reads the file, mends what is wrong, and sets `confirmed` and `by`; only such lines become tasks, and their
verifier is tried on their answer once more. Nobody but a person can say whether the rule is what was meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.base.clock import now
from metier.base.errors import DataError
from metier.base.ids import derive_id
from metier.feedback.data.pooling import scored_values
from metier.feedback.data.rows import answered, messages_of, plain, words
from metier.feedback.data.selecting import batches
from metier.feedback.verifiers.json_schema import read_value
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.workers import judge
from metier.records.ledger import Ledger
from metier.records.types import (
    DatasetManifest,
    EnvironmentSpec,
    Episode,
    Feedback,
    Message,
    Task,
    Tool,
    VerifierSpec,
    from_plain,
    to_plain,
)
from metier.records.view import LedgerView

__all__ = ["Draft", "Drafted", "add_confirmed", "draft_tasks", "propose", "read_confirmed", "write_drafts"]

FEW_WORDS = 6  # up to which the whole text is the answer
_CODE = re.compile(r"(?<!\w)(?=[\w-]*\d)[\w-]{2,}(?:[.,:/]\d+)*", re.UNICODE)  # numbers of two digits, dates, codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A task that nobody has confirmed."""

    id: str
    episode_id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    answer: tuple[Message, ...]
    verifier: VerifierSpec
    why: str  # of the verifier, and how strict it is
    environment: EnvironmentSpec | None = None
    source: str = ""
    licence: str = ""
    feedback_ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The line that a person reads and confirms."""
        return {
            "id": self.id,
            "confirmed": False,
            "by": "",
            "messages": plain(self.messages),
            "tools": [tool.to_openai() for tool in self.tools],
            "answer": plain(self.answer),
            "verifier": {"name": self.verifier.name, **self.verifier.params},
            "why": self.why,
            "kind": "production",
            "split": "train",
            "environment": None if self.environment is None else to_plain(self.environment),
            "source": self.source,
            "licence": self.licence,
            "episode": self.episode_id,
            "feedback": list(self.feedback_ids),
        }


@dataclass(frozen=True, slots=True)
class Drafted:
    """Drafts, and how many episodes made none, by reason."""

    drafts: list[Draft] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)


def draft_tasks(
    ledger: LedgerView, *, run_id: str | None = None, split: str = "production", good: float = 1.0
) -> Drafted:
    """Drafts of every episode of the split that somebody corrected or accepted (all its scores at least `good`)."""
    out = Drafted()
    some: list[Episode] = []
    for episode in ledger.iter_episodes(run_id=run_id, split=split, erased=False):
        some.append(episode)
    for part in batches(some, 500):
        tasks = ledger.tasks({episode.task_id for episode in part})
        told: dict[str, list[Feedback]] = {}
        for one in ledger.feedback(about=[episode.id for episode in part], erased=False):
            if len(one.about) == 1:
                told.setdefault(one.about[0], []).append(one)
        for episode in part:
            try:
                out.drafts.append(_draft(tasks[episode.task_id], episode, told.get(episode.id, []), good))
            except DataError as error:
                out.left[str(error)] = out.left.get(str(error), 0) + 1
    return out


def propose(
    asked: Sequence[Message], tools: Sequence[Tool], answer: Sequence[Message], changed: Mapping[str, Any] | None = None
) -> tuple[VerifierSpec, str]:
    """The strictest verifier that an answer allows, and why. Raises `DataError` where no rule fits."""
    calls = [call for message in answer for call in message.tool_calls]
    if changed:
        return VerifierSpec(name="conduct", params={"state": dict(changed)}), "the state in which the episode ended"
    if calls:
        if not tools:
            raise DataError("it calls tools that the episode does not describe")
        wanted = []
        for call in calls:
            arguments = call.parsed()
            if arguments is None:
                raise DataError("the right answer makes a call whose arguments are not JSON")
            wanted.append({call.name: {name: [value] for name, value in arguments.items()}})
        return VerifierSpec(name="tool_calls", params={"possible_answers": wanted}), "the calls of the right answer"
    text = answer[-1].content.strip()
    value, fault = read_value(text)
    if not fault and isinstance(value, (dict, list)):
        return VerifierSpec(name="json_schema", params={"schema": _schema(value)}), "the JSON's form, not its values"
    if 0 < len(words(text)) <= FEW_WORDS:
        return VerifierSpec(name="exact", params={"answer": text}), "the whole text"
    given = " ".join(message.content for message in asked)
    named = [one for one in dict.fromkeys(_CODE.findall(text)) if one not in given]
    if named:
        pattern = "".join(rf"(?=.*(?<!\w){re.escape(one)}(?!\w))" for one in named)
        params = {"pattern": pattern, "search": True, "flags": "s"}
        return VerifierSpec(name="regex", params=params), "weak: only what it names: " + ", ".join(named)
    raise DataError("no rule fits the right answer; it needs a verifier written for it, or a judge")


def write_drafts(path: Path, drafts: Iterable[Draft]) -> int:
    """Add drafts to a file; those that it has already stay as a person left them. Returns how many are new."""
    known: set[str] = set()
    if path.is_file():
        known = {str(raw.get("id")) for _, raw in _lines(path)}
    new = [draft for draft in drafts if draft.id not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for draft in new:
            file.write(json.dumps(draft.to_json(), ensure_ascii=False) + "\n")
    return len(new)


def read_confirmed(path: Path) -> tuple[list[Task], list[str]]:
    """The tasks of the lines that a person confirmed, and what is wrong with others that say so.

    A confirmed line without a name, or whose verifier does not take its own answer, is no task.
    """
    tasks: list[Task] = []
    faults: list[str] = []
    for number, raw in _lines(path):
        if raw.get("confirmed") is not True:
            continue
        try:
            tasks.append(_task(raw))
        except (DataError, KeyError, TypeError, AttributeError) as error:
            why = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            faults.append(f"{path} line {number}: {why}")
    return tasks, faults


def add_confirmed(ledger: Ledger, path: Path) -> tuple[DatasetManifest | None, list[str]]:
    """Add confirmed drafts to the ledger as tasks, with a dataset that ties them to their episodes.

    So `metier ledger why` leads from a task to the conversation, and forgetting that marks the dataset.
    """

    tasks, faults = read_confirmed(path)
    held = {task_id for suite in ledger.suites() for task_id in suite.task_ids}
    faults += [f"task {task.id} is in a suite; suites never enter training" for task in tasks if task.id in held]
    tasks = [task for task in tasks if task.id not in held]
    episodes = {one.id for one in ledger.episodes(ids=[str(task.meta["episode"]) for task in tasks]) if one.messages}
    faults += [f"task {t.id}: its episode {t.meta['episode']} was erased or never there" for t in tasks
               if t.meta["episode"] not in episodes]  # fmt: skip
    tasks = [task for task in tasks if task.meta["episode"] in episodes]
    if not tasks:
        return None, faults
    run = derive_id("run", "data", "drafts")
    ledger.ensure_run(run, "data", {"name": "drafts"})
    ledger.add_tasks(tasks)
    manifest = DatasetManifest(
        id=derive_id("data", run, *(task.id for task in tasks)),
        kind="rl",
        name="drafts",
        run_id=run,
        stage="data",
        query={"confirmed": {task.id: task.meta["by"] for task in tasks}},
        feedback_ids=tuple(dict.fromkeys(one for task in tasks for one in task.meta["feedback"])),
        episode_ids=tuple(dict.fromkeys(str(task.meta["episode"]) for task in tasks)),
        task_ids=tuple(dict.fromkeys(task.id for task in tasks)),
        created_at=now(),
    )
    ledger.add_dataset(manifest)
    return manifest, faults


def _draft(task: Task, episode: Episode, told: Sequence[Feedback], good: float) -> Draft:
    """Raises `DataError` with why this episode makes no draft."""
    edits = [one for one in told if one.kind in ("correction", "demonstration") and one.value
             and one.source.kind != "judge"]  # fmt: skip
    was: tuple[Message, ...] = ()
    if edits:
        newest = edits[-1]
        asked, was = answered(task, episode, None if newest.span is None else newest.span.turn)
        answer = messages_of(newest.value)
        ids: tuple[str, ...] = (newest.id,)
    else:
        value, behind = scored_values(told, {}).get(episode.id, (None, ()))
        if value is None:
            raise DataError("nobody corrected or accepted it")
        if value < good:
            raise DataError("it was not accepted, and nobody said what would have been right")
        last = max((n for n, m in enumerate(episode.messages) if m.role == "user"), default=-1)
        asked, answer = episode.messages[: last + 1], episode.messages[last + 1 :]
        ids = behind
    if not asked or asked[-1].role != "user" or not answer:
        raise DataError("it does not end in an answer to a user")
    changed = None if edits or task.environment is None else _changed(task.environment, episode.final_state)
    verifier, why = propose(asked, task.tools, answer, changed)
    probe = Task(family="file", kind="draft", messages=asked, tools=task.tools, environment=task.environment)
    state = episode.final_state
    if _passes(verifier, probe, answer, state) is not True:
        raise DataError(f"the verifier {verifier.name} does not take the right answer")
    if _passes(verifier, probe, (Message(role="assistant", content=""),), {}) is not False:
        raise DataError(f"the verifier {verifier.name} does not refuse silence")
    if was and was != answer and _passes(verifier, probe, was, {}) is not False:
        raise DataError(f"the verifier {verifier.name} does not tell the right answer from the one it corrects")
    return Draft(
        id=derive_id("draft", episode.id, *ids),
        episode_id=episode.id,
        messages=asked,
        tools=task.tools,
        answer=tuple(answer),
        verifier=verifier,
        why=why,
        environment=task.environment,
        source=task.source,
        licence=task.licence,
        feedback_ids=tuple(ids),
    )


def _passes(spec: VerifierSpec, task: Task, answer: Sequence[Message], state: Mapping[str, Any]) -> bool | None:
    attempt = Attempt(messages=(*task.messages, *answer), final_state=state)
    score = judge(spec.name, task, attempt, spec.params).score
    return None if score is None else score >= 1.0


def _changed(environment: EnvironmentSpec, final: Mapping[str, Any]) -> dict[str, Any]:
    """What the end state has that the start had not, by path."""
    out: dict[str, Any] = {}

    def walk(before: Any, after: Any, path: str) -> None:
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            for key in after:
                walk(before.get(key), after[key], f"{path}.{key}" if path else str(key))
        elif before != after:
            out[path] = after

    for root in ("db", "log"):
        if root in final:
            walk(environment.state.get(root), final[root], root)
    return out


def _schema(value: Any) -> dict[str, Any]:
    """A schema of the value's form: its fields all required, their types, what lists hold."""
    if isinstance(value, dict):
        return {
            "type": "object",
            "properties": {key: _schema(one) for key, one in value.items()},
            "required": sorted(value),
            "additionalProperties": False,
        }
    if isinstance(value, list):
        kinds = {json.dumps(_schema(one), sort_keys=True) for one in value}
        return {"type": "array", "items": json.loads(kinds.pop())} if len(kinds) == 1 else {"type": "array"}
    if value is None:
        return {"type": "null"}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names[type(value)]}


def _task(raw: Mapping[str, Any]) -> Task:
    if not str(raw.get("by") or "").strip():
        raise DataError("it is confirmed by nobody; write your name into 'by'")
    spec = dict(raw["verifier"])
    environment = raw.get("environment")
    answer = messages_of(raw["answer"])
    task = Task(
        family="file",
        kind=str(raw.get("kind") or "production"),
        messages=tuple(Message.from_openai(one) for one in raw["messages"]),
        tools=tuple(Tool.from_openai(one) for one in raw.get("tools") or ()),
        answer={"messages": plain(answer)},
        verifiers=(VerifierSpec(name=spec.pop("name"), params=spec),),
        environment=None if environment is None else from_plain(EnvironmentSpec, environment),
        split=str(raw.get("split") or "train"),
        source=str(raw.get("source") or "production"),
        licence=str(raw.get("licence") or ""),
        meta={
            "drafted": True,
            "episode": str(raw["episode"]),
            "by": str(raw["by"]),
            "feedback": [str(one) for one in raw.get("feedback") or ()],
        },
    )
    (check,) = task.verifiers
    if check.name != "conduct" and _passes(check, task, answer, {}) is not True:
        raise DataError(f"its verifier {check.name} does not take its own answer; mend one of them")
    return task


def _lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read drafts from {path}: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path} line {number} is not JSON: {error}; mend it, no line is lost") from error
        if not isinstance(raw, dict):
            raise DataError(f"{path} line {number} is no object")
        yield number, raw
