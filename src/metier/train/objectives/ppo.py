"""PPO whole: the policy gradient together with the value head that its advantages come from.

Shape legend: M labels (sampled tokens) of one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metier.base.errors import ConfigError, DataError
from metier.train.objectives.policy import PolicyGradient
from metier.train.packing import Packed

__all__ = ["Ppo"]


@dataclass(frozen=True, slots=True)
class Ppo(PolicyGradient):
    """`PolicyGradient` plus the loss of a value head, clipped like the ratio.

    L = L_policy + value_coef (1/N) sum_t w_t max((V_t - R_t)^2, (V'_t - R_t)^2) / 2
    V'_t = v_t + clip(V_t - v_t, -value_clip, value_clip)

    Symbols: V_t the head's value before sampled token t and v_t the same when the episodes
    were taken; R_t the return (`metier.train.advantages.gae`); w_t, N as in the policy's
    loss. `value_clip` 0 leaves V alone. Sources: PPO arXiv:1707.06347; the clipped value
    loss, arXiv:2005.12729.
    """

    output: ClassVar[Literal["actor_critic"]] = "actor_critic"  # type: ignore[assignment]
    value_coef: float = 0.1
    value_clip: float = 0.2

    def __post_init__(self) -> None:
        PolicyGradient.__post_init__(self)
        if self.value_coef < 0 or self.value_clip < 0:
            raise ConfigError(
                f"{self.name}: value_coef and value_clip are 0 or more, got {self.value_coef} and {self.value_clip}"
            )

    def loss(
        self, values_M2: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; the values are log-probabilities and values, metrics also value_loss and value.

        Raises `DataError` where a label lacks a return or an old value.
        """
        if bool((batch.returns_M.isnan() | batch.old_values_M.isnan()).any()):
            raise DataError(f"{self.name} needs the return and the old value of every label")
        logprobs_M, value_M = values_M2[:, 0], values_M2[:, 1]
        policy, metrics = PolicyGradient.loss(self, logprobs_M, entropy_M, batch, denominator=denominator)
        returns_M, old_M = batch.returns_M.to(value_M.dtype), batch.old_values_M.to(value_M.dtype)
        error_M = (value_M - returns_M).square()
        if self.value_clip:
            near_M = old_M + (value_M - old_M).clamp(-self.value_clip, self.value_clip)
            error_M = torch.maximum(error_M, (near_M - returns_M).square())
        share_M = batch.weight_M
        if self.normaliser == "sequence":
            share_M = share_M / batch.labels_B[batch.example_M]
        total = policy + self.value_coef * (share_M * error_M).sum() / (2 * denominator)
        return total, {
            **metrics,
            "value_loss": float(error_M.detach().sum()) / 2,
            "value": float(value_M.detach().sum()),
        }
