"""How much of a reward is explained by features of form alone, gold held fixed.

Everything is taken within prompts (values less their prompt's mean), since optimisation chooses among the
responses to one prompt. With Z = [reward, gold, features] so centred and S_c = Z_c' Z_c the cross-products of
cluster c, all figures are functions of S = sum_c S_c:

    partial correlation   of reward and feature j at fixed gold:  s_rj.g / sqrt(s_rr.g s_jj.g),
                          s_xy.g = s_xy - s_xg s_gy / s_gg
    R^2 alone             of reward on all features:              1 - s_rr.F / s_rr
    R^2 at fixed gold     what features add to gold:              1 - s_rr.gF / s_rr.g
    R^2 of gold           what gold explains by itself:           1 - s_rr.g / s_rr

So a bootstrap over clusters is a weighted sum of small matrices. R^2 is of the sample, not adjusted: with m
features and n rows a reward of pure noise has about m/n; that is told beside it as `chance`.

Legend: n rows, m features, B draws, G clusters.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metier.stats.best_of_n import resample
from metier.stats.intervals import Interval, numbered
from metier.stats.transfer import Measured, interval_of_draws, unit_range

__all__ = ["Explained", "explained"]

Floats = NDArray[np.float64]
_NOTHING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What form says of a reward, within prompts."""

    n: int  # rows
    prompts: int
    partial: Mapping[str, Interval]  # correlation of each feature with reward at fixed gold; those that vary
    alone: Interval | None  # R^2 of all features; None where the reward does not vary
    beside_gold: Interval | None  # R^2 of what gold leaves over; None where it leaves nothing, or does not vary
    by_gold: Interval | None  # R^2 of gold by itself; None where gold does not vary
    chance: float  # R^2 that as many features have by chance
    constant: tuple[str, ...]  # features that do not vary within any prompt
    caveats: tuple[str, ...]


def explained(
    reward: Sequence[float],
    gold: Sequence[float],
    features: Mapping[str, Sequence[float]],
    *,
    prompts: Sequence[Hashable],
    clusters: Sequence[Hashable] | None = None,
    seed: int,
    draws: int = 1000,
) -> Explained:
    """Of n rows, each of a prompt; `clusters` groups rows for the intervals, prompts unless told.

    Raises `ValueError` where a column has another length, or there are fewer than two clusters.
    """
    n = len(reward)
    grouped: Sequence[Hashable] = prompts if clusters is None else clusters
    columns = [reward, gold, *features.values()]
    if any(len(column) != n for column in (*columns, prompts, grouped)):
        raise ValueError("reward, gold, each feature, prompts and clusters need one value for each row")
    if not n:
        raise ValueError("there are no rows, so nothing is explained")
    ranged_nZ, _, _ = unit_range(np.array(columns, dtype=np.float64).T.reshape(n, -1))
    centred_nZ = _within(ranged_nZ, prompts)
    scale_Z = np.sqrt((centred_nZ**2).sum(axis=0))
    scale_Z[scale_Z < _NOTHING * n] = 0.0  # all that rounding leaves
    unit_nZ = np.divide(centred_nZ, scale_Z, out=np.zeros_like(centred_nZ), where=scale_Z > 0)
    names = list(features)
    varying = [name for name, scale in zip(names, scale_Z[2:], strict=True) if scale > 0]
    keep = [0, 1, *(2 + names.index(name) for name in varying)]
    unit_nZ, scale_Z = unit_nZ[:, keep], scale_Z[keep]
    place, groups = numbered(grouped)
    size = unit_nZ.shape[1]
    cross_GZZ = np.zeros((groups, size, size))
    np.add.at(cross_GZZ, place, unit_nZ[:, :, None] * unit_nZ[:, None, :])
    whole_ZZ = cross_GZZ.sum(axis=0)
    weights_BG = resample(range(groups), draws, seed)
    drawn_BZZ = (weights_BG @ cross_GZZ.reshape(groups, -1)).reshape(draws, size, size)
    told = _Told(n=n, groups=groups, whole_ZZ=whole_ZZ, drawn_BZZ=drawn_BZZ)
    shape = list(range(2, size))
    caveats = []
    if scale_Z[0] == 0:
        caveats.append("the reward does not vary within any prompt: there is nothing to explain")
    if scale_Z[1] == 0:
        caveats.append("gold does not vary within any prompt, so it holds nothing fixed")
    return Explained(
        n=n,
        prompts=len(set(prompts)),
        partial={name: part for k, name in enumerate(varying, 2) if (part := told.partial(k)) is not None},
        alone=told.share([], shape),
        beside_gold=told.share([1], shape) if scale_Z[1] > 0 else None,
        by_gold=told.share([], [1]) if scale_Z[1] > 0 else None,
        chance=len(varying) / max(1, n - len(set(prompts))),
        constant=tuple(name for name in names if name not in varying),
        caveats=tuple(caveats),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    n: int
    groups: int
    whole_ZZ: Floats
    drawn_BZZ: Floats

    def share(self, fixed: list[int], by: list[int]) -> Interval | None:
        """R^2 of the reward (column 0) on the columns `by`, those of `fixed` held fixed."""
        return self._interval(*(_share(cross, fixed, by) for cross in (self.whole_ZZ[None], self.drawn_BZZ)))

    def partial(self, feature: int) -> Interval | None:
        """The partial correlation of the reward with a column at fixed gold (column 1)."""
        return self._interval(*(_partial(cross, feature) for cross in (self.whole_ZZ[None], self.drawn_BZZ)))

    def _interval(self, whole_1: Floats, drawn_B: Floats) -> Interval | None:
        drawn_B = drawn_B[~np.isnan(drawn_B)]
        if np.isnan(whole_1[0]) or drawn_B.size < 2:
            return None
        return interval_of_draws(Measured(float(whole_1[0]), drawn_B), n=self.n, clusters=self.groups)


def _left(cross_BZZ: Floats, given: list[int], rows: list[int]) -> Floats:
    """The cross-products of `rows` that the columns `given` leave over: a Schur complement, in each draw."""
    row, fixed = np.array(rows), np.array(given, dtype=np.intp)
    own = cross_BZZ[:, row[:, None], row]
    if not given:
        return own
    between = cross_BZZ[:, row[:, None], fixed]
    within = np.linalg.pinv(cross_BZZ[:, fixed[:, None], fixed], rcond=1e-10, hermitian=True)
    left: Floats = own - between @ within @ between.transpose(0, 2, 1)
    return left


def _share(cross_BZZ: Floats, fixed: list[int], by: list[int]) -> Floats:
    """R^2 in each draw; not a number where nothing is left to explain."""
    before_B = _left(cross_BZZ, fixed, [0])[:, 0, 0]
    after_B = _left(cross_BZZ, [*fixed, *by], [0])[:, 0, 0]
    some_B = (before_B > 1e-9 * cross_BZZ[:, 0, 0]) & (cross_BZZ[:, 0, 0] > 0)
    left_B = np.divide(after_B, before_B, out=np.full_like(before_B, np.nan), where=some_B)
    share_B: Floats = np.clip(1 - left_B, 0.0, 1.0)
    return share_B


def _partial(cross_BZZ: Floats, feature: int) -> Floats:
    """A partial correlation in each draw; not a number where one of the two is all explained by gold."""
    left = _left(cross_BZZ, [1], [0, feature])
    whole = cross_BZZ[:, [0, feature], [0, feature]]
    own = np.stack([left[:, 0, 0], left[:, 1, 1]], axis=1)
    some_B = ((own > 1e-9 * whole) & (whole > 0)).all(axis=1)
    root_B = np.sqrt(np.where(some_B, own[:, 0] * own[:, 1], 1.0))
    found: Floats = np.where(some_B, np.clip(left[:, 0, 1] / root_B, -1.0, 1.0), np.nan)
    return found


def _within(rows_nZ: Floats, prompts: Sequence[Hashable]) -> Floats:
    """Each column less the mean of its prompt."""
    place, _ = numbered(prompts)
    count = np.bincount(place)
    means = np.stack([np.bincount(place, column) / count for column in rows_nZ.T], axis=1)
    centred: Floats = rows_nZ - means[place]
    return centred
