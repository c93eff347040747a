"""Log-probabilities of examples under a model, without gradients: references and teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from metier.models.attention import hidden_states, use_layouts
from metier.models.logprobs import token_logprobs
from metier.train.packing import Example, pack, split_micro

__all__ = ["score"]


@torch.inference_mode()
def score(model: PreTrainedModel, examples: Sequence[Example], *, token_budget: int = 2400) -> list[tuple[float, ...]]:
    """ln p of every label of every example, in nats, in the order of the examples.

    Prefixes that examples share are computed once for each micro-batch of `token_budget` packed tokens.
    """
    model = use_layouts(model)
    heads = model.config.get_text_config().num_attention_heads
    head_VE = model.get_output_embeddings().weight
    found: dict[int, tuple[float, ...]] = {}
    for micro in split_micro([e for e in examples if e.labels], token_budget):
        batch = pack(micro, heads=heads, device=model.device)
        hidden_TE = hidden_states(model, batch.input_ids_T, batch.position_ids_T, batch.layout)
        logprobs_M, _ = token_logprobs(hidden_TE.index_select(0, batch.source_M), head_VE, batch.targets_M)
        counts = [example.labels for example in micro]
        for example, part in zip(micro, logprobs_M.split(counts), strict=True):
            found[id(example)] = tuple(part.tolist())
    return [found.get(id(example), ()) for example in examples]
