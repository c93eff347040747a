"""The renderer: messages and tools to tokens with a loss mask, and sampled tokens back to a message.

Two renderers share one interface. `ChatMLRenderer` writes ChatML by itself, with a short
block of tools and Hermes-style calls, for tokenizers that have `<|im_start|>` and
`<|im_end|>`; `TemplateRenderer` (`template.py`) goes through the model's own chat template.

The loss mask is a matter of position, never of token id, because a tokenizer may use one
id for padding, end of text and end of turn. It is 1 on what the assistant writes, and on
the token that ends its turn; the newline after that is a header's and carries no loss.

ChatML is written piece by piece: headers are fixed ids, and contents are stripped and then
encoded with the parsing of special tokens off, so that a user who types `<|im_end|>` sends
ten characters and cannot forge a turn. Stripped pieces meet only at newlines and special
tokens, so the pieces' ids are the ids of the whole text. (Bytes for which a tokenizer has
no token are dropped by it; SmolLM2 lacks those of some control characters.)

`chat.jinja` is the same format for transformers, with the same ids and the same mask. What
a template cannot do by itself is the inert text: it yields one string, in which forged and
real special tokens look alike (recent transformers mend it with
`apply_chat_template(sanitize_control_tokens=True)`, which gives this renderer's ids but
excludes the mask). For that reason `TemplateRenderer` breaks
forged special tokens with a zero-width space before its template sees them. A template
also cannot know how arguments were spelled when they reach it as a mapping instead of text.

Renderers may be used by several threads. Left out: images and reasoning blocks.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, Protocol

from transformers import PreTrainedTokenizerBase

from metier.base.errors import DataError, ModelError
from metier.base.ids import content_hash
from metier.models.calls import HERMES, CallFormat
from metier.records.types import Message, Tool

__all__ = ["ChatMLRenderer", "Rendered", "Renderer", "get_renderer", "tool_block"]

_START, _END = "<|im_start|>", "<|im_end|>"
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HOW_TO_CALL = f'Call a tool with {_OPEN}{{"name": ..., "arguments": {{...}}}}{_CLOSE}.'
PREFIXES = 256  # system prompts whose tokens are kept
REMEDY = "set `model.renderer: chatml` if its tokenizer has <|im_start|> and <|im_end|>, or choose another model"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens; `token_ids` and `loss_mask` have the same length."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]  # 1 exactly on what the assistant writes, its end of turn included
    prefix: int  # leading tokens that conversations with this system prompt and these tools share; 0 without either


class Renderer(Protocol):
    """Messages to tokens and back."""

    @property
    def template(self) -> str:
        """The Jinja chat template to export with a checkpoint."""

    @property
    def template_hash(self) -> str:
        """The content hash of `template`."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an assistant turn."""

    @property
    def calls(self) -> CallFormat:
        """How the assistant writes tool calls."""

    @property
    def keeps_past(self) -> bool:
        """Whether earlier turns are rendered the same when a conversation goes on."""

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False) -> Rendered:
        """The conversation as tokens; `prompt` appends the header of an assistant turn."""

    def extend(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What follows the end token of an assistant turn: `messages`, then the next assistant header."""

    def spell(self, text: str) -> tuple[int, ...]:
        """The tokens of what an assistant turn is made to begin with."""

    def parse(self, token_ids: Sequence[int]) -> Message:
        """One assistant turn as sampled, with or without its end token."""


def get_renderer(tokenizer: PreTrainedTokenizerBase, kind: Literal["auto", "chatml", "template"] = "auto") -> Renderer:
    """The renderer for a tokenizer.

    `auto` takes ChatML where the tokenizer's own template is ours, or is ChatML without
    tools, and else that template. Raises `ModelError` where it cannot be used.
    """
    from metier.models.template import TemplateRenderer  # which builds on this module

    if kind == "chatml":
        return ChatMLRenderer(tokenizer)
    template = own_template(tokenizer)
    bare = _START in template and "tools" not in template
    if kind == "auto" and (bare or template == _chatml_template()) and {_START, _END} <= tokenizer.get_vocab().keys():
        return ChatMLRenderer(tokenizer)
    return TemplateRenderer(tokenizer)


class ChatMLRenderer:
    """ChatML with a block of tools and Hermes-style calls."""

    calls = HERMES
    keeps_past = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ModelError` when the tokenizer lacks the ChatML tokens or is not a fast one."""
        vocabulary = tokenizer.get_vocab()
        if missing := [token for token in (_START, _END) if token not in vocabulary]:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no {' and no '.join(missing)}, which ChatML needs; "
                "set `model.renderer: template` to use its own chat template, or choose another model"
            )
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} is not a fast one; save it with a tokenizer.json"
            )
        self.template = _chatml_template()
        self.template_hash = content_hash(self.template)
        # A copy, because whether special tokens are parsed is a setting of the shared tokenizer.
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()
        self._start, self._end = int(vocabulary[_START]), int(vocabulary[_END])
        stops = {self._end, tokenizer.eos_token_id}
        self.stop_ids = frozenset(int(stop) for stop in stops if isinstance(stop, int))
        self._newline = self._encode("\n")
        roles = ("system", "user", "assistant", "tool")
        self._headers = {role: (self._start, *self._encode(f"{role}\n")) for role in roles}
        self._system = functools.lru_cache(maxsize=PREFIXES)(self._turn_of_system)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False) -> Rendered:
        """The conversation as tokens; `prompt` appends the header of an assistant turn."""
        ids: list[int] = []
        mask: list[int] = []
        has_system = bool(messages) and messages[0].role == "system"
        if has_system or tools:
            parts = [messages[0].content.strip() if has_system else "", tool_block(tools)]
            ids.extend(self._system("\n\n".join(part for part in parts if part)))
        prefix = len(ids)
        mask.extend([0] * prefix)
        for message in messages[has_system:]:
            header, body = self._headers[message.role], self._encode(_turn_text(message))
            learned = int(message.role == "assistant")
            ids.extend((*header, *body, self._end, *self._newline))
            mask.extend([0] * len(header) + [learned] * (len(body) + 1) + [0] * len(self._newline))
        if prompt:
            ids.extend(self._headers["assistant"])
            mask.extend([0] * len(self._headers["assistant"]))
        return Rendered(token_ids=tuple(ids), loss_mask=tuple(mask), prefix=prefix)

    def extend(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What follows the end token of an assistant turn: `messages`, then the next assistant header."""
        check_extension(messages)
        ids = list(self._newline)
        for message in messages:
            ids.extend((*self._headers[message.role], *self._encode(_turn_text(message)), self._end, *self._newline))
        return (*ids, *self._headers["assistant"])

    def spell(self, text: str) -> tuple[int, ...]:
        """The tokens of what an assistant turn is made to begin with."""
        return self._encode(text)

    def parse(self, token_ids: Sequence[int]) -> Message:
        """One assistant turn as sampled, with or without its end token."""
        return self.calls.parse(self._backend.decode(until(token_ids, self.stop_ids), skip_special_tokens=False))

    def _turn_of_system(self, text: str) -> tuple[int, ...]:
        return (*self._headers["system"], *self._encode(text.strip()), self._end, *self._newline)

    def _encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text`, in which no special token is recognised."""
        if not text:
            return ()
        try:
            return tuple(self._backend.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeEncodeError):  # half of a surrogate pair, as JSON escapes can spell it
            return tuple(self._backend.encode(whole(text), add_special_tokens=False).ids)


def tool_block(tools: Sequence[Tool]) -> str:
    """How to call tools, and one signature a line; optional parameters have a `?`."""
    if not tools:
        return ""
    lines = [_HOW_TO_CALL, "Tools:"]
    for tool in tools:
        required = tool.parameters.get("required") or ()
        names = ", ".join(n if n in required else f"{n}?" for n in tool.parameters.get("properties") or ())
        description = tool.description.strip()
        lines.append(f"- {tool.name}({names})" + (f": {description}" if description else ""))
    return "\n".join(lines)


def _turn_text(message: Message) -> str:
    """Content, then calls, a line each; arguments as they were written."""
    content = message.content.strip()
    if message.role != "assistant":
        return content
    calls = [
        f'{_OPEN}{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": '
        f"{call.arguments.strip() or '{}'}}}{_CLOSE}"
        for call in message.tool_calls
    ]
    return "\n".join([content, *calls] if content else calls)


def whole(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair, which tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _chatml_template() -> str:
    return resources.files(__package__).joinpath("chat.jinja").read_text(encoding="utf-8")


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template. Raises `ModelError` where it has none."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ModelError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; {REMEDY}")
    return str(template)


def check_extension(messages: Sequence[Message]) -> None:
    """Raises `DataError` for messages that nobody but the policy can have said."""
    for message in messages:
        if message.role not in ("user", "tool"):
            raise DataError(
                f"only user and tool messages follow an assistant turn here, not {message.role!r}; use render"
            )


def until(token_ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    """The tokens before the first stop."""
    kept: list[int] = []
    for token in token_ids:
        if token in stops:
            break
        kept.append(int(token))
    return kept


def common(left: Sequence[object], right: Sequence[object]) -> int:
    """The length of the common prefix."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
