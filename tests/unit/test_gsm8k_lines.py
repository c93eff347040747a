"""Task files with lines as GSM8K has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metier.base.errors import DataError
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.workers import judge
from metier.records.types import Message
from metier.tasks.files import FileFamily


def family(tmp_path: Path, *rows: dict[str, str]) -> FileFamily:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileFamily(tmp_path / "q.jsonl", lambda name: pytest.fail(name))


def test_a_question_with_its_solution_is_a_task(tmp_path: Path) -> None:
    made = family(
        tmp_path,
        {"question": "Two bags of 9 apples. How many?", "answer": "2 * 9 = <<2*9=18>>18\n#### 18"},
        {"question": "And of 1000?", "answer": "#### 2,000", "split": "heldout"},
    )
    (task,) = made.tasks("train", 5, seed=1)
    assert task.messages[0].content.startswith("Two bags") and "####" in task.messages[0].content
    (spec,) = task.verifiers

    def score(said: str) -> float | None:
        attempt = Attempt(messages=(*task.messages, Message(role="assistant", content=said)))
        return judge(spec.name, task, attempt, spec.params).score

    assert score(made.demonstrate(task)[-1].content) == 1.0
    assert score("Eighteen.\n#### 18.0") == 1.0
    assert score("18 or 19\n#### 19") == 0.0
    assert [other.answer["answer"] for other in made.tasks("heldout", 5, seed=1)] == ["2,000"]


def test_a_question_without_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: a 'question' has an 'answer' that ends in ####"):
        family(tmp_path, {"question": "How many?", "answer": "18"})


def test_an_answer_reaches_a_verifier_that_has_parameters(tmp_path: Path) -> None:
    def params(**line: Any) -> Any:
        (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "Half?", **line}))
        (task,) = FileFamily(tmp_path / "q.jsonl", lambda name: pytest.fail(name)).tasks("train", 1, 0)
        return task.verifiers[0].params

    numeric = {"name": "math", "mode": "numeric"}
    assert params(answer="1/2", verifier="math") == {"answer": "1/2"}
    assert params(answer="1/2", verifier=numeric) == {"answer": "1/2", "mode": "numeric"}
    assert params(answer="1/2", verifier={**numeric, "answer": "1/4"})["answer"] == "1/4", "its own"
    assert params(answer={"city": "Rome"}, verifier="mine") == {"city": "Rome"}
    assert params(answer={"city": "Rome"}, verifier=numeric) == {"mode": "numeric"}, "that is for whoever knows it"
