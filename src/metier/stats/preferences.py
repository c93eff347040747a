"""Which of several models is preferred, from pairs that were compared: Bradley-Terry with ties, order and length.

    P(first wins) = e^{x/2} / D,  P(second wins) = e^{-x/2} / D,  P(tie) = v / D,  D = e^{x/2} + e^{-x/2} + v
    x = s_first - s_second + g + f tanh(dlen / sd(dlen))

Bradley and Terry 1952, Davidson 1970; strengths s sum to zero, g is what being shown first is
worth, and f what being longer is worth (arXiv 2404.04475), so strengths are those at equal
length in random order. Intervals are bootstraps over prompts. A fit that the data cannot
carry is refused: when some models never lose to the others there is no largest likelihood.

Left out: Elo, which is the same model fitted badly, and priors, which would hide an unfit model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metier.base.errors import DataError
from metier.stats.votes import Floats, Places

__all__ = ["Pair", "Preferences", "Strength", "bradley_terry"]

LIMIT = 30.0  # log odds; a fit that runs beyond has no largest likelihood
UNFIT = 0.1  # share of bootstrap draws that may have no fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One pair, shown in this order."""

    first: str
    second: str
    winner: Literal["first", "second", "tie"]
    prompt: str = ""  # pairs of one prompt are drawn together; each its own where empty
    longer: float = 0.0  # length of the first less that of the second, in any unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """A number of the model in log odds, with its bootstrap interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """The fit."""

    strengths: tuple[Strength, ...]  # best first; they sum to zero
    shown_first: Strength | None  # g; None where it was not asked for
    length: Strength | None  # f; None where it was not asked for
    tie: Strength | None  # ln v; None where no pair was a tie
    n: int  # pairs
    prompts: int
    log_likelihood: float  # mean of a pair, in nats
    unfit_draws: int  # bootstrap draws without a fit, left out


def bradley_terry(
    pairs: Sequence[Pair],
    *,
    order: bool = True,
    length: bool = False,
    seed: int = 0,
    draws: int = 400,
    confidence: float = 0.95,
) -> Preferences:
    """Fit by maximum likelihood (Newton's method on a concave likelihood). Raises `DataError` where there is no fit."""
    names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
    if len(names) < 2:
        raise DataError("a comparison needs at least two models")
    if any(pair.first == pair.second for pair in pairs):
        raise DataError("a pair compares a model with itself; give each answer the name of its own model")
    place = {name: k for k, name in enumerate(names)}
    first = np.asarray([place[pair.first] for pair in pairs])
    second = np.asarray([place[pair.second] for pair in pairs])
    _reachable(first, second, pairs, names)
    columns = [np.eye(len(names))[first] - np.eye(len(names))[second]]
    columns[0] = columns[0][:, 1:] - columns[0][:, :1]  # the first strength is minus the sum of the others
    labels: list[str] = []
    if order:
        labels.append("shown_first")
        columns.append(np.ones((len(pairs), 1)))
    if length:
        longer = np.asarray([pair.longer for pair in pairs], dtype=np.float64)
        if not np.isfinite(longer).all() or longer.std() == 0:
            raise DataError("the length term needs differences of length that are finite and not all the same")
        labels.append("length")
        columns.append(np.tanh(longer / longer.std())[:, None])
    design = np.hstack(columns)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise DataError(
            "strengths, order and length cannot be told apart in these pairs (a model is always shown first, or is "
            "always longer); swap the order of some pairs, or leave the term out"
        )
    outcome = np.asarray([{"first": 1, "tie": 0, "second": -1}[pair.winner] for pair in pairs])
    ties = bool((outcome == 0).any())
    weights = np.ones(len(pairs))
    found = _fit(design, outcome, weights, ties)
    if found is None:
        raise DataError("the likelihood has no maximum: some term decides all pairs; collect more, or leave it out")
    groups: dict[str, int] = {}
    member = np.asarray([groups.setdefault(p.prompt or f"\0{k}", len(groups)) for k, p in enumerate(pairs)])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        times = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)))
        again = _fit(design, outcome, times[member].astype(np.float64), ties)
        if again is not None:
            drawn.append(again[0])
    if len(drawn) < (1 - UNFIT) * draws:
        raise DataError(
            f"{draws - len(drawn)} of {draws} bootstrap draws have no fit, so no interval can be given; "
            "collect more pairs, above all between models that rarely meet or rarely lose"
        )
    bounds = np.quantile(np.asarray(drawn), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    all_draws = np.asarray(drawn)[:, : len(names) - 1]
    lead = np.quantile(-all_draws.sum(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    values = found[0]

    def one(name: str, k: int) -> Strength:
        return Strength(name=name, value=float(values[k]), low=float(bounds[0, k]), high=float(bounds[1, k]))

    strengths = [one(name, k) for k, name in enumerate(names[1:])]
    top = -float(values[: len(names) - 1].sum())
    strengths.append(Strength(name=names[0], value=top, low=float(lead[0]), high=float(lead[1])))
    extra = {name: one(name, len(names) - 1 + k) for k, name in enumerate(labels)}
    return Preferences(
        strengths=tuple(sorted(strengths, key=lambda s: -s.value)),
        shown_first=extra.get("shown_first"),
        length=extra.get("length"),
        tie=one("tie", values.size - 1) if ties else None,
        n=len(pairs),
        prompts=len(groups),
        log_likelihood=found[1] / len(pairs),
        unfit_draws=draws - len(drawn),
    )


def _reachable(first: Places, second: Places, pairs: Sequence[Pair], names: Sequence[str]) -> None:
    """Refuse where some models never lose or tie against the rest: their strength would be infinite (Ford 1957)."""
    beats = np.eye(len(names), dtype=bool)
    for a, b, pair in zip(first, second, pairs, strict=True):
        beats[a, b] |= pair.winner != "second"
        beats[b, a] |= pair.winner != "first"
    for k in range(len(names)):  # Warshall's closure
        beats |= beats[:, k : k + 1] & beats[k : k + 1, :]
    if not beats.all():
        a, b = np.argwhere(~beats)[0]
        raise DataError(
            f"{names[a]} never does as well as {names[b]}, directly or through others, so their strengths are "
            "infinitely far apart; collect more pairs, or leave one of them out"
        )


def _fit(design: Floats, outcome: Places, weights: Floats, ties: bool) -> tuple[Floats, float] | None:
    """Coefficients (last ln v, where there are ties) and log-likelihood; None without a maximum."""
    width = design.shape[1] + ties
    beta = np.zeros(width)
    # Features of "first", "tie" and "second": an exponential family, so gradient and Hessian are moments of them.
    zero = np.zeros((design.shape[0], 1))
    half = design / 2
    if ties:
        options = np.stack((np.hstack((half, zero)), np.hstack((zero * half, zero + 1)), np.hstack((-half, zero))), 1)
    else:
        options = np.stack((half, -half), 1)
    chosen = options[np.arange(outcome.size), (1 - outcome) if ties else (1 - outcome) // 2]

    def level(beta: Floats) -> tuple[float, Floats]:
        score = options @ beta
        top = score.max(axis=1, keepdims=True)
        total = np.log(np.exp(score - top).sum(axis=1, keepdims=True)) + top
        return float(weights @ (chosen @ beta - total[:, 0])), np.exp(score - total)

    value, chance = level(beta)
    for _ in range(100):
        mean = (chance[:, :, None] * options).sum(axis=1)
        slope = weights @ (chosen - mean)
        centred = options - mean[:, None, :]
        bend = np.einsum("nca,ncb,nc,n->ab", centred, centred, chance, weights, optimize=True)
        try:
            step = np.linalg.solve(bend + 1e-10 * np.eye(width), slope)
        except np.linalg.LinAlgError:
            return None
        size = 1.0
        while size > 1e-6:
            new_value, new_chance = level(beta + size * step)
            if new_value >= value - 1e-12:
                break
            size /= 2
        beta = beta + size * step
        value, chance = new_value, new_chance
        if np.abs(beta).max() > LIMIT:
            return None
        if np.abs(size * step).max() < 1e-10:
            return beta, value
    return None
