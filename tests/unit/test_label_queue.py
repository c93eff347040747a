"""Queues as files: what is asked, the items, gold kept apart, and files that say nothing useful."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelled import pairs, write_queue
from metier.base.errors import DataError
from metier.feedback.people.queue import read_queue


def test_a_queue_in_yaml_with_items_and_gold_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in pairs(3)))
    (tmp_path / "gold.jsonl").write_text('{"item": "pair-1", "answer": 1}\n{"item": "nobody", "answer": 0}\n')
    head = {
        "queue": "refunds",
        "version": 2,
        "question": {"kind": "pair", "criterion": "helpfulness", "ask": "Which one?", "ties": False},
        "instructions": "Be fair.\n",
        "overlap": 3,
        "gold": "gold.jsonl",
        "items": "items.jsonl",
    }
    (tmp_path / "refunds.yaml").write_text(yaml.safe_dump(head))
    queue = read_queue(tmp_path / "refunds.yaml")
    assert queue.key == "refunds@2" and queue.instructions == "Be fair."
    assert [item.id for item in queue.items] == ["pair-0", "pair-1", "pair-2"]
    assert {item.overlap for item in queue.items} == {3}
    assert queue.gold == {"pair-1": 1}
    assert [row.why for row in queue.skipped] == ["gold for 'nobody', which is no item of the queue"]
    assert not queue.question.ties


def test_yes_and_no_are_labels_and_no_truth_values(tmp_path: Path) -> None:
    """As in recipes: YAML 1.2, and a key given twice is an error."""
    question = "question: {kind: labels, criterion: polite, ask: polite, labels: [yes, no, on]}"
    (tmp_path / "q.yaml").write_text(f"queue: q\n{question}\nitems: items.jsonl\n")
    (tmp_path / "items.jsonl").write_text(json.dumps({**pairs(1)[0], "responses": ["only one"]}) + "\n")
    assert read_queue(tmp_path / "q.yaml").question.labels == ("yes", "no", "on")
    (tmp_path / "q.yaml").write_text(f"queue: q\nqueue: other\n{question}\nitems: items.jsonl\n")
    with pytest.raises(DataError, match="queue"):
        read_queue(tmp_path / "q.yaml")


@pytest.mark.parametrize(("size", "kind"), [(1, "rating"), (2, "pair"), (4, "ranking")])
def test_rows_without_a_question_are_asked_the_plain_one(tmp_path: Path, size: int, kind: str) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}], "responses": [f"r{i}" for i in range(size)]}
        for n in range(2)
    ]
    rows.append({"messages": [{"role": "user", "content": "odd"}], "responses": ["a"] * 5})
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queue = read_queue(tmp_path / "plain.jsonl")
    assert (queue.key, queue.question.kind) == ("plain@1", kind)
    assert len(queue.items) == (3 if kind == "ranking" else 2)
    assert len({item.id for item in queue.items}) == len(queue.items)


def test_an_id_made_of_content_stays_what_it_is(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "?"}], "responses": ["a", "b"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "b.jsonl").write_text(json.dumps(dict(reversed(list(row.items())))))
    assert read_queue(tmp_path / "a.jsonl").items[0].id == read_queue(tmp_path / "b.jsonl").items[0].id


def test_good_rows_are_kept_and_bad_ones_named_with_line_and_reason(tmp_path: Path) -> None:
    good = pairs(2)
    path = write_queue(tmp_path, good)
    bad: list[Any] = [
        {"id": "both", "episodes": ["a", "b"], "responses": ["x", "y"]},
        {**good[0]},
        {"id": "three", "messages": good[0]["messages"], "responses": ["x", "y", "z"]},
        {"id": "sure", **{k: v for k, v in good[0].items() if k != "id"}, "propensity": 0},
        {"id": "typo", "mesages": [], "responses": []},
        {"id": "same", "episodes": ["a", "a"]},
    ]
    with path.open("a") as file:
        file.write('{"id": "half", "mess\n')
        file.writelines(json.dumps(row) + "\n" for row in bad)
    queue = read_queue(path)
    assert [item.id for item in queue.items] == ["pair-0", "pair-1"]
    told = {row.place: row.why for row in queue.skipped}
    assert told["queue.jsonl:4"] == "not valid JSON"
    assert "either episodes" in told["queue.jsonl:5"]
    assert "twice" in told["queue.jsonl:6"]
    assert told["queue.jsonl:7"] == "a pair has two responses, not 3"
    assert "propensity" in told["queue.jsonl:8"]
    assert "did you mean 'messages'" in told["queue.jsonl:9"]
    assert "twice" in told["queue.jsonl:10"]


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ({"question": {"kind": "pear", "criterion": "c"}}, "did you mean 'pair'"),
        ({"question": {"kind": "pair"}}, "criterion is missing"),
        ({"question": {"kind": "pair", "criterion": "c", "labels": ["a"]}}, "has no 'labels'"),
        ({"question": {"kind": "rating", "criterion": "c", "scale": [5, 1]}}, "must go up"),
        ({"question": {"kind": "labels", "criterion": "c", "labels": ["a", "a"]}}, "different names"),
        ({"question": {"kind": "labels", "criterion": "c", "labels": ["a, b"]}}, "comma"),
        ({"overlap": 0}, "whole number, 1 or more"),
        ({"overlap": True}, "whole number"),
        ({"gold": [{"item": "pair-0", "answer": 1}]}, "kept apart"),
        ({"instruction": "?"}, "did you mean 'instructions'"),
        ({"queue": "a@b"}, "without @"),
    ],
)
def test_a_question_that_cannot_be_asked_refuses_the_file(tmp_path: Path, head: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        read_queue(write_queue(tmp_path, pairs(1), **head))


def test_no_item_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no item that can be labelled"):
        read_queue(write_queue(tmp_path, []))
    with pytest.raises(DataError, match="there is no"):
        read_queue(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ({"kind": "pair", "criterion": "c", "ties": False}, 0, 0.5),
        ({"kind": "ranking", "criterion": "c"}, [1, 0], [1, 1]),
        ({"kind": "rating", "criterion": "c"}, 5, 6),
        ({"kind": "labels", "criterion": "c", "labels": ["a", "b"]}, "a", ["a", "b"]),
        ({"kind": "marks", "criterion": "c", "labels": ["a"]}, [{"turn": 1, "label": "a"}], ["a"]),
    ],
)
def test_gold_that_is_no_answer_is_left_out(tmp_path: Path, question: dict[str, Any], right: Any, wrong: Any) -> None:
    items = pairs(2) if question["kind"] in ("pair", "ranking") else [
        {**item, "responses": item["responses"][:1]} for item in pairs(2)
    ]  # fmt: skip
    rows = [{"item": "pair-0", "answer": right}, {"item": "pair-1", "answer": wrong}]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queue = read_queue(write_queue(tmp_path, items, question=question, gold="gold.jsonl"))
    assert queue.gold == {"pair-0": right}
    assert "the answer must be" in queue.skipped[0].why
