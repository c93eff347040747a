"""Episodes drawn beside the training: how old their weights are, and that off is exactly as before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.events import read
from metier.records.ledger import Ledger
from metier.records.types import Episode

pytest.importorskip("reasoning_gym", reason="its tasks are not installed: pip install 'metier[reasoning-gym]'")

STEPS = 4


def learn(folder: Path, listener: Any = None, **changes: Any) -> tuple[list[Episode], list[dict[str, Any]]]:
    """A short GRPO on sums, with its episodes and the events of its steps."""
    stage = {
        "kind": "rl", "name": "grpo", "of": "base", "split": "train", "steps": STEPS, "tasks": 1, "group": 2,
        "lr": 1e-3, "reward": {"partial": 0.5}, "sampling": {"max_turn_tokens": 6, "max_turns": 1}, **changes,
    }  # fmt: skip
    tasks = {"family": "reasoning_gym", "options": {"datasets": {"leg_counting": {"min_animals": 1, "max_animals": 2}}}}
    recipe = Recipe.model_validate_json(json.dumps({"name": folder.name, "seed": 3, "tasks": tasks, "stages": [stage]}))
    run(recipe, folder=str(folder / "run"), ledger=str(folder / "ledger.sqlite"), listener=listener)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        episodes = ledger.episodes(stage="grpo", arrays=True)
    return episodes, [e for e in read(folder / "run") if e["event"] == "step"]


def by_step(episodes: list[Episode]) -> list[int]:
    """The step of the weights of each group, in the order in which they were learned from."""
    return [episode.weights.step for episode in episodes if episode.index == 0]


def test_episodes_are_as_old_as_told_and_no_older(tmp_path: Path) -> None:
    for staleness, steps in ((0, [0, 1, 2, 3]), (1, [0, 0, 1, 2]), (2, [0, 0, 0, 1])):
        folder = tmp_path / f"s{staleness}"
        folder.mkdir()
        episodes, events = learn(folder, staleness=staleness)
        assert by_step(episodes) == steps
        told = [event.get("staleness") for event in events]
        assert told == ([None] * STEPS if staleness == 0 else [step - at for step, at in enumerate(steps)])


def test_the_first_step_draws_the_same_with_and_without(tmp_path: Path) -> None:
    drawn = {}
    for staleness in (0, 1):
        folder = tmp_path / f"s{staleness}"
        folder.mkdir()
        drawn[staleness] = [e.token_ids for e in learn(folder, staleness=staleness)[0][:2]]
    assert drawn[0] == drawn[1]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, staleness=1, listener=stop)
    episodes, events = learn(tmp_path, staleness=1)
    assert len(episodes) == 2 * STEPS and events[-1]["step"] == STEPS
    assert all(0 <= step - at <= 1 for step, at in enumerate(by_step(episodes)))


def test_what_cannot_go_together_is_refused() -> None:
    stage = {"kind": "rl", "name": "r", "of": "base", "split": "train", "steps": 1, "staleness": 1}
    for more, why in (({"resample": 1}, "'resample' must be 0"), ({"options": {"mismatch": "none"}}, "cannot be none")):
        with pytest.raises(ValueError, match=why):
            said = {"name": "x", "tasks": {"family": "desk"}, "stages": [{**stage, **more}]}
            Recipe.model_validate_json(json.dumps(said))
