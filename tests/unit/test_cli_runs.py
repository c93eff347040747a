"""`metier runs`: the same ledger and folder as a run leaves them, read back by a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metier.cli import main
from metier.records.events import EventLog
from metier.records.ledger import Ledger
from metier.records.types import (
    Checkpoint,
    DatasetManifest,
    Episode,
    Feedback,
    Message,
    Run,
    Source,
    Stage,
    Task,
    Weights,
)

STAGES = tuple(Stage(name=name, kind=name) for name in ("baseline", "grpo", "final"))
TASK = Task(family="desk", kind="act", messages=(Message(role="user", content="Cancel order 7, please."),))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs: one that ended, one that has hardly begun."""
    monkeypatch.chdir(tmp_path)
    made = dict(recipe="desk", config={}, seed=7, code_version="abc", stages=STAGES)
    with Ledger.open("runs/ledger.sqlite") as ledger:
        ledger.add_run(Run(id="run-aa11", folder="runs/desk", created_at=1_700_000_000.0, **made))  # type: ignore[arg-type]
        ledger.add_tasks([TASK])
        episode = Episode(
            id="ep-c0ffee",
            task_id=TASK.id,
            run_id="run-aa11",
            stage="grpo",
            weights=Weights(checkpoint="smollm2"),
            messages=(*TASK.messages, Message(role="assistant", content="It is cancelled.")),
        )
        ledger.add_episodes([episode])
        verdict = Feedback(
            id="fb-1",
            about=(episode.id,),
            criterion="success",
            kind="score",
            source=Source(kind="verifier", name="desk", version="1.0"),
            value=0.5,
            run_id="run-aa11",
        )
        ledger.add_feedback([verdict])
        ledger.add_dataset(
            DatasetManifest(
                id="data-1",
                kind="rl",
                name="episodes",
                run_id="run-aa11",
                stage="grpo",
                query={},
                feedback_ids=(verdict.id,),
                episode_ids=(episode.id,),
            )
        )
        ledger.add_checkpoint(
            Checkpoint(
                id="ckpt-9",
                run_id="run-aa11",
                stage="grpo",
                step=12,
                path="checkpoints/grpo",
                parent="smollm2",
                dataset_ids=("data-1",),
                objective="grpo",
            )
        )
        ledger.add_run(Run(id="run-ab22", folder="runs/second", created_at=1_700_000_100.0, **made))  # type: ignore[arg-type]
    with EventLog("runs/desk") as log:
        for stage, success in (("baseline", 0.03125), ("final", 0.5)):
            log.emit(stage, "stage_start")
            log.emit(stage, "eval", split="heldout", success=0.9, n=1)  # a first try, redone after a crash
            log.emit(stage, "eval", split="heldout", success=success, n=256, low=success - 0.01, high=success + 0.01)
            log.emit(stage, "stage_end", seconds=1.0)
        log.emit("grpo", "stage_start")
    (tmp_path / "runs" / "desk" / "report.html").write_text("<!doctype html>")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["runs", *arguments]) == code
    captured = capsys.readouterr()
    return (captured.out if code == 0 else captured.err).replace("\u00a0", " ")


def test_list(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heading, newest, oldest = told(capsys, "list").splitlines()
    assert heading.split() == ["run", "recipe", "started", "stages", "success"]
    assert newest.split() == ["run-ab22", "desk", "2023-11-14T22:15:00Z", "0/3", "–"]
    assert oldest.split()[:4] == ["run-aa11", "desk", "2023-11-14T22:13:20Z", "2/3"]
    assert oldest.rstrip().endswith("3.1 % → 50.0 %")
    rows = json.loads(told(capsys, "list", "--json"))
    assert [row["id"] for row in rows] == ["run-ab22", "run-aa11"]
    assert rows[1]["headline"]["after"]["success"] == 0.5


def test_show_a_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "show", "runs/desk")
    assert "report   runs/desk/report.html" in text
    assert "stages   baseline (done), grpo (started), final (done)" in text
    assert "final     heldout  50.0 %   49.0 % to 51.0 %  256" in text
    assert "ckpt-9      grpo     12  checkpoints/grpo" in text
    shown = json.loads(told(capsys, "show", "run-aa", "--json"))
    assert [(n["stage"], n["success"]) for n in shown["evaluations"]] == [("baseline", 0.03125), ("final", 0.5)]
    assert json.loads(told(capsys, "show", "last", "--json"))["id"] == "run-ab22"
    with Ledger.open("runs/ledger.sqlite") as ledger:  # what metier evaluate leaves is newer, and is not meant
        ledger.add_run(Run(id="run-ef44", recipe="evaluate", config={}, seed=0, folder="", code_version=""))
    assert json.loads(told(capsys, "show", "last", "--json"))["id"] == "run-ab22"
    assert json.loads(told(capsys, "show", "run-ef", "--json"))["id"] == "run-ef44"


def test_show_an_episode(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "show", "c0ff")
    assert "Cancel order 7, please." in text
    assert "It is cancelled." in text
    assert "success: 0.5" in text
    shown = json.loads(told(capsys, "show", "ep-c0ffee", "--json"))
    assert shown["episode"]["id"] == "ep-c0ffee"
    assert shown["feedback"][0]["value"] == 0.5


@pytest.mark.parametrize("what", ["ckpt-9", "ckpt", "run-aa11"])
def test_why(project: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    assert told(capsys, "why", what).splitlines() == [
        "checkpoint ckpt-9: stage grpo, step 12, of run-aa11",
        "  objective grpo, code not known",
        "  dataset data-1: episodes (rl), 1 tasks, 1 episodes, 1 statements of feedback",
        "    tasks: 1 of desk, split train",
        "    episodes: 1 by smollm2 at step 0",
        "    feedback: 1 scored by verifier desk 1.0 on 'success', mean 0.500",
        "from",
        "base model smollm2",
    ]
    lineage = json.loads(told(capsys, "why", what, "--json"))
    assert lineage["checkpoints"][0]["datasets"][0]["feedback"][0]["feedback_ids"] == ["fb-1"]


def test_why_a_figure_is_what_it_is(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "why", "run-aa11", "--stage", "grpo").splitlines()
    assert lines == ["train: 0.0 %, 0 of 1 episodes succeeded", "  0.50  ep-c0ffee  fb-1 by verifier desk 1.0"]
    (row,) = json.loads(told(capsys, "why", "run-aa11", "--stage", "grpo", "--json"))
    assert (row["value"], row["task_id"]) == (0.5, TASK.id) and row["feedback"][0]["id"] == "fb-1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("why", "run-aa11", "--stage", "final"),
            "error: run run-aa11 holds no episodes of stage 'final'",
        ),
        (("why", "run-aa11", "--split", "heldout"), "error: --split belongs to the figures of a stage"),
        (
            ("show", "run-zz"),
            "error: there is no run or episode 'run-zz' in the ledger; metier runs list shows the runs\n",
        ),
        (("show", "run-a"), "error: 'run-a' fits 2 records (run-aa11, run-ab22); give more of the id\n"),
        (("show", "%"), "error: there is no run or episode '%' in the ledger; metier runs list shows the runs\n"),
        (
            ("why", "run-ab22"),
            "error: run run-ab22 has made no checkpoint yet; metier runs show run-ab22 tells how far",
        ),
        (
            ("list", "--ledger", "none.sqlite"),
            "error: there is no ledger none.sqlite; run a recipe first, or name another",
        ),
    ],
)
def test_what_cannot_be_found(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert told(capsys, *arguments, code=2).startswith(message)


def test_an_empty_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Ledger.open("runs/ledger.sqlite").close()
    assert told(capsys, "list") == "no runs yet; start one with: metier run desk\n"
    assert told(capsys, "show", "last", code=2).startswith("error: there is no run in the ledger yet")
