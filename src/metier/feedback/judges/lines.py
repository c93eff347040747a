"""Items out of a file, judged: one JSON object a line in, one a line out, in the same order.

A line in: {"id", "prompt", "response"} to score, {"id", "prompt", "responses": [A, B]} to compare, or a pair as
`metier train` reads it, {"prompt", "chosen", "rejected"}; each text, or messages in OpenAI's chat format. A line
out: {"id", "value", "status", "reason", "evidence"?, "boundary"?, "cost"}. A line that cannot be used is unscored and
stops no other.

How a file that was stopped goes on is in `metier.feedback.lines`; what the store knows costs nothing then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from metier.base.errors import DataError
from metier.feedback.judges.judge import Item, Judge, Judgement, Mode
from metier.feedback.lines import Told, count_reason, parsed_line, write_lines
from metier.records.types import Message, to_plain

__all__ = ["Counts", "item_of", "judge_file", "judged", "messages_of"]


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
            count_reason(self.reasons, told)


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

    counts.kept = write_lines(source, out, write, signed, count, jobs=jobs, command="judge")
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
