"""From the ledger and the event log of one run to `ReportData`.

The model that was measured first is *before*, the last is *after*; `measured.py` says what success is, `cases.py`
which tasks are shown side by side, `findings.py` what other commands left in the ledger about the run's models.

Left out: anything that the ledger and the run's folder do not hold. No weights are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from metier.records import events as event_log
from metier.records.ledger import Ledger
from metier.records.lineage import DatasetLineage, why
from metier.records.types import Checkpoint, Episode, Feedback, Run, Task
from metier.report import cases, findings
from metier.report.behaviour import trait_rows
from metier.report.curves import cost_of, curve_sets, reward_against_held, sampled
from metier.report.data import (
    Change,
    DatasetView,
    KindRow,
    LineageNode,
    PairRow,
    ReportData,
    Rung,
    SourceCount,
    TextRow,
    TraitRow,
)
from metier.report.measured import MeasuredModel, change_of, is_right, measured_models, share_of, splits_of, text_losses
from metier.report.verdict import verdict
from metier.report.wording import title_of
from metier.stats.intervals import Interval, mean_interval, share_interval
from metier.stats.paired import holm, paired

__all__ = ["collect"]

NOTES = {  # by family: what a split of that name means is its family's to say
    ("desk", "heldout"): "new names, ids and phrasings",
    ("desk", "unseen_tool"): "a tool that training never had",
    ("desk", "changed_policy"): "the same desks under other rules",
    ("desk", "unseen_desk"): "businesses that training never had",
    ("general", "general.chat"): "small questions of common knowledge",
    ("general", "general.instructions"): "orders about an answer's form",
    ("general", "general.arithmetic"): "sums",
}


def collect(ledger: Ledger, run_id: str, run_folder: str | Path | None = None) -> ReportData:
    """All that the report of one run says. Raises `LedgerError` where the run is unknown.

    Events are read from `run_folder`, or from the folder that the run names; one of neither has none.
    """
    run = ledger.run(run_id)
    folder = run.folder if run_folder is None else run_folder
    events = event_log.read(folder) if folder else []
    episodes = ledger.episodes(run_id=run_id)
    feedback = ledger.feedback(run_id=run_id)
    checkpoints = ledger.checkpoints(run_id)
    measured = measured_models(run, episodes, feedback)
    task_ids = {episode.task_id for one in measured for episode in one.episodes}
    tasks = ledger.tasks(sorted(task_ids))
    splits = splits_of(measured)
    rungs = _rungs(measured, splits, tasks)
    models = tuple(one.info for one in measured)
    found = cases.candidates(measured, splits, tasks)
    shown = cases.side_by_side(found, measured, splits, tasks, feedback, seed=run.seed)
    labels = {model.checkpoint: model.label for model in models}
    after, before, forecasts = findings.profiles(ledger, models)
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
        cost=cost_of(events, run.stages, sampled(run, episodes)),
        kinds=_kinds(measured, first, tasks),
        pairs=_pairs(measured, splits, tasks),
        text=_text(measured, episodes, feedback),
        traits=_traits(measured, first, tasks),
        curves=curve_sets(events, run.stages),
        reward=reward_against_held(events, run.stages, first, _around(run, measured, rungs)),
        transfers=findings.transfers(ledger, run),
        reward_models=findings.reward_models(run, Path(folder)) if folder else (),
        judges=findings.judges(run, Path(folder)) if folder else (),
        forecasts=forecasts,
        profile=after,
        profile_before=before,
        gates=findings.gates(ledger, run, labels),
        flips=cases.flips(found, splits),
        cases=shown,
        cases_rule=cases.rule(run.seed, len(shown), len(found)),
        lineage=_lineage(ledger, run, checkpoints, measured),
        feedback=_sources(feedback),
        hardware=dict(run.hardware),
        versions={"metier": run.code_version} if run.code_version else {},
        config_yaml=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=100),
    )


def _rungs(measured: Sequence[MeasuredModel], splits: Sequence[str], tasks: Mapping[str, Task]) -> tuple[Rung, ...]:
    """The ladder; p values adjusted over its rungs, for each comparison on its own."""
    last = len(measured) - 1
    spans = [(0, last)] if last > 0 else []
    if last > 1:
        spans += [(place, place + 1) for place in range(last)]
    changes: dict[tuple[int, int], list[Change]] = {}
    for before, after in spans:
        found = [change_of(measured, before, after, split, tasks) for split in splits]
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
            shares=tuple(share_of(one, split, tasks) for one in measured),
            overall=changes[spans[0]][place] if spans else None,
            steps=tuple(changes[span][place] for span in spans[1:]),
        )
        for place, split in enumerate(splits)
    )


def _note(measured: Sequence[MeasuredModel], split: str, tasks: Mapping[str, Task]) -> str:
    """What the split asks for, where its family is known for that."""
    family = next((tasks[task_id].family for one in measured for task_id in one.values.get(split, {})), "")
    return NOTES.get((family, split), "")


# --- slices of success -----------------------------------------------------------------


def _kinds(measured: Sequence[MeasuredModel], split: str, tasks: Mapping[str, Task]) -> tuple[KindRow, ...]:
    by_kind: dict[str, list[str]] = {}
    for task_id in dict.fromkeys(task_id for one in measured for task_id in one.values.get(split, {})):
        by_kind.setdefault(tasks[task_id].kind, []).append(task_id)
    names = [kind for kind in cases.KINDS if kind in by_kind] + sorted(
        kind for kind in by_kind if kind not in cases.KINDS
    )
    last = len(measured) - 1
    return tuple(
        KindRow(
            kind=kind,
            label=cases.KINDS.get(kind, title_of(kind)),
            shares=tuple(share_of(one, split, tasks, by_kind[kind]) for one in measured),
            overall=change_of(measured, 0, last, split, tasks, by_kind[kind]) if last > 0 else None,
        )
        for kind in names
    )


def _pairs(measured: Sequence[MeasuredModel], splits: Sequence[str], tasks: Mapping[str, Task]) -> tuple[PairRow, ...]:
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
                forbidden=tuple(share_of(one, split, tasks, [s["forbidden"] for s in whole]) for one in measured),
                allowed=tuple(share_of(one, split, tasks, [s["allowed"] for s in whole]) for one in measured),
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
            won = float(is_right(forbidden) and is_right(allowed)) if scored else None
            rows.append((won, tasks[sides["forbidden"]].cluster))
    return share_interval([value for value, _ in rows], clusters=[cluster for _, cluster in rows])


def _traits(measured: Sequence[MeasuredModel], split: str, tasks: Mapping[str, Task]) -> tuple[TraitRow, ...]:
    episodes = [[e for e in one.episodes if e.split == split] for one in measured]
    return trait_rows(episodes, tasks, lambda task_id: tasks[task_id].cluster)


def _text(
    measured: Sequence[MeasuredModel], episodes: Sequence[Episode], feedback: Sequence[Feedback]
) -> TextRow | None:
    """Held-out text, where any of the models has read it."""
    read = [text_losses(one, episodes, feedback) for one in measured]
    if not any(read):
        return None
    change = Change(before=0, after=len(read) - 1, paired=paired(read[-1], read[0])) if len(read) > 1 else None
    return TextRow(losses=tuple(mean_interval([v for (v,) in found.values()]) for found in read), overall=change)


def _around(
    run: Run, measured: Sequence[MeasuredModel], rungs: Sequence[Rung]
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


# --- lineage ----------------------------------------------------------------------


def _lineage(
    ledger: Ledger, run: Run, checkpoints: Sequence[Checkpoint], measured: Sequence[MeasuredModel]
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
