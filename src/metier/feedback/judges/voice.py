"""Who answers for a judge: a checkpoint in this process, or a model behind an endpoint.

A voice answers one conversation at a time, for any number of threads: a local one hands them to one engine
that computes them together, an endpoint is asked about so many at once. A local voice can also tell how
likely each of some words is as the next one, which says more than the word that it would write.

What no answer came of is `Unanswered`, with the part that failed. After `_DOWN` failures of an endpoint in a row,
each repeated already, nothing more is asked of it: a dead endpoint would hold up a long file for hours.

Left out: probabilities of words through an endpoint, whose client tells those of the words written only.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from metier.base.clock import monotonic
from metier.base.errors import ConfigError, MetierError
from metier.records.types import Cost, Message, Sampling
from metier.rollout.endpoint import Endpoint, EndpointError
from metier.rollout.engine import Request, Word

__all__ = ["Answer", "Boundary", "EndpointVoice", "LocalVoice", "Unanswered", "Voice", "weights_hash"]

Boundary = Literal["judge", "network", "engine", "input", "budget"]
_DOWN = 8
_OTHERS = 256  # likeliest words that are looked at for those that count


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a voice said, and what that cost."""

    text: str
    shares: Mapping[str, float] = field(default_factory=dict)  # of the words asked about: their probability as the next
    whole: bool = True  # False where it was cut off at its limit
    cost: Cost = field(default_factory=Cost)


class Unanswered(Exception):
    """There is no answer, and the judge's word is not the reason."""

    def __init__(self, boundary: Boundary, reason: str) -> None:
        super().__init__(reason)
        self.boundary: Boundary = boundary


class Voice(Protocol):
    """Answers conversations."""

    name: str  # as people call it
    identity: Mapping[str, Any]  # what its answers depend on
    tells_shares: bool  # whether `words` may be asked about

    def ask(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int, begin: str = "", words: Sequence[str] = ()
    ) -> Answer:
        """One answer, or the probabilities of `words` after `begin`. Raises `Unanswered`."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def weights_hash(model: Any) -> str:
    """The SHA-256 of a model's tensors as they are loaded: names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class LocalVoice:
    """A causal language model in this process."""

    tells_shares = True

    def __init__(
        self,
        model: str,
        *,
        renderer: Literal["auto", "chatml", "template"] = "auto",
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        rows: int = 16,
    ) -> None:
        """`model` is a folder, a hub id or smollm2; `rows` conversations are computed at once. Raises `ModelError`."""
        import torch

        from metier.models.hub import device_of, load_model, load_tokenizer
        from metier.models.renderer import get_renderer
        from metier.rollout.speaker import Speaker
        from metier.rollout.torch_engine import TorchEngine

        self.name = model
        self._renderer = get_renderer(load_tokenizer(model), renderer)
        weights = load_model(model, dtype=getattr(torch, dtype), device=device_of("auto"))
        self.identity: Mapping[str, Any] = {
            "weights": weights_hash(weights),
            "renderer": self._renderer.template_hash,
            "dtype": dtype,
        }
        self._engine = TorchEngine(weights, rows=rows)
        self._speaker = Speaker(self._engine, max_waiting=1 << 10)

    def ask(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int, begin: str = "", words: Sequence[str] = ()
    ) -> Answer:
        """See `Voice.ask`."""
        began = monotonic()
        prompt = self._renderer.render(messages, prompt=True)
        start, tokens = self._spelled(begin, words)
        ids = (*prompt.token_ids, *start)
        if len(ids) >= self._engine.context:
            raise Unanswered("input", f"it takes {len(ids)} tokens and the judge reads {self._engine.context}")
        if words:
            sampling = Sampling(temperature=0.0, max_turn_tokens=1)
        request = Request(ids, prompt.prefix, seed, sampling, self._renderer.stop_ids, others=_OTHERS if words else 0)
        drawn: list[Word] = []
        ended = threading.Event()
        ending = ""

        def heard(event: Word | str) -> None:
            nonlocal ending
            if isinstance(event, Word):
                drawn.append(event)
            else:
                ending = event
                ended.set()

        try:
            (ticket,) = self._speaker.submit([(request, heard)])
        except MetierError as error:
            raise Unanswered("engine", str(error)) from error
        ended.wait()
        if ending not in ("stop", "length"):
            raise Unanswered("engine", ticket.error or f"the engine {ending} it")
        cost = Cost(prompt_tokens=len(ids), completion_tokens=len(drawn), seconds=monotonic() - began)
        if words:
            told = dict([(drawn[0].token, drawn[0].logprob), *drawn[0].others])
            shares = {word: math.exp(told.get(token, -math.inf)) for word, token in tokens.items()}
            return Answer(text="", shares=shares, cost=cost)
        text = self._renderer.parse([word.token for word in drawn]).content
        return Answer(text=begin + text, whole=ending == "stop", cost=cost)

    def close(self) -> None:
        """See `Voice.close`."""
        self._speaker.close()

    def _spelled(self, begin: str, words: Sequence[str]) -> tuple[tuple[int, ...], dict[str, int]]:
        """What `begin` and every word after it have in common, and the token with which each word goes on."""
        if not words:
            return self._renderer.spell(begin), {}
        spelled = [self._renderer.spell(f"{begin} {word}") for word in words]
        shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*spelled, strict=False)))
        tokens = [ids[shared] if len(ids) > shared else -1 for ids in spelled]
        if len(set(tokens)) < len(words) or -1 in tokens:
            raise Unanswered(
                "engine", f"the tokenizer of {self.name!r} does not tell {', '.join(words)} apart by one token"
            )
        return spelled[0][:shared], dict(zip(words, tokens, strict=True))


class EndpointVoice:
    """A model behind an OpenAI-compatible endpoint. Its weights have no other name than the endpoint's own."""

    tells_shares = False

    def __init__(self, model: str, **settings: Any) -> None:
        """The settings are those of `Endpoint`. Raises `ConfigError`."""
        self.name = model
        known = {key: settings.get(key) for key in ("base_url", "options")}
        self.identity: Mapping[str, Any] = {"endpoint": model, **{key: value for key, value in known.items() if value}}
        self._endpoint = Endpoint(model, **settings)
        self._failed = 0  # in a row
        self._last = ""

    def ask(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int, begin: str = "", words: Sequence[str] = ()
    ) -> Answer:
        """See `Voice.ask`."""
        if words:
            raise ConfigError(f"the endpoint of {self.name!r} tells no probabilities of words; leave `expected` out")
        if self._failed >= _DOWN:
            raise Unanswered("network", f"not asked, after {self._failed} failures in a row; the last: {self._last}")
        began = monotonic()
        try:
            reply = self._endpoint.chat(messages, sampling=sampling, seed=seed)
        except EndpointError as error:
            self._failed, self._last = self._failed + 1, str(error)[:300]
            raise Unanswered("network", str(error)) from error
        self._failed = 0
        return Answer(
            text=reply.message.content,
            whole=reply.stop == "stop",
            cost=Cost(
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                seconds=monotonic() - began,
                usd=reply.usd,
            ),
        )

    def close(self) -> None:
        """See `Voice.close`."""
        self._endpoint.__exit__()
