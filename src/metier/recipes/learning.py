"""What the stages that train share: the order of examples, saving, publishing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from metier.base.clock import now
from metier.recipes.context import Context
from metier.recipes.settings import Rl, Sft
from metier.records.types import Checkpoint, Task
from metier.train.checkpoints import Saver, save_model
from metier.train.loop import Trainer

__all__ = ["in_blocks", "publish", "saver_of"]

T = TypeVar("T")


def saver_of(context: Context, stage: str, trainer: Trainer) -> Saver:
    """Keeps the trainer's state in the run folder; goes on from the newest one where there is one."""
    folder, recipe = context.folder / "state" / stage, context.recipe
    saver = Saver(trainer, folder, recipe.save_seconds, keep=recipe.keep_states)
    if saver.resume():
        context.emit(stage, "note", text=f"continues after step {trainer.step_number}")
    return saver


def publish(context: Context, stage: Sft | Rl, trainer: Trainer, dataset: str, metrics: Mapping[str, float]) -> str:
    """Write the checkpoint of a finished training stage, in Hugging Face layout."""
    config = stage.model_dump(mode="json")
    parent = context.checkpoint_id(stage.of)
    folder = context.folder / "checkpoints" / stage.name
    checkpoint_id = context.checkpoint_id(stage.name)
    manifest = {
        "id": checkpoint_id,
        "run": context.run_id,
        "stage": stage.name,
        "parent": parent,
        "datasets": [dataset],
    }
    weights_hash = save_model(
        trainer.model,
        context.tokenizer,
        folder,
        template=context.renderer.template,
        manifest={**manifest, "config": config},
    )
    context.ledger.add_checkpoint(
        Checkpoint(
            id=checkpoint_id,
            run_id=context.run_id,
            stage=stage.name,
            step=trainer.step_number,
            path=f"checkpoints/{stage.name}",
            parent=parent,
            dataset_ids=(dataset,),
            objective="sft" if isinstance(stage, Sft) else stage.method,
            config=config,
            code_version=context.ledger.run(context.run_id).code_version,
            weights_hash=weights_hash,
            metrics={k: v for k, v in metrics.items() if math.isfinite(v)},
            created_at=now(),
        )
    )
    return weights_hash


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
