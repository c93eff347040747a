"""Sample, judge, learn, by hand: reinforcement learning out of Metier's parts, without a recipe.

Nothing is kept here; a recipe's `rl` stage adds the ledger, resume, reports and more.

    python examples/own_loop.py --steps 3
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch

from metier.base.executor import LocalExecutor
from metier.base.seeds import derive_seed
from metier.feedback.rewards import RewardPolicy
from metier.feedback.verify import verify_episodes
from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.types import Episode, Sampling, Weights
from metier.rollout.episodes import Plan, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.torch_engine import TorchEngine
from metier.tasks.registry import get_family
from metier.train.advantages import advantages
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example


def main() -> None:
    """Train for some steps and print what each came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a folder in Hugging Face layout, or a hub id")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=4, help="tasks of a step")
    parser.add_argument("--group", type=int, default=4, help="attempts at each task")
    options = parser.parse_args()

    model = load_model(options.model, dtype=torch.bfloat16)
    renderer = get_renderer(load_tokenizer(options.model))
    trainer = Trainer(model, TrainSettings(lr=3e-5, steps=options.steps), get_objective("grpo"))
    tasks = get_family("desk").tasks("train", options.steps * options.tasks, seed=1)
    policy = RewardPolicy(success=1.0, partial=0.3)

    for step in range(options.steps):
        chosen = tasks[step * options.tasks : (step + 1) * options.tasks]
        plans = [
            Plan(id=f"{step}-{task.id}-{n}", task=task, seed=derive_seed(1, step, task.id, n))
            for task in chosen
            for n in range(options.group)
        ]
        episodes = run_episodes(  # a new engine for new weights; it reads the trainer's own
            EnginePolicy(TorchEngine(model), renderer), plans,
            sampling=Sampling(max_turns=4), weights=Weights(checkpoint=options.model, step=step),
            run_id="example", stage="by hand",
        )  # fmt: skip
        feedback = verify_episodes({task.id: task for task in chosen}, episodes, LocalExecutor())
        rewards = [policy.reward([f for f in feedback if f.about == (e.id,)]) for e in episodes]
        groups = [rewards[i : i + options.group] for i in range(0, len(rewards), options.group)]
        earned = [a for group in advantages("group", groups) for a in group]
        judged = [example(e, a) for e, a in zip(episodes, earned, strict=True) if a is not None]
        learned = [e for e in judged if e.advantage]  # as good as its siblings: nothing to learn
        scored = [r for r in rewards if r is not None]  # what could not be verified counts nowhere
        told = trainer.step(learned, among=judged) if learned else {"loss": 0.0}
        mean = statistics.fmean(scored) if scored else math.nan
        print(f"step {step + 1}: reward {mean:.3f}, learnt from {len(learned)}, loss {told['loss']:.4f}")


def example(episode: Episode, advantage: float) -> Example:
    """What the trainer needs of an episode: its exact tokens, and how good it was."""
    own = tuple(p for p, mine in zip(episode.sampler_logprobs, episode.loss_mask, strict=True) if mine)
    return Example(episode.token_ids, episode.loss_mask, advantage=advantage, sampler_logprobs=own)


if __name__ == "__main__":
    main()
