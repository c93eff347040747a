"""Many multi-turn episodes at once: an engine draws turns, environments answer them.

A call that the policy got wrong is answered with an error in the tool's result and stays
the policy's; an environment that breaks, or takes longer than it may, ends its own episode
with a named boundary and leaves its siblings alone. Every token that the policy drew is
kept as it was drawn.

With one worker environments answer between two steps of the engine, which makes episodes
the same on every run. With several they answer in threads while the engine goes on with
the others, which is for tools that wait on something; then the order in which answers
arrive decides which episodes are computed together, and the last bits of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

from metier.base.clock import monotonic, now
from metier.base.ids import derive_id
from metier.models.renderer import Rendered, Renderer
from metier.records.ledger import Ledger
from metier.records.types import Boundary, Cost, Episode, Message, Sampling, StopReason, Task, ToolCall, Weights
from metier.rollout.engine import Drawn, Engine, Request, Word
from metier.rollout.tools import ToolBox
from metier.rollout.workers import LateError, Workers
from metier.tasks.protocol import Environment, EnvironmentFailure
from metier.tasks.registry import get_family

__all__ = ["Plan", "ToolLimits", "environment_for", "kept_episodes", "plan_id", "run_episodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """How tools are run: how many at once, how long one may take, how much it may say."""

    workers: int = 1  # 1: in the calling thread, between two steps of the engine
    seconds: float = 60.0  # of one turn's calls; looked at with several workers only
    characters: int = 20_000  # of one answer; the rest is cut, and the policy is told


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
    seconds: float = 0.0
    first_word: float | None = None  # when it was drawn
    final_state: Mapping[str, Any] = field(default_factory=dict)


def run_episodes(
    engine: Engine,
    renderer: Renderer,
    plans: Sequence[Plan],
    *,
    sampling: Sampling,
    weights: Weights,
    run_id: str,
    stage: str,
    tools: ToolLimits | None = None,
) -> list[Episode]:
    """Run every plan to its end and return the episodes in the order of the plans."""
    runner = _Runner(engine, renderer, sampling, tools or ToolLimits())
    for plan in plans:
        runner.begin(plan)
    runner.run()
    return [_finish(e, renderer, sampling, weights, run_id, stage) for e in runner.live]


@dataclass(frozen=True, slots=True)
class _Answers:
    """What an environment said to a turn: messages, or None at the end, or that it broke."""

    messages: list[Message] | None
    error: str | None = None
    hung: bool = False  # it may still be at work


class _Runner:
    """The loop between a session and the environments."""

    def __init__(self, engine: Engine, renderer: Renderer, sampling: Sampling, tools: ToolLimits) -> None:
        self.live: list[_Live] = []
        self._session = engine.session(self._word if sampling.max_seconds else None)
        self._renderer, self._sampling, self._tools = renderer, sampling, tools
        self._context = engine.context
        self._workers: Workers[_Answers] | None = None
        if tools.workers > 1:
            self._workers = Workers(tools.workers, tools.seconds)
        self._began = monotonic()

    def begin(self, plan: Plan) -> None:
        """Hand a plan to the session; one whose prompt is too long ends at once."""
        prompt = self._renderer.render(plan.task.messages, plan.task.tools, prompt=True)
        live, number = _start(plan, prompt), len(self.live)
        self.live.append(live)
        if len(live.token_ids) >= self._context:
            n = len(live.token_ids)
            live.stop, live.boundary = "error", "engine"
            live.error = f"the prompt has {n} tokens and the model reads {self._context}: no room for a word"
            return
        request = Request(prompt.token_ids, prompt.prefix, plan.seed, self._sampling, self._renderer.stop_ids)
        self._session.add(number, request)

    def run(self) -> None:
        """Until every episode has ended."""
        while self._session.speaking or (self._workers is not None and self._workers.busy):
            for number, drawn in self._session.step():
                self._took(number, drawn)
            if self._workers is not None:
                for number, answers in self._workers.take(wait=not self._session.speaking):
                    self._told(number, answers if isinstance(answers, _Answers) else _broken(answers))

    def _word(self, number: int, _: Word) -> None:
        if self.live[number].first_word is None:
            self.live[number].first_word = monotonic()

    def _took(self, number: int, drawn: Drawn) -> None:
        live = self.live[number]
        calls, text = _hear(live, drawn, self._renderer)
        live.seconds = monotonic() - self._began
        if drawn.stop == "length":
            self._end(number, "context" if len(live.token_ids) >= self._context else "length")
        elif live.calls > self._sampling.max_calls:
            self._end(number, "calls")
        elif self._workers is None or not calls:
            self._told(number, _answers(live.environment, calls, text, self._tools.characters, Event()))
        else:
            self._workers.submit(
                number, lambda left: _answers(live.environment, calls, text, self._tools.characters, left)
            )

    def _told(self, number: int, answers: _Answers) -> None:
        live, sampling = self.live[number], self._sampling
        live.seconds = monotonic() - self._began
        if answers.error is not None:
            live.error, live.boundary = answers.error, "environment"
            self._end(number, "error", hung=answers.hung)
            return
        if answers.messages is None:
            self._end(number, "stop")
            return
        live.messages.extend(answers.messages)
        said = self._renderer.extend(answers.messages)
        spent = 0.0 if live.first_word is None else monotonic() - live.first_word
        reasons: list[tuple[bool, StopReason]] = [
            (live.turns >= sampling.max_turns, "turns"),
            (live.written >= sampling.max_tokens, "tokens"),
            (0 < sampling.max_seconds <= spent, "time"),
            (len(live.token_ids) + len(said) >= self._context, "context"),
        ]
        for holds, reason in reasons:
            if holds:
                self._end(number, reason)
                return
        live.token_ids.extend(said)
        live.loss_mask.extend([0] * len(said))
        live.logprobs.extend([0.0] * len(said))
        live.prompt_tokens += len(said)
        self._session.reply(number, said)

    def _end(self, number: int, reason: StopReason, *, hung: bool = False) -> None:
        """Let go of an episode. What an environment holds that still works on a call is nobody's to read."""
        live = self.live[number]
        live.stop = reason
        self._session.end(number)
        if hung:
            return
        try:
            live.final_state = dict(live.environment.state())
        except Exception as error:
            live.stop, live.boundary = "error", "environment"
            live.error = f"its state could not be read: {type(error).__name__}: {error}"


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


def _start(plan: Plan, prompt: Rendered) -> _Live:
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


def _hear(live: _Live, drawn: Drawn, renderer: Renderer) -> tuple[tuple[ToolCall, ...], str]:
    """Take in one assistant turn; its calls and its text."""
    live.token_ids.extend(drawn.token_ids)
    live.loss_mask.extend([1] * len(drawn.token_ids))
    live.logprobs.extend(drawn.logprobs)
    live.turns += 1
    live.written += len(drawn.token_ids)
    message = renderer.parse(drawn.token_ids)
    calls = tuple(replace(call, id=f"call_{live.calls + n + 1}") for n, call in enumerate(message.tool_calls))
    live.messages.append(replace(message, tool_calls=calls))
    live.calls += len(calls)
    return calls, message.content


def _answers(environment: Environment, calls: Sequence[ToolCall], text: str, characters: int, left: Event) -> _Answers:
    """What the environment says: to each call, or as the user to a text. After `left` is set nothing more is called."""
    try:
        if not calls:
            reply = environment.reply(text)
            return _Answers(None if reply is None else [Message(role="user", content=reply)])
        said = []
        for call in calls:
            if not left.is_set():
                answer = _cut(environment.call(call), characters)
                said.append(Message(role="tool", content=answer, tool_call_id=call.id, name=call.name))
    except Exception as error:
        return _broken(error)
    return _Answers(said)


def _broken(error: Exception) -> _Answers:
    """An environment that failed, in its own words or those of the exception that it let out."""
    own = isinstance(error, (EnvironmentFailure, LateError))
    return _Answers(None, str(error) if own else f"{type(error).__name__}: {error}", isinstance(error, LateError))


def _cut(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    return f"{text[:characters]} … cut here: the answer has {len(text):,} characters"


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
        final_state=live.final_state,
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
