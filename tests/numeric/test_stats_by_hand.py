"""Statistics against numbers worked by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from metier.stats.intervals import bootstrap_interval, clustered_se, mean_interval, share_interval, wilson
from metier.stats.paired import holm, mcnemar_exact, paired


def test_mean_interval_by_hand() -> None:
    # 1, 2, 3, 6: mean 3; squares 4 + 1 + 0 + 9 = 14; sd^2 = 14/3; SE = sqrt(14/3)/2 = 1.0801.
    # t(.975, 3) = 3.1824; half = 3.4374.
    got = mean_interval([1, 2, 3, 6])
    assert (got.n, got.clusters, got.mean) == (4, 4, 3.0)
    assert got.se == pytest.approx(1.0801, abs=1e-4)
    assert got.low == pytest.approx(-0.4374, abs=1e-3)
    assert got.high == pytest.approx(6.4374, abs=1e-3)


def test_clustered_se_by_hand() -> None:
    # Two prompts of two repeats: 1, 1 | 0, 0. Mean 1/2; the clusters' sums of residuals are
    # 1 and -1, squares 1 + 1 = 2; times G/(G-1) = 2 gives 4; sqrt(4)/4 = 1/2.
    assert clustered_se([1, 1, 0, 0], ["p", "p", "q", "q"]) == pytest.approx(0.5)
    # Without clusters: squares 4 * 1/4 = 1; times 4/3; sqrt(4/3)/4 = .2887, overconfident.
    assert clustered_se([1, 1, 0, 0]) == pytest.approx(math.sqrt(4 / 3) / 4)
    # Repeats that cancel inside a cluster add nothing: residual sums are 0 and 0.
    assert clustered_se([1, 0, 0, 1], ["p", "p", "q", "q"]) == 0.0


def test_wilson_by_hand_and_scipy() -> None:
    # 8 of 10, z = 1.96: z^2 = 3.8415; scale 1.38415; centre (.8 + .192075)/1.38415 = .71674;
    # half = 1.96/1.38415 * sqrt(.016 + .0096036) = 1.41601 * .16001 = .22658.
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    # 0 of 10 still has width: high = z^2/n / (1 + z^2/n) = .38415/1.38415 = .27753.
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-4))
    for hits, n in ((0, 7), (3, 7), (7, 7), (150, 256)):
        want = scipy_stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == (pytest.approx(want.low, abs=1e-12), pytest.approx(want.high, abs=1e-12))


def test_share_interval_counts_clusters() -> None:
    # 40 prompts of 4 equal repeats, half right: SE is that of 40, so n_eff = .25/(.25/39) = 39.
    values = [float(prompt % 2) for prompt in range(40) for _ in range(4)]
    labels = [prompt for prompt in range(40) for _ in range(4)]
    got = share_interval(values, clusters=labels)
    assert (got.n, got.clusters) == (160, 40)
    assert (got.low, got.high) == (
        pytest.approx(wilson(19.5, 39)[0], abs=1e-9),
        pytest.approx(wilson(19.5, 39)[1], abs=1e-9),
    )
    # All wrong: no spread was seen, so whole clusters count: wilson(0, 40).
    none = share_interval([0.0] * 160, clusters=labels)
    assert (none.mean, none.low, none.high) == (0.0, *wilson(0, 40))


def test_paired_by_hand() -> None:
    # a: t1 (1, 0) -> 1/2, t2 1, t3 1, t4 0; b: 0, 0, 1, 0. d = 1/2, 1, 0, 0; diff = 3/8.
    # residuals 1/8, 5/8, -3/8, -3/8; squares (1 + 25 + 9 + 9)/64 = 44/64; sd^2 = 44/192;
    # SE = sqrt(44/192)/2 = .23936; t = 1.5667 on 3 df; t(.975, 3) = 3.18245; half .76175.
    a = {"t1": [1, 0], "t2": [1], "t3": [1], "t4": [0]}
    b = {"t1": [0], "t2": [0], "t3": [1], "t4": [0]}
    got = paired(a, b)
    assert (got.n, got.mean_a, got.mean_b, got.diff) == (4, 0.625, 0.25, 0.375)
    assert got.se == pytest.approx(0.239357, abs=1e-6)
    assert (got.low, got.high) == (pytest.approx(-0.38674, abs=1e-4), pytest.approx(1.13674, abs=1e-4))
    want = scipy_stats.ttest_rel([0.5, 1, 1, 0], [0, 0, 1, 0])
    assert got.p == pytest.approx(float(want.pvalue), rel=1e-9)
    assert not got.clear


def test_paired_clusters_by_hand() -> None:
    # d = 1, 1, 0, 0 in the pairs (t1, t2), (t3, t4): SE = 1/2 as in the clustered test above.
    a = {"t1": [1.0], "t2": [1.0], "t3": [0.0], "t4": [0.0]}
    b = {task: [0.0] for task in a}
    got = paired(a, b, clusters={"t1": "x", "t2": "x", "t3": "y", "t4": "y"})
    assert (got.diff, got.se, got.clusters) == (0.5, 0.5, 2)
    # t = 1 on 1 df (Cauchy): p = 2 * (1/2 - atan(1)/pi) = 1/2.
    assert got.p == pytest.approx(0.5)


def test_paired_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        base = rng.random(60)
        a = {str(i): [float(rng.random() < 0.2 + 0.6 * x)] for i, x in enumerate(base)}
        b = {str(i): [float(rng.random() < 0.6 * x)] for i, x in enumerate(base)}
        got = paired(a, b)
        assert got.low is not None and got.high is not None
        hits += got.low <= 0.2 <= got.high
    assert 0.92 <= hits / 400 <= 0.98


def test_mcnemar_by_hand_and_scipy() -> None:
    # b = 1, c = 5: 2 * (C(6,0) + C(6,1)) / 2^6 = 2 * 7/64 = .21875.
    assert mcnemar_exact(1, 5) == 0.21875
    assert mcnemar_exact(5, 1) == 0.21875
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(30, 12) == pytest.approx(scipy_stats.binomtest(12, 42).pvalue)


def test_holm_by_hand() -> None:
    # .01, .04, .03, .005: sorted .005 * 4 = .02, .01 * 3 = .03, .03 * 2 = .06, .04 * 1 -> .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, None, 0.9]) == [0.04, None, 0.9]
    assert holm([]) == []


def test_bootstrap_is_seeded_and_near_the_t_interval() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=200).tolist()
    got, again = bootstrap_interval(values, seed=5), bootstrap_interval(values, seed=5)
    assert got == again != bootstrap_interval(values, seed=6)
    t = mean_interval(values)
    assert got.low == pytest.approx(t.low, abs=0.02)
    assert got.high == pytest.approx(t.high, abs=0.02)
    median = bootstrap_interval(values, lambda x: float(np.median(x)), seed=5)
    assert median.mean == pytest.approx(float(np.median(values)))


def test_bootstrap_draws_whole_clusters() -> None:
    # Four equal repeats of 30 prompts: the interval is as wide as that of the 30.
    rng = np.random.default_rng(2)
    prompts = rng.normal(size=30)
    repeated = bootstrap_interval(np.repeat(prompts, 4).tolist(), seed=3, clusters=np.repeat(np.arange(30), 4).tolist())
    single = bootstrap_interval(prompts.tolist(), seed=3)
    assert repeated.se == pytest.approx(single.se, rel=1e-9)
