"""How far a reward can be optimised before gold falls: the law of Gao, Schulman and Hilton, fitted, with its peak.

    best of n   R(d) = d (a - b d),      peak at d = a / 2b,          height a^2 / 4b
    RL          R(d) = d (a - b ln d),   peak at d = e^(a/b - 1),     height b e^(a/b - 1)

with d = sqrt(KL to the start) and R the gain over the start (arXiv 2210.10760, section 3). Both are
linear in a and b, so the fit is least squares. It says nothing where b is not clearly above zero (no bend
was seen), and little where the peak lies beyond the last point: both are told, never hidden in a number.

Legend: K points, B bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fit", "Law", "fit_overoptimisation"]

Floats = NDArray[np.float64]
Law = Literal["best_of_n", "rl"]
_SAME = 1e-9  # of b: draws that differ by less differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted law. `peak` is None where the points do not determine one; `caveats` says why."""

    law: Law
    points: int  # with d above 0
    a: float | None  # None where there are too few points
    b: float | None
    b_low: float | None  # 95 % bootstrap interval of b
    b_high: float | None
    rms: float | None  # root mean square of what the law leaves over, in the unit of the gains
    peak: float | None  # d at which the law is highest
    peak_low: float | None
    peak_high: float | None  # None where the interval is open: some draws do not bend
    height: float | None  # gain at the peak
    farthest: float | None  # the largest d that was measured
    caveats: tuple[str, ...]


def fit_overoptimisation(
    d_K: Sequence[float],
    gain_K: Sequence[float],
    *,
    law: Law = "best_of_n",
    draws_BK: Floats | None = None,
    confidence: float = 0.95,
) -> Fit:
    """Fit a law to gains over the start at distances d; points at d = 0 are the start and carry nothing.

    `draws_BK` are bootstrap draws of the same gains; without them no interval is known, and so no peak is
    called determined. Raises `ValueError` where the points are not finite or a distance is negative.
    """
    d, gain = np.asarray(d_K, dtype=np.float64), np.asarray(gain_K, dtype=np.float64)
    if d.shape != gain.shape or not np.isfinite(d).all() or not np.isfinite(gain).all() or (d < 0).any():
        raise ValueError("a fit needs finite gains, one for each distance, and distances of at least 0")
    there = d > 0
    d, gain = d[there], gain[there]
    farthest = float(d.max()) if d.size else None
    if np.unique(d).size < 3:
        why = f"{np.unique(d).size} distances beyond the start: two numbers need three at least, so no fit"
        return Fit(
            law=law, points=int(d.size), a=None, b=None, b_low=None, b_high=None, rms=None, peak=None, peak_low=None,
            peak_high=None, height=None, farthest=farthest, caveats=(why,),
        )  # fmt: skip
    design_K2 = np.stack([d, -d * (d if law == "best_of_n" else np.log(d))], axis=1)
    solve_2K = np.linalg.pinv(design_K2)
    a, b = (float(x) for x in solve_2K @ gain)
    rms = math.sqrt(float(np.mean((gain - design_K2 @ np.array([a, b])) ** 2)))
    b_low = b_high = peak = low = high = height = None
    caveats: list[str] = []
    if draws_BK is None:
        caveats.append("no bootstrap draws: whether there is a bend is not known, so no peak is told")
    else:
        tail = (1 - confidence) / 2
        drawn_2B = solve_2K @ draws_BK[:, there].T
        b_low, b_high = (float(x) for x in np.quantile(drawn_2B[1], [tail, 1 - tail]))
        place, top = _PEAKS[law]
        if b_low <= 0 <= b_high:
            caveats.append("no bend was seen (the interval of b covers zero): the peak is not determined")
        elif b_high < 0:
            caveats.append("the gain grows faster than the law allows (b is below zero): no peak")
        elif np.ptp(drawn_2B[1]) <= _SAME * abs(b):
            caveats.append("all draws bend alike, so how sure the bend is cannot be told: the peak is not determined")
        elif not math.isfinite(top(a, b)):
            caveats.append("the bend is so slight that no peak can be computed")
        else:
            peak, height = place(a, b), top(a, b)
            bent = drawn_2B[1] > 0
            peaks = np.full(drawn_2B.shape[1], np.inf)
            peaks[bent] = [place(x, y) for x, y in drawn_2B[:, bent].T]
            low = float(np.quantile(peaks, tail, method="lower"))
            above = float(np.quantile(peaks, 1 - tail, method="higher"))
            high = above if math.isfinite(above) else None
    if peak is not None and farthest is not None:
        if peak <= 0:
            caveats.append("the law falls from the start on: the best choice is none")
        elif peak > farthest:
            caveats.append(f"the peak lies beyond the last point (d = {farthest:.2f}): it is a forecast, not a finding")
    return Fit(
        law=law, points=int(d.size), a=a, b=b, b_low=b_low, b_high=b_high, rms=rms, peak=peak, peak_low=low,
        peak_high=high, height=height, farthest=farthest, caveats=tuple(caveats),
    )  # fmt: skip


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


_Shape = Callable[[float, float], float]
_PEAKS: dict[Law, tuple[_Shape, _Shape]] = {
    "best_of_n": (lambda a, b: a / (2 * b), lambda a, b: a * a / (4 * b)),
    "rl": (lambda a, b: _exp(a / b - 1), lambda a, b: b * _exp(a / b - 1)),
}
