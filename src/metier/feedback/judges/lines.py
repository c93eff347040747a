"""Items out of a file, judged: one JSON object a line in, one a line out, in the same order.

A line in: {"id", "prompt", "response"} to score, {"id", "prompt", "responses": [A, B]} to compare, or a pair as
`metier train` reads it, {"prompt", "chosen", "rejected"}; each text, or messages in OpenAI's chat format. A line
out: {"id", "value", "status", "reason", "evidence"?, "boundary"?, "cost"}. A line that cannot be used is unscored and
stops no other.

A file that was stopped goes on where it was. Lines that were unscored because the endpoint failed or the budget
was spent are judged again, with all after them, so that order is kept; what the store knows costs nothing then.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from metier.base.errors import DataError
from metier.feedback.judges.judge import Item, Judge, Judgement, Mode
from metier.records.types import Message, to_plain

__all__ = ["Counts", "in_order", "item_of", "judge_file", "judged", "messages_of", "parsed_line", "write_lines"]

_AHEAD = 4  # lines that are read beyond those in work, for each of them
_AGAIN = frozenset({"network", "engine", "budget"})  # what another call may mend
R = TypeVar("R")
Told = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Counts:
    """What came of a file."""

    lines: int = 0
    unscored: int = 0
    kept: int = 0  # lines that an earlier call had done
    flips: int = 0  # comparisons whose two orders contradict each other
    tokens: int = 0
    usd: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)  # why lines are unscored

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def add(self, told: Told) -> None:
        """Count one line out."""
        self.lines += 1
        cost = told.get("cost") or {}
        self.tokens += int(cost.get("prompt_tokens", 0)) + int(cost.get("completion_tokens", 0))
        self.usd += float(cost.get("usd", 0.0))
        self.flips += bool((told.get("evidence") or {}).get("flip"))
        if told["status"] == "unscored":
            self.unscored += 1
            reason = str(told["reason"])[:100]
            if reason in self.reasons or len(self.reasons) < 20:
                self.reasons[reason] = self.reasons.get(reason, 0) + 1


def parsed_line(raw: bytes, number: int) -> dict[str, Any]:
    """The object on a line. Raises `DataError` naming the line."""
    try:
        given = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number} is no JSON: {str(error)[:100]}") from error
    if not isinstance(given, dict):
        raise DataError(f"line {number} is no JSON object")
    return given


def messages_of(given: Any, role: str) -> tuple[Message, ...]:
    """Text, or messages in OpenAI's format. Raises `DataError`."""
    if isinstance(given, str):
        return (Message(role=role, content=given),)  # type: ignore[arg-type]
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise DataError("prompts and responses are text or lists of messages")
    return tuple(Message.from_openai(one) for one in given)


def item_of(given: Mapping[str, Any], mode: Mode) -> Item:
    """The item of a line. Raises `DataError` saying what it lacks."""
    if "prompt" not in given:
        raise DataError('"prompt" is missing')
    if mode == "score":
        if "response" not in given:
            raise DataError('"response" is missing; to judge pairs, compare')
        responses = [given["response"]]
    elif "chosen" in given and "rejected" in given:
        responses = [given["chosen"], given["rejected"]]
    else:
        responses = given.get("responses") or []
        if not isinstance(responses, list) or len(responses) != 2:
            raise DataError('"responses" is a list of two')
    return Item(
        prompt=messages_of(given["prompt"], "user"),
        responses=tuple(messages_of(response, "assistant") for response in responses),
    )


def judged(judge: Judge, mode: Mode) -> Callable[[bytes, int], dict[str, Any]]:
    """What makes a line out of a line."""

    def work(raw: bytes, number: int) -> dict[str, Any]:
        name: Any = number
        try:
            given = parsed_line(raw, number)
            name = given.get("id", number)
            item = item_of(given, mode)
        except DataError as error:
            kind = "score" if mode == "score" else "preference"
            return _out(name, Judgement(kind=kind, value=None, reason=str(error), boundary="input"))  # type: ignore[arg-type]
        return _out(name, judge.score(item) if mode == "score" else judge.compare(item))

    return work


def in_order(lines: Iterable[bytes], work: Callable[[bytes, int], R], *, jobs: int = 1, first: int = 1) -> Iterator[R]:
    """What each line comes to, in their order, `jobs` at a time; no more are read than are nearly due."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for number, raw in enumerate(lines, first):
                waiting.append(pool.submit(work, raw, number))
                while len(waiting) > jobs * _AHEAD or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def write_lines(
    source: BinaryIO,
    out: Path | None,
    write: Callable[[str], object],
    work: Callable[[bytes, int], Told],
    count: Callable[[Told], None],
    *,
    jobs: int = 1,
) -> int:
    """A line in `out`, or by `write(text)`, for each of a file's; returns how many `out` had already.

    Raises `DataError` where `out` is not of this file.
    """
    lines = (raw for raw in source if raw.strip())
    if out is None:
        for told in in_order(lines, work, jobs=jobs):
            count(told)
            write(json.dumps(told) + "\n")
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = end = 0
    for told, reached in _settled(out):
        raw = next(lines, None)
        if raw is None or _id_of(raw, kept + 1) != told.get("id"):
            raise DataError(f"{out} has lines of another file, from line {kept + 1} on; remove it, or name another -o")
        count(told)
        kept, end = kept + 1, reached
    with out.open("ab") as file:
        file.truncate(end)
        for fresh in in_order(lines, work, jobs=jobs, first=kept + 1):
            count(fresh)
            file.write(json.dumps(fresh).encode() + b"\n")
            file.flush()
    return kept


def judge_file(
    judge: Judge, mode: Mode, source: BinaryIO, out: Path | None, write: Callable[[str], object], *, jobs: int = 1
) -> Counts:
    """Judge a file's items. Raises `DataError` where `out` is of another file or another judge."""
    counts = Counts()

    def count(told: Told) -> None:
        if told.get("judge") != judge.version:
            raise DataError(
                f"{out} holds verdicts of another judge ({told.get('judge')}, this one is {judge.version}): weights, "
                "rubric and settings make a judge; remove it, or name another -o"
            )
        counts.add(told)

    work = judged(judge, mode)

    def signed(raw: bytes, number: int) -> Told:
        return {**work(raw, number), "judge": judge.version}

    counts.kept = write_lines(source, out, write, signed, count, jobs=jobs)
    return counts


def _out(name: Any, judgement: Judgement) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": name,
        "value": judgement.value,
        "status": judgement.status,
        "reason": judgement.reason,
        "cost": to_plain(judgement.cost),
    }
    if judgement.boundary is not None:
        told["boundary"] = judgement.boundary
    return {**told, "evidence": to_plain(judgement.evidence)} if judgement.evidence else told


def _id_of(raw: bytes, number: int) -> Any:
    try:
        return parsed_line(raw, number).get("id", number)
    except DataError:
        return number


def _settled(out: Path) -> Iterator[tuple[Told, int]]:
    """The whole lines up to the first that another call may mend, and where each ends."""
    if not out.exists():
        return
    end = 0
    with out.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            try:
                told = json.loads(raw)
            except ValueError as error:
                raise DataError(f"{out} is no output of metier judge: {error}; name another -o") from error
            if not isinstance(told, dict) or "status" not in told:
                raise DataError(f"{out} is no output of metier judge; name another -o")
            if told["status"] == "unscored" and told.get("boundary") in _AGAIN:
                return
            end += len(raw)
            yield told, end
