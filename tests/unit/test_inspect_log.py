"""An evaluation as a log of Inspect: what is in it, and that our own reader of such logs says the same.

That inspect-ai itself reads it is tested in tests/e2e/test_harnesses.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from metier.cli.scores import read_scores
from metier.records.ledger import Ledger
from metier.records.types import Feedback, Source, Span
from own_log import own_log


@pytest.fixture
def written(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The log of three tasks, twice each; one task's verifier cannot tell."""
    monkeypatch.chdir(tmp_path)
    log = own_log(tiny_model)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\+00-00_t_[0-9a-f]{22}.json", log.name)
    return dict(json.loads(log.read_text()))


def test_what_is_in_it(written: dict[str, Any]) -> None:
    assert (written["version"], written["status"], len(written["samples"])) == (2, "success", 6)
    assert written["eval"]["config"] == {"epochs": 2}
    assert written["eval"]["task"] == "t" and written["eval"]["dataset"]["samples"] == 3
    assert {"weights", "template", "sampling", "verifiers"} <= {
        *written["eval"]["metadata"]["metier"], *written["eval"]["metadata"]["metier"]["model"],
    }  # fmt: skip
    samples = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
    for sample, row in zip(written["samples"], samples, strict=True):
        assert (sample["id"], sample["epoch"]) == (row["id"], row["repeat"] + 1)
        assert [message["role"] for message in sample["messages"]] == ["user", "assistant"]
        assert sample["input"] == sample["messages"][:1]
        assert sample["output"]["usage"]["output_tokens"] == row["tokens"] <= 3
        if row["status"] == "unscored":
            assert "scores" not in sample and "missing or empty" in sample["error"]["message"]
        else:
            assert sample["scores"]["success"]["value"] == row["score"]
            assert sample["scores"]["exact"]["metadata"]["version"] == "2"
    assert sum("error" in sample for sample in written["samples"]) == 2
    results = written["results"]
    assert (results["total_samples"], results["completed_samples"]) == (6, 4)
    assert [one["name"] for one in results["scores"]] == ["success", "exact"]
    assert (results["scores"][0]["scored_samples"], results["scores"][0]["unscored_samples"]) == (4, 2)


def test_what_is_said_of_a_pair_or_a_passage_is_no_score_of_a_sample(written: dict[str, Any], tiny_model: Path) -> None:
    with Ledger.open("runs/ledger.sqlite") as ledger:
        (run,) = ledger.runs()
        one, two = (episode.id for episode in ledger.episodes(run_id=run.id)[-2:])
        said: dict[str, Any] = {"kind": "score", "value": 0.5, "run_id": run.id}
        said["source"] = Source(kind="person", name="ann", version="1")
        ledger.add_feedback(
            [
                Feedback(id="fb-pair", about=(one, two), criterion="better", **said),
                Feedback(id="fb-passage", about=(one,), span=Span(turn=1), criterion="tone", **said),
            ]
        )
    again = json.loads(own_log(tiny_model, Path("again")).read_text())
    assert again["results"] == written["results"] and again["samples"] == written["samples"]


def test_our_reader_says_the_same_of_it(written: dict[str, Any]) -> None:
    (path,) = Path("logs").iterdir()
    log, samples = read_scores(str(path), cluster="cluster"), read_scores("samples.jsonl", cluster="cluster")
    assert log.by_item == samples.by_item
    assert log.clusters == samples.clusters
    assert not log.skipped and log.notes == ["scorer success, of success, exact; another with --metric"]
