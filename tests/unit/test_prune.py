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


def test_weights_that_later_stages_may_need_stay(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    start = {"stage": "", "event": "run_start", "stages": ["sft", "grpo", "more"]}
    (root / "events.jsonl").write_text(json.dumps(start) + "\n")
    with pytest.raises(DataError, match="is not finished: more may start from any"):
        prune(root, weights=True)
    assert {p.name for p in (root / "checkpoints").iterdir()} == {"sft", "grpo"}
    (root / "stages" / "more.json").write_text("{}")
    prune(root, weights=True)
    assert {p.name for p in (root / "checkpoints").iterdir()} == {"grpo"}


def test_what_was_set_aside_goes_once_its_place_is_taken(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    for name in (".sft.old", ".best.old"):  # of sft there is a new one, of best there is not
        (root / "checkpoints" / name).mkdir()
    prune(root)
    assert {p.name for p in (root / "checkpoints").iterdir()} == {"sft", "grpo", ".best.old"}
