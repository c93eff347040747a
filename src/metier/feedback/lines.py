"""Files of JSON objects, one a line, worked through: a line out for each line in, in the same order, resumable.

`metier verify` and `metier judge` go through files in this way; what a line comes to is theirs. A file that was
stopped goes on where it was. Lines that were unscored by what another call may mend (the network, an engine, a
budget) are done again, with all after them, so that order is kept.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from metier.base.errors import DataError

__all__ = ["Told", "count_reason", "in_order", "parsed_line", "write_lines"]

_AHEAD = 8  # lines that are read beyond those in work, for each of them
_AGAIN = frozenset({"network", "engine", "budget"})  # what another call may mend
_REASONS = 20  # kinds of them that are counted apart
R = TypeVar("R")
Told = Mapping[str, Any]
"""A line out; it has an `id`, a `status` and a `reason`."""


def parsed_line(raw: bytes, number: int) -> dict[str, Any]:
    """The object on a line. Raises `DataError` naming the line."""
    try:
        given = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number} is no JSON: {str(error)[:100]}") from error
    if not isinstance(given, dict):
        raise DataError(f"line {number} is no JSON object")
    return given


def in_order(lines: Iterable[bytes], work: Callable[[bytes, int], R], *, jobs: int = 1, first: int = 1) -> Iterator[R]:
    """What each line comes to, in their order, `jobs` at a time; no more are read than are nearly due."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for number, raw in enumerate(lines, first):
                waiting.append(pool.submit(work, raw, number))
                while len(waiting) > jobs * _AHEAD or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def write_lines(
    source: BinaryIO,
    out: Path | None,
    write: Callable[[str], object],
    work: Callable[[bytes, int], Told],
    count: Callable[[Told], None],
    *,
    jobs: int = 1,
    command: str,
) -> int:
    """A line in `out`, or by `write(text)`, for each of a file's; returns how many `out` had already.

    Raises `DataError` where `out` is not of this file, or not of metier's `command`.
    """
    lines = (raw for raw in source if raw.strip())
    if out is None:
        for told in in_order(lines, work, jobs=jobs):
            count(told)
            write(json.dumps(told) + "\n")
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = end = 0
    for told, reached in _settled(out, command):
        raw = next(lines, None)
        if raw is None or _id_of(raw, kept + 1) != told.get("id"):
            raise DataError(f"{out} has lines of another file, from line {kept + 1} on; remove it, or name another -o")
        count(told)
        kept, end = kept + 1, reached
    with out.open("ab") as file:
        file.truncate(end)
        for fresh in in_order(lines, work, jobs=jobs, first=kept + 1):
            count(fresh)
            file.write(json.dumps(fresh).encode() + b"\n")
            file.flush()
    return kept


def count_reason(reasons: dict[str, int], told: Told) -> None:
    """Count why a line is unscored; of very many kinds of reasons the first ones."""
    reason = str(told["reason"])[:100]
    if reason in reasons or len(reasons) < _REASONS:
        reasons[reason] = reasons.get(reason, 0) + 1


def _id_of(raw: bytes, number: int) -> Any:
    try:
        return parsed_line(raw, number).get("id", number)
    except DataError:
        return number


def _settled(out: Path, command: str) -> Iterator[tuple[Told, int]]:
    """The whole lines up to the first that another call may mend, and where each ends."""
    if not out.exists():
        return
    end = 0
    with out.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            try:
                told = json.loads(raw)
            except ValueError as error:
                raise DataError(f"{out} is no output of metier {command}: {error}; name another -o") from error
            if not isinstance(told, dict) or "status" not in told:
                raise DataError(f"{out} is no output of metier {command}; name another -o")
            if told["status"] == "unscored" and told.get("boundary") in _AGAIN:
                return
            end += len(raw)
            yield told, end
