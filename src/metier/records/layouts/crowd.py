"""Tables of crowd labels, as crowd-kit and most marketplaces have them: columns task, worker, label.

`text` may say what was labelled; else the task's name stands for it. `gold` is the known
label, kept as a statement of the source "gold". A worker who is not known yet is a new
source. Workers who contradict each other are both kept: telling who is right is for the
aggregation. A worker who labels a task again is taken at the later word, by `at` or
`timestamp` where there is one, else by the order of rows; the earlier one is superseded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metier.base.errors import DataError
from metier.records.layouts.items import Item, Said, messages_of
from metier.records.traces.calls import seconds_of
from metier.records.types import Source

__all__ = ["CRITERION", "GOLD", "fits", "item"]

CRITERION = "label"
GOLD = Source(kind="outcome", name="gold", version="1")


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return {"task", "worker"} <= row.keys()


def item(place: str, row: Mapping[str, Any]) -> Item:
    """What one row holds; rows of one task come together in the ledger, where it has one id. Raises `DataError`."""
    for name in ("task", "worker", "label"):
        if row.get(name) in (None, ""):
            raise DataError(f"half a row: `{name}` is missing")
    at = seconds_of(row.get("at", row.get("timestamp")))
    person = Source(kind="person", name=str(row["worker"]), version="1")
    said = [Said(about=(), criterion=CRITERION, kind="label", value=str(row["label"]), source=person, at=at)]
    if row.get("gold") not in (None, ""):
        said.append(Said(about=(), criterion=CRITERION, kind="label", value=str(row["gold"]), source=GOLD))
    prompt = messages_of(str(row.get("text") or row["task"]), "user", "`text`")
    return Item(place=place, prompt=prompt, said=tuple(said), meta={"item": str(row["task"])})
