"""Feedback as an Arrow table, in and out: the layout, and the way in for very many rows.

A row is a statement. `value` is a number (scores, preferences, forecasts); anything else a
statement may say is JSON in `value_json`. `about` is a list of episode ids. What a table
lacks is null; only `id`, `about`, `criterion`, `kind` and the source must be there.

`append` never makes a record: what it writes is composed from whole columns in Arrow, so
that the database is what takes the time. It checks what the record checks. Rows are
written in the order of their ids, as far as they stand in one transaction: that spares the
database a jump in the index for each row. When something was said, `created_at` tells.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from metier.base.errors import DataError
from metier.records import schema
from metier.records.migrations import insert_guards
from metier.records.rows import check_text, insert_feedback, next_seq, numbers_of, require
from metier.records.sorts import Sort, Sorts
from metier.records.types import Cost, Feedback, FeedbackKind, SourceKind, Status, from_plain, to_plain

if TYPE_CHECKING:
    from metier.records.ledger import Ledger

__all__ = ["SCHEMA", "append", "statement_of", "to_arrow"]

_ROWS = 250_000  # of one transaction; each writes most pages of the index of ids anew
_SORT = ("run_id", "criterion", "kind", "source_kind", "source_name", "source_version", "status")
_ALLOWED = {"kind": get_args(FeedbackKind), "source_kind": get_args(SourceKind), "status": get_args(Status)}
_NEEDED = ("id", "about", "criterion", "kind", "source_kind", "source_name", "source_version")

_TEXTS = ("id", *_SORT, "value_json", "abstention", "reason", "resolver", "assignment", "supersedes")
_NUMBERS = ("value", "confidence", "propensity", "created_at", "observed_at", "due_at")
_JSON = ("span", "evidence", "cost")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("about", pa.list_(pa.string())),
        *((name, pa.string()) for name in _SORT[1:]),
        ("value", pa.float64()),
        ("value_json", pa.string()),  # where the value is no number
        ("abstention", pa.string()),  # why it abstains; null where it does not
        ("reason", pa.string()),
        *((name, pa.float64()) for name in _NUMBERS[1:]),
        *((name, pa.string()) for name in ("resolver", "assignment", "supersedes", "run_id")),
        *((name, pa.string()) for name in _JSON),  # JSON of an object
    ]
)
"""The layout; a table may leave columns out, and have them as dictionaries or large strings."""


def to_arrow(statements: Iterable[Feedback], *, rows: int = 50_000) -> Iterator[pa.Table]:
    """Statements as tables of at most `rows` rows."""
    feed = iter(statements)
    while batch := list(itertools.islice(feed, rows)):
        yield pa.Table.from_pylist([_row(statement) for statement in batch], schema=SCHEMA)


def _row(statement: Feedback) -> dict[str, Any]:
    value = statement.value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    row = {name: getattr(statement, name) for name in SCHEMA.names if name in Feedback.__dataclass_fields__}
    for name in _JSON:
        held = to_plain(row[name])
        row[name] = json.dumps(held) if held and getattr(statement, name) != _EMPTY.get(name) else None
    return {
        **row,
        "value": float(value) if number else None,
        "value_json": None if number or value is None else json.dumps(value),
        "abstention": None if statement.abstention is None else statement.abstention.why,
        "source_kind": statement.source.kind,
        "source_name": statement.source.name,
        "source_version": statement.source.version,
    }


_EMPTY = {"cost": Cost()}


def statement_of(row: Mapping[str, Any]) -> Feedback:
    """The statement in a row of the layout. Raises `DataError` where it is none."""
    fields = {name: row[name] for name in row if name in Feedback.__dataclass_fields__ and row[name] is not None}
    for name in _NEEDED:
        if row.get(name) in (None, "", []):
            raise DataError(f"half a row: `{name}` is missing")
    if row.get("value_json") is not None:
        fields["value"] = _loaded(row["value_json"], "value_json")
    elif row.get("value") is not None:
        number = float(row["value"])
        fields["value"] = int(number) if number.is_integer() else number
    for name in _JSON:
        if name in fields:
            fields[name] = _loaded(fields[name], name)
    if row.get("abstention") is not None:
        fields["abstention"] = {"why": row["abstention"]}
    if isinstance(row["about"], str):  # as a CSV has it
        fields["about"] = _loaded(row["about"], "about")
    fields["source"] = {name: str(row[f"source_{name}"]) for name in ("kind", "name", "version")}
    return from_plain(Feedback, fields)


def _loaded(value: Any, name: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no JSON") from error


def append(ledger: Ledger, sorts: Sorts, table: pa.Table) -> int:
    """Add the table's statements; see `Ledger.append_arrow`."""
    table = _as_layout(table)
    added = 0
    for start in range(0, table.num_rows, _ROWS):
        chunk = table.slice(start, _ROWS).combine_chunks()
        _check(chunk, start)
        chunk = chunk.take(pc.sort_indices(chunk["id"]))
        with ledger.writing(bulk=True) as connection:
            added += _append(connection, sorts, chunk)
    return added


def _append(connection: Connection, sorts: Sorts, chunk: pa.Table) -> int:
    """Most often all rows are new. Finding out costs as much as inserting them, so that is tried first."""
    try:
        with connection.begin_nested():
            return _insert(connection, sorts, chunk)
    except connection.dialect.loaded_dbapi.IntegrityError:
        sorts.forget()
        known = numbers_of(connection, schema.feedback, chunk["id"].to_pylist())
        if not known:
            raise
    return _insert(connection, sorts, chunk.filter(pc.invert(pc.is_in(chunk["id"], pa.array(list(known))))))


def _insert(connection: Connection, sorts: Sorts, chunk: pa.Table) -> int:
    ids = chunk["id"].to_pylist()
    about = chunk["about"].combine_chunks()
    flat = about.flatten().dictionary_encode()
    names = flat.dictionary.to_pylist()
    where = require(connection, schema.episodes, names, "feedback is about episode")
    episodes = np.array([where[one] for one in names], np.int64)[flat.indices.to_numpy()]
    older = set(chunk["supersedes"].drop_null().to_pylist())
    require(connection, schema.feedback, older.difference(ids) if older else (), "feedback supersedes feedback")
    require(connection, schema.runs, chunk["run_id"].drop_null().unique().to_pylist(), "feedback names run")

    first = next_seq(connection, schema.feedback)
    seqs = range(first, first + len(ids))
    rows = zip(
        seqs,
        ids,
        _sort_numbers(connection, sorts, chunk),
        chunk["supersedes"].to_pylist(),
        chunk["due_at"].to_pylist(),
        pc.fill_null(chunk["created_at"], 0.0).to_pylist(),
        _bodies(chunk, about),
        strict=True,
    )
    lengths = pc.list_value_length(about).to_numpy()
    owners = np.repeat(np.arange(first, first + len(ids)), lengths)
    positions = np.arange(len(episodes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    order = np.lexsort((owners, episodes))  # of the table, in which an insert costs least
    links = zip(*(column[order].tolist() for column in (episodes, owners, positions)), strict=True)
    with _unguarded(connection):
        insert_feedback(connection, rows, zip(seqs, _payloads(chunk), strict=True), links)
    return len(ids)


class _unguarded:
    """SQLite without its guards against INSERT OR REPLACE, which plain inserts do not need, until the block ends.

    The transaction holds the write lock, so nobody else finds them gone.
    """

    TABLES = ("feedback", "feedback_payloads", "feedback_about")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection if connection.dialect.name == "sqlite" else None

    def __enter__(self) -> None:
        if self.connection is not None:
            for table in self.TABLES:
                self.connection.execute(text(f"DROP TRIGGER {table}_no_insert"))

    def __exit__(self, *_: object) -> None:
        if self.connection is not None:
            for statement in insert_guards(self.TABLES).values():
                self.connection.execute(text(statement))


def _sort_numbers(connection: Connection, sorts: Sorts, chunk: pa.Table) -> list[int]:
    """The number of each row's sort."""
    codes = np.zeros(chunk.num_rows, np.int64)
    values: list[list[Any]] = []
    for name in _SORT:
        encoded = chunk[name].combine_chunks().dictionary_encode(null_encoding="encode")
        values.append(encoded.dictionary.to_pylist())
        codes = codes * len(values[-1]) + encoded.indices.to_numpy()
    kinds, rows = np.unique(codes, return_inverse=True)
    found = []
    for code in kinds.tolist():
        fields = []
        for held in reversed(values):
            code, place = divmod(code, len(held))
            fields.append(held[place])
        found.append(Sort(*reversed(fields)))
    for sort in found:
        for value in sort:
            check_text(value or "")
    numbers = sorts.numbers(connection, found)
    made: list[int] = np.array([numbers[sort] for sort in found], np.int64)[rows].tolist()
    return made


# --- JSON out of whole columns -------------------------------------------------------


def _bodies(chunk: pa.Table, about: pa.ListArray) -> list[str]:
    """What a row's body holds besides its columns, as JSON objects."""
    inner = pc.binary_join(pa.ListArray.from_arrays(about.offsets, _quoted(about.values)), ",")
    parts = [pc.binary_join_element_wise('{"about":[', inner, "]", "")]
    for name in ("confidence", "observed_at", "propensity", "resolver", "assignment", "span", "cost"):
        parts += _member(chunk, name)
    return _joined(parts)


def _payloads(chunk: pa.Table) -> list[str]:
    """What the statements say, as JSON objects."""
    value = pc.coalesce(_number(chunk["value"]), chunk["value_json"], pa.scalar("null"))
    parts = [pc.binary_join_element_wise('{"value":', value, "")]
    if chunk["abstention"].null_count < len(chunk):
        why = _quoted(chunk["abstention"])
        parts.append(_if_there(chunk["abstention"], pc.binary_join_element_wise(',"abstention":{"why":', why, "}", "")))
    parts += [*_member(chunk, "reason"), *_member(chunk, "evidence")]
    return _joined(parts)


def _member(chunk: pa.Table, name: str) -> list[Any]:
    column = chunk[name]
    if column.null_count == len(column):
        return []
    held = _number(column) if name in _NUMBERS else column if name in _JSON else _quoted(column)
    return [_if_there(column, pc.binary_join_element_wise(f',"{name}":', held, ""))]


def _if_there(column: Any, made: Any) -> Any:
    return pc.if_else(pc.is_valid(column), made, "")


def _joined(parts: Sequence[Any]) -> list[str]:
    made: list[str] = pc.binary_join_element_wise(*parts, "}", "").to_pylist()
    return made


def _number(column: Any) -> Any:
    """Numbers as JSON has them, whole ones without a point."""
    if pc.all(pc.fill_null(pc.is_finite(column), True)).as_py():
        return pc.cast(column, pa.string())
    return pa.array([None if one is None else json.dumps(one) for one in column.to_pylist()], pa.string())


def _quoted(column: Any) -> Any:
    """Texts as JSON has them. Most need quotes and nothing else."""
    plain = pc.all(pc.fill_null(pc.match_substring_regex(column, r"^[ !#-\[\]-~]*$"), True)).as_py()
    if plain:
        return pc.binary_join_element_wise('"', column, '"', "")
    encode = json.encoder.encode_basestring_ascii
    return pa.array([None if one is None else encode(one) for one in column.to_pylist()], pa.string())


# --- what a table must be --------------------------------------------------------------


def _as_layout(table: pa.Table) -> pa.Table:
    """The table with the columns of the layout, in its order and types."""
    for name in _NEEDED:
        if name not in table.column_names:
            raise DataError(f"the table has no column {name!r}; it needs {', '.join(_NEEDED)}")
    columns = []
    for field in SCHEMA:
        if field.name not in table.column_names:
            default = "scored" if field.name == "status" else None
            columns.append(pa.repeat(pa.scalar(default, field.type), table.num_rows))
            continue
        try:
            columns.append(table[field.name].cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {field.name!r} is {table[field.name].type} and must be {field.type}") from error
    return pa.table(columns, schema=SCHEMA)


def _check(chunk: pa.Table, start: int) -> None:
    """What `Feedback` checks, over columns. Raises `DataError` naming the first row that fails."""

    def refuse(bad: Any, why: str) -> None:
        place = pc.index(pc.fill_null(bad, True), True).as_py()
        if place >= 0:
            raise DataError(f"row {start + place + 1}: {why}; nothing of its {_ROWS:,} rows was written")

    for name in _NEEDED[2:]:
        refuse(pc.is_null(chunk[name]), f"{name} is missing")
    refuse(pc.is_null(chunk["id"]), "id is missing")
    if len(chunk["id"].unique()) < len(chunk):
        seen: set[str] = set()
        twice = [one in seen or bool(seen.add(one)) for one in chunk["id"].to_pylist()]  # type: ignore[func-returns-value]
        refuse(pa.array(twice), "its id stands in the table twice")
    for name, allowed in _ALLOWED.items():
        refuse(pc.invert(pc.is_in(chunk[name], pa.array(allowed))), f"{name} must be one of {', '.join(allowed)}")
    refuse(pc.equal(pc.fill_null(pc.list_value_length(chunk["about"]), 0), 0), "it is about no episode")
    said = pc.or_(pc.is_valid(chunk["value"]), pc.is_valid(chunk["value_json"]))
    scored, retracted = pc.equal(chunk["status"], "scored"), pc.equal(chunk["status"], "retracted")
    pending = pc.equal(chunk["status"], "pending")
    silent = pc.invert(pc.or_(said, pc.is_valid(chunk["abstention"])))
    refuse(pc.and_(scored, silent), "a scored statement needs a value or an abstention")
    refuse(pc.and_(pc.invert(pc.or_(scored, retracted)), said), "what is unscored or pending carries no value")
    undue = pc.or_(pc.is_null(chunk["due_at"]), pc.is_null(chunk["resolver"]))
    refuse(pc.and_(pending, undue), "what is pending needs due_at and resolver")
    refuse(pc.and_(retracted, pc.is_null(chunk["supersedes"])), "a retraction must name what it supersedes")
    refuse(pc.and_(pc.equal(chunk["kind"], "score"), pc.is_valid(chunk["value_json"])), "a score must be a number")
    for name, low in (("propensity", pc.greater), ("confidence", pc.greater_equal)):
        column = pc.fill_null(chunk[name], 1.0)
        inside = pc.and_(low(column, 0.0), pc.less_equal(column, 1.0))
        refuse(pc.invert(inside), f"{name} is not within 0 and 1")
    for name in ("value_json", *_JSON):
        if chunk[name].null_count < len(chunk):
            refuse(pa.array([not _is_json(one, name) for one in chunk[name].to_pylist()]), f"{name} is no JSON for it")
    for name in ("id", "supersedes"):
        if pc.any(pc.fill_null(pc.match_substring(chunk[name], "\0"), False)).as_py():
            raise DataError(f"an {name} holds a NUL character, which PostgreSQL does not keep; leave it out")


def _is_json(value: str | None, name: str) -> bool:
    if value is None:
        return True
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return found is not None if name == "value_json" else isinstance(found, dict)
