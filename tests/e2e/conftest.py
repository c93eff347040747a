"""A model small enough to walk the whole loop in seconds: two layers with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in Hugging Face layout, with the tokenizer of the default model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from metier.base.errors import ModelError
    from metier.models.hub import load_tokenizer

    try:
        tokenizer = load_tokenizer("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=49152,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
