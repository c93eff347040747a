"""What is wrong with a training, in words: a pure look at the figures of its steps.

Each finding names a failure that people meet, the figures that show it and what helps.
Nothing is found where a figure was not logged. The thresholds are in the code, beside the
words; they are meant to be late rather than wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Finding", "diagnose"]

WINDOW = 5  # steps that are averaged at the start and at the end


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    name: str
    text: str  # what was seen, and what helps


def diagnose(steps: Sequence[Mapping[str, float]]) -> list[Finding]:
    """Findings from the `step` events of one stage, oldest first; none where all seems well."""
    found = []
    ends = _series(steps, "ends_in_loss")
    if ends and ends[-1] < 0.5:
        found.append(
            Finding(
                "end never learned",
                f"the token that ends a turn carries loss in {ends[-1]:.0%} of the examples, so the model will not "
                "learn to stop; use a renderer that keeps it in the assistant's mask, or cut fewer rows short",
            )
        )
    labels = _series(steps, "loss_tokens")
    if labels and max(labels) == 0:
        found.append(Finding("nothing learned", "no token carried loss in any step; check the assistant mask"))
    found += _entropy(_series(steps, "entropy"))
    found += _lengths(_series(steps, "completion_tokens_mean"), _series(steps, "success"))
    found += _groups(steps)
    found += _ratio(_series(steps, "ratio"), _series(steps, "clip_fraction"))
    found += _mismatch(_series(steps, "mismatch_kl"))
    found += _gradient(_series(steps, "grad_norm"))
    found += _unscored(steps)
    return found


def _series(steps: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [float(step[name]) for step in steps if isinstance(step.get(name), (int, float))]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last few."""
    n = max(1, min(WINDOW, len(values) // 2))
    return statistics.fmean(values[:n]), statistics.fmean(values[-n:])


def _entropy(values: Sequence[float]) -> list[Finding]:
    if len(values) < 2:
        return []
    first, last = _ends(values)
    if last < 0.02 and last < first / 5:
        text = (
            f"entropy fell from {first:.3f} to {last:.3f} nats a token: the policy has stopped trying anything else; "
        )
        return [Finding("collapsed entropy", text + "lower lr, raise clip_high, or add a kl term")]
    return []


def _lengths(lengths: Sequence[float], success: Sequence[float]) -> list[Finding]:
    if len(lengths) < 2 or len(success) < 2:
        return []
    (short, long), (before, after) = _ends(lengths), _ends(success)
    if long > 1.5 * short and after <= before + 0.02:
        text = (
            f"episodes grew from {short:.0f} to {long:.0f} tokens while success went from {before:.0%} to {after:.0%}; "
        )
        return [Finding("length hacking", text + "look at what the reward pays for length, or use normaliser constant")]
    return []


def _groups(steps: Sequence[Mapping[str, float]]) -> list[Finding]:
    flat, groups = sum(_series(steps, "groups_without_variance")), sum(_series(steps, "groups"))
    if groups and flat / groups > 0.7:
        text = f"{flat / groups:.0%} of the groups had equal rewards and taught nothing; "
        return [Finding("dead groups", text + "choose tasks that are sometimes solved, or reward partial success")]
    return []


def _ratio(ratio: Sequence[float], clipped: Sequence[float]) -> list[Finding]:
    if ratio and max(ratio) > 2:
        seen = f"the mean ratio of new to old probability reached {max(ratio):.1f}"
    elif clipped and statistics.fmean(clipped) > 0.4:
        seen = f"{statistics.fmean(clipped):.0%} of the tokens were clipped"
    else:
        return []
    return [Finding("exploding ratio", f"{seen}; take fewer updates from one sample, or lower lr")]


def _mismatch(values: Sequence[float]) -> list[Finding]:
    if values and statistics.median(values) > 0.05:
        text = f"sampler and trainer disagree by {statistics.median(values):.3f} nats a token; "
        return [Finding("sampler mismatch", text + "check that the sampler has the newest weights, and its precision")]
    return []


def _gradient(values: Sequence[float]) -> list[Finding]:
    if len(values) < 2 * WINDOW:
        return []
    usual = statistics.median(values)
    if usual > 0 and values[-1] > 20 * usual:
        text = f"the last gradient norm is {values[-1]:.3g}, {values[-1] / usual:.0f} times the usual one; "
        return [Finding("exploding gradient", text + "lower lr, or set clip")]
    return []


def _unscored(steps: Sequence[Mapping[str, float]]) -> list[Finding]:
    unscored, episodes = sum(_series(steps, "unscored")), sum(_series(steps, "episodes"))
    if episodes and unscored / episodes > 0.05:
        text = f"{unscored / episodes:.0%} of the episodes could not be scored; "
        return [Finding("unscored episodes", text + "read their errors: metier runs show EPISODE")]
    return []
