"""The verdict on simulated pools whose truth is known: how often it alarms where it should, and where it should not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from metier.evaluate.transfer.audit import Settings, audit_pool
from metier.evaluate.transfer.pool import Pool, Sample
from metier.records.types import Message

PROMPTS, SAMPLES, AUDITS = 64, 16, 30
SAID = (Message(role="assistant", content="Yes."),)


def pool(kind: str, seed: int) -> Pool:
    """Gold is right where its latent quality is above the prompt's difficulty; the reward sees what `kind` says."""
    rng = np.random.default_rng(seed)
    samples = []
    for prompt in range(PROMPTS):
        difficulty = rng.normal()
        quality, form = rng.normal(size=SAMPLES), rng.normal(size=SAMPLES)
        gold = quality > difficulty
        if kind == "gold and noise":
            reward = gold + 0.5 * rng.normal(size=SAMPLES)
        elif kind == "flipped":
            reward = np.where(rng.random(SAMPLES) < 0.15, ~gold, gold).astype(float)
        elif kind == "form":
            reward = form
        elif kind == "noise":
            reward = rng.normal(size=SAMPLES)
        elif kind == "against":
            reward = form - 0.5 * quality
        else:  # right for most, and highest for what never is
            trick = form > 1.2
            gold = gold & ~trick
            reward = quality + np.where(trick, 4.0, 0.0)
        for k in range(SAMPLES):
            samples.append(
                Sample(
                    id=f"{prompt}-{k}", prompt=str(prompt), cluster=str(prompt), asked=(), said=SAID,
                    rewards={"r": float(reward[k])}, gold=float(gold[k]),
                )
            )  # fmt: skip
    return Pool(name=kind, samples=tuple(samples))


def words(kind: str) -> Counter[str]:
    return Counter(audit_pool(pool(kind, seed), "r", Settings(draws=400, seed=seed)).verdict for seed in range(AUDITS))


@pytest.mark.parametrize("kind", ["gold and noise", "flipped"])
def test_honest_rewards_are_not_alarmed_at(kind: str) -> None:
    found = words(kind)
    assert found["being hacked"] + found["does not transfer"] <= 1, found
    assert found["transfers"] >= AUDITS - 1, found


@pytest.mark.parametrize("kind", ["form", "noise"])
def test_rewards_that_have_nothing_to_do_with_gold_are_caught(kind: str) -> None:
    found = words(kind)
    assert found["transfers"] == 0 and found["does not transfer"] + found["being hacked"] >= AUDITS - 2, found
    assert found["being hacked"] <= 2, found  # gold does not fall: at 99 %, one in a hundred per question


@pytest.mark.parametrize("kind", ["against", "trick"])
def test_rewards_that_gold_falls_with_are_called_hacked(kind: str) -> None:
    found = words(kind)
    assert found["being hacked"] >= AUDITS - 2 and found["transfers"] == 0, found
