"""Statistics that decide, against scipy, hand-worked cases and simulated evaluations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from metier.stats.calibration import auroc, brier_split, calibration
from metier.stats.compare import compare
from metier.stats.intervals import clustered_se, mean_interval
from metier.stats.paired import mcnemar_exact
from metier.stats.power import detectable, detectable_with, items_needed
from metier.stats.repeats import pass_all_k, pass_at_k, passes
from metier.stats.sequential import sequential

# --- comparing ---------------------------------------------------------------------------


def test_compare_by_hand() -> None:
    # a 1 1 0 1, b 0 1 0 0: d = 1 0 0 1, diff 1/2, SE = sqrt(1/3)/2 = .288675. SE of a: sqrt(.25)/2 = .25;
    # of b the same; unpaired sqrt(.125) = .353553. McNemar: 2 against 0, 2 * 1/4 = .5.
    a = {k: [v] for k, v in zip("wxyz", (1, 1, 0, 1), strict=True)}
    b = {k: [v] for k, v in zip("wxyz", (0, 1, 0, 0), strict=True)}
    got = compare(a, b)
    assert got.paired.diff == 0.5
    assert got.paired.se == pytest.approx(math.sqrt(1 / 3) / 2, abs=1e-12)
    assert got.se_unpaired == pytest.approx(math.sqrt(0.125), abs=1e-12)
    assert (got.mcnemar_p, got.only_a, got.only_b) == (0.5, 2, 0)
    z = scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8)
    assert got.mde == pytest.approx(z * math.sqrt(1 / 3) / 2, abs=1e-9)
    want = scipy_stats.ttest_rel([1, 1, 0, 1], [0, 1, 0, 0])
    assert got.paired.p == pytest.approx(want.pvalue, abs=1e-9)
    low, high = want.confidence_interval(0.95)
    assert (got.paired.low, got.paired.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_repeats_are_averaged_and_unshared_items_counted() -> None:
    got = compare({"x": [1, 0], "y": [1], "only a": [1], "none": [None]}, {"x": [0], "y": [0.5], "only b": [1]})
    assert (got.paired.n, got.paired.mean_a, got.paired.mean_b) == (2, 0.75, 0.25)
    assert (got.only_in_a, got.only_in_b, got.repeats, got.unscored, got.paired.left_out) == (1, 1, 1, 1, 3)
    assert got.mcnemar_p is None  # an item's mean is neither 0 nor 1


def test_clusters_reach_both_standard_errors() -> None:
    rng = np.random.default_rng(0)
    a = {str(i): [float(x)] for i, x in enumerate(rng.random(40))}
    b = {str(i): [float(x)] for i, x in enumerate(rng.random(40))}
    clusters = {str(i): i // 4 for i in range(40)}
    got = compare(a, b, clusters=clusters)
    label = [i // 4 for i in range(40)]
    d = [a[str(i)][0] - b[str(i)][0] for i in range(40)]
    assert got.paired.se == pytest.approx(clustered_se(d, label), abs=1e-12)
    sides = [clustered_se([side[str(i)][0] for i in range(40)], label) for side in (a, b)]
    assert got.se_unpaired == pytest.approx(math.hypot(*sides), abs=1e-12)  # type: ignore[arg-type]


def test_clustered_se_is_the_sandwich_of_a_regression_on_a_constant() -> None:
    # (X'X)^-1 X' e e' X (X'X)^-1 with G/(G-1), worked with matrices.
    rng = np.random.default_rng(4)
    label = rng.integers(0, 12, 80)
    y = rng.normal(size=80) + rng.normal(size=12)[label]
    e = y - y.mean()
    meat = sum(np.outer(e * (label == g), e * (label == g)).sum() for g in range(12))
    assert clustered_se(y.tolist(), label.tolist()) == pytest.approx(math.sqrt(12 / 11 * meat) / 80, abs=1e-12)


def test_mcnemar_of_many_items_is_scipys() -> None:
    for b, c in ((600, 500), (24539, 22857), (0, 1200), (700, 700)):
        assert mcnemar_exact(b, c) == pytest.approx(scipy_stats.binomtest(b, b + c).pvalue, rel=1e-9)


def test_intervals_cover_with_repeats_and_clusters() -> None:
    # 45 groups of 1 to 4 tasks, 3 attempts each: tasks of a group are alike hard. The true difference is .1.
    rng = np.random.default_rng(11)
    paired_hits = mean_hits = 0
    for _ in range(1000):
        group = np.repeat(np.arange(45), rng.integers(1, 5, 45))
        hard = np.clip(rng.beta(2, 2, 45)[group] + rng.normal(0, 0.05, group.size), 0, 1)
        effect = 0.1 + 0.1 * rng.normal(size=45)[group]
        rates = np.clip(0.15 + 0.6 * hard, 0, 1), np.clip(0.15 + 0.6 * hard - effect, 0, 1)
        both = [{str(t): [float(x) for x in rng.random(3) < rate[t]] for t in range(group.size)} for rate in rates]
        got = compare(*both, clusters={str(t): int(g) for t, g in enumerate(group)}).paired
        assert got.low is not None and got.high is not None
        paired_hits += got.low <= 0.1 <= got.high
        flat = [x for t in range(group.size) for x in both[0][str(t)]]
        mean = mean_interval(flat, clusters=np.repeat(group, 3).tolist())
        assert mean.low is not None and mean.high is not None
        mean_hits += mean.low <= 0.45 <= mean.high
    assert 0.93 <= paired_hits / 1000 <= 0.97, paired_hits
    assert 0.93 <= mean_hits / 1000 <= 0.97, mean_hits


# --- before a run ------------------------------------------------------------------------


def test_power_by_hand() -> None:
    # (1.959964 + .841621)^2 = 7.848879; w^2 + s^2/4 + s^2/4 = .04 + .2/4 + .2/4 = .14; over .05^2: 439.54.
    assert items_needed(0.05, between=0.04, within_a=0.2, within_b=0.2, repeats_a=4, repeats_b=4) == 440
    assert detectable(0.02) == pytest.approx(2.8015852 * 0.02, abs=1e-8)
    found = detectable_with(440, between=0.04, within_a=0.2, within_b=0.2, repeats_a=4, repeats_b=4)
    assert 0.0499 < found <= 0.05


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(2)
    n, sd = 200, 0.3
    size = detectable(sd / math.sqrt(n))
    found = 0
    for _ in range(1000):
        d = rng.normal(size, sd, n)
        found += scipy_stats.ttest_1samp(d, 0).pvalue < 0.05
    assert 0.76 <= found / 1000 <= 0.84


# --- repeats -----------------------------------------------------------------------------


def test_pass_k_is_the_share_of_draws() -> None:
    for n, c, k in ((4, 2, 2), (5, 0, 3), (5, 5, 3), (6, 1, 4), (3, 2, 3)):
        draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(d) for d in draws) / len(draws), abs=1e-12)
        assert pass_all_k(n, c, k) == pytest.approx(sum(all(d) for d in draws) / len(draws), abs=1e-12)


def test_passes_by_hand() -> None:
    # Successes 2 of 4, 4 of 4, 0 of 4: pass@1 1/2; pass@2 (5/6 + 1 + 0)/3 = 11/18; pass^2 (1/6 + 1 + 0)/3 = 7/18.
    got = passes({"a": [1, 1, 0, 0], "b": [1] * 4, "c": [0] * 4, "d": [1]}, 2)
    assert got.short == 1
    three = passes({"a": [1, 1, 0, 0], "b": [1] * 4, "c": [0] * 4}, 2)
    assert three.pass_1 == 0.5
    assert (three.pass_at_k, three.pass_all_k) == (pytest.approx(11 / 18), pytest.approx(7 / 18))
    # sd of twelve halves: sqrt(12/4/11)/sqrt(12); of 1/2, 1, 0: sd 1/2 over sqrt 3.
    assert three.se_naive == pytest.approx(math.sqrt(3 / 11 / 12), abs=1e-12)
    assert three.se_clustered == pytest.approx(0.5 / math.sqrt(3), abs=1e-12)


# --- calibration -------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    # .1 .1 .1 .1 with one 1; .8 .8 with two. ECE = 4/6 |.1 - .25| + 2/6 |.8 - 1| = 1/6.
    # Brier: (3 * .01 + .81 + 2 * .04)/6 = .92/6. Reliability: (4 * .0225 + 2 * .04)/6 = .17/6.
    # Base 1/2: resolution (4 * .0625 + 2 * .25)/6 = .125; uncertainty 1/4.
    p, y = [0.1] * 4 + [0.8] * 2, [0, 0, 0, 1, 1, 1]
    got = calibration(p, y)
    assert got.ece == pytest.approx(1 / 6, abs=1e-12)
    assert got.brier == pytest.approx(0.92 / 6, abs=1e-12)
    assert got.split.reliability == pytest.approx(0.17 / 6, abs=1e-12)
    assert got.split.resolution == pytest.approx(0.125, abs=1e-12)
    assert got.split.uncertainty == pytest.approx(0.25, abs=1e-12)
    assert got.log_score == pytest.approx(-(3 * math.log(0.9) + math.log(0.1) + 2 * math.log(0.8)) / 6, abs=1e-12)
    # Nine pairs of a 1 and a 0: the two 1 at .8 are above all three 0, the one at .1 is tied with them: (6 + 1.5)/9.
    assert got.auroc == pytest.approx(7.5 / 9, abs=1e-12)


def test_adaptive_bins_keep_equal_forecasts_together() -> None:
    # Twelve forecasts, ten bins. The five .2 have the places 0 to 4, the middle one 2 and so the bin 2 * 10 // 12 = 1;
    # the three .5 place 6 and bin 5; the four .9 place 9.5 and bin 7: three bins, whatever the order of the rows.
    p, y = [0.2] * 5 + [0.5] * 3 + [0.9] * 4, [1, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 0]
    got = calibration(p, y)
    # (|1 - 1| + |1.5 - 2| + |3.6 - 3|) / 12
    assert got.adaptive_ece == pytest.approx(1.1 / 12, abs=1e-12)
    by_outcome = sorted(zip(p, y, strict=True), key=lambda pair: pair[1])
    for rows in (by_outcome, by_outcome[::-1]):
        assert calibration(*zip(*rows, strict=True)) == got  # the null bands too
    alike = calibration([0.5] * 100, [0] * 50 + [1] * 50)
    assert alike.adaptive_ece == alike.ece == 0
    assert alike.adaptive_ece_null == alike.ece_null


@pytest.mark.parametrize("digits", [1, 6])
def test_the_brier_score_is_split_without_a_rest(digits: int) -> None:
    rng = np.random.default_rng(0)
    p = np.round(rng.random(700), digits)
    y = (rng.random(700) < p**1.5).astype(float)
    got = calibration(p.tolist(), y.tolist())
    split = got.split
    assert split.by == ("equal forecasts" if digits == 1 else "isotonic recalibration")
    assert split.reliability - split.resolution + split.uncertainty == pytest.approx(got.brier, abs=1e-12)
    assert min(split.reliability, split.resolution) > 0.01
    flat = brier_split(np.full(700, 0.3), y)
    assert flat.resolution == pytest.approx(0, abs=1e-12)
    assert flat.reliability == pytest.approx((0.3 - y.mean()) ** 2, abs=1e-12)


def test_auroc_is_mann_whitneys() -> None:
    rng = np.random.default_rng(5)
    p, y = np.round(rng.random(300), 2), rng.integers(0, 2, 300).astype(float)
    u = scipy_stats.mannwhitneyu(p[y == 1], p[y == 0]).statistic
    assert auroc(p, y) == pytest.approx(u / ((y == 1).sum() * (y == 0).sum()), abs=1e-9)
    assert auroc(p, np.ones(300)) is None


def test_the_null_band_holds_calibrated_forecasters_and_shows_others() -> None:
    rng = np.random.default_rng(8)
    inside = deep_inside = 0
    for seed in range(200):
        p = rng.beta(2, 2, 300)
        y = (rng.random(300) < p).astype(float)
        got = calibration(p.tolist(), y.tolist(), seed=seed, draws=300)
        inside += got.ece_null.low <= got.ece <= got.ece_null.high
        deep_inside += got.adaptive_ece_null.low <= got.adaptive_ece <= got.adaptive_ece_null.high
    assert 0.9 <= inside / 200 <= 0.99
    assert 0.9 <= deep_inside / 200 <= 0.99
    p = rng.random(500)
    sure = calibration(np.clip(p * 1.6 - 0.3, 0, 1).tolist(), (rng.random(500) < p).astype(float).tolist())
    assert sure.ece > sure.ece_null.high


# --- stopping ----------------------------------------------------------------------------


def test_betting_by_hand() -> None:
    # The first stake is 0 (nothing is known). After d = 1: mean 1/2, variance (1/4 + 1 - 1/4)/2 = 1/2, stake
    # (1/2)/(1/2 + 1/4) = 2/3; the second d = 1/2 makes 1 + 1/3.
    got = sequential([1.0, 0.5])
    assert (got.outcome, got.n) == ("inconclusive", 2)
    assert got.better == pytest.approx(4 / 3, abs=1e-12)
    assert got.worse == 1.0


def test_stopping_is_rarely_wrong_and_often_early() -> None:
    rng = np.random.default_rng(3)
    false = sum(
        sequential(rng.choice([-1, 0, 1], 600, p=[0.15, 0.7, 0.15])).outcome != "inconclusive" for _ in range(400)
    )
    assert false / 400 <= 0.05
    runs = [sequential(rng.choice([-1, 0, 1], 2000, p=[0.1, 0.65, 0.25])) for _ in range(60)]
    assert all(run.outcome == "better" for run in runs)
    assert np.median([run.n for run in runs]) < 500
    mirrored = sequential(-rng.choice([-1, 0, 1], 2000, p=[0.1, 0.65, 0.25]))
    assert mirrored.outcome == "worse"


def test_equivalence_is_found_and_not_at_the_margin() -> None:
    rng = np.random.default_rng(6)
    same = [sequential(rng.choice([-1, 0, 1], 4000, p=[0.05, 0.9, 0.05]), margin=0.1) for _ in range(40)]
    assert sum(run.outcome == "equivalent" for run in same) >= 38
    edge = [sequential(rng.choice([-1, 0, 1], 1500, p=[0.05, 0.8, 0.15]), margin=0.1) for _ in range(200)]
    assert sum(run.outcome == "equivalent" for run in edge) / 200 <= 0.05
