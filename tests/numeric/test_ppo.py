"""PPO's value loss and its parts, by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from metier.base.errors import ConfigError, DataError
from metier.models.values import add_value_head, drop_value_head
from metier.train.advantages import gae, whitened
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example, pack
from metier.train.score import score, values
from tiny import tiny_config

CONFIG = tiny_config(tie_word_embeddings=False)


def test_value_loss_by_hand() -> None:
    example = Example(
        (1, 2, 3), (0, 1, 1), advantage=(2.0, -1.0), sampler_logprobs=(-1.0, -1.0), old_logprobs=(-1.0, -1.0),
        returns=(1.0, 0.0), old_values=(0.2, 0.5),
    )  # fmt: skip
    batch = pack([example], heads=4)
    said = torch.tensor([[-1.0, 0.5], [-1.0, 0.6]], dtype=torch.float64)
    loss, metrics = get_objective("ppo").loss(said, torch.zeros(2), batch, denominator=2.0)
    # policy: both ratios are 1, so -(2 - 1) / 2 = -0.5
    # values: 0.5 is clipped to 0.2 + 0.2 = 0.4; max((0.5 - 1)^2, (0.4 - 1)^2) = 0.36
    #         0.6 lies within 0.5 +- 0.2; (0.6 - 0)^2 = 0.36;  0.1 * (0.36 + 0.36) / (2 * 2) = 0.018
    assert float(loss) == pytest.approx(-0.5 + 0.018)
    assert metrics["value_loss"] == pytest.approx(0.36) and metrics["value"] == pytest.approx(1.1)
    plain, _ = get_objective("ppo", value_clip=0.0).loss(said, torch.zeros(2), batch, denominator=2.0)
    assert float(plain) == pytest.approx(-0.5 + 0.1 * (0.25 + 0.36) / 4)


def test_whitening_by_hand() -> None:
    # mean 2, deviation sqrt((1 + 0 + 1) / 3)
    spread = (2 / 3) ** 0.5
    assert whitened([[1.0, 2.0], [3.0]]) == [pytest.approx([-1 / spread, 0.0]), pytest.approx([1 / spread])]
    assert whitened([[4.0], [4.0]]) == [[0.0], [0.0]] and whitened([]) == []


def test_the_head_learns_what_episodes_are_worth() -> None:
    """Two prompts, one always worth 1 and one always 0: the head tells them apart, the policy is let be."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    add_value_head(model)
    made = [Example((5, 6, k, k + 1), (0, 0, 1, 1), key=str(k)) for k in (10, 20)]
    assert values(model, made) == [(0.0, 0.0), (0.0, 0.0)]
    trainer = Trainer(model, TrainSettings(lr=1e-2, steps=40), get_objective("ppo", value_clip=0.0, value_coef=1.0))
    for _ in range(40):
        batch = []
        for e, reward, own in zip(made, (1.0, 0.0), score(model, made), strict=True):
            before = values(model, [e])[0]
            _, returns = gae([0.0, reward], before)
            batch.append(
                Example(
                    e.token_ids, e.loss_mask, sampler_logprobs=own, returns=tuple(returns), old_values=before, key=e.key
                )
            )
        told = trainer.step(batch)
    (_, good), (_, bad) = values(model, made)  # before the last token, which differs
    assert good > 0.9 and bad < 0.1 and told["value_loss"] < 0.1
    drop_value_head(model)
    assert not any("value" in name for name, _ in model.named_parameters())


def test_what_ppo_needs_is_said() -> None:
    with pytest.raises(ConfigError, match="value_coef and value_clip"):
        get_objective("ppo", value_coef=-1.0)
    with pytest.raises(DataError, match="needs a model with a value head"):
        Trainer(LlamaForCausalLM(CONFIG), TrainSettings(lr=1.0, steps=1), get_objective("ppo"))
    batch = pack([Example((1, 2), (0, 1), sampler_logprobs=(-1.0,))], heads=4)
    with pytest.raises(DataError, match="return and the old value"):
        get_objective("ppo").loss(torch.zeros(1, 2), torch.zeros(1), batch, denominator=1.0)
