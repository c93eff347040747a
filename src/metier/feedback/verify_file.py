"""Responses out of a file, scored: one JSON object a line in, one a line out, in the same order.

A line in: {"id", "verifier": {"name", …parameters}, "prompt"?, "response"}; prompt and response are text
or messages in OpenAI's chat format. Where a verifier looks at state, "start_state" and "final_state"
hold it. A line out: {"id", "score", "status", "reason", "parts"?, "seconds"}. A line that cannot be
used is unscored, with the reason; it never stops the others.

Every verdict is made in a worker process (`metier.feedback.verifiers.workers`): one that hangs is
ended at its deadline, one that dies is replaced and asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from metier.base.clock import monotonic
from metier.base.errors import DataError
from metier.feedback.lines import Told, count_reason, in_order, parsed_line, write_lines
from metier.feedback.verifiers.protocol import Attempt, unscored
from metier.feedback.verifiers.registry import get_verifier
from metier.feedback.verifiers.workers import Workers
from metier.records.types import EnvironmentSpec, Message, Task, VerifierSpec

__all__ = ["Counts", "Line", "read_line", "verify_file", "verify_lines"]

_UNTIMED = 60.0  # seconds for a verifier that names no deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line, read; `verifier` is None where it cannot be used, for the `reason`."""

    id: Any
    verifier: VerifierSpec | None = None
    task: Task | None = None
    attempt: Attempt | None = None
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class Counts:
    """What came of a file."""

    lines: int = 0
    passed: int = 0  # of score 1
    scored: int = 0
    unscored: int = 0
    kept: int = 0  # lines that an earlier call had done
    reasons: dict[str, int] = field(default_factory=dict)  # why lines are unscored


def read_line(raw: bytes, number: int) -> Line:
    """One line of a file; `number` is its id where it has none."""
    try:
        given = parsed_line(raw, number)
    except DataError as error:
        return Line(id=number, reason=str(error))
    name = given.get("id", number)
    spec = given.get("verifier")
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        return Line(id=name, reason='"verifier" is {"name": …, …parameters}')
    if "response" not in given:
        return Line(id=name, reason='"response" is missing')
    try:
        asked = _messages(given.get("prompt", ""), "user")
        said = _messages(given["response"], "assistant")
        states = [given.get(key) or {} for key in ("start_state", "final_state")]
        if not all(isinstance(state, dict) for state in states):
            raise DataError("a state is an object")
        get_verifier(spec["name"])
    except DataError as error:
        return Line(id=name, reason=str(error))
    params = {key: value for key, value in spec.items() if key != "name"}
    verifier = VerifierSpec(name=spec["name"], params=params)
    return Line(
        id=name,
        verifier=verifier,
        task=Task(
            family="file",
            kind="verify",
            messages=asked,
            verifiers=(verifier,),
            environment=EnvironmentSpec(name="file", version="1", state=states[0]) if states[0] else None,
        ),
        attempt=Attempt(messages=(*asked, *said), final_state=states[1]),
    )


def _messages(given: Any, role: str) -> tuple[Message, ...]:
    if isinstance(given, str):
        return (Message(role=role, content=given),) if given or role == "assistant" else ()  # type: ignore[arg-type]
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise DataError("prompt and response are text or lists of messages")
    return tuple(Message.from_openai(one) for one in given)


def verify_lines(lines: Iterable[bytes], *, jobs: int = 1, first: int = 1) -> Iterator[dict[str, Any]]:
    """What each line comes to, in their order, `jobs` at a time; no more are read than are nearly due."""
    workers = Workers(jobs)
    try:
        yield from in_order(lines, partial(_judged, workers=workers), jobs=jobs, first=first)
    finally:
        workers.close()


def _judged(raw: bytes, number: int, workers: Workers) -> dict[str, Any]:
    began = monotonic()
    line = read_line(raw, number)
    if line.verifier is None or line.task is None or line.attempt is None:
        verdict = unscored(line.reason)
    else:
        name, params = line.verifier.name, line.verifier.params
        verdict = workers.judge(name, line.task, line.attempt, params, untimed=_untimed(params))
    told: dict[str, Any] = {
        "id": line.id,
        "score": verdict.score,
        "status": verdict.status,
        "reason": verdict.reason,
        "seconds": round(monotonic() - began, 6),
    }
    return {**told, "parts": dict(verdict.parts)} if verdict.parts else told


def _untimed(params: Mapping[str, Any]) -> float:
    """Seconds for a verifier that names no deadline: more than code takes that is tried twice within its `timeout`."""
    timeout = params.get("timeout", 10.0)
    timed = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and 0 <= timeout < 1e6
    return _UNTIMED + 4 * float(timeout) if timed else _UNTIMED


def verify_file(source: BinaryIO, out: Path | None, write: Any, *, jobs: int = 1) -> Counts:
    """Score a file's lines into `out`, or by `write(text)`; lines that `out` has already are kept.

    Raises `DataError` where `out` is not of this file.
    """
    counts, workers = Counts(), Workers(jobs)
    try:
        work = partial(_judged, workers=workers)
        counts.kept = write_lines(source, out, write, work, partial(_count, counts), jobs=jobs, command="verify")
    finally:
        workers.close()
    return counts


def _count(counts: Counts, told: Told) -> None:
    counts.lines += 1
    if told["status"] == "scored":
        counts.scored += 1
        counts.passed += told["score"] == 1.0
        return
    counts.unscored += 1
    count_reason(counts.reasons, told)
