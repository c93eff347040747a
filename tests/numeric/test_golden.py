"""The curve of thirty steps, as it was when this was written: a change of it must be meant.

Figures of other machines differ in the last digits, so the tolerance is a thousandth.
PYTHONPATH=tests python tests/numeric/test_golden.py prints the curve of today.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.sft import Sft
from metier.train.packing import Example
from tiny import tiny_config

LOSS = [
    6.432160, 7.266484, 6.447201, 7.266263, 6.131491, 6.711137, 6.120673, 6.866600, 5.538882, 6.192850,
    5.608999, 6.183355, 5.367906, 5.917565, 5.318065, 5.803244, 4.687082, 5.291622, 4.841541, 5.303531,
    4.359777, 4.914862, 4.560549, 5.017616, 4.147325, 4.742551, 4.434597, 4.897318, 4.072672, 4.691712,
]  # fmt: skip
GRADIENT = [
    2.385085, 2.998736, 1.977689, 2.119442, 2.424148, 2.447388, 5.780963, 2.393378, 2.257085, 3.227281,
    2.594468, 6.464313, 9.132003, 5.657078, 3.762797, 3.075830, 2.098885, 2.801337, 2.818717, 3.029145,
    2.366317, 2.194535, 2.372720, 2.339105, 2.092871, 2.140876, 2.503070, 2.228738, 1.999221, 2.127378,
]  # fmt: skip


def curve(dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of thirty steps of SFT on made-up rows, five a step, in two micro-batches."""
    torch.manual_seed(0)
    config = tiny_config()
    model = LlamaForCausalLM(config).to(dtype)
    rows = torch.randint(0, 97, (20, 6)).tolist()
    made = [Example((1, 2, 3, *row), (0, 0, 0, 0, 1, 1, 1, 1, 1), weight=1.0 + n % 2) for n, row in enumerate(rows)]
    settings = TrainSettings(lr=1e-2, steps=30, schedule="cosine", warmup=3, weight_decay=0.01, token_budget=24)
    trainer = Trainer(model, settings, Sft())
    told = [trainer.step([made[(5 * step + k) % 20] for k in range(5)]) for step in range(30)]
    return [t["loss"] for t in told], [t["grad_norm"] for t in told]


def test_the_curve_is_what_it_was() -> None:
    loss, gradient = curve(torch.float32)
    assert loss == pytest.approx(LOSS, rel=1e-3)
    assert gradient == pytest.approx(GRADIENT, rel=1e-3)


def test_bf16_follows_it() -> None:
    loss, _ = curve(torch.bfloat16)
    assert loss == pytest.approx(LOSS, rel=0.05)


if __name__ == "__main__":
    print(*([round(v, 6) for v in values] for values in curve(torch.float32)), sep="\n")
