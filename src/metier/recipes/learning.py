"""What the stages that train share: examples cut where prefixes end, their order, saving, publishing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from metier.base.clock import now
from metier.recipes.context import Context
from metier.recipes.settings import Rl, Sft
from metier.records.types import Checkpoint, Task
from metier.train.checkpoints import Saver, save_model
from metier.train.loop import Trainer, TrainSettings

__all__ = ["in_blocks", "publish", "saver_of", "train_settings"]

T = TypeVar("T")


def train_settings(stage: Sft | Rl, steps: int) -> TrainSettings:
    """How the stage moves weights, over so many optimiser steps."""
    return TrainSettings(
        lr=stage.lr,
        schedule=stage.schedule,
        warmup=stage.warmup,
        steps=steps,
        token_budget=stage.token_budget,
        checkpointing=stage.checkpointing,
        temperature=stage.temperature if isinstance(stage, Rl) else 1.0,
    )


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
    than a full shuffle; the blocks themselves come in random order, those that are not full
    last, so that batches of a block's size hold whole blocks. Twins (`meta.pair`: the same
    request, once allowed and once not) stay side by side in one block: apart, each would
    push towards its own answer whatever was asked, and what tells them apart would be lost
    between the two.
    """
    units: dict[Hashable, list[T]] = {}
    for number, item in enumerate(items):
        units.setdefault(task_of(item).meta.get("pair", number), []).append(item)
    sharing: dict[str, list[list[T]]] = {}
    for unit in units.values():
        sharing.setdefault(str(task_of(unit[0]).messages[0].content), []).append(unit)
    blocks: list[list[T]] = []
    for left in sharing.values():
        rng.shuffle(left)
        while left:
            some: list[T] = []
            for unit in left[:]:
                if not some or len(some) + len(unit) <= block:
                    some.extend(unit)
                    left.remove(unit)
                if len(some) >= block:
                    break
            blocks.append(some)
    rng.shuffle(blocks)
    blocks.sort(key=lambda some: len(some) < block)
    return [item for some in blocks for item in some]
