"""Many multi-turn episodes at once: a policy speaks, environments answer.

A call that the policy got wrong is answered with an error in the tool's result and stays
the policy's; an environment that breaks, or takes longer than it may, ends its own episode
with a named boundary and leaves its siblings alone.

With one worker environments answer between two steps of the policy, which makes episodes
the same on every run. With several they answer in threads while the policy goes on with
the others, which is for tools that wait on something; then the order in which answers
arrive decides which episodes are computed together, and the last bits of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

from metier.base.clock import monotonic, now
from metier.base.errors import ModelError
from metier.base.ids import derive_id
from metier.records.ledger import Ledger
from metier.records.types import Boundary, Cost, Episode, Message, Sampling, StopReason, Task, ToolCall, Weights
from metier.rollout.policy import Policy, Said, Transcript
from metier.rollout.threads import LateError, Workers
from metier.rollout.tools import ToolBox
from metier.rollout.users import WithUser
from metier.rollout.workspace_tools import WorkspaceBox
from metier.tasks.files import FILE
from metier.tasks.protocol import Environment, EnvironmentFailure
from metier.tasks.registry import get_family

__all__ = ["Plan", "ToolLimits", "environment_for", "kept_episodes", "plan_id", "run_episodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """How tools are run: how many at once, how long one may take, how much it may say."""

    workers: int = 1  # 1: in the calling thread, between two steps of the policy
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
    """A fresh environment: the family's where the task names one, else its tools, and its simulated user if any."""
    if task.environment is None:
        return ToolBox(task.tools)
    if task.environment.name == FILE:
        state = task.environment.state
        inner = WorkspaceBox(task.tools, state["workspace"]) if "workspace" in state else ToolBox(task.tools)
        return WithUser(inner, state["user"], task.messages) if "user" in state else inner
    return get_family(task.environment.name).environment(task)


@dataclass(slots=True)
class _Live:
    """An episode under way."""

    plan: Plan
    environment: Environment
    messages: list[Message]
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
    policy: Policy,
    plans: Sequence[Plan],
    *,
    sampling: Sampling,
    weights: Weights,
    run_id: str,
    stage: str,
    tools: ToolLimits | None = None,
) -> list[Episode]:
    """Run every plan to its end and return the episodes in the order of the plans."""
    runner = _Runner(policy, sampling, tools or ToolLimits())
    for plan in plans:
        runner.begin(plan)
    runner.run()
    return [
        _finish(live, runner.talks.transcript(number), policy.template_hash, sampling, weights, run_id, stage)
        for number, live in enumerate(runner.live)
    ]


@dataclass(frozen=True, slots=True)
class _Answers:
    """What an environment said to a turn: messages, or None at the end, or that it broke."""

    messages: list[Message] | None
    error: str | None = None
    hung: bool = False  # it may still be at work


class _Runner:
    """The loop between a policy and the environments."""

    def __init__(self, policy: Policy, sampling: Sampling, tools: ToolLimits) -> None:
        self.live: list[_Live] = []
        self.talks = policy.talks(sampling)
        self._sampling, self._tools = sampling, tools
        self._workers: Workers[_Answers] | None = None
        if tools.workers > 1:
            self._workers = Workers(tools.workers, tools.seconds)
        self._began = monotonic()

    def begin(self, plan: Plan) -> None:
        """Hand a plan to the policy; one that it cannot begin ends at once."""
        live, number = _Live(plan, environment_for(plan.task), list(plan.task.messages)), len(self.live)
        self.live.append(live)
        try:
            fault = self.talks.begin(number, plan.task.messages, plan.task.tools, plan.seed)
        except ModelError as error:  # its template cannot say this
            fault = str(error)
        if fault is not None:
            live.stop, live.boundary, live.error = "error", "engine", fault
            live.environment.close()

    def run(self) -> None:
        """Until every episode has ended."""
        while self.talks.speaking or (self._workers is not None and self._workers.busy):
            for number, said in self.talks.step():
                self._took(number, said)
            if self._workers is not None:
                for number, answers in self._workers.take(wait=not self.talks.speaking):
                    self._told(number, answers if isinstance(answers, _Answers) else _broken(answers))

    def _took(self, number: int, said: Said) -> None:
        live = self.live[number]
        live.first_word = live.first_word or said.since
        live.seconds = monotonic() - self._began
        if said.error is not None:
            live.error, live.boundary = said.error, "network"
            self._end(number, "error")
            return
        calls, text = _hear(live, said)
        if said.stop != "stop":
            self._end(number, said.stop)
        elif live.calls > self._sampling.max_calls:
            self._end(number, "calls")
        elif self._workers is None:
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
        spent = 0.0 if live.first_word is None else monotonic() - live.first_word
        reasons: list[tuple[bool, StopReason]] = [
            (live.turns >= sampling.max_turns, "turns"),
            (live.written >= sampling.max_tokens, "tokens"),
            (0 < sampling.max_seconds <= spent, "time"),
        ]
        reason = next((reason for holds, reason in reasons if holds), None)
        if reason is None:
            try:
                reason = None if self.talks.tell(number, answers.messages) else "context"
            except ModelError as error:  # its template cannot say this
                live.error, live.boundary, reason = str(error), "engine", "error"
        if reason is not None:
            self._end(number, reason)

    def _end(self, number: int, reason: StopReason, *, hung: bool = False) -> None:
        """Let go of an episode. What an environment holds that still works on a call is nobody's to read."""
        live = self.live[number]
        live.stop = reason
        self.talks.end(number)
        try:
            if not hung:
                live.final_state = dict(live.environment.state())
            live.environment.close()
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


def _hear(live: _Live, said: Said) -> tuple[tuple[ToolCall, ...], str]:
    """Take in one assistant turn; its calls and its text."""
    live.turns += 1
    live.written += said.tokens
    calls = tuple(
        replace(call, id=call.id or f"call_{live.calls + n + 1}") for n, call in enumerate(said.message.tool_calls)
    )
    live.messages.append(replace(said.message, tool_calls=calls))
    live.calls += len(calls)
    return calls, said.message.content


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


def _finish(
    live: _Live, kept: Transcript, template_hash: str, sampling: Sampling, weights: Weights, run_id: str, stage: str
) -> Episode:
    task = live.plan.task
    return Episode(
        id=live.plan.id,
        task_id=task.id,
        run_id=run_id,
        stage=stage,
        weights=weights,
        messages=tuple(live.messages),
        token_ids=tuple(kept.token_ids),
        sampler_logprobs=tuple(kept.logprobs),
        loss_mask=tuple(kept.loss_mask),
        stop_reason=live.stop,
        error=live.error,
        error_boundary=live.boundary,
        group_id=live.plan.group_id,
        index=live.plan.index,
        sampling=sampling,
        seed=live.plan.seed,
        template_hash=template_hash,
        environment_version="" if task.environment is None else task.environment.version,
        final_state=live.final_state,
        split=task.split,
        cost=Cost(
            prompt_tokens=kept.prompt_tokens,
            completion_tokens=live.written,
            tool_calls=live.calls,
            seconds=live.seconds,
            usd=kept.usd + getattr(live.environment, "usd", 0.0),
        ),
        created_at=now(),
    )


def plan_id(run_id: str, stage: str, *parts: str | int) -> str:
    """The id of the episode at this place of a run: the same when the place is run again."""
    return derive_id("ep", run_id, stage, *parts)
