"""The renderer: messages and tools to tokens with a loss mask, and sampled tokens back to a message.

Two renderers share one interface. `ChatMLRenderer` writes ChatML by itself, with a short
block of tools and Hermes-style calls, for tokenizers that have `<|im_start|>` and
`<|im_end|>`; `TemplateRenderer` goes through the model's own chat template.

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

A call that cannot be read (broken JSON, no closing tag, no name, arguments that are no
object) is kept: its name is the one that its text seems to give, else `malformed`, and its
arguments are its raw text from `<tool_call>` on. That is never a JSON object, so
`ToolCall.parsed` is None and the environment answers with an error. Such a turn renders to
other tokens than were sampled; training uses the tokens of the episode, not a rendering.

Renderers may be used by several threads. Left out: images, reasoning blocks, and formats
of calls other than Hermes.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, Protocol

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from metier.base.errors import DataError, ModelError
from metier.base.ids import content_hash
from metier.records.types import Message, Tool, ToolCall

__all__ = [
    "TOOL_CALL",
    "ChatMLRenderer",
    "Rendered",
    "Renderer",
    "TemplateRenderer",
    "get_renderer",
    "parse_turn",
    "tool_block",
]

MALFORMED = "malformed"  # the name of a call whose name cannot be read
_START, _END = "<|im_start|>", "<|im_end|>"
TOOL_CALL, _CLOSE = "<tool_call>", "</tool_call>"
_HOW_TO_CALL = f'Call a tool with {TOOL_CALL}{{"name": ..., "arguments": {{...}}}}{_CLOSE}.'
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]+)"')
_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_ZERO_WIDTH_SPACE = "\u200b"
_PREFIXES = 256  # system prompts whose tokens are kept
_REMEDY = "set `model.renderer: chatml` if its tokenizer has <|im_start|> and <|im_end|>, or choose another model"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens; `token_ids` and `loss_mask` have the same length."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]  # 1 exactly on what the assistant writes, its end of turn included
    prefix: int  # leading tokens that are system prompt and tools; 0 if there are none


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

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False) -> Rendered:
        """The conversation as tokens; `prompt` appends the header of an assistant turn."""

    def extend(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What follows the end token of an assistant turn: `messages`, then the next assistant header."""

    def parse(self, token_ids: Sequence[int]) -> Message:
        """One assistant turn as sampled, with or without its end token."""


def get_renderer(tokenizer: PreTrainedTokenizerBase, kind: Literal["auto", "chatml", "template"] = "auto") -> Renderer:
    """The renderer for a tokenizer.

    `auto` takes the tokenizer's own template where it marks what the assistant writes, and
    ChatML where its template is ChatML without tools. Raises `ModelError` where neither holds.
    """
    if kind == "chatml":
        return ChatMLRenderer(tokenizer)
    template = _own_template(tokenizer)
    if kind == "template" or _MARKER.search(template):
        return TemplateRenderer(tokenizer)
    if _START in template and "tools" not in template and {_START, _END} <= tokenizer.get_vocab().keys():
        return ChatMLRenderer(tokenizer)
    raise ModelError(
        f"the chat template of {tokenizer.name_or_path!r} has no {{% generation %}} markers, so it drops the "
        f"assistant mask; {_REMEDY}"
    )


class ChatMLRenderer:
    """ChatML with a block of tools and Hermes-style calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ModelError` when the tokenizer lacks the ChatML tokens or is not a fast one."""
        vocabulary = tokenizer.get_vocab()
        if missing := [token for token in (_START, _END) if token not in vocabulary]:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no {' and no '.join(missing)}, which ChatML needs; "
                "set `model.renderer: template` if its chat template has {% generation %} markers, "
                "or choose another model"
            )
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} is not a fast one; save it with a tokenizer.json"
            )
        self.template = resources.files(__package__).joinpath("chat.jinja").read_text(encoding="utf-8")
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
        self._system = functools.lru_cache(maxsize=_PREFIXES)(self._turn_of_system)

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
        _check_extension(messages)
        ids = list(self._newline)
        for message in messages:
            ids.extend((*self._headers[message.role], *self._encode(_turn_text(message)), self._end, *self._newline))
        return (*ids, *self._headers["assistant"])

    def parse(self, token_ids: Sequence[int]) -> Message:
        """One assistant turn as sampled, with or without its end token."""
        return parse_turn(self._backend.decode(_until(token_ids, self.stop_ids), skip_special_tokens=False))

    def _turn_of_system(self, text: str) -> tuple[int, ...]:
        return (*self._headers["system"], *self._encode(text.strip()), self._end, *self._newline)

    def _encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text`, in which no special token is recognised."""
        if not text:
            return ()
        try:
            return tuple(self._backend.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeEncodeError):  # half of a surrogate pair, as JSON escapes can spell it
            return tuple(self._backend.encode(_whole(text), add_special_tokens=False).ids)


class TemplateRenderer:
    """Any model through its own chat template, whose generation markers give the loss mask."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ModelError` when the template is missing, drops the assistant mask, or rewrites the past."""
        self.template = _own_template(tokenizer)
        self.template_hash = content_hash(self.template)
        self._name = tokenizer.name_or_path
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()  # transformers tracks generation markers in shared state
        added = self._tokenizer.added_tokens_decoder.values()
        specials = {str(token) for token in added if token.special} | set(self._tokenizer.all_special_tokens)
        self._forged = re.compile("|".join(re.escape(token) for token in sorted(specials) if token) or r"(?!)")
        self._special = frozenset(int(i) for i in self._tokenizer.all_special_ids)
        self.stop_ids = self._configured_stops()
        if not _MARKER.search(self.template):
            raise ModelError(
                f"the chat template of {self._name!r} has no {{% generation %}} markers, so it drops the "
                f"assistant mask; {_REMEDY}"
            )
        self.stop_ids |= self._probed_stop()
        self._shared = functools.lru_cache(maxsize=_PREFIXES)(self._system_tokens)
        self.extend((Message(role="user", content="Good."),))  # refuses a template that rewrites the past

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False) -> Rendered:
        """The conversation as tokens; `prompt` appends the header of an assistant turn."""
        ids, mask = self._apply(messages, tools, prompt=prompt)
        self._close_turns(ids, mask)
        if any(m.role == "assistant" for m in messages) and not any(mask):
            raise ModelError(self._dropped())
        system = messages[0].content if messages and messages[0].role == "system" else None
        prefix = 0
        if system is not None or tools:
            shared = self._shared(system, json.dumps([tool.to_openai() for tool in tools]))
            prefix = _common(ids, shared)
        return Rendered(token_ids=tuple(ids), loss_mask=tuple(mask), prefix=prefix)

    def extend(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What follows the end token of an assistant turn: `messages`, then the next assistant header."""
        _check_extension(messages)
        answered = 0
        while answered < len(messages) and messages[answered].role == "tool":
            answered += 1
        calls = tuple(
            ToolCall(name=m.name or "tool", arguments="{}", id=m.tool_call_id or f"call_{n}")
            for n, m in enumerate(messages[:answered], start=1)
        )
        before = (Message(role="user", content="Hello."), Message(role="assistant", content="Hi.", tool_calls=calls))
        ids, mask = self._apply(before)
        cut = self._end_of_turn(ids, mask)
        longer, _ = self._apply((*before, *messages), prompt=True)
        if longer[:cut] != ids[:cut]:
            raise ModelError(
                f"the chat template of {self._name!r} changes earlier turns when a conversation goes on, so episodes "
                f"of several turns cannot be trained on; {_REMEDY}"
            )
        return tuple(longer[cut:])

    def parse(self, token_ids: Sequence[int]) -> Message:
        """One assistant turn as sampled, with or without its end token."""
        with self._lock:
            text = self._tokenizer.decode(_until(token_ids, self.stop_ids), skip_special_tokens=False)
        assert isinstance(text, str)
        return parse_turn(text)

    def _apply(
        self, messages: Sequence[Message], tools: Sequence[Tool | dict[str, Any]] = (), *, prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        schemas: list[Any] = [tool.to_openai() if isinstance(tool, Tool) else tool for tool in tools]
        try:
            with self._lock:
                out: Any = self._tokenizer.apply_chat_template(
                    [self._plain(message) for message in messages],
                    tools=schemas or None,
                    chat_template=self.template,
                    add_generation_prompt=prompt,
                    tokenize=True,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(
                f"the chat template of {self._name!r} cannot render this conversation: {error}; {_REMEDY}"
            ) from error
        return [int(i) for i in out["input_ids"]], [int(i) for i in out["assistant_masks"]]

    def _plain(self, message: Message) -> dict[str, Any]:
        """The OpenAI form, inert, with arguments as mappings, which most models' own templates expect."""
        plain = message.to_openai()
        plain["content"] = self._inert(message.content)
        for call, written in zip(message.tool_calls, plain.get("tool_calls", ()), strict=False):
            text = self._inert(call.arguments)
            parsed = ToolCall(name=call.name, arguments=text).parsed()
            written["function"]["arguments"] = text if parsed is None else parsed
        return plain

    def _inert(self, text: str) -> str:
        return self._forged.sub(lambda found: found[0][:1] + _ZERO_WIDTH_SPACE + found[0][1:], _whole(text))

    def _configured_stops(self) -> frozenset[int]:
        stops: list[Any] = [self._tokenizer.eos_token_id]
        try:
            configured = GenerationConfig.from_pretrained(self._name, local_files_only=True).eos_token_id
        except (OSError, ValueError):  # the model has none
            configured = None
        stops.extend(configured if isinstance(configured, list) else [configured])
        return frozenset(int(stop) for stop in stops if isinstance(stop, int))

    def _probed_stop(self) -> frozenset[int]:
        """The token that ends an assistant turn in a short conversation."""
        ids, mask = self._apply((Message(role="user", content="Hello."), Message(role="assistant", content="Hi.")))
        if not any(mask):
            raise ModelError(self._dropped())
        last = ids[self._end_of_turn(ids, mask) - 1]
        if last not in self.stop_ids | self._special:
            raise ModelError(
                f"the chat template of {self._name!r} does not end assistant turns with a special token, "
                f"so the end of a turn cannot be learned; {_REMEDY}"
            )
        return frozenset({last})

    def _end_of_turn(self, ids: list[int], mask: list[int]) -> int:
        """The place after the end token of the last assistant turn."""
        ends = self.stop_ids | self._special
        last = max(place for place, learned in enumerate(mask) if learned)
        while last > 0 and ids[last] not in ends and mask[last - 1] and ids[last - 1] in ends:
            last -= 1  # the marker closes after the newline that follows the end
        if ids[last] not in ends and last + 1 < len(ids) and ids[last + 1] in ends:
            last += 1  # the marker closes before the end
        return last + 1

    def _close_turns(self, ids: list[int], mask: list[int]) -> None:
        """Let each marked stretch end with its end token, whether the marker closes before or after that."""
        speaking = ended = False
        for place, token in enumerate(ids):
            marked = bool(mask[place])
            if marked or (speaking and not ended and token in self.stop_ids):
                mask[place] = int(not ended)
                ended = ended or token in self.stop_ids
            else:
                ended = False
            speaking = marked

    def _system_tokens(self, system: str | None, tools: str) -> tuple[int, ...]:
        """What two conversations that differ from the first user's word on have in common."""
        leading = () if system is None else (Message(role="system", content=system),)
        schemas = json.loads(tools)
        user, _ = self._apply((*leading, Message(role="user", content="Hello.")), schemas)
        other, _ = self._apply((*leading, Message(role="assistant", content="Hi.")), schemas)
        shared = user[: _common(user, other)]
        while shared and shared[-1] in self._special - self.stop_ids:
            shared.pop()  # the token that opens the next turn
        return tuple(shared)

    def _dropped(self) -> str:
        return (
            f"the chat template of {self._name!r} drops the assistant mask: it marks no token as the assistant's; "
            f"{_REMEDY}"
        )


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


def parse_turn(text: str) -> Message:
    """Content and tool calls of an assistant turn in Hermes style; ids are `call_1`, `call_2` … within it."""
    calls: list[ToolCall] = []
    content: list[str] = []
    place = 0
    while (found := text.find(TOOL_CALL, place)) >= 0:
        content.append(text[place:found])
        name, arguments, place = _read_call(text, found)
        calls.append(ToolCall(name=name, arguments=arguments, id=f"call_{len(calls) + 1}"))
    content.append(text[place:])
    pieces = [piece.strip() for piece in content]
    return Message(role="assistant", content="\n".join(p for p in pieces if p), tool_calls=tuple(calls))


def _read_call(text: str, opened: int) -> tuple[str, str, int]:
    """Name, arguments and the place after the call that opens at `opened`; see the module on broken ones."""
    inner = opened + len(TOOL_CALL)
    start = inner + len(text[inner:]) - len(text[inner:].lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        value, end = None, start
    after = text[end:].lstrip()
    if isinstance(value, dict) and after.startswith(_CLOSE):
        name, arguments = value.get("name"), value.get("arguments", {})
        if isinstance(name, str) and name and isinstance(arguments, (dict, str)):
            return name, _argument_text(arguments), len(text) - len(after) + len(_CLOSE)
    close, following = text.find(_CLOSE, inner), text.find(TOOL_CALL, inner)
    if close >= 0 and not 0 <= following < close:
        stop = close + len(_CLOSE)
    else:
        stop = following if following >= 0 else len(text)
    raw = text[opened:stop].strip()
    guess = _NAME.search(raw)
    return (guess.group(1) if guess else MALFORMED), raw, stop


def _argument_text(arguments: dict[str, Any] | str) -> str:
    if isinstance(arguments, str):
        return arguments
    written = json.dumps(arguments, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError:  # half of a surrogate pair stays an escape
        return json.dumps(arguments)
    return written


def _turn_text(message: Message) -> str:
    """Content, then calls, a line each; arguments as they were written."""
    content = message.content.strip()
    if message.role != "assistant":
        return content
    calls = [
        f'{TOOL_CALL}{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": '
        f"{call.arguments.strip() or '{}'}}}{_CLOSE}"
        for call in message.tool_calls
    ]
    return "\n".join([content, *calls] if content else calls)


def _whole(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair, which tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ModelError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; {_REMEDY}")
    return str(template)


def _check_extension(messages: Sequence[Message]) -> None:
    for message in messages:
        if message.role not in ("user", "tool"):
            raise DataError(
                f"only user and tool messages follow an assistant turn here, not {message.role!r}; use render"
            )


def _until(token_ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    kept: list[int] = []
    for token in token_ids:
        if token in stops:
            break
        kept.append(int(token))
    return kept


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the common prefix."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
