"""`metier ledger next` as people call it: a ranking, a queue, and errors in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from metier.base.errors import MetierError
from metier.cli.next import next_items
from metier.feedback.people.queue import read_queue
from metier.records.ledger import Ledger
from metier.records.types import Episode, Message, Run, Suite, Task, Weights

SECRET = "a held-out question"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with 40 tasks of two kinds, three siblings each, and a suite."""
    monkeypatch.chdir(tmp_path)
    with Ledger.open("runs/ledger.sqlite") as ledger:
        ledger.add_run(Run(id="run-a1", recipe="desk", config={}, seed=0, folder="", code_version="1"))
        tasks = [
            Task(
                family="desk",
                kind=("act", "ask")[n % 2],
                split="heldout" if n >= 30 else "train",
                messages=(Message(role="user", content=f"{SECRET if n >= 30 else 'A question'} {n}?"),),
            )
            for n in range(40)
        ]
        ledger.add_tasks(tasks)
        ledger.add_suite(Suite(name="desk/heldout", version="1", task_ids=tuple(t.id for t in tasks[30:])))
        ledger.add_episodes(
            [
                Episode(
                    id=f"ep-{n}-{index}",
                    task_id=one.id,
                    run_id="run-a1",
                    stage="grpo",
                    weights=Weights(checkpoint="base"),
                    messages=(*one.messages, Message(role="assistant", content=f"Answer {index} to {n}.")),
                    group_id=f"group-{n}",
                    split=one.split,
                )
                for n, one in enumerate(tasks)
                for index in range(3)
            ]
        )
    return tmp_path


def call(*arguments: str) -> int:
    app = typer.Typer()
    app.command()(next_items)
    return int(app(list(arguments), standalone_mode=False) or 0)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    call(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_a_queue_for_training_never_holds_a_held_out_task(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = told(capsys, "-o", "pairs.jsonl", "-n", "90")
    assert done["added"] == 90 == done["candidates"] and done["left_out"] == {"held out": 30}
    numbers = {int(one.split("-")[1]) for item in read_queue(Path("pairs.jsonl")).items for one in item.episodes}
    assert numbers == set(range(30))
    done = told(capsys, "-o", "suite.jsonl", "-n", "90", "--purpose", "evaluation")
    assert done["candidates"] == 30
    assert SECRET not in Path("pairs.jsonl").read_text()


def test_it_says_what_it_did(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("-o", "queues/pairs.jsonl", "-n", "20")
    text = capsys.readouterr().out
    assert "queues/pairs.jsonl: 20 items added\n20 of 90 candidates: 18 by value for their cost, 2 at random" in text
    assert "left out: 30 held out" in text and "metier label queues/pairs.jsonl asks them" in text
    call("-o", "queues/pairs.jsonl", "-n", "20")
    assert "0 items added; 20 of the 20 that it held are open" in capsys.readouterr().out
    call("--kind", "rating", "--criterion", "quality")
    text = capsys.readouterr().out
    assert "50 of 90 candidates" in text and "-o QUEUE.jsonl writes them" in text


def test_one_answer_at_a_time_with_labels(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = told(capsys, "-o", "tone.jsonl", "--kind", "labels", "--label", "kind", "--label", "curt", "-n", "10")
    queue = read_queue(Path("tone.jsonl"))
    assert done["added"] == 10 and queue.question.labels == ("kind", "curt") and not queue.skipped
    assert {item.size for item in queue.items} == {1}


def test_duels_are_between_pairs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = told(capsys, "-o", "duels.jsonl", "--duel", "-n", "10")
    assert done["added"] == 10 and len({one["duel"] for one in done["drawn"]}) > 1
    with pytest.raises(MetierError, match="ask for pairs"):
        call("--duel", "--kind", "rating")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--kind", "ranking"], "--kind must be one of"),
        (["--kind", "labels"], "needs --label"),
        (["--label", "x"], "takes no --label"),
        (["--purpose", "fun"], "training or evaluation"),
        (["--per", "page"], "second or item"),
        (["--uniform", "0.01"], "at least a tenth"),
        (["--ledger", "none.sqlite"], "there is no ledger"),
        (["--run", "zz"], "there is no run"),
        (["-o", "q.yaml"], "must end in .jsonl"),
    ],
)
def test_what_cannot_be_asked(project: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(MetierError, match=sentence):
        call(*arguments)
