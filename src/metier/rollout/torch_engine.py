"""The embedded engine: samples in this process from the trainer's own weights.

Rows of a key-value cache hold the conversations. Every pass extends them all: those that
are speaking by one token, those that were just spoken to by what was said. A finished
conversation leaves its slot to the next request. Conversations that have gone alike from
their first token on, as siblings of one task do for a while, are one row: it is computed
once, each draws its own word, and who draws another one gets a row of its own.

Shared prefixes are computed once in the life of an engine, so an engine must not outlive a
change of the weights: make a new one after each optimiser step, which costs little. It
reads the trainer's own weights, so there is nothing to synchronise; on a CPU it packs them
for its kernels first.

Each request draws from a generator of its own, so its choices do not depend on its
neighbours; its log-probabilities do, in the last bits, because matrix products of other
shapes round differently. Left out: conversations that become alike again, speculative
decoding, compiled graphs.

Shape legend: R rows, V conversations ("voices"), W words, B buckets of words, E hidden size.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from metier.models.attention import hidden_states, use_layouts
from metier.models.kvcache import ExtendLayout, KVCache, PrefixLayout
from metier.models.prepack import Prepacked
from metier.records.types import Sampling
from metier.rollout.engine import Drawn, OnTurn, Request

__all__ = ["TorchEngine"]

_CHUNK = 256  # words per bucket when a word is drawn


@dataclass(frozen=True, slots=True)
class _Voice:
    number: int  # of the request
    random: random.Random


@dataclass(slots=True)
class _Row:
    voices: list[_Voice]  # conversations that have been the same so far
    prompt: tuple[int, ...]
    pending: list[int]  # tokens that the model has not read yet
    tokens: list[int] = field(default_factory=list)  # drawn in this turn
    logprobs: list[float] = field(default_factory=list)


class TorchEngine:
    """Continuous batching over `rows` slots, reading `model` in place."""

    def __init__(self, model: PreTrainedModel, *, rows: int = 128, pass_tokens: int = 1536) -> None:
        self.model = use_layouts(model)
        self.rows = rows  # conversations at a time
        self.pass_tokens = pass_tokens  # tokens of one pass, at most
        self._packed: Prepacked | None = None
        self._cache: KVCache | None = None
        self._prefixes: dict[tuple[int, ...], int] = {}

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: frozenset[int], on_turn: OnTurn
    ) -> None:
        """See `Engine.generate`."""
        if not requests:
            return
        if self._packed is None:
            self._packed = Prepacked(self.model)
        with self._packed:
            self._generate(requests, sampling, stop_ids, on_turn)

    def _generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: frozenset[int], on_turn: OnTurn
    ) -> None:
        if self._cache is None or self._cache.rows < min(self.rows, len(requests)):
            self._cache, self._prefixes = KVCache(self.model, min(self.rows, len(requests))), {}
        cache, prefixes = self._cache, self._prefixes
        queue = deque(range(len(requests)))
        active: list[_Row] = []
        while queue or active:
            room = cache.rows - sum(len(row.voices) for row in active)
            begun = len(active)
            for number in [queue.popleft() for _ in range(min(room, len(queue)))]:
                voice = _Voice(number, random.Random(requests[number].seed))
                if len(active) > begun and active[-1].prompt == requests[number].prompt:
                    active[-1].voices.append(voice)  # nothing tells it from its sibling yet
                else:
                    active.append(self._admit(voice, requests[number], cache, prefixes, len(active)))
            new, chosen = self._next_pass(active)
            layout = ExtendLayout(cache, new)
            ids = torch.tensor([t for row in chosen for t in active[row].pending], device=cache.device)
            hidden_TE = hidden_states(self.model, ids, layout.position_ids_T, layout)
            ends = torch.tensor([n for _, n in new], device=cache.device).cumsum(0) - 1
            drawn = iter(self._draw(hidden_TE[ends], [active[row].voices for row in chosen], sampling))
            for number in chosen:
                ways = self._went_on(active[number], drawn, sampling, stop_ids, on_turn)
                active[number] = ways[0] if ways else replace(active[number], voices=[])
                for way in ways[1:]:
                    cache.copy_row(number, len(active))
                    active.append(way)
            for number in reversed(range(len(active))):
                if not active[number].voices:
                    last = active.pop()
                    if number < len(active):
                        cache.copy_row(len(active), number)
                        active[number] = last

    def _admit(
        self, voice: _Voice, request: Request, cache: KVCache, prefixes: dict[tuple[int, ...], int], row: int
    ) -> _Row:
        head = request.prompt[: min(request.prefix, len(request.prompt) - 1)]
        prefix = -1
        if head:
            if head not in prefixes:
                prefixes[head] = len(cache.prefixes)
                ids = torch.tensor(head, device=cache.device)
                hidden_states(self.model, ids, torch.arange(len(head), device=cache.device), PrefixLayout(cache))
            prefix = prefixes[head]
        cache.clear_row(row, prefix)
        return _Row([voice], request.prompt, list(request.prompt[len(head) :]))

    @staticmethod
    def _went_on(
        row: _Row,
        drawn: Iterator[tuple[int, float]],
        sampling: Sampling,
        stop_ids: frozenset[int],
        on_turn: OnTurn,
    ) -> list[_Row]:
        """The row as it goes on after every voice drew a word: one row for each way in which voices went on."""
        ways: dict[tuple[int, ...], _Row] = {}
        for voice in row.voices:
            word, logprob = next(drawn)
            tokens, logprobs = [*row.tokens, word], [*row.logprobs, logprob]
            stopped = word in stop_ids
            said: tuple[int, ...] | None = ()
            if stopped or len(tokens) >= sampling.max_turn_tokens:
                turn = Drawn(tuple(tokens), tuple(logprobs), "stop" if stopped else "length")
                said = on_turn(voice.number, turn)
                tokens, logprobs = [], []
            if said is not None:
                pending = (word, *said)
                if pending not in ways:
                    ways[pending] = _Row([], row.prompt, list(pending), tokens, logprobs)
                ways[pending].voices.append(voice)
        return list(ways.values())

    def _next_pass(self, active: list[_Row]) -> tuple[list[tuple[int, int]], list[int]]:
        """Rows and token counts of the next pass: all that speak, and listeners while there is room."""
        new: list[tuple[int, int]] = []
        chosen: list[int] = []
        room = self.pass_tokens
        for row, state in enumerate(active):
            n = len(state.pending)
            if n == 1 or n <= room or not chosen:
                new.append((row, n))
                chosen.append(row)
                room -= n
        return new, chosen

    def _draw(
        self, hidden_RE: Tensor, voices: Sequence[Sequence[_Voice]], sampling: Sampling
    ) -> Iterable[tuple[int, float]]:
        """A word for each voice of each row; its log-probability is at the sampling temperature, before truncation."""
        head = self.model.get_output_embeddings()
        logits = head(hidden_RE)
        if sampling.temperature not in (0.0, 1.0):
            logits = logits.float() / sampling.temperature
        top = logits.amax(-1, keepdim=True).float()
        weights = (logits - top).exp_()
        buckets = _buckets(weights).sum(-1)
        normaliser = buckets.sum(-1)
        row_V = torch.tensor([row for row, some in enumerate(voices) for _ in some], device=logits.device)
        if sampling.temperature == 0.0:
            words = _likeliest(logits)[row_V]
        else:
            if sampling.top_p < 1.0 or sampling.top_k > 0:
                weights = _truncate(torch.softmax(logits.float(), -1), sampling)
                buckets = _buckets(weights).sum(-1)
            uniform = [voice.random.random() for some in voices for voice in some]
            words = _inverse(weights, buckets, row_V, torch.tensor(uniform, device=row_V.device, dtype=torch.float64))
        chosen = logits[row_V, words].float()
        logprobs = chosen - top[row_V, 0] - normaliser.log()[row_V]
        return zip(words.tolist(), logprobs.tolist(), strict=True)


def _buckets(weights_RW: Tensor, *, fill: float = 0.0) -> Tensor:
    """The words in buckets of equal size, the last one filled up; shape (R, buckets, size)."""
    rest = -weights_RW.shape[1] % _CHUNK
    padded = torch.nn.functional.pad(weights_RW, (0, rest), value=fill) if rest else weights_RW
    return padded.view(weights_RW.shape[0], -1, _CHUNK)


def _likeliest(logits_RW: Tensor) -> Tensor:
    """The word of the highest logit: first its bucket, then the word, which is far quicker than one argmax."""
    buckets = _buckets(logits_RW, fill=float("-inf"))
    bucket = buckets.amax(-1).argmax(-1)
    inner = buckets[torch.arange(len(bucket), device=bucket.device), bucket]
    return bucket * _CHUNK + inner.argmax(-1)


def _truncate(probabilities_RW: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities with all but the top-k words, then all but the top-p mass, set to zero."""
    ranked, order = probabilities_RW.sort(-1, descending=True)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if sampling.top_k > 0:
        keep[:, sampling.top_k :] = False
    if sampling.top_p < 1.0:
        keep &= ranked.cumsum(-1) - ranked < sampling.top_p
    return torch.zeros_like(ranked).scatter(1, order, ranked * keep)


def _inverse(weights_RW: Tensor, sums_RB: Tensor, row_V: Tensor, uniform_V: Tensor) -> Tensor:
    """Draw from rows of unnormalised weights by inversion: first a bucket of words, then a word."""
    ends = sums_RB.double().cumsum(-1)[row_V]
    target = uniform_V * ends[:, -1]
    bucket = torch.searchsorted(ends, target[:, None], right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(bucket > 0, ends.gather(1, (bucket - 1).clamp(min=0)), 0.0)
    inner = _buckets(weights_RW)[row_V, bucket[:, 0]]
    place = torch.searchsorted(inner.double().cumsum(-1), target[:, None] - before, right=True)
    # never past the last word of positive weight, whatever the rounding
    last = (inner > 0).double().mul(torch.arange(1, _CHUNK + 1, device=inner.device)).argmax(-1, keepdim=True)
    return (bucket * _CHUNK + torch.minimum(place, last))[:, 0]
