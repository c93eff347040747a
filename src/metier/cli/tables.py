"""Tables of the statistics as files: reading one, and telling what of it could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from metier.base.errors import DataError
from metier.stats.tables import Skipped, Table, read_table

if TYPE_CHECKING:
    from metier.records.traces import calls

__all__ = ["read_rows", "tell_left_out", "tell_skipped"]

PLACES = 5  # rows that are named


def read_rows(path: Path, columns: Sequence[str]) -> Table:
    """The rows of a file that have all `columns`."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    return read_table(path.read_bytes(), str(path), columns)


def tell_skipped(name: str, skipped: Sequence[Skipped]) -> None:
    """On stderr, which rows of a file were left out and why."""
    if skipped:
        named = "; ".join(f"line {one.line}: {one.why}" for one in skipped[:PLACES])
        more = " …" if len(skipped) > PLACES else ""
        typer.echo(f"left out {len(skipped)} rows of {name}: {named}{more}", err=True)


def tell_left_out(skipped: Sequence[calls.Skipped], most: int = PLACES) -> None:
    """On stderr, which rows of data were left out and why, a line for each of the first."""
    for row in skipped[:most]:
        typer.echo(f"left out {row.place}: {row.why}", err=True)
    if len(skipped) > most:
        typer.echo(f"… and {len(skipped) - most} more rows", err=True)
