"""A PostgreSQL server of the tests' own: made in a temporary folder, reached by a socket in it, gone afterwards."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metier.records.ledger import Ledger

SETTINGS = {
    "listen_addresses": "",  # the socket alone
    "fsync": "off",  # these tests kill clients, not the machine
    "max_connections": "60",
    "shared_buffers": "32MB",
}


class Server:
    """A server that is running, or can be started again."""

    def __init__(self, binaries: Path, folder: Path, user: dict[str, Any], settings: dict[str, str]) -> None:
        self.binaries, self.folder, self.user, self.settings = binaries, folder, user, settings
        self.data = folder / "data"
        self._count = 0
        self._made: str | None = None

    def start(self) -> None:
        options = " ".join(f"-c {name}={value or chr(39) * 2}" for name, value in self.settings.items())
        self._call("pg_ctl", "start", "-w", "-l", f"{self.folder}/log", "-o", f"-k {self.folder} {options}")

    def stop(self) -> None:
        self._call("pg_ctl", "stop", "-m", "immediate")

    def database(self, like: str = "template1") -> str:
        """The URL of a new database, empty or a copy of another."""
        self._count += 1
        name = f"ledger{self._count}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {like}")
        return f"postgresql://metier@/{name}?host={self.folder}"

    def ledger(self) -> str:
        """The URL of a new database that holds an empty ledger: a copy of one that is made once."""
        if self._made is None:
            url = self.database()
            Ledger.open(url).close()
            self._made = f"ledger{self._count}"
        return self.database(like=self._made)

    def sql(self, statement: str, database: str = "postgres") -> str:
        command = [self.binaries / "psql", "-qAt", "-h", self.folder, "-U", "metier", "-d", database, "-c", statement]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def make(self) -> None:
        self._call("initdb", "-U", "metier", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def _call(self, name: str, *arguments: str) -> None:
        command = [str(self.binaries / name), "-D", str(self.data), *arguments]
        # Not into pipes: a server that was started keeps them open, and reading would never end.
        with open(self.folder / f"{name}.out", "w+") as said:
            done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, timeout=120, cwd="/", **self.user)
            if done.returncode:
                said.seek(0)
                raise RuntimeError(f"{name}: {said.read()}")


def missing() -> str | None:
    """Why no server can be started here, or None."""
    if _binaries() is None:
        return "needs PostgreSQL's server (Debian: apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "needs the driver psycopg (pip install 'psycopg[binary]')"
    return None


@contextlib.contextmanager
def server(**settings: str) -> Iterator[Server]:
    """A running server."""
    binaries = _binaries()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="metier-pg-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # which the server refuses to run as
        account = next(pwd.getpwnam(name) for name in ("postgres", "nobody") if _is_user(name))
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}
        os.chown(folder, account.pw_uid, account.pw_gid)
    made = Server(binaries, folder, user, {**SETTINGS, **settings})
    try:
        made.make()
        made.start()
        yield made
    finally:
        with contextlib.suppress(RuntimeError):  # a test may have stopped it
            made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = [Path(one).parent for one in glob.glob("/usr/lib/postgresql/*/bin/initdb")]
    return max(versions, key=lambda path: int(path.parent.name), default=None)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
