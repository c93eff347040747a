"""Preferences: raise the better of two answers against the worse.

Examples come in units of two, whose `target` is 1 for the better and 0 for the worse side
(KTO judges single examples). Policy log-probabilities have gradients; reference ones come
with the examples, computed once. The loss of a pair, or of a judged example, is multiplied
by its `weight`; N counts pairs and examples, whatever they weigh.

Shape legend: M labels, B examples, U units (pairs) of one micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from metier.base.errors import ConfigError, DataError
from metier.train.packing import Packed

__all__ = ["Dpo", "Kto", "Orpo", "Simpo", "kto_point"]


def sides(batch: Packed, name: str, *, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Indices of the better and of the worse example of each unit, both of shape (U,).

    Where `ties` are allowed, both targets of a unit may be 0.5. Raises `DataError` for any
    other unit.
    """
    target_B = batch.target_B
    order = torch.argsort(batch.unit_B * 2 + (target_B < 0.5).long(), stable=True)
    sizes_U = torch.bincount(batch.unit_B)
    if bool((sizes_U != 2).any()):
        raise DataError(f"{name} compares pairs: each unit needs two examples, one here has {int(sizes_U.max())}")
    first, second = order[0::2], order[1::2]
    drawn_U, drawn_too_U = target_B[first] == 0.5, target_B[second] == 0.5
    if ties and bool((drawn_U != drawn_too_U).any()):
        raise DataError(f"{name}: a tie has target 0.5 on both sides")
    decided_U = (target_B[first] > 0.5) & (target_B[second] <= 0.5)
    if not bool((decided_U | (drawn_U & drawn_too_U) if ties else decided_U).all()):
        raise DataError(f"{name} compares pairs: each unit needs one example with target 1 and one with target 0")
    return first, second


def reference_of(batch: Packed, name: str) -> Tensor:
    """The reference's log-probabilities; `DataError` where one is missing."""
    if bool(batch.reference_logprobs_M.isnan().any()):
        raise DataError(f"{name} needs the reference's log-probability of every label; set Example.reference_logprobs")
    return batch.reference_logprobs_M


class _Pairwise:
    """What objectives on pairs share."""

    rows: ClassVar[Literal["pair"]] = "pair"
    output: ClassVar[Literal["logprobs"]] = "logprobs"
    needs_reference: ClassVar[bool] = False

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N, the pairs of the step."""
        return examples / 2


@dataclass(frozen=True, slots=True)
class Dpo(_Pairwise):
    """Direct preference optimisation and its relatives.

    With h_y = sum_t ln(p_t / f_t) over the labels of side y and x = h_better - h_worse - margin / beta:

    `sigmoid` L = -(1 - e) ln s(beta x) - e ln s(-beta x)            (e = 0: DPO; e > 0: smoothed, cDPO)
    `robust`  L = [-(1 - e) ln s(beta x) + e ln s(-beta x)] / (1 - 2e)
    `hinge`   L = max(0, 1 - beta x)
    `ipo`     L = (x' - 1 / (2 beta))^2 with h' = h / labels, the mean over labels in place of the sum

    to which `sft_coef` times the negative log-likelihood of the better side, a mean over
    its labels, is added. N = pairs of the whole optimiser step.

    Symbols: p_t, f_t the policy's and the reference's probability of label t; s the
    logistic function; beta the strength of the tie to the reference; e `smoothing`, the
    share of labels that are thought wrong.

    Sources: DPO arXiv:2305.18290; cDPO, Mitchell 2023, "A note on DPO with noisy
    preferences"; robust DPO arXiv:2403.00409; hinge, SLiC arXiv:2305.10425; IPO
    arXiv:2310.12036 (whose lengths are averaged as its authors' code does); the SFT term,
    arXiv:2404.19733.
    """

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True
    kind: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid"
    beta: float = 0.1
    smoothing: float = 0.0
    sft_coef: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("sigmoid", "robust", "hinge", "ipo"):
            raise ConfigError(f"dpo: kind is one of sigmoid, robust, hinge, ipo, got {self.kind!r}")
        if self.beta <= 0 or not 0 <= self.smoothing < 0.5 or self.sft_coef < 0:
            raise ConfigError(
                f"dpo: beta must be above 0, smoothing in [0, 0.5) and sft_coef 0 or more, "
                f"got {self.beta}, {self.smoothing} and {self.sft_coef}"
            )
        if self.smoothing and self.kind in ("hinge", "ipo"):
            raise ConfigError(f"dpo: smoothing belongs to kinds sigmoid and robust, not to {self.kind}")

    def loss(
        self, policy_logprobs_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; metrics (times labels per pair): margin, accuracy, better_reward, worse_reward."""
        better, worse = sides(batch, self.name)
        reference_M = reference_of(batch, self.name).to(policy_logprobs_M.dtype)
        lead_B = batch.sums(policy_logprobs_M - reference_M)
        if self.kind == "ipo":
            lead_B = lead_B / batch.labels_B
        x_U = lead_B[better] - lead_B[worse] - batch.margin_B[better].to(lead_B.dtype) / self.beta
        z_U = self.beta * x_U
        e = self.smoothing
        if self.kind == "sigmoid":
            loss_U = -(1 - e) * logsigmoid(z_U) - e * logsigmoid(-z_U)
        elif self.kind == "robust":
            loss_U = (-(1 - e) * logsigmoid(z_U) + e * logsigmoid(-z_U)) / (1 - 2 * e)
        elif self.kind == "hinge":
            loss_U = relu(1 - z_U)
        else:
            loss_U = (x_U - 1 / (2 * self.beta)).square()
        if self.sft_coef:
            loss_U = loss_U - self.sft_coef * batch.means(policy_logprobs_M)[better]
        return weighed(loss_U, batch, better) / denominator, pair_metrics(
            policy_logprobs_M, entropy_M, lead_B * self.beta, better, worse
        )


def weighed(loss_U: Tensor, batch: Packed, better: Tensor) -> Tensor:
    """The sum of the pairs' losses, each times the pair's weight."""
    return (batch.weight_B[better].to(loss_U.dtype) * loss_U).sum()


def pair_metrics(
    policy_logprobs_M: Tensor, entropy_M: Tensor, reward_B: Tensor, better: Tensor, worse: Tensor
) -> dict[str, float]:
    """Sums over labels whose means over labels are means over pairs."""
    labels = float(policy_logprobs_M.numel())
    scale = labels / len(better)
    reward_B = reward_B.detach()
    lead_U = reward_B[better] - reward_B[worse]
    return {
        "labels": labels,
        "entropy": float(entropy_M.sum()),
        "margin": float(lead_U.sum()) * scale,
        "accuracy": float((lead_U > 0).sum()) * scale,
        "better_reward": float(reward_B[better].sum()) * scale,
        "worse_reward": float(reward_B[worse].sum()) * scale,
    }


@dataclass(frozen=True, slots=True)
class Simpo(_Pairwise):
    """Preference optimisation without a reference, by mean log-probability.

    L = -ln s(beta (m_better - m_worse) - gamma), m = (1 / labels) sum_t ln p_t, N = pairs.

    Symbols: p_t the policy's probability of label t; s the logistic function; gamma the
    lead that is wanted, in units of reward. Source: SimPO arXiv:2405.14734 (gamma = beta
    times the paper's gamma over beta).
    """

    name: ClassVar[str] = "simpo"
    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.gamma < 0:
            raise ConfigError(f"simpo: beta must be above 0 and gamma 0 or more, got {self.beta} and {self.gamma}")

    def loss(
        self, policy_logprobs_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; metrics as `Dpo`'s."""
        better, worse = sides(batch, self.name)
        mean_B = batch.means(policy_logprobs_M)
        loss_U = -logsigmoid(self.beta * (mean_B[better] - mean_B[worse]) - self.gamma)
        metrics = pair_metrics(policy_logprobs_M, entropy_M, mean_B * self.beta, better, worse)
        return weighed(loss_U, batch, better) / denominator, metrics


@dataclass(frozen=True, slots=True)
class Orpo(_Pairwise):
    """SFT on the better side with a penalty on the odds of the worse one; no reference.

    L = -m_better - lam ln s(ln odds(better) - ln odds(worse)), odds = e^m / (1 - e^m), N = pairs.

    Symbols: m the mean over an answer's labels of ln p_t; s the logistic function; lam the
    weight of the odds. Source: ORPO arXiv:2403.07691.
    """

    name: ClassVar[str] = "orpo"
    lam: float = 0.1

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ConfigError(f"orpo: lam must be 0 or more, got {self.lam}")

    def loss(
        self, policy_logprobs_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; metrics as `Dpo`'s, rewards being lam times m."""
        better, worse = sides(batch, self.name)
        mean_B = batch.means(policy_logprobs_M).clamp(max=-1e-6)  # e^m below 1
        odds_B = mean_B - torch.log(-torch.expm1(mean_B))
        loss_U = -mean_B[better] - self.lam * logsigmoid(odds_B[better] - odds_B[worse])
        metrics = pair_metrics(policy_logprobs_M, entropy_M, mean_B * self.lam, better, worse)
        return weighed(loss_U, batch, better) / denominator, metrics


@dataclass(frozen=True, slots=True)
class Kto:
    """Kahneman-Tversky optimisation: single answers that are good or bad, no pairs.

    L = (1/N) sum_y  w+ (1 - s(beta (h_y - z)))  for good y,  w- (1 - s(beta (z - h_y)))  for bad y

    Symbols: h_y = sum_t ln(p_t / f_t) over the answer's labels; s the logistic function;
    w+ and w- the weights of good and bad answers (`target` 1 and 0); z an estimate of
    KL(policy || reference), which comes with the examples as their `margin` so that it does
    not depend on how the step is cut; `kto_point` estimates it. N is the number of examples
    of the step. Source: KTO arXiv:2402.01306.
    """

    name: ClassVar[str] = "kto"
    rows: ClassVar[Literal["judged"]] = "judged"
    output: ClassVar[Literal["logprobs"]] = "logprobs"
    needs_reference: ClassVar[bool] = True
    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.good_weight < 0 or self.bad_weight < 0:
            raise ConfigError(
                f"kto: beta must be above 0 and weights 0 or more, "
                f"got {self.beta}, {self.good_weight} and {self.bad_weight}"
            )

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N, the examples of the step."""
        return float(examples)

    def loss(
        self, policy_logprobs_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; metrics: entropy, and as means over examples good, reward, kl."""
        reference_M = reference_of(batch, self.name).to(policy_logprobs_M.dtype)
        lead_B = batch.sums(policy_logprobs_M - reference_M)
        z_B = batch.margin_B.to(lead_B.dtype)
        good_B = batch.target_B > 0.5
        gain_B = torch.where(good_B, lead_B - z_B, z_B - lead_B)
        weight_B = torch.where(good_B, self.good_weight, self.bad_weight).to(lead_B.dtype) * batch.weight_B
        loss = (weight_B * (1 - torch.sigmoid(self.beta * gain_B))).sum() / denominator
        labels = float(policy_logprobs_M.numel())
        scale = labels / batch.examples
        return loss, {
            "labels": labels,
            "entropy": float(entropy_M.sum()),
            "good": float(good_B.sum()) * scale,
            "reward": float(self.beta * lead_B.detach().sum()) * scale,
            "kl": float(z_B.sum()) * scale,
        }


def kto_point(policy_logprobs: Sequence[Sequence[float]], reference_logprobs: Sequence[Sequence[float]]) -> float:
    """KTO's z: max(0, the mean over *mismatched* examples of sum_t ln(p_t / f_t)).

    Mismatched examples are the batch's prompts with answers that belong to other prompts;
    taking the matched ones instead biases the estimate by what is being learnt.
    """
    leads = [math.fsum(p) - math.fsum(f) for p, f in zip(policy_logprobs, reference_logprobs, strict=True)]
    return max(0.0, math.fsum(leads) / len(leads)) if leads else 0.0
