"""The gate: what it passes, blocks and leaves open, how often it is wrong, and what it says of data that are odd."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
from scipy.stats import beta, t

from metier.base.config import parse
from metier.base.errors import ConfigError, DataError
from metier.cli.gate import gate
from metier.evaluate.gate import GateSettings, MetricResult, Rule, Side, decide
from metier.records.ledger import Ledger
from metier.stats.noninferiority import one_sided
from metier.stats.paired import paired

Scores = dict[str, list[float | None]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the project, whose ledger, where a demo has made one, would keep these decisions."""
    monkeypatch.chdir(tmp_path)


def scores(values: list[float]) -> Scores:
    return {f"t{n}": [value] for n, value in enumerate(values)}


# --- the bounds ---------------------------------------------------------------------------


def test_the_bound_is_that_of_t_where_nothing_is_skewed() -> None:
    a, b = scores([5.0, 7.0, 9.0, 4.0]), scores([4.0, 7.0, 6.0, 2.0])
    found = one_sided(a, b, alpha=0.05)
    # d = 1, 0, 3, 2: mean 1.5, sd sqrt((.25 + 2.25 + 2.25 + .25) / 3) = sqrt(5/3), se sqrt(5/12)
    assert (found.n, found.diff, found.se) == (4, 1.5, pytest.approx(math.sqrt(5 / 12), abs=1e-12))
    assert found.low == pytest.approx(1.5 - t.ppf(0.95, 3) * math.sqrt(5 / 12), abs=1e-9)
    assert found.high == pytest.approx(1.5 + t.ppf(0.95, 3) * math.sqrt(5 / 12), abs=1e-9)
    both = paired(a, b, confidence=0.9)  # a two-sided interval at 90 % has the same ends
    assert (found.low, found.high) == (pytest.approx(both.low, abs=1e-9), pytest.approx(both.high, abs=1e-9))


def test_skewness_against_us_widens_the_bound() -> None:
    found = one_sided(scores([0.0, 0.0, 0.0, -4.0]), scores([0.0] * 4), alpha=0.05)
    # d: mean -1, deviations 1, 1, 1, -3: third moment -24/4 = -6, second 12/4 = 3, so g = -6/3^1.5 = -1.1547
    q, se, tilt = float(t.ppf(0.95, 3)), 1.0, 6 / 3**1.5 / 2
    assert found.low == pytest.approx(-1 - (q + tilt * (2 * q * q + 1) / 6) * se, abs=1e-9)
    assert found.high == pytest.approx(-1 + q * se, abs=1e-9)  # never narrower


def test_without_spread_the_bound_is_clopper_and_pearsons() -> None:
    n, same = 60, scores([1.0] * 60)
    found = one_sided(same, same, alpha=0.05, span=1.0)
    # No item changed: the share of items that could have got worse is at most 1 - .05^(1/60).
    assert found.low is not None
    assert found.low == pytest.approx(-(1 - 0.05 ** (1 / n)), abs=1e-12)
    assert found.high == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-12)
    uneven = one_sided(same, same, alpha=0.05, span=1.0, clusters={f"t{k}": k // 2 for k in range(n - 1)})
    assert uneven.clusters == 31 and uneven.low is not None and uneven.low < found.low  # also of unequal clusters
    bare = one_sided(same, same, alpha=0.05)
    assert (bare.diff, bare.low, bare.high) == (0.0, None, None)


def test_with_rare_failures_the_bound_is_clopper_and_pearsons_too() -> None:
    n, k = 100, 3  # three items got worse by 1, none better
    a, b = scores([0.0] * k + [1.0] * (n - k)), scores([1.0] * n)
    found = one_sided(a, b, alpha=0.05, span=1.0)
    exact = -float(beta.ppf(0.95, k + 1, n - k))
    assert found.low is not None
    assert found.low == pytest.approx(exact, abs=2e-3)  # drawn, 20,000 times
    lone_t = one_sided(a, b, alpha=0.05)
    assert lone_t.low is not None and lone_t.low > found.low  # t is too sure
    assert found == one_sided(a, b, alpha=0.05, span=1.0)  # the same seed, the same bound


def test_repeats_are_averaged_and_clusters_counted() -> None:
    rng = np.random.default_rng(0)
    a: Scores = {f"t{n}": [float(x) for x in rng.random(4) < 0.2 + 0.6 * (n // 4 % 2)] for n in range(40)}
    b: Scores = {f"t{n}": [float(x) for x in rng.random(4) < 0.5] for n in range(40)}
    clusters = {f"t{n}": n // 4 for n in range(40)}
    alone, grouped = one_sided(a, b, span=1.0), one_sided(a, b, span=1.0, clusters=clusters)
    assert (alone.n, alone.clusters, grouped.clusters) == (40, 40, 10)
    means = [sum(filter(None, a[item])) / 4 - sum(filter(None, b[item])) / 4 for item in a]
    assert alone.diff == pytest.approx(sum(means) / 40, abs=1e-12)
    assert alone.low is not None and grouped.low is not None
    assert grouped.low < alone.low  # ten pieces of evidence say less than forty


SHAPES = {  # items, repeats of each, items in a cluster
    "plain": (150, 1, 1),
    "repeats": (60, 4, 1),
    "clusters": (120, 2, 4),
    "few clusters": (120, 1, 10),
    "rare": (100, 1, 1),  # the base is always right, and what gets worse is lost
    "rarer": (80, 1, 1),
    "rare, many": (1000, 1, 1),
    "rare clusters": (400, 2, 4),
}


def simulated(rng: np.random.Generator, shape: str, worse: float) -> tuple[Side, Side]:
    """One evaluation in which the run's true success is less than the base's by `worse`, on average over items."""
    n, repeats, size = SHAPES[shape]
    run_: Scores = {}
    base: Scores = {}
    clusters = {}
    p = q = 0.0
    for place in range(n):
        if place % size == 0:  # a cluster has in common how hard it is, and how much it changed
            if shape.startswith("rare"):
                p, q = 1.0, float(rng.random() >= worse)
            else:
                p = float(np.clip(rng.beta(2, 2), 0.3, 0.7))
                q = p - worse + float(rng.choice([-0.15, 0.15]))
        base[f"t{place}"] = [float(x) for x in rng.random(repeats) < p]
        run_[f"t{place}"] = [float(x) for x in rng.random(repeats) < q]
        clusters[f"t{place}"] = place // size
    return Side(by_item=run_, clusters=clusters), Side(by_item=base, clusters=clusters)


@pytest.mark.parametrize("shape", SHAPES)
def test_of_a_thousand_evaluations_on_the_edge_at_most_alpha_pass(shape: str) -> None:
    """The run is worse by exactly the margin, so every pass is a false one, and so is every block."""
    rng = np.random.default_rng(7)
    found = [decide(settings(score={"margin": 0.05}), {"score": simulated(rng, shape, 0.05)}) for _ in range(1000)]
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in ("pass", "block")}
    assert counts["pass"] <= 50
    assert counts["block"] <= 50
    assert sum(counts.values()) >= 5  # it is not that nothing ever happens


def test_the_interval_of_t_alone_would_pass_too_much() -> None:
    rng, passed = np.random.default_rng(7), 0
    for _ in range(1000):
        run_, base = simulated(rng, "rare", 0.05)
        low = paired(run_.by_item, base.by_item, confidence=0.9).low
        passed += low is not None and low > -0.05
    assert passed > 70


def test_what_is_as_good_passes_with_enough_items() -> None:
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(100):
        p = rng.beta(2, 2, 500)
        sides = [side([float(x) for x in rng.random(500) < p]) for _ in range(2)]
        passed += decide(settings(score={"margin": 0.08}), {"score": (sides[0], sides[1])}).verdict == "pass"
    assert passed >= 75  # se .028, so the margin is 2.8 of them: power about .86


# --- the decision ---------------------------------------------------------------------------


def settings(**metrics: dict[str, Any]) -> GateSettings:
    return parse(GateSettings, {"metrics": metrics})


def side(values: list[float | None], **more: Any) -> Side:
    return Side(by_item={f"t{n}": [value] for n, value in enumerate(values)}, **more)


def one(result: Any) -> MetricResult:
    (metric,) = result.metrics
    assert isinstance(metric, MetricResult)
    return metric


GOOD = [1.0] * 90 + [0.0] * 10
BAD = [1.0] * 40 + [0.0] * 60


def test_pass_block_and_inconclusive() -> None:
    gate_ = settings(score={"margin": 0.05})
    assert decide(gate_, {"score": (side(GOOD), side(BAD))}).verdict == "pass"
    blocked = decide(gate_, {"score": (side(BAD), side(GOOD))})
    assert (blocked.verdict, blocked.exit_code) == ("block", 1)
    assert "at most" in one(blocked).why
    open_ = decide(gate_, {"score": (side(GOOD[:20]), side([*GOOD[1:20], 0.0]))})
    assert (open_.verdict, open_.exit_code) == ("inconclusive", 3)
    needed = one(open_).needed
    assert needed is not None and needed > 20 and f"about {needed} items would decide" in one(open_).why


def test_how_many_items_would_decide_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.0, 1, 50).tolist(), [0.0] * 50
    found = one(decide(settings(score={"margin": 0.1, "range": [-9, 9]}), {"score": (side(a), side(b))}))
    assert found.verdict == "inconclusive" and found.gain is not None and found.needed is not None
    # n = (z_.9625 + z_.8)^2 var / (gain + margin)^2
    expected = (1.7804643416920256 + 0.8416212335729143) ** 2 * np.var(a, ddof=1) / (found.gain + 0.1) ** 2
    assert found.needed == math.ceil(expected)
    assert one(
        decide(settings(score={"margin": 0.1}), {"score": (side([1.0] * 20), side([1.0] * 20))})
    ).needed == math.ceil(math.log(0.0375) / math.log(0.9))  # 32: .9^32 < .0375


def test_lower_is_better_turns_it_around() -> None:
    tokens = {"direction": "lower", "margin": 5.0}
    rng = np.random.default_rng(0)
    few, many = rng.normal(40, 5, 50).tolist(), rng.normal(80, 5, 50).tolist()
    assert decide(settings(tokens=tokens), {"tokens": (side(few), side(many))}).verdict == "pass"
    found = decide(settings(tokens=tokens), {"tokens": (side(many), side(few))})
    assert found.verdict == "block"
    assert one(found).gain == pytest.approx(np.mean(few) - np.mean(many))
    assert one(found).run == pytest.approx(np.mean(many))


def test_a_gain_has_to_be_shown() -> None:
    wanted = {"gain": 0.3}
    assert decide(settings(score=wanted), {"score": (side(GOOD), side(BAD))}).verdict == "pass"
    assert decide(settings(score={"gain": 0.6}), {"score": (side(GOOD), side(BAD))}).verdict == "block"
    assert decide(settings(score={"gain": 0.5}), {"score": (side(GOOD), side(BAD))}).verdict == "inconclusive"


def test_soft_metrics_decide_nothing_and_blocks_are_corrected_for() -> None:
    both = settings(score={"margin": 0.05}, tone={"margin": 0.05, "hard": False})
    sides = {"score": (side(GOOD), side(BAD)), "tone": (side(BAD), side(GOOD))}
    found = decide(both, sides)
    assert (found.verdict, [m.verdict for m in found.metrics]) == ("pass", ["pass", "block"])
    hard = settings(score={"margin": 0.05}, tone={"margin": 0.05})
    assert decide(hard, sides).verdict == "block"
    alone = one(decide(settings(score={"margin": 0.05}), {"score": sides["score"]}))
    together = decide(hard, sides).metrics[0]
    assert together.low == alone.low  # passing needs all of them: nothing to correct
    assert together.high is not None and alone.high is not None and together.high > alone.high  # blocking needs one


@pytest.mark.parametrize(
    ("run", "base", "said"),
    [
        (side([1.0]), side([1.0]), "one item"),
        (side([1.0] * 5), side([1.0] * 5), "no spread was seen"),
        (side([3.0] * 50), side([3.0] * 50), "say the metric's range"),
        (side([1.0, 0.0] * 20, clusters={f"t{n}": "c" for n in range(40)}), side([0.0, 1.0] * 20), "one cluster"),
        (side([None] * 15 + [1.0] * 35), side([1.0] * 50), "15 of the 50 samples of the run are unscored"),
        (side([1.0] * 50, skipped=20), side([1.0] * 50), "20 of the 70 samples of the run are unscored"),
        (side([1.0] * 50), Side(by_item={"other": [1.0]}), "no item is scored on both sides"),
        (side([2.0] * 50), side([1.0] * 50), "outside the range 0.0 to 1.5"),
        (side([1.0], clusters={"t0": "x"}), side([1.0], clusters={"t0": "y"}), "in cluster x of the run and y"),
        ("there is no field", None, "cannot be computed"),
    ],
)
def test_what_cannot_be_computed_is_never_a_pass(run: Any, base: Any, said: str) -> None:
    rule: dict[str, Any] = {"margin": 0.05, **({"range": [0.0, 1.5]} if "1.5" in said else {})}
    sides = run if isinstance(run, str) else (run, base)
    found = decide(settings(score=rule), {"score": sides})
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert said in "; ".join((one(found).why, *one(found).caveats))


def test_a_hard_metric_without_data_holds_back_a_pass() -> None:
    hard = settings(score={"margin": 0.05}, other={"margin": 0.05})
    assert decide(hard, {"score": (side(GOOD), side(BAD)), "other": "missing"}).verdict == "inconclusive"
    assert decide(hard, {"score": (side(BAD), side(GOOD)), "other": "missing"}).verdict == "block"


def test_differing_items_are_counted() -> None:
    run, base = side(GOOD), Side(by_item={f"t{n}": [0.0] for n in range(50, 130)})
    found = one(decide(settings(score={"margin": 0.05}), {"score": (run, base)}))
    assert found.n == 50
    assert "paired on 50 shared items; 50 are in the run only and 30 in the base only" in found.caveats
    many = Side(by_item={f"t{n}": [1.0, 1.0] for n in range(100)})
    assert (
        "run: 100 further samples of the same ids were averaged with the first, as repeats"
        in one(decide(settings(score={"margin": 0.05}), {"score": (many, side(GOOD))})).caveats
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metrics": {}}, "no metric is hard"),
        ({"metrics": {"a": {"margin": 0.1, "hard": False}}}, "no metric is hard"),
        ({"metrics": {"a": {}}}, "either a margin"),
        ({"metrics": {"a": {"margin": 0.1, "gain": 0.1}}}, "either a margin"),
        ({"metrics": {"a": {"margin": -0.1}}}, "margin"),
        ({"metrics": {"a": {"margin": 0.1, "direction": "up"}}}, "higher, lower"),
        ({"metrics": {"a": {"margin": 0.1, "range": [1, 0]}}}, "is empty"),
        ({"metrics": {"a": {"margin": 0.1}}, "alpha": 0.7}, "alpha"),
        ({"metrics": {"a": {"margn": 0.1}}}, "did you mean 'margin'"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(GateSettings, given)
    assert Rule(gain=0.0).threshold == 0.0 and Rule(margin=0.1).threshold == -0.1


# --- the command ------------------------------------------------------------------------------


def write(path: Path, values: list[float | None], **more: Any) -> Path:
    path.write_text(
        "".join(json.dumps({"id": f"t{n}", "score": value, **more}) + "\n" for n, value in enumerate(values))
    )
    return path


def run(tmp_path: Path, run_: Any, base: Any, yaml: str, **more: Any) -> int:
    config = tmp_path / "gate.yaml"
    config.write_text(yaml)
    with pytest.raises(typer.Exit) as ended:
        gate(run=str(run_), against=str(base), config=config, **more)
    return ended.value.exit_code


def test_the_command_blocks_passes_and_tells_ci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(tmp_path / "good.jsonl", GOOD, model="ckpt-new"), write(tmp_path / "bad.jsonl", BAD)
    ledger = tmp_path / "ledger.sqlite"
    Ledger.open(ledger).close()
    yaml = "metrics:\n  score: {margin: 0.05}\n  tokens: {direction: lower, margin: 5, hard: false}\n"
    files = {"junit": tmp_path / "gate.xml", "markdown": tmp_path / "gate.md", "ledger": str(ledger)}
    assert run(tmp_path, bad, good, yaml, as_json=True, **files) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["exit_code"], told["base"]) == ("block", 1, "ckpt-new")
    suite = ElementTree.fromstring((tmp_path / "gate.xml").read_text())
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("1", "0", "1")
    assert [case.get("name") for case in suite] == ["score", "tokens"]
    assert suite[0].find("failure") is not None and suite[1].find("skipped") is not None
    page = (tmp_path / "gate.md").read_text()
    assert "## Gate: block" in page and "| score | block | 0.4000 | 0.9000 | -0.5000 |" in page
    with Ledger.open(ledger) as records:
        (decision,) = records.gates()
    assert (decision.id, decision.verdict, decision.baseline) == (told["gate"], "block", "ckpt-new")
    assert decision.metrics["results"]["score"]["n"] == 100
    assert run(tmp_path, bad, good, yaml, as_json=True, **files) == 1  # the same decision again is the same row
    with Ledger.open(ledger) as records:
        assert len(records.gates()) == 1
    assert run(tmp_path, good, bad, yaml, **files) == 0
    assert "PASS: ckpt-new against" in capsys.readouterr().out
    assert ElementTree.fromstring((tmp_path / "gate.xml").read_text()).get("failures") == "0"
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "samples.jsonl").write_text(good.read_text())
    assert run(tmp_path, tmp_path / "evaluation", good, "metrics: {score: {margin: 0.01}}", **files) == 3
    assert ElementTree.fromstring((tmp_path / "gate.xml").read_text()).get("errors") == "1"
    assert "items would decide" in capsys.readouterr().out


def test_the_command_on_odd_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps({"id": f"t{n}", "score": 1.0}) for n in range(40)]
    odd = tmp_path / "odd.jsonl"
    odd.write_text("\n".join([*rows[:38], '{"id": "t38", "score": NaN}', rows[39], rows[39]]) + "\n")
    base = tmp_path / "base.jsonl"
    base.write_text("\n".join(rows) + "\n")
    assert run(tmp_path, odd, base, "metrics: {score: {margin: 0.1}}") == 0  # 39 items without a change: at most .074
    said = capsys.readouterr().out
    assert "run: 1 of 41 samples are unscored and left out, 1 of them because they could not be read" in said
    assert "run: 1 further samples of the same ids" in said and "1 in the base only" in said
    assert run(tmp_path, odd, base, "metrics: {tone: {margin: 0.1}}") == 3
    assert "of the run:" in capsys.readouterr().out
    with pytest.raises(DataError, match="there is no file nowhere"):
        gate(run="nowhere", against=str(base), config=tmp_path / "gate.yaml")
    with pytest.raises(ConfigError, match="there is no file"):
        gate(run=str(odd), against=str(base), config=tmp_path / "no.yaml")


def test_clusters_are_found_in_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        rows = [
            {"id": f"t{n}", "score": float(rng.random() < 0.5), "cluster": f"c{n // 10}", "suite": suite}
            for n in range(100)
            for suite in ("one", "two")
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    yaml = "metrics:\n  score: {margin: 0.05, suite: one}\n"
    run(tmp_path, tmp_path / "a", tmp_path / "b", yaml, as_json=True)
    (metric,) = json.loads(capsys.readouterr().out)["metrics"]
    assert (metric["n"], metric["clusters"]) == (100, 10)
    assert not [caveat for caveat in metric["caveats"] if "further samples" in caveat]  # the other suite is not read


def test_an_item_in_two_clusters_is_not_gated_as_if_there_were_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        rows = [{"id": f"t{n}", "score": 1.0, "cluster": n // 2} for n in range(80)]
        rows += [{"id": "t0", "score": 1.0, "cluster": "other"}] if name == "a" else []
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    yaml = "metrics: {score: {margin: 0.2}}"
    assert run(tmp_path, tmp_path / "b", tmp_path / "b", yaml) == 0
    capsys.readouterr()
    assert run(tmp_path, tmp_path / "a", tmp_path / "b", yaml) == 3
    said = capsys.readouterr().out
    assert "it cannot be computed: of the run:" in said and "item t0 is in cluster other, and in 0 elsewhere" in said


@pytest.mark.parametrize("packed", [False, True])
def test_a_log_of_inspect_is_read_for_its_own_suite_only(
    packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [{"id": f"t{n}", "epoch": 1, "scores": {"match": {"value": "C"}}} for n in range(40)]
    head = {"version": 2, "status": "success", "eval": {"task": "safe"}}
    log = tmp_path / ("log.eval" if packed else "log.json")
    if packed:
        with zipfile.ZipFile(log, "w") as members:
            members.writestr("header.json", json.dumps(head))
            for sample in samples:
                members.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
    else:
        log.write_text(json.dumps({**head, "samples": samples}))
    base = write(tmp_path / "base.jsonl", [*[0.0] * 40], suite="safe")
    assert run(tmp_path, log, base, "metrics: {score: {gain: 0.5, suite: safe}}") == 0
    capsys.readouterr()
    assert run(tmp_path, log, base, "metrics: {score: {gain: 0.5, suite: desk}}") == 3
    assert "log of the task safe, not of the suite desk" in capsys.readouterr().out


def test_logs_of_other_harnesses_are_sides_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect = {
        "samples": [{"id": f"t{n}", "epoch": 1, "scores": {"includes": {"value": "C"}}} for n in range(40)]
        + [{"id": "t40", "epoch": 1, "error": {"message": "timeout"}}]
    }
    (tmp_path / "inspect.json").write_text(json.dumps(inspect))
    lm_eval = [
        {"doc_id": f"t{n}", "filter": "none", "metrics": ["exact_match"], "exact_match": 1.0 if n % 2 else 0.0}
        for n in range(40)
    ]
    (tmp_path / "samples_x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lm_eval))
    yaml = "metrics:\n  score: {gain: 0.1}\n"
    assert run(tmp_path, tmp_path / "inspect.json", tmp_path / "samples_x.jsonl", yaml) == 0
    said = capsys.readouterr().out
    assert "run 1.0000, base 0.5000, gain +0.5000" in said and "1 of 41 samples are unscored" in said
    named = "metrics:\n  quality: {gain: 0.1, field: includes}\n"
    assert run(tmp_path, tmp_path / "inspect.json", tmp_path / "samples_x.jsonl", named) == 3  # lm-eval has none


def test_a_margin_that_no_result_can_miss_decides_nothing() -> None:
    settings = GateSettings(metrics={"success": Rule(margin=2.0)})
    worst, best = (Side(by_item={str(n): [value] for n in range(50)}) for value in (0.0, 1.0))
    (found,) = decide(settings, {"success": (worst, best)}).metrics
    assert found.verdict == "inconclusive" and "no result can miss a margin of 2" in found.why
    with pytest.raises(ValueError, match="finite"):
        Rule(margin=float("inf"))


def test_what_goes_wrong_beside_the_verdict_never_says_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = write(tmp_path / "good.jsonl", GOOD), write(tmp_path / "bad.jsonl", BAD)
    yaml = "metrics: {score: {margin: 0.05}}"
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written to"):
        run(tmp_path, good, bad, yaml, markdown=tmp_path / "folder")
    assert "PASS" in capsys.readouterr().out, "the verdict was told before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "folder", "gate.yaml", "good.jsonl"]

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("metier.evaluate.gate.decide", broken)
    assert run(tmp_path, good, bad, yaml) == 2
    assert "a fault of ours" in capsys.readouterr().err


def test_a_metric_with_a_control_character_makes_a_page_that_can_be_read(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", GOOD)
    yaml = 'metrics: {"a\\x01b": {margin: 0.05, field: score}}'
    assert run(tmp_path, good, good, yaml, junit=tmp_path / "gate.xml") in (0, 3)
    (case,) = ElementTree.fromstring((tmp_path / "gate.xml").read_text())
    assert case.get("name") == "a\ufffdb"


def test_rows_without_a_cluster_and_suites_that_are_not_there_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"t{n}", "score": 1.0, "suite": "desk", "cluster": f"c{n % 9}"} for n in range(40)]
    del rows[7]["cluster"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path, path, path, "metrics: {score: {margin: 0.1}}")
    assert "run: 1 of 40 rows have no field cluster, so it groups nothing" in capsys.readouterr().out
    assert run(tmp_path, path, path, "metrics: {score: {margin: 0.1, suite: nope}}") == 3
    assert "has no sample of the suite nope; it has desk" in capsys.readouterr().out
