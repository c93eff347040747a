"""Rows out of CSV or JSON lines for the statistics: what can be used, and where and why the rest cannot.

Pure: it takes the bytes of a file. CSV needs a first line that names its columns (comma,
tab or semicolon between them, any order, more than are asked for); JSON lines are objects.
Which of the two it is shows in the first character. A row that cannot be used never stops
the others; a file that is no table at all does.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from metier.base.errors import DataError

__all__ = ["LARGEST", "Row", "Skipped", "Table", "number", "read_table", "stream_rows", "word"]

LARGEST = 1e100  # magnitude beyond which a number is refused: sums of squares of larger ones may not be finite


class Row(NamedTuple):
    """One row, with the line of the file on which it ends."""

    line: int
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that cannot be used."""

    line: int
    why: str


@dataclass(slots=True, kw_only=True)
class Table:
    """The rows of a file that have all that was asked for."""

    name: str
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, row: Row, why: str) -> None:
        """Say that a row cannot be used after all."""
        self.skipped.append(Skipped(line=row.line, why=why))

    def need(self, what: str) -> None:
        """Raise `DataError` where no row is left to work with; `what` says what a row holds."""
        if not self.rows:
            first = f"; line {self.skipped[0].line}: {self.skipped[0].why}" if self.skipped else ""
            raise DataError(f"{self.name} has no row with {what}{first}")


def read_table(data: bytes, name: str, columns: Sequence[str]) -> Table:
    """The rows of `data` in which each of `columns` is there and not empty; `name` is the file's, for messages."""
    table = Table(name=name)
    for row in stream_rows(data, table, columns):
        lacking = [column for column in columns if row.cells.get(column) in (None, "")]
        if lacking:
            table.skip(row, f"no {' and no '.join(lacking)}")
        else:
            table.rows.append(row)
    return table


def stream_rows(data: bytes, table: Table, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Row by row, for large files; rows that are none go to `table.skipped`. CSV has to name all `columns`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{table.name} is not UTF-8 (line {line}); save it as UTF-8") from error
    first = text.lstrip()[:1]
    if not first:
        raise DataError(f"{table.name} is empty; it needs rows")
    return _json_rows(text, table) if first in "{[" else _csv_rows(text, table, columns)


def number(cell: Any) -> float:
    """A cell as a number of at most `LARGEST` either way; raises `DataError` that says what it is instead."""
    if isinstance(cell, str) and "_" in cell:  # Python's own float takes 1_000 for 1000
        raise DataError(f"{cell[:40]!r} is no number")
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise DataError(f"{str(cell)[:40]!r} is no number") from None
    except OverflowError:
        raise DataError(f"a whole number of hundreds of digits is beyond {LARGEST:g}") from None
    if not math.isfinite(value):
        raise DataError(f"{value} is no finite number")
    if abs(value) > LARGEST:
        raise DataError(f"{value:g} is beyond {LARGEST:g}")
    return value


def word(cell: Any) -> str:
    """A cell as text; raises `DataError` for what JSON writes as NaN or Infinity, which names nothing."""
    if isinstance(cell, float) and not math.isfinite(cell):
        raise DataError(f"{cell} is no label or name")
    return str(cell)


def _json_rows(text: str, table: Table) -> Iterator[Row]:
    if text.lstrip()[0] == "[":
        raise DataError(f"{table.name} is one JSON list; write one object a line instead (JSON lines)")
    decode = json.JSONDecoder().decode
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw or raw.isspace():
            continue
        try:
            given = decode(raw)
        except (ValueError, RecursionError) as error:
            table.skipped.append(Skipped(line=line, why=f"no JSON: {str(error)[:80]}"))
            continue
        if isinstance(given, dict):
            yield Row(line=line, cells=given)
        else:
            table.skipped.append(Skipped(line=line, why="no JSON object"))


def _csv_rows(text: str, table: Table, columns: Sequence[str]) -> Iterator[Row]:
    head = text.lstrip("\r\n").split("\n", 1)[0]
    between = max(",\t;", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{table.name}, line {reader.line_num}: {error}; is a quotation mark not closed?"
            ) from error
        if not any(cell.strip() for cell in cells):
            continue
        if names is None:
            names = [cell.strip().lower() for cell in cells]
            lacking = [column for column in columns if column not in names]
            if lacking:
                raise DataError(
                    f"{table.name} has no column {' and no column '.join(lacking)}; its first line must name the "
                    f"columns, and names {', '.join(names)[:200]}"
                )
            twice = [column for column in columns if names.count(column) > 1]
            if twice:
                raise DataError(f"{table.name} has two columns {twice[0]}; rename one")
            continue
        if len(cells) != len(names):
            why = f"{len(cells)} cells where the first line names {len(names)} columns"
            table.skipped.append(Skipped(line=reader.line_num, why=why))
            continue
        yield Row(line=reader.line_num, cells=dict(zip(names, (cell.strip() for cell in cells), strict=True)))
