"""The stages that go from episodes to comparisons, and from comparisons to models.

    draw      groups of episodes, verified
    crowd     simulated people compare pairs of them
    judge     a reward model learns the verifiers' truth of other pairs, is audited, and compares too
    dataset   a declared view of the ledger becomes rows
    fit       an objective learns from them, by the code behind `metier train`
    measure   a reward model against the verifiers' truth, on tasks that nothing learned from

The truth of a pair is which of its episodes the verifiers give the higher reward; pairs that they call equal are
left out. The crowd and the judge never see it but where a stage says so, and what people say is pooled without it.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from metier.base.clock import now
from metier.base.errors import DataError
from metier.base.ids import derive_id
from metier.base.seeds import rng_for
from metier.feedback.data.build import build, write_rows
from metier.feedback.data.rows import answered, passages, plain, tools_of
from metier.feedback.judges.audit import audit, spelled
from metier.feedback.judges.gold import Gold
from metier.feedback.judges.judge import Item, feedback_of
from metier.feedback.judges.scorer import RewardJudge
from metier.feedback.judges.training import learned_by, training_rows
from metier.feedback.judges.training import write_rows as write_gold
from metier.feedback.people.simulated import Pair, asked
from metier.feedback.rewards import RewardPolicy
from metier.feedback.verify import verify_episodes
from metier.models.hub import device_of, load_scorer
from metier.recipes.context import Context
from metier.recipes.learning import group_of, manifest_of, record
from metier.recipes.settings import Crowd, Dataset, Draw, Fit, Judge, Measure
from metier.records.ledger import Ledger
from metier.records.types import DatasetManifest, Episode, Group, Task
from metier.records.values import by_episode, lowest_by_episode
from metier.rollout.episodes import kept_episodes, run_episodes
from metier.stats.calibration import calibration
from metier.stats.intervals import share_interval
from metier.train.data import Encoder, scored_at_end
from metier.train.fit import FitSettings, fit

__all__ = ["build_dataset", "crowd", "draw", "fit_stage", "judge", "measure", "pairs_of_truth"]

TRUTH = RewardPolicy(success=1.0, partial=0.3)
_CHUNK = 32  # tasks between two savings


@dataclass(frozen=True, slots=True)
class Compared:
    """Two episodes of a task, of which the verifiers say that one is better."""

    task: Task
    episodes: tuple[Episode, Episode]
    better: Literal[0, 1]


# --- draw --------------------------------------------------------------------------------


def draw(context: Context, settings: Draw) -> Mapping[str, Any]:
    """Carry out a `draw` stage."""
    tasks = context.tasks(settings.split, settings.skip + settings.tasks)[settings.skip :]
    if not tasks:
        raise DataError(f"stage {settings.name!r}: split {settings.split!r} has no more than {settings.skip} tasks")
    context.refuse_trained(settings.of, tasks, f"stage {settings.name!r}")
    context.ledger.add_tasks(tasks)
    values: list[float] = []
    with context.policy(context.load(settings.of)) as policy:
        for start in range(0, len(tasks), _CHUNK):
            part = tasks[start : start + _CHUNK]
            plans = [
                plan
                for n, task in enumerate(part, start)
                for plan in group_of(context, settings.name, task, settings.group, n)
            ]
            run_these = functools.partial(
                run_episodes,
                policy,
                plans,
                sampling=settings.sampling.record(),
                weights=context.weights(settings.of),
                run_id=context.run_id,
                stage=settings.name,
                tools=context.recipe.tools.limits(),
            )
            episodes = kept_episodes(context.ledger, plans, run_these)
            verdicts = verify_episodes({t.id: t for t in part}, episodes, context.executor, run_id=context.run_id)
            context.ledger.add_feedback(verdicts)
            context.ledger.add_groups(
                [
                    Group(id=group, task_id=task_id, episode_ids=tuple(plan.id for plan in of_group))
                    for (group, task_id), of_group in itertools.groupby(plans, lambda p: (str(p.group_id), p.task.id))
                ]
            )
            values += [value for value in lowest_by_episode(verdicts).values() if value is not None]
            done = min(start + _CHUNK, len(tasks)) * settings.group
            success = sum(v == 1.0 for v in values) / len(values) if values else None
            context.emit(
                settings.name,
                "progress",
                done=done,
                total=len(tasks) * settings.group,
                unit="episodes",
                success=success,
            )
    return {"episodes": len(tasks) * settings.group}


def _pairs(context: Context, stage: str, most: int) -> list[Compared]:
    return _true_pairs(context.ledger, context.run_id, stage, most, context.recipe.seed)


def _true_pairs(ledger: Ledger, run_id: str, stage: str, most: int, seed: int) -> list[Compared]:
    """At most `most` pairs of each task of a `draw` stage, drawn among those of different reward."""
    episodes = ledger.episodes(run_id=run_id, stage=stage)
    tasks = ledger.tasks({e.task_id for e in episodes})
    about = ledger.feedback(run_id=run_id, about=[e.id for e in episodes], kind="score")
    said = by_episode(one for one in about if one.source.kind == "verifier")
    by_task: dict[str, list[tuple[Episode, float]]] = {}
    for episode in episodes:
        reward = TRUTH.reward(said.get(episode.id, []))
        if reward is not None and any(m.role == "assistant" for m in episode.messages):
            by_task.setdefault(episode.task_id, []).append((episode, reward))
    found = []
    for task_id, rewarded in by_task.items():
        rng = rng_for(seed, stage, "pairs", task_id)
        both = itertools.combinations(rewarded, 2)
        unequal = [(a, b) for a, b in both if a[1] != b[1] and a[0].messages != b[0].messages]
        for a, b in rng.sample(unequal, min(most, len(unequal))):
            first, second = (a, b) if rng.random() < 0.5 else (b, a)
            found.append(Compared(tasks[task_id], (first[0], second[0]), 1 if second[1] > first[1] else 0))
    return found


def pairs_of_truth(ledger: Ledger, run_id: str, stage: str, most: int, seed: int) -> list[Pair]:
    """At most `most` pairs of each task of a `draw` stage of a run with this seed, as simulated people are asked."""
    return [
        Pair(
            episodes=(one.episodes[0].id, one.episodes[1].id),
            better=one.better,
            lengths=(_length(one.task, one.episodes[0]), _length(one.task, one.episodes[1])),
        )
        for one in _true_pairs(ledger, run_id, stage, most, seed)
    ]


# --- who compares ------------------------------------------------------------------------


def crowd(context: Context, settings: Crowd) -> Mapping[str, Any]:
    """Carry out a `crowd` stage."""
    pairs = pairs_of_truth(context.ledger, context.run_id, settings.data, settings.pairs, context.recipe.seed)
    said = asked(
        pairs,
        settings.people,
        votes=settings.votes,
        criterion=settings.criterion,
        seed=context.seed(settings.name),
        run_id=context.run_id,
    )
    context.ledger.add_feedback(said)
    context.emit(settings.name, "note", text=f"{len(said)} comparisons of {len(pairs)} pairs by simulated people")
    return {"pairs": len(pairs), "statements": len(said)}


def judge(context: Context, settings: Judge) -> Mapping[str, Any]:
    """Carry out a `judge` stage."""
    gold = _pairs(context, settings.gold, settings.pairs)
    names = sorted({one.task.id for one in gold})
    rng_for(context.recipe.seed, settings.name, "halves").shuffle(names)
    teaching = set(names[: (len(names) + 1) // 2])
    learned = [_gold(one) for one in gold if one.task.id in teaching]
    apart = [_gold(one) for one in gold if one.task.id not in teaching]
    context.refuse_overlap([one.task for one in gold if one.task.id in teaching], f"stage {settings.name!r}")
    rows_file = _rows_of(context, settings.name)
    write_gold(rows_file, training_rows("reward", "compare", learned), learned)
    episodes = list(dict.fromkeys(e.id for one in gold if one.task.id in teaching for e in one.episodes))
    manifest = DatasetManifest(
        id=derive_id("data", context.run_id, settings.name),
        kind="pairs",
        name=settings.name,
        run_id=context.run_id,
        stage=settings.name,
        query={"gold": settings.gold, "pairs": settings.pairs},
        feedback_ids=tuple(f.id for f in context.ledger.feedback(run_id=context.run_id, about=episodes)),
        episode_ids=tuple(episodes),
        task_ids=tuple(sorted(teaching)),
        created_at=now(),
    )
    context.ledger.add_dataset(manifest)
    _fitted(context, settings, manifest.id, rows_file, "reward")
    place = context.place(settings.name)
    judge = RewardJudge(place, dtype=context.recipe.model.dtype, device=context.recipe.model.device)
    try:
        found = audit(judge, "compare", apart, learned=learned_by(place) or frozenset())
        context.emit(settings.name, "note", text=f"audit: {spelled(found)}")
        told = {"checkpoint": context.checkpoint_id(settings.name), "fit": found.fit, "audit": found.to_json()}
        if found.fit != "fit":
            context.emit(settings.name, "note", text=f"the audit says {found.fit}, so the judge says nothing")
            return {**told, "statements": 0}
        asked_of = _of(context.recipe.stages, settings.judges)
        said = []
        for one in _pairs(context, asked_of.data, asked_of.pairs):
            judgement = judge.compare(_gold(one).item)
            about = [e.id for e in one.episodes]
            said.append(feedback_of(judge, judgement, about, criterion=asked_of.criterion, run_id=context.run_id))
        context.ledger.add_feedback(said)
        return {**told, "statements": len(said)}
    finally:
        judge.close()


def _of(stages: Sequence[Any], name: str) -> Crowd:
    (found,) = [stage for stage in stages if stage.name == name]
    assert isinstance(found, Crowd)
    return found


def _gold(one: Compared) -> Gold:
    asked_of, _ = answered(one.task, one.episodes[0])
    responses = tuple(answered(one.task, episode)[1] for episode in one.episodes)
    return Gold(item=Item(prompt=asked_of, responses=responses), truth=float(one.better == 0), cluster=one.task.cluster)


def _length(task: Task, episode: Episode) -> int:
    return sum(map(len, passages({"completion": plain(answered(task, episode)[1])})))


# --- rows, and what learns from them ------------------------------------------------------


def build_dataset(context: Context, settings: Dataset) -> Mapping[str, Any]:
    """Carry out a `dataset` stage."""
    declared = settings.declared(context.run_id, context.seed(settings.name))
    built = build(
        context.ledger,
        declared,
        run_id=context.run_id,
        stage=settings.name,
        on_step=lambda text: context.emit(settings.name, "note", text=text),
    )
    write_rows(_rows_of(context, settings.name), built.rows)
    return {"dataset": built.manifest.id, "rows": len(built.rows)}


def fit_stage(context: Context, settings: Fit) -> Mapping[str, Any]:
    """Carry out a `fit` stage."""
    done = context.finished(settings.data)
    assert done is not None
    return _fitted(context, settings, str(done["dataset"]), _rows_of(context, settings.data), settings.objective)


def _rows_of(context: Context, stage: str) -> Path:
    """Where a stage's rows lie, in a folder that is there."""
    folder = context.folder / "data"
    folder.mkdir(exist_ok=True)
    return folder / f"{stage}.jsonl"


def _fitted(context: Context, stage: Fit | Judge, dataset: str, rows: Path, objective: str) -> Mapping[str, Any]:
    """Train on a file of rows, and make what comes of it this stage's checkpoint."""
    context.release()
    shared = type(stage).model_fields.keys() & FitSettings.model_fields.keys() - {"data", "objective"}
    recipe, place = context.recipe, Path(context.place(stage.name))
    settings = FitSettings(
        objective=objective,
        model=context.place(stage.of),
        data=str(rows),
        out=str(context.folder / "state" / stage.name),
        renderer=recipe.model.renderer,
        dtype=recipe.model.dtype,
        device=recipe.model.device,
        adapter=None if isinstance(stage, Judge) or stage.scores else recipe.model.adapter,
        seed=context.seed(stage.name),
        save_seconds=recipe.save_seconds,
        keep_states=recipe.keep_states,
        **{name: getattr(stage, name) for name in shared},
    )

    def heard(event: dict[str, Any]) -> None:
        if event["event"] in ("step", "measure", "note"):
            told = {key: value for key, value in event.items() if key not in ("at", "stage", "event")}
            context.emit(stage.name, event["event"], **told)

    if not (place / "metier.json").is_file():
        done = fit(settings, on_event=heard, manifest=manifest_of(context, stage, dataset))
        place.parent.mkdir(exist_ok=True)
        Path(done["out"]).rename(place)
    noted = json.loads((place / "metier.json").read_text())
    record(context, stage, dataset, objective, noted["steps"], noted["weights_hash"], noted["metrics"])
    return {
        "checkpoint": context.checkpoint_id(stage.name),
        "weights_hash": noted["weights_hash"],
        "steps": noted["steps"],
        "rows": noted["rows"],
    }


def measure(context: Context, settings: Measure) -> Mapping[str, Any]:
    """Carry out a `measure` stage."""
    pairs = _pairs(context, settings.data, settings.pairs)
    context.refuse_trained(settings.of, [one.task for one in pairs], f"stage {settings.name!r}")
    context.release()
    dtype, device = getattr(torch, context.recipe.model.dtype), device_of(context.recipe.model.device)
    model = load_scorer(context.place(settings.of), dtype=dtype, device=device)
    encoder = Encoder(context.tokenizer, context.renderer)
    rewards: dict[str, float] = {}
    for one in pairs:
        item = _gold(one).item
        first, second = (plain(response) for response in item.responses)  # a score does not depend on the side's name
        row = {"prompt": plain(item.prompt), "chosen": first, "rejected": second, **tools_of(one.task)}
        for episode, example in zip(one.episodes, encoder.unit(row, "pair", 1), strict=True):
            if episode.id not in rewards:
                ids = torch.tensor([scored_at_end(example).token_ids[:-1]], device=model.device)
                with torch.inference_mode():
                    rewards[episode.id] = float(model(input_ids=ids).logits[0].mean())
    leads = [rewards[one.episodes[0].id] - rewards[one.episodes[1].id] for one in pairs]
    p = torch.tensor(leads, dtype=torch.float64).sigmoid().tolist()
    truth = [float(one.better == 0) for one in pairs]
    right = [0.5 if lead == 0 else float((lead > 0) == (t == 1.0)) for lead, t in zip(leads, truth, strict=True)]
    accuracy = share_interval(right, clusters=[one.task.cluster for one in pairs])
    found = calibration(p, truth)
    text = f"{settings.of} is right about {accuracy.mean:.1%} of {accuracy.n} pairs, calibration error {found.ece:.3f}"
    context.emit(settings.name, "note", text=text)
    told = {"accuracy": accuracy.mean, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n}
    each = [
        {"id": "/".join(e.id for e in one.episodes), "cluster": one.task.cluster, "score": score, "p": chance, "y": y}
        for one, score, chance, y in zip(pairs, right, p, truth, strict=True)
    ]
    return {**told, "calibration": asdict(found), "pairs": each}
