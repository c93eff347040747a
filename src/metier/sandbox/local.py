"""Sandboxes on this machine: what starts their processes, and how it is talked with them.

Three ways to start one, each behind the same protocol. `Zygote` forks a child in a millisecond behind
Landlock and seccomp: it may read the standard library and nothing else, write nothing, and ask the
kernel for little more than memory and time. `Bubblewrap` starts a Python in namespaces of its own,
slower, for machines without Landlock. `Docker` starts a container, for teams who have an engine.

`LocalSandbox` tries, before anything else runs, what must not work (`_PROBE`), and refuses where
any of it does. What it does not keep from code that runs in a zygote: the names and sizes of files
(not what is in them), how much processor time there is within the seconds given, what a hole in the
kernel lets through, and guessing by time what else the machine does.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from metier.base.clock import monotonic
from metier.sandbox import bubblewrap
from metier.sandbox.jobs import Jobs, answer, job, verdict
from metier.sandbox.protocol import Answer, Kind, Limits, Result, SandboxUnavailableError, kind_of

__all__ = ["Bubblewrap", "Docker", "LocalSandbox", "Zygote"]

_START = 20.0  # seconds for a zygote, a Python in bubblewrap or a container to be there
_ROOT = Path(__file__).parents[2]  # the folder that has metier in it
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from metier.sandbox.{} import main; main({})"


class Child(Protocol):
    """A process with three streams, all of them this side's ends."""

    stdin: int
    stdout: int
    stderr: int

    def shut(self) -> None:
        """Close its input."""
        ...

    def status(self, seconds: float) -> int | None:
        """How it ended, negative for a signal; None where it has not ended after so long."""
        ...

    def kill(self) -> None:
        """End it. May be called again."""
        ...


class Starter(Protocol):
    """What starts children."""

    name: str
    starts_in: float  # seconds that a child may take to be there, beyond its own

    def start(self) -> Child:
        """A child that waits for its job. Raises `SandboxUnavailableError`."""
        ...

    def close(self) -> None:
        """End what it keeps running."""
        ...


class _Leashed:
    """A zygote's child."""

    def __init__(self, streams: Sequence[int], leash: socket.socket) -> None:
        self.stdin, self.stdout, self.stderr = streams
        self._leash = leash
        self._status: int | None = None

    def shut(self) -> None:
        os.close(self.stdin)
        self.stdin = -1

    def status(self, seconds: float) -> int | None:
        if self._status is None:
            self._leash.settimeout(max(seconds, 0.001))
            with contextlib.suppress(OSError, ValueError):
                self._status = int(self._leash.recv(16))
        return self._status

    def kill(self) -> None:
        self._leash.close()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream >= 0:
                os.close(stream)
        self.stdin = self.stdout = self.stderr = -1


class Zygote:
    """Forks children behind Landlock and seccomp."""

    name = "zygote"
    starts_in = 0.0

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> Child:
        """A child; a zygote that has died is replaced once."""
        for last in (False, True):
            with self._lock:
                if self._socket is None:
                    self._begin()
                asked = self._socket
            assert asked is not None
            ours, theirs = zip(*(self._pipe(number) for number in range(3)), strict=True)
            leash, handed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with handed:
                    socket.send_fds(asked, [b"."], [*theirs, handed.fileno()])
                return _Leashed(ours, leash)
            except OSError as error:
                _Leashed(ours, leash).kill()
                with self._lock:
                    if self._socket is asked:
                        self._end()
                if last:
                    raise SandboxUnavailableError(f"the sandbox's zygote does not answer: {error}") from error
            finally:
                for number in theirs:
                    os.close(number)
        raise AssertionError

    def close(self) -> None:
        """End the zygote, and its children with it."""
        with self._lock:
            self._end()

    @staticmethod
    def _pipe(number: int) -> tuple[int, int]:
        """Our end and the child's."""
        reads, writes = os.pipe()
        return (writes, reads) if number == 0 else (reads, writes)

    def _begin(self) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [self._python, "-s", "-S", "-P", "-B", "-c", _BOOT.format("zygote", "int(sys.argv[2])")]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(_ROOT), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PYTHONUTF8": "1"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        mine.settimeout(_START)
        said = b""
        with contextlib.suppress(OSError):
            said = mine.recv(1024)
        mine.settimeout(None)
        self._socket = mine
        if said != b"ready":
            self._end()
            raise SandboxUnavailableError(f"no zygote here: {said.decode(errors='replace') or 'it did not start'}")

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class _Started:
    """A child that is a process of ours."""

    def __init__(self, process: subprocess.Popen[bytes], more: Sequence[str] = ()) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self.stdin, self.stdout, self.stderr = (
            process.stdin.fileno(),
            process.stdout.fileno(),
            process.stderr.fileno(),
        )
        self._process, self._more = process, list(more)

    def shut(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def status(self, seconds: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(max(seconds, 0.001))
            return 128 - status if status > 128 else status  # a signal, as shells tell it
        return None

    def kill(self) -> None:
        if self._process.poll() is None:
            if self._more:
                subprocess.run(self._more, capture_output=True, check=False, timeout=_START)
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


class Bubblewrap:
    """Starts a Python in bubblewrap for each child."""

    name = "bubblewrap"
    starts_in = 1.0

    def start(self) -> Child:
        """A child. Raises `SandboxUnavailableError`."""
        command = [*bubblewrap.python(), "-c", _BOOT.format("child", ""), "/metier"]
        shown = {"/metier/metier/sandbox": str(Path(__file__).parent)}
        return _Started(bubblewrap.spawn(command, 1 << 20, shown))

    def close(self) -> None:
        """There is nothing."""


class Docker:
    """Starts a container for each child, of an image that has `python3` (3.11 or later)."""

    name = "docker"
    starts_in = 10.0

    def __init__(self, image: str, program: str = "docker") -> None:
        self._image, self._program = image, program

    def start(self) -> Child:
        """A child. Raises `SandboxUnavailableError`."""
        program = shutil.which(self._program)
        if program is None:
            raise SandboxUnavailableError(f"there is no program {self._program!r}")
        name = f"metier-{secrets.token_hex(8)}"
        command = [program, "run", "--rm", "--interactive", "--name", name, "--network", "none", "--read-only"]
        command += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "64"]
        command += ["--memory", "2g", "--memory-swap", "2g", "--cpus", "1", "--user", "65534:65534"]
        command += ["--volume", f"{Path(__file__).parent}:/metier/metier/sandbox:ro", "--workdir", "/"]
        command += [self._image, "python3", "-I", "-S", "-B", "-c", _BOOT.format("child", ""), "/metier"]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except OSError as error:
            raise SandboxUnavailableError(f"{self._program} does not run: {error}") from error
        return _Started(process, [program, "kill", name])

    def close(self) -> None:
        """There is nothing."""


class _Over(Exception):
    """A child has come to its end, or to one of its limits."""

    def __init__(self, kind: Kind, said: str) -> None:
        super().__init__(said)
        self.kind, self.said = kind, said


class _Talk:
    """Frames to and from one child, within its limits."""

    def __init__(self, child: Child, limits: Limits, until: float) -> None:
        self._child, self._limits, self._until = child, limits, until
        self._coming, self._noise, self._last = bytearray(), 0, b""
        self._going = b""
        self._poll = select.poll()
        for number in (child.stdout, child.stderr):
            os.set_blocking(number, False)
            self._poll.register(number, select.POLLIN)
        os.set_blocking(child.stdin, False)
        self._open = {child.stdout, child.stderr}

    def send(self, what: Any) -> None:
        """A frame. Raises `_Over`."""
        self.pass_on(json.dumps(what).encode())

    def pass_on(self, data: bytes) -> None:
        """A frame that is JSON already."""
        self.write(b"%d\n%b" % (len(data), data))

    def write(self, data: bytes) -> None:
        """Bytes, as far as they are taken at once; what is left goes while it is read."""
        self._going += data
        if self._going:
            self._give()

    def shut(self) -> None:
        """Close its input, after what is left to write."""
        self._until_true(lambda: not self._going)
        self._child.shut()

    def receive(self) -> bytes:
        """The next frame. Raises `_Over`."""
        self._until_true(self._frame_is_here)
        size = self._size()
        if size is None or len(self._coming) < size[0] + size[1]:
            over = self._ended()  # to end by itself, even well, is no answer
            raise _Over("crashed", over.said or "it ended without an answer") if over.kind == "ok" else over
        frame = bytes(self._coming[size[0] : size[0] + size[1]])
        del self._coming[: size[0] + size[1]]
        return frame

    def rest(self) -> bytes:
        """All that it says until its end, where that is a good one. Raises `_Over`."""
        self._until_true(lambda: False)
        over = self._ended()
        if over.kind != "ok":
            raise over
        return bytes(self._coming)

    def _size(self) -> tuple[int, int] | None:
        """The length of the next frame's head, and that of its body; None where the head is not there yet."""
        head = self._coming[:12].find(b"\n")
        if head < 0 and len(self._coming) < 12:
            return None
        if head < 1 or not self._coming[:head].isdigit():
            raise _Over("crashed", "it does not answer in the form that is asked for")
        size = int(self._coming[:head])
        if size > 4 * self._limits.output_bytes:
            raise _Over("output", f"an answer of {size} bytes")
        return head + 1, size

    def _frame_is_here(self) -> bool:
        size = self._size()
        return size is not None and len(self._coming) >= size[0] + size[1]

    def _until_true(self, done: Any) -> None:
        """Read and write until it is done, or all is said."""
        while not done() and self._open:
            left = self._until - monotonic()
            if left <= 0:
                raise _Over("timeout", f"it took longer than {self._limits.seconds:g} s")
            for number, _ in self._poll.poll(left * 1000):
                if number == self._child.stdin:
                    self._give()
                else:
                    self._take(number)

    def _give(self) -> None:
        try:
            self._going = self._going[os.write(self._child.stdin, self._going) :]
        except BlockingIOError:
            pass
        except OSError:  # it does not read any more
            self._going = b""
        if self._going:
            self._poll.register(self._child.stdin, select.POLLOUT)
        else:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._child.stdin)

    def _take(self, number: int) -> None:
        try:
            part = os.read(number, 1 << 16)
        except BlockingIOError:
            return
        if not part:
            self._poll.unregister(number)
            self._open.discard(number)
            return
        if number == self._child.stdout:
            self._coming += part
            if len(self._coming) > 4 * self._limits.output_bytes + 12:
                raise _Over("output", "it says too much")
            return
        self._noise += len(part)
        self._last = (self._last + part)[-2000:]
        if self._noise > self._limits.output_bytes:
            raise _Over("output", f"it printed more than {self._limits.output_bytes} bytes")

    def _ended(self) -> _Over:
        status = self._child.status(self._until - monotonic())
        said = self._last.decode("utf-8", "replace").strip()
        if status is None and monotonic() < self._until:
            return _Over("unavailable", "the sandbox ended while it ran")
        if status is None:
            return _Over("timeout", f"it took longer than {self._limits.seconds:g} s")
        if status == 0:
            return _Over("ok", said)
        if status == -24:
            return _Over("timeout", "it used up its processor time")
        return _Over(kind_of(said), said[-300:] or f"it ended with status {status}")


class LocalSandbox(Jobs):
    """Runs code in children of a starter, each child for one sample."""

    def __init__(self, starter: Starter) -> None:
        """Raises `SandboxUnavailableError` where it does not hold."""
        self._starter = starter
        self.name = starter.name
        self._probe()

    def program(self, code: str, stdin: str = "", limits: Limits | None = None) -> Result:
        """See `Sandbox.program`."""
        limits, began = limits or Limits(), monotonic()
        try:
            with self._talk(limits, began) as talk:
                talk.send(job({"do": "program", "code": code}, limits))
                talk.write(stdin.encode("utf-8", "replace"))
                talk.shut()
                said = talk.rest().decode("utf-8", "replace")
                return Result(kind="ok", said=said, seconds=monotonic() - began)
        except _Over as over:
            return Result(kind=over.kind, said=over.said, seconds=monotonic() - began)

    def tests(
        self, code: str, entry_point: str, test: str, *, prompt: str = "", limits: Limits | None = None
    ) -> Result:
        """See `Sandbox.tests`."""
        limits, began = limits or Limits(), monotonic()
        try:
            with self._talk(limits, began) as candidate, self._talk(limits, began) as tests:
                asserts = {"do": "tests", "test": test, "prompt": prompt, "entry_point": entry_point}
                tests.send(job(asserts, limits))
                candidate.send(job({"do": "serve", "code": code, "entry_point": entry_point}, limits))
                self._ready(candidate)
                kind, said = self._between(candidate, tests)
                return Result(kind=kind, said=said, seconds=monotonic() - began)
        except _Over as over:
            return Result(kind=over.kind, said=over.said, seconds=monotonic() - began)

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._starter.close()

    @staticmethod
    def _between(candidate: _Talk, tests: _Talk) -> tuple[Kind, str]:
        """Carry calls and answers until the tests have a verdict."""
        while True:
            frame = tests.receive()
            asked = _read(frame)
            if "args" in asked:
                candidate.pass_on(frame)
                tests.pass_on(candidate.receive())
            else:
                return verdict(asked)

    @staticmethod
    def _ready(talk: _Talk) -> None:
        said = _read(talk.receive())
        if "ready" not in said:
            words = str(said.get("broken", "it did not start"))
            raise _Over(kind_of(words), words)

    def _ask(self, what: Mapping[str, Any], items: Sequence[Mapping[str, Any]], limits: Limits) -> Result:
        began, answers = monotonic(), list[Answer]()
        try:
            with self._talk(limits, began) as talk:
                talk.send(job(what, limits))
                self._ready(talk)
                for item in items:
                    talk.send(item)
                    said = _read(talk.receive())
                    if "value" not in said and kind_of(str(said.get("raised"))) != "crashed":
                        raise _Over(kind_of(str(said["raised"])), str(said["raised"]))
                    answers.append(answer(said))
                return Result(kind="ok", answers=tuple(answers), seconds=monotonic() - began)
        except _Over as over:
            return Result(kind=over.kind, answers=tuple(answers), said=over.said, seconds=monotonic() - began)

    @contextlib.contextmanager
    def _talk(self, limits: Limits, began: float) -> Iterator[_Talk]:
        try:
            child = self._starter.start()
        except SandboxUnavailableError as error:
            raise _Over("unavailable", str(error)) from error
        try:
            yield _Talk(child, limits, began + self._starter.starts_in + limits.seconds)
        finally:
            child.kill()

    def _probe(self) -> None:
        limits = Limits(seconds=_START, memory_mb=256)
        done = self.program(_PROBE.format(parent=os.getpid()), limits=limits)
        if done.kind != "ok" or not done.said.startswith("tried"):
            self.close()
            raise SandboxUnavailableError(f"the sandbox {self.name} does not run here: {done.said or done.kind}")
        through = done.said.split()[1:]
        if through:
            self.close()
            raise SandboxUnavailableError(
                f"the sandbox {self.name} does not hold here: it lets through {', '.join(through)}"
            )


def _read(frame: bytes) -> dict[str, Any]:
    """What a child sent, or `_Over` where it is nothing that ours would."""
    try:
        said = json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise _Over("crashed", "it does not answer in the form that is asked for") from error
    if not isinstance(said, dict):
        raise _Over("crashed", "it does not answer in the form that is asked for")
    return said


_PROBE = """
import ctypes, os, socket, sys
def fork():
    if os.fork() == 0:
        os._exit(0)
def execute():
    if os.path.exists("/bin/true"):
        os.posix_spawn("/bin/true", ["true"], {{}})
def connect():
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)
def local_socket():
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
def read_files():
    open("/etc/passwd").read(1)
def write_files():
    open("/var/tmp/metier-was-here", "w")
def signal_parent():
    os.kill({parent}, 0)
def trace():
    if ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0:
        raise OSError
def hidden_memory():
    os.memfd_create("free")
through = []
for attempt in (fork, execute, connect, local_socket, read_files, write_files, signal_parent, trace, hidden_memory):
    try:
        attempt()
        through.append(attempt.__name__)
    except OSError:
        pass
print("tried", *through)
"""
