"""A training that goes wrong is told in words; one that goes well is left in peace."""

from __future__ import annotations

from typing import Any

import pytest

from metier.train.diagnose import WINDOW, diagnose
from metier.train.packing import Example, ends_in_loss

STEPS = 12
WELL: dict[str, Any] = {
    "loss_tokens": 100.0,
    "entropy": 0.4,
    "completion_tokens_mean": 60.0,
    "success": 0.5,
    "groups": 8,
    "groups_without_variance": 3,
    "ratio": 1.0,
    "clip_fraction": 0.01,
    "mismatch_kl": 0.001,
    "grad_norm": 0.5,
    "episodes": 64,
    "unscored": 0,
}


def steps(**changed: Any) -> list[dict[str, float]]:
    """Steps in which a figure has the value given, or goes from the first to the second of two."""

    def at(value: Any, step: int) -> float:
        return value[0] + (value[1] - value[0]) * step / (STEPS - 1) if isinstance(value, tuple) else value

    return [{name: at(value, step) for name, value in {**WELL, **changed}.items()} for step in range(STEPS)]


def test_a_healthy_training_has_no_findings() -> None:
    assert diagnose(steps()) == []
    assert diagnose(steps(entropy=(0.5, 0.2), success=(0.3, 0.6), completion_tokens_mean=(60, 100))) == []
    assert diagnose([]) == [] == diagnose([{"loss": 1.0}])


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"completion_tokens_mean": (60.0, 150.0)}, "length hacking"),
        ({"groups_without_variance": 7}, "dead groups"),
        ({"ratio": (1.0, 3.0)}, "exploding ratio"),
        ({"clip_fraction": 0.6}, "exploding ratio"),
        ({"mismatch_kl": 0.2}, "sampler mismatch"),
        ({"loss_tokens": 0}, "nothing learned"),
        ({"unscored": 10}, "unscored episodes"),
    ],
)
def test_each_failure_is_named(changed: dict[str, Any], name: str) -> None:
    (finding,) = diagnose(steps(**changed))
    assert finding.name == name
    assert finding.text.count(";") == 1 or finding.name == "nothing learned"


def test_a_collapse_is_named() -> None:
    collapsed = steps()
    for step in collapsed[-WINDOW:]:
        step["entropy"] = 0.001
    assert [f.name for f in diagnose(collapsed)] == ["collapsed entropy"]


def test_a_jump_at_the_end_is_named() -> None:
    jumped = steps()
    jumped[-1]["grad_norm"] = 40.0
    assert [f.name for f in diagnose(jumped)] == ["exploding gradient"]


def test_an_end_that_carries_no_loss_is_named() -> None:
    stops = frozenset({2})
    learned, masked = Example((7, 8, 2), (0, 1, 1)), Example((7, 8, 2), (0, 1, 0))
    never = [{**step, "ends_in_loss": ends_in_loss([masked, masked, learned], stops)} for step in steps()]
    assert [f.name for f in diagnose(never)] == ["end never learned"] and "33%" in diagnose(never)[0].text
    assert diagnose([{**step, "ends_in_loss": ends_in_loss([learned], stops)} for step in steps()]) == []
