"""The verifier "code": a program that the response holds does what tests ask, run in a sandbox.

Three kinds of tests, by what the parameters have:

    entry_point, cases   each {"args", "expected"}: the function returns plain values, which are compared
                         here; what is expected never enters the process that runs the code. A case may say
                         what the arguments must be `after` the call
    cases                each {"stdin", "stdout"}: a whole program, run once for each; lines are compared
                         without white space at their ends
    entry_point, test    asserts as in HumanEval (a function `check`, or asserts as they stand), run in a second
                         process that reaches the function only by calls with plain values

`checker` is Python source with a function `check`, for problems with several right answers; it gets the
fields of the case, `got`, and `left` where the case has `after`, by name, in a process of its own. The code is the
last fenced block that defines the entry point and is not called wrong (`metier.sandbox.programs`), or the
response as a whole; where it defines none it continues `prompt`. What `prompt` has besides (imports,
helpers) stands before it. All runs together have `timeout` seconds, and the checker as many.

Where a case expects a list, any sequence will do, and what can only be gone through once, as a generator: cases
are JSON, which cannot say which. Asserts get a generator as an iterator and a deque as a deque, so that they mean
what Python makes of them. A change that a function makes in its arguments is seen by asserts where it
returns None, by cases where they have `after`.

What it cannot know: whether the tests ask enough. A program that answers them by heart passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from metier.base.clock import monotonic
from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, unscored
from metier.records.types import Task
from metier.sandbox.choose import shared_sandbox
from metier.sandbox.plain import NotPlainError, encode, from_json, listed, same
from metier.sandbox.programs import code_of
from metier.sandbox.protocol import CHECKER_BROKEN, Limits, Result, Sandbox, SandboxUnavailableError

__all__ = ["Code"]

_LONGEST = 500_000  # characters of code
_SECONDS = 10.0  # for all runs together
_START = 60.0  # for a sandbox to be there
_SAID = {
    "timeout": "it took too long",
    "memory": "it took too much memory",
    "output": "it printed too much",
    "disk": "it wrote too much",
    "crashed": "it failed",
    "wrong": "a test failed",
}


class Code(Described):
    """Runs what was written; `sandbox` is this process's own where none is handed over."""

    name = "code"
    version = "2"
    parameters: ClassVar = {
        "entry_point": "the function's name; `Class.method` makes an object first",
        "test": "asserts, as in HumanEval",
        "cases": 'a list of {"args", "expected", "after"?} or of {"stdin", "stdout"}',
        "prompt": "the program's beginning that the response may continue",
        "checker": "source of `check(args, expected, got)`, with `after, left` too, or `check(stdin, stdout, got)`",
        "tolerance": "how far floats may be off, relative or absolute; default 0",
        "timeout": "seconds for all runs together; default 10",
        "memory_mb": "address space of a run; default 512",
    }

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox = sandbox

    def allowed(self, params: Mapping[str, Any]) -> float:
        """Two tries of its runs and its checker, and the start of a sandbox."""
        timeout = params.get("timeout", _SECONDS)
        timed = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and 0 <= timeout < 1e6
        return _START + 4 * float(timeout if timed else _SECONDS)

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where all tests pass, else 0; unscored where the tests say nothing or no sandbox holds."""
        wrong = _check(params)
        if wrong:
            return unscored(wrong)
        said = last_words(attempt, strip=False)
        if len(said) > _LONGEST:
            return Verdict(score=0.0, reason=f"it is longer than {_LONGEST} characters", parts={"tests": 0.0})
        code = code_of(said, str(params.get("entry_point", "")), str(params.get("prompt", "")))
        if not code.strip():
            return Verdict(score=0.0, reason="there is no code", parts={"tests": 0.0})
        limits = Limits(seconds=float(params.get("timeout", _SECONDS)), memory_mb=int(params.get("memory_mb", 512)))
        try:
            sandbox = self._sandbox or shared_sandbox()
        except SandboxUnavailableError as error:
            return unscored(f"no sandbox: {error}")
        verdict = self._run(sandbox, code, params, limits)
        # Where the machine was at fault, it has one more try.
        return self._run(sandbox, code, params, limits) if verdict.status == "unscored" else verdict

    def _run(self, sandbox: Sandbox, code: str, params: Mapping[str, Any], limits: Limits) -> Verdict:
        if "test" in params:
            result = sandbox.tests(
                code, params["entry_point"], params["test"], prompt=str(params.get("prompt", "")), limits=limits
            )
            return _verdict(result, [result.kind == "ok"])
        if "entry_point" in params:
            return _functions(sandbox, code, params, limits)
        return _programs(sandbox, code, params, limits)


def _check(params: Mapping[str, Any]) -> str:
    """What is wrong with the parameters, or nothing."""
    entry_point, test, cases = params.get("entry_point"), params.get("test"), params.get("cases")
    for name in ("timeout", "memory_mb", "tolerance"):
        value = params.get(name, 1)
        meant = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e6
        if not meant or (not value and name != "tolerance"):
            return f'the parameter "{name}" is no number that can be meant: {value!r}'
    if entry_point is not None and (not isinstance(entry_point, str) or not entry_point):
        return 'the parameter "entry_point" is no name'
    if (test is None) == (cases is None):
        return 'either "test" or "cases" is needed'
    if test is not None:
        if not isinstance(test, str) or not test.strip():
            return "the tests are empty"
        return "" if entry_point else '"test" needs "entry_point"'
    if not isinstance(cases, (list, tuple)) or not cases:
        return "there are no cases"
    fields = ("args", "expected") if entry_point else ("stdin", "stdout")
    for case in cases:
        if not isinstance(case, Mapping) or any(field not in case for field in fields):
            return f"a case lacks {' or '.join(fields)}"
        if entry_point and not isinstance(case["args"], (list, tuple)):
            return '"args" is a list'
        if entry_point and "after" in case and not isinstance(case["after"], (list, tuple)):
            return '"after" is a list of the arguments as they must be left'
        if entry_point and "after" in case and len(case["after"]) != len(case["args"]):
            return '"after" has not as many entries as "args"'
        if not entry_point and not all(isinstance(case[field], str) for field in fields):
            return '"stdin" and "stdout" are text'
    return ""


def _functions(sandbox: Sandbox, code: str, params: Mapping[str, Any], limits: Limits) -> Verdict:
    cases = params["cases"]
    try:
        arguments = [[_written(one) for one in case["args"]] for case in cases]
        expected = [_written(case["expected"]) for case in cases]
        after = [[_written(one) for one in case["after"]] if "after" in case else None for case in cases]
    except NotPlainError as error:
        return unscored(f"a case has {error}")
    result = sandbox.calls(code, params["entry_point"], arguments, limits, any(one is not None for one in after))
    if result.kind == "unavailable":
        return _verdict(result, [])
    answers = [None if answer.failed else answer.value for answer in result.answers]
    failed = next((answer.raised for answer in result.answers if answer.failed), "")
    given = [not answer.failed for answer in result.answers] + [False] * (len(cases) - len(answers))
    if "checker" in params:
        items = [
            {
                "args": args,
                "expected": want,
                "got": listed(got),
                **({} if left is None else {"after": left, "left": became}),
            }
            for args, want, left, got, became, there in zip(
                arguments, expected, after, answers, _left(result), given, strict=False
            )
            if there
        ]
        return _checked(sandbox, params["checker"], items, given, result, limits, failed)
    tolerance = float(params.get("tolerance", 0.0))
    right = [
        there and same(got, want, tolerance) and (left is None or same(became, left, tolerance))
        for there, got, want, became, left in zip(given, answers, expected, _left(result), after, strict=False)
    ]
    return _verdict(result, right + [False] * (len(cases) - len(right)), failed)


def _left(result: Result) -> list[Any]:
    """The arguments of each call as it left them; None where it sent nothing of the kind."""
    return [answer.after.get("args") if isinstance(answer.after, Mapping) else None for answer in result.answers]


def _programs(sandbox: Sandbox, code: str, params: Mapping[str, Any], limits: Limits) -> Verdict:
    cases, until = params["cases"], monotonic() + limits.seconds
    ended = Result(kind="ok")
    outputs: list[str | None] = []
    for case in cases:
        left = until - monotonic()
        if left <= 0:
            ended = Result(kind="timeout", said=f"it took longer than {limits.seconds:g} s")
            break
        result = sandbox.program(code, case["stdin"], replace(limits, seconds=left))
        if result.kind == "unavailable":
            return _verdict(result, [])
        outputs.append(result.said if result.kind == "ok" else None)
        if result.kind != "ok" and ended.kind == "ok":
            ended = result
        if result.kind == "timeout":
            break
    if "checker" in params:
        items = [
            {"stdin": case["stdin"], "stdout": case["stdout"], "got": got}
            for case, got in zip(cases, outputs, strict=False)
            if got is not None
        ]
        given = [got is not None for got in outputs] + [False] * (len(cases) - len(outputs))
        return _checked(sandbox, params["checker"], items, given, ended, limits, "")
    right = [
        got is not None and _printed(got, case["stdout"], float(params.get("tolerance", 0.0)))
        for got, case in zip(outputs, cases, strict=False)
    ]
    return _verdict(ended, right + [False] * (len(cases) - len(right)))


def _checked(
    sandbox: Sandbox,
    checker: str,
    items: Sequence[Mapping[str, Any]],
    given: Sequence[bool],
    result: Result,
    limits: Limits,
    failed: str,
) -> Verdict:
    """What the task's own checker says of those cases that were answered."""
    if not items:
        return _verdict(result, list(given), failed)
    judged = sandbox.checks(checker, items, limits)
    # One that fails on what the code gave, or never comes to an end with it, says no: else a policy could choose to
    # have no verdict. It has time of its own for the same reason.
    if judged.kind == "unavailable" or judged.said.startswith(CHECKER_BROKEN):
        return unscored(f"the checker gave no verdict: {judged.said or judged.kind}")
    if judged.kind != "ok":
        failed = failed or f"the checker came to no end with what it got: {judged.said or judged.kind}"
        return _verdict(result, [False] * len(given), failed)
    failed = failed or next((f"the checker: {answer.raised}" for answer in judged.answers if answer.failed), "")
    verdicts = iter(judged.answers)
    return _verdict(result, [there and next(verdicts).value is True for there in given], failed)


def _verdict(result: Result, right: Sequence[bool], failed: str = "") -> Verdict:
    if result.kind == "unavailable":
        return unscored(result.said)
    if all(right) and result.kind == "ok":
        return Verdict(score=1.0, reason="all tests pass", parts={"tests": 1.0})
    why = failed if result.kind == "ok" else f"{_SAID.get(result.kind, result.kind)}: {result.said}".rstrip(": ")
    missed = f"{len(right) - sum(right)} of {len(right)} tests fail" if len(right) > 1 else "the test fails"
    return Verdict(score=0.0, reason=f"{missed}; {why}".rstrip("; ")[:500], parts={"tests": sum(right) / len(right)})


def _written(value: Any) -> Any:
    """A value of a case: out of a JSON file, or of Python with tuples and sets."""
    return from_json(value) if isinstance(value, (list, dict)) else encode(value)


def _printed(got: str, wanted: str, tolerance: float) -> bool:
    """Whether the lines are those wanted; with a tolerance, numbers in them may be off by that."""
    ours, theirs = _lines(got), _lines(wanted)
    if ours == theirs or not tolerance or len(ours) != len(theirs):
        return ours == theirs
    words = [(a.split(), b.split()) for a, b in zip(ours, theirs, strict=True)]
    return all(len(a) == len(b) and all(map(_near, a, b, [tolerance] * len(a))) for a, b in words)


def _near(one: str, other: str, tolerance: float) -> bool:
    try:
        return one == other or math.isclose(float(one), float(other), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
