"""Runs side by side: what each one's last model measured, as paired differences against the first run.

A measurement is there where the first run and at least one other have it: success on each split, tokens written in
its scored episodes, the loss of held-out text. Tasks are paired by id, repeats averaged first, and tasks of one
cluster count as one piece of evidence. p values are adjusted by Holm over all runs and measurements together, and a
difference is called better or worse only where its interval leaves zero out and the adjusted p is below `ALPHA`.

Left out: runs of different ledgers, and models before the last one of a run; each run's own report has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from metier.base.errors import DataError
from metier.evaluate.profile.figures import ALPHA, Profiled, changes, comparable
from metier.records import events as event_log
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Task, to_plain
from metier.report.curves import cost_of, sampled
from metier.report.data import Cost
from metier.report.findings import profiles
from metier.report.measured import MeasuredModel, in_range, measured_models, splits_of, text_losses
from metier.report.wording import count, title_of
from metier.stats.intervals import Interval, mean_interval, share_interval
from metier.stats.paired import Paired, average, holm, paired

__all__ = ["Cell", "Comparison", "Row", "RunColumn", "compare_runs"]

Scores = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunColumn:
    """One run, with the model that it measured last."""

    run_id: str
    label: str  # short, and of no other run here
    model: str  # the stage that made it, or base
    stage: str  # that measured it
    checkpoint: str
    seed: int
    created_at: float  # UTC seconds
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run's figure, and what it is against the first run's."""

    value: Interval  # n is 0 where the run has not measured it
    paired: Paired | None = None  # the run minus the first; None for the first itself, and where one has no value
    p_holm: float | None = None
    direction: Literal["up", "down", "flat"] = "flat"  # better, worse, or neither is sure


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement of all runs."""

    name: str  # e.g. success.heldout
    label: str
    note: str
    unit: Literal["share", "tokens", "nats"]
    better: Literal["more", "less", "neither"]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that the page of several runs says."""

    runs: tuple[RunColumn, ...]
    rows: tuple[Row, ...]
    sentence: str  # what is sure, in words
    tests: int  # p values that Holm adjusted
    alone: tuple[str, ...] = ()  # measurements of one side only
    first_profile: Profiled | None = None
    profiles: tuple[Profiled, ...] = field(default=())  # of other runs' models that share a measure with the first's

    @property
    def costs_known(self) -> bool:
        """Whether any run says what it cost."""
        return any(run.cost.seconds is not None for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Plain values: runs with their costs, measurements, and what differs in behaviour."""
        first = self.first_profile
        return {
            "runs": [to_plain(run) for run in self.runs],
            "measurements": [
                {
                    **{key: getattr(row, key) for key in ("name", "label", "unit", "better")},
                    "runs": [{"run": r.run_id, **to_plain(c)} for r, c in zip(self.runs, row.cells, strict=True)],
                }
                for row in self.rows
            ],
            "only_on_one_side": list(self.alone),
            "profile": []
            if first is None
            else [
                {"model": one.model, "against": first.model, "changes": [c.to_json() for c in changes(one, first)]}
                for one in self.profiles
            ],
        }


@dataclass(frozen=True, slots=True)
class _Side:
    """One run as it was read."""

    column: RunColumn
    measured: MeasuredModel
    clusters: Mapping[str, str]
    scores: Mapping[str, Scores]  # by measurement
    profile: Profiled | None


def compare_runs(ledger: Ledger, run_ids: Sequence[str]) -> Comparison:
    """Two runs or more, against the first. Raises `DataError` where they are too few or share no measurement."""
    if len(set(run_ids)) < 2 or len(set(run_ids)) < len(run_ids):
        raise DataError(f"{', '.join(run_ids)}: name two different runs at least, each of them once")
    sides = [_side(ledger, run_id) for run_id in run_ids]
    names = _names(sides)
    sides = [replace(one, column=replace(one.column, label=name)) for one, name in zip(sides, names, strict=True)]
    first, others = sides[0], sides[1:]
    known = [name for name in first.scores if any(name in other.scores for other in others)]
    rows = _adjusted([_row(name, sides) for name in known])
    if not any(cell.paired is not None and cell.paired.n for row in rows for cell in row.cells):
        raise DataError(
            f"{', '.join(run_ids)} have no scored task in common, so there is nothing to pair; compare runs that were "
            "measured on the same tasks"
        )
    everything = dict.fromkeys(name for side in sides for name in side.scores)
    against = first.profile
    profiled = [
        other
        for other in (side.profile for side in others)
        if other is not None and against is not None and comparable(other, against)
    ]
    return Comparison(
        runs=tuple(side.column for side in sides),
        rows=tuple(rows),
        sentence=_sentence(rows),
        tests=sum(cell.p_holm is not None for row in rows for cell in row.cells),
        alone=tuple(_label(name)[0] for name in everything if name not in known),
        first_profile=against if profiled else None,
        profiles=tuple(profiled),
    )


def _side(ledger: Ledger, run_id: str) -> _Side:
    run = ledger.run(run_id)
    episodes, feedback = ledger.episodes(run_id=run_id), ledger.feedback(run_id=run_id)
    measured = measured_models(run, episodes, feedback)
    if not measured:
        raise DataError(
            f"{run_id} has measured no model yet, so it cannot be compared; metier runs show {run_id} tells how far it "
            "is"
        )
    last = measured[-1]
    tasks = ledger.tasks(sorted({one.task_id for one in last.episodes}))
    events = event_log.read(run.folder) if run.folder else []
    column = RunColumn(
        run_id=run.id,
        label=title_of(run.recipe),
        model=last.info.label,
        stage=last.info.stage,
        checkpoint=last.info.checkpoint,
        seed=run.seed,
        created_at=run.created_at,
        cost=cost_of(events, run.stages, sampled(run, episodes)),
    )
    after, *_ = profiles(ledger, [last.info])
    return _Side(column, last, _clusters(tasks), _scores(last, episodes, feedback), after)


def _clusters(tasks: Mapping[str, Task]) -> dict[str, str]:
    return {task_id: task.cluster for task_id, task in tasks.items()}


def _scores(one: MeasuredModel, episodes: Sequence[Episode], feedback: Sequence[Feedback]) -> dict[str, Scores]:
    """Every measurement of a model by task; what broke off early has no length, since it is not short."""
    out: dict[str, Scores] = {}
    for split in splits_of([one]):
        out[f"success.{split}"] = one.values[split]
    for split in splits_of([one]):
        scored = {task_id: list(values) for task_id, values in one.values[split].items()}
        lengths: dict[str, list[float | None]] = {}
        for episode in one.episodes:
            if episode.split == split:
                known = scored[episode.task_id].pop(0) is not None
                tokens = float(episode.cost.completion_tokens) if known else None
                lengths.setdefault(episode.task_id, []).append(tokens)
        out[f"tokens.{split}"] = lengths
    text = text_losses(one, episodes, feedback)
    return {**out, "text_loss": text} if text else out


def _row(name: str, sides: Sequence[_Side]) -> Row:
    label, unit, better = _label(name)
    base = sides[0]
    cells = []
    for side in sides:
        own = side.scores.get(name, {})
        flat = [(value, task) for task, values in own.items() for value in values]
        clusters = [side.clusters.get(task, task) for _, task in flat]
        interval = share_interval if unit == "share" else mean_interval
        values = [in_range(value) if unit == "share" else value for value, _ in flat]
        found = None
        if side is not base and own:
            found = paired(own, base.scores[name], clusters={**base.clusters, **side.clusters})
        cells.append(Cell(value=interval(values, clusters=clusters), paired=found))
    n = sum(average(values) is not None for values in base.scores[name].values())
    return Row(name=name, label=label, note=f"{count(n)} tasks", unit=unit, better=better, cells=tuple(cells))


def _label(name: str) -> tuple[str, Literal["share", "tokens", "nats"], Literal["more", "less", "neither"]]:
    what, _, split = name.partition(".")
    if what == "success":
        return f"{title_of(split)} success", "share", "more"
    if what == "tokens":
        return f"{title_of(split)} tokens per episode", "tokens", "neither"
    return "Loss of held-out text", "nats", "less"


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """Holm over all cells, and what is sure after it."""
    adjusted = iter(holm([None if c.paired is None else c.paired.p for row in rows for c in row.cells]))
    out = []
    for row in rows:
        cells = []
        for cell in row.cells:
            p = next(adjusted)
            direction: Literal["up", "down", "flat"] = "flat"
            found = cell.paired
            if found is not None and found.clear and p is not None and p < ALPHA and row.better != "neither":
                direction = "up" if ((found.diff or 0) > 0) == (row.better == "more") else "down"
            cells.append(replace(cell, p_holm=p, direction=direction))
        out.append(replace(row, cells=tuple(cells)))
    return out


def _sentence(rows: Sequence[Row]) -> str:
    cells = [cell for row in rows if row.better != "neither" for cell in row.cells if cell.paired is not None]
    compared = [cell for cell in cells if cell.paired is not None and cell.paired.n]
    better, worse = (sum(cell.direction == way for cell in compared) for way in ("up", "down"))
    if not better and not worse:
        return f"No sure difference from the first run in {count(len(compared))} comparisons."
    parts = [f"{word} in {count(n)}" for n, word in ((better, "better"), (worse, "worse")) if n]
    return f"Against the first run surely {' and '.join(parts)} of {count(len(compared))} comparisons."


def _names(sides: Sequence[_Side]) -> list[str]:
    """The recipes' names; where two are alike, with the seed, and where these are too, with the run's id."""
    out = [side.column.label for side in sides]
    if len(set(out)) < len(out):
        out = [f"{side.column.label}, seed {side.column.seed}" for side in sides]
    if len(set(out)) < len(out):
        out = [f"{side.column.label} {side.column.run_id.rpartition('-')[2]}" for side in sides]
    return out if len(set(out)) == len(out) else [side.column.run_id for side in sides]
