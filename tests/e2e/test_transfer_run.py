"""The audit of real runs: a tiny random model learns by RL, on the verifier that it is measured by and on another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from metier.base.errors import DataError
from metier.cli.transfer import transfer as command
from metier.evaluate.transfer.audit import Settings
from metier.evaluate.transfer.runs import audit_run, pool_of_stage, rl_stages
from metier.evaluate.transfer.words import as_json, as_text
from metier.feedback.people.labelling import Labelling
from metier.feedback.people.queue import read_queue
from metier.recipes.runner import run
from metier.records.events import read, steps
from metier.records.ledger import Ledger

# About one random word in two holds an "e"; what the second verifier wants has nothing to do with that.
PLUGIN = """
from metier.feedback.verifiers.protocol import Verdict
from metier.feedback.verifiers.registry import register

class Holds:
    version = "1"

    def __init__(self, name, letters):
        self.name, self.letters = name, letters

    def verify(self, task, attempt, params):
        said = "".join(m.content for m in attempt.messages if m.role == "assistant")
        return Verdict(score=float(any(letter in said for letter in self.letters)), reason=said)

register(Holds("holds_e", "e"))
register(Holds("starts_wide", "aio"))
"""
SAMPLING = {"top_k": 16, "max_turn_tokens": 1, "max_turns": 1}


def trained(model: Path, folder: Path, reward: str, **rl: Any) -> tuple[str, Path]:
    """The run's id and its ledger: 48 held-out tasks before, every fourth step, and after."""
    rows = []
    for split, n, verifier in (("heldout", 48, "holds_e"), ("train", 48, reward)):
        for number in range(n):
            chat = [{"role": "user", "content": f"Say a word, {split} {number}."}]
            rows.append(json.dumps({"messages": chat, "verifier": verifier, "split": split}))
    (folder / "tasks.jsonl").write_text("\n".join(rows))
    (folder / "plugin.py").write_text(PLUGIN)
    measured = {"kind": "evaluate", "splits": {"heldout": 48}, "sampling": {**SAMPLING, "temperature": 1.0}}
    stages = [
        {**measured, "name": "before", "of": "base"},
        {
            "kind": "rl", "name": "rl", "of": "base", "split": "train", "steps": 12, "tasks": 4, "group": 8, "lr": 1e-2,
            "sampling": SAMPLING, "eval_every": 3, "eval_tasks": 24, **rl,
        },
        {**measured, "name": "after", "of": "rl"},
    ]  # fmt: skip
    recipe = {
        "name": "tiny", "seed": 1, "model": {"name": str(model), "dtype": "float32"}, "tasks": {"file": "tasks.jsonl"},
        "plugins": ["plugin.py"], "stages": stages,
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    ledger = folder / "ledger.sqlite"
    return run(str(folder / "tiny.yaml"), folder=str(folder / "run"), ledger=str(ledger)).run_id, ledger


def run_transfer(*arguments: str) -> None:
    single = typer.Typer()
    single.command()(command)
    single(args=list(arguments), standalone_mode=False)


def test_a_run_that_learns_what_it_is_measured_by_transfers(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, ledger = trained(tiny_model, tmp_path, "holds_e", options={"kl": "k3", "kl_coef": 0.001})
    with Ledger.open(ledger) as records:
        (stage,) = rl_stages(records, run_id)
        found = audit_run(records, run_id, stage, Settings(draws=500))
        pool = pool_of_stage(records, run_id, stage)
        logged = steps(read(tmp_path / "run"), "rl")
        # the rewards are those that the run learnt from
        episodes = {one.id: one for one in records.episodes(run_id=run_id, stage="rl")}
        for event in logged:
            mine = [s.rewards["rl"] for s in pool.samples if episodes[s.id].weights.step == event["step"] - 1]
            assert sum(r or 0 for r in mine) / len(mine) == pytest.approx(event["reward"], abs=1e-9)
    assert [one.step for one in found.checkpoints] == [0, 3, 6, 9, 12]
    first, last = found.checkpoints[0], found.checkpoints[-1]
    assert first.gold.n == last.gold.n == 48 and found.checkpoints[1].gold.n == 24 and first.gain is None
    assert last.gain is not None and last.gain.mean is not None and first.gold.mean is not None
    assert last.gold.mean == pytest.approx(first.gold.mean + last.gain.mean, abs=1e-9)  # the same tasks on both sides
    assert last.gain.mean > 0.2, as_text(found)
    assert found.verdict == "transfers", as_text(found)
    assert found.transfer is not None and found.transfer.ratio is not None and found.transfer.late is not None
    # the run logged its KL, so the law is fitted to held-out gold
    assert found.fit is not None and found.fit.law == "rl" and found.fit.points == 4
    assert found.checkpoints[0].kl == 0 and (found.checkpoints[-1].kl or 0) > 0
    assert any("verdict that the reward is made of" in caveat for caveat in found.caveats)
    json.dumps(as_json(found), allow_nan=False)
    run_transfer(run_id, "--ledger", str(ledger), "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["audits"][0]["verdict"] == "transfers" and told["audits"][0]["reward"] == "rl"
    run_transfer("last", "--ledger", str(ledger))
    assert "held-out gold" in capsys.readouterr().out


def test_a_run_on_another_reward_is_not_said_to_transfer_and_people_can_be_asked(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, ledger = trained(tiny_model, tmp_path, "starts_wide")
    with Ledger.open(ledger) as records:
        (stage,) = rl_stages(records, run_id)
        found = audit_run(records, run_id, stage, Settings(draws=500))
        assert all(one.gold is None for one in pool_of_stage(records, run_id, stage).samples)
    assert found.transfer is not None and (found.transfer.reward.low or 0) > 0, as_text(found)
    assert found.verdict != "transfers", as_text(found)
    assert found.samples == 0 and found.fit is None and any("no KL" in caveat for caveat in found.caveats)
    # its own verdicts are no gold, so whoever looks at the words is asked
    queue = tmp_path / "check.jsonl"
    run_transfer(run_id, "--ledger", str(ledger), "--queue", str(queue), "-n", "24")
    assert "24 responses drawn" in capsys.readouterr().out
    with Labelling(read_queue(queue), ledger) as labelling:
        for number in range(24):
            shown = labelling.shown("ann")
            assert shown is not None
            said = "right" if "e" in shown.episodes[0].messages[-1].content else "wrong"
            labelling.answer("ann", shown.slot.item, {"labels": [said]}, f"click-{number}")
    run_transfer(run_id, "--ledger", str(ledger), "--queue", str(queue), "--json")
    (passes,) = json.loads(capsys.readouterr().out)["audits"][0]["false_pass"]
    assert passes["by"] == "who were asked" and passes["anywhere"]["n"] == 24
    assert passes["anywhere"]["low"] < passes["anywhere"]["high"]


def test_a_run_without_rl_or_measures_says_what_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Say a word, {n}."}], "verifier": "holds_e", "split": "train"}
        for n in range(8)
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    recipe: dict[str, Any] = {
        "name": "bare", "seed": 1, "model": {"name": str(tiny_model), "dtype": "float32"},
        "tasks": {"file": "tasks.jsonl"}, "plugins": ["plugin.py"],
        "stages": [{"kind": "evaluate", "name": "before", "of": "base", "splits": {"train": 2}, "sampling": SAMPLING}],
    }  # fmt: skip
    ledger = tmp_path / "ledger.sqlite"
    (tmp_path / "bare.yaml").write_text(json.dumps(recipe))
    done = run(str(tmp_path / "bare.yaml"), folder=str(tmp_path / "bare"), ledger=str(ledger))
    with Ledger.open(ledger) as records, pytest.raises(DataError, match="no stage of kind rl"):
        rl_stages(records, done.run_id)
    recipe["stages"] = [
        {
            "kind": "rl", "name": "rl", "of": "base", "split": "train", "steps": 2, "tasks": 2, "group": 4, "lr": 1e-3,
            "sampling": SAMPLING,
        }
    ]  # fmt: skip
    (tmp_path / "rl.yaml").write_text(json.dumps({**recipe, "name": "rl"}))
    done = run(str(tmp_path / "rl.yaml"), folder=str(tmp_path / "rl"), ledger=str(tmp_path / "other.sqlite"))
    with Ledger.open(tmp_path / "other.sqlite") as records:
        (stage,) = rl_stages(records, done.run_id)
        found = audit_run(records, done.run_id, stage, Settings(draws=100))
    assert found.verdict == "undecided" and "add evaluate stages" in found.note
    with pytest.raises(DataError, match="no rl stage 'sft'; it has rl"):
        run_transfer(done.run_id, "--ledger", str(tmp_path / "other.sqlite"), "--reward", "sft")
