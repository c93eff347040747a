"""The ledger as a file: versions, what is not a ledger, and disks that refuse."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text

from metier.base.errors import DiskFullError, LedgerError
from metier.records import schema
from metier.records.arrays import ArrayStore
from metier.records.check import check
from metier.records.ledger import Ledger
from metier.records.lineage import reached, why
from metier.records.migrations import MIGRATIONS, NEWEST, migrate
from metier.records.types import Episode, Message, Run, Task, Weights

RUN = Run(id="run", recipe="desk", config={}, seed=1, folder="f", code_version="0")
TASK = Task(family="desk", kind="act", messages=(Message(role="user", content="Book it"),))


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


# --- versions ------------------------------------------------------------------------


def test_migrations_make_what_the_queries_expect(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    engine = create_engine(f"sqlite:///{path}")
    made = inspect(engine)
    assert set(made.get_table_names()) == set(schema.metadata.tables)
    for name, table in schema.metadata.tables.items():
        assert [c["name"] for c in made.get_columns(name)] == [c.name for c in table.columns], name
        assert made.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key], name
        indexes = {i["name"]: i["column_names"] for i in made.get_indexes(name) if not i["unique"]}
        assert indexes == {i.name: [c.name for c in i.columns] for i in table.indexes}, name
    engine.dispose()


@pytest.mark.parametrize("version", range(1, NEWEST))
def test_an_older_ledger_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        assert migrate(connection, to=version) == version
        body = '{"id":"old","recipe":"desk","config":{},"seed":1,"folder":"f","code_version":"0"}'
        connection.execute(text("INSERT INTO runs (id, created_at, body) VALUES ('old', 0, :body)"), {"body": body})
    engine.dispose()
    with Ledger.open(path, create=False) as ledger:
        assert ledger.run("old").recipe == "desk"
        ledger.add_run(RUN)
        ledger.add_tasks([TASK])
        ledger.add_episodes([episode("e")])
        assert ledger.episode("e", arrays=True) == episode("e")
        with ledger.reading() as connection:
            versions = connection.execute(text("SELECT version FROM schema_version ORDER BY version")).scalars().all()
        assert list(versions) == list(range(1, NEWEST + 1))


def test_what_an_older_ledger_holds_is_kept(nowhere: str) -> None:
    """A ledger of version 2, as it was written then: everything reads back, walks back, and what was erased is gone."""
    if "://" not in nowhere:
        Path(nowhere).parent.mkdir()
    address = nowhere if "://" in nowhere else f"sqlite:///{nowhere}"
    engine = create_engine(address.partition("&arrays")[0].replace("postgresql:", "postgresql+psycopg:"))
    run, task = {"id": "run", "recipe": "r", "config": {}, "seed": 1, "folder": "", "code_version": "0"}, TASK.id
    said: dict[str, Any] = {"about": ["e2", "e1"], "criterion": "better", "kind": "preference", "status": "scored"}
    said["source"] = {"kind": "person", "name": "anna", "version": "1"}
    body = {"stage": "s", "weights": {"checkpoint": "base", "step": 3}, "run_id": "run", "task_id": task}
    of_dataset = {"id": "d", "kind": "pairs", "name": "d", "run_id": "run", "stage": "s", "query": {"x": 1}}
    of_checkpoint = {"id": "c", "run_id": "run", "stage": "s", "step": 1, "path": "p", "dataset_ids": ["d"]}
    rows: list[tuple[str, tuple[Any, ...]]] = [
        ("runs (id, created_at, body)", ("run", 0, json.dumps(run))),
        ("tasks (id, family, kind, split, body)", (task, "desk", "act", "train", '{"family": "desk", "kind": "act"}')),
        ("payloads (kind, record_id, body)", ("task", task, '{"messages": [{"role": "user", "content": "Book it"}]}')),
    ]
    for name in ("e1", "e2"):
        columns = "episodes (id, run_id, task_id, stage, split, checkpoint, step, created_at, body)"
        rows.append((columns, (name, "run", task, "s", "train", "base", 3, 0, json.dumps({"id": name, **body}))))
        rows.append(("payloads (kind, record_id, body)", ("episode", name, '{"messages": []}')))
    for n, (name, run_id) in enumerate((("f1", "run"), ("f2", None), ("f3", "run"))):
        columns = (
            "feedback (id, run_id, criterion, kind, source_kind, source_name, source_version, status, supersedes,"
            " created_at, body)"
        )
        older = "f1" if name == "f3" else None
        whole = json.dumps({"id": name, "run_id": run_id, "supersedes": older, **said})
        given = ("better", "preference", "person", "anna", "1", "scored", older, 5.0, whole)
        rows.append((columns, (name, run_id, *given)))
        rows += [
            ("feedback_about (feedback_id, position, episode_id)", (name, place, episode_id))
            for place, episode_id in enumerate(said["about"])
        ]
        if name != "f2":
            rows.append(("payloads (kind, record_id, body)", ("feedback", name, json.dumps({"value": n / 2}))))
    rows += [
        ("erasures (kind, record_id, why, created_at)", ("feedback", "f2", "asked", 1.0)),
        ("datasets (id, run_id, stage, kind, name, body)", ("d", "run", "s", "pairs", "d", json.dumps(of_dataset))),
        ("dataset_records (dataset_id, kind, position, record_id)", ("d", "feedback", 0, "f3")),
        ("dataset_records (dataset_id, kind, position, record_id)", ("d", "feedback", 1, "f1")),
        ("dataset_records (dataset_id, kind, position, record_id)", ("d", "task", 0, task)),
        (
            "checkpoints (id, run_id, stage, step, parent, body)",
            ("c", "run", "s", 1, "base", json.dumps(of_checkpoint)),
        ),
        ("checkpoint_datasets (checkpoint_id, position, dataset_id)", ("c", 0, "d")),
    ]
    with engine.begin() as connection:
        migrate(connection, to=2)
        for target, values in rows:
            names = {f"v{n}": value for n, value in enumerate(values)}
            marks = ", ".join(f":{name}" for name in names)
            connection.execute(text(f"INSERT INTO {target} VALUES ({marks})"), names)
    engine.dispose()

    with Ledger.open(nowhere, create=False) as ledger:
        assert check(ledger) == []
        assert ledger.task(task) == dataclasses.replace(TASK, split="train")
        found = ledger.feedback(current=False)
        assert [(f.id, f.run_id, f.about, f.value, f.source.name) for f in found] == [
            ("f1", "run", ("e2", "e1"), 0, "anna"),
            ("f2", None, ("e2", "e1"), None, "anna"),
            ("f3", "run", ("e2", "e1"), 1, "anna"),
        ]
        assert [f.id for f in ledger.feedback(run_id="run")] == ["f3"]
        assert [f.id for f in ledger.feedback(about=["e1"])] == ["f2", "f3"]
        assert found[1].reason == "[erased]"
        assert (ledger.dataset("d").feedback_ids, ledger.dataset("d").task_ids) == (("f3", "f1"), (task,))
        assert reached(ledger, "e2").datasets == ("d",)
        (link,) = why(ledger, "c").checkpoints
        assert [(e.weights.step, e.n) for e in link.datasets[0].episodes] == [(3, 2)]
        with pytest.raises(LedgerError, match="was added before"):
            ledger.as_of("d")
        ledger.add_feedback([found[0], dataclasses.replace(found[2], id="f4", supersedes="f3")])
        assert [f.id for f in ledger.feedback(run_id="run")] == ["f4"]
        assert check(ledger) == []


def test_a_migration_that_fails_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        migrate(connection, to=1)
    engine.dispose()

    def broken(connection: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("metier.records.migrations.MIGRATIONS", (MIGRATIONS[0], broken))
        with pytest.raises(KeyboardInterrupt):
            Ledger.open(path)
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT max(version) FROM schema_version").fetchone() == (1,)
    raw.close()
    Ledger.open(path).close()


def test_a_newer_ledger_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    raw = sqlite3.connect(path)
    raw.execute("INSERT INTO schema_version VALUES (?, 0)", (NEWEST + 1,))
    raw.commit()
    raw.close()
    before = hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(
        LedgerError, match=rf"version {NEWEST + 1} .* up to {NEWEST}: upgrade metier; nothing was written"
    ):
        Ledger.open(path)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.db"]


# --- what is not a ledger ------------------------------------------------------------


def test_files_that_are_not_ledgers(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("not a database, but long enough to have a header of its own. " * 50)
    before = words.read_bytes()
    with pytest.raises(LedgerError, match=r"words\.txt is not a Metier ledger"):
        Ledger.open(words)
    assert words.read_bytes() == before

    other = tmp_path / "other.db"
    raw = sqlite3.connect(other)
    raw.execute("CREATE TABLE songs (id)")
    raw.close()
    before = other.read_bytes()
    with pytest.raises(LedgerError, match=r"other.db holds other tables \(songs\) and is not a Metier ledger"):
        Ledger.open(other)
    assert other.read_bytes() == before

    with pytest.raises(LedgerError, match="is a folder, not a ledger"):
        Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="there is no ledger at"):
        Ledger.open(tmp_path / "nothing.db", create=False)
    assert not (tmp_path / "nothing.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(LedgerError, match=r"empty.db is empty and not a ledger"):
        Ledger.open(tmp_path / "empty.db", create=False)
    Ledger.open(tmp_path / "empty.db").close()


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.add_run(RUN)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(LedgerError, match=r"damaged|cannot be used"), Ledger.open(path) as ledger:
        ledger.runs()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite://", "in memory would be lost"),
        ("nosuchdb://host/name", "in a file or in PostgreSQL, not in 'nosuchdb'"),
        ("a b://", "no database URL"),
    ],
)
def test_urls_that_are_no_ledger(url: str, sentence: str) -> None:
    with pytest.raises(LedgerError, match=sentence):
        Ledger.open(url)


def test_a_url_opens_the_same_ledger(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.add_run(RUN)
        ledger.add_tasks([TASK])
        ledger.add_episodes([episode("e")])
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        assert ledger.episode("e", arrays=True) == episode("e")
        assert ledger.arrays_folder == tmp_path / "ledger-arrays"


# --- disks that refuse ---------------------------------------------------------------


def test_a_ledger_that_cannot_be_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.add_run(RUN)
    with Ledger.open(f"sqlite:///file:{path}?mode=ro&uri=true") as ledger:
        assert ledger.runs() == [RUN]
        with pytest.raises(LedgerError, match="read-only"):
            ledger.add_tasks([TASK])


def test_a_full_database_is_a_plain_sentence_and_keeps_what_was_there(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.add_run(RUN)
        big = Task(family="desk", kind="act", messages=(Message(role="user", content="x" * 10**6),))
        with pytest.raises(DiskFullError, match="no room left"), ledger.writing() as connection:
            connection.execute(text("PRAGMA max_page_count = 100"))
            connection.execute(schema.task_payloads.insert(), {"seq": 1, "body": big.messages[0].content})
        assert ledger.runs() == [RUN]


def test_a_full_disk_under_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.add_run(RUN)
        ledger.add_tasks([TASK])
        with monkeypatch.context() as patch:
            patch.setattr("metier.records.arrays.os.fsync", full)
            with pytest.raises(DiskFullError, match="ledger-arrays; free some space"):
                ledger.add_episodes([episode("e")])
        assert list(ArrayStore(ledger.arrays_folder).folder.iterdir()) == []
        ledger.add_episodes([episode("e")])
        assert ledger.counts()["episodes"] == 1


FILLER = """
import dataclasses, sys
from metier.base.errors import DiskFullError
from metier.records.ledger import Ledger
where, tokens, text = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if len(sys.argv) > 4:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
with Ledger.open(where) as ledger:
    first = ledger.episodes()[0]
    message = dataclasses.replace(first.messages[0], content="x" * text)
    added = 1
    try:
        while added < 10_000:
            arrays = {"token_ids": (1,) * tokens, "loss_mask": (1,) * tokens}
            ledger.add_episodes([dataclasses.replace(first, id=f"more-{added}", messages=(message,), **arrays)])
            added += 1
    except DiskFullError as error:
        print(added, error)
"""


def _fill(where: Path, *arguments: int) -> None:
    """Add episodes in another process until the disk is full; all that was added before must be there."""
    with Ledger.open(where) as ledger:
        ledger.add_run(RUN)
        ledger.add_tasks([TASK])
        ledger.add_episodes([episode("e")])
    command = [sys.executable, "-c", FILLER, str(where), *map(str, arguments)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    added, sentence = said.stdout.strip().split(" ", 1)
    assert "disk" in sentence
    assert "\n" not in sentence
    with Ledger.open(where) as ledger:
        assert len(ledger.episodes(arrays=True)) == int(added)
        assert not [file for file in ledger.arrays_folder.iterdir() if file.name.endswith(".writing")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize(
    ("tokens", "characters", "limit"),
    [(2, 40_000, 600_000), (60_000, 2, 300_000)],  # the database grows too large; one shard is too large
)
def test_files_that_may_not_grow(tmp_path: Path, tokens: int, characters: int, limit: int) -> None:
    _fill(tmp_path / "ledger.db", tokens, characters, limit)


@pytest.mark.parametrize(("tokens", "characters"), [(2, 40_000), (30_000, 2)])
def test_a_disk_that_is_full(tmp_path: Path, tokens: int, characters: int) -> None:
    mount = shutil.which("mount")
    if mount is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        _fill(disk / "ledger.db", tokens, characters)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
