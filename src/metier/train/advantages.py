"""Advantages: how much better an episode, or a token of it, is than what was to be expected. Pure.

An unscored episode is not a zero: it stays None and takes no part in its group's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = [
    "advantages",
    "batch_advantages",
    "gae",
    "group_advantages",
    "kl_penalty",
    "leave_one_out",
    "whitened",
]


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


def advantages(kind: str, rewards_GN: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Advantages of all episodes of a step, given by group, by the kind's name.

    `group`, `group_unscaled`, `leave_one_out` look at one group each, `batch` at all of them.
    """
    if kind == "batch":
        flat = iter(batch_advantages([r for group in rewards_GN for r in group]))
        return [[next(flat) for _ in group] for group in rewards_GN]
    one: dict[str, Callable[[Sequence[float | None]], list[float | None]]] = {
        "group": lambda rewards: group_advantages(rewards, scale=True),
        "group_unscaled": lambda rewards: group_advantages(rewards, scale=False),
        "leave_one_out": leave_one_out,
    }
    return [one[kind](rewards) for rewards in rewards_GN]


def leave_one_out(rewards_G: Sequence[float | None]) -> list[float | None]:
    """A_i = r_i - mean of the other scored rewards of the group; 0 where there is no other.

    Source: RLOO, arXiv:2402.14740. It equals G / (G - 1) times `group_advantages` unscaled.
    """
    scored = [r for r in rewards_G if r is not None]
    total, n = math.fsum(scored), len(scored)
    return [None if r is None else r - (total - r) / (n - 1) if n > 1 else 0.0 for r in rewards_G]


def batch_advantages(rewards_B: Sequence[float | None]) -> list[float | None]:
    """A_i = (r_i - mean) / standard deviation over all scored episodes of the step, not one group.

    Zeros where all rewards are equal. Source: REINFORCE++, arXiv:2501.03262, which puts the
    KL penalty into the rewards first (`kl_penalty`).
    """
    return group_advantages(rewards_B, scale=True)


def kl_penalty(policy_logprobs: Sequence[float], reference_logprobs: Sequence[float], coef: float) -> float:
    """What to add to an episode's reward: -coef * sum_t (ln p_t - ln f_t), the k1 estimate of its KL, in nats.

    The log-probabilities are the policy's at the time of sampling and the reference's.
    Source: InstructGPT, arXiv:2203.02155.
    """
    return -coef * (math.fsum(policy_logprobs) - math.fsum(reference_logprobs))


def gae(
    rewards_T: Sequence[float], values_T: Sequence[float], *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[list[float], list[float]]:
    """Generalised advantages and the returns that a value head should predict, one for each token.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t,
    with V = 0 after the last token: an episode that was cut short needs its value added to
    the last reward. Source: arXiv:1506.02438.
    """
    advantages = [0.0] * len(rewards_T)
    ahead = next_value = 0.0
    for t in range(len(rewards_T) - 1, -1, -1):
        delta = rewards_T[t] + gamma * next_value - values_T[t]
        ahead = advantages[t] = delta + gamma * lam * ahead
        next_value = values_T[t]
    return advantages, [a + v for a, v in zip(advantages, values_T, strict=True)]


def whitened(advantages_BT: Sequence[Sequence[float]]) -> list[list[float]]:
    """(A - mean) / standard deviation over all tokens of all episodes; only the mean goes where all are equal."""
    flat = [a for episode in advantages_BT for a in episode]
    if not flat:
        return []
    mean = math.fsum(flat) / len(flat)
    spread = math.sqrt(math.fsum((a - mean) ** 2 for a in flat) / len(flat)) or 1.0
    return [[(a - mean) / spread for a in episode] for episode in advantages_BT]
