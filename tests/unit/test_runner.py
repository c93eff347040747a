"""The episode runner with tools that are slow, hang, break or say too much, on a real tiny model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from metier.base.executor import LocalExecutor
from metier.feedback.verify import verify_episodes
from metier.models.hub import load_tokenizer
from metier.models.renderer import Renderer, get_renderer
from metier.records.types import Episode, Message, Sampling, Task, VerifierSpec, Weights
from metier.rollout.episodes import Plan, ToolLimits, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.tools import describe, tool
from metier.rollout.torch_engine import TorchEngine
from scripted import Scripted, written
from tiny import tiny_config

HANGS = threading.Event()  # set at the end of a test that left a tool hanging


@tool
def slow(number: int) -> str:
    """Look something up, slowly."""
    if number == 13:
        HANGS.wait(20)
    if number == 14:
        raise OSError("the line is down")
    if number == 15:
        return "x" * 100_000
    time.sleep(0.2)
    return f"found {number}"


TASK = Task(
    family="jsonl",
    kind="look",
    split="train",
    messages=(Message(role="user", content="Look it up."),),
    tools=(describe(slow),),
    verifiers=(VerifierSpec(name="exact", params={"answer": "done"}),),
)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return get_renderer(load_tokenizer("smollm2"))


@pytest.fixture
def unblocked() -> Iterator[None]:
    HANGS.clear()
    yield
    HANGS.set()


def turn(renderer: Renderer, said: str, *numbers: int) -> tuple[int, ...]:
    return written(renderer, TASK, said, *({"number": n} for n in numbers))


def run(engine: Any, renderer: Renderer, n: int, **changes: Any) -> list[Episode]:
    plans = [Plan(id=f"ep-{i}", task=TASK, seed=i) for i in range(n)]
    options: dict[str, Any] = {"sampling": Sampling(), "weights": Weights(checkpoint="c"), "run_id": "r", "stage": "s"}
    return run_episodes(EnginePolicy(engine, renderer), plans, **{**options, **changes})


def test_slow_tools_wait_side_by_side_while_others_go_on(renderer: Renderer) -> None:
    script = [[turn(renderer, "", n), turn(renderer, "done")] for n in range(8)] + [[turn(renderer, "no tool")]]
    engine = Scripted(script)
    began = time.monotonic()
    episodes = run(engine, renderer, 9, tools=ToolLimits(workers=8))
    assert time.monotonic() - began < 1.2  # one after the other they take 1.6 s
    assert engine.steps[0] == list(range(9))
    for n, episode in enumerate(episodes[:8]):
        assert [m.role for m in episode.messages] == ["user", "assistant", "tool", "assistant"]
        assert episode.messages[2].content == f"found {n}"
        assert len(episode.token_ids) == len(episode.loss_mask) == len(episode.sampler_logprobs)
    assert len(episodes[8].messages) == 2


def test_episodes_are_the_same_however_many_tools_work_at_once(renderer: Renderer) -> None:
    script = [[turn(renderer, "", n, 20 + n), turn(renderer, "done")] for n in range(4)]

    def told(workers: int) -> list[Episode]:
        episodes = run(Scripted(script), renderer, 4, tools=ToolLimits(workers=workers))
        return [replace(e, created_at=0.0, cost=replace(e.cost, seconds=0.0)) for e in episodes]

    assert told(1) == told(4)


def test_a_tool_that_hangs_or_breaks_ends_its_own_episode_only(renderer: Renderer, unblocked: None) -> None:
    script = [[turn(renderer, "", n), turn(renderer, "done")] for n in (1, 13, 14)]
    began = time.monotonic()
    episodes = run(Scripted(script), renderer, 3, tools=ToolLimits(workers=4, seconds=0.5))
    assert time.monotonic() - began < 5
    assert [e.stop_reason for e in episodes] == ["stop", "error", "error"]
    assert [e.error_boundary for e in episodes] == [None, "environment", "environment"]
    assert episodes[1].error == "a tool took longer than 0.5 s"
    assert "the line is down" in str(episodes[2].error)
    feedback = verify_episodes({TASK.id: TASK}, episodes, LocalExecutor())
    assert [f.status for f in feedback] == ["scored", "unscored", "unscored"]


def test_waiting_for_a_thread_is_not_being_late_and_hung_threads_are_replaced(
    renderer: Renderer, unblocked: None
) -> None:
    numbers = [13, 13, 1, 2, 3, 4, 5, 6]
    script = [[turn(renderer, "", n), turn(renderer, "done")] for n in numbers]
    episodes = run(Scripted(script), renderer, 8, tools=ToolLimits(workers=2, seconds=0.7))
    assert [e.stop_reason for e in episodes] == ["error", "error", *["stop"] * 6]
    assert [dict(e.final_state) for e in episodes] == [{}] * 8


def test_a_crash_of_the_environment_is_not_the_end_of_the_others(renderer: Renderer) -> None:
    """A tool that nobody registered is the environment's fault, one that the task does not offer the policy's."""
    other = replace(TASK, tools=(replace(TASK.tools[0], name="nowhere"),))
    done = turn(renderer, "done")
    script = [[turn(renderer, "", 1), done], [turn(renderer, "", 2), done], [written(renderer, other, "", {}), done]]
    plans = [Plan(id=f"ep-{n}", task=task, seed=n) for n, task in enumerate((TASK, other, other))]
    options: dict[str, Any] = {"sampling": Sampling(), "weights": Weights(checkpoint="c"), "run_id": "r", "stage": "s"}
    episodes = run_episodes(EnginePolicy(Scripted(script), renderer), plans, **options)
    assert [e.stop_reason for e in episodes] == ["stop", "stop", "error"]
    assert "no tool 'slow'" in episodes[1].messages[2].content
    assert episodes[2].error_boundary == "environment" and "unknown tool 'nowhere'" in str(episodes[2].error)


def test_an_answer_that_is_too_long_is_cut_and_says_so(renderer: Renderer) -> None:
    engine = Scripted([[turn(renderer, "", 15), turn(renderer, "done")]])
    (episode,) = run(engine, renderer, 1, tools=ToolLimits(characters=50))
    assert episode.messages[2].content == "x" * 50 + " … cut here: the answer has 100,000 characters"
    assert len(episode.token_ids) < 400


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_turns": 1}, "turns"),
        ({"max_tokens": 5}, "tokens"),
        ({"max_calls": 1}, "calls"),
        ({"max_seconds": 0.1}, "time"),
    ],
)
def test_budgets_end_an_episode_and_say_which(renderer: Renderer, changes: Mapping[str, Any], reason: str) -> None:
    engine = Scripted([[turn(renderer, "", 1), turn(renderer, "", 2), turn(renderer, "done")]])
    (episode,) = run(engine, renderer, 1, sampling=Sampling(**changes))
    assert episode.stop_reason == reason and episode.error is None


def test_what_does_not_fit_the_model_is_told(renderer: Renderer) -> None:
    """A prompt that is too long ends unscored and leaves its siblings alone; a long tool result ends its episode."""
    short = Plan(id="ep-0", task=TASK, seed=0)
    wide = replace(TASK, messages=(Message(role="user", content="word " * 400),))
    engine = Scripted([[turn(renderer, "", 15), turn(renderer, "done")], []], context=300)
    episodes = run_episodes(
        EnginePolicy(engine, renderer), [short, Plan(id="ep-1", task=wide, seed=1)],
        sampling=Sampling(), weights=Weights(checkpoint="c"), run_id="r", stage="s",
    )  # fmt: skip
    assert [e.stop_reason for e in episodes] == ["context", "error"]
    assert episodes[1].error_boundary == "engine" and "and the model reads 300" in str(episodes[1].error)


def test_a_hundred_conversations_in_few_slots_are_not_mixed_up(renderer: Renderer) -> None:
    """A real engine, whose own words decide nothing: none is lost, whoever shares a slot."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(vocab_size=len(load_tokenizer("smollm2")))).eval()
    plans = [Plan(id=f"ep-{i}", task=TASK, seed=i % 7) for i in range(100)]

    def told(workers: int, rows: int) -> list[tuple[int, ...]]:
        engine = TorchEngine(model, rows=rows)
        sampling = Sampling(max_turn_tokens=6, max_turns=2)
        episodes = run_episodes(
            EnginePolicy(engine, renderer), plans, sampling=sampling, weights=Weights(checkpoint="c"),
            run_id="r", stage="s", tools=ToolLimits(workers=workers),
        )  # fmt: skip
        return [e.token_ids for e in episodes]

    assert told(1, 16) == told(8, 16) == told(1, 128)
