"""Charts as inline SVG that keeps its type size at every width.

Horizontal places are percentages and lines are drawn in a nested drawing that stretches,
so that a chart fills its column at 390 and at 1280 px without scaling its text. Every
chart has a `role="img"` and a sentence for those who do not see it. Colours are classes,
set in `page.css` for light and dark. Models also differ by the shape of their mark.

Left out: hover, zoom and animation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup

from metier.evaluate.transfer.audit import Point
from metier.report.data import CurvePanel, RewardAgainstHeld, Series
from metier.report.wording import NB, figure, percent, share_with_interval
from metier.stats.calibration import Calibration, chance_band
from metier.stats.intervals import Interval

__all__ = [
    "bar", "best_of", "dots", "lines", "mark", "model_class", "reliability", "reward_chart", "smooth", "ticks",
]  # fmt: skip

LANE = 24  # px, height of one model's lane
SHAPES = (
    '<circle r="5.5"/>',  # first: hollow, see page.css
    '<path d="M0-6.5 6.5 0 0 6.5-6.5 0Z"/>',
    '<path d="M0-6 6 5-6 5Z"/>',
    '<rect x="-5" y="-5" width="10" height="10"/>',
)
LAST_SHAPE = '<circle r="6"/>'


def model_class(place: int, models: int) -> str:
    """The class that colours a model: `m0` the first, `mz` the last, `m1` to `m3` between."""
    if place == models - 1 and models > 1:
        return "mz"
    return "m0" if place == 0 else f"m{(place - 1) % 3 + 1}"


def mark(place: int, models: int) -> Markup:
    """A model's mark by itself, for legends."""
    return Markup(
        '<svg class="mark {}" width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>'
    ).format(model_class(place, models), _shape(place, models))


def dots(shares: Sequence[Interval], labels: Sequence[str], name: str) -> Markup:
    """One row of a dot plot: a lane per model, its share as a mark, its interval as a line."""
    height = LANE * len(shares) + 6
    said = "; ".join(f"{label} {share_with_interval(share)}" for label, share in zip(labels, shares, strict=True))
    parts = [
        Markup('<line class="grid{}" x1="{x}%" x2="{x}%" y1="0" y2="{y}"/>').format(
            Markup(" edge") if x in (0, 100) else "", x=x, y=height
        )
        for x in (0, 25, 50, 75, 100)
    ]
    for place, share in enumerate(shares):
        y = 3 + LANE * place + LANE // 2
        if share.mean is None:
            text = "no verdict" if share.n or share.left_out else "not measured"
            parts.append(Markup('<text class="none" x="0" y="{}" dx="8" dy="4.5">{}</text>').format(y, text))
            continue
        low, high = (share.mean if bound is None else bound for bound in (share.low, share.high))
        right = high < 0.8
        parts.append(
            Markup(
                '<g class="{cls}"><line class="range" x1="{low}%" x2="{high}%" y1="{y}" y2="{y}"/>'
                '<svg x="{mean}%" y="{y}" overflow="visible">{shape}</svg>'
                '<text x="{at}%" y="{y}" dx="{dx}" dy="4.5" text-anchor="{anchor}">{text}</text></g>'
            ).format(
                cls=model_class(place, len(shares)),
                low=_pc(low),
                high=_pc(high),
                mean=_pc(share.mean),
                y=y,
                shape=_shape(place, len(shares)),
                at=_pc(max(high, share.mean) if right else min(low, share.mean)),
                dx=11 if right else -11,
                anchor="start" if right else "end",
                text=percent(share.mean),
            )
        )
    return Markup('<svg class="dots" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        height, f"{name}: {said}", Markup("").join(parts)
    )


def bar(share: Interval, place: int, models: int) -> Markup:
    """A thin bar under a figure, for tables; decoration only."""
    return Markup(
        '<svg class="bar {}" width="100%" height="4" aria-hidden="true"><rect class="track" width="100%" height="4"'
        ' rx="2"/><rect class="fill" width="{}%" height="4" rx="2"/></svg>'
    ).format(model_class(place, models), _pc(share.mean or 0.0))


def lines(panel: CurvePanel, cls: str) -> Markup:
    """A panel of learning curves: each step faint, a rolling mean over it."""
    values = [value for series in panel.series for value in series.values]
    marks = ticks(0.0 if panel.share else min(values), max(values))
    if panel.share:
        marks = [tick for tick in marks if tick <= 1.0001]
    parts = [_grid(marks, percent_axis=panel.share)]
    span = _span(panel.series)
    for series in panel.series:
        parts.append(_curve(series, marks, span, cls))
    first, last = panel.series[0].values[0], panel.series[0].values[-1]
    told = f"{panel.title}: from {_number(first, panel.share)} to {_number(last, panel.share)}"
    return _framed(parts, told, span, height=150)


def reward_chart(pair: RewardAgainstHeld) -> Markup:
    """Training reward and success as curves, heldout success as marks with intervals."""
    curves = [(series, cls) for series, cls in ((pair.reward, "m1"), (pair.success, "m2")) if series is not None]
    values = [value for series, _ in curves for value in series.values]
    for held in pair.held:
        values += [bound for bound in (held.share.low, held.share.mean, held.share.high) if bound is not None]
    marks = ticks(min(0.0, *values), max(values), wanted=6)
    span = _span([series for series, _ in curves], [held.step for held in pair.held])
    parts = [_grid(marks, percent_axis=False)]
    parts += [_curve(series, marks, span, cls) for series, cls in curves]
    for held in pair.held:
        if held.share.mean is None:
            continue
        x = _pc((held.step - span[0]) / (span[1] - span[0]))
        low, high = (held.share.mean if b is None else b for b in (held.share.low, held.share.high))
        parts.append(
            Markup(
                '<g class="mz"><line class="range" x1="{x}%" x2="{x}%" y1="{low}%" y2="{high}%"/>'
                '<svg x="{x}%" y="{y}%" overflow="visible">{shape}</svg></g>'
            ).format(
                x=x,
                low=_down(low, marks),
                high=_down(high, marks),
                y=_down(held.share.mean, marks),
                shape=Markup(LAST_SHAPE),
            )
        )
    told = "; ".join(
        [f"{series.label} from {figure(series.values[0])} to {figure(series.values[-1])}" for series, _ in curves]
        + [f"heldout at step {held.step:g}: {share_with_interval(held.share)}" for held in pair.held]
    )
    return _framed(parts, told, span, height=260)


def best_of(points: Sequence[Point], which: Literal["reward", "gold"], name: str) -> Markup:
    """The curve of best of n of reward or gold, with intervals; each doubling of n is one step to the right."""
    found = [getattr(point, which) for point in points]
    shown = [(n, one.mean, one.low, one.high) for n, one in enumerate(found) if one.mean is not None]
    bounds = [bound for _, *row in shown for bound in row if bound is not None]
    marks = ticks(min(bounds), max(bounds))
    span = (0.0, float(max(1, len(points) - 1)))
    curve = Series(label=name, steps=tuple(float(n) for n, *_ in shown), values=tuple(mean for _, mean, *_ in shown))
    cls = "m1" if which == "reward" else "mz"
    parts = [_grid(marks, percent_axis=False), _curve(curve, marks, span, cls)]
    for n, mean, low, high in shown:
        parts.append(
            Markup(
                '<g class="{cls}"><line class="range" x1="{x}%" x2="{x}%" y1="{low}%" y2="{high}%"/>'
                '<svg x="{x}%" y="{y}%" overflow="visible"><circle r="4.5"/></svg></g>'
            ).format(
                cls=cls,
                x=_pc(n / span[1]),
                low=_down(mean if low is None else low, marks),
                high=_down(mean if high is None else high, marks),
                y=_down(mean, marks),
            )
        )
    told = "; ".join(f"best of {points[n].n} {figure(mean)}" for n, mean, *_ in shown)
    return _framed(
        parts, f"{name}: {told}", span, height=150, ends=(f"best of {points[0].n}", f"best of {points[-1].n}")
    )


def reliability(found: Calibration, name: str) -> Markup:
    """What was forecast against what came of it, by bin, with where each bin lies by chance if forecasts are right."""
    marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = [
        _grid(marks, percent_axis=True),
        Markup('<line class="even" x1="0" x2="100%" y1="100%" y2="0"/>'),
    ]
    for one in found.bins:
        low, high = chance_band(one)
        parts.append(
            Markup(
                '<line class="chance" x1="{x}%" x2="{x}%" y1="{low}%" y2="{high}%"/><g class="{cls}">'
                '<svg x="{x}%" y="{y}%" overflow="visible"><circle r="{r}"/></svg></g>'
            ).format(
                x=_pc(one.forecast),
                low=_down(low, marks),
                high=_down(high, marks),
                cls="mz" if low <= one.observed <= high else "out",
                y=_down(one.observed, marks),
                r=f"{3 + 4 * math.sqrt(one.n / found.n):.1f}",
            )
        )
    told = "; ".join(
        f"said {percent(one.forecast, 0)}, came true {percent(one.observed, 0)} of {one.n}" for one in found.bins
    )
    return _framed(parts, f"{name}: {told}", (0, 1), height=190, ends=("said 0", f"said 100{NB}%"))


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that enclose `low` to `high`, about `wanted` of them, evenly spaced."""
    if not high > low:
        high, low = (low + (abs(low) or 1.0) * 0.5, low - (abs(low) or 1.0) * 0.5)
    raw = (high - low) / (wanted - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 6 - math.floor(math.log10(step))
    return [round(place * step, digits) for place in range(start, end + 1)]


def smooth(values: Sequence[float]) -> list[float]:
    """Rolling mean over about a tenth of the curve, narrower at its ends."""
    half = max(1, len(values) // 20)
    out = []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        window = values[place - reach : place + reach + 1]
        out.append(math.fsum(window) / len(window))
    return out


def _shape(place: int, models: int) -> Markup:
    last = place == models - 1 and models > 1
    return Markup(LAST_SHAPE if last else SHAPES[0] if place == 0 else SHAPES[(place - 1) % 3 + 1])


def _pc(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".")


def _down(value: float, marks: Sequence[float]) -> str:
    """A value as a percentage of the height, from the top."""
    return _pc(1 - (value - marks[0]) / (marks[-1] - marks[0]))


def _number(value: float, share: bool) -> str:
    return percent(value, 0) if share else figure(value)


def _grid(marks: Sequence[float], *, percent_axis: bool) -> Markup:
    out = []
    for place, tick in enumerate(marks):
        y = _down(tick, marks)
        out.append(
            Markup(
                '<line class="grid{}" x1="0" x2="100%" y1="{y}%" y2="{y}%"/>'
                '<text class="tick" x="-8" y="{y}%" dy="4" text-anchor="end">{}</text>'
            ).format(Markup(" edge") if place == 0 else "", _number(tick, percent_axis), y=y)
        )
    return Markup("").join(out)


def _span(series: Sequence[Series], more: Sequence[float] = ()) -> tuple[float, float]:
    steps = [*more, *(step for one in series for step in one.steps)]
    low, high = min(steps), max(steps)
    return (low, high) if high > low else (low, low + 1)


def _curve(series: Series, marks: Sequence[float], span: tuple[float, float], cls: str) -> Markup:
    def path(values: Sequence[float]) -> str:
        return " ".join(
            f"{1000 * (step - span[0]) / (span[1] - span[0]):.1f},"
            f"{1000 * (1 - (value - marks[0]) / (marks[-1] - marks[0])):.1f}"
            for step, value in zip(series.steps, values, strict=True)
        )

    noisy = len(series.values) >= 12
    raw = Markup('<polyline class="raw" points="{}"/>').format(path(series.values)) if noisy else Markup("")
    bold = smooth(series.values) if noisy else series.values
    return Markup(
        '<svg class="{}" width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none"'
        ' overflow="visible">{}<polyline class="curve" points="{}"/></svg>'
    ).format(cls, raw, path(bold))


def _framed(
    parts: Sequence[Markup],
    told: str,
    span: tuple[float, float],
    height: int,
    ends: tuple[str, str] | None = None,
) -> Markup:
    return Markup(
        '<div class="plot"><svg width="100%" height="{}" overflow="visible" role="img" aria-label="{}">{}</svg>'
        '<div class="steps" aria-hidden="true"><span>{}</span><span>{}</span></div></div>'
    ).format(height, told, Markup("").join(parts), *(ends or (f"step{NB}{span[0]:g}", f"{span[1]:g}")))
