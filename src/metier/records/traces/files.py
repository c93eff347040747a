"""Rows out of files: JSON lines, JSON, CSV, Parquet, Arrow. One row that cannot be read is skipped alone.

CSV with a quotation mark that is not closed is refused: it would swallow the rows that follow, and nobody can tell
where the next one begins.

A folder is a dataset that Hugging Face `datasets` saved to disk: its Arrow files, in order.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from metier.base.errors import DataError
from metier.records.traces.calls import Skipped

__all__ = ["Row", "clean", "read_batches", "read_rows", "readable"]

_LARGEST = 2**30  # bytes of one JSON value
_PAGE = {"data", "meta", "next_cursor", "links", "object", "has_more", "first_id", "last_id"}
Row = tuple[str, Mapping[str, Any]]  # where it stands, for people, and what it holds


def read_rows(path: Path) -> Iterator[Row | Skipped]:
    """The rows of a file, packed by gzip or not. Raises `DataError` where it is not there or is none of these."""
    if path.is_dir():
        parts = sorted(path.glob("*.arrow"))
        if not parts:
            raise DataError(f"the folder {path} holds no Arrow files; name a file, or a dataset that was saved to disk")
        for part in parts:
            yield from read_rows(part)
        return
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    for row in _READERS.get(kind, _json)(path):
        yield row if isinstance(row, Skipped) else (row[0], clean(row[1]))


def clean(value: Any) -> Any:
    """What a ledger can hold: no halves of surrogate pairs, no NUL; Parquet's maps as objects."""
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else _text(value)
    if isinstance(value, Mapping):
        return {clean(str(k)): clean(v) for k, v in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(one, tuple) and len(one) == 2 for one in value):
            return {clean(str(k)): clean(v) for k, v in value}
        return [clean(v) for v in value]
    return value


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode().replace("\0", "")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _csv(path: Path) -> Iterator[Row | Skipped]:
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                begins = reader.line_num + 1  # after the last row that was whole
                raise DataError(f"{path}, line {begins}: {error}; is a quotation mark not closed?") from error
            if row is None:
                return
            yield f"{path.name}:{reader.line_num}", {k: v for k, v in row.items() if k is not None and v != ""}


def readable(rows: Iterable[Row | Skipped], skipped: list[Skipped]) -> Iterator[Row]:
    """The rows that can be read; the others go to `skipped` as they come."""
    for row in rows:
        if isinstance(row, Skipped):
            skipped.append(row)
        else:
            yield row


def read_batches(path: Path) -> Iterator[Any]:
    """The record batches of a Parquet or Arrow file. Raises `DataError` where it is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            yield from pyarrow.parquet.ParquetFile(path).iter_batches(1000)
            return
        with pyarrow.memory_map(str(path)) as source:
            try:
                opened = pyarrow.ipc.open_file(source)
            except pyarrow.ArrowInvalid:  # as `datasets` writes them
                yield from pyarrow.ipc.open_stream(source)
                return
            yield from (opened.get_batch(number) for number in range(opened.num_record_batches))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no {path.suffix[1:].capitalize()} file: {error}") from error


def _columns(path: Path) -> Iterator[Row]:
    count = 0
    for batch in read_batches(path):
        for row in batch.to_pylist():
            count += 1
            yield f"{path.name}:{count}", row


def _json(path: Path) -> Iterator[Row | Skipped]:
    with _open(path) as file:
        first = _first_line(file)
    if not first:
        return
    if first.startswith(b"[") or not _is_json(first):
        yield from _whole(path)
    else:
        yield from _lines(path)


_READERS: dict[str, Callable[[Path], Iterator[Row | Skipped]]] = {
    ".parquet": _columns,
    ".arrow": _columns,
    ".csv": _csv,
}


def _lines(path: Path) -> Iterator[Row | Skipped]:
    with _open(path) as file:
        for count, line in enumerate(_bounded(file), 1):
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


def _first_line(file: IO[bytes]) -> bytes:
    return next((line.strip() for line in _bounded(file) if line.strip()), b"")


def _bounded(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file. Raises `DataError` where one is too large to be held in memory."""
    while line := file.readline(_LARGEST + 1):
        if len(line) > _LARGEST:
            raise DataError(f"{file.name} has a line of more than {_LARGEST:,} bytes; write a row a line")
        yield line


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(path: Path) -> Iterator[Row | Skipped]:
    """A file that is one JSON value; where it is none, each of its lines may still be a row."""
    with _open(path) as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise DataError(f"{path} is one JSON value of more than {_LARGEST:,} bytes; write a row a line")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = list(_lines(path))
        if re.match(rb"\s*\[\s*\n", text):  # the bracket of a list that was cut short is no row
            found = found[1:]
        if all(isinstance(row, Skipped) for row in found):
            raise DataError(f"{path} is neither JSON nor JSON lines: {error}") from error
        yield from found
        return
    if not isinstance(value, list):
        yield from _unwrapped(path.name, value)
        return
    for count, row in enumerate(value, 1):
        yield from _unwrapped(f"{path.name}, item {count}", row)
