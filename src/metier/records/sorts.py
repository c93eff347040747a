"""What many statements of feedback share: run, criterion, kind, source and status, as numbered rows.

A ledger of millions of statements has some dozens or thousands of sorts. They only grow and
are kept in memory, so that a question by value becomes a question by a few numbers, and a
row of feedback is read without a join.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from metier.records import schema
from metier.records.rows import insert_rows
from metier.records.types import Feedback, Source

__all__ = ["Sort", "Sorts"]


class Sort(NamedTuple):
    """One row of `feedback_sorts`, but for its number."""

    run_id: str | None
    criterion: str
    kind: str
    source_kind: str
    source_name: str
    source_version: str
    status: str

    @staticmethod
    def of(statement: Feedback) -> Sort:
        """The sort of a statement."""
        source = statement.source
        return Sort(
            statement.run_id,
            statement.criterion,
            statement.kind,
            source.kind,
            source.name,
            source.version,
            statement.status,
        )


class Sorts:
    """The sorts of one ledger, by number and by content."""

    def __init__(self) -> None:
        self._by_number: dict[int, Sort] = {}
        self._fields: dict[int, dict[str, Any]] = {}

    def forget(self) -> None:
        """Read all anew when next asked: a transaction that may have added some did not end well."""
        self._by_number, self._fields = {}, {}

    def fields(self, connection: Connection, number: int) -> dict[str, Any]:
        """The fields that statements of this sort share."""
        if number not in self._fields:
            self._read(connection)
        return self._fields[number]

    def all(self, connection: Connection) -> dict[int, Sort]:
        """Every sort by its number."""
        self._read(connection)
        return self._by_number

    def matching(self, connection: Connection, **values: str | None) -> list[int] | None:
        """Numbers of the sorts that have all these values; a value of None asks for nothing. None: all of them."""
        wanted = {name: value for name, value in values.items() if value is not None}
        if not wanted:
            return None
        sorts = self.all(connection)
        return [n for n, sort in sorts.items() if all(getattr(sort, name) == wanted[name] for name in wanted)]

    def numbers(self, connection: Connection, wanted: Iterable[Sort]) -> dict[Sort, int]:
        """The number of each sort, within a `writing` transaction; those that are new are added."""
        known = {sort: number for number, sort in self.all(connection).items()}
        new = [sort for sort in dict.fromkeys(wanted) if sort not in known]
        insert_rows(connection, schema.feedback_sorts, [sort._asdict() for sort in new])
        if new:
            known = {sort: number for number, sort in self.all(connection).items()}
        return known

    def _read(self, connection: Connection) -> None:
        table = schema.feedback_sorts
        for row in connection.execute(select(table).where(table.c.seq > len(self._by_number)).order_by(table.c.seq)):
            number, *values = row
            sort = Sort(*values)
            self._by_number[number] = sort
            self._fields[number] = {
                "run_id": sort.run_id,
                "criterion": sort.criterion,
                "kind": sort.kind,
                "source": Source(kind=sort.source_kind, name=sort.source_name, version=sort.source_version),  # type: ignore[arg-type]
                "status": sort.status,
            }
