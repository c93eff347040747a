"""Labels that several sources gave to the same tasks, and what the plain count of them says.

`Votes` holds (task, source, label) as three arrays of places, so that a million labels cost
three columns. One rule decides what a source said about a task: the same label again counts
once, and of different labels the last one counts, as a correction of the earlier; both are
counted, so that a reader can be told.

Legend: N votes, T tasks, W sources (workers), K labels. Ties of the plain count go to the
label that sorts first as text; `Majority.tied` says where.

Left out: weights and sources of known quality; metier.stats.truth estimates those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metier.base.errors import DataError

__all__ = ["Majority", "Votes", "majority"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Mask = NDArray[np.bool_]

CELLS = 50_000_000  # more numbers than this in one table are refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """N labels by W sources about T tasks, as places in `tasks`, `sources` and `labels`."""

    tasks: tuple[str, ...]  # [T] in the order first seen
    sources: tuple[str, ...]  # [W] in the order first seen
    labels: tuple[str, ...]  # [K] sorted as text
    task: Places  # [N]
    source: Places  # [N]
    label: Places  # [N]
    repeated: int = 0  # rows that said again what the same source had said of the task
    changed: int = 0  # rows that took back what the same source had said of the task

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str]]) -> Votes:
        """Votes from rows of (task, source, label); a later row of one source and task replaces the earlier."""
        tasks: dict[str, int] = {}
        sources: dict[str, int] = {}
        said: dict[tuple[int, int], str] = {}
        repeated = changed = 0
        for task, source, label in rows:
            key = tasks.setdefault(task, len(tasks)), sources.setdefault(source, len(sources))
            before = said.get(key)
            if before is not None:
                repeated += before == label
                changed += before != label
            said[key] = label
        if not said:
            raise DataError("there are no labels to work with; give at least one row of task, worker and label")
        labels = {label: place for place, label in enumerate(sorted(set(said.values())))}
        return cls(
            tasks=tuple(tasks),
            sources=tuple(sources),
            labels=tuple(labels),
            task=np.fromiter((task for task, _ in said), np.intp, len(said)),
            source=np.fromiter((source for _, source in said), np.intp, len(said)),
            label=np.fromiter((labels[label] for label in said.values()), np.intp, len(said)),
            repeated=repeated,
            changed=changed,
        )

    def counts(self) -> Floats:
        """How often each task got each label [T, K]."""
        rows, columns = len(self.tasks), len(self.labels)
        if rows * columns > CELLS:
            raise DataError(
                f"{columns:,} different labels for {rows:,} tasks are free text, not classes; "
                "use majority, or group the labels first"
            )
        flat = np.bincount(self.task * columns + self.label, minlength=rows * columns)
        return flat.reshape(rows, columns).astype(np.float64)

    def per_task(self) -> Places:
        """How many votes each task has [T]."""
        return np.bincount(self.task, minlength=len(self.tasks))

    def per_source(self) -> Places:
        """How many votes each source gave [W]."""
        return np.bincount(self.source, minlength=len(self.sources))

    def known(self, gold: Mapping[str, str] | None) -> Places:
        """The gold label's place for each task [T]; -1 without gold, K for a label that no source gave.

        Raises `DataError` for gold that has nothing to do with the votes.
        """
        places = {label: place for place, label in enumerate(self.labels)}
        found = [-1 if gold is None or task not in gold else places.get(gold[task], len(places)) for task in self.tasks]
        if gold and max(found) < 0:
            raise DataError("no task of the gold is among the labelled tasks; check that both use the same task ids")
        return np.asarray(found, dtype=np.intp)

    def subset(self, keep: Mask) -> Votes:
        """The votes for which `keep` [N] is true, with all tasks, sources and labels still named."""
        return Votes(
            tasks=self.tasks,
            sources=self.sources,
            labels=self.labels,
            task=self.task[keep],
            source=self.source[keep],
            label=self.label[keep],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Majority:
    """The label that most sources gave to each task."""

    label: Places  # [T] place in Votes.labels; of a tie the one that sorts first
    share: Floats  # [T] of the task's votes that it got
    margin: Floats  # [T] its share less that of the runner-up; 0 where tied
    tied: Mask  # [T] whether another label has as many votes


def majority(votes: Votes) -> Majority:
    """Count the votes of each task; every task needs at least one. Works for free text too: no [T, K] table is made."""
    size = len(votes.labels)
    codes, times = np.unique(votes.task * size + votes.label, return_counts=True)
    task, label = codes // size, codes % size
    # By task, then most votes first, then the label that sorts first.
    order = np.lexsort((label, -times, task))
    task, label, times = task[order], label[order], times[order]
    first = np.flatnonzero(np.diff(task, prepend=-1))
    assert first.size == len(votes.tasks), "a task without votes has no majority"
    total = votes.per_task().astype(np.float64)
    second = np.zeros(first.size)
    has_second = np.diff(np.append(first, task.size)) > 1
    second[has_second] = times[first[has_second] + 1]
    best = times[first].astype(np.float64)
    return Majority(label=label[first], share=best / total, margin=(best - second) / total, tied=second == best)
