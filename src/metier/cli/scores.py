"""Scores of one evaluation, by item, out of whatever holds them.

A file is told by its content: JSON lines or CSV with id and score, the sample log of lm-eval
(rows with doc_id), or an Inspect log (.eval, a zip, or .json). Any other name is a Metier run
of the ledger. The same id again is a repeat of the item. A score that cannot be read is left
out and named; one that is null is unscored, which is not zero. Of a sample of Metier's that is unscored no other
figure counts either, such as its tokens: what broke off early is not short.

Inspect logs are read as `records/layouts/inspect_ai.py` reads them, from their summaries where these hold all that
is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.records.layouts.inspect_ai import grade, is_packed, read_head, read_samples, read_summaries
from metier.records.layouts.lm_eval import metrics_of
from metier.records.traces import calls
from metier.stats.tables import Row, Skipped, Table, number, stream_rows

__all__ = ["NoClusterError", "Scores", "read_scores"]

SCORE = "score"


class NoClusterError(DataError):
    """Rows or samples lack the field to cluster by."""

    def __init__(self, scores: Scores, field: str) -> None:
        super().__init__(
            f"{scores.name}, {scores.lacking[0]}: no field {field} to cluster by; {len(scores.lacking)} of "
            f"{scores.rows} rows lack it; add it to every row"
        )
        self.lacking, self.rows = len(scores.lacking), scores.rows


@dataclass(slots=True, kw_only=True)
class Scores:
    """What was read: for each item the scores of its repeats."""

    name: str
    by_item: dict[str, list[float | None]] = field(default_factory=dict)
    clusters: dict[str, Hashable] = field(default_factory=dict)  # empty where items are their own
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was chosen where there was a choice
    model: str = ""  # whose they are, where that is said
    rows: int = 0  # that have a score or are unscored
    lacking: list[str] = field(default_factory=list)  # where rows are that have no cluster, though it is asked for

    def add(self, item: str, score: float | None, cluster: Any, line: int) -> None:
        """Take one score. Raises `DataError` where the item is already in another cluster."""
        self.rows += 1
        self.by_item.setdefault(item, []).append(score)
        if cluster is not None:
            before = self.clusters.setdefault(item, str(cluster))
            if before != str(cluster):
                raise DataError(
                    f"{self.name}, line {line}: item {item} is in cluster {cluster}, and in {before} elsewhere; "
                    "an item has one cluster"
                )


def read_scores(
    name: str,
    *,
    cluster: str | None = None,
    metric: str | None = None,
    suite: str | None = None,
    ledger: str | None = None,
) -> Scores:
    """The scores in the file, or of the run, that is called `name`; `cluster` is the field that groups items.

    `metric` names one of several; `score` is the first of a log that has none of that name. With `suite`, those rows
    of a file whose `suite` it is, or that STAGE or STAGE:SPLIT of a run; a log of Inspect has to be of that task.
    Raises `DataError`; `NoClusterError` where a row lacks the field.
    """
    path = Path(name)
    scores = Scores(name=name)
    if not path.is_file():
        _of_run(name if suite is None else f"{name}:{suite}", scores, ledger, metric or SCORE)
    elif is_packed(path):
        if suite is not None:
            _need_task(name, read_head(path)["task"], suite)
        _of_samples(_packed(path, cluster), scores, cluster, metric)
    else:
        data = path.read_bytes()
        whole = _whole_object(data)
        if whole is not None and isinstance(whole.get("samples"), list):
            if suite is not None:
                _need_task(name, calls.mapping(whole.get("eval")).get("task"), suite)
            _of_samples(whole["samples"], scores, cluster, metric)
        elif whole is not None and "id" not in whole and "doc_id" not in whole:
            raise DataError(
                f"{name} is one JSON object without samples, so no Inspect log; give JSON lines with scores"
            )
        else:
            _of_rows(data, scores, cluster, metric, suite)
    if cluster is not None and scores.lacking:
        raise NoClusterError(scores, cluster)
    if not any(score is not None for repeats in scores.by_item.values() for score in repeats):
        first = f"; line {scores.skipped[0].line}: {scores.skipped[0].why}" if scores.skipped else ""
        raise DataError(f"{name} has no scored item{first}")
    return scores


# --- JSON lines and CSV --------------------------------------------------------------------


def _of_rows(data: bytes, scores: Scores, cluster: str | None, metric: str | None, suite: str | None) -> None:
    table = Table(name=scores.name)
    rows = stream_rows(data, table)
    suites: dict[str, None] = {}
    if suite is not None:
        rows = _of_suite(rows, suite, suites)
    first = next(rows, None)
    if first is None and suite is not None:
        raise DataError(f"{scores.name} has no sample of the suite {suite}; it has {', '.join(suites) or 'none'}")
    if first is not None:
        rows = chain((first,), rows)
        if "doc_id" in first.cells and "id" not in first.cells:
            _of_lm_eval(rows, first, table, scores, cluster, metric)
        else:
            _of_plain(rows, table, scores, cluster, metric or SCORE)
    scores.skipped.extend(sorted(table.skipped, key=lambda one: one.line))


def _of_suite(rows: Iterable[Row], suite: str, seen: dict[str, None]) -> Iterator[Row]:
    """The rows of a suite; the names of all suites go to `seen`."""
    for row in rows:
        name = row.cells.get("suite")
        if name is not None:
            seen[str(name)] = None
        if name == suite:
            yield row


def _of_plain(rows: Iterable[Row], table: Table, scores: Scores, cluster: str | None, key: str) -> None:
    for row in rows:
        item = row.cells.get("id")
        if item is None or item == "":
            table.skip(row, "no id")
        elif key not in row.cells:
            table.skip(row, f"no {key}")
        else:
            cell = None if row.cells.get("status") == "unscored" else row.cells[key]
            scores.model = scores.model or str(row.cells.get("model") or "")
            _take(str(item), cell, row, table, scores, cluster)


def _take(item: str, cell: Any, row: Row, table: Table, scores: Scores, cluster: str | None) -> None:
    group = None if cluster is None else _field(row.cells, cluster)
    try:
        score = None if cell is None or cell == "" else number(cell)
    except DataError as error:
        table.skip(row, f"score: {error}")
        return
    if cluster is not None and group is None:
        scores.lacking.append(f"line {row.line}")
    scores.add(item, score, group, row.line)


def _of_lm_eval(
    rows: Iterable[Row], first: Row, table: Table, scores: Scores, cluster: str | None, metric: str | None
) -> None:
    """One filter and one metric of a sample log: those asked for, or the first."""
    offered = metrics_of(first.cells)
    metric = None if metric == SCORE and SCORE not in first.cells else metric
    if metric is None and not offered:
        raise DataError(f"{scores.name} names no metric that is known; name one of its fields with --metric")
    key = metric or offered[0]
    filters: dict[str, None] = {}
    for row in rows:
        way = str(row.cells.get("filter"))
        filters[way] = None
        if way != next(iter(filters)):
            continue
        if "doc_id" not in row.cells or key not in row.cells:
            table.skip(row, f"no {'doc_id' if 'doc_id' not in row.cells else key}")
        else:
            _take(str(row.cells["doc_id"]), row.cells[key], row, table, scores, cluster)
    if len(offered) > 1 and metric is None:
        scores.notes.append(f"metric {key}, of {', '.join(offered)}; another with --metric")
    if len(filters) > 1:
        scores.notes.append(f"filter {next(iter(filters))}, of {', '.join(filters)}")


def _field(cells: Mapping[str, Any], name: str) -> Any:
    """A field of a row, or of the metadata or document inside it."""
    for place in (cells, cells.get("metadata"), cells.get("doc")):
        if isinstance(place, Mapping) and place.get(name) not in (None, ""):
            return place[name]
    return None


# --- Inspect ---------------------------------------------------------------------------------


def _whole_object(data: bytes) -> dict[str, Any] | None:
    """The one JSON object that a file is, or None where it is lines or no JSON."""
    if not data.lstrip().startswith(b"{") or (b"}\n{" in data[:1_000_000] and data.count(b"\n") > 0):
        return None
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def _need_task(name: str, task: Any, suite: str) -> None:
    if task != suite:
        raise DataError(f"{name} is a log of the task {task or 'that it does not name'}, not of the suite {suite}")


def _of_samples(samples: Iterable[Any], scores: Scores, cluster: str | None, metric: str | None) -> None:
    scorers: dict[str, None] = {}
    for place, sample in enumerate(samples, 1):
        if isinstance(sample, calls.Skipped):
            scores.skipped.append(Skipped(line=place, why=f"{sample.place}: {sample.why}"))
            continue
        given = sample.get("scores") if isinstance(sample, dict) else None
        if not isinstance(sample, dict) or "id" not in sample:
            scores.skipped.append(Skipped(line=place, why="a sample without an id"))
            continue
        given = given if isinstance(given, dict) else {}
        scorers.update(dict.fromkeys(given))
        chosen = next(iter(scorers), None) if metric is None or (metric == SCORE and SCORE not in scorers) else metric
        group = None if cluster is None else _field(sample, cluster)
        said = given.get(chosen) if chosen is not None else None
        value = said.get("value") if isinstance(said, dict) else said
        try:
            # A sample that failed has no score; that is no fault of the model's, so it is unscored.
            score = None if value is None else number(grade(value))
        except DataError as error:
            scores.skipped.append(Skipped(line=place, why=f"sample {sample['id']}: {error}"))
            continue
        if cluster is not None and group is None:
            scores.lacking.append(f"sample {sample['id']}")
        scores.add(str(sample["id"]), score, group, place)
    metric = None if metric == SCORE and SCORE not in scorers else metric
    if metric is not None and metric not in scorers:
        raise DataError(f"{scores.name} has no scorer {metric!r}; it has {', '.join(scorers) or 'none'}")
    if metric is None and len(scorers) > 1:
        scores.notes.append(f"scorer {next(iter(scorers))}, of {', '.join(scorers)}; another with --metric")


def _packed(path: Path, cluster: str | None) -> Iterator[Any]:
    """The samples of an .eval log: their summaries, or where these are missing or too short the samples themselves."""
    summaries = read_summaries(path)
    whole = all(
        isinstance(one, dict) and (cluster is None or _field(one, cluster) is not None) for one in summaries or ()
    )
    if summaries is not None and whole:
        yield from summaries
    else:
        yield from read_samples(path)


# --- runs of this project --------------------------------------------------------------------


def _of_run(name: str, scores: Scores, where: str | None, metric: str) -> None:
    """The success of the last evaluation of a run, or of what stands behind colons: RUN:STAGE or RUN:STAGE:SPLIT.

    Another `metric` is another number of the samples: `value`, `tokens`, `tool_calls`, …
    """
    from sqlalchemy import select

    from metier.cli.find import find_run, need_ledger, open_ledger
    from metier.evaluate.samples import numbers, samples
    from metier.records.schema import episodes

    need_ledger(where, name)
    asked, _, what = name.partition(":")
    stage, _, split = what.partition(":")
    with open_ledger(where) as records:
        run_id = find_run(records, asked)
        with records.reading() as connection:
            begun = select(episodes.c.stage).where(episodes.c.run_id == run_id).distinct()
            stages = set(connection.execute(begun).scalars())
        found = [one.name for one in records.run(run_id).stages if one.kind == "evaluate" and one.name in stages]
        if stage and stage not in found:
            raise DataError(f"{run_id} has no evaluation {stage!r}; it has {', '.join(found) or 'none'}")
        if not found:
            raise DataError(f"{run_id} has no evaluation with episodes; metier runs show {run_id} tells how far it is")
        chosen = stage or found[-1]
        made = samples(records, run_id, chosen)
    splits = list(dict.fromkeys(row.split for row in made))
    if split and split not in splits:
        raise DataError(f"{chosen} of {run_id} has no split {split!r}; it has {', '.join(splits)}")
    rows = [row for row in made if split in ("", row.split)]
    if len(found) > 1 and not stage:
        scores.notes.append(f"evaluation {chosen}, of {', '.join(found)}; another with {asked}:STAGE")
    if len(splits) > 1 and not split:
        scores.notes.append(f"the splits {', '.join(splits)} together; one of them with {asked}:{chosen}:SPLIT")
    if metric != SCORE and metric not in numbers(rows):
        raise DataError(f"samples of {run_id} have no number {metric!r}; they have {', '.join(numbers(rows))}")
    scores.model = rows[0].model
    for row in rows:
        value = None if row.status == "unscored" else getattr(row, metric)
        scores.add(row.id, value, row.cluster, 0)
