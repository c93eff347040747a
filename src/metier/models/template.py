"""A renderer that goes through the model's own chat template: Qwen, Llama 3, Mistral and most others.

Where the assistant begins to write is found by rendering the conversation up to its turn with
the header that asks for it, so a template needs no generation markers; its turn goes to the
token that ends it. Turns and what is between them are tokenised apart, so a conversation's
tokens begin with the prompt's and go on with what was sampled, whatever the tokenizer would
make of the whole text.

Some templates render a turn otherwise once the conversation goes on, as Qwen3's does, which
drops earlier reasoning: `keeps_past` tells. An episode keeps what was sampled all the same;
what the template would write next is appended to it. Where not even the place of a turn can be
found again, as when tools move to the newest question, the renderer says that it cannot.

A template yields one string, in which forged and real special tokens look alike, so special
tokens in what people, tools and models wrote are broken with a zero-width space first. Ids of
calls become nine letters and digits, as Mistral's templates demand.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from metier.base.errors import ModelError
from metier.base.ids import content_hash
from metier.models.calls import format_of
from metier.models.renderer import PREFIXES, REMEDY, Rendered, check_extension, common, own_template, until, whole
from metier.records.types import Message, Tool, ToolCall

__all__ = ["TemplateRenderer"]

_ZERO_WIDTH_SPACE = "\u200b"
_HELLO = (Message(role="user", content="Hello."), Message(role="assistant", content="Hi."))
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_NUMBERED = re.compile(r"call_(\d{1,5})")


class TemplateRenderer:
    """Any model through its own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ModelError` when the template is missing, leaves out the assistant, or does not end its turns."""
        self.template = own_template(tokenizer)
        self.template_hash = content_hash(self.template)
        self.calls = format_of(self.template)
        self._name = tokenizer.name_or_path
        if not tokenizer.is_fast:
            raise ModelError(f"the tokenizer of {self._name!r} is not a fast one; save it with a tokenizer.json")
        self._tokenizer = copy.deepcopy(tokenizer)
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        added = self._tokenizer.added_tokens_decoder.values()
        specials = {str(token) for token in added if token.special} | set(self._tokenizer.all_special_tokens)
        self._forged = re.compile("|".join(re.escape(token) for token in sorted(specials) if token) or r"(?!)")
        known = (self._tokenizer.convert_tokens_to_ids(token) for token in specials)
        self._special = frozenset(int(token) for token in known if isinstance(token, int))
        self.stop_ids = self._configured_stops()
        self.stop_ids |= self._probed_stop()
        self.keeps_past = self._probed_past()
        self._shared = functools.lru_cache(maxsize=PREFIXES)(self._system_tokens)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False) -> Rendered:
        """The conversation as tokens; `prompt` appends the header of an assistant turn.

        Raises `ModelError` where the template cannot render it, or does not show where a turn begins.
        """
        text = self._text(messages, tools, prompt=prompt)
        ids: list[int] = []
        mask: list[int] = []
        done = 0
        for number, message in enumerate(messages):
            if message.role == "assistant":
                begin = self._begin(text, messages[:number], tools)
                turn, end = self._turn(text, begin)
                between = self._encode(text[done:begin])
                ids += [*between, *turn]
                mask += [0] * len(between) + [1] * len(turn)
                done = end
        rest = self._encode(text[done:])
        ids += rest
        mask += [0] * len(rest)
        system = messages[0].content if messages and messages[0].role == "system" else None
        prefix = 0
        if system is not None or tools:
            shared = self._shared(system, json.dumps([tool.to_openai() for tool in tools]))
            prefix = common(ids, shared)
        return Rendered(token_ids=tuple(ids), loss_mask=tuple(mask), prefix=prefix)

    def extend(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What follows the end token of an assistant turn: `messages`, then the next assistant header."""
        check_extension(messages)
        answered = 0
        while answered < len(messages) and messages[answered].role == "tool":
            answered += 1
        calls = tuple(
            ToolCall(name=m.name or "tool", arguments="{}", id=m.tool_call_id or f"call_{n}")
            for n, m in enumerate(messages[:answered], start=1)
        )
        try:
            return self._follows(calls, messages)
        except ModelError:
            if len(calls) < 2:
                raise
            return self._follows(calls[:1], messages)  # a template that takes one call at a time

    def _follows(self, calls: tuple[ToolCall, ...], messages: Sequence[Message]) -> tuple[int, ...]:
        """What follows a turn with these calls, or one of words where there are none."""
        said = Message(role="assistant", content="" if calls else "Hi.", tool_calls=calls)
        before = (Message(role="user", content="Hello."), said)
        longer = self._text((*before, *messages), prompt=True)
        _, end = self._turn(longer, self._begin(longer, before[:1], ()))
        return tuple(self._encode(longer[end:]))

    def spell(self, text: str) -> tuple[int, ...]:
        """The tokens of what an assistant turn is made to begin with."""
        return tuple(self._encode(text))

    def parse(self, token_ids: Sequence[int]) -> Message:
        """One assistant turn as sampled, with or without its end token."""
        return self.calls.parse(self._backend.decode(until(token_ids, self.stop_ids), skip_special_tokens=False))

    def _text(
        self, messages: Sequence[Message], tools: Sequence[Tool | dict[str, Any]] = (), *, prompt: bool = False
    ) -> str:
        schemas: list[Any] = [self._tame(tool.to_openai() if isinstance(tool, Tool) else tool) for tool in tools]
        try:
            text: Any = self._tokenizer.apply_chat_template(
                [self._plain(message) for message in messages],
                tools=schemas or None,
                chat_template=self.template,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(
                f"the chat template of {self._name!r} cannot render this conversation: {error}; {REMEDY}"
            ) from error
        return str(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids) if text else []

    def _begin(self, text: str, before: Sequence[Message], tools: Sequence[Tool]) -> int:
        """Where the turn that answers `before` begins in the text of the whole conversation."""
        asked = self._text(before, tools, prompt=True)
        begin = common(asked, text)
        # What asks for a turn may already say something of it, as `<think>` does; all before that must be there.
        if begin < len(asked) and begin < common(asked, self._text(before, tools)):
            raise ModelError(
                f"the chat template of {self._name!r} changes earlier turns when a conversation goes on, so that it "
                f"is not seen where a turn begins; {REMEDY}"
            )
        return begin

    def _turn(self, text: str, begin: int) -> tuple[list[int], int]:
        """The tokens of a turn, to the one that ends it, and the place after it in the text."""
        encoded = self._backend.encode(text[begin:], add_special_tokens=False)
        for place, token in enumerate(encoded.ids):
            if token in self.stop_ids:
                return list(encoded.ids[: place + 1]), begin + encoded.offsets[place][1]
        raise ModelError(
            f"the chat template of {self._name!r} does not end assistant turns with a special token, "
            f"so the end of a turn cannot be learned; {REMEDY}"
        )

    def _plain(self, message: Message) -> dict[str, Any]:
        """The OpenAI form, inert, with arguments as mappings, which most models' own templates expect."""
        plain = message.to_openai()
        plain["content"] = self._inert(message.content)
        for number, (call, written) in enumerate(zip(message.tool_calls, plain.get("tool_calls", ()), strict=False)):
            parsed = call.parsed()
            written["function"]["name"] = self._inert(call.name)
            written["function"]["arguments"] = self._tame(call.arguments if parsed is None else parsed)
            written["id"] = _nine(call.id or f"call_{number + 1}")
        if message.tool_call_id is not None:
            plain["tool_call_id"] = _nine(message.tool_call_id)
        if message.name is not None:
            plain["name"] = self._inert(message.name)
        return plain

    def _tame(self, value: Any) -> Any:
        """The same value with every text in it inert, keys included."""
        if isinstance(value, str):
            return self._inert(value)
        if isinstance(value, dict):
            return {self._inert(str(key)): self._tame(inner) for key, inner in value.items()}
        return [self._tame(inner) for inner in value] if isinstance(value, list) else value

    def _inert(self, text: str) -> str:
        return self._forged.sub(lambda found: found[0][:1] + _ZERO_WIDTH_SPACE + found[0][1:], whole(text))

    def _configured_stops(self) -> frozenset[int]:
        stops: list[Any] = [self._tokenizer.eos_token_id]
        try:
            configured = GenerationConfig.from_pretrained(self._name, local_files_only=True).eos_token_id
        except (OSError, ValueError):  # the model has none
            configured = None
        stops.extend(configured if isinstance(configured, list) else [configured])
        return frozenset(int(stop) for stop in stops if isinstance(stop, int))

    def _probed_stop(self) -> frozenset[int]:
        """The token that ends an assistant turn in a short conversation: the first special one after what it says."""
        text = self._text(_HELLO)
        said = text.find("Hi.", self._begin(text, _HELLO[:1], ()))
        if said < 0:
            raise ModelError(
                f"the chat template of {self._name!r} leaves out what the assistant says, so nothing can be learned; "
                f"{REMEDY}"
            )
        found = [token for token in self._encode(text[said + 3 :]) if token in self.stop_ids | self._special]
        if not found:
            raise ModelError(
                f"the chat template of {self._name!r} does not end assistant turns with a special token, "
                f"so the end of a turn cannot be learned; {REMEDY}"
            )
        return frozenset(found[:1])

    def _probed_past(self) -> bool:
        """Whether a turn stays as it is when the user goes on."""
        short, long = self._text(_HELLO), self._text((*_HELLO, Message(role="user", content="Good.")))
        _, end = self._turn(short, self._begin(short, _HELLO[:1], ()))
        return long.startswith(short[:end])

    def _system_tokens(self, system: str | None, tools: str) -> tuple[int, ...]:
        """What two conversations that differ from the first user's word on have in common."""
        leading = () if system is None else (Message(role="system", content=system),)
        schemas = json.loads(tools)
        one = self._encode(self._text((*leading, Message(role="user", content="Hello.")), schemas))
        other = self._encode(self._text((*leading, Message(role="user", content="9 to 5?")), schemas))
        return tuple(one[: common(one, other)])


def _nine(given: str) -> str:
    """An id of nine letters and digits, the same for the same one."""
    if _NINE.fullmatch(given):
        return given
    if numbered := _NUMBERED.fullmatch(given):
        return f"call{int(numbered[1]):05d}"
    return hashlib.sha256(given.encode()).hexdigest()[:9]
