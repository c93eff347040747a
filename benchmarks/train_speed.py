"""Whole optimiser steps of SFT, DPO and GRPO: Metier and TRL in one process, alternating.

Same weights, same data, tokens counted without padding and without sharing. Each round
runs both on the same rows; medians over rounds and their ratio are reported, and the
machine's own matrix product rate beside them. The share of that rate counts the products
that the loss needs, forward and backward:

    6 * (parameters outside the embedding) * packed tokens + 6 * hidden * vocabulary * labels

    python benchmarks/train_speed.py --rounds 3
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from metier.base.memory import keep_freed_memory
from metier.models.hub import load_model, load_tokenizer, locate
from metier.models.renderer import get_renderer
from metier.tasks.desk.family import DeskFamily
from metier.train.data import Encoder
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example
from metier.train.score import score


def product_rate() -> float:
    """FLOP/s of a bf16 product of the model's own shape."""
    x, w = torch.randn(1536, 576).bfloat16(), torch.randn(1536, 576).bfloat16()
    times = []
    for _ in range(30):
        began = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - began)
    return 2 * 1536 * 576 * 1536 / statistics.median(times)


def needed(model: Any, packed: float, labels: float) -> float:
    """FLOPs of the products that a loss on `labels` of `packed` tokens needs, forward and backward."""
    head = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters()) - head.numel()
    return 6 * body * packed + 6 * head.numel() * labels


def rows(n: int) -> list[dict[str, Any]]:
    """Demonstrations of the desk as conversational rows (tool calls as the text that the policy writes)."""
    family, out = DeskFamily(), []
    for task in family.tasks("demo", n, 7):
        messages = family.demonstrate(task)
        prompt = [{"role": m.role, "content": m.content} for m in task.messages]
        answer = next(m.content for m in reversed(messages) if m.role == "assistant")
        out.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer * 3}]})
    return out


def alternate(rounds: int, sides: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Tokens/s of each side in each round; the first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            gc.collect()
            rate = run(number)
            if number:
                found[name].append(rate)
            print(f"round {number} {name}: {rate:.0f} tok/s", flush=True)
    return found


def arguments(folder: str, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,  # the weights are bf16 themselves
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        **more,
    }


def their_step(trainer: Any, batch: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def sft(rounds: int, folder: str) -> list[str]:
    """16 rows a step: ours, TRL with packing, TRL with its default batches of 8 padded rows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer("smollm2")
    encoder = Encoder(tokenizer, get_renderer(tokenizer))
    data = rows(16)
    made: list[Example] = [encoder.unit(row, "single", n)[0] for n, row in enumerate(data)]
    tokens = sum(len(e.token_ids) for e in made)
    model = load_model("smollm2", dtype=torch.bfloat16)
    trainer = Trainer(model, TrainSettings(lr=1e-5, steps=100, token_budget=1600), get_objective("sft"))
    rate = product_rate()
    shares = []

    def ours(_: int) -> float:
        began = time.perf_counter()
        sums = trainer.step(made)
        seconds = time.perf_counter() - began
        shares.append(needed(model, sums["packed_tokens"], sums["loss_tokens"]) / seconds / rate)
        return tokens / seconds

    def theirs(packing: bool) -> Callable[[int], float]:
        settings = arguments(folder, per_device_train_batch_size=8, packing=packing, max_length=2048)
        if packing:
            settings["per_device_train_batch_size"] = 1
        peer = SFTTrainer(
            load_model("smollm2", dtype=torch.bfloat16),
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list(data),
            processing_class=load_tokenizer("smollm2"),
        )
        optimizer = torch.optim.AdamW(peer.model.parameters(), lr=1e-5, fused=True)

        def run(_: int) -> float:
            began, seen = time.perf_counter(), 0
            for batch in peer.get_train_dataloader():
                their_step(peer, batch, optimizer)
                mask = batch.get("attention_mask")
                seen += int(mask.sum()) if mask is not None else int(batch["input_ids"].numel())
            return seen / (time.perf_counter() - began)

        return run

    found = alternate(rounds, {"metier": ours, "trl packed": theirs(True), "trl padded": theirs(False)})
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    lines = [f"| SFT, {name} | {m:.0f} | {medians['metier'] / m:.1f} |" for name, m in medians.items()]
    return [
        *lines,
        f"| SFT, share of the product rate ({rate / 1e9:.0f} GFLOP/s) | {statistics.median(shares[1:]):.0%} | |",
    ]


def dpo(rounds: int, folder: str) -> list[str]:
    """8 pairs a step."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = load_tokenizer("smollm2")
    encoder = Encoder(tokenizer, get_renderer(tokenizer))
    data = [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": other["completion"]}
        for r, other in zip(rows(8), rows(9)[1:], strict=True)
    ]
    made = [e for n, row in enumerate(data) for e in encoder.unit(row, "pair", n)]
    tokens = sum(len(e.token_ids) for e in made)
    model = load_model("smollm2", dtype=torch.bfloat16)
    trainer = Trainer(model, TrainSettings(lr=1e-6, steps=100, token_budget=1600), get_objective("dpo"))

    def ours(_: int) -> float:
        began = time.perf_counter()
        found = score(load_model("smollm2", dtype=torch.bfloat16), made)
        import dataclasses

        trainer.step([dataclasses.replace(e, reference_logprobs=p) for e, p in zip(made, found, strict=True)])
        return tokens / (time.perf_counter() - began)

    peer = DPOTrainer(
        load_model("smollm2", dtype=torch.bfloat16),
        ref_model=load_model("smollm2", dtype=torch.bfloat16),
        args=DPOConfig(**arguments(folder, per_device_train_batch_size=8)),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    optimizer = torch.optim.AdamW(peer.model.parameters(), lr=1e-6, fused=True)

    def theirs(_: int) -> float:
        began, seen = time.perf_counter(), 0
        for batch in peer.get_train_dataloader():
            their_step(peer, batch, optimizer)
            seen += int(batch["attention_mask"].sum())
        return seen / (time.perf_counter() - began)

    found = alternate(rounds, {"metier": ours, "trl": theirs})
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    return [f"| DPO, {name} | {m:.0f} | {medians['metier'] / m:.1f} |" for name, m in medians.items()]


def main() -> None:
    """Run the parts asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["sft", "dpo"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train-speed.md"))
    options = parser.parse_args()
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    parts: dict[str, Callable[[int, str], Sequence[str]]] = {"sft": sft, "dpo": dpo}
    lines = ["| what | tokens/s | Metier is faster by |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.parts:
            lines += parts[name](options.rounds, folder)
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    lines += [
        "",
        f"SmolLM2-135M, bf16, {os.cpu_count()} cores ({cpu}), torch {torch.__version__}, {options.rounds} rounds.",
    ]
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), locate("smollm2"))


if __name__ == "__main__":
    main()
