"""Held-out text: its loss is that of transformers, is kept, and stands in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from metier.base.errors import DataError
from metier.evaluate.text import BUILT_IN, passages, text_loss
from metier.recipes.runner import run
from metier.records.ledger import Ledger
from metier.records.types import Weights
from metier.report.collect import collect
from metier.report.page import render


def test_the_built_in_passages_are_many_and_different() -> None:
    tasks = passages(BUILT_IN)
    assert len(tasks) == 24 == len({task.id for task in tasks})
    assert all(40 < len(task.messages[0].content.split()) < 120 for task in tasks)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "is empty"),
        ("not json\n", "line 1: not JSON"),
        ('{"text": "a b"}\n{"prompt": "x"}\n', "line 2: needs a 'text'"),
        ('{"text": " "}\n', "line 1: needs a 'text'"),
    ],
)
def test_a_bad_file_is_named(lines: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "held.jsonl"
    path.write_text(lines)
    with pytest.raises(DataError, match=said):
        passages(str(path))
    with pytest.raises(DataError, match="cannot be read"):
        passages(str(tmp_path / "absent.jsonl"))


def test_before_and_after_a_training(tiny_model: Path, tmp_path: Path) -> None:
    look = {"kind": "evaluate", "splits": {"heldout": 2}, "text": "general", "sampling": {"max_turn_tokens": 2}}
    recipe = {
        "name": "look",
        "model": {"name": str(tiny_model), "dtype": "float32"},
        "tasks": {"family": "desk"},
        "stages": [
            {**look, "name": "before", "of": "base"},
            {"kind": "demonstrate", "name": "demos", "split": "demo", "n": 4},
            {"kind": "sft", "name": "sft", "data": "demos", "lr": 1e-1, "batch": 2, "warmup": 0},
            {**look, "name": "after", "of": "sft"},
        ],
    }
    (tmp_path / "look.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    done = run(str(tmp_path / "look.yaml"), folder=str(tmp_path / "run"), ledger=str(tmp_path / "ledger.sqlite"))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        kept = {e.task_id: e for e in ledger.episodes(run_id=done.run_id, stage="before/text")}
        said = {f.about[0]: f.value for f in ledger.feedback(run_id=done.run_id) if f.criterion == "text_loss"}
        for task in passages(BUILT_IN)[:3]:
            ids = torch.tensor(tokenizer(task.messages[0].content)["input_ids"])[None]
            with torch.no_grad():
                expected = float(plain(ids, labels=ids).loss)
            assert said[kept[task.id].id] == pytest.approx(expected, abs=1e-4)
        kept_once = text_loss(  # a stage that was stopped reads them: no model is needed
            ledger,
            None,
            None,
            passages(BUILT_IN),
            weights=Weights(checkpoint="none"),
            run_id=done.run_id,
            stage="before/text",
        )
        assert kept_once == [said[kept[task.id].id] for task in passages(BUILT_IN)]
        data = collect(ledger, done.run_id)
    assert data.text is not None and data.text.overall is not None
    assert [row.n for row in data.text.losses] == [24, 24]
    change = data.text.overall.paired
    assert change.clear and change.diff is not None and change.diff < 0  # from random weights to some English
    page = render(data)
    assert "What it forgot of ordinary text" in page and f"−{-change.diff:.3f}" in page
    assert data.models[0].episodes == 2  # passages are not counted as episodes of the evaluation
