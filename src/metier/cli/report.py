"""`metier report`: write a run's page anew from the ledger and the event log."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[str, typer.Argument(help="A run's id, the start of one, its folder, or: last")] = "last",
    ledger: Annotated[
        str | None, typer.Option(help="The project's ledger: a file or a URL; runs/ledger.sqlite unless told.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    open_report: Annotated[
        bool, typer.Option("--open", help="Open the report in a browser where there is a screen.")
    ] = False,
) -> None:
    """Write the report of a run again: one HTML file in the run's folder."""
    from pathlib import Path

    from metier.cli.find import find_run, open_ledger
    from metier.cli.run import show_page
    from metier.report.collect import collect
    from metier.report.page import render, write

    with open_ledger(ledger) as records:
        run_id = find_run(records, run)
        path = Path(records.run(run_id).folder) / "report.html"
        page = render(collect(records, run_id))
    write(path, page)
    print(json.dumps({"run": run_id, "report": str(path)}) if as_json else f"report  {path}")
    if open_report:
        show_page(path)
