"""A model behind an OpenAI-compatible endpoint: as a policy, as a user, as whatever is asked.

`Endpoint.chat` is one request: repeated where the network, the server or a rate limit failed
it, kept under a pace, and priced. `EndpointPolicy` lets such a model speak in episodes. They
have messages and a cost but no token ids and no log-probabilities, because an endpoint tells
neither exactly: they can be measured, judged and imitated, not learned from by a policy gradient.

Needs the extra `openai`. Left out: streaming, and endpoints that speak another protocol.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from metier.base.clock import monotonic
from metier.base.config import fill_from_environment
from metier.base.errors import ConfigError, DataError
from metier.records.types import Message, Sampling, Tool
from metier.rollout.policy import Said, Talks, Transcript
from metier.rollout.threads import LateError, Workers

__all__ = ["Endpoint", "EndpointError", "EndpointPolicy", "Reply"]


class EndpointError(Exception):
    """The endpoint gave no usable answer, after all repetitions."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered."""

    message: Message
    stop: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    usd: float
    logprobs: tuple[float, ...] | None = None  # of its tokens, where they were asked for


class Endpoint:
    """One model at one place. May be used by many threads, and as a context manager, which lets go of connections."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key: str = "$OPENAI_API_KEY",
        at_once: int = 16,
        per_minute: float = 0.0,
        retries: int = 5,
        seconds: float = 120.0,
        usd_in: float = 0.0,
        usd_out: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`usd_in` and `usd_out` are prices of a million tokens, `per_minute` bounds requests (0: no bound).

        `key` may name an environment variable; `options` go into every request, and one that is None takes
        what is usual out, such as a `temperature` that a model does not take.
        Raises `ConfigError` where the package or the key is missing.
        """
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ConfigError("an endpoint needs the openai package: pip install 'metier[openai]'") from error
        filled = fill_from_environment({"key": key}, f"endpoint of {model!r}")["key"]
        self.model, self.at_once, self.seconds, self.retries = model, at_once, seconds, retries
        self._client = OpenAI(api_key=filled, base_url=base_url, max_retries=retries, timeout=seconds)
        self._prices = (usd_in / 1e6, usd_out / 1e6)
        self._options = dict(options or {})
        self.pause = 60.0 / per_minute if per_minute else 0.0
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(at_once)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        logprobs: bool = False,
    ) -> Reply:
        """One answer to a conversation. Raises `EndpointError`, also where log-probabilities are asked for in vain."""
        asked: dict[str, Any] = {"model": self.model, "messages": [m.to_openai() for m in messages]}
        if tools:
            asked["tools"] = [tool.to_openai() for tool in tools]
        if sampling is not None:
            asked |= {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_turn_tokens,
            }
        if seed is not None:
            asked["seed"] = seed % 2**31
        if logprobs:
            asked["logprobs"] = True
        asked = {key: value for key, value in {**asked, **self._options}.items() if value is not None}
        self._wait()
        try:
            with self._turns:
                answer = self._client.chat.completions.create(**asked)
        except Exception as error:  # the client's own errors, and what an answer that is no JSON makes it raise
            raise EndpointError(f"{self.model}: {_told(error)}") from error
        try:
            return self._read(answer.model_dump(), logprobs)
        except (KeyError, TypeError, IndexError, AttributeError, DataError) as error:
            raise EndpointError(f"{self.model}: the answer is no chat completion: {error}") from error

    def _read(self, answer: Mapping[str, Any], logprobs: bool) -> Reply:
        choice = answer["choices"][0]
        usage = answer.get("usage") or {}
        read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        told: list[Mapping[str, Any]] = (choice.get("logprobs") or {}).get("content") or []
        if logprobs and not told:
            raise EndpointError(f"{self.model}: this endpoint tells no log-probabilities")
        return Reply(
            Message.from_openai(choice["message"]),
            "length" if choice.get("finish_reason") == "length" else "stop",
            read,
            written,
            read * self._prices[0] + written * self._prices[1],
            tuple(float(one["logprob"]) for one in told) if logprobs else None,
        )

    def _wait(self) -> None:
        """Keep to the pace: each request has a moment of its own."""
        if self.pause:
            with self._lock:
                mine = max(self._free_at, monotonic())
                self._free_at = mine + self.pause
            time.sleep(max(0.0, mine - monotonic()))


def _told(error: Exception) -> str:
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, Mapping) else None
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__}{'' if status is None else f' {status}'}: {said or error}"


class EndpointPolicy:
    """A model behind an endpoint, speaking in episodes."""

    template_hash = ""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def talks(self, sampling: Sampling) -> Talks:
        """See `Policy.talks`."""
        return _EndpointTalks(self._endpoint, sampling)


@dataclass(slots=True)
class _Talk:
    messages: list[Message]
    tools: tuple[Tool, ...]
    seed: int
    kept: Transcript = field(default_factory=Transcript)
    since: float | None = None
    over: bool = False


class _EndpointTalks:
    """Conversations of which as many are asked about at once as the endpoint may be."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling) -> None:
        self._endpoint, self._sampling = endpoint, sampling
        # A request bounds itself; this bounds all of its repetitions, should they hang.
        longest = endpoint.seconds * (endpoint.retries + 2) + endpoint.at_once * endpoint.pause
        self._workers: Workers[Reply] = Workers(endpoint.at_once, longest)
        self._talks: dict[int, _Talk] = {}

    def begin(self, number: int, messages: Sequence[Message], tools: Sequence[Tool], seed: int) -> str | None:
        """See `Talks.begin`."""
        self._talks[number] = _Talk(list(messages), tuple(tools), seed)
        self._ask(number)
        return None

    def step(self) -> list[tuple[int, Said]]:
        """See `Talks.step`. Waits for one answer at least."""
        said = []
        for number, reply in self._workers.take(wait=True):
            talk = self._talks[number]
            if talk.over:
                continue
            if isinstance(reply, Exception):
                known = isinstance(reply, (EndpointError, LateError))
                why = str(reply) if known else f"{type(reply).__name__}: {reply}"
                said.append((number, Said(Message(role="assistant"), "stop", 0, talk.since, why)))
                continue
            talk.messages.append(reply.message)
            talk.kept.prompt_tokens += reply.prompt_tokens
            talk.kept.usd += reply.usd
            said.append((number, Said(reply.message, reply.stop, reply.completion_tokens, talk.since)))
        return said

    def tell(self, number: int, messages: Sequence[Message]) -> bool:
        """See `Talks.tell`."""
        self._talks[number].messages += messages
        self._ask(number)
        return True

    def end(self, number: int) -> None:
        """See `Talks.end`."""
        self._talks[number].over = True

    @property
    def speaking(self) -> bool:
        """See `Talks.speaking`."""
        return self._workers.busy

    def transcript(self, number: int) -> Transcript:
        """See `Talks.transcript`."""
        return self._talks[number].kept

    def _ask(self, number: int) -> None:
        talk = self._talks[number]
        messages = tuple(talk.messages)

        def job(_: threading.Event) -> Reply:
            if talk.since is None:
                talk.since = monotonic()
            return self._endpoint.chat(messages, talk.tools, sampling=self._sampling, seed=talk.seed)

        self._workers.submit(number, job)
