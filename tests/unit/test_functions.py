"""The task family "functions": references pass, other code does not, and splits have nothing in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from metier.base.errors import ConfigError, DataError
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.workers import judge
from metier.models.hub import load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.types import Message, Sampling, Task, Weights
from metier.rollout.episodes import Plan, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.sandbox.choose import shared_sandbox
from metier.sandbox.protocol import SandboxUnavailableError
from metier.tasks.protocol import EnvironmentFailure
from metier.tasks.registry import get_family
from scripted import Scripted, written

FAMILY = get_family("functions")


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> Iterator[None]:
    try:
        shared_sandbox()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    yield


def score(task: Task, said: str) -> float | None:
    (spec,) = task.verifiers
    return judge(
        spec.name, task, Attempt(messages=(*task.messages, Message(role="assistant", content=said))), spec.params
    ).score


@pytest.mark.parametrize("split", FAMILY.splits())
def test_references_pass_and_doing_nothing_does_not(split: str) -> None:
    tasks = FAMILY.tasks(split, 24, seed=3)
    assert len({task.id for task in tasks}) == 24
    assert tasks == FAMILY.tasks(split, 24, seed=3) != FAMILY.tasks(split, 24, seed=4)
    for task in tasks:
        (spec,) = task.verifiers
        name = spec.params["entry_point"]
        assert len(spec.params["cases"]) >= 4 and len(task.meta["examples"]) == 2
        demonstrated = FAMILY.demonstrate(task)[-1].content
        assert score(task, demonstrated) == 1.0, task.messages[0].content
        parameter = demonstrated.partition("(")[2].partition(")")[0]
        for body in ("pass", "return None", "return 'x'", f"return {task.meta['examples'][0]['expected']!r}"):
            assert score(task, f"def {name}({parameter}):\n    {body}\n") == 0.0, (task.messages[0].content, body)
        if split != "demo":  # functions that give back their argument are what demonstrations show
            assert score(task, f"def {name}({parameter}):\n    return {parameter}\n") == 0.0, task.messages[0].content


def test_splits_have_no_function_in_common() -> None:
    does = {split: {task.meta["does"] for task in FAMILY.tasks(split, 100, seed=1)} for split in FAMILY.splits()}
    kinds = {split: {task.kind for task in FAMILY.tasks(split, 100, seed=1)} for split in FAMILY.splits()}
    for one in does:
        for other in does:
            if one != other:
                assert not does[one] & does[other]
    assert kinds["train"] == kinds["heldout"] and not kinds["train"] & kinds["unseen"]
    assert kinds["demo"] == {"same"}


def test_what_is_hidden_is_not_asked() -> None:
    for task in FAMILY.tasks("train", 20, seed=1):
        (spec,) = task.verifiers
        shown = [example["args"] for example in task.meta["examples"]]
        assert all(case["args"] not in shown for case in spec.params["cases"])


def test_with_tries_the_examples_are_run_and_what_came_of_it_is_said() -> None:
    family = get_family("functions", {"tries": 3})
    task = family.tasks("train", 1, seed=1)[0]
    name = task.meta["name"]
    example = task.meta["examples"][0]
    environment = family.environment(task)
    said = environment.reply(f"```python\ndef {name}(x):\n    return 'odd'\n```")
    assert said is not None and f"gives 'odd', not {example['expected']!r}" in said and "again" in said
    said = environment.reply("I do not know.")
    assert said is not None and said.startswith("It does not run: ")
    assert environment.reply("I still do not know.") is None  # its tries are used up
    again = family.environment(task)
    failed = again.reply(f"def {name}(x):\n    return 1 // 0\n")
    assert failed is not None and "ZeroDivisionError" in failed
    assert again.reply(family.demonstrate(task)[-1].content) is None  # it works
    (single,) = FAMILY.tasks("train", 1, seed=1)
    assert FAMILY.environment(single).reply("x") is None


def test_an_episode_with_tries_tries_reads_and_repairs() -> None:
    """Through the runner, as a recipe does it: the last try is what counts."""
    renderer = get_renderer(load_tokenizer("smollm2"))
    family = get_family("functions", {"tries": 3})
    task = family.tasks("train", 1, seed=1)[0]
    wrong, right = f"def {task.meta['name']}(x):\n    return 'odd'\n", family.demonstrate(task)[-1].content
    turns = [[written(renderer, task, one) for one in said] for said in ([wrong, wrong, right], [right], [wrong] * 3)]
    episodes = run_episodes(
        EnginePolicy(Scripted(turns), renderer),
        [Plan(id=f"ep-{n}", task=task, seed=n) for n in range(3)],
        sampling=Sampling(max_turns=3, max_tokens=1000),
        weights=Weights(checkpoint="c"),
        run_id="r",
        stage="s",
    )
    assert [sum(m.role == "assistant" for m in e.messages) for e in episodes] == [3, 1, 3]
    assert "gives 'odd'" in episodes[0].messages[2].content
    scores = [judge("code", task, Attempt(messages=e.messages), task.verifiers[0].params).score for e in episodes]
    assert scores == [1.0, 1.0, 0.0]


def test_without_a_sandbox_the_environment_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_SANDBOX", "docker:none")
    monkeypatch.setenv("PATH", "/nowhere")
    family = get_family("functions", {"tries": 2})
    with pytest.raises(EnvironmentFailure, match="no sandbox: "):
        family.environment(family.tasks("train", 1, seed=1)[0]).reply("x")


def test_what_it_cannot_make_is_told() -> None:
    with pytest.raises(DataError, match="no split 'test'; it has demo, train"):
        FAMILY.tasks("test", 1, seed=1)
    for options in ({"tries": 0}, {"tries": True}, {"tries": 9}, {"times": 2}):
        with pytest.raises(ConfigError, match="functions has one option"):
            get_family("functions", options)
    assert replace(FAMILY.tasks("train", 1, seed=1)[0], split="x").id == FAMILY.tasks("train", 1, seed=1)[0].id
