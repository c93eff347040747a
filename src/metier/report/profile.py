"""A profile as a picture: what differs between two models at one glance, by how much, and whether it is sure.

Every measure is one row on one axis: what the first model has more of, to the right of zero. Shares, gaps and Brier
scores are in points; what has another unit (tokens, words) is in per cent of the larger of the two. What is sure stands
first, largest first, with a filled mark whose shape says better, worse or neither, and so needs no colour;
what is not sure can be opened below, by trait, with a hollow one. Intervals that leave the axis end in an arrow's head.

A profile without another is drawn as figures with intervals. The picture is HTML that a report embeds; its style
(`profile.css`) stands once on the page, whose colours it uses. `page` makes a file of a picture alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import groupby

from markupsafe import Markup

from metier.evaluate.profile.figures import Change, Figure, Profiled, changes
from metier.records.transcript import stylesheet
from metier.report.wording import NB, change_in_unit, count, in_unit, plain, points

__all__ = ["difference", "page", "picture", "span", "style", "summary", "written"]

AXES = (0.1, 0.25, 0.5, 1.0)  # how far the axis may reach
MARKS = {
    "better": ('<path d="M0-7 7 5.5-7 5.5Z"/>', "up", "better"),
    "worse": ('<path d="M0 7 7-5.5-7-5.5Z"/>', "down", "worse"),
    "more": ('<path d="M0-6.5 6.5 0 0 6.5-6.5 0Z"/>', "other", "differs"),
    "less": ('<path d="M0-6.5 6.5 0 0 6.5-6.5 0Z"/>', "other", "differs"),
    "no clear change": ('<circle r="4.5"/>', "unsure", "not sure"),
}
SAME_SCALE = ("share", "gap", "Brier")  # whose difference is in points


def picture(profile: Profiled, against: Profiled | None = None) -> str:
    """The picture as HTML to stand in a page that has its `style`."""
    body = _alone(profile) if against is None else _compared(profile, against)
    return Markup('<figure class="profile">{}</figure>').format(body)


def style() -> str:
    """What a page with a picture needs besides the colours of all pages."""
    return files("metier.report").joinpath("profile.css").read_text("utf-8")


def page(profile: Profiled, against: Profiled | None = None) -> str:
    """The picture as a file of its own, which loads nothing."""
    title = profile.model if against is None else f"{profile.model} against {against.model}"
    return Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Profile of {}</title><style>{}</style></head>'
        '<body class="alone"><main>{}</main></body></html>\n'
    ).format(title, Markup(stylesheet() + style()), Markup(picture(profile, against)))


def written(value: float | None, unit: str) -> str:
    """A figure in its unit: `61.3 %`, `0.213`, `84.0 tokens`; `–` for None."""
    if value is None:
        return "–"
    return in_unit(value, unit) if unit in SAME_SCALE else f"{in_unit(value, unit)}{NB}{unit}"


def difference(value: float | None, unit: str) -> str:
    """A difference with its sign: `+84.0 points` between shares, `−31.7 tokens`; `–` for None."""
    if value is None:
        return "–"
    name = "points" if unit == "share" else "" if unit in SAME_SCALE else unit
    return change_in_unit(value, unit) + (f"{NB}{name}" if name else "")


def span(low: float | None, high: float | None, unit: str) -> str:
    """An interval: `47.5 to 85.7`, in the figure's unit (per cent for shares); `–` where there is none."""
    if low is None or high is None:
        return "–"
    scale = 100 if unit == "share" else 1
    return f"{plain(scale * low, unit)}{NB}to{NB}{plain(scale * high, unit)}"


def summary(found: Sequence[Change]) -> str:
    """What changed, in one sentence."""
    compared = [one for one in found if one.diff is not None]
    parts = [
        f"{n} {word}"
        for word, verdicts in (
            ("better", ("better",)),
            ("worse", ("worse",)),
            ("otherwise different", ("more", "less")),
        )
        if (n := sum(one.verdict in verdicts for one in compared))
    ]
    unsure = sum(one.verdict == "no clear change" for one in compared)
    surely = f"Surely {', '.join(parts)}" if parts else "Nothing is surely different"
    return f"{surely}; {count(unsure)} of {count(len(compared))} measures show no clear change."


# --- two models ------------------------------------------------------------------------


def _compared(profile: Profiled, against: Profiled) -> Markup:
    found = [one for one in changes(profile, against) if one.diff is not None]
    reach = max((abs(_place(one, one.diff)) for one in found), default=0.0)
    axis = next((wide for wide in AXES if wide >= min(1.0, reach * 1.1)), 1.0)
    sure = sorted((one for one in found if one.sure), key=lambda one: -abs(_place(one, one.diff)))
    rest = [one for one in found if not one.sure]
    parts = [
        Markup("<figcaption><b>{}</b><span>against {}</span><p>{}</p></figcaption>").format(
            profile.model, against.model, summary(found)
        ),
        _legend(),
        _scale(axis, profile.model),
    ]
    if sure:
        parts.append(Markup("<h3>Sure</h3>{}").format(_rows(sure, axis, titled=True)))
    if rest:
        groups = groupby(rest, key=lambda one: one.figure.title)
        inner = [Markup("<h4>{}</h4>{}").format(name, _rows(list(group), axis, titled=False)) for name, group in groups]
        parts.append(
            Markup("<details><summary>Not sure ({})</summary>{}</details>").format(len(rest), Markup("").join(inner))
        )
    note = (
        "Paired difference on the same items with its 95 % interval, twins of an item counted as one. Sure: the "
        "interval leaves zero out and so does Holm's correction for having looked at all measures."
    )
    return Markup('{}<p class="note">{}</p>').format(Markup("").join(parts), note)


def _place(one: Change, value: float | None) -> float:
    """A difference on the axis: in points, or as a share of the larger figure."""
    if value is None:
        return 0.0
    if one.figure.unit in SAME_SCALE:
        return value
    larger = max(abs(one.mine or 0.0), abs(one.theirs or 0.0))
    return value / larger if larger else 0.0


def _rows(found: Sequence[Change], axis: float, *, titled: bool) -> Markup:
    return Markup("").join(_row(one, axis, titled) for one in found)


def _row(one: Change, axis: float, titled: bool) -> Markup:
    shape, cls, word = MARKS[one.verdict]
    figure = one.figure
    values = f"{written(one.theirs, figure.unit)} → {written(one.mine, figure.unit)}"
    between = "" if one.low is None else f"{_spelled(one, one.low)} to {_spelled(one, one.high)}"
    told = f"{figure.title}, {figure.label}: {_spelled(one, one.diff)} ({between or 'no interval'}), {word}; {values}"
    return Markup(
        '<div class="row {cls}"><div class="what"><span>{title}{label}</span><small>{values}</small></div>'
        '<svg class="lane" width="100%" height="26" role="img" aria-label="{told}">{grid}{range}'
        '<svg x="{x}%" y="13" overflow="visible">{shape}</svg></svg>'
        '<div class="much"><b>{diff}</b><small>{between}</small></div></div>'
    ).format(
        cls=cls,
        title=Markup("<em>{}</em> ").format(figure.title) if titled else "",
        label=figure.label,
        values=values,
        told=told,
        grid=_grid(),
        range=_range(one, axis),
        x=_x(_place(one, one.diff), axis),
        shape=Markup(shape),
        diff=_spelled(one, one.diff),
        between=between or "no interval",
    )


def _range(one: Change, axis: float) -> Markup:
    if one.low is None or one.high is None:
        return Markup("")
    low, high = _place(one, one.low), _place(one, one.high)
    arrows = Markup("")
    if low < -axis:
        arrows += Markup('<svg x="0%" y="13" overflow="visible"><path class="over" d="M0 0 6-4V4Z"/></svg>')
    if high > axis:
        arrows += Markup('<svg x="100%" y="13" overflow="visible"><path class="over" d="M0 0-6-4V4Z"/></svg>')
    return Markup('<line class="span" x1="{}%" x2="{}%" y1="13" y2="13"/>{}').format(
        _x(low, axis), _x(high, axis), arrows
    )


def _x(value: float, axis: float) -> str:
    """A place on the axis in per cent of its width."""
    return f"{50 + 50 * max(-axis, min(axis, value)) / axis:.2f}"


def _grid(zero: int = 50) -> Markup:
    return Markup("").join(
        Markup('<line class="{}" x1="{x}%" x2="{x}%" y1="0" y2="26"/>').format("zero" if x == zero else "tick", x=x)
        for x in (0, 25, 50, 75, 100)
    )


def _spelled(one: Change, value: float | None) -> str:
    """`+12.4` points or `+31 %`, with a true minus sign."""
    placed = _place(one, value)
    if one.figure.unit in SAME_SCALE:
        return points(placed)
    return f"{100 * placed:+.0f}{NB}%".replace("-", "−")


def _legend() -> Markup:
    seen = {word: (shape, cls) for shape, cls, word in MARKS.values()}
    return Markup('<p class="legend">{}</p>').format(
        Markup("").join(
            Markup(
                '<span class="{}"><svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>'
                "{}</span>"
            ).format(cls, Markup(shape), word)
            for word, (shape, cls) in seen.items()
        )
    )


def _scale(axis: float, model: str) -> Markup:
    ticks = [f"{100 * axis * share:+.3g}".replace("-", "−") if share else "0" for share in (-1, -0.5, 0, 0.5, 1)]
    return Markup(
        '<div class="row head"><div class="what"></div><div><div class="axis" aria-hidden="true">{}</div></div>'
        '<div class="much"><small>points, or % of the larger</small></div></div>'
        '<p class="side">to the right: more in {}</p>'
    ).format(Markup("").join(Markup("<span>{}</span>").format(tick) for tick in ticks), model)


# --- one model --------------------------------------------------------------------------


def _alone(profile: Profiled) -> Markup:
    parts = [Markup("<figcaption><b>{}</b></figcaption>").format(profile.model)]
    for title, group in groupby(profile.figures, key=lambda one: one.title):
        parts.append(Markup("<h4>{}</h4>{}").format(title, Markup("").join(_figures(list(group)))))
    return Markup("").join(parts)


def _figures(found: Sequence[Figure]) -> Iterator[Markup]:
    for one in found:
        lane = Markup("")
        if one.unit == "share" and one.value is not None:
            low, high = (one.value if bound is None else bound for bound in (one.low, one.high))
            lane = Markup(
                '{}<line class="span" x1="{:.2f}%" x2="{:.2f}%" y1="13" y2="13"/>'
                '<svg x="{:.2f}%" y="13" overflow="visible"><circle r="5"/></svg>'
            ).format(_grid(zero=0), 100 * low, 100 * high, 100 * one.value)
        yield Markup(
            '<div class="row other"><div class="what"><span>{}</span><small>{} items{}</small></div>'
            '<svg class="lane" width="100%" height="26" role="img" aria-label="{}">{}</svg>'
            '<div class="much"><b>{}</b><small>{}</small></div></div>'
        ).format(
            one.label,
            one.n,
            f", {one.unscored} unscored" if one.unscored else "",
            f"{one.label}: {written(one.value, one.unit)}",
            lane,
            written(one.value, one.unit),
            "no figure" if one.value is None else span(one.low, one.high, one.unit).replace("–", "no interval"),
        )
