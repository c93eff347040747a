"""From scores to figures, and from two models' figures to what changed.

A figure is the mean over items, repeats of an item averaged first, with a 95 % interval that counts clusters (twins,
wordings) as the evidence. A change is the paired difference on the items that both models have a score for; p values
are adjusted by Holm over all measures, and a change is *sure* where the adjusted one is below 5 % and the
interval leaves zero out; where all items differ alike there is no interval, and p, of the sign-flip test, decides
alone. Every figure carries its caveats. Where more than half of the items are unscored there is
no figure: what is left would say more about why than about the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from metier.base.errors import DataError
from metier.evaluate.profile.probe import Better, Measure, Probe, Score
from metier.records.types import from_plain, to_plain
from metier.stats.compare import compare
from metier.stats.intervals import mean_interval, share_interval
from metier.stats.paired import average, holm

__all__ = ["ALPHA", "Change", "Figure", "Profiled", "changes", "comparable", "figures", "from_json"]

ALPHA = 0.05
FEW = 10  # clusters below which an interval is rough
MUCH = 0.1  # share of unscored items from which the figure says so
MOST = 0.5  # share above which there is no figure
Verdict = Literal["better", "worse", "more", "less", "no clear change", "not compared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measure of one model."""

    trait: str
    title: str  # of the trait
    name: str  # trait.measure
    label: str
    definition: str
    unit: str
    better: Better
    n: int  # items with a score
    clusters: int
    unscored: int  # items without
    value: float | None
    low: float | None
    high: float | None
    caveats: tuple[str, ...] = ()
    items: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # the scores of each item's repeats
    groups: Mapping[str, str] = field(default_factory=dict)  # the cluster of each item


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """A model's profile, as it is shown and saved."""

    model: str
    suite: str  # which items, in which versions
    seed: int
    repeats: int
    figures: tuple[Figure, ...]
    details: Mapping[str, Any] = field(default_factory=dict)  # by trait
    seconds: float = 0.0  # wall time of making it
    tokens: int = 0  # written
    run: str = ""  # in the ledger

    def to_json(self) -> dict[str, Any]:
        """As it is saved; `from_json` reads it."""
        plain: dict[str, Any] = to_plain(self)
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One measure of two models; `diff` is the first minus the second."""

    figure: Figure  # of the first
    other: Figure
    n: int = 0  # items on both sides
    mine: float | None = None  # the first model's mean on these
    theirs: float | None = None  # the second's
    diff: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    sure: bool = False
    verdict: Verdict = "not compared"
    caveats: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What a reader needs, without the items."""
        mine, other = self.figure, self.other
        return {
            "name": mine.name,
            "label": mine.label,
            "unit": mine.unit,
            "better": mine.better,
            "a": mine.value,
            "b": other.value,
            "n": self.n,
            "mean_a": self.mine,
            "mean_b": self.theirs,
            "diff": self.diff,
            "ci95": None if self.low is None else [self.low, self.high],
            "p": self.p,
            "p_holm": self.p_holm,
            "sure": self.sure,
            "verdict": self.verdict,
            "caveats": list(self.caveats),
        }


def figures(probe: Probe, scores: Sequence[Score]) -> list[Figure]:
    """The figures of a trait, one for each of its measures."""
    return [
        _figure(probe, measure, [one for one in scores if one.measure == measure.name]) for measure in probe.measures
    ]


def _figure(probe: Probe, measure: Measure, scores: Sequence[Score]) -> Figure:
    items: dict[str, list[float | None]] = {}
    groups: dict[str, str] = {}
    whys: dict[str, int] = {}
    for one in scores:
        items.setdefault(one.item, []).append(one.value)
        groups[one.item] = one.cluster
        if one.value is None:
            whys[one.why] = whys.get(one.why, 0) + 1
    means = [average(values) for values in items.values()]
    share = measure.unit == "share"
    found = (share_interval if share else mean_interval)(means, clusters=list(groups.values()))
    value, low, high = found.mean, found.low, found.high
    caveats = []
    unscored, total = found.left_out, len(items)
    if total == 0:
        caveats.append("no item of this measure was asked, or none applied")
    elif unscored > MOST * total:
        value = low = high = None
        caveats.append(f"{unscored} of {total} items are unscored: too many for a figure")
    elif unscored >= MUCH * total:
        caveats.append(_bounds(value, unscored, total) if share else f"{unscored} of {total} items are unscored")
    if unscored and whys:
        caveats.append(f"unscored because: {max(whys, key=lambda why: whys[why])[:120] or 'no verdict'}")
    if value is not None and low is None:
        caveats.append("one item: no interval" if found.n == 1 else "one cluster: no interval")
    elif value is not None and found.n > 1 and len({mean for mean in means if mean is not None}) == 1:
        caveats.append(f"all {found.n} items score alike")
        if not share:
            low = high = None
            caveats.append("no spread was seen, so there is no interval")
    elif value is not None and found.clusters < FEW:
        caveats.append(f"{found.clusters} cluster{'s' * (found.clusters > 1)}: few, so the interval is rough")
    return Figure(
        trait=probe.name,
        title=probe.title,
        name=f"{probe.name}.{measure.name}",
        label=measure.label,
        definition=measure.definition,
        unit=measure.unit,
        better=measure.better,
        n=found.n,
        clusters=found.clusters,
        unscored=unscored,
        value=value,
        low=low,
        high=high,
        caveats=tuple(caveats),
        items=items,
        groups=groups,
    )


def _bounds(value: float | None, unscored: int, total: int) -> str:
    """What a share could be, whatever the unscored items would have been."""
    least = (value or 0.0) * (total - unscored) / total
    return (
        f"{unscored} of {total} items are unscored; with them it lies from {100 * least:.0f} to "
        f"{100 * (least + unscored / total):.0f} %"
    )


def changes(mine: Profiled, other: Profiled) -> list[Change]:
    """What the first profile has more of than the second, by measure. Raises `DataError` where they share none."""
    pairs = _shared(mine, other)
    if not pairs:
        raise DataError("the two profiles share no measure, so there is nothing to compare")
    found = [_change(one, two) for one, two in pairs]
    adjusted = holm([one.p for one in found])
    return [_judged(one, p) for one, p in zip(found, adjusted, strict=True)]


def comparable(mine: Profiled, other: Profiled) -> bool:
    """Whether two profiles share a measure, so that `changes` can tell what differs."""
    return bool(_shared(mine, other))


def _shared(mine: Profiled, other: Profiled) -> list[tuple[Figure, Figure]]:
    theirs = {one.name: one for one in other.figures}
    return [(one, theirs[one.name]) for one in mine.figures if one.name in theirs]


def _change(one: Figure, two: Figure) -> Change:
    if one.value is None or two.value is None:
        side = "first" if one.value is None else "second"
        return Change(figure=one, other=two, caveats=(f"the {side} model has no figure",))
    try:
        found = compare(one.items, two.items, clusters={**two.groups, **one.groups})
    except DataError as error:
        return Change(figure=one, other=two, caveats=(str(error),))
    paired = found.paired
    left = (f"{paired.left_out} items have a score on one side only",) if paired.left_out else ()
    return Change(
        figure=one,
        other=two,
        n=paired.n,
        mine=paired.mean_a,
        theirs=paired.mean_b,
        diff=paired.diff,
        low=paired.low,
        high=paired.high,
        p=paired.p,
        caveats=(*found.caveats, *left),
    )


def _judged(one: Change, p_holm: float | None) -> Change:
    if one.diff is None:
        return one
    clear = one.diff != 0 if one.low is None or one.high is None else one.low > 0 or one.high < 0
    sure = clear and p_holm is not None and p_holm < ALPHA
    verdict: Verdict = "no clear change"
    if sure:
        rose = one.diff > 0
        if one.figure.better == "neither":
            verdict = "more" if rose else "less"
        else:
            verdict = "better" if rose == (one.figure.better == "more") else "worse"
    return replace(one, p_holm=p_holm, sure=sure, verdict=verdict)


def from_json(given: Any, name: str) -> Profiled:
    """A saved profile. Raises `DataError` where it is none."""
    if not isinstance(given, dict) or "figures" not in given:
        raise DataError(f"{name} is no saved profile; write one with metier profile MODEL -o {name}")
    known = {key: given[key] for key in Profiled.__dataclass_fields__ if key in given}
    return from_plain(Profiled, known)
