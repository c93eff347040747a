"""`metier run`: walk the loop once, as a recipe says, showing progress."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["run", "show_page"]


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a packaged recipe: desk, desk-small, math, code, code-repair or"
            " preferences."
        ),
    ],
    folder: Annotated[
        str | None, typer.Option(help="Where the run keeps its files; runs/NAME of the recipe unless told.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The root of all random choices; the recipe's unless told.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting, e.g. stages.grpo.steps=3; may be repeated."
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(help="The project's ledger: a file or a URL; ledger.sqlite beside the run's folder unless told."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress goes to stderr.")] = False,
    open_report: Annotated[
        bool, typer.Option("--open", help="Open the report in a browser where there is a screen.")
    ] = False,
) -> None:
    """Walk the loop once: evaluate, train and report as a recipe says.

    The same command continues a run that was stopped, and ends with the same numbers.
    """
    from rich.console import Console

    from metier.base.config import find_recipe
    from metier.cli.progress import get_progress

    path = find_recipe(recipe)  # before torch is imported: a misspelt name is told at once
    from metier.recipes.runner import run as run_recipe

    console = Console(stderr=as_json)
    try:
        with get_progress(console) as progress:
            result = run_recipe(
                str(path), folder=folder, seed=seed, overrides=overrides or [], ledger=ledger, listener=progress
            )
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues from here", err=True)
        raise typer.Exit(130) from None
    if as_json:
        report = None if result.report is None else str(result.report)
        print(json.dumps({"run": result.run_id, "folder": str(result.folder), "report": report}))
    else:
        print(f"run     {result.run_id}")
        print(f"folder  {result.folder}")
        if result.report is not None:
            print(f"report  {result.report}")
    if open_report and result.report is not None:
        show_page(Path(result.report))


def show_page(path: Path) -> None:
    """Open a file in the user's browser where there is a screen and a person; elsewhere do nothing."""
    screen = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if screen and not os.environ.get("CI"):
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
