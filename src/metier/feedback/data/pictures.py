"""Two pictures as inline SVG that keep their type size at every width: bars with names, and a histogram.

Widths are percentages, heights are pixels; colours are classes of the page. Each says in one sentence what it
shows to those who do not see it. Names come from the ledger and are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

__all__ = ["bars", "histogram", "steps_of_time"]

_ROW = 38  # px a bar with its name
_HIGH = 120  # px of a histogram
_MOST = 12  # bars; what is beyond goes into one


def bars(counts: Sequence[tuple[str, float]], said: str) -> Markup:
    """A bar for each name, in the order given; what is beyond the twelfth is summed up."""
    shown = list(counts[:_MOST])
    if len(counts) > _MOST:
        shown.append((f"{len(counts) - _MOST} more", sum(n for _, n in counts[_MOST:])))
    most = max((n for _, n in shown), default=0) or 1
    parts = []
    for place, (name, n) in enumerate(shown):
        y = _ROW * place
        parts.append(
            Markup(
                '<text x="0" y="{y}">{name}</text><text class="n" x="100%" y="{y}" text-anchor="end">{n}</text>'
                '<rect class="track" x="0" y="{top}" width="100%" height="8" rx="3"/>'
                '<rect class="fill" x="0" y="{top}" width="{width}%" height="8" rx="3"/>'
            ).format(y=y + 15, top=y + 21, name=_cut(name), n=f"{n:,.0f}", width=round(100 * n / most, 2))
        )
    told = "; ".join(f"{name} {n:,.0f}" for name, n in shown)
    return _svg("bars", _ROW * len(shown), f"{said}: {told}", parts)


def histogram(values: Sequence[float], said: str, unit: str, *, names: Sequence[str] | None = None) -> Markup:
    """How often values fall into which of up to 24 equal steps; or given counts, under given names."""
    if names is None:
        low, high = min(values), max(values)
        counts, edges = np.histogram(values, bins=min(24, max(1, len(set(values)))), range=(low, max(high, low + 1)))
        heights = [int(n) for n in counts]
        first, last = f"{edges[0]:,.0f}", f"{edges[-1]:,.0f} {unit}"
        middle = float(np.median(values))
        told = f"{said}: from {low:,.0f} to {high:,.0f} {unit}, half of them up to {middle:,.0f}"
    else:
        heights, first, last = [int(n) for n in values], names[0], names[-1] if len(names) > 1 else ""
        told = f"{said}: from {first} to {last or first}, at most {max(heights):,} in a step"
    most, width = max(heights) or 1, 100 / len(heights)
    parts = [Markup('<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>').format(y=_HIGH + 0.5)]
    for place, n in enumerate(heights):
        height = max(2.0, (_HIGH - 18) * n / most) if n else 0.0
        parts.append(
            Markup('<rect class="fill" x="{x}%" width="{w}%" y="{y}" height="{h}"/>').format(
                x=round(place * width + 0.1 * width, 3), w=round(0.8 * width, 3), y=_HIGH - height, h=round(height, 1)
            )
        )
    parts.append(Markup('<text class="n" x="0" y="11">{}</text>').format(f"{most:,}"))
    parts.append(Markup('<text class="n" x="0" y="{}">{}</text>').format(_HIGH + 17, first))
    parts.append(Markup('<text class="n" x="100%" y="{}" text-anchor="end">{}</text>').format(_HIGH + 17, last))
    return _svg("histogram", _HIGH + 22, told, parts)


def steps_of_time(times: Sequence[float]) -> tuple[list[str], list[int]]:
    """Days, weeks or months, whichever makes at most 40 steps, and how many times fall into each."""
    from datetime import UTC, datetime, timedelta

    days = [datetime.fromtimestamp(one, UTC).date() for one in times]
    first, last = min(days), max(days)
    size = next(size for size in (1, 7, 30, 365, 3650, math.inf) if (last - first).days < 40 * size)
    width = max(1, int(min(size, 36_500)))
    counts = [0] * ((last - first).days // width + 1)
    for day in days:
        counts[(day - first).days // width] += 1
    return [(first + timedelta(days=width * n)).isoformat() for n in range(len(counts))], counts


def _svg(kind: str, height: int, said: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        kind, height, said, Markup("").join(parts)
    )


def _cut(name: str) -> str:
    return name if len(name) <= 44 else name[:43] + "…"
