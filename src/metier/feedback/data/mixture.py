"""How many rows of what: caps and temperatures within a view, shares between views. Pure.

Which rows stay where some must go is drawn by the seed and the row's own id, so that adding rows does not
change the draw of the others, and the same rows give the same dataset on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from metier.base.seeds import derive_seed
from metier.feedback.data.declaration import Balance
from metier.feedback.data.rows import Row

__all__ = ["balanced", "drawn", "mixed"]

_GROUP: dict[str, Callable[[Row], str]] = {
    "kind": lambda row: row.kind,
    "source": lambda row: row.source,
    "label": lambda row: row.label,
    "task": lambda row: ",".join(row.task_ids),
}


def balanced(rows: Sequence[Row], how: Balance, seed: int) -> list[Row]:
    """The rows that stay, in their order.

    With a temperature T a group of n rows keeps c n^(1/T), with the largest c that takes no group beyond what it has:

        c = min over groups of n^(1 - 1/T)
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_GROUP[how.by](row), []).append(row)
    if not groups:
        return []
    if how.cap is not None:
        sizes = {name: min(how.cap, len(group)) for name, group in groups.items()}
    else:
        assert how.temperature is not None
        power = 1 / how.temperature
        scale = min(len(group) ** (1 - power) for group in groups.values())
        sizes = {name: min(len(group), max(1, round(scale * len(group) ** power))) for name, group in groups.items()}
    kept = {id(row) for name, group in groups.items() for row in drawn(group, sizes[name], seed)}
    return [row for row in rows if id(row) in kept]


def mixed(
    parts: Sequence[Sequence[Row]], shares: Sequence[float] | None, rows: int | None, repeats: int, seed: int
) -> list[Row]:
    """The rows of all parts in the shares wanted, each row at most `repeats` times.

    Without shares all rows go in, or `rows` of them in equal chance. With them, part i has `rows` * share_i rows; where
    a part has too few, the whole shrinks until it has enough, so that the shares hold.
    """
    if shares is None:
        everything = [row for part in parts for row in part]
        return everything if rows is None else _in_order(everything, drawn(everything, rows, seed))
    total = sum(shares)
    weights = [share / total for share in shares]
    most = min(len(part) * repeats / weight for part, weight in zip(parts, weights, strict=True))
    size = most if rows is None else min(float(rows), most)
    out: list[Row] = []
    for part, weight in zip(parts, weights, strict=True):
        wanted = math.floor(size * weight + 1e-9)
        full, rest = divmod(wanted, len(part)) if part else (0, 0)
        out += list(part) * full + _in_order(part, drawn(part, rest, seed))
    return out


def drawn(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """`n` of the rows, or all; each with equal chance."""
    if n >= len(rows):
        return list(rows)
    return sorted(rows, key=lambda row: derive_seed(seed, "draw", row.id))[:n]


def _in_order(rows: Sequence[Row], some: Sequence[Row]) -> list[Row]:
    wanted = {id(row) for row in some}
    return [row for row in rows if id(row) in wanted]
