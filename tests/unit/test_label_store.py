"""Who judges what: slots, leases, clicks and undo, over a real ledger and store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from labelled import pairs, write_queue
from metier.base.errors import DataError, LedgerError
from metier.feedback.people.access import Links, RateLimit
from metier.feedback.people.labelling import Labelling
from metier.feedback.people.queue import read_queue
from metier.feedback.people.results import as_csv, as_jsonl, results
from metier.feedback.people.store import LEASE_SECONDS, Store
from metier.feedback.people.tables import LabelDatabase
from metier.records.ledger import Ledger

CLICKS = (f"click-{n:06}" for n in count())


class Clock:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def opened(tmp_path: Path, where: str) -> Iterator[Callable[..., Labelling]]:
    made: list[Labelling] = []

    def open_queue(number: int = 4, clock: Clock | None = None, **head: Any) -> Labelling:
        labelling = Labelling(read_queue(write_queue(tmp_path, pairs(number), **head)), where)
        if clock is not None:
            labelling.store = Store(labelling.database, clock=clock)
        made.append(labelling)
        return labelling

    yield open_queue
    for labelling in made:
        labelling.close()


def judge(labelling: Labelling, person: str, choice: float = 0) -> str | None:
    """Answer what is before this person."""
    shown = labelling.shown(person)
    if shown is None:
        return None
    labelling.answer(person, shown.slot.item, {"choice": choice}, next(CLICKS))
    return shown.slot.item


def test_two_people_never_have_one_slot(opened: Callable[..., Labelling], where: str) -> None:
    people = ["Ada", "Bob", "Cyd", "Dan"]

    opened_by = {person: opened(40, overlap=2) for person in people}  # as in a process of their own

    def work(person: str) -> list[str]:
        done = []
        while (item := judge(opened_by[person], person)) is not None:
            done.append(item)
        return done

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, people))
    assert all(len(set(done)) == len(done) for done in found)
    assert Counter(item for done in found for item in done) == {f"pair-{n}": 2 for n in range(40)}
    with Ledger.open(where) as ledger:
        rows = ledger.feedback(current=False)
    assert len({row.id for row in rows}) == len(rows) == 80
    assert len({(row.evidence["item"], row.evidence["slot"]) for row in rows}) == 80


def test_the_two_orders_take_turns_and_are_recorded(opened: Callable[..., Labelling]) -> None:
    labelling = opened(30, overlap=2)
    orders: dict[str, list[tuple[str, ...]]] = {}
    for person in ("Ada", "Bob"):
        while (shown := labelling.shown(person)) is not None:
            orders.setdefault(shown.slot.item, []).append(tuple(episode.id for episode in shown.episodes))
            labelling.answer(person, shown.slot.item, {"choice": 0}, next(CLICKS))
    for item, (one, other) in orders.items():
        assert one == other[::-1] and set(one) == set(labelling.own_order(item))
    firsts = sum(found[0] == labelling.own_order(item) for item, found in orders.items())
    assert 5 < firsts < 25  # neither response is always shown first to whoever comes first
    for decision, (row,) in labelling.decided():
        assert row.about == labelling.order(decision.item, decision.slot)
    assert results(labelling).agreement.agreeing == 0  # who always takes the first never agrees


def test_a_click_that_comes_again_changes_nothing(opened: Callable[..., Labelling], where: str) -> None:
    labelling = opened()
    item = labelling.shown("Ada").slot.item
    for _ in range(3):
        labelling.answer("Ada", item, {"choice": 1}, "the-same-click")
    with Ledger.open(where) as ledger:
        assert len(ledger.feedback(current=False)) == 1
    labelling.answer("Ada", item, {"choice": 0}, "another-click")  # a change of mind
    with Ledger.open(where) as ledger:
        old, new = ledger.feedback(current=False)
        assert new.supersedes == old.id and ledger.feedback() == [new]


def test_undo_retracts_and_shows_the_item_again(opened: Callable[..., Labelling], where: str) -> None:
    labelling = opened()
    assert not labelling.undo("Ada", next(CLICKS))
    first, second = judge(labelling, "Ada", 1), judge(labelling, "Ada", 0)
    assert labelling.undo("Ada", "undo-once-1") and labelling.undo("Ada", "undo-once-1")
    shown = labelling.shown("Ada")
    assert (shown.slot.item, shown.answer) == (second, {"choice": 0})
    assert labelling.undo("Ada", next(CLICKS))
    assert labelling.shown("Ada").slot.item == first  # the newest that was taken back comes first
    with Ledger.open(where) as ledger:
        assert ledger.feedback() == []
        assert [row.status for row in ledger.feedback(current=False)] == ["scored", "scored", "retracted", "retracted"]
    assert [judge(labelling, "Ada", 0.5), judge(labelling, "Ada", 0.5)] == [first, second]
    with Ledger.open(where) as ledger:
        assert [row.value for row in ledger.feedback()] == [0.5, 0.5]


def test_a_skip_is_an_abstention_and_somebody_else_is_asked(opened: Callable[..., Labelling], where: str) -> None:
    labelling = opened(1)
    labelling.skip("Ada", labelling.shown("Ada").slot.item, "I cannot tell", next(CLICKS))
    assert labelling.shown("Ada") is None
    assert judge(labelling, "Bob") == "pair-0"
    with Ledger.open(where) as ledger:
        away, row = ledger.feedback()
    assert away.abstention is not None and away.abstention.why == "I cannot tell" and away.value is None
    assert row.value == 0
    found = results(labelling)
    assert (found.done, found.wanted, found.skipped) == (1, 1, 1)


def test_a_lease_that_ran_out_may_be_taken_over_and_a_late_answer_still_counts(
    opened: Callable[..., Labelling],
) -> None:
    clock = Clock()
    labelling = opened(1, clock)
    assert labelling.shown("Ada").slot.slot == 0
    assert labelling.shown("Bob") is None
    clock.at += LEASE_SECONDS + 1
    assert labelling.shown("Bob").slot.slot == 0
    labelling.answer("Ada", "pair-0", {"choice": 0}, next(CLICKS))  # she was only slow
    labelling.answer("Bob", "pair-0", {"choice": 1}, next(CLICKS))
    assert {(d.person, d.slot) for d, _ in labelling.decided()} == {("Ada", 1), ("Bob", 0)}


@pytest.mark.parametrize("jump", [-1e7, 1e7])
def test_a_clock_that_jumps_loses_nothing(opened: Callable[..., Labelling], jump: float) -> None:
    clock = Clock()
    labelling = opened(6, clock, overlap=2)
    judge(labelling, "Ada")
    held = labelling.shown("Ada").slot.item
    labelling.draft("Ada", held, {"note": "half"})
    clock.at += jump
    assert labelling.shown("Ada").slot.item == held and labelling.shown("Ada").draft == {"note": "half"}
    for person in ("Ada", "Bob"):
        while judge(labelling, person) is not None:
            pass
    assert Counter(d.item for d, _ in labelling.decided()) == {f"pair-{n}": 2 for n in range(6)}


def test_gold_comes_to_everybody_among_the_rest_and_is_scored(
    tmp_path: Path, opened: Callable[..., Labelling], where: str
) -> None:
    gold = [{"item": "pair-0", "answer": 1}, {"item": "pair-1", "answer": 0}]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    labelling = opened(30, gold="gold.jsonl")
    seen: dict[str, list[str]] = {"Ada": [], "Bob": []}
    for _ in range(30):
        for person, items in seen.items():
            if (shown := labelling.shown(person)) is not None:
                items.append(shown.slot.item)
                better = [episode.messages[-1].content.startswith("Answer two") for episode in shown.episodes]
                labelling.answer(person, shown.slot.item, {"choice": better.index(True)}, next(CLICKS))
    for items in seen.values():
        places = [items.index(one) for one in ("pair-0", "pair-1")]
        assert all(place >= 3 for place in places)
        assert abs(places[0] - places[1]) > 3
    found = results(labelling)
    assert [(w.gold, w.gold_right) for w in found.workers] == [(2, 1), (2, 1)]
    assert (found.done, found.wanted) == (28, 28)  # gold is beside what is wanted
    with Ledger.open(where) as ledger:
        marked = {row.evidence["item"] for row in ledger.feedback() if (row.assignment or "").endswith(" gold")}
    assert marked == {"pair-0", "pair-1"}


def test_a_crash_between_store_and_ledger_is_mended_at_the_next_start(
    tmp_path: Path, opened: Callable[..., Labelling], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    labelling = opened()
    item = labelling.shown("Ada").slot.item
    with monkeypatch.context() as cut:
        cut.setattr(labelling, "flush", lambda: None)  # the process ended here
        labelling.answer("Ada", item, {"choice": 1}, "click-before-crash")
    with Ledger.open(where) as ledger:
        assert ledger.feedback() == []
    again = opened()
    with Ledger.open(where) as ledger:
        (row,) = ledger.feedback()
    again.answer("Ada", item, {"choice": 1}, "click-before-crash")  # the page had no answer
    with Ledger.open(where) as ledger:
        assert ledger.feedback(current=False) == [row]
    assert again.store.pending(1) == []


def test_what_was_asked_may_not_change_under_its_version(opened: Callable[..., Labelling]) -> None:
    opened(3)
    opened(5)  # more items are no other question
    with pytest.raises(DataError, match="a version of its own"):
        opened(3, instructions="Now do otherwise.")
    opened(3, instructions="Now do otherwise.", version="2")


def test_an_item_may_not_change_under_its_id(tmp_path: Path, opened: Callable[..., Labelling], where: str) -> None:
    opened(3)
    items = pairs(3, first="three")
    with pytest.raises(DataError, match="'pair-0' of queue desk@1 said something else"):
        Labelling(read_queue(write_queue(tmp_path, items)), where)


def test_items_that_left_the_file_are_neither_shown_nor_lost(opened: Callable[..., Labelling], where: str) -> None:
    first = opened(4)
    assert [judge(first, "Ada") for _ in range(3)] == ["pair-0", "pair-1", "pair-2"]
    assert first.shown("Ada").slot.item == "pair-3"
    fewer = opened(2)
    assert fewer.shown("Ada") is None and fewer.store.done("Ada") == 2
    assert fewer.undo("Ada", next(CLICKS)) and fewer.shown("Ada").slot.item == "pair-1"
    with pytest.raises(DataError):
        fewer.whole("Ada", "pair-3", 0, 0)
    assert results(fewer).workers[0].answered == 1
    with Ledger.open(where) as ledger:
        assert len(ledger.feedback()) == 2


def test_what_was_erased_can_only_be_skipped(opened: Callable[..., Labelling], where: str) -> None:
    from metier.feedback.people.views import item_html

    labelling = opened(2)
    shown = labelling.shown("Ada")
    assert not shown.erased
    with Ledger.open(where) as ledger:
        ledger.erase(shown.episodes[0].id, why="asked to be forgotten")
    shown = labelling.shown("Ada")
    assert shown.erased
    page = item_html(shown, labelling.queue, "")
    assert "was erased" in page and "data-answer" not in page and "Answer one" not in page and "Answer two" not in page
    labelling.skip("Ada", shown.slot.item, "It is broken", next(CLICKS))
    assert judge(labelling, "Ada") == "pair-1"


def test_items_of_the_ledger_itself(tmp_path: Path, opened: Callable[..., Labelling], where: str) -> None:
    first = opened(2)
    mine = [*first.own_order("pair-0")]
    queue = write_queue(tmp_path, [{"id": "again", "episodes": mine, "propensity": 0.5}], queue="second")
    with Labelling(read_queue(queue), where) as labelling:
        judge(labelling, "Ada", 1)
        ((_, (row,)),) = labelling.decided()
    assert row.propensity == 0.5 and set(row.about) == set(mine)
    queue = write_queue(tmp_path, [{"id": "lost", "episodes": ["ep-none", mine[0]]}], queue="third")
    with pytest.raises(DataError, match="'ep-none', which is not in the ledger"):
        Labelling(read_queue(queue), where)


def test_a_ledger_that_is_gone_and_back(tmp_path: Path, opened: Callable[..., Labelling], where: str) -> None:
    if "://" in where:
        pytest.skip("a server that goes away is a test of its own, over HTTP")
    labelling = opened()
    judge(labelling, "Ada")
    item = labelling.shown("Ada").slot.item
    files = [path for path in tmp_path.iterdir() if path.name.startswith("ledger.db") and path.is_file()]
    for path in files:
        path.rename(path.with_name(f"away-{path.name}"))
    with pytest.raises(LedgerError, match="is gone"):
        labelling.answer("Ada", item, {"choice": 1}, "while-it-was-gone")
    for path in files:
        path.with_name(f"away-{path.name}").rename(path)
    labelling.answer("Ada", item, {"choice": 1}, "while-it-was-gone")
    with Ledger.open(where) as ledger:
        assert len(ledger.feedback(current=False)) == 2


def test_what_leaves_as_files(opened: Callable[..., Labelling]) -> None:
    labelling = opened(2, overlap=2)
    for person in ("=Ada", "Bob"):
        while (shown := labelling.shown(person)) is not None:
            better = [episode.messages[-1].content.startswith("Answer two") for episode in shown.episodes]
            labelling.answer(person, shown.slot.item, {"choice": better.index(True)}, next(CLICKS))
    assert as_csv(labelling).splitlines() == [
        "task,worker,label", "pair-0,'=Ada,1", "pair-1,'=Ada,1", "pair-0,Bob,1", "pair-1,Bob,1",
    ]  # fmt: skip
    rows = [json.loads(line) for line in as_jsonl(labelling).splitlines()]
    assert [row["source"]["name"] for row in rows] == ["=Ada", "=Ada", "Bob", "Bob"]
    agreement = results(labelling).agreement
    assert (agreement.items, agreement.pairs, agreement.agreeing, agreement.alpha) == (2, 2, 2, None)


def test_links_are_signed_and_revocable(tmp_path: Path) -> None:
    database, other = LabelDatabase(tmp_path / "labels.sqlite", "a@1"), LabelDatabase(tmp_path / "labels.sqlite", "b@1")
    links, foreign = Links(database), Links(other)
    ada = links.invite("Ada", "labeller")
    assert links.invite("Ada", "labeller") == ada
    token, session = links.token(ada), links.session(ada)
    assert links.by_token(token) == ada and links.by_session(session) == ada
    assert links.by_session(token) is None and links.by_token(session) is None  # each proves one thing
    assert foreign.by_token(token) is None
    assert links.by_token(token[:-2] + ("AA" if token[-2:] != "AA" else "BB")) is None
    assert links.by_token("é.ü") is None and links.by_token("") is None
    assert links.is_csrf(session, links.csrf(session)) and not links.is_csrf(links.session(ada), links.csrf(session))
    assert Links(database).by_session(session) == ada  # a server that starts again knows its people
    links.revoke(ada.id)
    assert links.by_token(token) is None and links.by_session(session) is None
    again = links.invite("Ada", "labeller")
    assert again.id != ada.id and links.by_token(links.token(again)) == again
    owner = links.invite("Ada", "owner")  # another role is another link
    assert links.by_token(links.token(again)) is None and owner.role == "owner"
    database.close()
    other.close()


def test_a_rate_has_a_burst_and_then_a_limit() -> None:
    limit = RateLimit(per_second=0.001, burst=3)
    assert [limit.allows("a") for _ in range(5)] == [True, True, True, False, False]
    assert limit.allows("b")


def test_alpha_by_hand(opened: Callable[..., Labelling]) -> None:
    # Items: (0, 0), (0, 1), (1, 1). n = 6, three 0 and three 1. Do: one of the items disagrees, 2 / 1 = 2;
    # De: 36 - 9 - 9 = 18. alpha = 1 - 2 * 5 / 18 = 0.4444.
    labelling = opened(3, overlap=2)
    want = {"Ada": ("one", "one", "two"), "Bob": ("one", "two", "two")}
    for person, texts in want.items():
        for text in texts:
            shown = labelling.shown(person)
            better = [f"Answer {text}" in episode.messages[-1].content for episode in shown.episodes]
            labelling.answer(person, shown.slot.item, {"choice": better.index(True)}, next(CLICKS))
    agreement = results(labelling).agreement
    assert (agreement.items, agreement.agreeing) == (3, 2)
    assert agreement.alpha == pytest.approx(1 - 10 / 18)
