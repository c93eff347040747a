"""The connection to the ledger's database: opening, transactions, and plain errors.

SQLite runs in WAL mode, so that readers never wait for a writer; writers take the lock
when they begin and wait up to 30 s for each other. Deleted content is overwritten
(`secure_delete`). A commit is on disk before it returns (`synchronous = FULL`).

PostgreSQL gives the same: a reader has one snapshot, and a writer takes one advisory lock
when it begins, so that two never deadlock and running numbers have no gaps. A database
that is gone for a while (restarted, say) is waited for at the beginning of a transaction,
as a lock is; a transaction that it goes away in fails as a whole and may be done again.

Does not protect: a ledger file on a network file system, where SQLite's locks do not hold;
use PostgreSQL there.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from metier.base.errors import DiskFullError, LedgerError
from metier.records import schema
from metier.records.migrations import NEWEST, migrate, stored_version

__all__ = ["Database", "disk_errors", "sqlite_engine"]

BUSY_SECONDS = 30.0
CACHE_MB = 256  # of SQLite's pages, at most: ids are random, and so is where they go in an index
PAGE_BYTES = 8192  # of a new file of SQLite
LOG_PAGES = 8192  # of SQLite's write-ahead log before it is moved into the file
WRITERS = 0x6D657469  # the advisory lock that writers take on PostgreSQL


class Database:
    """An open database of the newest schema version, with `reading()` and `writing()` transactions."""

    def __init__(self, where: str | Path, *, create: bool) -> None:
        self._open = False
        self.identity = ""
        self.url, self.path, self.arrays = _resolve(where)
        self.label = str(self.path) if self.path is not None else _label(self.url)
        if self.path is not None:
            _check_path(self.path, create)
        try:
            self.engine = _engine(self.url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise LedgerError(
                f"cannot use {self.label!r} as a ledger: {error}; install its driver (pip install 'metier[postgres]')"
                " or name a file"
            ) from error
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
        if self.sqlite:
            with self._errors():
                _use_wal(self.engine)
        if version < NEWEST:
            with self.writing() as connection:
                migrate(connection)
            self.flush_log()
        with self.reading() as connection:
            self.identity = connection.execute(select(schema.identity.c.id)).scalar_one()
        self._open = True

    @property
    def sqlite(self) -> bool:
        """Whether this is a file of SQLite."""
        return bool(self.engine.dialect.name == "sqlite")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent snapshot."""
        engine = self.engine if self.sqlite else self.engine.execution_options(isolation_level="REPEATABLE READ")
        with self._errors(), self._connect(engine) as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self, *, bulk: bool = False) -> Iterator[Connection]:
        """One transaction that holds the write lock from its start; all of it is kept, or nothing.

        With `bulk`, SQLite does not look up foreign keys: the caller has done so.
        """
        with self._errors(), self._connect(self.engine) as connection:
            if self.sqlite:
                connection.execution_options(metier_write=True)  # `_begin` reads it
            with _without_foreign_keys(connection, bulk and self.sqlite), connection.begin():
                if not self.sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITERS})
                yield connection

    def flush_log(self) -> None:
        """Move the write-ahead log into the file and cut it to nothing, so that no erased content stays in it."""
        if self.sqlite:
            self._alone("PRAGMA wal_checkpoint(TRUNCATE)")

    def scrub(self, tables: Iterable[Table]) -> None:
        """Leave nothing of deleted rows in these tables' files. SQLite has overwritten it already, but for its log;
        PostgreSQL writes the tables anew, and what its own log and backups hold is for whoever runs the server."""
        if self.sqlite:
            self.flush_log()
            return
        for table in tables:
            self._alone(f"VACUUM FULL {table.name}")

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    def _alone(self, statement: str) -> None:
        """Run a statement that may not stand in a transaction."""
        with self._errors(), self._connect(self.engine) as connection:
            if self.sqlite:
                raw = connection.connection.driver_connection
                assert raw is not None
                raw.execute(statement).fetchall()
            else:
                connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)

    def _connect(self, engine: Engine) -> Connection:
        """A connection; a database that was there before is waited for."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return engine.connect()
            except DBAPIError as error:
                if not (self._open and _is_gone(error.orig)) or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with disk_errors(self.label):
                yield
        except DBAPIError as error:
            raise _translate(error.orig or error, self.label) from error
        except self.engine.dialect.loaded_dbapi.Error as error:  # from the driver itself, where rows go by the million
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


def _translate(error: BaseException, where: str) -> LedgerError | DiskFullError:
    said = str(error).strip().split("\n")[0]
    state = getattr(error, "sqlstate", None)  # PostgreSQL's own code, where the server answered
    if "disk is full" in said or "No space left" in said or state == "53100":
        return DiskFullError(_full(where))
    if "readonly" in said or state == "25006":
        return LedgerError(f"the ledger {where} cannot be written: it or its folder is read-only; change its mode")
    if "not a database" in said or "malformed" in said:
        return LedgerError(f"{where} is not a Metier ledger, or is damaged ({said}); name another or restore a copy")
    if "locked" in said or state == "55P03":
        return LedgerError(f"the ledger {where} was locked by another process for {BUSY_SECONDS:.0f} s; try again")
    if "disk I/O error" in said:
        return DiskFullError(f"the disk refused to write the ledger {where}; check its space, quota and health")
    if type(error).__name__ == "IntegrityError" or (state or "").startswith("23"):
        return LedgerError(f"the ledger {where} refused the rows: {said}; nothing of this call was written")
    if _is_gone(error):
        return LedgerError(
            f"the database {where} cannot be reached ({said}); what was written is kept: do this again when it is there"
        )
    return LedgerError(f"the ledger {where} cannot be used: {said}")


def _is_gone(error: BaseException | None) -> bool:
    """Whether a server is not there, or went away or is starting: not whether it said no to something."""
    if error is None or isinstance(error, sqlite3.Error) or type(error).__name__ not in _GONE:
        return False
    state, said = getattr(error, "sqlstate", None), str(error)
    if state is None:
        return not any(text in said for text in ("authentication failed", "does not exist", "no password"))
    return str(state).startswith(("08", "57P"))


_GONE = (
    "OperationalError",
    "AdminShutdown",
    "CrashShutdown",
    "CannotConnectNow",
    "InterfaceError",
    "IdleSessionTimeout",
)


def _resolve(where: str | Path) -> tuple[URL, Path | None, Path | None]:
    """The URL, the file behind it where there is one, and the folder for token arrays where the URL names it."""
    if isinstance(where, str) and "://" in where:
        try:
            url = make_url(where.replace("postgres://", "postgresql://", 1))
        except ArgumentError as error:
            raise LedgerError(f"{where!r} is no database URL; write postgresql://HOST/NAME or a file") from error
        arrays = url.query.get("arrays")
        url = url.difference_update_query(["arrays"])
        folder = Path(arrays).expanduser() if isinstance(arrays, str) else None
        if url.get_backend_name() == "postgresql":
            return (url.set(drivername="postgresql+psycopg") if "+" not in url.drivername else url), None, folder
        if url.get_backend_name() != "sqlite":
            raise LedgerError(
                f"a ledger lies in a file or in PostgreSQL, not in {url.get_backend_name()!r}; write"
                " postgresql://HOST/NAME or name a file"
            )
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:"):
            raise LedgerError("a ledger in memory would be lost; name a file")
        return url, Path(name), folder
    path = Path(where).expanduser()
    return URL.create("sqlite", database=str(path)), path, None


def _label(url: URL) -> str:
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


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
        engine = create_engine(url, pool_pre_ping=True)

        @event.listens_for(engine, "connect")
        def _served(raw: Any, _: Any) -> None:
            raw.execute(f"SET lock_timeout = {round(1000 * BUSY_SECONDS)}")
            raw.commit()

        return engine
    pragmas = (
        f"page_size = {PAGE_BYTES}",
        "foreign_keys = ON",
        "recursive_triggers = ON",
        "secure_delete = ON",
        "synchronous = FULL",
        f"cache_size = {-1024 * CACHE_MB}",
        f"wal_autocheckpoint = {LOG_PAGES}",
    )
    return sqlite_engine(url, pragmas, seconds=BUSY_SECONDS)


def sqlite_engine(url: URL, pragmas: Sequence[str], *, seconds: float, **options: Any) -> Engine:
    """An engine on a SQLite file. A transaction takes the write lock as it begins, within `seconds`, where its
    connection has the execution option `metier_write`."""
    engine = create_engine(url, connect_args={"timeout": seconds}, **options)

    @event.listens_for(engine, "connect")
    def _connected(raw: sqlite3.Connection, _: Any) -> None:
        raw.isolation_level = None  # transactions begin in `_begin`, not where the driver thinks best
        for pragma in pragmas:
            raw.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("metier_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _without_foreign_keys(connection: Connection, wanted: bool) -> Iterator[None]:
    """Switches SQLite's look-ups off around a transaction; within one it cannot be done."""
    if not wanted:
        yield
        return
    raw = connection.connection.driver_connection
    assert raw is not None
    raw.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        raw.execute("PRAGMA foreign_keys = ON")


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
