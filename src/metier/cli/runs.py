"""`metier runs`: what was run, what came of it, and from what; its weights out, its leftovers gone.

Figures are read from the event log in the run's folder, as the run wrote them; lineage
and transcripts come from the ledger. Every command has `--json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from metier.records.events import Event
    from metier.records.ledger import Ledger
    from metier.records.lineage import DatasetLineage, Evidence, Lineage
    from metier.records.types import Run

__all__ = ["JsonOption", "LedgerOption", "export_weights", "list_runs", "prune_runs", "runs_app", "show", "why"]

HEADLINE_SPLIT = "heldout"

LedgerOption = Annotated[
    str | None, typer.Option("--ledger", help="The project's ledger: a file or a URL; runs/ledger.sqlite unless told.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

runs_app = typer.Typer(
    name="runs", help="Runs so far: list them, show one, walk a model back to its feedback.", no_args_is_help=True
)


@runs_app.command("list")
def list_runs(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """List all runs, newest first, with their success on the held-out split before and after."""
    from rich.console import Console
    from rich.table import Table

    from metier.cli.find import open_ledger

    with open_ledger(ledger) as records:
        rows = [summary(records, run) for run in records.runs()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("no runs yet; start one with: metier run desk")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "recipe", "started", "stages", "success"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row["id"],
            row["recipe"],
            row["started"],
            f"{sum(s['state'] == 'done' for s in row['stages'])}/{len(row['stages'])}",
            headline_text(row["headline"]),
        )
    # A cut id is of no use: where the table does not fit, let lines run on.
    console = Console(highlight=False)
    console.print(table, width=max(console.width, 110), no_wrap=True, crop=False)


@runs_app.command("show")
def show(
    what: Annotated[str, typer.Argument(metavar="RUN|EPISODE", help="An id, the start of one, a run folder, or: last")],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run with its figures, or an episode as a transcript."""
    from metier.cli.find import find, open_ledger

    with open_ledger(ledger) as records:
        kind, record_id = find(records, what, ["run", "episode"])
        if kind == "episode":
            show_episode(records, record_id, as_json)
        else:
            show_run(records, record_id, as_json)


@runs_app.command("why")
def why(
    what: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT|RUN", help="An id, the start of one, or: last; of a run, its last weights."),
    ],
    stage: Annotated[
        str | None, typer.Option(help="Instead of weights: the figures that this stage of the run measured.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="With --stage: this split only.")] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walk weights, or a stage's figures, back to the feedback behind them, its sources and versions."""
    from metier.base.errors import DataError
    from metier.cli.find import find_checkpoint, find_run, open_ledger
    from metier.records.lineage import behind
    from metier.records.lineage import why as why_of
    from metier.records.types import to_plain

    if split is not None and stage is None:
        raise DataError("--split belongs to the figures of a stage; name it with --stage")
    with open_ledger(ledger) as records:
        if stage is not None:
            rows = behind(records, find_run(records, what), stage, split)
            print(json.dumps(to_plain(rows), indent=2) if as_json else evidence_text(rows))
            return
        lineage = why_of(records, find_checkpoint(records, what))
    print(
        json.dumps(to_plain(lineage), indent=2) if as_json else lineage_text(lineage), end="" if not as_json else "\n"
    )


@runs_app.command("export")
def export_weights(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RUN|FOLDER",
            help="An id, the start of one, a checkpoint's folder, or: last; of a run, its last weights.",
        ),
    ],
    out: Annotated[str, typer.Option(help="The new folder.")],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as a whole model in Hugging Face layout; an adapter is merged into its base."""
    from metier.base.errors import DataError
    from metier.train.checkpoints import export

    folder = Path(what)
    if not (folder / "metier.json").is_file():
        from metier.cli.find import find_weights, open_ledger

        with open_ledger(ledger) as records:
            checkpoint_id, folder = find_weights(records, what)
        if not (folder / "metier.json").is_file():
            raise DataError(f"the weights of {checkpoint_id} are not in {folder} any more; they were pruned or moved")
    digest = export(folder, out)
    if as_json:
        print(json.dumps({"out": out, "weights_hash": digest}))
    else:
        print(f"weights {digest}")
        print(f"model   {out}")


@runs_app.command("prune")
def prune_runs(
    what: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Ids, starts of them, run folders, or: last, all")
    ],
    weights: Annotated[
        bool, typer.Option("--weights", help="Also remove all checkpoints of a run but its last one.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free the disk of trainers' states and leftovers; ledger, logs and reports stay."""
    from metier.cli.find import find_run, open_ledger
    from metier.recipes.prune import prune

    with open_ledger(ledger) as records:
        if what == ["all"]:
            folders = [run.folder for run in records.runs() if Path(run.folder).is_dir()]
        else:
            folders = [records.run(find_run(records, one)).folder for one in what]
    freed = {path: size for folder in folders for path, size in prune(folder, weights=weights, dry_run=dry_run).items()}
    if as_json:
        print(json.dumps(freed, indent=2))
        return
    for path, size in freed.items():
        print(f"{size / 1e6:9.1f} MB  {path}")
    print(f"{sum(freed.values()) / 1e6:9.1f} MB  {'would be freed' if dry_run else 'freed'}")


# --- what is shown -------------------------------------------------------------------


def summary(ledger: Ledger, run: Run) -> dict[str, Any]:
    """A run as JSON-ready values: how far it is and the figures that it measured.

    What was done outside of recipes has no folder and no log; its figures are in the ledger alone.
    """
    from metier.base.clock import iso
    from metier.records.events import read

    events = read(run.folder) if run.folder else measured(ledger, run)
    numbers = evaluations(events)
    ends = {e["stage"]: "done" for e in events if e["event"] in ("stage_end", "stage_skip")}
    begun = {e["stage"]: "started" for e in events if e["event"] == "stage_start"}
    report = Path(run.folder) / "report.html" if run.folder else Path()
    headline = [n for n in numbers if n["split"] == HEADLINE_SPLIT]
    return {
        "id": run.id,
        "recipe": run.recipe,
        "started": iso(run.created_at),
        "seed": run.seed,
        "folder": run.folder,
        "code_version": run.code_version,
        "stages": [{"name": s.name, "state": ends.get(s.name, begun.get(s.name, "waiting"))} for s in run.stages],
        "evaluations": numbers,
        "headline": {"before": headline[0], "after": headline[-1]} if headline else None,
        "report": str(report) if report.is_file() else None,
    }


def evaluations(events: list[Event]) -> list[dict[str, Any]]:
    """The figures of each evaluating stage and split, in order; of a repeated one, the last."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event["event"] == "eval":
            keys = ("stage", "split", "success", "n", "low", "high")
            found[event["stage"], event["split"]] = {key: event.get(key) for key in keys}
    return list(found.values())


def measured(ledger: Ledger, run: Run) -> list[Event]:
    """What the log of a run would say of its evaluations, had it one."""
    from metier.evaluate.samples import samples
    from metier.stats.intervals import share_interval

    events: list[Event] = []
    for stage in run.stages:
        rows = samples(ledger, run.id, stage.name) if stage.kind == "evaluate" else []
        for split in dict.fromkeys(row.split for row in rows):
            own = [row for row in rows if row.split == split]
            told = share_interval([row.score for row in own], clusters=[row.cluster for row in own])
            figures = {"success": told.mean, "n": told.n, "low": told.low, "high": told.high}
            events.append({"event": "eval", "stage": stage.name, "split": split, **figures})
        if rows:
            events.append({"event": "stage_end", "stage": stage.name})
    return events


def headline_text(headline: dict[str, Any] | None) -> str:
    """`3.1 % → 53.1 %`, or one figure where only one was measured."""
    from metier.report.wording import percent

    if headline is None:
        return "–"
    before, after = headline["before"], headline["after"]
    text = percent(after["success"])
    return text if before["stage"] == after["stage"] else f"{percent(before['success'])} → {text}"


def show_run(ledger: Ledger, run_id: str, as_json: bool) -> None:
    """Print one run."""
    from rich.console import Console
    from rich.table import Table

    from metier.report.wording import percent

    told = summary(ledger, ledger.run(run_id))
    told["checkpoints"] = [
        {"id": c.id, "stage": c.stage, "step": c.step, "path": c.path, "parent": c.parent, "stale": c.stale}
        for c in ledger.checkpoints(run_id)
    ]
    if as_json:
        print(json.dumps(told, indent=2))
        return
    for key in ("id", "recipe", "started", "seed", "folder", "code_version"):
        print(f"{key.replace('_version', ''):<8} {told[key]}")
    print(f"{'report':<8} {told['report'] or 'not written yet'}")
    print(f"{'stages':<8} " + ", ".join(f"{s['name']} ({s['state']})" for s in told["stages"]))
    console = Console(highlight=False)
    for title, columns, rows in (
        (
            "success",
            ("stage", "split", "success", "95 % interval", "n"),
            [
                (
                    n["stage"],
                    n["split"],
                    percent(n["success"]),
                    f"{percent(n['low'])} to {percent(n['high'])}",
                    str(n["n"]),
                )
                for n in told["evaluations"]
            ],
        ),
        (
            "weights",
            ("checkpoint", "stage", "step", "path", "stale"),
            [(c["id"], c["stage"], str(c["step"]), c["path"], c["stale"] or "") for c in told["checkpoints"]],
        ),
    ):
        if rows:
            table = Table(box=None, pad_edge=False)
            for column in columns:
                table.add_column(column, no_wrap=True, justify="right" if column in ("n", "step") else "left")
            for row in rows:
                table.add_row(*row)
            print(f"\n{title}")
            console.print(table, width=max(console.width, 140), no_wrap=True, crop=False)


def show_episode(ledger: Ledger, episode_id: str, as_json: bool) -> None:
    """Print one episode."""
    from metier.records.transcript import as_text
    from metier.records.types import to_plain

    episode = ledger.episode(episode_id, arrays=as_json)
    feedback = ledger.feedback(about=[episode_id])
    if as_json:
        print(json.dumps({"episode": to_plain(episode), "feedback": to_plain(feedback)}, indent=2))
    else:
        print(as_text(episode, tools=ledger.task(episode.task_id).tools, feedback=feedback), end="")


def evidence_text(rows: list[Evidence]) -> str:
    """The figures of each split, and below each the rows that it is made of."""
    lines: list[str] = []
    for split in dict.fromkeys(row.split for row in rows):
        own = [row for row in rows if row.split == split]
        scored = [row.value for row in own if row.value is not None]
        won = sum(value == 1.0 for value in scored)
        unscored = f", {len(own) - len(scored)} unscored and left out" if len(scored) < len(own) else ""
        share = f"{100 * won / len(scored):.1f} %" if scored else "–"
        lines.append(f"{split}: {share}, {won} of {len(scored)} episodes succeeded{unscored}")
        for row in own:
            value = "   –" if row.value is None else f"{row.value:4.2f}"
            said = ", ".join(f"{f.id} by {f.source.kind} {f.source.name} {f.source.version}" for f in row.feedback)
            lines.append(f"  {value}  {row.episode_id}  {said}")
    return "\n".join(lines)


def lineage_text(lineage: Lineage) -> str:
    """The chain of checkpoints as indented text, newest first."""
    lines: list[str] = []
    for link in lineage.checkpoints:
        c = link.checkpoint
        lines.append(f"checkpoint {c.id}: stage {c.stage}, step {c.step}, of {c.run_id}")
        if c.objective:
            lines.append(f"  objective {c.objective}, code {c.code_version or 'not known'}")
        if c.stale:
            lines.append(f"  STALE: {c.stale}")
        for dataset in link.datasets:
            lines += [f"  {line}" for line in dataset_lines(dataset)]
        lines.append("from")
    lines.append(f"base model {lineage.base}" if lineage.base else "weights that no record names")
    return "\n".join(lines) + "\n"


def dataset_lines(dataset: DatasetLineage) -> list[str]:
    """One dataset: its size, then its tasks, its episodes by weights, its feedback by source."""
    lines = [
        f"dataset {dataset.id}: {dataset.name} ({dataset.kind}), "
        f"{dataset.n_tasks} tasks, {dataset.n_episodes} episodes, {dataset.n_feedback} statements of feedback"
    ]
    if dataset.stale:
        lines.append(f"  STALE: {dataset.stale}")
    for task in dataset.tasks:
        lines.append(f"  tasks: {task.n} of {task.family}, split {task.split}")
    for episodes in dataset.episodes:
        lines.append(f"  episodes: {episodes.n} by {episodes.weights.checkpoint} at step {episodes.weights.step}")
    for part in dataset.feedback:
        mean = "" if part.mean is None else f", mean {part.mean:.3f}"
        source = f"{part.source.kind} {part.source.name} {part.source.version}"
        lines.append(f"  feedback: {part.n} {part.status} by {source} on {part.criterion!r}{mean}")
    if dataset.superseded:
        lines.append(f"  {dataset.superseded} of these statements were corrected or retracted since")
    return lines
