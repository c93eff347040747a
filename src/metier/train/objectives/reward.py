"""Reward models: a number for an answer, learned from comparisons; or one for each step of it.

A reward model is a sequence-classification model: a linear head on the hidden state of
one token. Which token is scored is told by the examples (`metier.train.data`): labels
stand *after* the scored tokens, as everywhere a label is read off its predecessor.

Shape legend: M scored tokens, B examples, U units (pairs) of one micro-batch, K heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from metier.base.errors import ConfigError, DataError
from metier.train.objectives.preferences import sides, weighed
from metier.train.packing import Packed

__all__ = ["ProcessReward", "Reward"]


@dataclass(frozen=True, slots=True)
class Reward:
    """Bradley-Terry with margin and ties, for one head or an ensemble of heads.

    x = s_better - s_worse - margin
    L = -ln P(x),  P = e^(x/2) / D,  tie: e^0 nu / D,  D = e^(x/2) + e^(-x/2) + nu
    plus centre * (s_better + s_worse)^2

    With nu = 0 (no ties) P = s(x), the plain Bradley-Terry model. A tie is a pair whose
    sides both have `target` 0.5, its margin is ignored. With K heads L is the mean over
    them; they differ by their random start. A pair's loss is multiplied by its weight. N =
    pairs of the whole optimiser step.

    Symbols: s the score at an example's last label; nu the propensity to tie; `centre` pulls
    the scores of a pair towards opposite signs, so that scores of different runs compare.

    Sources: Bradley and Terry 1952; margin, Llama 2, arXiv:2307.09288; ties, Davidson 1970;
    centring arXiv:2312.09244; ensembles arXiv:2310.02743.
    """

    name: ClassVar[str] = "reward"
    rows: ClassVar[Literal["pair"]] = "pair"
    output: ClassVar[Literal["scores"]] = "scores"
    needs_reference: ClassVar[bool] = False
    tie: float = 0.0
    centre: float = 0.0

    def __post_init__(self) -> None:
        if self.tie < 0 or self.centre < 0:
            raise ConfigError(f"reward: tie and centre must be 0 or more, got {self.tie} and {self.centre}")

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N, the pairs of the step."""
        return examples / 2

    def loss(
        self, values_MK: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`, the values being scores; metrics: margin, accuracy (mean head, no ties)."""
        scores_BK = values_MK[batch.labels_B.cumsum(0) - 1]  # at each example's last label
        drawn_B = batch.target_B == 0.5
        if bool(drawn_B.any()) and self.tie == 0:
            raise DataError("reward: the data holds ties; set the option tie to their propensity, for instance 1.0")
        first, second = sides(batch, self.name, ties=True)
        lead_UK = scores_BK[first] - scores_BK[second]
        margin_U = batch.margin_B[first].to(lead_UK.dtype)
        drawn_U = drawn_B[first][:, None]
        x_UK = torch.where(drawn_U, lead_UK, lead_UK - margin_U[:, None])
        if self.tie == 0:
            cost_UK = -logsigmoid(x_UK)
        else:
            log_nu = torch.full_like(x_UK, math.log(self.tie))
            normaliser_UK = torch.logsumexp(torch.stack([x_UK / 2, -x_UK / 2, log_nu]), 0)
            cost_UK = normaliser_UK - torch.where(drawn_U, log_nu, x_UK / 2)
        if self.centre:
            cost_UK = cost_UK + self.centre * (scores_BK[first] + scores_BK[second]).square()
        labels = float(values_MK.shape[0])
        decided_U = ~drawn_U[:, 0]
        lead_U = lead_UK.detach().mean(-1)[decided_U]
        scale = labels / max(1, len(lead_U))
        return weighed(cost_UK.mean(-1), batch, first) / denominator, {
            "labels": labels,
            "margin": float(lead_U.sum()) * scale,
            "accuracy": float((lead_U > 0).sum()) * scale,
        }


@dataclass(frozen=True, slots=True)
class ProcessReward:
    """One logistic score for each step of an answer.

    L = -(1/N) sum_t w_t [ y_t ln s(z_t) + (1 - y_t) ln(1 - s(z_t)) ], N = steps of the whole optimiser step

    Symbols: w_t the example's weight; z_t the score at the last token of step t; y_t 1 where the step is right, 0 where
    it is wrong (`Example.advantage`, one for each label). Source: arXiv:2305.20050.
    """

    name: ClassVar[str] = "process_reward"
    rows: ClassVar[Literal["steps"]] = "steps"
    output: ClassVar[Literal["scores"]] = "scores"
    needs_reference: ClassVar[bool] = False

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N, the judged steps."""
        return float(loss_tokens)

    def loss(
        self, values_MK: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`, the values being scores; metrics: accuracy of the mean head, share of right steps."""
        right_M = batch.advantage_M.to(values_MK.dtype)
        cost_MK = binary_cross_entropy_with_logits(values_MK, right_M[:, None].expand_as(values_MK), reduction="none")
        hit_M = (values_MK.detach().mean(-1) > 0) == (right_M > 0.5)
        return (batch.weight_M.to(cost_MK.dtype) * cost_MK.mean(-1)).sum() / denominator, {
            "labels": float(len(right_M)),
            "accuracy": float(hit_M.sum()),
            "right": float(right_M.sum()),
        }
