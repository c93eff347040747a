"""vLLM reads a checkpoint as it lies and says the same words as the embedded engine, also with new weights.

vLLM pins another torch, so it lives in an environment of its own: `make test-vllm` makes it and
names its Python in METIER_VLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metier.base.errors import ConfigError, ModelError
from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import Renderer, get_renderer
from metier.records.types import Episode, Message, Sampling, Weights
from metier.rollout.engine import Request, converse
from metier.rollout.episodes import Plan, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.torch_engine import TorchEngine
from metier.rollout.vllm_engine import VllmEngine
from metier.tasks.desk.family import DeskFamily
from metier.train.checkpoints import save_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("METIER_VLLM" not in os.environ, reason="needs vLLM in its own environment: make test-vllm"),
]

WORDS = 24
SPEAK = f"""
import json, sys

def main():
    from vllm import LLM, SamplingParams
    asked = json.load(sys.stdin)
    llm = LLM(model=asked["model"], dtype="float32", max_model_len=1024, enforce_eager=True, max_num_seqs=8)
    greedy = SamplingParams(temperature=0.0, max_tokens={WORDS}, logprobs=0)
    done = llm.generate([dict(prompt_token_ids=p) for p in asked["prompts"]], greedy)
    chat = llm.chat(asked["messages"], greedy, add_generation_prompt=True)
    said = [d.outputs[0] for d in done]
    print(json.dumps(dict(
        words=[list(s.token_ids) for s in said],
        logprobs=[[p[t].logprob for t, p in zip(s.token_ids, s.logprobs)] for s in said],
        prompt=list(chat[0].prompt_token_ids),
    )))

if __name__ == "__main__":
    main()
"""


def test_a_checkpoint_speaks_the_same_in_vllm(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("smollm2")
    renderer = get_renderer(tokenizer)
    model = load_model("smollm2", dtype=torch.float32)
    folder, script = tmp_path / "checkpoint", tmp_path / "speak.py"
    save_model(model, tokenizer, folder, template=renderer.template, manifest={"id": "of-a-test"})
    script.write_text(SPEAK)
    tasks = DeskFamily().tasks("heldout", 6, 1)
    prompts = [renderer.render(task.messages, task.tools, prompt=True).token_ids for task in tasks]
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="When are you open?"))

    drawn: dict[int, tuple[tuple[int, ...], tuple[float, ...]]] = {}
    greedy = Sampling(temperature=0.0, max_turn_tokens=WORDS, max_tokens=WORDS, max_turns=1)
    converse(
        TorchEngine(model),
        [Request(prompt, 0, number, greedy, renderer.stop_ids) for number, prompt in enumerate(prompts)],
        lambda number, turn: drawn.__setitem__(number, (turn.token_ids, turn.logprobs)),
    )
    done = subprocess.run(
        [os.environ["METIER_VLLM"], str(script)],
        input=json.dumps({"model": str(folder), "prompts": prompts, "messages": [m.to_openai() for m in messages]}),
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    for number, (words, logprobs) in sorted(drawn.items()):
        assert list(words) == theirs["words"][number]
        assert logprobs == pytest.approx(theirs["logprobs"][number], abs=1e-3)
    assert theirs["prompt"] == list(renderer.render(messages, (), prompt=True).token_ids)


# --- as an engine -----------------------------------------------------------------------

OPTIONS = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 8}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return get_renderer(load_tokenizer("smollm2"))


def episodes_of(engine: Any, renderer: Renderer, sampling: Sampling) -> list[Episode]:
    plans = [Plan(id=f"ep-{n}", task=task, seed=n) for n, task in enumerate(DeskFamily().tasks("heldout", 6, 1))]
    asked: dict[str, Any] = {"sampling": sampling, "weights": Weights(checkpoint="c"), "run_id": "r", "stage": "s"}
    return run_episodes(EnginePolicy(engine, renderer), plans, **asked)


def saver(model: Any, renderer: Renderer) -> Any:
    tokenizer = load_tokenizer("smollm2")
    return lambda where: save_model(model, tokenizer, where, template=renderer.template, manifest={})


def compare(ours: list[Episode], theirs: list[Episode]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert other.token_ids == one.token_ids
        assert other.loss_mask == one.loss_mask
        assert other.sampler_logprobs == pytest.approx(one.sampler_logprobs, abs=1e-3)
        assert other.stop_reason == one.stop_reason


def test_the_vllm_engine_says_the_same_and_follows_new_weights(tmp_path: Path, renderer: Renderer) -> None:
    greedy = Sampling(temperature=0.0, max_turn_tokens=WORDS, max_turns=3)
    model = load_model("smollm2", dtype=torch.float32)
    saver(model, renderer)(tmp_path / "start")
    with VllmEngine(tmp_path / "start", python=os.environ["METIER_VLLM"], settings=OPTIONS) as engine:
        assert engine.context == 1024
        compare(episodes_of(TorchEngine(model), renderer, greedy), before := episodes_of(engine, renderer, greedy))
        with torch.no_grad():
            for layer in model.model.layers[:20]:  # half asleep: it says other things
                layer.mlp.down_proj.weight.mul_(0.8)
        engine.load_weights(saver(model, renderer))
        compare(episodes_of(TorchEngine(model), renderer, greedy), after := episodes_of(engine, renderer, greedy))
        assert [e.token_ids for e in before] != [e.token_ids for e in after]

        drawn = episodes_of(engine, renderer, Sampling(temperature=0.8, max_turn_tokens=WORDS, max_turns=2))
        assert drawn == [replace(e, created_at=d.created_at, cost=d.cost) for e, d in zip(
            episodes_of(engine, renderer, Sampling(temperature=0.8, max_turn_tokens=WORDS, max_turns=2)), drawn,
            strict=True)]  # fmt: skip
        from metier.train.packing import Example
        from metier.train.score import score

        rows = score(model, [Example(e.token_ids, e.loss_mask) for e in drawn], temperature=0.8)
        for episode, row in zip(drawn, rows, strict=True):
            said = [p for p, mine in zip(episode.sampler_logprobs, episode.loss_mask, strict=True) if mine]
            assert said == pytest.approx(row, abs=1e-3)
        with pytest.raises(ConfigError, match="top_p"):
            episodes_of(engine, renderer, Sampling(top_p=0.9))


def test_a_worker_that_dies_is_told_of(tmp_path: Path, renderer: Renderer) -> None:
    saver(load_model("smollm2", dtype=torch.float32), renderer)(tmp_path / "start")
    with VllmEngine(tmp_path / "start", python=os.environ["METIER_VLLM"], settings=OPTIONS) as engine:
        with pytest.raises(ModelError, match="vLLM failed"):
            engine.handle({"weights": str(tmp_path / "nowhere")})
        engine._host._process.kill()  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match="the vLLM worker is gone"):
            episodes_of(engine, renderer, Sampling())
    with pytest.raises(ConfigError, match="no vLLM worker starts"):
        VllmEngine(tmp_path / "start", python="/no/such/python")
    with pytest.raises(ConfigError, match="no vLLM worker answers"):
        VllmEngine(tmp_path / "start", address="127.0.0.1:9")
    with pytest.raises(ModelError, match="gone; it last said"):
        VllmEngine(tmp_path / "nowhere", python=os.environ["METIER_VLLM"], settings=OPTIONS)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_grpo_samples_in_vllm_with_an_adapter_and_learns_from_what_it_drew(tmp_path: Path) -> None:
    from metier.recipes.runner import run
    from metier.recipes.settings import Recipe
    from metier.records.events import read
    from metier.records.ledger import Ledger

    short = {"name": "format", "max_words": 9}  # about half of what it says is that short
    lines = [{"prompt": f"Say something about {what}.", "verifier": short} for what in ("rain", "bread", "tea", "dogs")]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = {
        "name": "v",
        "seed": 3,
        "model": {"dtype": "float32", "adapter": {"rank": 4}},
        "engine": {"kind": "vllm", "python": os.environ["METIER_VLLM"], "options": OPTIONS},
        "tasks": {"file": str(tmp_path / "tasks.jsonl")},
        "stages": [
            {
                "kind": "rl", "name": "grpo", "of": "base", "split": "train", "steps": 2, "tasks": 2, "group": 4,
                "lr": 1e-3, "sampling": {"max_turn_tokens": 16, "max_turns": 1},
            }
        ],
    }  # fmt: skip
    run(Recipe.model_validate_json(json.dumps(said)), folder=str(tmp_path / "run"), ledger=str(tmp_path / "l.sqlite"))
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        episodes = ledger.episodes(stage="grpo", arrays=True)
    assert [e.weights.step for e in episodes] == [0] * 8 + [1] * 8
    assert all(e.token_ids and any(e.loss_mask) for e in episodes)
    steps = [event for event in read(tmp_path / "run") if event["event"] == "step"]
    learned = [event["mismatch_kl"] for event in steps if "mismatch_kl" in event]
    assert learned and max(learned) < 1e-6, "vLLM and the trainer have the same weights at every step, adapter included"
