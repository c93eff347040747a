"""Objectives, advantages and schedules, worked by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from metier.base.errors import ConfigError, DataError
from metier.feedback.rewards import Overlong
from metier.train.advantages import batch_advantages, gae, group_advantages, kl_penalty, leave_one_out
from metier.train.objectives import registry
from metier.train.objectives.policy import PRESETS, PolicyGradient
from metier.train.objectives.preferences import Dpo, Kto, Orpo, Simpo, kto_point
from metier.train.objectives.reward import ProcessReward, Reward
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


def both(*parts: tuple[float, float, list[float]], reference: list[float] | None = None) -> Packed:
    """As `batch_of`, the sampler's probabilities being the old policy's too."""
    made = batch_of(*parts)
    given = torch.tensor(reference or [math.nan] * len(made.like_M), dtype=torch.float64).log()
    return dataclasses.replace(made, old_logprobs_M=made.sampler_logprobs_M, reference_logprobs_M=given)


def slope_of(loss: torch.Tensor, policy: torch.Tensor) -> list[float]:
    (slope,) = torch.autograd.grad(loss, policy)
    return [float(x) for x in slope]


def test_clipped_ratios_by_hand() -> None:
    # p = .3, .2, .1 | .3, .1, .5 against o = q = .25, .25, .05 | .25, .2, .1
    # r = 1.2, 0.8, 2 | 1.2, 0.5, 5; clip range 0.9 to 1.3
    # A = +1:  min(1.2, 1.2) = 1.2; min(.8, .9) = .8; min(2, 1.3) = 1.3 (clipped)
    # A = -2:  min(-2.4, -2.4) = -2.4; min(-1, -1.8) = -1.8 (clipped); min(-10, -2.6) = -10
    # L = -(1.2 + .8 + 1.3 - 2.4 - 1.8 - 10) / 6 = 10.9 / 6
    # d r / d ln p = r; clipped ones have no slope: dL/d ln p = -(1.2, .8, 0 | -2.4, 0, -10) / 6
    policy = logs(0.3, 0.2, 0.1, 0.3, 0.1, 0.5)
    batch = both((1.0, 1.0, [0.25, 0.25, 0.05]), (1.0, -2.0, [0.25, 0.2, 0.1]))
    objective = PolicyGradient(clip_low=0.1, clip_high=0.3)
    loss, metrics = objective.loss(policy, torch.full((6,), 0.5), batch, denominator=6.0)
    assert float(loss.detach()) == pytest.approx(10.9 / 6, abs=1e-9)
    assert slope_of(loss, policy) == pytest.approx([-1.2 / 6, -0.8 / 6, 0, 2.4 / 6, 0, 10 / 6], abs=1e-9)
    ratio = 1.2 + 0.8 + 2 + 1.2 + 0.5 + 5
    wanted = {"labels": 6, "clip_fraction": 2, "entropy": 3, "ratio": ratio, "mismatch_kl": 0, "mismatch_capped": 0}
    assert metrics == pytest.approx(wanted, abs=1e-9)


def test_an_unclipped_ratio_by_hand() -> None:
    # r = 2, 0.5 with A = 1, -2: L = -(2 - 1) / 2 = -.5; dL/d ln p = -(2, -1) / 2
    policy = logs(0.2, 0.1)
    loss, _ = PolicyGradient(clip="none").loss(
        policy, torch.zeros(2), both((1.0, 1.0, [0.1]), (1.0, -2.0, [0.2])), denominator=2.0
    )
    assert float(loss.detach()) == pytest.approx(-0.5)
    assert slope_of(loss, policy) == pytest.approx([-1, 0.5])


def test_cispo_by_hand() -> None:
    # r = 8, 0.5 clipped to 0 ... 5: 5, 0.5; L = -sum r A ln p / 2 = -(5 * 3 ln .8 + .5 * -1 * ln .1) / 2
    # every token keeps its gradient: dL/d ln p = -(15, -.5) / 2
    policy = logs(0.8, 0.1)
    objective = registry.get_objective("cispo")
    loss, metrics = objective.loss(policy, torch.zeros(2), both((1.0, 3.0, [0.1]), (1.0, -1.0, [0.2])), denominator=2.0)
    assert float(loss.detach()) == pytest.approx(-(15 * math.log(0.8) - 0.5 * math.log(0.1)) / 2)
    assert slope_of(loss, policy) == pytest.approx([-7.5, 0.25])
    assert metrics["clip_fraction"] == 1


def test_sequence_ratios_by_hand() -> None:
    # r = 4 and 1: s = sqrt(4 * 1) = 2, clipped to 1.0004 with A = 1; r = .25: s = .25, A = -1
    # kept: min(-.25, -.9997) = -.9997 is the smaller, so it is clipped as well. With A = 2 on
    # the second: min(.5, 1.9994) = .5. Mean over labels, then over 2 episodes:
    # L = -(1.0004 + .5) / 2; only the second has a slope, d s / d ln p = s / 1: -.5 / 2
    policy = logs(0.4, 0.1, 0.1)
    objective = registry.get_objective("gspo")
    loss, metrics = objective.loss(
        policy, torch.zeros(3), both((1.0, 1.0, [0.1, 0.1]), (1.0, 2.0, [0.4])), denominator=2.0
    )
    assert float(loss.detach()) == pytest.approx(-1.5004 / 2)
    assert slope_of(loss, policy) == pytest.approx([0, 0, -0.25])
    assert metrics["clip_fraction"] == 2  # both labels of the first episode


def test_sequence_normaliser_by_hand() -> None:
    # r = 1 with A = 1 on 3 labels and A = 4 on one: L = -(3 * 1 / 3 + 4) / 2; dL/d ln p = -(1/3, 1/3, 1/3, 4) / 2
    policy = logs(0.5, 0.5, 0.5, 0.5)
    batch = both((1.0, 1.0, [0.5, 0.5, 0.5]), (1.0, 4.0, [0.5]))
    loss, _ = registry.get_objective("grpo").loss(policy, torch.zeros(4), batch, denominator=2.0)
    assert float(loss.detach()) == pytest.approx(-2.5)
    assert slope_of(loss, policy) == pytest.approx([-1 / 6, -1 / 6, -1 / 6, -2])


def test_kl_by_hand() -> None:
    # p = .5, f = .25: d = ln .5. k3 = .5 - 1 + ln 2, slope d k3 / d ln p = 1 - e^d = .5;
    # k2 = (ln 2)^2 / 2, slope -d = ln 2. Advantage 0 leaves nothing else; coefficient 3, N = 1.
    for kind, value, slope in (("k3", math.log(2) - 0.5, 0.5), ("k2", math.log(2) ** 2 / 2, math.log(2))):
        policy = logs(0.5)
        objective = PolicyGradient(kl=kind, kl_coef=3.0)  # type: ignore[arg-type]
        batch = both((1.0, 0.0, [0.5]), reference=[0.25])
        loss, metrics = objective.loss(policy, torch.zeros(1), batch, denominator=1.0)
        assert float(loss.detach()) == pytest.approx(3 * value)
        assert slope_of(loss, policy) == pytest.approx([3 * slope])
        assert metrics["reference_kl"] == pytest.approx(math.log(2) - 0.5)


def test_a_sampler_that_differs_is_mended_by_hand() -> None:
    # o = p = .4, .4, .1 against q = .1, .25, .4: m = 4, 1.6, .25; A = 1, no weights move: r = 1.
    # truncate at 2: c = 2, 1.6, .25, one capped; mask outside [.5, 2]: c = 0, 1.6, 0, two out.
    for kind, factors, capped in (("truncate", (2, 1.6, 0.25), 1), ("mask", (0, 1.6, 0), 2), ("none", (1, 1, 1), None)):
        policy = logs(0.4, 0.4, 0.1)
        loss, metrics = PolicyGradient(mismatch=kind).loss(  # type: ignore[arg-type]
            policy, torch.zeros(3), batch_of((1.0, 1.0, [0.1, 0.25, 0.4])), denominator=1.0
        )
        assert float(loss.detach()) == pytest.approx(-sum(factors))
        assert slope_of(loss, policy) == pytest.approx([-f for f in factors])
        assert metrics.get("mismatch_capped") == capped
        if capped is not None:
            k3 = sum(m - 1 - math.log(m) for m in (4, 1.6, 0.25))
            assert metrics["mismatch_kl"] == pytest.approx(k3)


def test_on_policy_it_is_the_plain_policy_gradient() -> None:
    # r = 1: L = -sum w A / N = -(2 * 3 + .5 * -1) / 4 = -5.5 / 4, and dL/d ln p = -w A / N.
    policy = logs(0.3, 0.6)
    batch = batch_of((2.0, 3.0, [0.3]), (0.5, -1.0, [0.6]))
    loss, _ = PolicyGradient().loss(policy, torch.zeros(2), batch, denominator=4.0)
    assert float(loss.detach()) == pytest.approx(-5.5 / 4)
    assert slope_of(loss, policy) == pytest.approx([-6 / 4, 0.5 / 4])


def test_advantages_and_weights_may_differ_by_token() -> None:
    # L = -(1 * 2 * .5 + 3 * -1 * 1) / 1 = 2; dL/d ln p = -w A
    example = Example((1, 1, 1), (0, 1, 1), advantage=(2.0, -1.0), weight=(0.5, 3.0))
    policy = logs(0.5, 0.5)
    loss, _ = PolicyGradient(mismatch="none").loss(policy, torch.zeros(2), pack([example], heads=4), denominator=1.0)
    assert slope_of(loss, policy) == pytest.approx([-1.0, 3.0])
    with pytest.raises(DataError, match="2 labels, 1 values of advantage"):
        dataclasses.replace(example, advantage=(1.0,))


def test_a_runaway_sampler_stays_finite() -> None:
    policy = torch.tensor([-1.0], dtype=torch.float32, requires_grad=True)
    batch = pack([Example((1, 1), (0, 1), advantage=-1.0, sampler_logprobs=(-500.0,))], heads=4)
    loss, _ = PolicyGradient().loss(policy, torch.zeros(1), batch, denominator=1.0)
    assert float(loss.detach()) == 2.0 and slope_of(loss, policy) == [2.0]


def test_normalisers() -> None:
    assert Sft().denominator(loss_tokens=30, examples=4) == 30
    assert PolicyGradient().denominator(loss_tokens=30, examples=4) == 30
    assert PolicyGradient(normaliser="sequence").denominator(loss_tokens=30, examples=4) == 4
    assert PolicyGradient(normaliser="constant", length=100).denominator(loss_tokens=30, examples=4) == 400
    assert Dpo().denominator(loss_tokens=30, examples=4) == 2
    assert Kto().denominator(loss_tokens=30, examples=4) == 4


def test_policy_gradients_refuse_what_they_cannot_use() -> None:
    bare = pack([Example((1, 1), (0, 1))], heads=4)
    with pytest.raises(DataError, match="sampler's log-probability"):
        PolicyGradient().loss(logs(0.5), torch.zeros(1), bare, denominator=1.0)
    with pytest.raises(DataError, match="reference_logprobs"):
        PolicyGradient(mismatch="none", kl="k3", kl_coef=0.1).loss(logs(0.5), torch.zeros(1), bare, denominator=1.0)
    for wrong in ({"normaliser": "episode"}, {"clip_low": -0.1}, {"cap": 0.5}, {"kl": "k3"}, {"kl_coef": 0.1}):
        with pytest.raises(ConfigError):
            PolicyGradient(**wrong)  # type: ignore[arg-type]


# --- preferences -----------------------------------------------------------------------


def pairs(*parts: tuple[str, float, list[float]], margin: float = 0.0) -> Packed:
    """A batch of examples given as (unit, target, reference probability of each label)."""
    return pack(
        [
            Example(
                (1,) * (1 + len(probs)),
                (0,) + (1,) * len(probs),
                unit=unit,
                target=target,
                margin=margin,
                reference_logprobs=tuple(map(math.log, probs)),
            )
            for unit, target, probs in parts
        ],
        heads=4,
    )


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand() -> None:
    # better: p = .5, .5 against f = .25, .25: h = 2 ln 2. worse: p = .1 against .2: h = -ln 2.
    # x = 3 ln 2; beta = 2: z = 6 ln 2, s(z) = 64/65.
    # sigmoid: L = -ln(64/65); dL/d ln p = -beta s(-z) = -2/65 for the better, +2/65 for the worse side
    # smoothed e = .25: L = -.75 ln(64/65) - .25 ln(1/65); slope -2 (.75 / 65 - .25 * 64/65) = -2 (-15.25 / 65)
    # robust: (-.75 ln(64/65) + .25 ln(1/65)) / .5; slope -2 (.75 / 65 + .25 * 64/65) / .5 = -4 (16.75 / 65)
    # hinge at beta = .25: z = .75 ln 2 = .52: L = 1 - z, slope -.25
    # ipo: h' = ln 2 and -ln 2, x' = 2 ln 2, beta = 2: L = (2 ln 2 - .25)^2,
    #      slope 2 (2 ln 2 - .25) / 2 on each of the better side's labels, - 2 (2 ln 2 - .25) on the worse one
    batch = pairs(("a", 0.0, [0.2]), ("a", 1.0, [0.25, 0.25]))
    ipo = 2 * math.log(2) - 0.25
    cases = [
        (Dpo(beta=2.0), -math.log(64 / 65), -2 / 65, 2 / 65),
        (
            Dpo(beta=2.0, smoothing=0.25),
            -0.75 * math.log(64 / 65) - 0.25 * math.log(1 / 65),
            2 * 15.25 / 65,
            -2 * 15.25 / 65,
        ),
        (
            Dpo(kind="robust", beta=2.0, smoothing=0.25),
            (-0.75 * math.log(64 / 65) + 0.25 * math.log(1 / 65)) / 0.5,
            -4 * 16.75 / 65,
            4 * 16.75 / 65,
        ),
        (Dpo(kind="hinge", beta=0.25), 1 - 0.75 * math.log(2), -0.25, 0.25),
        (Dpo(kind="ipo", beta=2.0), ipo**2, ipo, -2 * ipo),
        # the SFT term adds -.5 * mean of ln .5: slope -.25 on each of the better side's two labels
        (Dpo(beta=2.0, sft_coef=0.5), -math.log(64 / 65) + 0.5 * math.log(2), -2 / 65 - 0.25, 2 / 65),
    ]
    for objective, value, better, worse in cases:
        policy = logs(0.1, 0.5, 0.5)
        loss, metrics = objective.loss(policy, torch.zeros(3), batch, denominator=1.0)
        assert float(loss.detach()) == pytest.approx(value), objective
        assert slope_of(loss, policy) == pytest.approx([worse, better, better]), objective
        assert metrics["accuracy"] / metrics["labels"] == 1
        if objective.kind == "sigmoid":
            assert metrics["margin"] / metrics["labels"] == pytest.approx(6 * math.log(2))


@pytest.mark.parametrize("objective", [Dpo(sft_coef=0.5), Dpo(kind="ipo"), Simpo(), Orpo(), Reward(centre=0.1)])
def test_a_pair_counts_as_much_as_it_weighs(objective: Any) -> None:
    """Two pairs, of weights 3 and 0: three times the loss of the first alone, by the same N."""

    def loss(*units: tuple[str, float]) -> float:
        made = [
            Example(ids, (0, 1, 1), unit=unit, target=target, weight=weight, reference_logprobs=(-1.0, -2.0))
            for unit, weight in units
            for ids, target in (((1, 2, 3), 1.0), ((1, 4, 5), 0.0))
        ]
        values = torch.linspace(-3, -0.2, 8, dtype=torch.float64)[: 2 * len(made)]
        given = values[:, None] if objective.output == "scores" else values
        return float(objective.loss(given, torch.zeros(len(values)), pack(made, heads=4), denominator=2.0)[0])

    assert loss(("a", 3.0), ("b", 0.0)) == pytest.approx(3 * loss(("a", 1.0)), rel=1e-12)
    assert loss(("a", 1.0), ("b", 2.0)) != pytest.approx(loss(("a", 1.0), ("b", 1.0)))


def test_a_margin_moves_the_goal() -> None:
    # z = 6 ln 2 - margin = 2 ln 2 where the margin is 4 ln 2: L = -ln(4/5)
    batch = pairs(("a", 1.0, [0.25, 0.25]), ("a", 0.0, [0.2]), margin=4 * math.log(2))
    loss, _ = Dpo(beta=2.0).loss(logs(0.5, 0.5, 0.1), torch.zeros(3), batch, denominator=1.0)
    assert float(loss.detach()) == pytest.approx(-math.log(4 / 5))


def test_simpo_by_hand() -> None:
    # m = ln .5 and ln .125: beta (m - m') = 2 ln 4 = 4 ln 2; gamma = ln 2: z = 3 ln 2, s = 8/9
    # L = -ln(8/9); slope -beta s(-z) / labels = -(2/9) / 2 on each better label, 2/9 on the worse
    policy = logs(0.5, 0.5, 0.125)
    objective = Simpo(beta=2.0, gamma=math.log(2))
    batch = pairs(("a", 1.0, [0.5, 0.5]), ("a", 0.0, [0.5]))
    loss, _ = objective.loss(policy, torch.zeros(3), batch, denominator=1.0)
    assert float(loss.detach()) == pytest.approx(-math.log(8 / 9))
    assert slope_of(loss, policy) == pytest.approx([-1 / 9, -1 / 9, 2 / 9])


def test_orpo_by_hand() -> None:
    # m = ln .5: odds 1; m' = ln .2: odds .25; ln of their quotient ln 4, s = 4/5
    # L = -ln .5 - .5 ln(4/5); d ln odds / dm = 1 / (1 - e^m) = 2 and 1.25
    # slope: -(1 + .5 * .2 * 2) / 2 labels = -.6 each; worse: .5 * .2 * 1.25 = .125
    policy = logs(0.5, 0.5, 0.2)
    batch = pairs(("a", 1.0, [0.5, 0.5]), ("a", 0.0, [0.5]))
    loss, _ = Orpo(lam=0.5).loss(policy, torch.zeros(3), batch, denominator=1.0)
    assert float(loss.detach()) == pytest.approx(math.log(2) - 0.5 * math.log(0.8))
    assert slope_of(loss, policy) == pytest.approx([-0.6, -0.6, 0.125])


def test_kto_by_hand() -> None:
    # good: h = 2 ln 2, z = ln 2: beta (h - z) = ln 2 at beta = 1, s = 2/3: 1 - s = 1/3, weight 2
    # bad: h = -ln 2: beta (z - h) = 2 ln 2, s = 4/5: 1/5. L = (2/3 + 1/5) / 2
    # slope: -2 s(1 - s) = -2 * 2/9 / 2 on each good label; + 4/25 / 2 on the bad one
    policy = logs(0.5, 0.5, 0.1)
    batch = pairs(("", 1.0, [0.25, 0.25]), ("", 0.0, [0.2]), margin=math.log(2))
    loss, metrics = Kto(beta=1.0, good_weight=2.0).loss(policy, torch.zeros(3), batch, denominator=2.0)
    assert float(loss.detach()) == pytest.approx((2 / 3 + 1 / 5) / 2)
    assert slope_of(loss, policy) == pytest.approx([-2 / 9, -2 / 9, 2 / 25])
    assert metrics["kl"] / metrics["labels"] == pytest.approx(math.log(2))


def test_judged_answers_and_steps_weigh_too() -> None:
    judged = [
        Example((1, 2), (0, 1), target=target, weight=weight, reference_logprobs=(-1.0,), advantage=(target,))
        for target, weight in ((1.0, 3.0), (0.0, 0.0))
    ]
    for objective in (Kto(), ProcessReward()):
        values = torch.tensor([-0.5, -0.7], dtype=torch.float64)
        given = values if objective.output == "logprobs" else values[:, None]
        both, one = (
            float(objective.loss(given[: len(some)], torch.zeros(2), pack(some, heads=4), denominator=2.0)[0])
            for some in (judged, [dataclasses.replace(judged[0], weight=1.0)])
        )
        assert both == pytest.approx(3 * one, rel=1e-12) and one != 0


def test_kto_point_by_hand() -> None:
    # sums of ln p - ln f over two mismatched answers: (-1 + 2) - (-1) = ... 1 + 1 and -3: mean -.5, so 0
    assert kto_point([[-1.0, -1.0], [-4.0]], [[-2.0, -2.0], [-1.0]]) == 0.0
    assert kto_point([[-1.0, -1.0], [-4.0]], [[-2.0, -3.0], [-5.0]]) == pytest.approx((3 + 1) / 2)
    assert kto_point([], []) == 0.0


def test_pairs_are_pairs() -> None:
    for parts in (
        [("a", 1.0, [0.5]), ("b", 0.0, [0.5])],
        [("a", 1.0, [0.5]), ("a", 1.0, [0.5])],
        [("a", 1.0, [0.5]), ("a", 0.0, [0.5]), ("a", 1.0, [0.5]), ("a", 0.0, [0.5])],
        [("a", 1.0, [0.5])],
    ):
        with pytest.raises(DataError, match="compares pairs"):
            Dpo().loss(logs(*[0.5] * len(parts)), torch.zeros(len(parts)), pairs(*parts), denominator=1.0)
    two = [("b", 0.0, [0.5]), ("a", 1.0, [0.25]), ("b", 1.0, [0.5]), ("a", 0.0, [0.5])]
    loss, _ = Dpo(beta=1.0).loss(logs(0.5, 0.5, 0.5, 0.5), torch.zeros(4), pairs(*two), denominator=2.0)
    assert float(loss.detach()) == pytest.approx((math.log(2) - math.log(2 / 3)) / 2)  # x = 0 and ln 2
    for wrong in ({"beta": 0.0}, {"smoothing": 0.5}, {"kind": "hinge", "smoothing": 0.1}):
        with pytest.raises(ConfigError):
            Dpo(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="reference"):
        bare = pack([Example((1, 1), (0, 1), unit="a", target=t) for t in (1.0, 0.0)], heads=4)
        Dpo().loss(logs(0.5, 0.5), torch.zeros(2), bare, denominator=1.0)


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


def test_leave_one_out_by_hand() -> None:
    # others of 1: (0 + 2) / 2 = 1; of 0: 1.5; of 2: .5
    assert leave_one_out([1, 0, None, 2]) == [0, -1.5, None, 1.5]
    assert leave_one_out([3.0, None]) == [0, None]
    group = [1.0, 0.0, 0.0, 5.0]
    scaled = [a * 4 / 3 for a in group_advantages(group, scale=False) if a is not None]
    assert leave_one_out(group) == pytest.approx(scaled)


def test_batch_advantages_by_hand() -> None:
    # mean of 1, 3, 1, 3 is 2, deviation 1, whatever the groups
    assert batch_advantages([1, 3, None, 1, 3]) == [-1, 1, None, -1, 1]


def test_gae_by_hand() -> None:
    # r = 0, 0, 1; V = .5, .25, .5; gamma = .5, lam = .5:
    # delta = 0 + .125 - .5 = -.375; 0 + .25 - .25 = 0; 1 - .5 = .5
    # A = .5; 0 + .25 * .5 = .125; -.375 + .25 * .125 = -.34375. R = A + V
    advantages, returns = gae([0, 0, 1], [0.5, 0.25, 0.5], gamma=0.5, lam=0.5)
    assert advantages == [-0.34375, 0.125, 0.5]
    assert returns == [0.15625, 0.375, 1.0]
    # gamma = lam = 1: the advantage is the reward that is still to come less the value
    assert gae([1, 2, 3], [1, 1, 1], gamma=1, lam=1)[0] == [5, 4, 2]


def test_penalties_by_hand() -> None:
    assert kl_penalty([-1.0, -2.0], [-2.0, -2.5], 0.1) == pytest.approx(-0.15)
    # limit 100, buffer 20: nothing up to 80, half way at 90, -1 from 100 on
    assert [Overlong(100, 20).penalty(n) for n in (10, 80, 90, 100, 500)] == [0, 0, 0.5, 1, 1]
    assert Overlong(100, 20, 0.5).penalty(90) == 0.25


def test_schedules_by_hand() -> None:
    assert [schedule("constant", s, 6, 2) for s in range(6)] == [0.5, 1, 1, 1, 1, 1]
    assert [schedule("linear", s, 6, 2) for s in range(8)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    # (1 + cos(pi x)) / 2 at x = 0, 1/3, 2/3, 1: cos 60 degrees is 1/2
    assert [schedule("cosine", s, 3, 0) for s in range(4)] == pytest.approx([1, 0.75, 0.25, 0], abs=1e-12)
    assert schedule("linear", 0, 1, 0) == 1
    # x = (s - 2) / 10: one up to x = 0.8, then 5 (1 - x)
    found = [schedule("wsd", s, 12, 2) for s in (0, 1, 2, 9, 10, 11, 12)]
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 0.5, 0], abs=1e-12)


def test_objectives_by_name() -> None:
    assert registry.get_objective("sft") == Sft()
    wanted = PolicyGradient(name="grpo", normaliser="sequence", clip_high=0.28)
    assert registry.get_objective("grpo", clip_high=0.28) == wanted
    assert {"sft", "dpo", "kto", "orpo", "simpo", *PRESETS} <= set(registry.names())
    for name in registry.names():
        assert registry.get_objective(name).name == name
    with pytest.raises(ConfigError, match="nearest is 'grpo'"):
        registry.get_objective("gropo")
    with pytest.raises(ConfigError, match="did you mean 'clip_high'"):
        registry.get_objective("grpo", clip_hihg=0.2)


def test_another_objective_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry._known, "registered", {})
    registry.register("mine", Sft)
    assert registry.get_objective("mine") == Sft()
