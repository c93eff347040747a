"""The task family "desk": splits, their order, and the oracle.

    demo            training desks, demo phrasings: for demonstrations
    train           training desks, rl phrasings: for RL
    heldout         training desks, new phrasings, names, items and ids
    unseen_tool     one more tool than in training, and every task needs it
    changed_policy  policy values that training never had, and every task turns on them
    unseen_desk     desks of another trade

Tasks come in blocks that hold each kind of work equally often (a request to decline has
its allowed twin beside it), each drawn from its own place under the seed, so a longer
list begins with the shorter one. Twins of a decline
stay next to each other; where `n` would cut them apart, the last place goes to the next
single task instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metier.base.errors import DataError
from metier.base.seeds import rng_for
from metier.records.types import Message, Task, ToolCall
from metier.tasks.desk.desks import TRAIN_DESKS, UNSEEN_DESKS, load
from metier.tasks.desk.environment import DeskEnvironment
from metier.tasks.desk.generate import VERSION, Maker
from metier.tasks.desk.phrasing import Pool

__all__ = ["KINDS", "DeskFamily"]

KINDS = ("lookup", "act", "several", "ask", "decline", "answer", "handover")
_FULL = ("lookup", "act", "several", "ask", "answer", "handover", "decline") * 2  # a decline makes two tasks


@dataclass(frozen=True, slots=True)
class _Split:
    desks: tuple[str, ...]
    pool: Pool
    held: bool = True  # names, items and ids of their own
    changed: bool = False
    extra: bool = False
    block: tuple[str, ...] = _FULL


_SPLITS = {
    "demo": _Split(TRAIN_DESKS, "demo", held=False),
    "train": _Split(TRAIN_DESKS, "rl", held=False),
    "heldout": _Split(TRAIN_DESKS, "heldout"),
    "unseen_tool": _Split(TRAIN_DESKS, "heldout", extra=True, block=("act", "several", "ask")),
    "changed_policy": _Split(TRAIN_DESKS, "heldout", changed=True, block=("answer", "answer", "decline")),
    "unseen_desk": _Split(UNSEEN_DESKS, "heldout"),
}


class DeskFamily:
    """An assistant at the service desks of small businesses."""

    name = "desk"
    version = VERSION

    def splits(self) -> Sequence[str]:
        """The names of the splits, training first, then the ladder from near to far."""
        return tuple(_SPLITS)

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """`n` different tasks of a split, all kinds of work equally often."""
        if split not in _SPLITS:
            raise DataError(f"the desk has no split {split!r}; it has {', '.join(_SPLITS)}")
        if n < 0:
            raise DataError(f"cannot make {n} tasks; ask for 0 or more")
        tasks: list[Task] = []
        for group in _groups(split, seed):
            if len(tasks) >= n:
                break
            if len(tasks) + len(group) <= n:
                tasks.extend(group)
            elif n == 1:
                tasks.extend(group[:1])
        return tasks

    def environment(self, task: Task) -> DeskEnvironment:
        """The desk as the task finds it."""
        if task.environment is None or task.environment.name != "desk":
            raise DataError(f"task {task.id} is not about a desk; it has no environment of that name")
        return DeskEnvironment(task.environment.state)

    def demonstrate(self, task: Task) -> tuple[Message, ...]:
        """The oracle's steps played through a real environment."""
        environment = self.environment(task)
        messages = list(task.messages)
        calls = 0
        for step in task.answer["steps"]:
            if "say" in step:
                messages.append(Message(role="assistant", content=step["say"]))
                reply = environment.reply(step["say"])
                if reply is not None:
                    messages.append(Message(role="user", content=reply))
                continue
            calls += 1
            call = ToolCall(
                name=step["call"], arguments=json.dumps(step["arguments"], ensure_ascii=False), id=f"call_{calls}"
            )
            messages.append(Message(role="assistant", content=step.get("note", ""), tool_calls=(call,)))
            result = environment.call(call)
            messages.append(Message(role="tool", content=result, tool_call_id=call.id, name=call.name))
        return tuple(messages)


def _groups(split: str, seed: int) -> Iterator[list[Task]]:
    """Single tasks and twins, without end and without repeats."""
    plan = _SPLITS[split]
    seen: set[str] = set()
    block = 0
    while True:
        order = rng_for(seed, "desk", split, "order", block)
        places = list(range(len(plan.block)))
        desks = [plan.desks[(place + block) % len(plan.desks)] for place in places]
        order.shuffle(desks)
        order.shuffle(places)
        for place in places:
            for attempt in range(1000):
                rng = rng_for(seed, "desk", split, block, place, attempt)
                desk = load(desks[place])
                known = desk.variants[:2] if plan.extra else desk.variants
                variant = rng.choice(desk.changed if plan.changed else known)
                maker = Maker(desk, variant, split=split, pool=plan.pool, held=plan.held, extra=plan.extra, rng=rng)
                group = maker.make(plan.block[place])
                ids = {task.id for task in group}
                if not ids & seen and len(ids) == len(group):
                    break
            else:
                raise DataError(f"no new task can be made for split {split!r} after {len(seen)}")
            seen |= ids
            yield group
        block += 1
