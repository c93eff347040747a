"""Two processes take the step of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}  # for tiny.py
SCRIPT = """
import sys
import torch
from tiny import tiny_config
from transformers import LlamaForCausalLM
from metier.train import processes
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example

processes.join()
out, name, budget = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
config = tiny_config()
model = LlamaForCausalLM(config).double()
rows = torch.randint(0, 97, (6, 12)).tolist()
made = []
for n, row in enumerate(rows):
    labels = 6 if n % 2 else 4
    made.append(Example(
        tuple(rows[0][:6] + row[6 : 6 + labels]), (0,) * 6 + (1,) * labels,
        advantage=(-1.0) ** n * (n + 1), sampler_logprobs=(-4.5,) * labels, reference_logprobs=(-4.4,) * labels,
        target=float(n % 2), unit=str(n // 2),
    ))
trainer = Trainer(model, TrainSettings(lr=1e-2, steps=2, token_budget=budget), get_objective(name))
told = trainer.gradient(made)
gradient = {n: p.grad.clone() for n, p in model.named_parameters()}
trainer.masters.step(1e-2)
if processes.leads():
    torch.save({"told": told, "gradient": gradient, "weights": dict(model.named_parameters())}, out)
"""


def told_by(folder: Path, processes: int, name: str, budget: int) -> dict[str, dict[str, torch.Tensor]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    out = folder / f"{processes}.pt"
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*start, str(script), str(out), name, str(budget)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, torch.Tensor]] = torch.load(out, weights_only=False)
    return found


@pytest.mark.parametrize(("name", "budget"), [("sft", 14), ("grpo", 14), ("dpo", 16), ("sft", 1000)])
def test_two_processes_have_the_gradient_of_one(name: str, budget: int, tmp_path: Path) -> None:
    """With a budget of 1000 all is one micro-batch, so that the second worker has nothing to do."""
    one, two = (told_by(tmp_path, n, name, budget) for n in (1, 2))
    assert one["told"].keys() == two["told"].keys()
    for key, value in one["told"].items():
        assert two["told"][key] == pytest.approx(value, rel=1e-12, abs=1e-12), key
    for what in ("gradient", "weights"):
        for key, tensor in one[what].items():
            assert float((tensor - two[what][key]).detach().norm()) <= 1e-10 * max(
                1.0, float(tensor.detach().norm())
            ), key


def test_a_file_is_trained_on_by_two_processes(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}!"} for n in ("one", "two", "three", "four", "five", "six")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for processes in (1, 2):
        out = tmp_path / f"out-{processes}"
        start = [sys.executable, "-m"]
        if processes > 1:
            start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [
            *start, "metier", "train", "sft", "--model", str(tiny_model), "--data", str(tmp_path / "rows.jsonl"),
            "--out", str(out), "--set", "dtype=float32", "--set", "lr=1e-2", "--set", "batch=3", "--set", "epochs=2",
            "--set", "token_budget=16",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        losses.append([e["loss"] for e in events if e["event"] == "step"])
        assert (out / "model" / "model.safetensors").exists()
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)
