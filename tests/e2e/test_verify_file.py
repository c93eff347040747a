"""`metier verify`: responses out of a file, as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from metier.cli import main
from metier.feedback.verifiers import workers as module

LINES: list[dict[str, Any]] = [
    {"id": "m", "verifier": {"name": "math", "answer": "1/2"}, "prompt": "Half?", "response": r"\boxed{0.5}"},
    {"id": "x", "verifier": {"name": "exact", "answer": "a"}, "response": "b"},
    {
        "id": "t",
        "verifier": {"name": "tool_calls", "tools": [{"name": "go"}], "possible_answers": [{"go": {}}]},
        "prompt": [{"role": "user", "content": "Go."}],
        "response": [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "go", "arguments": "{}"}}],
            }
        ],
    },
    {"id": "r", "verifier": {"name": "regex", "pattern": "("}, "response": "a"},
    {"id": "w", "verifier": {"name": "combination", "how": "weighted", "verifiers": [
        {"name": "exact", "answer": "a"}, {"name": "format", "words": 1, "weight": 3}]}, "response": "b"},
]  # fmt: skip


def written(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_in_a_line_out_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "in.jsonl", LINES)
    assert main(["verify", str(file), "-o", str(tmp_path / "out.jsonl"), "--jobs", "3"]) == 0
    told = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["score"], row["status"]) for row in told] == [
        ("m", 1.0, "scored"),
        ("x", 0.0, "scored"),
        ("t", 1.0, "scored"),
        ("r", None, "unscored"),
        ("w", 0.75, "scored"),
    ]
    assert told[4]["parts"] == {"exact": 0.0, "format": 1.0}
    assert all(row["seconds"] >= 0 and row["reason"] for row in told)
    said = capsys.readouterr().err
    assert "5 lines: 2 pass, 2 do not, 1 unscored" in said and "the pattern is none" in said
    assert main(["verify", str(file)]) == 0
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["score"] for row in out] == [row["score"] for row in told]


BAD = [
    (b"not JSON\n", "line 1 is no JSON"),
    (b"[1]\n", "line 1 is no JSON object"),
    (b'{"id": 1, "response": "\xff"}\n', "line 1 is not UTF-8"),
    ({"response": "a"}, '"verifier" is'),
    ({"verifier": {"name": "exact"}}, '"response" is missing'),
    ({"verifier": {"name": "exakt"}, "response": "a"}, "the nearest is 'exact'"),
    ({"verifier": {"name": "exact", "answer": "a"}, "response": 7}, "text or lists of messages"),
    ({"verifier": {"name": "exact", "answer": "a"}, "response": [{"role": "robot"}]}, "role"),
    ({"verifier": {"name": "exact"}, "response": "a"}, '"answer" is missing'),
    ({"verifier": {"name": "exact", "answer": "a"}, "response": "a", "final_state": 1}, "a state is an object"),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_a_line_that_cannot_be_used_is_unscored_and_stops_no_other(tmp_path: Path, row: Any, why: str) -> None:
    file = written(tmp_path / "in.jsonl", [row, LINES[1]])
    assert main(["verify", str(file), "-o", str(tmp_path / "out.jsonl")]) == 0
    first, second = read(tmp_path / "out.jsonl")
    assert (first["status"], first["score"]) == ("unscored", None) and why in first["reason"]
    assert second["score"] == 0.0


def test_what_is_done_is_kept_and_half_a_line_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = written(tmp_path / "in.jsonl", LINES), tmp_path / "deep" / "out.jsonl"
    assert main(["verify", str(file), "-o", str(out)]) == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    marked = lines[0].replace(b'"reason": "', b'"reason": "kept: ')
    out.write_bytes(marked + lines[1] + lines[2][:20])
    assert main(["verify", str(file), "-o", str(out)]) == 0
    assert "2 were done before" in capsys.readouterr().err
    assert [row["id"] for row in read(out)] == ["m", "x", "t", "r", "w"]
    assert read(out)[0]["reason"].startswith("kept: ")
    other = written(tmp_path / "other.jsonl", LINES[::-1])
    assert main(["verify", str(other), "-o", str(out)]) == 2
    assert "has lines of another file" in capsys.readouterr().err


def test_a_command_that_is_killed_goes_on(tmp_path: Path) -> None:
    sleeps = "def f(x):\n    import time\n    time.sleep(0.15)\n    return x\n"
    code = {"name": "code", "entry_point": "f", "cases": [{"args": [1], "expected": 1}]}
    file = written(tmp_path / "in.jsonl", [{"id": n, "verifier": code, "response": sleeps} for n in range(30)])
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "metier.cli", "verify", str(file), "-o", str(out), "--jobs", "2"]
    command[1:3] = ["-c", "from metier.cli import main; raise SystemExit(main())"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until and (not out.exists() or len(out.read_bytes().splitlines()) < 5):
        time.sleep(0.05)
    process.kill()
    process.wait()
    begun = out.read_bytes()
    assert 5 <= len(begun.splitlines()) < 30
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert out.read_bytes().startswith(begun[: begun.rfind(b"\n") + 1])
    assert [row["id"] for row in read(out)] == list(range(30))
    assert len({row["status"] for row in read(out)}) == 1


def test_a_worker_that_is_killed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from metier.feedback.verify_file import verify_lines

    made: list[Any] = []
    begin = module._Worker.__init__

    def watched(self: Any) -> None:
        begin(self)
        made.append(self)

    monkeypatch.setattr(module._Worker, "__init__", watched)
    row = json.dumps({"verifier": {"name": "math", "answer": "x+1"}, "response": r"\boxed{1+x}"}).encode()
    told = []
    for one in verify_lines([row] * 40, jobs=1):
        told.append(one)
        if len(told) in (3, 9):
            os.kill(made[-1]._process.pid, signal.SIGKILL)
    assert [one["score"] for one in told] == [1.0] * 40
    assert len(made) == 3


def test_verifiers_are_listed_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    from metier.feedback.verifiers.registry import BUILT_IN

    assert main(["verify", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) >= set(BUILT_IN)
    assert all(told[name] for name in BUILT_IN)
    assert set(told["math"]) >= {"answer"} and set(told["code"]) >= {
        "entry_point",
        "test",
        "cases",
        "timeout",
        "memory_mb",
    }
    assert main(["verify", "--list"]) == 0
    assert "math\n  answer: " in capsys.readouterr().out


PLUGIN = """
from metier.feedback.verifiers.protocol import Verdict
from metier.feedback.verifiers.registry import register

class Loops:
    name = "loops"
    version = "1"
    seconds = 0.5

    def verify(self, task, attempt, params):
        while attempt.messages[-1].content == "loop":
            pass
        return Verdict(score=1.0)

class Plain:
    name = "plain"
    version = "1"

    def verify(self, task, attempt, params):
        raise KeyError("a bug")

register(Loops())
register(Plain())
"""


def test_verifiers_of_a_plugin_have_deadlines_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    rows = [
        {"verifier": {"name": name}, "response": text}
        for name, text in (("loops", "loop"), ("loops", "go"), ("plain", ""))
    ]
    file = written(tmp_path / "in.jsonl", rows)
    assert main(["verify", str(file), "--plugin", str(plugin)]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["score"] for row in told] == [None, 1.0, None]
    assert "could not be judged within 0.5 s" in told[0]["reason"]
    assert "verifier failed: KeyError" in told[2]["reason"]


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([], "name a file of responses"),
        ([str(tmp_path / "none")], "there is no file"),
        (["--sandbox", "bare", "--list"], "there is no sandbox 'bare'"),
        (["--plugin", str(tmp_path / "none.py"), "--list"], "there is no plugin"),
        (["--audit", "nothing"], "there is no verifier 'nothing'"),
        (["--audit", "reward_model"], "no cases ship for the verifier 'reward_model'"),
    ):
        assert main(["verify", *arguments]) == 2
        assert said in capsys.readouterr().err
