"""Whole optimiser steps of SFT, DPO and GRPO: Metier and TRL 1.16 in one process, alternating.

Same weights, same rows, SmolLM2-135M in bf16 over fp32 weights, which is Metier's way and
TRL's default; beside it TRL with weights of bf16 alone, which loses small updates. TRL
recomputes no activations here (its default would, and take a third longer), and gets the
memory allocator's settings that Metier makes for itself. Tokens are counted without
padding, and a prompt that rows share counts for each of them. Each round runs every side
on the same rows; the first warms up. Medians over rounds and their ratios are reported,
with Metier's share of the machine's own bf16 matrix rate (`mfu`, formula in
metier.models.flops).

SFT has three kinds of rows: conversations of the desk that all share one system prompt, as
those of a team with one product do; conversations of four system prompts, four of each, as
the default recipe orders them; and made-up ones that share nothing, so that packing alone
is compared. DPO has pairs of a desk's prompts and made-up ones. The GRPO update has 8
prompts of 300 tokens with 8 completions of 100 each; its peak memory is measured in a
process of its own.

Where there is a CUDA device, `cuda` adds SFT of Llama-shaped models of 0.6B and 4B
parameters on rows of 8192 tokens, against TRL with Liger's kernels where that is installed.

    pip install trl==1.16.0
    python benchmarks/train_speed.py --rounds 3
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from metier.base.memory import hand_back_freed_memory, keep_freed_memory
from metier.models.flops import peak_flops, step_flops
from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import get_renderer
from metier.tasks.desk.family import DeskFamily
from metier.train.data import Encoder
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example
from metier.train.score import score

MODEL = "smollm2"
WORDS = (
    "river",
    "green",
    "seven",
    "music",
    "window",
    "silver",
    "garden",
    "winter",
    "paper",
    "thunder",
    "honey",
    "castle",
)
Side = Callable[[], float]  # runs once, returns tokens per second


def model(dtype: torch.dtype = torch.bfloat16) -> transformers.PreTrainedModel:
    """The weights that every side starts from."""
    return load_model(MODEL, dtype=dtype)


def ours(name: str, **settings: Any) -> Trainer:
    """Metier's trainer."""
    return Trainer(
        model(), TrainSettings(**{"lr": 1e-6, "steps": 1000, "token_budget": 1600, **settings}), get_objective(name)
    )


def desk_rows(n: int) -> list[dict[str, Any]]:
    """Prompts of the desk, each with three times the oracle's last words."""
    family, out = DeskFamily(), []
    for task in family.tasks("demo", n, 7):
        said = family.demonstrate(task)[-1].content
        prompt = [{"role": m.role, "content": m.content} for m in task.messages]
        out.append({"prompt": prompt, "completion": [{"role": "assistant", "content": " ".join([said] * 3)}]})
    return out


def conversations(n: int, *, prompts: int) -> list[Example]:
    """Whole demonstrations of the desk, tool calls and results included, as many of each of `prompts` prompts."""
    tokenizer = load_tokenizer(MODEL)
    renderer, family = get_renderer(tokenizer), DeskFamily()
    by_prompt: dict[str, list[Example]] = {}
    for task in family.tasks("demo", 40 * n, 7):
        own = by_prompt.setdefault(task.messages[0].content, [])
        if len(own) < n // prompts:
            made = renderer.render(family.demonstrate(task), task.tools)
            own.append(Example(made.token_ids, made.loss_mask))
    full = [own for own in by_prompt.values() if len(own) == n // prompts]
    return [example for own in full[:prompts] for example in own]


def own_rows(n: int) -> list[dict[str, Any]]:
    """Made-up prompts of 30 to 250 words and answers of 20 to 120, nothing shared."""
    rng = random.Random(7)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [
        {
            "prompt": [{"role": "system", "content": text(10, 60)}, {"role": "user", "content": text(20, 190)}],
            "completion": [{"role": "assistant", "content": text(20, 120)}],
        }
        for _ in range(n)
    ]


def alternate(rounds: int, sides: dict[str, Side], unit: str = "tok/s") -> dict[str, float]:
    """The median of what each side's runs return; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            gc.collect()
            rate = run()
            found[name] += [rate] if number else []
            print(f"round {number} {name}: {rate:.4g} {unit}", flush=True)
    return {name: statistics.median(rates) for name, rates in found.items()}


def trl_arguments(folder: str, **more: Any) -> dict[str, Any]:
    """What TRL's configurations share: no reports, the CPU, bf16 autocast, no recomputing."""
    fixed = {"output_dir": folder, "report_to": "none", "use_cpu": True, "bf16": True, "disable_tqdm": True}
    return {**fixed, "gradient_checkpointing": False, **more}


class Peer:
    """A TRL trainer whose optimiser steps are taken one by one, prepared as its own `train` does."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.model = trainer.accelerator.prepare(trainer.model)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)

    def step(self, batches: list[dict[str, Any]], loss_of: Callable[[Any, Any], torch.Tensor]) -> None:
        """One optimiser step over micro-batches."""
        for batch in batches:
            with self.trainer.compute_loss_context_manager():
                loss = loss_of(self.model, dict(batch))
            self.trainer.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def table(title: str, found: dict[str, float]) -> list[str]:
    """Lines of the result: ours first, then the others with the ratio."""
    first = next(iter(found.values()))
    return [f"| {title} | {name} | {rate:.0f} | {first / rate:.2f} |" for name, rate in found.items()]


def sft(rounds: int, folder: str) -> list[str]:
    """16 rows a step: Metier; TRL with packing; TRL with its default batches of 8 padded rows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(MODEL)
    encoder = Encoder(tokenizer, get_renderer(tokenizer))
    rows = {
        "one system prompt": conversations(16, prompts=1),
        "four system prompts": conversations(16, prompts=4),
        "nothing shared": [encoder.unit(row, "single", n)[0] for n, row in enumerate(own_rows(16))],
    }
    lines = []
    for title, made in rows.items():
        tokens = sum(len(e.token_ids) for e in made)
        data = [{"input_ids": list(e.token_ids), "assistant_masks": list(e.loss_mask)} for e in made]
        trainer, shares = ours("sft"), []

        def metier(made: list[Example] = made, trainer: Trainer = trainer, tokens: int = tokens) -> float:
            told = trainer.step(made)
            shares.append(told["mfu"])  # noqa: B023
            return tokens / told["seconds"]

        def peer(packing: bool, dtype: torch.dtype, data: list[dict[str, Any]] = data) -> Side:
            settings = trl_arguments(folder, per_device_train_batch_size=1 if packing else 8, max_length=1024)
            settings["bf16"] = dtype == torch.float32
            if packing:
                settings.update(packing=True, packing_strategy="wrapped")
            theirs = SFTTrainer(
                model(dtype),
                args=SFTConfig(**settings),
                train_dataset=Dataset.from_list(data),
                processing_class=load_tokenizer(MODEL),
            )
            own = Peer(theirs)

            def run() -> float:
                batches = list(theirs.get_train_dataloader())
                began = time.perf_counter()
                own.step(batches, theirs.compute_loss)
                seconds = time.perf_counter() - began
                masks = [b.get("attention_mask") for b in batches]
                seen = sum(
                    int(m.sum()) if m is not None else b["input_ids"].numel()
                    for m, b in zip(masks, batches, strict=True)
                )
                return seen / seconds

            return run

        sides = {
            "Metier": metier,
            "TRL, packing": peer(True, torch.float32),
            "TRL, padded": peer(False, torch.float32),
            "TRL, packing, weights of bf16": peer(True, torch.bfloat16),
        }
        found = alternate(rounds, sides)
        lines += table(f"SFT, {title}", found)
        lines.append(f"| SFT, {title} | Metier's share of the matrix rate | {statistics.median(shares[1:]):.0%} | |")
    return lines


def dpo(rounds: int, folder: str) -> list[str]:
    """8 pairs a step. Metier's reference log-probabilities are computed anew each time, as TRL's are."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    lines = []
    for title, rows in (("desk", desk_rows(16)), ("own prompts", own_rows(16))):
        data = [
            {"prompt": good["prompt"], "chosen": good["completion"], "rejected": other["completion"]}
            for good, other in zip(rows[:8], rows[8:], strict=True)
        ]
        tokenizer = load_tokenizer(MODEL)
        encoder = Encoder(tokenizer, get_renderer(tokenizer))
        made = [e for n, row in enumerate(data) for e in encoder.unit(row, "pair", n)]
        tokens = sum(len(e.token_ids) for e in made)
        trainer, reference = ours("dpo"), model()

        def metier(
            made: list[Example] = made, trainer: Trainer = trainer, reference: Any = reference, tokens: int = tokens
        ) -> float:
            began = time.perf_counter()
            fixed = score(reference, made)
            trainer.step([replace(e, reference_logprobs=p) for e, p in zip(made, fixed, strict=True)])
            return tokens / (time.perf_counter() - began)

        theirs = DPOTrainer(
            model(torch.float32),
            ref_model=model(torch.float32),
            args=DPOConfig(**trl_arguments(folder, per_device_train_batch_size=8, max_length=1024)),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
        own = Peer(theirs)

        def peer(theirs: Any = theirs, own: Peer = own, tokens: int = tokens) -> float:
            batches = list(theirs.get_train_dataloader())
            began = time.perf_counter()
            own.step(batches, theirs.compute_loss)
            return tokens / (time.perf_counter() - began)

        lines += table(f"DPO, {title}", alternate(rounds, {"Metier": metier, "TRL": peer}))
    return lines


def episodes() -> list[Example]:
    """8 prompts of 300 tokens, 8 completions of 100 tokens each."""
    generator = torch.Generator().manual_seed(7)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, 40000, (n,), generator=generator).tolist())

    prompts = [draw(300) for _ in range(8)]
    return [
        Example(
            (*prompt, *draw(100)),
            (0,) * 300 + (1,) * 100,
            advantage=(-1.0) ** n,
            sampler_logprobs=(-5.0,) * 100,
        )
        for prompt in prompts
        for n in range(8)
    ]


def grpo_sides(folder: str) -> dict[str, Callable[[], Side]]:
    """What makes each side, whose run is one update."""
    made = episodes()
    tokens = sum(len(e.token_ids) for e in made)

    def metier() -> Side:
        trainer = ours("grpo")

        def run() -> float:
            return tokens / trainer.step(made)["seconds"]

        return run

    def peer(dtype: torch.dtype, **more: Any) -> Side:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        settings = trl_arguments(folder, per_device_train_batch_size=8, num_generations=8, **more)
        settings["bf16"] = dtype == torch.float32
        theirs = GRPOTrainer(
            model(dtype),
            reward_funcs=lambda completions, **_: [0.0 for _ in completions],
            args=GRPOConfig(**settings),
            train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
            processing_class=load_tokenizer(MODEL),
        )
        theirs.current_gradient_accumulation_steps = 8
        own = Peer(theirs)
        batches = []
        for start in range(0, len(made), 8):
            part = made[start : start + 8]
            ids = torch.tensor([e.token_ids for e in part])
            batches.append(
                {
                    "prompt_ids": ids[:, :300],
                    "prompt_mask": torch.ones(8, 300, dtype=torch.long),
                    "completion_ids": ids[:, 300:],
                    "completion_mask": torch.ones(8, 100, dtype=torch.long),
                    "advantages": torch.tensor([e.advantage for e in part]),
                    "num_items_in_batch": torch.tensor(6400),
                }
            )

        def run() -> float:
            began = time.perf_counter()
            own.step(batches, theirs._compute_loss)
            return tokens / (time.perf_counter() - began)

        return run

    return {
        "Metier": metier,
        "TRL": lambda: peer(torch.float32),
        "TRL, weights of bf16": lambda: peer(torch.bfloat16),
        "TRL, recomputing": lambda: peer(torch.float32, gradient_checkpointing=True),
    }


def grpo(rounds: int, folder: str) -> list[str]:
    """The update of 64 episodes, and each side's peak memory."""
    makers = grpo_sides(folder)
    peaks = []
    gc.collect()
    hand_back_freed_memory()
    for name in makers:  # before the sides below hold memory of their own
        done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
        peaks.append(f"| GRPO update | {name}, peak memory | {done.stdout.strip().splitlines()[-1]} GB | |")
    sides = {name: make() for name, make in makers.items() if name != "TRL, recomputing"}
    return [*table("GRPO update", alternate(rounds, sides)), *peaks]


# the shapes of Qwen3-0.6B and Qwen3-4B as Llama models
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "4B": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip


def cuda(rounds: int, folder: str) -> list[str]:
    """SFT at 8192 tokens a row on a GPU, with the share of its matrix rate."""
    lines = []
    for name, shape in SHAPES.items():
        found = alternate(rounds, long_rows(shape, 8192, "cuda", folder))
        lines += table(f"SFT {name} at 8k, % of the matrix rate", found)
    return lines


def long_rows(shape: dict[str, Any], length: int, device: str, folder: str) -> dict[str, Side]:
    """One step on two rows of `length` tokens, all labels; each side returns its mfu in percent."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = transformers.LlamaConfig(**shape, max_position_embeddings=length)
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(10, config.vocab_size, (2, length), generator=generator).tolist()
    made = [Example(tuple(row), (0,) + (1,) * (length - 1)) for row in rows]

    def fresh() -> transformers.PreTrainedModel:
        torch.manual_seed(7)
        return transformers.LlamaForCausalLM(copy.deepcopy(config)).to(device=device, dtype=torch.bfloat16)

    def metier() -> Side:
        settings = TrainSettings(lr=1e-6, steps=1000, token_budget=length, checkpointing=True)
        trainer = Trainer(fresh(), settings, get_objective("sft"))
        return lambda: 100 * trainer.step(made)["mfu"]

    def peer() -> Side:
        liger = device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
        settings = trl_arguments(folder, per_device_train_batch_size=1, max_length=length, use_liger_kernel=liger)
        settings.update(use_cpu=device == "cpu", gradient_checkpointing=True)
        theirs = SFTTrainer(
            fresh(),
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
            processing_class=load_tokenizer(MODEL),
        )
        own = Peer(theirs)
        pairs = 2 * length * (length + 1) // 2
        needed = step_flops(theirs.model, tokens=2 * length, labels=2 * (length - 1), pairs=pairs)
        rate = peak_flops(device, torch.bfloat16)

        def run() -> float:
            batches = [{k: v.to(device) for k, v in b.items()} for b in theirs.get_train_dataloader()]
            began = time.perf_counter()
            own.step(batches, theirs.compute_loss)
            if device == "cuda":
                torch.cuda.synchronize()
            return 100 * needed / (time.perf_counter() - began) / rate

        return run

    return {"Metier": metier(), "TRL": peer()}


def main() -> None:
    """Run the parts asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parts = {"sft": sft, "dpo": dpo, "grpo": grpo, **({"cuda": cuda} if torch.cuda.is_available() else {})}
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train-speed.md"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        if options.peak:
            run = grpo_sides(folder)[options.peak]()
            run()
            run()
            print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f}")
            return
        lines = ["| what | side | tokens/s | Metier is faster by |", "|---|---|---|---|"]
        for name in options.parts:
            lines += parts[name](options.rounds, folder)
            cpus = Path("/proc/cpuinfo").read_text().splitlines()
            cpu = next((line.split(":")[1].strip() for line in cpus if line.startswith("model name")), "?")
            rate = peak_flops("cpu", torch.bfloat16) / 1e9
            told = [
                "",
                f"SmolLM2-135M, bf16, {torch.get_num_threads()} threads of {cpu}; its own bf16 matrix rate is "
                f"{rate:.0f} GFLOP/s; torch {torch.__version__}; medians of {options.rounds} rounds.",
                "",
            ]
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text("\n".join(lines + told))  # after each part, so that a stop loses nothing
    print(options.out.read_text())


if __name__ == "__main__":
    main()
