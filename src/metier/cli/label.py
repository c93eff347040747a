"""`metier label`: the page where people give feedback, or how far they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metier.cli.runs import JsonOption, LedgerOption
from metier.cli.tables import tell_left_out

if TYPE_CHECKING:
    from metier.feedback.people.labelling import Labelling
    from metier.feedback.people.results import Results

__all__ = ["label", "results_text"]

PLACES = 3  # rows named that could not be used


def label(
    queue: Annotated[
        Path, typer.Argument(help="What is asked about which items: YAML, or JSON lines of messages and responses.")
    ],
    people: Annotated[int, typer.Option(min=0, help="Make links for so many people beside the owner's.")] = 0,
    invite: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Make a link for this person; may be repeated.")
    ] = None,
    owner: Annotated[str, typer.Option(metavar="NAME", help="Who sees the results and invites others.")] = "owner",
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8010,
    url: Annotated[str | None, typer.Option(help="Where people reach it, where a proxy stands before it.")] = None,
    user_header: Annotated[
        str | None, typer.Option(metavar="HEADER", help="The header in which a login proxy names the person.")
    ] = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds for what is under way when the server is stopped.")] = 10,
    show_results: Annotated[bool, typer.Option("--results", help="Show how far it is instead of serving it.")] = False,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask people: serve the page of a labelling queue; what they say goes into the ledger.

    The same command goes on where it was, with the same links. docs/labelling.md describes queues.
    """
    from metier.cli.find import DEFAULT_LEDGER
    from metier.feedback.people.labelling import Labelling
    from metier.feedback.people.queue import read_queue
    from metier.feedback.people.results import results

    asked = read_queue(queue)
    tell_left_out(asked.skipped, PLACES)
    with Labelling(asked, ledger or DEFAULT_LEDGER) as labelling:
        if show_results:
            found = results(labelling)
            print(json.dumps(found.to_json(), ensure_ascii=False, indent=2) if as_json else results_text(found), end="")
            print(end="\n" if as_json else "")
            return
        names = [*(invite or ()), *(f"person-{n}" for n in range(1, people + 1))]
        _serve(labelling, owner, names, host, port, url, user_header, grace, as_json)


def results_text(found: Results) -> str:
    """How a queue stands, in words."""
    lines = [f"{found.queue}: {found.done} of {found.wanted} judgements, {found.skipped} skipped"]
    for worker in found.workers:
        line = f"  {worker.name}: {worker.answered} answered"
        line += f", {worker.skipped} skipped" if worker.skipped else ""
        line += f", gold {worker.gold_right} of {worker.gold}" if worker.gold else ""
        lines.append(line + (f", {worker.seconds:g} s each" if worker.seconds is not None else ""))
    agreement = found.agreement
    if agreement is not None and agreement.pairs:
        line = f"agreement: {agreement.agreeing} of {agreement.pairs} pairs of answers on {agreement.items} items"
        line += f", alpha {agreement.alpha:.2f}" if agreement.alpha is not None else ""
        lines.append(line + (f" ({agreement.low:.2f} to {agreement.high:.2f})" if agreement.low is not None else ""))
    if found.chosen:
        lines.append(f"first shown chosen: {found.first} of {found.chosen}")
    return "\n".join(lines) + "\n"


def _serve(
    labelling: Labelling,
    owner: str,
    names: list[str],
    host: str,
    port: int,
    url: str | None,
    user_header: str | None,
    grace: int,
    as_json: bool,
) -> None:
    from metier.cli.listening import listen, need_server, serve_until_stopped
    from metier.feedback.people.access import clean_name

    need_server("label")
    from metier.feedback.people.server import make_app

    site = make_app(labelling, url=url, user_header=user_header)
    listener, address = listen(host, port)
    here = (url or address).rstrip("/")
    links = {clean_name(owner): labelling.links.invite(clean_name(owner), "owner")}
    for name in map(clean_name, names):
        if name not in links:
            links[name] = labelling.links.invite(name, "labeller")
    urls = {name: f"{here}/join/{labelling.links.token(person)}" for name, person in links.items()}
    if as_json:
        print(json.dumps({"queue": labelling.queue.key, "url": here, "links": urls}, ensure_ascii=False), flush=True)
    else:
        width = max(map(len, urls))
        print(f"labelling {labelling.queue.key}, {len(labelling.queue.items)} items; Ctrl-C stops")
        for name, link in urls.items():
            print(f"  {name:<{width}}  {link}")
        print(end="", flush=True)
    serve_until_stopped(site, listener, grace=grace, server_header=False)
