"""What other commands found about a run's models, read back for its page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from made_run import fill, make_tasks, profile_again, train
from metier.cli.app import app
from metier.evaluate.gate import GateSettings, Rule, Side, decide
from metier.evaluate.profile.figures import Profiled, changes, from_json
from metier.records.ledger import Ledger
from metier.records.types import GateDecision, Run, Stage
from metier.report import findings
from metier.report.charts import reliability
from metier.report.collect import collect
from metier.report.compare import compare_runs
from metier.report.page import render, render_comparison
from metier.stats.calibration import Bin, calibration, chance_band

ABSENT = ("transfer-1", "reward-models", "calibration", "profile", "gate-1")


def test_what_a_run_has_not_is_not_on_its_page(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        page = render(collect(ledger, fill(ledger, tmp_path, tasks=make_tasks(7)).id, tmp_path))
    assert 'id="cases"' in page
    assert not [name for name in ABSENT if f'id="{name}"' in page]


# --- calibration -----------------------------------------------------------------------------


def test_the_band_of_a_bin_is_the_binomial_one() -> None:
    # 8 forecasts of .5: P(X <= 0) = 1/256 < .025 <= P(X <= 1) = 9/256, and the other side likewise
    assert chance_band(Bin(n=8, forecast=0.5, observed=0.0)) == (1 / 8, 7 / 8)
    # one forecast of .99 is right or not: P(X <= 0) = .01 < .025
    assert chance_band(Bin(n=1, forecast=0.99, observed=0.0)) == (1.0, 1.0)
    assert chance_band(Bin(n=5, forecast=0.0, observed=0.0)) == (0.0, 0.0)


def test_a_reliability_plot_marks_what_is_outside_its_band() -> None:
    found = calibration([0.95] * 40 + [0.5] * 40, [1.0] * 10 + [0.0] * 30 + [1.0, 0.0] * 20)
    drawn = str(reliability(found, "Stated <b>"))
    assert drawn.count('class="out"') == 1 and drawn.count('class="chance"') == 2
    assert "Stated &lt;b&gt;: said 50" in drawn and "came true 25" in drawn


# --- reward models ---------------------------------------------------------------------------


def test_reward_models_are_measured_anew_from_their_pairs(tmp_path: Path) -> None:
    stage = Stage(name="measure-one", kind="measure", inputs=("reward-one",))
    run = Run(id="r", recipe="x", config={}, seed=0, folder=str(tmp_path), code_version="", stages=(stage,))
    assert findings.reward_models(run, tmp_path) == ()  # it is not done yet
    pairs = [
        {"id": str(n), "cluster": f"c{n // 2}", "score": float(n % 4 > 0), "p": 0.1 + 0.05 * n, "y": float(n % 2)}
        for n in range(16)
    ]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "measure-one.json").write_text(json.dumps({"pairs": pairs}))
    (found,) = findings.reward_models(run, tmp_path)
    assert found.accuracy.mean == 0.75 and (found.accuracy.n, found.accuracy.clusters) == (16, 8)
    assert found.calibration == calibration([p["p"] for p in pairs], [p["y"] for p in pairs])  # type: ignore[misc]
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_run(run)
        page = render(collect(ledger, "r", tmp_path))
    assert "What its reward models are worth" in page and "75.0" in page and 'id="calibration"' in page


def test_a_judge_that_is_not_fit_is_shown_with_why(tmp_path: Path) -> None:
    stage = Stage(name="judge", kind="judge")
    run = Run(id="r", recipe="x", config={}, seed=0, folder=str(tmp_path), code_version="", stages=(stage,))
    assert findings.judges(run, tmp_path) == ()  # it is not done yet
    accuracy = {"value": 0.625, "low": 0.51, "high": 0.73, "n": 64}
    audited = {"figures": {"accuracy": accuracy}, "why": ["length alone is worth <b>43</b> points to it"]}
    (tmp_path / "stages").mkdir()
    told = {"fit": "unfit", "audit": audited, "statements": 0}
    (tmp_path / "stages" / "judge.json").write_text(json.dumps(told))
    (found,) = findings.judges(run, tmp_path)
    assert (found.fit, found.right, found.n, found.judgements) == ("unfit", 0.625, 64, 0)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_run(run)
        page = render(collect(ledger, "r", tmp_path))
    for text in ("Whether its judges may speak", "62.5", "not fit", "worth &lt;b&gt;43", ">none<"):
        assert text in page, text


# --- profiles --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Profiled, Profiled]:
    """A ledger with a profile that `metier profile` made, one of more repeats, and both as it told them."""
    where = tmp_path_factory.mktemp("profiled") / "ledger.sqlite"
    made = []
    for more in ((), ("--repeats", "2")):
        arguments = ["profile", str(tiny_model), "-t", "refusal", "-t", "calibration", "--items", "4", *more]
        done = CliRunner().invoke(app, [*arguments, "--dtype", "float32", "--ledger", str(where), "--json"])
        assert done.exit_code == 0, done.output
        made.append(from_json(json.loads(done.stdout)["profile"], "p"))
    return where, made[0], made[1]


def test_a_profile_is_put_together_again_as_it_was_told(profiled: tuple[Path, Profiled, Profiled]) -> None:
    where, _, latest = profiled
    with Ledger.open(where) as ledger:
        again, forecasts = findings.kept_profile(ledger, ledger.run(latest.run))
    told = {one.name: one for one in latest.figures}
    assert set(told) == {one.name for one in again.figures}
    for one in again.figures:
        mine, its = asdict(one), asdict(told[one.name])
        assert {k: list(v) for k, v in mine.pop("items").items()} == {k: list(v) for k, v in its.pop("items").items()}
        assert mine == its
    assert again.details == latest.details
    counts = {way: row["n"] for way, row in latest.details["calibration"].items()}
    assert {way: len(pairs) for way, pairs in forecasts.items()} == {"sure": 0, **counts}


def test_profiles_before_and_after_are_found_by_checkpoint_and_the_base_by_name(
    profiled: tuple[Path, Profiled, Profiled], tmp_path: Path
) -> None:
    where, _, latest = profiled
    name = latest.model.partition("@")[0]
    with Ledger.open(where) as ledger:
        run = fill(ledger, tmp_path, tasks=make_tasks(7))
        models = collect(ledger, run.id, tmp_path).models
        assert findings.profiles(ledger, models) == (None, None, ())
        named = [replace(models[0], checkpoint=f"some/folder/{name}"), *models[1:]]
        after, before, _ = findings.profiles(ledger, named)
        assert before is None and after is not None and after.model == f"Base ({latest.model})"
        # a profile of the last model, of the same answers: no difference
        profile_again(ledger, latest.run, "checkpoint-grpo")
        after, before, forecasts = findings.profiles(ledger, named)
        assert after is not None and before is not None
        assert (after.model, before.model) == ("GRPO (checkpoint-grpo)", f"Base ({latest.model})")
        assert {one.diff for one in changes(after, before) if one.diff is not None} == {0.0}
        data = replace(collect(ledger, run.id, tmp_path), profile=after, profile_before=before)
        assert {one.model for one in data.forecasts} == {"GRPO (checkpoint-grpo)"}
    page = render(replace(data, forecasts=forecasts))
    assert "How its behaviour changed" in page and "Not sure" in page
    assert page.count("Token confidence") >= 2  # before and after


def test_profiles_that_share_no_measure_are_not_compared(
    profiled: tuple[Path, Profiled, Profiled], tmp_path: Path
) -> None:
    where, _, latest = profiled
    with Ledger.open(where) as ledger:
        for name, first, last in (("a", "refusal", "calibration"), ("b", "calibration", "refusal")):
            fill(ledger, tmp_path / name, tasks=make_tasks(7), name=name)
            profile_again(ledger, latest.run, f"checkpoint-base{name}", first)
            profile_again(ledger, latest.run, f"checkpoint-grpo{name}", last)
        fill(ledger, tmp_path / "c", tasks=make_tasks(7), name="c")
        profile_again(ledger, latest.run, "checkpoint-grpoc", "calibration")
        data = collect(ledger, "run-a", tmp_path / "a")
        assert data.profile is not None and {one.trait for one in data.profile.figures} == {"calibration"}
        assert data.profile_before is None and data.forecasts
        assert "Its behaviour profile" in render(data)
        compared = compare_runs(ledger, ["run-a", "run-b", "run-c"])
    assert [one.model for one in compared.profiles] == ["GRPO (checkpoint-grpoc)"]
    (told,) = compared.to_json()["profile"]
    assert {one["name"].partition(".")[0] for one in told["changes"]} == {"calibration"}
    page = render_comparison(compared)
    assert 'id="profile-1"' in page and 'id="profile-2"' not in page and page.count(".profile .lane {") == 1


# --- rewards -----------------------------------------------------------------------------------


def test_the_reward_of_an_rl_stage_is_audited_from_the_ledger(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, unscored=0, chance={"sft": 0.2, "grpo": 0.8})
        assert findings.transfers(ledger, run) == ()  # its rl stage has no episodes yet
        train(ledger, run)
        data = collect(ledger, run.id, tmp_path)
        assert findings.transfers(ledger, replace(run, config={})) == data.transfers  # of the ledger's own run
    (audit,) = data.transfers
    assert audit.reward == "grpo" and audit.verdict == "transfers"
    assert [point.n for point in audit.curve] == [1, 2, 4] and len(audit.checkpoints) == 2
    page = render(data)
    assert "Does the reward of GRPO transfer?" in page and ">Transfers<" in page
    assert "Gold of the best of n: best of 1" in page and "held-out gold" in page


# --- gates -----------------------------------------------------------------------------------


def test_the_newest_decision_on_each_pair_is_shown_and_earlier_ones_counted(tmp_path: Path) -> None:
    settings = GateSettings(metrics={"success": Rule(margin=0.05), "<b>style": Rule(gain=0.1, hard=False)})
    a = {str(n): [float(n % 5 > 0)] for n in range(100)}
    b = {str(n): [float(n % 5 > 1)] for n in range(100)}
    done = decide(settings, {"success": (Side(by_item=a), Side(by_item=b)), "<b>style": "no such field"})
    results = {one.name: {**asdict(one), "caveats": list(one.caveats)} for one in done.metrics}
    metrics = {"settings": settings.model_dump(mode="json"), "results": results}
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = fill(ledger, tmp_path, tasks=make_tasks(7))
        for at, of, against in (
            (1e9, "checkpoint-grpo", "checkpoint-base"),
            (2e9, "checkpoint-grpo", "checkpoint-base"),
            (1.5e9, "checkpoint-sft", "elsewhere"),
            (1e9, "checkpoint-of-another-run", "checkpoint-base"),
        ):
            ledger.add_gate(
                GateDecision(
                    id=f"gate-{at}-{of}", checkpoint=of, baseline=against, verdict=done.verdict, metrics=metrics,
                    created_at=at,
                )
            )  # fmt: skip
        data = collect(ledger, run.id, tmp_path)
    assert [(one.model, one.baseline, one.earlier) for one in data.gates] == [
        ("GRPO", "Base", 1),
        ("SFT", "elsewhere", 0),
    ]
    assert data.gates[0].metrics == done.metrics and data.gates[0].alpha == 0.05
    page = render(data)
    assert "May GRPO replace Base?" in page and "the gate passes" in page and "1 earlier decision " in page
    assert "<b>style" not in page and "&lt;b&gt;style" in page and "it cannot be computed: no such field" in page
    assert not math.isnan(data.gates[0].metrics[0].gain or 0.0)
