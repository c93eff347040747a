"""Tasksets of the verifiers package as a family, where they fit: text in, text out, scored from the conversation.

    tasks:
      family: verifiers
      options: {taskset: "tasksets/sums.py:Sums", config: {n: 100}}

names a `Taskset` of verifiers' v1, in a file or an importable module. Its tasks' prompts become
ours, and their `@reward` functions score an episode. Tools, containers, skills, tasks that open
with a user's words, set-up and tear-down of a runtime, rewards that need one, and judges are
refused when the taskset is loaded; nothing is left out in silence.

Splits are `all`, and `demo`, `train` and `heldout`, which have no question in common. Needs
the extra `verifiers`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from metier.base.errors import ConfigError, DataError
from metier.records.types import Message, Task
from metier.tasks.foreign import ForeignFamily, Grade, import_object

__all__ = ["VerifiersFamily"]

_MOST = 10_000  # tasks of a taskset that are looked at


class VerifiersFamily(ForeignFamily):
    """One taskset of verifiers."""

    name = "verifiers"
    options = ("taskset", "config")
    kind = "Class"

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """Raises `DataError`: a taskset has rewards and no answers."""
        raise DataError("tasksets of verifiers hold no demonstrations; bring your own for SFT")

    @staticmethod
    def count(source: str, config: str) -> int:
        """See `ForeignFamily.count`."""
        return len(_load(source, config))

    @staticmethod
    def question(source: str, config: str, number: int) -> tuple[Message, ...]:
        """See `ForeignFamily.question`."""
        data = _load(source, config)[number].data
        said = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else data.prompt
        messages = [Message.from_openai(m if isinstance(m, dict) else m.model_dump(exclude_none=True)) for m in said]
        system = [Message(role="system", content=data.system_prompt)] if data.system_prompt else []
        return (*system, *messages)

    @staticmethod
    def grade(source: str, config: str, number: int, messages: Sequence[Message]) -> Mapping[str, Grade]:
        """See `ForeignFamily.grade`. A reward without a positive weight does not count."""
        import verifiers.v1 as vf

        task = _load(source, config)[number]
        asked = len(VerifiersFamily.question(source, config, number))
        nodes = [
            vf.MessageNode(parent=place - 1 if place else None, message=message.to_openai(), sampled=place >= asked)
            for place, message in enumerate(messages)
        ]
        trace: Any = vf.Trace.model_construct(
            task=vf.TraceTask.model_construct(type=type(task).__name__, data=task.data, key=None, hash=None),
            agent=None, nodes=nodes, calls=[], tools=[], rewards={}, metrics={}, info={}, errors=[], extra_usage=[],
            state=vf.State(), is_completed=True, ok=True, root_reply=None, stop_condition=None,
        )  # fmt: skip
        asyncio.run(task.score(trace))
        return {
            name: Grade(float(reward.score), f"{name} {reward.score:g}", reward.weight > 0)
            for name, reward in trace.rewards.items()
            if reward
        }


@functools.lru_cache(maxsize=16)
def _load(taskset: str, config: str) -> Sequence[Any]:
    try:
        import verifiers.v1 as vf
        from verifiers.v1.utils.generic import concrete_type
    except ImportError as error:
        raise ConfigError("verifiers needs its package: pip install 'metier[verifiers]'") from error
    kind = import_object(taskset, "taskset of verifiers")
    if not (isinstance(kind, type) and issubclass(kind, vf.Taskset)):
        raise ConfigError(f"{taskset} is no Taskset of verifiers.v1")
    settings = concrete_type(kind, vf.TasksetConfig) or vf.TasksetConfig
    try:
        made = kind(settings(**json.loads(config)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{taskset} refuses {config}: {error}") from error
    tasks = list(itertools.islice(made, _MOST))
    _check(taskset, kind, made, tasks)
    return tasks


def _check(taskset: str, kind: Any, made: Any, tasks: Sequence[Any]) -> None:
    """Refuse what does not fit. Raises `ConfigError` that names it."""
    import verifiers.v1 as vf

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"taskset {taskset!r} does not fit here: it {what}; run it with verifiers instead")

    if not tasks:
        raise refuse("has no tasks")
    if kind.toolsets(made.config):
        raise refuse("brings tools")
    for task in tasks:
        data, cls = task.data, type(task)
        reasons = {
            "brings tools": bool(cls.toolsets(task.config)),
            "needs a container": bool(cls.NEEDS_CONTAINER or data.image or data.workdir),
            "brings skills": bool(data.skills),
            "begins with a user's own words": data.prompt is None,
            "sets a runtime up": any(
                getattr(cls, hook) is not getattr(vf.Task, hook) for hook in ("setup", "finalize", "stage_verifier")
            ),
            "is scored by a judge": bool(task.config.judges),
            "has no reward": not task.hooks("reward"),
            "has a reward that needs a runtime": any(_needs_runtime(reward) for reward in task.hooks("reward")),
        }
        for what, holds in reasons.items():
            if holds:
                raise refuse(what)


def _needs_runtime(reward: Any) -> bool:
    parameter = inspect.signature(reward).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty
