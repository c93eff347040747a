"""The items of a queue as episodes of the ledger.

An item that brings messages and responses becomes a task and an episode for each response,
under ids made of what they say, so that opening a queue again adds nothing. A task that the
ledger holds already keeps its split: what is held out stays held out. Who wrote a response
is the episode's checkpoint; no page shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from metier.base.clock import now
from metier.base.errors import DataError
from metier.base.ids import content_hash, derive_id
from metier.feedback.people.queue import Item, Queue
from metier.records import schema
from metier.records.ledger import Ledger
from metier.records.types import Episode, Task, Weights

__all__ = ["take_in"]

_BATCH = 500  # items of one transaction, and ids of one query


def take_in(ledger: Ledger, queue: Queue) -> dict[str, tuple[str, ...]]:
    """The episodes of each item, in the item's own order; those that were not in the ledger are now.

    Raises `DataError` where an item names an episode that the ledger does not hold.
    """
    episodes = {item.id: item.episodes for item in queue.items if item.episodes}
    there = ledger.known(schema.episodes, (one for ids in episodes.values() for one in ids))
    for item_id, ids in episodes.items():
        for one in ids:
            if one not in there:
                raise DataError(f"item {item_id!r} of {queue.key} names episode {one!r}, which is not in the ledger")
    brought = [item for item in queue.items if not item.episodes]
    for start in range(0, len(brought), _BATCH):
        episodes.update(_add(ledger, queue, brought[start : start + _BATCH]))
    return episodes


def _add(ledger: Ledger, queue: Queue, items: Sequence[Item]) -> dict[str, tuple[str, ...]]:
    run_id = derive_id("run", "label", queue.name)
    tasks = {item.id: _task(item, queue) for item in items}
    made = {item.id: _episodes(item, tasks[item.id].id, run_id) for item in items}
    known = ledger.known(schema.episodes, (one.id for found in made.values() for one in found))
    new = [one for found in made.values() for one in found if one.id not in known]
    if new:
        ledger.ensure_run(run_id, "label", {"queue": queue.name}, seed=queue.seed)
        held = ledger.known(schema.tasks, (task.id for task in tasks.values()))
        ledger.add_tasks(list({t.id: t for t in tasks.values() if t.id not in held}.values()))
        splits = {task_id: task.split for task_id, task in ledger.tasks(held).items()} if held else {}
        ledger.add_episodes([_in_split(one, splits.get(one.task_id, one.split)) for one in new])
    return {item_id: tuple(one.id for one in found) for item_id, found in made.items()}


def _task(item: Item, queue: Queue) -> Task:
    return Task(
        family="label", kind=queue.name, messages=item.messages, tools=item.tools, split="label", source=queue.name
    )


def _episodes(item: Item, task_id: str, run_id: str) -> list[Episode]:
    return [
        Episode(
            id=derive_id("ep", run_id, task_id, content_hash([m.to_openai() for m in response]), index),
            task_id=task_id,
            run_id=run_id,
            stage="label",
            weights=Weights(checkpoint=item.models[index] if item.models else "unknown"),
            messages=(*item.messages, *response),
            index=index,
            split="label",
            created_at=now(),
        )
        for index, response in enumerate(item.responses)
    ]


def _in_split(episode: Episode, split: str) -> Episode:
    from dataclasses import replace

    return episode if episode.split == split else replace(episode, split=split)
