"""What a person sees while a run works: a live table, or plain lines.

`Board` is the state, a pure function of the events so far; `LiveProgress` draws it on a
terminal and `PlainProgress` writes lines to anything else, at most one in ten seconds
for each stage besides starts, ends, evaluations and notes. Both are listeners of the
event log and take their time from the events, never from a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Protocol

from metier.records.events import Event
from metier.report import wording

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Board", "LiveProgress", "PlainProgress", "Progress", "StageView", "duration", "evaluation", "get_progress"]

State = Literal["waiting", "running", "done", "skipped"]

FIGURES: dict[str, Callable[[float], str]] = {
    "loss": lambda x: f"loss {x:.3f}",
    "reward": lambda x: f"reward {x:.3f}",
    "success": lambda x: f"success {100 * x:.1f} %",
    "tokens_per_s": lambda x: f"{x:,.0f} tok/s",
}


@dataclass
class StageView:
    """One stage as far as events have told."""

    name: str
    state: State = "waiting"
    started_at: float = 0.0  # UTC seconds
    at: float = 0.0  # UTC seconds of the last event
    seconds: float | None = None  # how long it took, once done
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    stepped: bool = False  # whether steps are counted; then progress within a step is not
    figures: dict[str, float] = field(default_factory=dict)
    _from: tuple[float, float] | None = None  # (at, done) that the rate is measured from

    def take(self, event: Event) -> None:
        """Take a `step` or `progress` event."""
        step = event["event"] == "step"
        self.figures.update({k: float(event[k]) for k in FIGURES if isinstance(event.get(k), (int, float))})
        if not step and self.stepped:
            return
        done, total = (event["step"], event.get("steps", 0)) if step else (event["done"], event["total"])
        if self._from is None or step != self.stepped or done < self.done:
            self._from = (event["at"], done)
        self.stepped = step
        self.done, self.total, self.unit = done, total or 0, "steps" if step else str(event.get("unit", ""))

    @property
    def seconds_left(self) -> float | None:
        """From the pace so far; None until two events have told a pace."""
        if self._from is None or self.total <= 0:
            return None
        since, base = self._from
        if self.done <= base or self.at <= since:
            return None
        return (self.total - self.done) * (self.at - since) / (self.done - base)

    def describe(self) -> str:
        """`12 of 60 steps · loss 0.412 · 180 tok/s`"""
        parts = []
        if self.total > 0:
            parts.append(f"{self.done:g} of {self.total:g} {self.unit}".rstrip())
        parts += [FIGURES[key](self.figures[key]) for key in FIGURES if key in self.figures]
        return " · ".join(parts)


@dataclass
class Board:
    """The stages of a run and the evaluations so far."""

    stages: dict[str, StageView] = field(default_factory=dict)
    evaluations: list[Event] = field(default_factory=list)
    started_at: float | None = None  # UTC seconds

    def take(self, event: Event) -> StageView:
        """Take any event; returns the stage that it belongs to."""
        if self.started_at is None:
            self.started_at = event["at"]
        kind, name = event["event"], str(event.get("stage") or "")
        if kind == "run_start":
            self.stages = {stage: self.stages.get(stage, StageView(stage)) for stage in event["stages"]}
            return StageView(name)
        if not name:
            return StageView(name)
        stage = self.stages.setdefault(name, StageView(name))
        stage.at = event["at"]
        if kind == "stage_start":
            stage.state, stage.started_at = "running", event["at"]
        elif kind == "stage_skip":
            stage.state = "skipped"
        elif kind == "stage_end":
            stage.state, stage.seconds = "done", float(event.get("seconds") or 0.0)
        elif kind in ("step", "progress"):
            stage.take(event)
        elif kind == "eval":
            self.evaluations.append(event)
        return stage


class Progress(Protocol):
    """A listener that shows events between `with` and its end."""

    board: Board

    def __call__(self, event: Event) -> None:
        """Take one event."""
        ...

    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainProgress:
    """Lines for logs and pipes."""

    def __init__(self, stream: IO[str], every: float = 10.0) -> None:
        self.board = Board()
        self._stream = stream
        self._every = every  # seconds between two lines about the pace of one stage
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Take one event and perhaps write a line."""
        stage = self.board.take(event)
        kind, text = event["event"], None
        if kind == "stage_start":
            names = list(self.board.stages)
            text = f"{stage.name}: started (stage {names.index(stage.name) + 1} of {len(names)})"
            self._last[stage.name] = event["at"]
        elif kind == "stage_skip":
            text = f"{stage.name}: done before"
        elif kind == "stage_end":
            text = " · ".join(filter(None, [f"{stage.name}: done in {duration(stage.seconds or 0)}", stage.describe()]))
        elif kind == "eval":
            text = f"{stage.name}: {evaluation(event)}"
        elif kind == "note":
            text = f"{stage.name}: {event['text']}" if stage.name else str(event["text"])
        elif kind in ("step", "progress") and event["at"] - self._last.get(stage.name, float("-inf")) >= self._every:
            self._last[stage.name] = event["at"]
            left = stage.seconds_left
            text = f"{stage.name}: {stage.describe()}" + (f" · {duration(left)} left" if left else "")
        if text is not None:
            since = int(event["at"] - (self.board.started_at or 0.0))
            print(f"[{since // 60:02d}:{since % 60:02d}] {text}", file=self._stream, flush=True)

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LiveProgress:
    """A table that redraws itself on a terminal; evaluations and notes stay above it."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self.board = Board()
        self._console = console
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=False)

    def __call__(self, event: Event) -> None:
        """Take one event; the table is redrawn twice a second."""
        stage = self.board.take(event)
        if event["event"] == "eval":
            self._console.print(f"{stage.name}: {evaluation(event)}", markup=False, highlight=False)
        elif event["event"] == "note":
            self._console.print(str(event["text"]), markup=False, highlight=False, style="dim")

    def render(self) -> RenderableType:
        """The table as it stands."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(width=16)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(justify="right", no_wrap=True)
        plain = self._console.options.ascii_only
        marks = {"waiting": ".", "running": ">", "done": "+", "skipped": "+"} if plain else MARKS
        for stage in self.board.stages.values():
            bar: RenderableType = Text("")
            time, style = "", STYLES[stage.state]
            if stage.state == "running":
                bar = ProgressBar(total=stage.total or None, completed=stage.done, width=16, pulse=stage.total <= 0)
                left = stage.seconds_left
                time = f"{duration(left)} left" if left is not None else ""
            elif stage.state == "done":
                time = duration(stage.seconds or 0.0)
            elif stage.state == "skipped":
                time = "done before"
            detail = stage.describe() if stage.state in ("running", "done") else ""
            table.add_row(
                Text(marks[stage.state], style=style), Text(stage.name, style=style), bar, Text(detail), Text(time)
            )
        return table

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


MARKS = {"waiting": "·", "running": "▸", "done": "✓", "skipped": "✓"}
STYLES = {"waiting": "dim", "running": "bold cyan", "done": "green", "skipped": "dim green"}


def get_progress(console: Console) -> Progress:
    """The live table where the console is a terminal, plain lines elsewhere."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console.file)


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `1 h 5 min`."""
    return _breaking(wording.duration(max(0.0, seconds)))


def evaluation(event: Event) -> str:
    """`heldout success 53.1 % (47.0 % to 59.2 %), n = 256`"""
    text = f"{event['split']} success {wording.percent(event['success'])}"
    if event.get("low") is not None and event.get("high") is not None:
        text += f" ({wording.percent(event['low'])} to {wording.percent(event['high'])})"
    return _breaking(text + (f", n = {event['n']}" if event.get("n") is not None else ""))


def _breaking(text: str) -> str:
    """With plain spaces: logs are searched with plain spaces."""
    return text.replace(wording.NB, " ")
