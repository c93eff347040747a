"""`check` finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from metier.records.check import check
from metier.records.ledger import Ledger
from metier.records.types import DatasetManifest, Episode, Feedback, Message, Run, Source, Task, Weights

TASK = Task(family="desk", kind="act", messages=(Message(role="user", content="Book it"),))


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger.open(where) as ledger:
        ledger.add_run(Run(id="run", recipe="desk", config={}, seed=1, folder="f", code_version="0"))
        ledger.add_tasks([TASK])
        for n in range(3):
            ledger.add_episodes(
                [
                    Episode(
                        id=f"e{n}",
                        task_id=TASK.id,
                        run_id="run",
                        stage="rollout",
                        weights=Weights(checkpoint="base"),
                        messages=TASK.messages,
                        token_ids=(1, 2),
                        loss_mask=(0, 1),
                    )
                ]
            )
        code = Source(kind="verifier", name="state", version="1")
        ledger.add_feedback(
            [
                Feedback(id=f"f{n}", about=(f"e{n}",), criterion="ok", kind="score", source=code, value=1)
                for n in range(3)
            ]
        )
        manifest = {"kind": "rl", "name": "d", "run_id": "run", "stage": "s", "query": {}, "episode_ids": ()}
        ledger.add_dataset(DatasetManifest(id="d", feedback_ids=("f0",), **manifest))  # type: ignore[arg-type]
        ledger.erase("f2", why="asked")
        yield ledger


def test_a_whole_ledger(ledger: Ledger) -> None:
    assert check(ledger) == []


def unguarded(ledger: Ledger, *statements: str) -> None:
    """Do what only somebody with the database's password and bad intentions can do."""
    with ledger._database.engine.begin() as connection:
        sqlite = connection.dialect.name == "sqlite"
        if sqlite:
            names = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
            for name, _ in names:
                connection.execute(text(f"DROP TRIGGER {name}"))
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        else:
            connection.execute(text("SET session_replication_role = replica"))
        for statement in statements:
            connection.exec_driver_sql(statement)
        if sqlite:
            for _, sql in names:
                connection.exec_driver_sql(sql)
        else:
            connection.execute(text("SET session_replication_role = origin"))


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DELETE FROM feedback WHERE id = 'f1'", "rows of feedback are missing: 2 of 3"),
        ("DELETE FROM feedback WHERE id = 'f1'", "feedback_about names a feedback that is not there"),
        ("DELETE FROM feedback WHERE id = 'f0'", "a dataset holds feedback that is not there"),
        ("DELETE FROM feedback WHERE id = 'f1'", "a payload belongs to no feedback"),
        ("DELETE FROM feedback_payloads WHERE seq = 1", "feedback has lost what it says, and no erasure"),
        ("INSERT INTO feedback_payloads VALUES (3, '{}')", "feedback was erased and still says something"),
        ("DELETE FROM feedback_about WHERE feedback = 2", "not linked one to one"),
        ("UPDATE feedback SET supersedes = 'nobody' WHERE seq = 2", "feedback names a supersedes that is not there"),
        ("UPDATE feedback_about SET episode = 77 WHERE feedback = 2", "names a episode that is not there"),
        ("DELETE FROM moments WHERE seq = (SELECT max(seq) FROM moments)", "moments know"),
        ("UPDATE moments SET at = 0 WHERE seq = 3", "time goes back"),
        ("UPDATE episodes SET shard = 'gone.arrow' WHERE id = 'e1'", "token arrays are missing or damaged"),
    ],
)
def test_damage_is_found(ledger: Ledger, statement: str, what: str) -> None:
    unguarded(ledger, statement)
    assert any(what in problem.what for problem in check(ledger)), [problem.what for problem in check(ledger)]


def test_guards_that_are_gone_are_found(ledger: Ledger) -> None:
    with ledger._database.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER marks_no_update"))
        else:
            connection.execute(text("ALTER TABLE marks DISABLE TRIGGER only_grows"))
    (problem,) = check(ledger)
    assert problem.what == "guards against change are gone" and problem.examples[0].startswith("marks")


def test_arrays_that_are_cut_are_found(ledger: Ledger) -> None:
    shard = next(iter(ledger.arrays_folder.iterdir()))
    shard.write_bytes(shard.read_bytes()[:-40])
    (problem,) = check(ledger)
    assert "damaged" in problem.examples[0]
