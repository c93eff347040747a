"""Distillation: bring the student's distribution to the teacher's, token by token.

On whose tokens is a matter of the examples: a file's answers or the teacher's own
(off-policy), or episodes that the student sampled (on-policy).

Shape legend: M labels of one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from metier.base.errors import ConfigError
from metier.train.packing import Packed

__all__ = ["Distill"]


@dataclass(frozen=True, slots=True)
class Distill:
    """Mean divergence between teacher and student.

    L = (1/N) sum_t w_t D_beta(p_t || q_t), N = labels of the whole optimiser step

    Symbols: p_t, q_t the teacher's and the student's distribution at label t; w_t the
    example's weight; D_beta the generalised Jensen-Shannon divergence of
    `metier.models.divergence`: beta = 0 is forward KL(p || q), 1 reverse KL(q || p).
    Source: generalised knowledge distillation, arXiv:2306.13649.
    """

    name: ClassVar[str] = "distill"
    rows: ClassVar[Literal["single"]] = "single"
    output: ClassVar[Literal["divergence"]] = "divergence"
    needs_reference: ClassVar[bool] = False
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1 or self.temperature <= 0:
            raise ConfigError(
                f"distill: beta lies in [0, 1] and temperature is above 0, got {self.beta} and {self.temperature}"
            )

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N, the labels of the step."""
        return float(loss_tokens)

    def loss(
        self, values_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`, the values being divergences; metrics: divergence (unweighted, nats)."""
        loss = (batch.weight_M * values_M).sum() / denominator
        return loss, {"labels": float(values_M.numel()), "divergence": float(values_M.detach().sum())}
