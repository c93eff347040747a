"""`metier ledger`, as a person and as a program use it, on a file and on PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from metier.cli import main
from metier.cli.app import app
from metier.records.ledger import Ledger
from metier.records.types import Checkpoint, DatasetManifest

runner = CliRunner()
PAIR = {"prompt": "Where?", "chosen": "Here.", "rejected": "No idea.", "annotator": "anna"}


def run(*arguments: str) -> str:
    done = runner.invoke(app, ["ledger", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def told(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_in_out_figures_whole_whence_and_forgotten(where: str, tmp_path: Path) -> None:
    at = ["--ledger", where]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(PAIR) + "\n" + json.dumps({"prompt": "Half?", "chosen": "x"}) + "\n")
    said = run("import", str(pairs), *at)
    assert "trl: 2 episodes taken, 0 known already" in said
    assert "skipped 1: half a pair: `rejected` is missing (pairs.jsonl:2)" in said
    again = told("import", str(pairs), *at)
    assert (again["feedback"], again["feedback_known"], len(again["skipped"])) == (0, 1, 1)

    figures = told("stats", *at)
    assert figures["records"]["episodes"] == 2 and "arrays" not in figures["ledger"]
    (kind,) = figures["feedback"]
    assert (kind["kind"], kind["source"]["name"], kind["n"]) == ("preference", "anna", 1)
    assert "1  preference on 'better' by person anna 1, scored" in run("stats", *at)
    assert told("check", *at)["whole"] is True
    assert "is whole" in run("check", *at)

    out = tmp_path / "out.jsonl"
    written = told("export", str(out), "--as", "preference", *at)
    assert written["rows"] == 1 and json.loads(out.read_text())["annotator"] == "anna"

    with Ledger.open(where) as ledger:
        (statement,) = ledger.feedback()
        manifest = DatasetManifest(
            id="data-1",
            kind="pairs",
            name="pairs",
            run_id=statement.run_id or "",
            stage="dpo",
            query={},
            feedback_ids=(statement.id,),
            episode_ids=(),
        )
        ledger.add_dataset(manifest)
        ledger.add_checkpoint(
            Checkpoint(
                id="checkpoint-1",
                run_id=manifest.run_id,
                stage="dpo",
                step=1,
                path="p",
                parent="base",
                dataset_ids=("data-1",),
            )
        )
    forward = told("why", statement.id, *at)
    assert forward["datasets"] == [written["dataset"], "data-1"] and forward["checkpoints"] == ["checkpoint-1"]
    assert told("why", "person:anna", *at)["checkpoints"] == ["checkpoint-1"]
    back = told("why", "checkpoint-1", *at)
    assert back["checkpoints"][0]["datasets"][0]["feedback"][0]["feedback_ids"] == [statement.id]
    assert "checkpoint checkpoint-1: stage dpo" in run("why", "checkpoint-1", *at)
    assert "dataset    data-1" in run("why", statement.id, *at)

    assert "1 records would be erased" in run("forget", "anna", "--why", "asked", "--dry-run", *at)
    done = run("forget", "anna", "--why", "asked", *at)
    assert "person anna: 1 records erased" in done and "checkpoint checkpoint-1" in done
    assert f"{out}: written anew without it" in done and not out.exists(), "nothing is left that fits"
    assert "STALE: person anna was forgotten: asked" in run("why", "checkpoint-1", *at)
    assert told("check", *at)["whole"] is True


def test_a_ledger_that_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "ledger.sqlite"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(PAIR) + "\n")
    run("import", str(pairs), "--ledger", str(where))
    with Ledger.open(where) as ledger, ledger._database.engine.begin() as connection:
        connection.execute(text("DROP TRIGGER feedback_no_delete"))
        connection.execute(text("DELETE FROM feedback"))
    done = runner.invoke(app, ["ledger", "check", "--ledger", str(where), "--json"])
    assert done.exit_code == 1
    assert any("rows of feedback" in p["what"] or "moments" in p["what"] for p in json.loads(done.output)["problems"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stats", "--ledger", "nothing.sqlite"], "there is no ledger nothing.sqlite"),
        (["import", "nothing.jsonl"], "there is no file nothing.jsonl"),
        (["forget", "nobody", "--why", "asked"], "no record, person or source 'nobody'"),
        (["why", "nobody"], "no checkpoint or run 'nobody'"),
        (["export", "x.jsonl", "--as", "prefs"], "unknown layout 'prefs'"),
        (["export", "x.jsonl", "--as", "stepwise"], "no feedback in the ledger fits"),
    ],
)
def test_what_is_asked_wrongly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    assert main(["ledger", "import", "pairs.jsonl"]) == 0
    capsys.readouterr()
    assert main(["ledger", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1
