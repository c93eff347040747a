"""The audit of runs that were written by hand: what it says where it is training that is short of something.

That of runs that were trained is tested in tests/e2e/test_transfer_run.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from metier.evaluate.transfer.audit import Audit, Settings
from metier.evaluate.transfer.runs import audit_run, rl_stages
from metier.evaluate.transfer.words import as_text
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Message, Run, Source, Task, Weights

STEPS = 8
STAGES = (
    {"kind": "evaluate", "name": "before", "of": "base"},
    {"kind": "rl", "name": "rl", "of": "base", "split": "train", "steps": STEPS},
    {"kind": "evaluate", "name": "after", "of": "rl"},
)


def audited(path: Path, *, trained_on: int, held_out: int = 40, rises: bool = True) -> Audit:
    """The audit of a run that learnt on so many tasks and was measured on others; held-out gold goes from 0 to 3/4."""
    tasks = {
        split: [
            Task(family="file", kind="say", messages=(Message(role="user", content=f"{split} {k}"),), split=split)
            for k in range(n)
        ]
        for split, n in (("train", trained_on), ("heldout", held_out))
    }
    rows = [("before", 0, task, float(k % 8 == 0)) for k, task in enumerate(tasks["heldout"])]
    rows += [("after", STEPS, task, float(k % 4 > 0)) for k, task in enumerate(tasks["heldout"])]
    for step in range(STEPS):
        good = 1 + 2 * (step // 4) * rises  # of four
        by_chance = 2 * (step == STEPS - 1)
        rows += [
            ("rl", step, tasks["train"][k % trained_on], float(k < by_chance or (k // 2 + k) % 4 < good))
            for k in range(80)
        ]
    with Ledger.open(path) as ledger:
        config = {"stages": list(STAGES)}
        ledger.add_run(Run(id="run-x", recipe="x", config=config, seed=0, folder="", code_version="0"))
        ledger.add_tasks([*tasks["train"], *tasks["heldout"]])
        episodes = [
            Episode(
                id=f"ep-{n}",
                task_id=task.id,
                run_id="run-x",
                stage=stage,
                weights=Weights(checkpoint="ckpt-x", step=step),
                messages=(*task.messages, Message(role="assistant", content="word")),
                split=task.split,
            )
            for n, (stage, step, task, _) in enumerate(rows)
        ]
        ledger.add_episodes(episodes)
        ledger.add_feedback(
            [
                Feedback(
                    id=f"fb-{n}",
                    about=(f"ep-{n}",),
                    criterion="success",
                    kind="score",
                    value=value,
                    source=Source(kind="verifier", name="exact", version="1"),
                    run_id="run-x",
                )
                for n, (_, _, _, value) in enumerate(rows)
            ]
        )
        (stage,) = rl_stages(ledger, "run-x")
        return audit_run(ledger, "run-x", stage, Settings(draws=500))


def test_a_run_that_rises_in_both_transfers(tmp_path: Path) -> None:
    found = audited(tmp_path / "l.sqlite", trained_on=20)
    assert found.verdict == "transfers", as_text(found)
    assert found.transfer is not None
    assert (found.transfer.reward.clusters, found.transfer.gold.clusters) == (20, 40)
    assert found.transfer.ratio is not None and found.transfer.ratio.clusters == 20
    assert "20 independent groups: few" in found.transfer.caveats[0]


def test_no_number_of_held_out_tasks_makes_a_reward_rise(tmp_path: Path) -> None:
    found = audited(tmp_path / "l.sqlite", trained_on=20, rises=False)
    assert found.transfer is not None and found.transfer.ratio is None
    assert (found.transfer.reward.mean or 0) > 0
    assert "the reward itself does not clearly rise" in found.transfer.why
    assert found.transfer.more is None and "would decide" not in as_text(found)


@pytest.mark.parametrize(("trained_on", "held_out", "more"), [(8, 40, None), (20, 8, 2), (6, 8, None)])
def test_few_groups_of_either_sort_are_too_few_for_a_word(
    trained_on: int, held_out: int, more: int | None, tmp_path: Path
) -> None:
    found = audited(tmp_path / "l.sqlite", trained_on=trained_on, held_out=held_out)
    assert found.verdict == "undecided" and found.transfer is not None
    assert f"{min(trained_on, held_out)} independent groups are too few" in found.transfer.why
    assert found.transfer.more == more  # held-out tasks
    assert found.transfer.gold.clusters == held_out
