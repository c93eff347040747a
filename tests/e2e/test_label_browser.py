"""The labelling page in real Chromium: two people at once, a server that dies, hostile answers, keys and screens."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labelled import CHROMIUM, CHROMIUM_ARGUMENTS, Desk, free_port, pairs, write_queue
from metier.records.ledger import Ledger

SIZES = ((1280, 800), (390, 844))
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "</li></ol></article><svg onload=window.hacked=3>",
    "</textarea><iframe srcdoc='<script>parent.hacked = 4</script>'></iframe>",
    "'\"><a href='javascript:window.hacked=5' autofocus onfocus=window.hacked=6>x</a>",
    "{{ 7 * 7 }} {% raw %} \u202egnirts \x00\x1b[2J <!-- ",
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None or importlib.util.find_spec("uvicorn") is None,
    reason="needs a browser: apt-get install chromium, and pip install 'metier[dev]'",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


class Opened:
    """A page of one person, and what it complained about."""

    def __init__(self, browser: Any, link: str, size: tuple[int, int] = SIZES[0], scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(link)
        self.page.wait_for_selector("#item .bar")

    @property
    def item(self) -> str:
        return str(self.page.locator("#item").get_attribute("data-item"))

    def press(self, *keys: str) -> None:
        """Press keys that decide, and wait for what follows."""
        before = self.page.locator("#count").inner_text(), self.item
        for key in keys:
            self.page.keyboard.press(key)
        script = "([count, item]) => document.getElementById('count').innerText !== count"
        script += " || document.getElementById('item').dataset.item !== item"
        self.page.wait_for_function(script, arg=before)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def one(text: Any = "An answer.", number: int = 3) -> list[dict[str, Any]]:
    """Items of one response each."""
    return [
        {"id": f"one-{n}", "messages": [{"role": "user", "content": f"Question {n}?"}], "responses": [text]}
        for n in range(number)
    ]


# --- two people at once, and a server that dies ----------------------------------------------


def work(link: str, choices: list[str], acknowledged: list[dict[str, Any]], troubles: list[str]) -> None:
    """A person with a browser of their own who judges until nothing is left."""
    from playwright.sync_api import sync_playwright

    def heard(answer: Any) -> None:
        if answer.url.endswith("/answer") and answer.status == 200:
            acknowledged.append(json.loads(answer.request.post_data))

    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
            page = chromium.new_page()
            page.on("response", heard)
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.goto(link)
            for turn in range(400):
                page.wait_for_selector("#item .bar")
                item = page.locator("#item").get_attribute("data-item")
                if not item:
                    break
                page.keyboard.press(choices[turn % len(choices)])
                page.wait_for_function(
                    "item => document.getElementById('item').dataset.item !== item", arg=item, timeout=60_000
                )
            chromium.close()
    except Exception as error:
        troubles.append(repr(error))


def test_two_people_at_once_while_the_server_is_killed(tmp_path: Path) -> None:
    number = 100
    queue, ledger, port = write_queue(tmp_path, pairs(number)), tmp_path / "ledger.sqlite", free_port()
    arguments = ("--invite", "Ada", "--invite", "Bob")
    desk = Desk(queue, ledger, *arguments, port=port)
    people = {"Ada": ["1", "ArrowRight", "0"], "Bob": ["2", "ArrowLeft"]}
    acknowledged: dict[str, list[dict[str, Any]]] = {name: [] for name in people}
    troubles: list[str] = []
    threads = [
        threading.Thread(target=work, args=(desk.links[name], keys, acknowledged[name], troubles))
        for name, keys in people.items()
    ]
    try:
        for thread in threads:
            thread.start()
        for share in (0.25, 0.6):  # killed twice, each time in the midst of it
            deadline = time.monotonic() + 120
            while sum(map(len, acknowledged.values())) < share * number and time.monotonic() < deadline:
                time.sleep(0.002)
            assert sum(map(len, acknowledged.values())) < number, "it was over before the server could be killed"
            desk.kill()
            desk = Desk(queue, ledger, *arguments, port=port)
        for thread in threads:
            thread.join(180)
        assert not any(thread.is_alive() for thread in threads) and troubles == []
    finally:
        desk.kill()
    with Ledger.open(ledger) as records:
        rows = records.feedback(current=False)
    said = {(row.source.name, row.evidence["item"]): row for row in rows}
    assert len(rows) == len(said) == number
    assert Counter(row.evidence["item"] for row in rows) == {f"pair-{n}": 1 for n in range(number)}
    for name, clicks in acknowledged.items():
        assert clicks, f"{name} judged nothing"
        for click in clicks:
            assert said[name, click["item"]].value == click["answer"]["choice"]
    assert sum(map(len, acknowledged.values())) == number


def test_a_server_that_is_away_is_told_and_the_answer_arrives_later(browser: Any, tmp_path: Path) -> None:
    queue, ledger, port = write_queue(tmp_path, pairs(3)), tmp_path / "ledger.sqlite", free_port()
    desk = Desk(queue, ledger, port=port)
    with Opened(browser, desk.links["owner"]) as opened:
        page, item = opened.page, opened.item
        desk.kill()
        page.keyboard.press("1")
        page.wait_for_function("() => !document.getElementById('banner').hidden")
        assert "Not saved yet: the server does not answer" in page.locator("#banner").inner_text()
        page.keyboard.press("2")  # one decision at a time
        desk = Desk(queue, ledger, port=port)
        page.wait_for_function("item => document.getElementById('item').dataset.item !== item", arg=item)
        assert page.locator("#banner").is_hidden()
    desk.kill()
    with Ledger.open(ledger) as records:
        assert [row.value for row in records.feedback(current=False)] == [0]


def test_an_answer_whose_acknowledgement_is_lost_is_kept_once(browser: Any, tmp_path: Path) -> None:
    lost: list[int] = []

    def lose(route: Any) -> None:
        if len(lost) >= 2:
            route.continue_()
            return
        lost.append(route.fetch().status)  # the server keeps it …
        route.abort()  # … and the page is not told

    queue = write_queue(tmp_path, pairs(3))
    with Desk(queue, tmp_path / "ledger.sqlite") as desk, Opened(browser, desk.links["owner"]) as opened:
        opened.page.route("**/answer", lose)
        opened.press("2")
        assert lost == [200, 200]
    with Ledger.open(tmp_path / "ledger.sqlite") as records:
        assert [row.value for row in records.feedback(current=False)] == [1]


def test_an_answer_outlives_the_page_that_gave_it(browser: Any, tmp_path: Path) -> None:
    queue, ledger, port = write_queue(tmp_path, pairs(3)), tmp_path / "ledger.sqlite", free_port()
    desk = Desk(queue, ledger, port=port)
    with Opened(browser, desk.links["owner"]) as opened:
        page, item = opened.page, opened.item
        desk.kill()
        page.keyboard.press("2")
        page.wait_for_function("() => !document.getElementById('banner').hidden")
        page.close()
        desk = Desk(queue, ledger, port=port)
        again = opened.context.new_page()
        again.goto(desk.url)
        again.wait_for_function("item => (document.getElementById('item').dataset.item || item) !== item", arg=item)
    desk.kill()
    with Ledger.open(ledger) as records:
        assert [row.value for row in records.feedback(current=False)] == [1]


def test_the_ledger_gone_and_back(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    queue = write_queue(tmp_path, pairs(3))
    with Desk(queue, folder / "ledger.sqlite") as desk, Opened(browser, desk.links["owner"]) as opened:
        page, item = opened.page, opened.item
        folder.rename(tmp_path / "away")
        page.keyboard.press("1")
        page.wait_for_function("() => !document.getElementById('banner').hidden")
        assert "gone" in page.locator("#banner").inner_text()
        (tmp_path / "away").rename(folder)
        page.wait_for_function("item => document.getElementById('item').dataset.item !== item", arg=item)
    with Ledger.open(folder / "ledger.sqlite") as records:
        assert len(records.feedback(current=False)) == 1


# --- what is shown ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pair", "edit", pytest.param("marks", marks=pytest.mark.slow)])
def test_nothing_that_a_model_wrote_runs(browser: Any, tmp_path: Path, kind: str) -> None:
    call = {"id": "c", "function": {"name": HOSTILE[0], "arguments": json.dumps({HOSTILE[1]: HOSTILE[2]})}}
    tool = {"role": "tool", "tool_call_id": "c", "name": HOSTILE[4], "content": json.dumps({HOSTILE[0]: HOSTILE[1]})}
    trace: list[Any] = [
        {"role": "assistant", "tool_calls": [call]},
        tool,
        {"role": "assistant", "content": " ".join(HOSTILE)},
    ]
    items = [
        {
            "id": HOSTILE[0],
            "messages": [{"role": "system", "content": text}, {"role": "user", "content": text}],
            "responses": [trace, text] if kind == "pair" else [trace],
        }
        for text in [" ".join(HOSTILE)]
    ]
    labels = {"labels": [HOSTILE[4]]} if kind == "marks" else {}
    question = {"kind": kind, "criterion": HOSTILE[1], "ask": HOSTILE[0], **labels}
    queue = write_queue(tmp_path, items, question=question, instructions="\n\n".join(HOSTILE), queue="<b>q</b>")
    with (
        Desk(queue, tmp_path / "ledger.sqlite", "--owner", "<i>O</i>") as desk,
        Opened(browser, desk.links["<i>O</i>"]) as opened,
    ):
        page = opened.page
        text = page.locator("body").inner_text()
        assert "window.hacked = 1" in text and "{{ 7 * 7 }}" in text
        assert page.locator("#item script, #item img, #item svg, #item iframe, #item a[href^=javascript]").count() == 0
        page.keyboard.press("s")
        page.keyboard.press("1")  # skipped, with this item's hostile id
        page.wait_for_function("() => document.getElementById('item').dataset.item === ''")
        page.goto(desk.url + "/owner")
        assert "<i>O</i>" in page.locator("#panel").inner_text()
        assert page.evaluate("window.hacked") is None
        # What got past the escaping would not run either: only the page's own files may.
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 8\">')")
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { text: 'window.hacked = 9' }))"
        )
        page.wait_for_timeout(100)
        assert page.evaluate("window.hacked") is None


def test_a_response_of_10_mb_is_cut_and_can_be_had_whole(browser: Any, tmp_path: Path) -> None:
    huge = "0123456789" * 1_000_000
    items = [{**item, "responses": [huge, "short"]} for item in pairs(1)]
    with (
        Desk(write_queue(tmp_path, items), tmp_path / "ledger.sqlite") as desk,
        Opened(browser, desk.links["owner"]) as opened,
    ):
        page = opened.page
        assert len(page.content()) < 200_000
        link = page.get_by_role("link", name="Download all of it")
        assert "9,940,000 more characters" in page.locator(".cut").inner_text()
        with page.expect_download() as download:
            link.click()
        path = download.value.path()
        assert path.stat().st_size == 10_000_000 and path.read_text() == huge
        opened.press("1")


@pytest.mark.slow
def test_an_edit_of_10_mb_is_not_offered(browser: Any, tmp_path: Path) -> None:
    queue = write_queue(tmp_path, one("x" * 10_000_000, 1), question={"kind": "edit", "criterion": "c"})
    with Desk(queue, tmp_path / "ledger.sqlite") as desk, Opened(browser, desk.links["owner"]) as opened:
        assert "too long to be edited here" in opened.page.locator("#item").inner_text()
        assert opened.page.locator("#text, #finish").count() == 0
        opened.press("s", "3")


# --- every kind of question, by keys alone ---------------------------------------------------


def test_pairs_by_keys_with_undo_skip_and_a_note(browser: Any, tmp_path: Path) -> None:
    with (
        Desk(write_queue(tmp_path, pairs(5)), tmp_path / "ledger.sqlite") as desk,
        Opened(browser, desk.links["owner"]) as opened,
    ):
        page = opened.page
        opened.press("1")
        second = opened.item
        opened.press("0")
        opened.press("u")
        assert opened.item == second and "You took this one back" in page.locator("#item").inner_text()
        assert page.locator("[data-answer].had").inner_text().endswith("Tie")
        page.keyboard.press("n")
        page.keyboard.type("2 is wrong about 1")
        page.keyboard.press("Escape")
        opened.press("ArrowRight")
        opened.press("s", "2")
        page.keyboard.press("s")
        page.locator("#why").fill("not my field")
        opened.press("Enter")
        assert page.locator("#count").inner_text() == "2 done, 1 left"
        assert page.evaluate("document.activeElement.id") == "ask"
        assert opened.complaints == []
    with Ledger.open(tmp_path / "ledger.sqlite") as records:
        rows = records.feedback()
    assert [row.value for row in rows] == [0, 1, None, None]
    assert rows[1].reason == "2 is wrong about 1" and rows[1].cost.seconds > 0
    assert [row.abstention.why for row in rows[2:] if row.abstention] == [
        "It needs knowledge that I lack",
        "not my field",
    ]


def test_ranking_rating_and_labels_by_keys(browser: Any, tmp_path: Path) -> None:
    three = [{"id": "r", "messages": [{"role": "user", "content": "?"}], "responses": ["x", "y", "z"]}]
    questions: list[tuple[dict[str, Any], list[dict[str, Any]], tuple[str, ...], Any]] = [
        ({"kind": "ranking", "criterion": "c"}, three, ("3", "2", "Backspace", "1", "Enter"), [2, 0, 1]),
        ({"kind": "rating", "criterion": "c", "scale": [1, 7]}, one(), ("6",), 6),
        ({"kind": "labels", "criterion": "c", "labels": ["x", "y"]}, one(), ("2",), "y"),
        (
            {"kind": "labels", "criterion": "c", "labels": ["x", "y", "z"], "multiple": True},
            one(), ("3", "2", "1", "2", "Enter"), "x, z",
        ),
    ]  # fmt: skip
    for number, (question, items, keys, value) in enumerate(questions):
        queue = write_queue(tmp_path, items, question=question, queue=f"desk-{number}")
        with Desk(queue, tmp_path / "ledger.sqlite") as desk, Opened(browser, desk.links["owner"]) as opened:
            opened.press(*keys)
            assert opened.complaints == []
        with Ledger.open(tmp_path / "ledger.sqlite") as records:
            assert records.feedback()[-1].value == value


def test_an_edit_is_kept_while_it_is_written_and_becomes_a_demonstration(browser: Any, tmp_path: Path) -> None:
    queue = write_queue(tmp_path, one("Its fine.", 2), question={"kind": "edit", "criterion": "ideal"})
    with Desk(queue, tmp_path / "ledger.sqlite") as desk:
        with Opened(browser, desk.links["owner"]) as opened:
            page = opened.page
            page.locator("#text").fill("It is fine, <b>truly</b>.")
            page.reload()  # at once: kept in the browser
            page.wait_for_selector("#text")
            assert page.locator("#text").input_value() == "It is fine, <b>truly</b>."
            with page.expect_response(lambda answer: answer.url.endswith("/draft")):
                page.locator("#text").press("End")
                page.keyboard.type(" Yes.")
        with Opened(browser, desk.links["owner"]) as opened:  # another browser: kept on the server
            page = opened.page
            assert page.locator("#text").input_value() == "It is fine, <b>truly</b>. Yes."
            page.locator("#text").focus()
            opened.press("Control+Enter")
            assert page.locator("#text").input_value() == "Its fine."  # the next item, as it is
            page.locator("#text").focus()
            opened.press("Control+Enter")
            assert opened.complaints == []
    with Ledger.open(tmp_path / "ledger.sqlite") as records:
        edited, kept = records.feedback()
    assert edited.kind == "demonstration"
    assert edited.value == [{"role": "assistant", "content": "It is fine, <b>truly</b>. Yes."}]
    assert (edited.evidence["changed"], kept.evidence["changed"]) == (True, False)


def test_marks_on_turns_and_on_words(browser: Any, tmp_path: Path) -> None:
    text = "Naïve 🙂 answer.\r\nWith two lines."
    answer = [
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": text},
    ]
    question = {"kind": "marks", "criterion": "faults", "labels": ["wrong", "rude"], "part": "span"}
    queue = write_queue(tmp_path, one(answer, 2), question=question)
    with Desk(queue, tmp_path / "ledger.sqlite") as desk, Opened(browser, desk.links["owner"]) as opened:
        page = opened.page
        page.keyboard.press("k")
        page.keyboard.press("k")
        page.keyboard.press("2")  # the first turn is rude
        select = """words => {
          const text = [...document.querySelectorAll('[data-text]')].at(-1).firstChild, range = new Range();
          const from = text.data.indexOf(words);
          range.setStart(text, from); range.setEnd(text, from + words.length);
          getSelection().removeAllRanges(); getSelection().addRange(range);
        }"""
        page.evaluate(select, "two")
        page.click("[data-label=wrong]")
        page.evaluate(select, "🙂")
        page.keyboard.press("1")
        assert page.locator(".chip").all_inner_texts() == ["rude ×", "wrong: “two” ×", "wrong: “🙂” ×"]
        opened.press("Enter")
        opened.press("Enter")  # nothing to mark in the second
        assert opened.complaints == []
    with Ledger.open(tmp_path / "ledger.sqlite") as records:
        rows = records.feedback()
        content = records.episode(rows[0].about[0]).messages[3].content
    marks = [(row.value, row.span and (row.span.turn, row.span.start, row.span.end)) for row in rows]
    assert marks[0] == ("rude", (1, None, None)) and marks[3] == ("none", None)
    assert [content[row.span.start : row.span.end] for row in rows[1:3] if row.span] == ["🙂", "two"]


# --- every page, on every screen -------------------------------------------------------------

ALL = {
    "pair": ({"kind": "pair", "criterion": "c"}, pairs(2)),
    "ranking": (
        {"kind": "ranking", "criterion": "c"},
        [{"id": "r", "messages": [{"role": "user", "content": "?"}], "responses": ["one " * 60, "two", "three"]}],
    ),
    "rating": ({"kind": "rating", "criterion": "c", "scale": [0, 9]}, one()),
    "labels": ({"kind": "labels", "criterion": "c", "labels": ["x", "a longer label"], "multiple": True}, one()),
    "edit": ({"kind": "edit", "criterion": "c"}, one("word " * 400)),
    "marks": ({"kind": "marks", "criterion": "c", "labels": ["wrong", "rude"], "part": "span"}, one("unbroken" * 60)),
}


def serious(page: Any) -> list[str]:
    """What axe finds that is serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 10  # it did look
    grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in grave]


@pytest.mark.parametrize(
    "schemes", [("light", "dark"), pytest.param(("dark", "light"), marks=pytest.mark.slow)], ids=lambda pair: pair[0]
)
@pytest.mark.parametrize(
    "kind", [kind if kind in ("pair", "marks") else pytest.param(kind, marks=pytest.mark.slow) for kind in ALL]
)
def test_pages_fit_and_are_accessible(browser: Any, tmp_path: Path, kind: str, schemes: tuple[str, str]) -> None:
    question, items = ALL[kind]
    guide = "Be fair.\n\n- Length is no merit.\n- Be brief."
    with Desk(write_queue(tmp_path, items, question=question, instructions=guide), tmp_path / "ledger.sqlite") as desk:
        for size, scheme in zip(SIZES, schemes, strict=True):
            with Opened(browser, desk.links["owner"], size, scheme) as opened:
                page = opened.page
                assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
                assert page.locator("h1").count() == 1
                bar = page.locator(".bar").bounding_box()
                assert bar["y"] + bar["height"] <= size[1] + 1  # what decides is always on the screen
                paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (sum(int(part) for part in paper.strip("rgb()").split(",")) > 3 * 128) == (scheme == "light")
                assert serious(page) == []
                page.locator("#skip").click()
                assert page.locator("#skipping").is_visible()
                if kind == "pair":
                    assert serious(page) == []
                page.keyboard.press("Escape")
                assert page.evaluate("document.activeElement.id") == "skip"
                assert opened.complaints == []


def test_the_owner_sees_and_invites(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text('{"item": "pair-1", "answer": 0}\n')
    queue = write_queue(tmp_path, pairs(4), overlap=2, gold="gold.jsonl")
    with Desk(queue, tmp_path / "ledger.sqlite", "--people", "1") as desk:
        for name in ("person-1", "owner"):
            with Opened(browser, desk.links[name]) as opened:
                for _ in range(4):
                    opened.press("1")
                assert "Nothing is left for you" in opened.page.locator("#item").inner_text()
                assert serious(opened.page) == []
        for size, scheme in zip(SIZES, ("light", "dark"), strict=True):
            with Opened(browser, desk.links["owner"], size, scheme) as opened:
                page = opened.page
                page.goto(desk.url + "/owner")
                text = page.locator("#panel").inner_text()
                assert "6 of 6" in text and "First shown chosen\n100 %" in text and "3 items judged twice" in text
                assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
                assert serious(page) == []
                page.fill("#name", f"Zoë {size[0]}")
                page.click("#invite button")
                page.locator("#panel th", has_text=f"Zoë {size[0]}").wait_for()
                page.on("dialog", lambda dialog: dialog.accept())
                page.get_by_role("button", name=f"Revoke the link of Zoë {size[0]}").click()
                page.locator("#panel th", has_text=f"Zoë {size[0]}").wait_for(state="detached")
                assert opened.complaints == []
                with page.expect_download() as download:
                    page.click("a[href$='labels.csv']")
                assert len(Path(download.value.path()).read_text().splitlines()) == 9


def test_a_link_that_is_revoked_closes_the_page(browser: Any, tmp_path: Path) -> None:
    queue, arguments = write_queue(tmp_path, pairs(3)), ("--people", "1")
    with Desk(queue, tmp_path / "ledger.sqlite", *arguments) as desk, Opened(browser, desk.links["person-1"]) as opened:
        page = opened.page
        owner = desk.client("owner")
        person = owner.ask("/owner/panel")[2].split('data-revoke="')[1].split('"')[0]
        assert owner.ask("/owner/revoke", {"id": person})[0] == 200
        page.keyboard.press("1")
        page.wait_for_function("() => !document.getElementById('banner').hidden")
        assert "ask whoever invited you" in page.locator("#banner").inner_text()
        page.goto(desk.links["person-1"])
        assert page.locator("h1").inner_text() == "This page is not open to you."
        assert serious(page) == []
    with Ledger.open(tmp_path / "ledger.sqlite") as records:
        assert records.feedback() == []
