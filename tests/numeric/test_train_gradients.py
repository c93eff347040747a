"""Shared prefixes, packing and micro-batches change how fast a gradient is had, not what it is.

The slow, obvious way: each example alone through transformers' own forward pass (its
attention in fp64), full logits, log_softmax. transformers' RMSNorm rounds to fp32 inside,
so the tiny model gets one that stays in fp64.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.policy import PolicyGradient
from metier.train.objectives.protocol import Objective
from metier.train.objectives.sft import Sft
from metier.train.packing import Example, pack, split_micro
from tiny import exact_norms, tiny_config


def tiny(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = tiny_config(initializer_range=0.3, tie_word_embeddings=tied)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").double().eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    exact_norms(model)
    return model


def examples() -> list[Example]:
    """Two prompts under one system prompt with three answers each, and one loner with late tool output."""
    draw = random.Random(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(97) for _ in range(n))

    made = []
    system = words(6)
    for prompt in (words(5), words(9)):
        for n in (4, 7, 12):
            ids = system + prompt + words(n)
            head = len(system + prompt)
            made.append(
                Example(
                    ids,
                    (0,) * head + (1,) * n,
                    weight=draw.choice((0.7, 1.0, 2.0)),
                    advantage=draw.choice((-1.5, -0.5, 1 / 3, 1.25)),
                    sampler_logprobs=tuple(draw.uniform(-8, -2) for _ in range(n)),
                    old_logprobs=tuple(draw.uniform(-8, -2) for _ in range(n)),
                    reference_logprobs=tuple(draw.uniform(-8, -2) for _ in range(n)),
                )
            )
    longest, again = made[2], made[5]  # one that parts from its sibling in the middle, and one that is the same
    made.append(replace(longest, token_ids=longest.token_ids[:-4] + words(4), advantage=2.0))
    made.append(replace(again, advantage=-0.25))
    loner = words(20)
    mask = (0,) * 5 + (1,) * 4 + (0,) * 6 + (1,) * 2 + (0,) * 3
    drawn = tuple(draw.uniform(-8, -2) for _ in range(6))
    made.append(Example(loner, mask, sampler_logprobs=drawn, reference_logprobs=drawn, advantage=0.5))
    return made


def plain_gradient(
    model: LlamaForCausalLM, made: Sequence[Example], objective: Objective
) -> tuple[float, dict[str, torch.Tensor]]:
    total = sum(e.labels for e in made)
    loss = torch.zeros((), dtype=torch.float64)
    for example in made:
        ids = torch.tensor(example.token_ids)
        logp = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
        chosen = logp.gather(1, ids[1:, None])[:, 0][torch.tensor(example.loss_mask[1:]).bool()]
        batch = pack([example], heads=4, dtype=torch.float64)
        share, _ = objective.loss(chosen, torch.zeros_like(chosen), batch, denominator=float(total))
        loss = loss + share
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def ours(
    model: LlamaForCausalLM, made: Sequence[Example], objective: Objective, budget: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model = copy.deepcopy(model)
    trainer = Trainer(model, TrainSettings(lr=1e-3, steps=10, token_budget=budget), objective)
    sums = trainer.gradient(made)
    return sums, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "objective",
    [Sft(), PolicyGradient(clip_low=0.3, cap=1.5), PolicyGradient(ratio="sequence", kl="k3", kl_coef=0.1)],
    ids=["sft", "token", "sequence"],
)
@pytest.mark.parametrize("budget", [1, 45, 10_000])
def test_the_gradient_is_that_of_each_example_alone(tied: bool, objective: Objective, budget: int) -> None:
    model, made = tiny(tied=tied), examples()
    sums, grads = ours(model, made, objective, budget)
    loss, expected = plain_gradient(model, made, objective)
    assert abs(sums["loss"] - loss) < 1e-10
    assert grads.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, grad in grads.items():
        assert float((grad - expected[name]).abs().max()) < 1e-10, name


@pytest.mark.parametrize("seed", range(4))
def test_order_and_split_do_not_move_the_gradient(seed: int) -> None:
    model, made = tiny(tied=True), examples()
    _, expected = ours(model, made, Sft(), 10_000)
    draw = random.Random(seed)
    draw.shuffle(made)
    _, grads = ours(model, made, Sft(), draw.choice((20, 30, 60, 90)))
    for name, grad in grads.items():
        assert float((grad - expected[name]).abs().max()) < 1e-10, name


def test_shared_tokens_are_computed_once() -> None:
    made = examples()
    # 6 system; 5 + 9 prompt; answers 4 + 7 + 12 twice, less their last token, which predicts
    # nothing: 3 + 6 + 11 = 20, twice; 3 of the one that parts late, none of the one said twice;
    # the loner's last label is at 16, so its first 16 tokens.
    batch = pack(made, heads=4)
    assert batch.packed_tokens == 6 + 5 + 9 + 20 + 20 + 3 + 16
    assert batch.tokens == sum(len(e.token_ids) for e in made)
    assert batch.like_M.numel() == sum(e.labels for e in made)
    again = [e for micro in split_micro(made, 40) for e in micro]
    assert sorted(map(id, again)) == sorted(map(id, made))
    for micro in split_micro(made, 40):
        assert len(micro) == 1 or pack(micro, heads=4).packed_tokens <= 40
