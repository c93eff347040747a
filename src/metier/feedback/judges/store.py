"""What judges remember: answers, so that nothing is asked twice, and what their audits found.

One SQLite file beside the ledger, in WAL mode. An answer's key is the hash of everything that it depends on: the
judge's identity (weights, template, sampling), the conversation and the seed. Answers may be deleted with
the file, at the cost of asking again; an audit belongs to one identity, and a judge with other weights or another
rubric has none.

Left out: answers that failed, which are asked again, and any limit of size.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metier.base.clock import now
from metier.base.errors import DataError, DiskFullError
from metier.base.ids import canonical_json
from metier.feedback.judges.voice import Answer
from metier.records.types import Cost, from_plain, to_plain

__all__ = ["DEFAULT_STORE", "Store"]

DEFAULT_STORE = "runs/judges.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, body TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audits (seq INTEGER PRIMARY KEY, judge TEXT NOT NULL, mode TEXT NOT NULL,
    identity TEXT NOT NULL, body TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS ix_audits_judge ON audits (judge, mode);
"""


class Store:
    """A file of answers and audits; any number of threads and processes may use it. A context manager."""

    def __init__(self, path: str | Path = DEFAULT_STORE) -> None:
        """Opens the file, or makes it. Raises `DataError` where it is something else."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None, check_same_thread=False)
        try:
            with self._using() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def answer(self, key: str) -> Answer | None:
        """The answer that was given before."""
        with self._using() as connection:
            row = connection.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        body = json.loads(row[0])
        return Answer(
            text=body["text"], shares=body["shares"], whole=body["whole"], cost=from_plain(Cost, body["cost"])
        )

    def keep(self, key: str, answer: Answer) -> None:
        """Keep an answer; where another process was first, that one stays."""
        with self._using() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, canonical_json(to_plain(answer)), now())
            )

    def add_audit(self, judge: str, mode: str, identity: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        """Keep what an audit found; earlier ones stay too."""
        values = (judge, mode, canonical_json(identity), canonical_json(body), now())
        with self._using() as connection:
            connection.execute("INSERT INTO audits (judge, mode, identity, body, at) VALUES (?, ?, ?, ?, ?)", values)

    def audit(self, judge: str, mode: str) -> Mapping[str, Any] | None:
        """The newest audit of a judge, by its version."""
        with self._using() as connection:
            row = connection.execute(
                "SELECT body FROM audits WHERE judge = ? AND mode = ? ORDER BY seq DESC LIMIT 1", (judge, mode)
            ).fetchone()
        return None if row is None else json.loads(row[0])

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._connection
        except sqlite3.Error as error:
            if "full" in str(error):
                raise DiskFullError(f"the disk has no room for {self.path}; free some and run it again") from error
            raise DataError(f"{self.path} cannot be used as a store of judges: {error}; name another one") from error
