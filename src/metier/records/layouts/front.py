"""One way in: files of any format that the ledger reads, told from their first rows unless named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from metier.base.config import did_you_mean
from metier.base.errors import DataError, LedgerError
from metier.base.ids import derive_id
from metier.records import schema
from metier.records.arrow import statement_of
from metier.records.layouts import inspect_ai, lm_eval
from metier.records.layouts.importing import LAYOUTS, import_layout
from metier.records.ledger import Ledger
from metier.records.traces.calls import Skipped
from metier.records.traces.files import Row, read_batches, read_rows
from metier.records.traces.importing import FORMATS, Imported, import_traces
from metier.records.types import Feedback

__all__ = ["KNOWN", "import_files"]

FEEDBACK = "feedback"  # the ledger's own layout, as `metier ledger export` writes it
KNOWN = (FEEDBACK, *FORMATS, *LAYOUTS)
_BATCH = 1000
_LOOKED_AT = 50  # rows, to tell a format from


def import_files(
    ledger: Ledger,
    files: Sequence[Path],
    *,
    format: str | None = None,
    source: str = "production",
    split: str | None = None,
    scrub: bool = False,
    on_batch: Callable[[Imported], None] = lambda _: None,
) -> Imported:
    """Take what these files hold. `format` is one of `KNOWN`, told from the rows unless given.

    Good rows are kept, the others skipped and named in the result; importing again changes
    nothing that is there. Raises `DataError` where no row can be used.
    """
    if format is not None and format not in KNOWN:
        raise DataError(f"unknown format {format!r}{did_you_mean(format, list(KNOWN))}")
    format = format or _told(files)
    if format in FORMATS:
        return import_traces(ledger, files, format=format, source=source, scrub=scrub, on_batch=on_batch)
    if scrub:
        raise DataError(f"--scrub is for traces ({', '.join(FORMATS)}); these files are {format}")
    if format == FEEDBACK:
        done = _feedback(ledger, files, on_batch)
    else:
        rows = (row for file in files for row in _rows(file))
        done = import_layout(ledger, rows, format, source=source, split=split, on_batch=on_batch)
    if not (done.episodes or done.episodes_known or done.feedback or done.feedback_known):
        whys = "; ".join(f"{why} ({places[0]})" for why, places in list(done.reasons.items())[:3])
        raise DataError(f"{', '.join(map(str, files))}: no row could be taken as {format}: {whys or 'no rows'}")
    return done


def _rows(file: Path) -> Iterator[Row | Skipped]:
    """The rows of a file; of a log of an evaluation its samples, each with what the log says of them all."""
    if inspect_ai.is_packed(file):
        yield from inspect_ai.packed_rows(file)
        return
    log: Mapping[str, Any] | None = None
    for row in read_rows(file):
        if isinstance(row, Skipped):
            yield row
        elif inspect_ai.is_log(row[1]):
            yield from inspect_ai.rows_of(*row)
        elif lm_eval.fits(row[1]):
            log = log or lm_eval.log_of(file)
            yield row[0], {**row[1], "log": log}
        else:
            yield row


def _told(files: Sequence[Path]) -> str:
    for file in files:
        for row in itertools.islice(_rows(file), _LOOKED_AT):
            if isinstance(row, Skipped):
                continue
            if {"id", "about", "criterion", "kind"} <= row[1].keys():
                return FEEDBACK
            for name, module in (*FORMATS.items(), *LAYOUTS.items()):
                if module.fits(row[1]):
                    return name
    raise DataError(
        f"{', '.join(map(str, files))}: no row is of a known format; name it with --format: {', '.join(KNOWN)}"
    )


# --- the ledger's own layout ------------------------------------------------------------


def _feedback(ledger: Ledger, files: Sequence[Path], on_batch: Callable[[Imported], None]) -> Imported:
    """Statements about episodes that are in the ledger, under their own ids."""
    done = Imported(FEEDBACK, derive_id("run", "import", FEEDBACK))
    for file in files:
        if file.suffix not in (".parquet", ".arrow"):
            _take(ledger, done, read_rows(file), on_batch)
            continue
        count = 0
        for batch in read_batches(file):
            try:
                new = ledger.append_arrow(pa.Table.from_batches([batch]))
            except (DataError, LedgerError):  # find the rows that are to blame
                rows = [(f"{file.name}:{count + n}", row) for n, row in enumerate(batch.to_pylist(), 1)]
                _take(ledger, done, rows, on_batch)
            else:
                done.feedback += new
                done.feedback_known += batch.num_rows - new
                on_batch(done)
            count += batch.num_rows
    return done


def _take(ledger: Ledger, done: Imported, rows: Iterable[Row | Skipped], on_batch: Callable[[Imported], None]) -> None:
    feed = iter(rows)
    while batch := list(itertools.islice(feed, _BATCH)):
        done.skipped += [row for row in batch if isinstance(row, Skipped)]
        made = list(_statements(done, [row for row in batch if not isinstance(row, Skipped)]))
        known = ledger.known(schema.feedback, [s.id for _, s in made])
        try:
            ledger.add_feedback([s for _, s in made])
        except (DataError, LedgerError):
            for place, statement in made:
                try:
                    ledger.add_feedback([statement])
                except (DataError, LedgerError) as error:
                    done.skipped.append(Skipped(place, str(error)))
                else:
                    _count(done, statement, known)
        else:
            for _, statement in made:
                _count(done, statement, known)
        on_batch(done)


def _count(done: Imported, statement: Feedback, known: set[str]) -> None:
    if statement.id in known:
        done.feedback_known += 1
    else:
        done.feedback += 1


def _statements(done: Imported, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Feedback]]:
    for place, row in rows:
        try:
            yield place, statement_of(row)
        except (DataError, TypeError, ValueError) as error:
            done.skipped.append(Skipped(place, str(error)))
