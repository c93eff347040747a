"""Losses and gradients against TRL on the same weights and the same batch, float32.

TRL's own trainers compute theirs, from batches that their collators made or from the
tensors that their loss takes; ours are made from the same token ids. Left out: float64, in
which TRL's losses are computed in float32 all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.protocol import Objective
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example
from metier.train.score import score

pytest.importorskip("trl", reason="TRL is not installed: pip install 'metier[dev]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own

ROWS = [
    {"prompt": "The price of an apple", "chosen": " is two euros today.", "rejected": " is unknown."},
    {"prompt": "A loaf", "chosen": " of bread costs four.", "rejected": " costs me nothing at all, so I think."},
    {"prompt": "Honey from the north", "chosen": " is nine euros.", "rejected": " is cheap."},
]


@pytest.fixture
def models(tiny_model: Path) -> tuple[Path, PreTrainedModel, PreTrainedModel]:
    """The folder, a model of clear opinions, and a reference that differs from it."""
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    reference = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(1)
        for one in (model, reference):
            for parameter in one.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return tiny_model, model, reference


def common(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 3,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def theirs(model: PreTrainedModel, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
    model.zero_grad()
    value = loss()
    value.backward()
    return float(value.detach()), gradient(model)


def ours(model: PreTrainedModel, objective: Objective, made: list[Example], budget: int = 60) -> tuple[float, Tensor]:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = None
    sums = Trainer(model, TrainSettings(lr=1e-3, steps=1, token_budget=budget), objective).gradient(made)
    return sums["loss"], gradient(model)


def same(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-4, abs=1e-6)
    assert float(wanted[1].norm()) > 1e-6
    assert float((found[1] - wanted[1]).norm() / wanted[1].norm()) < 1e-4


def rows_of(ids: Tensor, seen: Tensor, own: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids and loss masks without the padding."""
    out = []
    for row, kept, mask in zip(ids, seen.bool(), own, strict=True):
        out.append((tuple(row[kept].tolist()), tuple(int(m) for m in mask[kept])))
    return out


@pytest.mark.parametrize(
    ("kind", "smoothing"), [("sigmoid", 0.0), ("robust", 0.1), ("hinge", 0.0), ("ipo", 0.0)], ids=lambda v: str(v)
)
def test_dpo(
    kind: str, smoothing: float, models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    folder, model, reference = models
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = copy.deepcopy(model)
    trainer = DPOTrainer(
        peer,
        ref_model=copy.deepcopy(reference),
        args=DPOConfig(**common(tmp_path), beta=0.3, loss_type=[kind], label_smoothing=smoothing),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = theirs(peer, lambda: trainer.compute_loss(peer, dict(batch)))
    rows = rows_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    half = len(rows) // 2
    made = [Example(ids, mask, unit=str(n % half), target=float(n < half)) for n, (ids, mask) in enumerate(rows)]
    found = score(copy.deepcopy(reference), made)
    made = [_replace(e, reference_logprobs=p) for e, p in zip(made, found, strict=True)]
    same(ours(model, get_objective("dpo", kind=kind, beta=0.3, smoothing=smoothing), made), wanted)


def _replace(example: Example, **fields: Any) -> Example:
    import dataclasses

    return dataclasses.replace(example, **fields)


def test_sft_packed_and_masked(models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder, model, _ = models
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = copy.deepcopy(model)
    trainer = SFTTrainer(
        peer,
        args=SFTConfig(**common(tmp_path)),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = theirs(peer, lambda: trainer.compute_loss(peer, dict(batch)))
    made = [
        Example(ids, mask)
        for ids, mask in rows_of(batch["input_ids"], batch["attention_mask"], batch["labels"] != -100)
    ]
    same(ours(model, get_objective("sft"), made), wanted)


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, "grpo", {}),
    "grpo with kl": (
        {"loss_type": "grpo", "beta": 0.2, "use_bias_correction_kl": False},
        "grpo",
        {"kl": "k3", "kl_coef": 0.2},
    ),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, "dapo", {}),
    "dr_grpo": ({"loss_type": "dr_grpo", "max_completion_length": 32}, "dr_grpo", {"length": 32}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, "cispo", {}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        "gspo",
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_policy_gradients(case: str, models: tuple[Path, PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    theirs_settings, name, options = CASES[case]
    folder, model, reference = models
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = copy.deepcopy(model)
    trainer = GRPOTrainer(
        peer,
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=GRPOConfig(**{**common(tmp_path), "num_generations": 3, **theirs_settings}),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in ROWS]),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(3)
    prompt, lengths = torch.randint(3, 400, (5,)), (4, 7, 2)
    completions = [torch.randint(3, 400, (n,)) for n in lengths]
    advantages = [1.5, -0.5, 0.75]
    made = [
        Example(
            (*prompt.tolist(), *c.tolist()), (0,) * 5 + (1,) * len(c), cuts=(5,), advantage=a,
        )
        for c, a in zip(completions, advantages, strict=True)
    ]  # fmt: skip
    now = score(copy.deepcopy(model), made)
    old = [tuple(p + 0.3 * float(x) for p, x in zip(row, torch.randn(len(row)), strict=True)) for row in now]
    fixed = score(copy.deepcopy(reference), made)
    made = [
        _replace(e, old_logprobs=o, sampler_logprobs=o, reference_logprobs=f)
        for e, o, f in zip(made, old, fixed, strict=True)
    ]
    widest = max(lengths)

    def padded(rows: list[Any]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(torch.as_tensor(r), (0, widest - len(r))) for r in rows])

    inputs = {
        "prompt_ids": prompt.expand(3, -1),
        "prompt_mask": torch.ones(3, 5, dtype=torch.long),
        "completion_ids": padded(completions),
        "completion_mask": padded([torch.ones(n, dtype=torch.long) for n in lengths]),
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded(fixed),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }
    peer.train()
    trainer.args.steps_per_generation = 1
    wanted = theirs(peer, lambda: trainer._compute_loss(peer, inputs))
    same(ours(model, get_objective(name, **options), made), wanted)
