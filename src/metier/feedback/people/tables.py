"""The tables of assignment and the connection to them.

They lie in the ledger's own database where that is a server, under names that begin with
`label_`, else in a SQLite file beside it. A commit is on disk before it returns.

Does not protect: a SQLite file on a network file system, where its locks do not hold.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    insert,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from metier.base.errors import LedgerError
from metier.records.database import sqlite_engine

__all__ = ["LabelDatabase", "drafts", "items", "keys", "log", "pending", "people", "queues", "slots"]

_VERSION = "1"  # of these tables
_BUSY_SECONDS = 5.0  # the page tries again by itself

metadata = MetaData()


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True)


queues = Table("label_queues", metadata, _key("queue"), Column("identity", Text), Column("created_at", Float))
items = Table(
    "label_items",
    metadata,
    _key("queue"),
    _key("item"),
    Column("position", Integer),
    Column("overlap", Integer),
    Column("gold", Boolean),
    Column("hash", Text),
)
people = Table(
    "label_people",
    metadata,
    _key("id"),
    Column("queue", Text, index=True),
    Column("name", Text),
    Column("role", Text),
    Column("created_at", Float),
    Column("revoked_at", Float),
)
slots = Table(
    "label_slots",
    metadata,
    _key("queue"),
    _key("item"),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("person", Text),
    Column("state", Text),  # leased, answered or skipped
    Column("lease_until", Float),
    Column("revision", Integer),  # of the newest decision; 0 where nothing was said yet
    Column("decided", Integer),  # the newest decision's place in the log; 0 likewise
    UniqueConstraint("queue", "item", "person"),
)
log = Table(
    "label_log",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("queue", Text, index=True),
    Column("item", Text),
    Column("slot", Integer),
    Column("revision", Integer),
    Column("person", Text),
    Column("what", Text),  # answer, skip or undo
    Column("click", Text),
    Column("feedback", Text),  # JSON: the ids of its rows in the ledger
    Column("at", Float),
    Column("seconds", Float),
    UniqueConstraint("queue", "item", "slot", "revision"),
    UniqueConstraint("queue", "person", "click"),
)
pending = Table(
    "label_pending",
    metadata,
    _key("feedback"),  # its id, and not a number: a database may use a number again
    Column("queue", Text, index=True),
    Column("decided", Integer),  # the place in the log of the decision that it is of
    Column("part", Integer),
    Column("body", Text),
)
drafts = Table(
    "label_drafts", metadata, _key("queue"), _key("item"), _key("person"), Column("body", Text), Column("at", Float)
)
keys = Table("label_keys", metadata, _key("name"), Column("value", Text))


class LabelDatabase:
    """The open database of one queue's assignments."""

    def __init__(self, where: str | Path, queue: str) -> None:
        self.queue = queue
        self._folder = None if isinstance(where, str) and "://" in where else Path(where).parent
        self._engine = _engine(where)
        self._turn = threading.Lock()  # writers of this process wait here and not for the database
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent snapshot."""
        with self._errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction; writers of one queue come one after the other."""
        with self._turn, self._errors(), self._engine.connect() as connection:
            connection.execution_options(metier_write=True)
            with connection.begin():
                connection.execute(select(queues.c.queue).where(queues.c.queue == self.queue).with_for_update()).all()
                yield connection

    def _prepare(self) -> None:
        """Make the tables where there are none; refuse those of another version."""
        with self._errors():
            metadata.create_all(self._engine)
        with self.writing() as connection:
            version = connection.execute(select(keys.c.value).where(keys.c.name == "version")).scalar()
            if version is None:
                connection.execute(insert(keys), {"name": "version", "value": _VERSION})
            elif version != _VERSION:
                raise LedgerError(
                    f"assignments of version {version} were written by another metier (this one knows {_VERSION});"
                    " update metier, or finish the queue with the one that began it"
                )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if self._folder is not None and not self._folder.is_dir():
            raise LedgerError(f"the folder {self._folder} is gone; nothing can be saved until it is back")
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            said = str(getattr(error, "orig", None) or error)
            raise LedgerError(f"labels can be neither saved nor read: {' '.join(said.split())}") from error


def _engine(where: str | Path) -> Engine:
    if isinstance(where, str) and "://" in where:
        url = make_url(where).difference_update_query(["arrays"])  # that is the ledger's own
        driver = "postgresql+psycopg" if url.drivername in ("postgresql", "postgres") else url.drivername
        return create_engine(url.set(drivername=driver), pool_pre_ping=True)
    # No pool: a file that was moved away and put back is opened anew, not written to where nobody sees it.
    file = URL.create("sqlite", database=str(where))
    pragmas = ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON")
    return sqlite_engine(file, pragmas, seconds=_BUSY_SECONDS, poolclass=NullPool)
