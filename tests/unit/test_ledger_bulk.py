"""Very many rows: the way in through Arrow is the way in through records; streams; the ledger as it stood."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import text

from metier.base.errors import DataError, LedgerError
from metier.records import arrow, moments, rows, view
from metier.records.arrow import SCHEMA, statement_of, to_arrow
from metier.records.check import check
from metier.records.ledger import Ledger
from metier.records.lineage import why
from metier.records.types import (
    Abstention,
    Checkpoint,
    Cost,
    DatasetManifest,
    Episode,
    Feedback,
    Message,
    Run,
    Source,
    Span,
    Task,
    Weights,
)

RUN = Run(id="run", recipe="desk", config={}, seed=1, folder="f", code_version="0")
TASK = Task(family="desk", kind="act", messages=(Message(role="user", content="Book it"),))
ANNA = Source(kind="person", name='anna "the quick" Ñandú', version="1")
CODE = Source(kind="verifier", name="state", version="2")


def episode(name: str) -> Episode:
    answer = Message(role="assistant", content=f"It is done: {name}")
    return Episode(
        id=name,
        task_id=TASK.id,
        run_id="run",
        stage="rollout",
        weights=Weights(checkpoint="base"),
        messages=(*TASK.messages, answer),
        token_ids=(1, 2),
        loss_mask=(0, 1),
    )


def said(name: str, **changes: Any) -> Feedback:
    given = {
        "about": ("e1",),
        "criterion": "success",
        "kind": "score",
        "source": CODE,
        "value": 0.5,
        "created_at": 5.0,
        **changes,
    }
    return Feedback(id=name, **given)


STATEMENTS = [
    said("f1", value=1, run_id="run"),
    said("f2", about=("e2", "e1"), kind="preference", source=ANNA, value=0),
    said("f3", about=("e1", "e2"), kind="preference", source=ANNA, value=0.5),
    said("f4", about=("e2", "e1", "e3"), kind="ranking", value=[2, 0, 1], reason='so\tsaid "Ñ"\n\\'),
    said("f5", kind="label", value="rude ½ €", observed_at=4.5, confidence=0.25),
    said("f6", value=None, abstention=Abstention(why='not "mine"')),
    said("f7", value=None, status="unscored", reason="timed out"),
    said("f8", value=None, status="pending", due_at=9.0, resolver="sales"),
    said("f9", value=-1.5e-7, supersedes="f1", propensity=0.125, assignment="queue"),
    said("f10", value=None, status="retracted", supersedes="f3", about=("e1", "e2"), source=ANNA, kind="preference"),
    said("f11", kind="demonstration", value=[{"role": "assistant", "content": "Done"}], evidence={"a": [1, None]}),
    said("f12", value=0.1, span=Span(turn=1, start=0, end=4), cost=Cost(seconds=1.5, usd=0.25)),
    said("f13", kind="label", value="", reason=""),
    said("f14", value=1.0),
]


def fill(ledger: Ledger) -> None:
    ledger.add_run(RUN)
    ledger.add_tasks([TASK])
    ledger.add_episodes([episode(f"e{n}") for n in (1, 2, 3)])


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger.open(where) as ledger:
        fill(ledger)
        yield ledger


def everything(ledger: Ledger) -> list[Feedback]:
    return ledger.feedback(current=False)


def by_id(statements: list[Feedback]) -> list[Feedback]:
    """The order in which the rows of one transaction are written."""
    return sorted(statements, key=lambda one: one.id)


# --- Arrow ------------------------------------------------------------------------------


def test_arrow_is_another_way_to_the_same_records(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = to_arrow(STATEMENTS)
    assert table.schema == SCHEMA
    assert [statement_of(row) for row in table.to_pylist()] == STATEMENTS
    monkeypatch.setattr(arrow, "_ROWS", 5)  # several transactions
    written = [one for start in range(0, len(STATEMENTS), 5) for one in by_id(STATEMENTS[start : start + 5])]
    assert written != STATEMENTS
    assert ledger.append_arrow(table) == len(STATEMENTS)
    assert everything(ledger) == written
    assert ledger.append_arrow(table) == 0, "again changes nothing"
    ledger.add_feedback(STATEMENTS)  # and these are the same records
    assert everything(ledger) == written
    assert check(ledger) == []
    assert [f.id for f in ledger.feedback(about=["e3"])] == ["f4"]
    assert [f.id for f in ledger.feedback(source=ANNA.name)] == ["f2"]


def test_a_table_of_which_some_rows_are_known(ledger: Ledger) -> None:
    ledger.add_feedback(STATEMENTS[:4])
    (table,) = to_arrow(STATEMENTS)
    assert ledger.append_arrow(table) == len(STATEMENTS) - 4
    assert everything(ledger) == [*STATEMENTS[:4], *by_id(STATEMENTS[4:])]
    assert check(ledger) == []


def test_the_planner_of_postgresql_knows_how_large_the_tables_are(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(table: str) -> float:
        with ledger.reading() as connection:
            found = text(f"SELECT reltuples FROM pg_class WHERE oid = '{table}'::regclass")
            return float(connection.execute(found).scalar_one())

    with ledger.reading() as connection:
        if connection.dialect.name == "sqlite":
            pytest.skip("SQLite reads by its indexes without statistics")
    tables = ("feedback", "feedback_payloads", "episodes")
    assert {counted(table) for table in tables} == {-1.0}, "nobody has counted"
    monkeypatch.setattr(rows, "_UNCOUNTED", 10)
    ledger.add_episodes([episode(f"more{n}") for n in range(20)])
    (table,) = to_arrow(said(f"s{n:02}") for n in range(40))
    ledger.append_arrow(table)
    assert [counted(table) for table in tables] == [40.0, 40.0, 23.0]
    ledger.add_feedback([said(f"t{n}") for n in range(9)])
    assert counted("feedback") == 40.0, "less than a quarter more"
    ledger.add_feedback([said(f"t{n}") for n in range(20)])
    assert counted("feedback") == 60.0


def test_a_table_needs_few_columns_and_any_type_of_text(ledger: Ledger) -> None:
    table = pa.table(
        {
            "id": pa.array(["a", "b"], pa.large_string()),
            "about": pa.array([["e1", "e2"], ["e2", "e1"]], pa.large_list(pa.string())),
            "criterion": pa.array(["better", "better"]).dictionary_encode(),
            "kind": ["preference", "preference"],
            "source_kind": ["person", "person"],
            "source_name": ["anna", "ben"],
            "source_version": ["1", "1"],
            "value": pa.array([0, 1], pa.int8()),
        }
    )
    assert ledger.append_arrow(table) == 2
    found = ledger.feedback(criterion="better")
    assert [(f.id, f.about, f.value, f.status, f.source.name) for f in found] == [
        ("a", ("e1", "e2"), 0, "scored", "anna"),
        ("b", ("e2", "e1"), 1, "scored", "ben"),
    ]
    assert type(found[0].value) is int, "the place of an episode in `about`"


def test_numbers_that_are_not_finite(ledger: Ledger) -> None:
    values = [math.inf, -math.inf, math.nan]
    (table,) = to_arrow([said(f"x{n}", value=value) for n, value in enumerate(values)])
    ledger.append_arrow(table)
    found = [f.value for f in everything(ledger)]
    assert found[:2] == values[:2] and math.isnan(found[2])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"criterion": None}, "row 2: criterion is missing"),
        ({"id": None}, "row 2: id is missing"),
        ({"id": "f1"}, "row 2: its id stands in the table twice"),
        ({"kind": "opinion"}, "row 2: kind must be one of score, preference"),
        ({"source_kind": "oracle"}, "row 2: source_kind must be one of"),
        ({"about": []}, "row 2: it is about no episode"),
        ({"about": None}, "row 2: it is about no episode"),
        ({"value": None}, "row 2: a scored statement needs a value or an abstention"),
        ({"status": "unscored"}, "row 2: what is unscored or pending carries no value"),
        ({"status": "pending", "value": None}, "row 2: what is pending needs due_at and resolver"),
        ({"status": "retracted", "value": None}, "row 2: a retraction must name what it supersedes"),
        ({"value": None, "value_json": '"good"'}, "row 2: a score must be a number"),
        ({"confidence": 1.5}, "row 2: confidence is not within 0 and 1"),
        ({"propensity": 0.0}, "row 2: propensity is not within 0 and 1"),
        ({"kind": "label", "value": None, "value_json": "{half"}, "row 2: value_json is no JSON"),
        ({"cost": "3"}, "row 2: cost is no JSON"),
        ({"id": "a\0b"}, "NUL"),
        ({"source_name": "a\0b"}, "NUL"),
        ({"about": ["e1", "nobody"]}, "about episode 'nobody', which is not in the ledger"),
        ({"run_id": "nobody"}, "names run 'nobody'"),
        ({"supersedes": "nobody"}, "supersedes feedback 'nobody'"),
    ],
)
def test_rows_that_are_no_feedback(ledger: Ledger, change: dict[str, Any], sentence: str) -> None:
    (good,) = to_arrow([said("f1"), said("f2"), said("f3")])
    rows = good.to_pylist()
    rows[1].update(change)
    with pytest.raises((DataError, LedgerError), match=sentence):
        ledger.append_arrow(pa.Table.from_pylist(rows, schema=SCHEMA))
    assert everything(ledger) == []
    assert check(ledger) == []
    ledger.append_arrow(good)  # what failed left nothing behind, in memory either
    assert len(everything(ledger)) == 3


def test_tables_that_do_not_fit(ledger: Ledger) -> None:
    with pytest.raises(DataError, match="no column 'about'"):
        ledger.append_arrow(pa.table({"id": ["a"]}))
    (table,) = to_arrow([said("f1")])
    wrong = table.set_column(table.column_names.index("about"), "about", pa.array([3]))
    with pytest.raises(DataError, match="column 'about' is int64 and must be list"):
        ledger.append_arrow(wrong)
    assert ledger.append_arrow(table.slice(0, 0)) == 0


def test_the_guards_are_back_after_many_rows(ledger: Ledger) -> None:
    (table,) = to_arrow(STATEMENTS)
    ledger.append_arrow(table)
    (broken,) = to_arrow([said("x", about=("nobody",))])
    with pytest.raises(LedgerError):
        ledger.append_arrow(broken)
    assert check(ledger) == [], "which looks for every guard"


# --- streams ----------------------------------------------------------------------------


def test_streams_are_what_lists_are(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.add_feedback(STATEMENTS)
    ledger.erase("f5", why="asked")
    ledger.erase("e2", why="asked")
    for window in (3, 1000):
        for many in (0, 64):  # sorts looked up one by one, or picked out of all rows
            monkeypatch.setattr(view, "_WINDOW", {Feedback: window, Episode: window})
            monkeypatch.setattr(view, "_MANY", many)
            for asked in ({}, {"criterion": "success"}, {"source": ANNA.name}, {"kind": "label"}, {"run_id": "run"}):
                for flags in ({}, {"current": False}, {"erased": False}):
                    assert list(ledger.iter_feedback(**asked, **flags)) == ledger.feedback(**asked, **flags)  # type: ignore[arg-type]
            assert list(ledger.iter_feedback(status="pending")) == [STATEMENTS[7]]
            assert list(ledger.iter_feedback(source="nobody")) == []
            assert list(ledger.iter_episodes(arrays=True)) == ledger.episodes(arrays=True)
            assert [e.id for e in ledger.iter_episodes(erased=False)] == ["e1", "e3"]
            assert list(ledger.iter_episodes(stage="other")) == []


def test_a_stream_is_of_what_was_there_when_it_began(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "_WINDOW", {Feedback: 2, Episode: 2})
    ledger.add_feedback([said(f"s{n}") for n in range(6)])
    stream = ledger.iter_feedback()
    found = [next(stream).id]
    ledger.add_feedback([said("later"), said("s5b", supersedes="s5")])  # nor does an open stream keep anyone waiting
    assert found + [f.id for f in stream] == [f"s{n}" for n in range(6)]
    assert [f.id for f in ledger.iter_feedback()][-3:] == ["s4", "later", "s5b"]


# --- as it stood ------------------------------------------------------------------------


def dataset(name: str, ids: tuple[str, ...]) -> DatasetManifest:
    return DatasetManifest(
        id=name, kind="rl", name=name, run_id="run", stage="rl", query={}, feedback_ids=ids, episode_ids=()
    )


def checkpoint(name: str, parent: str, datasets: tuple[str, ...]) -> Checkpoint:
    return Checkpoint(id=name, run_id="run", stage="rl", step=1, path="p", parent=parent, dataset_ids=datasets)


def test_the_ledger_as_it_stood(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(moments, "now", lambda: clock[0])
    base = ledger.counts()
    with ledger.reading() as connection:
        began = moments._moment(connection, 1).at
    clock[0] = began + 1000
    ledger.add_feedback([said("f1"), said("f2", about=("e2",))])
    clock[0] = began + 2000
    ledger.add_dataset(dataset("d1", ("f1", "f2")))
    ledger.add_checkpoint(checkpoint("c1", "base", ("d1",)))
    clock[0] = began + 1500  # a clock that is behind
    ledger.add_feedback([said("f1b", value=1.0, supersedes="f1")])
    ledger.add_episodes([episode("e9")])
    clock[0] = began + 3000
    ledger.add_checkpoint(checkpoint("c2", "c1", ()))
    ledger.erase("f2", why="asked")

    then = ledger.as_of("c1")
    assert not isinstance(then, Ledger), "a view can only be read"
    assert [f.id for f in then.feedback()] == [f.id for f in then.iter_feedback()] == ["f1", "f2"]
    assert [e.id for e in then.episodes()] == [e.id for e in then.iter_episodes()] == ["e1", "e2", "e3"]
    assert then.feedback()[1].reason == "[erased]", "what was erased since is gone in every view"
    assert then.counts() == {**base, "feedback": 2, "datasets": 1, "checkpoints": 1, "erasures": 1}
    assert [c.id for c in then.checkpoints()] == ["c1"]
    assert why(then, "c1").checkpoints[0].datasets[0].superseded == 0
    assert why(ledger, "c1").checkpoints[0].datasets[0].superseded == 1
    assert ledger.as_of("d1").counts()["checkpoints"] == 0
    with pytest.raises(LedgerError, match="no checkpoint 'c2'"):
        then.checkpoint("c2")
    assert sum(n for _, n in then.feedback_counts()) == 2

    assert [f.id for f in ledger.as_of(began + 1999).feedback()] == ["f1", "f2"]
    assert [c.id for c in ledger.as_of(began + 1999).checkpoints()] == []
    # what was added by the clock that was behind counts as added when the clock before it said
    assert [f.id for f in ledger.as_of(began + 2999).feedback()] == ["f2", "f1b"]
    assert [f.id for f in ledger.as_of(began + 1e9).feedback()] == [f.id for f in ledger.feedback()]
    assert then.as_of("c2").counts()["checkpoints"] == 2, "a view of a view is one of the ledger"
    with pytest.raises(LedgerError, match="since"):
        ledger.as_of(began - 1)
    with pytest.raises(LedgerError, match="no checkpoint, dataset or run 'nobody'"):
        ledger.as_of("nobody")


def test_marks_of_later_are_not_in_a_view(ledger: Ledger) -> None:
    from metier.records.forgetting import forget

    ledger.add_feedback([said("f1")])
    ledger.add_dataset(dataset("d1", ("f1",)))
    ledger.add_checkpoint(checkpoint("c1", "base", ("d1",)))
    forget(ledger, "f1", why="asked")
    assert ledger.dataset("d1").stale and not ledger.as_of("c1").dataset("d1").stale
    assert ledger.as_of("c1").counts()["stale"] == 0


# --- what is odd ------------------------------------------------------------------------


def test_a_response_of_ten_megabytes(ledger: Ledger) -> None:
    text = "0123456789abcdé\n" * 700_000
    whole = dataclasses.replace(episode("big"), messages=(*TASK.messages, Message(role="assistant", content=text)))
    assert len(text.encode()) > 10_000_000
    ledger.add_episodes([whole])
    assert ledger.episode("big", arrays=True) == whole
    ledger.add_feedback([said("fbig", about=("big",), reason=text[:5_000_000])])
    assert ledger.feedback(about=["big"])[0].reason == text[:5_000_000]


def test_texts_that_not_every_database_keeps(ledger: Ledger) -> None:
    for name in ("a\0b", "half \ud800"):
        with pytest.raises(DataError):
            ledger.add_feedback([said("f1", criterion=name)])
        with pytest.raises(DataError):
            ledger.add_feedback([said(name)])
        with pytest.raises(DataError):
            ledger.add_run(dataclasses.replace(RUN, id=name))
    inside = said("f1", reason="a\0b half \ud800")  # as JSON, anything goes
    ledger.add_feedback([inside])
    assert everything(ledger) == [inside]


def test_a_body_holds_no_more_than_it_must(ledger: Ledger) -> None:
    from sqlalchemy import select

    from metier.records import schema

    ledger.add_feedback([said("f1", run_id="run", created_at=3.0)])
    with ledger.reading() as connection:
        (body,) = connection.execute(select(schema.feedback.c.body)).scalars()
    assert json.loads(body) == {"about": ["e1"]}
