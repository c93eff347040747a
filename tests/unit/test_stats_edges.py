"""Statistics at their edges: nothing scored, one cluster, no spread, wrong input."""

from __future__ import annotations

import pytest

from metier.base.errors import DataError
from metier.stats.aggregate import aggregate
from metier.stats.agreement import gwet, krippendorff
from metier.stats.calibration import calibration
from metier.stats.compare import compare
from metier.stats.intervals import bootstrap_interval, clustered_se, mean_interval, share_interval, wilson
from metier.stats.noninferiority import one_sided
from metier.stats.paired import holm, mcnemar_exact, paired
from metier.stats.power import items_needed
from metier.stats.ppi import prediction_powered
from metier.stats.repeats import pass_at_k, passes
from metier.stats.sequential import sequential
from metier.stats.sources import sources, suspicions
from metier.stats.tables import LARGEST, number
from metier.stats.votes import Votes


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("1_000", "'1_000' is no number"),  # Python would read 1000
        ("x", "'x' is no number"),
        ([1], "is no number"),
        (float("nan"), "nan is no finite number"),
        ("Infinity", "inf is no finite number"),
        (10**400, "hundreds of digits"),
        (-(10**400), "hundreds of digits"),
        ("9" * 400, "inf is no finite number"),
        (-1e308, r"-1e\+308 is beyond 1e\+100"),
    ],
)
def test_a_cell_that_is_no_number_to_reckon_with_is_refused(cell: object, why: str) -> None:
    with pytest.raises(DataError, match=why):
        number(cell)
    assert [number(one) for one in (LARGEST, -LARGEST, True, " 1e3 ")] == [LARGEST, -LARGEST, 1.0, 1000.0]


@pytest.mark.filterwarnings("error")
def test_the_largest_numbers_have_finite_statistics() -> None:
    a = {f"t{n}": [LARGEST if n % 3 else -LARGEST] for n in range(90)}
    b = {f"t{n}": [LARGEST if n % 2 else -LARGEST] for n in range(90)}
    for clusters in (None, {f"t{n}": n // 10 for n in range(90)}):
        bounds, told = one_sided(a, b, clusters=clusters), compare(a, b, clusters=clusters)
        assert bounds.low is not None and bounds.high is not None and bounds.low < bounds.high < float("inf")
        assert told.mde is not None and told.mde < float("inf")
    found = prediction_powered([-LARGEST, LARGEST, LARGEST], [LARGEST, -LARGEST, LARGEST], [LARGEST, -LARGEST])
    assert found.low is not None and found.high is not None and found.low < found.high < float("inf")


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


def test_scipy_is_not_imported_with_the_modules() -> None:
    import subprocess
    import sys

    names = ("intervals", "paired", "aggregate", "agreement", "calibration", "compare", "ppi", "sequential", "sources")
    code = f"import sys, {', '.join(f'metier.stats.{n}' for n in names)}; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_votes_of_one_source_are_put_in_order() -> None:
    rows = [("t", "w", "a"), ("t", "w", "a"), ("t", "w", "b"), ("u", "w", "a")]
    votes = Votes.of(rows)
    assert (votes.task.size, votes.repeated, votes.changed) == (2, 1, 1)
    assert [votes.labels[k] for k in votes.label] == ["b", "a"]
    with pytest.raises(DataError, match="no labels"):
        Votes.of([])


def test_one_label_one_source_and_free_text_have_an_answer() -> None:
    alike = Votes.of([(str(t), w, "x") for t in range(5) for w in "ab"])
    assert aggregate(alike).why == "all votes say the same"
    for method in ("majority", "dawid-skene", "glad", "one-coin"):
        assert aggregate(alike, method=method).label.tolist() == [0] * 5
    assert krippendorff(alike).value is None
    assert gwet(alike).value is None
    assert suspicions(alike) == []
    single = Votes.of([(str(t), "w", "ab"[t % 2]) for t in range(5)])
    assert krippendorff(single).value is None
    assert [one.bits for one in sources(single)] == [None]
    assert aggregate(single).method == "majority"
    text = Votes.of([(str(t), f"w{w}", f"answer {t} {w}") for t in range(3000) for w in range(12)])
    got = aggregate(text)
    assert (got.method, got.tied) == ("majority", 3000)
    with pytest.raises(DataError, match="more than dawid-skene can learn"):
        aggregate(text, method="dawid-skene")


def test_every_fit_gives_probabilities() -> None:
    votes = Votes.of([(str(t), f"w{(t + k) % 12}", "abc"[(t * k) % 3]) for t in range(30) for k in range(4)])
    for method in ("dawid-skene", "glad", "one-coin"):
        done = aggregate(votes, method=method)
        assert done.truth is not None
        assert done.truth.posterior_TK.sum(axis=1) == pytest.approx(1)
        assert done.confidence.min() >= 1 / 3 - 1e-9


def test_few_labels_have_an_estimate_without_interval() -> None:
    got = prediction_powered([1.0], [1.0], [0.0, 1.0])
    assert (got.se, got.low) == (None, None)
    with pytest.raises(DataError, match="at least one"):
        prediction_powered([], [], [1.0])
    with pytest.raises(DataError, match="finite"):
        prediction_powered([1.0, float("nan")], [1.0, 1.0], [])
    with pytest.raises(DataError, match="propensity"):
        prediction_powered([1.0, 0.0], [1.0, 1.0], [], propensity=[0.5, 0.0])
    constant = prediction_powered([1.0, 0.0, 1.0], [1.0] * 3, [1.0] * 9)
    assert (constant.lam, constant.estimate) == (0.0, pytest.approx(2 / 3))


def test_statistics_that_decide_refuse_what_they_cannot() -> None:
    with pytest.raises(DataError, match="share no scored item"):
        compare({"x": [1]}, {"y": [1]})
    with pytest.raises(DataError, match="no attempt is scored"):
        passes({"x": [None]}, 1)
    with pytest.raises(DataError, match="k is 0"):
        passes({"x": [1]}, 0)
    with pytest.raises(ValueError, match="say nothing"):
        pass_at_k(3, 1, 4)
    with pytest.raises(DataError, match="at least one"):
        calibration([], [])
    with pytest.raises(DataError, match="outcome is 0 or 1"):
        calibration([0.5], [0.5])
    with pytest.raises(ValueError, match="divide the scores"):
        sequential([2.0])
    with pytest.raises(ValueError, match="difference of 0"):
        items_needed(0, between=1)
    assert sequential([]).outcome == "inconclusive"
    even = compare({k: [1] for k in "ab"}, {k: [0] for k in "ab"})
    assert "sign-flip" in even.caveats[0]
    assert even.mde is None
