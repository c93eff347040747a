"""Rows out of files: JSON lines, JSON, CSV, Parquet. One row that cannot be read is skipped alone."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from metier.base.errors import DataError
from metier.records.traces.calls import Skipped

__all__ = ["Row", "read_rows"]

_PAGE = {"data", "meta", "next_cursor", "links", "object", "has_more", "first_id", "last_id"}
Row = tuple[str, Mapping[str, Any]]  # where it stands, for people, and what it holds


def read_rows(path: Path) -> Iterator[Row | Skipped]:
    """The rows of a file, packed by gzip or not. Raises `DataError` where it is not there or is none of these."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    rows = _parquet(path) if kind == ".parquet" else _csv(path) if kind == ".csv" else _json(path)
    for row in rows:
        yield row if isinstance(row, Skipped) else (row[0], _clean(row[1]))


def _clean(value: Any) -> Any:
    """What a ledger can hold: no halves of surrogate pairs, no NUL; Parquet's maps as objects."""
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else _text(value)
    if isinstance(value, Mapping):
        return {_clean(str(k)): _clean(v) for k, v in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(one, tuple) and len(one) == 2 for one in value):
            return {_clean(str(k)): _clean(v) for k, v in value}
        return [_clean(v) for v in value]
    return value


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode().replace("\0", "")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _csv(path: Path) -> Iterator[Row | Skipped]:
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield Skipped(f"{path.name}:{reader.line_num}", f"not valid CSV: {error}")
                continue
            if row is None:
                return
            yield f"{path.name}:{reader.line_num}", {k: v for k, v in row.items() if k is not None and v != ""}


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    count = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000):
            for row in batch.to_pylist():
                count += 1
                yield f"{path.name}:{count}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file: {error}") from error


def _json(path: Path) -> Iterator[Row | Skipped]:
    with _open(path) as file:
        first = _first_line(file.readline(), file)
    if not first:
        return
    if first.startswith(b"[") or not _is_json(first):
        yield from _whole(path)
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[Row | Skipped]:
    with _open(path) as file:
        for count, line in enumerate(file, 1):
            if line.strip():
                yield from _rows(f"{path.name}:{count}", line.strip().rstrip(b","))


def _rows(place: str, line: bytes) -> Iterator[Row | Skipped]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        yield Skipped(place, "not valid JSON")
        return
    yield from _unwrapped(place, value)


def _unwrapped(place: str, value: Any) -> Iterator[Row | Skipped]:
    """A row; or the rows of a page of an API, `{"data": […]}`."""
    if not isinstance(value, Mapping):
        yield Skipped(place, f"a row must be an object, not {type(value).__name__}")
    elif isinstance(value.get("data"), list) and value.keys() <= _PAGE:
        for count, row in enumerate(value["data"], 1):
            yield from _unwrapped(f"{place}, item {count}", row)
    else:
        yield place, value


def _first_line(line: bytes, file: Any) -> bytes:
    while line and not line.strip():
        line = file.readline()
    return line.strip()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(path: Path) -> Iterator[Row | Skipped]:
    """A file that is one JSON value; where it is none, each of its lines may still be a row."""
    with _open(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = [row for row in _lines(path) if not (isinstance(row, Skipped) and row.place.endswith(":1"))]
        if all(isinstance(row, Skipped) for row in found):
            raise DataError(f"{path} is neither JSON nor JSON lines: {error}") from error
        yield from found
        return
    if not isinstance(value, list):
        yield from _unwrapped(path.name, value)
        return
    for count, row in enumerate(value, 1):
        yield from _unwrapped(f"{path.name}, item {count}", row)
