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
from collections.abc import Mapping, Sequence
from typing import Any

from metier.base.errors import ConfigError, DataError
from metier.records.types import Message, Task
from metier.tasks.foreign import ForeignFamily, Grade, import_object

__all__ = ["InspectFamily"]


class InspectFamily(ForeignFamily):
    """One task of Inspect."""

    name = "inspect"
    options = ("task", "arguments")
    kind = "function"

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The question with the sample's target, as far as that is an answer."""
        return (*task.messages, Message(role="assistant", content=task.answer["target"]))

    @staticmethod
    def count(source: str, config: str) -> int:
        """See `ForeignFamily.count`."""
        return len(_load(source, config).dataset)

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def question(source: str, config: str, number: int) -> tuple[Message, ...]:
        """See `ForeignFamily.question`."""
        return tuple(_message(message) for message in _asked(_load(source, config), number).messages)

    @staticmethod
    def answer(source: str, config: str, number: int) -> Mapping[str, Any]:
        """The sample's target."""
        target = _load(source, config).dataset[number].target
        return {"target": target if isinstance(target, str) else " | ".join(target)}

    @staticmethod
    def grade(source: str, config: str, number: int, messages: Sequence[Message]) -> Mapping[str, Grade]:
        """See `ForeignFamily.grade`. Raises `DataError` where the solver asks otherwise than before."""
        loaded = _load(source, config)
        text = messages[-1].content if messages[-1].role == "assistant" else ""
        state, calls, asked = _answered(loaded, number, text)
        if calls != 1 or asked != InspectFamily.question(source, config, number):
            raise DataError("the solver draws lots, or depends on the answer, so what was answered cannot be scored")
        return asyncio.run(_score(loaded, state))


async def _score(loaded: Any, state: Any) -> dict[str, Grade]:
    from inspect_ai.scorer import value_to_float

    number_of = value_to_float()
    found: dict[str, Grade] = {}
    for scorer in loaded.scorer:
        score = await scorer(state, state.target)
        values = score.value if isinstance(score.value, Mapping) else {_name(scorer): score.value}
        for key, value in values.items():
            found[str(key)] = Grade(float(number_of(value)), score.explanation or "")
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
        asyncio.run(loaded.solver(_state(loaded, number), ask))
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

    return asyncio.run(loaded.solver(_state(loaded, number), answer)), calls, asked


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
