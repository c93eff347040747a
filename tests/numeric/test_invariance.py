"""Every objective gives one gradient, however its step is computed.

The slow, obvious way: each example alone through transformers' own forward pass, in fp64,
with full logits. Against it: shared prefixes on, micro-batches small and large, another
order, another size of vocabulary chunks, layers computed twice, and an adapter that learns
in place of the weights. The norm of the difference is held to 1e-10.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from metier.models.adapters import Adapter, add_adapter
from metier.models.divergence import token_divergence
from metier.models.hub import load_model
from metier.models.values import add_value_head, value_of
from metier.train import loop
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.protocol import DivergenceObjective, Objective
from metier.train.objectives.registry import BUILT_IN, get_objective
from metier.train.packing import Example, pack, split_micro
from tiny import exact_norms, tiny_config

OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in BUILT_IN},
    "dpo+sft": ("dpo", {"sft_coef": 0.5}),
    "dpo-ipo": ("dpo", {"kind": "ipo"}),
    "dpo-hinge": ("dpo", {"kind": "hinge"}),
    "dpo-robust": ("dpo", {"kind": "robust", "smoothing": 0.1}),
    "distill-jsd": ("distill", {"beta": 0.5}),
    "distill-reverse": ("distill", {"beta": 1.0}),
    "grpo+kl": ("grpo", {"kl": "k3", "kl_coef": 0.1}),
}


def model_for(objective: Objective) -> PreTrainedModel:
    torch.manual_seed(1)
    config = tiny_config(initializer_range=0.3, num_labels=2, pad_token_id=0)
    kind = LlamaForSequenceClassification if objective.output == "scores" else LlamaForCausalLM
    model: PreTrainedModel = kind._from_config(config, attn_implementation="sdpa").double().eval()
    if objective.output == "actor_critic":
        add_value_head(model)
        torch.nn.init.normal_(model.value_head.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    exact_norms(model)
    return model


def teacher_for(objective: Objective) -> PreTrainedModel | None:
    if objective.output != "divergence":
        return None
    torch.manual_seed(2)
    teacher = LlamaForCausalLM._from_config(tiny_config(initializer_range=0.3), attn_implementation="sdpa")
    exact_norms(teacher)
    return teacher.double().eval()


def examples(objective: Objective) -> list[Example]:
    """Three prompts under one system prompt; two answers to each, and for some a third that parts late."""
    draw = random.Random(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, 97) for _ in range(n))

    scored = objective.output == "scores"
    made = []
    system = words(6)
    for number, length in enumerate((5, 9, 4)):
        prompt = system + words(length)
        answers = [words(4), words(9)]
        if objective.rows != "pair":
            answers.append(answers[1][:6] + words(5))
        for side, answer in enumerate(answers):
            tail = (0,) * (len(answer) - 1) + (1,) if scored and objective.rows == "pair" else (1,) * len(answer)
            n = sum(tail)

            def logs(n: int = n) -> tuple[float, ...]:
                return tuple(draw.uniform(-8, -2) for _ in range(n))

            made.append(
                Example(
                    prompt + answer,
                    (0,) * len(prompt) + tail,
                    weight=1.0 if objective.rows == "pair" else draw.choice((0.7, 1.0)),
                    advantage=tuple(draw.choice((0.0, 1.0)) for _ in range(n))
                    if objective.rows == "steps"
                    else draw.choice((-1.5, 1 / 3, 1.25)),
                    sampler_logprobs=logs(),
                    old_logprobs=logs(),
                    reference_logprobs=logs(),
                    returns=logs() if objective.output == "actor_critic" else (),
                    old_values=logs() if objective.output == "actor_critic" else (),
                    target=float(side == 0),
                    margin=0.1,
                    unit=str(number),
                )
            )
    return made


def values(model: PreTrainedModel, teacher: PreTrainedModel | None, example: Example, objective: Objective) -> Tensor:
    """What the objective learns from, at each label of one example alone."""
    ids = torch.tensor(example.token_ids)[None]
    at = torch.tensor(example.loss_mask[1:]).bool()
    targets = torch.tensor(example.token_ids[1:])[at]
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0, :-1][at]
    if objective.output == "scores":
        return hidden @ model.score.weight.T  # type: ignore[union-attr, operator]
    head = model.get_output_embeddings().weight
    if teacher is not None:
        assert isinstance(objective, DivergenceObjective)
        taught = teacher.get_decoder()(input_ids=ids).last_hidden_state[0, :-1][at].detach()
        logs = [torch.log_softmax(h @ w.T / objective.temperature, -1)
                for h, w in ((hidden, head), (taught, teacher.get_output_embeddings().weight.detach()))]  # fmt: skip
        mine, theirs = logs
        beta = objective.beta
        if beta in (0.0, 1.0):
            first, second = (theirs, mine) if beta == 0.0 else (mine, theirs)
            return (first.exp() * (first - second)).sum(-1)
        middle = (beta * theirs.exp() + (1 - beta) * mine.exp()).log()
        ours = (mine.exp() * (mine - middle)).sum(-1)
        return beta * (theirs.exp() * (theirs - middle)).sum(-1) + (1 - beta) * ours
    chosen = torch.log_softmax(hidden @ head.T, -1).gather(1, targets[:, None])[:, 0]
    return torch.stack([chosen, value_of(model, hidden)], 1) if objective.output == "actor_critic" else chosen


def slowly(
    model: PreTrainedModel, teacher: PreTrainedModel | None, made: Sequence[Example], objective: Objective
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients, one unit at a time, nothing shared."""
    whole = objective.denominator(loss_tokens=sum(e.labels for e in made), examples=len(made))
    total = torch.zeros((), dtype=torch.float64)
    for micro in split_micro(made, 1):
        batch = pack(micro, heads=4, dtype=torch.float64)
        given = torch.cat([values(model, teacher, example, objective) for example in micro])
        entropy = given.new_zeros(len(given))
        total = total + objective.loss(given, entropy, batch, denominator=whole)[0]
    total.backward()
    return float(total.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def fast(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    made: Sequence[Example],
    objective: Objective,
    **settings: Any,
) -> tuple[float, dict[str, Tensor]]:
    model, teacher = copy.deepcopy(model), copy.deepcopy(teacher)
    trainer = Trainer(model, TrainSettings(lr=1e-3, steps=10, **settings), objective, teacher=teacher)
    sums = trainer.gradient(made)
    return sums["loss"], {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return float(torch.stack([(a[n] - b[n]).norm() for n in a]).norm())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_gradient_however_it_is_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = get_objective(OBJECTIVES[name][0], **OBJECTIVES[name][1])
    model, teacher, made = model_for(objective), teacher_for(objective), examples(objective)
    loss, expected = slowly(copy.deepcopy(model), teacher, made, objective)
    assert float(torch.stack([g.norm() for g in expected.values()]).norm()) > 1e-3
    shuffled = sorted(made, key=lambda e: (random.Random(e.unit).random(), e.token_ids))
    for rows in (made, shuffled):
        for settings in ({"token_budget": 1}, {"token_budget": 45}, {}, {"checkpointing": True}):
            found, grads = fast(model, teacher, rows, objective, **settings)
            assert abs(found - loss) < 1e-10
            assert distance(grads, expected) < 1e-10, settings
    for module, original in ((loop, loop.token_logprobs), (loop, token_divergence)):
        monkeypatch.setattr(
            module, original.__name__, lambda *given, original=original, **named: original(*given, **named, chunk=3)
        )
    assert distance(fast(model, teacher, made, objective)[1], expected) < 1e-10


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "grpo", "distill"])
def test_an_adapter_has_one_gradient_too(name: str) -> None:
    pytest.importorskip("peft")
    objective = get_objective(name)
    teacher, made = teacher_for(objective), examples(objective)
    model = add_adapter(model_for(objective), Adapter(rank=4), seed=1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.double() + 0.1 * torch.randn_like(parameter.data, dtype=torch.float64)
    _, expected = slowly(copy.deepcopy(model), teacher, made, objective)
    for settings in ({"token_budget": 1}, {}, {"checkpointing": True}):
        assert distance(fast(model, teacher, made, objective, **settings)[1], expected) < 1e-10, settings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_the_default_model_in_float32(name: str) -> None:
    """Norm-wise within 1e-4 of each example alone."""
    objective = get_objective(name)
    made = [replace(e, token_ids=tuple(i + 1000 for i in e.token_ids)) for e in examples(objective)]
    model = load_model("smollm2")
    model.requires_grad_(True)
    _, expected = slowly(copy.deepcopy(model), None, made, objective)
    size = float(torch.stack([g.norm() for g in expected.values()]).norm())
    for settings in ({"token_budget": 1}, {}, {"checkpointing": True}):
        _, grads = fast(model, None, made, objective, **settings)
        assert distance(grads, expected) < 1e-4 * size, settings
