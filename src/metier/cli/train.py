"""`metier train`: train a model on a plain file, without a recipe."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    objective: Annotated[str, typer.Argument(help="sft, dpo, kto, orpo, simpo, reward, process_reward or distill.")],
    data: Annotated[
        str, typer.Option(help="Rows as JSONL, JSON or Parquet, in TRL's dataset types or OpenAI's chat format.")
    ],
    out: Annotated[str, typer.Option(help="The folder of the checkpoint.")],
    model: Annotated[str, typer.Option(help="A folder in Hugging Face layout, a hub id, or smollm2.")] = "smollm2",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another setting, e.g. lr=1e-5 or options.beta=0.2; may be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress goes to stderr.")] = False,
) -> None:
    """Train a model on a file of rows.

    The same command continues a training that was stopped, and ends with the same weights.
    """
    from rich.console import Console

    from metier.base.config import parse
    from metier.cli.progress import get_progress
    from metier.train import processes
    from metier.train.fit import FitSettings, fit

    given = {"objective": objective, "data": data, "out": out, "model": model}
    settings = parse(FitSettings, given, overrides or [])
    console = Console(stderr=as_json)
    try:
        with get_progress(console) as progress:
            result = fit(settings, on_event=progress)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues from here", err=True)
        raise typer.Exit(130) from None
    if not processes.leads():
        return
    if as_json:
        print(json.dumps(result))
    else:
        print(f"model   {result['out']}")
        print(f"steps   {result['steps']}")
        print(f"rows    {result['rows']}")
