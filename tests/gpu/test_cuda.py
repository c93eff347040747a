"""On a CUDA device: the same numbers as on the processor, on a tiny random model in float32.

The processor's numbers are checked against slow references in tests/numeric; here they are
the reference. `make test-gpu` runs this file; without a device every test skips.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from metier.models.attention import use_layouts
from metier.records.types import Sampling
from metier.rollout.engine import Drawn, Request, converse
from metier.rollout.torch_engine import TorchEngine
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.policy import PolicyGradient
from metier.train.objectives.protocol import Objective
from metier.train.objectives.sft import Sft
from metier.train.packing import Example
from metier.train.score import score
from tiny import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same weights on the processor and on the device."""
    torch.manual_seed(3)
    here = LlamaForCausalLM(tiny_config(initializer_range=0.3, tie_word_embeddings=False)).eval()
    return here, copy.deepcopy(here).cuda()


def examples() -> list[Example]:
    """Two prompts under one system prompt, three answers each."""
    draw = torch.Generator().manual_seed(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(97, (n,), generator=draw).tolist())

    made, system = [], words(6)
    for prompt in (words(5), words(9)):
        for n in (4, 7, 12):
            head = len(system + prompt)
            made.append(
                Example(
                    system + prompt + words(n),
                    (0,) * head + (1,) * n,
                    advantage=1.0 - n / 8,
                    sampler_logprobs=(-4.0,) * n,
                )
            )
    return made


def test_scores_are_those_of_the_processor(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    here, there = models
    for a, b in zip(score(here, examples()), score(there, examples()), strict=True):
        assert b == pytest.approx(a, abs=1e-4)


@pytest.mark.parametrize("objective", [Sft(), PolicyGradient()], ids=["sft", "policy"])
def test_gradients_are_those_of_the_processor(
    models: tuple[PreTrainedModel, PreTrainedModel], objective: Objective
) -> None:
    found = []
    for model in models:
        trainer = Trainer(model, TrainSettings(lr=1e-3, steps=2), objective)
        sums = trainer.gradient(examples())
        found.append((sums["loss"], {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}))
    (loss, wanted), (other, grads) = found
    assert other == pytest.approx(loss, abs=1e-4)
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert float((grads[name] - grad).abs().max()) < 1e-4 * max(1.0, float(grad.abs().max())), name


def test_greedy_turns_are_those_of_the_processor(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    greedy = Sampling(temperature=0.0, max_turn_tokens=8)
    requests = [Request(e.token_ids[:8], 6, n, greedy, frozenset({5})) for n, e in enumerate(examples())]
    found = []
    for model in models:
        turns: dict[int, tuple[int, ...]] = {}

        def on_turn(number: int, drawn: Drawn, turns: dict[int, tuple[int, ...]] = turns) -> None:
            turns[number] = drawn.token_ids

        converse(TorchEngine(use_layouts(model), rows=4, pass_tokens=16), requests, on_turn)
        found.append(turns)
    assert found[0] == found[1]


def test_a_whole_run(tiny_model: Path, tmp_path: Path) -> None:
    from metier.base.config import load_yaml
    from metier.recipes.runner import run
    from metier.recipes.settings import Recipe
    from metier.records.events import read, steps

    (tmp_path / "small.yaml").write_text(
        f"""
name: small
model: {{name: {tiny_model}, device: cuda}}
tasks: {{family: desk}}
stages:
  - {{kind: demonstrate, name: demos, split: demo, n: 16}}
  - {{kind: sft, name: sft, data: demos, lr: 1e-2, batch: 4, warmup: 0}}
  - {{kind: evaluate, name: look, of: sft, splits: {{heldout: 4}}, sampling: {{max_turn_tokens: 8, max_turns: 2}}}}
"""
    )
    recipe = load_yaml(tmp_path / "small.yaml", Recipe)
    done = run(recipe, folder=str(tmp_path / "run"), ledger=str(tmp_path / "ledger.sqlite"))
    losses = [float(step["loss"]) for step in steps(read(done.folder), "sft")]
    assert losses[-1] < losses[0]
