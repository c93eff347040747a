"""Tasks from a JSONL file: one task per line, with the verifier that applies to it.

A line holds `messages` (OpenAI chat format) or `prompt` (text), and optionally `tools`
(names of registered tools, or tools in OpenAI's form, which need a registered function of that name only where one is
called and its answer awaited), `answer` (anything, hidden from the policy), `verifier`
(`{"name": ..., parameters}` or a name; the answer is a parameter too, where none of its own is called so), `user` (a
list of what the user says next, a reply to each text of the assistant; or who a model is to play), `workspace` (files
by path, for the tools `run_python`, `run_shell` and `write_file`), `demonstration` (messages that continue the
conversation), `split` (default "train"), `kind`, and `cluster` (a name that tasks share whose results may agree).
Every bad line is refused by number.

A line as GSM8K has it, `question` and `answer` (a solution that ends in "#### 18"), is a task as well: the verifier
`math` compares what the policy puts behind "####", and the solution is the demonstration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.base.seeds import rng_for
from metier.records.types import EnvironmentSpec, Message, Task, Tool, VerifierSpec
from metier.tasks.protocol import Environment

__all__ = ["FILE", "FileFamily", "task_of_line"]

FILE = "file"  # the environment of a task that has a user who answers, or a workspace
_KEYS = {
    "messages",
    "prompt",
    "tools",
    "answer",
    "verifier",
    "user",
    "workspace",
    "demonstration",
    "split",
    "kind",
    "licence",
    "cluster",
}


class FileFamily:
    """The tasks of one JSONL file. `tools` turns a tool's name into its record."""

    name = "file"

    def __init__(self, path: str | Path, tools: Callable[[str], Tool]) -> None:
        self.path = Path(path)
        self.version = "1"
        self._tasks: list[Task] = []
        self._gold: dict[str, tuple[Message, ...]] = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"cannot read tasks from {self.path}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    self._read(json.loads(line), tools)
                except (ValueError, TypeError) as error:  # DataError is a ValueError
                    raise DataError(f"{self.path} line {number}: {error}") from error
        if not self._tasks:
            raise DataError(f"{self.path} holds no tasks; write one JSON object per line")

    def _read(self, raw: Any, tools: Callable[[str], Tool]) -> None:
        task, gold = task_of_line(raw, tools, source=self.path.name)
        if task.id in self._gold:
            raise DataError("the same task stands in the file twice")
        self._tasks.append(task)
        self._gold[task.id] = gold

    def splits(self) -> Sequence[str]:
        """See `TaskFamily.splits`."""
        return sorted({t.split for t in self._tasks})

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """Up to `n` tasks of the split, in an order that the seed shuffles."""
        found = [t for t in self._tasks if t.split == split]
        if not found:
            raise DataError(f"split {split!r} of {self.path} is empty; it has {', '.join(self.splits())}")
        rng_for(seed, "file", split).shuffle(found)
        return found[:n]

    @property
    def needs_player(self) -> bool:
        """Whether a model must play a user."""
        return any(t.environment is not None and isinstance(t.environment.state.get("user"), str) for t in self._tasks)

    def environment(self, task: Task) -> Environment:
        """File tasks have no environment of their own."""
        raise DataError("tasks from a file have no environment; their tools are functions")

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The task's messages and its demonstration. Raises `DataError` where the line has none."""
        if not self._gold[task.id]:
            raise DataError(f"a task of {self.path} (split {task.split!r}) has no 'demonstration'; SFT needs one")
        return (*task.messages, *self._gold[task.id])


def task_of_line(raw: Any, tools: Callable[[str], Tool], *, source: str) -> tuple[Task, tuple[Message, ...]]:
    """The task of one line, and its demonstration. Raises `DataError`, `ValueError` or `TypeError` for what is none."""
    if not isinstance(raw, dict):
        raise DataError("expected a JSON object")
    raw = _of_gsm8k(raw) if "question" in raw else raw
    unknown = sorted(raw.keys() - _KEYS)
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    if ("messages" in raw) == ("prompt" in raw):
        raise DataError("a task has either 'messages' or 'prompt'")
    messages = raw.get("messages") or [{"role": "user", "content": raw["prompt"]}]
    verifier = raw.get("verifier", ())
    answer = raw.get("answer", {})
    answer = answer if isinstance(answer, Mapping) else {"answer": answer}
    specs: tuple[VerifierSpec, ...] = ()
    if verifier:
        spec = {"name": verifier} if isinstance(verifier, str) else dict(verifier)
        name = spec.pop("name")
        given = answer if not spec or not isinstance(raw.get("answer"), Mapping) else {}
        specs = (VerifierSpec(name=name, params={**given, **spec}),)
    task = Task(
        family=FileFamily.name,
        kind=str(raw.get("kind", "task")),
        messages=tuple(Message.from_openai(m) for m in messages),
        tools=tuple(tools(one) if isinstance(one, str) else Tool.from_openai(one) for one in raw.get("tools") or ()),
        answer=answer,
        verifiers=specs,
        environment=_environment(raw.get("user"), raw.get("workspace")),
        split=str(raw.get("split", "train")),
        source=source,
        licence=str(raw.get("licence", "")),
        meta={"cluster": str(raw["cluster"])} if raw.get("cluster") not in (None, "") else {},
    )
    return task, tuple(Message.from_openai(m) for m in raw.get("demonstration", ()))


def _of_gsm8k(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a question and its solution."""
    question, solution = raw["question"], raw.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str) or "####" not in solution:
        raise DataError("a 'question' has an 'answer' that ends in #### and the number")
    more = {key: value for key, value in raw.items() if key not in ("question", "answer")}
    return {
        "kind": "question",
        **more,
        "prompt": f"{question}\n\nEnd with #### and the answer alone.",
        "answer": solution.rpartition("####")[2].strip(),
        "verifier": "math",
        "demonstration": [{"role": "assistant", "content": solution}],
    }


def _environment(user: Any, workspace: Any) -> EnvironmentSpec | None:
    state: dict[str, Any] = {}
    if user is not None:
        script = isinstance(user, list) and all(isinstance(reply, str) for reply in user)
        if not script and not (isinstance(user, str) and user.strip()):
            raise DataError("'user' is a list of replies, or a text that says whom a model plays")
        state["user"] = user
    if workspace is not None:
        if not isinstance(workspace, dict) or not all(isinstance(text, str) for text in workspace.values()):
            raise DataError("'workspace' is a mapping from paths to texts")
        state["workspace"] = workspace
    return EnvironmentSpec(name=FILE, version="1", state=state) if state else None
