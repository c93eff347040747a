"""The stages: each takes what earlier ones left in the run folder and the ledger.

Every stage can be killed at any moment. Training keeps its whole state in the run folder
every `save_seconds`; everything that is written to the ledger has an id that depends on
its place in the run only, so doing a step again writes the same rows. Randomness comes
from seeds derived from stage and step, never from a generator that would have to be kept.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from transformers import PreTrainedModel

from metier.base.clock import monotonic, now
from metier.base.errors import DataError
from metier.base.ids import derive_id
from metier.base.seeds import rng_for
from metier.evaluate.suites import evaluate, summary
from metier.feedback.rewards import RewardPolicy, success
from metier.feedback.verify import verify_episodes
from metier.recipes.context import Context
from metier.recipes.settings import REJECTION, Demonstrate, Evaluate, Report, Rl, Sft, StageSettings
from metier.records.types import (
    Checkpoint,
    DatasetManifest,
    Episode,
    Feedback,
    Group,
    Message,
    Source,
    Suite,
    Task,
    Weights,
    to_plain,
)
from metier.report.collect import collect
from metier.report.page import render, write
from metier.rollout.episodes import Plan, environment_for, plan_id, run_episodes
from metier.train.advantages import advantages
from metier.train.checkpoints import Saver, save_model
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example, ends_in_loss
from metier.train.score import score

__all__ = ["run_stage"]

ORACLE = "oracle"

T = TypeVar("T")


def run_stage(context: Context, settings: StageSettings) -> Mapping[str, Any]:
    """Carry out one stage and return what is kept of it in the run folder."""
    if isinstance(settings, Evaluate):
        return _evaluate(context, settings)
    if isinstance(settings, Demonstrate):
        return _demonstrate(context, settings)
    if isinstance(settings, Sft):
        return _sft(context, settings)
    if isinstance(settings, Rl):
        return _rl(context, settings)
    assert isinstance(settings, Report)
    return _report(context)


# --- evaluation ------------------------------------------------------------------------


def _evaluate(context: Context, settings: Evaluate) -> Mapping[str, Any]:
    splits = {split: context.tasks(split, n) for split, n in settings.splits.items()}
    for split, tasks in splits.items():
        ids = tuple(task.id for task in tasks)
        version = f"{context.family.version}-{Suite(name='', version='', task_ids=ids).hash[:12]}"
        context.ledger.add_tasks(tasks)
        context.ledger.add_suite(Suite(name=f"{context.family.name}/{split}", version=version, task_ids=ids))
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

    values = evaluate(
        context.ledger,
        context.engine(context.load(settings.of)),
        context.renderer,
        splits,
        sampling=settings.sampling.record(),
        weights=context.weights(settings.of),
        run_id=context.run_id,
        stage=settings.name,
        seed=context.recipe.seed,
        chunk=settings.chunk,
        executor=context.executor,
        on_chunk=on_chunk,
    )
    result = {}
    for split, tasks in splits.items():
        result[split] = summary(values[split], [str(t.meta.get("pair") or t.id) for t in tasks])
        context.emit(settings.name, "eval", split=split, **result[split])
    return result


# --- demonstrations --------------------------------------------------------------------


def _demonstrate(context: Context, settings: Demonstrate) -> Mapping[str, Any]:
    tasks = context.tasks(settings.split, settings.n)
    context.refuse_overlap(tasks, f"stage {settings.name!r}")
    episodes = context.executor.map(lambda task: _demonstration(context, settings.name, task), tasks)
    verdicts = verify_episodes({t.id: t for t in tasks}, episodes, context.executor, run_id=context.run_id)
    failed = next((v for v in verdicts if v.value is not None and v.value < 1.0), None)
    if failed is not None:
        raise DataError(f"the demonstration of an {settings.split!r} task fails its own verifier: {failed.reason}")
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
        environment = environment_for(task)
        for message in messages[len(task.messages) :]:
            if message.role == "assistant":
                for call in message.tool_calls:
                    environment.call(call)
                if not message.tool_calls:
                    environment.reply(message.content)
        state = environment.state()
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


# --- training --------------------------------------------------------------------------


def _cuts(context: Context, task: Task) -> tuple[int, ...]:
    """Where tokens that other episodes share may end: after the system prompt, after the request."""
    prompt = context.renderer.render(task.messages, task.tools, prompt=True)
    return tuple(sorted({prompt.prefix, len(prompt.token_ids)} - {0}))


def _saver(context: Context, stage: str, trainer: Trainer) -> Saver:
    """Keeps the trainer's state in the run folder; goes on from the newest one where there is one."""
    saver = Saver(trainer, context.folder / "state" / stage, context.recipe.save_seconds)
    if saver.resume():
        context.emit(stage, "note", text=f"continues after step {trainer.step_number}")
    return saver


def _publish(context: Context, stage: Sft | Rl, trainer: Trainer, dataset: str, metrics: Mapping[str, float]) -> str:
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


def _sft(context: Context, settings: Sft) -> Mapping[str, Any]:
    dataset = context.ledger.dataset(derive_id("data", context.run_id, settings.data))
    episodes = context.ledger.episodes(run_id=context.run_id, stage=settings.data, arrays=True)
    tasks = context.ledger.tasks([e.task_id for e in episodes])
    examples = [
        Example(token_ids=e.token_ids, loss_mask=e.loss_mask, cuts=_cuts(context, tasks[e.task_id]), key=e.id)
        for e in episodes
    ]
    per_epoch = math.ceil(len(examples) / settings.batch)
    steps = per_epoch * settings.epochs
    steps = min(steps, settings.max_steps or steps)
    trainer = Trainer(
        context.load(settings.of),
        TrainSettings(
            lr=settings.lr,
            schedule=settings.schedule,
            warmup=settings.warmup,
            steps=steps,
            token_budget=settings.token_budget,
        ),
        get_objective("sft"),
    )
    context.release()  # its weights change from here on
    saver = _saver(context, settings.name, trainer)
    ends = ends_in_loss(examples, context.renderer.stop_ids)
    metrics: dict[str, float] = {}
    while trainer.step_number < steps:
        step = trainer.step_number
        epoch, place = divmod(step, per_epoch)
        rng = rng_for(context.recipe.seed, settings.name, "order", epoch)
        order = _order(examples, lambda e: e.token_ids[: min(e.cuts, default=0)], settings.block, rng)
        metrics = trainer.step(order[place * settings.batch : (place + 1) * settings.batch])
        context.emit(settings.name, "step", step=step + 1, steps=steps, **metrics, ends_in_loss=ends)
        saver.after_step()
    context.hold(settings.name, trainer.model)
    weights_hash = _publish(context, settings, trainer, dataset.id, metrics)
    return {"checkpoint": context.checkpoint_id(settings.name), "weights_hash": weights_hash, "steps": steps}


def _order(items: Sequence[T], shared: Callable[[T], Hashable], block: int, rng: random.Random) -> list[T]:
    """A shuffle that keeps up to `block` items that share a system prompt together.

    A shared system prompt is computed once per batch, so blocks of one prompt cost less
    than a full shuffle; the blocks themselves come in random order. What is left over of
    each prompt comes last, so that batches of a block's size hold whole blocks.
    """
    sharing: dict[Hashable, list[T]] = {}
    for item in items:
        sharing.setdefault(shared(item), []).append(item)
    blocks: list[list[T]] = []
    for siblings in sharing.values():
        rng.shuffle(siblings)
        blocks.extend(siblings[i : i + block] for i in range(0, len(siblings), block))
    rng.shuffle(blocks)
    blocks.sort(key=lambda some: len(some) < block)
    return [item for some in blocks for item in some]


def _rl(context: Context, settings: Rl) -> Mapping[str, Any]:
    tasks = context.tasks(settings.split, settings.steps * settings.tasks)
    tasks = _order(
        tasks, lambda t: str(t.messages[0].content), settings.block, rng_for(context.recipe.seed, settings.name)
    )
    if len(tasks) < settings.steps * settings.tasks:  # a small file: go through it again and again
        tasks = [tasks[i % len(tasks)] for i in range(settings.steps * settings.tasks)]
    context.refuse_overlap(tasks, f"stage {settings.name!r}")
    context.ledger.add_tasks(list({t.id: t for t in tasks}.values()))
    objective = get_objective("sft" if settings.method == REJECTION else settings.method, **settings.options)
    trainer = Trainer(
        context.load(settings.of),
        TrainSettings(
            lr=settings.lr,
            schedule=settings.schedule,
            warmup=settings.warmup,
            steps=settings.steps,
            token_budget=settings.token_budget,
        ),
        objective,
    )
    context.release()
    reference = None
    if objective.needs_reference:
        reference = context.load(settings.of)  # a copy of its own, which stays as it is
        context.release()
    saver = _saver(context, settings.name, trainer)
    metrics: dict[str, float] = {}
    while trainer.step_number < settings.steps:
        step = trainer.step_number
        chosen = tasks[step * settings.tasks : (step + 1) * settings.tasks]
        metrics = _rl_step(context, settings, trainer, step, chosen, reference)
        context.emit(settings.name, "step", step=step + 1, steps=settings.steps, **metrics)
        if settings.eval_every and (step + 1) % settings.eval_every == 0 and step + 1 < settings.steps:
            _look(context, settings, trainer, step + 1)
        saver.after_step()
    context.hold(settings.name, trainer.model)
    dataset = _rl_dataset(context, settings)
    weights_hash = _publish(context, settings, trainer, dataset, metrics)
    return {"checkpoint": context.checkpoint_id(settings.name), "weights_hash": weights_hash, "steps": settings.steps}


def _rl_step(
    context: Context,
    settings: Rl,
    trainer: Trainer,
    step: int,
    tasks: Sequence[Task],
    reference: PreTrainedModel | None,
) -> dict[str, float]:
    """Sample, verify and learn once. A step without any signal leaves the weights as they are."""
    began = monotonic()
    plans = []
    for place, task in enumerate(tasks):
        group = derive_id("group", context.run_id, settings.name, step, place)
        for index in range(settings.group):
            plans.append(
                Plan(
                    id=plan_id(context.run_id, settings.name, step, place, index),
                    task=task,
                    seed=context.seed(settings.name, step, place, index),
                    index=index,
                    group_id=group,
                )
            )
    episodes = run_episodes(
        context.engine(trainer.model),
        context.renderer,
        plans,
        sampling=settings.sampling.record(),
        weights=context.weights(settings.name, step),
        run_id=context.run_id,
        stage=settings.name,
    )
    sampled = monotonic()
    feedback = verify_episodes({t.id: t for t in tasks}, episodes, context.executor, run_id=context.run_id)
    context.ledger.add_episodes(episodes)
    context.ledger.add_feedback(feedback)
    groups: dict[str, list[str]] = {}
    for plan in plans:
        assert plan.group_id is not None
        groups.setdefault(plan.group_id, []).append(plan.id)
    context.ledger.add_groups(
        [Group(id=g, task_id=tasks[n].id, episode_ids=tuple(ids)) for n, (g, ids) in enumerate(groups.items())]
    )
    about: dict[str, list[Feedback]] = {}
    for item in feedback:
        about.setdefault(item.about[0], []).append(item)
    policy = RewardPolicy(success=settings.reward.success, partial=settings.reward.partial)
    rewards = [policy.reward(about.get(e.id, [])) for e in episodes]
    examples, flat = _examples(context, settings, tasks, episodes, rewards, about)
    if reference is not None:
        found = score(reference, examples, token_budget=settings.token_budget)
        examples = [replace(e, reference_logprobs=p) for e, p in zip(examples, found, strict=True)]
    lengths = sorted(e.cost.completion_tokens for e in episodes)
    scored = sorted(r for r in rewards if r is not None)
    won = [float(v == 1.0) for v in (success(about.get(e.id, [])) for e in episodes) if v is not None]
    metrics: dict[str, float] = {
        "reward": statistics.fmean(scored) if scored else math.nan,
        "reward_std": statistics.pstdev(scored) if scored else math.nan,
        "success": statistics.fmean(won) if won else math.nan,
        "episodes": len(episodes),
        "unscored": len(episodes) - len(scored),
        "groups": len(tasks),
        "groups_without_variance": flat,
        "completion_tokens_mean": statistics.fmean(lengths),
        **{f"completion_tokens_p{q}": float(_percentile(lengths, q)) for q in (10, 50, 90)},
        **{f"reward_p{q}": _percentile(scored, q) for q in (10, 50, 90) if scored},
        "sample_seconds": sampled - began,
        "sample_tokens_per_s": sum(lengths) / max(sampled - began, 1e-9),
    }
    if examples:
        metrics.update(trainer.step(examples, among=len(scored)))
    else:
        trainer.skip()
    metrics["train_seconds"] = monotonic() - sampled
    return metrics


def _percentile(ranked: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of sorted values."""
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def _examples(
    context: Context,
    settings: Rl,
    tasks: Sequence[Task],
    episodes: Sequence[Episode],
    rewards: Sequence[float | None],
    about: Mapping[str, Sequence[Feedback]],
) -> tuple[list[Example], int]:
    """What is trained on, and the number of groups whose rewards are all equal."""
    examples, flat = [], 0
    parts = [slice(n * settings.group, (n + 1) * settings.group) for n in range(len(tasks))]
    kind = "group" if settings.method == REJECTION else settings.advantage_kind
    found = advantages(kind, [rewards[part] for part in parts])
    for task, part, of_group in zip(tasks, parts, found, strict=True):
        cuts = _cuts(context, task)
        flat += len({r for r in rewards[part] if r is not None}) < 2
        for episode, advantage in zip(episodes[part], of_group, strict=True):
            made = Example(
                token_ids=episode.token_ids,
                loss_mask=episode.loss_mask,
                cuts=cuts,
                advantage=advantage or 0.0,
                sampler_logprobs=tuple(
                    p for p, own in zip(episode.sampler_logprobs, episode.loss_mask, strict=True) if own
                ),
                key=episode.id,
            )
            wins = success(about.get(episode.id, [])) == 1.0
            if wins if settings.method == REJECTION else advantage:
                examples.append(made)
    return examples, flat


def _look(context: Context, settings: Rl, trainer: Trainer, step: int) -> None:
    """A small evaluation on held-out tasks between two steps, for the curve only."""
    tasks = context.tasks(settings.eval_split, settings.eval_tasks)
    stage = f"{settings.name}/look-{step}"
    values = evaluate(
        context.ledger,
        context.engine(trainer.model),
        context.renderer,
        {settings.eval_split: tasks},
        sampling=replace(settings.sampling.record(), temperature=0.0),
        weights=context.weights(settings.name, step),
        run_id=context.run_id,
        stage=stage,
        seed=context.recipe.seed,
        chunk=len(tasks),
        executor=context.executor,
        on_chunk=lambda *_: None,
    )
    result = summary(values[settings.eval_split])
    context.emit(settings.name, "eval", step=step, split=settings.eval_split, **result)


def _rl_dataset(context: Context, settings: Rl) -> str:
    """The manifest of everything that the stage learnt from."""
    episodes = context.ledger.episodes(run_id=context.run_id, stage=settings.name)
    feedback = context.ledger.feedback(run_id=context.run_id, about=[e.id for e in episodes])
    manifest = DatasetManifest(
        id=derive_id("data", context.run_id, settings.name),
        kind="demonstrations" if settings.method == REJECTION else "rl",
        name=settings.name,
        run_id=context.run_id,
        stage=settings.name,
        query={"split": settings.split, "reward": to_plain(settings.reward.model_dump()), "method": settings.method},
        feedback_ids=tuple(f.id for f in feedback),
        episode_ids=tuple(e.id for e in episodes),
        task_ids=tuple(dict.fromkeys(e.task_id for e in episodes)),
        created_at=now(),
    )
    context.ledger.add_dataset(manifest)
    return manifest.id


# --- report ----------------------------------------------------------------------------


def _report(context: Context) -> Mapping[str, Any]:
    path = context.folder / "report.html"
    write(path, render(collect(context.ledger, context.run_id, context.folder)))
    return {"report": str(path.name)}
