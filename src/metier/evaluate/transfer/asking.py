"""Who looks at what: a stratified sample of a pool as a labelling queue, and the answers taken back.

Responses are parted by reward: the highest twentieth, the rest of the high ones, and all others. Half of the sample
is drawn from the first, three tenths from the second, two from the third, at random within each, so the chance of every
item is known and stands with it. No item shows its reward: who is asked must not know what it should be.

The queue is one of `metier label`. Beside it lie `NAME.why.jsonl` (which sample each item is, its stratum and
propensity) and `NAME.judge.jsonl` (the same responses as `metier judge` reads them). Answers are feedback of the ledger
under the queue's criterion, or lines of a judge with a value from 0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metier.base.errors import DataError
from metier.base.files import write_whole
from metier.base.ids import derive_id
from metier.base.seeds import rng_for
from metier.evaluate.transfer.audit import Answer
from metier.evaluate.transfer.pool import Pool, Sample
from metier.feedback.selection.filling import why_file
from metier.records.traces.calls import Skipped
from metier.records.traces.files import read_rows
from metier.records.types import Feedback
from metier.records.view import LedgerView

__all__ = [
    "CRITERION",
    "Drawn",
    "answers_of_judge",
    "answers_of_ledger",
    "draw",
    "judge_file",
    "reward_of",
    "write_queue",
]

CRITERION = "gold"
RIGHT, WRONG = "right", "wrong"
_STRATA = (("highest", 0.05, 0.5), ("high", 0.2, 0.3), ("other", 1.0, 0.2))  # up to which share, part of the sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One sample that somebody is to look at."""

    sample: Sample
    stratum: str
    propensity: float
    of: int  # samples in its stratum
    drawn: int  # of them, drawn


def judge_file(queue: Path) -> Path:
    """The same items as `metier judge` reads them."""
    return queue.with_name(f"{queue.stem}.judge.jsonl")


def draw(pool: Pool, reward: str, n: int, *, seed: int) -> tuple[Drawn, ...]:
    """About `n` samples that have this reward and a prompt that can be shown; all of a stratum that is too small.

    Raises `DataError` where there is none.
    """
    fit = [(value, one) for one in pool.samples if (value := one.rewards.get(reward)) is not None and one.asked]
    if not fit:
        raise DataError(
            f"no response with the reward {reward!r} has a prompt that could be shown; give prompts as text or messages"
        )
    values = np.array([value for value, _ in fit])
    strata: dict[str, list[Sample]] = {}
    bounds = [(name, np.quantile(values, 1 - upto, method="higher")) for name, upto, _ in _STRATA]
    for value, one in fit:
        strata.setdefault(next(name for name, bound in bounds if value >= bound), []).append(one)
    parts = {name: part for name, _, part in _STRATA if name in strata}
    out: list[Drawn] = []
    left, share = n, sum(parts.values())
    for name, part in parts.items():  # what one stratum lacks goes to the next
        members = strata[name]
        wanted = min(len(members), max(1, round(left * part / share)))
        left, share = left - wanted, share - part
        rng = rng_for(seed, "transfer", reward, name)
        chosen = rng.sample(members, wanted)
        chance = wanted / len(members)
        out += [Drawn(sample=one, stratum=name, propensity=chance, of=len(members), drawn=wanted) for one in chosen]
    rng_for(seed, "transfer", reward, "order").shuffle(out)
    return tuple(out)


def write_queue(path: Path, drawn: Sequence[Drawn], reward: str, *, seed: int) -> None:
    """Write the queue, why each item is in it, and the items for a judge. Raises `DataError` for another suffix."""
    if path.suffix != ".jsonl":
        raise DataError(f"{path} must end in .jsonl: it is a queue, and has other files beside it")
    head = {
        "queue": path.stem,
        "version": "1",
        "question": {
            "kind": "labels",
            "criterion": CRITERION,
            "ask": "Was all that was asked done, and done rightly?",
            "labels": [RIGHT, WRONG],
        },
        "instructions": "Skip what you cannot tell.",
        "seed": seed,
    }
    queue, whys, lines = [head], [], []
    for one in drawn:
        item, sample = derive_id("item", "transfer", reward, one.sample.id), one.sample
        asked, said = ([m.to_openai() for m in some] for some in (sample.asked, sample.said))
        about: dict[str, Any] = {"messages": asked, "responses": [said]}
        if sample.episode is not None:
            about = {"episodes": [sample.episode]}
        queue.append({"id": item, **about, "propensity": one.propensity})
        whys.append(
            {
                "item": item,
                "sample": sample.id,
                "reward": reward,
                "stratum": one.stratum,
                "propensity": one.propensity,
                "candidates": one.of,
                "drawn": one.drawn,
                "seed": seed,
            }
        )
        lines.append({"id": item, "prompt": asked, "response": said})
    # The reasons first: whatever stands in the queue can be explained, also after a crash.
    for where, rows in ((why_file(path), whys), (judge_file(path), lines), (path, queue)):
        write_whole(where, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def reward_of(queue: Path) -> str:
    """The reward that a queue's items were drawn by."""
    whys = _whys(queue)
    return str(next(iter(whys.values()))["reward"]) if whys else ""


def answers_of_ledger(ledger: LedgerView, queue: Path) -> list[Answer]:
    """What people said of the items of a queue; where several did, the mean. Who skipped said nothing."""
    whys = _whys(queue)
    said: dict[str, list[Feedback]] = {}
    for row in ledger.iter_feedback(criterion=CRITERION, kind="label"):
        item = row.evidence.get("item")
        # One id in two queues would be two questions: a row is of the queue that asked it.
        if item in whys and row.status == "scored" and row.abstention is None and _of_queue(row, queue):
            said.setdefault(str(item), []).append(row)
    return _answers(whys, {item: [float(row.value == RIGHT) for row in rows] for item, rows in said.items()})


def answers_of_judge(path: Path, queue: Path, skipped: list[Skipped]) -> list[Answer]:
    """What a judge said, as `metier judge` writes it; right from a half on.

    A line of no use goes to `skipped`; a judgement that failed is told in its answer. Raises `DataError` where no line
    is of use, and for lines of another file.
    """
    whys = _whys(queue)
    values: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for row in read_rows(path):
        if isinstance(row, Skipped):
            raise DataError(f"{path}: {row.place}: {row.why}")
        place, raw = row
        if raw.get("id") not in whys:
            raise DataError(f"{place} is of no item of {queue}; judge {judge_file(queue).name}")
        value = raw.get("value")
        if "value" not in raw and "status" not in raw:
            skipped.append(Skipped(place, "no `value`, which is the judge's, from 0 to 1"))
            continue
        if value is None:
            failed[str(raw["id"])] = str(raw.get("reason") or raw.get("status") or "no value")
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise DataError(f"{place}: a judge's value is a number from 0 to 1, not {value!r}")
        values.setdefault(str(raw["id"]), []).append(float(value >= 0.5))
    if not values and not failed:
        first = f" ({skipped[0].place}: {skipped[0].why})" if skipped else ""
        raise DataError(f"no line of {path} is a judgement{first}; give what metier judge wrote")
    return _answers(whys, values, failed)


def _of_queue(row: Feedback, queue: Path) -> bool:
    return row.assignment is not None and row.assignment.startswith(f"label {queue.stem}@")


def _whys(queue: Path) -> dict[str, Mapping[str, Any]]:
    where = why_file(queue)
    if not where.is_file():
        raise DataError(f"there is no {where}, which says how the items of {queue} were drawn; write the queue first")
    return {str(row[1]["item"]): row[1] for row in read_rows(where) if not isinstance(row, Skipped)}


def _answers(
    whys: Mapping[str, Mapping[str, Any]], said: Mapping[str, Iterable[float]], failed: Mapping[str, str] | None = None
) -> list[Answer]:
    out = []
    for item, why in whys.items():
        values = list(said.get(item, ()))
        right = sum(values) / len(values) if values else None
        broke = (failed or {}).get(item, "") if right is None else ""
        out.append(Answer(sample=str(why["sample"]), right=right, propensity=float(why["propensity"]), failed=broke))
    return out
