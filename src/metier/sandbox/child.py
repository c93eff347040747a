"""What runs beside untrusted code, in its own process: it takes a job, gives up its rights and serves.

Frames (their length in digits, a new line, then JSON in ASCII) come in on descriptor 0 and go out on
the descriptor that was 1; what the code prints goes to 2, both of its outputs. The first frame is the
job, with its limits:

    serve    {"code", "entry_point"}: then {"args", "named", "after"} in a frame, an answer in a frame, until 0
             closes; an answer has the arguments as the call left them where `after` is "always", or is
             "none" and the call returned None
    tests    {"test", "prompt", "entry_point"}: calls go out, answers come in, then the verdict goes out
    check    {"checker"}: then keyword arguments in a frame, a verdict in a frame
    program  {"code"}: what follows on 0 is its standard input; 1 is its standard output

It trusts its parent and nothing else; the parent believes no more of it than that it sends values.
Standard library only: it also runs in containers and on other machines.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import io
import json
import os
import random
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from metier.sandbox.plain import NotPlainError, TooMuchError, decode, encode

__all__ = ["main", "run"]

# Those that would mean something else in the tests: a loop's end, or that an assert failed.
_NOT_ITS_OWN = (AssertionError, StopIteration, StopAsyncIteration)
_LONGEST = 200  # characters of an exception's words that are passed on


def main() -> NoReturn:
    """One job in a process of its own, outside of a zygote."""
    from metier.sandbox.confine import ConfineError, drop_privileges, seccomp, strict

    def enter() -> None:
        try:
            drop_privileges(())
            seccomp(strict(os.getpid()))
        except ConfineError:  # a container that allows no filter has its own; the probe says whether it holds
            pass

    run(enter)


def run(enter: Callable[[], None], job: dict[str, Any] | None = None) -> NoReturn:
    """Take the job, where it is not given, call `enter` to give up rights, do it, end."""
    out, status = 1, 1
    try:
        job = json.loads(_receive() or b"{}") if job is None else job
        if job["do"] != "program":
            out = os.dup(1)
            os.dup2(2, 1)
        _limit(job["limits"])
        random.seed(0)  # the same code gives the same
        for name in ("exit", "quit"):  # which `site` would bring
            setattr(builtins, name, sys.exit)
        enter()
        for name in [name for name in sys.modules if name == "metier" or name.startswith("metier.")]:
            del sys.modules[name]
        status = {"serve": _serve, "tests": _tests, "check": _check, "program": _program}[job.pop("do")](job, out)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            if out != 1:
                _send(out, {"broken": _words(error)})
    finally:
        os._exit(status)


def _limit(limits: dict[str, Any]) -> None:
    from metier.sandbox.confine import limit

    seconds = int(limits["seconds"]) + 2
    limit({"CORE": 0, "FSIZE": 0, "NOFILE": 64, "CPU": seconds, "MEMLOCK": 0, "AS": int(limits["memory"])})


def _receive() -> bytes | None:
    """The next frame, or None at the end."""
    head = b""
    while not head.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return None
        head += byte
    return _exactly(int(head))


def _exactly(size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(out: int, what: Any) -> None:
    data = json.dumps(what).encode()
    data = b"%d\n%b" % (len(data), data)
    while data:
        data = data[os.write(out, data) :]


def _words(error: BaseException, *, known: bool = False) -> str:
    """What was raised, in few words; never fails, though `__str__` may be anybody's.

    With `known`, an exception of the code's own is named by the built-in one that it comes from.
    """
    kinds = type.__dict__["__mro__"].__get__(type(error))
    kind = next((one for one in kinds if one.__module__ == "builtins"), kinds[0]) if known else kinds[0]
    name = type.__dict__["__name__"].__get__(kind)
    try:
        said = str(error)
    except BaseException:
        said = ""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        name = f"OSError[{error.errno}]"
    return f"{name}: {said[:_LONGEST]}".rstrip(": ")


def _module(name: str, code: str) -> dict[str, Any]:
    """Run code as a module of that name; its names. The module is known, for dataclasses look it up."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _serve(job: dict[str, Any], out: int) -> int:
    try:
        function = _find(_module("candidate", job["code"]), job["entry_point"])
    except BaseException as error:
        _send(out, {"broken": _words(error)})
        return 0
    _send(out, {"ready": True})
    while (frame := _receive()) is not None:
        try:
            asked = json.loads(frame)
            arguments = decode(asked["args"])
            named = {name: decode(value) for name, value in asked.get("named", {}).items()}
            returned = function(*arguments, **named)
            _send(out, {"value": encode(returned, iterators=True), **_left(asked, returned, arguments, named)})
        except NotPlainError as error:
            _send(out, {"raised": f"it returned {error}"})
        except _LeftError as error:
            _send(out, {"raised": f"it left {error} in its arguments"})
        except BaseException as error:
            _send(out, {"raised": _words(error, known=True)})
    return 0


class _LeftError(Exception):
    """An argument is no plain value any more."""


def _left(asked: dict[str, Any], returned: Any, arguments: list[Any], named: dict[str, Any]) -> dict[str, Any]:
    """What the arguments have become, where that is asked for."""
    after = asked.get("after")
    if after is None or (after == "none" and returned is not None):
        return {}
    try:
        left = {name: encode(one, iterators=True) for name, one in named.items()}
        return {"after": {"args": encode(arguments, iterators=True), "named": left}}
    except NotPlainError as error:
        raise _LeftError(str(error)) from error


def _find(names: dict[str, Any], entry_point: str) -> Callable[..., Any]:
    """The function of that name; a class on the way is instantiated, as in `Solution.solve`."""
    first, *rest = entry_point.split(".")
    if first not in names:
        raise NameError(f"it does not define {first}")
    found = names[first]
    for name in rest:
        found = getattr(found() if isinstance(found, type) else found, name)
    if not callable(found):
        raise TypeError(f"{entry_point} is no function")
    return found  # type: ignore[no-any-return]


class _Stop(BaseException):
    """The other side has gone."""


def _tests(job: dict[str, Any], out: int) -> int:
    made = 0

    def candidate(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        try:
            written: dict[str, Any] = {
                "args": [encode(one, iterators=True) for one in arguments],
                "named": {key: encode(value, iterators=True) for key, value in named.items()},
                "after": "none",
            }
        except TooMuchError as error:
            if made > 1:  # it grew from what the code gave back, which must not choose to have no verdict
                raise TypeError(f"it is called with {error}") from error
            _send(out, {"broken": f"the tests call with {error}"})
            raise _Stop from error
        except NotPlainError as error:
            _send(out, {"broken": f"the tests call with {error}"})
            raise _Stop from error
        _send(out, written)
        frame = _receive()
        if frame is None:
            raise _Stop
        answer = json.loads(frame)
        if "raised" in answer:
            name, _, said = str(answer["raised"]).partition(": ")
            kind = getattr(builtins, name, None)
            known = isinstance(kind, type) and issubclass(kind, Exception) and kind not in _NOT_ITS_OWN
            raise (kind if known else RuntimeError)(said if known else f"{name}: {said}")  # type: ignore[misc]
        value = decode(answer["value"])
        if value is None and "after" in answer:
            # What it did to its arguments is seen where it gives back nothing, as `list.sort` does. Else it could
            # empty a list that its value is compared with.
            after = answer["after"]
            for one, sent, left in zip(arguments, written["args"], after["args"], strict=True):
                if left != sent:
                    _become(one, decode(left))
            for key, left in after["named"].items():
                if left != written["named"][key]:
                    _become(named[key], decode(left))
        return value

    names: dict[str, Any] = {"__name__": "tests"}
    try:
        tree = ast.parse(job["test"])
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
            raise ValueError("the tests assert nothing")
        with contextlib.suppress(SyntaxError):  # a prompt that ends in the middle of a function
            exec(compile(job["prompt"], "<prompt>", "exec", dont_inherit=True), names)
        names[job["entry_point"]] = candidate
        code = compile(tree, "<test>", "exec", dont_inherit=True)
    except BaseException as error:
        _send(out, {"broken": f"the tests do not run: {_words(error)}"})
        return 0
    try:
        exec(code, names)
        if callable(names.get("check")):
            names["check"](candidate)
    except _Stop:
        return 0
    except BaseException as error:
        _send(out, {"failed": _words(error), "calls": made})
        return 0
    _send(out, {"passed": True, "calls": made})
    return 0


def _become(one: Any, other: Any) -> Any:
    """Give what can be changed the content of another value of its kind; it, or the other where it cannot."""
    if isinstance(one, list) and isinstance(other, list):
        one[:] = [_become(*pair) for pair in zip(one, other, strict=False)] + other[len(one) :]
    elif isinstance(one, dict) and isinstance(other, dict):
        merged = {key: _become(one[key], value) if key in one else value for key, value in other.items()}
        one.clear()
        one.update(merged)
    elif isinstance(one, set) and isinstance(other, set):
        one.clear()
        one.update(other)
    elif isinstance(one, deque) and isinstance(other, deque):
        one.clear()
        one.extend(other)
    elif isinstance(one, bytearray) and isinstance(other, bytes):
        one[:] = other
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        for pair in zip(one, other, strict=True):
            _become(*pair)
    else:
        return other
    return one


def _check(job: dict[str, Any], out: int) -> int:
    try:
        check = _find(_module("checker", job["checker"]), "check")
    except BaseException as error:
        _send(out, {"broken": f"the checker does not run: {_words(error)}"})
        return 0
    _send(out, {"ready": True})
    while (frame := _receive()) is not None:
        try:
            item = {name: decode(value) for name, value in json.loads(frame).items()}
            _send(out, {"value": bool(check(**item))})
        except BaseException as error:
            _send(out, {"raised": _words(error)})
    return 0


def _program(job: dict[str, Any], out: int) -> int:
    """Run it as `__main__`; its status."""
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    status = 0
    try:
        _module("__main__", job["code"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:
        status = 1
        os.write(2, _words(error).encode("utf-8", "replace"))
    for end in (getattr(threading, "_shutdown", int), getattr(atexit, "_run_exitfuncs", int), sys.stdout.flush):
        with contextlib.suppress(BaseException):  # as an interpreter ends: threads, what was registered, output
            end()
    return status & 255


if __name__ == "__main__":
    main()
