"""Layers that are computed twice give the same gradients; the FLOPs of a step are what its formula says."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from metier.models.flops import peak_flops, step_flops
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.sft import Sft
from metier.train.packing import Example, pack
from tiny import tiny_config

CONFIG = tiny_config()


def examples() -> list[Example]:
    torch.manual_seed(1)
    rows = torch.randint(0, 97, (4, 12)).tolist()
    return [Example(tuple(rows[0][:6] + row[6:]), (0,) * 6 + (1,) * 6) for row in rows]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_same_gradient_to_the_last_bit(dtype: torch.dtype) -> None:
    found, kept = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = LlamaForCausalLM(CONFIG).to(dtype)
        saved = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        trainer = Trainer(model, TrainSettings(lr=1e-2, steps=1, checkpointing=checkpointing), Sft())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.gradient(examples())
        found.append([m.grad.clone() for m in trainer.masters.masters if m.grad is not None])
        kept.append(saved)
    assert len(found[0]) == len(found[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < kept[0] / 2


def test_flops_by_hand() -> None:
    model = LlamaForCausalLM(CONFIG)
    batch = pack(examples(), heads=4)
    # one prefix of 6 tokens and four branches of 5 (the last token predicts nothing):
    # T = 26; pairs 6 * 7 / 2 + 4 * (5 * 6 + 5 * 6 / 2) = 21 + 180 = 201
    assert (batch.packed_tokens, batch.pairs) == (26, 201)
    # a layer: q and o 32 * 32, k and v 32 * 16, gate, up and down 32 * 48; two layers
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    # 24 labels over 97 words; attention 4 * L 2 * H 4 * D 8
    wanted = 3 * 2 * (weights * 26 + 97 * 32 * 24) + 3 * 4 * 2 * 4 * 8 * 201
    assert step_flops(model, tokens=26, labels=24, pairs=201) == wanted
    for param in model.parameters():
        param.requires_grad_(False)
    frozen = 2 * 2 * (weights * 26 + 97 * 32 * 24) + 3 * 4 * 2 * 4 * 8 * 201
    assert step_flops(model, tokens=26, labels=24, pairs=201) == frozen


def test_a_step_tells_its_utilisation() -> None:
    trainer = Trainer(LlamaForCausalLM(CONFIG), TrainSettings(lr=1e-2, steps=1), Sft())
    told = trainer.step(examples())
    flops = step_flops(trainer.model, tokens=26, labels=24, pairs=201)
    assert told["mfu"] == pytest.approx(flops / told["seconds"] / peak_flops("cpu", torch.float32))
    assert 0 < told["mfu"] < 1
