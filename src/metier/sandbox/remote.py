"""A sandbox on another machine: a service with the API of SandboxFusion, by its URL.

Every request is one program with its standard input (`POST /run_code`). The program brings what
runs beside the code (`child.py`) along as text, so that the service needs nothing but Python. Tests with
asserts run in requests of their own, never beside the code that they test: the tests are run with the
answers so far until they make a new call, the code is asked for it, and so on.

How well the service isolates is its operator's business; nothing is probed from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from metier.base.clock import monotonic
from metier.sandbox.jobs import Jobs, answer, job, verdict
from metier.sandbox.protocol import Answer, Kind, Limits, Result, kind_of

__all__ = ["RemoteSandbox"]

_MODULES = ("plain", "confine", "child")
_GRACE = 10.0  # seconds beyond the program's own until the service must have answered
_MOST_CALLS = 200  # of one set of tests


class RemoteSandbox(Jobs):
    """Runs each program at `POST {url}/run_code`."""

    name = "remote"

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = httpx2.Client()

    def program(self, code: str, stdin: str = "", limits: Limits | None = None) -> Result:
        """See `Sandbox.program`."""
        limits = limits or Limits()
        return self._run(_program({"do": "program", "code": code}, limits), stdin, limits, monotonic())

    def tests(
        self, code: str, entry_point: str, test: str, *, prompt: str = "", limits: Limits | None = None
    ) -> Result:
        """See `Sandbox.tests`."""
        limits, began = limits or Limits(), monotonic()
        asserts = {"do": "tests", "test": test, "prompt": prompt, "entry_point": entry_point}
        asked: list[dict[str, Any]] = []
        answers: list[dict[str, Any]] = []
        while len(asked) < _MOST_CALLS:
            done = self._run(_program(asserts, limits), "".join(map(_frame, answers)), limits, began)
            said = _frames(done.said) if done.kind == "ok" else []
            if len(said) <= len(answers):
                return done if done.kind != "ok" else _result("crashed", "the tests gave no verdict", began)
            if "args" not in said[-1]:
                return _result(*verdict(said[-1]), began)
            asked.append(said[-1])
            gave = self._ask({"do": "serve", "code": code, "entry_point": entry_point}, asked, limits)
            if len(gave.answers) < len(asked):
                return gave
            answers = [_told(one) for one in gave.answers]
        return _result("unavailable", f"the tests make more than {_MOST_CALLS} calls", began)

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._client.close()

    def _ask(self, what: Mapping[str, Any], items: Sequence[Mapping[str, Any]], limits: Limits) -> Result:
        began = monotonic()
        done = self._run(_program(what, limits), "".join(map(_frame, items)), limits, began)
        if done.kind != "ok":
            return done
        first, *said = _frames(done.said) or [{}]
        if "ready" not in first:
            words = str(first.get("broken", "it ended without an answer"))
            return _result(kind_of(words), words, began)
        answers = tuple(answer(one) for one in said[: len(items)])
        ended = next((one.raised for one in answers if one.failed and kind_of(one.raised) != "crashed"), "")
        kind: Kind = kind_of(ended) if ended else "ok" if len(answers) == len(items) else "crashed"
        return Result(kind=kind, answers=answers, said=ended, seconds=monotonic() - began)

    def _run(self, code: str, stdin: str, limits: Limits, began: float) -> Result:
        asked = {
            "code": code,
            "language": "python",
            "stdin": stdin,
            "run_timeout": limits.seconds,
            "compile_timeout": limits.seconds,
            "memory_limit_MB": limits.memory_mb,
        }
        try:
            response = self._client.post(f"{self._url}/run_code", json=asked, timeout=limits.seconds + _GRACE)
            response.raise_for_status()
            told = response.json()
            ran = told["run_result"]
            if told["status"] == "SandboxError" or ran is None:
                return _result("unavailable", f"{self._url}: {told.get('message') or told['status']}", began)
            status, code_, out, noise = ran["status"], ran["return_code"], ran["stdout"] or "", ran["stderr"] or ""
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            return _result("unavailable", f"{self._url}: {type(error).__name__}: {error}"[:300], began)
        if status == "TimeLimitExceeded":
            return _result("timeout", f"it took longer than {limits.seconds:g} s", began)
        if len(noise) > limits.output_bytes or len(out) > 4 * limits.output_bytes:
            return _result("output", f"it printed more than {limits.output_bytes} bytes", began)
        if code_ != 0:
            return _result(kind_of(noise.strip()), noise.strip()[-300:] or f"it ended with status {code_}", began)
        return _result("ok", out, began)


def _result(kind: Kind, said: str, began: float) -> Result:
    return Result(kind=kind, said=said, seconds=monotonic() - began)


def _program(what: Mapping[str, Any], limits: Limits) -> str:
    """A program that makes the child's modules out of text and does the job; frames are its standard input."""
    here = Path(__file__).parent
    texts = {f"metier.sandbox.{name}": (here / f"{name}.py").read_text() for name in _MODULES}
    return f"""
import json, sys, types
for name in ("metier", "metier.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, text in {texts!r}.items():
    sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)
sys.modules["metier.sandbox.child"].run(lambda: None, json.loads({json.dumps(job(what, limits))!r}))
"""


def _told(one: Answer) -> dict[str, Any]:
    """An answer as a child sends it."""
    if one.failed:
        return {"raised": one.raised}
    return {"value": one.value, **({} if one.after is None else {"after": one.after})}


def _frame(what: Mapping[str, Any]) -> str:
    text = json.dumps(what)
    return f"{len(text)}\n{text}"


def _frames(text: str) -> list[dict[str, Any]]:
    """The frames that a child wrote, up to the first that is none."""
    found: list[dict[str, Any]] = []
    while text:
        head, _, rest = text.partition("\n")
        if not head.isdigit() or len(head) > 12:
            break
        try:
            said = json.loads(rest[: int(head)])
        except (ValueError, RecursionError):
            break
        if not isinstance(said, dict):
            break
        found.append(said)
        text = rest[int(head) :]
    return found
