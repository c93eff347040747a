"""Rows out of files: JSON lines, JSON, CSV, Parquet. One row that cannot be read is skipped alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.records.traces.calls import Skipped

__all__ = ["Row", "read_rows"]

Row = tuple[str, Mapping[str, Any]]  # where it stands, for people, and what it holds


def read_rows(path: Path) -> Iterator[Row | Skipped]:
    """The rows of a file. Raises `DataError` where the file is not there or is none of these."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for count, row in enumerate(csv.DictReader(file), 2):
                yield f"{path.name}:{count}", {k: v for k, v in row.items() if k is not None and v != ""}
    else:
        yield from _json(path)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    count = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                count += 1
                yield f"{path.name}:{count}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is no Parquet file: {error}") from error


def _json(path: Path) -> Iterator[Row | Skipped]:
    with path.open("rb") as file:
        first = _first_line(file.readline(), file)
        if not first:
            return
        if first.startswith(b"[") or not _is_json(first):
            yield from _whole(path)
            return
        file.seek(0)
        for count, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path.name}:{count}"
            try:
                value = json.loads(line)
            except ValueError as error:
                yield Skipped(place, f"not valid JSON: {error}")
                continue
            if isinstance(value, Mapping):
                yield place, value
            else:
                yield Skipped(place, f"a row must be an object, not {type(value).__name__}")


def _first_line(line: bytes, file: Any) -> bytes:
    while line and not line.strip():
        line = file.readline()
    return line.strip()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _whole(path: Path) -> Iterator[Row | Skipped]:
    """A file that is one JSON value; where it is none, each of its lines may still be a row."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        good = False
        with path.open("rb") as file:
            for count, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    yield Skipped(f"{path.name}:{count}", "not valid JSON")
                    continue
                if isinstance(row, Mapping):
                    good = True
                    yield f"{path.name}:{count}", row
        if not good:
            raise DataError(f"{path} is neither JSON nor JSON lines: {error}") from error
        return
    for count, row in enumerate(value if isinstance(value, list) else [value], 1):
        place = f"{path.name}, item {count}" if isinstance(value, list) else path.name
        if isinstance(row, Mapping):
            yield place, row
        else:
            yield Skipped(place, f"a row must be an object, not {type(row).__name__}")
