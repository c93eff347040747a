"""Many multi-turn episodes at once: an engine draws turns, environments answer them.

A call that the policy got wrong is answered with an error in the tool's result and stays
the policy's; an environment that breaks ends its own episode with a named boundary and
leaves its siblings alone. Every token that the policy drew is kept as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from metier.base.clock import monotonic, now
from metier.base.ids import derive_id
from metier.models.renderer import Renderer
from metier.records.ledger import Ledger
from metier.records.types import Boundary, Cost, Episode, Message, Sampling, StopReason, Task, Weights
from metier.rollout.engine import Drawn, Engine, Request
from metier.rollout.tools import ToolBox
from metier.tasks.protocol import Environment, EnvironmentFailure
from metier.tasks.registry import get_family

__all__ = ["Plan", "environment_for", "kept_episodes", "plan_id", "run_episodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An episode that is to be run."""

    id: str
    task: Task
    seed: int
    index: int = 0
    group_id: str | None = None


def environment_for(task: Task) -> Environment:
    """A fresh environment: the family's where the task names one, else its tools alone."""
    if task.environment is not None:
        return get_family(task.environment.name).environment(task)
    return ToolBox(task.tools)


@dataclass(slots=True)
class _Live:
    """An episode under way."""

    plan: Plan
    environment: Environment
    messages: list[Message]
    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float]
    prompt_tokens: int
    turns: int = 0
    written: int = 0
    calls: int = 0
    stop: StopReason = "stop"
    error: str | None = None
    boundary: Boundary | None = None
    seconds: float = field(default=0.0)


def run_episodes(
    engine: Engine,
    renderer: Renderer,
    plans: Sequence[Plan],
    *,
    sampling: Sampling,
    weights: Weights,
    run_id: str,
    stage: str,
) -> list[Episode]:
    """Run every plan to its end and return the episodes in the order of the plans."""
    live = [_start(plan, renderer) for plan in plans]
    requests = [
        Request(
            tuple(episode.token_ids),
            renderer.render(plan.task.messages, plan.task.tools, prompt=True).prefix,
            plan.seed,
        )
        for plan, episode in zip(plans, live, strict=True)
    ]
    began = monotonic()

    def on_turn(number: int, drawn: Drawn) -> tuple[int, ...] | None:
        episode = live[number]
        said = _advance(episode, drawn, renderer, sampling)
        episode.seconds = monotonic() - began
        return said

    engine.generate(requests, sampling, renderer.stop_ids, on_turn)
    return [_finish(e, renderer, sampling, weights, run_id, stage) for e in live]


def kept_episodes(ledger: Ledger, plans: Sequence[Plan], draw: Callable[[], list[Episode]]) -> list[Episode]:
    """What the ledger holds of these plans, or else what `draw` gives, which is then kept.

    So a run that was stopped goes on with the same episodes, also where drawing them a
    second time would give others (on a GPU, or with another number of threads).
    """
    kept = {episode.id: episode for episode in ledger.episodes(ids=[plan.id for plan in plans], arrays=True)}
    if len(kept) == len(plans):
        return [kept[plan.id] for plan in plans]
    episodes = draw()
    ledger.add_episodes(episodes)
    return episodes


def _start(plan: Plan, renderer: Renderer) -> _Live:
    prompt = renderer.render(plan.task.messages, plan.task.tools, prompt=True)
    n = len(prompt.token_ids)
    return _Live(
        plan=plan,
        environment=environment_for(plan.task),
        messages=list(plan.task.messages),
        token_ids=list(prompt.token_ids),
        loss_mask=[0] * n,
        logprobs=[0.0] * n,
        prompt_tokens=n,
    )


def _advance(live: _Live, drawn: Drawn, renderer: Renderer, sampling: Sampling) -> tuple[int, ...] | None:
    """Take in one assistant turn; the tokens that answer it, or None at the end."""
    live.token_ids.extend(drawn.token_ids)
    live.loss_mask.extend([1] * len(drawn.token_ids))
    live.logprobs.extend(drawn.logprobs)
    live.turns += 1
    live.written += len(drawn.token_ids)
    message = renderer.parse(drawn.token_ids)
    calls = tuple(replace(call, id=f"call_{live.calls + n + 1}") for n, call in enumerate(message.tool_calls))
    message = replace(message, tool_calls=calls)
    live.messages.append(message)
    live.calls += len(calls)
    if drawn.stop == "length":
        live.stop = "length"
        return None
    answers: list[Message] = []
    try:
        for call in calls:
            text = live.environment.call(call)
            answers.append(Message(role="tool", content=text, tool_call_id=call.id, name=call.name))
        if not calls:
            reply = live.environment.reply(message.content)
            if reply is None:
                return None
            answers.append(Message(role="user", content=reply))
    except EnvironmentFailure as error:
        live.stop, live.error, live.boundary = "error", str(error), "environment"
        return None
    live.messages.extend(answers)
    if live.turns >= sampling.max_turns or live.written >= sampling.max_tokens:
        live.stop = "turns" if live.turns >= sampling.max_turns else "tokens"
        return None
    said = renderer.extend(answers)
    live.token_ids.extend(said)
    live.loss_mask.extend([0] * len(said))
    live.logprobs.extend([0.0] * len(said))
    live.prompt_tokens += len(said)
    return said


def _finish(live: _Live, renderer: Renderer, sampling: Sampling, weights: Weights, run_id: str, stage: str) -> Episode:
    task = live.plan.task
    return Episode(
        id=live.plan.id,
        task_id=task.id,
        run_id=run_id,
        stage=stage,
        weights=weights,
        messages=tuple(live.messages),
        token_ids=tuple(live.token_ids),
        sampler_logprobs=tuple(live.logprobs),
        loss_mask=tuple(live.loss_mask),
        stop_reason=live.stop,
        error=live.error,
        error_boundary=live.boundary,
        group_id=live.plan.group_id,
        index=live.plan.index,
        sampling=sampling,
        seed=live.plan.seed,
        template_hash=renderer.template_hash,
        environment_version="" if task.environment is None else task.environment.version,
        final_state=dict(live.environment.state()),
        split=task.split,
        cost=Cost(
            prompt_tokens=live.prompt_tokens,
            completion_tokens=live.written,
            tool_calls=live.calls,
            seconds=live.seconds,
        ),
        created_at=now(),
    )


def plan_id(run_id: str, stage: str, *parts: str | int) -> str:
    """The id of the episode at this place of a run: the same when the place is run again."""
    return derive_id("ep", run_id, stage, *parts)
