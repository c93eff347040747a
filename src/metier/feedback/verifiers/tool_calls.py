"""The verifier "tool_calls": the calls made are those that were wanted, whatever else was said.

As the Berkeley Function Calling Leaderboard judges (Patil et al. 2025): `possible_answers` has, for each
call wanted, the tool's name with the values that each argument may have; "" among them lets it be left
out. An empty list wants no call at all, as where a tool is irrelevant or something needed is missing.
Names and types must be right: true is no integer; an integer will do for a float. Texts are compared
without case, spaces and the marks ,./-_*^ and quotes. An argument that the wanted call does not
have may be given where it says the tool's own default.

Calls are those of all assistant messages; where a message has none, they are read out of its text:
Hermes' tags, JSON objects with name and arguments, or calls as Python writes them, as in
[weather(city="Rome")]. Unread, a text with calls in it is one broken call, never none.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, arguments_of, once, unscored
from metier.models.calls import HERMES
from metier.records.types import Task, ToolCall
from metier.sandbox.programs import blocks_of

__all__ = ["ToolCalls"]

_MISSING = object()
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "float": (float, int),
    "number": (float, int),
    "boolean": (bool,),
    "array": (list,),
    "list": (list,),
    "tuple": (list,),
    "object": (dict,),
    "dict": (dict,),
    "any": (object,),
}
_PYTHON = re.compile(r"^\s*\[?\s*[A-Za-z_][\w.]*\(.*\)\s*\]?\s*$", re.DOTALL)


class ToolCalls(Described):
    """The wanted calls, and no others."""

    name = "tool_calls"
    version = "2"
    parameters: ClassVar = {
        "tools": "the tools' schemas, as OpenAI or BFCL write them; default those of the task",
        "possible_answers": 'a list of {tool: {argument: [values that will do]}}; "" lets it out; [] for no call',
        "ordered": "true: in this order; default false",
        "forbidden": "names of tools that must not be called",
    }

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where each wanted call was made once and nothing else, else 0."""
        wanted = params.get("possible_answers")
        tools = params.get("tools")
        tools = [tool.to_openai() for tool in task.tools] if tools is None else tools
        wrong = _check(wanted, tools)
        if wrong or wanted is None:
            return unscored(wrong)
        schemas = {tool["name"]: tool.get("parameters") or {} for tool in map(_bare, tools)}
        for answer in wanted:
            for name in answer:
                if name not in schemas:
                    return unscored(f"the answer calls {name!r}, which is none of the tools")
        made = _made(attempt, task)
        texts = _texts(attempt, task)
        forbidden = [call.name for call in made if call.name in params.get("forbidden", ())]
        forbidden += [name for name in params.get("forbidden", ()) if _calls_in(texts, [str(name)], marks=False)]
        if forbidden:
            return Verdict(score=0.0, reason=f"it calls {forbidden[0]}, which is forbidden", parts={"calls": 0.0})
        if not wanted:
            named = made[0].name if made else _calls_in(texts, list(schemas), marks=True)
            reason = f"it calls {named}, and should call nothing" if named else "it calls nothing, as it should"
            return Verdict(score=float(not named), reason=reason, parts={"calls": float(not named)})
        found, why = _matched(made, wanted, schemas, ordered=bool(params.get("ordered")))
        share = found / max(len(wanted), len(made))
        if found == len(wanted) == len(made):
            return Verdict(score=1.0, reason="the calls are those wanted", parts={"calls": 1.0})
        return Verdict(score=0.0, reason=why or f"{len(made)} calls, {len(wanted)} wanted", parts={"calls": share})


def _check(wanted: Any, tools: Any) -> str:
    """What is wrong with the parameters, or nothing."""
    if not isinstance(wanted, (list, tuple)):
        return 'the parameter "possible_answers" is missing or no list'
    for answer in wanted:
        if not isinstance(answer, Mapping) or len(answer) != 1:
            return 'an entry of "possible_answers" is {tool: {argument: [values]}}'
        (arguments,) = answer.values()
        if not isinstance(arguments, Mapping) or not all(isinstance(one, (list, tuple)) for one in arguments.values()):
            return 'an entry of "possible_answers" is {tool: {argument: [values]}}'
    if not isinstance(tools, (list, tuple)) or not all(
        isinstance(one, Mapping) and isinstance(_bare(one).get("name"), str) for one in tools
    ):
        return 'the parameter "tools" is no list of tools with names'
    return ""


def _bare(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function of a tool as OpenAI nests it."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def _made(attempt: Attempt, task: Task) -> list[ToolCall]:
    """All calls of the assistant, beyond the task's own messages."""
    calls: list[ToolCall] = []
    before = len(task.messages) if attempt.messages[: len(task.messages)] == task.messages else 0
    for message in attempt.messages[before:]:
        if message.role == "assistant":
            calls += message.tool_calls or _written(message.content)
    return calls


def _texts(attempt: Attempt, task: Task) -> list[str]:
    """What the assistant wrote, beyond the task's own messages."""
    before = len(task.messages) if attempt.messages[: len(task.messages)] == task.messages else 0
    return [message.content for message in attempt.messages[before:] if message.role == "assistant"]


_MARKS = re.compile(r"<\s*tool_call|\[TOOL_CALLS\]|<\|python_tag\|>|<\s*function\s*=", re.IGNORECASE)


def _calls_in(texts: Sequence[str], names: Sequence[str], *, marks: bool) -> str:
    """The name of a tool that a text calls in any form, readable or not; empty where there is none.

    With `marks`, the marks of calls count as one whatever stands behind them.
    """
    for text in texts:
        for name in names:
            bare = re.escape(name)
            if re.search(
                rf"(?<![\w.]){bare}\s*\(|[\"']name[\"']\s*:\s*[\"']{bare}[\"']|\baction\s*:\s*{bare}\b", text, re.I
            ):
                return name
        if marks and (found := _MARKS.search(text)):
            return found[0]
    return ""


def _written(text: str) -> list[ToolCall]:
    """The calls that a text writes."""
    _, _, text = text.rpartition("</think>")
    tagged = HERMES.parse(text).tool_calls
    if tagged:
        return [ToolCall(name="malformed", arguments=text)] if _is_ambiguous(text) else list(tagged)
    blocks = [one for one in blocks_of(text) if one.language in ("", "json", "python", "tool_code") and one.closed]
    return [call for inner in [one.text for one in blocks] or [text] for call in _of_text(inner.strip())]


def _is_ambiguous(text: str) -> bool:
    """Whether an object behind a call's tag has one name twice."""
    strict = json.JSONDecoder(object_pairs_hook=once)
    for tag in re.finditer(r"<tool_call>\s*", text):
        try:
            json.JSONDecoder().raw_decode(text, tag.end())
            strict.raw_decode(text, tag.end())
        except json.JSONDecodeError:
            continue
        except (ValueError, RecursionError):
            return True
    return False


def _of_text(inner: str) -> list[ToolCall]:
    """The calls of a text that is nothing else."""
    try:
        value = json.loads(inner, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return _of_python(inner)
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in calls):
        return []
    return [
        ToolCall(name=one["name"], arguments=_json(one.get("arguments", one.get("parameters", {})))) for one in calls
    ]


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _of_python(text: str) -> list[ToolCall]:
    """Calls with named, literal arguments."""
    if not _PYTHON.match(text):
        return []
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [ToolCall(name="malformed", arguments=text)]
    nodes = tree.elts if isinstance(tree, (ast.List, ast.Tuple)) else [tree]
    if not all(isinstance(node, ast.Call) for node in nodes):
        return []
    calls = []
    for node in nodes:
        assert isinstance(node, ast.Call)
        name = ast.unparse(node.func)
        try:
            given = {one.arg: ast.literal_eval(one.value) for one in node.keywords}
            if node.args or None in given or len(given) < len(node.keywords):
                raise ValueError("arguments have names")
            calls.append(ToolCall(name=name, arguments=json.dumps(given)))
        except (ValueError, TypeError, RecursionError, MemoryError):
            calls.append(ToolCall(name=name, arguments=ast.unparse(node)))
    return calls


def _matched(
    made: Sequence[ToolCall], wanted: Sequence[Mapping[str, Any]], schemas: Mapping[str, Any], *, ordered: bool
) -> tuple[int, str]:
    """How many of the wanted calls were made, each call counting once, and why the first was not."""
    if ordered:
        faults = [_fault(call, answer, schemas) for call, answer in zip(made, wanted, strict=False)]
        return faults.count(""), next((fault for fault in faults if fault), "")
    fits = [[not _fault(call, answer, schemas) for call in made] for answer in wanted]
    taken: dict[int, int] = {}  # call: wanted

    def place(answer: int, seen: set[int]) -> bool:
        """Kuhn's augmenting paths: a call that fits two answers must not starve one."""
        for call, fit in enumerate(fits[answer]):
            if fit and call not in seen:
                seen.add(call)
                if call not in taken or place(taken[call], seen):
                    taken[call] = answer
                    return True
        return False

    found = sum(place(answer, set()) for answer in range(len(wanted)))
    missed = next((answer for answer in range(len(wanted)) if answer not in taken.values()), None)
    why = ""
    if missed is not None:
        left = [call for number, call in enumerate(made) if number not in taken]
        (name,) = wanted[missed]
        near = next((call for call in left if call.name == name), None)
        why = f"{name} was not called" if near is None else _fault(near, wanted[missed], schemas)
    return found, why


def _fault(call: ToolCall, answer: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Why a call is not the wanted one, or nothing."""
    ((name, possible),) = answer.items()
    if call.name != name:
        return f"{call.name} was called, not {name}"
    given = arguments_of(call)
    if given is None:
        return f"the arguments of {name} are no JSON object"
    schema = schemas[name]
    properties: Mapping[str, Any] = schema.get("properties") or {}
    for argument, value in given.items():
        about = properties.get(argument)
        if about is None:
            return f"{name} has no argument {argument}"
        values = possible.get(argument)
        if not _typed(value, about) and not any(
            value is one or (one is None and value is None) for one in values or ()
        ):
            return f"{argument} of {name} has the wrong type"
        if values is not None and not values and value == []:
            continue  # no value among those that will do: BFCL's way to ask for an empty list
        if values is None or not any(_same(value, one) for one in values if not _is_absent(one)):
            if "default" in about and _same(value, about["default"]):
                continue
            return f"{argument} of {name} is {str(value)[:60]!r}"
    for argument, values in possible.items():
        if argument not in given and not any(_is_absent(one) for one in values):
            return f"{argument} of {name} is missing"
    for argument in schema.get("required") or ():
        if argument not in given and argument not in possible:
            return f"{argument} of {name} is missing"
    return ""


def _is_absent(value: Any) -> bool:
    return isinstance(value, str) and not value


def _typed(value: Any, about: Mapping[str, Any]) -> bool:
    kinds = about.get("type", "any")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if value is None:
        return "null" in kinds or "any" in kinds
    if isinstance(value, bool):
        return "boolean" in kinds or "any" in kinds
    return any(isinstance(value, _TYPES.get(kind, (object,))) for kind in kinds)


def _same(given: Any, one: Any) -> bool:
    """Whether a value is a possible one; inside of objects and lists, values may be lists of possible ones."""
    if isinstance(given, bool) or isinstance(one, bool):
        return given is one
    if isinstance(given, str) and isinstance(one, str):
        return _standard(given) == _standard(one)
    if isinstance(given, dict) and isinstance(one, Mapping):
        for key, value in given.items():
            inner = one.get(key, _MISSING)
            if inner is _MISSING or not _same_inside(value, inner):
                return False
        return all(key in given or (isinstance(inner, list) and "" in inner) for key, inner in one.items())
    if isinstance(given, list) and isinstance(one, (list, tuple)):
        return len(given) == len(one) and all(_same(a, b) for a, b in zip(given, one, strict=True))
    return bool(type(given) in (int, float) and type(one) in (int, float) and given == one) or (
        given is None and one is None
    )


def _same_inside(value: Any, inner: Any) -> bool:
    """A value of an object against its possible ones; against itself where it is no list of them."""
    if isinstance(inner, list) and any(_same(value, one) for one in inner if not _is_absent(one)):
        return True
    return _same(value, inner)


def _standard(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
