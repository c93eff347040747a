"""The ledger as a store, in a file and in PostgreSQL: what goes in comes out, once, whatever else happens."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metier.base.errors import DataError, LedgerError
from metier.base.ids import derive_id
from metier.records.ledger import Ledger
from metier.records.types import (
    Abstention,
    Checkpoint,
    Cost,
    DatasetManifest,
    EnvironmentSpec,
    Episode,
    Feedback,
    GateDecision,
    Group,
    Message,
    Profile,
    Run,
    Sampling,
    Source,
    Span,
    Stage,
    Suite,
    Task,
    Tool,
    ToolCall,
    Trait,
    VerifierSpec,
    Weights,
)

RUN = Run(
    id="run",
    recipe="desk",
    config={"rl": {"lr": 3e-5, "steps": [1, 2]}},
    seed=7,
    folder="runs/run",
    code_version="0.1",
    stages=(Stage(name="sft", kind="sft", inputs=("demos",), outputs=("weights",)),),
    hardware={"cores": 2},
    created_at=1.5,
)
TASK = Task(
    family="desk",
    kind="act",
    messages=(Message(role="system", content="Policy: be kind. ½ €\x00"), Message(role="user", content="Book it")),
    tools=(
        Tool(name="book", description="Book", parameters={"type": "object", "properties": {"id": {"type": "string"}}}),
    ),
    answer={"booked": ["A1"]},
    verifiers=(VerifierSpec(name="state", params={"partial": True}),),
    environment=EnvironmentSpec(name="shop", version="3", state={"orders": [{"id": "A1"}]}),
    split="train",
    source="desk 1",
    licence="Apache-2.0",
    meta={"desk": "shop"},
)
TOOL_CALL = ToolCall(name="book", arguments='{"id": "A1"}', id="c1")
EPISODE = Episode(
    id="e1",
    task_id=TASK.id,
    run_id="run",
    stage="rollout",
    weights=Weights(checkpoint="base", step=4),
    messages=(
        *TASK.messages,
        Message(role="assistant", tool_calls=(TOOL_CALL,)),
        Message(role="tool", content="ok", tool_call_id="c1", name="book"),
    ),
    token_ids=(5, 6, 49_151),
    sampler_logprobs=(0.0, -0.5, -1.25),  # exact in float32
    loss_mask=(0, 1, 1),
    stop_reason="error",
    error="the tool timed out",
    error_boundary="sandbox",
    group_id="g1",
    index=2,
    sampling=Sampling(temperature=0.0, stop=("\n",)),
    seed=2**62 + 1,
    template_hash="abc",
    environment_version="3",
    final_state={"orders": []},
    split="heldout",
    cost=Cost(prompt_tokens=3, completion_tokens=2, tool_calls=1, seconds=0.25, usd=0.5),
    created_at=2.5,
)
FEEDBACK = Feedback(
    id="f1",
    about=("e1",),
    criterion="success",
    kind="score",
    source=Source(kind="judge", name="nice", version="2"),
    value=0.5,
    span=Span(turn=2, start=0, end=4),
    reason="half of it",
    evidence={"parts": {"state": True, "said": None}},
    confidence=0.75,
    cost=Cost(seconds=1.0),
    created_at=3.5,
    observed_at=3.25,
    due_at=9.0,
    resolver="sales",
    propensity=0.5,
    assignment="queue",
    run_id="run",
)
DATASET = DatasetManifest(
    id="d1",
    kind="rl",
    name="train",
    run_id="run",
    stage="grpo",
    query={"criterion": "success"},
    feedback_ids=("f1",),
    episode_ids=("e1",),
    task_ids=(TASK.id,),
    created_at=4.5,
)
CHECKPOINT = Checkpoint(
    id="c1",
    run_id="run",
    stage="grpo",
    step=12,
    path="checkpoints/12",
    parent="base",
    dataset_ids=("d1",),
    objective="grpo",
    config={"lr": 3e-5},
    code_version="0.1",
    weights_hash="00ff",
    metrics={"loss": 0.5},
    created_at=5.5,
)
PROFILE = Profile(
    id="p1", checkpoint="c1", suite="s", traits=(Trait(name="refusal", value=0.5, low=0.25, high=0.75, n=9),)
)
GATE = GateDecision(id="k1", checkpoint="c1", baseline="base", verdict="inconclusive", metrics={"gain": [0.0, 0.5]})
SUITE = Suite(name="heldout", version="2", task_ids=(TASK.id,))
GROUP = Group(id="g1", task_id=TASK.id, episode_ids=("e1",))


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger.open(where) as ledger:
        ledger.add_run(RUN)
        ledger.add_tasks([TASK])
        yield ledger


def fill(ledger: Ledger) -> None:
    ledger.add_groups([GROUP])
    ledger.add_suite(SUITE)
    ledger.add_episodes([EPISODE])
    ledger.add_feedback([FEEDBACK])
    ledger.add_dataset(DATASET)
    ledger.add_checkpoint(CHECKPOINT)
    ledger.add_profile(PROFILE)
    ledger.add_gate(GATE)


def episodes(n: int, prefix: str = "n") -> list[Episode]:
    return [dataclasses.replace(EPISODE, id=f"{prefix}{i}", token_ids=(i, i, i)) for i in range(n)]


# --- what goes in comes out ----------------------------------------------------------


def test_every_noun_comes_back_as_it_was(ledger: Ledger, where: str) -> None:
    fill(ledger)
    with Ledger.open(where, create=False) as again:
        assert again.run("run") == RUN
        assert again.runs() == [RUN]
        assert again.task(TASK.id) == TASK
        assert again.tasks([TASK.id, TASK.id]) == {TASK.id: TASK}
        assert again.suite("heldout", "2") == again.suite("heldout") == SUITE
        assert again.suites() == [SUITE]
        assert again.groups() == again.groups("run") == [GROUP]
        assert again.groups("other") == []
        assert again.episode("e1", arrays=True) == EPISODE
        assert again.feedback() == [FEEDBACK]
        assert again.dataset("d1") == DATASET
        assert again.datasets("run") == [DATASET]
        assert again.checkpoint("c1") == CHECKPOINT
        assert again.checkpoints() == [CHECKPOINT]
        assert again.checkpoints("other") == []
        assert again.profiles("c1") == again.profiles() == [PROFILE]
        assert again.gates("c1") == again.gates() == [GATE]
        assert again.gates("other") == []


def test_episodes_come_without_their_arrays_unless_asked(ledger: Ledger) -> None:
    fill(ledger)
    assert ledger.episode("e1") == dataclasses.replace(EPISODE, token_ids=(), sampler_logprobs=(), loss_mask=())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(st.text(), max_size=3),
    tokens=st.lists(
        st.tuples(st.integers(0, 2**31 - 1), st.floats(max_value=0.0, width=32, allow_nan=False), st.integers(0, 1))
    ),
    state=st.dictionaries(st.text(), plain, max_size=3),
    value=plain.filter(lambda value: value is not None),
    confidence=st.none() | st.integers(0, 1) | st.floats(0, 1),
)
def test_any_content_comes_back(
    ledger: Ledger, contents: list[str], tokens: list[Any], state: dict[str, Any], value: Any, confidence: float | None
) -> None:
    number = ledger.counts()["episodes"]
    ids, logprobs, mask = zip(*tokens, strict=True) if tokens else ((), (), ())
    episode = dataclasses.replace(
        EPISODE,
        id=f"h{number}",
        messages=tuple(Message(role="user", content=content) for content in contents),
        token_ids=ids,
        sampler_logprobs=logprobs,
        loss_mask=mask,
        final_state=state,
    )
    statement = dataclasses.replace(
        FEEDBACK, id=f"h{number}", about=(episode.id,), kind="label", value=value, evidence=state, confidence=confidence
    )
    for _ in range(2):  # the second time changes nothing
        ledger.add_episodes([episode])
        ledger.add_feedback([statement])
    assert ledger.episode(episode.id, arrays=True) == episode
    assert ledger.feedback(about=[episode.id]) == [statement]
    assert ledger.counts()["episodes"] == number + 1


def test_numbers_that_are_not_finite(ledger: Ledger) -> None:
    odd = dataclasses.replace(EPISODE, sampler_logprobs=(-math.inf, -0.1, 0.0))
    nan = dataclasses.replace(FEEDBACK, value=math.nan)
    for _ in range(2):
        ledger.add_episodes([odd])
        ledger.add_feedback([nan])
    assert ledger.episode("e1", arrays=True).sampler_logprobs == (-math.inf, array("f", [-0.1])[0], 0.0)
    assert math.isnan(ledger.feedback()[0].value)


def test_questions_about_episodes(ledger: Ledger) -> None:
    other_task = dataclasses.replace(TASK, answer={}, split="test")
    ledger.add_tasks([other_task])
    ledger.add_run(dataclasses.replace(RUN, id="run2"))
    many = episodes(1200)
    ledger.add_episodes(many[::-1])
    for i, change in enumerate(
        ({"run_id": "run2"}, {"stage": "evaluate"}, {"split": "x"}, {"group_id": "g9"}, {"task_id": other_task.id})
    ):
        ledger.add_episodes([dataclasses.replace(EPISODE, id=f"q{i}", **change)])  # type: ignore[arg-type]
    assert [e.id for e in ledger.episodes(run_id="run2")] == ["q0"]
    assert [e.id for e in ledger.episodes(stage="evaluate")] == ["q1"]
    assert [e.id for e in ledger.episodes(split="x")] == ["q2"]
    assert [e.id for e in ledger.episodes(group_id="g9")] == ["q3"]
    assert [e.id for e in ledger.episodes(task_ids=[other_task.id])] == ["q4"]
    assert ledger.episodes(ids=[]) == ledger.episodes(task_ids=[]) == ledger.episodes(run_id="nobody") == []
    assert ledger.episodes(ids=["q1", "q4"], task_ids=[TASK.id])[0].id == "q1"
    asked = ledger.episodes(ids=[e.id for e in many], task_ids=[TASK.id, *map(str, range(1500))], arrays=True)
    assert [e.id for e in asked] == [e.id for e in many[::-1]], "in the order of insertion"
    assert asked == many[::-1]


def test_questions_about_feedback(ledger: Ledger) -> None:
    ledger.add_episodes(episodes(3))
    ask = dataclasses.replace(FEEDBACK, about=("n0",))
    person = Source(kind="person", name="anna", version="1")
    ledger.add_feedback(
        [
            dataclasses.replace(ask, id="a"),
            dataclasses.replace(ask, id="b", about=("n1", "n2"), kind="preference", value=0),
            dataclasses.replace(ask, id="c", criterion="tone", source=person),
            dataclasses.replace(ask, id="d", run_id=None, value=None, abstention=Abstention(why="cannot tell")),
            dataclasses.replace(ask, id="e", supersedes="a"),
        ]
    )
    assert [f.id for f in ledger.feedback()] == ["b", "c", "d", "e"]
    assert [f.id for f in ledger.feedback(current=False)] == ["a", "b", "c", "d", "e"]
    assert [f.id for f in ledger.feedback(about=["n2", "n1"])] == ["b"]
    assert ledger.feedback(about=[]) == []
    assert [f.id for f in ledger.feedback(run_id="run", criterion="success")] == ["b", "e"]
    assert [f.id for f in ledger.feedback(source="anna")] == ["c"]
    assert [f.id for f in ledger.feedback(ids=["d", "c"], about=["n0"])] == ["c", "d"]
    assert ledger.feedback(status="pending") == []


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda ledger: ledger.run("x"), "no run 'x'"),
        (lambda ledger: ledger.task("x"), "no task 'x'"),
        (lambda ledger: ledger.tasks([TASK.id, "x"]), "no task 'x'"),
        (lambda ledger: ledger.episode("x"), "no episode 'x'"),
        (lambda ledger: ledger.dataset("x"), "no dataset 'x'"),
        (lambda ledger: ledger.checkpoint("x"), "no checkpoint 'x'"),
        (lambda ledger: ledger.suite("x"), "no suite 'x'"),
        (lambda ledger: ledger.suite("x", "1"), "no suite 'x@1'"),
    ],
)
def test_what_is_not_there_is_named(ledger: Ledger, ask: Any, sentence: str) -> None:
    with pytest.raises(LedgerError, match=sentence):
        ask(ledger)


# --- once, and the same --------------------------------------------------------------


def test_adding_again_changes_nothing(ledger: Ledger) -> None:
    fill(ledger)
    before = ledger.counts()
    later = {"created_at": 99.0}
    ledger.add_run(dataclasses.replace(RUN, **later, hardware={"cores": 64}, folder="moved"))
    ledger.add_tasks([TASK, dataclasses.replace(TASK, meta={"desk": "shop", "new": 1})])
    ledger.add_suite(SUITE)
    ledger.add_groups([GROUP])
    cost = dataclasses.replace(EPISODE.cost, seconds=7.0)
    ledger.add_episodes([dataclasses.replace(EPISODE, **later, cost=cost), *episodes(1)])
    ledger.add_feedback([dataclasses.replace(FEEDBACK, **later, observed_at=98.0, cost=Cost(seconds=9.0))] * 2)
    ledger.add_dataset(dataclasses.replace(DATASET, **later))
    ledger.add_checkpoint(dataclasses.replace(CHECKPOINT, **later, metrics={"tokens_per_s": 3.0}))
    ledger.add_profile(PROFILE)
    ledger.add_gate(GATE)
    assert ledger.counts() == {**before, "episodes": 2}
    assert ledger.episode("e1").created_at == EPISODE.created_at, "the first writing stays"
    ledger.add_episodes([])
    ledger.add_feedback([])


@pytest.mark.parametrize(
    ("add", "sentence"),
    [
        (lambda s: s.add_run(dataclasses.replace(RUN, seed=8)), r"run run .*\(seed\)"),
        (lambda s: s.add_tasks([dataclasses.replace(TASK, split="heldout")]), "stays in one split"),
        (lambda s: s.add_suite(dataclasses.replace(SUITE, task_ids=())), r"suite heldout@2 .*\(task_ids\)"),
        (lambda s: s.add_groups([dataclasses.replace(GROUP, episode_ids=())]), r"group g1 .*\(episode_ids\)"),
        (lambda s: s.add_episodes([dataclasses.replace(EPISODE, token_ids=(1, 2, 3))]), r"episode e1 .*\(token_ids\)"),
        (lambda s: s.add_episodes([dataclasses.replace(EPISODE, messages=())]), r"\(messages\)"),
        (lambda s: s.add_episodes([dataclasses.replace(EPISODE, cost=Cost())]), r"\(cost\)"),
        (
            lambda s: s.add_episodes([*episodes(1), dataclasses.replace(episodes(1)[0], seed=1)]),
            r"episode n0 .*\(seed\)",
        ),
        (lambda s: s.add_feedback([dataclasses.replace(FEEDBACK, value=0.0)]), r"feedback f1 .*\(value\)"),
        (lambda s: s.add_dataset(dataclasses.replace(DATASET, feedback_ids=())), r"dataset d1 .*\(feedback_ids\)"),
        (lambda s: s.add_checkpoint(dataclasses.replace(CHECKPOINT, weights_hash="1")), r"\(weights_hash\)"),
        (lambda s: s.add_gate(dataclasses.replace(GATE, verdict="pass")), r"gate k1 .*\(verdict\)"),
    ],
)
def test_the_same_id_with_other_content_is_refused(ledger: Ledger, add: Any, sentence: str) -> None:
    fill(ledger)
    before = ledger.counts()
    with pytest.raises(LedgerError, match=sentence):
        add(ledger)
    assert ledger.counts() == before, "all of a call is kept, or nothing"


def test_what_cannot_be_kept_is_refused(ledger: Ledger) -> None:
    with pytest.raises(DataError, match="3 token_ids and 2 loss_mask"):
        ledger.add_episodes([dataclasses.replace(EPISODE, loss_mask=(0, 1))])
    with pytest.raises(DataError, match="token_ids of an episode does not fit int32"):
        ledger.add_episodes([dataclasses.replace(EPISODE, token_ids=(1, 2, 2**40))])
    with pytest.raises(DataError, match="e1 holds a value that JSON cannot carry"):
        ledger.add_episodes([dataclasses.replace(EPISODE, final_state={"when": object()})])
    with pytest.raises(LedgerError, match="an episode names run 'x', which is not in the ledger"):
        ledger.add_episodes([dataclasses.replace(EPISODE, run_id="x")])
    with pytest.raises(LedgerError, match="names feedback 'f1' twice"):
        ledger.add_dataset(dataclasses.replace(DATASET, feedback_ids=("f1", "f1")))
    assert ledger.counts()["episodes"] == 0


# --- crashes and company -------------------------------------------------------------


def test_a_crash_between_shard_and_rows_is_harmless(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = episodes(3)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_insert_new", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.add_episodes(batch)
    assert len(list(ledger.arrays_folder.iterdir())) == 1, "the shard is there, named by no row"
    assert ledger.episodes(arrays=True) == []
    ledger.add_episodes(batch[:2])  # the same step again, and another split of the work
    ledger.add_episodes(batch)
    assert ledger.episodes(arrays=True) == batch
    ledger.erase("n0", why="sweeps")
    assert len(list(ledger.arrays_folder.iterdir())) == 2, "erasing clears what the crash left"
    assert ledger.episodes(arrays=True)[1:] == batch[1:]


def test_lost_or_damaged_arrays_are_named(ledger: Ledger) -> None:
    ledger.add_episodes([EPISODE])
    (shard,) = ledger.arrays_folder.iterdir()
    shard.write_bytes(b"ARROW1 no more")
    with pytest.raises(LedgerError, match="damaged"):
        ledger.episode("e1", arrays=True)
    shard.unlink()
    with pytest.raises(LedgerError, match="missing; a ledger is moved together with its folder ledger-arrays"):
        ledger.episode("e1", arrays=True)
    assert ledger.episode("e1").messages == EPISODE.messages


WRITER = """
import dataclasses, sys
from metier.records.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    episode = ledger.episode("e1", arrays=True)
    for step in range(15):
        batch = [dataclasses.replace(episode, id=f"{sys.argv[2]}-{step}-{i}") for i in range(4)]
        shared = [dataclasses.replace(episode, id=f"shared-{step}-{i}") for i in range(4)]
        ledger.add_episodes(batch + shared)
"""


def test_two_processes_write_at_once(ledger: Ledger, where: str) -> None:
    ledger.add_episodes([EPISODE])
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, where, name]) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = ledger.episodes(arrays=True)
    assert len(found) == 1 + 2 * 15 * 4 + 15 * 4
    assert {episode.token_ids for episode in found} == {EPISODE.token_ids}


OPENER = "import sys; from metier.records.ledger import Ledger; Ledger.open(sys.argv[1]).close()"


def test_two_processes_make_the_ledger_at_once(nowhere: str) -> None:
    openers = [subprocess.Popen([sys.executable, "-c", OPENER, nowhere]) for _ in range(2)]
    assert [opener.wait(60) for opener in openers] == [0, 0]
    with Ledger.open(nowhere, create=False) as ledger:
        assert ledger.counts()["runs"] == 0


def test_a_reader_sees_whole_steps_and_never_waits(ledger: Ledger) -> None:
    sizes: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            sizes.append(len(ledger.episodes(arrays=True)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(10):
            ledger.add_episodes(episodes(8, f"{step}-"))
        with ledger.writing():  # a writer holds the lock
            assert len(ledger.episodes()) == 80
    finally:
        done.set()
        reader.join()
    assert sizes == sorted(sizes)
    assert all(size % 8 == 0 for size in sizes)


def test_ids_are_the_same_for_the_same_work() -> None:
    assert derive_id("episode", "run", "rollout", 3) == derive_id("episode", "run", "rollout", 3)
    assert derive_id("episode", "run", "rollout", 3) != derive_id("episode", "run", "rollout", 4)
