"""Tools by name, and the environment of tasks that bring none of their own.

A tool is a record (name, description, JSON schema of its arguments) and what runs it:
a typed Python function (`@tool`), an HTTP endpoint (`http_tools`) or a tool of an MCP
server (`mcp_tools`). A task names the tools that it offers.

Who is to blame is told by how a tool fails. Arguments that its schema refuses, and a
`BadCallError`, are the policy's: it reads them as an error and may try again. Anything
else that a tool raises is the environment's and leaves the episode unscored.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from metier.base.config import did_you_mean
from metier.base.errors import DataError
from metier.base.registry import offered
from metier.base.schemas import BadSchemaError, validator_of
from metier.records.types import Tool, ToolCall
from metier.tasks.protocol import EnvironmentFailure

__all__ = ["BadCallError", "RunnableTool", "ToolBox", "describe", "get_tool", "register_tool", "tool", "writable"]

_JSON_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_tools: dict[str, RunnableTool] = {}

F = TypeVar("F", bound=Callable[..., Any])


class BadCallError(Exception):
    """A call that the policy got wrong; the text is what it reads."""


@dataclass(frozen=True, slots=True)
class RunnableTool:
    """A tool and what runs it: arguments that fit its schema in, the text that the policy reads out."""

    record: Tool
    run: Callable[[Mapping[str, Any]], str]


def register_tool(made: RunnableTool) -> None:
    """Make a tool known under its name; a later one of the same name replaces it.

    Raises `DataError` where the schema of its arguments is none.
    """
    try:
        _validator(json.dumps(made.record.parameters))
    except BadSchemaError as error:
        raise DataError(f"parameters of tool {made.record.name!r} are no JSON schema: {error}") from error
    _tools[made.record.name] = made


def tool(function: F) -> F:
    """Register a function as a tool under its own name. Usable as a decorator.

    Its schema comes from its annotations and its description from the first line of its
    docstring. `ValueError`, `TypeError` and `KeyError` are what the policy's arguments led to.
    """
    register_tool(_of_function(function))
    return function


def get_tool(name: str) -> RunnableTool:
    """The registered tool, also from entry points of group `metier.tools`. Unknown: `DataError`."""
    if name not in _tools:
        for made in offered("metier.tools", name):
            _tools[name] = made if isinstance(made, RunnableTool) else _of_function(made)
    if name not in _tools:
        raise DataError(f"unknown tool {name!r}{did_you_mean(name, list(_tools))}")
    return _tools[name]


def describe(function: Callable[..., Any]) -> Tool:
    """The tool record of a function. Arguments must be str, int, float or bool."""
    hints = get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind = _JSON_TYPES.get(hints.get(name, object))
        if kind is None:
            raise DataError(f"argument {name!r} of tool {function.__name__!r} needs a type: str, int, float or bool")
        properties[name] = {"type": kind}
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    description = (inspect.getdoc(function) or function.__name__).splitlines()[0]
    schema = {"type": "object", "properties": properties, "required": required}
    return Tool(name=function.__name__, description=description, parameters=schema)


def writable(arguments: Mapping[str, Any]) -> None:
    """Raises `BadCallError` for arguments that cannot be sent: numbers that are none, halves of characters."""
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise BadCallError(f"the arguments cannot be written: {error}") from error


class ToolBox:
    """An environment of registered tools: it answers calls and has no user who replies."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = [t.name for t in tools]

    def call(self, call: ToolCall) -> str:
        """See `Environment.call`."""
        arguments = call.parsed()
        if call.name not in self._names:
            return _error(f"no tool {call.name!r}; tools are {', '.join(self._names)}")
        if arguments is None:
            return _error("arguments are not a JSON object")
        found = get_tool(call.name)
        try:
            fault = next(_validator(json.dumps(found.record.parameters)).iter_errors(arguments), None)
            if fault is not None:
                place = "".join(f"{step}: " for step in fault.instance_path)
                return _error(f"{place}{fault.message}")
            return found.run(arguments)
        except BadCallError as error:
            return _error(str(error))
        except EnvironmentFailure:
            raise
        except Exception as error:
            raise EnvironmentFailure(f"tool {call.name!r} failed: {type(error).__name__}: {error}") from error

    def reply(self, text: str) -> str | None:
        """See `Environment.reply`."""
        return None

    def state(self) -> Mapping[str, Any]:
        """See `Environment.state`."""
        return {}

    def close(self) -> None:
        """See `Environment.close`."""


def _of_function(function: Callable[..., Any]) -> RunnableTool:
    signature = inspect.signature(function)

    def run(arguments: Mapping[str, Any]) -> str:
        try:
            signature.bind(**arguments)
            return str(function(**arguments))
        except (ValueError, TypeError, KeyError) as error:
            raise BadCallError(str(error)) from error

    return RunnableTool(describe(function), run)


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)


@functools.lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """The validator of a schema as text, kept. Raises as `validator_of` does."""
    return validator_of(json.loads(schema))
