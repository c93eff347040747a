"""Datasets end to end: rows in `metier train`'s own reader, a real model, public data, the card in a browser."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metier.base.config import parse
from metier.base.errors import DataError, ModelError
from metier.feedback.data.build import build, write_rows
from metier.feedback.data.card import as_html, card_of
from metier.feedback.data.declaration import DatasetSettings, Decontaminate
from metier.feedback.data.decontaminate import HeldOut
from metier.feedback.data.dedup import Reps, without_copies
from metier.feedback.data.rows import Row
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Message, Run, Source, Span, Suite, Task, Weights

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def fill(ledger: Ledger) -> None:
    """Twelve questions with two answers each, judged by three people on two criteria, and one exam."""
    ledger.add_run(Run(id="run", recipe="t", config={}, seed=0, folder="", code_version="1"))
    things = ("wood", "iron", "salt", "silk", "clay", "bone", "wax", "tin", "coal", "wool", "glass", "chalk")
    for n, thing in enumerate(things):
        asked = Message(role="user", content=f"What happens to {thing} when it lies in the rain for a long time?")
        system = Message(role="system", content="Be brief.")
        kind = ("chat", "how-to", "a kind of task with a very long name that goes on and on and on")[n % 3]
        task = Task(family="t", kind=kind, messages=(system, asked), licence=("CC-BY-4.0", "MIT", "")[n % 3])
        ledger.add_tasks([task])
        for side, text in (
            ("a", f"{thing} changes.\nIt is wet first." + " Then dry." * n),
            ("b", f"No idea about {thing}."),
        ):
            answer = Message(role="assistant", content=text)
            ledger.add_episodes(
                [
                    Episode(
                        id=f"e{n}{side}", task_id=task.id, run_id="run", stage="s",
                        weights=Weights(checkpoint=f"model-{side}"), messages=(*task.messages, answer),
                    )
                ]
            )  # fmt: skip
        for who, wrong in (("ann", 5), ("ben", 4), ("carla@example.org", 3)):
            source, at = Source(kind="person", name=who, version="1"), 1.7e9 + 400_000.0 * n

            # fmt: off
            def said(
                name: str, about: tuple[str, ...], kind: Any, value: Any, *, n: int = n, who: str = who, at: float = at,
                source: Source = source, criterion: str = "helpful", span: Span | None = None,
            ) -> Feedback:
                return Feedback(
                    id=f"{name}-{n}-{who}", about=about, criterion=criterion, kind=kind, value=value,
                    source=source, created_at=at, run_id="run", span=span,
                )

            # fmt: on

            ledger.add_feedback(
                [
                    said("p", (f"e{n}a", f"e{n}b"), "preference", int(n % wrong == 0)),
                    said("s", (f"e{n}a",), "score", float(n % wrong != 0), criterion="right"),
                    said("m", (f"e{n}a",), "label", "right", criterion="steps", span=Span(turn=2, start=0, end=4)),
                    said("t", (f"e{n}a",), "label", "wrong", criterion="steps", span=Span(turn=2, start=14, end=18)),
                ]
            )
        shown = [{"role": "assistant", "content": f"Rain makes {thing} wet."}]
        ledger.add_feedback([said("d", (f"e{n}b",), "demonstration", shown, criterion="edit")])
    exam = Task(
        family="t", kind="chat", split="heldout",
        messages=(Message(role="user", content="What happens to salt when it lies in the rain for a long time?"),),
    )  # fmt: skip
    ledger.add_tasks([exam])
    ledger.add_suite(Suite(name="exam", version="1", task_ids=(exam.id,)))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with Ledger.open(tmp_path_factory.mktemp("data") / "ledger.sqlite") as opened:
        fill(opened)
        yield opened


@pytest.mark.parametrize(
    ("view", "kind", "n"),
    [
        ({"kind": "pairs", "margin": 1.0}, "pair", 11),
        ({"kind": "demonstrations"}, "tokens", 11),
        ({"kind": "unpaired", "where": {"criteria": ["right"]}}, "judged", 11),
        ({"kind": "steps", "where": {"criteria": ["steps"]}}, "steps", 11),
    ],
)
def test_rows_of_every_kind_become_examples(
    ledger: Ledger, tmp_path: Path, tiny_model: Path, view: dict[str, Any], kind: Any, n: int
) -> None:
    from metier.models.hub import load_tokenizer
    from metier.models.renderer import get_renderer
    from metier.train.data import Encoder, read_rows

    made = build(ledger, parse(DatasetSettings, {"name": "d", "views": [view]}))
    assert len(made.rows) == n and [one.suite for one in made.contaminated] == ["exam@1"]
    write_rows(tmp_path / "rows.jsonl", made.rows)
    tokenizer = load_tokenizer(str(tiny_model))
    encoder = Encoder(tokenizer, get_renderer(tokenizer, "auto"))
    units = [encoder.unit(row, kind, number) for number, row in enumerate(read_rows(tmp_path / "rows.jsonl"), 1)]
    assert len(units) == n and all(example.labels for unit in units for example in unit)


def test_the_planted_questions_of_gsm8k_are_found_and_its_training_rows_stay(shared_data: Path) -> None:
    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (shared_data / "gsm8k" / name).read_text().splitlines()]

    exam = HeldOut(Decontaminate())
    asked = [row["question"] for row in rows("test.jsonl")[:400]]
    for text in asked:
        exam.add(Task(family="t", kind="k", messages=(Message(role="user", content=text),)), "gsm8k@1")
    planted = [Row(data={"prompt": f"Please help. {text.upper()} Thanks!", "completion": "x"}) for text in asked]
    assert all(exam.find(row) is not None for row in planted)
    clean = [Row(data={"prompt": row["question"], "completion": row["answer"]}) for row in rows("train.jsonl")[:1500]]
    assert sum(exam.find(row) is not None for row in clean) <= 3
    kept, gone = without_copies(clean, Reps())
    assert len(gone) <= 5 and len(kept) + len(gone) == 1500


@pytest.mark.slow
def test_the_default_model_is_refused_for_meaning_unless_insisted_on(ledger: Ledger) -> None:
    declared = {"name": "d", "views": [{"kind": "demonstrations"}], "dedup": {"semantic": "calibrated"}}
    try:
        with pytest.raises(DataError, match="near misses for the same"):
            build(ledger, parse(DatasetSettings, declared))
    except ModelError as error:
        pytest.skip(str(error))
    declared["dedup"] = {"semantic": "calibrated", "near_misses": 1.0}
    made = build(ledger, parse(DatasetSettings, declared))
    told = made.told["calibration"]
    assert told["recall"] > 0.4 and told["false_share"] < 0.002 and told["near_misses"] > 0.25


@pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs a browser: apt-get install chromium, and pip install playwright",
)
def test_the_card_in_a_browser_wide_and_narrow(ledger: Ledger, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    made = build(ledger, parse(DatasetSettings, {"name": "rain", "views": [{"kind": "pairs"}]}))
    path = tmp_path / "card.html"
    path.write_text(as_html(card_of(ledger, made.manifest.id)), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width, scheme in ((1280, "light"), (390, "light"), (390, "dark")):
            complaints: list[str] = []
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            page.on("console", lambda message, told=complaints: told.append(message.text))
            page.goto(path.as_uri())
            assert complaints == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            pictures = page.locator("svg[role=img]")
            assert pictures.count() >= 8 and all(pictures.nth(n).get_attribute("aria-label") for n in range(8))
            assert page.evaluate(_TEXT_OVER_TEXT) == []
            page.close()
        browser.close()


# Texts of a picture that lie on one another.
_TEXT_OVER_TEXT = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, x], i) => boxes.slice(i + 1).filter(([b, y]) =>
    x.left < y.right - 1 && y.left < x.right - 1 && x.top < y.bottom - 3 && y.top < x.bottom - 3).map(([b]) => [a, b]));
})"""
