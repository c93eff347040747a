"""The statistics of the transfer audit, each against a hand-worked case, brute force or scipy to 1e-9."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from metier.stats.best_of_n import best_of_n, best_weights, kl_of_best, n_of_kl, resample, spread_within
from metier.stats.explained import explained
from metier.stats.intervals import share_interval
from metier.stats.overoptimisation import fit_overoptimisation
from metier.stats.transfer import Measured, interval_of_draws, judge_transfer
from metier.stats.weighted import weighted_share

CLOSE = 1e-9


# --- best of n --------------------------------------------------------------------------


def test_kl_of_best_by_hand_and_its_inverse() -> None:
    assert kl_of_best(1) == 0
    assert kl_of_best(2) == pytest.approx(0.6931471805599453 - 0.5, abs=CLOSE)
    assert kl_of_best(8) == pytest.approx(3 * 0.6931471805599453 - 7 / 8, abs=CLOSE)
    for n in (1.0, 1.5, 2.0, 17.0, 1e6):
        assert n_of_kl(kl_of_best(n)) == pytest.approx(n, rel=1e-9)
    # Of a policy with m equally likely answers in order of reward, the best of n is worth KL = sum p ln(p m), which
    # goes to the formula as m grows.
    m, n = 200_000, 5
    p = np.diff((np.arange(m + 1) / m) ** n)
    assert float(p @ np.log(p * m)) == pytest.approx(kl_of_best(n), abs=1e-4)


def test_weights_of_ranks_by_hand() -> None:
    # of four samples, six pairs: the worst is never best, the others in 1, 2 and 3 of them
    assert best_weights(4, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6], abs=CLOSE)
    assert best_weights(4, 1) == pytest.approx([0.25] * 4, abs=CLOSE)
    assert best_weights(4, 4) == pytest.approx([0, 0, 0, 1], abs=CLOSE)
    assert best_weights(400, 128).sum() == pytest.approx(1, abs=CLOSE)
    with pytest.raises(ValueError, match="say nothing of the best of 5"):
        best_weights(4, 5)


def test_best_of_n_is_the_mean_over_all_choices_of_n_with_ties_at_random() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        reward, gold = rng.integers(0, 4, size=7), rng.normal(size=7)
        ns = [1, 2, 4, 7]
        slow = []
        for n in ns:
            picked = []
            for some in itertools.combinations(range(7), n):
                top = max(reward[k] for k in some)
                picked.append(np.mean([gold[k] for k in some if reward[k] == top]))
            slow.append(np.mean(picked))
        assert best_of_n(reward, gold, ns) == pytest.approx(slow, abs=CLOSE)


def test_best_of_n_is_unbiased_for_fresh_samples() -> None:
    # the best of 4 of uniform values is 4/5 on average; from pools of 6
    rng = np.random.default_rng(1)
    found = [best_of_n(x, x, [4])[0] for x in rng.random((4000, 6))]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * np.std(found) / math.sqrt(4000))


def test_the_spread_within_a_prompt_is_the_unbiased_variance() -> None:
    assert spread_within([1, 2, 4]) == pytest.approx(7 / 3, abs=CLOSE)  # mean 7/3: (16 + 1 + 25)/9 / 2
    with pytest.raises(ValueError, match="no spread"):
        spread_within([1.0])


def test_clusters_are_resampled_whole_and_means_have_the_right_error() -> None:
    weights = resample(["a", "a", "b", "c"], 500, 3)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()
    values = np.random.default_rng(2).normal(size=80)
    drawn = (resample(range(80), 20000, 4) @ values) / 80
    assert drawn.std() == pytest.approx(values.std() / math.sqrt(80), rel=0.03)
    with pytest.raises(ValueError, match="one cluster"):
        resample(["a", "a"], 10, 0)


# --- the law of over-optimisation --------------------------------------------------------


def test_both_laws_are_found_again_with_their_peaks() -> None:
    d = np.array([0.0, 0.4, 0.8, 1.2, 1.6, 2.0])
    noise = np.random.default_rng(0).normal(scale=1e-3, size=(400, 6))
    noise[:, 0] = 0.0
    gain = d * (1.0 - 0.5 * d)  # by hand: highest at d = 1, where it is .5
    found = fit_overoptimisation(list(d), list(gain), draws_BK=gain + noise)
    assert (found.a, found.b) == (pytest.approx(1.0, abs=CLOSE), pytest.approx(0.5, abs=CLOSE))
    assert (found.peak, found.height) == (pytest.approx(1.0, abs=CLOSE), pytest.approx(0.5, abs=CLOSE))
    assert found.peak_low is not None and found.peak_high is not None
    assert 0.98 < found.peak_low < 1.0 < found.peak_high < 1.02 and found.rms == pytest.approx(0.0, abs=CLOSE)

    inner = np.where(d > 0, d, 1.0)
    gain = d * (0.6 - 0.5 * np.log(inner))  # highest at e^(1.2 - 1), where it is .5 times that
    found = fit_overoptimisation(list(d), list(gain), law="rl", draws_BK=gain + noise)
    assert found.peak == pytest.approx(math.exp(0.2), abs=CLOSE)
    assert found.height == pytest.approx(0.5 * math.exp(0.2), abs=CLOSE)
    top = optimize.minimize_scalar(lambda x: -x * (0.6 - 0.5 * math.log(x)), bounds=(0.1, 5), method="bounded")
    assert found.peak == pytest.approx(top.x, abs=1e-4)


def test_a_noisy_fit_is_that_of_scipy() -> None:
    rng = np.random.default_rng(5)
    d = np.linspace(0.3, 3, 9)
    gain = d * (0.7 - 0.2 * d) + rng.normal(scale=0.05, size=9)
    (a, b), _ = optimize.curve_fit(lambda x, a, b: x * (a - b * x), d, gain)
    found = fit_overoptimisation(list(d), list(gain))
    assert (found.a, found.b) == (pytest.approx(a, abs=1e-7), pytest.approx(b, abs=1e-7))
    exact = np.linalg.lstsq(np.stack([d, -d * d], axis=1), gain, rcond=None)[0]
    assert [found.a, found.b] == pytest.approx(list(exact), abs=CLOSE)
    assert found.peak is None and "no bootstrap draws" in found.caveats[0]


def test_a_peak_that_is_not_determined_is_not_told() -> None:
    d = [0.0, 0.5, 1.0, 1.5, 2.0]
    rng = np.random.default_rng(1)
    straight = np.array(d) * 0.3
    found = fit_overoptimisation(d, list(straight), draws_BK=straight + rng.normal(scale=0.05, size=(300, 5)))
    assert found.peak is None and "no bend" in found.caveats[0]
    few = fit_overoptimisation([0.0, 1.0, 2.0], [0.0, 0.1, 0.1])
    assert few.a is None and "three at least" in few.caveats[0]
    slow = np.array(d) * (1 - 0.1 * np.array(d))  # its peak at d = 5 was never reached
    found = fit_overoptimisation(d, list(slow), draws_BK=slow + rng.normal(scale=1e-3, size=(300, 5)))
    assert found.peak == pytest.approx(5.0, abs=CLOSE) and "forecast" in found.caveats[0]
    grows = np.array(d) ** 2
    found = fit_overoptimisation(d, list(grows), draws_BK=grows + rng.normal(scale=1e-3, size=(300, 5)))
    assert found.peak is None and "faster" in found.caveats[0]
    falls = -np.array(d) * (0.5 + 0.5 * np.array(d))
    found = fit_overoptimisation(d, list(falls), draws_BK=falls + rng.normal(scale=1e-3, size=(300, 5)))
    assert "falls from the start" in found.caveats[0]
    with pytest.raises(ValueError, match="finite"):
        fit_overoptimisation([0.0, -1.0], [0.0, 0.0])


# --- shares of a weighted sample ---------------------------------------------------------


def test_a_weighted_share_by_hand() -> None:
    # weights 2, 4, 1 of sum 7: p = 3/7; deviations times weights: 8/7, -12/7, 4/7
    found = weighted_share([1.0, 0.0, 1.0], [0.5, 0.25, 1.0])
    assert found.mean == pytest.approx(3 / 7, abs=CLOSE)
    assert found.se == pytest.approx(math.sqrt(3 / 2 * (64 + 144 + 16) / 49) / 7, abs=CLOSE)
    assert found.low is not None and found.high is not None and 0 < found.low < 3 / 7 < found.high < 1
    # with everything unscored left out: nothing is known
    assert weighted_share([None], [0.5]).mean is None
    with pytest.raises(ValueError, match="propensity"):
        weighted_share([1.0], [0.0])


def test_with_equal_weights_it_is_the_plain_share() -> None:
    values = [1.0, 0.0, None, 1.0, 1.0, 0.0, 0.0, 1.0]
    labels = ["a", "a", "a", "b", "b", "c", "d", "d"]
    for clusters in (None, labels):
        mine, plain = weighted_share(values, [0.3] * 8, clusters=clusters), share_interval(values, clusters=clusters)
        for name in ("mean", "se", "low", "high"):
            assert getattr(mine, name) == pytest.approx(getattr(plain, name), abs=CLOSE)
        assert (mine.n, mine.clusters, mine.left_out) == (plain.n, plain.clusters, plain.left_out)


def test_weights_undo_an_unequal_draw() -> None:
    rng = np.random.default_rng(8)
    fails = rng.random(4000) < 0.3
    chance = np.where(fails, 0.2, 0.05)  # what fails was looked at four times as often
    covered, raw = 0, []
    for seed in range(200):
        drawn = np.random.default_rng(seed).random(4000) < chance
        found = weighted_share(fails[drawn].astype(float).tolist(), chance[drawn].tolist())
        assert found.low is not None and found.high is not None
        covered += found.low <= fails.mean() <= found.high
        raw.append(fails[drawn].mean())
    assert np.mean(raw) > 0.55  # what the sample says without weights
    assert 182 <= covered <= 198


# --- what form explains -------------------------------------------------------------------


def test_partial_correlations_and_shares_are_those_of_a_regression_with_prompt_effects() -> None:
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(12), 6)
    gold = (rng.random(72) < 0.5).astype(float)
    length = rng.normal(size=72) + prompts
    calls = rng.poisson(2, size=72).astype(float)
    reward = 0.8 * length + 0.5 * gold + rng.normal(size=72) - prompts
    found = explained(
        reward.tolist(), gold.tolist(), {"length": length.tolist(), "calls": calls.tolist(), "same": [1.0] * 72},
        prompts=prompts.tolist(), seed=0, draws=300,
    )  # fmt: skip
    assert found.constant == ("same",)
    dummies = (prompts[:, None] == np.arange(12)).astype(float)

    def left(y: np.ndarray, *columns: np.ndarray) -> np.ndarray:
        design = np.column_stack([dummies, *columns])
        return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]

    for name, x in (("length", length), ("calls", calls)):
        direct = stats.pearsonr(left(reward, gold), left(x, gold)).statistic
        assert found.partial[name].mean == pytest.approx(direct, abs=CLOSE)
    rss = {
        "": left(reward), "g": left(reward, gold), "f": left(reward, length, calls),
        "gf": left(reward, gold, length, calls),
    }  # fmt: skip
    square = {name: float(r @ r) for name, r in rss.items()}
    assert found.alone is not None and found.beside_gold is not None and found.by_gold is not None
    assert found.alone.mean == pytest.approx(1 - square["f"] / square[""], abs=CLOSE)
    assert found.beside_gold.mean == pytest.approx(1 - square["gf"] / square["g"], abs=CLOSE)
    assert found.by_gold.mean == pytest.approx(1 - square["g"] / square[""], abs=CLOSE)
    assert found.alone.low is not None and found.alone.low > 0.2 and found.chance == pytest.approx(2 / 60)


def test_nothing_is_explained_where_nothing_varies() -> None:
    prompts = ["a", "a", "b", "b"]
    flat = explained([1.0, 1.0, 2.0, 2.0], [0.0, 1.0, 0.0, 1.0], {"x": [1, 2, 3, 5]}, prompts=prompts, seed=0)
    assert flat.alone is None and flat.partial == {} and "nothing to explain" in flat.caveats[0]
    same = explained([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], {"x": [1, 2, 2, 1]}, prompts=prompts, seed=0)
    assert same.beside_gold is None and same.by_gold is not None and same.by_gold.mean == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one value for each row"):
        explained([0.0], [0.0, 1.0], {}, prompts=["a"], seed=0)


# --- the verdict --------------------------------------------------------------------------


def drawn(value: float, se: float, seed: int) -> Measured:
    return Measured(value, value + se * np.random.default_rng(seed).normal(size=4000))


@pytest.mark.parametrize(
    ("reward", "gold", "late", "word"),
    [
        ((2.0, 0.05), (1.2, 0.1), (0.2, 0.1), "transfers"),  # ratio .6
        ((2.0, 0.05), (0.02, 0.1), (0.0, 0.1), "does not transfer"),  # .01 +- .1
        ((2.0, 0.05), (-0.5, 0.1), (-0.1, 0.1), "being hacked"),
        ((2.0, 0.05), (1.2, 0.1), (-0.5, 0.1), "being hacked"),  # it rose, and falls now
        ((2.0, 0.05), (1.2, 0.1), (-0.02, 0.001), "transfers"),  # it falls for sure, and hardly
        ((2.0, 0.05), (0.4, 0.2), (0.0, 0.1), "undecided"),  # ratio .2 +- .2
        ((0.1, 0.2), (0.4, 0.1), (0.0, 0.1), "undecided"),  # the reward has not risen
    ],
)
def test_each_word_has_its_case(
    reward: tuple[float, float], gold: tuple[float, float], late: tuple[float, float], word: str
) -> None:
    found = judge_transfer(drawn(*reward, 0), drawn(*gold, 1), n=64, clusters=64, late=drawn(*late, 2))
    assert found.verdict == word and found.alarm == (word in ("does not transfer", "being hacked"))
    assert (found.ratio is None) == (reward[0] < 1)


def test_how_many_more_items_would_decide_is_the_power_formula() -> None:
    reward, gold = drawn(2.0, 1e-9, 0), drawn(0.6, 0.2, 1)  # ratio .3, a tenth above the margin
    found = judge_transfer(reward, gold, n=50, clusters=50)
    assert found.verdict == "undecided" and found.ratio is not None and found.ratio.se is not None
    unit = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert found.more == math.ceil(unit**2 * found.ratio.se**2 * 50 / 0.1**2) - 50
    with pytest.raises(ValueError, match="margin"):
        judge_transfer(reward, gold, n=50, clusters=50, margin=1.5)
    few = judge_transfer(reward, drawn(1.2, 0.1, 1), n=12, clusters=12)
    assert few.verdict == "transfers" and "few" in few.caveats[0]
    fewer = judge_transfer(reward, drawn(1.2, 0.1, 1), n=16, clusters=8)  # too few for any word
    assert fewer.verdict == "undecided" and fewer.more == 2 and "8 independent groups are too few" in fewer.why


def test_the_interval_of_draws_is_their_quantiles() -> None:
    found = interval_of_draws(Measured(0.5, np.arange(1001) / 1000), n=10, clusters=5)
    assert (found.low, found.high) == (pytest.approx(0.025, abs=CLOSE), pytest.approx(0.975, abs=CLOSE))
    assert (found.mean, found.n, found.clusters) == (0.5, 10, 5)
