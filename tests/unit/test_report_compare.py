"""Runs side by side: what is paired, what is sure, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from made_run import HARDER, fill, make_tasks
from metier.base.errors import DataError
from metier.cli import main
from metier.cli.app import app
from metier.records.ledger import Ledger
from metier.records.types import Run
from metier.report.compare import Comparison, compare_runs
from metier.report.measured import measured_models
from metier.report.page import render_comparison
from metier.stats.paired import holm, paired


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with three runs on the same tasks, of which the second is worse, and one on tasks of its own."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        fill(ledger, folder / "sample")
        fill(ledger, folder / "worse", name="worse", chance={"grpo": 0.3})
        fill(ledger, folder / "alike", name="alike", models=("base", "grpo"))
        apart = [replace(task, answer={**task.answer, "apart": 1}) for task in make_tasks(7)]
        fill(ledger, folder / "apart", name="apart", tasks=apart)
        ledger.add_run(Run(id="run-empty", recipe="x", config={}, seed=0, folder=str(folder / "x"), code_version=""))
    return path


@pytest.fixture(scope="module")
def found(where: Path) -> Comparison:
    with Ledger.open(where) as ledger:
        return compare_runs(ledger, ["run-sample", "run-worse", "run-alike"])


def test_differences_are_paired_clustered_and_against_the_first(where: Path, found: Comparison) -> None:
    with Ledger.open(where) as ledger:
        last = []
        for name in ("run-worse", "run-sample"):
            got = measured_models(ledger.run(name), ledger.episodes(run_id=name), ledger.feedback(run_id=name))
            last.append(got[-1].values["heldout"])
        tasks = ledger.tasks(last[0])
    row = next(row for row in found.rows if row.name == "success.heldout")
    assert row.cells[0].paired is None and row.cells[0].p_holm is None
    assert row.cells[1].paired == paired(*last, clusters={name: task.cluster for name, task in tasks.items()})
    assert row.cells[1].paired is not None and row.cells[1].paired.clusters < row.cells[1].paired.n
    assert row.cells[2].paired is not None and row.cells[2].paired.diff == 0.0  # the same chances, the same draws


def test_holm_is_over_all_runs_and_measurements(found: Comparison) -> None:
    cells = [cell for row in found.rows for cell in row.cells]
    assert [cell.p_holm for cell in cells] == holm([None if c.paired is None else c.paired.p for c in cells])
    assert found.tests == 2 * len(found.rows) == 2 * 2 * len(HARDER)
    for row in found.rows:
        for cell in row.cells:
            sure = cell.paired is not None and cell.paired.clear and (cell.p_holm or 1) < 0.05
            assert (cell.direction != "flat") == (sure and row.better != "neither")
    assert {row.cells[1].direction for row in found.rows if row.unit == "share"} >= {"down"}
    assert found.sentence.startswith("Against the first run surely worse in ")


def test_what_stopped_without_a_verdict_has_no_length(where: Path) -> None:
    with Ledger.open(where) as ledger:
        fill(ledger, where.parent / "mid", name="mid", models=("base", "sft", "grpo"))
        run = ledger.run("run-mid")
        ledger.add_run(replace(run, id="run-mid-2", stages=run.stages[:3]))  # it measured SFT last
        there = [one for one in ledger.episodes(run_id="run-mid") if one.stage != "evaluate-grpo"]
        ledger.add_episodes([replace(one, id=f"{one.id}-2", run_id="run-mid-2") for one in there])
        rows = ledger.feedback(run_id="run-mid", about=[one.id for one in there])
        ledger.add_feedback(
            [replace(r, id=f"{r.id}-2", run_id="run-mid-2", about=tuple(f"{a}-2" for a in r.about)) for r in rows]
        )
        got = compare_runs(ledger, ["run-sample", "run-mid-2"])
    for split in HARDER:
        success, tokens = (
            next(r for r in got.rows if r.name == f"{what}.{split}").cells[1].value for what in ("success", "tokens")
        )
        assert (tokens.n, tokens.left_out) == (success.n, success.left_out)
    assert sum(r.cells[1].value.left_out for r in got.rows if r.unit == "share") > 0
    assert "unscored, left out" in render_comparison(got)


def test_the_page_names_runs_costs_and_no_empty_section(found: Comparison) -> None:
    page = render_comparison(found)
    assert "Desk worse" in page and "12\u00a0min\u00a047" in page and "3 runs side by side" in page
    assert 'id="profile-1"' not in page and "Not on both sides" not in page
    hostile = replace(found, runs=tuple(replace(one, label="<script>alert(1)</script>") for one in found.runs))
    assert "<script>alert(1)" not in render_comparison(hostile)


def test_runs_that_cannot_be_compared_are_refused(where: Path) -> None:
    with Ledger.open(where) as ledger:
        with pytest.raises(DataError, match="two different runs"):
            compare_runs(ledger, ["run-sample", "run-sample"])
        with pytest.raises(DataError, match="no scored task in common"):
            compare_runs(ledger, ["run-sample", "run-apart"])
        with pytest.raises(DataError, match="has measured no model yet"):
            compare_runs(ledger, ["run-sample", "run-empty"])


def test_the_command_writes_one_page_and_says_all_as_json(where: Path, tmp_path: Path) -> None:
    out = tmp_path / "side.html"
    arguments = ["report", "--compare", "run-sample", "run-worse", "--ledger", str(where)]
    done = CliRunner().invoke(app, [*arguments, "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["report"] == str(out) and out.read_text().startswith("<!doctype html>")
    assert [run["run_id"] for run in told["runs"]] == ["run-sample", "run-worse"] and told["profile"] == []
    first, other = told["measurements"][0]["runs"]
    assert told["measurements"][0]["name"] == "success.heldout" and first["paired"] is None
    assert other["paired"]["diff"] < 0 and other["p_holm"] >= other["paired"]["p"]
    done = CliRunner().invoke(app, arguments)
    assert (where.parent / "sample" / "compare.html").is_file() and "compare.html" in done.stdout


def test_a_run_without_a_folder_has_a_page_where_one_is_named(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.jsonl").write_text("of something else\n\n")
    with Ledger.open(where) as ledger:
        run = ledger.run("run-sample")
        ledger.add_run(replace(run, id="run-bare", recipe="profile", folder="", created_at=run.created_at + 1e6))
    assert main(["report", "run-bare", "--ledger", str(where)]) == 2
    assert "run-bare has no folder to write its page to; say where with -o" in capsys.readouterr().err
    assert main(["report", "run-bare", "--ledger", str(where), "-o", "bare.html"]) == 0
    assert (tmp_path / "bare.html").is_file() and not (tmp_path / "report.html").exists()
    assert main(["report", "--ledger", str(where), "-o", "last.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"] != "run-bare"


def test_the_command_refuses_one_run_to_compare_and_two_without(
    where: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--compare", "run-sample", "--ledger", str(where)]) == 2
    assert "two runs or more" in capsys.readouterr().err
    assert main(["report", "run-sample", "run-worse", "--ledger", str(where)]) == 2
    assert "--compare" in capsys.readouterr().err
    assert main(["report", "run-sample", "--ledger", str(where), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"run", "report"} and Path(told["report"]).stat().st_size < 5_000_000
