"""The benchmark's recipe of arms is one that a run would take."""

from __future__ import annotations

import runpy
from pathlib import Path

from metier.recipes.settings import Rl, Sft


def test_every_arm_starts_from_the_same_sft() -> None:
    arms = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "desk_arms.py"))
    recipe = arms["recipe_for"](3, 100)
    stages = {stage.name: stage for stage in recipe.stages}
    assert recipe.seed == 3
    for name in arms["ARMS"]:
        stage = stages[name]
        assert isinstance(stage, (Rl, Sft)) and stage.of == "sft"
        measured = stages["evaluate-final" if name == "grpo" else f"evaluate-{name}"]
        assert measured.of == name and measured.splits["heldout"] >= 256
    assert stages["rejection"].sampling == stages["grpo"].sampling
