"""The family "general" and the verifier "format": right answers pass, empty and wrong ones do not."""

from __future__ import annotations

from typing import Any

import pytest

from metier.base.errors import DataError
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.registry import get_verifier
from metier.records.types import Message, Task, VerifierSpec
from metier.tasks.general import GeneralFamily

FAMILY = GeneralFamily()
SPLITS = FAMILY.splits()


def score(task: Task, said: str) -> float | None:
    spec = task.verifiers[0]
    messages = (*task.messages, Message(role="assistant", content=said))
    return get_verifier(spec.name).verify(task, Attempt(messages=messages, final_state={}), spec.params).score


@pytest.mark.parametrize("split", SPLITS)
def test_right_answers_pass_and_lazy_ones_do_not(split: str) -> None:
    tasks = FAMILY.tasks(split, 64, seed=3)
    assert len({task.messages[0].content for task in tasks}) == 64 and tasks == FAMILY.tasks(split, 64, seed=3)
    assert tasks != FAMILY.tasks(split, 64, seed=4)
    for task in tasks:
        assert score(task, FAMILY.demonstrate(task)[-1].content) == 1.0, task.messages
        for lazy in ("", "Sure.", "I am sorry, as a language model I cannot say what that may be or do so at all."):
            assert score(task, lazy) == 0.0, (task.messages, lazy)


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_to_another_question_is_mostly_wrong(split: str) -> None:
    tasks = FAMILY.tasks(split, 60, seed=1)
    wrong = [score(a, FAMILY.demonstrate(b)[-1].content) for a, b in zip(tasks, [*tasks[7:], *tasks[:7]], strict=True)]
    assert sum(value == 1.0 for value in wrong) <= 12


def test_a_pool_that_is_used_up_gives_what_it_has() -> None:
    assert len(FAMILY.tasks("chat", 1000, seed=0)) == 64
    with pytest.raises(DataError, match="general has no split"):
        FAMILY.tasks("train", 1, seed=0)


@pytest.mark.parametrize(
    ("params", "good", "bad"),
    [
        ({"words": 2}, "two words", "just one - word"),
        ({"min_words": 2, "max_words": 3}, "one two three", "one two three four"),
        ({"case": "upper"}, "ALL 3 UP!", "NOt"),
        ({"case": "lower"}, "all low.", "Not"),
        ({"starts": "river"}, "“River” runs.", "A river"),
        ({"ends": "honey"}, "I like *Honey*.", "honey is good"),
        ({"mark": "?"}, 'He said "why?"', "Why."),
        ({"holds": ["red", "big dog"]}, "A big dog, red.", "A bigger dog, red"),
        ({"lacks": ["sea"]}, "The season.", "The sea."),
        ({"lines": 2, "line_start": "-"}, "- a\n\n- b", "- a\nb"),
        ({"items": 3}, "red, blue, and green.", "red, blue"),
        ({"items": 3}, "red, blue and green", "red,, blue"),
    ],
)
def test_forms(params: dict[str, Any], good: str, bad: str) -> None:
    task = Task(
        family="x", kind="x", split="x", source="x", licence="x", messages=(Message(role="user", content="?"),),
        verifiers=(VerifierSpec(name="format", params=params),),
    )  # fmt: skip
    assert (score(task, good), score(task, bad)) == (1.0, 0.0)


@pytest.mark.parametrize("params", [{}, {"wrods": 2}])
def test_parameters_it_does_not_know_leave_it_unscored(params: dict[str, Any]) -> None:
    task = FAMILY.tasks("chat", 1, seed=0)[0]
    attempt = Attempt(messages=(Message(role="assistant", content="x"),), final_state={})
    verdict = get_verifier("format").verify(task, attempt, params)
    assert verdict.score is None and verdict.status == "unscored"
