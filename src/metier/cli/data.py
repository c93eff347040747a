"""`metier data`: datasets out of feedback, their cards, the health of tasks, and tasks out of production."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metier.cli.runs import JsonOption, LedgerOption

if TYPE_CHECKING:
    from metier.feedback.data.card import Card

__all__ = ["build_dataset", "data_app", "draft", "health", "write_card"]

NAMED = 5  # test items that the terminal names; the manifest has all

data_app = typer.Typer(
    name="data", help="From feedback to data: build a dataset, see its card, look at tasks.", no_args_is_help=True
)


@data_app.command("build")
def build_dataset(
    declaration: Annotated[Path, typer.Argument(help="What the dataset is, as YAML.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A folder for rows.jsonl, card.html and card.md.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the file.")
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a dataset from the ledger: rows for metier train, a manifest that names what is in them, and a card.

    Rows that hold an item of a suite or a held-out task are left out and named. The same ledger gives the same rows.
    """
    from metier.cli.find import open_ledger
    from metier.feedback.data.build import build, write_rows
    from metier.feedback.data.card import card_of
    from metier.feedback.data.declaration import read_declaration

    declared = read_declaration(declaration, tuple(settings or ()))
    with open_ledger(ledger) as records:
        built = build(records, declared, on_step=lambda text: typer.echo(text, err=True))
        if out is not None:
            write_rows(out / "rows.jsonl", built.rows)
            _write(out, card_of(records, built.manifest.id))
    if as_json:
        print(json.dumps({"dataset": built.manifest.id, **built.told}, ensure_ascii=False))
        return
    for one in built.contaminated[:NAMED]:
        typer.echo(f"  {one.suite} item {one.task_id} stands in {one.row_id} ({one.how}, {one.part})", err=True)
    print(f"{built.manifest.id}: {len(built.rows)} rows" + (f" in {out / 'rows.jsonl'}" if out else ""))


@data_app.command("card")
def write_card(
    dataset: Annotated[str, typer.Argument(help="The dataset's id.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A folder for card.html and card.md; else Markdown is printed.")
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """The card of any dataset in the ledger: what is in it, who said it, what was taken out, and what came of it."""
    from metier.cli.find import open_ledger
    from metier.feedback.data.card import as_markdown, card_of
    from metier.records.types import to_plain

    with open_ledger(ledger) as records:
        card = card_of(records, dataset)
    if out is not None:
        _write(out, card)
    if as_json:
        told = to_plain(card)
        print(json.dumps({key: value for key, value in told.items() if key != "manifest"} | {"dataset": dataset}))
    elif out is None:
        print(as_markdown(card), end="")
    else:
        print(out / "card.html")


@data_app.command("health")
def health(
    run: Annotated[str | None, typer.Option(help="Only the episodes of this run.")] = None,
    policy: Annotated[str | None, typer.Option(help="Only the attempts of this checkpoint.")] = None,
    splits: Annotated[list[str] | None, typer.Option("--split", help="Splits looked at; those for training.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Put the right answers to the tasks' verifiers now.")
    ] = False,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """How hard tasks are for each policy, which are never or always solved or faulty, and what to do with them."""
    from metier.cli.find import find_run, open_ledger
    from metier.feedback.data.declaration import TRAINING
    from metier.feedback.data.health import by_policy, suggest, task_health

    with open_ledger(ledger) as records:
        found = task_health(
            records,
            run_id=None if run is None else find_run(records, run),
            splits=splits or TRAINING,
            policy=policy,
            verify=verify,
        )
    todo = suggest(found)
    if as_json:
        print(
            json.dumps(
                {
                    "tasks": [one.to_json() for one in found],
                    "suggestions": [{"task": s.task_id, "fault": s.fault, "do": s.what, "why": s.why} for s in todo],
                }
            )
        )
        return
    print(f"{len(found)} tasks were attempted")
    for name, (won, n) in by_policy(found).items():
        if n:
            print(f"  {name}: {won} of {n} attempts succeed ({won / n:.1%})")
    groups, saturated = sum(one.groups for one in found), sum(one.saturated for one in found)
    if groups:
        print(f"{saturated} of {groups} groups are saturated: all their scores are equal, they carry no gradient")
    for one in todo:
        print(f"{one.what} {one.task_id}: {one.fault}, {one.why}")


@data_app.command("draft")
def draft(
    file: Annotated[Path, typer.Argument(help="Where drafts are kept, as JSON lines.")],
    confirmed: Annotated[
        bool, typer.Option("--confirmed", help="Add the lines that a person confirmed to the ledger, as tasks.")
    ] = False,
    run: Annotated[str | None, typer.Option(help="Only the episodes of this run.")] = None,
    good: Annotated[float, typer.Option(help="The score from which an answer was accepted.")] = 1.0,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draft tasks from production: what was asked, what would have been right, and a verifier proposed by rule.

    Read the file, mend it, and set "confirmed": true and "by" in the lines that are right; then add them with
    --confirmed. Nothing becomes a task that nobody confirmed.
    """
    from metier.cli.find import find_run, open_ledger
    from metier.feedback.data.drafts import add_confirmed, draft_tasks, write_drafts

    with open_ledger(ledger) as records:
        if confirmed:
            manifest, faults = add_confirmed(records, file)
            n = 0 if manifest is None else len(manifest.task_ids)
            told: dict[str, Any] = {"tasks": n, "dataset": None if manifest is None else manifest.id, "faults": faults}
            text = f"{n} tasks added" + (f" as {manifest.id}" if manifest else "")
        else:
            drafted = draft_tasks(records, run_id=None if run is None else find_run(records, run), good=good)
            new = write_drafts(file, drafted.drafts)
            told = {"drafts": len(drafted.drafts), "new": new, "left": drafted.left}
            faults = [f"{n} × {why}" for why, n in drafted.left.items()]
            text = f"{new} new drafts in {file}, {len(drafted.drafts) - new} known"
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return
    for fault in faults:
        typer.echo(f"  left out: {fault}", err=True)
    print(text)


def _write(folder: Path, card: Card) -> None:
    from metier.feedback.data.card import as_html, as_markdown

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.html").write_text(as_html(card), encoding="utf-8")
    (folder / "card.md").write_text(as_markdown(card), encoding="utf-8")
