"""The draw: sizes hold every time, chances are what they are said to be, and weighting by them undoes the choosing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier.base.seeds import rng_for
from metier.feedback.selection.design import PRIORITY, UNIFORM, design, draw


def test_a_design_by_hand() -> None:
    # n = 2 of 4: one at random (1/4 each), one by rank with weights 1, e^-1, e^-2, e^-3, sum 1.553; the best
    # is capped by nothing: .644 + .25 < 1
    plan = design(np.array([5.0, 1.0, 9.0, 2.0]), 2)
    assert plan.rank.tolist() == [2, 4, 1, 3]
    total = 1 + math.exp(-1) + math.exp(-2) + math.exp(-3)
    want = [0.25 + math.exp(-(rank - 1)) / total for rank in plan.rank]
    assert plan.propensity == pytest.approx(want)


@given(
    st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.5]), min_size=1, max_size=40),
    st.integers(0, 50),
    st.floats(0.1, 1),
    st.integers(0, 1000),
)
def test_every_draw_has_the_right_sizes(values: list[float], n: int, uniform: float, seed: int) -> None:
    plan = design(np.array(values), n, uniform=uniform)
    n = min(n, len(values))
    assert plan.propensity.sum() == pytest.approx(n)
    assert (plan.propensity <= 1).all() and (plan.chance_NA >= 0).all()
    arms = draw(plan.chance_NA, rng_for(seed, "test"))
    assert arms.count(UNIFORM) == plan.uniform >= uniform * n - 1e-6
    assert arms.count(PRIORITY) == n - plan.uniform
    assert draw(plan.chance_NA, rng_for(seed, "test")) == arms


def test_better_items_are_asked_more_often_and_equal_ones_alike() -> None:
    plan = design(np.array([3.0, 2.0, 2.0, 1.0, 0.0, 0.0]), 3)
    p = plan.propensity
    assert p[0] > p[1] == p[2] > p[3] > p[4] == p[5] >= plan.uniform / 6
    assert design(np.ones(10), 4).propensity == pytest.approx(np.full(10, 0.4))


def test_items_are_drawn_as_often_as_their_chance_says() -> None:
    plan = design(np.random.default_rng(3).random(25), 8)
    draws = 4000
    seen = np.zeros((25, 2))
    rng = rng_for(0, "often")
    for _ in range(draws):
        for item, arm in enumerate(draw(plan.chance_NA, rng)):
            if arm is not None:
                seen[item, arm] += 1
    spread = np.sqrt(plan.chance_NA * (1 - plan.chance_NA) / draws)
    off = (seen / draws - plan.chance_NA) / spread
    assert np.abs(off).max() < 4.0, off
    assert (off**2).mean() < 1.5


def test_weights_undo_the_choosing_and_the_plain_mean_does_not() -> None:
    # 200 items; what is valued is right less often, so that asking about it makes everything look worse.
    rng = np.random.default_rng(1)
    value = rng.random(200)
    right = (rng.random(200) > 0.2 + 0.6 * value).astype(float)
    plan = design(value, 40)
    weighted, plain, at_random = [], [], []
    for seed in range(1500):
        arms = draw(plan.chance_NA, rng_for(seed, "estimate"))
        some = np.array([arm is not None for arm in arms])
        weighted.append(float((right[some] / plan.propensity[some]).sum() / 200))
        plain.append(float(right[some].mean()))
        at_random.append(float(right[np.array([arm == UNIFORM for arm in arms])].mean()))

    def off(estimates: list[float]) -> float:
        """In standard errors of the mean over draws."""
        return abs(np.mean(estimates) - right.mean()) / (np.std(estimates) / len(estimates) ** 0.5)

    assert off(weighted) < 3.5
    assert off(at_random) < 3.5
    assert off(plain) > 50 and np.mean(plain) < right.mean() - 0.1
