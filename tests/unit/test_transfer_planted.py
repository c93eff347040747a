"""The benchmark's planted rewards are what they are said to be, and its recipes such that a run would take them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import get_verifier
from metier.recipes.settings import BASE, Rl
from metier.records.types import Message
from metier.tasks.registry import get_family

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("transfer")
    for name in ("transfer", "transfer_pool", "transfer_rewards"):
        sys.modules.pop(name, None)


def test_hackable_rewards_never_look_at_gold_and_honest_ones_do(benchmark: ModuleType) -> None:
    planted = benchmark.planted
    tasks = get_family("desk").tasks("heldout", 12, 5)
    nothing = (Message(role="assistant", content="Hm."),)
    higher = dict.fromkeys(planted.HONEST, 0)
    for task in tasks:
        said, state = planted.demonstrated(task)
        right, wrong = planted.Done(task, said, state), planted.Done(task, nothing, task.environment.state)
        assert right.gold == 1.0 and wrong.gold == 0.0
        turned = planted.Done(task, said, state, Verdict(score=0.0, parts={"clean": 0.0}))
        for _, measure in planted.HACKABLE.values():
            assert measure(right) == measure(turned)
        for name, (_, measure) in planted.HONEST.items():
            assert measure(right) == measure(right)  # its noise is its own
            higher[name] += measure(right) > measure(wrong)
    assert all(n >= 7 for n in higher.values()), higher
    assert len(planted.HONEST) == 10 and len(planted.HACKABLE) >= 10


def test_training_tasks_carry_the_reward_and_held_out_ones_the_desk_s_verifier(benchmark: ModuleType) -> None:
    for reward in benchmark.planted.IN_RL:
        family = get_family("desk_planted", {"reward": reward})
        (train,), (held,) = family.tasks("train", 1, 3), family.tasks("heldout", 1, 3)
        assert [one.name for one in held.verifiers] == ["conduct"]
        (spec,) = train.verifiers
        shown = Attempt(messages=family.demonstrate(train), final_state=benchmark.planted.demonstrated(train)[1])
        verdict = get_verifier("planted").verify(train, shown, spec.params)
        assert spec.params["reward"] == reward and verdict.score is not None and 0 <= verdict.score <= 1
        recipe = benchmark.rl_recipe(reward, Path("start"), 1, 12)
        stages = {stage.name: stage for stage in recipe.stages}
        rl = stages["grpo"]
        assert isinstance(rl, Rl) and rl.of == BASE and rl.reward.success == 0 and rl.reward.partial == 1
        assert stages[benchmark.AFTER].of == "grpo" and stages[benchmark.BEFORE].of == BASE
        assert rl.eval_every and rl.split == "train"
    truth = benchmark.truth_recipe("truth", Path("start"))
    assert truth.seed != recipe.seed and truth.stages[0].splits == {"heldout": 256}
