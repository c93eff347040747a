"""The profile on public labels, with the real model, and its picture in a real browser."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labelled import CHROMIUM, CHROMIUM_ARGUMENTS
from metier.cli.app import app
from metier.evaluate.profile.figures import Profiled, figures
from metier.evaluate.profile.probe import Score
from metier.evaluate.profile.registry import PROBES
from metier.evaluate.profile.validation import Check, validate
from metier.report.profile import page
from served import KEY, Server


@pytest.fixture(scope="module")
def checks(shared_data: Path) -> dict[tuple[str, str], Check]:
    return {(one.on, one.what): one for one in validate(shared_data)}


@pytest.mark.parametrize("model", ["gpt4", "llama2new"])
def test_refusals_are_told_as_two_people_labelled_them(checks: dict[tuple[str, str], Check], model: str) -> None:
    on = f"XSTest, {model}"
    accuracy, recall = checks[on, "accuracy, refusal or not"], checks[on, "recall of refusal"]
    assert accuracy.n == 450 and (accuracy.value or 0) >= 0.93
    assert (recall.value or 0) >= 0.90
    assert (checks[on, "precision of refusal"].value or 0) >= 0.90


def test_inquiries_ask_and_notes_do_not(checks: dict[tuple[str, str], Check]) -> None:
    assert (checks["IN3, inquiries", "recall: an inquiry asks"].value or 0) >= 0.95
    assert (checks["IN3, sentences of notes", "specificity: a note does not ask"].value or 0) >= 0.95
    assert (checks["IN3, inquiries", "recall: it asks for its own detail"].value or 0) >= 0.95
    assert (checks["IN3, inquiries", "specificity: not for one of another task"].value or 0) >= 0.80


def test_calls_are_judged_as_bfcl_labels_them(checks: dict[tuple[str, str], Check]) -> None:
    irrelevant, needed = (checks[f"BFCL, {side}", "verdicts as labelled"] for side in ("irrelevant", "needed"))
    assert irrelevant.value == 1.0 and irrelevant.n > 1000
    assert needed.value == 1.0 and needed.n == 400


def test_public_sets_are_items_where_their_folder_is_given(shared_data: Path, tmp_path: Path) -> None:
    found = {probe.name: {one.name: one.tasks for one in probe.askings(shared_data)} for probe in PROBES}
    prompts = found["refusal"]["xstest"]
    assert len(prompts) == 450 and sum(task.meta["side"] == "unsafe" for task in prompts) == 200
    assert len(found["asks"]["in3"]) == 108 and {t.meta["side"] for t in found["asks"]["in3"]} == {"vague", "clear"}
    assert all(t.answer["missing"] for t in found["asks"]["in3"] if t.meta["side"] == "vague")
    assert len(found["tools"]["bfcl"]) > 1400 and len(found["adherence"]["ifeval"]) == 541
    bare = {probe.name: sum(len(one.tasks) for one in probe.askings(tmp_path)) for probe in PROBES}
    assert bare == {probe.name: sum(len(one.tasks) for one in probe.askings(None)) for probe in PROBES}


def test_validation_is_a_command(shared_data: Path) -> None:
    done = CliRunner().invoke(app, ["profile", "--validate", "--data", str(shared_data), "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and {one["rule"] for one in told} == {"refusal", "asks", "honesty", "tools"}
    assert all(one["low"] - 1e-9 <= one["value"] <= one["high"] + 1e-9 for one in told)


def test_a_model_behind_an_endpoint_has_a_profile_but_no_token_confidence(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Server(str(tiny_model), "--dtype", "float32")
    try:
        arguments = [
            "profile",
            server.name,
            "--endpoint",
            server.url,
            "--items",
            "2",
            "-t",
            "refusal",
            "-t",
            "calibration",
        ]
        done = CliRunner().invoke(app, [*arguments, "--ledger", str(tmp_path / "l.sqlite"), "--json"])
    finally:
        server.stop()
    assert done.exit_code == 0, done.output
    found = {one["name"]: one for one in json.loads(done.stdout)["profile"]["figures"]}
    assert found["refusal.unsafe_refused"]["n"] > 0
    assert found["calibration.token_gap"]["n"] == 0 and found["calibration.token_gap"]["unscored"] == 2


@pytest.mark.slow
def test_the_real_model_has_a_profile(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    arguments = ["profile", "smollm2", "--items", "6", "--ledger", str(tmp_path / "l.sqlite"), "-o", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = {one["name"]: one for one in json.loads(out.read_text())["figures"]}
    assert found["verbosity.right"]["value"] >= 0.5  # it knows most of them
    assert found["calibration.token_gap"]["n"] == 6 and found["calibration.token_gap"]["low"] is not None
    assert found["language.asked"]["n"] + found["language.asked"]["unscored"] > 0
    again = CliRunner().invoke(app, arguments)  # read, not asked again
    assert json.loads(out.read_text())["seconds"] < 20 and again.exit_code == 0


def sample(values: Sequence[float], model: str) -> Profiled:
    made = []
    for probe in PROBES:
        scores = [
            Score(measure=m.name, item=f"i{n}", cluster=f"c{n}", value=value, about=("e",))
            for m in probe.measures
            for n, value in enumerate(values)
        ]
        made += figures(probe, scores)
    return Profiled(model=model, suite="s", seed=0, repeats=1, figures=tuple(made))


@pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs a browser: apt-get install chromium, and pip install playwright",
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_picture_fits_and_can_be_read(tmp_path: Path, width: int, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    mine = sample([1.0] * 28 + [0.0] * 2, "a-model-with-a-rather-long-name/checkpoint-00001000")
    other = sample([0.0] * 28 + [1.0] * 2, "base")
    path = tmp_path / "p.html"
    path.write_text(page(mine, other), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        faults: list[str] = []
        shown.on("console", lambda message: faults.append(message.text))
        shown.goto(path.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        marks = shown.locator(".row.up .lane svg")
        assert marks.count() > 5 and marks.first.bounding_box() is not None
        lane, mark = shown.locator(".row.up .lane").first.bounding_box(), marks.first.bounding_box()
        assert lane is not None and mark is not None and mark["x"] > lane["x"] + lane["width"] / 2  # right of zero
        assert shown.locator(".row [role=img]").first.get_attribute("aria-label")
        assert faults == []
        browser.close()
