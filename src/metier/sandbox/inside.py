"""What runs inside a workspace's sandbox: it starts commands and tells how they ended.

One line of JSON comes in for each line that goes out. It imports the standard library
only, and what it starts can neither end it, for it is the first process of the sandbox, nor look
into it: it is not dumpable, so that its pipes in /proc are closed to others of its user.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Serve until the pipe closes."""
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: off
    lines, out = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    print(json.dumps({"ready": True}), file=out, flush=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    for line in lines:
        asked = json.loads(line)
        try:
            answer = {"write": _write, "read": _read, "run": _run}[asked["do"]](asked)
        except Exception as error:  # whatever it was asked with, it goes on
            full = isinstance(error, OSError) and error.errno == 28
            said = error.strerror if isinstance(error, OSError) and error.strerror else error
            answer = {"error": f"{type(error).__name__}: {said}", "full": full}
        print(json.dumps({**answer, "mark": asked["mark"]}), file=out, flush=True)


def _write(asked: dict[str, Any]) -> dict[str, Any]:
    """Write a file and no link; nothing else runs meanwhile that could put one there."""
    path = os.path.join("/work", asked["path"])
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    if (
        os.path.realpath(folder) != folder
        or os.path.islink(path)
        or (os.path.exists(path) and not os.path.isfile(path))
    ):
        raise OSError(f"{asked['path']} is or goes through a link, or is no file")
    with open(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "w", encoding="utf-8"
    ) as file:
        file.write(asked["text"])
    return {}


def _read(asked: dict[str, Any]) -> dict[str, Any]:
    """The files below /work as text: no links, nothing that is too long or no text."""
    found: dict[str, str] = {}
    left = asked["most"]
    for folder, names, files in os.walk("/work"):
        names[:] = sorted(name for name in names if name != "__pycache__")
        for name in sorted(files):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError, UnicodeError):  # one that cannot be read is none
                if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > left:
                    continue
                with open(path, encoding="utf-8") as file:
                    text = file.read()
                found[os.path.relpath(path, "/work")] = text
                left -= len(text.encode())
    return {"files": found}


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    def limit() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        memory = asked["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        resource.setrlimit(resource.RLIMIT_NPROC, (asked["processes"], asked["processes"]))

    began = time.monotonic()
    process = subprocess.Popen(
        asked["argv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/work",
        start_new_session=True,
        preexec_fn=limit,
    )
    how, said = _wait(process, asked, began + asked["seconds"])
    _kill_all()
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    with contextlib.suppress(ChildProcessError):
        while True:  # until nobody is left
            os.waitpid(-1, 0)
            _kill_all()
    return {"how": how, "code": code, "said": said.decode("utf-8", "replace"), "seconds": time.monotonic() - began}


def _kill_all() -> None:
    """End all that is here but this process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], asked: dict[str, Any], until: float) -> tuple[str, bytes]:
    """Feed and listen until the command has ended, and a moment longer to what it left behind."""
    said, given = bytearray(), asked["stdin"].encode()
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if given:
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        open_out = True
        while open_out:
            left = until - time.monotonic()
            if left <= 0:
                return "timeout", bytes(said)
            ended = process.poll() is not None  # then all that it wrote is in the pipe
            ready = selector.select(0 if ended else min(left, 0.05))
            for key, _ in ready:
                if key.fileobj is process.stdout:
                    part = os.read(process.stdout.fileno(), 65536)
                    said += part
                    open_out = bool(part)
                    if len(said) > asked["output"]:
                        return "output", bytes(said[: asked["output"]])
                    continue
                try:
                    given = given[os.write(process.stdin.fileno(), given) :]
                except BlockingIOError:
                    continue
                except OSError:  # it does not read
                    given = b""
                if not given:
                    selector.unregister(process.stdin)
                    process.stdin.close()
            if ended and not any(key.fileobj is process.stdout for key, _ in ready):
                break  # what it left behind may hold the pipe open
        while process.poll() is None:  # it has closed its output and goes on
            if time.monotonic() > until:
                return "timeout", bytes(said)
            time.sleep(0.005)
    return "ended", bytes(said)


if __name__ == "__main__":
    main()
    sys.exit(0)
