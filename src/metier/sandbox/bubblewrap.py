"""Bubblewrap: a sandbox of namespaces around one program, for what needs processes or files of its own.

Empty network, own processes, own /tmp and /work of bounded size in memory, nothing of the machine
but the system's programs and Python, read-only, no capabilities, an environment without
variables, and a seccomp filter against the parts of the kernel with a history of holes. As long
as a hole in the kernel is not found, all else is out of reach.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metier.sandbox.confine import workspace
from metier.sandbox.protocol import SandboxUnavailableError

__all__ = ["probe", "python", "spawn"]


def spawn(argv: Sequence[str], size: int, shown: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a sandbox of its own, with pipes for its input and its two outputs.

    `size` is that of /work, /tmp and /dev/shm in bytes; `shown` are files or folders of the machine, by the
    path that they have inside, read-only. Raises `SandboxUnavailableError`.
    """
    command = _command(size, shown)

    def start() -> subprocess.Popen[bytes]:
        filters = os.memfd_create("filters", 0)
        try:
            os.write(filters, workspace())
            os.lseek(filters, 0, os.SEEK_SET)
            return subprocess.Popen(
                [*command, "--seccomp", str(filters), *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[filters],
                env={},
            )
        finally:
            os.close(filters)

    try:
        return _spawner().submit(start).result()
    except OSError as error:
        raise SandboxUnavailableError(f"bubblewrap does not run here: {error}") from error


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    """A thread that lives as long as this process: a sandbox dies with its parent, which is a thread."""
    return ThreadPoolExecutor(1, thread_name_prefix="metier-sandbox")


def python() -> list[str]:
    """The Python that the sandbox has, without anything that was installed beside the standard library."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [str(Path(os.path.realpath(sys.base_prefix)) / "bin" / version), "-I", "-S"]


def _command(size: int, shown: Mapping[str, str]) -> list[str]:
    """The command line of the sandbox, up to the filter and the program."""
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxUnavailableError("bubblewrap is missing (Debian: apt-get install bubblewrap)")
    out = [program, "--unshare-all", "--unshare-user", "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv"]
    out += ["--setenv", "PATH", f"{Path(python()[0]).parent}:/usr/local/bin:/usr/bin:/bin"]
    out += ["--setenv", "HOME", "/work", "--setenv", "LANG", "C.UTF-8", "--setenv", "PYTHONDONTWRITEBYTECODE", "1"]
    out += ["--setenv", "PYTHONUNBUFFERED", "1"]
    out += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/") / name
        if path.is_symlink():
            out += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            out += ["--ro-bind", str(path), str(path)]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        if Path(name).exists():
            out += ["--ro-bind", name, name]
    base = os.path.realpath(sys.base_prefix)
    if not base.startswith("/usr"):
        out += ["--ro-bind", base, base]
    out += ["--proc", "/proc", "--dev", "/dev", "--size", str(size), "--tmpfs", "/tmp", "--size", str(size)]
    out += ["--tmpfs", "/work", "--size", str(size), "--tmpfs", "/dev/shm"]
    for inside, outside in shown.items():
        out += ["--ro-bind", outside, inside]
    out += ["--remount-ro", "/dev", "--remount-ro", "/", "--disable-userns", "--chdir", "/work"]
    return [*out, "--uid", "65534", "--gid", "65534", "--hostname", "workspace", "--cap-drop", "ALL"]


@functools.cache
def probe() -> None:
    """Try once what must not work. Raises `SandboxUnavailableError` where any of it does."""
    tries = {
        "the network": "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
        "writing outside": "open('/usr/metier-was-here', 'w')",
        "reading the machine's files": "open('/etc/passwd')",
        "other processes": f"import os; os.kill({os.getpid()}, 0)",
        "memory that nobody is charged for": "import os; os.memfd_create('free')",
    }
    for what, code in tries.items():
        process = spawn([*python(), "-c", f"print(1, flush=True)\n{code}\nprint(2)"], 1 << 20, {})
        try:
            said, why = process.communicate(timeout=20)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise SandboxUnavailableError("bubblewrap does not answer here") from error
        if not said.startswith(b"1"):
            raise SandboxUnavailableError(
                f"bubblewrap does not run here: {why.decode(errors='replace').strip()[-300:]}"
            )
        if b"2" in said:
            raise SandboxUnavailableError(f"bubblewrap does not hold here: it lets through {what}")
