"""A row of a dataset: what `metier train` reads, and where it comes from.

`data` is one of TRL's types, in OpenAI's chat format: {"prompt", "completion"}, {"prompt", "chosen", "rejected"},
{"prompt", "completion", "label"}, {"prompt", "completions", "labels"}; of a task, a line as task files have it.
Everything beside `data` is for choosing among rows and for the manifest.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import canonical_json, content_hash, derive_id
from metier.records.types import Episode, Message, Task

__all__ = ["Row", "answered", "letters", "messages_of", "numbers", "passages", "plain", "tools_of", "words"]

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_WORD = re.compile(r"\w+", re.UNICODE)
_SAYING = ("messages", "prompt", "completion", "chosen", "rejected", "completions")
_SKIPPED = ("system",)  # instructions are the same in many rows, and say nothing of what is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, and what stands behind it."""

    data: Mapping[str, Any]
    feedback_ids: tuple[str, ...] = ()
    episode_ids: tuple[str, ...] = ()
    task_ids: tuple[str, ...] = ()
    kind: str = ""  # of the task
    label: str = ""  # good or bad, where rows have one
    sources: tuple[str, ...] = ()
    support: float = 0.0  # weight of what speaks for it; of rows that are alike, the best supported stays
    confidence: float | None = None
    at: float = 0.0  # UTC seconds of the newest statement behind it
    licence: str = ""
    twin: str = ""  # rows are alike only where this is equal: a task's hidden answer

    @property
    def id(self) -> str:
        """`row-` and the hash of what it teaches and of what it was made of."""
        return derive_id(
            "row", canonical_json(self.data), *self.feedback_ids, "|", *self.episode_ids, "|", *self.task_ids
        )

    @property
    def source(self) -> str:
        """All sources, as one name."""
        return ", ".join(self.sources) or "no one"

    def text(self) -> str:
        """All that it says, without system messages: what rows are compared by."""
        return "\n".join(passages(self.data))

    def asked(self) -> str:
        """What is asked in it, without system messages; all of it where nothing is answered."""
        return "\n".join(passages(self.data, ("messages", "prompt")))

    def taught(self) -> str:
        """The answer that it has as the right one."""
        return "\n".join(passages(self.data, ("completion", "chosen", "completions")))

    def instructions(self) -> str:
        """Its system messages, under which it holds."""
        parts = self.data.get("messages") or self.data.get("prompt")
        found = [one["content"] for one in parts if one.get("role") == "system"] if isinstance(parts, list) else []
        return content_hash(found) if found else ""


def passages(data: Mapping[str, Any], keys: Sequence[str] = _SAYING) -> list[str]:
    """The texts of a row's messages, one by one, without system messages."""
    out: list[str] = []
    for key in keys:
        value = data.get(key)
        if isinstance(value, str):
            out.append(value)
        elif isinstance(value, list):
            for part in value:
                if isinstance(part, str):
                    out.append(part)
                elif part.get("role") not in _SKIPPED:
                    said = [part.get("content") or ""]
                    for call in part.get("tool_calls") or ():
                        said.append(f"{call['function']['name']} {call['function']['arguments']}")
                    out.append("\n".join(filter(None, said)))
    return [text for text in out if text]


def answered(task: Task, episode: Episode, turn: int | None = None) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What was asked and what was answered; the answer begins at message `turn`, else behind the task.

    Raises `DataError` where nobody answers there.
    """
    messages = episode.messages
    start = turn
    if start is None:
        start = len(task.messages) if messages[: len(task.messages)] == task.messages else 0
        while start < len(messages) and messages[start].role != "assistant":
            start += 1
    if start >= len(messages) or messages[start].role != "assistant" or start == 0:
        raise DataError("nobody answers in the episode")
    return messages[:start], messages[start:]


def messages_of(value: Any) -> tuple[Message, ...]:
    """The messages that a demonstration or correction holds. Raises `DataError` where they are none of an assistant."""
    raw = value if isinstance(value, list) else [value]
    if not all(isinstance(one, Mapping) for one in raw):
        raise DataError("what is shown is no list of messages")
    found = tuple(Message.from_openai(one) for one in raw)
    if not any(one.role == "assistant" for one in found):
        raise DataError("what is shown holds no answer of an assistant")
    return found


def plain(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages in OpenAI's format."""
    return [message.to_openai() for message in messages]


def words(text: str) -> list[str]:
    """The words of a text, lower case, accents and forms of letters made one, without marks."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def letters(text: str) -> str:
    """The text as its words between single spaces: what is the same to everyone is the same here."""
    return " ".join(words(text))


def numbers(text: str) -> tuple[str, ...]:
    """The numbers in a text, in order."""
    return tuple(_NUMBER.findall(text))


def tools_of(task: Task) -> dict[str, Sequence[Any]]:
    """The tools of a task as a part of a row; nothing where it has none."""
    return {"tools": [tool.to_openai() for tool in task.tools]} if task.tools else {}
