"""Choosing what to ask: value per cost for each candidate, a design over them, and one draw of it.

The same ledger, question and seed give the same choice. `duel` weighs the pairs of a group by how often double
Thompson sampling asks for them (`duel.py`), with what people and machines have said as its wins.

Left out: which source to ask. Judges and verifiers are cheap enough to hear about everything; people are not, and
it is their queue that is filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from metier.base.errors import ConfigError
from metier.base.ids import derive_id
from metier.base.seeds import derive_seed, rng_for
from metier.feedback.selection.candidates import Asking, Candidate, Found
from metier.feedback.selection.design import UNIFORM, Floats, design, draw
from metier.feedback.selection.duel import duel_shares
from metier.feedback.selection.scores import coverage, entropy, mutual_information, reading_seconds, value, weakness

__all__ = ["Choice", "Chosen", "Per", "choose", "item_id"]

Per = Literal["second", "item"]

_MACHINE_WINS = 2.0  # comparisons' worth of what all machines say of a pair, beside those of people


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A candidate with what made it worth asking; drawn or only ranked."""

    candidate: Candidate
    uncertainty: float  # bits
    disagreement: float  # bits
    ensemble: float  # bits
    coverage: float
    weakness: float
    duel: float  # how much more often than any pair of its arms it is to be asked; 1 without duels
    seconds: float  # that an answer takes
    value: float  # information, as much as it is needed
    per_cost: float  # value by the second or by the item: what ranks
    rank: float  # 1 is worth most for its cost
    propensity: float  # the chance that it is asked
    arm: str | None  # priority or uniform; None where it was not drawn

    @property
    def why(self) -> dict[str, Any]:
        """What made it worth asking, as plain values."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "candidate"}
        return {"kind": self.candidate.kind, **rest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One draw."""

    choices: tuple[Choice, ...]  # all candidates, the best first
    kinds: Mapping[str, tuple[float, float]]  # kind -> coverage and weakness

    @property
    def drawn(self) -> tuple[Choice, ...]:
        """Those to be asked."""
        return tuple(one for one in self.choices if one.arm is not None)


def item_id(criterion: str, episodes: Sequence[str]) -> str:
    """The id of an item of a queue. It is a hash: people can see it."""
    return derive_id("item", criterion, *sorted(episodes))


def choose(
    found: Found,
    asking: Asking,
    n: int,
    *,
    per: Per = "item",
    seed: int = 0,
    uniform: float = 0.1,
    duel: bool = False,
    turn: int = 0,
) -> Chosen:
    """Draw `n` of the candidates, or all where there are fewer; `turn` tells the draws for one queue apart.

    Raises `ConfigError` where `uniform` is less than a tenth: without it little would be known of what is not valued.
    """
    if not 0.1 <= uniform <= 1:
        raise ConfigError(f"uniform is {uniform}, but at least a tenth of a queue is drawn at random, and at most all")
    candidates = found.candidates
    if not candidates:
        return Chosen(choices=(), kinds={})
    sources_SN = _padded([tuple(one.known.sources.values()) for one in candidates])
    uncertainty = entropy(np.nanmean(np.where(np.isnan(sources_SN).all(axis=0), 0.5, sources_SN), axis=0))
    disagreement = mutual_information(sources_SN)
    ensemble = mutual_information(_padded([one.known.ensemble for one in candidates]))
    kinds, needed = _needed(found)
    duels = _duels(found, seed, asking.criterion) if duel else np.ones(len(candidates))
    seconds = reading_seconds(
        np.array([one.characters for one in candidates]),
        np.array([one.characters for one in found.taken]),
        np.array([one.seconds for one in found.taken]),
    )
    worth = value(uncertainty, disagreement, ensemble, needed) * duels
    per_cost = worth / seconds if per == "second" else worth
    plan = design(per_cost, n, uniform=uniform)
    propensity = plan.propensity
    arms = draw(plan.chance_NA, rng_for(seed, "next", asking.criterion, asking.size, asking.purpose, turn))
    choices = [
        Choice(
            candidate=one,
            uncertainty=float(uncertainty[i]),
            disagreement=float(disagreement[i]),
            ensemble=float(ensemble[i]),
            coverage=kinds[one.kind][0],
            weakness=kinds[one.kind][1],
            duel=float(duels[i]),
            seconds=float(seconds[i]),
            value=float(worth[i]),
            per_cost=float(per_cost[i]),
            rank=float(plan.rank[i]),
            propensity=float(propensity[i]),
            arm=None if arms[i] is None else "uniform" if arms[i] == UNIFORM else "priority",
        )
        for i, one in enumerate(candidates)
    ]
    return Chosen(choices=tuple(sorted(choices, key=lambda one: one.rank)), kinds=kinds)


def _padded(told: Sequence[Sequence[float]]) -> Floats:
    """What is said of each item as columns, NaN where there is less of it than elsewhere."""
    table_SN = np.full((max(1, max(map(len, told))), len(told)), np.nan)
    for n, some in enumerate(told):
        table_SN[: len(some), n] = some
    return table_SN


def _needed(found: Found) -> tuple[dict[str, tuple[float, float]], Floats]:
    """Coverage and weakness of each kind, and their product for each candidate."""
    names = sorted({one.kind for one in found.candidates} | found.measured.keys())
    asked = sorted({one.kind for one in found.candidates})
    covered = dict(zip(asked, coverage(np.array([found.labelled.get(k, 0) for k in asked])).tolist(), strict=True))
    failed, n = (np.array([found.measured.get(k, (0, 0))[i] for k in names]) for i in (0, 1))
    weak = dict(zip(names, weakness(failed, n).tolist(), strict=True))
    kinds = {kind: (covered[kind], weak[kind]) for kind in asked}
    return kinds, np.array([kinds[one.kind][0] * kinds[one.kind][1] for one in found.candidates])


def _duels(found: Found, seed: int, criterion: str) -> Floats:
    """For each candidate, how often its duel is drawn, relative to all pairs of its contest alike.

    Weights meet in many groups, all of which are one contest; episodes meet in their own group alone. Of each pair
    the people count as often as they answered, and all machines together as `_MACHINE_WINS` comparisons.
    """
    met = [*found.candidates, *found.answered]
    if any(len(one.arms) != 2 for one in met):
        raise ConfigError("duels are between two; ask for pairs")
    arms: dict[str, set[str]] = {}
    for one in met:
        arms.setdefault(_contest(one), set()).update(one.arms)
    place = {contest: {arm: i for i, arm in enumerate(sorted(some))} for contest, some in arms.items()}
    people = {contest: np.zeros((len(some), len(some))) for contest, some in arms.items()}
    told = {contest: np.zeros((len(some), len(some))) for contest, some in arms.items()}
    for one in met:
        contest, sources = _contest(one), dict(one.known.sources)
        a, b = (place[contest][arm] for arm in one.arms)
        won = sources.pop("people", 0.5)
        people[contest][a, b] += one.known.people * won
        people[contest][b, a] += one.known.people * (1 - won)
        if sources:
            p = float(np.mean(list(sources.values())))
            told[contest][a, b] += p
            told[contest][b, a] += 1 - p
    shares = {}
    for contest, told_KK in told.items():
        all_KK = told_KK + told_KK.T
        wins_KK = people[contest] + _MACHINE_WINS * told_KK / np.where(all_KK > 0, all_KK, 1.0)
        shares[contest] = duel_shares(wins_KK, np.random.default_rng(derive_seed(seed, "duel", criterion, contest)))
    weights = []
    for one in found.candidates:
        shares_KK, of = shares[_contest(one)], place[_contest(one)]
        a, b = sorted(of[arm] for arm in one.arms)
        weights.append(shares_KK[a, b] * len(of) * (len(of) - 1) / 2)
    return np.array(weights)


def _contest(candidate: Candidate) -> str:
    return candidate.task_id if candidate.arms == candidate.episodes else ""
