"""`ReportData` to one HTML file that needs nothing else, online or from a disk.

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

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from metier.base.clock import iso
from metier.records.transcript import as_html, stylesheet
from metier.report import charts, wording
from metier.report.data import ReportData

__all__ = ["render", "write"]

PATHS = {
    "gained": "wrong before, right after",
    "lost": "right before, wrong after",
    "right": "right both times",
    "wrong": "wrong both times",
    "unscored": "no verdict",
}


def render(data: ReportData) -> str:
    """The page."""
    style, script = stylesheet() + _text("page.css"), _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        data=data,
        style=Markup(style),
        script=Markup(script),
        script_hash=digest,
        date=iso(data.created_at)[:10] if data.created_at else "",
        paths=PATHS,
        kinds_shown=sorted({(case.kind, case.kind_label) for case in data.cases}, key=lambda pair: pair[1]),
        n=len(data.models),
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
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(
        bar=charts.bar,
        change_words=wording.change_words,
        dots=charts.dots,
        lines=charts.lines,
        mark=charts.mark,
        model_class=charts.model_class,
        reward_chart=charts.reward_chart,
        transcript=as_html,
    )
    environment.filters.update(
        count=wording.count,
        duration=wording.duration,
        figure=wording.figure,
        p_value=wording.p_value,
        percent=wording.percent,
        points=wording.points,
        signed=wording.signed,
        title_of=wording.title_of,
    )
    environment.globals["points_interval"] = wording.points_interval
    return environment.from_string(_text("page.html.jinja"))


@functools.cache
def _text(name: str) -> str:
    return files("metier.report").joinpath(name).read_text(encoding="utf-8")
