"""The report in a real browser, wide and narrow, light and dark, from file://."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labelled import CHROMIUM, CHROMIUM_ARGUMENTS
from made_run import fill, profile_again, train
from metier.cli.app import app
from metier.evaluate.gate import GateSettings, Rule, Side, decide
from metier.records.ledger import Ledger
from metier.records.types import GateDecision, Stage
from metier.report import findings
from metier.report.collect import collect
from metier.report.compare import compare_runs
from metier.report.page import render, render_comparison, write

HARD = ("serious", "critical")
SIZES = ((1280, 800), (390, 844))

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs a browser: apt-get install chromium, and pip install playwright",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        run = fill(ledger, folder)
        html = render(collect(ledger, run.id, folder))
    assert len(html.encode()) < 5_000_000
    write(folder / "report.html", html)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def full(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pages with all that a report can have: of one run, and of two side by side."""
    folder = tmp_path_factory.mktemp("full")
    where = folder / "ledger.sqlite"
    arguments = ["profile", str(tiny_model), "-t", "refusal", "-t", "calibration", "--items", "6", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--dtype", "float32", "--ledger", str(where)])
    assert done.exit_code == 0, done.output
    with Ledger.open(where) as ledger:
        for name in ("base", "grpo", "grpoworse"):
            profile_again(ledger, json.loads(done.stdout)["profile"]["run"], f"checkpoint-{name}")
        run = fill(ledger, folder / "one", unscored=0)
        train(ledger, run)
        fill(ledger, folder / "worse", name="worse", chance={"grpo": 0.3})
        settings = GateSettings(metrics={"success": Rule(margin=0.05), "tokens": Rule(direction="lower", margin=1)})
        sides = [Side(by_item={str(n): [float(n % k > 0)] for n in range(90)}) for k in (5, 4)]
        decided = decide(settings, {"success": (sides[0], sides[1]), "tokens": "no such field " + "x" * 300})
        results = {one.name: {**asdict(one), "caveats": list(one.caveats)} for one in decided.metrics}
        ledger.add_gate(
            GateDecision(
                id="gate-1", checkpoint="checkpoint-grpo", baseline="checkpoint-base", verdict=decided.verdict,
                metrics={"settings": settings.model_dump(mode="json"), "results": results}, created_at=1.8e9,
            )
        )  # fmt: skip
        pairs = [{"cluster": str(n), "score": float(n % 4 > 0), "p": (n % 50) / 50, "y": n % 2} for n in range(200)]
        (folder / "one" / "stages").mkdir()
        (folder / "one" / "stages" / "measure.json").write_text(json.dumps({"pairs": pairs}))
        measure = Stage(name="measure", kind="measure", inputs=("reward",))
        models = findings.reward_models(replace(run, stages=(measure,)), folder / "one")
        data = replace(collect(ledger, run.id, folder / "one"), reward_models=models)
        pages = {"one": render(data), "two": render_comparison(compare_runs(ledger, [run.id, "run-worse"]))}
    for name, html in pages.items():
        write(folder / f"{name}.html", html)
    return {name: (folder / f"{name}.html").as_uri() for name in pages}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


class Opened:
    """A page that remembers what it complained about and what it asked for."""

    def __init__(self, browser: Any, address: str, size: tuple[int, int], scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_is_quiet(browser: Any, address: str, size: tuple[int, int], scheme: str) -> None:
    with Opened(browser, address, size, scheme) as opened:
        page = opened.page
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= size[0]
        assert opened.complaints == []
        assert opened.asked == [address]
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(int(part) for part in paper.strip("rgb()").split(",")) > 3 * 128
        assert light == (scheme == "light")


@pytest.mark.parametrize("size", SIZES)
def test_the_first_screen_answers(browser: Any, address: str, size: tuple[int, int]) -> None:
    with Opened(browser, address, size) as opened:
        page = opened.page
        box = page.locator("#verdict").bounding_box()
        assert box["y"] + box["height"] < size[1] * 0.5
        text = page.locator("#verdict").inner_text()
        assert "Heldout success rose from" in text and "interval" in text and "paired" in text
        assert page.locator(".first .dots").first.bounding_box()["y"] < size[1]
        assert page.locator("h1").count() == 1


def test_text_has_contrast(browser: Any, address: str) -> None:
    script = """() => {
      const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const paper = light(parse(getComputedStyle(document.body).backgroundColor));
      return ['.lede', '.fine', '.up', '.right b', '.wrong b', '.tags', 'h1', '.ci'].map((selector) => {
        const ink = light(parse(getComputedStyle(document.querySelector(selector)).color));
        const [high, low] = ink > paper ? [ink, paper] : [paper, ink];
        return [selector, (high + .05) / (low + .05)];
      });
    }"""
    for scheme in ("light", "dark"):
        with Opened(browser, address, SIZES[0], scheme) as opened:
            for selector, ratio in opened.page.evaluate(script):
                assert ratio >= 4.5, (scheme, selector, ratio)


def test_filters_and_open_all(browser: Any, address: str) -> None:
    with Opened(browser, address, SIZES[0]) as opened:
        page = opened.page
        cases = page.locator(".case:visible")
        assert cases.count() == 20
        assert page.locator("#shown").inner_text() == "20 of 160 shown"
        page.select_option("select[name=kind]", "decline")
        fit = page.locator(".case[data-kind=decline]").count()
        assert page.locator("#shown").inner_text() == f"{min(fit, 20)} of {fit} shown"
        assert set(cases.evaluate_all("rows => rows.map((row) => row.dataset.kind)")) == {"decline"}
        page.select_option("select[name=path]", "gained")
        assert set(cases.evaluate_all("rows => rows.map((row) => row.dataset.path)")) <= {"gained"}
        page.select_option("select[name=kind]", "")
        page.select_option("select[name=path]", "")
        page.click("#open-all")
        assert page.locator(".case[open]").count() == 20
        assert page.locator("#open-all").inner_text() == "Close all"
        assert page.locator(".case article:visible").count() == 60
        page.click("#open-all")
        assert page.locator(".case[open]").count() == 0
        page.select_option("select[name=split]", "unseen_desk")
        page.select_option("select[name=kind]", "lookup")
        if cases.count() == 0:
            assert page.locator("#none").is_visible()
        assert opened.complaints == []


def test_more_cases_come_by_twenties_with_the_keyboard(browser: Any, address: str) -> None:
    with Opened(browser, address, SIZES[1]) as opened:
        page = opened.page
        page.locator("#more").focus()
        page.keyboard.press("Enter")
        assert page.locator(".case:visible").count() == 40
        assert page.evaluate("document.activeElement.querySelector('.number').textContent") == "21"
        for _ in range(6):
            page.locator("#more").press("Enter")
        assert page.locator(".case:visible").count() == 160
        assert not page.locator("#more").is_visible()


def test_a_count_of_what_changed_shows_its_tasks(browser: Any, address: str) -> None:
    with Opened(browser, address, SIZES[0]) as opened:
        page = opened.page
        cases = page.locator(".case:visible")
        link = page.locator(".flips a[data-path=gained][data-split=unseen_tool]")
        count = int(link.inner_text().split()[0])
        link.press("Enter")
        assert page.locator("#shown").inner_text() == f"{min(20, count)} of {count} shown"
        assert set(cases.evaluate_all("rows => rows.map((r) => r.dataset.split + r.dataset.path)")) == {
            "unseen_toolgained"
        }
        # between the last two models, in either direction
        page.select_option("select[name=split]", "")
        page.select_option("select[name=from]", "1")
        page.select_option("select[name=path]", "changed")
        found = cases.evaluate_all("rows => rows.map((r) => r.dataset.outcomes.slice(1))")
        assert found and set(found) <= {"wr", "rw"}
        page.select_option("select[name=path]", "unscored")
        assert all("u" in pair for pair in cases.evaluate_all("rows => rows.map((r) => r.dataset.outcomes.slice(1))"))
        assert opened.complaints == []


def test_a_case_opens_with_the_keyboard(browser: Any, address: str) -> None:
    with Opened(browser, address, SIZES[1]) as opened:
        page = opened.page
        page.locator(".case > summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator(".case").first.get_attribute("open") is not None


def test_injected_script_is_inert(browser: Any, address: str) -> None:
    with Opened(browser, address, SIZES[0]) as opened:
        page = opened.page
        page.click("#open-all")
        assert "window.hacked" in page.locator("#cases ~ .cases").inner_text()
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img, main script").count() == 0
        # Even markup that got past the escaping would not run: the policy admits one script only.
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 3\">')")
        element = "Object.assign(document.createElement('script'), { textContent: 'window.hacked = 4' })"
        page.evaluate(f"document.body.append({element})")
        assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_all_that_a_page_can_have_fits_and_can_be_used(
    browser: Any, full: dict[str, str], name: str, size: tuple[int, int], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    sections = {
        "one": ("transfer-1", "reward-models", "calibration", "profile", "gate-1", "cases"),
        "two": ("measured", "cost", "profile-1", "runs"),
    }
    with Opened(browser, full[name], size, scheme) as opened:
        page = opened.page
        page.evaluate("document.querySelectorAll('section details:not(.case)').forEach((one) => { one.open = true; })")
        page.locator(".case > summary").first.press("Enter") if name == "one" else None
        assert [s for s in sections[name] if not page.locator(f"section[aria-labelledby={s}]").is_visible()] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert opened.complaints == [] and opened.asked == [full[name]]
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in HARD] == []


def test_prints_without_controls(browser: Any, address: str) -> None:
    with Opened(browser, address, SIZES[0]) as opened:
        opened.page.emulate_media(media="print")
        assert not opened.page.locator("#filters").is_visible()
        assert opened.page.locator("#verdict").is_visible()
