"""Policy gradients: reinforcement learning as a product of a few choices.

The advantage comes with the examples (`metier.train.advantages`); the other choices are
the settings of one class: what the ratio is taken over, how it is clipped, what the sum
is divided by, how far the policy may drift from a reference, and how a difference between
sampler and trainer is mended. The names people know are presets of these settings.

Shape legend: M labels (sampled tokens), B examples (episodes) of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metier.base.errors import ConfigError, DataError
from metier.train.packing import Packed

__all__ = ["ADVANTAGES", "PRESETS", "PolicyGradient"]


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """Policy gradient with the choices below.

    L = (1/N) sum_t w_t [ -c_t S(r_t, A_t) + kl_coef K(d_t) ]

    Symbols: p_t the policy's, o_t the policy's at the time of sampling ("old"), q_t the
    sampler's and f_t the reference's probability of sampled token t; A_t its advantage, w_t
    its weight. Where an example gives no old log-probabilities, o_t = sg[p_t], as when
    every sample is used for one update; sg[] stops gradients.

    Ratio: `token` r_t = p_t / o_t; `sequence` r_t = exp(mean over the episode's tokens of
    ln(p_t / o_t)), one number an episode.

    Clip: `ppo` S = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A); `cispo` S =
    sg[clip(r, 1 - clip_low, 1 + clip_high)] A ln p, which keeps every token's gradient;
    `none` S = r A.

    Normaliser: `token` N = labels of the whole optimiser step; `sequence` the mean over an
    episode's labels, then over the step's episodes; `constant` N = episodes times `length`.

    KL, with d = ln(f_t / p_t): `k1` K = -d, `k2` K = d^2 / 2, `k3` K = e^d - 1 - d. As a
    loss k2 has the gradient of KL(p || f); k1 has none in expectation, so it is refused
    here and belongs into the reward (`metier.train.advantages.kl_penalty`).

    Mismatch, c_t from m_t = o_t / q_t: `truncate` c = min(m, cap); `mask` c = m where
    1/cap <= m <= cap, else 0; `none` c = 1. No gradient flows through c.

    Sources: PPO arXiv:1707.06347; GRPO arXiv:2402.03300; RLOO arXiv:2402.14740; Dr. GRPO
    arXiv:2503.20783; DAPO arXiv:2503.14476; GSPO arXiv:2507.18071; CISPO arXiv:2506.13585;
    REINFORCE++ arXiv:2501.03262; KL estimators, Schulman 2020, "Approximating KL
    divergence"; truncated importance weights, IMPALA arXiv:1802.01561.
    """

    rows: ClassVar[Literal["episode"]] = "episode"
    output: ClassVar[Literal["logprobs"]] = "logprobs"
    name: str = "policy"
    ratio: Literal["token", "sequence"] = "token"
    clip: Literal["ppo", "cispo", "none"] = "ppo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    normaliser: Literal["token", "sequence", "constant"] = "token"
    length: int = 256  # tokens per episode that `constant` divides by
    kl: Literal["none", "k2", "k3"] = "none"
    kl_coef: float = 0.0
    mismatch: Literal["truncate", "mask", "none"] = "truncate"
    cap: float = 2.0

    def __post_init__(self) -> None:
        choices = {
            "ratio": ("token", "sequence"),
            "clip": ("ppo", "cispo", "none"),
            "normaliser": ("token", "sequence", "constant"),
            "kl": ("none", "k2", "k3"),
            "mismatch": ("truncate", "mask", "none"),
        }
        for setting, known in choices.items():
            if getattr(self, setting) not in known:
                raise ConfigError(
                    f"{self.name}: {setting} is one of {', '.join(known)}, got {getattr(self, setting)!r}"
                )
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ConfigError(
                f"{self.name}: clip_low lies in [0, 1] and clip_high is 0 or more, "
                f"got {self.clip_low} and {self.clip_high}"
            )
        if self.cap < 1 or self.length < 1 or self.kl_coef < 0:
            raise ConfigError(
                f"{self.name}: cap and length must be 1 or more and kl_coef 0 or more, "
                f"got {self.cap}, {self.length} and {self.kl_coef}"
            )
        if self.needs_reference != (self.kl_coef > 0):
            raise ConfigError(f"{self.name}: kl and kl_coef go together, got {self.kl!r} and {self.kl_coef}")

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL term."""
        return self.kl != "none"

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """N: the step's labels, its episodes, or its episodes times `length`."""
        return float({"token": loss_tokens, "sequence": examples, "constant": examples * self.length}[self.normaliser])

    def loss(
        self, policy_logprobs_M: Tensor, entropy_M: Tensor, batch: Packed, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.loss`; metrics: ratio, clip_fraction, entropy, mismatch_kl, mismatch_capped, reference_kl.

        mismatch_kl estimates KL(sampler || old policy) by k3 = m - 1 - ln m, reference_kl
        KL(policy || reference) by the k3 above, both in nats per token. Raises `DataError`
        where a label lacks a log-probability that the settings need.
        """
        fixed_M = policy_logprobs_M.detach()
        old_M = torch.where(batch.old_logprobs_M.isnan(), fixed_M.double(), batch.old_logprobs_M).to(fixed_M.dtype)
        correction_M, sums = self._mend(old_M, batch)
        ratio_M = self._ratio(policy_logprobs_M - old_M, batch)
        advantage_M = batch.advantage_M.to(fixed_M.dtype)
        bounded_M = ratio_M.clamp(1 - self.clip_low, 1 + self.clip_high)
        if self.clip == "cispo":
            gain_M = bounded_M.detach() * advantage_M * policy_logprobs_M
            clipped_M = bounded_M.detach() != ratio_M.detach()
        else:
            gain_M = ratio_M * advantage_M
            clipped_M = torch.zeros_like(gain_M, dtype=torch.bool)
            if self.clip == "ppo":
                clipped_M = bounded_M * advantage_M < gain_M
                gain_M = torch.minimum(gain_M, bounded_M * advantage_M)
        cost_M = -correction_M * gain_M
        if self.needs_reference:
            if bool(batch.reference_logprobs_M.isnan().any()):
                raise DataError(f"{self.name} with kl {self.kl!r} needs Example.reference_logprobs of every label")
            drift_M = batch.reference_logprobs_M.to(fixed_M.dtype) - policy_logprobs_M
            k3_M = torch.expm1(drift_M) - drift_M
            cost_M = cost_M + self.kl_coef * (k3_M if self.kl == "k3" else drift_M.square() / 2)
            sums["reference_kl"] = float(k3_M.detach().sum())
        share_M = batch.weight_M
        if self.normaliser == "sequence":
            share_M = share_M / batch.labels_B[batch.example_M]
        return (share_M * cost_M).sum() / denominator, {
            **sums,
            "labels": float(fixed_M.numel()),
            "ratio": float(ratio_M.detach().sum()),
            "clip_fraction": float(clipped_M.sum()),
            "entropy": float(entropy_M.sum()),
        }

    def _ratio(self, log_ratio_M: Tensor, batch: Packed) -> Tensor:
        if self.ratio == "token":
            return log_ratio_M.exp()
        return batch.means(log_ratio_M).exp()[batch.example_M]

    def _mend(self, old_M: Tensor, batch: Packed) -> tuple[Tensor, dict[str, float]]:
        """What mends a sampler that differs from the trainer, without gradient."""
        if self.mismatch == "none":
            return torch.ones_like(old_M), {}
        if bool(batch.sampler_logprobs_M.isnan().any()):
            raise DataError(
                f"{self.name} needs the sampler's log-probability of every label; "
                "set Example.sampler_logprobs, or mismatch 'none'"
            )
        log_M = old_M - batch.sampler_logprobs_M.to(old_M.dtype)
        factor_M = log_M.exp()
        beyond_M = factor_M > self.cap
        if self.mismatch == "truncate":
            mended_M = factor_M.clamp(max=self.cap)
        else:
            beyond_M = beyond_M | (factor_M < 1 / self.cap)
            mended_M = factor_M.masked_fill(beyond_M, 0.0)
        return mended_M, {
            "mismatch_kl": float((torch.expm1(log_M) - log_M).sum()),
            "mismatch_capped": float(beyond_M.sum()),
        }


# What the names stand for, as they are used today: without a KL term, which `kl` and
# `kl_coef` add.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"normaliser": "sequence"},
    "dr_grpo": {"normaliser": "constant"},
    "dapo": {"normaliser": "token", "clip_high": 0.28},
    "gspo": {"ratio": "sequence", "normaliser": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"clip": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    "rloo": {"clip": "none", "normaliser": "constant", "length": 1},
    "reinforce_pp": {"normaliser": "token"},
    "ppo": {"normaliser": "token"},
}

# The advantage (`metier.train.advantages`) that belongs to each name.
ADVANTAGES: Mapping[str, str] = {
    **dict.fromkeys(("grpo", "dapo", "gspo", "cispo"), "group"),
    "dr_grpo": "group_unscaled",
    "rloo": "leave_one_out",
    "reinforce_pp": "batch",
    "ppo": "gae",
}
