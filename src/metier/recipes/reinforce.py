"""The stage `rl`: sample groups of episodes, verify them, learn from the verdicts, again and again.

What a step learns from depends on the method: a policy gradient from advantages of all
episodes; `rejection` from those that succeeded; `best_of_n` from the best of each group;
`online_dpo` from the best of each group against its worst; `distill` from what a teacher
would have said at each word of all. Everything else is shared.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import queue
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from metier.base.clock import monotonic, now
from metier.base.ids import derive_id
from metier.base.memory import hand_back_freed_memory
from metier.base.seeds import rng_for
from metier.evaluate.suites import evaluate, summary
from metier.feedback.rewards import RewardPolicy
from metier.feedback.verify import verify_episodes
from metier.models.adapters import adapter_weights, has_adapter, holding
from metier.models.hub import load_teacher
from metier.models.values import add_value_head, drop_value_head
from metier.recipes.context import Context
from metier.recipes.learning import group_of, in_blocks, publish, saver_of
from metier.recipes.settings import Rl
from metier.records.types import DatasetManifest, Episode, Group, Task, to_plain
from metier.records.values import by_episode, lowest
from metier.rollout.episodes import Plan, kept_episodes, run_episodes
from metier.train.advantages import advantages, gae, kl_penalty, whitened
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example
from metier.train.score import score, values

__all__ = ["reinforce"]

Scorer = Callable[[Sequence[Example]], list[tuple[float, ...]]]


@dataclass(frozen=True, slots=True)
class _Sampled:
    """The episodes of one task, with what they earned."""

    task: Task
    episodes: Sequence[Episode]
    rewards: tuple[float | None, ...]
    verdicts: tuple[float | None, ...]  # the lowest score of each; None where it is unscored

    def record(self) -> Group:
        """As the ledger keeps it."""
        ids = tuple(e.id for e in self.episodes)
        return Group(id=str(self.episodes[0].group_id), task_id=self.task.id, episode_ids=ids)

    @property
    def flat(self) -> bool:
        """Whether all rewards are equal, so that no episode is better than another."""
        return len({r for r in self.rewards if r is not None}) < 2


def reinforce(context: Context, settings: Rl) -> Mapping[str, Any]:
    """Carry out the stage; returns {"checkpoint", "weights_hash", "steps"}."""
    supply = _Supply(context, settings)
    objective = get_objective(settings.objective, **settings.options)
    model = context.take(settings.of)
    if objective.output == "actor_critic":
        add_value_head(model)
    steps = settings.steps * settings.updates
    learning = TrainSettings.of(settings, steps, settings.temperature)
    trainer = Trainer(model, learning, objective, teacher=_teacher(context, settings, model))
    wants_reference = objective.needs_reference or settings.reward.kl > 0
    reference = _reference(context, settings, trainer) if wants_reference else None
    saver = saver_of(context, settings.name, trainer)
    metrics: dict[str, float] = {}
    with _Ahead(context, settings, supply) as ahead:
        while trainer.step_number < steps:
            step = trainer.step_number // settings.updates
            whole = settings.updates == 1  # a step's part is no place to go on from
            with saver.rescuing() if whole else nullcontext():
                metrics = _step(context, settings, trainer, step, supply, reference, ahead)
            context.emit(settings.name, "step", step=step + 1, steps=settings.steps, **metrics)
            if settings.eval_every and (step + 1) % settings.eval_every == 0 and step + 1 < settings.steps:
                _look(context, settings, trainer, step + 1)
            saver.after_step()
    saver.finish()
    drop_value_head(trainer.model)
    context.hold(settings.name, trainer.model)
    dataset = _dataset(context, settings, supply.own)
    weights_hash = publish(context, settings, trainer, dataset, metrics)
    return {"checkpoint": context.checkpoint_id(settings.name), "weights_hash": weights_hash, "steps": settings.steps}


class _Supply:
    """The tasks of each step, and those that replace tasks without signal; the same on every start."""

    def __init__(self, context: Context, settings: Rl) -> None:
        self.settings = settings
        wanted = settings.steps * settings.tasks * (1 + settings.rounds)
        tasks = context.tasks(settings.split, wanted)
        context.refuse_overlap(tasks, f"stage {settings.name!r}")
        own, tasks = tasks, [_verified_by(task, settings) for task in tasks] if settings.verifiers else tasks
        self.own = {task.id: as_made.id for task, as_made in zip(tasks, own, strict=True)}  # others may verify it here
        context.ledger.add_tasks(list({task.id: task for task in (*own, *tasks)}.values()))
        rng = rng_for(context.recipe.seed, settings.name)
        order = in_blocks(tasks, lambda task: task, settings.block, rng)
        # a small file: go through it again and again
        self.tasks = list(itertools.islice(itertools.cycle(order), wanted))

    def first(self, step: int) -> list[Task]:
        """What a step begins with."""
        n = self.settings.tasks
        return self.tasks[step * n : (step + 1) * n]

    def more(self, step: int, round_: int) -> list[Task]:
        """What may replace tasks without signal in that round, counted from 1."""
        s = self.settings
        start = s.steps * s.tasks + (step * s.rounds + round_ - 1) * s.tasks
        return self.tasks[start : start + s.tasks]


def _verified_by(task: Task, settings: Rl) -> Task:
    """The task under the stage's verifiers."""
    return replace(
        task,
        verifiers=tuple(one.record() for one in settings.verifiers),
        meta={**task.meta, "cluster": task.cluster},
    )


def _teacher(context: Context, settings: Rl, model: PreTrainedModel) -> PreTrainedModel | None:
    """Whom the policy learns from, where its own words are judged by another model's."""
    if settings.teacher is None:
        return None
    return load_teacher(settings.teacher, context.tokenizer, dtype=model.dtype, device=str(model.device))


def _reference(context: Context, settings: Rl, trainer: Trainer) -> Scorer:
    """Log-probabilities under the weights that the stage starts from: a small copy where only an adapter learns."""
    scorer = functools.partial(score, token_budget=settings.token_budget, temperature=settings.temperature)
    if has_adapter(trainer.model):
        start = adapter_weights(trainer.model)

        def with_start(examples: Sequence[Example]) -> list[tuple[float, ...]]:
            with holding(trainer.model, start):
                return scorer(trainer.model, examples)

        return with_start
    return functools.partial(scorer, context.take(settings.of))


def _step(
    context: Context,
    settings: Rl,
    trainer: Trainer,
    step: int,
    supply: _Supply,
    reference: Scorer | None,
    ahead: _Ahead,
) -> dict[str, float]:
    """Sample, verify and learn. A step without any signal leaves the weights as they are."""
    began = monotonic()
    ahead.order(step, trainer.model)
    groups = _sample(context, settings, trainer, step, supply.first(step), 0, ahead)
    for round_ in range(1, settings.rounds + 1):
        lacking = settings.tasks - sum(not group.flat for group in groups)
        if lacking <= 0:
            break
        groups += _sample(context, settings, trainer, step, supply.more(step, round_)[:lacking], round_)
    hand_back_freed_memory()  # what held conversations is in other pieces than what holds activations
    sampled = monotonic()
    metrics = _told(groups, sampled - began)
    if settings.staleness:
        metrics["staleness"] = step - min(e.weights.step for group in groups for e in group.episodes)
    if settings.rounds:  # groups without signal were to be replaced
        groups = [group for group in groups if not group.flat]
    examples = _base_examples(groups)
    if reference is not None and settings.reward.kl:  # it goes into the rewards of all
        examples = _referred(examples, reference)
    if settings.gradient:
        learned = _advantaged(settings, trainer, groups, examples)
    else:
        learned = _LESSONS[settings.method](_by_group(groups, examples))
    if reference is not None and not settings.reward.kl:
        learned = _referred(learned, reference)
    metrics.update(_learn(settings, trainer, learned))
    metrics["train_seconds"] = monotonic() - sampled
    return metrics


def _referred(examples: Sequence[Example], reference: Scorer) -> list[Example]:
    """The examples with the reference's log-probabilities."""
    return [replace(e, reference_logprobs=p) for e, p in zip(examples, reference(examples), strict=True)]


def _learn(settings: Rl, trainer: Trainer, examples: Sequence[Example]) -> dict[str, float]:
    """The step's optimiser updates, each over a part of the examples; the means of what they tell.

    Under a policy gradient without a KL term in its loss, what is as good as expected moves
    nothing: it counts in the mean, and is not computed.
    """
    if settings.updates > 1 and settings.gradient:  # from the second update on, the policy is not the old one
        old = score(trainer.model, examples, token_budget=settings.token_budget, temperature=settings.temperature)
        examples = [replace(e, old_logprobs=p) for e, p in zip(examples, old, strict=True)]
    all_teach = not settings.gradient or trainer.objective.needs_reference
    told: list[dict[str, float]] = []
    for part in _parts(examples, settings.updates):
        teaching = [e for e in part if all_teach or e.advantage]
        if teaching:
            told.append(trainer.step(teaching, among=part))
        else:
            trainer.skip()
    return {key: statistics.fmean(t[key] for t in told) for key in told[0]} if told else {}


def _parts(examples: Sequence[Example], n: int) -> list[list[Example]]:
    """The examples in `n` parts of about equal size; those of one unit stay together."""
    units: dict[str, list[Example]] = {}
    for number, example in enumerate(examples):
        units.setdefault(example.unit or str(number), []).append(example)
    whole = list(units.values())
    bounds = [len(whole) * k // n for k in range(n + 1)]
    return [[e for unit in whole[a:b] for e in unit] for a, b in itertools.pairwise(bounds)]


# --- sampling --------------------------------------------------------------------------


def _plans(context: Context, settings: Rl, step: int, tasks: Sequence[Task], round_: int) -> list[Plan]:
    """A group of episodes for each task."""
    first = round_ * settings.tasks
    groups = (group_of(context, settings.name, t, settings.group, step, n) for n, t in enumerate(tasks, first))
    return list(itertools.chain.from_iterable(groups))


def _draw(context: Context, settings: Rl, model: PreTrainedModel, step: int, plans: Sequence[Plan]) -> list[Episode]:
    """Run the plans with weights of that many steps."""
    with context.policy(model) as policy:
        return run_episodes(
            policy,
            plans,
            sampling=settings.sampling.record(),
            weights=context.weights(settings.name, step),
            run_id=context.run_id,
            stage=settings.name,
            tools=context.recipe.tools.limits(),
        )


_Order = tuple[int, PreTrainedModel, list[Plan], "Future[list[Episode]]"]


class _Ahead:
    """Draws the episodes of later steps beside the training, each with a copy of the weights as they are now.

    Step k begins by ordering the episodes of step k + `staleness`, so what a step learns from was
    drawn by weights at most so many steps old. `staleness` 0 orders nothing. Use it as a context manager.
    """

    def __init__(self, context: Context, settings: Rl, supply: _Supply) -> None:
        self._context, self._settings, self._supply = context, settings, supply
        self._ordered: dict[int, Future[list[Episode]]] = {}
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._over = False
        if settings.staleness:
            _ = context.renderer  # made once, before a second thread asks for it
            threading.Thread(target=self._work, name="metier-ahead", daemon=True).start()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._orders.put(None)

    def order(self, step: int, model: PreTrainedModel) -> None:
        """Begin with what this step and those after it will learn from, as far as staleness allows."""
        wanted = range(step, min(step + self._settings.staleness + 1, self._settings.steps))
        copied: PreTrainedModel | None = None
        for later in wanted if self._settings.staleness else ():
            if later in self._ordered:
                continue
            plans = _plans(self._context, self._settings, later, self._supply.first(later), 0)
            future: Future[list[Episode]] = Future()
            self._ordered[later] = future
            if len(self._context.ledger.episodes(ids=[plan.id for plan in plans])) == len(plans):
                future.set_result([])  # drawn before the run was stopped; the ledger has them
                continue
            copied = copied or copy.deepcopy(model)
            self._orders.put((step, copied, plans, future))

    def take(self, step: int) -> list[Episode] | None:
        """What was ordered for a step; waits for it. None where nothing was."""
        ordered = self._ordered.pop(step, None)
        return None if ordered is None else ordered.result() or None

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            step, model, plans, future = order
            try:
                if not self._over:
                    future.set_result(_draw(self._context, self._settings, model, step, plans))
            except BaseException as error:
                future.set_exception(error)
            del order, model, plans, future  # a whole copy of the model


def _sample(
    context: Context,
    settings: Rl,
    trainer: Trainer,
    step: int,
    tasks: Sequence[Task],
    round_: int,
    ahead: _Ahead | None = None,
) -> list[_Sampled]:
    """A group of episodes for each task, verified and kept in the ledger."""
    plans = _plans(context, settings, step, tasks, round_)

    def draw() -> list[Episode]:
        early = None if ahead is None else ahead.take(step)
        return early if early is not None else _draw(context, settings, trainer.model, step, plans)

    episodes = kept_episodes(context.ledger, plans, draw)
    feedback = verify_episodes({t.id: t for t in tasks}, episodes, context.executor, run_id=context.run_id)
    context.ledger.add_feedback(feedback)
    about = by_episode(feedback)
    policy = RewardPolicy.of(settings.reward.model_dump())
    groups = []
    for n, task in enumerate(tasks):
        own = episodes[n * settings.group : (n + 1) * settings.group]
        groups.append(
            _Sampled(
                task=task,
                episodes=own,
                rewards=tuple(policy.reward(about.get(e.id, []), e.cost.completion_tokens) for e in own),
                verdicts=tuple(lowest(about.get(e.id, [])) for e in own),
            )
        )
    context.ledger.add_groups([group.record() for group in groups])
    return groups


def _told(groups: Sequence[_Sampled], seconds: float) -> dict[str, float]:
    """What the step's log says about its episodes."""
    episodes = [e for g in groups for e in g.episodes]
    lengths = sorted(e.cost.completion_tokens for e in episodes)
    rewards = sorted(r for g in groups for r in g.rewards if r is not None)
    won = [float(v == 1.0) for g in groups for v in g.verdicts if v is not None]
    return {
        "reward": statistics.fmean(rewards) if rewards else math.nan,
        "reward_std": statistics.pstdev(rewards) if rewards else math.nan,
        "success": statistics.fmean(won) if won else math.nan,
        "episodes": len(episodes),
        "unscored": len(episodes) - len(rewards),
        "groups": len(groups),
        "groups_without_variance": sum(g.flat for g in groups),
        "completion_tokens_mean": statistics.fmean(lengths),
        **{f"completion_tokens_p{q}": float(_percentile(lengths, q)) for q in (10, 50, 90)},
        **{f"reward_p{q}": _percentile(rewards, q) for q in (10, 50, 90) if rewards},
        "sample_seconds": seconds,
        "sample_tokens_per_s": sum(lengths) / max(seconds, 1e-9),
    }


def _percentile(ranked: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of sorted values."""
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


# --- what is learned from ---------------------------------------------------------------


def _base_examples(groups: Sequence[_Sampled]) -> list[Example]:
    """One example for each episode, in order, as it was sampled."""
    made = []
    for group in groups:
        for e in group.episodes:
            own = tuple(p for p, mine in zip(e.sampler_logprobs, e.loss_mask, strict=True) if mine)
            made.append(Example(token_ids=e.token_ids, loss_mask=e.loss_mask, sampler_logprobs=own, key=e.id))
    return made


def _advantaged(
    settings: Rl, trainer: Trainer, groups: Sequence[_Sampled], examples: Sequence[Example]
) -> list[Example]:
    """Every episode that has a reward, with how much better or worse it is than was to be expected."""
    if settings.advantage_kind == "gae":
        return _with_values(settings, trainer, [r for group in groups for r in group.rewards], examples)

    def earned(reward: float | None, e: Example) -> float | None:
        if reward is None or not settings.reward.kl:
            return reward
        return reward + kl_penalty(e.sampler_logprobs, e.reference_logprobs, settings.reward.kl)

    rewards = [
        [earned(r, e) for r, e in zip(group.rewards, own, strict=True)] for group, own in _by_group(groups, examples)
    ]
    found = [a for group in advantages(settings.advantage_kind, rewards) for a in group]
    return [replace(e, advantage=a) for e, a in zip(examples, found, strict=True) if a is not None and e.labels]


def _with_values(
    settings: Rl, trainer: Trainer, rewards: Sequence[float | None], examples: Sequence[Example]
) -> list[Example]:
    """Generalised advantages, one for each token, against the value head; whitened over the step."""
    useful = [(e, r) for e, r in zip(examples, rewards, strict=True) if r is not None and e.labels]
    predicted = values(trainer.model, [e for e, _ in useful], token_budget=settings.token_budget)
    made, gains = [], []
    for (e, reward), before in zip(useful, predicted, strict=True):
        earned = [0.0] * e.labels
        if settings.reward.kl:
            drift = zip(e.sampler_logprobs, e.reference_logprobs, strict=True)
            earned = [-settings.reward.kl * (own - other) for own, other in drift]
        earned[-1] += reward
        advantage, returns = gae(earned, before, gamma=settings.gamma, lam=settings.lam)
        made.append(replace(e, returns=tuple(returns), old_values=before))
        gains.append(advantage)
    return [replace(e, advantage=tuple(a)) for e, a in zip(made, whitened(gains), strict=True)]


Lesson = Sequence[tuple[_Sampled, Sequence[Example]]]  # groups with their examples


def _by_group(groups: Sequence[_Sampled], examples: Sequence[Example]) -> Lesson:
    """The examples of all groups, each group with its own."""
    flat = iter(examples)
    return [(group, list(itertools.islice(flat, len(group.episodes)))) for group in groups]


def _won(lesson: Lesson) -> list[Example]:
    """Every episode that succeeded."""
    return [e for group, own in lesson for e, v in zip(own, group.verdicts, strict=True) if v == 1.0]


def _best(lesson: Lesson) -> list[Example]:
    """The best of each group, the first of equals, where it earned anything."""
    chosen = []
    for group, own in lesson:
        reward, n = max((-math.inf if r is None else r, -n) for n, r in enumerate(group.rewards))
        if reward > 0:
            chosen.append(own[-n])
    return chosen


def _pairs(lesson: Lesson) -> list[Example]:
    """The best of each group against its worst, where they differ."""
    chosen = []
    for number, (group, own) in enumerate(lesson):
        if not group.flat:
            ranked = sorted((r, n) for n, r in enumerate(group.rewards) if r is not None)
            (_, worst), (_, best) = ranked[0], ranked[-1]
            chosen.append(replace(own[best], unit=str(number), target=1.0))
            chosen.append(replace(own[worst], unit=str(number), target=0.0))
    return chosen


def _all(lesson: Lesson) -> list[Example]:
    """Every episode."""
    return [e for _, own in lesson for e in own if e.labels]


_LESSONS: Mapping[str, Callable[[Lesson], list[Example]]] = {
    "rejection": _won,
    "best_of_n": _best,
    "online_dpo": _pairs,
    "distill": _all,
}


# --- looking, and keeping ---------------------------------------------------------------


def _look(context: Context, settings: Rl, trainer: Trainer, step: int) -> None:
    """A small evaluation on held-out tasks between two steps, for the curve only."""
    tasks = context.tasks(settings.eval_split, settings.eval_tasks)
    stage = f"{settings.name}/look-{step}"
    with context.policy(trainer.model) as policy:
        found = evaluate(
            context.ledger,
            policy,
            {settings.eval_split: tasks},
            sampling=replace(settings.sampling.record(), temperature=0.0),
            weights=context.weights(settings.name, step),
            run_id=context.run_id,
            stage=stage,
            seed=context.recipe.seed,
            chunk=len(tasks),
            executor=context.executor,
            tools=context.recipe.tools.limits(),
            on_chunk=lambda *_: None,
        )
    context.emit(settings.name, "eval", step=step, split=settings.eval_split, **summary(found[settings.eval_split]))


def _dataset(context: Context, settings: Rl, own: Mapping[str, str]) -> str:
    """The manifest of everything that the stage learnt from: tasks also as others would measure them."""
    episodes = context.ledger.episodes(run_id=context.run_id, stage=settings.name)
    feedback = context.ledger.feedback(run_id=context.run_id, about=[e.id for e in episodes])
    manifest = DatasetManifest(
        id=derive_id("data", context.run_id, settings.name),
        kind="demonstrations" if settings.objective == "sft" else "rl",
        name=settings.name,
        run_id=context.run_id,
        stage=settings.name,
        query={
            "split": settings.split,
            "reward": to_plain(settings.reward.model_dump()),
            "method": settings.method,
            **({"verifiers": [one.model_dump() for one in settings.verifiers]} if settings.verifiers else {}),
        },
        feedback_ids=tuple(f.id for f in feedback),
        episode_ids=tuple(e.id for e in episodes),
        task_ids=tuple(dict.fromkeys(task_id for e in episodes for task_id in (e.task_id, own[e.task_id]))),
        created_at=now(),
    )
    context.ledger.add_dataset(manifest)
    return manifest.id
