"""Giving up rights for good: Landlock, seccomp, resource limits and capabilities, by plain system calls.

Linux on x86-64 and arm64. Each function acts on the calling process and is passed on to what it
starts; none can be undone. Standard library only: the small processes of the sandbox import it.

`strict()` is the list of what a program that computes may ask of the kernel: memory, time, the files
that Landlock lets it read, threads of its own. All else is refused with EPERM: no process, no
program, no socket, no signal but to itself. `workspace()` is the shorter list of what a workspace in
bubblewrap may not: the parts of the kernel with a history of holes, and memory that no process is
charged for.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "ConfineError",
    "die_with_parent",
    "drop_privileges",
    "landlock",
    "limit",
    "restrict",
    "seccomp",
    "strict",
    "workspace",
]

_libc = ctypes.CDLL(None, use_errno=True)
_ARM = platform.machine() in ("aarch64", "arm64")
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "arm64": 0xC00000B7}

# Numbers on x86-64 and arm64; None where it does not exist.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "shmget": (29, 194),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "clone": (56, 220),
    "kill": (62, 129),
    "uname": (63, 160),
    "msgget": (68, 186),
    "fcntl": (72, 25),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "ptrace": (101, 117),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "mount": (165, 40),
    "umount2": (166, 39),
    "init_module": (175, 105),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "tgkill": (234, 131),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "unshare": (272, 97),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "dup3": (292, 24),
    "perf_event_open": (298, 241),
    "prlimit64": (302, 261),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "getcpu": (309, 168),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "getrandom": (318, 278),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "getdents64": (217, 61),
    "rseq": (334, 293),
    "io_uring_setup": (425, 425),
    "clone3": (435, 435),
    "faccessat2": (439, 439),
    "memfd_secret": (447, 447),
}
_WITH_CARE = ("ioctl", "clone", "kill", "fcntl", "tgkill", "clone3", "prlimit64")
_FORBIDDEN = (
    *("shmget", "msgget", "memfd_create", "memfd_secret", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("mount", "umount2", "unshare", "setns", "open_by_handle_at", "init_module", "finit_module", "kexec_load"),
    *("add_key", "request_key", "keyctl", "perf_event_open", "bpf", "userfaultfd", "io_uring_setup"),
)
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_CLONE_THREAD = 0x00010000
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


class ConfineError(OSError):
    """The kernel would not take a right away."""


def _call(what: str, *arguments: int | ctypes._Pointer | ctypes.Array | None) -> int:  # type: ignore[type-arg]
    done: int = _libc.syscall(*arguments)
    if done < 0:
        number = ctypes.get_errno()
        raise ConfineError(number, f"{what}: {os.strerror(number)}")
    return done


def _prctl(what: str, *arguments: int) -> None:
    if _libc.prctl(*(ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:5])):
        number = ctypes.get_errno()
        raise ConfineError(number, f"{what}: {os.strerror(number)}")


def _number(name: str) -> int | None:
    return _CALLS[name][_ARM]


def _step(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, k)


_LOAD, _EQUAL, _ANY, _MORE, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_LOW = {0: 16, 1: 24, 2: 32}  # where the low halves of a call's arguments lie


def _begin() -> list[bytes]:
    arch = _ARCH.get(platform.machine())
    if arch is None:
        raise ConfineError(f"no filter is written for {platform.machine()}")
    out = [_step(_LOAD, 4), _step(_EQUAL, arch, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    return [*out, _step(_MORE, 0x40000000, 0, 1), _step(_RETURN, _KILL)]  # the x32 calls


def _when(name: str, then: Sequence[bytes]) -> list[bytes]:
    number = _number(name)
    return [] if number is None else [_step(_EQUAL, number, 0, len(then)), *then]


def strict(pid: int) -> bytes:
    """The filter of a process that only computes; `pid` is its own, the one that it may signal."""
    out = _begin()
    for name in _CALLS:
        if name not in _WITH_CARE and name not in _FORBIDDEN:
            out += _when(name, [_step(_RETURN, _ALLOW)])
    yes, no = _step(_RETURN, _ALLOW), _step(_RETURN, _EPERM)
    out += _when("clone", [_step(_LOAD, _LOW[0]), _step(_ANY, _CLONE_THREAD, 0, 1), yes, no])
    out += _when("clone3", [_step(_RETURN, _ENOSYS)])  # its flags lie in memory; libc goes back to clone
    for name in ("kill", "tgkill"):
        out += _when(name, [_step(_LOAD, _LOW[0]), _step(_EQUAL, pid, 0, 1), yes, no])
    out += _when("prlimit64", [_step(_LOAD, _LOW[0]), _step(_EQUAL, 0, 0, 1), yes, no])
    for name, allowed in (("ioctl", _IOCTLS), ("fcntl", _FCNTLS)):
        tests = [step for one in allowed for step in (_step(_EQUAL, one, 0, 1), yes)]
        out += _when(name, [_step(_LOAD, _LOW[1]), *tests, no])
    return b"".join([*out, no])


def workspace() -> bytes:
    """The filter of a workspace: everything but what is named as forbidden."""
    out = _begin()
    for name in _FORBIDDEN:
        out += _when(name, [_step(_RETURN, _EPERM)])
    return b"".join([*out, _step(_RETURN, _ALLOW)])


def seccomp(filters: bytes) -> None:
    """Install a filter. Raises `ConfineError`."""
    _prctl("no_new_privs", 38, 1)
    kept = ctypes.create_string_buffer(filters, len(filters))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(filters) // 8, ctypes.addressof(kept)), 16)
    if _libc.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        number = ctypes.get_errno()
        raise ConfineError(number, f"seccomp: {os.strerror(number)}")


def landlock(readable: Iterable[str]) -> int:
    """A ruleset's descriptor: nothing of the file system but reading below these paths; no TCP, no signal outside.

    Raises `ConfineError` where the kernel has none (before Linux 5.13, or not switched on).
    """
    version = _call("landlock", 444, None, 0, 1)
    files = (1 << 13) - 1
    files |= (1 << 13) * (version >= 2) | (1 << 14) * (version >= 3) | (1 << 15) * (version >= 5)
    words = [files, *([3] if version >= 4 else []), *([3] if version >= 6 else [])]
    wanted = ctypes.create_string_buffer(struct.pack(f"{len(words)}Q", *words), 8 * len(words))
    rules = _call("landlock", 444, wanted, len(wanted), 0)
    for path in readable:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = 1 << 2 | (1 << 3 if os.path.isdir(path) else 0)  # read a file, list a folder
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place), 12)
        _call("landlock", 445, rules, 1, rule, 0)
        os.close(place)
    return rules


def restrict(rules: int) -> None:
    """Enter a ruleset that `landlock` made. Raises `ConfineError`."""
    _prctl("no_new_privs", 38, 1)
    _call("landlock", 446, rules, 0)


def die_with_parent() -> None:
    """Be killed when the parent is."""
    _prctl("parent's death", 1, 9)


def limit(limits: Mapping[str, int]) -> None:
    """Set resource limits, soft and hard: {"AS": bytes, …}."""
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def drop_privileges(needed: Iterable[str]) -> None:
    """No capability any more, an empty network where the kernel gives one, and nobody's user where that can be.

    As root the process becomes nobody if nobody can read `needed`; else it stays root without any
    capability, which owns root's files and no more: Landlock keeps it from them.
    """
    root = os.geteuid() == 0
    _libc.unshare(0x48000000 | (0 if root else 0x10000000))  # network and System V; where not, no socket passes anyway
    if root:
        for number in range(64):
            if _libc.prctl(24, number, 0, 0, 0):  # PR_CAPBSET_DROP, until there is none of that number
                break
        _libc.prctl(28, 0x2F, 0, 0, 0)  # no rights for being root, and locked
        if all(_world_reads(path) for path in needed):
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    none = ctypes.create_string_buffer(24)
    _call("capset", 91 if _ARM else 126, header, none)
    _prctl("no_new_privs", 38, 1)
    _prctl("dumpable", 4, 0)


def _world_reads(path: str) -> bool:
    """Whether anybody may read what is there, and all folders on the way."""
    path = os.path.realpath(path)
    try:
        if not os.stat(path).st_mode & 0o004:
            return False
        while path != "/":
            if os.path.isdir(path) and not os.stat(path).st_mode & 0o001:
                return False
            path = os.path.dirname(path)
    except OSError:
        return False
    return True
