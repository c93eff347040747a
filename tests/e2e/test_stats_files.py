"""`metier stats` on files: what goes in, what comes out, and what it says of files that are not as they should be."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from metier.base.errors import DataError
from metier.cli.stats import stats_app
from metier.records.ledger import Ledger

Told = Callable[..., tuple[str, str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    def run(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        stats_app([str(one) for one in arguments], standalone_mode=False)
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    return run


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- labels ------------------------------------------------------------------------------


def test_labels_become_one_label_a_task(tmp_path: Path, told: Told) -> None:
    # Columns in any order, more than are needed, a byte order mark, quotes and blank lines.
    (tmp_path / "in.csv").write_text(
        '\ufeffLabel,when,worker,task\nyes,1,ann,"t, one"\n\nyes,2,bob,"t, one"\nno,3,cat,"t, one"\nno,1,ann,t2\n',
        encoding="utf-8",
    )
    out, err = told("aggregate", tmp_path / "in.csv", "-o", tmp_path / "out.csv")
    assert out == ""
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert rows == [
        {"task": "t, one", "label": "yes", "confidence": "0.666667"},
        {"task": "t2", "label": "no", "confidence": "1.0"},
    ]
    assert "3 sources are too few" in err
    printed, _ = told("aggregate", tmp_path / "in.csv", "--method", "majority")
    assert printed == (tmp_path / "out.csv").read_text()


def test_what_is_odd_in_labels_is_named(tmp_path: Path, told: Told) -> None:
    (tmp_path / "in.csv").write_text("task,worker,label\nt,a,x\nt,a,y\nt,b,y\nt,b,y\nt,c\nu,c,\nu,d,x\n")
    out, _ = told("aggregate", tmp_path / "in.csv", "--json")
    got = json.loads(out)
    assert got["rows"] == [
        {"task": "t", "label": "y", "confidence": 1.0},
        {"task": "u", "label": "x", "confidence": 1.0},
    ]
    assert (got["changed"], got["repeated"], got["workers_seen_once"]) == (1, 1, 3)
    assert [(one["line"], one["why"]) for one in got["skipped"]] == [
        (6, "2 cells where the first line names 3 columns"),
        (7, "no label"),
    ]
    _, err = told("aggregate", tmp_path / "in.csv")
    assert "the last one counts" in err
    assert "line 6: 2 cells" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("worker,item,label\na,b,c\n", "has no column task; its first line must name the columns"),
        ("task,worker,label\n", "has no row with a task, a worker and a label"),
        ('task,worker,label\nt,a,"x\nt,b,y\n', "line 3.*quotation mark"),
        ("task,worker,label,label\nt,a,x,y\n", "two columns label"),
        ("[1]", "one JSON list"),
    ],
)
def test_files_that_are_no_labels_are_refused(tmp_path: Path, told: Told, text: str, message: str) -> None:
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        told("aggregate", tmp_path / "in.csv")


def test_other_refusals(tmp_path: Path, told: Told) -> None:
    (tmp_path / "in.csv").write_text("task,worker,label\nt,a,x\nu,a,y\n")
    (tmp_path / "gold.csv").write_text("task,label\nt,x\nt,y\n")
    (tmp_path / "bytes.csv").write_bytes(b"task,worker,label\nt,a,\xff\n")
    with pytest.raises(DataError, match="there is no method"):
        told("aggregate", tmp_path / "in.csv", "--method", "vote")
    with pytest.raises(DataError, match="t is x in line 2 and y in line 3"):
        told("aggregate", tmp_path / "in.csv", "--gold", tmp_path / "gold.csv")
    with pytest.raises(DataError, match=r"not UTF-8 \(line 2\)"):
        told("aggregate", tmp_path / "bytes.csv")
    with pytest.raises(DataError, match="there is no file"):
        told("aggregate", tmp_path / "none.csv")
    with pytest.raises(DataError, match="no folder"):
        told("aggregate", tmp_path / "in.csv", "-o", tmp_path / "no" / "out.csv")
    (tmp_path / "gold.csv").write_text("task,label\nz,x\n")
    with pytest.raises(DataError, match="no task of the gold"):
        told("aggregate", tmp_path / "in.csv", "--gold", tmp_path / "gold.csv")
    with pytest.raises(DataError, match="labels that are numbers"):
        told("agreement", tmp_path / "in.csv", "--scale", "ordinal")


def test_agreement_tells_what_workers_are_worth(tmp_path: Path, told: Told) -> None:
    rows = [
        f"t{t},{w},{'ab'[t % 2] if w != 'coin' else 'ab'[t // 2 % 2]},{2 if w == 'ann' else 1}"
        for t in range(40)
        for w in ("ann", "bob", "cat", "coin")
    ]
    (tmp_path / "in.csv").write_text("task,worker,label,cost\n" + "\n".join(rows) + "\n")
    (tmp_path / "gold.csv").write_text("task,label\nt0,a\nt1,b\nt2,b\n")
    out, _ = told("agreement", tmp_path / "in.csv", "--gold", tmp_path / "gold.csv", "--json")
    got = json.loads(out)
    worth = {one["name"]: one for one in got["workers"]}
    assert worth["ann"]["bits_per_cost"] == pytest.approx(worth["bob"]["bits_per_cost"] / 2)
    assert worth["coin"]["bits"] < 0.01
    assert (worth["ann"]["gold"], worth["ann"]["right"], worth["ann"]["accuracy"]) == (3, 2, 0.6)
    assert got["alpha"]["tasks"] == 40
    text, _ = told("agreement", tmp_path / "in.csv")
    assert "alpha (nominal)" in text and "bits/cost" in text
    (tmp_path / "one.csv").write_text("task,worker,label\nt,a,x\nu,b,x\n")
    text, _ = told("agreement", tmp_path / "one.csv")
    assert "alpha (nominal)  none" in text


def test_gold_that_cannot_check_is_named(tmp_path: Path, told: Told) -> None:
    labels = tmp_path / "in.csv"
    labels.write_text("task,worker,label\n" + "".join(f"t{t},{w},{'ab'[t % 2]}\n" for t in range(4) for w in "xyz"))
    bare = json.loads(told("agreement", labels, "--json")[0])  # no gold: nothing is said of accuracy
    assert {(one["gold"], one["accuracy"], one["low"], one["high"]) for one in bare["workers"]} == {
        (0, None, None, None)
    }
    other = lines(tmp_path / "other.jsonl", [{"task": "q", "label": "a"}])
    for command in ("agreement", "aggregate"):
        with pytest.raises(DataError, match="no task of the gold"):
            told(command, labels, "--gold", other)
    gold = lines(tmp_path / "gold.jsonl", [{"task": "t0", "label": "A"}, {"task": "q", "label": "never labelled"}])
    for command in ("agreement", "aggregate"):
        assert json.loads(told(command, labels, "--gold", gold, "--json")[0])["gold_labels_of_no_worker"] == ["A"]
        assert "gold has labels that no worker gave: A;" in told(command, labels, "--gold", gold)[1]


def test_what_is_no_number_becomes_no_label(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"task": 1, "worker": "a", "label": NaN}\n{"task": 1, "worker": "b", "label": 1}\n'
        '{"task": 1, "worker": "c", "label": -1e999}\n{"task": NaN, "worker": "c", "label": 1}\n'
    )
    got = json.loads(told("aggregate", path, "--json")[0])
    assert got["rows"] == [{"task": "1", "label": "1", "confidence": 1.0}]
    assert [(one["line"], one["why"]) for one in got["skipped"]] == [
        (1, "nan is no label or name"),
        (3, "-inf is no label or name"),
        (4, "nan is no label or name"),
    ]
    (tmp_path / "gold.jsonl").write_text('{"task": 1, "label": 1}\n{"task": 1, "label": NaN}\n')
    err = told("aggregate", path, "--gold", tmp_path / "gold.jsonl")[1]
    assert "gold: majority 1/1" in err and "gold.jsonl: line 2: nan is no label or name" in err
    (tmp_path / "gold.jsonl").write_text('{"task": 1, "label": NaN}\n')
    with pytest.raises(DataError, match="no row with a task and a label; line 1: nan"):
        told("aggregate", path, "--gold", tmp_path / "gold.jsonl")


def test_ppi_says_why_there_is_no_interval_and_no_corrected_rate(tmp_path: Path, told: Told) -> None:
    judge = lines(tmp_path / "judge.jsonl", [{"id": k, "value": k % 2} for k in range(100)])
    one_class = lines(tmp_path / "one.jsonl", [{"id": k, "value": 1} for k in range(40)])
    got = json.loads(told("ppi", "--labels", one_class, "--judge", judge, "--json")[0])
    assert (got["estimate"], got["ci95"], got["low"]) == (pytest.approx(1), None, None)
    assert "show no spread" in got["caveats"][0]
    assert "no interval" in told("ppi", "--labels", one_class, "--judge", judge)[0]
    rows = [{"id": k, "value": int(k % 4 > 0)} for k in range(40)]
    torn = lines(tmp_path / "torn.jsonl", [*rows, {"id": 0, "value": 1}, {"id": 1, "value": 1}])
    got = json.loads(told("ppi", "--labels", torn, "--judge", judge, "--json")[0])
    assert got["caveats"] == [f"{torn}: 2 rows repeat an id and were averaged with it; 1 ids contradict themselves"]
    assert "contradict themselves" in got["no_rogan_gladen"]
    twice = lines(tmp_path / "twice.jsonl", [*rows, rows[0]])  # the same again is no contradiction
    got = json.loads(told("ppi", "--labels", twice, "--judge", judge, "--json")[0])
    assert "0 ids contradict" in got["caveats"][0] and got["rogan_gladen"] is not None
    chosen = lines(tmp_path / "chosen.jsonl", [{**row, "propensity": 0.4} for row in rows])
    assert "a random sample" in told("ppi", "--labels", chosen, "--judge", judge)[0]
    graded = lines(tmp_path / "graded.jsonl", [{**row, "value": 0.5} for row in rows[:1]] + rows[1:])
    assert "values other than 0 and 1" in told("ppi", "--labels", graded, "--judge", judge)[0]
    uneven = lines(tmp_path / "uneven.jsonl", [{**rows[0], "propensity": 0.4}, {**rows[0], "propensity": 0.5}])
    with pytest.raises(DataError, match=r"line 2: 0 has the propensity 0\.5, and 0\.4 before"):
        told("ppi", "--labels", uneven, "--judge", judge)


def test_ppi_combines_labels_and_judgements(tmp_path: Path, told: Told) -> None:
    (tmp_path / "labels.csv").write_text("id,value\n1,1\n2,0\n3,1\n4,1\nlost,1\nbad,many\n")
    judged = [1, 0, 0, 1, 1, 1, 0, 0, 1, 0]
    judge = lines(tmp_path / "judge.jsonl", [{"id": k, "value": v} for k, v in enumerate(judged, 1)])
    out, _ = told("ppi", "--labels", tmp_path / "labels.csv", "--judge", judge, "--json")
    got = json.loads(out)
    assert (got["n"], got["N"], got["estimate"], got["lam"]) == (4, 6, pytest.approx(0.75), pytest.approx(0.3))
    assert got["ci95"] == [got["low"], got["high"]]
    assert got["labels_without_judgement"] == 1
    assert [one["line"] for one in got["skipped"]] == [7]
    text, err = told("ppi", "--labels", tmp_path / "labels.csv", "--judge", judge)
    assert "estimate 0.7500" in text and "left out: 1 labelled items" in err and "line 7" in err
    (tmp_path / "other.csv").write_text("id,value\nx,1\n")
    with pytest.raises(DataError, match="no id of"):
        told("ppi", "--labels", tmp_path / "other.csv", "--judge", judge)


# --- scores ------------------------------------------------------------------------------


def test_compare_has_every_number(tmp_path: Path, told: Told) -> None:
    a = lines(tmp_path / "a.jsonl", [{"id": k, "score": int(k % 3 > 0), "topic": k // 5} for k in range(60)])
    b = lines(tmp_path / "b.jsonl", [{"id": k, "score": int(k % 2 > 0), "topic": k // 5} for k in range(10, 70)])
    got = json.loads(told("compare", a, b, "--json")[0])
    for name in ("n", "mean_a", "mean_b", "diff", "se_paired", "se_unpaired", "ci95", "p", "mcnemar_p", "mde"):
        assert got[name] is not None, name
    assert (got["n"], got["only_in_a"], got["only_in_b"], got["clusters"]) == (50, 10, 10, 50)
    grouped = json.loads(told("compare", a, b, "--cluster", "topic", "--json")[0])
    assert (grouped["n"], grouped["clusters"]) == (50, 10)
    text, err = told("compare", a, b)
    assert "difference" in text and "left out 20 items" in err


def test_compare_says_what_it_cannot_know(tmp_path: Path, told: Told) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": "x", "score": 1}\n{"id": "y", "score": NaN}\n{"id": "z", "score": null}\n'
    )
    b = lines(tmp_path / "b.jsonl", [{"id": name, "score": 0} for name in "xyz"])
    got = json.loads(told("compare", tmp_path / "a.jsonl", b, "--json")[0])
    assert (got["n"], got["diff"], got["ci95"], got["p"], got["unscored"]) == (1, 1.0, None, None, 1)
    assert "one item" in got["caveats"][0]
    assert got["skipped"][0]["line"] == 2
    same = json.loads(told("compare", b, b, "--json")[0])
    assert (same["n"], same["diff"], same["se_paired"], same["ci95"], same["p"], same["mcnemar_p"]) == (
        3,
        0,
        0,
        None,
        1,
        1,
    )
    assert "alike on every item" in same["caveats"][0]
    other = lines(tmp_path / "c.jsonl", [{"id": "q", "score": 0}])
    with pytest.raises(DataError, match="share no scored item"):
        told("compare", b, other)
    with pytest.raises(DataError, match="no field topic"):
        told("compare", b, b, "--cluster", "topic")
    huge = lines(
        tmp_path / "huge.jsonl", [{"id": "x", "score": 1}, {"id": "y", "score": 10**400}, {"id": "z", "score": 1e308}]
    )
    got = json.loads(told("compare", huge, b, "--json")[0])  # a row that is beyond reckoning stops no other
    assert (got["n"], [one["line"] for one in got["skipped"]]) == (1, [2, 3])
    worded = lines(tmp_path / "worded.jsonl", [{"id": "x", "score": 1}, {"id": "y", "score": "a cluster"}])
    got = json.loads(told("compare", worded, b, "--json")[0])  # no number, whatever the word
    assert (got["n"], got["skipped"][0]["line"]) == (1, 2)
    (tmp_path / "nan.jsonl").write_text('{"id": 1, "score": NaN}\n')
    with pytest.raises(DataError, match="no scored item; line 1"):
        told("compare", tmp_path / "nan.jsonl", b)


def sample(k: int, epoch: int, value: Any) -> dict[str, Any]:
    scores = {} if value is None else {"match": {"value": value}, "style": {"value": 0.5}}
    return {"id": f"s{k}", "epoch": epoch, "scores": scores, "metadata": {"topic": k % 2}}


def inspect_log(path: Path, samples: list[dict[str, Any]], *, method: int) -> Path:
    """An .eval file as inspect-ai writes it: a zip whose members are packed with zstandard (93) or deflate."""
    with zipfile.ZipFile(path, "w") as log:
        members = {"summaries.json": samples, **{f"samples/{s['id']}_epoch_{s['epoch']}.json": s for s in samples}}
        for name, content in members.items():
            data = json.dumps(content).encode()
            if method == zipfile.ZIP_DEFLATED:
                log.writestr(name, data, zipfile.ZIP_DEFLATED)
                continue
            # Python's zipfile does not pack with zstandard before 3.14: it stores what is packed already, and the
            # entry is then given the method and the size that it has.
            packed = pyarrow.Codec("zstd").compress(data, asbytes=True)
            log.writestr(name, packed, zipfile.ZIP_STORED)
            info = log.getinfo(name)
            info.compress_type, info.file_size = method, len(data)
    return path


def test_inspect_and_lm_eval_logs_are_read(tmp_path: Path, told: Told) -> None:
    right = [sample(k, epoch, "C" if k < 4 else "I") for k in range(6) for epoch in (1, 2)] + [sample(6, 1, None)]
    wrong = [sample(k, epoch, "P" if k < 2 else "I") for k in range(6) for epoch in (1, 2)]
    packed = inspect_log(tmp_path / "a.eval", right, method=93)
    plain = inspect_log(tmp_path / "b.eval", wrong, method=zipfile.ZIP_DEFLATED)
    (tmp_path / "b.json").write_text(json.dumps({"version": 2, "status": "success", "samples": wrong}, indent=1))
    for other in (plain, tmp_path / "b.json"):
        got = json.loads(told("compare", packed, other, "--cluster", "topic", "--json")[0])
        assert (got["n"], got["mean_a"], got["mean_b"]) == (6, pytest.approx(4 / 6), pytest.approx(1 / 6))
        assert (got["clusters"], got["repeats"], got["unscored"], got["only_in_a"]) == (2, 12, 1, 0)
        assert any("scorer match, of match, style" in note for note in got["caveats"])
    with zipfile.ZipFile(tmp_path / "summaries.eval", "w") as log:  # a cluster of 0 is one: no sample has to be read
        log.writestr("summaries.json", json.dumps(wrong))
    got = json.loads(told("compare", packed, tmp_path / "summaries.eval", "--cluster", "topic", "--json")[0])
    assert (got["n"], got["clusters"]) == (6, 2)
    style = json.loads(told("compare", packed, plain, "--metric", "style", "--json")[0])
    assert style["diff"] == 0
    with pytest.raises(DataError, match="no scorer 'judge'"):
        told("compare", packed, plain, "--metric", "judge")
    rows = [
        {
            "doc_id": k,
            "doc": {"topic": k % 2},
            "filter": way,
            "metrics": ["acc"],
            "acc": float(k < 4) if way == "strict" else 1.0,
        }
        for way in ("strict", "loose")
        for k in range(6)
    ]
    samples = lines(tmp_path / "samples_task.jsonl", rows)
    ours = lines(tmp_path / "c.jsonl", [{"id": k, "score": 0} for k in range(6)])
    got = json.loads(told("compare", samples, ours, "--json")[0])
    assert (got["n"], got["mean_a"]) == (6, pytest.approx(4 / 6))
    assert any("filter strict" in note for note in got["caveats"])


def test_pass_k_of_a_file(tmp_path: Path, told: Told) -> None:
    rows = [
        {"id": name, "score": s}
        for name, all_s in (("a", (1, 1, 0, 0)), ("b", (1,) * 4), ("c", (0,) * 4))
        for s in all_s
    ]
    path = lines(tmp_path / "s.jsonl", rows)
    got = json.loads(told("passk", path, "--k", "2", "--json")[0])
    assert (got["pass@1"], got["pass@k"], got["pass^k"]) == (0.5, pytest.approx(11 / 18), pytest.approx(7 / 18))
    assert got["se_clustered"] > got["se_naive"] > 0
    assert "pass^2 0.3889" in told("passk", path, "--k", "2")[0]
    even = [{"id": name, "score": s} for name in "ab" for s in (1, None, 1)]
    text, err = told("passk", lines(tmp_path / "even.jsonl", even), "--k", "2")
    assert "4 attempts at 2 tasks" in text and "2 attempts are unscored" in err
    assert "all tasks have the same pass@1 and pass@2 and pass^2: no spread was seen" in err
    alone = json.loads(told("passk", lines(tmp_path / "alone.jsonl", even[:3]), "--k", "2", "--json")[0])
    assert (alone["se_clustered"], alone["caveats"]) == (None, ["one task: there is no error to be known"])
    with pytest.raises(DataError, match="a threshold of nan"):
        told("passk", path, "--k", "2", "--threshold", "nan")
    with pytest.raises(DataError, match="no task has 5 scored attempts"):
        told("passk", path, "--k", "5")
    graded = lines(tmp_path / "g.jsonl", [{"id": "a", "score": 0.5}, {"id": "a", "score": 1}])
    with pytest.raises(DataError, match="--threshold"):
        told("passk", graded, "--k", "1")
    assert json.loads(told("passk", graded, "--k", "2", "--threshold", "0.5", "--json")[0])["pass^k"] == 1


def test_calibration_of_a_file(tmp_path: Path, told: Told) -> None:
    rows: list[dict[str, Any]] = [{"p": (k % 20) / 20, "y": int(k % 7 == 0)} for k in range(200)]
    path = lines(tmp_path / "f.jsonl", [*rows, {"p": 1.2, "y": 0}, {"p": 0.2}, {"p": "?", "y": 1}])
    got = json.loads(told("calibration", path, "--json")[0])
    assert got["n"] == 200
    assert got["brier"] == pytest.approx(got["reliability"] - got["resolution"] + got["uncertainty"], abs=1e-12)
    assert {"ece", "adaptive_ece", "ece_null", "log_score", "auroc"} <= got.keys()
    assert [one["line"] for one in got["skipped"]] == [202, 201, 203]
    assert "by chance alone" in told("calibration", path)[0]
    single = lines(tmp_path / "one.jsonl", [{"p": 0.7, "y": 1}])
    one = json.loads(told("calibration", single, "--json")[0])
    assert (one["n"], one["auroc"], one["uncertainty"]) == (1, None, 0)
    assert "all outcomes are the same" in one["caveats"][0]
    with pytest.raises(DataError, match="no row with p"):
        told("calibration", lines(tmp_path / "none.jsonl", [{"p": 2, "y": 1}]))


def test_a_hundred_thousand_rows_are_compared(tmp_path: Path, told: Told) -> None:
    for name, step in (("a", 3), ("b", 7)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"id": "q{k}", "score": {int(k % step > 0)}, "group": {k % 500}}}\n' for k in range(100_000))
        )
    got = json.loads(told("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--cluster", "group", "--json")[0])
    assert (got["n"], got["clusters"]) == (100_000, 500)
    # Right in A and wrong in B where 7 divides and 3 does not: 14,286 less the multiples of 21, 4,762.
    assert (got["only_a"], got["only_b"]) == (14286 - 4762, 33334 - 4762)


def test_evaluations_of_a_run_are_compared(tmp_path: Path, told: Told) -> None:
    path = Path(__file__).parents[1] / "unit" / "test_report_sample.py"
    spec = importlib.util.spec_from_file_location("sample_run", path)
    assert spec is not None and spec.loader is not None
    sample_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sample_run)
    where = tmp_path / "ledger.sqlite"
    with Ledger.open(str(where)) as ledger:
        run = sample_run.fill(ledger, tmp_path / "run")
    last, first = f"{run.id}:evaluate-grpo:heldout", f"{run.id}:baseline:heldout"
    got = json.loads(told("compare", last, first, "--ledger", where, "--json")[0])
    assert got["diff"] > 0.3
    assert got["n"] > 30
    assert got["p"] < 1e-6
    arguments = ["compare", last, first, "--ledger", str(where)]
    code = f"from metier.cli.stats import stats_app; stats_app({arguments}, standalone_mode=False); import sys; "
    heavy = subprocess.run([sys.executable, "-c", code + "sys.exit('transformers' in sys.modules)"], check=False)
    assert heavy.returncode == 0, "numbers out of the ledger need no model"
    whole = json.loads(told("compare", run.id, first, "--ledger", where, "--json")[0])
    assert whole["n"] == got["n"] and whole["only_in_a"] > 0
    assert any("another with" in note for note in whole["caveats"])
    for name, message in (("nothing", "there is no run"), (f"{run.id}:sft", "has no evaluation 'sft'")):
        with pytest.raises(DataError, match=message):
            told("compare", name, first, "--ledger", where)
