"""What a report says, before it has a look: plain frozen data, ready for JSON.

`collect.py` fills these from the ledger and the event log; `page.py` draws them. Every
tuple that has one entry per model follows the order of `ReportData.models`, which is
the order in which the run evaluated them. What the run did not measure is None or an
empty tuple and does not appear on the page.

Units: shares are 0 to 1, durations seconds, lengths tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from metier.evaluate.gate import MetricResult
from metier.evaluate.profile.figures import Profiled
from metier.evaluate.transfer.audit import Audit
from metier.records.transcript import Turn
from metier.stats.calibration import Calibration
from metier.stats.intervals import Interval
from metier.stats.paired import Paired

__all__ = [
    "Case",
    "Change",
    "Column",
    "Cost",
    "CurvePanel",
    "CurveSet",
    "DatasetView",
    "Flips",
    "Forecasts",
    "GateView",
    "Held",
    "KindRow",
    "LineageNode",
    "ModelInfo",
    "Outcome",
    "PairRow",
    "Path",
    "ReportData",
    "RewardAgainstHeld",
    "RewardModel",
    "Rung",
    "Series",
    "SourceCount",
    "StageCost",
    "TraitRow",
    "Verdict",
]

Outcome = Literal["right", "wrong", "unscored"]
Path = Literal["gained", "lost", "right", "wrong", "unscored"]  # from one model to another


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One measured model: a column of the report."""

    stage: str  # the evaluate stage that measured it
    measured: str  # the stage whose checkpoint it is, or "base"
    label: str  # short, for legends
    checkpoint: str
    episodes: int  # evaluation episodes
    unscored: int  # of these, without a verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From one model to a later one on the same tasks; `paired.diff` is after minus before."""

    before: int  # index into models
    after: int
    paired: Paired
    p_holm: float | None = None  # adjusted over the rungs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One split of the ladder: success of every model and what changed."""

    split: str
    label: str
    note: str  # what is new here, in a few words
    shares: tuple[Interval, ...]  # per model
    overall: Change | None  # first model to last
    steps: tuple[Change, ...]  # consecutive models, where there are three or more


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow:
    """The loss of held-out text under every model, in nats per token; lower is better."""

    losses: tuple[Interval, ...]  # per model; n is 0 where it was not measured
    overall: Change | None  # first model to last


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow:
    """Success at one kind of work on the first rung."""

    kind: str
    label: str
    shares: tuple[Interval, ...]  # per model
    overall: Change | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """Twin tasks of one rung: one forbids the act, the other allows it."""

    split: str
    label: str
    n: int  # pairs
    forbidden: tuple[Interval, ...]  # success on the forbidden side, per model
    allowed: tuple[Interval, ...]  # success on the allowed side
    both: tuple[Interval, ...]  # both sides of a pair right


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitRow:
    """One habit, counted: a mean per model."""

    label: str
    note: str
    unit: Literal["share", "tokens", "count"]
    values: tuple[Interval, ...]  # per model


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line: values over steps."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePanel:
    """One small chart of a training stage."""

    title: str
    note: str
    series: tuple[Series, ...]
    share: bool = False  # values are shares: the axis is 0 to 100 %


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSet:
    """The charts of one training stage."""

    stage: str
    label: str
    panels: tuple[CurvePanel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A measurement on held-out tasks during or around training."""

    step: float
    share: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardAgainstHeld:
    """What training was paid for, and what it bought."""

    stage: str
    label: str
    reward: Series | None
    success: Series | None  # share of training episodes that succeeded
    held: tuple[Held, ...]
    during: bool  # whether heldout was measured while training, not only around it


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One model's attempt at a case."""

    model: int  # index into models
    episode_id: str
    outcome: Outcome
    reason: str  # the verifier's
    parts: tuple[tuple[str, float], ...]  # each part's own verdict, 0 to 1
    turns: tuple[Turn, ...]  # what followed the task's own messages
    tokens: int  # written by the policy
    stop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One task, tried by the first and the last model, and perhaps by those between."""

    task_id: str
    kind: str
    kind_label: str
    split: str
    split_label: str
    desk: str  # empty where the family has none
    opening: str  # the last user message that the policy sees first
    setup: tuple[Turn, ...]  # the task's own messages
    tools: tuple[tuple[str, str], ...]  # name, description
    columns: tuple[Column, ...]
    path: Path  # first model to last


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """What became of one split's tasks from the first model to the last, first attempts."""

    split: str
    label: str
    counts: Mapping[Path, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A reward model against the verifiers' truth of pairs that nothing learned from."""

    stage: str  # that measured it
    label: str
    accuracy: Interval  # share of pairs whose better side it prefers
    calibration: Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeView:
    """A judge that a run trained, and what its audit found."""

    label: str
    fit: Literal["fit", "unfit", "undecided"]
    right: float  # share of the audit's pairs
    low: float | None
    high: float | None
    n: int
    why: tuple[str, ...]  # it is not fit
    judgements: int  # that it gave


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecasts:
    """How far one model's confidence of one sort can be believed."""

    model: str
    label: str
    calibration: Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class GateView:
    """A release decision on one of the run's models."""

    model: str
    baseline: str
    verdict: Literal["pass", "block", "inconclusive"]
    created_at: float
    alpha: float | None
    metrics: tuple[MetricResult, ...]
    earlier: int  # decisions on the same two before this one


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCount:
    """How many rows of feedback one version of one source gave."""

    kind: str
    name: str
    version: str
    criterion: str
    rows: int
    unscored: int  # of these, without a value


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetView:
    """A dataset that a checkpoint was trained on."""

    id: str
    name: str
    kind: str
    episodes: int
    tasks: int
    sources: tuple[SourceCount, ...]
    stale: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """A checkpoint and what made it."""

    id: str
    label: str
    stage: str
    step: int
    parent: str | None
    objective: str
    path: str
    weights_hash: str
    datasets: tuple[DatasetView, ...]
    stale: str | None
    others: int  # earlier checkpoints of the same stage


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage took."""

    stage: str
    label: str
    kind: str
    seconds: float | None
    peak_memory_gb: float | None
    episodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the run took."""

    stages: tuple[StageCost, ...]
    seconds: float | None  # sum over stages
    tokens_trained: int | None
    episodes: int  # sampled, all stages
    tokens_sampled: int  # written by policies in those
    peak_memory_gb: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer, in one plain sentence, and what must be said beside it."""

    direction: Literal["up", "down", "flat", "unknown"]
    sentence: str
    beside: tuple[str, ...] = ()  # e.g. whether RL added something; unscored episodes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that one report says."""

    run_id: str
    title: str
    model: str
    created_at: float  # UTC seconds
    seed: int
    verdict: Verdict
    models: tuple[ModelInfo, ...]
    rungs: tuple[Rung, ...]
    cost: Cost
    kinds: tuple[KindRow, ...] = ()
    pairs: tuple[PairRow, ...] = ()
    text: TextRow | None = None
    traits: tuple[TraitRow, ...] = ()
    curves: tuple[CurveSet, ...] = ()
    reward: tuple[RewardAgainstHeld, ...] = ()
    transfers: tuple[Audit, ...] = ()  # of each rl stage's reward
    reward_models: tuple[RewardModel, ...] = ()
    judges: tuple[JudgeView, ...] = ()
    forecasts: tuple[Forecasts, ...] = ()
    profile: Profiled | None = None  # of the last model that has one
    profile_before: Profiled | None = None  # of the first, where that is another
    gates: tuple[GateView, ...] = ()  # the newest first
    flips: tuple[Flips, ...] = ()
    cases: tuple[Case, ...] = ()
    cases_rule: str = ""
    lineage: tuple[LineageNode, ...] = ()
    feedback: tuple[SourceCount, ...] = ()  # all of the run's, by source
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    config_yaml: str = ""
