"""vLLM reads a checkpoint as it lies and says the same words as the embedded engine.

vLLM pins another torch, so it lives in an environment of its own: `make test-vllm` makes it and
names its Python in METIER_VLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.types import Message, Sampling
from metier.rollout.engine import Request, converse
from metier.rollout.torch_engine import TorchEngine
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
