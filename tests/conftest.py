"""Shared by all tests: one thread each, the shared data, hypothesis without a clock.

Tests run side by side on few cores, and results must not depend on how many there are,
so every test and every process that it starts computes on one thread.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "100"  # what typer and rich print does not depend on the terminal

settings.register_profile("metier", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("metier")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder that lies beside the checkout where the project is developed."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the project's shared data folder beside the checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in Hugging Face layout, with the tokenizer of the default model."""
    import torch
    from transformers import LlamaForCausalLM

    from metier.base.errors import ModelError
    from metier.models.hub import load_tokenizer
    from tiny import tiny_config

    try:
        tokenizer = load_tokenizer("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = tiny_config(intermediate_size=64, vocab_size=49152, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
