"""A made-up run in a real ledger, and what is collected from it.

`fill` writes a whole run: three models on four splits, pairs, unscored episodes, repeats,
a training log with a step done twice. The browser test draws its page from it too.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

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
from metier.report.collect import collect
from metier.report.data import ReportData
from metier.report.page import render

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


def make_episode(task: Task, model: str, stage: str, run_id: str, right: bool, index: int) -> Episode:
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
        id=f"episode-{model}-{task.id[5:]}-{index}",
        task_id=task.id,
        run_id=run_id,
        stage=stage,
        weights=Weights(checkpoint=f"checkpoint-{model}"),
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
        total = 120 if place == 0 else 24
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
) -> Run:
    """Write the run; every `unscored`-th hundredth episode has no verdict.

    Models between the first and the last are measured on the splits `between`.
    """
    stages = [Stage(name="baseline", kind="evaluate", inputs=("base",))]
    for place, model in enumerate(models[1:]):
        before = "base" if place == 0 else models[place]
        stages.append(Stage(name=model, kind="sft" if place == 0 else "rl", inputs=(before,)))
        stages.append(Stage(name=f"evaluate-{model}", kind="evaluate", inputs=(model,)))
    run = Run(
        id="run-sample",
        recipe="desk",
        config={"model": "SmolLM2-135M-Instruct", "seed": 7, "sft": {"lr": 0.0005, "epochs": 1}},
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
                id=f"dataset-{model}",
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
                id=f"checkpoint-{model}",
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
        previous = f"checkpoint-{model}"
        stage = next(s.name for s in stages if s.kind == "evaluate" and s.inputs == (model,))
        episodes, feedback = [], []
        for number, task in enumerate(all_tasks):
            if 0 < place < len(models) - 1 and task.split not in between:
                continue
            for index in range(repeats):
                rng = random.Random(f"{task.id}{index}")
                right = rng.random() < CHANCE[model] * HARDER.get(task.split, 1.0) * (1.1 if number % 3 else 0.8)
                episode = make_episode(task, model, stage, run.id, right, index)
                episodes.append(episode)
                feedback.append(score(episode, None if number % 100 < unscored and place == 1 else right))
        ledger.add_episodes(episodes)
        ledger.add_feedback(feedback)
    write_events(folder, models)
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    folder = tmp_path_factory.mktemp("run")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        run = fill(ledger, folder)
        return collect(ledger, run.id, folder)


def test_models_and_rungs_follow_the_run(data: ReportData) -> None:
    assert [model.label for model in data.models] == ["Base", "SFT", "GRPO"]
    assert [rung.split for rung in data.rungs] == list(HARDER)
    rung = data.rungs[0]
    assert rung.note == "new names, ids and phrasings"  # of the desk's tasks
    assert rung.overall is not None
    assert (rung.overall.before, rung.overall.after) == (0, 2)
    assert [(step.before, step.after) for step in rung.steps] == [(0, 1), (1, 2)]
    assert rung.overall.paired.n == len([t for t in make_tasks() if t.split == "heldout"])
    assert rung.overall.p_holm is not None and rung.overall.paired.p is not None
    assert rung.overall.p_holm >= rung.overall.paired.p
    assert data.verdict.direction == "up"
    assert data.verdict.sentence.startswith("Heldout success rose from ")


def test_success_is_the_share_of_scored_episodes(data: ReportData, tmp_path: Path) -> None:
    tasks = [task for task in make_tasks() if task.split == "heldout"]
    rights = []
    for task in tasks:
        number = make_tasks().index(task)
        rights.append(random.Random(f"{task.id}0").random() < CHANCE["grpo"] * (1.1 if number % 3 else 0.8))
    assert data.rungs[0].shares[2].mean == pytest.approx(sum(rights) / len(rights))


def test_unscored_episodes_are_left_out_and_said(data: ReportData) -> None:
    middle = data.models[1]
    assert middle.unscored > 0
    shares = [rung.shares[1] for rung in data.rungs]
    assert sum(share.left_out for share in shares) == middle.unscored
    assert sum(share.n for share in shares) == middle.episodes - middle.unscored
    assert any("no verdict" in line for line in data.verdict.beside)


def test_pairs_need_both_sides(data: ReportData) -> None:
    assert [row.split for row in data.pairs] == list(HARDER)
    for row in data.pairs:
        for both, forbidden, allowed in zip(row.both, row.forbidden, row.allowed, strict=True):
            assert both.mean is not None and forbidden.mean is not None and allowed.mean is not None
            assert both.mean <= min(forbidden.mean, allowed.mean) + 1e-9
            assert both.n + both.left_out == row.n and both.clusters * 2 <= forbidden.clusters + allowed.clusters


def test_pairs_are_clusters(data: ReportData) -> None:
    rung = data.rungs[0]
    assert rung.overall is not None
    twins = sum(1 for task in make_tasks() if task.split == "heldout" and task.meta.get("pair"))
    assert rung.overall.paired.clusters == rung.overall.paired.n - twins // 2


def test_the_last_writing_of_a_step_counts(data: ReportData) -> None:
    loss = data.curves[0].panels[0].series[0]
    assert len(loss.steps) == 120
    assert max(loss.values) < 5


def test_reward_goes_with_heldout_during_training(data: ReportData) -> None:
    (pair,) = data.reward
    assert pair.during
    assert [held.step for held in pair.held] == [8, 16, 24]
    assert pair.reward is not None and len(pair.reward.values) == 24


def test_costs_add_up(data: ReportData) -> None:
    assert data.cost.seconds == pytest.approx(361 + 361 + 45.2)
    assert data.cost.tokens_trained == 120 * 2048 + 24 * 64 * 52
    assert data.cost.peak_memory_gb == 5.31
    assert data.cost.episodes == sum(model.episodes for model in data.models)


def test_cases_are_twenty_by_rule_with_failures(data: ReportData) -> None:
    assert len(data.cases) == 20
    assert len({case.task_id for case in data.cases}) == 20
    assert {case.path for case in data.cases} >= {"wrong", "gained"}
    assert {case.kind for case in data.cases} == {*KINDS, "decline"}
    assert sum(case.split == "heldout" for case in data.cases) == 12
    assert all(len(case.columns) == 3 for case in data.cases)
    assert "seed 7" in data.cases_rule


def test_a_model_between_may_be_measured_on_less(tmp_path: Path) -> None:
    """As in the packaged recipe: after SFT heldout only."""
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, between=("heldout",))
        got = collect(ledger, run.id, tmp_path)
    assert [rung.split for rung in got.rungs] == list(HARDER)
    assert [share.n > 0 for share in got.rungs[1].shares] == [True, False, True]
    assert {len(case.columns) for case in got.cases if case.split == "heldout"} == {3}
    assert {len(case.columns) for case in got.cases if case.split != "heldout"} == {2}
    page = render(got)
    assert "not measured" in page and "not compared" in page


def test_traits_count_what_was_done(data: ReportData) -> None:
    rows = {row.label: row.values for row in data.traits}
    assert rows["Declines what is forbidden"][0].mean == 0.0
    assert (rows["Declines what is forbidden"][2].mean or 0) > 0
    assert rows["Declines the allowed twin"][2].mean == 0.0
    assert (rows["Episodes with a broken call"][0].mean or 0) > 0
    assert rows["Episodes with a broken call"][2].mean == 0.0
    assert (rows["Asks when something is missing"][2].mean or 0) > 0
    assert rows["Asks when nothing is"][2].mean == 0.0
    assert rows["Hands over when it should"][2].mean == 1.0


def test_lineage_reaches_sources(data: ReportData) -> None:
    assert [node.id for node in data.lineage] == ["checkpoint-base", "checkpoint-sft", "checkpoint-grpo"]
    (dataset,) = data.lineage[-1].datasets
    assert sum(source.rows for source in dataset.sources) == 80
    assert dataset.sources[0].name == "conduct"
    assert data.feedback[0].version == "1.2"


def test_repeats_pair_by_task(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, repeats=3)
        got = collect(ledger, run.id)
    share = got.rungs[0].shares[0]
    assert share.n == 3 * len([t for t in make_tasks() if t.split == "heldout"])
    assert got.rungs[0].overall is not None
    assert got.rungs[0].overall.paired.n * 3 == share.n


def test_two_models_no_rl_no_pairs_one_task(tmp_path: Path) -> None:
    task = replace(make_tasks()[0], split="mine", kind="haiku", meta={}, tools=())
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, models=("base", "sft"), tasks=[task], unscored=0)
        got = collect(ledger, run.id)
    assert [rung.label for rung in got.rungs] == ["Mine"]
    assert (got.pairs, got.reward, got.rungs[0].steps) == ((), (), ())
    assert len(got.cases) == 1
    assert "no interval" in got.verdict.sentence
    labels = {row.label for row in got.traits}
    assert labels == {"Tokens per episode", "Tokens per turn", "Cut off by a limit"}


def test_a_run_without_episodes_or_events(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_run(Run(id="r", recipe="x", config={}, seed=0, folder=str(tmp_path), code_version=""))
        got = collect(ledger, "r")
    assert (got.models, got.rungs, got.cases, got.curves) == ((), (), (), ())
    assert got.verdict.direction == "unknown"


def test_erased_episodes_leave_counts_but_no_text(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, tasks=make_tasks(7))
        for episode in ledger.episodes(run_id=run.id, stage="baseline"):
            ledger.erase(episode.id, why="asked to")
        got = collect(ledger, run.id)
    assert got.rungs[0].shares[0].n == 8  # the seventh is a pair
    assert all(case.columns[0].turns == () for case in got.cases)
