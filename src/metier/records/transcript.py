"""An episode that a person can read: as turns, as plain text, as HTML.

`turns` is the one place that decides what of a message is shown; the text for the
terminal and the HTML for the page are made from it. All of it was written by models,
users or tools and is untrusted: the plain text drops control characters (a transcript
must not move the reader's cursor or rewrite the screen), the HTML escapes everything.
`stylesheet` is how transcripts look, with the colours and type of all pages.

Left out: token ids and log-probabilities; the ledger's export has them.
"""

from __future__ import annotations

import functools
import json
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup, escape

from metier.records.types import Episode, Feedback, Message, Tool, ToolCall

__all__ = ["CallView", "Turn", "as_html", "as_text", "printable", "stylesheet", "turns"]

SPEAKERS = {"system": "Instructions", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """A tool call as a person reads it."""

    name: str
    arguments: str  # `key="value", …`, or the raw text where it is not a JSON object
    fault: str = ""  # why the call cannot work: not JSON, no such tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message as a person reads it."""

    role: str
    speaker: str
    text: str
    calls: tuple[CallView, ...] = ()
    cut: int = 0  # characters left out at the end


def turns(messages: Sequence[Message], *, tools: Sequence[Tool] = (), limit: int = 2400) -> tuple[Turn, ...]:
    """The messages as turns; texts longer than `limit` characters are cut, and say so.

    With `tools`, calls of any other name are marked as faulty.
    """
    known = {tool.name for tool in tools}
    out = []
    for message in messages:
        text = _pretty(message.content) if message.role == "tool" else message.content
        speaker = SPEAKERS.get(message.role, message.role)
        if message.role == "tool" and message.name:
            speaker = f"Tool · {message.name}"
        out.append(
            Turn(
                role=message.role,
                speaker=speaker,
                text=text[:limit],
                calls=tuple(_call(call, known, limit) for call in message.tool_calls),
                cut=max(0, len(text) - limit),
            )
        )
    return tuple(out)


def as_text(
    episode: Episode,
    *,
    tools: Sequence[Tool] = (),
    feedback: Sequence[Feedback] = (),
    width: int = 88,
) -> str:
    """The episode as plain text for a terminal, what was said about it at the end."""
    weights = f"{episode.weights.checkpoint} at step {episode.weights.step}"
    cost = episode.cost
    lines = [
        f"episode  {episode.id}",
        f"task     {episode.task_id} ({episode.split}, attempt {episode.index + 1})",
        f"made by  {weights}, stage {episode.stage} of {episode.run_id}",
        f"sampled  temperature {episode.sampling.temperature:g}, seed {episode.seed}",
        f"cost     {cost.completion_tokens} tokens written, {cost.prompt_tokens} read, {cost.seconds:.1f} s",
        f"ended    {episode.stop_reason}" + (f": {episode.error}" if episode.error else ""),
        "",
    ]
    if not episode.messages:
        lines.append("(the messages of this episode were erased)")
    for turn in turns(episode.messages, tools=tools, limit=20_000):
        lines.append(f"── {turn.speaker} " + "─" * max(0, width - len(turn.speaker) - 4))
        for paragraph in turn.text.splitlines():
            lines.extend(textwrap.wrap(paragraph, width, replace_whitespace=False) or [""])
        if turn.cut:
            lines.append(f"[… {turn.cut} more characters]")
        for call in turn.calls:
            lines.append(f"→ {call.name}({call.arguments})" + (f"   [{call.fault}]" if call.fault else ""))
        lines.append("")
    for row in feedback:
        source = f"{row.source.kind} {row.source.name} {row.source.version}"
        value = row.status if row.status != "scored" else "abstained" if row.abstention else str(row.value)
        lines.append(f"{row.criterion}: {value}  ({source})" + (f": {row.reason}" if row.reason else ""))
        parts = row.evidence.get("parts")
        if isinstance(parts, dict):
            lines.extend(f"    {name}: {score}" for name, score in parts.items())
    return "\n".join(printable(line) for line in lines).rstrip() + "\n"


def as_html(shown: Sequence[Turn]) -> Markup:
    """Turns as an ordered list; every character of theirs escaped."""
    items = []
    for turn in shown:
        body = [Markup('<p class="who">{}</p>').format(turn.speaker)]
        if turn.text.strip():
            tag = "pre" if turn.role == "tool" else "p"
            body.append(Markup('<{0} class="said">{1}</{0}>').format(Markup(tag), printable(turn.text.strip())))
        elif not turn.calls:
            body.append(Markup('<p class="said silent">(said nothing)</p>'))
        if turn.cut:
            body.append(Markup('<p class="cut">… {} more characters</p>').format(turn.cut))
        for call in turn.calls:
            fault = Markup(' <span class="fault">{}</span>').format(call.fault) if call.fault else Markup("")
            body.append(
                Markup('<p class="call"><code><b>{}</b>({})</code>{}</p>').format(
                    printable(call.name), printable(call.arguments), fault
                )
            )
        items.append(Markup('<li class="turn {}">{}</li>').format(turn.role, Markup("").join(body)))
    return Markup('<ol class="turns">{}</ol>').format(Markup("").join(items)) if items else Markup(escape(""))


@functools.cache
def stylesheet() -> str:
    """The CSS of colours, type and transcripts that every page begins with."""
    return files("metier.records").joinpath("look.css").read_text(encoding="utf-8")


def printable(text: str) -> str:
    """The text without control characters (line breaks and tabs stay) and bidirectional overrides.

    Each is replaced by one character, so that places in the text stay what they were.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf") or char == "\u200d" else "�"
        for char in text
    )


def _call(call: ToolCall, known: set[str], limit: int) -> CallView:
    arguments = call.parsed()
    if arguments is None:
        return CallView(name=call.name, arguments=call.arguments[:limit], fault="arguments are not a JSON object")
    text = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    fault = "no such tool" if known and call.name not in known else ""
    return CallView(name=call.name, arguments=text[:limit], fault=fault)


def _pretty(text: str) -> str:
    """A tool's JSON object, one key a line; anything else as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict) and value:
        return "\n".join(f"{key}: {_plain(item)}" for key, item in value.items())
    return text


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
