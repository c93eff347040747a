"""Pruning frees what a run no longer needs, and nothing else."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from metier.base.errors import DataError, RunLockedError
from metier.recipes.prune import prune


def a_run(root: Path) -> Path:
    """A folder as a run leaves it: two finished stages that trained, one at work, one state half written."""
    (root / "stages").mkdir(parents=True)
    (root / "run.json").write_text("{}")
    for stage, parent in (("sft", "base"), ("grpo", "ckpt-sft")):
        (root / "stages" / f"{stage}.json").write_text("{}")
        (root / "checkpoints" / stage).mkdir(parents=True)
        (root / "checkpoints" / stage / "metier.json").write_text(json.dumps({"id": f"ckpt-{stage}", "parent": parent}))
        (root / "checkpoints" / stage / "model.safetensors").write_bytes(b"w" * 100)
    for state in ("sft/state-4", "more/state-2", "more/.state-3.partial"):
        (root / "state" / state).mkdir(parents=True)
        (root / "state" / state / "state.safetensors").write_bytes(b"s" * 10)
    (root / "report.html").write_text("report")
    return root


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != "lock"}


def test_states_of_finished_stages_and_leftovers_go(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    before = files(root)
    freed = prune(root, dry_run=True)
    assert files(root) == before
    assert prune(root) == freed and sorted(freed.values()) == [10, 10]
    assert before - files(root) == {
        "state/sft/state-4/state.safetensors",
        "state/more/.state-3.partial/state.safetensors",
    }
    assert prune(root) == {}


def test_of_the_checkpoints_the_last_stays(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    freed = prune(root, weights=True)
    assert str(root / "checkpoints" / "sft") in freed
    assert {p.name for p in (root / "checkpoints").iterdir()} == {"grpo"}
    assert (root / "report.html").exists()


def test_what_cannot_be_pruned_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        prune(tmp_path)
    root = a_run(tmp_path / "run")
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunLockedError, match="prune it later"):
            prune(root)
