"""Who speaks in episodes: an engine through a renderer, or a model behind an endpoint.

The episode runner deals in messages; a policy's *talks* turn them into what its model reads,
and what that says into messages, and keep what is to be learned from. An engine's talks keep
every token as it was drawn; nothing is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from metier.base.clock import monotonic
from metier.models.renderer import Renderer
from metier.records.types import Message, Sampling, Tool
from metier.rollout.engine import Engine, Request, Word

__all__ = ["EnginePolicy", "Policy", "Said", "Talks", "Transcript"]


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of the policy, or why there is none."""

    message: Message
    stop: Literal["stop", "length", "context"]
    tokens: int  # written in it
    since: float | None = None  # when its first word came, on the monotonic clock, where that is known
    error: str | None = None  # the network or the endpoint failed; the policy is not to blame


@dataclass(slots=True)
class Transcript:
    """A conversation as the policy's model read and wrote it; the three lists are as in `Episode`."""

    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_tokens: int = 0  # that it read
    usd: float = 0.0


class Talks(Protocol):
    """Conversations under way, each under a number."""

    def begin(self, number: int, messages: Sequence[Message], tools: Sequence[Tool], seed: int) -> str | None:
        """Begin a conversation; why it cannot be, where it cannot."""
        ...

    def step(self) -> list[tuple[int, Said]]:
        """Go on with all that speak, for a moment; the turns that have ended."""
        ...

    def tell(self, number: int, messages: Sequence[Message]) -> bool:
        """What comes next in a conversation whose turn has ended; False where there is no room for an answer."""
        ...

    def end(self, number: int) -> None:
        """Let go of a conversation. Its transcript stays."""
        ...

    @property
    def speaking(self) -> bool:
        """Whether `step` has something to wait for."""
        ...

    def transcript(self, number: int) -> Transcript:
        """What was read and written so far."""
        ...


class Policy(Protocol):
    """Makes talks."""

    template_hash: str  # of the renderer's template; empty where there is none

    def talks(self, sampling: Sampling) -> Talks:
        """A new set of conversations, one set at a time."""
        ...


class EnginePolicy:
    """An engine that draws tokens, and the renderer that knows what they mean."""

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
        self.engine, self.renderer = engine, renderer
        self.template_hash = renderer.template_hash

    def talks(self, sampling: Sampling) -> Talks:
        """See `Policy.talks`."""
        return _EngineTalks(self.engine, self.renderer, sampling)


class _EngineTalks:
    """Conversations in an engine's session."""

    def __init__(self, engine: Engine, renderer: Renderer, sampling: Sampling) -> None:
        self._session = engine.session(self._word if sampling.max_seconds else None)
        self._renderer, self._sampling, self._context = renderer, sampling, engine.context
        self._kept: dict[int, Transcript] = {}
        self._since: dict[int, float] = {}

    def begin(self, number: int, messages: Sequence[Message], tools: Sequence[Tool], seed: int) -> str | None:
        """See `Talks.begin`."""
        prompt = self._renderer.render(messages, tools, prompt=True)
        n = len(prompt.token_ids)
        self._kept[number] = Transcript(list(prompt.token_ids), [0] * n, [0.0] * n, n)
        if n >= self._context:
            return f"the prompt has {n} tokens and the model reads {self._context}: no room for a word"
        request = Request(prompt.token_ids, prompt.prefix, seed, self._sampling, self._renderer.stop_ids)
        self._session.add(number, request)
        return None

    def step(self) -> list[tuple[int, Said]]:
        """See `Talks.step`."""
        said = []
        for number, drawn in self._session.step():
            kept, n = self._kept[number], len(drawn.token_ids)
            kept.token_ids.extend(drawn.token_ids)
            kept.loss_mask.extend([1] * n)
            kept.logprobs.extend(drawn.logprobs)
            full = drawn.stop == "length" and len(kept.token_ids) >= self._context
            message = self._renderer.parse(drawn.token_ids)
            said.append((number, Said(message, "context" if full else drawn.stop, n, self._since.get(number))))
        return said

    def tell(self, number: int, messages: Sequence[Message]) -> bool:
        """See `Talks.tell`."""
        kept, tokens = self._kept[number], self._renderer.extend(messages)
        if len(kept.token_ids) + len(tokens) >= self._context:
            return False
        kept.token_ids.extend(tokens)
        kept.loss_mask.extend([0] * len(tokens))
        kept.logprobs.extend([0.0] * len(tokens))
        kept.prompt_tokens += len(tokens)
        self._session.reply(number, tokens)
        return True

    def end(self, number: int) -> None:
        """See `Talks.end`."""
        self._session.end(number)

    @property
    def speaking(self) -> bool:
        """See `Talks.speaking`."""
        return self._session.speaking

    def transcript(self, number: int) -> Transcript:
        """See `Talks.transcript`."""
        return self._kept[number]

    def _word(self, number: int, _: Word) -> None:
        self._since.setdefault(number, monotonic())
