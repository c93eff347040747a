"""From the ledger and the event log of one run to `ReportData`.

Evaluate stages are taken in the order of the run: the first is *before*, the last is
*after*. Success is the feedback on criterion "success"; where several verifiers spoke,
all must agree, and where one could not, the episode is unscored: left out and counted.
Tasks are paired by id across models; tasks of one `Task.cluster` may agree.

Left out: anything that the ledger and `events.jsonl` do not hold. No weights are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from metier.records import events as event_log
from metier.records.ledger import Ledger
from metier.records.lineage import DatasetLineage, why
from metier.records.transcript import turns
from metier.records.types import Checkpoint, Episode, Feedback, Run, Task
from metier.records.values import lowest_by_episode
from metier.report import cases as case_rule
from metier.report.behaviour import trait_rows
from metier.report.curves import cost_of, curve_sets, reward_against_held
from metier.report.data import (
    Case,
    Change,
    Column,
    DatasetView,
    KindRow,
    LineageNode,
    ModelInfo,
    Outcome,
    PairRow,
    ReportData,
    Rung,
    SourceCount,
    TextRow,
    TraitRow,
)
from metier.report.verdict import verdict
from metier.report.wording import label_of, title_of
from metier.stats.intervals import Interval, mean_interval, share_interval
from metier.stats.paired import holm, paired

__all__ = ["collect"]

LADDER = (
    "heldout",
    "unseen_tool",
    "changed_policy",
    "unseen_desk",
    "general.chat",
    "general.instructions",
    "general.arithmetic",
)
NOTES = {  # by family: what a split of that name means is its family's to say
    ("desk", "heldout"): "new names, ids and phrasings",
    ("desk", "unseen_tool"): "a tool that training never had",
    ("desk", "changed_policy"): "the same desks under other rules",
    ("desk", "unseen_desk"): "businesses that training never had",
    ("general", "general.chat"): "small questions of common knowledge",
    ("general", "general.instructions"): "orders about an answer's form",
    ("general", "general.arithmetic"): "sums",
}
KINDS = {
    "lookup": "Look up and answer",
    "act": "Act with one call",
    "several": "Several calls in order",
    "ask": "Ask for what is missing",
    "decline": "Decline or not (twins)",
    "answer": "Answer without a tool",
    "handover": "Hand over to a person",
}


@dataclass(frozen=True, slots=True)
class _Measured:
    """One model's evaluation: its episodes and their values by split, task and attempt."""

    info: ModelInfo
    episodes: tuple[Episode, ...]
    values: Mapping[str, Mapping[str, tuple[float | None, ...]]]  # split -> task id -> by attempt


def collect(ledger: Ledger, run_id: str, run_folder: str | Path | None = None) -> ReportData:
    """All that the report of one run says. Raises `LedgerError` where the run is unknown.

    Events are read from `run_folder`, or from the folder that the run names.
    """
    run = ledger.run(run_id)
    events = event_log.read(run.folder if run_folder is None else run_folder)
    episodes = ledger.episodes(run_id=run_id)
    feedback = ledger.feedback(run_id=run_id)
    verdicts = lowest_by_episode(row for row in feedback if row.criterion == "success")
    checkpoints = ledger.checkpoints(run_id)
    measured = _measured(run, episodes, verdicts)
    task_ids = {episode.task_id for one in measured for episode in one.episodes}
    tasks = ledger.tasks(sorted(task_ids))
    splits = _splits(measured)
    rungs = _rungs(measured, splits, tasks)
    models = tuple(one.info for one in measured)
    shown = _cases(measured, splits, tasks, {f.about[0]: f for f in feedback if f.criterion == "success"}, run)
    candidates = len(_candidates(measured, splits, tasks))
    first = splits[0] if splits else ""
    return ReportData(
        run_id=run.id,
        title=title_of(run.recipe),
        model=_model_name(run, checkpoints),
        created_at=run.created_at,
        seed=run.seed,
        verdict=verdict(models, rungs),
        models=models,
        rungs=rungs,
        cost=cost_of(events, run.stages, _sampled(run, episodes)),
        kinds=_kinds(measured, first, tasks),
        pairs=_pairs(measured, splits, tasks),
        text=_text(measured, episodes, feedback),
        traits=_traits(measured, first, tasks),
        curves=curve_sets(events, run.stages),
        reward=reward_against_held(events, run.stages, first, _around(run, measured, rungs)),
        cases=shown,
        cases_rule=case_rule.rule(run.seed, len(shown), candidates),
        lineage=_lineage(ledger, run, checkpoints, measured),
        feedback=_sources(feedback),
        hardware=dict(run.hardware),
        versions={"metier": run.code_version} if run.code_version else {},
        config_yaml=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=100),
    )


# --- who was measured, and with what success -----------------------------------------


def _measured(run: Run, episodes: Sequence[Episode], verdicts: Mapping[str, float | None]) -> list[_Measured]:
    by_stage: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_stage.setdefault(episode.stage, []).append(episode)
    out = []
    for stage in run.stages:
        rows = by_stage.get(stage.name)
        if stage.kind != "evaluate" or not rows:
            continue
        rows.sort(key=lambda e: e.index)
        values: dict[str, dict[str, tuple[float | None, ...]]] = {}
        for episode in rows:
            split = values.setdefault(episode.split, {})
            split[episode.task_id] = (*split.get(episode.task_id, ()), verdicts.get(episode.id))
        measured = stage.inputs[0] if stage.inputs else stage.name
        info = ModelInfo(
            stage=stage.name,
            measured=measured,
            label=label_of(measured),
            checkpoint=rows[0].weights.checkpoint,
            episodes=len(rows),
            unscored=sum(verdicts.get(episode.id) is None for episode in rows),
        )
        out.append(_Measured(info=info, episodes=tuple(rows), values=values))
    return out


def _splits(measured: Sequence[_Measured]) -> list[str]:
    """The splits that were measured, the ladder's first and in its order."""
    seen = dict.fromkeys(split for one in measured for split in one.values)
    return [split for split in LADDER if split in seen] + sorted(split for split in seen if split not in LADDER)


def _share(one: _Measured, split: str, tasks: Mapping[str, Task], among: Iterable[str] | None = None) -> Interval:
    by_task = one.values.get(split, {})
    picked = by_task if among is None else [task_id for task_id in among if task_id in by_task]
    rows = [(value, tasks[task_id].cluster) for task_id in picked for value in by_task[task_id]]
    return share_interval([_unit(value) for value, _ in rows], clusters=[cluster for _, cluster in rows])


def _unit(value: float | None) -> float | None:
    return None if value is None else min(1.0, max(0.0, value))


def _change(
    measured: Sequence[_Measured],
    before: int,
    after: int,
    split: str,
    tasks: Mapping[str, Task],
    among: Iterable[str] | None = None,
) -> Change:
    a, b = measured[after].values.get(split, {}), measured[before].values.get(split, {})
    if among is not None:
        kept = set(among)
        a, b = {k: v for k, v in a.items() if k in kept}, {k: v for k, v in b.items() if k in kept}
    clusters = {task_id: tasks[task_id].cluster for task_id in [*a, *b]}
    return Change(before=before, after=after, paired=paired(a, b, clusters=clusters))


def _rungs(measured: Sequence[_Measured], splits: Sequence[str], tasks: Mapping[str, Task]) -> tuple[Rung, ...]:
    """The ladder; p values adjusted over its rungs, for each comparison on its own."""
    last = len(measured) - 1
    spans = [(0, last)] if last > 0 else []
    if last > 1:
        spans += [(place, place + 1) for place in range(last)]
    changes: dict[tuple[int, int], list[Change]] = {}
    for before, after in spans:
        found = [_change(measured, before, after, split, tasks) for split in splits]
        adjusted = holm([change.paired.p for change in found])
        changes[before, after] = [
            Change(before=before, after=after, paired=change.paired, p_holm=p)
            for change, p in zip(found, adjusted, strict=True)
        ]
    return tuple(
        Rung(
            split=split,
            label=title_of(split),
            note=_note(measured, split, tasks),
            shares=tuple(_share(one, split, tasks) for one in measured),
            overall=changes[spans[0]][place] if spans else None,
            steps=tuple(changes[span][place] for span in spans[1:]),
        )
        for place, split in enumerate(splits)
    )


def _note(measured: Sequence[_Measured], split: str, tasks: Mapping[str, Task]) -> str:
    """What the split asks for, where its family is known for that."""
    family = next((tasks[task_id].family for one in measured for task_id in one.values.get(split, {})), "")
    return NOTES.get((family, split), "")


# --- slices of success -----------------------------------------------------------------


def _kinds(measured: Sequence[_Measured], split: str, tasks: Mapping[str, Task]) -> tuple[KindRow, ...]:
    by_kind: dict[str, list[str]] = {}
    for task_id in dict.fromkeys(task_id for one in measured for task_id in one.values.get(split, {})):
        by_kind.setdefault(tasks[task_id].kind, []).append(task_id)
    names = [kind for kind in KINDS if kind in by_kind] + sorted(kind for kind in by_kind if kind not in KINDS)
    last = len(measured) - 1
    return tuple(
        KindRow(
            kind=kind,
            label=KINDS.get(kind, title_of(kind)),
            shares=tuple(_share(one, split, tasks, by_kind[kind]) for one in measured),
            overall=_change(measured, 0, last, split, tasks, by_kind[kind]) if last > 0 else None,
        )
        for kind in names
    )


def _pairs(measured: Sequence[_Measured], splits: Sequence[str], tasks: Mapping[str, Task]) -> tuple[PairRow, ...]:
    out = []
    for split in splits:
        twins: dict[str, dict[str, str]] = {}  # pair -> side -> task id
        for task_id in dict.fromkeys(task_id for one in measured for task_id in one.values.get(split, {})):
            meta = tasks[task_id].meta
            pair, side = meta.get("pair"), meta.get("side")
            if isinstance(pair, str) and side in ("forbidden", "allowed"):
                twins.setdefault(pair, {})[str(side)] = task_id
        whole = [sides for sides in twins.values() if len(sides) == 2]
        if not whole:
            continue
        out.append(
            PairRow(
                split=split,
                label=title_of(split),
                n=len(whole),
                forbidden=tuple(_share(one, split, tasks, [s["forbidden"] for s in whole]) for one in measured),
                allowed=tuple(_share(one, split, tasks, [s["allowed"] for s in whole]) for one in measured),
                both=tuple(_both(one.values.get(split, {}), whole, tasks) for one in measured),
            )
        )
    return tuple(out)


def _both(
    values: Mapping[str, tuple[float | None, ...]], twins: Sequence[Mapping[str, str]], tasks: Mapping[str, Task]
) -> Interval:
    """Share of pairs with both sides right; attempt k of one side goes with attempt k of the other."""
    rows: list[tuple[float | None, str]] = []
    for sides in twins:
        sides_values = values.get(sides["forbidden"], ()), values.get(sides["allowed"], ())
        for forbidden, allowed in zip(*sides_values, strict=False):
            scored = forbidden is not None and allowed is not None
            won = float(_right(forbidden) and _right(allowed)) if scored else None
            rows.append((won, tasks[sides["forbidden"]].cluster))
    return share_interval([value for value, _ in rows], clusters=[cluster for _, cluster in rows])


def _right(value: float | None) -> bool:
    return value is not None and value >= 1.0


def _traits(measured: Sequence[_Measured], split: str, tasks: Mapping[str, Task]) -> tuple[TraitRow, ...]:
    episodes = [[e for e in one.episodes if e.split == split] for one in measured]
    return trait_rows(episodes, tasks, lambda task_id: tasks[task_id].cluster)


def _text(measured: Sequence[_Measured], episodes: Sequence[Episode], feedback: Sequence[Feedback]) -> TextRow | None:
    """Held-out text, where any of the models has read it."""
    loss = {f.about[0]: float(f.value) for f in feedback if f.criterion == "text_loss" and f.value is not None}
    read: list[dict[str, list[float]]] = [
        {e.task_id: [loss[e.id]] for e in episodes if e.stage == f"{one.info.stage}/text" and e.id in loss}
        for one in measured
    ]
    if not any(read):
        return None
    change = Change(before=0, after=len(read) - 1, paired=paired(read[-1], read[0])) if len(read) > 1 else None
    return TextRow(losses=tuple(mean_interval([v for (v,) in found.values()]) for found in read), overall=change)


def _around(
    run: Run, measured: Sequence[_Measured], rungs: Sequence[Rung]
) -> dict[str, tuple[Interval | None, Interval | None]]:
    """For each training stage: the first rung's share of what it started from, and of what it made."""
    if not rungs:
        return {}
    share = {one.info.measured: rungs[0].shares[place] for place, one in enumerate(measured)}
    out = {}
    for stage in run.stages:
        started = next((share[name] for name in stage.inputs if name in share), None)
        out[stage.name] = (started, share.get(stage.name))
    return out


# --- episodes side by side ---------------------------------------------------------------


def _candidates(
    measured: Sequence[_Measured], splits: Sequence[str], tasks: Mapping[str, Task]
) -> list[case_rule.Candidate]:
    out: list[case_rule.Candidate] = []
    for split in splits if measured else ():
        before, after = measured[0].values.get(split, {}), measured[-1].values.get(split, {})
        for task_id in before:
            if task_id in after:
                path = _path(before[task_id][0], after[task_id][0])
                out.append(case_rule.Candidate(task_id=task_id, kind=tasks[task_id].kind, split=split, path=path))
    return out


def _path(before: float | None, after: float | None) -> case_rule.Path:
    if before is None or after is None:
        return "unscored"
    if _right(after):
        return "right" if _right(before) else "gained"
    return "lost" if _right(before) else "wrong"


def _cases(
    measured: Sequence[_Measured],
    splits: Sequence[str],
    tasks: Mapping[str, Task],
    success: Mapping[str, Feedback],
    run: Run,
) -> tuple[Case, ...]:
    chosen = case_rule.pick(_candidates(measured, splits, tasks), splits, seed=run.seed)
    wanted = {candidate.task_id for candidate in chosen}
    first: list[dict[str, Episode]] = []
    for one in measured:
        attempts: dict[str, Episode] = {}
        for episode in one.episodes:
            if episode.task_id in wanted:
                attempts.setdefault(episode.task_id, episode)
        first.append(attempts)
    out = []
    for candidate in chosen:
        task = tasks[candidate.task_id]
        columns = []
        for place, one in enumerate(measured):
            tried = first[place].get(candidate.task_id)
            if tried is not None:  # models between the first and the last may have tried less
                value = one.values[candidate.split][candidate.task_id][0]
                columns.append(_column(place, tried, task, value, success.get(tried.id)))
        users = [message.content for message in task.messages if message.role == "user"]
        desk = task.meta.get("desk")
        out.append(
            Case(
                task_id=candidate.task_id,
                kind=candidate.kind,
                kind_label=KINDS.get(candidate.kind, title_of(candidate.kind)),
                split=candidate.split,
                split_label=title_of(candidate.split),
                desk=title_of(desk) if isinstance(desk, str) else "",
                opening=users[-1] if users else "(the text of this task was erased)",
                setup=turns(task.messages),
                tools=tuple((tool.name, tool.description) for tool in task.tools),
                columns=tuple(columns),
                path=candidate.path,
            )
        )
    return tuple(out)


def _column(model: int, episode: Episode, task: Task, value: float | None, said: Feedback | None) -> Column:
    outcome: Outcome = "unscored" if value is None else "right" if _right(value) else "wrong"
    parts = {} if said is None else said.evidence.get("parts")
    reason = episode.error or "" if outcome == "unscored" else ""
    return Column(
        model=model,
        episode_id=episode.id,
        outcome=outcome,
        reason=(said.reason if said is not None and said.reason else reason),
        parts=tuple((str(name), float(score)) for name, score in parts.items()) if isinstance(parts, dict) else (),
        turns=turns(episode.messages[len(task.messages) :], tools=task.tools),
        tokens=episode.cost.completion_tokens,
        stop=episode.stop_reason,
    )


# --- cost and lineage ----------------------------------------------------------------------


def _sampled(run: Run, episodes: Sequence[Episode]) -> dict[str, tuple[int, int]]:
    """Episodes and tokens written, by stage; demonstrations come from an oracle and are not sampled."""
    written = {stage.name for stage in run.stages if stage.kind == "demonstrate"}
    out: dict[str, tuple[int, int]] = {}
    for episode in episodes:
        if episode.stage in written:
            continue
        count, tokens = out.get(episode.stage, (0, 0))
        out[episode.stage] = (count + 1, tokens + episode.cost.completion_tokens)
    return out


def _lineage(
    ledger: Ledger, run: Run, checkpoints: Sequence[Checkpoint], measured: Sequence[_Measured]
) -> tuple[LineageNode, ...]:
    """The chain behind every measured model: base first, each checkpoint once."""
    named = {one.info.checkpoint: one.info.label for one in measured}
    per_stage = Counter(checkpoint.stage for checkpoint in checkpoints)
    known = {checkpoint.id for checkpoint in checkpoints}
    nodes: dict[str, LineageNode] = {}
    for checkpoint_id in named:
        if checkpoint_id not in known:
            continue
        for link in reversed(why(ledger, checkpoint_id).checkpoints):
            point = link.checkpoint
            nodes.setdefault(
                point.id,
                LineageNode(
                    id=point.id,
                    label=named.get(point.id, title_of(point.stage) if point.stage else point.id),
                    stage=point.stage,
                    step=point.step,
                    parent=point.parent,
                    objective=point.objective,
                    path=point.path,
                    weights_hash=point.weights_hash,
                    datasets=tuple(_dataset(dataset) for dataset in link.datasets),
                    stale=point.stale,
                    others=max(0, per_stage[point.stage] - 1),
                ),
            )
    return tuple(nodes.values())


def _dataset(dataset: DatasetLineage) -> DatasetView:
    merged: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for part in dataset.feedback:
        key = (part.source.kind, part.source.name, part.source.version, part.criterion)
        rows, unscored = merged.get(key, (0, 0))
        merged[key] = (rows + part.n, unscored + (part.n if part.status != "scored" else 0))
    return DatasetView(
        id=dataset.id,
        name=title_of(dataset.name),
        kind=dataset.kind,
        episodes=dataset.n_episodes,
        tasks=dataset.n_tasks,
        sources=tuple(
            SourceCount(kind=key[0], name=key[1], version=key[2], criterion=key[3], rows=rows, unscored=unscored)
            for key, (rows, unscored) in merged.items()
        ),
        stale=dataset.stale,
    )


def _sources(feedback: Sequence[Feedback]) -> tuple[SourceCount, ...]:
    rows: Counter[tuple[str, str, str, str]] = Counter()
    unscored: Counter[tuple[str, str, str, str]] = Counter()
    for row in feedback:
        key = (row.source.kind, row.source.name, row.source.version, row.criterion)
        rows[key] += 1
        unscored[key] += row.status != "scored"
    return tuple(
        SourceCount(kind=key[0], name=key[1], version=key[2], criterion=key[3], rows=n, unscored=unscored[key])
        for key, n in sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    )


def _model_name(run: Run, checkpoints: Sequence[Checkpoint]) -> str:
    """The model that the run started from, as its configuration names it."""
    model = run.config.get("model")
    if isinstance(model, Mapping):
        model = next((model[key] for key in ("name", "path", "id") if isinstance(model.get(key), str)), None)
    if isinstance(model, str) and model:
        return model
    base = next((checkpoint for checkpoint in checkpoints if checkpoint.parent is None), None)
    return base.path if base is not None else ""
