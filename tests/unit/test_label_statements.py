"""From answers to rows of feedback, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metier.base.errors import DataError
from metier.feedback.people.queue import Question
from metier.feedback.people.statements import Asked, answer_of, answered, retracted, said, said_by_gold, skipped
from metier.records.types import Episode, Feedback, Message, ToolCall, Weights

SAID = "Naïve 🙂 answer\nwith two lines"


def episode(name: str, text: str = SAID) -> Episode:
    messages = (
        Message(role="user", content="Find it."),
        Message(role="assistant", tool_calls=(ToolCall(name="find", arguments="{}", id="c"),)),
        Message(role="tool", content="found", tool_call_id="c"),
        Message(role="assistant", content=text),
    )
    return Episode(id=name, task_id="t", run_id="r", stage="s", weights=Weights(checkpoint="m"), messages=messages)


def asked(question: Question, *about: str, revision: int = 1) -> Asked:
    return Asked(
        queue="q@1", question=question, item="i", slot=0, revision=revision, person="Ada", about=about, given=1,
        gold=False, propensity=0.25, run_id=None, at=5.0, seconds=2.0,
    )  # fmt: skip


XY: dict[str, Any] = {"criterion": "c", "ask": "?", "labels": ("x", "y")}
QUESTIONS: list[tuple[Question, Any, str | None]] = [
    (Question(kind="pair", criterion="c", ask="?"), {"choice": 1}, "0"),
    (Question(kind="pair", criterion="c", ask="?"), {"choice": 0.5}, "tie"),
    (Question(kind="ranking", criterion="c", ask="?"), {"order": [1, 0]}, "0>1"),
    (Question(kind="rating", criterion="c", ask="?"), {"score": 4}, "4"),
    (
        Question(kind="labels", criterion="c", ask="?", labels=("x", "y", "z"), multiple=True),
        {"labels": ["x", "z"]},
        "x, z",
    ),
    (Question(kind="edit", criterion="c", ask="?"), {"text": "Better."}, None),
    (Question(kind="marks", **XY), {"marks": []}, "none"),
    (
        Question(kind="marks", criterion="c", ask="?", labels=("x", "y"), part="span"),
        {
            "marks": [
                {"turn": 3, "start": None, "end": None, "label": "y"},
                {"turn": 3, "start": 2, "end": 7, "label": "x"},
            ]
        },
        "3:x; 3:y",
    ),
]


@pytest.mark.parametrize(("question", "answer", "words"), QUESTIONS)
def test_an_answer_becomes_rows_and_the_rows_say_it_again(question: Question, answer: Any, words: str | None) -> None:
    shown = [episode("b"), episode("a")] if question.kind in ("pair", "ranking") else [episode("a")]
    about = [one.id for one in shown]
    rows = answered(asked(question, *about), answer, shown, (), note="because")
    assert answer_of(question, rows) == answer
    assert said(question, rows, ["a", "b"]) == words  # whatever stood first on the page
    for row in rows:
        assert row.about == tuple(about) and row.status == "scored" and row.reason == "because"
        assert (row.source.kind, row.source.name, row.propensity, row.cost.seconds) == ("person", "Ada", 0.25, 2.0)
    assert [row.id for row in rows] == [row.id for row in answered(asked(question, *about), answer, shown, ())]


def test_an_edit_is_what_the_policy_should_have_said() -> None:
    question = Question(kind="edit", criterion="c", ask="?", makes="correction")
    (row,) = answered(asked(question, "a"), {"text": "Better."}, [episode("a")], ())
    assert row.kind == "correction"
    assert [message["role"] for message in row.value] == ["assistant", "tool", "assistant"]
    assert row.value[-1]["content"] == "Better." and row.evidence["changed"] is True
    windows = episode("a", "one\r\ntwo")
    (row,) = answered(asked(question, "a"), {"text": "one\ntwo"}, [windows], ())
    assert row.evidence["changed"] is False and row.value[-1]["content"] == "one\r\ntwo"


def test_later_answers_supersede_row_by_row_and_retract_what_is_left() -> None:
    question = Question(kind="marks", **XY)
    marks = [{"turn": 1, "label": "x"}, {"turn": 3, "label": "y"}]
    first = answered(asked(question, "a"), {"marks": marks}, [episode("a")], ())
    assert len(first) == 2
    second = answered(asked(question, "a", revision=2), {"marks": []}, [episode("a")], [row.id for row in first])
    assert [(row.status, row.supersedes) for row in second] == [("scored", first[0].id), ("retracted", first[1].id)]
    third = retracted(asked(question, "a", revision=3), [row.id for row in second])
    assert [row.supersedes for row in third] == [row.id for row in second]
    assert len({row.id for row in (*first, *second, *third)}) == 6
    away = skipped(asked(question, "a", revision=4), "unclear", [row.id for row in third])
    assert away[0].abstention is not None and away[0].abstention.why == "unclear"
    assert answer_of(question, away) is None and said(question, away, ["a"]) is None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Question(kind="pair", criterion="c", ask="?"), {"choice": 2}),
        (Question(kind="pair", criterion="c", ask="?"), {"choice": True}),
        (Question(kind="pair", criterion="c", ask="?", ties=False), {"choice": 0.5}),
        (Question(kind="pair", criterion="c", ask="?"), ["choice"]),
        (Question(kind="ranking", criterion="c", ask="?"), {"order": [0, 0]}),
        (Question(kind="ranking", criterion="c", ask="?"), {"order": [0, "1"]}),
        (Question(kind="rating", criterion="c", ask="?"), {"score": 6}),
        (Question(kind="rating", criterion="c", ask="?"), {"score": 4.5}),
        (Question(kind="labels", **XY), {"labels": ["x", "y"]}),
        (Question(kind="labels", **XY), {"labels": []}),
        (Question(kind="labels", **XY), {"labels": [{}]}),
        (Question(kind="edit", criterion="c", ask="?"), {"text": "  "}),
        (Question(kind="edit", criterion="c", ask="?"), {"text": "x" * 400_001}),
        (Question(kind="marks", **XY), {"marks": [{"turn": 9, "label": "x"}]}),
        (Question(kind="marks", **XY), {"marks": [{"turn": 3, "label": "q"}]}),
        (
            Question(kind="marks", **XY),
            {"marks": [{"turn": 3, "label": "x", "start": 0, "end": 2}]},
        ),
        (
            Question(kind="marks", **XY, part="span"),
            {"marks": [{"turn": 3, "label": "x", "start": 2, "end": 999}]},
        ),
        (
            Question(kind="marks", **XY, part="span"),
            {"marks": [{"turn": 3, "label": "x", "start": 2}]},
        ),
    ],
)
def test_what_is_no_answer_is_refused(question: Question, answer: Any) -> None:
    with pytest.raises(DataError):
        answered(asked(question, "a", "b"), answer, [episode("a"), episode("b")], ())


def test_gold_speaks_the_same_words() -> None:
    for question, answer, words in QUESTIONS:
        if question.kind == "pair":
            assert said_by_gold(question, 0.5 if words == "tie" else int(words or 0)) == words
        elif question.kind == "ranking":
            assert said_by_gold(question, [0, 1]) == words
        elif question.kind == "rating":
            assert said_by_gold(question, 4) == words
        elif question.kind != "edit":
            assert said_by_gold(question, answer.get("labels", answer.get("marks"))) == words


def test_what_was_erased_is_no_answer() -> None:
    question = QUESTIONS[0][0]
    (row,) = answered(asked(question, "a", "b"), {"choice": 0}, [episode("a"), episode("b")], ())
    from metier.records.types import Abstention

    hollow: Feedback = replace(row, value=None, abstention=Abstention(why="[erased]"))
    assert answer_of(question, [hollow]) is None and said(question, [hollow], ["a", "b"]) is None
