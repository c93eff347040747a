"""The audit of a run: for each `rl` stage, what its reward gained in training and what held-out gold gained with it.

Held-out gold is the feedback on `success` about the episodes of evaluations: before the stage (of the checkpoint that
it starts from), while it trained (`eval_every`), and after. Gains are paired by task; the reward's gain is that of the
last quarter of its steps over the first. Both are in units of their spread at the start, and resampled by clusters of
tasks, each on its own: the tasks of training are others than the held-out ones. Where gold did not vary at the start (a
base that never succeeds), its spread is that of both ends.

The episodes of training are a pool too: siblings of a group are responses to one prompt. Their own verdicts are gold
only where the verifiers are those of the held-out tasks; then high reward and failing gold can differ by partial credit
alone, so only held-out gold and people can tell, and the audit says so. Where the verifiers are others (a reward that
stands in for what is wanted), the pool has no gold until somebody is asked.

KL to the start is read where the run logged it (`options: {kl: k3, kl_coef: …}`: `reference_kl` a token, times the
tokens of an episode); the law of over-optimisation is fitted to held-out gold only then. Rewards leave out `reward.kl`.

Legend: B bootstrap draws, C checkpoints, T held-out tasks, E episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metier.base.errors import DataError
from metier.base.seeds import derive_seed
from metier.evaluate.transfer.audit import Answer, Audit, Checkpoint, Settings, audit_pool
from metier.evaluate.transfer.pool import Pool, Sample
from metier.feedback.rewards import RewardPolicy
from metier.feedback.verify import SUCCESS
from metier.records import events as event_log
from metier.records.types import Episode, Feedback, Run, Task
from metier.records.values import by_episode, lowest
from metier.records.view import LedgerView
from metier.stats.best_of_n import resample
from metier.stats.intervals import mean_interval
from metier.stats.overoptimisation import Fit, fit_overoptimisation
from metier.stats.paired import average
from metier.stats.transfer import FEWEST, Measured, Transfer, judge_transfer, unit_range

__all__ = ["audit_run", "pool_of_stage", "rl_stages"]

Floats = NDArray[np.float64]
_PART = 0.25  # of the steps, at either end, that the reward's gain is taken between


def rl_stages(ledger: LedgerView, run_id: str) -> tuple[Mapping[str, Any], ...]:
    """The settings of the run's `rl` stages. Raises `DataError` where it has none."""
    run = ledger.run(run_id)
    found = tuple(stage for stage in run.config.get("stages", ()) if stage.get("kind") == "rl")
    if not found:
        raise DataError(
            f"{run_id} has no stage of kind rl, so no reward was optimised in it; give a pool of samples with --pool"
        )
    return found


def pool_of_stage(ledger: LedgerView, run_id: str, stage: Mapping[str, Any]) -> Pool:
    """The episodes of an `rl` stage, in groups, under its name as the reward's."""
    return _pool(ledger, run_id, stage, _rewarded(ledger, run_id, stage))


def audit_run(
    ledger: LedgerView,
    run_id: str,
    stage: Mapping[str, Any],
    settings: Settings | None = None,
    *,
    answers: Sequence[Answer] = (),
) -> Audit:
    """The audit of the reward of one `rl` stage. Raises `DataError` where the stage has no episodes yet."""
    settings = settings or Settings()
    run, name = ledger.run(run_id), str(stage["name"])
    rewarded = _rewarded(ledger, run_id, stage)
    pool = _pool(ledger, run_id, stage, rewarded)
    if not pool.samples:
        raise DataError(
            f"stage {name!r} of {run_id} has no episodes yet; metier runs show {run_id} tells how far it is"
        )
    found = audit_pool(pool, name, settings, answers=answers)
    caveats = list(found.caveats)
    if found.samples:
        caveats.append(
            "gold of the training episodes is the verdict that the reward is made of: the curve of best of n and the "
            "false passes among them show what partial credit does, and only held-out gold and people show more"
        )
    trained = _Trained.of(rewarded)
    measured = _measured(ledger, run, stage)
    points = _checkpoints(measured, trained, _kl(run, name))
    note, transfer = "", None
    if len(measured) < 2:
        note = (
            f"held-out gold was not measured before and after {name}: add evaluate stages of "
            f"{stage['of']} and of {name}, or eval_every"
        )
    else:
        seed = derive_seed(settings.seed, "transfer", run_id, name) % (1 << 32)
        transfer, note = _transfer(measured, trained, settings, seed, caveats)
    fit = _law(measured, points, settings, derive_seed(settings.seed, "law", run_id, name) % (1 << 32))
    if fit is None and len(points) > 1:
        caveats.append(
            "the run logged no KL to its start at three checkpoints or more, so the law of over-optimisation in RL is "
            "not fitted"
        )
    return replace(
        found,
        transfer=transfer,
        note=note,
        checkpoints=points,
        fit=fit or found.fit,
        caveats=tuple(dict.fromkeys(caveats)),
    )


# --- what the ledger holds -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rewarded:
    """A training episode, what is said about it, and what it earned, but for the reward's KL term."""

    episode: Episode
    task: Task
    said: Sequence[Feedback]
    reward: float | None


def _rewarded(ledger: LedgerView, run_id: str, stage: Mapping[str, Any]) -> list[_Rewarded]:
    """Those of a stage, in the order of its steps."""
    episodes = ledger.episodes(run_id=run_id, stage=str(stage["name"]))
    about = _about(ledger, run_id, episodes)
    tasks = ledger.tasks(sorted({one.task_id for one in episodes}))
    policy = RewardPolicy.of(stage.get("reward") or {})
    return [
        _Rewarded(one, tasks[one.task_id], said, policy.reward(said, one.cost.completion_tokens))
        for one in episodes
        for said in (about.get(one.id, ()),)
    ]


def _pool(ledger: LedgerView, run_id: str, stage: Mapping[str, Any], rewarded: Sequence[_Rewarded]) -> Pool:
    name = str(stage["name"])
    own = _sources({one.episode.id: one.said for one in rewarded})
    same = own == _sources(_about(ledger, run_id, _held_out(ledger.run(run_id), stage, ledger)))
    samples = []
    for one in rewarded:
        if not one.episode.messages:
            continue  # erased
        given = len(one.task.messages)
        won = lowest(one.said)
        samples.append(
            Sample(
                id=one.episode.id,
                prompt=one.episode.group_id or one.episode.task_id,
                cluster=one.task.cluster,
                asked=one.episode.messages[:given],
                said=one.episode.messages[given:],
                rewards={name: one.reward},
                gold=None if won is None or not same else float(won == 1.0),
                episode=one.episode.id,
            )
        )
    return Pool(name=f"{run_id}:{name}", samples=tuple(samples))


def _about(ledger: LedgerView, run_id: str, episodes: Sequence[Episode]) -> dict[str, list[Feedback]]:
    return by_episode(ledger.feedback(run_id=run_id, about=[one.id for one in episodes], criterion=SUCCESS))


def _sources(about: Mapping[str, Sequence[Feedback]]) -> set[tuple[str, str]]:
    return {(row.source.name, row.source.version) for rows in about.values() for row in rows}


def _evaluations(run: Run, stage: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The last evaluation of what the stage starts from before it, and the first of what it made."""
    stages = list(run.config.get("stages", ()))
    place = next(n for n, one in enumerate(stages) if one["name"] == stage["name"])
    local = [one for one in stages if one["kind"] == "evaluate" and one.get("endpoint") is None]
    before = [one["name"] for one in stages[:place] if one in local and one["of"] == stage["of"]]
    after = [one["name"] for one in stages[place + 1 :] if one in local and one["of"] == stage["name"]]
    return (before[-1] if before else None), (after[0] if after else None)


def _held_out(run: Run, stage: Mapping[str, Any], ledger: LedgerView) -> list[Episode]:
    """Held-out episodes of all checkpoints around and in the stage, on its split."""
    split = stage.get("eval_split", "heldout")
    wanted = {name for name in _evaluations(run, stage) if name is not None}
    looks = f"{stage['name']}/look-"
    return [
        one for one in ledger.episodes(run_id=run.id, split=split) if one.stage in wanted or one.stage.startswith(looks)
    ]


@dataclass(frozen=True, slots=True)
class _Held:
    """Held-out gold of one checkpoint."""

    step: int
    gold: Mapping[str, float]  # by task
    unscored: int
    clusters: Mapping[str, str]


def _measured(ledger: LedgerView, run: Run, stage: Mapping[str, Any]) -> list[_Held]:
    """By step; a checkpoint that was measured twice counts with its evaluation stage."""
    before, after = _evaluations(run, stage)
    episodes = _held_out(run, stage, ledger)
    about = _about(ledger, run.id, episodes)
    tasks = ledger.tasks(sorted({one.task_id for one in episodes}))
    by_stage: dict[str, list[Episode]] = {}
    for one in episodes:
        by_stage.setdefault(one.stage, []).append(one)
    found: dict[int, _Held] = {}
    for name in sorted(by_stage, key=lambda one: one in (before, after)):  # evaluations last: they replace looks
        step = 0 if name == before else int(stage["steps"]) if name == after else int(name.rpartition("-")[2])
        found[step] = _held(step, by_stage[name], about, tasks)
    return [found[step] for step in sorted(found) if found[step].gold]


def _held(
    step: int, episodes: Sequence[Episode], about: Mapping[str, Sequence[Feedback]], tasks: Mapping[str, Task]
) -> _Held:
    values: dict[str, list[float | None]] = {}
    for one in episodes:
        won = lowest(about.get(one.id, ()))
        values.setdefault(one.task_id, []).append(None if won is None else float(won == 1.0))
    gold = {task: mean for task, repeats in values.items() if (mean := average(repeats)) is not None}
    unscored = sum(value is None for repeats in values.values() for value in repeats)
    return _Held(step, gold, unscored, {task: tasks[task].cluster for task in gold})


@dataclass(frozen=True, slots=True)
class _Trained:
    """What each scored training episode earned, at which step, in which cluster."""

    step_E: NDArray[np.intp]
    reward_E: Floats
    clusters: list[str]

    @classmethod
    def of(cls, rewarded: Sequence[_Rewarded]) -> _Trained:
        """Those that have a reward."""
        rows = [(one.episode.weights.step, one.reward, one.task.cluster) for one in rewarded if one.reward is not None]
        return cls(
            np.array([row[0] for row in rows], dtype=np.intp),
            np.array([row[1] for row in rows], dtype=np.float64),
            [row[2] for row in rows],
        )

    def near(self, step: int) -> NDArray[np.bool_]:
        """Episodes of the quarter of steps that is nearest to a step."""
        steps = np.unique(self.step_E)
        width = max(1, round(_PART * steps.size))
        chosen = steps[np.argsort(np.abs(steps - step), kind="stable")[:width]]
        return np.isin(self.step_E, chosen)


# --- what is made of it --------------------------------------------------------------------


def _checkpoints(
    measured: Sequence[_Held], trained: _Trained, kl_at: Callable[[int], float | None]
) -> tuple[Checkpoint, ...]:
    out = []
    for one in measured:
        gold = mean_interval(list(one.gold.values()), clusters=[one.clusters[task] for task in one.gold])
        start = measured[0]
        shared = [task for task in one.gold if task in start.gold]
        gain = None
        if one is not start and shared:
            gain = mean_interval(
                [one.gold[task] - start.gold[task] for task in shared], clusters=[one.clusters[task] for task in shared]
            )
        reward = None
        if trained.reward_E.size:
            near = trained.near(one.step)
            reward = mean_interval(
                list(trained.reward_E[near]), clusters=[c for c, yes in zip(trained.clusters, near, strict=True) if yes]
            )
        out.append(
            Checkpoint(
                step=one.step, reward=reward, gold=replace(gold, left_out=one.unscored), gain=gain, kl=kl_at(one.step)
            )
        )
    return tuple(out)


def _transfer(
    measured: Sequence[_Held], trained: _Trained, settings: Settings, seed: int, caveats: list[str]
) -> tuple[Transfer | None, str]:
    """The verdict between the first and the last checkpoint, or why there is none."""
    start, end = measured[0], measured[-1]
    tasks = [task for task in end.gold if task in start.gold]
    if start.step != 0:
        caveats.append(f"gold was first measured at step {start.step}, so gains before it are not seen")
    if not trained.reward_E.size:
        return None, "no training episode has a reward"
    first_E, last_E = trained.near(start.step), trained.near(end.step)
    if (first_E & last_E).any():
        return None, "the stage has too few steps for a first and a last part"
    before_T = np.array([start.gold[task] for task in tasks])
    after_T = np.array([end.gold[task] for task in tasks])
    labels = [end.clusters[task] for task in tasks]
    held_out, trained_on = len(set(labels)), len(set(trained.clusters))
    if held_out < 2 or trained_on < 2:
        return None, "one group of tasks: nothing is known of others"
    weights_BT = resample(labels, settings.draws, seed)
    weights_BE = resample(trained.clusters, settings.draws, seed + 1)

    def spread(values_T: Floats, weights_BT: Floats) -> Floats:
        total = np.maximum(weights_BT.sum(axis=1), 1e-9)
        mean = (weights_BT @ values_T) / total
        root: Floats = np.sqrt(np.maximum((weights_BT @ values_T**2) / total - mean**2, 0.0))
        return root

    whole_1T, base_T = np.ones((1, len(tasks))), before_T
    if spread(before_T, whole_1T)[0] == 0:
        caveats.append("gold does not vary at the start: its spread is that of the first and the last checkpoint")
        base_T = np.concatenate([before_T, after_T])
    if np.ptp(base_T) == 0:
        return None, "gold is the same for all tasks before and after: nothing can be said"
    if np.ptp(trained.reward_E[first_E]) == 0:
        return None, "all episodes of the first steps earned the same reward: there is no spread to measure gains in"
    twice = 1 if base_T.size == before_T.size else 2
    reward_E, _, _ = unit_range(trained.reward_E)

    def gain(change_T: Floats, rows_T: NDArray[np.bool_]) -> Measured:
        own_BT = weights_BT * rows_T
        spread_B = spread(base_T, np.tile(weights_BT, twice))
        mean_B = (own_BT @ change_T) / np.maximum(own_BT.sum(axis=1), 1e-9)
        drawn_B = np.divide(mean_B, spread_B, out=np.zeros_like(mean_B), where=spread_B > 0)
        return Measured(float(change_T[rows_T].mean() / spread(base_T, np.ones((1, base_T.size)))[0]), drawn_B)

    def earned(weights_BE: Floats) -> Floats:
        first_BE, last_BE = weights_BE * first_E, weights_BE * last_E
        rise_B = (last_BE @ reward_E) / np.maximum(last_BE.sum(axis=1), 1e-9)
        rise_B -= (first_BE @ reward_E) / np.maximum(first_BE.sum(axis=1), 1e-9)
        spread_B = spread(reward_E, first_BE)
        out: Floats = np.divide(rise_B, spread_B, out=np.zeros_like(rise_B), where=spread_B > 0)
        return out

    reward = Measured(float(earned(np.ones((1, reward_E.size)))[0]), earned(weights_BE))
    late = None
    if len(measured) > 2:
        middle = min(measured[1:-1], key=lambda one: abs(one.step - end.step / 2))
        rows_T = np.array([task in middle.gold for task in tasks])
        if rows_T.any():
            late = gain(np.array([end.gold[task] - middle.gold.get(task, 0.0) for task in tasks]), rows_T)
    found = judge_transfer(
        reward,
        gain(after_T - before_T, np.ones(len(tasks), dtype=bool)),
        n=len(tasks),
        clusters=min(held_out, trained_on),
        late=late,
        margin=settings.margin,
        left_out=len(set(start.gold) ^ set(end.gold)),
    )
    # Where it is the training that is short of something, no more held-out tasks would mend that.
    lacks = found.ratio is None and (held_out >= FEWEST or trained_on < FEWEST)
    found = replace(
        found,
        reward=replace(found.reward, clusters=trained_on),
        gold=replace(found.gold, clusters=held_out),
        more=None if lacks else found.more,
    )
    return found, ""


def _law(measured: Sequence[_Held], points: Sequence[Checkpoint], settings: Settings, seed: int) -> Fit | None:
    """The law in RL over checkpoints whose KL is known, on the tasks that all of them were measured on."""
    known = [(one, point.kl) for one, point in zip(measured, points, strict=True) if point.kl is not None]
    if sum(kl > 0 for _, kl in known) < 3 or known[0][1] > 0:
        return None
    tasks = [task for task in known[0][0].gold if all(task in one.gold for one, _ in known)]
    labels = [known[0][0].clusters[task] for task in tasks]
    if len(set(labels)) < 2:
        return None
    gain_TC = np.array([[one.gold[task] - known[0][0].gold[task] for one, _ in known] for task in tasks])
    weights_BT = resample(labels, settings.draws, seed)
    drawn_BC = (weights_BT @ gain_TC) / weights_BT.sum(axis=1, keepdims=True)
    d_C = [math.sqrt(kl) for _, kl in known]
    return fit_overoptimisation(d_C, list(gain_TC.mean(axis=0)), law="rl", draws_BK=drawn_BC)


def _kl(run: Run, stage: str) -> Callable[[int], float | None]:
    """KL to the start in nats an episode, at a step; None where the run's log does not tell."""
    logged = {int(e["step"]): e for e in event_log.steps(event_log.read(Path(run.folder)), stage)} if run.folder else {}

    def at(step: int) -> float | None:
        if step == 0:
            return 0.0
        event = logged.get(step, {})
        told, length = event.get("reference_kl"), event.get("completion_tokens_mean")
        return None if told is None or length is None else float(told) * float(length)

    return at
