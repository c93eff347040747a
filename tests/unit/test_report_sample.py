"""What is collected from a made-up run in a real ledger."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from made_run import CHANCE, HARDER, KINDS, fill, make_tasks
from metier.records.ledger import Ledger
from metier.records.types import Run
from metier.report import cases
from metier.report.collect import collect
from metier.report.data import ReportData
from metier.report.page import render


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    folder = tmp_path_factory.mktemp("run")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        run = fill(ledger, folder)
        return collect(ledger, run.id, folder)


def test_models_and_rungs_follow_the_run(data: ReportData) -> None:
    assert [model.label for model in data.models] == ["Base", "SFT", "GRPO"]
    assert [rung.split for rung in data.rungs] == list(HARDER)
    rung = data.rungs[0]
    assert rung.note == "new names, ids and phrasings"  # of the desk's tasks
    assert rung.overall is not None
    assert (rung.overall.before, rung.overall.after) == (0, 2)
    assert [(step.before, step.after) for step in rung.steps] == [(0, 1), (1, 2)]
    assert rung.overall.paired.n == len([t for t in make_tasks() if t.split == "heldout"])
    assert rung.overall.p_holm is not None and rung.overall.paired.p is not None
    assert rung.overall.p_holm >= rung.overall.paired.p
    assert data.verdict.direction == "up"
    assert data.verdict.sentence.startswith("Heldout success rose from ")


def test_success_is_the_share_of_scored_episodes(data: ReportData, tmp_path: Path) -> None:
    tasks = [task for task in make_tasks() if task.split == "heldout"]
    rights = []
    for task in tasks:
        number = make_tasks().index(task)
        rights.append(random.Random(f"{task.id}0").random() < CHANCE["grpo"] * (1.1 if number % 3 else 0.8))
    assert data.rungs[0].shares[2].mean == pytest.approx(sum(rights) / len(rights))


def test_unscored_episodes_are_left_out_and_said(data: ReportData) -> None:
    middle = data.models[1]
    assert middle.unscored > 0
    shares = [rung.shares[1] for rung in data.rungs]
    assert sum(share.left_out for share in shares) == middle.unscored
    assert sum(share.n for share in shares) == middle.episodes - middle.unscored
    assert any("no verdict" in line for line in data.verdict.beside)


def test_pairs_need_both_sides(data: ReportData) -> None:
    assert [row.split for row in data.pairs] == list(HARDER)
    for row in data.pairs:
        for both, forbidden, allowed in zip(row.both, row.forbidden, row.allowed, strict=True):
            assert both.mean is not None and forbidden.mean is not None and allowed.mean is not None
            assert both.mean <= min(forbidden.mean, allowed.mean) + 1e-9
            assert both.n + both.left_out == row.n and both.clusters * 2 <= forbidden.clusters + allowed.clusters


def test_pairs_are_clusters(data: ReportData) -> None:
    rung = data.rungs[0]
    assert rung.overall is not None
    twins = sum(1 for task in make_tasks() if task.split == "heldout" and task.meta.get("pair"))
    assert rung.overall.paired.clusters == rung.overall.paired.n - twins // 2


def test_the_last_writing_of_a_step_counts(data: ReportData) -> None:
    loss = data.curves[0].panels[0].series[0]
    assert len(loss.steps) == 120
    assert max(loss.values) < 5


def test_reward_goes_with_heldout_during_training(data: ReportData) -> None:
    (pair,) = data.reward
    assert pair.during
    assert [held.step for held in pair.held] == [8, 16, 24]
    assert pair.reward is not None and len(pair.reward.values) == 24


def test_costs_add_up(data: ReportData) -> None:
    assert data.cost.seconds == pytest.approx(361 + 361 + 45.2)
    assert data.cost.tokens_trained == 120 * 2048 + 24 * 64 * 52
    assert data.cost.peak_memory_gb == 5.31
    assert data.cost.episodes == sum(model.episodes for model in data.models)


def test_the_first_twenty_cases_are_dealt_by_rule_with_failures(data: ReportData) -> None:
    first = data.cases[: cases.PLACES]
    assert len({case.task_id for case in first}) == 20
    assert {case.path for case in first} >= {"wrong", "gained"}
    assert {case.kind for case in first} == {*KINDS, "decline"}
    assert sum(case.split == "heldout" for case in first) == 12
    assert all(len(case.columns) == 3 for case in first)
    assert "seed 7" in data.cases_rule


def test_all_that_changed_comes_next_and_is_counted(data: ReportData) -> None:
    assert len({case.task_id for case in data.cases}) == len(data.cases) == len(make_tasks())
    differs = [len({c.outcome for c in case.columns} - {"unscored"}) > 1 for case in data.cases[cases.PLACES :]]
    assert any(differs) and not all(differs) and differs == sorted(differs, reverse=True)
    counted = Counter((case.split, case.path) for case in data.cases)
    assert {(row.split, path): n for row in data.flips for path, n in row.counts.items()} == counted


def test_what_does_not_fit_is_left_out_and_said(data: ReportData, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cases.side_by_side, "__kwdefaults__", {"room": 200_000})
            few = collect(ledger, run.id, tmp_path)
    assert 20 < len(few.cases) < len(data.cases)
    assert [case.task_id for case in few.cases] == [case.task_id for case in data.cases[: len(few.cases)]]
    assert few.flips == data.flips  # counts are of all tasks
    left = len(data.cases) - len(few.cases)
    assert f"{left} were left out" in few.cases_rule and "left out" not in data.cases_rule
    without = replace(few, cases=(), flips=())
    taken = len(render(few).encode()) - len(render(without).encode())
    assert 100_000 < taken < 200_000


def test_a_model_measured_twice_is_told_apart(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path)
        again = [replace(s, inputs=("sft",)) if s.name == "evaluate-grpo" else s for s in run.stages]
        ledger.add_run(replace(run, id="run-again", stages=tuple(again)))
        there = ledger.episodes(run_id=run.id)
        ledger.add_episodes([replace(episode, id=f"{episode.id}-again", run_id="run-again") for episode in there])
        got = collect(ledger, "run-again", tmp_path)
    assert [model.label for model in got.models] == ["Base", "SFT, sft", "SFT, grpo"]


def test_a_model_between_may_be_measured_on_less(tmp_path: Path) -> None:
    """As in the packaged recipe: after SFT heldout only."""
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, between=("heldout",))
        got = collect(ledger, run.id, tmp_path)
    assert [rung.split for rung in got.rungs] == list(HARDER)
    assert [share.n > 0 for share in got.rungs[1].shares] == [True, False, True]
    assert {len(case.columns) for case in got.cases if case.split == "heldout"} == {3}
    assert {len(case.columns) for case in got.cases if case.split != "heldout"} == {2}
    page = render(got)
    assert "not measured" in page and "not compared" in page


def test_traits_count_what_was_done(data: ReportData) -> None:
    rows = {row.label: row.values for row in data.traits}
    assert rows["Declines what is forbidden"][0].mean == 0.0
    assert (rows["Declines what is forbidden"][2].mean or 0) > 0
    assert rows["Declines the allowed twin"][2].mean == 0.0
    assert (rows["Episodes with a broken call"][0].mean or 0) > 0
    assert rows["Episodes with a broken call"][2].mean == 0.0
    assert (rows["Asks when something is missing"][2].mean or 0) > 0
    assert rows["Asks when nothing is"][2].mean == 0.0
    assert rows["Hands over when it should"][2].mean == 1.0


def test_lineage_reaches_sources(data: ReportData) -> None:
    assert [node.id for node in data.lineage] == ["checkpoint-base", "checkpoint-sft", "checkpoint-grpo"]
    (dataset,) = data.lineage[-1].datasets
    assert sum(source.rows for source in dataset.sources) == 80
    assert dataset.sources[0].name == "conduct"
    assert data.feedback[0].version == "1.2"


def test_repeats_pair_by_task(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, repeats=3)
        got = collect(ledger, run.id)
    share = got.rungs[0].shares[0]
    assert share.n == 3 * len([t for t in make_tasks() if t.split == "heldout"])
    assert got.rungs[0].overall is not None
    assert got.rungs[0].overall.paired.n * 3 == share.n


def test_two_models_no_rl_no_pairs_one_task(tmp_path: Path) -> None:
    task = replace(make_tasks()[0], split="mine", kind="haiku", meta={}, tools=())
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, models=("base", "sft"), tasks=[task], unscored=0)
        got = collect(ledger, run.id)
    assert [rung.label for rung in got.rungs] == ["Mine"]
    assert (got.pairs, got.reward, got.rungs[0].steps) == ((), (), ())
    assert len(got.cases) == 1 and got.cases_rule.startswith("The task that")
    assert "no interval" in got.verdict.sentence
    labels = {row.label for row in got.traits}
    assert labels == {"Tokens per episode", "Tokens per turn", "Cut off by a limit"}


def test_a_run_without_episodes_or_events(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_run(Run(id="r", recipe="x", config={}, seed=0, folder=str(tmp_path), code_version=""))
        got = collect(ledger, "r")
    assert (got.models, got.rungs, got.cases, got.curves) == ((), (), (), ())
    assert got.verdict.direction == "unknown"


def test_erased_episodes_leave_counts_but_no_text(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, tasks=make_tasks(7))
        for episode in ledger.episodes(run_id=run.id, stage="baseline"):
            ledger.erase(episode.id, why="asked to")
        got = collect(ledger, run.id)
    assert got.rungs[0].shares[0].n == 8  # the seventh is a pair
    assert all(case.columns[0].turns == () for case in got.cases)
