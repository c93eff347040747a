"""The sandbox for code: how it ends what it runs, that nothing gets out, and what tests cannot be told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from escapes import ESCAPES
from httpd import serving
from metier.base.errors import DataError
from metier.sandbox import bubblewrap, local
from metier.sandbox.choose import open_sandbox
from metier.sandbox.local import Bubblewrap, Docker, LocalSandbox, Zygote
from metier.sandbox.plain import decode
from metier.sandbox.protocol import Limits, Sandbox, SandboxUnavailableError

QUICK = Limits(seconds=5, memory_mb=256, output_bytes=100_000)


def opened(kind: str) -> LocalSandbox:
    """A sandbox, or a skip where this machine starts none; one that starts and does not hold fails."""
    starter = Zygote() if kind == "zygote" else Bubblewrap()
    try:
        return LocalSandbox(starter)
    except SandboxUnavailableError as error:
        if "does not hold" in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["zygote", "bubblewrap"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    made = opened(request.param)
    yield made
    made.close()


def values(result: Any) -> list[Any]:
    return [answer.raised or decode(answer.value) for answer in result.answers]


def test_a_function_is_called_and_plain_values_come_back(sandbox: Sandbox) -> None:
    code = "def f(x):\n    return {'t': (x, 2.5, None, True), 'b': b'ab', 's': {1, 2}, 'i': 10 ** 40}\n"
    done = sandbox.calls(code, "f", [[1], ["é"]], QUICK)
    assert done.kind == "ok"
    want = {"t": (1, 2.5, None, True), "b": b"ab", "s": {1, 2}, "i": 10**40}
    assert values(done) == [want, {**want, "t": ("é", 2.5, None, True)}]
    assert values(sandbox.calls("class A:\n    def go(self, x): return x * 2\n", "A.go", [[4]], QUICK)) == [8]


def test_what_a_call_raises_is_told_and_the_next_call_runs(sandbox: Sandbox) -> None:
    code = "def f(x):\n    if x == 0: raise ValueError('nought')\n    if x == 1: return object()\n    return x\n"
    assert values(sandbox.calls(code, "f", [[0], [1], [2]], QUICK)) == [
        "ValueError: nought",
        "it returned a value of type object",
        2,
    ]


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("def f(:", "crashed", "SyntaxError"),
        ("g = 1", "crashed", "it does not define f"),
        ("f = 1", "crashed", "f is no function"),
        ("raise SystemExit(0)", "crashed", "SystemExit: 0"),
        ("import os; os._exit(0)", "crashed", "it ended without an answer"),
        ("def f(): import os; os._exit(0)", "crashed", "it ended without an answer"),
        ("def f():\n    while True: pass", "timeout", "longer than"),
        ("def f(): return bytearray(1 << 40)", "memory", "MemoryError"),
        ("def f():\n    while True: print('x' * 999)", "output", "printed more"),
        ("def f(): return 'x' * 1_000_000", "output", "an answer of"),
        ("def f():\n    import ctypes; ctypes.string_at(0)", "crashed", "-11"),
    ],
)
def test_each_end_has_its_kind(sandbox: Sandbox, code: str, kind: str, said: str) -> None:
    began = time.monotonic()
    done = sandbox.calls(code, "f", [[]], Limits(seconds=1, memory_mb=256, output_bytes=100_000))
    assert (done.kind, done.answers) == (kind, ())
    assert said in done.said
    assert time.monotonic() - began < 5


def test_a_program_reads_and_prints(sandbox: Sandbox) -> None:
    done = sandbox.program("import sys\nprint(sum(map(int, sys.stdin)))", "1\n2\n", QUICK)
    assert (done.kind, done.said) == ("ok", "3\n")
    assert sandbox.program("print(input() + input())", "a\nb\n", QUICK).said == "ab\n"
    big = "x" * 300_000
    roomy = Limits(seconds=10, memory_mb=256)
    assert sandbox.program("print(len(input()))", big + "\n", roomy).said == "300000\n"
    assert sandbox.program("print('x' * 300_000)", big, roomy).said == big + "\n"  # which reads nothing
    failed = sandbox.program("print(1)\nraise ValueError('no')", "", QUICK)
    assert (failed.kind, failed.said) == ("crashed", "ValueError: no")
    assert sandbox.program("import sys; sys.exit(3)", "", QUICK).said == "it ended with status 3"
    assert sandbox.program("print(__name__)", "", QUICK).said == "__main__\n"


def test_asserts_run_elsewhere_and_reach_the_code_by_calls(sandbox: Sandbox) -> None:
    test = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(x=3) == 9\n"
    square = "def f(x): return x * x\n"
    assert sandbox.tests(square, "f", test, limits=QUICK).kind == "ok"
    assert sandbox.tests(square, "f", "assert f(2) == 4", limits=QUICK).kind == "ok"
    wrong = sandbox.tests("def f(x): return x", "f", test, limits=QUICK)
    assert wrong.kind == "wrong" and wrong.said.startswith("AssertionError")
    raises = "try:\n    f(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False\nassert f(1) == 1"
    assert sandbox.tests("def f(x): return 1 // x", "f", raises, limits=QUICK).kind == "ok"
    helped = "def helper(x): return x + 1\n\ndef f(x):\n    '''More.'''\n"
    assert (
        sandbox.tests("def f(x): return x + 1", "f", "assert f(1) == helper(1)", prompt=helped, limits=QUICK).kind
        == "ok"
    )


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("", "assert nothing"),
        ("f(1)", "assert nothing"),
        ("assert True", "call nothing"),
        ("def check(c):\n    assert c(1) ==", "SyntaxError"),
    ],
)
def test_tests_that_say_nothing_are_no_verdict(sandbox: Sandbox, test: str, why: str) -> None:
    done = sandbox.tests("def f(x): return x", "f", test, limits=QUICK)
    assert done.kind == "unavailable" and why in done.said


FORGED = {
    "an object that equals all": "class A:\n    __eq__ = lambda s, o: True\ndef f(x): return A()",
    "a number that equals all": "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\ndef f(x): return A(5)",
    "a list that equals all": "class A(list):\n    __eq__ = lambda s, o: True\ndef f(x): return A([1])",
    "the loop's end": "def f(x): raise StopIteration",
    "an answer of its own making": "import os\ndef f(x):\n    for n in range(3, 64):\n        try: os.write(n, b'15\\n{\"passed\": true}')\n        except OSError: pass\n    os._exit(0)",
    "a verdict": 'import os\nos.write(1, b\'30\\n{"passed": true, "calls": 9999}\')\nos._exit(0)',
    "no JSON": "import os\nfor n in range(3, 64):\n    try: os.write(n, b'9\\nnot JSON!')\n    except OSError: pass\nwhile True: pass",
    "an endless frame": "import os\nfor n in range(3, 64):\n    try: os.write(n, b'9' * 100)\n    except OSError: pass\nwhile True: pass",
    "a deep frame": "import os\nfor n in range(3, 64):\n    try: os.write(n, b'200000\\n' + b'[' * 200000)\n    except OSError: pass\nwhile True: pass",
    "a value that is none": 'import os\nfor n in range(3, 64):\n    try: os.write(n, b\'27\\n{"value": {"set": [[1], 2]}}\')\n    except OSError: pass\nwhile True: pass',
}


@pytest.mark.parametrize("how", list(FORGED))
def test_no_answer_is_forged(sandbox: Sandbox, how: str) -> None:
    limits = Limits(seconds=1.5, memory_mb=256, output_bytes=100_000)
    for test in ("def check(c):\n    assert c(1) == 4", "assert all(map(lambda x: f(x) == 4, [1, 2]))"):
        assert sandbox.tests(FORGED[how], "f", test, limits=limits).kind in ("wrong", "crashed", "timeout", "output")


def test_what_is_expected_is_nowhere_in_the_code_s_process(sandbox: Sandbox) -> None:
    """The code looks through all objects, and all memory that it can find, for a word of the tests."""
    looks = """
import ctypes, gc, os
def f(x):
    word = bytes([122, 119, 101, 101, 98, 101, 108]).decode()
    for thing in gc.get_objects():
        try:
            if word in repr(thing)[:100000] and 'thing' not in repr(thing)[:100]:
                return 'found'
        except Exception:
            pass
    return 'nothing'
"""
    told = sandbox.tests(looks, "f", "word = 'zweebel' + str(1)\nassert f(1) == 'nothing'", limits=QUICK)
    assert told.kind == "ok", told.said


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Names of things outside, as lines of Python."""
    monkeypatch.setenv("METIER_SECRET", "7")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        name = f"metier-test-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()
        names = {
            "PARENT": os.getpid(),
            "PORT": server.getsockname()[1],
            "SOCKET": str(tmp_path / "socket"),
            "ABSTRACT": name,
            "SECRET": str(secret),
        }
        yield "".join(f"{key} = {value!r}\n" for key, value in names.items())
        assert secret.read_text() == "secret"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "socket"]


@pytest.mark.parametrize("escape", list(ESCAPES))
def test_nothing_gets_out(outside: str, zygote: Sandbox, escape: str) -> None:
    code, kinds = ESCAPES[escape]
    done = zygote.program(outside + code, limits=Limits(seconds=1, memory_mb=256, output_bytes=100_000))
    assert "out" not in done.said.split()
    assert done.kind in kinds, done.said
    assert zygote.program("print('still here')", limits=QUICK).said == "still here\n"


@pytest.fixture(scope="module")
def zygote() -> Iterator[Sandbox]:
    made = opened("zygote")
    yield made
    made.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_nothing_gets_out_as_nobody(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> None:
    python = next(
        (p for p in ("/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11") if Path(p).exists()), None
    )
    if python is None:
        pytest.skip("needs a Python 3.11 or later that nobody can run (/usr/bin/python3)")
    folder = Path(tmp_path_factory.getbasetemp().parent) / "nobody"
    place = Path("/var/tmp") / f"metier-nobody-{os.getpid()}"
    shutil.copytree(repository / "src" / "metier", place / "metier")
    for source in (Path(__file__).parents[1] / "escapes.py", Path(__file__).with_name("nobody.py")):
        shutil.copy(source, place / source.name)
    secret = place / "secret"
    secret.write_text("secret")
    os.chown(secret, 65534, 65534)
    for path in (place, *place.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0))
    del folder
    try:
        done = subprocess.run(
            [python, str(place / "nobody.py"), str(place), str(secret)],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        told = json.loads(done.stdout)
        assert told == {"uid": 65534, "count": len(ESCAPES), "through": []}
        assert secret.read_text() == "secret"
    finally:
        shutil.rmtree(place)


def test_many_threads_share_a_sandbox_and_none_holds_up_another(zygote: Sandbox) -> None:
    slow = threading.Thread(target=zygote.program, args=("while True: pass", "", Limits(seconds=10)))
    slow.start()
    found: list[Any] = []

    def ask(number: int) -> None:
        for _ in range(10):
            found.append(values(zygote.calls("def f(x): return x + 1", "f", [[number]], QUICK)) == [number + 1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80
    assert slow.is_alive()
    slow.join()


def test_a_zygote_that_died_is_replaced_and_its_children_end_with_it() -> None:
    made = opened("zygote")
    starter = made._starter
    assert isinstance(starter, Zygote)
    results: list[Any] = []
    running = threading.Thread(
        target=lambda: results.append(made.program("while True: pass", limits=Limits(seconds=30)))
    )
    running.start()
    time.sleep(0.3)
    assert starter._process is not None
    starter._process.kill()
    running.join(5)
    assert not running.is_alive()
    assert results[0].kind == "unavailable"  # the machine's fault and no verdict
    assert made.program("print(1)").said == "1\n"
    made.close()


def test_one_sample_sees_nothing_of_another(zygote: Sandbox) -> None:
    zygote.calls("import builtins, math\nmath.pi = 3\nbuiltins.mark = 7\ndef f(): return 1", "f", [[]], QUICK)
    code = "import math\ndef f(): return [math.pi > 3.1, 'mark' in dir(__builtins__)]"
    assert values(zygote.calls(code, "f", [[]], QUICK)) == [[True, False]]


def test_the_same_code_gives_the_same(zygote: Sandbox) -> None:
    code = "import random\ndef f(): return [random.random(), list({'a', 'b', 'c', 'd'}), hash('x')]"
    assert len({json.dumps(values(zygote.calls(code, "f", [[]], QUICK))) for _ in range(5)}) == 1


def test_nothing_runs_where_nothing_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock is missing, then it lets through what it should not; then bubblewrap is missing as well."""
    monkeypatch.setattr(local, "_ROOT", Path("/nowhere"))
    with pytest.raises(SandboxUnavailableError, match="no zygote here"):
        LocalSandbox(Zygote())
    monkeypatch.undo()
    monkeypatch.setattr(local, "_PROBE", "print('tried', 'the_network')")
    for starter in (Zygote(), Bubblewrap()):
        with pytest.raises(
            SandboxUnavailableError, match=r"does not hold here: it lets through the_network|does not run"
        ):
            LocalSandbox(starter)
    with pytest.raises(SandboxUnavailableError, match=r"zygote.*bubblewrap"):
        open_sandbox("auto")
    monkeypatch.undo()
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailableError, match="bubblewrap is missing"):
        LocalSandbox(Bubblewrap())
    with pytest.raises(DataError, match="there is no sandbox 'bare'; known are auto"):
        open_sandbox("bare")


DOCKER = """#!/bin/sh
# Stands in for an engine: writes down what it was asked, and runs the program that was to run in the image.
echo "$@" >> LOG
[ "$1" = run ] || exit 0
while [ "$1" != IMAGE ]; do shift; done
shift
cd / && PYTHONPATH= exec env -u METIER_SECRET PYTHON -I -S -B -c "$6" ROOT
"""


def test_docker_is_asked_for_a_container_that_is_shut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine can be had where tests run: its program is stood in for, its arguments are looked at."""
    program, log = tmp_path / "docker", tmp_path / "log"
    text = DOCKER.replace("LOG", str(log)).replace("PYTHON -I", f"{sys.executable} -I")
    program.write_text(text.replace("ROOT", str(Path(local.__file__).parents[2])))
    program.chmod(0o755)
    monkeypatch.setattr(local, "_PROBE", "print('tried')")
    made = LocalSandbox(Docker("IMAGE", str(program)))
    assert made.name == "docker"
    assert values(made.calls("def f(x): return x + 1", "f", [[1]], QUICK)) == [2]
    asked = log.read_text()
    for wanted in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "no-new-privileges",
        "--pids-limit",
        "--memory 2g",
    ):
        assert wanted in asked
    with pytest.raises(SandboxUnavailableError, match="there is no program"):
        Docker("IMAGE", "no-such-docker").start()


class _Service(BaseHTTPRequestHandler):
    """A service with SandboxFusion's API, whose programs run in our own sandbox."""

    sandbox: LocalSandbox
    broken = False

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/run_code" and asked["language"] == "python"
        limits = Limits(seconds=asked["run_timeout"], memory_mb=asked["memory_limit_MB"])
        done = self.sandbox.program(asked["code"], asked["stdin"], limits)
        status = {"ok": "Finished", "timeout": "TimeLimitExceeded"}.get(done.kind, "Error")
        ran = {"status": status, "return_code": 0 if done.kind == "ok" else 1}
        ran |= {"stdout": done.said if done.kind == "ok" else "", "stderr": "" if done.kind == "ok" else done.said}
        told = {"status": "SandboxError" if self.broken else "Success", "message": "full", "run_result": ran}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_service_runs_code_elsewhere(zygote: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Service, "sandbox", zygote, raising=False)
    with serving(_Service) as url:
        made = open_sandbox(url)
        assert values(made.calls("def f(x):\n    print('noise')\n    return {x: 1 / x}", "f", [[2], [0]], QUICK)) == [
            {2: 0.5},
            "ZeroDivisionError: division by zero",
        ]
        assert made.program("print(input())", "é\n", QUICK).said == "é\n"
        test = "def check(c):\n    assert [c(n) for n in range(5)] == [0, 1, 4, 9, 16]\n"
        assert made.tests("def f(x): return x * x", "f", test, limits=QUICK).kind == "ok"
        assert made.tests("def f(x): return x + x", "f", test, limits=QUICK).kind == "wrong"
        assert made.tests("def f(x): return x", "f", "assert True", limits=QUICK).kind == "unavailable"
        assert made.checks("def check(a): return a == 1", [{"a": 1}, {"a": 2}], QUICK).answers[1].value is False
        for code, kind in (
            ("def f(x):\n    while True: pass", "timeout"),
            ("import os; os._exit(0)", "crashed"),
            ("def f(x): return bytearray(1 << 40)", "memory"),
            ("g = 1", "crashed"),
        ):
            assert made.calls(code, "f", [[1]], Limits(seconds=1, memory_mb=256)).kind == kind
        monkeypatch.setattr(_Service, "broken", True)
        assert made.program("print(1)", "", QUICK).kind == "unavailable"
    assert made.program("print(1)", "", QUICK).kind == "unavailable"
    made.close()
