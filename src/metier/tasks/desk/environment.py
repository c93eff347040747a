"""The desk while somebody stands at it: the records, the tools and the scripted user.

Built from the JSON of a task's `EnvironmentSpec` alone, which names the tools' meaning
too; no desk module is read here. A tool does what it is told, policy or not. What the
policy got wrong comes back as {"error": ...}. Declining and handing over go into `log`.

The user supplies one withheld detail when asked anything, or when its name is
mentioned, provided that no record was changed yet: who guesses first and asks later was
not asking. Other questions get a yes, twice at most; a statement ends it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

from metier.records.types import ToolCall
from metier.tasks.protocol import EnvironmentFailure

__all__ = ["DeskEnvironment"]


class DeskEnvironment:
    """State: `db` {plural: {id: record}}, `log`, `reasons`, `supplied`."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        try:
            self._noun: str = state["noun"]
            self._tools: Mapping[str, Mapping[str, Any]] = state["tools"]
            self._script: Mapping[str, Any] = state["script"]
            self._db: dict[str, dict[str, dict[str, Any]]] = copy.deepcopy(dict(state["db"]))
            (self._table,) = self._db.values()
        except (KeyError, ValueError, TypeError) as error:
            raise EnvironmentFailure(f"the desk's state is not whole: {error!r}") from error
        self._log: list[str] = list(state.get("log", ()))
        self._reasons: list[str] = []
        self._supplied = False
        self._touched = False  # whether an act has changed a record
        self._nods = 0

    def call(self, call: ToolCall) -> str:
        """Run one tool call; the result is compact JSON."""
        return json.dumps(self._run(call), separators=(",", ":"), ensure_ascii=False)

    def reply(self, text: str) -> str | None:
        """The withheld detail, a yes, or None where nothing was asked."""
        lowered = text.casefold()
        if "missing" in self._script and not self._supplied and not self._touched:
            if "?" in text or any(re.search(rf"\b{re.escape(word)}\b", lowered) for word in self._script["cues"]):
                self._supplied = True
                return str(self._script["reply"])
            return None
        nods = self._script["nods"]
        if "?" in text and self._nods < len(nods):
            self._nods += 1
            return str(nods[self._nods - 1])
        return None

    def state(self) -> Mapping[str, Any]:
        """A copy of the state now."""
        return {
            "db": copy.deepcopy(self._db),
            "log": list(self._log),
            "reasons": list(self._reasons),
            "supplied": self._supplied,
        }

    def close(self) -> None:
        """See `Environment.close`."""

    def _run(self, call: ToolCall) -> dict[str, Any]:
        tool = self._tools.get(call.name)
        if tool is None:
            return {"error": f"no tool {call.name[:40]}"}
        given = call.parsed()
        if given is None:
            return {"error": "arguments are not a JSON object"}
        params: list[str] = list(tool["params"])
        for name in params:
            if name not in given:
                return {"error": f"missing argument {name}"}
        for name, value in given.items():
            if name not in params:
                return {"error": f"unknown argument {str(name)[:40]}"}
            if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
                return {"error": f"{name} must be text"}
        does = tool["does"]
        if does == "log":
            self._log.append(tool["as"])
            self._reasons.append(str(given[params[0]]))
            return {"ok": tool["as"]}
        if does == "search":
            return self._search(str(given[params[0]]))
        found = str(given[params[0]]).strip().lstrip("#")
        if found not in self._table:
            return {"error": f"no {self._noun} {found[:20]}"}
        if does == "find":
            return self._shown(found)
        return self._change(found, tool["sets"], str(given[params[1]]).strip() if len(params) > 1 else "")

    def _search(self, name: str) -> dict[str, Any]:
        wanted = " ".join(name.casefold().split())
        for number, record in self._table.items():
            if record["name"].casefold() == wanted:
                return self._shown(number)
        return {"error": f"no {self._noun} for {name[:40]}"}

    def _shown(self, number: str) -> dict[str, Any]:
        record = self._table[number]
        return {self._noun: number, **{key: record[key] for key in record if key != "name"}}

    def _change(self, number: str, sets: Mapping[str, str], value: str) -> dict[str, Any]:
        record = self._table[number]
        changed = {}
        self._touched = True
        for key, how in sets.items():
            new = str(int(record.get(key, 0)) + 1) if how == "+1" else how.replace("{value}", value)
            record[key] = changed[key] = new
        return {"ok": True, self._noun: number, **changed}
