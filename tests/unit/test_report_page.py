"""Words, charts, transcripts and the page, from numbers made by hand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from metier.records.transcript import as_html, as_text, turns
from metier.records.types import Abstention, Cost, Episode, Feedback, Message, Source, Tool, ToolCall, Weights
from metier.report import cases, charts, curves
from metier.report.data import Change, CurvePanel, ModelInfo, ReportData, Rung, Series, Verdict
from metier.report.data import Cost as RunCost
from metier.report.page import render, write
from metier.report.verdict import verdict
from metier.report.wording import (
    change_words,
    count,
    duration,
    figure,
    p_value,
    percent,
    points,
    points_interval,
    title_of,
)
from metier.stats.intervals import share_interval
from metier.stats.paired import Paired, paired

SCRIPT = "<script>alert(1)</script>"


def change(diff: float, low: float | None, high: float | None, n: int = 256) -> Paired:
    se = None if low is None else 0.03
    return Paired(n=n, mean_a=0.5 + diff, mean_b=0.5, diff=diff, se=se, low=low, high=high, p=0.01)


def models(n: int, unscored: int = 0) -> tuple[ModelInfo, ...]:
    labels = ("Base", "SFT", "GRPO")
    return tuple(
        ModelInfo(stage=f"e{i}", measured=label, label=label, checkpoint=label, episodes=10, unscored=unscored)
        for i, label in enumerate(labels[:n])
    )


def rung(overall: Paired | None, step: Paired | None = None, n: int = 2) -> Rung:
    return Rung(
        split="heldout",
        label="Heldout",
        note="",
        shares=tuple(share_interval([1.0, 0.0]) for _ in range(n)),
        overall=None if overall is None else Change(before=0, after=n - 1, paired=overall),
        steps=() if step is None else (Change(before=1, after=2, paired=step),),
    )


def empty(**fields: object) -> ReportData:
    base: dict[str, object] = {
        "run_id": "run-1",
        "title": "Mine",
        "model": "",
        "created_at": 0.0,
        "seed": 0,
        "verdict": Verdict(direction="unknown", sentence="Nothing yet."),
        "models": (),
        "rungs": (),
        "cost": RunCost(
            stages=(), seconds=None, tokens_trained=None, episodes=0, tokens_sampled=0, peak_memory_gb=None
        ),
    }
    return ReportData(**{**base, **fields})  # type: ignore[arg-type]


def test_figures_in_words() -> None:
    assert percent(0.6132).replace("\u00a0", " ") == "61.3 %"
    assert (points(0.613), points(-0.02), points(0.00001)) == ("+61.3", "−2.0", "0.0")
    assert points_interval(0.55, 0.672).replace("\u00a0", " ") == "+55 to +67"
    assert points_interval(-0.004, 0.07).replace("\u00a0", " ") == "−0.4 to +7.0"
    assert points_interval(0.12, 1.21).replace("\u00a0", " ") == "+12 to +100"
    assert (p_value(0.0002), p_value(0.0123), p_value(0.34), p_value(None)) == ("<0.001", "0.012", "0.34", "–")
    assert [duration(s).replace("\u00a0", " ") for s in (4.21, 42, 725, 59.7, 3599.6, 11220)] == [
        "4.2 s", "42 s", "12 min 5 s", "1 min", "1 h", "3 h 7 min",
    ]  # fmt: skip
    assert [count(c).replace("\u00a0", " ") for c in (0, 1234, 56_700, 1_200_000)] == ["0", "1,234", "56.7 k", "1.2 M"]
    assert [figure(x) for x in (0, 5.31, 24.0, 1230.0, 0.0123, 0.00015, -2.5)] == [
        "0", "5.31", "24", "1,230", "0.0123", "1.5e-4", "−2.5",
    ]  # fmt: skip
    assert title_of("evaluate-sft") == "Evaluate SFT"


@pytest.mark.parametrize(
    ("got", "said", "direction"),
    [
        (change(0.13, 0.07, 0.19), "rose from", "up"),
        (change(-0.13, -0.19, -0.07), "fell from", "down"),
        (change(0.02, -0.03, 0.07), "No clear change in heldout success", "flat"),
        (change(0.5, None, None, n=1), "no interval: too few tasks", "unknown"),
        (paired({}, {}), "cannot be compared", "unknown"),
        (paired({"a": [1], "b": [1]}, {"a": [1], "b": [1]}), "did not change", "flat"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(got: Paired, said: str, direction: str) -> None:
    told = verdict(models(2), (rung(got),))
    assert said in told.sentence
    assert told.direction == direction


def test_the_verdict_says_whether_the_last_step_added_something() -> None:
    flat = verdict(models(3, unscored=1), (rung(change(0.5, 0.4, 0.6), change(0.02, -0.03, 0.07), n=3),))
    assert "From SFT to GRPO there is no clear change" in flat.beside[0]
    assert "3 evaluation episodes have no verdict" in flat.beside[1]
    up = verdict(models(3), (rung(change(0.5, 0.4, 0.6), change(0.13, 0.07, 0.19), n=3),))
    assert up.beside[0].startswith("GRPO added to SFT: +13.0")


def test_a_single_evaluation_is_no_comparison() -> None:
    assert "measured once" in verdict(models(1), (rung(None, n=1),)).sentence


def test_change_words() -> None:
    assert change_words(change(0.1, 0.02, 0.2)) == "clear gain"
    assert change_words(paired({k: [1] for k in "abc"}, {k: [0] for k in "abc"})) == "every task changed alike"


def test_ticks_enclose_and_are_round() -> None:
    assert charts.ticks(0.0, 1.0) == [0.0, 0.5, 1.0]
    assert charts.ticks(0.13, 2.9)[0] <= 0.13
    assert charts.ticks(0.13, 2.9)[-1] >= 2.9
    flat = charts.ticks(0.4, 0.4)
    assert flat[0] < 0.4 < flat[-1]
    assert charts.ticks(0.0, 0.0)[0] < charts.ticks(0.0, 0.0)[-1]


def test_smoothing_keeps_the_mean_of_a_line() -> None:
    line = [float(x) for x in range(40)]
    assert charts.smooth(line) == pytest.approx(line)


def test_charts_are_named_for_those_who_do_not_see_them() -> None:
    drawn = charts.dots([share_interval([1.0] * 30), share_interval([None])], ["A<b>", "B"], "Heldout")
    assert 'role="img"' in drawn and "Heldout: A&lt;b&gt; 100.0" in drawn
    panel = CurvePanel(title="Loss", note="", series=(Series(label="Loss", steps=(1, 2), values=(3.0, 1.5)),))
    assert 'aria-label="Loss: from 3 to 1.5"' in charts.lines(panel, "mz")


def test_long_curves_are_thinned_and_nulls_left_out() -> None:
    from metier.records.types import Stage

    events = [
        {"at": 0.0, "stage": "sft", "event": "step", "step": i, "loss": None if i == 3 else 1.0} for i in range(1000)
    ]
    (got,) = curves.curve_sets(events, (Stage(name="sft", kind="sft"),))
    series = got.panels[0].series[0]
    assert len(series.steps) <= curves.POINTS
    assert series.steps[-1] == 999
    assert set(series.values) == {1.0}


def test_cases_are_dealt_over_kinds_and_paths() -> None:
    pool = [
        cases.Candidate(task_id=f"{kind}-{path}-{i}", kind=kind, split="heldout", path=path)
        for kind in ("a", "b", "c")
        for path in ("right", "wrong")
        for i in range(50)
    ]
    got = cases.pick(pool, ["heldout"], seed=1, places=12)
    assert got == cases.pick(list(reversed(pool)), ["heldout"], seed=1, places=12)
    assert got != cases.pick(pool, ["heldout"], seed=2, places=12)
    tally = {(c.kind, c.path): 0 for c in pool}
    for c in got:
        tally[c.kind, c.path] += 1
    assert set(tally.values()) == {2}


# --- transcripts -----------------------------------------------------------------------

TOOL = Tool(name="find", description="", parameters={})
EPISODE = Episode(
    id="episode-1",
    task_id="task-1",
    run_id="run-1",
    stage="baseline",
    weights=Weights(checkpoint="checkpoint-1", step=3),
    messages=(
        Message(role="user", content=f"hello {SCRIPT}"),
        Message(role="assistant", tool_calls=(ToolCall(name="find", arguments='{"q": "x"}'),)),
        Message(role="tool", content='{"a": 1, "b": "two"}', name="find"),
        Message(role="assistant", content="\x1b[31mred\x07", tool_calls=(ToolCall(name="nope", arguments="{"),)),
        Message(role="assistant", content="y" * 5000),
    ),
    cost=Cost(completion_tokens=12, seconds=1.0),
)


def test_turns_show_calls_and_faults() -> None:
    got = turns(EPISODE.messages, tools=(TOOL,))
    assert got[1].calls[0].arguments == 'q="x"'
    assert got[1].calls[0].fault == ""
    assert got[2].text == "a: 1\nb: two"
    assert got[2].speaker == "Tool · find"
    assert got[3].calls[0].fault == "arguments are not a JSON object"
    assert (len(got[4].text), got[4].cut) == (2400, 2600)
    unknown = Message(role="assistant", tool_calls=(ToolCall(name="nope", arguments="{}"),))
    assert turns([unknown], tools=(TOOL,))[0].calls[0].fault == "no such tool"


def test_text_cannot_move_the_cursor_and_tells_the_feedback() -> None:
    source = Source(kind="verifier", name="conduct", version="1")
    rows = [
        Feedback(
            id="f1",
            about=("episode-1",),
            criterion="success",
            kind="score",
            source=source,
            value=0.0,
            reason="too late",
            evidence={"parts": {"state": 0.5}},
        ),
        Feedback(id="f2", about=("episode-1",), criterion="tone", kind="score", source=source, abstention=Abstention()),
    ]
    text = as_text(EPISODE, tools=(TOOL,), feedback=rows)
    assert "\x1b" not in text and "\x07" not in text
    assert "→ find(" in text and "[arguments are not a JSON object]" in text
    assert "success: 0.0  (verifier conduct 1): too late" in text
    assert "state: 0.5" in text and "tone: abstained" in text
    assert max(len(line) for line in text.splitlines()) < 130


def test_an_erased_episode_says_so() -> None:
    import dataclasses

    assert "were erased" in as_text(dataclasses.replace(EPISODE, messages=()))
    assert as_html(()) == ""


def test_html_escapes_every_word() -> None:
    html = as_html(turns(EPISODE.messages))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


# --- the page ---------------------------------------------------------------------------


class Outline(HTMLParser):
    """Tags, headings and addresses of a page; checks that tags close in order."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "line", "circle", "path", "rect", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_about_nothing_is_whole() -> None:
    html = render(empty())
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert "Nothing yet." in html
    assert outline.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert set(outline.addresses) == {"#better", "data:,"}


def test_untrusted_titles_are_escaped() -> None:
    html = render(empty(title=SCRIPT, model=SCRIPT, hardware={SCRIPT: SCRIPT}, config_yaml=SCRIPT))
    assert SCRIPT not in html
    assert html.count("<script") == 1


def test_write_is_whole_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    write(target, "one")
    write(target, "zwei ✓")
    assert target.read_text(encoding="utf-8") == "zwei ✓"
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(UnicodeEncodeError):
        write(target, "\ud800")
    assert target.read_text(encoding="utf-8") == "zwei ✓"
    assert list(target.parent.iterdir()) == [target]
