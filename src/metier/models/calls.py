"""How models write tool calls, and how that text is read back.

    hermes    <tool_call>{"name": ..., "arguments": {...}}</tool_call>     Qwen, Hermes, ours
    llama     {"name": ..., "parameters": {...}}, maybe after <|python_tag|>   Llama 3;
              an object without parameters is no call but what the model says
    mistral   [TOOL_CALLS][{"name": ..., "arguments": {...}, "id": ...}], or
              [TOOL_CALLS]name[ARGS]{...}                                  Mistral

A call that cannot be read (broken JSON, no closing tag, no name, arguments that are no
object) is kept: its name is the one that its text seems to give, else `malformed`, and its
arguments are its raw text, with its mark before it. That is never a JSON object, so
`ToolCall.parsed` is None and the environment answers with an error. Such a turn renders to
other tokens than were sampled; training uses the tokens of the episode, not a rendering.

Only Mistral's models write an id of a call; elsewhere it is empty, for the caller to fill.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metier.records.types import Message, ToolCall

__all__ = ["HERMES", "LLAMA", "MISTRAL", "CallFormat", "format_of"]

MALFORMED = "malformed"  # the name of a call whose name cannot be read
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]+)"')
_BARE_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*([\w-]+)\s*)?(?:\[ARGS\]\s*)?(?=\{)")
_JSON = json.JSONDecoder()

Read = tuple[list[ToolCall], int]  # the calls, and the place after them


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way of writing calls: they begin with one of the marks."""

    name: str
    marks: tuple[str, ...]  # text that a call begins with
    _begins: re.Pattern[str]  # where one of them does begin a call
    _read: Callable[[str, int], Read | None]  # what begins there; None where it cannot be read
    _close: str = ""  # what ends a call, where something does
    _opening: tuple[str, str] = ("", "")  # how a call of any tool begins, and one of a named tool; `NAME` stands for it

    def parse(self, text: str) -> Message:
        """Content and tool calls of an assistant turn."""
        calls: list[ToolCall] = []
        content: list[str] = []
        place = 0
        while (found := self._find(text, place)) >= 0:
            content.append(text[place:found])
            made, place = self._read(text, found) or self._raw(text, found)
            calls += made
        content.append(text[place:])
        pieces = [piece.strip() for piece in content]
        return Message(role="assistant", content="\n".join(p for p in pieces if p), tool_calls=tuple(calls))

    def opening(self, name: str | None = None) -> str:
        """How a turn begins that can only be a call, of that tool where it is named; it ends where tokens end, too."""
        return self._opening[0] if name is None else self._opening[1].replace("NAME", json.dumps(name))

    def broken(self, call: ToolCall) -> bool:
        """Whether this is the raw text of a call that could not be read."""
        return call.parsed() is None and call.arguments.startswith(self.marks)

    def _find(self, text: str, place: int) -> int:
        found = self._begins.search(text, place)
        return -1 if found is None else found.start()

    def _raw(self, text: str, opened: int) -> Read:
        """What opens at `opened` as it stands, to its end, to the next one or to the end of the text."""
        begun = self._begins.match(text, opened)
        inner = opened + 1 if begun is None else begun.end()
        close = text.find(self._close, inner) if self._close else -1
        following = self._find(text, inner)
        if close >= 0 and not 0 <= following < close:
            stop = close + len(self._close)
        else:
            stop = following if following >= 0 else len(text)
        raw = text[opened:stop].strip()
        if not raw.startswith(self.marks[0]):  # never a JSON object
            raw = self.marks[0] + raw
        guess = _NAME.search(raw)
        return [ToolCall(name=guess.group(1) if guess else MALFORMED, arguments=raw)], stop


def format_of(template: str) -> CallFormat:
    """The format that a chat template speaks of; Hermes where it speaks of none."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" not in template and ("<|python_tag|>" in template or '"parameters": ' in template):
        return LLAMA
    return HERMES


def _decode(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at a place and the place after it; (None, place) where there is none."""
    start = place + len(text[place:]) - len(text[place:].lstrip())
    try:
        return _JSON.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, place


def _call(value: Any, *keys: str) -> ToolCall | None:
    """A call out of an object with a name, and arguments under one of the keys."""
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments: Any = next((value[key] for key in keys if key in value), {})
    if not isinstance(name, str) or not name or not isinstance(arguments, (dict, str)):
        return None
    given = value.get("id")
    return ToolCall(name=name, arguments=_text(arguments), id=given if isinstance(given, str) else "")


def _text(arguments: dict[str, Any] | str) -> str:
    if isinstance(arguments, str):
        return arguments
    written = json.dumps(arguments, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError:  # half of a surrogate pair stays an escape
        return json.dumps(arguments)
    return written


def _read_hermes(text: str, opened: int) -> Read | None:
    open_mark, close = HERMES.marks[0], HERMES._close
    value, end = _decode(text, opened + len(open_mark))
    after = text[end:].lstrip()
    call = _call(value, "arguments")
    if call is None or not after.startswith(close):
        return None
    return [call], len(text) - len(after) + len(close)


def _read_llama(text: str, opened: int) -> Read | None:
    start = opened + len(LLAMA.marks[0]) if text.startswith(LLAMA.marks[0], opened) else opened
    value, end = _decode(text, start)
    call = _call(value, "parameters", "arguments")
    if call is None or not {"parameters", "arguments"} & value.keys():
        return None
    after = text[end:].lstrip()
    if after.startswith(";"):
        end = len(text) - len(after) + 1
    return [call], end


def _read_mistral(text: str, opened: int) -> Read | None:
    place = opened + len(MISTRAL.marks[0])
    value, end = _decode(text, place)
    if value is not None:
        calls = [_call(one, "arguments") for one in (value if isinstance(value, list) else [value])]
        read = [call for call in calls if call is not None]
        return (read, end) if read and len(read) == len(calls) else None
    read = []
    while (found := _BARE_NAME.match(text, place)) is not None:
        value, end = _decode(text, found.end())
        if not isinstance(value, dict):
            return None
        read.append(ToolCall(name=found[1], arguments=_text(value), id=found[2] or ""))
        place = end
    return (read, place) if read else None


HERMES = CallFormat(
    "hermes", ("<tool_call>",), re.compile("<tool_call>"), _read_hermes, "</tool_call>",
    ('<tool_call>{"name":', '<tool_call>{"name": NAME, "arguments":'),
)  # fmt: skip
LLAMA = CallFormat(
    "llama", ("<|python_tag|>", '{"name"'),
    re.compile(r'<\|python_tag\|>(?:\s*\{\s*"name")?|\{\s*"name"\s*:\s*"[^"\\]*"\s*,\s*"(?:parameters|arguments)"'),
    _read_llama, "", ('{"name":', '{"name": NAME, "parameters":'),
)  # fmt: skip
MISTRAL = CallFormat(
    "mistral", ("[TOOL_CALLS]",), re.compile(r"\[TOOL_CALLS\]"), _read_mistral, "",
    ('[TOOL_CALLS][{"name":', '[TOOL_CALLS][{"name": NAME, "arguments":'),
)  # fmt: skip
