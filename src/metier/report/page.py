"""`ReportData`, or a `Comparison` of runs, to one HTML file that needs nothing else, online or from a disk.

Style, script and charts are inlined; the page loads nothing from anywhere. What models,
users and tools wrote is escaped by the template engine, and a content security policy
that admits only this page's own script (by its hash) makes any injected one inert.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from metier.evaluate.transfer.words import as_text, one_line
from metier.records.transcript import as_html, printable, stylesheet
from metier.report import charts, wording
from metier.report.compare import Comparison
from metier.report.data import ReportData
from metier.report.profile import picture
from metier.report.profile import style as picture_style

__all__ = ["render", "render_comparison", "write"]

PATHS = {
    "gained": "wrong before, right after",
    "lost": "right before, wrong after",
    "right": "right both times",
    "wrong": "wrong both times",
    "unscored": "no verdict",
}


def render(data: ReportData) -> str:
    """The page of one run."""
    return _filled(
        "page.html.jinja",
        data=data,
        outcome_letters={"right": "r", "wrong": "w", "unscored": "u"},
        date=wording.day(data.created_at),
        paths=PATHS,
        kinds_shown=sorted({(case.kind, case.kind_label) for case in data.cases}, key=lambda pair: pair[1]),
        n=len(data.models),
    )


def render_comparison(data: Comparison) -> str:
    """The page of runs side by side."""
    return _filled("compare.html.jinja", data=data, n=len(data.runs))


def _filled(template: str, **values: Any) -> str:
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = Markup(stylesheet() + _text("page.css") + picture_style())
    return (
        _environment().get_template(template).render(style=style, script=Markup(script), script_hash=digest, **values)
    )


def write(path: str | Path, html: str) -> None:
    """Put the page at `path` whole or not at all: written beside it, then renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        Path(beside).chmod(0o644)
        Path(beside).replace(target)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        audit_line=one_line,
        audit_text=as_text,
        bar=charts.bar,
        best_of=charts.best_of,
        change_in_unit=wording.change_in_unit,
        change_words=wording.change_words,
        dots=charts.dots,
        in_unit=wording.in_unit,
        lines=charts.lines,
        mark=charts.mark,
        model_class=charts.model_class,
        points_interval=wording.points_interval,
        profile_picture=picture,
        reliability=charts.reliability,
        reward_chart=charts.reward_chart,
        transcript=as_html,
    )
    environment.filters.update(
        count=wording.count,
        day=wording.day,
        duration=wording.duration,
        figure=wording.figure,
        p_value=wording.p_value,
        percent=wording.percent,
        points=wording.points,
        printable=printable,
        signed=wording.signed,
        title_of=wording.title_of,
    )
    return environment


@functools.cache
def _text(name: str) -> str:
    return files("metier.report").joinpath(name).read_text(encoding="utf-8")
