"""The four laws of DESIGN.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from metier.base.errors import LedgerError
from metier.records import schema
from metier.records.forgetting import forget
from metier.records.ledger import Ledger
from metier.records.lineage import reached, why
from metier.records.types import (
    Abstention,
    Checkpoint,
    DatasetManifest,
    Episode,
    Feedback,
    GateDecision,
    Group,
    Message,
    Profile,
    Run,
    Source,
    Suite,
    Task,
    Weights,
)
from metier.records.values import mean_score

CODE = Source(kind="verifier", name="state", version="1")
ANNA = Source(kind="person", name="anna", version="guide-2")
SECRET = "Ottilie Querfeld"  # what a customer wants forgotten


def ask(n: int) -> Task:
    return Task(family="desk", kind="act", messages=(Message(role="user", content=f"{SECRET} asks for book {n}"),))


def attempt(name: str, task: Task, weights: Weights) -> Episode:
    said = Message(role="assistant", content=f"Dear {SECRET}, it is on its way")
    return Episode(
        id=name,
        task_id=task.id,
        run_id="run",
        stage="rollout",
        weights=weights,
        messages=(*task.messages, said),
        token_ids=(11, 12, 13),
        sampler_logprobs=(0.0, -0.5, -0.25),
        loss_mask=(0, 1, 1),
        final_state={"customer": SECRET},
        group_id="group",
    )


def score(name: str, about: str, value: float, source: Source = CODE, supersedes: str | None = None) -> Feedback:
    return Feedback(
        id=name,
        about=(about,),
        criterion="success",
        kind="score",
        source=source,
        value=value,
        reason=f"wrote to {SECRET}",
        evidence={"quote": SECRET},
        run_id="run",
        supersedes=supersedes,
    )


def rows_of(name: str, feedback_ids: tuple[str, ...], episode_ids: tuple[str, ...] = ()) -> DatasetManifest:
    return DatasetManifest(
        id=name,
        kind="rl",
        name=name,
        run_id="run",
        stage="grpo",
        query={"criterion": "success"},
        feedback_ids=feedback_ids,
        episode_ids=episode_ids,
    )


def weights_of(name: str, parent: str, datasets: tuple[str, ...] = ()) -> Checkpoint:
    return Checkpoint(id=name, run_id="run", stage="grpo", step=1, path=name, parent=parent, dataset_ids=datasets)


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    """Two tasks, four episodes; base -> sft (on the first task) -> grpo (on the second), and a checkpoint beside."""
    first, second = ask(1), ask(2)
    base, sft = Weights(checkpoint="base"), Weights(checkpoint="sft", step=5)
    with Ledger.open(where) as ledger:
        ledger.add_run(Run(id="run", recipe="desk", config={}, seed=1, folder="f", code_version="0"))
        ledger.add_tasks([first, second])
        ledger.add_suite(Suite(name="suite", version="1", task_ids=(second.id,)))
        ledger.add_groups([Group(id="group", task_id=first.id, episode_ids=("e1", "e2"))])
        ledger.add_episodes([attempt("e1", first, base), attempt("e2", first, base)])
        ledger.add_episodes([attempt("e3", second, sft), attempt("e4", second, sft)])
        ledger.add_feedback([score("f1", "e1", 1.0), score("f2", "e2", 0.0), score("f3", "e3", 1.0)])
        ledger.add_feedback([score("f3-anna", "e3", 0.0, ANNA), score("f4", "e4", 0.0)])
        ledger.add_dataset(rows_of("data-sft", ("f1",), ("e1",)))
        ledger.add_dataset(rows_of("data-grpo", ("f3", "f3-anna", "f4")))
        ledger.add_dataset(rows_of("data-side", ("f2",)))
        ledger.add_checkpoint(weights_of("sft", "base", ("data-sft",)))
        ledger.add_checkpoint(weights_of("grpo", "sft", ("data-grpo",)))
        ledger.add_checkpoint(weights_of("side", "base", ("data-side",)))
        ledger.add_profile(Profile(id="profile", checkpoint="grpo", suite="suite", traits=()))
        ledger.add_gate(GateDecision(id="gate", checkpoint="grpo", baseline="base", verdict="pass"))
        yield ledger


def stored_bytes(ledger: Ledger, request: pytest.FixtureRequest) -> bytes:
    """All that lies on disk for this ledger: its file, log and shards, or the server's tables and its shards."""
    folders = [ledger.arrays_folder.parent]
    if ledger.path is None:
        server = request.getfixturevalue("postgres")
        server.sql("CHECKPOINT")
        name = ledger.label.partition("?")[0].rpartition("/")[2]
        folders.append(server.data / "base" / server.sql(f"SELECT oid FROM pg_database WHERE datname = '{name}'"))
    return b"".join(f.read_bytes() for folder in folders for f in folder.rglob("*") if f.is_file())


# --- 1. the ledger only grows --------------------------------------------------------


def test_1_no_row_is_changed_or_removed_even_by_hand(ledger: Ledger, where: str) -> None:
    ledger.erase("f2", why="so that there is an erasure")
    forget(ledger, "f1", why="so that there is a mark")
    before = ledger.counts()
    address = where if "://" in where else f"sqlite:///{where}"
    sqlite = address.startswith("sqlite")
    engine = create_engine(address.partition("&arrays")[0].replace("postgresql:", "postgresql+psycopg:"))

    def refused(statement: str) -> None:
        with engine.begin() as raw, pytest.raises(IntegrityError, match="only grows"):
            raw.execute(text(statement))

    tables = inspect(engine).get_table_names()
    assert set(tables) == set(schema.metadata.tables)
    for table in tables:
        columns = schema.metadata.tables[table].c
        with engine.connect() as raw:
            assert raw.execute(text(f"SELECT count(*) FROM {table}")).scalar(), f"{table} is empty: nothing is tested"
        column = list(columns)[-1].name
        refused(f"UPDATE {table} SET {column} = {column}")
        refused(f"DELETE FROM {table}")
        if sqlite:
            refused(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
        else:
            refused(f"TRUNCATE {table} CASCADE")
    if sqlite:
        for seq, name in ((1, "another"), (99, "run")):
            refused(f"INSERT OR REPLACE INTO runs (seq, id, created_at, body) VALUES ({seq}, '{name}', 0, '{{}}')")
        refused("INSERT OR REPLACE INTO feedback VALUES (99, 'f3', 1, NULL, NULL, 0, '{}')")
        refused("INSERT OR REPLACE INTO feedback VALUES (1, 'another', 1, NULL, NULL, 0, '{}')")
    engine.dispose()
    assert ledger.counts() == before


def test_1_a_correction_is_a_row_that_supersedes(ledger: Ledger) -> None:
    ledger.add_feedback([score("f1b", "e1", 0.25, ANNA, supersedes="f1")])
    assert [f.id for f in ledger.feedback(about=["e1"])] == ["f1b"]
    assert [(f.id, f.value) for f in ledger.feedback(about=["e1"], current=False)] == [("f1", 1.0), ("f1b", 0.25)]


def test_1_a_retraction_hides_what_it_supersedes_and_itself(ledger: Ledger) -> None:
    gone = Feedback(
        id="f1r", about=("e1",), criterion="success", kind="score", source=ANNA, status="retracted", supersedes="f1"
    )
    ledger.add_feedback([gone])
    assert ledger.feedback(about=["e1"]) == []
    assert len(ledger.feedback(about=["e1"], current=False)) == 2


def test_1_the_same_id_cannot_say_something_else(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=r"feedback f1 .*other content \(value\).*supersedes"):
        ledger.add_feedback([score("f1", "e1", 0.0)])
    assert ledger.feedback(about=["e1"])[0].value == 1.0


def test_1_erasing_removes_what_was_said_and_keeps_that_it_was(ledger: Ledger) -> None:
    before = ledger.counts()
    erasure = ledger.erase("e1", why="the customer asked")
    assert (erasure.kind, erasure.why) == ("episode", "the customer asked")
    assert ledger.erase("e1", why="again") == erasure
    hollow = ledger.episode("e1", arrays=True)
    assert (hollow.messages, hollow.token_ids, hollow.sampler_logprobs, hollow.final_state) == ((), (), (), {})
    assert (hollow.weights.checkpoint, hollow.group_id, hollow.stage) == ("base", "group", "rollout")
    assert ledger.episode("e2", arrays=True).token_ids == (11, 12, 13), "a sibling in the same shard is untouched"

    ledger.erase("f1", why="the customer asked")
    (statement,) = ledger.feedback(about=["e1"])
    assert (statement.value, statement.reason, statement.evidence) == (None, "[erased]", {})
    assert statement.source == CODE

    task_id = ledger.episode("e1").task_id
    ledger.erase(task_id, why="the customer asked")
    assert ledger.tasks([task_id])[task_id].messages == ()
    assert ledger.task(task_id).meta["erased"] == "the customer asked"
    assert ledger.counts() == {**before, "erasures": 3}


def test_1_nothing_erased_is_left_on_disk(ledger: Ledger, request: pytest.FixtureRequest) -> None:
    orphan = ledger.arrays_folder / "0123.arrow"  # as a crash between shard and rows leaves it
    orphan.write_bytes(SECRET.encode())
    assert SECRET.encode() in stored_bytes(ledger, request)
    for task_id in {episode.task_id for episode in ledger.episodes()}:
        forget(ledger, task_id, why="the customer asked")
    assert SECRET.encode() not in stored_bytes(ledger, request)
    assert not orphan.exists()


def test_1_what_was_erased_does_not_come_back(ledger: Ledger) -> None:
    whole = ledger.episode("e1", arrays=True)
    ledger.erase("e1", why="the customer asked")
    ledger.add_episodes([whole])
    assert ledger.episode("e1", arrays=True).messages == ()


def test_1_erasing_what_is_not_there_or_without_reason(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no task, episode or feedback 'nobody'"):
        ledger.erase("nobody", why="asked")
    with pytest.raises(LedgerError, match="needs a reason"):
        ledger.erase("e1", why=" ")
    assert ledger.erasures() == []


# --- 2. unscored is not zero, pending is not negative --------------------------------


def test_2_means_are_over_what_was_scored() -> None:
    unscored = Feedback(id="u", about=("e",), criterion="c", kind="score", source=CODE, status="unscored")
    abstained = Feedback(id="a", about=("e",), criterion="c", kind="score", source=ANNA, abstention=Abstention())
    pending = Feedback(
        id="p", about=("e",), criterion="c", kind="score", source=CODE, status="pending", due_at=9.0, resolver="sales"
    )
    label = Feedback(id="l", about=("e",), criterion="c", kind="label", source=CODE, value="rude")
    # (1 + 0) / 2, whatever lies beside
    assert mean_score([score("x", "e", 1.0), unscored, score("y", "e", 0.0), abstained, pending, label]) == (
        0.5,
        2,
        2,
        1,
    )
    assert mean_score([unscored, pending]) == (None, 0, 1, 1)
    assert mean_score([]) == (None, 0, 0, 0)


def test_2_an_erased_score_is_not_zero(ledger: Ledger) -> None:
    ledger.erase("f1", why="asked")
    # f1 was 1; f2, f3, f3-anna, f4 are 0, 1, 0, 0
    assert mean_score(ledger.feedback()) == (0.25, 4, 1, 0)


# --- 3. every number can be walked back ----------------------------------------------


def test_3_from_weights_to_rows_sources_and_versions(ledger: Ledger) -> None:
    ledger.add_feedback([score("f4b", "e4", 1.0, ANNA, supersedes="f4")])
    lineage = why(ledger, "grpo")
    assert [step.checkpoint.id for step in lineage.checkpoints] == ["grpo", "sft"]
    assert lineage.base == "base"
    assert not lineage.stale
    (data,) = lineage.checkpoints[0].datasets
    assert (data.id, data.query, data.superseded) == ("data-grpo", {"criterion": "success"}, 1)
    assert [(s.source, s.criterion, s.status, s.feedback_ids, s.mean) for s in data.feedback] == [
        (CODE, "success", "scored", ("f3", "f4"), 0.5),
        (ANNA, "success", "scored", ("f3-anna",), 0.0),
    ]
    assert [(s.weights, s.n) for s in data.episodes] == [(Weights(checkpoint="sft", step=5), 2)]
    assert [(s.family, s.split, s.n) for s in data.tasks] == [("desk", "train", 1)]
    assert (data.n_feedback, data.n_episodes, data.n_tasks) == (3, 2, 1)
    (older,) = lineage.checkpoints[1].datasets
    assert [s.feedback_ids for s in older.feedback] == [("f1",)]
    assert (older.n_episodes, older.episodes[0].weights.checkpoint) == (1, "base")


def test_3_nothing_can_name_what_is_not_there(ledger: Ledger) -> None:
    for add in (
        lambda: ledger.add_feedback([score("x", "nobody", 1.0)]),
        lambda: ledger.add_feedback([score("x", "e1", 1.0, supersedes="nobody")]),
        lambda: ledger.add_dataset(rows_of("x", ("nobody",))),
        lambda: ledger.add_dataset(rows_of("x", (), ("nobody",))),
        lambda: ledger.add_checkpoint(weights_of("x", "base", ("nobody",))),
    ):
        with pytest.raises(LedgerError, match=r"'nobody', which is not in the ledger; add it first"):
            add()
    with pytest.raises(LedgerError, match="no checkpoint 'nobody'"):
        why(ledger, "nobody")


# --- 4. forgetting propagates --------------------------------------------------------


@pytest.mark.parametrize(
    ("record_id", "datasets", "checkpoints"),
    [
        ("f1", {"data-sft"}, {"sft", "grpo"}),  # grpo grew out of sft
        ("e1", {"data-sft"}, {"sft", "grpo"}),
        ("e3", {"data-grpo"}, {"grpo"}),
        ("f2", {"data-side"}, {"side"}),
        ("first task", {"data-sft", "data-side"}, {"sft", "grpo", "side"}),
    ],
)
def test_4_forgetting_names_and_marks_all_it_reached(
    ledger: Ledger, record_id: str, datasets: set[str], checkpoints: set[str]
) -> None:
    record_id = ledger.episode("e1").task_id if record_id == "first task" else record_id
    foreseen = reached(ledger, record_id)
    assert ledger.counts()["stale"] == 0, "asking is not forgetting"
    reach = forget(ledger, record_id, why="the customer asked")
    assert reach == foreseen == forget(ledger, record_id, why="the customer asked")
    assert (set(reach.datasets), set(reach.checkpoints)) == (datasets, checkpoints)
    assert {d.id for d in ledger.datasets() if d.stale} == datasets
    assert {c.id for c in ledger.checkpoints() if c.stale} == checkpoints
    for name in checkpoints:
        assert ledger.checkpoint(name).stale == f"{record_id} was forgotten: the customer asked"
        assert why(ledger, name).stale
    assert {e.record_id for e in ledger.erasures()} == set(reach.records)


def test_4_forgetting_a_task_forgets_what_quotes_it(ledger: Ledger) -> None:
    reach = forget(ledger, ledger.episode("e1").task_id, why="the customer asked")
    assert reach.records[1:] == ("e1", "e2", "f1", "f2")
    assert all(not episode.messages for episode in ledger.episodes(ids=["e1", "e2"]))
    assert all(statement.reason == "[erased]" for statement in ledger.feedback(about=["e1", "e2"]))


def test_4_what_is_made_of_forgotten_rows_later_is_marked_at_birth(ledger: Ledger) -> None:
    forget(ledger, "e1", why="the customer asked")
    ledger.add_dataset(rows_of("late", ("f1", "f3")))
    ledger.add_checkpoint(weights_of("late-weights", "base", ("late",)))
    ledger.add_checkpoint(weights_of("child", "sft"))
    assert ledger.dataset("late").stale == "f1 was erased"
    assert ledger.checkpoint("late-weights").stale == "f1 was erased"
    assert ledger.checkpoint("child").stale == "e1 was forgotten: the customer asked"
    assert ledger.checkpoint("side").stale is None
    with pytest.raises(LedgerError, match="nothing was done"):
        forget(ledger, "nobody", why="asked")
