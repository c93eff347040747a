"""Every method of the `rl` stage learns from verdicts, on a tiny random model whose every word is an episode."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from metier.base.config import load_yaml
from metier.base.errors import ConfigError, DataError
from metier.evaluate.suites import refuse_trained
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.events import read, steps
from metier.records.ledger import Ledger

# A random word holds an "e" about one time in two; of the sixteen likeliest, which are drawn from, too.
PLUGIN = """
from metier.feedback.verifiers.protocol import Verdict
from metier.feedback.verifiers.registry import register

class Holds:
    name, version = "holds_e", "1"

    def verify(self, task, attempt, params):
        said = "".join(m.content for m in attempt.messages if m.role == "assistant")
        return Verdict(score=float("e" in said), reason=said)

register(Holds())
"""
RL = {
    "kind": "rl", "name": "rl", "of": "base", "split": "train", "steps": 12, "tasks": 4, "group": 8, "lr": 1e-2,
    "sampling": {"top_k": 16, "max_turn_tokens": 1, "max_turns": 1},
}  # fmt: skip


def done(model: Path, folder: Path, own: Any = "holds_e", **given: Any) -> tuple[Path, list[dict[str, Any]]]:
    """The run's folder and the events of its steps; `own` is the tasks' verifier."""
    rows = []
    for split, n in (("heldout", 2), ("train", 48)):
        for number in range(n):
            chat = [{"role": "user", "content": f"Say a word, {split} {number}."}]
            rows.append(json.dumps({"messages": chat, "verifier": own, "split": split}))
    (folder / "tasks.jsonl").write_text("\n".join(rows))
    (folder / "plugin.py").write_text(PLUGIN)
    recipe = {
        "name": "tiny", "seed": 1, "model": {"name": str(model), "dtype": "float32"}, "tasks": {"file": "tasks.jsonl"},
        "plugins": ["plugin.py"], "stages": [{**RL, **given}],
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    where = run(str(folder / "tiny.yaml"), folder=str(folder / "run")).folder
    return where, steps(read(where), "rl")


@pytest.mark.parametrize(
    ("method", "given", "metric"),
    [
        ("grpo", {}, "clip_fraction"),
        ("dr_grpo", {"options": {"length": 1}}, "clip_fraction"),
        ("rloo", {}, "ratio"),
        ("reinforce_pp", {"reward": {"kl": 0.01}}, "ratio"),
        ("dapo", {"tasks": 2}, "mismatch_kl"),
        ("cispo", {"updates": 2}, "clip_fraction"),
        ("ppo", {"updates": 2, "options": {"kl": "k2", "kl_coef": 0.01}}, "value_loss"),
        ("rejection", {}, "nll"),
        ("best_of_n", {}, "nll"),
        ("online_dpo", {"options": {"beta": 0.5}}, "accuracy"),
    ],
)
def test_reward_rises(method: str, given: dict[str, Any], metric: str, tiny_model: Path, tmp_path: Path) -> None:
    folder, told = done(tiny_model, tmp_path, method=method, **given)
    assert [e["step"] for e in told] == list(range(1, 13))
    first, last = (statistics.fmean(e["success"] for e in some) for some in (told[:3], told[-3:]))
    assert last > first + 0.25, [round(e["success"], 2) for e in told]
    assert all(metric in e for e in told if e["groups_without_variance"] < e["groups"])
    weights = load_file(folder / "checkpoints" / "rl" / "model.safetensors")
    assert not any("value_head" in name for name in weights)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_policy_that_learns_is_the_one_that_was_sampled(
    temperature: float, tiny_model: Path, tmp_path: Path
) -> None:
    """Sampler and trainer speak of the same distribution, that of the sampling temperature."""
    sampling = {**RL["sampling"], "temperature": temperature}
    _, told = done(
        tiny_model, tmp_path, method="grpo", steps=3, options={"kl": "k3", "kl_coef": 0.1}, sampling=sampling
    )
    assert max(abs(e["mismatch_kl"]) for e in told) < 1e-6  # also once the weights have moved
    assert abs(told[0]["reference_kl"]) < 1e-6 and told[2]["reference_kl"] > 1e-4


def test_the_term_that_ties_to_the_start_is_taken_over_all_episodes(tiny_model: Path, tmp_path: Path) -> None:
    """Groups of two are without signal about every other time; they too may have drifted."""
    learned = {}
    for name, options in (("free", {}), ("tied", {"kl": "k3", "kl_coef": 0.1})):
        (tmp_path / name).mkdir()
        _, told = done(tiny_model, tmp_path / name, method="grpo", steps=1, tasks=16, group=2, options=options)
        flat = told[0]["groups_without_variance"]
        learned[name] = told[0]["loss_tokens"]
    assert 0 < flat < 16
    assert learned["tied"] == 32 and learned["free"] == 32 - 2 * flat


def test_a_teacher_judges_what_the_policy_says(tiny_model: Path, tmp_path: Path) -> None:
    """On-policy distillation: the policy comes nearer to a teacher that it began unlike."""
    teacher = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in teacher.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    shutil.copytree(tiny_model, tmp_path / "teacher")
    teacher.save_pretrained(tmp_path / "teacher")
    _, told = done(
        tiny_model, tmp_path, method="distill", teacher=str(tmp_path / "teacher"), options={"beta": 1.0}, group=1,
        sampling={"max_turn_tokens": 6, "max_turns": 1}, lr=3e-3,
    )  # fmt: skip
    gaps = [e["divergence"] for e in told]
    assert len(gaps) == 12 and statistics.fmean(gaps[-3:]) < 0.7 * gaps[0], gaps


def test_groups_without_signal_are_replaced(tiny_model: Path, tmp_path: Path) -> None:
    folder, told = done(tiny_model, tmp_path, method="dapo", tasks=3, group=2, steps=3, lr=1e-6)
    assert all(3 <= e["groups"] <= 9 for e in told) and any(e["groups"] > 3 for e in told)
    for e in told:
        # whatever still lacks signal has been replaced twice
        assert e["groups"] - e["groups_without_variance"] >= 3 or e["groups"] >= 5
    with Ledger.open(folder.parent / "ledger.sqlite") as ledger:
        kept = ledger.groups()
        assert len(kept) == sum(e["groups"] for e in told)
        assert len({g.task_id for g in kept}) == len(kept)  # a replacement is another task


def test_a_stage_may_learn_from_other_verifiers_than_those_of_its_tasks(tiny_model: Path, tmp_path: Path) -> None:
    """As from a reward model: what the tasks' own verifiers would say is not in the reward, and stays held-out gold."""
    own = {"name": "exact", "answer": "no word of this model"}
    folder, told = done(tiny_model, tmp_path, own=own, method="grpo", steps=8, verifiers=[{"name": "holds_e"}])
    first, last = (statistics.fmean(e["success"] for e in some) for some in (told[:2], told[-2:]))
    assert last > first + 0.2, [round(e["success"], 2) for e in told]
    with Ledger.open(folder.parent / "ledger.sqlite") as ledger:
        (run_id,) = (one.id for one in ledger.runs())
        episodes = ledger.episodes(run_id=run_id, stage="rl")
        assert {f.source.name for f in ledger.feedback(about=[e.id for e in episodes])} == {"holds_e"}
        learned = {e.task_id for e in episodes}
        (manifest,) = ledger.datasets()
        tasks = ledger.tasks(manifest.task_ids)
        assert learned < tasks.keys() and len(tasks) == 2 * len(learned)
        as_made = [task for name, task in tasks.items() if name not in learned]
        assert {task.verifiers[0].name for task in as_made} == {"exact"}
        with pytest.raises(DataError, match="was trained on task"):  # nor is it measured on them under their own
            refuse_trained(ledger, ledger.checkpoints()[0].id, as_made[:1], "here")


def test_a_verifier_that_nobody_knows_is_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no verifier 'holds_ee'; the nearest is 'holds_e'"):
        done(tiny_model, tmp_path, method="grpo", verifiers=[{"name": "holds_ee"}])
    assert not (tmp_path / "run" / "run.json").exists()


def test_long_episodes_cost_reward(tiny_model: Path, tmp_path: Path) -> None:
    reward = {"success": 0.0, "overlong": {"limit": 4, "buffer": 2, "weight": 0.5}}
    sampling = {"temperature": 1.0, "max_turn_tokens": 4, "max_turns": 1}
    _, told = done(tiny_model, tmp_path, method="grpo", steps=1, reward=reward, sampling=sampling)
    # a random model hardly ever ends its turn: four tokens, the whole punishment
    assert told[0]["completion_tokens_p50"] == 4 and told[0]["reward_p50"] == -0.5


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"method": "grop"}, "did you mean 'grpo'"),
        ({"method": "best_of_n", "options": {"beta": 1}}, "best_of_n takes no options"),
        ({"method": "online_dpo", "options": {"betta": 1}}, "did you mean 'beta'"),
        ({"method": "online_dpo", "reward": {"kl": 0.1}}, "neither advantage nor reward.kl"),
        ({"method": "ppo", "advantage": "group"}, "leave advantage out"),
        ({"method": "grpo", "sampling": {"temperature": 0}}, "must be above 0"),
        ({"method": "best_of_n", "group": 1}, "'group' must be at least 2"),
        ({"method": "distill"}, "distill needs a teacher"),
        ({"method": "grpo", "teacher": "smollm2"}, "grpo takes no teacher"),
        ({"reward": {"overlong": {"limit": 4}}}, "buffer"),
    ],
)
def test_impossible_settings(given: dict[str, Any], text: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps({"name": "r", "tasks": {"family": "desk"}, "stages": [{**RL, **given}]}))
    with pytest.raises(ConfigError, match=text):
        load_yaml(file, Recipe)
