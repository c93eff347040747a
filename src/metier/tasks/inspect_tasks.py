"""Inspect's tasks as a family, where they fit: one answer of the model, without tools and sandbox.

    tasks:
      family: inspect
      options: {task: "evals/sums.py:sums", arguments: {n: 100}}

names a function that returns an `inspect_ai.Task`, in a file or an importable module. Its solver is
run up to the moment where it asks the model, which gives the messages; to score an episode
it is run once more with the episode's answer, and then the task's own scorers. So templates,
system messages and multiple choice work as they do in Inspect. A solver that asks more than
once, tools, sandboxes, files and pictures are refused when the task is loaded, and so are
scorers that ask a model; nothing is left out in silence.

Splits are `all`, and `demo`, `train` and `heldout`, which have no question in common. Needs
the extra `inspect`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from metier.base.errors import ConfigError, DataError
from metier.base.seeds import rng_for
from metier.records.types import Message, Task, VerifierSpec
from metier.tasks.foreign import SHARES, import_object, in_share
from metier.tasks.protocol import Environment, NoEnvironment

__all__ = ["InspectFamily", "grade", "question"]

T = TypeVar("T")


class InspectFamily:
    """One task of Inspect."""

    name = "inspect"
    version = "1"

    def __init__(self, task: str = "", arguments: Mapping[str, Any] | None = None) -> None:
        """`task` is `file.py:function` or `module:function`. Raises `ConfigError` where it does not fit."""
        self._where = (task, json.dumps(dict(arguments or {}), sort_keys=True))
        if task:
            _load(*self._where)

    def configured(self, options: Mapping[str, Any]) -> InspectFamily:
        """The family of one task. Raises `ConfigError`."""
        if not isinstance(options.get("task"), str) or not options.keys() <= {"task", "arguments"}:
            raise ConfigError("inspect has the options `task`, as file.py:function or module:function, and `arguments`")
        return InspectFamily(options["task"], options.get("arguments"))

    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return tuple(SHARES)

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """Up to `n` of the task's samples, in an order that the seed shuffles. Raises `DataError`."""
        if not self._where[0]:
            raise DataError("inspect has no tasks of its own; name one: `options: {task: file.py:function}`")
        if split not in SHARES:
            raise DataError(f"inspect has no split {split!r}; it has {', '.join(SHARES)}")
        numbers = list(range(len(_load(*self._where).dataset)))
        rng_for(seed, "inspect", *self._where).shuffle(numbers)
        found: dict[str, Task] = {}
        for number in numbers:
            if len(found) == n:
                break
            task = self._task(number, split)
            if in_share(task.messages, split):
                found.setdefault(task.id, task)
        return list(found.values())

    def _task(self, number: int, split: str) -> Task:
        sample = _load(*self._where).dataset[number]
        target = sample.target if isinstance(sample.target, str) else " | ".join(sample.target)
        params = {"task": self._where[0], "arguments": self._where[1], "sample": number}
        return Task(
            family=self.name,
            kind=self._where[0].rpartition(":")[2],
            messages=question(*self._where, number),
            answer={"target": target},
            verifiers=(VerifierSpec(name="inspect", params=params),),
            split=split,
            source=self._where[0],
        )

    def environment(self, task: Task) -> Environment:
        """Nothing to act on."""
        return NoEnvironment()

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The question with the sample's target, as far as that is an answer."""
        return (*task.messages, Message(role="assistant", content=task.answer["target"]))


@functools.lru_cache(maxsize=4096)
def question(task: str, arguments: str, number: int) -> tuple[Message, ...]:
    """What the model is asked about a sample. `arguments` is JSON. Raises `DataError` for what is no text."""
    loaded = _load(task, arguments)
    state = _asked(loaded, number)
    return tuple(_message(message) for message in state.messages)


def grade(task: str, arguments: str, number: int, text: str) -> dict[str, tuple[float, str]]:
    """What each scorer of the task says of an answer: a number, 1 being right, and its explanation."""
    loaded = _load(task, arguments)
    state, calls, asked = _answered(loaded, number, text)
    if calls != 1 or asked != question(task, arguments, number):  # it draws lots, or depends on the answer
        raise DataError("the solver asks otherwise than before, so what was answered cannot be scored")
    return _run(_score(loaded, state))


async def _score(loaded: Any, state: Any) -> dict[str, tuple[float, str]]:
    from inspect_ai.scorer import value_to_float

    number_of, found = value_to_float(), {}
    for scorer in loaded.scorer:
        score = await scorer(state, state.target)
        values = score.value if isinstance(score.value, Mapping) else {_name(scorer): score.value}
        for key, value in values.items():
            found[str(key)] = (float(number_of(value)), score.explanation or "")
    return found


@functools.lru_cache(maxsize=16)
def _load(task: str, arguments: str) -> Any:
    try:
        import inspect_ai
    except ImportError as error:
        raise ConfigError("inspect needs its package: pip install 'metier[inspect]'") from error
    made = import_object(task, "task of Inspect")(**json.loads(arguments))
    if not isinstance(made, inspect_ai.Task):
        raise ConfigError(f"{task} returns no inspect_ai.Task")
    _check(task, made)
    return made


def _check(task: str, made: Any) -> None:
    """Refuse what does not fit. Raises `ConfigError` that names it."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"Inspect task {task!r} does not fit here: it {what}; measure it with inspect eval instead")

    if made.sandbox is not None or any(s.sandbox is not None for s in made.dataset):
        raise refuse("needs a sandbox")
    if made.setup is not None or any(s.files or s.setup for s in made.dataset):
        raise refuse("sets files up")
    if not len(made.dataset):
        raise refuse("has no samples")
    if not made.scorer:
        raise refuse("has no scorer")
    models = [_name(scorer) for scorer in made.scorer if "model_graded" in _name(scorer)]
    if models:
        raise refuse(f"is scored by a model ({models[0]})")
    try:
        if _asked(made, 0).tools:
            raise refuse("uses tools")
        if (calls := _answered(made, 0, "")[1]) != 1:
            raise refuse(f"asks the model {calls} times")
    except DataError as error:
        raise refuse(str(error)) from error


class _Asks(Exception):
    """The solver asks the model."""

    def __init__(self, state: Any) -> None:
        super().__init__("the solver asks the model")
        self.state = state


def _asked(loaded: Any, number: int) -> Any:
    """The state in which the solver asks the model first."""

    async def ask(state: Any, *_: Any, **__: Any) -> Any:
        raise _Asks(state)

    try:
        _run(loaded.solver(_state(loaded, number), ask))
    except _Asks as asks:
        return asks.state
    raise DataError("never asks the model")


def _answered(loaded: Any, number: int, text: str) -> tuple[Any, int, tuple[Message, ...]]:
    """The state at the solver's end when the model says `text`; how often it was asked, and what at first."""
    from inspect_ai.model import ChatMessageAssistant, ModelOutput

    calls, asked = 0, tuple[Message, ...]()

    async def answer(state: Any, *_: Any, **__: Any) -> Any:
        nonlocal calls, asked
        calls += 1
        asked = asked or tuple(_message(message) for message in state.messages)
        state.messages.append(ChatMessageAssistant(content=text))
        state.output = ModelOutput.from_content(str(state.model), text)
        return state

    return _run(loaded.solver(_state(loaded, number), answer)), calls, asked


def _state(loaded: Any, number: int) -> Any:
    from inspect_ai.model import ChatMessageUser, ModelName
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    sample = copy.deepcopy(loaded.dataset[number])  # solvers write into messages
    said = [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else list(sample.input)
    return TaskState(
        model=ModelName("metier/policy"),
        sample_id=sample.id or number,
        epoch=1,
        input=sample.input,
        messages=said,
        target=Target(sample.target),
        choices=sample.choices,
        metadata=dict(sample.metadata or {}),
    )


def _message(message: Any) -> Message:
    if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
        raise DataError(f"has a message of {message.role} that is not only text")
    if message.role not in ("system", "user", "assistant"):
        raise DataError(f"has a message of {message.role}")
    return Message(role=message.role, content=message.text)


def _name(scorer: Any) -> str:
    from inspect_ai._util.registry import registry_unqualified_name

    try:
        return str(registry_unqualified_name(scorer))
    except ValueError:  # a scorer that was never registered
        return getattr(scorer, "__name__", "score")


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)
