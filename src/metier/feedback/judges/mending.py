"""Responses out of a file, mended under a constitution: a line in, one line out, in the same order.

A line in is one that `metier judge` scores. A line out: {"id", "status", "reason", "changed", "revised",
"critiques", "pair"?, "cost"}; `pair` is {"prompt", "chosen", "rejected"} as `metier train` reads it, where the
comparison prefers one of the two; "revised" is a demonstration only where that is the mended one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from metier.base.errors import ConfigError, DataError
from metier.feedback.judges.judge import Judge, PromptedJudge
from metier.feedback.judges.lines import Counts, item_of
from metier.feedback.judges.revision import Revision, revise
from metier.feedback.judges.rubric import find_constitution
from metier.feedback.lines import parsed_line, write_lines
from metier.records.types import Message, to_plain

__all__ = ["revise_file"]


def revise_file(
    judge: Judge,
    constitution: str,
    source: BinaryIO,
    out: Path | None,
    write: Callable[[str], object],
    *,
    jobs: int = 1,
) -> Counts:
    """Mend a file's responses. Raises `ConfigError` where the judge cannot write, `DataError` for a foreign `out`."""
    if not isinstance(judge, PromptedJudge):
        raise ConfigError(f"{judge.name!r} is a reward model and cannot write; revise with a model that is asked")
    if judge.manner.expected:
        raise ConfigError("a critic answers in words; leave expected out")
    law = find_constitution(constitution)
    who = f"{judge.version}-{law.hash}"
    counts = Counts()

    def work(raw: bytes, number: int) -> Mapping[str, Any]:
        name: Any = number
        try:
            given = parsed_line(raw, number)
            name = given.get("id", number)
            item = item_of(given, "score")
        except DataError as error:
            return {"id": name, "status": "unscored", "reason": str(error), "boundary": "input", "judge": who}
        return {"id": name, **_line(revise(judge, item, law)), "judge": who}

    def count(told: Mapping[str, Any]) -> None:
        if told.get("judge") != who:
            raise DataError(f"{out} was mended by another judge or under another constitution; name another -o")
        counts.add(told)

    counts.kept = write_lines(source, out, write, work, count, jobs=jobs, command="judge")
    return counts


def _line(done: Revision) -> dict[str, Any]:
    unread = all(one.mend is None for one in done.critiques.values())
    told: dict[str, Any] = {
        "status": "unscored" if unread or done.stopped else "scored",
        "reason": done.reason or (next(iter(done.critiques.values())).reason if unread else ""),
        "changed": done.changed,
        "better": done.better,
        "revised": _plain(done.revised),
        "critiques": {
            name: {"mend": one.mend, "text": one.text[-2000:], **({"reason": one.reason} if one.reason else {})}
            for name, one in done.critiques.items()
        },
        "cost": to_plain(done.cost),
    }
    if done.stopped is not None or unread:
        told["boundary"] = done.stopped or "judge"
    value = None if done.compared is None else done.compared.value
    if value in (0.0, 1.0):
        sides = [_plain(done.item.responses[0]), _plain(done.revised)]
        better = int(value == 1.0)
        told["pair"] = {"prompt": _plain(done.item.prompt), "chosen": sides[better], "rejected": sides[1 - better]}
    return told


def _plain(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [message.to_openai() for message in messages]
