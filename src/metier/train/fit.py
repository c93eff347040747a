"""Training from a plain file, without a recipe: rows, objective, checkpoint.

`fit` reads rows, makes examples, computes the reference's log-probabilities once where the
objective needs them, and runs the one training step over shuffled batches. The state is
kept in the output folder while it works: the same call continues where it was stopped
and ends with the same weights. Objectives that need episodes (policy gradients) are not
for files; recipes run them.

Left out: evaluation, which is the caller's (`on_event`); choosing among checkpoints.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metier.base.clock import monotonic
from metier.base.config import Settings
from metier.base.errors import ConfigError, DataError
from metier.base.ids import content_hash
from metier.base.lock import only_one
from metier.base.memory import keep_freed_memory
from metier.base.seeds import rng_for
from metier.models.adapters import Adapter, add_adapter, has_adapter
from metier.models.hub import load_model, load_scorer, load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.events import EventLog, Listener
from metier.train.checkpoints import Saver, save_model
from metier.train.data import Encoder, TooLong, limited, read_rows
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.preferences import kto_point
from metier.train.objectives.protocol import Objective
from metier.train.objectives.registry import get_objective
from metier.train.optimizer import OptimizerName
from metier.train.packing import Example, ends_in_loss
from metier.train.score import score

__all__ = ["FitSettings", "fit"]

Positive = Annotated[int, Field(ge=1)]
STAGE = "train"


class FitSettings(Settings):
    """What `metier train` takes."""

    objective: str
    model: str = "smollm2"
    data: str
    out: str
    options: dict[str, Any] = Field(default_factory=dict)  # of the objective
    teacher: str | None = None  # for distill: a model with the same tokenizer
    heads: Positive = 1  # for reward and process_reward: an ensemble of so many
    renderer: Literal["auto", "chatml", "template"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
    lr: Annotated[float, Field(gt=0)] = 1e-5
    epochs: Positive = 1
    batch: Positive = 16  # rows per step
    max_steps: Positive | None = None
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0  # steps
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(ge=0)] = 1.0
    max_length: Positive = 2048  # tokens of a row
    too_long: TooLong = "error"
    token_budget: Positive = 1600  # packed tokens of one micro-batch
    adapter: Adapter | None = None  # train a LoRA adapter instead of all weights
    optimizer: OptimizerName = "adamw"
    checkpointing: bool = False  # compute layers twice to save memory
    save_seconds: Annotated[float, Field(ge=0)] = 60.0


def fit(settings: FitSettings, *, on_event: Listener | None = None) -> dict[str, Any]:
    """Train as told and return {"out", "weights_hash", "steps", "rows", counts of rows left out, last metrics}.

    Raises a `MetierError` for everything that the user can mend; nothing that was written is lost.
    """
    objective = get_objective(settings.objective, **settings.options)
    if objective.rows == "episode":
        raise ConfigError(
            f"{settings.objective!r} learns from episodes, not from a file; name it as the method of an `rl` stage "
            "of a recipe and run `metier run`"
        )
    if settings.adapter is not None and objective.output == "scores":
        raise ConfigError(f"{settings.objective!r} trains a score head with all weights; leave adapter out")
    rows = read_rows(settings.data)
    out = Path(settings.out)
    identity = {"config": settings.model_dump(mode="json"), "data_hash": content_hash([dict(row) for row in rows])}
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out, "choose another out"):
        _claim(out, identity)
        return _done(out) or _fit(settings, objective, rows, out, identity, on_event)


def _fit(
    settings: FitSettings,
    objective: Objective,
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    identity: Mapping[str, Any],
    on_event: Listener | None,
) -> dict[str, Any]:
    keep_freed_memory()
    tokenizer = load_tokenizer(settings.model)
    renderer = get_renderer(tokenizer, settings.renderer)
    encoder = Encoder(tokenizer, renderer)
    scored = objective.output == "scores"
    made = [encoder.unit(row, objective.rows, number, scored=scored) for number, row in enumerate(rows, 1)]
    units, counts = limited(made, settings.max_length, settings.too_long)
    dtype = getattr(torch, settings.dtype)
    teacher = _teacher(settings, objective, tokenizer)
    if scored:
        torch.manual_seed(settings.seed)  # the new head is random
        model = load_scorer(settings.model, heads=settings.heads, dtype=dtype)
    else:
        quantize = "none" if settings.adapter is None else settings.adapter.quantize
        model = load_model(settings.model, dtype=dtype, quantize=quantize)
    per_epoch = math.ceil(len(units) / settings.batch)
    steps = min(per_epoch * settings.epochs, settings.max_steps or per_epoch * settings.epochs)
    with EventLog(out, [on_event] if on_event else []) as log:
        log.emit("", "run_start", stages=[STAGE])
        log.emit(STAGE, "stage_start")
        began = monotonic()
        if any(counts.values()):
            log.emit(
                STAGE, "note", text=", ".join(f"{n} rows {what.replace('_', ' ')}" for what, n in counts.items() if n)
            )
        strangers: list[Example] = []
        if objective.needs_reference:
            units = _with_reference(model, units, settings)
            if objective.rows == "judged":
                strangers = _strangers(units)
                strangers = [u[0] for u in _with_reference(model, [[e] for e in strangers], settings)]
        if settings.adapter is not None and not has_adapter(model):  # an adapter that is there learns on
            add_adapter(model, settings.adapter, seed=settings.seed)
        trainer = Trainer(
            model,
            TrainSettings(
                lr=settings.lr,
                schedule=settings.schedule,
                warmup=settings.warmup,
                steps=steps,
                weight_decay=settings.weight_decay,
                clip=settings.clip,
                token_budget=settings.token_budget,
                optimizer=settings.optimizer,
                checkpointing=settings.checkpointing,
            ),
            objective,
            teacher=teacher,
        )
        saver = Saver(trainer, out / "state", settings.save_seconds)
        if saver.resume():
            log.emit(STAGE, "note", text=f"continues after step {trainer.step_number}")
        ends = {} if scored else {"ends_in_loss": ends_in_loss([e for u in units for e in u], renderer.stop_ids)}
        metrics: dict[str, float] = {}
        while trainer.step_number < steps:
            step = trainer.step_number
            epoch, place = divmod(step, per_epoch)
            order = list(range(len(units)))
            rng_for(settings.seed, "train", epoch).shuffle(order)
            chosen = order[place * settings.batch : (place + 1) * settings.batch]
            batch = [example for index in chosen for example in units[index]]
            if strangers:
                batch = _with_point(trainer, batch, [strangers[index] for index in chosen], settings)
            metrics = trainer.step(batch)
            log.emit(STAGE, "step", step=step + 1, steps=steps, **metrics, **ends)
            saver.after_step()
        manifest = {
            **identity,
            "objective": settings.objective,
            "rows": len(units),
            "left_out": counts,
            "steps": steps,
            "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
        }
        digest = save_model(trainer.model, tokenizer, out / "model", template=renderer.template, manifest=manifest)
        shutil.rmtree(out / "state", ignore_errors=True)
        log.emit(STAGE, "stage_end", seconds=monotonic() - began)
    return {"out": str(out / "model"), "weights_hash": digest, "steps": steps, "rows": len(units), **counts}


def _claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Note what is trained in this folder. Raises `ConfigError` where something else is, finished or not."""
    file = out / "train.json"
    if file.is_file():
        if json.loads(file.read_text()) != identity:
            raise ConfigError(f"{out} holds a training of other settings or data; choose another out, or remove it")
        return
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(identity))
    partial.rename(file)


def _done(out: Path) -> dict[str, Any] | None:
    """The result of an earlier call that came to its end."""
    file = out / "model" / "metier.json"
    if not file.is_file():
        return None
    noted = json.loads(file.read_text())
    kept = {"out": str(out / "model"), "weights_hash": noted["weights_hash"], "steps": noted["steps"]}
    return {**kept, "rows": noted["rows"], **noted["left_out"]}


def _teacher(settings: FitSettings, objective: Objective, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """The teacher where the objective has one. Raises `ConfigError` where it, or the same tokenizer, is missing."""
    if objective.output != "divergence":
        if settings.teacher is not None:
            raise ConfigError(f"objective {settings.objective!r} takes no teacher")
        return None
    if settings.teacher is None:
        raise ConfigError(
            f"objective {settings.objective!r} needs a teacher; set teacher to a model of the same tokenizer"
        )
    if load_tokenizer(settings.teacher).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{settings.teacher!r} and {settings.model!r} have different tokenizers; a student learns word by word "
            "from a teacher of its own tokenizer only"
        )
    return load_model(settings.teacher, dtype=getattr(torch, settings.dtype))


def _with_reference(
    model: PreTrainedModel, units: Sequence[Sequence[Example]], settings: FitSettings
) -> list[list[Example]]:
    """The same units with the log-probabilities of the model as it is now."""
    flat = [example for unit in units for example in unit]
    found = iter(score(model, flat, token_budget=settings.token_budget))
    return [[replace(example, reference_logprobs=next(found)) for example in unit] for unit in units]


def _strangers(units: Sequence[Sequence[Example]]) -> list[Example]:
    """For KTO's point: each row's prompt with the answer of the next row."""
    if len(units) < 2:
        raise DataError("kto needs two rows at least, to estimate its KL from answers that belong to other prompts")
    made = []
    for (own,), (other,) in zip(units, [*units[1:], units[0]], strict=True):
        head, start = own.loss_mask.index(1), other.loss_mask.index(1)
        made.append(
            Example(
                own.token_ids[:head] + other.token_ids[start:],
                own.loss_mask[:head] + other.loss_mask[start:],
                cuts=tuple(c for c in own.cuts if c <= head),
                key=f"{own.key} with another answer",
            )
        )
    return made


def _with_point(
    trainer: Trainer, batch: Sequence[Example], strangers: Sequence[Example], settings: FitSettings
) -> list[Example]:
    now = score(trainer.model, strangers, token_budget=settings.token_budget)
    point = kto_point(now, [e.reference_logprobs for e in strangers])
    return [replace(example, margin=point) for example in batch]
