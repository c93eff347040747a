"""The sentence on top of the report: did it get better, by how much, how sure.

Pure words about numbers that are already there. It never says "rose" or "fell" unless
the paired interval leaves zero out, and it never leaves out that episodes went unscored.
"""

from __future__ import annotations

from typing import Literal

from metier.report.data import Change, ModelInfo, Rung, Verdict
from metier.report.wording import NB, change_words, count, percent, points, points_interval, share_with_interval
from metier.stats.paired import Paired

__all__ = ["verdict"]


def verdict(models: tuple[ModelInfo, ...], rungs: tuple[Rung, ...]) -> Verdict:
    """The sentence on top of the page, about the first rung, and what belongs beside it."""
    beside: list[str] = []
    unscored = sum(model.unscored for model in models)
    if unscored:
        one = unscored == 1
        beside.append(
            f"{count(unscored)} evaluation episode{' has' if one else 's have'} no verdict (a machine failed, not the"
            f" model); {'it is' if one else 'they are'} left out, not counted as failure."
        )
    if not rungs:
        return Verdict(direction="unknown", sentence="This run has no scored evaluation yet.", beside=tuple(beside))
    rung = rungs[0]
    what = f"{rung.label} success"
    if rung.overall is None:
        share = rung.shares[-1]
        sentence = f"{what} is {share_with_interval(share)}, n{NB}={NB}{share.n}; measured once, so nothing to compare."
        return Verdict(direction="unknown", sentence=sentence, beside=tuple(beside))
    change = rung.overall.paired
    if change.n == 0:
        sentence = f"{what} before and after cannot be compared: no task was scored for both."
        return Verdict(direction="unknown", sentence=sentence, beside=tuple(beside))
    tail = _evidence(change)
    before, after = percent(change.mean_b), percent(change.mean_a)
    if change.clear:
        up = (change.diff or 0) > 0
        sentence = f"{what} {'rose' if up else 'fell'} from {before} to {after} ({tail})."
        direction: Literal["up", "down", "flat", "unknown"] = "up" if up else "down"
    elif change.diff == 0 and change.low is None:
        sentence, direction = f"{what} did not change: {after} before and after ({tail}).", "flat"
    elif change.low is None:
        sentence = f"{what} went from {before} to {after} ({tail})."
        direction = "unknown"
    else:
        sentence = f"No clear change in {what[:1].lower() + what[1:]}: {before} before, {after} after ({tail})."
        direction = "flat"
    if rung.steps:
        step = rung.steps[-1]
        beside.insert(0, _step_sentence(models, step))
    return Verdict(direction=direction, sentence=sentence, beside=tuple(beside))


def _evidence(change: Paired) -> str:
    interval = f"95{NB}% interval {points_interval(change.low, change.high)}"
    if change.low is None:
        interval = f"no interval: {change_words(change)}"
    return f"{points(change.diff)}{NB}points, {interval}, n{NB}={NB}{change.n}, paired"


def _step_sentence(models: tuple[ModelInfo, ...], step: Change) -> str:
    earlier, later = models[step.before].label, models[step.after].label
    change = step.paired
    if change.n == 0:
        return f"{later} and {earlier} have no scored task in common."
    detail = f"{points(change.diff)}{NB}points, 95{NB}% interval {points_interval(change.low, change.high)}"
    if change.clear:
        verb = "added to" if (change.diff or 0) > 0 else "lost against"
        return f"{later} {verb} {earlier}: {detail}."
    if change.low is None:
        return f"From {earlier} to {later}: {points(change.diff)}{NB}points, {change_words(change)}."
    return f"From {earlier} to {later} there is no clear change ({detail})."
