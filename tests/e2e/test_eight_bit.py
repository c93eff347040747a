"""What bitsandbytes keeps in fewer bits: AdamW's moments in eight, frozen weights below an adapter in four."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import LlamaForCausalLM

from metier.models.adapters import Adapter
from metier.models.hub import load_model
from metier.records.events import read, steps
from metier.train.checkpoints import load_state, save_state
from metier.train.fit import FitSettings, fit
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.optimizer import OptimizerName
from metier.train.packing import Example
from tiny import tiny_config

bitsandbytes = pytest.importorskip("bitsandbytes")

ROWS = [{"prompt": f"Say {n}.", "completion": f"{n}!"} for n in ("one", "two", "three", "four", "five", "six")]


SIZES = {"hidden_size": 64, "intermediate_size": 128}  # matrices of 4096 numbers and more, which are what is packed


def trainer(optimizer: OptimizerName = "adamw8bit") -> Trainer:
    torch.manual_seed(1)
    model = LlamaForCausalLM(tiny_config(**SIZES)).eval()
    return Trainer(model, TrainSettings(lr=1e-2, steps=20, optimizer=optimizer), get_objective("sft"))


def examples(seed: int) -> list[Example]:
    torch.manual_seed(seed)
    return [Example(tuple(row), (0,) * 4 + (1,) * 8) for row in torch.randint(3, 97, (4, 12)).tolist()]


def moments(of: Trainer) -> dict[str, torch.Tensor]:
    return {
        name: of.masters.optimizer.state[master]["state1"]
        for name, master in zip(of.masters.names, of.masters.masters, strict=True)
    }


def test_moments_of_eight_bits_learn_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    whole = trainer()
    losses = [whole.step(examples(seed % 2))["loss"] for seed in range(6)]
    save_state(whole, tmp_path)
    losses += [whole.step(examples(seed % 2))["loss"] for seed in range(6, 12)]
    plain = trainer("adamw")
    wanted = [plain.step(examples(seed % 2))["loss"] for seed in range(12)]
    assert wanted[-1] < wanted[0] - 1
    assert losses == pytest.approx(wanted, rel=0.05) and losses != wanted
    kinds = {name: moment.dtype for name, moment in moments(whole).items()}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == torch.uint8  # 64 x 128 numbers
    assert kinds["model.norm.weight"] == torch.float32  # a few numbers stay as they are

    again = trainer()
    assert load_state(again, tmp_path) == 6
    assert [again.step(examples(seed % 2))["loss"] for seed in range(6, 12)] == losses[6:]
    for name, moment in moments(again).items():
        assert torch.equal(moment, moments(whole)[name])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_an_adapter_learns_above_weights_of_four_bits(tiny_model: Path, tmp_path: Path) -> None:
    """QLoRA as a user runs it; the adapter then fits the whole weights as well."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    torch.manual_seed(1)
    LlamaForCausalLM(tiny_config(**SIZES, vocab_size=49152, **ends)).save_pretrained(base)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings: dict[str, Any] = {"objective": "sft", "dtype": "float32", "lr": 1e-2, "epochs": 20, "batch": 3}
    losses = {}
    kinds: tuple[Literal["none", "4bit"], ...] = ("none", "4bit")
    for kind in kinds:
        out = tmp_path / kind
        adapter = Adapter(rank=4, quantize=kind)
        done = fit(
            FitSettings(model=str(base), data=str(tmp_path / "rows.jsonl"), out=str(out), adapter=adapter, **settings)
        )
        losses[kind] = [step["loss"] for step in steps(read(out), "train")]
    assert losses["4bit"][-1] < losses["4bit"][0] - 0.2
    assert losses["4bit"] == pytest.approx(losses["none"], rel=0.05) and losses["4bit"] != losses["none"]
    model = load_model(str(base), quantize="4bit")
    assert type(model.model.layers[0].mlp.up_proj) is bitsandbytes.nn.Linear4bit
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert load_model(str(done["out"])).peft_config
