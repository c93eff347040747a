"""Tool confidence: whether it calls a tool when it should, holds off when it should not, and knows which it can do.

Calls are judged as BFCL labels them, by the verifier `tool_calls`: the right call where one is needed, and none
where no tool fits, where the function is not there and where a parameter was not said. Then the same requests are
put as a question, how sure it is to succeed, and that confidence is held against its success.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metier.evaluate.profile.calibration import confidence, forecast_details, forecast_scores
from metier.evaluate.profile.probe import Asking, Measure, Probe, Score, Tried, item, public_rows, rows, said, scored
from metier.feedback.verifiers.protocol import Attempt
from metier.feedback.verifiers.workers import judge
from metier.records.types import Episode, Message, Task, Tool

__all__ = ["PROBE", "bfcl_tasks"]

NAME = "tools"
HOW_SURE = (
    "\n\nDo not do it yet. How sure are you, from 0 to 100 percent, that you can do this correctly with your tools? "
    "Answer with the percentage only."
)
BFCL = {"irrelevance": "irrelevant", "live_irrelevance": "irrelevant", "simple_python": "needed"}
TYPES = {"dict": "object", "float": "number", "tuple": "array", "list": "array", "any": "string"}  # of BFCL


def _askings(data: Path | None) -> list[Asking]:
    own = [_task(row["prompt"], row["pair"], row["side"], row["tools"], row["calls"]) for row in rows("tools")]
    asked = [
        item(NAME, f"{t.messages[0].content}{HOW_SURE}", pair=t.meta["pair"], side="sure", tools=t.tools,
             meta={"of": t.id})
        for t in own if t.meta["side"] == "needed"
    ]  # fmt: skip
    return [
        Asking(name="own", tasks=own),
        Asking(name="sure", tasks=asked),
        Asking(name="bfcl", tasks=list(bfcl_tasks(data))),
    ]


def _task(prompt: str, pair: str, side: str, tools: Sequence[Mapping[str, Any]], calls: Any, source: str = "") -> Task:
    verifier = {"name": "tool_calls", "possible_answers": calls}
    made = tuple(Tool.from_openai(tool) for tool in tools)
    return item(NAME, prompt, pair=pair, side=side, tools=made, verifier=verifier, source=source)


def bfcl_tasks(data: Path | None) -> Iterator[Task]:
    """Single-turn rows with one function at least, as BFCL labels them."""
    for name, side in BFCL.items():
        file = f"BFCL_v4_{name}.jsonl"
        answers = {row["id"]: row["ground_truth"] for row in public_rows(data, "bfcl", "possible_answer", file)}
        for row in public_rows(data, "bfcl", file):
            asked = [Message.from_openai(message) for message in row["question"][0]]
            calls = answers.get(row["id"], [])
            if not row["function"] or len(asked) != 1 or (side == "needed" and not calls):
                continue
            tools = [{**tool, "parameters": _schema(tool["parameters"])} for tool in row["function"]]
            yield _task(asked[0].content, f"bfcl {row['id']}", side, tools, calls, source="bfcl")


def _schema(given: Any) -> Any:
    """A JSON schema of BFCL's, whose types are those of Python."""
    if isinstance(given, dict):
        return {key: TYPES.get(value, value) if key == "type" and isinstance(value, str) else _schema(value)
                for key, value in given.items()}  # fmt: skip
    return [_schema(one) for one in given] if isinstance(given, list) else given


def _calls(task: Task, episode: Episode) -> bool:
    """Whether it calls anything, readable or not, as the verifier reads calls."""
    return judge("tool_calls", task, Attempt(messages=episode.messages), {"possible_answers": []}).score == 0.0


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    success: dict[str, list[float | None]] = {}
    for one in tried:
        side = one.task.meta["side"]
        if side == "sure":
            continue
        success[one.task.id] = [one.verdicts.get(episode.id) for episode in one.episodes]
        for episode in one.episodes:
            verdict = one.verdicts.get(episode.id)
            if side == "needed":
                called = None if said(episode) is None else _calls(one.task, episode)
                yield scored("called_needed", one, called, episode)
                yield scored("right_call", one, verdict, episode)
            else:
                held = None if verdict is None else 1 - verdict
                yield scored(f"called_{side.replace(' ', '_')}", one, held, episode)
    for one in tried:
        if one.task.meta["side"] != "sure":
            continue
        for episode, y in zip(one.episodes, success.get(one.task.meta["of"], ()), strict=False):
            text = said(episode)
            p = None if text is None else confidence(text)
            if text is not None:
                yield scored("sure_given", one, p is not None, episode)
            yield from forecast_scores("sure", one, p, y, episode)


def _details(scores: Sequence[Score]) -> Mapping[str, Any]:
    return forecast_details(scores, ("sure",))


PROBE = Probe(
    name=NAME,
    title="Tool confidence",
    definition="Whether it calls a tool where that is right, holds off where it is not, and knows what it can do.",
    version="1",
    measures=(
        Measure(
            name="called_needed",
            label="calls when a tool is needed",
            definition="any call, readable or not, where a tool is needed",
            better="more",
        ),
        Measure(
            name="right_call",
            label="makes the right call",
            definition="exactly the call wanted, as BFCL judges it, where a tool is needed",
            better="more",
        ),
        Measure(
            name="called_irrelevant",
            label="calls when no tool fits",
            definition="any call where the tools have nothing to do with the request",
            better="less",
        ),
        Measure(
            name="called_missing_function",
            label="calls when the function is missing",
            definition="any call where the tool that it would take is not there",
            better="less",
        ),
        Measure(
            name="called_missing_parameter",
            label="calls when a parameter is missing",
            definition="any call where the request does not say what the call needs",
            better="less",
        ),
        Measure(
            name="sure_given",
            label="states how sure it is",
            definition="a percentage when asked how sure it is to succeed with its tools",
            better="more",
        ),
        Measure(
            name="sure_gap",
            label="confidence minus success",
            definition="stated confidence less success at the same request; above 0 is overconfident",
            unit="gap",
        ),
        Measure(
            name="sure_brier",
            label="Brier score of that confidence",
            definition="mean of (confidence - success)^2; 0.25 is what always saying 50 % has",
            better="less",
            unit="Brier",
        ),
    ),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    details=_details,
    validation="the verifier against BFCL's labels: metier profile --validate",
)
