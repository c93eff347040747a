"""Advantages: how much better an episode is than the others of its group. Pure.

An unscored episode is not a zero: it stays None and takes no part in its group's mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["group_advantages"]


def group_advantages(rewards_G: Sequence[float | None], *, scale: bool) -> list[float | None]:
    """A_i = r_i - mean(r), divided by the standard deviation of r when `scale`.

    Symbols: r rewards of the G episodes of one task; mean and (population) deviation are
    over the scored ones. A group without variance gives zeros, as it says nothing about
    what is better. Source: GRPO, arXiv:2402.03300 (scaled); Dr. GRPO, arXiv:2503.20783
    (unscaled, which does not favour tasks that are nearly always or never solved).
    """
    scored = [r for r in rewards_G if r is not None]
    if not scored or min(scored) == max(scored):
        return [None if r is None else 0.0 for r in rewards_G]
    mean = math.fsum(scored) / len(scored)
    spread = math.sqrt(math.fsum((r - mean) ** 2 for r in scored) / len(scored)) if scale else 1.0
    return [None if r is None else (r - mean) / spread for r in rewards_G]
