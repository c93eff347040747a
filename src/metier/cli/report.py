"""`metier report`: write a run's page anew from the ledger and the event log, or one page of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="A run's id, the start of one, its folder, or: last, which it is unless told."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put several runs side by side on one page, against the first of them.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE.html",
            help="Where to write the page; report.html, or with --compare compare.html, in the first run's folder.",
        ),
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(help="The project's ledger: a file or a URL; runs/ledger.sqlite unless told.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    open_report: Annotated[
        bool, typer.Option("--open", help="Open the report in a browser where there is a screen.")
    ] = False,
) -> None:
    """Write the report of a run again, or of several side by side: one HTML file that needs nothing else."""
    from metier.base.errors import ConfigError
    from metier.cli.find import find_run, open_ledger
    from metier.cli.run import show_page
    from metier.report.collect import collect
    from metier.report.compare import compare_runs
    from metier.report.page import render, render_comparison, write

    named = runs or ["last"]
    if compare and len(named) < 2:
        raise ConfigError("--compare puts two runs or more side by side; name them")
    if len(named) > 1 and not compare:
        raise ConfigError("a report is of one run; several are put side by side with --compare")
    with open_ledger(ledger) as records:
        found = [find_run(records, name) for name in named]
        folder = records.run(found[0]).folder
        if out is None and not folder:
            raise ConfigError(f"{found[0]} has no folder to write its page to; say where with -o FILE.html")
        path = out or Path(folder) / ("compare.html" if compare else "report.html")
        if compare:
            comparison = compare_runs(records, found)
            page, told = render_comparison(comparison), comparison.to_json()
        else:
            page, told = render(collect(records, found[0])), {"run": found[0]}
    write(path, page)
    print(json.dumps({**told, "report": str(path)}, ensure_ascii=False) if as_json else f"report  {path}")
    if open_report:
        show_page(path)
