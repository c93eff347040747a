"""Unscored is not zero: from a broken tool or verifier to the reward, with siblings unharmed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metier.base.config import load_yaml
from metier.base.errors import DataError, LedgerError
from metier.base.executor import LocalExecutor
from metier.feedback.rewards import RewardPolicy
from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import register
from metier.feedback.verify import verify_episodes
from metier.models.hub import load_tokenizer
from metier.models.renderer import get_renderer
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.ledger import Ledger
from metier.records.types import Episode, Message, Run, Sampling, Task, VerifierSpec, Weights
from metier.records.values import lowest
from metier.rollout.episodes import Plan, kept_episodes, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.tools import describe, tool
from metier.train.advantages import advantages
from scripted import Scripted, written


@tool
def fetch(number: int) -> str:
    """Fetch a record."""
    if number == 13:
        raise RuntimeError("the server is gone")
    if number < 0:
        raise ValueError("numbers are positive")
    return f"record {number}"


class Picky:
    """Fails by itself at some texts."""

    name, version = "picky", "1"

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        said = attempt.messages[-1].content
        if said == "break":
            raise ZeroDivisionError("a bug of the verifier")
        return Verdict(score=float(said == "good"), parts={"said": float(said == "good")})


register(Picky())
TASK = Task(
    family="jsonl",
    kind="fetch",
    split="train",
    messages=(Message(role="user", content="Fetch it."),),
    tools=(describe(fetch),),
    verifiers=(VerifierSpec(name="picky"),),
)


def test_a_broken_tool_or_verifier_is_not_charged_to_the_policy() -> None:
    renderer = get_renderer(load_tokenizer("smollm2"))

    def turn(said: str, number: int | None = None) -> tuple[int, ...]:
        return written(renderer, TASK, said, *([] if number is None else [{"number": number}]))

    script = [
        [turn("", 7), turn("good")],
        [turn("", 13), turn("never said")],  # the tool breaks
        [turn("", -1), turn("bad")],  # the policy's own mistake goes back to it
        [turn("break")],  # the verifier breaks
    ]
    plans = [Plan(id=f"ep-{n}", task=TASK, seed=n, group_id="group") for n in range(4)]
    episodes = run_episodes(
        EnginePolicy(Scripted(script), renderer),
        plans,
        sampling=Sampling(),
        weights=Weights(checkpoint="c"),
        run_id="r",
        stage="s",
    )
    assert [e.error_boundary for e in episodes] == [None, "environment", None, None]
    assert episodes[1].error is not None and "the server is gone" in episodes[1].error
    assert [e.stop_reason for e in episodes] == ["stop", "error", "stop", "stop"]
    assert "numbers are positive" in next(m.content for m in episodes[2].messages if m.role == "tool")

    feedback = verify_episodes({TASK.id: TASK}, episodes, LocalExecutor())
    assert [f.status for f in feedback] == ["scored", "unscored", "scored", "unscored"]
    assert [f.value for f in feedback] == [1.0, None, 0.0, None]
    assert "the server is gone" in feedback[1].reason and "a bug of the verifier" in feedback[3].reason

    rewards = [RewardPolicy(success=1.0, partial=0.5).reward([f]) for f in feedback]
    assert rewards == [1.5, None, 0.0, None]
    assert [lowest([f]) for f in feedback] == [1.0, None, 0.0, None]
    (found,) = advantages("group_unscaled", [rewards])
    assert found == [0.75, None, -0.75, None]  # against the mean of the two that were scored


def test_a_demonstration_that_cannot_be_verified_is_not_learnt_from(tiny_model: Path, tmp_path: Path) -> None:
    row = {"prompt": "Say it.", "verifier": "picky", "split": "demo"}
    row["demonstration"] = [{"role": "assistant", "content": "break"}]
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {
        "name": "tiny",
        "model": {"name": str(tiny_model)},
        "tasks": {"file": str(tmp_path / "tasks.jsonl")},
        "stages": [{"kind": "demonstrate", "name": "demos", "split": "demo", "n": 1}],
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    with pytest.raises(DataError, match="could not be verified: verifier failed: ZeroDivisionError"):
        run(load_yaml(tmp_path / "tiny.yaml", Recipe), folder=str(tmp_path / "run"))


def test_what_was_kept_is_not_drawn_again(tmp_path: Path) -> None:
    """An engine that would say something else the second time is not asked, so a stopped run can go on."""
    renderer = get_renderer(load_tokenizer("smollm2"))
    plans = [Plan(id=f"ep-{n}", task=TASK, seed=n) for n in range(2)]
    asked = {"sampling": Sampling(), "weights": Weights(checkpoint="c"), "run_id": "run-1", "stage": "s"}

    def turn(said: str) -> tuple[int, ...]:
        return written(renderer, TASK, said)

    def drawn(ledger: Ledger, engine: Scripted, plans: list[Plan]) -> list[Episode]:
        return kept_episodes(ledger, plans, lambda: run_episodes(EnginePolicy(engine, renderer), plans, **asked))

    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_run(Run(id="run-1", recipe="r", config={}, seed=0, folder=str(tmp_path), code_version=""))
        ledger.add_tasks([TASK])
        first = drawn(ledger, Scripted([[turn("good")], [turn("bad")]]), plans)
        again = drawn(ledger, Scripted([[turn("other")], [turn("other")]]), plans)
        more = [*plans, Plan(id="ep-2", task=TASK, seed=2)]
        with pytest.raises(LedgerError):  # a chunk is kept whole or not at all
            drawn(ledger, Scripted([[turn("other")]] * 3), more)
    assert [e.messages[-1].content for e in first] == ["good", "bad"]
    assert [(e.id, e.token_ids) for e in again] == [(e.id, e.token_ids) for e in first]
    for a, b in zip(again, first, strict=True):
        assert a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=1e-6)  # kept as float32
