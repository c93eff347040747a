"""What an answer is worth: the formulas by hand, and double Thompson sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metier.feedback.selection.duel import double_thompson, duel_shares
from metier.feedback.selection.scores import (
    BEGIN_SECONDS,
    PACE,
    coverage,
    entropy,
    mutual_information,
    pair_probability,
    reading_seconds,
    weakness,
)


def test_entropy_by_hand() -> None:
    # H(1/4) = 1/4 * 2 + 3/4 * log2(4/3) = .5 + .75 * .415 = .811
    assert entropy(np.array([0.5, 0.25, 1.0])) == pytest.approx([1.0, 0.8113, 0.0], abs=1e-4)


def test_information_is_what_members_disagree_about_and_not_what_they_all_do_not_know() -> None:
    # Two members at 0 and 1: the mean is open (1 bit), each is sure (0 bits): 1 bit. Two at 1/2: 1 - 1 = 0.
    # .25 and .75: H(1/2) - H(1/4) = 1 - .8113 = .1887. One member alone, or none: 0.
    nothing = math.nan
    p_MN = np.array([[0.0, 0.5, 0.25, 0.1, nothing], [1.0, 0.5, 0.75, nothing, nothing]])
    assert mutual_information(p_MN) == pytest.approx([1.0, 0.0, 0.1887, 0.0, 0.0], abs=1e-4)
    assert mutual_information(np.zeros((0, 3))).tolist() == [0, 0, 0]


def test_a_pair_of_scores_as_a_chance_to_be_better() -> None:
    # .9 against .4: wins .9 * .6 = .54, ties .9 * .4 + .1 * .6 = .42, so .54 + .21 = .75 = (1 + .9 - .4) / 2
    assert pair_probability(0.9, 0.4) == pytest.approx(0.75)
    assert pair_probability(1.0, 0.0) == pytest.approx(0.98)  # nobody is believed altogether


def test_coverage_and_weakness_by_hand() -> None:
    # 0, 3 and 0 answers, mean 1: sqrt(2 / 1), sqrt(2 / 4), sqrt(2 / 1)
    assert coverage(np.array([0.0, 3.0, 0.0])) == pytest.approx([2**0.5, 0.5**0.5, 2**0.5])
    # 8 of 10 and 1 of 8 fail, one kind was not measured: f = 10 / 20 = .5;
    # (8 + 1) / 12 / .5 = 1.5; (1 + 1) / 10 / .5 = .4; (0 + 1) / 2 / .5 = 1
    assert weakness(np.array([8.0, 1.0, 0.0]), np.array([10.0, 8.0, 0.0])) == pytest.approx([1.5, 0.4, 1.0])
    # All solved: no kind is worth nothing.
    assert (weakness(np.array([0.0, 0.0]), np.array([50.0, 1.0])) > 0).all()


def test_seconds_follow_the_pace_that_was_seen() -> None:
    characters = np.array([0.0, 400.0])
    assumed = reading_seconds(characters, np.zeros(0), np.zeros(0))
    assert assumed == pytest.approx([BEGIN_SECONDS, BEGIN_SECONDS + 400 / PACE])
    # Five answers that took four times as long, against five answers' worth of the assumption: twice as long.
    slow = reading_seconds(characters, np.full(5, 400.0), np.full(5, 4 * assumed[1]))
    assert slow == pytest.approx(2 * assumed)


def test_a_duel_asks_about_the_best_and_leaves_what_is_beaten() -> None:
    # Three arms: 0 and 1 are close and beat 2 always.
    wins = np.array([[0.0, 12.0, 30.0], [10.0, 0.0, 30.0], [0.0, 0.0, 0.0]])
    shares = duel_shares(wins, np.random.default_rng(0))
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0, 1] > 0.4
    assert shares[0, 2] + shares[1, 2] < 0.05
    # Of three that nobody compared: the second is the first again where both others draw below 1/2, a quarter of the
    # time, and by symmetry each of the three pairs has a third of the rest.
    fresh = duel_shares(np.zeros((3, 3)), np.random.default_rng(0), 20_000)
    assert fresh[np.triu_indices(3, 1)] == pytest.approx([0.25] * 3, abs=0.015)
    assert fresh.trace() == pytest.approx(0.25, abs=0.015)


def test_duels_find_the_best_sooner_than_random_pairs() -> None:
    def right(duel: bool, seed: int) -> float:
        rng = np.random.default_rng(seed)
        wins = np.zeros((6, 6))
        for _ in range(120):
            a, b = double_thompson(wins, rng) if duel else rng.choice(6, 2, replace=False)
            if a == b:
                continue
            first = rng.random() < 1 / (1 + math.exp(0.5 * (a - b)))  # the lower number is better
            wins[(a, b) if first else (b, a)] += 1
        share = (1 + wins) / (2 + wins + wins.T)
        return float((share > 0.5).sum(axis=1).argmax() == 0)

    found = {duel: np.mean([right(duel, seed) for seed in range(60)]) for duel in (True, False)}
    assert found[True] >= found[False] + 0.05, found
