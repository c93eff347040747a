"""From what a person types to a record's id.

An id may be cut to any prefix that only one record has, with or without its `run-` in
front; `last` is the newest run that has a folder, which those of `metier profile` and
`evaluate` have not; a run is also found by its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy import Table, or_, select

from metier.base.errors import DataError, LedgerError
from metier.records import schema
from metier.records.ledger import Ledger

__all__ = [
    "DEFAULT_LEDGER",
    "Kind",
    "find",
    "find_checkpoint",
    "find_run",
    "find_weights",
    "has_ledger",
    "need_ledger",
    "new_ledger",
    "open_ledger",
]

Kind = Literal["run", "episode", "checkpoint"]

DEFAULT_LEDGER = "runs/ledger.sqlite"
TABLES: dict[Kind, Table] = {"run": schema.runs, "episode": schema.episodes, "checkpoint": schema.checkpoints}
SHOWN = 5  # ids named where a prefix fits several


def has_ledger(where: str | None) -> bool:
    """Whether there is a ledger to look into: one that was named, or the project's own."""
    return where is not None or Path(DEFAULT_LEDGER).exists()


def need_ledger(where: str | None, name: str) -> None:
    """Raises `DataError` where `name` is no file and there is no ledger that could have it as a run."""
    if not has_ledger(where):
        raise DataError(f"there is no file {name}, and no ledger here that could have a run of that name")


def open_ledger(where: str | None) -> Ledger:
    """Open a ledger that exists, the project's own unless told."""
    path = where or DEFAULT_LEDGER
    if "://" not in path and not Path(path).exists():
        raise LedgerError(f"there is no ledger {path}; run a recipe first, or name another with --ledger")
    return Ledger.open(path, create=False)


def new_ledger(where: str | None) -> Ledger:
    """Open a ledger, the project's own unless told; one that does not exist is made, with its folder."""
    path = where or DEFAULT_LEDGER
    if "://" not in path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Ledger.open(path)


def find(ledger: Ledger, text: str, kinds: Sequence[Kind]) -> tuple[Kind, str]:
    """The kind and id of the one record that `text` names. Raises `DataError` where it is none, or several."""
    if "run" in kinds:
        runs = ledger.runs()
        if text == "last":
            newest = next((run.id for run in runs if run.folder), None)
            if newest is None:
                raise DataError("there is no run in the ledger yet; start one with: metier run desk")
            return "run", newest
        folder = Path(text).resolve()
        for run in runs:
            if run.folder and Path(run.folder).resolve() == folder:
                return "run", run.id
    found: list[tuple[Kind, str]] = []
    with ledger.reading() as connection:
        for kind in kinds:
            column = TABLES[kind].c.id
            fits = or_(column.startswith(text, autoescape=True), column.contains(f"-{text}", autoescape=True))
            for record_id in connection.execute(select(column).where(fits)).scalars():
                if record_id == text:
                    return kind, record_id
                if record_id.startswith(text) or record_id.partition("-")[2].startswith(text):
                    found.append((kind, record_id))
    if len(found) == 1:
        return found[0]
    what = " or ".join(kinds)
    if not found:
        raise DataError(f"there is no {what} {text!r} in the ledger; metier runs list shows the runs")
    names = ", ".join(record_id for _, record_id in found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
    raise DataError(f"{text!r} fits {len(found)} records ({names}); give more of the id")


def find_run(ledger: Ledger, text: str) -> str:
    """The id of the one run that `text` names."""
    return find(ledger, text, ["run"])[1]


def find_checkpoint(ledger: Ledger, text: str) -> str:
    """The id of the one checkpoint that `text` names; of a run, of its last one."""
    kind, record_id = find(ledger, text, ["checkpoint", "run"])
    if kind == "checkpoint":
        return record_id
    made = ledger.checkpoints(record_id)
    if not made:
        raise DataError(f"run {record_id} has made no checkpoint yet; metier runs show {record_id} tells how far it is")
    return made[-1].id


def find_weights(ledger: Ledger, text: str) -> tuple[str, Path]:
    """The id of the checkpoint that `text` names, and the folder where its weights were written."""
    checkpoint = ledger.checkpoint(find_checkpoint(ledger, text))
    return checkpoint.id, Path(ledger.run(checkpoint.run_id).folder) / checkpoint.path
