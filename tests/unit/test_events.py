"""The event log survives being killed, and trackers take from it what they show."""

from __future__ import annotations

import builtins
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier.base.errors import ConfigError, DataError, DiskFullError
from metier.records import events
from metier.records.events import FILE_NAME, Event, EventLog, read, steps
from metier.records.trackers import NoTracker, TensorBoardTracker, get_tracker


def test_events_are_read_back_as_written(tmp_path: Path) -> None:
    heard: list[Event] = []
    with EventLog(tmp_path / "run", [heard.append]) as log:
        first = log.emit("sft", "step", step=1, steps=2, loss=0.5)
        log.emit("sft", "note", text="größer\nzwei")
        log.emit("sft", "step", step=2, steps=2, loss=math.nan, parts={"a": [math.inf]})
    assert read(tmp_path / "run") == heard
    assert heard[0] == first
    assert list(first) == ["at", "stage", "event", "step", "steps", "loss"]
    assert heard[2]["loss"] is None
    assert heard[2]["parts"] == {"a": [None]}
    assert len((tmp_path / "run" / FILE_NAME).read_bytes().splitlines()) == 3


def test_a_folder_without_a_log_has_no_events(tmp_path: Path) -> None:
    assert read(tmp_path) == []


@given(st.floats(0, 1))
def test_a_log_cut_anywhere_keeps_its_whole_lines_and_grows_on(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with EventLog(folder) as log:
        written = [log.emit("s", "note", text=f"é{i}") for i in range(3)]
    path = folder / FILE_NAME
    whole = path.read_bytes()
    left = whole[: round(share * len(whole))]
    path.write_bytes(left)
    kept = read(folder)
    assert len(kept) - left.count(b"\n") in (0, 1)  # 1: only the line end was cut off
    assert kept == written[: len(kept)]
    with EventLog(folder) as log:
        last = log.emit("s", "note", text="after")
    assert read(folder) == [*kept, last]


def test_a_line_damaged_in_the_middle_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.raises(DataError, match="line 2: this is not an event"):
        read(tmp_path)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    log.emit("s", "note", text="one")
    real = os.write
    calls: list[bytes] = []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 1:
            return real(descriptor, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(events.os, "write", full)
    with pytest.raises(DiskFullError, match="is full; free some space"):
        log.emit("s", "note", text="two")
    monkeypatch.setattr(events.os, "write", real)
    log.emit("s", "note", text="three")
    log.close()
    log.close()
    assert [e["text"] for e in read(tmp_path)] == ["one", "three"]


def test_a_redone_step_counts_once(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        for step, loss in ((1, 3.0), (2, 2.0), (2, 2.5), (3, 1.0)):
            log.emit("sft", "step", step=step, loss=loss)
        log.emit("grpo", "step", step=1, loss=9.0)
    assert [(e["step"], e["loss"]) for e in steps(read(tmp_path), "sft")] == [(1, 3.0), (2, 2.5), (3, 1.0)]


def test_an_unknown_tracker_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        get_tracker("tensorbord", tmp_path)
    assert isinstance(get_tracker("none", tmp_path), NoTracker)


def test_a_missing_tensorboard_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'metier\[tensorboard\]'"):
        get_tracker("tensorboard", tmp_path)


def test_tensorboard_gets_figures_of_steps_and_evaluations(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs: pip install 'metier[tensorboard]'")
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    tracker = get_tracker("tensorboard", tmp_path)
    assert isinstance(tracker, TensorBoardTracker)
    tracker.event({"at": 1.0, "stage": "sft", "event": "step", "step": 3, "steps": 9, "loss": 0.5, "name": "x"})
    tracker.event({"at": 2.0, "stage": "end", "event": "eval", "split": "heldout", "success": 0.25, "low": None})
    tracker.event({"at": 2.0, "stage": "end", "event": "note", "text": "x"})
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = {
        value.tag: (event.step, value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value)
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    assert found == {"sft/loss": (3, 0.5), "end/heldout/success": (0, 0.25)}


def test_the_log_is_json_lines(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.emit("", "run_start", stages=["a", "b"])
    assert [json.loads(line)["stages"] for line in (tmp_path / FILE_NAME).read_text().splitlines()] == [["a", "b"]]
