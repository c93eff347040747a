"""What a dataset may say of itself: views of the ledger, how they are mixed, and what is done to the rows.

    name: helpful
    views:
      - {kind: pairs, where: {criteria: [helpfulness]}, pool: {method: majority}}
    decontaminate: {enabled: true}

All views of one dataset are of one kind. A view selects statements of feedback (`where`), makes one verdict
out of what several sources say of the same thing (`pool`), and rows out of verdicts. What is unscored, pending,
retracted, declined or erased makes no row of any kind, so none of it can become a negative.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from metier.base.config import Settings, load_yaml
from metier.records.types import SourceKind

__all__ = [
    "TRAINING",
    "Balance",
    "DatasetSettings",
    "Decontaminate",
    "Dedup",
    "DemonstrationView",
    "PairView",
    "Pool",
    "StepView",
    "TaskView",
    "UnpairedView",
    "View",
    "Where",
    "read_declaration",
    "seconds_of",
]

TRAINING = ("demo", "train", "label", "production")  # splits that a model may learn from, unless told otherwise

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class Where(Settings):
    """Which statements: those that fit all that is named; an empty list is any."""

    runs: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # NAME or NAME@VERSION
    but_sources: tuple[str, ...] = ()  # the same, left out
    source_kinds: tuple[SourceKind, ...] = ()
    splits: tuple[str, ...] = TRAINING  # of the episodes and tasks
    since: str | None = None  # a date or time in ISO 8601, UTC unless told; statements written from then on
    until: str | None = None  # and before
    as_of: str | None = None  # a checkpoint, dataset, run or time: the ledger as it stood then

    @field_validator("since", "until")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value


class Pool(Settings):
    """How the statements of several sources about one thing become one verdict."""

    method: Literal["majority", "auto", "one-coin", "dawid-skene", "glad"] = "majority"
    weights: dict[str, Positive] = Field(default_factory=dict)  # of votes by NAME or NAME@VERSION; others have 1
    least_sources: Count = 1  # fewer make no verdict
    least_confidence: Share = 0.0  # less makes no row

    @model_validator(mode="after")
    def _one_way(self) -> Pool:
        if self.weights and self.method != "majority":
            raise ValueError(f"{self.method} finds the weights of sources itself; leave 'weights' out or use majority")
        return self


class Balance(Settings):
    """How many rows each group may have."""

    by: Literal["kind", "source", "label", "task"]  # kind of task, who said it, good or bad, one task
    cap: Count | None = None  # rows of a group at most
    temperature: Positive | None = None  # T: groups in proportion to n^(1/T); 1 as they are, large alike

    @model_validator(mode="after")
    def _one_way(self) -> Balance:
        if (self.cap is None) == (self.temperature is None):
            raise ValueError("name either a 'cap' or a 'temperature'")
        return self


class _View(Settings):
    where: Where = Where()
    share: Positive | None = None  # of the dataset's rows, relative to the other views'
    balance: tuple[Balance, ...] = ()  # one after the other


class DemonstrationView(_View):
    """What should have been said: demonstrations, corrections that people made, episodes that scored well."""

    kind: Literal["demonstrations"]
    take: tuple[Literal["demonstration", "correction", "score"], ...] = ("demonstration", "correction")
    pool: Pool = Pool()  # of scores
    good: float = 1.0  # an episode's score from which it is taken (`score`)
    checked_by: tuple[str, ...] = ()  # criteria on which a demonstration, where scored, must not be below `good`


class PairView(_View):
    """The better and the worse answer to one task."""

    kind: Literal["pairs"]
    take: tuple[Literal["preference", "ranking", "correction", "score"], ...] = ("preference", "ranking")
    pool: Pool = Pool()
    gap: Positive = 1e-9  # between the best and the worst score of a task (`score`)
    margin: Annotated[float, Field(ge=0)] = 0.0  # a row's `margin` is this times how far the votes favour its side
    weigh: bool = False  # whether rows have a `weight`: 2 confidence - 1, that of a coin being 0


class UnpairedView(_View):
    """Single answers, good or bad. What lies between `bad` and `good` is neither."""

    kind: Literal["unpaired"]
    take: tuple[Literal["score", "label"], ...] = ("score", "label")
    pool: Pool = Pool()
    good: float | None = None  # the least score that is good; 1 for scores from 0 to 1
    bad: float | None = None  # the highest score that is bad; 0 for scores from 0 to 1
    good_labels: tuple[str, ...] = ()
    bad_labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _apart(self) -> UnpairedView:
        _labels_apart(self.good_labels, self.bad_labels)
        if (self.good is None) != (self.bad is None) or (self.good or 0) < (self.bad or 0):
            raise ValueError("name both 'good' and 'bad' or neither, with 'good' above 'bad'")
        return self


class StepView(_View):
    """Answers in steps, each right or wrong, out of what was said of turns and spans."""

    kind: Literal["steps"]
    pool: Pool = Pool()
    step: Literal["turn", "line"] = "line"  # an assistant's turn, or a line of the last one
    good_labels: tuple[str, ...] = ("good", "right", "none")
    bad_labels: tuple[str, ...] = ("bad", "wrong", "error")
    good: float = 1.0  # scores of a step
    bad: float = 0.0
    unmarked: Literal["stop", "good"] = "stop"  # a step that nobody marked ends the row, or is right where all looked

    @model_validator(mode="after")
    def _apart(self) -> StepView:
        _labels_apart(self.good_labels, self.bad_labels)
        if self.good <= self.bad:
            raise ValueError("'good' must be above 'bad'")
        return self


class TaskView(_View):
    """Tasks for reinforcement learning."""

    kind: Literal["rl"]
    families: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    drop: tuple[Literal["never", "always", "faulty"], ...] = ()  # tasks that their episodes show to be so
    policy: str | None = None  # the checkpoint whose successes count for `drop`; else all


View = Annotated[
    DemonstrationView | PairView | UnpairedView | StepView | TaskView,
    Field(discriminator="kind"),
]


class Dedup(Settings):
    """What counts as the same row again; the better supported one stays."""

    exact: bool = True  # the same words
    near: Share | None = 0.8  # Jaccard similarity of five-character pieces from which rows are alike; null is off
    semantic: Literal["off", "calibrated"] = "off"  # the same meaning, by a model's hidden states
    model: str = "smollm2"  # whose
    false_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.001  # of unrelated pairs that the threshold lets pass
    near_misses: Share = 0.25  # known near misses that may pass; a model that lets more pass is refused


class Decontaminate(Settings):
    """Rows that hold an item of a suite, or a task of a split that is held out, are removed and named."""

    enabled: bool = True  # false only where you say so; the manifest and the card tell
    words: Annotated[int, Field(ge=5)] = 13  # in a row, that show an item; shorter items count whole
    near: Share = 0.8  # Jaccard similarity of a whole message from which it is an item
    common: Count = 10  # items that share such words: more, and the words are a form, not an item
    training_splits: tuple[str, ...] = ()  # splits that are not held out, besides those that the views name


class DatasetSettings(Settings):
    """A dataset: what goes in, and what is done to it."""

    name: str
    views: Annotated[tuple[View, ...], Field(min_length=1)]
    rows: Count | None = None  # at most; else as many as the views' shares allow
    repeats: Count = 1  # how often a view's rows may be used to fill its share
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()
    seed: int = 0

    @model_validator(mode="after")
    def _of_one_kind(self) -> DatasetSettings:
        kinds = sorted({view.kind for view in self.views})
        if len(kinds) > 1:
            raise ValueError(f"a dataset has views of one kind, these are {' and '.join(kinds)}; declare one each")
        if len({view.share is None for view in self.views}) > 1:
            raise ValueError("give every view a 'share' or none")
        return self


def read_declaration(path: Path, overrides: tuple[str, ...] = ()) -> DatasetSettings:
    """Read a dataset's declaration. Raises `ConfigError` that lists every problem of the file."""
    return load_yaml(path, DatasetSettings, overrides)


def seconds_of(text: str) -> float:
    """UTC seconds of a date or time. Raises `ValueError` where it is none."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no date or time; write one as 2026-01-31 or 2026-01-31T12:00:00Z") from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _labels_apart(good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    if both := sorted(set(good) & set(bad)):
        raise ValueError(f"label {both[0]!r} is called both good and bad")
