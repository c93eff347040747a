"""Supervised fine-tuning: raise the likelihood of the labels.

Shape legend: M labels of one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from metier.train.packing import Packed

__all__ = ["Sft"]


@dataclass(frozen=True, slots=True)
class Sft:
    """Weighted negative log-likelihood.

    L = -(1/N) sum_t w_t ln p(y_t | y_<t)

    Symbols: y_t a label and w_t its example's weight; N the number of labels in the whole
    optimiser step, so that every label counts the same however the step is cut into
    micro-batches. Weights do not enter N: halving all of them halves the gradient.
    Source: maximum likelihood, masked to the assistant's tokens as in InstructGPT,
    arXiv:2203.02155.
    """

    name: ClassVar[str] = "sft"
    rows: ClassVar[Literal["single"]] = "single"
    output: ClassVar[Literal["logprobs"]] = "logprobs"
    needs_reference: ClassVar[bool] = False

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N, the labels of the step."""
        return float(loss_tokens)

    def loss(
        self, policy_logprobs_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; metrics: nll (unweighted, nats), entropy."""
        loss = -(batch.weight_M * policy_logprobs_M).sum() / denominator
        return loss, {
            "labels": float(policy_logprobs_M.numel()),
            "nll": -float(policy_logprobs_M.detach().sum()),
            "entropy": float(entropy_M.sum()),
        }
