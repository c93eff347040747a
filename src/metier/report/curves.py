"""From the event log to learning curves and costs.

Pure functions of events (dicts as `records/events.py` describes them). A figure that a
stage never logged has no panel; a value that is null or not a number has no point.
Long curves are thinned to at most `POINTS` points, each the mean of its stretch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metier.records.events import Event, steps
from metier.records.types import Episode, Run, Stage
from metier.report.data import Cost, CurvePanel, CurveSet, Held, RewardAgainstHeld, Series, StageCost
from metier.report.wording import title_of
from metier.stats.intervals import Interval, wilson

__all__ = ["cost_of", "curve_sets", "reward_against_held", "sampled"]

POINTS = 300

# key of the figure, title, note, whether it is a share
PANELS: tuple[tuple[str, str, str, bool], ...] = (
    ("loss", "Loss", "", False),
    ("reward", "Reward", "mean over the step's episodes", False),
    ("success", "Success in training", "share of the step's episodes", True),
    ("entropy", "Entropy", "nats per token; at zero it explores no more", False),
    ("mismatch_kl", "Sampler mismatch", "KL, sampler to trainer; zero is right", False),
    ("clip_fraction", "Clipped tokens", "share outside the trust region", True),
    ("grad_norm", "Gradient norm", "before clipping", False),
    ("completion_tokens_mean", "Completion length", "tokens per episode", False),
    ("groups_without_variance", "Groups without variance", "their episodes carry no gradient", False),
    ("tokens_per_s", "Speed", "tokens per second", False),
)
HIDDEN_FOR = {"rl": {"loss"}}  # a policy-gradient loss says nothing by its size


def curve_sets(events: Sequence[Event], stages: Sequence[Stage]) -> tuple[CurveSet, ...]:
    """The panels of every stage that logged steps, in the order of the stages."""
    out = []
    for stage in stages:
        logged = steps(events, stage.name)
        hidden = HIDDEN_FOR.get(stage.kind, set())
        panels = []
        for key, title, note, share in PANELS:
            series = None if key in hidden else _series(logged, key, title)
            if series is not None and (len(series.steps) > 1):
                panels.append(CurvePanel(title=title, note=note, series=(series,), share=share))
        if panels:
            out.append(CurveSet(stage=stage.name, label=title_of(stage.name), panels=tuple(panels)))
    return tuple(out)


def reward_against_held(
    events: Sequence[Event],
    stages: Sequence[Stage],
    split: str,
    around: Mapping[str, tuple[Interval | None, Interval | None]],
) -> tuple[RewardAgainstHeld, ...]:
    """For every RL stage: its reward, and success on `split` measured while it trained.

    Where nothing was measured during training, `around` supplies what was measured
    before and after the stage.
    """
    out = []
    for stage in stages:
        logged = steps(events, stage.name)
        reward, success = _series(logged, "reward", "Training reward"), _series(logged, "success", "Training success")
        if stage.kind != "rl" or (reward is None and success is None):
            continue
        held = _held(events, stage.name, split)
        during = bool(held)
        if not held:
            before, after = around.get(stage.name, (None, None))
            last = float(logged[-1]["step"])
            pairs = ((0.0, before), (last, after))
            held = tuple(Held(step=step, share=share) for step, share in pairs if share is not None and share.n)
        out.append(
            RewardAgainstHeld(
                stage=stage.name,
                label=title_of(stage.name),
                reward=reward,
                success=success,
                held=held,
                during=during,
            )
        )
    return tuple(out)


def cost_of(events: Sequence[Event], stages: Sequence[Stage], sampled: Mapping[str, tuple[int, int]]) -> Cost:
    """What the run took; `sampled` has the episodes and the tokens written, by stage."""
    ends = {event["stage"]: event for event in events if event["event"] == "stage_end"}
    rows = []
    trained = 0.0
    for stage in stages:
        end = ends.get(stage.name, {})
        logged = steps(events, stage.name)
        seconds = _number(end.get("seconds"))
        episodes = sampled.get(stage.name, (0, 0))[0]
        trained += sum(_tokens(event) for event in logged)
        if stage.kind == "report" and seconds is None:
            continue
        rows.append(
            StageCost(
                stage=stage.name,
                label=title_of(stage.name),
                kind=stage.kind,
                seconds=seconds,
                peak_memory_gb=_number(end.get("peak_memory_gb")),
                episodes=episodes,
            )
        )
    known = [row.seconds for row in rows if row.seconds is not None]
    peaks = [row.peak_memory_gb for row in rows if row.peak_memory_gb is not None]
    return Cost(
        stages=tuple(rows),
        seconds=math.fsum(known) if known else None,
        tokens_trained=round(trained) if trained else None,
        episodes=sum(count for count, _ in sampled.values()),
        tokens_sampled=sum(tokens for _, tokens in sampled.values()),
        peak_memory_gb=max(peaks) if peaks else None,
    )


def sampled(run: Run, episodes: Sequence[Episode]) -> dict[str, tuple[int, int]]:
    """Episodes and tokens written, by stage; demonstrations come from an oracle and are not sampled."""
    written = {stage.name for stage in run.stages if stage.kind == "demonstrate"}
    out: dict[str, tuple[int, int]] = {}
    for episode in episodes:
        if episode.stage in written:
            continue
        count, tokens = out.get(episode.stage, (0, 0))
        out[episode.stage] = (count + 1, tokens + episode.cost.completion_tokens)
    return out


def _held(events: Sequence[Event], stage: str, split: str) -> tuple[Held, ...]:
    """What `eval` events of a stage measured on a split; where a step was redone, the last counts."""
    found: dict[float, Held] = {}
    for event in events:
        if event["event"] != "eval" or event["stage"] != stage or event.get("split", split) != split:
            continue
        step, share, n = _number(event.get("step")), _number(event.get("success")), _number(event.get("n"))
        if step is None or share is None or not n or not 0 <= share <= 1:
            continue
        low, high = _number(event.get("low")), _number(event.get("high"))
        if low is None or high is None:
            low, high = wilson(share * n, n)
        interval = Interval(n=int(n), clusters=int(n), left_out=0, mean=share, se=None, low=low, high=high)
        found[step] = Held(step=step, share=interval)
    return tuple(found[step] for step in sorted(found))


def _series(logged: Sequence[Event], key: str, label: str) -> Series | None:
    points = [(float(event["step"]), value) for event in logged if (value := _number(event.get(key))) is not None]
    if not points:
        return None
    stretch = -(-len(points) // POINTS)
    thin = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return Series(
        label=label,
        steps=tuple(part[-1][0] for part in thin),
        values=tuple(math.fsum(value for _, value in part) / len(part) for part in thin),
    )


def _tokens(event: Mapping[str, Any]) -> float:
    """Tokens that a step trained on: logged, or episodes times their mean length."""
    tokens = _number(event.get("tokens"))
    if tokens is not None:
        return tokens
    episodes, length = _number(event.get("episodes")), _number(event.get("completion_tokens_mean"))
    return 0.0 if episodes is None or length is None else episodes * length


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
