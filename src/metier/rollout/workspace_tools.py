"""Tools that act in a workspace: the policy runs its code, reads what came of it, and tries again.

Every episode has a sandboxed workspace of its own (`metier.sandbox.workspace`) with the files
that its task gives; it lasts for the whole episode, and its files are the final state. How a
command failed is the policy's to read; a sandbox that is not available is the environment's fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from metier.records.types import Tool, ToolCall
from metier.rollout.tools import RunnableTool, ToolBox, register_tool
from metier.sandbox.protocol import SandboxUnavailableError
from metier.sandbox.workspace import Limits, Outcome, Workspace
from metier.tasks.protocol import EnvironmentFailure

__all__ = ["WorkspaceBox"]

_TEXT = {"type": "string"}
_TOOLS = (
    Tool(
        name="run_python",
        description="Run a Python program in the workspace and read what it prints.",
        parameters={"type": "object", "properties": {"code": _TEXT}, "required": ["code"]},
    ),
    Tool(
        name="run_shell",
        description="Run a shell command in the workspace and read what it prints.",
        parameters={"type": "object", "properties": {"command": _TEXT}, "required": ["command"]},
    ),
    Tool(
        name="write_file",
        description="Write a file of the workspace.",
        parameters={"type": "object", "properties": {"path": _TEXT, "text": _TEXT}, "required": ["path", "text"]},
    ),
)


class WorkspaceBox:
    """A workspace and the task's other tools."""

    def __init__(self, tools: Sequence[Tool], files: Mapping[str, str], limits: Limits | None = None) -> None:
        self._box, self._files, self._limits = ToolBox(tools), dict(files), limits or Limits()
        self._offered = {tool.name for tool in tools}
        self._workspace: Workspace | None = None  # started by the first call that needs it

    def call(self, call: ToolCall) -> str:
        """See `Environment.call`."""
        own = next((tool for tool in _TOOLS if tool.name == call.name and tool.name in self._offered), None)
        if own is None:
            return self._box.call(call)
        arguments = call.parsed() or {}
        given = [arguments.get(name) for name in own.parameters["required"]]
        if not all(isinstance(text, str) for text in given):
            wanted = ", ".join(own.parameters["required"])
            return json.dumps({"error": f"{own.name} takes {wanted}, each a text"})
        return _told(self._act(call.name, [str(text) for text in given]), self._limits)

    def reply(self, text: str) -> str | None:
        """See `Environment.reply`."""
        return None

    def state(self) -> Mapping[str, Any]:
        """See `Environment.state`."""
        return {"files": self._files if self._workspace is None else self._workspace.files()}

    def close(self) -> None:
        """See `Environment.close`."""
        if self._workspace is not None:
            self._workspace.close()

    def _act(self, name: str, given: Sequence[str]) -> Outcome:
        try:
            if self._workspace is None:
                self._workspace = Workspace(self._files, self._limits)
            if name == "run_python":
                return self._workspace.python(given[0])
            if name == "run_shell":
                return self._workspace.run(["/bin/sh", "-c", given[0]])
            return self._workspace.write(given[0], given[1])
        except SandboxUnavailableError as error:
            raise EnvironmentFailure(f"no sandbox: {error}") from error


def _told(outcome: Outcome, limits: Limits) -> str:
    """What the policy reads: what was said, and how it ended where that was not well."""
    ends = {
        "timeout": f"ended after {limits.seconds:g} s",
        "memory": f"ended: it took more than {limits.memory_mb} MB or {limits.processes} processes",
        "output": f"ended: it printed more than {limits.output_bytes:,} bytes",
        "disk": f"the disk is full: there are {limits.disk_mb} MB",
        "crashed": "the workspace broke; it is as it was in the beginning",
    }
    how = ends.get(outcome.kind, f"exit status {outcome.code}" if outcome.kind == "failed" and outcome.code else "")
    said = outcome.said.rstrip()
    return "\n".join(part for part in (said, f"[{how}]" if how else "") if part) or "[done]"


def _outside(name: str) -> RunnableTool:
    def run(_: Mapping[str, Any]) -> str:
        raise EnvironmentFailure(f"{name} needs a task with a `workspace`")

    return RunnableTool(next(tool for tool in _TOOLS if tool.name == name), run)


for _one in _TOOLS:
    register_tool(_outside(_one.name))
