"""Training from a plain file, without a recipe: rows, objective, checkpoint.

`fit` reads rows, makes examples, computes the reference's log-probabilities once where the
objective needs them, and runs the one training step over shuffled batches. Rows that are
held out are measured on the way, and the weights that do best on them can be kept. The
state is kept in the output folder while it works: the same call continues where it was
stopped and ends with the same weights. Objectives that need episodes (policy gradients)
are not for files; recipes run them.

Left out: evaluation of behaviour, which recipes do.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metier.base.clock import monotonic
from metier.base.errors import ConfigError, DataError
from metier.base.ids import content_hash
from metier.base.lock import only_one
from metier.base.memory import keep_freed_memory
from metier.base.seeds import rng_for
from metier.models.adapters import Adapter, add_adapter, has_adapter
from metier.models.hub import Device, device_of, load_model, load_scorer, load_teacher, load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.events import EventLog, Listener
from metier.train import processes
from metier.train.checkpoints import Saver, put_back, save_model
from metier.train.data import Encoder, TooLong, limited, read_rows, scored_at_end
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.preferences import kto_point
from metier.train.objectives.protocol import Objective
from metier.train.objectives.registry import get_objective
from metier.train.optimizer import Learning, Schedule
from metier.train.packing import Example, ends_in_loss
from metier.train.score import score

__all__ = ["FitSettings", "fit"]

Positive = Annotated[int, Field(ge=1)]
STAGE = "train"


class FitSettings(Learning):
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
    device: Device = "auto"  # a GPU where there is one
    seed: int = 0
    lr: Annotated[float, Field(gt=0)] = 1e-5
    epochs: Positive = 1
    batch: Positive = 16  # rows per step
    max_steps: Positive | None = None
    schedule: Schedule = "cosine"
    max_length: Positive = 2048  # tokens of a row
    too_long: TooLong = "error"
    adapter: Adapter | None = None  # train a LoRA adapter instead of all weights
    eval_data: str | None = None  # rows that are measured and not learned
    eval_every: Annotated[int, Field(ge=0)] = 0  # steps between two measures; 0 is before the first and after the last
    keep: Literal["last", "best"] = "last"  # the weights of the end, or those of the lowest loss on eval_data
    save_seconds: Annotated[float, Field(ge=0)] = 60.0
    keep_states: Positive = 1  # of the states to go on from, how many stay


def fit(
    settings: FitSettings, *, on_event: Listener | None = None, manifest: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train as told and return {"out", "weights_hash", "steps", "rows", "metrics", counts of rows left out}.

    `manifest` is what else the checkpoint should say of itself. Raises a `MetierError` for everything
    that the user can mend; nothing that was written is lost.
    """
    objective = get_objective(settings.objective, **settings.options)
    if objective.rows == "episode":
        raise ConfigError(
            f"{settings.objective!r} learns from episodes, not from a file; name it as the method of an `rl` stage "
            "of a recipe and run `metier run`"
        )
    if settings.eval_data is None and (settings.keep == "best" or settings.eval_every):
        raise ConfigError("keep best and eval_every measure rows that are held out; name them as eval_data")
    if settings.adapter is not None and objective.output == "scores":
        raise ConfigError(f"{settings.objective!r} trains a score head with all weights; leave adapter out")
    rows = read_rows(settings.data)
    out = Path(settings.out)
    held = read_rows(settings.eval_data) if settings.eval_data is not None else []
    identity = {
        "config": settings.model_dump(mode="json"),
        "data_hash": content_hash([dict(row) for row in rows]),
        "eval_hash": content_hash([dict(row) for row in held]),
    }
    processes.join()
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out, "choose another out") if processes.leads() else nullcontext():
        if processes.leads():
            _claim(out, identity)
        processes.wait()
        return _done(out) or _fit(settings, objective, rows, held, out, identity, on_event, manifest or {})


def _fit(
    settings: FitSettings,
    objective: Objective,
    rows: Sequence[Mapping[str, Any]],
    held_rows: Sequence[Mapping[str, Any]],
    out: Path,
    identity: Mapping[str, Any],
    on_event: Listener | None,
    told: Mapping[str, Any],
) -> dict[str, Any]:
    keep_freed_memory()
    tokenizer = load_tokenizer(settings.model)
    renderer = get_renderer(tokenizer, settings.renderer)
    encoder = Encoder(tokenizer, renderer)
    scored = objective.output == "scores"

    def encoded(some: Sequence[Mapping[str, Any]]) -> tuple[list[list[Example]], dict[str, int]]:
        made = [encoder.unit(row, objective.rows, number) for number, row in enumerate(some, 1)]
        unread = int(objective.rows == "steps")  # a step's label stands behind it
        units, counts = limited(made, settings.max_length, settings.too_long, unread=unread)
        if scored and objective.rows == "pair":
            units = [[scored_at_end(example) for example in unit] for unit in units]
        return units, counts

    units, counts = encoded(rows)
    held = encoded(held_rows)[0] if held_rows else []
    dtype, device = getattr(torch, settings.dtype), device_of(settings.device)
    teacher = _teacher(settings, objective, tokenizer)
    if scored:
        torch.manual_seed(settings.seed)  # the new head is random
        model = load_scorer(settings.model, heads=settings.heads, dtype=dtype, device=device)
    else:
        quantize = "none" if settings.adapter is None else settings.adapter.quantize
        model = load_model(settings.model, dtype=dtype, device=device, quantize=quantize)
    per_epoch = math.ceil(len(units) / settings.batch)
    steps = min(per_epoch * settings.epochs, settings.max_steps or per_epoch * settings.epochs)
    with EventLog(out, [on_event] if on_event else []) if processes.leads() else _Silent() as log:
        log.emit("", "run_start", stages=[STAGE])
        log.emit(STAGE, "stage_start")
        began = monotonic()
        if any(counts.values()):
            log.emit(
                STAGE, "note", text=", ".join(f"{n} rows {what.replace('_', ' ')}" for what, n in counts.items() if n)
            )
        learned = _prepared(model, units, objective, settings)
        measured = _prepared(model, held, objective, settings)
        if settings.adapter is not None and not has_adapter(model):  # an adapter that is there learns on
            add_adapter(model, settings.adapter, seed=settings.seed)
        trainer = Trainer(
            model,
            TrainSettings.of(settings, steps),
            objective,
            teacher=teacher,
        )
        if processes.leads():
            put_back(out / "best")
        saver = Saver(trainer, out / "state", settings.save_seconds, keep=settings.keep_states)
        if saver.resume():
            log.emit(STAGE, "note", text=f"continues after step {trainer.step_number}")
        ends = {} if scored else {"ends_in_loss": ends_in_loss([e for u in units for e in u], renderer.stop_ids)}

        def save(folder: Path, metrics: Mapping[str, float]) -> None:
            if not processes.leads():
                return
            manifest = {
                **told,
                **identity,
                "objective": settings.objective,
                "rows": len(units),
                "left_out": counts,
                "steps": trainer.step_number,
                "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
            }
            save_model(trainer.model, tokenizer, folder, template=renderer.template, manifest=manifest)

        metrics: dict[str, float] = {}
        while True:
            step = trainer.step_number
            if held and (step in (0, steps) or (settings.eval_every and step % settings.eval_every == 0)):
                told = trainer.measure(_batch(trainer, measured, range(len(held)), settings))
                log.emit(STAGE, "measure", step=step, **told)
                if settings.keep == "best" and told["loss"] < _kept_loss(out / "best"):
                    save(out / "best", told)
            if step == steps:
                break
            epoch, place = divmod(step, per_epoch)
            order = list(range(len(units)))
            rng_for(settings.seed, "train", epoch).shuffle(order)
            chosen = order[place * settings.batch : (place + 1) * settings.batch]
            with saver.rescuing() if processes.leads() else nullcontext():
                metrics = trainer.step(_batch(trainer, learned, chosen, settings))
            log.emit(STAGE, "step", step=step + 1, steps=steps, **metrics, **ends)
            if processes.leads():
                saver.after_step()
        saver.finish()
        if settings.keep == "last":
            save(out / "model", metrics)
        elif processes.leads():
            (out / "best").rename(out / "model")
        processes.wait()
        if processes.leads():
            shutil.rmtree(out / "state", ignore_errors=True)
        log.emit(STAGE, "stage_end", seconds=monotonic() - began)
    result = _done(out)
    assert result is not None
    return result


class _Silent:
    """The log of a process that does not lead."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def emit(self, stage: str, event: str, **fields: Any) -> None:
        """Say nothing."""


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
    """The result of a call that came to its end."""
    file = out / "model" / "metier.json"
    if not file.is_file():
        return None
    noted = json.loads(file.read_text())
    kept = {"out": str(out / "model"), "weights_hash": noted["weights_hash"], "steps": noted["steps"]}
    return {**kept, "rows": noted["rows"], "metrics": noted["metrics"], **noted["left_out"]}


def _kept_loss(folder: Path) -> float:
    """The measured loss of the best weights so far; infinite where there are none."""
    file = folder / "metier.json"
    return float(json.loads(file.read_text())["metrics"]["loss"]) if file.is_file() else math.inf


def _teacher(settings: FitSettings, objective: Objective, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """The teacher where the objective has one. Raises `ConfigError` where it is missing, or not wanted."""
    if objective.output != "divergence":
        if settings.teacher is not None:
            raise ConfigError(f"objective {settings.objective!r} takes no teacher")
        return None
    if settings.teacher is None:
        raise ConfigError(
            f"objective {settings.objective!r} needs a teacher; set teacher to a model of the same tokenizer"
        )
    dtype, device = getattr(torch, settings.dtype), device_of(settings.device)
    return load_teacher(settings.teacher, tokenizer, dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Units of examples, and for KTO one mismatched example for each."""

    units: Sequence[Sequence[Example]]
    strangers: Sequence[Example] = ()


def _prepared(
    model: PreTrainedModel, units: Sequence[Sequence[Example]], objective: Objective, settings: FitSettings
) -> _Rows:
    """The units with the log-probabilities of the model as it is now, where the objective needs them."""
    if not objective.needs_reference or not units:
        return _Rows(units)
    strangers = _strangers(units) if objective.rows == "judged" else []
    flat = [example for unit in units for example in unit] + strangers
    found = iter(score(model, flat, token_budget=settings.token_budget))
    with_reference = [[replace(example, reference_logprobs=next(found)) for example in unit] for unit in units]
    return _Rows(with_reference, [replace(example, reference_logprobs=next(found)) for example in strangers])


def _batch(trainer: Trainer, rows: _Rows, chosen: Sequence[int], settings: FitSettings) -> list[Example]:
    """The examples of those units, for KTO with its point."""
    batch = [example for index in chosen for example in rows.units[index]]
    if not rows.strangers:
        return batch
    strangers = [rows.strangers[index] for index in chosen]
    now = score(trainer.model, strangers, token_budget=settings.token_budget)
    point = kto_point(now, [e.reference_logprobs for e in strangers])
    return [replace(example, margin=point) for example in batch]


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
                key=f"{own.key} with another answer",
            )
        )
    return made
