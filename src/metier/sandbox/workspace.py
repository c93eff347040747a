"""A workspace: files and a shell for what a model wrote, apart from everything else.

Each workspace is a bubblewrap sandbox of its own that lives as long as its episode: empty
network, own processes, own /tmp and /work of bounded size in memory, nothing of the machine
but the system's programs and Python, read-only, no capabilities, and an environment without
variables. Inside, a small supervisor (`inside.py`) runs one command after the other and ends
whatever a command leaves behind; outside, memory and processes are counted while it runs,
and a workspace that takes too much is ended whole.

It refuses (`SandboxUnavailableError`) where bubblewrap is missing or does not hold; nothing is
ever run bare. Not kept out: what a hole in the kernel lets through, and how much processor time is
used within the seconds given.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metier.base.clock import monotonic
from metier.sandbox import bubblewrap
from metier.sandbox.protocol import SandboxUnavailableError

__all__ = ["Limits", "Outcome", "Workspace"]

Kind = Literal["ok", "failed", "timeout", "memory", "output", "disk", "crashed"]

_INSIDE = Path(__file__).with_name("inside.py")
_LOOK = 0.02  # seconds between two looks at what a sandbox holds
_LEAST_LEFT = 0.03  # of the machine's memory
_GRACE = 5.0  # seconds beyond its own for a command, before the sandbox is taken to be stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a command may use."""

    seconds: float = 10.0
    memory_mb: int = 512  # of all processes together
    disk_mb: int = 64  # of /work, /tmp and /dev/shm, each
    output_bytes: int = 100_000
    processes: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended."""

    kind: Kind
    code: int | None = None  # its exit status, negative for a signal; None where it was ended from outside
    said: str = ""  # standard output and error as they came
    seconds: float = 0.0


class Workspace:
    """Files under /work, and commands that act on them. Use it as a context manager, or `close` it."""

    def __init__(self, files: Mapping[str, str] | None = None, limits: Limits | None = None) -> None:
        """Raises `SandboxUnavailableError`."""
        bubblewrap.probe()
        self._limits, self._files = limits or Limits(), dict(files or {})
        self._start()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, argv: Sequence[str], *, stdin: str = "") -> Outcome:
        """Run a program. Where the workspace had to be ended, the next command finds it as it began."""
        if self._process.poll() is not None:
            self._start()
        limits = self._limits
        asked = {
            "do": "run",
            "argv": list(argv),
            "stdin": stdin,
            "seconds": limits.seconds,
            "memory": limits.memory_mb << 20,
            "output": limits.output_bytes,
            "processes": limits.processes + 1000,  # threads of this user; counted by the machine, and not for root
        }
        began = monotonic()
        answer, why = self._ask(asked, limits.seconds + _GRACE)
        if answer is None:
            return Outcome(kind=why, seconds=monotonic() - began)
        if "error" in answer:
            return Outcome(kind="disk" if answer["full"] else "failed", code=127, said=answer["error"])
        kind: Kind = answer["how"] if answer["how"] != "ended" else "ok" if answer["code"] == 0 else "failed"
        code = answer["code"] if answer["how"] == "ended" else None
        if kind == "failed" and ("No space left on device" in answer["said"] or "Errno 28" in answer["said"]):
            kind = "disk"
        elif kind == "failed" and ("MemoryError" in answer["said"] or "Cannot allocate memory" in answer["said"]):
            kind = "memory"
        return Outcome(kind=kind, code=code, said=answer["said"], seconds=answer["seconds"])

    def python(self, code: str, *, stdin: str = "") -> Outcome:
        """Run a Python program, with the standard library and what lies under /work."""
        return self.run([bubblewrap.python()[0], "-s", "-S", "-c", code], stdin=stdin)

    def write(self, path: str, text: str) -> Outcome:
        """Put a file under /work."""
        if self._process.poll() is not None:
            self._start()
        return self._put(path, text)

    def _put(self, path: str, text: str) -> Outcome:
        clean = os.path.normpath(path)
        if os.path.isabs(clean) or clean.startswith("..") or clean == ".":
            return Outcome(kind="failed", said=f"{path} is outside of the workspace")
        answer, why = self._ask({"do": "write", "path": clean, "text": text}, _GRACE)
        if answer is None:
            return Outcome(kind=why)
        if "error" in answer:
            return Outcome(kind="disk" if answer["full"] else "failed", said=answer["error"])
        return Outcome(kind="ok", code=0)

    def files(self, most_bytes: int = 200_000) -> dict[str, str]:
        """The text files under /work, as far as they go into so many bytes; those it began with, where it was ended.

        Raises `SandboxUnavailableError` where they cannot be read.
        """
        if self._process.poll() is not None:
            return dict(self._files)
        answer, why = self._ask({"do": "read", "most": most_bytes}, _GRACE)
        if answer is None or "error" in answer:
            raise SandboxUnavailableError(
                f"the workspace's files could not be read: {why if answer is None else answer}"
            )
        return dict(answer["files"])

    def close(self) -> None:
        """End it, with everything in it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _start(self) -> None:
        if hasattr(self, "_process"):
            self.close()
        self._process = bubblewrap.spawn(
            [*bubblewrap.python(), "/inside.py"], self._limits.disk_mb << 20, {"/inside.py": str(_INSIDE)}
        )
        ready, _ = self._answer(_GRACE)
        if ready is None:
            self.close()
            raise SandboxUnavailableError("the sandbox did not start")
        for path, text in self._files.items():
            put = self._put(path, text)
            if put.kind != "ok":
                self.close()
                raise SandboxUnavailableError(f"file {path!r} of the task cannot be written: {put.kind} {put.said}")

    def _ask(self, asked: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any] | None, Kind]:
        assert self._process.stdin is not None
        mark = secrets.token_hex(16)  # an answer must have it, so none can be written beforehand
        try:
            self._process.stdin.write(json.dumps({**asked, "mark": mark}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None, "crashed"
        answer, why = self._answer(seconds)
        if answer is not None and answer.get("mark") != mark:
            self._process.kill()
            self._process.wait()
            return None, "crashed"
        return answer, why

    def _answer(self, seconds: float) -> tuple[dict[str, Any] | None, Kind]:
        """The next line from inside, or why there is none; then the sandbox has been ended."""
        assert self._process.stdout is not None
        found: list[bytes] = []
        reader = threading.Thread(target=lambda out: found.append(out.readline()), args=(self._process.stdout,))
        reader.daemon = True
        reader.start()
        until, why = monotonic() + seconds, ""
        while reader.is_alive() and not why:
            reader.join(_LOOK)
            memory, processes = _held(self._process.pid)
            if memory > self._limits.memory_mb << 20 or processes > self._limits.processes + 3 or _machine_is_full():
                why = "memory"
            elif monotonic() > until:
                why = "timeout"
        if why:
            self._process.kill()
        reader.join()
        if not why and found and found[0]:
            with contextlib.suppress(ValueError):
                answer: dict[str, Any] = json.loads(found[0])
                return answer, "ok"
        self._process.kill()
        self._process.wait()
        return None, why or "crashed"  # type: ignore[return-value]


def _machine_is_full() -> bool:
    """Whether nearly no memory is left: what is held in files of memory counts for no process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, left = (int(told[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        return left < total * _LEAST_LEFT
    return False


def _held(root: int) -> tuple[int, int]:
    """Resident bytes and number of all processes below one, itself included."""
    page, total, count, waiting = os.sysconf("SC_PAGE_SIZE"), 0, 0, [root]
    while waiting and count < 10_000:
        pid = waiting.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
            count += 1
            for task in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return total, count
