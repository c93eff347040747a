"""In and out: what others keep becomes records, and records become what others read."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from metier.base.errors import DataError
from metier.cli.app import app
from metier.records.check import check
from metier.records.forgetting import forget
from metier.records.layouts.exporting import export, rows_of
from metier.records.layouts.front import import_files
from metier.records.ledger import Ledger
from metier.records.traces.importing import Imported
from metier.records.types import Feedback, Message, Task

ASK = [{"role": "user", "content": "Where is order 7?"}]
GOOD, BAD = [{"role": "assistant", "content": "On its way."}], [{"role": "assistant", "content": "No idea."}]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def take(ledger: Ledger, tmp_path: Path, rows: list[Any], **options: Any) -> Imported:
    done = import_files(ledger, [write(tmp_path / "rows.jsonl", rows)], **options)
    counts = ledger.counts()
    again = import_files(ledger, [tmp_path / "rows.jsonl"], **options)
    assert ledger.counts() == counts, "a second import changes nothing"
    assert (again.episodes, again.feedback) == (0, 0)
    assert again.feedback_known == done.feedback + done.feedback_known
    assert [s.place for s in again.skipped] == [s.place for s in done.skipped]
    assert check(ledger) == []
    return done


def statements(ledger: Ledger) -> list[Feedback]:
    return ledger.feedback(current=False)


# --- TRL --------------------------------------------------------------------------------


def test_prompt_completion_in_both_forms(ledger: Ledger, tmp_path: Path) -> None:
    done = take(ledger, tmp_path, [{"prompt": "Hi", "completion": "Hello"}, {"prompt": ASK, "completion": GOOD}])
    assert (done.format, done.episodes, done.feedback, done.skipped) == ("trl", 2, 2, [])
    assert [[m.content for m in e.messages] for e in ledger.episodes()] == [
        ["Hi", "Hello"],
        ["Where is order 7?", "On its way."],
    ]
    assert [(f.kind, f.value) for f in statements(ledger)][1] == ("demonstration", GOOD)
    assert {ledger.task(e.task_id).split for e in ledger.episodes()} == {"train"}


@pytest.mark.parametrize("order", [(GOOD, BAD), (BAD, GOOD)])
def test_preference(ledger: Ledger, tmp_path: Path, order: Any) -> None:
    chosen, rejected = order
    row = {"prompt": ASK, "chosen": chosen, "rejected": rejected, "margin": 2.5, "annotator": "anna"}
    take(ledger, tmp_path, [row])
    (statement,) = statements(ledger)
    texts = [ledger.episode(e).messages[-1].content for e in statement.about]
    assert texts[statement.value] == chosen[0]["content"]
    assert texts == ["No idea.", "On its way."] or texts == ["On its way.", "No idea."]
    assert (statement.kind, statement.source.name, statement.evidence["margin"]) == ("preference", "anna", 2.5)
    (made,) = rows_of(ledger, "preference")
    assert made == {"prompt": ASK, "chosen": chosen, "rejected": rejected, "annotator": "anna"}


def test_the_place_of_a_pair_says_nothing(ledger: Ledger, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(200)]
    take(ledger, tmp_path, rows)
    first = sum(f.value == 0 for f in statements(ledger))
    assert 60 < first < 140, "about half of the chosen ones come first"


def test_preference_with_implicit_prompt_and_whole_conversations(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        {"chosen": [*ASK, *GOOD], "rejected": [*ASK, *BAD]},
        {"prompt": ASK, "chosen": [*ASK, *GOOD], "rejected": [*ASK, *BAD]},
        {"prompt": "Where is order 7?", "chosen": [*ASK, *GOOD], "rejected": [*ASK, *BAD]},
    ]
    done = take(ledger, tmp_path, rows)
    assert (done.episodes, len(statements(ledger))) == (2, 1), "three ways to say one thing"


def test_unpaired_and_stepwise_and_prompts(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        {"prompt": ASK, "completion": GOOD, "label": True},
        {"prompt": ASK, "completion": BAD, "label": False},
        {
            "prompt": "Which is larger, 9.8 or 9.11?",
            "completions": ["9.11 is longer.", "So it is larger."],
            "labels": [True, False],
        },
        {"prompt": "Only asked"},
    ]
    take(ledger, tmp_path, rows)
    assert [(f.kind, f.value) for f in statements(ledger)] == [("score", v) for v in (1.0, 0.0, 1.0, 0.0)]
    spans = [f.span for f in statements(ledger) if f.span is not None]
    assert [(s.turn, s.start, s.end) for s in spans] == [(1, 0, 15), (1, 16, 32)]
    source = {"annotator": "dataset"}
    assert list(rows_of(ledger, "unpaired")) == [{**row, **source} for row in rows[:2]]
    assert list(rows_of(ledger, "stepwise")) == [rows[2]]
    assert ledger.counts()["tasks"] == 3


def test_what_a_trl_trainer_reads_comes_back(ledger: Ledger, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    from trl import maybe_apply_chat_template  # noqa: F401  the types are TRL's own
    from trl.data_utils import is_conversational

    rows = [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "given"))
    import_files(ledger, [tmp_path / "given"])
    export(ledger, tmp_path / "out", "preference")
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert is_conversational(found[0])
    assert {name: found[0][name] for name in rows[0]} == rows[0]
    made = datasets.Dataset.from_list([dict(row) for row in rows_of(ledger, "preference")])
    assert made[0]["chosen"] == GOOD


# --- bad rows ---------------------------------------------------------------------------


def test_good_rows_are_kept_and_bad_ones_listed(ledger: Ledger, tmp_path: Path) -> None:
    pair = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    rows: list[Any] = [
        pair,
        {"prompt": ASK, "chosen": GOOD},
        {**pair, "rejected": None},
        {**pair, "rejected": GOOD},
        {"prompt": "", "completion": "x"},
        {"prompt": ASK, "completion": 7},
        {"prompt": ASK, "completion": GOOD, "label": "maybe"},
        {"prompt": "x", "completions": ["a"], "labels": [True, False]},
        {"chosen": "good", "rejected": "bad"},
        [1, 2],
        {"prompt": [{"role": "wizard", "content": "x"}], "completion": "y"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    path.write_text(path.read_text() + '{"prompt": "half", "chos')
    done = import_files(ledger, [path])
    assert (done.episodes, done.feedback) == (2, 1)
    assert {s.place: s.why for s in done.skipped} == {
        "rows.jsonl:2": "half a pair: `rejected` is missing",
        "rows.jsonl:3": "half a pair: `rejected` is missing",
        "rows.jsonl:4": "`chosen` and `rejected` are the same",
        "rows.jsonl:5": "`prompt` is empty",
        "rows.jsonl:6": "`completion` must be a text or a list of messages, not int",
        "rows.jsonl:7": "`label` must be true or false, not 'maybe'",
        "rows.jsonl:8": "`completions` and `labels` must be lists of the same length",
        "rows.jsonl:9": "there is no `prompt`, and `chosen` and `rejected` begin with no message in common",
        "rows.jsonl:10": "a row must be an object, not list",
        "rows.jsonl:11": "message role 'wizard' is not one of system, developer, user, human, assistant, ai, model,"
        " tool, function",
        "rows.jsonl:12": "not valid JSON",
    }
    with pytest.raises(DataError, match="no row could be taken as trl: half a pair"):
        import_files(ledger, [write(tmp_path / "bad.jsonl", rows[1:3])])
    with pytest.raises(DataError, match="no row is of a known format"):
        import_files(ledger, [write(tmp_path / "other.jsonl", [{"song": 1}])])
    with pytest.raises(DataError, match=r"unknown format 'argila'.*argilla"):
        import_files(ledger, [path], format="argila")


DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ('{"prompt": "half", "chos', "not valid JSON"),
        ("junk", "not valid JSON"),
        ("[1]", "a row must be an object, not list"),
        (f'{{"prompt": "Hi", "completion": {DEEP}}}', "not valid JSON"),
    ],
)
@pytest.mark.parametrize("format", [None, "trl"])
def test_a_broken_first_line_is_named_like_any_other(
    ledger: Ledger, tmp_path: Path, first: str, why: str, format: str | None
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{first}\n{{"prompt": "Hi", "completion": "Hello"}}\n')
    done = import_files(ledger, [path], format=format)
    assert (done.feedback, [(s.place, s.why) for s in done.skipped]) == (1, [("rows.jsonl:1", why)])


@pytest.mark.parametrize(
    "rows",
    [
        't1,anna,"cat\nt2,anna,cat\nt3,anna,cat\n',
        't1,anna,"cat\nt2,anna,"dog"\nt3,anna,cat\n',
    ],
)
def test_a_quotation_mark_that_is_not_closed_is_refused(ledger: Ledger, tmp_path: Path, rows: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"task,worker,label\nt0,anna,cat\n{rows}")
    with pytest.raises(DataError, match=r"labels.csv, line 3: .*; is a quotation mark not closed\?"):
        import_files(ledger, [path])
    assert ledger.counts()["feedback"] == 0
    path.write_text('task,worker,label\nt1,anna,"a ""cat"",\nor two"\n')
    import_files(ledger, [path])
    assert [f.value for f in ledger.feedback()] == ['a "cat",\nor two']


def test_what_is_held_out_stays_apart(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add_tasks([Task(family="f", kind="k", messages=(Message(role="user", content="Secret?"),), split="heldout")])
    done = take(ledger, tmp_path, [{"prompt": "Secret?", "completion": "x"}, {"prompt": "Open?", "completion": "y"}])
    assert (done.episodes, [s.why for s in done.skipped]) == (1, ["its task is in split 'heldout', which stays apart"])


# --- crowds -----------------------------------------------------------------------------


def test_a_table_of_labels(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("task,worker,label,gold\nt1,anna,cat,cat\nt1,ben,dog,cat\nt2,anna,cat,\nt2,,dog,\nt3,ben\n")
    done = import_files(ledger, [path])
    assert (done.format, done.feedback) == ("crowd", 4), "the gold label of t1 is one statement"
    assert {s.place: s.why for s in done.skipped} == {
        "labels.csv:5": "half a row: `worker` is missing",
        "labels.csv:6": "half a row: `label` is missing",
    }
    found = {(f.source.kind, f.source.name, f.value) for f in statements(ledger)}
    assert found == {
        ("person", "anna", "cat"),
        ("person", "ben", "dog"),  # who contradicts anna is kept beside her
        ("outcome", "gold", "cat"),
    }
    assert import_files(ledger, [path]).feedback == 0
    export(ledger, tmp_path / "out.csv", "crowd")
    with (tmp_path / "out.csv").open() as file:
        rows = [(r["task"], r["worker"], r["label"], r["gold"]) for r in csv.DictReader(file)]
    assert sorted(rows) == [("t1", "anna", "cat", "cat"), ("t1", "ben", "dog", "cat"), ("t2", "anna", "cat", "")]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_labels_and_gold_go_out_and_in(ledger: Ledger, tmp_path: Path, ending: str) -> None:
    rows = [
        {"task": "t1", "worker": "anna", "label": "cat"},
        {"task": "t2", "worker": "anna", "label": "cat", "gold": "dog"},
        {"task": "t3", "gold": "cat"},
        {"task": "t4", "worker": "gold", "label": "a person of this name"},
    ]
    take(ledger, tmp_path, rows)

    def said(records: Ledger) -> set[tuple[str, str, str, Any]]:
        item = {e.id: str(e.meta["item"]) for e in records.episodes()}
        return {(item[f.about[0]], f.source.kind, f.source.name, f.value) for f in records.feedback()}

    assert ("t3", "outcome", "gold", "cat") in said(ledger) and len(said(ledger)) == 5
    out = tmp_path / f"out.{ending}"
    export(ledger, out, "crowd")
    assert import_files(ledger, [out]).feedback == 0, "nothing new to the ledger that it came from"
    with Ledger.open(tmp_path / "other.sqlite") as other:
        assert import_files(other, [out]).skipped == []
        assert said(other) == said(ledger)
    export(ledger, tmp_path / "gold.jsonl", "crowd", source="gold")
    with Ledger.open(tmp_path / "golds.sqlite") as golds:
        import_files(golds, [tmp_path / "gold.jsonl"])
        assert said(golds) == {one for one in said(ledger) if one[2] == "gold"}
    export(ledger, tmp_path / "anna.jsonl", "crowd", source="anna")
    assert [set(json.loads(line)) for line in (tmp_path / "anna.jsonl").read_text().splitlines()] == [
        {"task", "worker", "label", "text"}
    ] * 2, "only what anna said"


def test_what_is_no_label_and_what_is_no_time(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"task": 1, "worker": "a", "label": NaN}\n'
        '{"task": 2, "worker": "a", "label": 1e999}\n'
        '{"task": 3, "worker": "a", "label": 3, "gold": -Infinity}\n'
        '{"task": 4, "worker": "a", "label": 4, "at": "notatime"}\n'
        '{"task": 5, "worker": "a", "label": "inf", "at": ""}\n'
    )
    done = import_files(ledger, [path])
    assert {s.place: s.why for s in done.skipped} == {
        "labels.jsonl:1": "`label` is nan, which is no label",
        "labels.jsonl:2": "`label` is inf, which is no label",
        "labels.jsonl:3": "`gold` is -inf, which is no label",
        "labels.jsonl:4": "'notatime' is no time: the label is kept, without one",
    }
    assert [(f.value, f.observed_at) for f in ledger.feedback()] == [("4", None), ("inf", None)]


def test_who_contradicts_himself_is_taken_at_the_later_word(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        {"task": "t1", "worker": "anna", "label": "cat"},
        {"task": "t1", "worker": "anna", "label": "dog"},
        {"task": "t2", "worker": "anna", "label": "late", "at": "2026-01-02"},
        {"task": "t2", "worker": "anna", "label": "early", "at": "2026-01-01"},
    ]
    take(ledger, tmp_path, rows)
    assert [f.value for f in ledger.feedback()] == ["dog", "late"]
    assert len(statements(ledger)) == 4, "the earlier word stays, superseded"


def test_a_clock_that_is_ahead_orders_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ahead = time.time() + 10_000
    rows = [
        {"task": "t1", "worker": "anna", "label": "ahead", "at": ahead},
        {"task": "t1", "worker": "anna", "label": "later", "at": "2026-01-01"},
    ]
    take(ledger, tmp_path, rows)
    first = next(f for f in statements(ledger) if f.value == "ahead")
    assert first.observed_at is None and first.evidence["said_at"] == ahead


def test_public_crowd_labels(ledger: Ledger, tmp_path: Path, shared_data: Path) -> None:
    lines = (shared_data / "crowd" / "CF.csv").read_text().splitlines()
    path = tmp_path / "CF.csv"
    path.write_text("worker,task,label,gold\n" + "\n".join(lines) + "\n")
    done = import_files(ledger, [path])
    rows = [line.split(",") for line in lines]
    assert not done.skipped
    labels = [f for f in ledger.iter_feedback() if f.source.kind == "person"]
    given = {(r[1], r[0]): r[2] for r in rows}
    assert len(labels) == len(given) and ledger.counts()["episodes"] == len({r[1] for r in rows})
    item = {e.id: e.meta["item"] for e in ledger.iter_episodes()}
    assert {(item[f.about[0]], f.source.name): f.value for f in labels} == given


# --- labelling tools --------------------------------------------------------------------

ARGILLA = {
    "id": "r1",
    "fields": {"prompt": "Where?", "response_a": "Here.", "response_b": "There."},
    "metadata": {"team": "a"},
    "responses": {
        "preference": [
            {"value": "response_b", "user_id": "u1", "status": "submitted"},
            {"value": "response_a", "user_id": "u2", "status": "draft"},
        ],
        "quality": [{"value": 4, "user_id": "u1"}],
        "order": [{"value": [{"value": "response_b", "rank": 1}, {"value": "response_a", "rank": 2}], "user_id": "u1"}],
        "topics": [{"value": ["place", "time"], "user_id": "u3", "status": "ResponseStatus.submitted"}],
        "tone": [{"value": None, "user_id": "u4", "status": "discarded"}],
    },
    "suggestions": {"quality": {"value": 3, "score": 0.7, "agent": "judge-2"}},
    "vectors": {},
}


def test_argilla(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text(json.dumps([ARGILLA]))
    done = import_files(ledger, [tmp_path / "records.json"])
    assert (done.format, done.episodes) == ("argilla", 2)
    assert [s.why for s in done.skipped] == ["a draft, which its author has not submitted"]
    found = {(f.criterion, f.source.kind, f.source.name): f for f in statements(ledger)}
    better = found["preference", "person", "u1"]
    assert (better.kind, ledger.episode(better.about[better.value]).messages[-1].content) == ("preference", "There.")
    assert (found["quality", "person", "u1"].kind, found["quality", "person", "u1"].value) == ("score", 4.0)
    assert (found["order", "person", "u1"].kind, found["order", "person", "u1"].value) == ("ranking", [1, 0])
    assert found["topics", "person", "u3"].value == ["place", "time"]
    silent = found["tone", "person", "u4"].abstention
    assert silent is not None and silent.why == "discarded"
    judged = found["quality", "judge", "judge-2"]
    assert (judged.value, judged.confidence) == (3.0, 0.7)
    assert ledger.episodes()[0].meta == {"item": "r1", "team": "a"}
    assert import_files(ledger, [tmp_path / "records.json"]).feedback == 0


def test_argilla_of_old(ledger: Ledger, tmp_path: Path) -> None:
    row = {
        "fields": {"text": "How nice!"},
        "responses": [{"user_id": "u1", "values": {"sentiment": {"value": "good"}}, "status": "submitted"}],
        "suggestions": [{"question_name": "sentiment", "value": "good", "score": None, "agent": None}],
        "external_id": "x1",
    }
    take(ledger, tmp_path, [row])
    assert [(f.kind, f.value, f.source.kind) for f in statements(ledger)] == [
        ("label", "good", "person"),
        ("label", "good", "judge"),
    ]
    assert [m.content for m in ledger.episodes()[0].messages] == ["How nice!"]


def test_label_studio(ledger: Ledger, tmp_path: Path) -> None:
    def result(name: str, kind: str, **value: Any) -> dict[str, Any]:
        return {"from_name": name, "to_name": "t", "type": kind, "value": value}

    task = {
        "id": 7,
        "data": {"question": "Where?", "answer1": "Here.", "answer2": "There."},
        "annotations": [
            {
                "id": 1,
                "completed_by": {"id": 3, "email": "anna@example.org"},
                "updated_at": "2026-01-02T03:04:05Z",
                "lead_time": 4.5,
                "was_cancelled": False,
                "result": [
                    result("pw", "pairwise", selected="right"),
                    result("stars", "rating", rating=4),
                    result("tags", "choices", choices=["short"]),
                    result("note", "textarea", text=["too short"]),
                    result("box", "rectanglelabels", x=1, y=2, rectanglelabels=["car"]),
                ],
            },
            {"id": 2, "completed_by": 9, "was_cancelled": True, "result": []},
        ],
        "predictions": [{"model_version": "m2", "score": 0.8, "result": [result("stars", "rating", rating=2)]}],
    }
    span = {
        "id": 8,
        "data": {"text": "Paris is nice"},
        "annotations": [
            {
                "completed_by": 1,
                "result": [{"from_name": "ner", "type": "labels", "value": {"start": 0, "end": 5, "labels": ["LOC"]}}],
            }
        ],
    }
    (tmp_path / "export.json").write_text(json.dumps([task, span]))
    done = import_files(ledger, [tmp_path / "export.json"])
    assert (done.format, done.episodes, done.feedback) == ("label-studio", 3, 7)
    assert [s.why for s in done.skipped] == ["a result of type 'rectanglelabels', which cannot be taken"]
    found = {(f.criterion, f.source.kind): f for f in statements(ledger)}
    better = found["pw", "person"]
    assert ledger.episode(better.about[better.value]).messages[-1].content == "There."
    assert (better.source.name, better.observed_at, better.cost.seconds) == ("anna@example.org", 1767323045.0, 4.5)
    assert (found["stars", "person"].value, found["stars", "judge"].value) == (4.0, 2.0)
    assert (found["tags", "person"].value, found["note", "person"].value) == ("short", "too short")
    assert found["annotation", "person"].abstention is not None
    where = found["ner", "person"].span
    assert where is not None and (where.turn, where.start, where.end) == (0, 0, 5)
    assert import_files(ledger, [tmp_path / "export.json"]).feedback == 0


# --- out, and in again ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.jsonl", "out"])
def test_feedback_goes_out_and_in(tmp_path: Path, name: str) -> None:
    if name == "out":
        pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    with Ledger.open(tmp_path / "one.sqlite") as one, Ledger.open(tmp_path / "two.sqlite") as two:
        write(tmp_path / "rows.jsonl", [ARGILLA, {**ARGILLA, "id": "r2"}])
        for each in (one, two):
            import_files(each, [tmp_path / "rows.jsonl"])
        extra = import_files(one, [write(tmp_path / "more.jsonl", [{**ARGILLA, "id": "r3"}])])
        before = statements(one)
        export(one, tmp_path / name, "feedback")
        done = import_files(two, [tmp_path / name])
        # what it is about must be there: the episodes of r3 are not
        assert (done.feedback, done.feedback_known) == (0, len(before) - extra.feedback)
        assert len(done.skipped) == extra.feedback and "not in the ledger" in done.skipped[0].why
        two.add_episodes(one.episodes())
        assert import_files(two, [tmp_path / name]).feedback == extra.feedback
        when = {f.id: f.created_at for f in statements(two)}  # each ledger's own
        again = [dataclasses.replace(f, created_at=when[f.id]) for f in before]
        if name.endswith((".parquet", ".arrow")):  # what was new is written in the order of ids
            again[-extra.feedback :] = sorted(again[-extra.feedback :], key=lambda one: one.id)
        assert statements(two) == again
        assert check(two) == []


def test_chat_lines_go_out_and_in(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "one.sqlite") as one, Ledger.open(tmp_path / "two.sqlite") as two:
        import_files(one, [write(tmp_path / "rows.jsonl", [{"prompt": ASK, "completion": GOOD, "label": True}])])
        export(one, tmp_path / "out.jsonl", "openai")
        done = import_files(two, [tmp_path / "out.jsonl"])
        assert (done.format, done.episodes, done.feedback) == ("openai", 1, 1)
        assert [m.content for m in two.episodes()[0].messages] == ["Where is order 7?", "On its way."]
        assert statements(two)[0].value == 1.0


def test_a_bad_row_of_a_column_file_is_named(ledger: Ledger, tmp_path: Path) -> None:
    import_files(ledger, [write(tmp_path / "rows.jsonl", [ARGILLA])])
    export(ledger, tmp_path / "out.parquet", "feedback")
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    fresh = [{**row, "id": f"{row['id']}-b", "supersedes": None} for row in rows]
    fresh[1]["criterion"] = None
    fresh[2]["confidence"] = 7.0
    pyarrow.parquet.write_table(pa.Table.from_pylist(fresh), tmp_path / "bad.parquet")
    done = import_files(ledger, [tmp_path / "bad.parquet"])
    assert done.feedback == len(rows) - 2
    assert {s.place: s.why for s in done.skipped} == {
        "bad.parquet:2": "half a row: `criterion` is missing",
        "bad.parquet:3": "confidence 7.0 is not in [0, 1]",
    }
    (tmp_path / "no.parquet").write_text("PAR1 no more")
    with pytest.raises(DataError, match="is no Parquet file"):
        import_files(ledger, [tmp_path / "no.parquet"])


def test_exports_that_cannot_be(ledger: Ledger, tmp_path: Path) -> None:
    import_files(ledger, [write(tmp_path / "rows.jsonl", [{"prompt": ASK, "completion": GOOD}])])
    with pytest.raises(DataError, match="fits the layout 'preference'"):
        export(ledger, tmp_path / "out.jsonl", "preference")
    with pytest.raises(DataError, match=r"unknown layout 'preferences'.*preference"):
        export(ledger, tmp_path / "out.jsonl", "preferences")
    with pytest.raises(DataError, match=r"end it by \.jsonl"):
        export(ledger, tmp_path / "out.xls", "prompt-completion")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == []
    where = ["--ledger", str(ledger.path), "--source", "nobody"]
    refused = CliRunner().invoke(app, ["ledger", "export", str(tmp_path / "out.jsonl"), *where])
    assert str(refused.exception) == (
        "no feedback in the ledger fits the layout 'feedback' with source 'nobody'; see metier ledger stats"
    )


# --- forgetting, down to the files ------------------------------------------------------

SECRET = "Ottilie Querfeld"


def all_bytes(folder: Path, *suffixes: str) -> bytes:
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix in suffixes] if suffixes else folder.rglob("*")
    return b"".join(f.read_bytes() for f in files if f.is_file())


@pytest.mark.parametrize("how", ["record", "person", "source"])
def test_what_is_forgotten_is_in_no_file(tmp_path: Path, how: str) -> None:
    """Database, log, shards and exports are searched; who comes again with it is turned away."""
    place = tmp_path / "project"
    place.mkdir()
    rows: list[dict[str, Any]] = [
        {
            "messages": [*ASK, {"role": "assistant", "content": f"For {SECRET}, tomorrow."}],
            "metadata": {"user": "u-17"},
            "feedback": [{"name": "helpful", "value": 1, "comment": f"{SECRET} liked it", "source": "app"}],
        },
        {
            "messages": [*ASK, {"role": "assistant", "content": "For Max, today."}],
            "feedback": [{"name": "helpful", "value": 1, "source": "other"}],
        },
    ]
    said = {**ARGILLA, "fields": {"text": f"About {SECRET}"}, "suggestions": {}}
    said["responses"] = {"note": [{"value": f"I know {SECRET}", "user_id": "anna"}]}
    if how == "source":
        rows[0]["messages"][1]["content"] = "Tomorrow."
    with Ledger.open(place / "ledger.sqlite") as ledger:
        import_files(ledger, [write(tmp_path / "chats.jsonl", rows)], source="shop")
        if how == "person":  # gives feedback under a name, and is the user of a conversation
            said["fields"] = {"text": "About someone"}
            import_files(ledger, [write(tmp_path / "said.jsonl", [said])])
            rows[0]["metadata"]["user"] = "anna"
            import_files(ledger, [write(tmp_path / "annas.jsonl", rows)], source="annas")
            forget(ledger, ledger.episodes()[0].id, why="the twin under another name")
            assert SECRET.encode() in all_bytes(place)
        for layout in ("openai", "unpaired", "feedback"):
            export(ledger, place / f"{layout}.jsonl", layout)
        export(ledger, place / "feedback.parquet", "feedback")
        held = export(ledger, place / "changed.jsonl", "feedback")
        assert SECRET.encode() in all_bytes(place, ".jsonl")
        first = ledger.episodes()[0].id
        what = {"record": first, "person": "anna", "source": "source:app"}[how]
    changed = place / "changed.jsonl"
    changed.write_text("edited by hand\n")

    runner = CliRunner()
    where = ["--ledger", str(place / "ledger.sqlite"), "--json"]
    dry = runner.invoke(app, ["ledger", "forget", what, "--why", "asked", "--dry-run", *where])
    assert SECRET.encode() in all_bytes(place), "asking is not forgetting"
    done = runner.invoke(app, ["ledger", "forget", what, "--why", "asked", *where])
    assert done.exit_code == 0, done.output
    told, foreseen = json.loads(done.output), json.loads(dry.output)
    assert told["records"] == foreseen["records"] and told["datasets"] == foreseen["datasets"]
    assert held.dataset_id in told["datasets"]
    assert told["exports_left"] == [str(changed)]
    assert str(place / "feedback.parquet") in told["exports_rewritten"]

    assert SECRET.encode() not in all_bytes(place), [
        f.name for f in place.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()
    ]
    with Ledger.open(place / "ledger.sqlite", create=False) as ledger:
        assert all(ledger.dataset(dataset).stale for dataset in foreseen["datasets"])
        kept = [e for e in ledger.episodes() if e.messages]
        assert any(m.content == "For Max, today." for e in kept for m in e.messages)
        import_files(ledger, [tmp_path / "chats.jsonl"], source="shop")  # the same file again
        if how == "person":
            new = {**said, "id": "new"}
            done_again = import_files(ledger, [write(tmp_path / "new.jsonl", [new])])
            assert "person:anna was forgotten" in {s.why for s in done_again.skipped}
            import_files(ledger, [tmp_path / "annas.jsonl"], source="annas")
        export(ledger, place / "again.jsonl", "feedback")
        assert check(ledger) == []
    assert SECRET.encode() not in all_bytes(place)


def test_forgetting_twice_and_what_is_counted_then(tmp_path: Path) -> None:
    rows = [{"task": f"t{n}", "worker": worker, "label": "cat"} for n in range(3) for worker in ("anna", "ben")]
    where = ["--ledger", str(tmp_path / "ledger.sqlite")]
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        import_files(ledger, [write(tmp_path / "rows.jsonl", rows)])
        export(ledger, tmp_path / "out.csv", "crowd")
        export(ledger, tmp_path / "edited.csv", "crowd")
    (tmp_path / "edited.csv").write_text("edited by hand\n")
    told = []
    for _ in range(2):
        done = CliRunner().invoke(app, ["ledger", "forget", "anna", "--why", "asked", *where, "--json"])
        told.append(json.loads(done.output))
    assert [(one["exports_rewritten"], one["exports_left"]) for one in told] == [
        ([str(tmp_path / "out.csv")], [str(tmp_path / "edited.csv")]),
        ([], [str(tmp_path / "edited.csv")]),
    ]
    text = CliRunner().invoke(app, ["ledger", "stats", *where]).output
    assert "3  label on 'label' by person ben 1, scored" in text
    assert "3  label on 'label' by person anna 1, erased" in text and "anna 1, scored" not in text
    found = json.loads(CliRunner().invoke(app, ["ledger", "stats", *where, "--json"]).output)["feedback"]
    assert {(row["source"]["name"], row["n"], row["erased"]) for row in found} == {("anna", 0, 3), ("ben", 3, 0)}


def test_a_user_whose_name_is_a_number_is_forgotten_too(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        {"messages": [*ASK, {"role": "assistant", "content": f"Tomorrow, {user}."}], "metadata": {"user_id": user}}
        for user in (42, 421, "43")
    ]
    import_files(ledger, [write(tmp_path / "chats.jsonl", rows)], source="shop")
    assert len(forget(ledger, "person:42", why="asked").records) == 1
    kept = [e.messages[-1].content for e in ledger.episodes() if e.messages]
    assert sorted(kept) == ["Tomorrow, 421.", "Tomorrow, 43."]


def test_what_to_forget_must_be_one_thing(ledger: Ledger, tmp_path: Path) -> None:
    from metier.base.errors import LedgerError

    judged = {**ARGILLA, "suggestions": {"quality": {"value": 3, "agent": "u1"}}}
    import_files(ledger, [write(tmp_path / "rows.jsonl", [judged])])
    with pytest.raises(LedgerError, match="'u1' is a person and another source; say person:u1 or source:u1"):
        forget(ledger, "u1", why="asked")
    with pytest.raises(LedgerError, match="no record, person or source 'nobody'"):
        forget(ledger, "nobody", why="asked")
    with pytest.raises(LedgerError, match="needs a reason"):
        forget(ledger, "person:u1", why=" ")
    reach = forget(ledger, "source:u1@1", why="asked")
    assert (reach.kind, len(reach.records)) == ("source", 1)
    assert len(forget(ledger, "person:u1", why="asked").records) == 3
    assert {f.source.name for f in ledger.feedback(erased=False)} == {"u3", "u4"}
