"""Statistics at their edges: nothing scored, one cluster, no spread, wrong input."""

from __future__ import annotations

import pytest

from metier.stats.intervals import bootstrap_interval, clustered_se, mean_interval, share_interval, wilson
from metier.stats.paired import holm, mcnemar_exact, paired


def test_unscored_values_are_left_out_and_counted() -> None:
    got = mean_interval([1.0, None, 3.0, None], clusters=["a", "a", "b", "b"])
    assert (got.n, got.left_out, got.mean, got.clusters) == (2, 2, 2.0, 2)
    assert share_interval([1.0, None]).mean == 1.0
    compared = paired({"x": [1, None], "y": [None]}, {"x": [0], "y": [1], "z": [1]})
    assert (compared.n, compared.left_out, compared.diff) == (1, 2, 1.0)


def test_nothing_scored_has_no_mean() -> None:
    for got in (mean_interval([None]), share_interval([]), bootstrap_interval([None], seed=0)):
        assert (got.n, got.mean, got.low) == (0, None, None)
    assert paired({}, {}).diff is None


def test_one_cluster_has_no_interval() -> None:
    assert clustered_se([1, 0, 1], ["a", "a", "a"]) is None
    assert mean_interval([2.0]).low is None
    got = paired({"x": [1]}, {"x": [0]})
    assert (got.diff, got.se, got.low, got.p) == (1.0, None, None, None)


def test_a_share_from_one_cluster_is_as_wide_as_one_trial() -> None:
    got = share_interval([1.0, 1.0, 1.0], clusters=["a", "a", "a"])
    assert (got.low, got.high) == wilson(1, 1)


def test_no_spread_is_not_certainty() -> None:
    same = paired({k: [1] for k in "abcde"}, {k: [0] for k in "abcde"})
    assert (same.diff, same.se, same.low, same.high) == (1.0, 0.0, None, None)
    assert same.p == 2.0**-4  # all five signs alike: 2 * (1/2)^5
    assert not same.clear
    still = paired({k: [0.1] for k in "abc"}, {k: [0.1] for k in "abc"})
    assert (still.diff, still.p) == (0.0, 1.0)


def test_equal_values_leave_no_crumbs() -> None:
    assert clustered_se([0.1] * 7) == 0.0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 values but 1 cluster labels"):
        mean_interval([1, 2], clusters=["a"])
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="use mean_interval"):
        share_interval([2.0, 1.0])
    with pytest.raises(ValueError, match="not a p value"):
        holm([1.5])
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


def test_scipy_is_not_imported_with_the_module() -> None:
    import subprocess
    import sys

    code = "import sys, metier.stats.intervals, metier.stats.paired; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
