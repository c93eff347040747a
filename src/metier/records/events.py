"""The event log of a run: what happened, in order, one JSON object per line.

Progress displays, trackers and the learning curves of the report read it; no number
that a run computes depends on it. The file only grows. Each event is one write, so a
process that is killed leaves at most one torn line at the end, which is mended when the
log is opened again. A run that resumes repeats the steps that it redoes: `steps` keeps
the last event of each.

Every event holds `at` (UTC seconds), `stage` and `event`. The events:

    run_start    stages (names)
    stage_start
    stage_skip   (done before)
    stage_end    seconds, peak_memory_gb
    step         step, steps, and figures: loss, reward, success, tokens_per_s …
    progress     done, total, unit, and figures
    eval         split, success, n, low, high
    note         text

A figure that is not finite is written as null.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from metier.base.clock import now
from metier.base.errors import DataError, DiskFullError

__all__ = ["FILE_NAME", "Event", "EventLog", "Listener", "read", "steps"]

Event = dict[str, Any]
Listener = Callable[[Event], None]

FILE_NAME = "events.jsonl"


class EventLog:
    """Appends events to `events.jsonl` in a run folder, and hands each to its listeners."""

    def __init__(self, folder: str | Path, listeners: Sequence[Listener] = ()) -> None:
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _mend(self.path)
        self._listeners = tuple(listeners)
        self._descriptor: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def emit(self, stage: str, event: str, **fields: Any) -> Event:
        """Write one event and return it as it was written."""
        assert not fields.keys() & {"at", "stage", "event"}, "an event's own keys cannot be fields"
        assert self._descriptor is not None, "the event log is closed"
        record: Event = {"at": now(), "stage": stage, "event": event, **_finite(fields)}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                os.write(self._descriptor, line[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"the disk of {self.path.parent} is full; free some space and run the same command to continue"
                ) from error
            raise
        for listener in self._listeners:
            listener(record)
        return record

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(folder: str | Path) -> list[Event]:
    """All events of a run folder, oldest first; a torn last line is left out.

    A folder without a log has no events. Raises `DataError` where an earlier line is damaged.
    """
    path = Path(folder) / FILE_NAME
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    events: list[Event] = []
    for number, line in enumerate(lines, start=1):
        event = _parse(line)
        if event is not None:
            events.append(event)
        elif line and number < len(lines):
            raise DataError(f"{path}, line {number}: this is not an event; remove that line")
    return events


def steps(events: Iterable[Event], stage: str) -> list[Event]:
    """The `step` events of a stage, by step; where a step was redone, the last time counts."""
    last = {int(e["step"]): e for e in events if e["event"] == "step" and e["stage"] == stage}
    return [last[step] for step in sorted(last)]


def _mend(path: Path) -> None:
    """Finish or drop a last line that has no line end."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data.rfind(b"\n") + 1
    tail = data[whole:]
    if not tail:
        return
    with path.open("r+b") as file:
        if _parse(tail) is not None:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(whole)


def _parse(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
