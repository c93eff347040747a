"""The configuration of the tiny random Llama that tests train, score and sample."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

__all__ = ["tiny_config"]


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
