"""A run that is killed inside every stage ends with the numbers of one that never was.

The killed run gets SIGKILL as soon as a number of lines, drawn from a seeded generator,
stands in its event log, and is started again with the same command.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metier.records import events
from metier.records.ledger import Ledger

STAGES = ["baseline", "demonstrations", "sft", "evaluate-sft", "grpo", "evaluate-final", "report"]
TRAINED = ["sft", "grpo"]
TAKES_TIME = ("seconds", "per_s", "elapsed", "at", "mfu")  # figures that may differ

RECIPE = """
name: tiny
seed: 1
threads: 1
save_seconds: 0
model: {{name: {model}, dtype: float32}}
tasks: {{file: tasks.jsonl}}
plugins: [plugin.py]
stages:
  - {{kind: evaluate, name: baseline, splits: {{heldout: 6}}, chunk: 3, sampling: {sampling}}}
  - {{kind: demonstrate, name: demonstrations, split: demo, n: 32}}
  - {{kind: sft, name: sft, data: demonstrations, lr: 1e-3, batch: 8, warmup: 0}}
  - {{kind: evaluate, name: evaluate-sft, of: sft, splits: {{heldout: 6}}, chunk: 3, sampling: {sampling}}}
  - kind: rl
    name: grpo
    of: sft
    split: train
    steps: 3
    tasks: 2
    group: 3
    lr: 1e-3
    eval_every: 2
    eval_tasks: 3
    sampling: {sampling}
  - {{kind: evaluate, name: evaluate-final, of: grpo, splits: {{heldout: 6}}, chunk: 3, sampling: {sampling}}}
  - {{kind: report, name: report}}
"""
SAMPLING = "{temperature: 1.0, max_turn_tokens: 16, max_tokens: 32, max_turns: 2}"

# Random weights never do what a real task wants; this one they do about half of the time,
# so that successes and rewards differ and there is something to learn and to get wrong.
PLUGIN = """
from metier.feedback.verifiers.protocol import Verdict
from metier.feedback.verifiers.registry import register

class Even:
    name, version = "even", "1"

    def verify(self, task, attempt, params):
        said = "".join(m.content for m in attempt.messages if m.role == "assistant")
        return Verdict(score=float(len(said) % 2 == 0), reason=f"{len(said)} characters")

register(Even())
"""


def write_recipe(folder: Path, model: Path) -> Path:
    lines = []
    for split, n in (("heldout", 6), ("demo", 32), ("train", 6)):
        for number in range(n):
            system = {"role": "system", "content": f"You are desk {number % 3}."}
            task: dict[str, Any] = {
                "messages": [system, {"role": "user", "content": f"Say something, {split} {number}."}],
                "verifier": "even",
                "split": split,
            }
            if split == "demo":
                task["demonstration"] = [{"role": "assistant", "content": "ab" * (1 + number % 5)}]
            lines.append(json.dumps(task))
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    (folder / "plugin.py").write_text(PLUGIN)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.format(model=model, sampling=SAMPLING))
    return recipe


def start(recipe: Path | str, folder: Path, threads: int = 1) -> subprocess.Popen[bytes]:
    """`metier run` in a process of its own; what it says goes to a file beside its folder."""
    command = [sys.executable, "-m", "metier", "run", str(recipe), "--folder", str(folder), "--seed", "3"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "said.txt").open("ab") as said:
        return subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=said, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen[bytes], folder: Path, seconds: float = 120) -> None:
    assert process.wait(timeout=seconds) == 0, (folder.parent / "said.txt").read_text()[-3000:]


def lines_since(folder: Path, stage: str, start: int) -> int:
    """How many lines the log holds from one of the stage's starts on (0 is the first); 0 before it."""
    try:
        lines = (folder / events.FILE_NAME).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    mark = f'"stage": "{stage}", "event": "stage_start"'.encode()
    found = [number for number, line in enumerate(lines) if mark in line]
    return len(lines) - found[start] if len(found) > start else 0


def kill_at(process: subprocess.Popen[bytes], folder: Path, stage: str, start: int, lines: int) -> None:
    """SIGKILL as soon as the log holds so many lines from a start of the stage on."""
    give_up = time.monotonic() + 60
    while lines_since(folder, stage, start) < lines:
        assert process.poll() is None, (folder.parent / "said.txt").read_text()[-3000:]
        assert time.monotonic() < give_up
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL


def figures(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if not key.endswith(TAKES_TIME)}


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on whether a run was killed."""
    log = events.read(folder)
    evals = {(e["stage"], e["split"], e.get("step")): figures(e) for e in log if e["event"] == "eval"}
    kept = {stage: json.loads((folder / "stages" / f"{stage}.json").read_text()) for stage in STAGES}
    said: dict[str, list[Any]] = {}
    with Ledger.open(folder.parent / "ledger.sqlite", create=False) as ledger:
        run_id = ledger.runs()[0].id
        assert len(ledger.runs()) == 1
        for e in ledger.episodes(run_id=run_id, arrays=True):
            said.setdefault(e.stage, []).append((e.task_id, list(e.token_ids), list(e.sampler_logprobs)))
        feedback = sorted((f.criterion, str(f.value)) for f in ledger.feedback(run_id=run_id))
    return {
        "weights": {stage: kept[stage]["weights_hash"] for stage in TRAINED},
        "kept evaluations": {stage: kept[stage] for stage in STAGES if "evaluate" in stage or stage == "baseline"},
        "evaluations": evals,
        "steps": {stage: [figures(e) for e in events.steps(log, stage)] for stage in TRAINED},
        "episodes": {stage: sorted(found) for stage, found in said.items()},
        "feedback": feedback,
    }


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_inside_every_stage_ends_with_the_same_numbers(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model)
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    finish(start(recipe, whole), whole)
    reference = outcome(whole)
    inner: dict[str, int] = {}  # what each stage logs between its start and its end
    for event in events.read(whole):
        inner[event["stage"]] = inner.get(event["stage"], 0) + (event["event"] not in ("stage_start", "stage_end"))

    rng = random.Random(20)
    for stage in [*STAGES[:2], "sft", *STAGES[2:]]:
        # Each process ends what the one before began, and dies in the next stage, but twice in
        # `sft`: at its very start, and, as in `grpo`, at a step after one whose state was saved.
        # Never at a stage's last event, after which it might be over too soon.
        before = sum(e["event"] == "stage_start" and e["stage"] == stage for e in events.read(killed))
        if stage in TRAINED and (before or stage != "sft"):
            lines = rng.randrange(3, inner[stage] + 1)
        else:
            lines = 1 if stage in TRAINED else 1 + rng.randrange(max(1, inner[stage] - 1))
        kill_at(start(recipe, killed), killed, stage, before, lines)
        assert not (killed / "stages" / f"{stage}.json").exists(), f"the kill came after {stage}"
    finish(start(recipe, killed), killed)

    found = outcome(killed)
    for part, expected in reference.items():
        assert found[part] == expected, part

    # The comparison has something to compare.
    losses = [s.get("loss") for stage in TRAINED for s in reference["steps"][stage]]
    assert len(losses) == 4 + 3
    assert all(loss is not None and math.isfinite(loss) for loss in losses)
    assert len(set(reference["weights"].values())) == 2
    assert any(0 < e["success"] < 1 for e in reference["evaluations"].values())
    log = events.read(killed)
    assert {e["stage"] for e in log if e["event"] == "note" and "continues" in e["text"]} == set(TRAINED)
    assert sum(e["event"] == "run_start" for e in log) == len(STAGES) + 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_the_small_demo_killed_at_random_moments_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """The default model on all cores; some eight kills, wherever they hit, also in a start or a saving."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    began = time.monotonic()
    finish(start("desk-small", whole, threads), whole, seconds=1800)
    took = time.monotonic() - began

    rng = random.Random(7)
    kills = 0
    for _ in range(20):
        process = start("desk-small", killed, threads)
        try:
            assert process.wait(timeout=rng.uniform(0.02, 0.3) * took) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=30) == -signal.SIGKILL
            kills += 1
    else:
        finish(start("desk-small", killed, threads), killed, seconds=1800)
    assert kills >= 3
    found, reference = outcome(killed), outcome(whole)
    for part, expected in reference.items():
        assert found[part] == expected, part
