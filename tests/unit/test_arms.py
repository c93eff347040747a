"""The benchmark's recipes of arms are such that a run would take them."""

from __future__ import annotations

import runpy
from pathlib import Path

from metier.recipes.settings import BASE, Rl, Sft


def test_every_arm_starts_from_the_same_sft_and_is_measured_alike() -> None:
    arms = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "desk_arms.py"))
    job = arms["main_job"](3)
    others = arms["other_arms"](job, Path("main/checkpoints/sft"), 100)
    main, more = ({stage.name: stage for stage in recipe.stages} for recipe in (job, others))
    assert job.seed == others.seed == 3
    assert main["grpo"].of == "sft" and others.model.name == "main/checkpoints/sft"
    for name in arms["ARMS"]:
        stages = main if name == "grpo" else more
        stage, measured = stages[name], stages["evaluate-final" if name == "grpo" else f"evaluate-{name}"]
        assert isinstance(stage, (Rl, Sft)) and stage.of == ("sft" if name == "grpo" else BASE)
        assert measured.of == name and measured.splits["heldout"] >= 256
        assert measured.sampling == main["evaluate-final"].sampling
    assert more["rejection"].sampling == main["grpo"].sampling
    assert more["more-demonstrations"].n == main["demonstrations"].n + 100 * main["sft"].batch
