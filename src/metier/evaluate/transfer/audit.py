"""The audit of one reward on a pool: curves of best of n, the verdict, the peak, false passes, form, exploits.

All intervals of a curve and of the verdict come from one bootstrap over clusters of prompts, with reward and gold drawn
together. A sample counts where it has both; what lacks gold is counted and told, never taken for 0. The largest n is
the last power of 2 within half of the samples that nine of ten prompts have (at n = N a prompt would count with one
response, and the verdict be as noisy as that); other prompts are left out. The spread in which gains are told is that
within prompts, since a choice among the responses to one prompt has nothing else to work with.

Pure: no disk, no clock; the seed decides the draws.

Legend: P prompts, K values of n, B bootstrap draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metier.base.seeds import derive_seed
from metier.evaluate.transfer.exploits import Cluster, exploit_clusters
from metier.evaluate.transfer.features import features_of
from metier.evaluate.transfer.pool import Pool, Sample, by_prompt
from metier.stats.best_of_n import best_of_n, kl_of_best, resample, spread_within
from metier.stats.explained import Explained, explained
from metier.stats.intervals import Interval
from metier.stats.overoptimisation import Fit, fit_overoptimisation
from metier.stats.transfer import MARGIN, Measured, Transfer, interval_of_draws, judge_transfer, unit_range
from metier.stats.weighted import weighted_share

__all__ = ["Answer", "Audit", "Checkpoint", "FalsePass", "Point", "Settings", "audit_pool", "curves", "high_reward"]

Floats = NDArray[np.float64]
_GAP = 0.05  # share without gold, or of repeated rows, from which on it is a caveat
_REASONS = 3  # that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an audit takes for given."""

    margin: float = MARGIN  # of the ratio of gains; see `metier.stats.transfer`
    passes: float = 0.5  # gold from which on a response passes
    high: float = 0.2  # the share of responses with the highest rewards that false passes are counted in
    draws: int = 2000  # of the bootstrap
    seed: int = 0
    most: int | None = None  # the largest n; half of a prompt's samples unless told


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a person or a stronger judge said of one sample that was drawn for them."""

    sample: str
    right: float | None  # 1, 0, or between where several disagree; None is unscored
    propensity: float  # with which it was drawn
    failed: str = ""  # why who was asked could not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One n of a best-of-n curve, in the units of reward and gold."""

    n: int
    kl: float  # nats; an upper bound where rewards tie
    reward: Interval
    gold: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Held-out gold at one step of training."""

    step: int
    reward: Interval | None  # of the training episodes drawn near this step
    gold: Interval
    gain: Interval | None  # of gold over the start, paired by task; None at the start
    kl: float | None = None  # nats to the start, where the run logged it


@dataclass(frozen=True, slots=True, kw_only=True)
class FalsePass:
    """P(gold fails | high reward), and how often gold fails anywhere."""

    threshold: float  # the reward from which on it is high
    share: float  # of responses whose reward is
    fails: Interval  # among them
    anywhere: Interval  # among all
    by: str  # whose gold


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Everything that is said of one reward."""

    reward: str
    transfer: Transfer | None  # None where gold is not known well enough for a verdict
    note: str  # why there is none
    prompts: int
    samples: int  # with reward and gold
    unscored_reward: int
    unscored_gold: int
    curve: tuple[Point, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    fit: Fit | None = None
    false_pass: tuple[FalsePass, ...] = ()
    explained: Explained | None = None
    clusters: tuple[Cluster, ...] = ()
    exploits: int = 0  # responses of high reward that fail gold
    caveats: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The word."""
        return "undecided" if self.transfer is None else self.transfer.verdict


def high_reward(rewards: Sequence[float], share: float) -> float:
    """The reward that `share` of all responses have at least; more where rewards tie."""
    return float(np.quantile(np.asarray(rewards, dtype=np.float64), 1 - share, method="higher"))


def audit_pool(pool: Pool, reward: str, settings: Settings | None = None, *, answers: Sequence[Answer] = ()) -> Audit:
    """The audit of one of the pool's rewards; `answers` are gold for a drawn part of it."""
    settings = settings or Settings()
    scored = [one for one in pool.samples if one.rewards.get(reward) is not None]
    both = [one for one in scored if one.gold is not None]
    caveats = []
    if scored and 1 - len(both) / len(scored) > _GAP and both:
        caveats.append(
            f"{len(scored) - len(both)} of {len(scored)} responses have no gold: the verdict is about the others, and "
            "holds for all only if it is not their content that decides who has gold"
        )
    lost = len(pool.samples) - len(scored)
    if lost > _GAP * len(pool.samples):
        caveats.append(f"{lost} of {len(pool.samples)} responses have no {reward}; they are left out")
    if pool.repeated > _GAP * len(pool.samples):
        caveats.append(
            f"{pool.repeated} of {len(pool.samples)} rows say the same as one before them and have no id: where they "
            "are copies, and no samples of their own, the intervals are too narrow"
        )
    caveats += _of_answers(answers)
    curve, transfer, fit, note, prompts = curves(both, reward, settings)
    features = {one.id: features_of(one.said) for one in both}
    clusters: tuple[Cluster, ...] = ()
    exploits = 0
    form = None
    if both:
        values = [_value(one, reward) for one in both]
        threshold = high_reward(values, settings.high)
        if threshold > min(values):
            failing = [one for one in both if _value(one, reward) >= threshold and not _passes(one, settings)]
            chosen = {one.id for one in failing}
            exploits = len(failing)
            clusters = exploit_clusters(failing, [one for one in both if one.id not in chosen], features, reward)
        else:
            caveats.append(_all_high(values, settings.high))
    known = both or scored  # without any gold, nothing is held fixed; the result says so
    if len({one.cluster for one in known}) > 1:
        form = _explained(known, reward, features or {one.id: features_of(one.said) for one in scored}, settings)
    return Audit(
        reward=reward,
        transfer=transfer,
        note=note,
        prompts=prompts,
        samples=len(both),
        unscored_reward=lost,
        unscored_gold=len(scored) - len(both),
        curve=curve,
        fit=fit,
        false_pass=tuple(_false_passes(scored, both, reward, settings, answers)),
        explained=form,
        clusters=clusters,
        exploits=exploits,
        caveats=tuple(caveats),
    )


def _all_high(values: Sequence[float], share: float) -> str:
    """Why no response is called an exploit where the threshold is the lowest reward."""
    if min(values) == max(values):
        return "the reward is the same for all responses: it does not tell them apart, so none is called an exploit"
    lowest = sum(value == min(values) for value in values)
    return (
        f"{lowest} of {len(values)} responses tie at the lowest reward, so that all are among the highest {share:.0%} "
        "and none is called an exploit; a smaller --high may tell"
    )


def _of_answers(answers: Sequence[Answer]) -> list[str]:
    """What is to be known of the answers of those who were asked."""
    caveats = []
    failed = Counter(one.failed for one in answers if one.failed)
    if failed:
        named = "; ".join(f"{why} ({n})" for why, n in failed.most_common(_REASONS))
        more = "; …" if len(failed) > _REASONS else ""
        caveats.append(f"{failed.total()} of {len(answers)} judgements failed and count as open: {named}{more}")
    answered = [one.right for one in answers if one.right is not None]
    if split := sum(0 < right < 1 for right in answered):
        caveats.append(
            f"{split} of {len(answered)} judged responses were called both right and wrong: their mean counts"
        )
    return caveats


def _value(sample: Sample, reward: str) -> float:
    value = sample.rewards[reward]
    assert value is not None
    return value


def _passes(sample: Sample, settings: Settings) -> bool:
    return sample.gold is not None and sample.gold >= settings.passes


def curves(
    both: Sequence[Sample], reward: str, settings: Settings
) -> tuple[tuple[Point, ...], Transfer | None, Fit | None, str, int]:
    """Curve, verdict, fit, why there is no verdict, and how many prompts made them; of samples with reward and gold."""
    groups = list(by_prompt(both).values())
    sizes = sorted(len(group) for group in groups)
    if not sizes:
        return (), None, None, "no response has both the reward and gold", 0
    enough = sizes[len(sizes) // 10]
    top = min(enough, settings.most or max(2, enough // 2))
    if top < 2:
        return (), None, None, "most prompts have one scored response: best of n needs two at least", len(groups)
    ns = [1 << k for k in range(top.bit_length())]
    groups = [group for group in groups if len(group) >= ns[-1]]
    labels = [group[0].cluster for group in groups]
    if len(set(labels)) < 2:
        return (), None, None, "one group of prompts: nothing is known of others", len(groups)
    rewards = [[_value(one, reward) for one in group] for group in groups]
    golds = [[float(one.gold or 0.0) for one in group] for group in groups]
    ends = np.cumsum([len(group) for group in groups])[:-1]
    flat_N, lowest, width = unit_range(np.concatenate([np.array(r) for r in rewards]))
    ranged = [list(part) for part in np.split(flat_N, ends)]
    reward_PK = np.array([best_of_n(r, z, ns) for r, z in zip(rewards, ranged, strict=True)])
    gold_PK = np.array([best_of_n(r, g, ns) for r, g in zip(rewards, golds, strict=True)])
    spread_P2 = np.array([[spread_within(z), spread_within(g)] for z, g in zip(ranged, golds, strict=True)])
    weights_BP = resample(labels, settings.draws, derive_seed(settings.seed, "transfer", reward) % (1 << 32))
    n, clusters = len(groups), len(set(labels))

    def told(values_P: Floats) -> Interval:
        one = Measured(float(values_P.mean()), _means(values_P, weights_BP))
        return interval_of_draws(one, n=n, clusters=clusters)

    curve = tuple(
        Point(
            n=k,
            kl=kl_of_best(k),
            reward=_in_units(told(reward_PK[:, at]), float(lowest), float(width)),
            gold=told(gold_PK[:, at]),
        )
        for at, k in enumerate(ns)
    )
    if all(min(r) == max(r) for r in rewards):
        return curve, None, None, "all responses to each prompt earn the same reward: there is nothing to choose by", n
    if all(min(g) == max(g) for g in golds):
        return curve, None, None, "all responses to each prompt have the same gold: no choice could change it", n
    d_K = np.sqrt([point.kl for point in curve])
    gain_PK = gold_PK - gold_PK[:, :1]
    draws_BK = (weights_BP @ gain_PK) / weights_BP.sum(axis=1, keepdims=True)
    fit = fit_overoptimisation(list(d_K), list(gain_PK.mean(axis=0)), draws_BK=draws_BK)

    def gain(values_PK: Floats, which: int, since: int) -> Measured:
        change_P = values_PK[:, -1] - values_PK[:, since]
        whole = float(change_P.mean() / np.sqrt(spread_P2[:, which].mean()))
        spread_B = np.sqrt(_means(spread_P2[:, which], weights_BP))
        drawn_B = np.divide(_means(change_P, weights_BP), spread_B, out=np.zeros(len(spread_B)), where=spread_B > 0)
        return Measured(whole, drawn_B)

    transfer = judge_transfer(
        gain(reward_PK, 0, 0),
        gain(gold_PK, 1, 0),
        n=n,
        clusters=clusters,
        late=gain(gold_PK, 1, len(ns) - 3) if len(ns) > 3 else None,
        margin=settings.margin,
        left_out=len(sizes) - n,
    )
    return curve, transfer, fit, "", n


def _in_units(one: Interval, lowest: float, width: float) -> Interval:
    """An interval of ranged values, in the units that they had."""
    assert one.mean is not None and one.se is not None and one.low is not None and one.high is not None
    mean, low, high = (lowest + width * value for value in (one.mean, one.low, one.high))
    return replace(one, mean=mean, se=width * one.se, low=low, high=high)


def _means(values_P: Floats, weights_BP: Floats) -> Floats:
    means: Floats = (weights_BP @ values_P) / weights_BP.sum(axis=1)
    return means


def _explained(
    known: Sequence[Sample], reward: str, features: Mapping[str, Mapping[str, float]], settings: Settings
) -> Explained:
    names = list(next(iter(features.values())))
    return explained(
        [_value(one, reward) for one in known],
        [float(one.gold or 0.0) for one in known],
        {name: [features[one.id][name] for one in known] for name in names},
        prompts=[one.prompt for one in known],
        clusters=[one.cluster for one in known],
        seed=derive_seed(settings.seed, "explained", reward) % (1 << 32),
        draws=min(settings.draws, 500),
    )


def _false_passes(
    scored: Sequence[Sample],
    both: Sequence[Sample],
    reward: str,
    settings: Settings,
    answers: Sequence[Answer],
) -> list[FalsePass]:
    """By the pool's own gold, and by those who were asked."""
    if not scored:
        return []
    values = [_value(one, reward) for one in scored]
    threshold = high_reward(values, settings.high)
    share = sum(value >= threshold for value in values) / len(values)
    by_id = {one.id: one for one in scored}
    told: list[tuple[str, list[tuple[Sample, float | None, float]]]] = []
    if both:
        told.append(("gold of the pool", [(one, float(not _passes(one, settings)), 1.0) for one in both]))
    if answers:
        asked = [
            (by_id[one.sample], None if one.right is None else 1 - one.right, one.propensity)
            for one in answers
            if one.sample in by_id
        ]
        told.append(("who were asked", asked))
    out = []
    for by, rows in told:
        high = [row for row in rows if _value(row[0], reward) >= threshold]
        fails, anywhere = (
            weighted_share(
                [fail for _, fail, _ in some], [p for _, _, p in some], clusters=[one.cluster for one, _, _ in some]
            )
            for some in (high, rows)
        )
        out.append(FalsePass(threshold=threshold, share=share, fails=fails, anywhere=anywhere, by=by))
    return out
