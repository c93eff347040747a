"""The process that the sandbox's children are forked from: small, without torch, and with nothing to tell.

It holds the modules that programs use most, so that a child is there in a millisecond. On its socket
it is handed descriptors: a child's 0, 1 and 2, and a leash. It forks, and says on the leash how the
child ended; where the leash is let go, it kills the child. It reads nothing of what a child is given,
so that no child can find what another was asked. When its own socket closes, or it is killed,
all children end with it. Standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import sysconfig

from metier.sandbox import child
from metier.sandbox.confine import ConfineError, die_with_parent, drop_privileges, landlock, restrict, seccomp, strict

__all__ = ["main"]

_AT_HAND = (
    *("array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions"),
    *("functools", "hashlib", "heapq", "inspect", "itertools", "json", "math", "operator", "queue", "random", "re"),
    *("statistics", "string", "textwrap", "threading", "traceback", "typing", "unicodedata"),
)
_READABLE = ("/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")


def main(number: int) -> None:
    """Serve on the socket of that number until it closes."""
    for name in _AT_HAND:
        importlib.import_module(name)
    paths = sysconfig.get_paths()
    library = [paths["stdlib"], paths["platstdlib"]]
    with socket.socket(fileno=number) as asked:
        try:
            rules = landlock([*library, *_READABLE])
            drop_privileges([*library, os.path.join(library[0], "os.py")])
        except ConfineError as error:
            asked.send(str(error).encode())
            return
        sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)]
        gc.collect()
        gc.disable()
        gc.freeze()
        asked.send(b"ready")
        _serve(asked, rules)


def _serve(asked: socket.socket, rules: int) -> None:
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    leashes: dict[int, tuple[int, socket.socket]] = {}  # by descriptor: the child's pid and its leash
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            if number == wake:
                os.read(wake, 4096)
                _reap(leashes, poll)
            elif number in leashes:  # let go: nothing is ever sent on it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(leashes[number][0], signal.SIGKILL)
                poll.unregister(number)
            elif number == asked.fileno():
                data, handed, *_ = socket.recv_fds(asked, 16, 4)
                if not data:
                    return
                *streams, leash = handed
                pid = os.fork()
                if pid == 0:
                    _become(streams, rules)
                for one in streams:
                    os.close(one)
                kept = socket.socket(fileno=leash)
                leashes[leash] = (pid, kept)
                poll.register(leash, select.POLLIN)


def _reap(leashes: dict[int, tuple[int, socket.socket]], poll: select.poll) -> None:
    while leashes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        for number, (whose, leash) in list(leashes.items()):
            if whose == pid:
                with contextlib.suppress(OSError):
                    leash.send(str(os.waitstatus_to_exitcode(status)).encode())
                with contextlib.suppress(KeyError):
                    poll.unregister(number)
                leash.close()
                del leashes[number]


def _become(streams: list[int], rules: int) -> None:
    """Be the child."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    kept = os.dup2(rules, 3)
    os.closerange(4, 1024)

    def enter() -> None:
        restrict(kept)
        os.close(kept)
        seccomp(strict(os.getpid()))

    child.run(enter)
