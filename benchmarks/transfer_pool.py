"""One large best-of-n pool on the desk: many samples of each task by one checkpoint, each with its gold verdict.

The default model learns from a part of the desk's demonstrations, so that its success is neither 0 nor 1, and then
answers each task many times at temperature 1. Gold is the desk's own verifier, which reads the final state. What is
written is what was said, the final state and the verdict; rewards are made of it by benchmarks/transfer.py, which
calls this. A pool that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from metier.base.config import find_recipe, load_yaml
from metier.base.executor import LocalExecutor
from metier.base.seeds import derive_seed
from metier.feedback.verify import verify_episodes
from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import get_renderer
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.types import Episode, Sampling, Task, Weights
from metier.rollout.episodes import Plan, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.torch_engine import TorchEngine
from metier.tasks.desk.family import DeskFamily

__all__ = ["make", "start", "tasks_of_pool"]

DEMONSTRATIONS = 360  # half of the desk's: success at temperature 1 is then near a half
SPLIT, TASK_SEED = "heldout", 7
SAMPLING = Sampling(temperature=1.0, max_turns=5, max_tokens=192, max_turn_tokens=72)


def start(seed: int) -> Recipe:
    """The desk's demonstrations and SFT, with fewer demonstrations, and nothing else."""
    desk = load_yaml(find_recipe("desk"), Recipe)
    by_name = {stage.name: stage for stage in desk.stages}
    shown = by_name["demonstrations"].model_copy(update={"n": DEMONSTRATIONS})
    return Recipe(**{**dict(desk), "name": "transfer-start", "seed": seed, "stages": (shown, by_name["sft"])})


def tasks_of_pool(n: int) -> list[Task]:
    return DeskFamily().tasks(SPLIT, n, TASK_SEED)


def row_of(episode: Episode, task: Task, sample: int, verdict: Any) -> dict[str, Any]:
    return {
        "task": task.id,
        "sample": sample,
        "messages": [m.to_openai() for m in episode.messages[len(task.messages) :]],
        "final_state": dict(episode.final_state),
        "tokens": episode.cost.completion_tokens,
        "stop": episode.stop_reason,
        "gold": verdict.value,
        "parts": dict(verdict.evidence["parts"]),
    }


def make(folder: Path, *, tasks: int, samples: int, seed: int, minutes: float, chunk: int = 4) -> Path:
    """The pool's file, made or continued for so long."""
    began = time.monotonic()
    if not (folder / "start" / "stages" / "sft.json").is_file():
        run(start(seed), folder=str(folder / "start"), ledger=str(folder / "start.sqlite"))
    print(f"SFT ready after {time.monotonic() - began:.0f} s", flush=True)
    out = folder / "pool.jsonl"
    text = out.read_text() if out.exists() else ""
    done = {json.loads(line)["task"] for line in text.splitlines() if line}
    left = [task for task in tasks_of_pool(tasks) if task.id not in done]
    if not left:
        return out
    where = folder / "start" / "checkpoints" / "sft"
    engine = TorchEngine(load_model(str(where), dtype=torch.bfloat16))
    policy = EnginePolicy(engine, get_renderer(load_tokenizer(str(where))))
    for at in range(0, len(left), chunk):
        if time.monotonic() - began > 60 * minutes:
            break
        part = left[at : at + chunk]
        plans = [
            Plan(id=f"ep-{task.id}-{k}", task=task, index=k, seed=derive_seed(seed, "transfer pool", task.id, k))
            for task in part
            for k in range(samples)
        ]
        since = time.monotonic()
        weights = Weights(checkpoint=str(where))
        episodes = run_episodes(policy, plans, sampling=SAMPLING, weights=weights, run_id="pool", stage="pool")
        verdicts = verify_episodes({t.id: t for t in part}, episodes, LocalExecutor(1))
        by_episode = {v.about[0]: v for v in verdicts}
        assert len(by_episode) == len(verdicts), "the desk has one verifier"
        with out.open("a") as file:
            for plan, episode in zip(plans, episodes, strict=True):
                file.write(json.dumps(row_of(episode, plan.task, plan.index, by_episode[episode.id])) + "\n")
        won = [v.value for v in verdicts]
        seconds, tokens = time.monotonic() - since, sum(e.cost.completion_tokens for e in episodes)
        print(
            f"{at + len(part)}/{len(left)} tasks, {seconds:.0f} s, {tokens / seconds:.0f} tok/s, "
            f"gold {sum(v == 1.0 for v in won)}/{len(won)}, unscored {won.count(None)}",
            flush=True,
        )
    return out
