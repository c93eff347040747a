"""What a comparison can see, before it is run: the smallest difference it finds, and the items it needs.

Miller 2024, arXiv 2411.00640, section 5. All are two-sided and normal, so they are a little
optimistic below thirty items.
"""

from __future__ import annotations

import math

__all__ = ["detectable", "detectable_with", "items_needed"]


def detectable(se: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference found with `power`, for a standard error of the difference: (z_{a/2} + z_b) se."""
    from scipy.special import ndtri

    if not se >= 0 or not 0 < alpha < 1 or not 0 < power < 1:
        raise ValueError(f"se {se}, alpha {alpha}, power {power}: se is at least 0, the others lie between 0 and 1")
    return float(ndtri(1 - alpha / 2) + ndtri(power)) * se


def detectable_with(
    n: int,
    *,
    between: float,
    within_a: float = 0.0,
    within_b: float = 0.0,
    repeats_a: int = 1,
    repeats_b: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference that `n` items find; see `items_needed` for the variances."""
    if n < 1:
        raise ValueError(f"{n} items are none")
    variance = _variance(between, within_a, within_b, repeats_a, repeats_b)
    return detectable(math.sqrt(variance / n), alpha=alpha, power=power)


def items_needed(
    difference: float,
    *,
    between: float,
    within_a: float = 0.0,
    within_b: float = 0.0,
    repeats_a: int = 1,
    repeats_b: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int:
    """How many items find a true `difference` with `power`, rounded up.

        n = (z_{a/2} + z_b)^2 (w^2 + s_A^2 / K_A + s_B^2 / K_B) / d^2

    with w^2 (`between`) the variance over items of the difference of their true scores, s_A^2 and
    s_B^2 (`within_a`, `within_b`) the variance of one score of an item, and K repeats of each.
    """
    if difference == 0:
        raise ValueError("no number of items finds a difference of 0; name the smallest one that matters")
    variance = _variance(between, within_a, within_b, repeats_a, repeats_b)
    unit = detectable(1.0, alpha=alpha, power=power)
    return max(1, math.ceil(unit**2 * variance / difference**2 - 1e-9))


def _variance(between: float, within_a: float, within_b: float, repeats_a: int, repeats_b: int) -> float:
    if min(between, within_a, within_b) < 0 or min(repeats_a, repeats_b) < 1:
        raise ValueError("variances are at least 0 and repeats at least 1")
    return between + within_a / repeats_a + within_b / repeats_b
