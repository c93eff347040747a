"""Tables of crowd labels, as crowd-kit and most marketplaces have them: columns task, worker, label.

`text` may say what was labelled; else the task's name stands for it. `gold` is the known
label, kept as a statement of the source "gold". A worker who is not known yet is a new
source. Workers who contradict each other are both kept: telling who is right is for the
aggregation. A worker who labels a task again is taken at the later word, by `at` or
`timestamp` where there is one, else by the order of rows; the earlier one is superseded. A row may hold gold alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metier.base.errors import DataError
from metier.records.layouts.items import Item, Said, messages_of
from metier.records.traces.calls import Skipped, seconds_of
from metier.records.types import Source

__all__ = ["CRITERION", "GOLD", "fits", "item"]

CRITERION = "label"
GOLD = Source(kind="outcome", name="gold", version="1")


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return "task" in row and ("worker" in row or "gold" in row)


def item(place: str, row: Mapping[str, Any]) -> Item:
    """What one row holds; rows of one task come together in the ledger, where it has one id. Raises `DataError`."""
    row = {name: value for name, value in row.items() if value not in (None, "")}
    gold_alone = "gold" in row and "worker" not in row and "label" not in row
    for name in ("task",) if gold_alone else ("task", "worker", "label"):
        if name not in row:
            raise DataError(f"half a row: `{name}` is missing")
    said, skipped = [], []
    if not gold_alone:
        when = row.get("at", row.get("timestamp"))
        if (at := seconds_of(when)) is None and when is not None:
            skipped.append(Skipped(place, f"{when!r:.40} is no time: the label is kept, without one"))
        person = Source(kind="person", name=str(row["worker"]), version="1")
        said.append(Said(about=(), criterion=CRITERION, kind="label", value=_label(row, "label"), source=person, at=at))
    if "gold" in row:
        said.append(Said(about=(), criterion=CRITERION, kind="label", value=_label(row, "gold"), source=GOLD))
    prompt = messages_of(str(row.get("text", row["task"])), "user", "`text`")
    return Item(place=place, prompt=prompt, said=tuple(said), skipped=tuple(skipped), meta={"item": str(row["task"])})


def _label(row: Mapping[str, Any], name: str) -> str:
    if isinstance(row[name], float) and not math.isfinite(row[name]):
        raise DataError(f"`{name}` is {row[name]}, which is no label")
    return str(row[name])
