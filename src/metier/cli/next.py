"""`metier ledger next`: a queue of what is worth asking people next, or only the ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metier.cli.runs import JsonOption, LedgerOption

if TYPE_CHECKING:
    from metier.feedback.selection.choose import Choice
    from metier.feedback.selection.filling import Filled

__all__ = ["filled_text", "next_items"]

SHOWN = 10  # items printed where no queue is written


def next_items(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="QUEUE.jsonl", help="The queue to fill up; without one, show the best."),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Open items that the queue is to hold.")] = 50,
    criterion: Annotated[str, typer.Option(help="What people are asked for.")] = "preference",
    kind: Annotated[str, typer.Option(help="How: pair, or of one answer rating, labels, edit or marks.")] = "pair",
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="For labels and marks, what may be chosen; repeated.")
    ] = None,
    people: Annotated[int, typer.Option(min=1, help="People whose answers are enough for an item.")] = 1,
    purpose: Annotated[
        str, typer.Option(help="training never asks about held-out tasks; evaluation asks about nothing else.")
    ] = "training",
    evidence: Annotated[
        list[str] | None,
        typer.Option(metavar="CRITERION", help="Also read what machines said under this one; repeated."),
    ] = None,
    per: Annotated[
        str, typer.Option(help="What an answer costs: second, by what there is to read, or item, one like another.")
    ] = "item",
    duel: Annotated[
        bool, typer.Option("--duel", help="Pairs by double Thompson sampling: find the best, and leave the rest.")
    ] = False,
    uniform: Annotated[float, typer.Option(help="The share drawn at random; at least a tenth.")] = 0.1,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="Only episodes of this run.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose what to ask people next: what is worth most for its cost, a tenth at random, each with its propensity.

    Filled up to N open items: the same command again adds nothing until people have answered.
    """
    from typing import cast, get_args

    from metier.base.errors import ConfigError
    from metier.cli.find import find_run, open_ledger
    from metier.feedback.people.queue import Kind
    from metier.feedback.selection.candidates import Asking, Purpose
    from metier.feedback.selection.choose import Per
    from metier.feedback.selection.filling import fill
    from metier.feedback.verify import SUCCESS

    kinds = [one for one in get_args(Kind) if one != "ranking"]
    if kind not in kinds:
        raise ConfigError(f"--kind must be one of {', '.join(kinds)}, not {kind!r}")
    if purpose not in get_args(Purpose):
        raise ConfigError(f"--purpose must be training or evaluation, not {purpose!r}")
    if (kind in ("labels", "marks")) != bool(label):
        raise ConfigError(f"--kind {kind} " + ("takes no --label" if label else "needs --label, what may be chosen"))
    if per not in get_args(Per):
        raise ConfigError(f"--per must be second or item, not {per!r}")
    with open_ledger(ledger) as records:
        asking = Asking(
            criterion=criterion,
            size=2 if kind == "pair" else 1,
            people=people,
            purpose=cast(Purpose, purpose),
            evidence=tuple(dict.fromkeys((SUCCESS, *(evidence or ())))),
            run_id=None if run is None else find_run(records, run),
        )
        done = fill(
            records,
            asking,
            n,
            out,
            kind=cast(Kind, kind),
            labels=label or (),
            per=cast(Per, per),
            seed=seed,
            uniform=uniform,
            duel=duel,
        )
    print(json.dumps(_plain(done, out), indent=2) if as_json else filled_text(done, out), end="\n" if as_json else "")


def filled_text(done: Filled, out: Path | None) -> str:
    """What was drawn of what, what was left out, and what each kind of task needed."""
    drawn, choices = done.chosen.drawn, done.chosen.choices
    lines = []
    if out is not None:
        held = f"; {done.open} of the {done.held} that it held are open" if done.held else ""
        lines.append(f"{out}: {done.added} items added{held}")
    if drawn:
        chance = [one.propensity for one in drawn]
        at_random = sum(one.arm == "uniform" for one in drawn)
        lines.append(
            f"{len(drawn)} of {len(choices)} candidates: {len(drawn) - at_random} by value for their cost,"
            f" {at_random} at random; propensity {min(chance):.3g} to {max(chance):.3g};"
            f" about {sum(one.seconds for one in drawn) / 60:.0f} minutes of a person"
        )
    elif not choices:
        lines.append("there is nothing to ask")
    if done.found.left_out:
        lines.append("left out: " + ", ".join(f"{n} {why}" for why, n in done.found.left_out.items()))
    if drawn:
        rows = [["kind", "candidates", "drawn", "answers", "coverage", "weakness"]]
        for kind, (covered, weak) in done.chosen.kinds.items():
            counts = [sum(one.candidate.kind == kind for one in some) for some in (choices, drawn)]
            rows.append(
                [kind, *map(str, counts), str(done.found.labelled.get(kind, 0)), f"{covered:.2f}", f"{weak:.2f}"]
            )
        lines += _table(rows)
    if out is None and choices:
        rows = [["rank", "value/cost", "open", "sources", "ensemble", "seconds", "propensity", "episodes"]]
        rows += [_row(one) for one in choices[:SHOWN]]
        lines += ["", *_table(rows), "-o QUEUE.jsonl writes them as a queue for metier label"]
    elif drawn:
        lines.append(f"metier label {out} asks them")
    return "\n".join(lines) + "\n"


def _row(one: Choice) -> list[str]:
    numbers = f"{one.rank:g}|{one.per_cost:.3g}|{one.uncertainty:.2f}|{one.disagreement:.2f}|{one.ensemble:.2f}"
    return [*numbers.split("|"), f"{one.seconds:.0f}", f"{one.propensity:.3g}", " ".join(one.candidate.episodes)]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _plain(done: Filled, out: Path | None) -> dict[str, Any]:
    drawn = [{"episodes": one.candidate.episodes, **one.why} for one in done.chosen.drawn]
    return {
        "queue": None if out is None else str(out),
        "added": done.added if out is not None else 0,
        "open": done.open + (done.added if out is not None else 0),
        "candidates": len(done.chosen.choices),
        "left_out": dict(done.found.left_out),
        "drawn": drawn,
    }
