"""What a model says about examples, without gradients: log-probabilities of labels, and values before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from metier.models.attention import hidden_states, use_layouts
from metier.models.logprobs import token_logprobs
from metier.models.values import value_of
from metier.train.packing import Example, Packed, pack, split_micro

__all__ = ["score", "values"]


def score(
    model: PreTrainedModel, examples: Sequence[Example], *, token_budget: int = 2400, temperature: float = 1.0
) -> list[tuple[float, ...]]:
    """ln p of every label of every example at `temperature`, in nats, in the order of the examples.

    Prefixes that examples share are computed once for each micro-batch of `token_budget` packed tokens.
    """
    head_VE = model.get_output_embeddings().weight

    def tell(hidden_UE: Tensor, batch: Packed) -> Tensor:
        return token_logprobs(hidden_UE, head_VE, batch.targets_U, temperature=temperature)[0]

    return _told(model, examples, token_budget, tell)


def values(model: PreTrainedModel, examples: Sequence[Example], *, token_budget: int = 2400) -> list[tuple[float, ...]]:
    """What the model's value head says before every label, likewise."""
    return _told(model, examples, token_budget, lambda hidden_UE, _: value_of(model, hidden_UE))


@torch.inference_mode()
def _told(
    model: PreTrainedModel,
    examples: Sequence[Example],
    token_budget: int,
    tell: Callable[[Tensor, Packed], Tensor],
) -> list[tuple[float, ...]]:
    model = use_layouts(model)
    heads = model.config.get_text_config().num_attention_heads
    found: dict[int, tuple[float, ...]] = {}
    for micro in split_micro([e for e in examples if e.labels], token_budget):
        batch = pack(micro, heads=heads, device=model.device)
        hidden_TE = hidden_states(model, batch.input_ids_T, batch.position_ids_T, batch.layout)
        told_M = tell(hidden_TE.index_select(0, batch.source_U), batch).index_select(0, batch.like_M)
        for example, part in zip(micro, told_M.split([example.labels for example in micro]), strict=True):
            found[id(example)] = tuple(part.tolist())
    return [found.get(id(example), ()) for example in examples]
