"""Sampling: Metier's torch engine, `generate` of transformers and vLLM for CPUs, in one run, alternating.

SmolLM2-135M in bf16, 32 requests (4 prompts of the desk with 8 each) at temperature 1, nothing
ends early. First 64 new tokens for each; then lengths from 8 to 400, where a batch that runs
until its longest request wastes most of its work. Each side has the same prompts and lengths;
tokens per second count what was asked for. Medians over rounds and ratios are reported, and
each side's peak memory. vLLM lives in an environment of its own (`make .venv-vllm/ready.stamp`)
and speaks through Metier's own vLLM engine; its start is not timed.

A whole GRPO step is 4 prompts with 8 completions of 64 tokens and a reward that varies in every
group: Metier and TRL's GRPOTrainer. Metier's time is split into sampling, verifying, training
and the rest.

Episodes with tools that take 500 ms, a thousand of them and four for each slot, are compared
with the same episodes and tools that answer at once.

    python benchmarks/rollout_speed.py --vllm .venv-vllm/bin/python
"""

from __future__ import annotations

import argparse
import os
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
from train_speed import Side, alternate

from metier.base.memory import keep_freed_memory, resident_bytes
from metier.models.hub import load_model, load_tokenizer
from metier.models.renderer import Renderer, get_renderer
from metier.recipes.runner import hardware
from metier.records.types import Message, Sampling, Task, ToolCall, Weights
from metier.rollout.engine import Engine, Request, converse
from metier.rollout.episodes import Plan, ToolLimits, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.tools import get_tool, tool
from metier.rollout.torch_engine import TorchEngine
from metier.rollout.vllm_engine import VllmEngine
from metier.tasks.desk.family import DeskFamily
from metier.train.checkpoints import save_model
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.registry import get_objective
from metier.train.packing import Example

MODEL = "smollm2"
ROWS = 32
PROMPTS = 4


def prompts(seed: int) -> list[tuple[tuple[int, ...], int]]:
    """Four prompts of the desk, each with how much of it is the system prompt; others in each round, as in training."""
    renderer = get_renderer(load_tokenizer(MODEL))
    made = [renderer.render(t.messages, t.tools, prompt=True) for t in DeskFamily().tasks("demo", PROMPTS, seed)]
    return [(m.token_ids, m.prefix) for m in made]


def lengths(kind: str) -> list[int]:
    """New tokens of each of the 32 requests."""
    rng = random.Random(7)
    return [64] * ROWS if kind == "equal" else [rng.randint(8, 400) for _ in range(ROWS)]


def requests(kind: str, seed: int) -> list[Request]:
    """The 32 requests of a set."""
    asked = prompts(seed)
    return [
        Request(*asked[n // (ROWS // PROMPTS)], seed * ROWS + n, Sampling(max_turn_tokens=length, max_tokens=length))
        for n, length in enumerate(lengths(kind))
    ]


def drawn_by(engine: Engine, asked: list[Request]) -> None:
    """Draw them all, and see that each has the length asked for."""
    found: dict[int, int] = {}
    converse(engine, asked, lambda number, turn: found.__setitem__(number, len(turn.token_ids)))
    assert [found[n] for n in range(len(asked))] == [r.sampling.max_turn_tokens for r in asked]


def metier(kind: str) -> Side:
    """The torch engine, made anew each time, as after an optimiser step."""
    model, rounds = load_model(MODEL, dtype=torch.bfloat16), iter(range(1000))

    def run() -> float:
        asked, began = requests(kind, next(rounds)), time.perf_counter()
        drawn_by(TorchEngine(model), asked)
        return time.perf_counter() - began

    return run


def generate(kind: str) -> Side:
    """`generate` on one padded batch; it goes on until the longest request is done."""
    from transformers import GenerationConfig

    model, longest, rounds = load_model(MODEL, dtype=torch.bfloat16), max(lengths(kind)), iter(range(1000))
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=longest, min_new_tokens=longest,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip

    def run() -> float:
        asked = requests(kind, next(rounds))
        width = max(len(r.prompt) for r in asked)
        ids = torch.tensor([[0] * (width - len(r.prompt)) + list(r.prompt) for r in asked])
        mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in asked])
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        assert out.shape[1] == width + longest
        return time.perf_counter() - began

    return run


def through_vllm(kind: str, engine: VllmEngine) -> Side:
    """vLLM, whose prefix cache keeps the system prompts from round to round, which is to its advantage."""
    rounds = iter(range(1000))

    def run() -> float:
        asked, began = requests(kind, next(rounds)), time.perf_counter()
        drawn_by(engine, asked)
        return time.perf_counter() - began

    return run


def sampling(rounds: int, vllm: str | None) -> list[str]:
    """Both sets of lengths."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        engine = None
        if vllm is not None:
            renderer = get_renderer(load_tokenizer(MODEL))
            save_model(
                load_model(MODEL, dtype=torch.bfloat16), load_tokenizer(MODEL), Path(folder) / "model",
                template=renderer.template, manifest={},
            )  # fmt: skip
            options = {"dtype": "bfloat16", "max_model_len": 2048, "max_num_seqs": ROWS}
            engine = VllmEngine(Path(folder) / "model", python=vllm, settings=options)
        for kind in ("equal", "8 to 400"):
            sides = {"Metier": metier(kind), "transformers generate": generate(kind)}
            if engine is not None:
                sides["vLLM"] = through_vllm(kind, engine)
            found, wanted = alternate(rounds, sides, "s"), sum(lengths(kind))
            title = "64 tokens each" if kind == "equal" else f"{kind} tokens"
            for name, seconds in found.items():
                lines.append(f"| {title} | {name} | {wanted / seconds:.0f} tok/s | {seconds / found['Metier']:.2f} |")
        if engine is not None:
            engine.close()
    for name in ("Metier", "transformers generate"):
        done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
        lines.append(f"| 8 to 400 tokens | {name}, peak memory | {done.stdout.strip().splitlines()[-1]} GB | |")
    return lines


# --- a whole step of GRPO ---------------------------------------------------------------


def reward(text: str) -> float:
    """How many different letters it has, which differs from completion to completion."""
    return len(set(text)) / 50


def grpo(rounds: int) -> list[str]:
    """Sample 32 completions, reward them, take one optimiser step."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = load_tokenizer(MODEL)
    asked = prompts(7)
    trainer = Trainer(
        load_model(MODEL, dtype=torch.bfloat16),
        TrainSettings(lr=1e-6, steps=1000, token_budget=1600),
        get_objective("grpo"),
    )
    parts: dict[str, list[float]] = {"sampling": [], "verifying": [], "training": []}
    numbers = iter(range(1000))

    def step() -> float:
        began = time.perf_counter()
        made: dict[int, Any] = {}
        wanted = requests("equal", next(numbers))
        converse(TorchEngine(trainer.model), wanted, made.__setitem__)
        sampled = time.perf_counter()
        rewards = [reward(tokenizer.decode(made[n].token_ids)) for n in range(ROWS)]
        verified = time.perf_counter()
        examples = []
        for n, request in enumerate(wanted):
            group = rewards[n // 8 * 8 : n // 8 * 8 + 8]
            gain = (rewards[n] - statistics.fmean(group)) / (statistics.pstdev(group) + 1e-6)
            labels = len(made[n].token_ids)
            examples.append(
                Example(
                    request.prompt + made[n].token_ids, (0,) * len(request.prompt) + (1,) * labels,
                    advantage=gain, sampler_logprobs=made[n].logprobs,
                )
            )  # fmt: skip
        trainer.step(examples)
        ended = time.perf_counter()
        for name, seconds in zip(parts, (sampled - began, verified - sampled, ended - verified), strict=True):
            parts[name].append(seconds)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as folder:
        theirs = GRPOTrainer(
            model=load_model(MODEL, dtype=torch.bfloat16),
            reward_funcs=lambda completions, **_: [reward(c) for c in completions],
            args=GRPOConfig(
                output_dir=folder, report_to="none", use_cpu=True, bf16=True, disable_tqdm=True, learning_rate=1e-6,
                per_device_train_batch_size=ROWS, num_generations=8, max_completion_length=64, temperature=1.0,
                gradient_checkpointing=False, max_steps=rounds + 1, logging_steps=1000, save_strategy="no",
                generation_kwargs={"min_new_tokens": 64}, beta=0.0,
            ),
            train_dataset=Dataset.from_list([{"prompt": tokenizer.decode(p)} for p, _ in asked] * (rounds + 1)),
            processing_class=tokenizer,
        )  # fmt: skip
        clock = Clock()
        theirs.add_callback(clock.callback(step))
        theirs.train()
    ours, peer = statistics.median(clock.between[1:]), statistics.median(clock.seconds[1:])
    lines = [f"| GRPO step | Metier | {ours:.2f} s | 1.00 |", f"| GRPO step | TRL | {peer:.2f} s | {peer / ours:.2f} |"]
    spent = {name: statistics.median(some[1:]) for name, some in parts.items()}
    spent["the rest"] = max(0.0, ours - sum(spent.values()))
    lines += [f"| GRPO step | Metier, {name} | {seconds / ours:.1%} | |" for name, seconds in spent.items()]
    return lines


class Clock:
    """Times TRL's steps, and runs ours between them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.between: list[float] = []

    def callback(self, step: Side) -> Any:
        """What TRL's trainer calls."""
        from transformers import TrainerCallback

        clock = self

        class Alternating(TrainerCallback):
            began = 0.0

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.began = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.seconds.append(time.perf_counter() - self.began)
                clock.between.append(step())
                print(f"TRL {clock.seconds[-1]:.2f} s, Metier {clock.between[-1]:.2f} s", flush=True)

        return Alternating()


# --- slow tools -------------------------------------------------------------------------

EPISODES, SLOTS, TURNS = 1000, 64, 3


@tool
def look_at_once(number: int) -> str:
    """Look a number up."""
    return f"{number} is free"


@tool
def look_slowly(number: int) -> str:
    """Look a number up."""
    time.sleep(0.5)
    return f"{number} is free"


def tools() -> list[str]:
    """Episodes of three turns, each of which calls the tool, with as many episodes under way as the engine lets."""
    renderer = get_renderer(load_tokenizer(MODEL))
    found, memory = {}, 0.0

    class Calling:
        """The renderer, but whatever was said is taken for a call of the tool: an untrained model makes none."""

        def __init__(self, inner: Renderer, name: str) -> None:
            self._inner, self._name = inner, name

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        stop_ids: frozenset[int] = frozenset()

        def parse(self, token_ids: Any) -> Message:
            call = ToolCall(name=self._name, arguments=f'{{"number": {len(token_ids)}}}')
            return Message(role="assistant", tool_calls=(call,))

    for name in ("look_at_once", "look_slowly"):
        model = load_model(MODEL, dtype=torch.bfloat16)
        record = get_tool(name).record
        tasks = [
            Task(family="b", kind="b", messages=(Message(role="user", content=f"Is {n} free?"),), tools=(record,))
            for n in range(EPISODES)
        ]
        began = time.perf_counter()
        episodes = run_episodes(
            EnginePolicy(_Ending(TorchEngine(model, rows=SLOTS)), Calling(renderer, name)),  # type: ignore[arg-type]
            [Plan(id=f"{name}-{n}", task=task, seed=n) for n, task in enumerate(tasks)],
            sampling=Sampling(max_turn_tokens=24, max_turns=TURNS),
            weights=Weights(checkpoint="b"), run_id="b", stage="b", tools=ToolLimits(workers=4 * SLOTS),
        )  # fmt: skip
        found[name] = sum(e.cost.completion_tokens for e in episodes) / (time.perf_counter() - began)
        assert all(e.stop_reason == "turns" and e.cost.tool_calls == TURNS for e in episodes)
        memory = max(memory, resident_bytes() / 1e9)
        print(f"{name}: {found[name]:.0f} tok/s", flush=True)
    share = found["look_slowly"] / found["look_at_once"]
    title = f"{EPISODES} episodes, {SLOTS} slots"
    return [
        f"| {title} | tools that answer at once | {found['look_at_once']:.0f} tok/s | 1.00 |",
        f"| {title} | tools that take 500 ms | {found['look_slowly']:.0f} tok/s | {share:.2f} |",
        f"| {title} | memory | {memory:.1f} GB | |",
    ]


class _Ending:
    """An engine whose turns end as if the model had ended them, so that the conversation goes on."""

    def __init__(self, inner: TorchEngine) -> None:
        self._inner, self.context = inner, inner.context

    def session(self, on_word: Any = None) -> Any:
        session = self._inner.session(on_word)
        step = session.step
        session.step = lambda: [(n, replace(drawn, stop="stop")) for n, drawn in step()]  # type: ignore[method-assign]
        return session


def peak(name: str) -> float:
    """The peak memory of one side alone, in GB."""
    {"Metier": metier, "transformers generate": generate}[name]("8 to 400")()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Everything, or one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm", help="the Python of an environment that has vLLM")
    parser.add_argument("--only", choices=("sampling", "grpo", "tools"))
    parser.add_argument("--peak")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "rollout-speed.md"))
    options = parser.parse_args()
    keep_freed_memory()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else it wants nearly all memory
    if options.peak:
        print(f"{peak(options.peak):.2f}")
        return
    parts: dict[str, Callable[[], list[str]]] = {
        "sampling": lambda: sampling(options.rounds, options.vllm),
        "grpo": lambda: grpo(options.rounds),
        "tools": tools,
    }
    lines = [
        f"# Sampling\n\n{__doc__.strip()}\n",  # type: ignore[union-attr]
        "| what | side | measured | Metier is faster by |",
        "|---|---|---|---|",
    ]
    machine = ", ".join(f"{key} {value}" for key, value in hardware().items())
    for name in [options.only] if options.only else parts:
        lines += parts[name]()
        Path(options.out).write_text("\n".join([*lines, f"\n{machine}; {options.rounds} rounds\n"]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
