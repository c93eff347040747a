"""The part of the benchmark that needs a GPU runs here on the CPU, on a tiny shape."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install 'metier[dev]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own


def test_both_sides_of_the_long_rows_take_a_step(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "train_speed.py"
    spec = importlib.util.spec_from_file_location("train_speed", path)
    assert spec is not None and spec.loader is not None
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    shape = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    sides = speed.long_rows(shape, 96, "cpu", str(tmp_path))
    shares = {name: run() for name, run in sides.items()}
    assert shares.keys() == {"Metier", "TRL"} and all(0 < share < 100 for share in shares.values())
