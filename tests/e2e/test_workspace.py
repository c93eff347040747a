"""A real sandbox: what a workspace does, what it keeps in, and a policy that tries, tests and repairs."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metier.models.hub import load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.types import EnvironmentSpec, Message, Sampling, Task, ToolCall, Weights
from metier.rollout.episodes import Plan, environment_for, run_episodes
from metier.rollout.policy import EnginePolicy
from metier.rollout.tools import get_tool
from metier.sandbox import bubblewrap
from metier.sandbox.protocol import SandboxUnavailableError
from metier.sandbox.workspace import Limits, Workspace
from metier.tasks.protocol import EnvironmentFailure
from scripted import Scripted


def lacking() -> str:
    """Why no sandbox starts here; one that starts and does not hold is no reason to skip."""
    try:
        bubblewrap.probe()
    except SandboxUnavailableError as error:
        if "does not hold" not in str(error):
            return str(error)
    return ""


needs_bubblewrap = pytest.mark.skipif(bool(lacking()), reason=lacking())


@pytest.fixture(scope="module")
def workspace() -> Iterator[Workspace]:
    with Workspace({"data.txt": "7\n"}, Limits(seconds=2, memory_mb=300, disk_mb=8)) as made:
        yield made


@needs_bubblewrap
def test_commands_share_files_and_tell_how_they_ended(workspace: Workspace) -> None:
    done = workspace.python("print(int(open('data.txt').read()) + 1)")
    assert (done.kind, done.code, done.said) == ("ok", 0, "8\n")
    assert workspace.write("lib/two.py", "x = 2\n").kind == "ok"
    assert workspace.python("from lib.two import x; print(x)").said == "2\n"
    failed = workspace.python("print('a')\nraise ValueError('no')")
    assert (failed.kind, failed.code) == ("failed", 1)
    assert failed.said.startswith("a\n") and 'File "<string>", line 2' in failed.said
    assert workspace.run(["/bin/sh", "-c", "cat; exit 3"], stdin="in\n").said == "in\n"
    assert workspace.run(["/bin/sh", "-c", "exit 3"]).code == 3
    assert workspace.run(["/no/such/program"]).kind == "failed"
    assert workspace.files()["lib/two.py"] == "x = 2\n"


ATTACKS = {
    "an endless loop": ("while True: pass", "timeout"),
    "sleep": ("import time; time.sleep(60)", "timeout"),
    "memory": ("x = bytearray(1 << 30)", "memory"),
    "memory of many": (
        "import subprocess, sys\n"
        "for _ in range(8): subprocess.Popen([sys.executable, '-c', 'x = bytearray(100 << 20)\\nwhile True: pass'])\n"
        "import time; time.sleep(60)",
        "memory",
    ),
    "a fork bomb": ("import os\nwhile True: os.fork()", "memory"),
    "a flood": ("while True: print('x' * 1000)", "output"),
    "a full disk": ("open('big', 'w').write('x' * (64 << 20))", "disk"),
    "a signal": ("import os; os.kill(os.getpid(), 9)", "failed"),
}


@needs_bubblewrap
@pytest.mark.parametrize("attack", list(ATTACKS))
def test_what_takes_too_much_is_ended_and_the_next_command_runs(workspace: Workspace, attack: str) -> None:
    code, kind = ATTACKS[attack]
    began = time.monotonic()
    assert workspace.python(code).kind == kind
    assert time.monotonic() - began < 8
    workspace.run(["/bin/sh", "-c", "rm -f big"])
    assert workspace.python("print(open('data.txt').read())").said == "7\n\n"


PIPES = """
import os
for n in range(64):
    try:
        os.write(os.open(f'/proc/1/fd/{n}', os.O_WRONLY), b'{"how": "ended", "code": 0, "said": ""}\\n')
        print('written to', n)
        break
    except OSError as error:
        pass
else:
    raise error
"""
HELD = {
    "the network": "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
    "files of the machine": "open('/etc/passwd').read()",
    "files of people": "import os; open(os.path.expanduser('~root') + '/.profile')",
    "this checkout": "open('HERE').read()",
    "system programs": "open('/usr/bin/metier-was-here', 'w')",
    "the supervisor": "open('/inside.py', 'w')",
    "variables": "import os; print(os.environ['METIER_SECRET'])",
    "processes outside": "import os; os.kill(PID, 0)",
    "the supervisor's pipes": PIPES,
    "the supervisor's memory": "open('/proc/1/mem', 'r+b')",
    "mounting": "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/work', b'tmpfs', 0, None) == 0",
    "becoming root": "import os; os.setuid(0)",
    "devices": "open('/dev/sda'); open('/dev/vda')",
}


@needs_bubblewrap
@pytest.mark.parametrize("what", list(HELD))
def test_nothing_outside_can_be_reached(workspace: Workspace, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = HELD[what].replace("PORT", str(server.getsockname()[1])).replace("PID", str(os.getpid()))
        done = workspace.python(f"print('begun')\n{code.replace('HERE', __file__)}")
    assert done.said.startswith("begun"), "the attack itself must run"
    assert done.kind == "failed" and "Error" in done.said


@needs_bubblewrap
def test_what_a_command_leaves_behind_ends_with_it(workspace: Workspace) -> None:
    began = time.monotonic()
    done = workspace.run(["/bin/sh", "-c", "(sleep 30; echo late > late.txt) & echo now"])
    assert (done.kind, done.said) == ("ok", "now\n") and time.monotonic() - began < 2
    assert "sleep" not in workspace.run(["/bin/sh", "-c", "cat /proc/[0-9]*/comm"]).said


@needs_bubblewrap
def test_the_supervisor_cannot_be_killed_and_a_sandbox_that_dies_begins_anew(workspace: Workspace) -> None:
    workspace.write("mine.txt", "x")
    done = workspace.python("import os\nos.kill(1, 9)\nos.kill(os.getpid(), 9)")
    assert (done.kind, done.code) == ("failed", -9)  # it has killed itself
    assert "mine.txt" in workspace.files()
    workspace._process.kill()
    workspace._process.wait()
    assert workspace.files() == {"data.txt": "7\n"}
    assert workspace.python("print(open('data.txt').read())").said == "7\n\n"


@needs_bubblewrap
def test_neither_links_nor_odd_paths_reach_the_supervisor_or_hide_what_was_done(workspace: Workspace) -> None:
    workspace.run(
        ["/bin/sh", "-c", "ln -s /proc/self/fd/4 pipe; ln -s / out; mkdir -p sub; echo x > shut; chmod 000 shut"]
    )
    for path in ("pipe", "out/tmp/x", "sub", "a\0b", "a\ud800", ".", "/etc/x"):
        assert workspace.write(path, '{"files": {"forged.txt": "yes"}}\n').kind == "failed", path
    assert workspace.write("sub/kept.txt", "a\ud800").kind == "failed"
    workspace.python("import os, signal\nos.kill(1, signal.SIGINT)")
    assert workspace.python("print('\ud800')").kind == "failed"
    found = workspace.files()
    assert "forged.txt" not in found and "pipe" not in found and "shut" not in found
    assert found["data.txt"] == "7\n"
    workspace.run(["/bin/sh", "-c", "rm -rf pipe out sub shut"])


@needs_bubblewrap
@pytest.mark.parametrize("where", ["/x", "/dev/x", "/dev/shm/x", "/tmp/x"])
def test_no_place_takes_more_than_the_disk(workspace: Workspace, where: str) -> None:
    done = workspace.python(f"open('{where}', 'wb').write(bytes(64 << 20))")
    assert done.kind in ("failed", "disk") and "Error" in done.said
    workspace.run(["/bin/sh", "-c", "rm -f /tmp/x /dev/shm/x"])
    assert workspace.run(["unshare", "-Urm", "true"]).kind != "ok"


@needs_bubblewrap
def test_a_workspace_lives_longer_than_the_thread_that_made_it() -> None:
    made: list[Workspace] = []
    thread = threading.Thread(target=lambda: made.append(Workspace()))
    thread.start()
    thread.join()
    assert made[0].write("a.txt", "1").kind == "ok"
    time.sleep(0.2)
    assert made[0].files() == {"a.txt": "1"}
    made[0].close()
    with pytest.raises(SandboxUnavailableError, match=r"'\.\./x' of the task cannot be written"):
        Workspace({"../x": "1"})


def test_without_a_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bubblewrap.probe.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="bubblewrap is missing"):
        Workspace()
    bare = tmp_path / "bwrap"
    bare.write_text('#!/bin/sh\nwhile [ "$1" != "-I" ]; do last="$1"; shift; done\nexec "$last" "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(SandboxUnavailableError, match="does not hold here: it lets through"):
        Workspace()
    environment = environment_for(task("run_python"))
    with pytest.raises(EnvironmentFailure, match="no sandbox"):
        environment.call(ToolCall(name="run_python", arguments='{"code": "print(1)"}'))
    bubblewrap.probe.cache_clear()


# --- as tools ---------------------------------------------------------------------------


def task(*tools: str) -> Task:
    return Task(
        family="file",
        kind="repair",
        messages=(Message(role="user", content="Make add.py right."),),
        tools=tuple(get_tool(name).record for name in tools),
        environment=EnvironmentSpec(
            name="file", version="1", state={"workspace": {"add.py": "def add(a, b):\n    return a - b\n"}}
        ),
    )


@needs_bubblewrap
def test_a_policy_tries_tests_and_repairs() -> None:
    renderer = get_renderer(load_tokenizer("smollm2"))
    asked = task("run_python", "write_file")

    def turn(said: str, name: str = "", **arguments: str) -> tuple[int, ...]:
        calls = (ToolCall(name=name, arguments=json.dumps(arguments)),) if name else ()
        whole = renderer.render([*asked.messages, Message(role="assistant", content=said, tool_calls=calls)])
        return tuple(t for t, mine in zip(whole.token_ids, whole.loss_mask, strict=True) if mine)

    check = "from add import add\nassert add(2, 2) == 4, add(2, 2)"
    script = [
        turn("", "run_python", code=check),
        turn("", "write_file", path="add.py", text="def add(a, b):\n    return a + b\n"),
        turn("", "run_python", code=check),
        turn("", "write_file", path="../../etc/passwd", text="x"),
        turn("Done."),
    ]
    (episode,) = run_episodes(
        EnginePolicy(Scripted([script]), renderer), [Plan(id="ep-1", task=asked, seed=1)],
        sampling=Sampling(), weights=Weights(checkpoint="c"), run_id="r", stage="s",
    )  # fmt: skip
    said = [m.content for m in episode.messages if m.role == "tool"]
    assert "AssertionError: 0" in said[0] and said[0].endswith("[exit status 1]")
    assert said[1:3] == ["[done]", "[done]"]
    assert "outside of the workspace" in said[3]
    assert episode.final_state["files"]["add.py"] == "def add(a, b):\n    return a + b\n"
    assert episode.error is None


@needs_bubblewrap
def test_bad_calls_of_workspace_tools_are_the_policys() -> None:
    environment = environment_for(task("run_python"))
    assert "takes code" in environment.call(ToolCall(name="run_python", arguments='{"code": 3}'))
    assert "takes code" in environment.call(ToolCall(name="run_python", arguments="nonsense"))
    assert "no tool 'run_shell'" in environment.call(ToolCall(name="run_shell", arguments='{"command": "ls"}'))
    environment.close()
