"""`metier ledger`: the record of everything. In, out, figures, whether it is whole, whence and whither, forgetting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metier.cli.runs import JsonOption, LedgerOption

if TYPE_CHECKING:
    from metier.records.lineage import Reach
    from metier.records.traces.importing import Imported

__all__ = [
    "check_ledger",
    "export_file",
    "forget_records",
    "import_files",
    "imported_text",
    "ledger_app",
    "reach_text",
    "stats",
    "why",
]

PLACES = 3  # named for each reason

ledger_app = typer.Typer(
    name="ledger",
    help="The record of everything: take in what others have kept, give it out, check it, forget.",
    no_args_is_help=True,
)


@ledger_app.callback()
def _root() -> None:
    pass


@ledger_app.command("import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="JSON, JSON lines, CSV, Parquet, Arrow, .eval, or a saved dataset's folder; files that belong"
            " together, in one call."
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            help="openai (chat JSONL), otel (GenAI spans), langfuse, phoenix, trl, argilla, label-studio, crowd (task,"
            " worker, label), inspect, lm-eval or feedback (as export writes it); told from the rows if not given."
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="The product or project that they come from.")] = "production",
    split: Annotated[
        str | None,
        typer.Option(help="The split of the tasks, where the rows are no traces; evaluation of logs, else train."),
    ] = None,
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Replace e-mail addresses, numbers of phones and cards, keys and the like.")
    ] = False,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take what others have kept into the ledger: conversations, answers, and what was said about them.

    Importing again changes nothing that is there; what cannot be used is skipped and named.
    """
    from metier.cli.find import DEFAULT_LEDGER
    from metier.records.layouts.front import import_files as import_all
    from metier.records.ledger import Ledger

    with Ledger.open(ledger or DEFAULT_LEDGER) as records:
        done = import_all(records, files, format=format, source=source, split=split, scrub=scrub)
    if not as_json:
        print(imported_text(done), end="")
        return
    counts = {
        name: getattr(done, name)
        for name in ("format", "run_id", "episodes", "episodes_known", "calls", "feedback", "feedback_known")
    }
    print(json.dumps({**counts, "skipped": [{"place": s.place, "why": s.why} for s in done.skipped]}, indent=2))


@ledger_app.command("export")
def export_file(
    out: Annotated[
        Path,
        typer.Argument(help="The new file: .jsonl, .parquet, .arrow or .csv; without an ending, a dataset folder."),
    ],
    layout: Annotated[
        str,
        typer.Option(
            "--as", help="feedback, prompt-completion, preference, unpaired, stepwise (TRL's types), openai or crowd."
        ),
    ] = "feedback",
    run: Annotated[str | None, typer.Option(help="Only what this run made or imported.")] = None,
    criterion: Annotated[str | None, typer.Option(help="Only statements on this criterion.")] = None,
    source: Annotated[str | None, typer.Option(help="Only statements of this source, by name.")] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write feedback in a layout that others read. The ledger keeps which rows the file holds."""
    from metier.cli.find import find_run, open_ledger
    from metier.records.layouts.exporting import export

    with open_ledger(ledger) as records:
        run_id = None if run is None else find_run(records, run)
        done = export(records, out, layout, run_id=run_id, criterion=criterion, source=source)
    if as_json:
        print(json.dumps({"file": done.file, "layout": done.layout, "rows": done.rows, "dataset": done.dataset_id}))
    else:
        print(f"{done.rows} rows as {done.layout}\nfile    {done.file}\ndataset {done.dataset_id}")


@ledger_app.command("stats")
def stats(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Count the records, and the feedback by kind, criterion, source and status; what was erased apart."""
    from metier.cli.find import open_ledger

    with open_ledger(ledger) as records:
        counts, feedback, erased = records.counts(), records.feedback_counts(), records.erased_counts()
        label = records.label
    rows = [
        {
            "kind": sort.kind,
            "criterion": sort.criterion,
            "source": {"kind": sort.source_kind, "name": sort.source_name, "version": sort.source_version},
            "status": sort.status,
            "run": sort.run_id,
            "n": n - erased.get(sort, 0),
            "erased": erased.get(sort, 0),
        }
        for sort, n in feedback
    ]
    if as_json:
        print(json.dumps({"ledger": label, "records": counts, "feedback": rows}, indent=2))
        return
    print(f"ledger {label}")
    for name, n in counts.items():
        print(f"{n:>12,}  {name}")
    by: dict[tuple[str, ...], int] = {}
    for sort, n in feedback:
        gone = erased.get(sort, 0)
        name = f"{sort.source_kind} {sort.source_name} {sort.source_version}"
        for status, some in ((sort.status, n - gone), ("erased", gone)):
            key = (sort.kind, sort.criterion, name, status)
            by[key] = by.get(key, 0) + some
    for (kind, criterion, name, status), n in sorted(
        ((key, n) for key, n in by.items() if n), key=lambda item: -item[1]
    ):
        print(f"{n:>12,}  {kind} on {criterion!r} by {name}, {status}")


@ledger_app.command("check")
def check_ledger(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Look whether the ledger is whole: numbering, references, payloads, token arrays, guards. Changes nothing."""
    from metier.cli.find import open_ledger
    from metier.records.check import check

    with open_ledger(ledger) as records:
        problems, label = check(records), records.label
    if as_json:
        found = [{"what": p.what, "n": p.n, "examples": list(p.examples)} for p in problems]
        print(json.dumps({"ledger": label, "whole": not problems, "problems": found}, indent=2))
    else:
        for p in problems:
            print(f"{p.n:>6}  {p.what}" + (f" ({', '.join(p.examples)})" if p.examples else ""))
        print(f"{label} is whole" if not problems else f"{label} is not whole: {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@ledger_app.command("why")
def why(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECORD|CHECKPOINT|RUN",
            help="A task, an episode or feedback: where it went. A checkpoint, a run or: last: what it came from.",
        ),
    ],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walk both ways: from a record to the datasets and checkpoints it reached, from weights back to their records."""
    from metier.cli.find import find_checkpoint, open_ledger
    from metier.cli.runs import lineage_text
    from metier.records.forgetting import target
    from metier.records.lineage import kind_of, reach
    from metier.records.lineage import why as why_of
    from metier.records.types import to_plain

    with open_ledger(ledger) as records:
        with records.reading() as connection:
            if kind_of(connection, what) is not None or what.startswith(("person:", "source:")):
                meant = target(connection, what)
                found = reach(connection, meant.name, meant.kind, meant.members)
                print(json.dumps(to_plain(found), indent=2) if as_json else reach_text(found))
                return
        lineage = why_of(records, find_checkpoint(records, what))
    print(json.dumps(to_plain(lineage), indent=2) if as_json else lineage_text(lineage).rstrip("\n"))


@ledger_app.command("forget")
def forget_records(
    what: Annotated[
        str,
        typer.Argument(
            metavar="PERSON|SOURCE|RECORD",
            help="A record's id, person:NAME, source:NAME or source:NAME@VERSION; a bare name where it is only one.",
        ),
    ],
    why: Annotated[str, typer.Option(help="The reason, which stays.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be erased and marked.")] = False,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase what a person, source or record said, mark all datasets and checkpoints it reached, rewrite exports."""
    from metier.cli.find import open_ledger
    from metier.records.forgetting import forget, target
    from metier.records.layouts.exporting import rewrite
    from metier.records.lineage import reach
    from metier.records.types import to_plain

    with open_ledger(ledger) as records:
        if dry_run:
            with records.reading() as connection:
                meant = target(connection, what)
                found = reach(connection, meant.name, meant.kind, meant.members)
            written: list[str] = []
            left: list[str] = []
        else:
            found = forget(records, what, why=why)
            written, left = rewrite(records, found.datasets)
    if as_json:
        made: dict[str, Any] = {**to_plain(found), "exports_rewritten": written, "exports_left": left}
        print(json.dumps({**made, "dry_run": dry_run}, indent=2))
        return
    print(reach_text(found, verb="would be erased" if dry_run else "erased"))
    for file in written:
        print(f"export  {file}: written anew without it")
    for file in left:
        print(f"export  {file}: changed since it was written, and left as it is; delete it yourself")


def imported_text(done: Imported) -> str:
    """What was taken, what was known and what was skipped, with why."""
    calls = f" ({done.calls} calls of a model in the file)" if done.calls else ""
    lines = [
        f"{done.format}: {done.episodes} episodes taken{calls}, {done.episodes_known} known already",
        f"feedback: {done.feedback} taken, {done.feedback_known} known already",
    ]
    for why, places in done.reasons.items():
        named = ", ".join(places[:PLACES]) + (" …" if len(places) > PLACES else "")
        lines.append(f"skipped {len(places)}: {why} ({named})")
    lines.append(f"run {done.run_id}; metier runs show EPISODE reads one")
    return "\n".join(lines) + "\n"


def reach_text(found: Reach, verb: str = "") -> str:
    """How far records went, a line for each dataset and checkpoint."""
    lines = [f"{found.kind} {found.record_id}: {len(found.records)} records {verb}".rstrip()]
    lines += [f"dataset    {dataset}" for dataset in found.datasets]
    lines += [f"checkpoint {checkpoint}" for checkpoint in found.checkpoints]
    if not found.datasets:
        lines.append("no dataset holds any of it")
    return "\n".join(lines)
