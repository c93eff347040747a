"""A queue that holds so many open items: what `metier ledger next` writes, for `metier label` to ask.

The file is filled up: items in it that are still open count, and only what is missing is drawn. So the same command
again adds nothing until people have answered, and then goes on where they are. What is in the file is not changed.

Beside it, `NAME.why.jsonl` has a row for each item: its propensity and arm, the parts of its value, and the
design: how many candidates there were, how many were drawn. The propensity is of the draw that asked it; what an
earlier draw had asked was no candidate of that draw.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.base.files import write_whole
from metier.feedback.people.queue import Kind, Queue, read_queue
from metier.feedback.selection.candidates import Asking, Found, find_candidates
from metier.feedback.selection.choose import Chosen, Per, choose, item_id
from metier.records.view import LedgerView

__all__ = ["Filled", "fill", "why_file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What a queue held, and what was added."""

    found: Found
    chosen: Chosen
    held: int  # items in the file before
    open: int  # of them, those that people have not answered
    added: int


def why_file(queue: Path) -> Path:
    """Where it stands why each item of a queue is asked."""
    return queue.with_name(f"{queue.stem}.why.jsonl")


def fill(
    ledger: LedgerView,
    asking: Asking,
    n: int,
    path: Path | None,
    *,
    kind: Kind = "pair",
    labels: Sequence[str] = (),
    per: Per = "item",
    seed: int = 0,
    uniform: float = 0.1,
    duel: bool = False,
) -> Filled:
    """Fill the queue in this file up to `n` open items; without a file, only choose.

    Raises `DataError` where the file asks something else, or is no queue of JSON lines.
    """
    before = _held(path, asking.criterion, kind)
    asked = {frozenset(item.episodes) for item in before.items} if before else set()
    found = find_candidates(ledger, asking)
    fresh = [one for one in found.candidates if frozenset(one.episodes) not in asked]
    still_open = len(found.candidates) - len(fresh)
    rest = Found(
        candidates=tuple(fresh),
        answered=found.answered,
        left_out={**found.left_out, **({"in the queue already": still_open} if still_open else {})},
        labelled=found.labelled,
        taken=found.taken,
        measured=found.measured,
    )
    wanted = max(0, n - still_open)
    chosen = choose(rest, asking, wanted, per=per, seed=seed, uniform=uniform, duel=duel, turn=len(asked))
    if path is not None and chosen.drawn:
        head: dict[str, Any] = {"kind": kind, "criterion": asking.criterion}
        if labels:
            head["labels"] = list(labels)
        _write(path, {"queue": path.stem, "version": "1", "question": head, "seed": seed}, asking, chosen, seed, before)
    added = len(chosen.drawn)
    return Filled(found=rest, chosen=chosen, held=len(asked), open=still_open, added=added)


def _held(path: Path | None, criterion: str, kind: Kind) -> Queue | None:
    if path is None:
        return None
    if path.suffix != ".jsonl":
        raise DataError(f"{path} must end in .jsonl: a queue is filled up line by line")
    if not path.exists():
        return None
    queue = read_queue(path)
    question = queue.question
    if (question.criterion, question.kind) != (criterion, kind):
        raise DataError(
            f"{path} asks for {question.criterion!r} by {question.kind}, not for {criterion!r} by {kind};"
            " name another file"
        )
    return queue


def _write(path: Path, head: dict[str, Any], asking: Asking, chosen: Chosen, seed: int, before: Queue | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.read_text(encoding="utf-8") if path.exists() else json.dumps(head, ensure_ascii=False) + "\n"
    there += "" if there.endswith("\n") else "\n"
    rows, whys = [], []
    for one in chosen.drawn:
        candidate = one.candidate
        name = item_id(asking.criterion, candidate.episodes)
        left = asking.people - candidate.known.people
        rows.append({"id": name, "episodes": candidate.episodes, "propensity": one.propensity, "overlap": left})
        drew = {"candidates": len(chosen.choices), "drawn": len(chosen.drawn), "seed": seed}
        whys.append({"item": name, "task": candidate.task_id, **one.why, **drew})
    # The reasons first: whatever stands in the queue can be explained, also after a crash.
    known = {item.id for item in before.items} if before else set()
    log = why_file(path)
    told = [line for line in log.read_text(encoding="utf-8").splitlines() if line] if log.exists() else []
    kept = [line + "\n" for line in told if json.loads(line)["item"] in known]
    write_whole(log, "".join(kept) + "".join(json.dumps(why) + "\n" for why in whys))
    write_whole(path, there + "".join(json.dumps(row) + "\n" for row in rows))
