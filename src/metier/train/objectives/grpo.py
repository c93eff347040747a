"""Group-relative policy optimisation: raise what did better than the rest of its group.

Shape legend: M labels (sampled tokens) of one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metier.base.errors import ConfigError, DataError
from metier.train.packing import Packed

__all__ = ["Grpo"]


@dataclass(frozen=True, slots=True)
class Grpo:
    """Clipped policy gradient with group advantages, without a KL term.

    L = -(1/N) sum_t w_t min(r_t A_t, clip(r_t, 1 - e_low, 1 + e_high) A_t)
    r_t = sg[min(p_t / q_t, C)] p_t / sg[p_t]

    Symbols: p_t the policy's and q_t the sampler's probability of sampled token t; A_t the
    advantage of its episode within the group (`metier.train.advantages`); w_t its weight;
    e_low, e_high the clip range; C the cap of the importance weight, beyond which its value
    is truncated while the gradient of ln p_t stays; sg[] stops gradients. r_t equals
    p_t / q_t wherever that is at most C; it is 1 up to rounding while sampler and trainer
    are the same weights.

    Normalisation: `token` divides by N = labels of the whole optimiser step (DAPO), so long
    episodes weigh more than short ones; `constant` by N = episodes times `length`
    (Dr. GRPO), so that N does not depend on what was sampled.

    Sources: GRPO arXiv:2402.03300; PPO clip arXiv:1707.06347; asymmetric clip and token
    normalisation, DAPO arXiv:2503.14476; constant normaliser, Dr. GRPO arXiv:2503.20783;
    truncated importance weights, IMPALA arXiv:1802.01561.
    """

    name: ClassVar[str] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    normaliser: Literal["token", "constant"] = "token"
    length: int = 256  # tokens per episode that `constant` divides by
    is_cap: float = 2.0

    def __post_init__(self) -> None:
        if self.normaliser not in ("token", "constant"):
            raise ConfigError(f"grpo: normaliser is 'token' or 'constant', got {self.normaliser!r}")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ConfigError(
                f"grpo: clip_low lies in [0, 1] and clip_high is 0 or more, got {self.clip_low} and {self.clip_high}"
            )
        if self.is_cap < 1 or self.length < 1:
            raise ConfigError(f"grpo: is_cap and length must be 1 or more, got {self.is_cap} and {self.length}")

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N: the step's labels, or its episodes times `length`."""
        return float(loss_tokens if self.normaliser == "token" else examples * self.length)

    def loss(
        self, policy_logprobs_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; metrics: mismatch_kl, clip_fraction, entropy, ratio.

        mismatch_kl estimates KL(sampler || policy) by k3 = p/q - 1 - ln(p/q), nats per token.
        Raises `DataError` where a label has no sampler log-probability.
        """
        if bool(batch.sampler_logprobs_M.isnan().any()):
            raise DataError("grpo needs the sampler's log-probability of every label; set Example.sampler_logprobs")
        log_ratio_M = policy_logprobs_M - batch.sampler_logprobs_M.to(policy_logprobs_M.dtype)
        fixed_M = log_ratio_M.detach()
        ratio_M = fixed_M.exp().clamp(max=self.is_cap) * torch.exp(log_ratio_M - fixed_M)
        plain_M = ratio_M * batch.advantage_M
        clipped_M = ratio_M.clamp(1 - self.clip_low, 1 + self.clip_high) * batch.advantage_M
        loss = -(batch.weight_M * torch.minimum(plain_M, clipped_M)).sum() / denominator
        return loss, {
            "labels": float(policy_logprobs_M.numel()),
            "mismatch_kl": float((torch.expm1(fixed_M) - fixed_M).sum()),
            "clip_fraction": float((clipped_M < plain_M).sum()),
            "entropy": float(entropy_M.sum()),
            "ratio": float(ratio_M.detach().sum()),
        }
