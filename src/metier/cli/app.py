"""The tree of commands, in the groups that `metier --help` shows.

Only commands that work are here. A command's module is imported with the tree, so these
modules import nothing heavy at their top.
"""

from __future__ import annotations

from typing import Annotated

import typer

from metier.cli.data import data_app
from metier.cli.doctor import doctor
from metier.cli.evaluate import evaluate
from metier.cli.gate import gate
from metier.cli.judge import judge
from metier.cli.label import label
from metier.cli.ledger import ledger_app
from metier.cli.next import next_items
from metier.cli.profile import profile
from metier.cli.report import report
from metier.cli.run import run
from metier.cli.runs import runs_app
from metier.cli.serve import chat, serve
from metier.cli.stats import stats_app
from metier.cli.train import train
from metier.cli.transfer import transfer
from metier.cli.verify import verify

__all__ = ["app"]

LOOP = "Loop: tasks, episodes, feedback, training, evaluation, report"

FEEDBACK = "Feedback"
EVALUATE = "Evaluate"
FILES = "Files"
SERVE = "Serve"
MACHINE = "This machine"

app = typer.Typer(
    name="metier",
    help="Turn feedback into a model's behaviour, and show whether it holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"metier {version('metier')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("run", rich_help_panel=LOOP)(run)
app.command("train", rich_help_panel=LOOP)(train)
app.command("report", rich_help_panel=LOOP)(report)
app.command("verify", rich_help_panel=FEEDBACK)(verify)
app.command("judge", rich_help_panel=FEEDBACK)(judge)
app.command("label", rich_help_panel=FEEDBACK)(label)
app.add_typer(data_app, name="data", rich_help_panel=FEEDBACK)
ledger_app.command("next")(next_items)
app.add_typer(ledger_app, name="ledger", rich_help_panel=FEEDBACK)
app.command("evaluate", rich_help_panel=EVALUATE)(evaluate)
app.command("profile", rich_help_panel=EVALUATE)(profile)
app.command("gate", rich_help_panel=EVALUATE)(gate)
app.command("transfer", rich_help_panel=EVALUATE)(transfer)
app.add_typer(stats_app, name="stats", rich_help_panel=FILES)
app.command("serve", rich_help_panel=SERVE)(serve)
app.command("chat", rich_help_panel=SERVE)(chat)
app.command("doctor", rich_help_panel=MACHINE)(doctor)
app.add_typer(runs_app, name="runs", rich_help_panel=LOOP)
