"""The tiny random Llama that tests train, score and sample, and how to make a Llama exact in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

__all__ = ["exact_norms", "tiny_config"]


def tiny_config(**changes: Any) -> LlamaConfig:
    """Two layers, four heads over two keys, 97 words, tied embeddings, unless changed."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**sizes, **changes})


class Norm(torch.nn.Module):
    """RMSNorm in the dtype of its input; transformers' own rounds to float32 inside."""

    def __init__(self, like: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(like.weight.detach().clone())
        self.eps = like.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def exact_norms(model: PreTrainedModel) -> None:
    """Give a Llama norms that round nothing."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LlamaRMSNorm):
                setattr(parent, name, Norm(child))
