"""Objectives, advantages and schedules, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from metier.base.errors import ConfigError, DataError
from metier.train.advantages import group_advantages
from metier.train.objectives import registry
from metier.train.objectives.grpo import Grpo
from metier.train.objectives.sft import Sft
from metier.train.optimizer import schedule
from metier.train.packing import Example, Packed, pack


def batch_of(*parts: tuple[float, float, list[float]]) -> Packed:
    """A batch of examples given as (weight, advantage, sampler probability of each label)."""
    return pack(
        [
            Example(
                (1,) * (1 + len(probs)),
                (0,) + (1,) * len(probs),
                weight=weight,
                advantage=advantage,
                sampler_logprobs=tuple(map(math.log, probs)),
            )
            for weight, advantage, probs in parts
        ],
        heads=4,
    )


def logs(*probs: float) -> torch.Tensor:
    return torch.tensor(probs, dtype=torch.float64).log().requires_grad_()


def test_sft_by_hand() -> None:
    # ln p = -ln 2, -ln 4 with weight 1 and -ln 8 with weight 2; N = 3:
    # L = (ln 2 + 2 ln 2 + 2 * 3 ln 2) / 3 = 9 ln 2 / 3 = 3 ln 2; dL/d ln p = -1/3, -1/3, -2/3.
    policy = logs(1 / 2, 1 / 4, 1 / 8)
    batch = batch_of((1.0, 0.0, [0.5, 0.5]), (2.0, 0.0, [0.5]))
    loss, metrics = Sft().loss(policy, torch.ones(3), batch, denominator=3.0)
    assert float(loss.detach()) == pytest.approx(3 * math.log(2), abs=1e-12)
    (slope,) = torch.autograd.grad(loss, policy)
    assert slope.tolist() == pytest.approx([-1 / 3, -1 / 3, -2 / 3], abs=1e-12)
    assert metrics == pytest.approx({"labels": 3, "nll": 6 * math.log(2), "entropy": 3})


def test_grpo_by_hand() -> None:
    # p = .3, .2, .1 | .3, .1, .5 against q = .25, .25, .05 | .25, .2, .1
    # r = 1.2, 0.8, 2 (at the cap) | 1.2, 0.5, 5 -> capped to 2; clip range 0.9 to 1.3
    # A = +1:  min(1.2, 1.2) = 1.2; min(.8, .9) = .8; min(2, 1.3) = 1.3 (clipped)
    # A = -2:  min(-2.4, -2.4) = -2.4; min(-1, -1.8) = -1.8 (clipped); min(-4, -2.6) = -4
    # L = -(1.2 + .8 + 1.3 - 2.4 - 1.8 - 4) / 6 = 4.9 / 6
    # d r / d ln p = r, also at the cap; clipped ones have no slope:
    # dL/d ln p = -(1.2, .8, 0 | -2.4, 0, -4) / 6
    policy = logs(0.3, 0.2, 0.1, 0.3, 0.1, 0.5)
    batch = batch_of((1.0, 1.0, [0.25, 0.25, 0.05]), (1.0, -2.0, [0.25, 0.2, 0.1]))
    objective = Grpo(clip_low=0.1, clip_high=0.3, is_cap=2.0)
    loss, metrics = objective.loss(policy, torch.full((6,), 0.5), batch, denominator=6.0)
    assert float(loss.detach()) == pytest.approx(4.9 / 6, abs=1e-9)
    (slope,) = torch.autograd.grad(loss, policy)
    assert slope.tolist() == pytest.approx([-1.2 / 6, -0.8 / 6, 0, 2.4 / 6, 0, 4 / 6], abs=1e-9)
    # k3 = r - 1 - ln r with the uncapped r
    k3 = sum(r - 1 - math.log(r) for r in (1.2, 0.8, 2, 1.2, 0.5, 5))
    wanted = {"labels": 6, "mismatch_kl": k3, "clip_fraction": 2, "entropy": 3, "ratio": 1.2 + 0.8 + 2 + 1.2 + 0.5 + 2}
    assert metrics == pytest.approx(wanted, abs=1e-9)


def test_grpo_on_policy_is_the_plain_policy_gradient() -> None:
    # r = 1: L = -sum w A / N = -(2 * 3 + .5 * -1) / 4 = -5.5 / 4, and dL/d ln p = -w A / N.
    policy = logs(0.3, 0.6)
    loss, _ = Grpo().loss(policy, torch.zeros(2), batch_of((2.0, 3.0, [0.3]), (0.5, -1.0, [0.6])), denominator=4.0)
    assert float(loss.detach()) == pytest.approx(-5.5 / 4)
    (slope,) = torch.autograd.grad(loss, policy)
    assert slope.tolist() == pytest.approx([-6 / 4, 0.5 / 4])


def test_a_runaway_ratio_stays_finite() -> None:
    policy = torch.tensor([-1.0], dtype=torch.float32, requires_grad=True)
    batch = pack([Example((1, 1), (0, 1), advantage=-1.0, sampler_logprobs=(-500.0,))], heads=4)
    loss, _ = Grpo().loss(policy, torch.zeros(1), batch, denominator=1.0)
    assert float(loss.detach()) == 2.0 and torch.autograd.grad(loss, policy)[0].tolist() == [2.0]


def test_normalisers() -> None:
    assert Sft().denominator(loss_tokens=30, examples=4) == 30
    assert Grpo().denominator(loss_tokens=30, examples=4) == 30
    assert Grpo(normaliser="constant", length=100).denominator(loss_tokens=30, examples=4) == 400


def test_grpo_refuses_what_it_cannot_use() -> None:
    with pytest.raises(DataError, match="sampler's log-probability"):
        Grpo().loss(logs(0.5), torch.zeros(1), pack([Example((1, 1), (0, 1))], heads=4), denominator=1.0)
    for wrong in ({"normaliser": "sequence"}, {"clip_low": -0.1}, {"is_cap": 0.5}):
        with pytest.raises(ConfigError):
            Grpo(**wrong)  # type: ignore[arg-type]


def test_advantages_by_hand() -> None:
    # mean of 1, 0, 0, 1, 3 = 1; deviations 0, -1, -1, 0, 2; variance 6 / 5
    assert group_advantages([1, 0, None, 0, 1, 3], scale=False) == [0, -1, None, -1, 0, 2]
    spread = math.sqrt(6 / 5)
    scaled = group_advantages([1, 0, None, 0, 1, 3], scale=True)
    assert scaled[2] is None
    assert [a for a in scaled if a is not None] == pytest.approx([0, -1 / spread, -1 / spread, 0, 2 / spread])


def test_groups_that_say_nothing_give_zeros() -> None:
    assert group_advantages([0.1] * 3, scale=True) == [0, 0, 0]
    assert group_advantages([None, 1.0], scale=True) == [None, 0]
    assert group_advantages([None, None], scale=False) == [None, None]
    assert group_advantages([], scale=False) == []


def test_schedules_by_hand() -> None:
    assert [schedule("constant", s, 6, 2) for s in range(6)] == [0.5, 1, 1, 1, 1, 1]
    assert [schedule("linear", s, 6, 2) for s in range(8)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    # (1 + cos(pi x)) / 2 at x = 0, 1/3, 2/3, 1: cos 60 degrees is 1/2
    assert [schedule("cosine", s, 3, 0) for s in range(4)] == pytest.approx([1, 0.75, 0.25, 0], abs=1e-12)
    assert schedule("linear", 0, 1, 0) == 1


def test_objectives_by_name() -> None:
    assert registry.get_objective("sft") == Sft()
    assert registry.get_objective("grpo", clip_high=0.28) == Grpo(clip_high=0.28)
    assert {"grpo", "sft"} <= set(registry.names())
    with pytest.raises(ConfigError, match="nearest is 'grpo'"):
        registry.get_objective("gropo")
    with pytest.raises(ConfigError, match="did you mean 'clip_high'"):
        registry.get_objective("grpo", clip_hihg=0.2)


def test_another_objective_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    registry.register("mine", Sft)
    assert registry.get_objective("mine") == Sft()
