"""Trackers: other places that want to see a run's figures as they come.

The event log is always written; a tracker is named in the recipe on top of it. A tracker
gets every event and takes from it what it can show. It never changes what a run computes,
and it sends nothing anywhere: TensorBoard reads files in the run folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from metier.base.config import did_you_mean
from metier.base.errors import ConfigError
from metier.records.events import Event

__all__ = ["NoTracker", "TensorBoardTracker", "Tracker", "get_tracker"]

NOT_FIGURES = frozenset({"at", "stage", "event", "step", "steps"})


class Tracker(Protocol):
    """Something that shows a run's figures."""

    def event(self, event: Event) -> None:
        """Take one event of the log."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class NoTracker:
    """The tracker named `none`."""

    def event(self, event: Event) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoardTracker:
    """Writes scalars for TensorBoard under `tensorboard/` in the run folder.

    A figure of a `step` event becomes `stage/figure`; an `eval` event becomes
    `stage/split/success` with `low` and `high` beside it.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ConfigError(
                "the tracker 'tensorboard' needs the package tensorboard; install it with: "
                "pip install 'metier[tensorboard]'"
            ) from error
        self._writer = Writer(str(Path(folder) / "tensorboard"))

    def event(self, event: Event) -> None:
        """Take one event of the log."""
        if event["event"] == "step":
            prefix, keys = str(event["stage"]), sorted(event.keys() - NOT_FIGURES)
        elif event["event"] == "eval":
            prefix, keys = f"{event['stage']}/{event['split']}", ["success", "low", "high"]
        else:
            return
        for key in keys:
            value = event.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(
                    f"{prefix}/{key}", float(value), step=int(event.get("step", 0)), wall_time=event["at"]
                )

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()


def get_tracker(name: str, folder: str | Path) -> Tracker:
    """The tracker of that name, writing for the run in `folder`."""
    if name == "none":
        return NoTracker()
    if name == "tensorboard":
        return TensorBoardTracker(folder)
    known = ("none", "tensorboard")
    raise ConfigError(f"unknown tracker {name!r}{did_you_mean(name, known) or '.'} Known: {', '.join(known)}")
