"""The doctor passes a sound machine, and finds a path that was made to lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metier.cli import main
from metier.models import attention
from metier.train.doctor import examine


def test_every_fast_path_is_sound_here(capsys: pytest.CaptureFixture[str]) -> None:
    checks = examine()
    assert len(checks) == 7 and all(check.passed for check in checks), checks
    assert main(["doctor", "--json"]) == 0
    assert [c["passed"] for c in json.loads(capsys.readouterr().out)] == [True] * 7


def test_a_leak_between_sequences_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    honest = attention._bundle

    def leaking(*arguments: Any) -> Any:
        bundle = honest(*arguments)
        object.__setattr__(bundle, "bias_SS", torch.zeros_like(bundle.bias_SS))
        return bundle

    monkeypatch.setattr(attention, "_bundle", leaking)
    wrong = [check.name for check in examine() if not check.passed]
    assert any("packed" in name for name in wrong) and any("gradient" in name for name in wrong)
    assert main(["doctor"]) == 1
    assert "WRONG  packed" in capsys.readouterr().out


def test_a_training_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"at": 0, "stage": "grpo", "event": "step", "step": n, "groups": 8, "groups_without_variance": 8}
        for n in range(1, 9)
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["doctor", str(tmp_path)]) == 1
    assert "grpo: dead groups: 100%" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "none")]) == 2
