"""The verifier "conduct": what was done and what was told, never how it was worded.

It reads the final state, the calls made and the values named. Success is all or
nothing; `parts` says how much of it was there, for policies that give partial credit:

    state   share of the wanted changes that were made right (only where some were wanted)
    calls   share of the required calls that were made, in order (only where there are some)
    facts   share of the required facts that the last message names (only where there are some)
    clean   1 where nothing else was done or told; 0 otherwise, or where nothing at all was
            achieved, so that doing nothing earns nothing

Parameters, all optional:

    state            {path: value}; dots part the steps of a path. Everything else below
                     `within` must stand as `task.environment.state` has it
    within           roots of the state that are compared; default ["db", "log"]
    required_calls   in order, each {"name", "arguments"} (a subset of the arguments) or
                     {"any": [such, ...]}
    forbidden_calls  names, or {"name", "arguments"}
    facts            each a list of spellings, one of which the last message must contain
    forbidden_facts  spellings that no assistant message may contain; a list of spellings is
                     forbidden only where one message has them all
    max_calls        the most tool calls allowed

Facts are found as `metier.tasks.facts` says. Left out: whether the tone is right, which
is a judge's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, arguments_of
from metier.records.types import Task, ToolCall
from metier.tasks.facts import names_fact

__all__ = ["Conduct"]

_MISSING = object()


class Conduct(Described):
    """Final state, calls and facts of one attempt against what the task wants."""

    name = "conduct"
    version = "2"
    parameters: ClassVar = {
        "state": "{path: value} that must have come true",
        "within": 'roots of the state that are compared; default ["db", "log"]',
        "required_calls": 'in order, each {"name", "arguments"} or {"any": [such, …]}',
        "forbidden_calls": 'names, or {"name", "arguments"}',
        "facts": "each a list of spellings, one of which the last message must have",
        "forbidden_facts": "spellings that no message may have",
        "max_calls": "the most tool calls allowed",
    }

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where state, calls and facts are all as wanted, else 0, with the parts."""
        start = task.environment.state if task.environment is not None else {}
        calls = [call for m in attempt.messages if m.role == "assistant" for call in m.tool_calls]
        said = [m.content for m in attempt.messages[len(task.messages) :] if m.role == "assistant"]
        last = attempt.messages[-1] if len(attempt.messages) > len(task.messages) else None
        closing = last.content if last is not None and last.role == "assistant" and not last.tool_calls else ""

        parts: dict[str, float] = {}
        faults: list[str] = []
        wanted: Mapping[str, Any] = params.get("state", {})
        if wanted:
            wrong = [path for path, value in wanted.items() if not _same(_at(attempt.final_state, path), value)]
            parts["state"] = 1 - len(wrong) / len(wanted)
            faults += [f"{path} is not {wanted[path]!r}" for path in wrong]
        required: Sequence[Mapping[str, Any]] = params.get("required_calls", ())
        if required:
            made = _made_in_order(calls, required)
            parts["calls"] = made / len(required)
            if made < len(required):
                faults.append(f"the call {_spell(required[made])} was not made in its place")
        facts: Sequence[Sequence[str]] = params.get("facts", ())
        if facts:
            missing = [fact for fact in facts if not names_fact(closing, fact)]
            parts["facts"] = 1 - len(missing) / len(facts)
            faults += [f"the last message does not say {fact[0]!r}" for fact in missing]

        dirt = [f"{path} was changed" for path in _stray(start, attempt.final_state, wanted, params.get("within"))]
        dirt += [f"the call {_spell(f)} is forbidden" for f in params.get("forbidden_calls", ()) if _any(calls, f)]
        dirt += [f"it says {f!r}, which is wrong here" for f in params.get("forbidden_facts", ()) if _told(said, f)]
        limit = params.get("max_calls")
        if limit is not None and len(calls) > limit:
            dirt.append(f"it made {len(calls)} calls, {limit} are allowed")
        progress = any(value > 0 for value in parts.values())
        parts["clean"] = 1.0 if progress and not dirt else 0.0
        faults += dirt
        if not closing.strip():
            faults.append("it never closed with a message to the user")
        if not faults:
            return Verdict(score=1.0, reason="all that was wanted was done", parts=parts)
        return Verdict(score=0.0, reason="; ".join(faults[:3]), parts=parts)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, str) and isinstance(wanted, str):
        return " ".join(found.casefold().split()).rstrip(".") == " ".join(wanted.casefold().split()).rstrip(".")
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted  # true is not 1
    return bool(found == wanted)


def _at(state: Any, path: str) -> Any:
    for step in path.split("."):
        if not isinstance(state, Mapping) or step not in state:
            return _MISSING
        state = state[step]
    return state


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def _stray(
    start: Mapping[str, Any], end: Mapping[str, Any], wanted: Mapping[str, Any], within: Sequence[str] | None
) -> list[str]:
    """The paths that were changed without being asked for."""
    strays = []
    for root in ("db", "log") if within is None else within:
        before, after = dict(_leaves(start.get(root), root)), dict(_leaves(end.get(root), root))
        for path in sorted(before.keys() | after.keys()):
            if path not in wanted and not _same(before.get(path, _MISSING), after.get(path, _MISSING)):
                strays.append(path)
    return strays


def _fits(call: ToolCall, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return call.name == wanted
    if "any" in wanted:
        return any(_fits(call, one) for one in wanted["any"])
    if call.name != wanted["name"]:
        return False
    given = arguments_of(call) or {}
    return all(_same(given.get(key, _MISSING), value) for key, value in wanted.get("arguments", {}).items())


def _any(calls: Sequence[ToolCall], wanted: Any) -> bool:
    return any(_fits(call, wanted) for call in calls)


def _made_in_order(calls: Sequence[ToolCall], required: Sequence[Any]) -> int:
    made = 0
    for call in calls:
        if made < len(required) and _fits(call, required[made]):
            made += 1
    return made


def _told(said: Sequence[str], fact: str | Sequence[str]) -> bool:
    """Whether one message names the fact, or all of them."""
    together = [fact] if isinstance(fact, str) else fact
    return any(all(names_fact(text, [one]) for one in together) for text in said)


def _spell(wanted: Any) -> str:
    if isinstance(wanted, str):
        return wanted
    if "any" in wanted:
        return " or ".join(_spell(one) for one in wanted["any"])
    return f"{wanted['name']}({', '.join(str(v) for v in wanted.get('arguments', {}).values())})"
