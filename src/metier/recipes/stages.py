"""The stages: each takes what earlier ones left in the run folder and the ledger.

Every stage can be killed at any moment. Training keeps its whole state in the run folder
every `save_seconds`; everything that is written to the ledger has an id that depends on
its place in the run only, so doing a step again writes the same rows. Randomness comes
from seeds derived from stage and step, never from a generator that would have to be kept.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from metier.base.clock import monotonic, now
from metier.base.errors import DataError
from metier.base.ids import derive_id
from metier.base.seeds import rng_for
from metier.evaluate.suites import evaluate, summary
from metier.evaluate.text import passages, text_loss
from metier.feedback.verify import verify_episodes
from metier.recipes import comparing
from metier.recipes.context import Context
from metier.recipes.learning import in_blocks, publish, saver_of
from metier.recipes.reinforce import reinforce
from metier.recipes.settings import (
    Crowd,
    Dataset,
    Demonstrate,
    Draw,
    Evaluate,
    Fit,
    Judge,
    Measure,
    Report,
    Rl,
    Sft,
    StageSettings,
)
from metier.records.types import (
    DatasetManifest,
    Episode,
    Feedback,
    Message,
    Source,
    Suite,
    Task,
    Weights,
)
from metier.report.collect import collect
from metier.report.page import render, write
from metier.rollout.endpoint import EndpointPolicy
from metier.rollout.episodes import environment_for, plan_id
from metier.rollout.policy import Policy
from metier.stats.intervals import mean_interval
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example, ends_in_loss

__all__ = ["run_stage"]

ORACLE = "oracle"


def run_stage(context: Context, settings: StageSettings) -> Mapping[str, Any]:
    """Carry out one stage and return what is kept of it in the run folder."""
    if isinstance(settings, Evaluate):
        return _evaluate(context, settings)
    if isinstance(settings, Demonstrate):
        return _demonstrate(context, settings)
    if isinstance(settings, Sft):
        return _sft(context, settings)
    if isinstance(settings, Rl):
        return reinforce(context, settings)
    if isinstance(settings, Draw):
        return comparing.draw(context, settings)
    if isinstance(settings, Crowd):
        return comparing.crowd(context, settings)
    if isinstance(settings, Judge):
        return comparing.judge(context, settings)
    if isinstance(settings, Dataset):
        return comparing.build_dataset(context, settings)
    if isinstance(settings, Fit):
        return comparing.fit_stage(context, settings)
    if isinstance(settings, Measure):
        return comparing.measure(context, settings)
    assert isinstance(settings, Report)
    return _report(context)


# --- evaluation ------------------------------------------------------------------------


def _evaluate(context: Context, settings: Evaluate) -> Mapping[str, Any]:
    splits = {split: context.tasks(split, n) for split, n in settings.splits.items()}
    for split, tasks in splits.items():
        context.refuse_trained(settings.of, tasks, f"stage {settings.name!r}, split {split!r}")
        ids = tuple(task.id for task in tasks)
        family, own = context.family_of(split)
        version = f"{family.version}-{Suite(name='', version='', task_ids=ids).hash[:12]}"
        context.ledger.add_tasks(tasks)
        context.ledger.add_suite(Suite(name=f"{family.name}/{own}", version=version, task_ids=ids))
    last = monotonic()

    def on_chunk(done: int, total: int, episodes: Sequence[Episode], feedback: Sequence[Feedback]) -> None:
        nonlocal last
        seconds, last = monotonic() - last, monotonic()
        scored = [f.value for f in feedback if f.value is not None]
        context.emit(
            settings.name,
            "progress",
            done=done,
            total=total,
            unit="episodes",
            tokens_per_s=sum(e.cost.completion_tokens for e in episodes) / seconds,
            success=statistics.fmean(scored) if scored else None,
        )

    other = settings.endpoint
    with _speaker(context, settings) as policy:
        values = evaluate(
            context.ledger,
            policy,
            splits,
            sampling=settings.sampling.record(),
            weights=context.weights(settings.of) if other is None else Weights(checkpoint=other.model),
            run_id=context.run_id,
            stage=settings.name,
            seed=context.recipe.seed,
            chunk=settings.chunk,
            executor=context.executor,
            tools=context.recipe.tools.limits(),
            on_chunk=on_chunk,
        )
    result = {}
    for split, tasks in splits.items():
        result[split] = summary(values[split], [task.cluster for task in tasks])
        context.emit(settings.name, "eval", split=split, **result[split])
    if settings.text is not None:
        result["text"] = _read_text(context, settings, settings.text)
    return result


@contextmanager
def _speaker(context: Context, settings: Evaluate) -> Iterator[Policy]:
    if settings.endpoint is None:
        with context.policy(context.load(settings.of)) as policy:
            yield policy
    else:
        with settings.endpoint.endpoint() as endpoint:
            yield EndpointPolicy(endpoint)


def _read_text(context: Context, settings: Evaluate, name: str) -> dict[str, Any]:
    tasks = passages(name)
    suite = Suite(name=f"text/{name}", version="", task_ids=tuple(task.id for task in tasks))
    context.ledger.add_tasks(tasks)
    context.ledger.add_suite(replace(suite, version=suite.hash[:12]))
    losses = text_loss(
        context.ledger,
        context.load(settings.of),
        context.tokenizer,
        tasks,
        weights=context.weights(settings.of),
        run_id=context.run_id,
        stage=f"{settings.name}/text",
    )
    told = mean_interval(losses)
    context.emit(settings.name, "note", text=f"held-out text: {told.mean:.3f} nats per token, {told.n} passages")
    return {"loss": told.mean, "low": told.low, "high": told.high, "n": told.n}


# --- demonstrations --------------------------------------------------------------------


def _demonstrate(context: Context, settings: Demonstrate) -> Mapping[str, Any]:
    tasks = context.tasks(settings.split, settings.n)
    context.refuse_overlap(tasks, f"stage {settings.name!r}")
    episodes = context.executor.map(lambda task: _demonstration(context, settings.name, task), tasks)
    verdicts = verify_episodes({t.id: t for t in tasks}, episodes, context.executor, run_id=context.run_id)
    failed = next((v for v in verdicts if v.value is None or v.value < 1.0), None)
    if failed is not None:
        what = "could not be verified" if failed.value is None else "fails its own verifier"
        raise DataError(f"the demonstration of an {settings.split!r} task {what}: {failed.reason}")
    source = Source(
        kind="person" if context.recipe.tasks.file else "execution", name=ORACLE, version=context.family.version
    )
    shown = [
        Feedback(
            id=derive_id("fb", episode.id, ORACLE),
            about=(episode.id,),
            criterion="demonstration",
            kind="demonstration",
            value=[m.to_openai() for m in episode.messages[len(task.messages) :]],
            source=source,
            created_at=now(),
            run_id=context.run_id,
        )
        for task, episode in zip(tasks, episodes, strict=True)
    ]
    context.ledger.add_tasks(tasks)
    context.ledger.add_episodes(episodes)
    context.ledger.add_feedback([*shown, *verdicts])
    manifest = DatasetManifest(
        id=derive_id("data", context.run_id, settings.name),
        kind="demonstrations",
        name=settings.name,
        run_id=context.run_id,
        stage=settings.name,
        query={"criterion": "demonstration", "split": settings.split, "n": settings.n},
        feedback_ids=tuple(f.id for f in (*shown, *verdicts)),
        episode_ids=tuple(e.id for e in episodes),
        task_ids=tuple(t.id for t in tasks),
        created_at=now(),
    )
    context.ledger.add_dataset(manifest)
    context.emit(settings.name, "progress", done=len(tasks), total=len(tasks), unit="demonstrations")
    return {"dataset": manifest.id, "episodes": len(episodes)}


def _demonstration(context: Context, stage: str, task: Task) -> Episode:
    messages: tuple[Message, ...] = context.family.demonstrate(task)
    rendered = context.renderer.render(messages, task.tools)
    state: Mapping[str, Any] = {}
    if task.environment is not None:  # play the calls once more, for the state in which they end
        played = isinstance(task.environment.state.get("user"), str)  # by a model, which would say something else
        environment = environment_for(task)
        try:
            for message in messages[len(task.messages) :]:
                if message.role == "assistant":
                    for call in message.tool_calls:
                        environment.call(call)
                    if not message.tool_calls and not played:
                        environment.reply(message.content)
            state = environment.state()
        finally:
            environment.close()
    return Episode(
        id=plan_id(context.run_id, stage, task.id),
        task_id=task.id,
        run_id=context.run_id,
        stage=stage,
        weights=Weights(checkpoint=ORACLE),
        messages=messages,
        token_ids=rendered.token_ids,
        sampler_logprobs=(0.0,) * len(rendered.token_ids),
        loss_mask=rendered.loss_mask,
        template_hash=context.renderer.template_hash,
        environment_version="" if task.environment is None else task.environment.version,
        final_state=state,
        split=task.split,
        created_at=now(),
    )


# --- supervised fine-tuning ----------------------------------------------------------------


def _sft(context: Context, settings: Sft) -> Mapping[str, Any]:
    dataset = context.ledger.dataset(derive_id("data", context.run_id, settings.data))
    episodes = context.ledger.episodes(run_id=context.run_id, stage=settings.data, arrays=True)
    tasks = context.ledger.tasks([e.task_id for e in episodes])
    examples = [Example(token_ids=e.token_ids, loss_mask=e.loss_mask, key=e.id) for e in episodes]
    task_of = {e.id: tasks[e.task_id] for e in episodes}
    per_epoch = math.ceil(len(examples) / settings.batch)
    steps = per_epoch * settings.epochs
    steps = min(steps, settings.max_steps or steps)
    trainer = Trainer(context.take(settings.of), TrainSettings.of(settings, steps), get_objective("sft"))
    saver = saver_of(context, settings.name, trainer)
    ends = ends_in_loss(examples, context.renderer.stop_ids)

    @functools.lru_cache(maxsize=1)
    def ordered(epoch: int) -> list[Example]:
        rng = rng_for(context.recipe.seed, settings.name, "order", epoch)
        return in_blocks(examples, lambda example: task_of[example.key], settings.block, rng)

    metrics: dict[str, float] = {}
    while trainer.step_number < steps:
        step = trainer.step_number
        epoch, place = divmod(step, per_epoch)
        with saver.rescuing():
            metrics = trainer.step(ordered(epoch)[place * settings.batch : (place + 1) * settings.batch])
        context.emit(settings.name, "step", step=step + 1, steps=steps, **metrics, ends_in_loss=ends)
        saver.after_step()
    saver.finish()
    context.hold(settings.name, trainer.model)
    weights_hash = publish(context, settings, trainer, dataset.id, metrics)
    return {"checkpoint": context.checkpoint_id(settings.name), "weights_hash": weights_hash, "steps": steps}


# --- report ----------------------------------------------------------------------------


def _report(context: Context) -> Mapping[str, Any]:
    path = context.folder / "report.html"
    write(path, render(collect(context.ledger, context.run_id, context.folder)))
    return {"report": str(path.name)}
