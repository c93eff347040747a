"""Writes docs/cli.md out of the commands themselves: `python -m metier.cli.docs > docs/cli.md`.

A test compares the file with what this writes, so that the page cannot go stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from metier.cli.app import app

__all__ = ["commands", "render"]

OPENING = """# The commands

Written by `make docs` from the commands themselves; do not edit. Every command ends with
exit code 0, with 2 and one message where you can mend something, with 130 after Ctrl-C;
`doctor` ends with 1 where it finds something wrong, `gate` with 1 where it blocks and 3 where it cannot tell.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, as `metier runs show`, with typer's command behind it."""
    yield from _below("metier", typer.main.get_command(app))


def render() -> str:
    """The whole page, in Markdown."""
    parts = [OPENING]
    for name, command in commands():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join([name, *(_argument(p) for p in arguments), *(["[OPTIONS]"] if options else [])])
        parts.append(f"## {name}\n\n    {usage}\n\n{_unwrap(command.help)}\n")
        rows = [(f"`{_argument(p)}`", p.help) for p in arguments]
        rows += [(f"`{_option(p)}`", p.help) for p in options]
        if rows:
            table = ["| | |", "|---|---|", *(f"| {_cell(what)} | {_cell(text)} |" for what, text in rows)]
            parts.append("\n".join(table) + "\n")
    return "\n".join(parts)


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(command, typer.core.TyperGroup):
        yield name, command
        return
    for child_name, child in command.commands.items():
        if not child.hidden:
            yield from _below(f"{name} {child_name}", child)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    flag = ", ".join(parameter.opts)
    return flag if parameter.is_flag else f"{flag} {parameter.metavar or 'VALUE'}"


def _cell(text: str | None) -> str:
    return _unwrap(text).replace("|", "\\|")


def _unwrap(text: str | None) -> str:
    """Paragraphs on one line each."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


if __name__ == "__main__":
    sys.stdout.write(render())
