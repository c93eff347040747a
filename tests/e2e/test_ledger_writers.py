"""Sixteen processes write one ledger at once and are killed at random; the server goes away and comes back."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metier.base.errors import LedgerError
from metier.records import database
from metier.records.check import check
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Message, Run, Source, Task, Weights
from postgres import Server, missing, server

TASK = Task(family="desk", kind="act", messages=(Message(role="user", content="Book it"),))
CODE = Source(kind="verifier", name="state", version="1")
WRITERS, KILLS = 16, 24


def episode(name: str) -> Episode:
    return Episode(
        id=name,
        task_id=TASK.id,
        run_id="run",
        stage="rollout",
        weights=Weights(checkpoint="base"),
        messages=TASK.messages,
        token_ids=(1, 2),
        loss_mask=(0, 1),
    )


def fill(ledger: Ledger) -> None:
    ledger.add_run(Run(id="run", recipe="desk", config={}, seed=1, folder="f", code_version="0"))
    ledger.add_tasks([TASK])
    ledger.add_episodes([episode("e")])


# Adds episodes with arrays and feedback, through records and through Arrow, and says on its own line what it was told
# is kept. A writer that is started again does its last steps again, as a run does that is resumed.
WRITER = """
import dataclasses, sys
from metier.records.arrow import to_arrow
from metier.records.ledger import Ledger
from metier.records.types import Feedback, Source
where, name, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Ledger.open(where, create=False) as ledger:
    like = ledger.episode("e", arrays=True)
    print("ready", flush=True)
    for step in range(first, 100_000):
        mine = [dataclasses.replace(like, id=f"{name}-{step}-{i}") for i in range(2)]
        ledger.add_episodes([*mine, dataclasses.replace(like, id=f"shared-{step}")])
        said = [
            Feedback(id=f"fb-{e.id}", about=(e.id, f"shared-{step}"), criterion=f"of {name}", kind="preference",
                source=Source(kind="person", name=name, version=str(step % 3)), value=0)
            for e in mine
        ]
        if step % 2:
            ledger.add_feedback(said)
        else:
            (table,) = to_arrow(said)
            ledger.append_arrow(table)
        print(step, flush=True)
"""


class Writer:
    """One process; what it acknowledged is read as it comes."""

    def __init__(self, where: str, name: str) -> None:
        self.where, self.name = where, name
        self.acknowledged = -1
        self.start()

    def start(self) -> None:
        first = max(0, self.acknowledged - 1)  # the steps before may be done again
        command = [sys.executable, "-c", WRITER, self.where, self.name, str(first)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n") and line.strip().isdigit():
                self.acknowledged = max(self.acknowledged, int(line))

    def kill(self) -> str:
        self.process.kill()
        _, said = self.process.communicate()
        self.reader.join()
        return said


@pytest.mark.slow
def test_sixteen_writers_killed_at_random(where: str) -> None:
    rng = random.Random(6)
    with Ledger.open(where) as ledger:
        fill(ledger)
        writers = [Writer(where, f"w{n}") for n in range(WRITERS)]
        try:
            deadline = time.monotonic() + 120
            while min(writer.acknowledged for writer in writers) < 2:
                assert time.monotonic() < deadline, [writer.acknowledged for writer in writers]
                time.sleep(0.05)
            for _ in range(KILLS):
                time.sleep(rng.uniform(0.0, 0.4))
                writer = rng.choice(writers)
                assert not writer.kill(), "no writer fails by itself"
                writer.start()
        finally:
            said = [writer.kill() for writer in writers]
        assert not any(said), said

        for writer in writers:
            wanted = {f"{writer.name}-{step}-{i}" for step in range(writer.acknowledged + 1) for i in range(2)}
            there = [e.id for e in ledger.episodes(ids=wanted, arrays=True) if e.token_ids == (1, 2)]
            assert len(there) == len(wanted) == len(set(there)), "what was acknowledged is kept, once"
            statements = ledger.feedback(criterion=f"of {writer.name}")
            assert len(statements) == len({s.id for s in statements})
            assert {f"fb-{one}" for one in wanted} <= {s.id for s in statements}
            # at most the step that was cut off is there beside what was acknowledged
            assert len(statements) <= len(wanted) + 2
        assert check(ledger) == []


@pytest.fixture
def own_server() -> Iterator[Server]:
    if (why := missing()) is not None:
        pytest.skip(why)
    with server(fsync="on") as running:
        yield running


def said(name: str) -> Feedback:
    return Feedback(id=name, about=("e",), criterion="ok", kind="score", source=CODE, value=1)


def test_a_server_that_goes_and_comes_back(own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"{own_server.database()}&arrays={tmp_path}/arrays"
    with Ledger.open(where) as ledger:
        fill(ledger)
        ledger.add_feedback([said("before")])
        own_server.stop()
        with monkeypatch.context() as patch:
            patch.setattr(database, "BUSY_SECONDS", 0.5)
            with pytest.raises(LedgerError, match=r"cannot be reached .*do this again when it is there"):
                ledger.add_feedback([said("lost")])
            with pytest.raises(LedgerError, match="cannot be reached"):
                ledger.feedback()
        again = threading.Timer(1.0, own_server.start)
        again.start()
        ledger.add_feedback([said("after")])  # waits for it
        again.join()
        assert [f.id for f in ledger.feedback()] == ["before", "after"]

        # gone in the middle of a transaction: nothing of it is kept, and it may be done again
        with pytest.raises(LedgerError, match=r"cannot be reached|terminat"), ledger.writing() as connection:
            ledger._insert_feedback(connection, [said("half")], {"e": 1})
            own_server.stop()
            connection.exec_driver_sql("SELECT 1")
        own_server.start()
        assert [f.id for f in ledger.feedback()] == ["before", "after"]
        ledger.add_feedback([said("half")])
        assert check(ledger) == []


def test_addresses_at_which_there_is_no_ledger(own_server: Server, tmp_path: Path) -> None:
    url = own_server.database()
    with pytest.raises(LedgerError, match="is empty and not a ledger"):
        Ledger.open(url, create=False)
    with pytest.raises(LedgerError, match='database "nobody" does not exist'):
        Ledger.open(f"postgresql://metier@/nobody?host={own_server.folder}")
    with pytest.raises(LedgerError, match="cannot be reached"):
        Ledger.open(f"postgresql://metier:secret@/x?host={tmp_path}")  # at once: it never was there
    own_server.sql("CREATE TABLE songs (id int)", "ledger1")
    with pytest.raises(LedgerError, match=r"holds other tables \(songs\)"):
        Ledger.open(url)


def test_no_password_is_ever_shown(own_server: Server, tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(f"postgresql://metier:secret@/x?host={tmp_path}")
    assert "secret" not in str(caught.value) and "metier:***@" in str(caught.value)


def test_where_token_arrays_lie(own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = own_server.database()
    with Ledger.open(url) as ledger:
        fill(ledger)
        assert ledger.arrays_folder.parent == Path("runs") and ledger.arrays_folder.name.startswith("ledger1-")
        (shard,) = (tmp_path / ledger.arrays_folder).iterdir()
    with Ledger.open(url) as ledger:  # the same folder again, whatever the address is called
        assert ledger.episode("e", arrays=True).token_ids == (1, 2)
    with Ledger.open(own_server.database()) as other:
        assert other.arrays_folder.name.startswith("ledger2-")
    shard.unlink()
    with Ledger.open(url) as ledger, pytest.raises(LedgerError, match="are missing"):
        ledger.episode("e", arrays=True)
