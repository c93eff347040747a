"""Health of tasks, drafts out of production, and the card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from metier.base.config import parse
from metier.base.errors import DataError
from metier.cli.data import data_app
from metier.feedback.data.build import build
from metier.feedback.data.card import as_html, as_markdown, card_of
from metier.feedback.data.declaration import DatasetSettings
from metier.feedback.data.drafts import add_confirmed, draft_tasks, propose, write_drafts
from metier.feedback.data.health import faults_of, suggest, task_health
from metier.records.forgetting import forget
from metier.records.ledger import Ledger
from metier.records.types import (
    Episode,
    Feedback,
    Group,
    Message,
    Run,
    Source,
    Task,
    Tool,
    ToolCall,
    VerifierSpec,
    Weights,
)
from metier.stats.intervals import wilson

CODE = Source(kind="verifier", name="exact", version="1")
PERSON = Source(kind="person", name="ann", version="q@1")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        opened.add_run(Run(id="run", recipe="t", config={}, seed=0, folder="", code_version="1"))
        yield opened


def user(text: str) -> Message:
    return Message(role="user", content=text)


def says(text: str, *calls: ToolCall) -> Message:
    return Message(role="assistant", content=text, tool_calls=calls)


def score(about: str, value: float | None, source: Source = CODE, criterion: str = "success") -> Feedback:
    status = "unscored" if value is None else "scored"
    return Feedback(
        id=f"{about}-{source.name}", about=(about,), criterion=criterion, kind="score", value=value, status=status,
        source=source, created_at=86_400.0 * len(about), run_id="run",
    )  # fmt: skip


def attempts(ledger: Ledger, name: str, values: list[float | None], policy: str = "base") -> Task:
    task = Task(
        family="t",
        kind="k",
        messages=(user(f"Do {name}"),),
        verifiers=(VerifierSpec(name="exact", params={"answer": "yes"}),),
    )
    ledger.add_tasks([task])
    ids = [f"{name}-{policy}-{n}" for n in range(len(values))]
    group = f"{name}-{policy}"
    ledger.add_groups([Group(id=group, task_id=task.id, episode_ids=tuple(ids))])
    ledger.add_episodes(
        [
            Episode(
                id=one, task_id=task.id, run_id="run", stage="s", weights=Weights(checkpoint=policy), group_id=group,
                messages=(*task.messages, says("yes")),
            )
            for one in ids
        ]
    )  # fmt: skip
    ledger.add_feedback([score(one, value) for one, value in zip(ids, values, strict=True)])
    return task


def test_difficulty_by_policy_and_what_teaches_nothing(ledger: Ledger) -> None:
    hard, easy = attempts(ledger, "hard", [0.0] * 5), attempts(ledger, "easy", [1.0] * 4)
    some = attempts(ledger, "some", [1.0, 0.0, 1.0, None])
    few = attempts(ledger, "few", [0.0, 0.0, None, None, None])
    attempts(ledger, "hard", [1.0, 0.0], policy="tuned")
    found = {one.task_id: one for one in task_health(ledger)}
    (base, tuned) = found[hard.id].policies
    assert (base.n, base.successes, tuned.n, tuned.successes) == (5, 0, 2, 1)
    assert (base.low, base.high) == wilson(0, 5)
    only = found[some.id].policies[0]
    assert (only.n, only.successes, only.unscored, only.share) == (3, 2, 1, pytest.approx(2 / 3))
    assert faults_of(found[few.id]) == []  # what is unscored is no failure
    assert (found[easy.id].groups, found[easy.id].saturated, found[some.id].saturated) == (1, 1, 0)
    of_base = task_health(ledger, policy="base")
    assert {(s.task_id, s.fault, s.what) for s in suggest(of_base)} == {
        (hard.id, "never", "drop"),
        (easy.id, "always", "drop"),
    }
    view = {"kind": "rl", "drop": ["never", "always", "faulty"], "policy": "base"}
    made = build(ledger, parse(DatasetSettings, {"name": "tasks", "views": [view], "dedup": {"near": None}}))
    assert set(made.manifest.task_ids) == {some.id, few.id}
    assert made.told["views"][0]["left"] == {"always solved": 1, "never solved": 1}


def test_faulty_where_gold_fails_or_sources_disagree(ledger: Ledger) -> None:
    gold = attempts(ledger, "gold", [])
    shown = Episode(
        id="g", task_id=gold.id, run_id="run", stage="s", weights=Weights(checkpoint="oracle"),
        messages=(*gold.messages, says("no")),
    )  # fmt: skip
    ledger.add_episodes([shown])
    ledger.add_feedback(
        [
            Feedback(
                id="d", about=("g",), criterion="demonstration", kind="demonstration", source=PERSON, run_id="run",
                value=[{"role": "assistant", "content": "no"}],
            )
        ]
    )  # fmt: skip
    apart = attempts(ledger, "apart", [1.0, 1.0, 0.0, 0.0])
    said = [score(f"apart-base-{n}", value, PERSON, "looks right") for n, value in enumerate([0.0, 0.0, 0.0])]
    ledger.add_feedback(said)
    found = {one.task_id: one for one in task_health(ledger)}
    assert (found[gold.id].gold, found[gold.id].n) == (0, 0)  # nobody has checked it yet
    assert (found[apart.id].judged_twice, found[apart.id].disagreed) == (3, 2) and faults_of(found[apart.id]) == [
        "faulty"
    ]
    checked = {one.task_id: one for one in task_health(ledger, verify=True)}[gold.id]
    assert (checked.gold, checked.gold_failed, faults_of(checked)) == (1, 1, ["faulty"])
    assert {s.what for s in suggest([checked, found[apart.id]])} == {"mend"}


# --- drafts -----------------------------------------------------------------------------------

TOOL = Tool(name="find", description="Find", parameters={"type": "object", "properties": {"id": {"type": "string"}}})


def test_the_strictest_rule_that_fits() -> None:
    asked = [user("Where is my parcel?")]
    call = ToolCall(name="find", arguments='{"id": "A1"}')
    assert propose(asked, [TOOL], [says("", call)])[0] == VerifierSpec(
        name="tool_calls", params={"possible_answers": [{"find": {"id": ["A1"]}}]}
    )
    assert propose(asked, [], [says('{"n": 1, "of": ["a"]}')])[0].params["schema"]["required"] == ["n", "of"]
    assert propose(asked, [], [says("On its way.")])[0] == VerifierSpec(name="exact", params={"answer": "On its way."})
    weak, why = propose(asked, [], [says("Your parcel 4711-B will come on 2026-03-04, between noon and the evening.")])
    assert weak.name == "regex" and why.startswith("weak") and "4711-B" in why and "2026-03-04" in why
    with pytest.raises(DataError, match="no rule fits"):
        propose(asked, [], [says("It has left our warehouse and should be with you some time next week.")])


def production(ledger: Ledger, name: str, answer: str, *feedback: Feedback) -> None:
    task = Task(
        family="production", kind="production", messages=(user(f"Where is parcel {name}?"),), split="production"
    )
    ledger.add_tasks([task])
    episode = Episode(
        id=name, task_id=task.id, run_id="run", stage="import", weights=Weights(checkpoint="gpt"), split="production",
        messages=(*task.messages, says(answer)),
    )  # fmt: skip
    ledger.add_episodes([episode])
    ledger.add_feedback(feedback)


def edit(about: str, text: str) -> Feedback:
    return Feedback(
        id=f"{about}-edit", about=(about,), criterion="edit", kind="correction", source=PERSON, run_id="run",
        value=[{"role": "assistant", "content": text}],
    )  # fmt: skip


def test_only_what_a_person_confirmed_becomes_a_task(ledger: Ledger, tmp_path: Path) -> None:
    production(ledger, "p1", "I cannot say.", edit("p1", "In Rome."))
    production(ledger, "p2", "In Oslo.", score("p2", 1.0, PERSON))
    production(ledger, "p3", "In Bonn.", score("p3", 0.0, PERSON))
    production(ledger, "p4", "In Cork.")
    drafted = draft_tasks(ledger)
    assert {draft.episode_id: draft.verifier.params["answer"] for draft in drafted.drafts} == {
        "p1": "In Rome.",
        "p2": "In Oslo.",
    }
    assert sum(drafted.left.values()) == 2
    path = tmp_path / "drafts.jsonl"
    assert write_drafts(path, drafted.drafts) == 2 and write_drafts(path, drafted.drafts) == 0
    assert add_confirmed(ledger, path) == (None, [])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0].update(confirmed=True, by="eva")
    lines[1].update(confirmed=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest, (fault,) = add_confirmed(ledger, path)
    assert manifest is not None and "line 2: it is confirmed by nobody" in fault
    (task_id,) = manifest.task_ids
    task = ledger.task(task_id)
    assert task.split == "train" and task.verifiers[0].params == {"answer": "In Rome."} and task.meta["by"] == "eva"
    assert manifest.episode_ids == ("p1",) and manifest.feedback_ids == ("p1-edit",)
    assert "trained on it" in as_html(card_of(ledger, manifest.id))  # a dataset that no declaration made has a card too
    rl = parse(DatasetSettings, {"name": "tasks", "views": [{"kind": "rl", "where": {"splits": ["train"]}}]})
    assert build(ledger, rl).manifest.task_ids == (task_id,)
    reached = forget(ledger, "p1", why="asked to")
    assert {"p1", "p1-edit", task_id} <= set(reached.records) and "p2" not in reached.records
    assert ledger.dataset(manifest.id).stale
    assert "Rome" not in str(ledger.task(task_id)), "what was drafted of it said the same"
    with pytest.raises(DataError, match="the task was erased"):
        build(ledger, rl)


def test_forgetting_goes_on_through_what_was_drafted_of_drafts(ledger: Ledger, tmp_path: Path) -> None:
    production(ledger, "p1", "I cannot say.", edit("p1", "In Rome."))
    path = tmp_path / "drafts.jsonl"

    def confirmed() -> str:
        write_drafts(path, draft_tasks(ledger).drafts)
        lines = [{**json.loads(line), "confirmed": True, "by": "eva"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines[-1:]))
        manifest, _ = add_confirmed(ledger, path)
        assert manifest is not None
        return manifest.task_ids[0]

    first = confirmed()
    spoken = dataclasses.replace(ledger.episode("p1"), id="p2", task_id=first)
    ledger.add_episodes([spoken])
    ledger.add_feedback([edit("p2", "In Rome, by the river.")])
    path.unlink()
    second = confirmed()
    assert second != first
    assert {first, second, "p1", "p2"} <= set(forget(ledger, ledger.episode("p1").task_id, why="asked").records)
    assert "Rome" not in str(ledger.task(second))


def test_a_draft_whose_episode_alone_was_erased_is_no_row(ledger: Ledger, tmp_path: Path) -> None:
    production(ledger, "p1", "I cannot say.", edit("p1", "In Rome."))
    path = tmp_path / "drafts.jsonl"
    write_drafts(path, draft_tasks(ledger).drafts)
    path.write_text(json.dumps({**json.loads(path.read_text()), "confirmed": True, "by": "eva"}) + "\n")
    add_confirmed(ledger, path)
    ledger.erase("p1", why="as older versions did")
    rl = parse(DatasetSettings, {"name": "tasks", "views": [{"kind": "rl", "where": {"splits": ["train"]}}]})
    with pytest.raises(DataError, match="drafted from was erased"):
        build(ledger, rl)


def test_a_confirmed_line_whose_verifier_refuses_its_answer_is_named(ledger: Ledger, tmp_path: Path) -> None:
    production(ledger, "p1", "I cannot say.", edit("p1", "In Rome."))
    path = tmp_path / "drafts.jsonl"
    write_drafts(path, draft_tasks(ledger).drafts)
    line = json.loads(path.read_text())
    path.write_text(
        json.dumps({**line, "confirmed": True, "by": "eva", "verifier": {"name": "exact", "answer": "Rome"}})
    )
    manifest, (fault,) = add_confirmed(ledger, path)
    assert manifest is None and "does not take its own answer" in fault


# --- the card, and the commands ---------------------------------------------------------------


def filled(ledger: Ledger) -> str:
    """Pairs that three people judged, one of a test item; the name of one source is hostile."""
    from metier.records.types import Suite

    hostile = "<script>alert(1)</script>|x"
    texts = [
        f"Tell me how {a} and {b} differ when it rains on them."
        for a in ("wood", "iron", "salt")
        for b in ("silk", "clay", "bone", "wax")
    ]
    for n, text in enumerate(texts):
        task = Task(family="t", kind=("chat", "how-to")[n % 2], messages=(user(text),), licence=("MIT", "")[n % 2])
        ledger.add_tasks([task])
        for side, answer in (("a", "One swells. " * (n + 1)), ("b", "I do not know that. " + "xyz"[n % 3] * n)):
            ledger.add_episodes(
                [
                    Episode(
                        id=f"e{n}{side}", task_id=task.id, run_id="run", stage="s",
                        weights=Weights(checkpoint=f"m{side}"),
                        messages=(*task.messages, says(answer)),
                    )
                ]
            )  # fmt: skip
        for who in ("ann", "ben", hostile):
            value = 1 if who == "ben" and n % 4 == 0 else 0
            ledger.add_feedback(
                [
                    Feedback(
                        id=f"f{n}{who}", about=(f"e{n}a", f"e{n}b"), criterion="helpful", value=value,
                        kind="preference",
                        source=Source(kind="person", name=who, version="1"), run_id="run",
                        created_at=1.7e9 + 86_400 * n,
                    )
                ]
            )  # fmt: skip
    exam = Task(family="t", kind="chat", messages=(user("Please tell me: " + texts[0]),), split="heldout")
    ledger.add_tasks([exam])
    ledger.add_suite(Suite(name="exam", version="1", task_ids=(exam.id,)))
    return build(ledger, parse(DatasetSettings, {"name": "<b>pairs</b>", "views": [{"kind": "pairs"}]})).manifest.id


def test_the_card_says_what_is_there_and_runs_nothing(ledger: Ledger) -> None:
    dataset = filled(ledger)
    card = card_of(ledger, dataset)
    assert (
        card.rows == 11
        and dict(card.sources)["person ann"] == 11
        and dict(card.licences) == {"MIT": 5, "not stated": 6}
    )
    (agreed,) = card.agreement
    # 11 rows: on 2 of them (n = 4, 8) ben differs, so 2 of 3 pairs differ there: 1 - 4 / 33
    assert agreed.things == 11 and agreed.alike == pytest.approx(1 - 4 / 33)
    (caught,) = card.built["contaminated"]
    assert caught["suite"] == "exam@1" and card.sieve[-1] == ("in the dataset", 11)
    html, text = as_html(card), as_markdown(card)
    assert "<script>" not in html and "<b>pairs" not in html and "<script" not in text
    assert "exam@1" in html and "exam@1" in text and "differ when it rains" not in html + text
    off = parse(DatasetSettings, {"name": "off", "views": [{"kind": "pairs"}], "decontaminate": {"enabled": False}})
    card = card_of(ledger, build(ledger, off).manifest.id)
    assert card.rows == 12 and "Not looked through" in as_html(card) and "not looked through" in as_markdown(card)


def test_the_commands(ledger: Ledger, tmp_path: Path) -> None:
    dataset = filled(ledger)
    where = ["--ledger", str(tmp_path / "ledger.sqlite")]
    declared = tmp_path / "pairs.yaml"
    declared.write_text("name: pairs\nviews:\n  - {kind: pairs, where: {criteria: [helpful]}}\n")

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(data_app, [*arguments, *where], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    told = run("build", str(declared), "-o", str(tmp_path / "out"))
    assert "exam@1 item task-" in told.stderr and "11 rows" in told.stdout
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 11
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"rows.jsonl", "card.html", "card.md"}
    assert json.loads(run("build", str(declared), "--json").stdout)["rows"] == 11
    assert (
        "# &lt;b>pairs&lt;/b>" in run("card", dataset).stdout
        and json.loads(run("card", dataset, "--json").stdout)["rows"] == 11
    )
    assert json.loads(run("health", "--json").stdout)["tasks"]
    assert "0 new drafts" in run("draft", str(tmp_path / "drafts.jsonl")).stdout
