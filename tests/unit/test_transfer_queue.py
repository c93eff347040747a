"""A stratified sample for people or a judge: drawn with known chances, asked by the real page's code, taken back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from metier.base.errors import ConfigError, DataError
from metier.cli.transfer import transfer as command
from metier.evaluate.transfer.asking import answers_of_judge, answers_of_ledger, draw, judge_file, write_queue
from metier.evaluate.transfer.audit import Answer, Settings, audit_pool
from metier.evaluate.transfer.pool import Pool, Sample, read_pool
from metier.feedback.people.labelling import Labelling
from metier.feedback.people.queue import read_queue
from metier.feedback.selection.filling import why_file
from metier.records.ledger import Ledger
from metier.records.types import Message

USER, WORDS = Message(role="user", content="Please book it."), "Booked, whatever it was. "


def pool(prompts: int = 40, samples: int = 10, *, gold: bool = False, seed: int = 0) -> Pool:
    """The longer the answer the higher the reward; the longest fifth fails four times in five, others once in five."""
    rng = np.random.default_rng(seed)
    made = []
    for prompt in range(prompts):
        for k in range(samples):
            length = int(rng.integers(1, 11))
            fails = rng.random() < (0.8 if length > 8 else 0.2)
            asked = (Message(role="user", content=f"{USER.content} Number {prompt}."),)
            said = (Message(role="assistant", content=("no " if fails else "yes ") + WORDS * length),)
            made.append(
                Sample(
                    id=f"{prompt}-{k}", prompt=str(prompt), cluster=str(prompt), asked=asked, said=said,
                    rewards={"length": float(length)}, gold=float(not fails) if gold else None,
                )
            )  # fmt: skip
    return Pool(name="made", samples=tuple(made))


def right(text: str) -> bool:
    """What whoever is asked sees."""
    return text.startswith("yes")


def run_transfer(*arguments: str) -> None:
    single = typer.Typer()
    single.command()(command)
    single(args=list(arguments), standalone_mode=False)


def test_strata_are_drawn_with_the_chances_that_they_say() -> None:
    whole = pool()
    drawn = draw(whole, "length", 60, seed=1)
    assert len(drawn) == 60 and len({one.sample.id for one in drawn}) == 60
    counts = Counter(one.stratum for one in drawn)
    # the highest stratum has all responses of the longest length, a tenth of all, and so on
    lengths = [one.rewards["length"] or 0.0 for one in whole.samples]
    longest = sum(length == 10 for length in lengths)
    assert counts == {"highest": 30, "high": 18, "other": 12}
    assert all(one.propensity == one.drawn / one.of for one in drawn)
    assert {one.of for one in drawn if one.stratum == "highest"} == {longest}
    # over seeds every response comes up as often as its propensity says, so weighting gives back the whole
    seen: Counter[str] = Counter()
    for seed in range(300):
        seen.update(one.sample.id for one in draw(whole, "length", 60, seed=seed))
    tops = [one.id for one in whole.samples if one.rewards["length"] == 10]
    assert np.mean([seen[one] for one in tops]) / 300 == pytest.approx(30 / longest, abs=1e-9)
    assert draw(whole, "length", 60, seed=1) == drawn
    everything = draw(whole, "length", 10_000, seed=1)
    assert len(everything) == len(whole.samples) and {one.propensity for one in everything} == {1.0}


def test_people_are_asked_by_metier_label_and_their_answers_weighted(tmp_path: Path) -> None:
    whole, truth = pool(), pool(gold=True)
    path, ledger = tmp_path / "check.jsonl", tmp_path / "ledger.sqlite"
    write_queue(path, draw(whole, "length", 90, seed=3), "length", seed=3)
    queue = read_queue(path)
    assert not queue.skipped and len(queue.items) == 90 and queue.question.labels == ("right", "wrong")
    assert "length" not in path.read_text().replace("lengths", "")  # who is asked does not see the reward
    whys = [json.loads(line) for line in why_file(path).read_text().splitlines()]
    assert {one.id: one.propensity for one in queue.items} == {why["item"]: why["propensity"] for why in whys}
    with Labelling(queue, ledger) as labelling:
        for number, item in enumerate(queue.items[:-2]):
            shown = labelling.shown("ann")
            assert shown is not None
            said = "right" if right(shown.episodes[0].messages[-1].content) else "wrong"
            labelling.answer("ann", shown.slot.item, {"labels": [said]}, f"click-{number}")
            assert item  # as many as there are
        shown = labelling.shown("ann")
        assert shown is not None
        labelling.skip("ann", shown.slot.item, "cannot tell", "click-skip")
    with Ledger.open(ledger) as records:
        answers = answers_of_ledger(records, path)
    assert len(answers) == 90 and sum(one.right is None for one in answers) == 2  # skipped and open are not wrong
    (passes,) = audit_pool(whole, "length", Settings(draws=100), answers=answers).false_pass
    (true,) = audit_pool(truth, "length", Settings(draws=100)).false_pass
    assert passes.by == "who were asked" and passes.fails.left_out + passes.anywhere.left_out >= 2
    for estimated, exact in ((passes.fails, true.fails), (passes.anywhere, true.anywhere)):
        assert estimated.low is not None and estimated.high is not None and exact.mean is not None
        assert estimated.low <= exact.mean <= estimated.high
    # unweighted, all that was asked would seem to fail far more often than responses do
    plain = np.mean([1 - one.right for one in answers if one.right is not None])
    assert true.anywhere.mean is not None and plain > true.anywhere.mean + 0.1
    # another queue with the same items is another question
    other = tmp_path / "other.jsonl"
    write_queue(other, draw(whole, "length", 90, seed=3), "length", seed=3)
    with Ledger.open(ledger) as records:
        assert all(one.right is None for one in answers_of_ledger(records, other))


def test_over_many_draws_the_weighted_interval_covers_the_truth() -> None:
    truth = pool(gold=True, seed=2)
    (true,) = audit_pool(truth, "length", Settings(draws=10)).false_pass
    covered = 0
    for seed in range(60):
        answers = [
            Answer(sample=one.sample.id, right=float(right(one.sample.said[0].content)), propensity=one.propensity)
            for one in draw(truth, "length", 80, seed=seed)
        ]
        found = audit_pool(truth, "length", Settings(draws=10), answers=answers).false_pass[1].anywhere
        assert found.low is not None and found.high is not None and true.anywhere.mean is not None
        covered += found.low <= true.anywhere.mean <= found.high
    assert 52 <= covered <= 60, covered


def test_a_judge_s_lines_are_answers_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "check.jsonl"
    drawn = draw(pool(), "length", 10, seed=0)
    write_queue(path, drawn, "length", seed=0)
    lines = [json.loads(line) for line in judge_file(path).read_text().splitlines()]
    assert set(lines[0]) == {"id", "prompt", "response"}
    told = [{"id": one["id"], "value": value} for one, value in zip(lines, (1.0, 0.0, None, 0.7), strict=False)]
    judged = tmp_path / "judged.jsonl"
    judged.write_text("".join(json.dumps(one) + "\n" for one in told))
    assert [one.right for one in answers_of_judge(judged, path, [])][:5] == [1.0, 0.0, None, 1.0, None]
    for line, says in (
        ({"id": "item-other", "value": 1.0}, "of no item"),
        ({"id": lines[0]["id"], "value": 7}, "from 0 to 1"),
    ):
        judged.write_text(json.dumps(line) + "\n")
        with pytest.raises(DataError, match=says):
            answers_of_judge(judged, path, [])
    with pytest.raises(DataError, match="write the queue first"):
        answers_of_judge(judged, tmp_path / "none.jsonl", [])
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        write_queue(tmp_path / "queue.yaml", drawn, "length", seed=0)


def test_what_has_no_prompt_cannot_be_shown() -> None:
    bare = Sample(id="a", prompt="t", cluster="t", asked=(), said=(USER,), rewards={"r": 1.0}, gold=1.0)
    with pytest.raises(DataError, match="prompt that could be shown"):
        draw(Pool(name="bare", samples=(bare,)), "r", 5, seed=0)


def test_the_same_command_writes_the_queue_and_then_reads_the_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "prompt": one.asked[0].content, "response": one.said[0].content, "reward": dict(one.rewards), "gold": None,
        }
        for one in pool(12, 6).samples
    ]  # fmt: skip
    path, ledger = tmp_path / "pool.jsonl", tmp_path / "ledger.sqlite"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    queue = tmp_path / "check.jsonl"
    arguments = ["--pool", str(path), "--queue", str(queue), "-n", "20", "--ledger", str(ledger)]
    run_transfer(*arguments)
    told = capsys.readouterr().out
    assert "20 responses drawn" in told and "no response has both the reward and gold" in told
    with Labelling(read_queue(queue), ledger) as labelling:
        for number in range(20):
            shown = labelling.shown("ann")
            assert shown is not None
            said = "right" if right(shown.episodes[0].messages[-1].content) else "wrong"
            labelling.answer("ann", shown.slot.item, {"labels": [said]}, f"click-{number}")
    before = queue.read_text()
    run_transfer(*arguments, "--json")
    found = json.loads(capsys.readouterr().out)
    assert queue.read_text() == before and found["queue"]["drawn"] == 0
    (passes,) = found["audits"][0]["false_pass"]
    assert passes["by"] == "who were asked" and passes["anywhere"]["n"] == 20
    whole = read_pool(path)
    other = Pool(name="x", samples=tuple(whole.samples))
    write_queue(tmp_path / "odd.jsonl", draw(other, "length", 5, seed=0), "another", seed=0)
    with pytest.raises(ConfigError, match="drawn by the reward 'another'"):
        run_transfer("--pool", str(path), "--queue", str(tmp_path / "odd.jsonl"), "--ledger", str(ledger))


def test_judgements_of_no_use_are_told(tmp_path: Path) -> None:
    path, judged = tmp_path / "check.jsonl", tmp_path / "judged.jsonl"
    write_queue(path, draw(pool(), "length", 10, seed=0), "length", seed=0)
    ids = [json.loads(line)["id"] for line in judge_file(path).read_text().splitlines()]
    judged.write_text("".join(json.dumps({"id": one, "score": 1}) + "\n" for one in ids))
    with pytest.raises(DataError, match=r"no line of .* is a judgement"):
        answers_of_judge(judged, path, [])
    told = [{"id": ids[0], "score": 1}, {"id": ids[1], "value": None, "status": "unscored", "reason": "timed out"}]
    told += [{"id": ids[2], "value": value} for value in (0.0, 1.0)]
    judged.write_text("".join(json.dumps(one) + "\n" for one in told))
    skipped: list[Any] = []
    answers = answers_of_judge(judged, path, skipped)
    assert len(skipped) == 1 and "no `value`" in skipped[0].why
    caveats = audit_pool(pool(gold=True), "length", Settings(draws=10), answers=answers).caveats
    assert any("1 of 10 judgements failed" in one and "timed out" in one for one in caveats)
    assert any("1 of 1 judged responses were called both" in one for one in caveats)
