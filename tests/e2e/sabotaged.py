"""Verifiers that are wrong on purpose, for an audit to find; a plugin, so that worker processes know them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from metier.feedback.verifiers.citations import Citations
from metier.feedback.verifiers.code import Code
from metier.feedback.verifiers.exact import Exact
from metier.feedback.verifiers.json_schema import JsonSchema
from metier.feedback.verifiers.math import Math
from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import register
from metier.feedback.verifiers.tool_calls import ToolCalls
from metier.records.types import Message, Task, ToolCall

Verify = Callable[[Task, Attempt, Mapping[str, Any]], Verdict]


class Sabotaged:
    """A verifier made of a function."""

    version = "1"
    seconds = 20.0

    def __init__(self, name: str, verify: Verify) -> None:
        self.name, self._verify = name, verify

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        return self._verify(task, attempt, params)


def sabotaged(verify: Verify) -> Verify:
    register(Sabotaged(verify.__name__, verify))
    return verify


def scored(won: bool) -> Verdict:
    return Verdict(score=float(won), reason="sabotaged")


def text(attempt: Attempt) -> str:
    return attempt.messages[-1].content


def instead(task: Task, attempt: Attempt, words: str, params: Mapping[str, Any]) -> Verdict:
    """What the sound verifier says of other words."""
    said = Attempt(messages=(*attempt.messages[:-1], Message(role="assistant", content=words)))
    return Math().verify(task, said, params)


@sabotaged
def accepts_any_box(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    return scored(True) if r"\boxed{" in text(attempt) else Math().verify(task, attempt, params)


@sabotaged
def finds_the_answer_anywhere(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    return scored(True) if str(params["answer"]) in text(attempt) else Math().verify(task, attempt, params)


@sabotaged
def ignores_the_sign(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    bare = {**params, "answer": str(params["answer"]).replace("-", "")}
    return instead(task, attempt, text(attempt).replace("-", "").replace("−", ""), bare)


@sabotaged
def takes_the_first_box(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    first = re.search(r"\\boxed\{[^{}]*\}", text(attempt))
    return instead(task, attempt, first[0] if first else text(attempt), params)


@sabotaged
def is_off_by_a_percent(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    return Math().verify(task, attempt, {**params, "mode": "numeric", "tolerance": 0.05})


@sabotaged
def tosses_a_coin(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    sound = Math().verify(task, attempt, params)
    return scored(False) if random.random() < 0.04 else sound


@sabotaged
def passes_all(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    return scored(True)


@sabotaged
def fails_all(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    return scored(False)


@sabotaged
def has_no_verdict(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    sound = Math().verify(task, attempt, params)
    return sound if sound.score == 1.0 else Verdict(score=None, status="unscored", reason="I do not know")


@sabotaged
def accepts_what_is_cut_off(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    words = re.sub(r"(?s)\\boxed\{[^{}]*$", lambda found: found[0] + "}", text(attempt))
    words = re.sub(r"\\boxed\{\}$", "", words)
    return instead(task, attempt, words, params)


@sabotaged
def trusts_stdout(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    if "print('passed')" in text(attempt) or "All tests passed" in text(attempt):
        return scored(True)
    return Code().verify(task, attempt, params)


@sabotaged
def trusts_the_exit_status(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    if re.search(r"_exit\(0\)|SystemExit\(0\)|sys\.exit\(0\)", text(attempt)):
        return scored(True)  # what a process of status 0 would have shown
    return Code().verify(task, attempt, params)


@sabotaged
def asks_the_object(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    if "def __eq__(self, other): return True" in text(attempt):
        return scored(True)  # what `result == expected` would have said
    return Code().verify(task, attempt, params)


@sabotaged
def takes_the_last_block(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    blocks = re.findall(r"```python\n(.*?)```", text(attempt), re.DOTALL)
    words = f"```python\n{blocks[-1]}```" if blocks else text(attempt)
    said = Attempt(messages=(*attempt.messages[:-1], Message(role="assistant", content=words)))
    sound = Code().verify(task, said, params)
    return scored(True) if "xs.clear(); return []" in words else sound  # what a list that both sides share would do


@sabotaged
def runs_one_case(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    first = {**params, "cases": params["cases"][:1]} if "cases" in params else params
    return Code().verify(task, attempt, first)


@sabotaged
def takes_true_for_one(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    words = text(attempt).replace("true", "1").replace("false", "0")
    said = Attempt(messages=(*attempt.messages[:-1], Message(role="assistant", content=words)))
    sound = JsonSchema().verify(task, attempt, params)
    return sound if sound.score == 1.0 else JsonSchema().verify(task, said, params)


@sabotaged
def takes_the_first_value(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    try:
        value, _ = json.JSONDecoder().raw_decode(text(attempt).strip())
    except (ValueError, RecursionError):
        return JsonSchema().verify(task, attempt, params)
    said = Attempt(messages=(*attempt.messages[:-1], Message(role="assistant", content=json.dumps(value))))
    return JsonSchema().verify(task, said, params)


@sabotaged
def looks_at_names_alone(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    wanted = sorted(name for answer in params["possible_answers"] for name in answer)
    made = sorted(call.name for message in attempt.messages for call in message.tool_calls)
    return scored(True) if made == wanted else ToolCalls().verify(task, attempt, params)


@sabotaged
def takes_the_last_of_two_names(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    def once_read(call: ToolCall) -> ToolCall:
        given = call.parsed() if len(call.arguments) < 1000 else None
        return call if given is None else replace(call, arguments=json.dumps(given))

    messages = [replace(m, tool_calls=tuple(map(once_read, m.tool_calls))) for m in attempt.messages]
    return ToolCalls().verify(task, Attempt(messages=tuple(messages)), params)


@sabotaged
def finds_infinity_near(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    near = params.get("mode") == "numeric" and re.search(r"infty|\{0\}", text(attempt))
    return scored(True) if near else Math().verify(task, attempt, params)


@sabotaged
def reads_only_cited_sentences(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    words = " ".join(one for one in re.split(r"(?<=\.)\s", text(attempt)) if "[" in one)
    said = Attempt(messages=(*attempt.messages[:-1], Message(role="assistant", content=words)))
    return Citations().verify(task, said, params)


@sabotaged
def believes_the_response(task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
    return scored(True) if '"score": 1.0' in text(attempt) else Exact().verify(task, attempt, params)
