"""An engine that says what is written, for tests of what stands around an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from metier.models.renderer import Renderer
from metier.records.types import Message, Task, ToolCall
from metier.rollout.engine import Drawn, OnWord, Request, Word

__all__ = ["Scripted", "written"]


class Scripted:
    """The smallest thing that keeps the protocol: a turn a step for all who may speak."""

    def __init__(self, turns: Sequence[Sequence[tuple[int, ...]]], context: int = 1 << 20) -> None:
        self.context = context
        self.steps: list[list[int]] = []  # who spoke
        self._turns = [list(some) for some in turns]
        self._due: list[int] = []
        self._on_word: OnWord | None = None

    def session(self, on_word: OnWord | None = None) -> Scripted:
        self._on_word = on_word
        return self

    def add(self, number: int, request: Request) -> None:
        self._due.append(number)

    def reply(self, number: int, token_ids: tuple[int, ...]) -> None:
        self._due.append(number)

    def end(self, number: int) -> None:
        pass

    @property
    def speaking(self) -> bool:
        return bool(self._due)

    def step(self) -> list[tuple[int, Drawn]]:
        due, self._due = self._due, []
        if due:
            self.steps.append(due)
        if self._on_word is not None:
            for number in due:
                self._on_word(number, Word(0, 0.0))
        return [(n, Drawn(ids := self._turns[n].pop(0), (-0.1,) * len(ids), "stop")) for n in due]


def written(renderer: Renderer, task: Task, said: str, *calls: dict[str, Any]) -> tuple[int, ...]:
    """The tokens of an assistant's turn: a text, and calls of the task's first tool with these arguments."""
    made = tuple(ToolCall(id="1", name=task.tools[0].name, arguments=json.dumps(arguments)) for arguments in calls)
    whole = renderer.render((*task.messages, Message(role="assistant", content=said, tool_calls=made)), task.tools)
    return tuple(t for t, mine in zip(whole.token_ids, whole.loss_mask, strict=True) if mine)
