"""From feedback to rows: what each view makes, and what makes no row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from metier.base.config import parse
from metier.base.errors import ConfigError, DataError
from metier.feedback.data.build import Built, build
from metier.feedback.data.declaration import DatasetSettings, Pool, read_declaration
from metier.feedback.data.pooling import Vote, pool
from metier.records.forgetting import forget
from metier.records.ledger import Ledger
from metier.records.types import (
    Abstention,
    Episode,
    Feedback,
    Message,
    Run,
    Source,
    Span,
    Suite,
    Task,
    Tool,
    VerifierSpec,
    Weights,
)
from metier.stats.votes import Votes, majority

PERSON = "person"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        opened.add_run(Run(id="run", recipe="t", config={}, seed=0, folder="", code_version="1"))
        yield opened


def task(text: str, split: str = "train", **more: Any) -> Task:
    return Task(family="t", kind="chat", messages=(Message(role="user", content=text),), split=split, **more)


def episode(of: Task, name: str, said: str, **more: Any) -> Episode:
    answer = Message(role="assistant", content=said)
    given = {"stage": "s", "weights": Weights(checkpoint="base"), "split": of.split, **more}
    return Episode(id=name, task_id=of.id, run_id="run", messages=(*of.messages, answer), **given)


def said(
    name: str, about: Sequence[str], value: Any, who: str = "ann", kind: Any = "preference", **more: Any
) -> Feedback:
    source = more.pop("source", Source(kind=more.pop("source_kind", PERSON), name=who, version="1"))
    given = {"criterion": "helpful", "created_at": 1000.0, "run_id": "run", **more}
    return Feedback(id=name, about=tuple(about), kind=kind, value=value, source=source, **given)


def pair_of(ledger: Ledger, number: int, split: str = "train") -> tuple[str, str]:
    asked = task(f"Question about subject {'abcdefghij'[number]}: what happens to it in spring?", split)
    ledger.add_tasks([asked])
    names = f"e{number}a", f"e{number}b"
    words = ("It wakes up slowly and turns green.", "Nobody knows, and no one will ever say.")
    ledger.add_episodes(
        [episode(asked, name, f"{w} {'xyzuvwrstq'[number] * 9}") for name, w in zip(names, words, strict=True)]
    )
    return names


def built(ledger: Ledger, view: dict[str, Any], **more: Any) -> Built:
    return build(ledger, parse(DatasetSettings, {"name": "d", "views": [view], **more}))


def data(made: Built) -> list[dict[str, Any]]:
    return [dict(row.data) for row in made.rows]


def left(made: Built) -> dict[str, int]:
    return made.told["views"][0]["left"]


# --- votes ------------------------------------------------------------------------------------


def test_the_plain_count_is_that_of_stats_and_a_tie_is_no_verdict() -> None:
    rows = [("a", "p", "x"), ("a", "q", "x"), ("a", "r", "y"), ("b", "p", "x"), ("b", "q", "y"), ("a", "r", "z")]
    found, none = pool([Vote(i, s, label, 1.0, (f"{i}{s}",)) for i, s, label in rows], Pool())
    plain = majority(Votes.of(rows))
    assert found["a"].label == "x" and found["a"].confidence == pytest.approx(plain.share[0]) == pytest.approx(2 / 3)
    assert found["a"].margin == pytest.approx(plain.margin[0]) == pytest.approx(1 / 3)
    assert "b" not in found and none == {"the sources are tied": 1}
    assert found["a"].feedback_ids == ("ap", "aq", "ar")


def test_weights_of_sources_decide() -> None:
    votes = [Vote("a", "p", "x", 3.0, ("1",)), Vote("a", "q", "y", 1.0, ("2",)), Vote("a", "r", "y", 1.0, ("3",))]
    found, _ = pool(votes, Pool())
    # 3 of 5 for x, 2 of 5 for y
    assert (found["a"].label, found["a"].confidence, found["a"].support) == ("x", pytest.approx(0.6), 3.0)
    assert found["a"].margin == pytest.approx(0.2)


def test_a_model_of_the_sources_may_be_named_and_weights_with_it_not() -> None:
    votes = [
        Vote(f"t{t}", f"s{s}", "x" if (t + s * t) % 3 else "y", 1.0, (f"{t}{s}",)) for t in range(12) for s in range(3)
    ]
    found, _ = pool(votes, Pool(method="dawid-skene"))
    assert found and all(0.0 < one.margin <= one.confidence <= 1.0 for one in found.values())
    with pytest.raises(ConfigError, match="finds the weights of sources itself"):
        parse(
            DatasetSettings,
            {"name": "d", "views": [{"kind": "pairs", "pool": {"method": "glad", "weights": {"p": 2.0}}}]},
        )


# --- pairs ------------------------------------------------------------------------------------


def test_pairs_hold_for_any_order_shown_and_name_their_rows(ledger: Ledger) -> None:
    a, b = pair_of(ledger, 0)
    ledger.add_feedback([said("f1", (a, b), 0, "ann"), said("f2", (b, a), 1, "ben"), said("f3", (a, b), 1, "cid")])
    made = built(ledger, {"kind": "pairs", "margin": 2.0, "weigh": True})
    (row,) = data(made)
    assert row["chosen"][0]["content"].startswith("It wakes") and row["rejected"][0]["content"].startswith("Nobody")
    # two of three votes: margin 2 * (2/3 - 1/3), weight 2 * 2/3 - 1
    assert row["confidence"] == pytest.approx(2 / 3, abs=1e-5)
    assert row["margin"] == pytest.approx(2 / 3, abs=1e-5) and row["weight"] == pytest.approx(1 / 3, abs=1e-5)
    assert set(made.manifest.feedback_ids) == {"f1", "f2", "f3"} and set(made.manifest.episode_ids) == {a, b}
    assert made.manifest.kind == "pairs" and len(made.manifest.task_ids) == 1


def test_ties_declined_unscored_and_pending_make_no_pair(ledger: Ledger) -> None:
    pairs = [pair_of(ledger, n) for n in range(6)]
    ledger.add_feedback(
        [
            said("f0", pairs[0], 0),
            said("f1", pairs[1], 0.5),
            said("f2", pairs[2], None, abstention=Abstention(why="cannot say")),
            said("f3", pairs[3], None, status="unscored"),
            said("f4", pairs[4], None, status="pending", due_at=9e9, resolver="sales"),
            said("f5", pairs[5], 0, "ann"),
            said("f6", pairs[5], 1, "ben"),
        ]
    )
    made = built(ledger, {"kind": "pairs"})
    assert len(made.rows) == 1 and made.manifest.feedback_ids == ("f0",)
    assert left(made) == {
        "neither is better": 1,
        "pending: no value": 1,
        "the source declined": 1,
        "the sources are tied": 1,
        "unscored: no value": 1,
    }


def test_rankings_corrections_and_scores_make_pairs_where_they_are_taken(ledger: Ledger) -> None:
    asked = task("Name a season in which leaves fall down from the trees.")
    ledger.add_tasks([asked])
    for name, text in (
        ("r1", "Autumn is the season of falling leaves."),
        ("r2", "Perhaps it is winter."),
        ("r3", "xyz"),
    ):
        ledger.add_episodes([episode(asked, name, text)])
    better = [{"role": "assistant", "content": "Autumn, which is also called fall."}]
    ledger.add_feedback(
        [
            said("rank", ("r3", "r1", "r2"), [1, 2, 0], kind="ranking"),
            said("edit", ("r2",), better, kind="correction"),
            said("machine", ("r3",), better, "gpt", kind="correction", source_kind="judge"),
            *(said(f"s{n}", (f"r{n}",), v, kind="score") for n, v in ((1, 0.9), (2, 0.5), (3, 0.1))),
        ]
    )
    ranked = {
        (r["chosen"][0]["content"][:7], r["rejected"][0]["content"][:7]) for r in data(built(ledger, {"kind": "pairs"}))
    }
    assert ranked == {("Autumn ", "Perhaps"), ("Autumn ", "xyz"), ("Perhaps", "xyz")}
    made = built(ledger, {"kind": "pairs", "take": ["correction"]})
    assert [r["chosen"][0]["content"] for r in data(made)] == [better[0]["content"]]
    assert left(made) == {"a correction by a judge, which nobody compared": 1}
    (scored,) = data(built(ledger, {"kind": "pairs", "take": ["score"], "gap": 0.5}))
    assert scored["chosen"][0]["content"].startswith("Autumn is") and scored["rejected"][0]["content"] == "xyz"


def test_what_a_view_selects(ledger: Ledger) -> None:
    ledger.add_feedback([said("f0", pair_of(ledger, 0), 0, "ann", created_at=100.0)])
    ledger.add_feedback([said("f1", pair_of(ledger, 1), 0, "ben", created_at=200_000.0, criterion="tone")])
    ledger.add_feedback([said("f2", pair_of(ledger, 2, "label"), 0, "cid", created_at=300_000.0)])
    ledger.add_feedback([said("f3", pair_of(ledger, 3, "heldout"), 0, "ann")])

    def ids(**where: Any) -> set[str]:
        return set(
            built(ledger, {"kind": "pairs", "where": where}, decontaminate={"enabled": False}).manifest.feedback_ids
        )

    assert ids() == {"f0", "f1", "f2"}  # never of a split that is held out, unless it is named
    assert ids(splits=["heldout"]) == {"f3"}
    assert ids(criteria=["tone"]) == {"f1"} and ids(sources=["ben", "cid@1"]) == {"f1", "f2"}
    assert ids(but_sources=["ann"]) == {"f1", "f2"} and ids(since="1970-01-02", until="1970-01-04") == {"f1"}
    with pytest.raises(DataError, match="no statement makes a row"):
        ids(source_kinds=["judge"])


def test_a_build_is_the_same_again_and_as_it_stood(where: str) -> None:
    with Ledger.open(where) as ledger:
        ledger.add_run(Run(id="run", recipe="t", config={}, seed=0, folder="", code_version="1"))
        same_again(ledger)


def same_again(ledger: Ledger) -> None:
    for n in range(5):
        ledger.add_feedback([said(f"f{n}", pair_of(ledger, n), n % 2)])
    first = built(ledger, {"kind": "pairs", "balance": [{"by": "kind", "cap": 3}]}, seed=1)
    again = built(ledger, {"kind": "pairs", "balance": [{"by": "kind", "cap": 3}]}, seed=1)
    assert first.manifest == again.manifest and data(first) == data(again) and len(first.rows) == 3
    assert len(ledger.datasets()) == 1
    other = built(ledger, {"kind": "pairs", "balance": [{"by": "kind", "cap": 3}]}, seed=2)
    assert other.manifest.id != first.manifest.id
    ledger.add_feedback([said("late", pair_of(ledger, 7), 0)])
    then = built(ledger, {"kind": "pairs", "where": {"as_of": first.manifest.id}})
    assert "late" not in then.manifest.feedback_ids and len(then.rows) == 5


def test_what_is_forgotten_is_in_no_later_build(ledger: Ledger) -> None:
    for n in range(3):
        ledger.add_feedback([said(f"f{n}", pair_of(ledger, n), 0, "ann" if n else "ben")])
    before = built(ledger, {"kind": "pairs"})
    forget(ledger, "person:ben", why="asked to")
    after = built(ledger, {"kind": "pairs"})
    assert set(after.manifest.feedback_ids) == {"f1", "f2"} and after.manifest.id != before.manifest.id
    assert ledger.dataset(before.manifest.id).stale and not ledger.dataset(after.manifest.id).stale


# --- demonstrations, single answers, steps ----------------------------------------------------


def test_demonstrations_of_people_and_checked_ones(ledger: Ledger) -> None:
    tasks = [task(f"Tell me about the {w} in two sentences, please.") for w in ("sea", "moon", "road")]
    ledger.add_tasks(tasks)
    ledger.add_episodes([episode(t, f"e{n}", f"Answer to number {'abc'[n]}") for n, t in enumerate(tasks)])
    shown = [[{"role": "assistant", "content": f"A fine text on the {w}."}] for w in ("sea", "moon", "road")]
    ledger.add_feedback([said(f"d{n}", (f"e{n}",), shown[n], kind="demonstration") for n in range(3)])
    verifier = {"kind": "score", "source": Source(kind="verifier", name="v", version="1"), "criterion": "success"}
    ledger.add_feedback([said("v0", ("e0",), 1.0, **verifier), said("v1", ("e1",), 0.0, **verifier)])
    ledger.add_feedback([said("v2", ("e2",), None, status="unscored", **verifier)])
    assert len(data(built(ledger, {"kind": "demonstrations"}))) == 3
    made = built(ledger, {"kind": "demonstrations", "checked_by": ["success"]})
    # the unscored one stays: nobody said that it is wrong
    assert [r["completion"][0]["content"] for r in data(made)] == [shown[0][0]["content"], shown[2][0]["content"]]
    assert left(made) == {"it fails success": 1}
    scored = built(ledger, {"kind": "demonstrations", "take": ["score"], "where": {"criteria": ["success"]}})
    assert [r["completion"][0]["content"] for r in data(scored)] == ["Answer to number a"]


def test_a_single_answer_is_good_where_it_is_so_by_all_and_never_bad_for_want_of_a_verdict(ledger: Ledger) -> None:
    tasks = [
        task(f"Write something about a {w} that nobody has said before.") for w in ("cat", "cow", "fox", "owl", "bee")
    ]
    ledger.add_tasks(tasks)
    texts = ("meow and purr", "moo on a meadow", "what does it say", "hoot by night", "buzz at noon")
    ledger.add_episodes([episode(t, f"e{n}", texts[n]) for n, t in enumerate(tasks)])

    def by_code(name: str, about: str, value: float | None, verifier: str, **more: Any) -> Feedback:
        source = Source(kind="verifier", name=verifier, version="1")
        return said(name, (about,), value, kind="score", source=source, criterion="success", **more)

    ledger.add_feedback(
        [
            by_code("0", "e0", 1.0, "v"), by_code("1", "e0", 1.0, "w"),
            by_code("2", "e1", 1.0, "v"), by_code("3", "e1", 0.0, "w"),  # one of two checks fails: bad
            by_code("4", "e2", 1.0, "v"), by_code("5", "e2", None, "w", status="unscored"),  # cannot be told
            said("6", ("e3",), 0.5, kind="score"),  # between
            said("7", ("e4",), None, kind="score", status="pending", due_at=9e9, resolver="x"),
        ]
    )  # fmt: skip
    made = built(ledger, {"kind": "unpaired"})
    assert [(r["completion"][0]["content"], r["label"]) for r in data(made)] == [(texts[0], True), (texts[1], False)]
    assert left(made)["a verifier that could not say"] == 1 and left(made)["pending: no value"] == 1
    ledger.add_feedback([said("8", ("e3",), 4, kind="score", criterion="stars")])
    with pytest.raises(DataError, match="say what is 'good'"):
        built(ledger, {"kind": "unpaired", "where": {"criteria": ["stars"]}})
    stars = built(ledger, {"kind": "unpaired", "where": {"criteria": ["stars"]}, "good": 4.0, "bad": 2.0})
    assert [r["label"] for r in data(stars)] == [True]


def test_steps_end_where_nobody_judged(ledger: Ledger) -> None:
    asked = task("What is two plus two, and why is that so?")
    ledger.add_tasks([asked])
    text = "First, two is one and one.\nSo it is four ones.\n\nHence it is five."
    ledger.add_episodes([episode(asked, "e", text)])
    third = text.index("Hence")
    ledger.add_feedback(
        [
            said("1", ("e",), "right", kind="label", span=Span(turn=1, start=0, end=10)),
            said("2", ("e",), "wrong", kind="label", span=Span(turn=1, start=third, end=third + 5)),
        ]
    )
    (row,) = data(built(ledger, {"kind": "steps"}))
    assert row["completions"] == ["First, two is one and one."] and row["labels"] == [True]
    (whole,) = data(built(ledger, {"kind": "steps", "unmarked": "good"}))
    assert whole["labels"] == [True, True, False] and whole["prompt"] == asked.messages[0].content
    (turns,) = data(built(ledger, {"kind": "steps", "step": "turn"}))
    assert turns["labels"] == [False]  # something in the turn is wrong


# --- tasks, and what a declaration refuses ----------------------------------------------------


def test_task_rows_are_lines_of_a_task_file(ledger: Ledger, tmp_path: Path) -> None:
    from metier.feedback.data.build import write_rows
    from metier.tasks.files import FileFamily

    check = VerifierSpec(name="exact", params={"answer": "blue"})
    look = Tool(name="look_up", description="Nobody registered it.", parameters={"type": "object", "properties": {}})
    one = task(
        "Which colour has the sky on a clear day?",
        answer={"answer": "blue"},
        verifiers=(check,),
        licence="CC0-1.0",
        tools=(look,),
        meta={"cluster": "skies"},
    )
    held = task("Which colour has fresh grass in the month of May?", "heldout")
    ledger.add_tasks([one, held])
    made = built(ledger, {"kind": "rl"})
    assert made.manifest.task_ids == (one.id,)
    write_rows(tmp_path / "rows.jsonl", made.rows)
    family = FileFamily(tmp_path / "rows.jsonl", lambda name: pytest.fail(name))
    (read,) = family.tasks("train", 5, 0)
    assert read.verifiers == (check,) and read.messages == one.messages and read.id == one.id
    assert read.tools == (look,) and read.cluster == "skies"


def test_a_declaration_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "view.yaml"
    path.write_text("name: d\nviews:\n  - kind: pairs\n    where: {criterion: [x]}\n  - kind: rl\n")
    with pytest.raises(ConfigError, match="criteria"):
        read_declaration(path)
    path.write_text("name: d\nviews:\n  - kind: pairs\n  - kind: rl\n")
    with pytest.raises(ConfigError, match="views of one kind"):
        read_declaration(path)
    path.write_text("name: d\nviews:\n  - {kind: pairs, where: {since: yesterday}}\n")
    with pytest.raises(ConfigError, match="no date or time"):
        read_declaration(path)


def test_a_suite_keeps_a_task_out(ledger: Ledger) -> None:
    one, other = task("What is the name of the tallest tree there is?"), task("Who was first to sail around the world?")
    ledger.add_tasks([one, other])
    ledger.add_suite(Suite(name="exam", version="2", task_ids=(one.id,)))
    made = built(ledger, {"kind": "rl"})
    assert made.manifest.task_ids == (other.id,)
    (caught,) = made.contaminated
    assert (caught.suite, caught.task_id, caught.how) == ("exam@2", one.id, "same")
