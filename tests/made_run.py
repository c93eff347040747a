"""A made-up run in a real ledger, for tests of reports.

`fill` writes a whole run: three models on four splits, pairs, unscored episodes, repeats,
a training log with a step done twice.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

from metier.records.ledger import Ledger
from metier.records.types import (
    Checkpoint,
    Cost,
    DatasetManifest,
    Episode,
    Feedback,
    Message,
    Run,
    Sampling,
    Source,
    Stage,
    Task,
    Tool,
    ToolCall,
    Weights,
)

KINDS = ("lookup", "act", "several", "ask", "answer", "handover")
ASKS = {
    "lookup": "Where is my order {n}? I have been waiting since Tuesday.",
    "act": "Please cancel order {n}, I found it cheaper elsewhere.",
    "several": "Send {n} back and book a courier for Friday morning, please.",
    "ask": "Can you change the delivery day of my order?",
    "answer": "Do you deliver on Saturdays?",
    "handover": "Your lamp {n} gave me an electric shock. I want a person, now.",
    "decline": "Refund order {n} please.",
}
CHANCE = {"base": 0.02, "sft": 0.45, "grpo": 0.66}
HARDER = {"heldout": 1.0, "unseen_tool": 0.7, "changed_policy": 0.8, "unseen_desk": 0.55}
TOOLS = (
    Tool(name="find_order", description="Find an order.", parameters={"type": "object"}),
    Tool(name="cancel_order", description="Cancel an order.", parameters={"type": "object"}),
    Tool(name="decline", description="Refuse a request.", parameters={"type": "object"}),
    Tool(name="hand_over", description="Pass to a colleague.", parameters={"type": "object"}),
)
STEPS = 24  # of the rl stage
VERIFIER = Source(kind="verifier", name="conduct", version="1.2")
INJECTION = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'


def make_tasks(per_split: int = 40) -> list[Task]:
    out = []
    for split in HARDER:
        rng = random.Random(split)
        place = 0
        while place < per_split:
            kind = (*KINDS, "decline")[place % 7]
            number = str(rng.randint(1000, 9999))
            desk = "hotel" if split == "unseen_desk" else rng.choice(("shop", "library", "clinic"))
            pair = f"pair-{split}-{place}"
            for side in ("forbidden", "allowed") if kind == "decline" else ("",):
                meta = {"desk": desk, **({"pair": pair, "side": side} if side else {})}
                old = "the sale was final" if side == "forbidden" else "it came broken"
                text = ASKS[kind].format(n=number) + (f" ({old})" if side else f" My name is Person {place}.")
                if split == "heldout" and place == 0:
                    text += INJECTION
                system = f"You are the assistant of a {desk}.\nPolicy:\n- Orders can be cancelled until they ship.\n"
                messages = (Message(role="system", content=system + f"- {split}."), Message(role="user", content=text))
                out.append(
                    Task(
                        family="desk",
                        kind=kind,
                        messages=messages,
                        tools=TOOLS,
                        answer={"n": number, "place": place, "side": side},
                        split=split,
                        meta=meta,
                    )
                )
                place += 1
    return out


def make_episode(task: Task, model: str, stage: str, run_id: str, right: bool, index: int, suffix: str = "") -> Episode:
    rng = random.Random(f"{task.id}{model}{index}")
    said: list[Message] = []
    if model == "base":
        said.append(Message(role="assistant", content="I'm sorry, I am a large language model. " * rng.randint(1, 5)))
        if rng.random() < 0.2:
            call = ToolCall(name="teleport", arguments="{order: now")
            said[0] = Message(role="assistant", content="Of course!" + INJECTION, tool_calls=(call,))
    else:
        if task.kind == "ask" and right:
            said += [
                Message(role="assistant", content="Gladly. Which order is it?"),
                Message(role="user", content="It is 4711."),
            ]
        name = {"handover": "hand_over", "act": "cancel_order"}.get(task.kind, "find_order")
        if task.meta.get("side") == "forbidden":
            name = "decline" if right else "cancel_order"
        if task.kind != "answer":
            call = ToolCall(name=name, arguments=json.dumps({"order": task.answer["n"]}), id="c1")
            result = json.dumps({"order": task.answer["n"], "status": "on its way", "due": "Friday"})
            said += [
                Message(role="assistant", tool_calls=(call,)),
                Message(role="tool", content=result, tool_call_id="c1", name=name),
            ]
        said.append(Message(role="assistant", content="That is done." if right else "It will come on Sunday, I think."))
    return Episode(
        id=f"episode-{model}{suffix}-{task.id[5:]}-{index}",
        task_id=task.id,
        run_id=run_id,
        stage=stage,
        weights=Weights(checkpoint=f"checkpoint-{model}{suffix}"),
        messages=(*task.messages, *said),
        stop_reason="stop" if model != "base" else "length",
        index=index,
        split=task.split,
        sampling=Sampling(temperature=0.7),
        cost=Cost(prompt_tokens=210, completion_tokens=20 + 11 * len(said) + rng.randint(0, 9), seconds=0.4),
    )


def score(episode: Episode, right: bool | None) -> Feedback:
    return Feedback(
        id=f"feedback-{episode.id}",
        about=(episode.id,),
        criterion="success",
        kind="score",
        source=VERIFIER,
        value=None if right is None else float(right),
        status="unscored" if right is None else "scored",
        reason="the sandbox was gone" if right is None else "" if right else "order 4711 should be cancelled, is open",
        evidence={"parts": {"state": float(right), "facts": 0.5, "clean": 1.0}} if right is not None else {},
        run_id=episode.run_id,
    )


def write_events(folder: Path, models: tuple[str, ...]) -> None:
    rng = random.Random(3)
    rows: list[dict[str, object]] = []
    for place, model in enumerate(models[1:]):
        rows.append({"stage": model, "event": "stage_start"})
        total = 120 if place == 0 else STEPS
        for step in range(1, total + 1):
            if place == 0:
                loss = 0.35 + 2.6 * math.exp(-step / 18) + rng.gauss(0, 0.06)
                figures = {"loss": loss, "grad_norm": 1 + 3 / step, "tokens": 2048, "tokens_per_s": 410.0}
            else:
                reward = 0.5 + 0.25 * step / total + rng.gauss(0, 0.04)
                figures = {"reward": reward, "success": reward - 0.1, "entropy": 0.8 - step / 80, "mismatch_kl": 1e-4}
                figures |= {"loss": 0.01, "grad_norm": 0.4, "episodes": 64, "completion_tokens_mean": 52.0}
            if step == 7:
                rows.append({"stage": model, "event": "step", "step": step, "steps": total, **{k: 99 for k in figures}})
            rows.append({"stage": model, "event": "step", "step": step, "steps": total, **figures})
            if place == 1 and step % 8 == 0:
                share = 0.45 + 0.2 * step / total
                rows.append(
                    {"stage": model, "event": "eval", "step": step, "split": "heldout", "success": share, "n": 64}
                )
        rows.append({"stage": model, "event": "stage_end", "seconds": 361.0, "peak_memory_gb": 5.31})
    rows.append({"stage": "baseline", "event": "stage_end", "seconds": 45.2, "peak_memory_gb": 2.0})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps({"at": 1.0, **row}) + "\n" for row in rows))


def fill(
    ledger: Ledger,
    folder: Path,
    models: tuple[str, ...] = ("base", "sft", "grpo"),
    tasks: list[Task] | None = None,
    unscored: int = 3,
    repeats: int = 1,
    between: tuple[str, ...] = tuple(HARDER),
    name: str = "",
    chance: dict[str, float] | None = None,
) -> Run:
    """Write the run; every `unscored`-th hundredth episode has no verdict.

    Models between the first and the last are measured on the splits `between`. A run with a `name` has that at the end
    of all its ids, and may have a `chance` of success by model.
    """
    chance = CHANCE | (chance or {})
    stages = [Stage(name="baseline", kind="evaluate", inputs=("base",))]
    for place, model in enumerate(models[1:]):
        before = "base" if place == 0 else models[place]
        stages.append(Stage(name=model, kind="sft" if place == 0 else "rl", inputs=(before,)))
        stages.append(Stage(name=f"evaluate-{model}", kind="evaluate", inputs=(model,)))
    declared = [
        {
            "name": s.name,
            "kind": s.kind,
            "of": s.inputs[0],
            "lr": 0.0005,
            **({"steps": STEPS} if s.kind == "rl" else {}),
        }
        for s in stages
    ]
    run = Run(
        id=f"run-{name or 'sample'}",
        recipe=f"desk {name}".strip(),
        config={"model": "SmolLM2-135M-Instruct", "seed": 7, "stages": declared},
        seed=7,
        folder=str(folder),
        code_version="0.1.0",
        stages=tuple(stages),
        hardware={"cpu": "AMD EPYC 9B14", "cores": 2, "memory_gb": 24.0},
        created_at=1_790_000_000.0,
    )
    ledger.add_run(run)
    all_tasks = make_tasks() if tasks is None else tasks
    ledger.add_tasks(all_tasks)
    previous: str | None = None
    for place, model in enumerate(models):
        data: tuple[str, ...] = ()
        if place:
            rows = ledger.feedback(run_id=run.id)[:80]
            manifest = DatasetManifest(
                id=f"dataset-{model}{name}",
                kind="demonstrations" if place == 1 else "rl",
                name=f"for {model}",
                run_id=run.id,
                stage=model,
                query={"stage": model},
                feedback_ids=tuple(row.id for row in rows),
                episode_ids=tuple(row.about[0] for row in rows),
            )
            ledger.add_dataset(manifest)
            data = (manifest.id,)
        ledger.add_checkpoint(
            Checkpoint(
                id=f"checkpoint-{model}{name}",
                run_id=run.id,
                stage=model,
                step=120 * place,
                path="SmolLM2-135M-Instruct" if previous is None else f"checkpoints/{model}",
                parent=previous,
                dataset_ids=data,
                objective="" if previous is None else "cross-entropy" if place == 1 else "grpo",
                weights_hash="ab12" * 16,
            )
        )
        previous = f"checkpoint-{model}{name}"
        stage = next(s.name for s in stages if s.kind == "evaluate" and s.inputs == (model,))
        episodes, feedback = [], []
        for number, task in enumerate(all_tasks):
            if 0 < place < len(models) - 1 and task.split not in between:
                continue
            for index in range(repeats):
                rng = random.Random(f"{task.id}{index}")
                right = rng.random() < chance[model] * HARDER.get(task.split, 1.0) * (1.1 if number % 3 else 0.8)
                episode = make_episode(task, model, stage, run.id, right, index, name)
                episodes.append(episode)
                feedback.append(score(episode, None if number % 100 < unscored and place == 1 else right))
        ledger.add_episodes(episodes)
        ledger.add_feedback(feedback)
    write_events(folder, models)
    return run


def train(ledger: Ledger, run: Run) -> None:
    """Episodes of the run's rl stage: at each step a task eight times, each second step better than the one before."""
    tasks = [replace(task, split="train", answer={**task.answer, "train": True}) for task in make_tasks(STEPS)[:STEPS]]
    ledger.add_tasks(tasks)
    episodes, feedback = [], []
    for step, task in enumerate(tasks, 1):
        for index in range(8):
            right = random.Random(f"{step} {index}").random() < 0.2 + 0.6 * step / STEPS
            made = make_episode(task, "sft", "grpo", run.id, right, index, "-train")
            made = replace(made, weights=Weights(checkpoint="checkpoint-sft", step=step), group_id=f"group-{step}")
            episodes.append(made)
            feedback.append(score(made, right))
    ledger.add_episodes(episodes)
    ledger.add_feedback(feedback)


def profile_again(ledger: Ledger, run_id: str, checkpoint: str, trait: str | None = None) -> None:
    """What a run of `metier profile` has kept (of one trait, where one is named), as another checkpoint's profile."""
    kept, name = ledger.run(run_id), f"run-profile-of-{checkpoint}"
    episodes, said = ledger.episodes(run_id=run_id), ledger.feedback(run_id=run_id)
    ledger.add_run(replace(kept, id=name, config={**kept.config, "name": checkpoint}))
    ledger.add_episodes([replace(one, id=f"{one.id}-{checkpoint}", run_id=name) for one in episodes])
    ledger.add_feedback(
        [
            replace(one, id=f"{one.id}-{checkpoint}", run_id=name, about=tuple(f"{a}-{checkpoint}" for a in one.about))
            for one in said
            if trait is None or one.source.name == f"profile/{trait}"
        ]
    )
