"""Tools as typed Python functions, for tasks that bring no environment of their own.

`@tool` registers a function under its name; its JSON schema comes from its annotations
and its description from the first line of its docstring. A task names the tools that it
offers. What a function raises because of the arguments that the policy chose (`ValueError`,
`TypeError`, `KeyError`) goes back to the policy as an error; anything else is a failure of
the environment and leaves the episode unscored.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

from metier.base.config import did_you_mean
from metier.base.errors import DataError
from metier.records.types import Tool, ToolCall
from metier.tasks.protocol import EnvironmentFailure

__all__ = ["ToolBox", "describe", "get_tool", "tool"]

_JSON_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_functions: dict[str, Callable[..., Any]] = {}

F = TypeVar("F", bound=Callable[..., Any])


def tool(function: F) -> F:
    """Register a function as a tool under its own name. Usable as a decorator."""
    describe(function)  # refuses what has no schema
    _functions[function.__name__] = function
    return function


def get_tool(name: str) -> Callable[..., Any]:
    """The registered tool, also from entry points of group `metier.tools`. Unknown: `DataError`."""
    if name not in _functions:
        for point in entry_points(group="metier.tools"):
            if point.name == name:
                _functions[name] = point.load()
    if name not in _functions:
        raise DataError(f"unknown tool {name!r}{did_you_mean(name, list(_functions))}")
    return _functions[name]


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


class ToolBox:
    """An environment of stateless tools: it answers calls and has no user who replies."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = [t.name for t in tools]

    def call(self, call: ToolCall) -> str:
        """See `Environment.call`."""
        arguments = call.parsed()
        if call.name not in self._names:
            return json.dumps({"error": f"no tool {call.name!r}; tools are {', '.join(self._names)}"})
        if arguments is None:
            return json.dumps({"error": "arguments are not a JSON object"})
        function = get_tool(call.name)
        try:
            inspect.signature(function).bind(**arguments)
            return str(function(**arguments))
        except (ValueError, TypeError, KeyError) as error:
            return json.dumps({"error": str(error)})
        except Exception as error:
            raise EnvironmentFailure(f"tool {call.name!r} failed: {type(error).__name__}: {error}") from error

    def reply(self, text: str) -> str | None:
        """See `Environment.reply`."""
        return None

    def state(self) -> Mapping[str, Any]:
        """See `Environment.state`."""
        return {}
