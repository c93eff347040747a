"""What a person sees while a run works, on a terminal and in a log."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from metier.cli.progress import Board, LiveProgress, PlainProgress, get_progress


def event(at: float, stage: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"at": at, "stage": stage, "event": kind, **fields}


RUN = [
    event(1000, "", "run_start", stages=["baseline", "sft", "grpo"]),
    event(1000, "baseline", "stage_skip"),
    event(1001, "sft", "stage_start"),
    *(event(1001 + i, "sft", "step", step=i, steps=60, loss=2.0 - i / 100, tokens_per_s=180.4) for i in range(1, 31)),
    event(1032, "sft", "note", text="halfway"),
    event(1062, "sft", "stage_end", seconds=61.0),
    event(1063, "grpo", "stage_start"),
    event(1070, "grpo", "progress", done=32, total=64, unit="episodes", success=0.5),
    event(1080, "grpo", "eval", split="heldout", success=0.531, n=256, low=0.47, high=0.592),
]


def test_plain_lines_are_few_and_tell_enough() -> None:
    stream = io.StringIO()
    with PlainProgress(stream) as progress:
        for e in RUN:
            progress(e)
    assert stream.getvalue().splitlines() == [
        "[00:00] baseline: done before",
        "[00:01] sft: started (stage 2 of 3)",
        "[00:11] sft: 10 of 60 steps · loss 1.900 · 180 tok/s · 50 s left",
        "[00:21] sft: 20 of 60 steps · loss 1.800 · 180 tok/s · 40 s left",
        "[00:31] sft: 30 of 60 steps · loss 1.700 · 180 tok/s · 30 s left",
        "[00:32] sft: halfway",
        "[01:02] sft: done in 1 min 1 s · 30 of 60 steps · loss 1.700 · 180 tok/s",
        "[01:03] grpo: started (stage 3 of 3)",
        "[01:20] grpo: heldout success 53.1 % (47.0 % to 59.2 %), n = 256",
    ]


def test_the_live_table_shows_every_stage() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with get_progress(console) as progress:
        assert isinstance(progress, LiveProgress)
        for e in RUN:
            progress(e)
    page = Console(file=io.StringIO(), width=80, color_system=None)
    with page.capture() as shown:
        page.print(progress.render())
    rows = shown.get().splitlines()
    assert [row.split()[1] for row in rows] == ["baseline", "sft", "grpo"]
    assert rows[0].rstrip().endswith("done before")
    assert "1 min 1 s" in rows[1]
    assert "32 of 64 episodes · success 50.0 %" in rows[2]
    assert all(len(row) <= 80 for row in rows)
    assert "heldout success 53.1 %" in stream.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(get_progress(Console(file=io.StringIO())), PlainProgress)


def test_the_pace_is_that_of_this_process_not_of_steps_done_before() -> None:
    board = Board()
    board.take(event(0, "sft", "stage_start"))
    stage = board.take(event(5, "sft", "step", step=41, steps=60))
    assert stage.seconds_left is None
    stage = board.take(event(7, "sft", "step", step=42, steps=60))
    assert stage.seconds_left == 2.0 * 18


def test_once_steps_are_counted_progress_within_a_step_is_not() -> None:
    board = Board()
    board.take(event(0, "grpo", "progress", done=8, total=64, unit="episodes"))
    board.take(event(1, "grpo", "step", step=1, steps=12, reward=0.25))
    stage = board.take(event(2, "grpo", "progress", done=9, total=64, unit="episodes", tokens_per_s=99))
    assert stage.describe() == "1 of 12 steps · reward 0.250 · 99 tok/s"


def test_a_second_split_starts_a_pace_of_its_own() -> None:
    board = Board()
    for at, done in ((0, 10), (10, 60), (11, 5)):
        stage = board.take(event(at, "eval", "progress", done=done, total=64, unit="episodes"))
    assert stage.seconds_left is None


def test_figures_that_are_missing_or_null_are_left_out() -> None:
    stage = Board().take(event(0, "s", "step", step=1, steps=2, loss=None, reward=0.5))
    assert stage.describe() == "1 of 2 steps · reward 0.500"
