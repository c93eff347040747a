"""What can be asked of a ledger, what is known of it, and the queue that is filled with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metier.base.errors import ConfigError, DataError
from metier.feedback.people.labelling import Labelling
from metier.feedback.people.queue import read_queue
from metier.feedback.selection.candidates import Asking, Found, find_candidates
from metier.feedback.selection.choose import Chosen, choose
from metier.feedback.selection.filling import Filled, fill, why_file
from metier.records.forgetting import forget
from metier.records.ledger import Ledger
from metier.records.types import Abstention, Cost, Episode, Feedback, Message, Run, Source, Suite, Task, Weights

CODE = Source(kind="verifier", name="state", version="1")
JUDGE = Source(kind="judge", name="judge", version="a")
ANNA = Source(kind="person", name="anna", version="guide")
ASKING = Asking(criterion="helpfulness")


def task(n: int, kind: str = "act", split: str = "train") -> Task:
    where = "" if split == "train" else f" {split}"
    asked = Message(role="user", content=f"{kind} {n}{where}?")
    return Task(family="desk", kind=kind, split=split, messages=(asked,))


def attempt(of: Task, index: int, said: str | None = None, **more: Any) -> Episode:
    answer = (Message(role="assistant", content=said or f"Answer {index}."),) if said != "" else ()
    made: dict[str, Any] = {
        "id": f"ep-{of.messages[0].content.replace(' ', '-')}-{index}",
        "task_id": of.id,
        "run_id": "run",
        "stage": "rollout",
        "weights": Weights(checkpoint="base"),
        "messages": (*of.messages, *answer),
        "group_id": f"group-{of.id}",
        "split": of.split,
    }
    return Episode(**{**made, **more})


def told(about: tuple[str, ...], value: Any, source: Source = JUDGE, **more: Any) -> Feedback:
    kind = "preference" if len(about) == 2 else "score"
    name = f"fb-{source.name}-{source.version}-{'-'.join(about)}-{more.get('criterion', '')}"
    made: dict[str, Any] = {"id": name, "about": about, "criterion": "helpfulness", "kind": kind, "source": source}
    return Feedback(**{**made, "value": value, **more})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        opened.add_run(Run(id="run", recipe="desk", config={}, seed=0, folder="", code_version="1"))
        yield opened


def pairs(ledger: Ledger, count: int, kind: str = "act", split: str = "train") -> list[tuple[str, str]]:
    """Tasks with two siblings each."""
    tasks = [task(n, kind, split) for n in range(count)]
    made = [[attempt(one, 0), attempt(one, 1)] for one in tasks]
    ledger.add_tasks(tasks)
    ledger.add_episodes([one for some in made for one in some])
    return [(first.id, second.id) for first, second in made]


def test_only_what_may_be_asked_is_a_candidate(ledger: Ledger) -> None:
    whole, tested, alike, failed, silent, shown, gone, said, alone = (task(n) for n in range(9))
    near, look = task(1, split="heldout"), task(2, split="look")
    ledger.add_tasks([whole, tested, alike, failed, silent, shown, gone, said, alone, near, look])
    ledger.add_episodes([attempt(one, i) for one in (whole, tested, shown, gone, said, near, look) for i in (0, 1)])
    ledger.add_episodes([attempt(alike, i, "The same.") for i in (0, 1)])
    ledger.add_episodes([attempt(failed, 0), attempt(failed, 1, error="out of memory", error_boundary="engine")])
    ledger.add_episodes([attempt(silent, 0), attempt(silent, 1, "")])
    ledger.add_episodes([attempt(alone, 0)])
    heldout = task(0, split="heldout")
    ledger.add_tasks([heldout])
    ledger.add_suite(Suite(name="desk/heldout", version="1", task_ids=(tested.id, heldout.id)))
    stages = [{"name": "grpo", "eval_split": "look"}, {"name": "final", "splits": {"act.other": 5}}]
    ledger.add_run(Run(id="run-2", recipe="r", config={"stages": stages}, seed=0, folder="", code_version="1"))
    demonstrated = Source(kind="execution", name="oracle", version="1")
    one = attempt(shown, 0).id
    ledger.add_feedback([told((one,), [], demonstrated, kind="demonstration", criterion="demonstration")])
    ledger.add_feedback([told((attempt(said, 0).id, attempt(said, 1).id), 1, ANNA)])
    forget(ledger, attempt(gone, 1).id, why="asked to")
    found = find_candidates(ledger, ASKING)
    assert [one.task_id for one in found.candidates] == [whole.id]
    assert [one.task_id for one in found.answered] == [said.id]
    assert found.left_out == {
        "a demonstration": 1,
        "both say the same": 1,
        "failed by a machine": 1,
        "held out": 6,
        "no sibling": 5,
        "nothing is said": 1,
    }
    measured = find_candidates(ledger, Asking(criterion="helpfulness", purpose="evaluation"))
    assert {one.task_id for one in measured.candidates} == {tested.id, near.id, look.id}


def test_an_erased_task_is_not_asked_about(ledger: Ledger) -> None:
    pairs(ledger, 2)
    assert len(find_candidates(ledger, ASKING).candidates) == 2
    forget(ledger, task(0).id, why="asked to")
    assert [one.task_id for one in find_candidates(ledger, ASKING).candidates] == [task(1).id]


def test_what_machines_and_people_said_are_probabilities_of_the_first_being_better(ledger: Ledger) -> None:
    ((a, b),) = pairs(ledger, 1)
    rewards = [Source(kind="judge", name="rm/reward", version=seed) for seed in ("s1", "s2")]
    ben = Source(kind="person", name="ben", version="guide")
    ledger.add_feedback(
        [
            told((a,), 1.0, CODE, criterion="success"),
            told((b,), 0.5, CODE, criterion="success"),
            told((b, a), 1, JUDGE, evidence={"u": 0.3}),  # shown the other way round
            told((a, b), 0, rewards[0], evidence={"rewards": [2.0, 1.0]}),
            told((b, a), 0, rewards[1], evidence={"rewards": [2.0, 1.0]}),
            told((a, b), 0, Source(kind="judge", name="heads", version="1"), evidence={"ensemble": [[1.0, 1.0]]}),
            told((a,), 7.0, Source(kind="judge", name="of ten", version="1")),  # no probability
            told((a, b), None, Source(kind="judge", name="down", version="1"), status="unscored"),
            told((b, a), 0, ANNA),
            told((a, b), None, ben, abstention=Abstention(why="cannot tell")),
        ]
    )
    (one,) = find_candidates(ledger, Asking(criterion="helpfulness", people=2)).candidates
    assert one.episodes == (a, b) and one.known.people == 1
    up, down = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))
    assert sorted(one.known.ensemble) == pytest.approx([down, 0.5, up])
    want = {"verifiers": 0.75, "judge@a": 0.7, "ensemble": 0.5, "people": 0.25}
    assert one.known.sources == pytest.approx(want)


def test_evidence_about_one_answer(ledger: Ledger) -> None:
    ((a, _),) = pairs(ledger, 1)
    ledger.add_feedback(
        [
            told((a,), 1.0, CODE, criterion="success"),
            told((a,), 0.2, Source(kind="verifier", name="form", version="1"), criterion="success"),
            told((a,), 0.9, JUDGE),
            told((a,), "polite", ANNA, kind="label"),
            told((a,), 0.1, JUDGE, criterion="tone"),
        ]
    )
    found = find_candidates(ledger, Asking(criterion="helpfulness", size=1, people=3)).candidates
    one = next(one for one in found if one.episodes == (a,))
    assert one.known.sources == pytest.approx({"verifiers": 0.2, "judge@a": 0.9, "people": 0.75})
    toned = find_candidates(ledger, Asking(criterion="tone", size=1)).candidates
    assert next(one for one in toned if one.episodes == (a,)).known.sources["judge@a"] == pytest.approx(0.1)


def chosen(found: Found, n: int, **more: Any) -> Chosen:
    return choose(found, ASKING, n, **more)


def test_open_disputed_weak_and_unknown_kinds_come_first(ledger: Ledger) -> None:
    act, ask = pairs(ledger, 6), pairs(ledger, 6, "ask")
    other = Source(kind="judge", name="other", version="1")
    for n, (a, b) in enumerate(act):
        sure = (0.98, 0.02) if n else (0.5, 0.5)  # the first is open
        ledger.add_feedback([told((a, b), 0, JUDGE, evidence={"u": sure[0]})])
        u = 0.02 if n == 1 else sure[0]  # the second is disputed
        ledger.add_feedback([told((a, b), 0, other, evidence={"u": u})])
    ledger.add_feedback([told(pair, 0, JUDGE, evidence={"u": 0.98}) for pair in ask])
    ledger.add_feedback([told(pair, 0, ANNA) for pair in act[4:]])  # one kind has answers
    order = [one.candidate.episodes for one in chosen(find_candidates(ledger, ASKING), 4).choices]
    assert set(order[:2]) == {act[0], act[1]} and order[0] == act[1]
    assert set(order[2:8]) == set(ask)
    # The last evaluation failed at what has answers and never at the other kind.
    tests = [task(n, kind, "heldout") for kind in ("act", "ask") for n in range(8)]
    tried = [attempt(one, 0, stage="final") for one in tests]
    ledger.add_tasks(tests)
    ledger.add_suite(Suite(name="desk/heldout", version="1", task_ids=tuple(one.id for one in tests)))
    ledger.add_episodes(tried)
    scores = [told((one.id,), float(n >= 8), CODE, criterion="success") for n, one in enumerate(tried)]
    ledger.add_feedback(scores)
    found = find_candidates(ledger, ASKING)
    assert found.measured == {"act": (8, 8), "ask": (0, 8)}
    order = [one.candidate.episodes for one in chosen(found, 4).choices]
    assert set(order[:4]) == set(act[:4]) and set(order[4:]) == set(ask)


def test_what_takes_longer_is_worth_less_per_second(ledger: Ledger) -> None:
    (short,) = pairs(ledger, 1)
    wordy = task(9)
    ledger.add_tasks([wordy])
    ledger.add_episodes([attempt(wordy, i, f"{i} " * 2000) for i in (0, 1)])
    ledger.add_feedback([told(short, 0, ANNA, cost=Cost(seconds=30.0), criterion="helpfulness")])
    found = find_candidates(ledger, Asking(criterion="helpfulness", people=2))
    assert [(one.seconds, one.characters) for one in found.taken] == [(30.0, 2 * (len("act 0?") + len("Answer 0.")))]
    first, second = choose(found, Asking(criterion="helpfulness", people=2), 1, per="second").choices
    assert first.candidate.episodes == short and second.seconds > 3 * first.seconds
    # Where every item costs the same, what nobody has answered is worth more.
    one = choose(found, Asking(criterion="helpfulness", people=2), 1).choices[0]
    assert one.candidate == second.candidate and one.per_cost == one.value > first.value


def test_the_same_seed_draws_the_same_and_a_tenth_is_random(ledger: Ledger) -> None:
    pairs(ledger, 60)
    found = find_candidates(ledger, ASKING)
    one, again, other = (chosen(found, 20, seed=seed) for seed in (1, 1, 2))
    assert one == again and one.drawn != other.drawn
    assert [sum(c.arm == arm for c in one.drawn) for arm in ("uniform", "priority")] == [2, 18]
    assert sum(c.propensity for c in one.choices) == pytest.approx(20)
    with pytest.raises(ConfigError, match="at least a tenth"):
        chosen(found, 20, uniform=0.05)


def test_a_duel_leaves_the_pair_of_two_that_lost(ledger: Ledger) -> None:
    many = task(0)
    tried = [attempt(many, n) for n in range(3)]
    ledger.add_tasks([many])
    ledger.add_episodes(tried)
    people = [Source(kind="person", name=f"p{n}", version="1") for n in range(12)]
    a, b, c = (one.id for one in tried)
    ledger.add_feedback([told((a, c), 0, who) for who in people] + [told((b, c), 0, who) for who in people])
    asking = Asking(criterion="helpfulness", people=50)
    first, *others = choose(find_candidates(ledger, asking), asking, 1, duel=True).choices
    assert first.candidate.episodes == (a, b) and first.duel > 1.2
    assert all(one.duel < 0.2 for one in others)


def test_checkpoints_that_meet_in_many_tasks_are_one_contest(ledger: Ledger) -> None:
    tasks = [task(n) for n in range(12)]
    named = [Weights(checkpoint=name) for name in "xyz"]
    made = [attempt(t, i, weights=w, group_id=None) for t in tasks for i, w in enumerate(named)]
    ledger.add_tasks(tasks)
    ledger.add_episodes(made)
    for t in tasks[:9]:  # z has lost to both; nobody has compared x and y
        x, y, z = (attempt(t, i).id for i in range(3))
        ledger.add_feedback([told((x, z), 0, ANNA), told((y, z), 0, ANNA)])
    choices = choose(find_candidates(ledger, ASKING), ASKING, 3, duel=True).choices
    duels = {one.candidate.arms: one.duel for one in choices}
    assert duels[("x@0", "y@0")] > 1.2 > 0.3 > max(duels[("x@0", "z@0")], duels[("y@0", "z@0")])


def filled(ledger: Ledger, path: Path | None, n: int = 10, **more: Any) -> Filled:
    return fill(ledger, more.pop("asking", ASKING), n, path, **more)


def test_a_queue_is_filled_up_and_asked(ledger: Ledger, tmp_path: Path) -> None:
    pairs(ledger, 30)
    path = tmp_path / "help.jsonl"
    assert filled(ledger, path).added == 10
    queue = read_queue(path)
    assert queue.question.criterion == "helpfulness" and queue.question.kind == "pair" and not queue.skipped
    assert len(queue.items) == 10 and all(0 < (item.propensity or 0) <= 1 for item in queue.items)
    whys = {why["item"]: why for why in map(json.loads, why_file(path).read_text().splitlines())}
    assert {item.id: item.propensity for item in queue.items} == {k: why["propensity"] for k, why in whys.items()}
    assert {why["candidates"] for why in whys.values()} == {30}
    # Again: nothing is missing, nothing changes.
    before = path.read_bytes(), why_file(path).read_bytes()
    assert filled(ledger, path).added == 0
    assert (path.read_bytes(), why_file(path).read_bytes()) == before
    # Four are answered on the page: four others are asked, and those before stay as they were.
    with Labelling(queue, tmp_path / "ledger.sqlite") as labelling:
        for n in range(4):
            shown = labelling.shown("anna")
            assert shown is not None
            labelling.answer("anna", shown.slot.item, {"choice": 1}, f"click-{n}", seconds=5)
    again = filled(ledger, path)
    assert (again.held, again.open, again.added) == (10, 6, 4)
    assert path.read_bytes().startswith(before[0])
    rows = [row for row in ledger.feedback(criterion="helpfulness") if row.source.kind == "person"]
    assert all(row.propensity == whys[row.evidence["item"]]["propensity"] for row in rows) and len(rows) == 4
    assert len({frozenset(item.episodes) for item in read_queue(path).items}) == 14


def test_the_log_is_mended_after_a_crash_between_the_two_files(ledger: Ledger, tmp_path: Path) -> None:
    pairs(ledger, 30)
    path = tmp_path / "help.jsonl"
    filled(ledger, path)
    queue, log = path.read_bytes(), why_file(path).read_bytes()
    path.unlink()  # the log was written, the queue not yet
    filled(ledger, path)
    assert (path.read_bytes(), why_file(path).read_bytes()) == (queue, log)


def test_a_file_that_asks_something_else_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    pairs(ledger, 5)
    path = tmp_path / "help.jsonl"
    filled(ledger, path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="asks for 'helpfulness' by pair"):
        filled(ledger, path, asking=Asking(criterion="tone"))
    with pytest.raises(DataError, match="jsonl"):
        filled(ledger, tmp_path / "help.yaml")
    assert path.read_bytes() == before


def test_of_an_item_only_the_missing_people_are_asked(ledger: Ledger, tmp_path: Path) -> None:
    ((a, b),) = pairs(ledger, 1)
    ledger.add_feedback([told((b, a), 0, ANNA)])
    filled(ledger, tmp_path / "q.jsonl", asking=Asking(criterion="helpfulness", people=3))
    (item,) = read_queue(tmp_path / "q.jsonl").items
    assert item.overlap == 2 and item.propensity == 1.0


def test_with_nothing_to_ask_no_file_is_made(ledger: Ledger, tmp_path: Path) -> None:
    done = filled(ledger, tmp_path / "q.jsonl")
    assert done.added == 0 and not (tmp_path / "q.jsonl").exists()
