"""`metier stats aggregate`, `agreement`, `ppi`: what labels of many sources come to, and what each source is worth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metier.cli.runs import JsonOption
from metier.cli.tables import PLACES, read_rows, tell_skipped

if TYPE_CHECKING:
    from metier.stats.tables import Table
    from metier.stats.votes import Votes

__all__ = ["aggregate_labels", "agreement", "ppi"]

LabelsArgument = Annotated[Path, typer.Argument(help="Labels, CSV or JSON lines with task, worker and label.")]
GoldOption = Annotated[Path | None, typer.Option(help="The truth of some tasks: task and label.")]


def aggregate_labels(
    labels: LabelsArgument,
    gold: GoldOption = None,
    method: Annotated[
        str, typer.Option(help="auto, majority, dawid-skene, glad or one-coin. auto leaves majority on evidence only.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where task, label and confidence go. Else stdout.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make one label a task out of the labels of many, with its confidence.

    A worker's later label of a task replaces the earlier one. Gold checks the labels and guides auto; it is never
    copied into them.
    """
    from metier.stats.aggregate import aggregate

    votes, table, _ = _votes(labels)
    known = {} if gold is None else _gold(gold)
    done = aggregate(votes, method=method, gold=known)
    rows = [
        (task, votes.labels[place], round(float(confidence), 6))
        for task, place, confidence in zip(votes.tasks, done.label, done.confidence, strict=True)
    ]
    if out is not None or not as_json:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("task", "label", "confidence"), *rows])
        _write(out, text.getvalue())
    told = {
        "method": done.method,
        "why": done.why,
        "tasks": len(votes.tasks),
        "workers": len(votes.sources),
        "labels": len(votes.labels),
        "votes": int(votes.task.size),
        "tied": done.tied,
        **_oddities(votes, table, known),
        "gold": [{**asdict(check), "accuracy": check.accuracy} for check in done.checks],
    }
    if as_json:
        if out is None:
            told["rows"] = [dict(zip(("task", "label", "confidence"), row, strict=True)) for row in rows]
        print(json.dumps(told, ensure_ascii=False))
        return
    typer.echo(f"{done.method}: {done.why}", err=True)
    typer.echo(
        f"{told['votes']} labels by {told['workers']} workers on {told['tasks']} tasks, {told['labels']} classes; "
        f"{done.tied} ties by majority, which go to the label that sorts first",
        err=True,
    )
    for check in done.checks:
        typer.echo(f"gold: {check.method} {check.right}/{check.n} = {check.accuracy:.3f}", err=True)
    _tell(votes, table, known)


def agreement(
    labels: LabelsArgument,
    gold: GoldOption = None,
    scale: Annotated[str, typer.Option(help="nominal, or ordinal or interval where labels are numbers.")] = "nominal",
    as_json: JsonOption = False,
) -> None:
    """Tell how far workers agree, what each one's labels are worth, and whose look made without reading.

    A column cost (of one label) makes it bits per unit of cost.
    """
    from metier.base.errors import DataError
    from metier.stats.aggregate import aggregate
    from metier.stats.agreement import gwet, krippendorff
    from metier.stats.sources import sources, suspicions

    if scale not in ("nominal", "ordinal", "interval"):
        raise DataError(f"there is no scale {scale!r}; use nominal, ordinal or interval")
    votes, table, cost = _votes(labels)
    both = [f(votes, scale=scale) for f in (krippendorff, gwet)]  # type: ignore[arg-type]
    done = aggregate(votes)
    known = {} if gold is None else _gold(gold)
    measured = sources(votes, done.truth, gold=known, cost=cost)
    odd = suspicions(votes)
    if as_json:
        told = {
            "votes": int(votes.task.size),
            "tasks": len(votes.tasks),
            **{one.name: asdict(one) for one in both},
            "workers": [asdict(one) for one in measured],
            "suspicions": [asdict(one) for one in odd],
            **_oddities(votes, table, known),
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    for one in both:
        value = "none (nothing could have differed, or no task has two labels)"
        if one.value is not None:
            value = f"{one.value:.3f}" + ("" if one.low is None else f"  [{one.low:.3f}, {one.high:.3f}]")
        print(f"{one.name} ({one.scale})  {value}  over {one.tasks} tasks with two labels or more")
    unit = "bits/cost" if cost else "bits/label"
    print(f"\nworker  labels  {unit}  agrees with the others" + ("  right on gold" if known else ""))
    for worker in sorted(measured, key=lambda one: -(one.bits_per_cost or 0)):
        worth = "?" if worker.bits_per_cost is None else f"{worker.bits_per_cost:.3f}"
        agrees = "?" if worker.agreement is None else f"{worker.agreement:.2f}"
        line = f"{worker.name}  {worker.votes}  {worth}  {agrees}"
        if known:
            line += f"  {worker.right}/{worker.gold}"
            line += "" if worker.low is None else f" [{worker.low:.2f}, {worker.high:.2f}]"
        print(line)
    for note in odd:
        seen = {"random": "agrees with the others", "constant": "gives one label", "copier": "agree"}[note.kind]
        print(
            f"{note.kind}: {' and '.join(note.sources)} {seen} {note.observed:.2f} of the time over {note.n} tasks, "
            f"where {note.expected:.2f} is ordinary (p = {note.p:.1g})"
        )
    _tell(votes, table, known)


def ppi(
    labels: Annotated[
        Path, typer.Option(help="What people said of some items: id, value, and propensity where not all alike.")
    ],
    judge: Annotated[Path, typer.Option(help="What the judge said of all items: id and value.")],
    as_json: JsonOption = False,
) -> None:
    """Estimate a mean from few human labels and many judgements, with an interval that is right though the judge errs.

    CSV or JSON lines. The labelled items must be a random sample, or say with which propensity each was chosen.
    """
    from metier.base.errors import DataError
    from metier.stats.ppi import prediction_powered, rogan_gladen

    human, human_table = _values(labels)
    machine, machine_table = _values(judge)
    shared = [name for name in human if name in machine]
    if not shared:
        raise DataError(f"no id of {labels} is in {judge}; the judge has to have judged the labelled items too")
    chances = _propensities(human_table)
    if chances and any(name not in chances for name in shared):
        raise DataError(f"{labels} has a propensity for some items only; give all of them one, or none")
    y, j = ([fmean(side[name]) for name in shared] for side in (human, machine))
    rest = [fmean(values) for name, values in machine.items() if name not in human]
    found = prediction_powered(y, j, rest, propensity=[chances[name] for name in shared] if chances else None)
    caveats = list(found.caveats)
    for path, said in ((labels, human), (judge, machine)):
        if again := sum(len(values) - 1 for values in said.values()):
            torn = sum(len(set(values)) > 1 for values in said.values())
            caveats.append(
                f"{path}: {again} rows repeat an id and were averaged with it; {torn} ids contradict themselves"
            )
    corrected = None
    if chances:
        why_not = "it needs labels of a random sample, and these were chosen with a propensity"
    elif {*y, *j, *rest} <= {0.0, 1.0}:
        try:
            corrected = rogan_gladen(y, j, rest)
        except DataError as error:
            why_not = str(error)
    elif all(value in (0.0, 1.0) for said in (human, machine) for values in said.values() for value in values):
        why_not = "ids contradict themselves, and the mean of their values is neither 0 nor 1"
    else:
        why_not = "there are values other than 0 and 1"
    unjudged = len(human) - len(shared)
    skipped = [{"file": t.name, "line": s.line, "why": s.why} for t in (human_table, machine_table) for s in t.skipped]
    if as_json:
        told = {
            **asdict(found),
            "ci95": None if found.low is None else [found.low, found.high],
            "rogan_gladen": None if corrected is None else asdict(corrected),
            "no_rogan_gladen": None if corrected is not None else why_not,
            "labels_without_judgement": unjudged,
            "caveats": caveats,
            "skipped": skipped,
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    span = "no interval" if found.low is None else f"[{found.low:.4f}, {found.high:.4f}]"
    print(f"estimate {found.estimate:.4f}  {span}  (95 %)")
    print(f"from {found.n} labelled items and {found.N} that only the judge saw; weight of the judge {found.lam:.3f}")
    alone = "" if found.classical_se is None else f" (se {found.classical_se:.4f}, here {found.se:.4f})"
    print(f"labels alone {found.classical:.4f}{alone}")
    if corrected is not None:
        print(
            f"Rogan-Gladen {corrected.estimate:.4f}  [{corrected.low:.4f}, {corrected.high:.4f}]  "
            f"(sensitivity {corrected.sensitivity:.3f}, specificity {corrected.specificity:.3f})"
        )
    else:
        print(f"no Rogan-Gladen rate: {why_not}")
    for caveat in caveats:
        typer.echo(caveat, err=True)
    if unjudged:
        typer.echo(f"left out: {unjudged} labelled items without a judgement", err=True)
    for table in (human_table, machine_table):
        tell_skipped(table.name, table.skipped)


def _votes(path: Path) -> tuple[Votes, Table, dict[str, float]]:
    """The votes of a file, its rows, and what a label of each worker costs, where there is a column cost."""
    from metier.base.errors import DataError
    from metier.stats.tables import number
    from metier.stats.votes import Votes

    table = _words(path, ("task", "worker", "label"))
    table.need("a task, a worker and a label")
    votes = Votes.of((str(r.cells["task"]), str(r.cells["worker"]), str(r.cells["label"])) for r in table.rows)
    prices: dict[str, list[float]] = {}
    for row in table.rows:
        if row.cells.get("cost") not in (None, ""):
            try:
                price = number(row.cells["cost"])
            except DataError as error:
                raise DataError(f"{path}, line {row.line}: cost: {error}") from error
            if price <= 0:
                raise DataError(f"{path}, line {row.line}: a label costs {price}; a cost must be above 0")
            prices.setdefault(str(row.cells["worker"]), []).append(price)
    return votes, table, {worker: sum(costs) / len(costs) for worker, costs in prices.items()}


def _words(path: Path, columns: Sequence[str]) -> Table:
    """The rows of a file in which each of `columns` can be a name or a label."""
    from metier.base.errors import DataError
    from metier.stats.tables import word

    table = read_rows(path, columns)
    kept = []
    for row in table.rows:
        try:
            for column in columns:
                word(row.cells[column])
        except DataError as error:
            table.skip(row, str(error))
            continue
        kept.append(row)
    table.rows = kept
    return table


def _gold(path: Path) -> dict[str, str]:
    from metier.base.errors import DataError

    table = _words(path, ("task", "label"))
    table.need("a task and a label")
    found: dict[str, tuple[str, int]] = {}
    for row in table.rows:
        task, label = str(row.cells["task"]), str(row.cells["label"])
        before, line = found.setdefault(task, (label, row.line))
        if before != label:
            raise DataError(
                f"{path}: task {task} is {before} in line {line} and {label} in line {row.line}; gold has one truth"
            )
    tell_skipped(table.name, table.skipped)
    return {task: label for task, (label, _) in found.items()}


def _values(path: Path) -> tuple[dict[str, list[float]], Table]:
    """The values of each id; there may be several."""
    from metier.base.errors import DataError
    from metier.stats.tables import number, word

    table = read_rows(path, ("id", "value"))
    found: dict[str, list[float]] = {}
    kept = []
    for row in table.rows:
        try:
            name, value = word(row.cells["id"]), number(row.cells["value"])
        except DataError as error:
            table.skip(row, str(error))
            continue
        found.setdefault(name, []).append(value)
        kept.append(row)
    table.rows = kept
    table.need("an id and a value that is a number")
    return found, table


def _propensities(table: Table) -> dict[str, float]:
    from metier.base.errors import DataError
    from metier.stats.tables import number

    found: dict[str, float] = {}
    for row in table.rows:
        if row.cells.get("propensity") not in (None, ""):
            try:
                chance = number(row.cells["propensity"])
            except DataError as error:
                raise DataError(f"{table.name}, line {row.line}: propensity: {error}") from error
            name = str(row.cells["id"])
            if found.setdefault(name, chance) != chance:
                raise DataError(
                    f"{table.name}, line {row.line}: {name} has the propensity {chance}, and {found[name]} before; "
                    "an item is chosen with one"
                )
    return found


def _write(out: Path | None, text: str) -> None:
    from metier.base.errors import DataError

    if out is None:
        print(text, end="")
        return
    if not out.parent.is_dir():
        raise DataError(f"there is no folder {out.parent} to write {out.name} into")
    out.write_text(text, encoding="utf-8")


def _strange(votes: Votes, gold: Mapping[str, str]) -> list[str]:
    """Labels that the gold gives to labelled tasks and no worker gave to any."""
    return sorted({gold[task] for task in votes.tasks if task in gold}.difference(votes.labels))


def _oddities(votes: Votes, table: Table, gold: Mapping[str, str]) -> dict[str, Any]:
    return {
        "workers_seen_once": int((votes.per_source() == 1).sum()),
        "tasks_with_one_label": int((votes.per_task() == 1).sum()),
        "repeated": votes.repeated,
        "changed": votes.changed,
        "gold_labels_of_no_worker": _strange(votes, gold),
        "skipped": [asdict(one) for one in table.skipped],
    }


def _tell(votes: Votes, table: Table, gold: Mapping[str, str]) -> None:
    """On stderr, what in the file is unusual and what was made of it."""
    once = int((votes.per_source() == 1).sum())
    notes = [
        (once, "workers gave one label only: little is known of them"),
        (votes.repeated, "rows repeat what the same worker said of the task: counted once"),
        (votes.changed, "rows contradict what the same worker said of the task before: the last one counts"),
    ]
    for count, words in notes:
        if count:
            typer.echo(f"{count} {words}", err=True)
    if strange := _strange(votes, gold):
        named = ", ".join(strange[:PLACES]) + (" …" if len(strange) > PLACES else "")
        typer.echo(f"gold has labels that no worker gave: {named}; are they spelt alike?", err=True)
    tell_skipped(table.name, table.skipped)
