"""The connection to the ledger's database: opening, transactions, and plain errors.

SQLite runs in WAL mode, so that readers never wait for a writer; writers take the lock
when they begin and wait up to 30 s for each other. Deleted content is overwritten
(`secure_delete`). A commit is on disk before it returns (`synchronous = FULL`).

Does not protect: a ledger on a network file system, where SQLite's locks do not hold;
use PostgreSQL there.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from metier.base.errors import DiskFullError, LedgerError
from metier.records.migrations import NEWEST, migrate, stored_version

__all__ = ["Database", "disk_errors"]

BUSY_SECONDS = 30.0


class Database:
    """An open database of the newest schema version, with `reading()` and `writing()` transactions."""

    def __init__(self, where: str | Path, *, create: bool) -> None:
        self.url, self.path = _resolve(where)
        self.label = str(self.path) if self.path is not None else self.url.render_as_string(hide_password=True)
        if self.path is not None:
            _check_path(self.path, create)
        try:
            self.engine = _engine(self.url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise LedgerError(f"cannot use {self.label!r} as a ledger: {error}; name a file or install it") from error
        try:
            self._prepare(create)
        except BaseException:
            self.engine.dispose()
            raise

    def _prepare(self, create: bool) -> None:
        with self.reading() as connection:
            version = stored_version(connection)
        if version == 0 and not create:
            raise LedgerError(f"{self.label} is empty and not a ledger; run a recipe or open it with create=True")
        if self.engine.dialect.name == "sqlite":
            with self._errors():
                _use_wal(self.engine)
        if version < NEWEST:
            with self.writing() as connection:
                migrate(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent snapshot."""
        with self._errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that holds the write lock from its start; all of it is kept, or nothing."""
        with self._errors(), self.engine.connect() as connection:
            connection.execution_options(metier_write=True)  # `_begin` reads it
            with connection.begin():
                yield connection

    def flush_log(self) -> None:
        """Move the write-ahead log into the file and cut it to nothing, so that no erased content stays in it."""
        if self.engine.dialect.name == "sqlite":
            with self._errors():
                raw = self.engine.raw_connection()
                try:
                    raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    raw.close()

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with disk_errors(self.label):
                yield
        except DBAPIError as error:
            raise _translate(error, self.label) from error


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """Turn a full or read-only disk into one clear sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(_full(where)) from error
        raise LedgerError(f"cannot write the ledger {where}: {error.strerror or error}") from error


def _full(where: str) -> str:
    return f"the disk has no room left for the ledger {where}; free some space and run again, what was written is kept"


def _translate(error: DBAPIError, where: str) -> LedgerError | DiskFullError:
    text = str(error.orig)
    if "disk is full" in text or "No space left" in text:
        return DiskFullError(_full(where))
    if "readonly" in text:
        return LedgerError(f"the ledger {where} cannot be written: it or its folder is read-only; change its mode")
    if "not a database" in text or "malformed" in text:
        return LedgerError(f"{where} is not a Metier ledger, or is damaged ({text}); name another or restore a copy")
    if "locked" in text:
        return LedgerError(f"the ledger {where} was locked by another process for {BUSY_SECONDS:.0f} s; try again")
    if "disk I/O error" in text:
        return DiskFullError(f"the disk refused to write the ledger {where}; check its space, quota and health")
    if isinstance(error, IntegrityError):
        return LedgerError(f"the ledger {where} refused the rows: {text}; nothing of this call was written")
    return LedgerError(f"the ledger {where} cannot be used: {text}")


def _resolve(where: str | Path) -> tuple[URL, Path | None]:
    """The URL, and the file behind it where there is one."""
    if isinstance(where, str) and "://" in where:
        try:
            url = make_url(where)
        except ArgumentError as error:
            raise LedgerError(f"{where!r} is no database URL; write postgresql://HOST/NAME or a file") from error
        if url.get_backend_name() != "sqlite":
            return url, None
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:"):
            raise LedgerError("a ledger in memory would be lost; name a file")
        return url, Path(name)
    path = Path(where).expanduser()
    return URL.create("sqlite", database=str(path)), path


def _check_path(path: Path, create: bool) -> None:
    if path.is_dir():
        raise LedgerError(f"{path} is a folder, not a ledger; name a file in it, such as {path / 'ledger.db'}")
    if not path.exists():
        if not create:
            raise LedgerError(f"there is no ledger at {path}; run a recipe first or name the file that holds it")
        with disk_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _connected(raw: sqlite3.Connection, _: Any) -> None:
        raw.isolation_level = None  # transactions begin in `_begin`, not where the driver thinks best
        for pragma in ("foreign_keys = ON", "recursive_triggers = ON", "secure_delete = ON", "synchronous = FULL"):
            raw.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("metier_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _use_wal(engine: Engine) -> None:
    """Switch to WAL; SQLite does not wait for this lock by itself, so wait for whoever opens the file too."""
    deadline = time.monotonic() + BUSY_SECONDS
    raw = engine.raw_connection()
    try:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise DBAPIError("PRAGMA journal_mode", None, error) from error
                time.sleep(0.02)
    finally:
        raw.close()
