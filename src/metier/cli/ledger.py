"""`metier ledger`: what goes into the project's ledger from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metier.cli.runs import JsonOption, LedgerOption

if TYPE_CHECKING:
    from metier.records.traces.importing import Imported

__all__ = ["import_files", "imported_text", "ledger_app"]

PLACES = 3  # named for each reason

ledger_app = typer.Typer(
    name="ledger", help="The record of everything: take in what others have kept.", no_args_is_help=True
)


@ledger_app.callback()
def _root() -> None:
    pass


@ledger_app.command("import")
def import_files(
    files: Annotated[
        list[Path], typer.Argument(help="JSON, JSON lines, CSV or Parquet; files that belong together, in one call.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            help="openai (chat JSONL), otel (GenAI spans), langfuse or phoenix; told from the rows if not given."
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="The product or project that they come from.")] = "production",
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Replace e-mail addresses, numbers of phones and cards, keys and the like.")
    ] = False,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take traces of a model at work into the ledger: conversations as episodes, with what was said about them.

    Importing again changes nothing that is there; what cannot be used is skipped and named.
    """
    from metier.cli.find import DEFAULT_LEDGER
    from metier.records.ledger import Ledger
    from metier.records.traces.importing import import_traces

    where = ledger or DEFAULT_LEDGER
    if "://" not in where:
        Path(where).parent.mkdir(parents=True, exist_ok=True)
    with Ledger.open(where) as records:
        done = import_traces(records, files, format=format, source=source, scrub=scrub)
    if not as_json:
        print(imported_text(done), end="")
        return
    counts = {
        name: getattr(done, name)
        for name in ("format", "run_id", "episodes", "episodes_known", "calls", "feedback", "feedback_known")
    }
    print(json.dumps({**counts, "skipped": [{"place": s.place, "why": s.why} for s in done.skipped]}, indent=2))


def imported_text(done: Imported) -> str:
    """What was taken, what was known and what was skipped, with why."""
    lines = [
        f"{done.format}: {done.episodes} episodes taken ({done.calls} calls of a model in the file), "
        f"{done.episodes_known} known already",
        f"feedback: {done.feedback} taken, {done.feedback_known} known already",
    ]
    for why, places in done.reasons.items():
        named = ", ".join(places[:PLACES]) + (" …" if len(places) > PLACES else "")
        lines.append(f"skipped {len(places)}: {why} ({named})")
    lines.append(f"run {done.run_id}; metier runs show EPISODE reads one")
    return "\n".join(lines) + "\n"
