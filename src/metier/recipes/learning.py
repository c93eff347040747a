"""What the stages that train share: the order of examples, saving, publishing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from metier.base.clock import now
from metier.base.ids import derive_id
from metier.recipes.context import Context
from metier.recipes.settings import Fit, Judge, Rl, Sft
from metier.records.types import Checkpoint, Task
from metier.rollout.episodes import Plan, plan_id
from metier.train.checkpoints import Saver, save_model
from metier.train.loop import Trainer

__all__ = ["group_of", "in_blocks", "manifest_of", "publish", "record", "saver_of"]

T = TypeVar("T")


def saver_of(context: Context, stage: str, trainer: Trainer) -> Saver:
    """Keeps the trainer's state in the run folder; goes on from the newest one where there is one."""
    folder, recipe = context.folder / "state" / stage, context.recipe
    saver = Saver(trainer, folder, recipe.save_seconds, keep=recipe.keep_states)
    if saver.resume():
        context.emit(stage, "note", text=f"continues after step {trainer.step_number}")
    return saver


def group_of(context: Context, stage: str, task: Task, size: int, *place: int) -> list[Plan]:
    """A group of episodes of one task; `place` is the group's in the stage."""
    group = derive_id("group", context.run_id, stage, *place)
    return [
        Plan(
            id=plan_id(context.run_id, stage, *place, index),
            task=task,
            seed=context.seed(stage, *place, index),
            index=index,
            group_id=group,
        )
        for index in range(size)
    ]


def manifest_of(context: Context, stage: Sft | Rl | Fit | Judge, dataset: str) -> dict[str, Any]:
    """What a checkpoint says of itself in its folder."""
    return {
        "id": context.checkpoint_id(stage.name),
        "run": context.run_id,
        "stage": stage.name,
        "parent": context.checkpoint_id(stage.of),
        "datasets": [dataset],
    }


def publish(context: Context, stage: Sft | Rl, trainer: Trainer, dataset: str, metrics: Mapping[str, float]) -> str:
    """Write the checkpoint of a finished training stage, in Hugging Face layout."""
    weights_hash = save_model(
        trainer.model,
        context.tokenizer,
        Path(context.place(stage.name)),
        template=context.renderer.template,
        manifest={**manifest_of(context, stage, dataset), "config": stage.model_dump(mode="json")},
    )
    objective = "sft" if isinstance(stage, Sft) else stage.method
    record(context, stage, dataset, objective, trainer.step_number, weights_hash, metrics)
    return weights_hash


def record(
    context: Context,
    stage: Sft | Rl | Fit | Judge,
    dataset: str,
    objective: str,
    step: int,
    weights_hash: str,
    metrics: Mapping[str, float],
) -> None:
    """Name the checkpoint of a finished training stage in the ledger."""
    context.ledger.add_checkpoint(
        Checkpoint(
            id=context.checkpoint_id(stage.name),
            run_id=context.run_id,
            stage=stage.name,
            step=step,
            path=f"checkpoints/{stage.name}",
            parent=context.checkpoint_id(stage.of),
            dataset_ids=(dataset,),
            objective=objective,
            config=stage.model_dump(mode="json"),
            code_version=context.ledger.run(context.run_id).code_version,
            weights_hash=weights_hash,
            metrics={k: v for k, v in metrics.items() if math.isfinite(v)},
            created_at=now(),
        )
    )


def in_blocks(items: Sequence[T], task_of: Callable[[T], Task], block: int, rng: random.Random) -> list[T]:
    """A shuffle that keeps up to `block` items that share a system prompt together.

    A shared system prompt is computed once per batch, so blocks of one prompt cost less
    than a full shuffle; the blocks themselves come in random order, so that batches of a
    block's size hold whole blocks, and what fills no block comes last. Twins (`meta.pair`:
    the same request, once allowed and once not) stay side by side: in different steps, each
    would push towards its own answer whatever was asked, and what tells them apart would be
    lost between the two. They fall in one step where steps hold whole blocks, and among what
    comes last where steps are even.
    """
    units: dict[tuple[str, object], list[T]] = {}
    for number, item in enumerate(items):
        pair = task_of(item).meta.get("pair")
        units.setdefault(("alone", number) if pair is None else ("pair", str(pair)), []).append(item)
    sharing: dict[str, list[list[T]]] = {}
    for unit in units.values():
        sharing.setdefault(str(task_of(unit[0]).messages[0].content), []).append(unit)
    blocks: list[list[list[T]]] = []
    for some in sharing.values():
        rng.shuffle(some)
        blocks += _first_fit(some, block)
    rng.shuffle(blocks)
    whole = [unit for made in blocks if sum(map(len, made)) >= block for unit in made]
    rest = [unit for made in blocks if sum(map(len, made)) < block for unit in made]
    rest.sort(key=len, reverse=True)
    return [item for unit in whole + rest for item in unit]


def _first_fit(units: Sequence[list[T]], block: int) -> list[list[list[T]]]:
    """Blocks of units, each unit in the first block that has room for it."""
    blocks: list[list[list[T]]] = []
    room: dict[int, int] = {}  # of the blocks that are not full
    for unit in units:
        place = next((number for number, left in room.items() if len(unit) <= left), len(blocks))
        if place == len(blocks):
            blocks.append([])
        blocks[place].append(unit)
        room[place] = room.get(place, block) - len(unit)
        if room[place] <= 0:
            del room[place]
    return blocks
