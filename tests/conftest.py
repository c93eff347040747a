"""Shared by all tests: one thread each, the shared data, databases, hypothesis without a clock.

Tests run side by side on few cores, and results must not depend on how many there are,
so every test and every process that it starts computes on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from postgres import Server, missing, server

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
def postgres() -> Iterator[Server]:
    """A PostgreSQL server that runs for these tests alone."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address to open a new ledger at: a file that is not there yet; a database that holds an empty ledger, since
    making one takes a while. Token arrays lie in `tmp_path` for both."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return f"{request.getfixturevalue('postgres').ledger()}&arrays={tmp_path}/ledger-arrays"


@pytest.fixture(params=["sqlite", "postgresql"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address at which there is no ledger yet."""
    if request.param == "sqlite":
        return str(tmp_path / "new" / "ledger.db")
    return f"{request.getfixturevalue('postgres').database()}&arrays={tmp_path}/ledger-arrays"


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
