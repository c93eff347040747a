"""The gate: may these weights replace those? Metric by metric, then one decision: pass, block or inconclusive.

A metric's *gain* is how much better the run is than the base, item by item, in the metric's own direction. It has to
lie above a threshold: minus `margin` where the run may be a little worse (non-inferiority), `gain` where it has to be
better. The metric passes where the lower bound of the gain is above the threshold, is blocked where the upper bound
is below, and is inconclusive between. What cannot be computed is inconclusive, never a pass.

The decision is over the hard metrics: pass where all of them pass, block where one is blocked, else inconclusive. Each
lower bound has the whole alpha: letting something bad through takes passing *every* hard metric, and of these one at
least is truly below its threshold and passes with probability alpha at most (an intersection-union test, Berger 1982),
so nothing has to be corrected for. Blocking takes any one of m, so each upper bound has alpha / m. The bounds hold
approximately, so they are taken at three quarters of that: over 1,000 simulated evaluations on the edge, of eight
shapes, the share of false passes then stays below alpha. Soft metrics are reported and decide nothing.

What it does not protect against: choosing margins after having looked, and gating the same items over and over until
a candidate passes by luck.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from metier.base.config import Settings
from metier.base.errors import DataError
from metier.stats.noninferiority import one_sided
from metier.stats.paired import joint_clusters
from metier.stats.power import items_needed

__all__ = ["Gate", "GateSettings", "MetricResult", "Rule", "Side", "decide"]

Verdict = Literal["pass", "block", "inconclusive"]

_USED = 0.75  # of alpha; the rest is kept for what the bounds only approximate


class Rule(Settings):
    """What is asked of one metric."""

    direction: Literal["higher", "lower"] = "higher"  # which is better
    # How much worse it may be, in the metric's unit; or how much better it must be at least.
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    gain: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    hard: bool = True  # whether it decides
    field: str | None = None  # of the samples; the metric's own name unless told
    suite: str | None = None  # of the samples' suites, or a run's STAGE or STAGE:SPLIT
    # Lowest and highest value that there can be; 0 and 1 if all are within.
    range: tuple[FiniteFloat, FiniteFloat] | None = None

    @model_validator(mode="after")
    def _one_threshold(self) -> Rule:
        if (self.margin is None) == (self.gain is None):
            raise ValueError("give either a margin (how much worse it may be) or a gain (how much better it must be)")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"the range {self.range[0]} to {self.range[1]} is empty")
        return self

    @property
    def threshold(self) -> float:
        """What the gain has to be above."""
        return -self.margin if self.margin is not None else float(self.gain or 0.0)


class GateSettings(Settings):
    """A gate's file."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # chance to pass what is not good enough, at most
    max_unscored: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of a side's samples; beyond it nothing is decided
    cluster: str | None = None  # the field that groups items; `cluster` where all samples have it
    metrics: dict[str, Rule]

    @model_validator(mode="after")
    def _decides(self) -> GateSettings:
        if not any(rule.hard for rule in self.metrics.values()):
            raise ValueError("no metric is hard, so this gate could never decide anything")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The scores of one side in one metric."""

    by_item: Mapping[str, Sequence[float | None]]
    clusters: Mapping[str, Hashable] = field(default_factory=dict)
    skipped: int = 0  # rows that could not be read, such as NaN
    notes: tuple[str, ...] = ()

    @property
    def unscored(self) -> tuple[int, int]:
        """How many samples have no score, of how many."""
        values = [value for repeats in self.by_item.values() for value in repeats]
        return sum(value is None for value in values) + self.skipped, len(values) + self.skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """What became of one metric."""

    name: str
    verdict: Verdict
    hard: bool
    why: str  # in words
    threshold: float  # that the gain has to be above
    direction: str
    n: int = 0  # items that both sides have
    clusters: int = 0
    run: float | None = None  # mean
    base: float | None = None
    gain: float | None = None  # run against base; positive is better
    low: float | None = None  # one-sided bounds of the gain
    high: float | None = None
    needed: int | None = None  # items that would decide, four times out of five, if the gain stays what it is
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The decision and what it is made of."""

    verdict: Verdict
    alpha: float
    metrics: tuple[MetricResult, ...]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 block, 3 inconclusive; 2 is for what cannot be read at all."""
        return {"pass": 0, "block": 1, "inconclusive": 3}[self.verdict]


def decide(settings: GateSettings, sides: Mapping[str, tuple[Side, Side] | str]) -> Gate:
    """The decision over the run's and the base's scores in each metric, or why these cannot be had."""
    hard = sum(rule.hard for rule in settings.metrics.values())
    results = []
    for name, rule in settings.metrics.items():
        given = sides[name]
        if isinstance(given, str):
            results.append(_unknown(name, rule, f"it cannot be computed: {given}"))
        else:
            results.append(_metric(name, rule, *given, settings, hard if rule.hard else 1))
    deciding = [result.verdict for result in results if result.hard]
    verdict: Verdict = "inconclusive"
    if "block" in deciding:
        verdict = "block"
    elif all(one == "pass" for one in deciding):
        verdict = "pass"
    return Gate(verdict=verdict, alpha=settings.alpha, metrics=tuple(results))


def _unknown(name: str, rule: Rule, why: str, caveats: Sequence[str] = ()) -> MetricResult:
    return MetricResult(
        name=name,
        verdict="inconclusive",
        hard=rule.hard,
        why=why,
        threshold=rule.threshold,
        direction=rule.direction,
        caveats=tuple(caveats),
    )


def _metric(name: str, rule: Rule, run: Side, base: Side, settings: GateSettings, hard: int) -> MetricResult:
    caveats = _caveats(run, base)
    for what, side in (("run", run), ("base", base)):
        missing, samples = side.unscored
        if missing > settings.max_unscored * samples:
            return _unknown(
                name,
                rule,
                f"{missing} of the {samples} samples of the {what} are unscored, more than the "
                f"{settings.max_unscored:.0%} of max_unscored, and who knows what they would have been",
                caveats,
            )
    try:
        clusters = joint_clusters(run.clusters, base.clusters, ("the run", "the base"))
        span, said = _span(rule, run, base)
    except DataError as error:
        return _unknown(name, rule, f"it cannot be computed: {error}", caveats)
    if rule.margin is not None and span is not None and rule.margin >= span:
        why = (
            f"no result can miss a margin of {rule.margin:g} where scores have a range of {span:g}: give a smaller one"
        )
        return _unknown(name, rule, why, [*caveats, *([said] if said else [])])
    better, worse = (run, base) if rule.direction == "higher" else (base, run)
    below, above = _USED * settings.alpha, _USED * settings.alpha / hard
    found = one_sided(
        better.by_item, worse.by_item, alpha=below, alpha_high=above, clusters=clusters or None, span=span
    )
    if found.diff is None:
        return _unknown(name, rule, "no item is scored on both sides", caveats)
    if found.n == 1 or found.clusters == 1:
        caveats.append(f"one {'item' if found.n == 1 else 'cluster'}: there is no error to be known")
    elif found.se == 0:
        caveats.append("all items differ by the same amount: no spread was seen")
    elif found.clusters < 30:
        caveats.append(f"{found.clusters} {'items' if found.clusters == found.n else 'clusters'}: few")
    if said and not found.se:
        caveats.append(said)
    verdict: Verdict = "inconclusive"
    needed = None
    if found.low is None or found.high is None:
        why = "the data give no bound; " + ("say the metric's range" if found.n > 1 else "more items are needed")
    elif found.low > rule.threshold:
        verdict, why = "pass", f"the gain is above {rule.threshold:+g}: at least {found.low:+.4f}"
    elif found.high < rule.threshold:
        verdict, why = "block", f"the gain is below {rule.threshold:+g}: at most {found.high:+.4f}"
    else:
        away = found.diff - rule.threshold
        needed = _needed(away, found.n, found.se, span, below if away > 0 else above)
        why = f"the gain may be on either side of {rule.threshold:+g}"
        if needed is not None and needed > found.n:
            why += f"; about {needed} items would decide, if it stays at {found.diff:+.4f}"
        else:
            needed = None
    means = (found.mean_a, found.mean_b) if rule.direction == "higher" else (found.mean_b, found.mean_a)
    return MetricResult(
        name=name,
        verdict=verdict,
        hard=rule.hard,
        why=why,
        threshold=rule.threshold,
        direction=rule.direction,
        n=found.n,
        clusters=found.clusters,
        run=means[0],
        base=means[1],
        gain=found.diff,
        low=found.low,
        high=found.high,
        needed=needed,
        caveats=tuple(caveats),
    )


def _needed(away: float, n: int, se: float | None, span: float | None, alpha: float) -> int | None:
    """Items with which the bound would clear a threshold that the gain is `away` from; None where none would."""
    if away == 0:
        return None
    if se:
        return items_needed(away, between=n * se * se, alpha=2 * alpha)
    if span is None or abs(away) >= span:
        return None
    return math.ceil(math.log(alpha) / math.log(1 - abs(away) / span))


def _span(rule: Rule, run: Side, base: Side) -> tuple[float | None, str]:
    """The range of the scores as one number, and what was assumed. Raises `DataError` where a score is outside."""
    values = [
        value for side in (run, base) for scores in side.by_item.values() for value in scores if value is not None
    ]
    if rule.range is not None:
        low, high = rule.range
        outside = next((value for value in values if not low <= value <= high), None)
        if outside is not None:
            raise DataError(f"a score of {outside} is outside the range {low} to {high}")
        return high - low, ""
    if values and min(values) >= 0 and max(values) <= 1:
        return 1.0, "scores are taken to lie between 0 and 1; say `range` where they do not"
    return None, ""


def _caveats(run: Side, base: Side) -> list[str]:
    out = []
    only_run = sum(item not in base.by_item for item in run.by_item)
    only_base = sum(item not in run.by_item for item in base.by_item)
    if only_run or only_base:
        shared = len(run.by_item) - only_run
        out.append(f"paired on {shared} shared items; {only_run} are in the run only and {only_base} in the base only")
    for what, side in (("run", run), ("base", base)):
        repeats = sum(len(values) - 1 for values in side.by_item.values())
        if repeats:
            out.append(f"{what}: {repeats} further samples of the same ids were averaged with the first, as repeats")
        missing, samples = side.unscored
        if missing:
            more = f", {side.skipped} of them because they could not be read" if side.skipped else ""
            out.append(f"{what}: {missing} of {samples} samples are unscored and left out{more}")
        out += [f"{what}: {note}" for note in side.notes]
    return out
