"""The embedded engine: samples in this process from the trainer's own weights.

Rows of a key-value cache hold the conversations. Every pass extends them all: those that
are speaking by one token, those that were just spoken to by what was said. A finished
conversation leaves its slot to the next request; one that waits for its tool leaves it too
and comes back with what it had. Conversations that have gone alike from their first
token on, as siblings of one task do for a while, are one row: it is computed once, each
draws its own word, and who draws another one, or is told something else, gets a row of
its own.

Shared prefixes are computed once in the life of an engine, so an engine must not outlive a
change of the weights: make a new one after each optimiser step, which costs little. It
reads the trainer's own weights, so there is nothing to synchronise; on a CPU it packs them
for its kernels first (`models/prepack.py`), and what lies between the products is compiled
(`models/native.py`).

Each request draws from a generator of its own, so its choices do not depend on its
neighbours; its log-probabilities do, in the last bits, because matrix products of other
shapes round differently. Left out: conversations that become alike again, speculative
decoding, compiled graphs.

Shape legend: R rows, V conversations ("voices"), W words, B buckets of words, E hidden size.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from metier.base.errors import DataError
from metier.models.attention import fusable, hidden_states, use_layouts
from metier.models.kvcache import ExtendLayout, KVCache, ParkedRow, PrefixLayout
from metier.models.prepack import Prepacked
from metier.records.types import Sampling
from metier.rollout.engine import Drawn, OnWord, Request, Word

__all__ = ["TorchEngine", "TorchSession"]

_CHUNK = 256  # words per bucket when a word is drawn
_PREFIXES = 64  # prefixes that are kept apart; later ones are read as part of their prompts
_PREFIX_TOKENS = 1 << 15  # of all of them together
_PARKED = 3  # conversations out of their slots for each slot, before no new one is begun


@dataclass(frozen=True, slots=True)
class _Voice:
    number: int  # of the conversation
    random: random.Random
    request: Request


@dataclass(frozen=True, slots=True)
class _Step:
    """What a voice drew, and whether its turn ended with it."""

    voice: _Voice
    word: Word
    ended: bool


@dataclass(slots=True)
class _Row:
    voices: list[_Voice]  # conversations that have been the same so far
    prompt: tuple[int, ...]
    pending: list[int]  # tokens that the model has not read yet
    tokens: list[int] = field(default_factory=list)  # drawn in this turn
    logprobs: list[float] = field(default_factory=list)
    waits: bool = False  # for what is said to its voices
    since: int = 0  # the pass after which it began to listen
    steps: list[_Step] = field(default_factory=list)  # of its voices in the last pass, not yet followed


class TorchEngine:
    """Continuous batching over at most `rows` slots, reading `model` in place."""

    def __init__(self, model: PreTrainedModel, *, rows: int = 128, pass_tokens: int = 1536) -> None:
        self.model = use_layouts(model)
        self.rows = rows  # conversations at a time
        self.pass_tokens = pass_tokens  # tokens of one pass, at most
        config = model.config.get_text_config()
        self.context: int = getattr(config, "max_position_embeddings", None) or 1 << 30
        self.packed: Prepacked | None = None
        self.cache = KVCache(model, rows)
        self.prefixes: dict[tuple[int, ...], int] = {}

    def session(self, on_word: OnWord | None = None) -> TorchSession:
        """See `Engine.session`."""
        return TorchSession(self, on_word)

    def tidy(self) -> None:
        """Start with an empty cache where much has gathered; no conversation may be under way."""
        if self.full or self.cache.capacity > 4 * self.pass_tokens:
            self.cache, self.prefixes = KVCache(self.model, self.rows), {}

    @property
    def full(self) -> bool:
        """Whether no more prefixes are kept apart."""
        return len(self.prefixes) >= _PREFIXES or sum(map(len, self.prefixes)) >= _PREFIX_TOKENS


class TorchSession:
    """Conversations that an engine holds. See `Session`."""

    def __init__(self, engine: TorchEngine, on_word: OnWord | None = None) -> None:
        self._engine, self._on_word = engine, on_word
        self._queue: deque[tuple[int, Request]] = deque()
        self._active: list[_Row] = []  # in slots 0, 1, …
        self._parked: list[tuple[_Row, ParkedRow]] = []  # out of their slots, waiting or told and without room
        self._passed: list[int] = []  # rows of the last pass
        self._passes = 0
        self._said: dict[int, tuple[int, ...] | None] = {}  # since the last step, by conversation; None: it is over

    def add(self, number: int, request: Request) -> None:
        """See `Session.add`. Raises `DataError` for a prompt that leaves no room for a word."""
        if len(request.prompt) >= self._engine.context:
            raise DataError(
                f"a prompt of {len(request.prompt)} tokens does not fit the model, which reads {self._engine.context}"
            )
        self._queue.append((number, request))

    def reply(self, number: int, token_ids: tuple[int, ...]) -> None:
        """See `Session.reply`."""
        self._said[number] = token_ids

    def end(self, number: int) -> None:
        """See `Session.end`."""
        waiting = len(self._queue)
        self._queue = deque(entry for entry in self._queue if entry[0] != number)
        if len(self._queue) == waiting:
            self._said[number] = None

    @property
    def speaking(self) -> bool:
        """See `Session.speaking`."""
        told = any(said is not None for said in self._said.values())
        return bool(told or self._queue) or any(
            not row.steps or any(not step.ended for step in row.steps) for row in self._active
        )

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Drawn]]:
        """See `Session.step`."""
        engine = self._engine
        if engine.packed is None:
            engine.packed = Prepacked(engine.model, fusable(engine.model))
        with engine.packed:
            self._follow()
            self._make_room()
            self._come_back()
            self._admit()
            return self._pass()

    # --- between two passes ------------------------------------------------------------

    @property
    def _room(self) -> int:
        return self._engine.rows - sum(len(row.voices) for row in self._active)

    def _follow(self) -> None:
        """Let every row of the last pass go on as its voices do: one row for each way in which they go on."""
        for number in self._passed:
            row = self._active[number]
            self._leave(row)
            staying = {voice.number for voice in row.voices}
            ways: dict[tuple[object, ...], _Row] = {}
            for step in row.steps:
                voice, token = step.voice, step.word.token
                if voice.number not in staying:
                    continue
                way: tuple[object, ...]
                if not step.ended:
                    tokens, logprobs = [*row.tokens, token], [*row.logprobs, step.word.logprob]
                    way, next_row = (token,), _Row([], row.prompt, [token], tokens, logprobs)
                elif (said := self._said.pop(voice.number, None)) is None:
                    way, next_row = ("waits", token), _Row([], row.prompt, [token], waits=True)
                else:
                    way, next_row = ("told", token, *said), _Row([], row.prompt, [token, *said])
                ways.setdefault(way, next_row).voices.append(voice)
            rows = [replace(one, since=self._passes) for one in ways.values()]
            self._active[number] = rows[0] if rows else _Row([], row.prompt, [])
            for one in rows[1:]:
                self._engine.cache.copy_row(number, len(self._active))
                self._active.append(one)
        self._passed = []

    def _make_room(self) -> None:
        """Take rows that wait, and those without a voice, out of their slots; the last row fills the hole."""
        cache, active = self._engine.cache, self._active
        for number in reversed(range(len(active))):
            row = active[number]
            self._leave(row)
            if row.waits:
                self._parked.append((row, cache.take_out(number)))
            if row.waits or not row.voices:
                last = active.pop()
                if number < len(active):
                    cache.copy_row(len(active), number)
                    active[number] = last

    def _leave(self, row: _Row) -> None:
        """Let voices whose conversation is over leave their row."""
        over = {voice.number for voice in row.voices if self._said.get(voice.number, ()) is None}
        row.voices = [voice for voice in row.voices if voice.number not in over]
        for number in over:
            del self._said[number]

    def _come_back(self) -> None:
        """Bring back those who were told something, in the order in which they left, while there is room."""
        parked, self._parked = self._parked, []
        for row, held in parked:
            self._leave(row)
            told: dict[tuple[int, ...], list[_Voice]] = {}
            left = []
            for voice in row.voices:
                said = self._said.get(voice.number)
                if said is None:
                    left.append(voice)
                else:
                    told.setdefault(said, []).append(voice)
            for said, voices in told.items():
                back, later = voices[: self._room], voices[self._room :]
                left += later
                if back:
                    self._engine.cache.put_back(len(self._active), held)
                    self._active.append(_Row(back, row.prompt, [*row.pending, *said], since=self._passes))
                    for voice in back:
                        del self._said[voice.number]
            if left:
                self._parked.append((replace(row, voices=left), held))

    def _admit(self) -> None:
        """Give free slots to those who have not begun; siblings that begin together are one row."""
        begun = len(self._active)
        out = sum(len(row.voices) for row, _ in self._parked)
        if out >= _PARKED * self._engine.rows:
            return
        for _ in range(min(self._room, len(self._queue))):
            number, request = self._queue.popleft()
            voice = _Voice(number, random.Random(request.seed), request)
            if len(self._active) > begun and _alike(self._active[-1].voices[0].request, request):
                self._active[-1].voices.append(voice)
                continue
            head = request.prompt[: min(request.prefix, len(request.prompt) - 1, self._engine.pass_tokens)]
            if head not in self._engine.prefixes and self._engine.full:
                head = ()
            self._engine.cache.clear_row(len(self._active), self._prefix(head))
            self._active.append(_Row([voice], request.prompt, list(request.prompt[len(head) :]), since=self._passes))

    def _prefix(self, head: tuple[int, ...]) -> int:
        """The cache's prefix of these tokens, computed where it is new."""
        if not head:
            return -1
        cache, prefixes = self._engine.cache, self._engine.prefixes
        if head not in prefixes:
            prefixes[head] = len(cache.prefixes)
            ids = torch.tensor(head, device=cache.device)
            places = torch.arange(len(head), device=cache.device)
            hidden_states(self._engine.model, ids, places, PrefixLayout(cache))
        return prefixes[head]

    # --- a pass ------------------------------------------------------------------------

    def _pass(self) -> list[tuple[int, Drawn]]:
        """Read what is pending, draw a word for each voice of each row that has read all; the turns that ended."""
        new = self._next_pass()
        if not new:
            return []
        cache = self._engine.cache
        layout = ExtendLayout(cache, new)
        ids = torch.tensor([t for row, n in new for t in self._active[row].pending[:n]], device=cache.device)
        hidden_TE = hidden_states(self._engine.model, ids, layout.position_ids_T, layout)
        ends, end = [], -1
        for number, n in new:
            end += n
            row = self._active[number]
            row.pending = row.pending[n:]
            if not row.pending:
                ends.append(end)
                self._passed.append(number)
        if not ends:
            return []
        rows = [self._active[number] for number in self._passed]
        drawn = iter(self._draw(hidden_TE[torch.tensor(ends, device=cache.device)], [row.voices for row in rows]))
        turns = []
        for number, row in zip(self._passed, rows, strict=True):
            so_far = cache.prefix_length(cache.prefix_of[number]) + cache.lengths[number] + 1
            full = so_far >= self._engine.context
            row.steps = []
            for voice in row.voices:
                word = next(drawn)
                if self._on_word is not None:
                    self._on_word(voice.number, word)
                stopped = word.token in voice.request.stop_ids
                ended = stopped or full or len(row.tokens) + 1 >= voice.request.sampling.max_turn_tokens
                row.steps.append(_Step(voice, word, ended))
                if ended:
                    tokens, logprobs = (*row.tokens, word.token), (*row.logprobs, word.logprob)
                    turns.append((voice.number, Drawn(tokens, logprobs, "stop" if stopped else "length")))
        return turns

    def _next_pass(self) -> list[tuple[int, int]]:
        """Rows and token counts of the next pass: all that speak; then listeners, who has listened longest first.

        A quarter of a pass is for listeners however many speak, and a long prompt is read in parts.
        """
        listeners = [number for number, row in enumerate(self._active) if len(row.pending) > 1]
        speaking = len(self._active) - len(listeners)
        room = max(self._engine.pass_tokens - speaking, self._engine.pass_tokens // 4, 1)
        take = {number: 1 for number, row in enumerate(self._active) if len(row.pending) == 1}
        for number in sorted(listeners, key=lambda number: self._active[number].since):
            take[number] = min(len(self._active[number].pending), room)
            room -= take[number]
            if not room:
                break
        self._passes += 1
        return sorted(take.items())

    def _draw(self, hidden_RE: Tensor, voices: Sequence[Sequence[_Voice]]) -> list[Word]:
        """A word for each voice of each row, in order."""
        logits = self._engine.model.get_output_embeddings()(hidden_RE)
        every = [(row, voice) for row, some in enumerate(voices) for voice in some]
        kinds: dict[tuple[float, float, int], list[int]] = {}
        for place, (_, voice) in enumerate(every):
            s = voice.request.sampling
            kinds.setdefault((s.temperature, s.top_p, s.top_k), []).append(place)
        out = [Word(0, 0.0)] * len(every)
        for places in kinds.values():
            some = [every[place] for place in places]
            rows = sorted({row for row, _ in some})
            where = {row: n for n, row in enumerate(rows)}
            row_V = torch.tensor([where[row] for row, _ in some], device=logits.device)
            part = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
            uniform = [voice.random.random() for _, voice in some if voice.request.sampling.temperature > 0]
            asked = max(voice.request.others for _, voice in some)
            found = _words(part, row_V, uniform, some[0][1].request.sampling, asked)
            for place, word in zip(places, found, strict=True):
                out[place] = replace(word, others=word.others[: every[place][1].request.others])
        return out


def _alike(one: Request, other: Request) -> bool:
    """Whether two conversations are computed as one until they part."""
    return one.prompt == other.prompt and one.sampling == other.sampling


def _words(logits: Tensor, row_V: Tensor, uniform: Sequence[float], sampling: Sampling, others: int) -> Iterable[Word]:
    """A word from its row for each voice; its log-probability is at the sampling temperature, before truncation."""
    if sampling.temperature not in (0.0, 1.0):
        logits = logits.float() / sampling.temperature
    top = logits.amax(-1, keepdim=True).float()
    weights = (logits - top).exp_()
    buckets = _buckets(weights).sum(-1)
    normaliser = buckets.sum(-1)
    if sampling.temperature == 0.0:
        words = _likeliest(logits)[row_V]
    else:
        if sampling.top_p < 1.0 or sampling.top_k > 0:
            weights = _truncate(torch.softmax(logits.float(), -1), sampling)
            buckets = _buckets(weights).sum(-1)
        words = _inverse(weights, buckets, row_V, torch.tensor(uniform, device=row_V.device, dtype=torch.float64))
    chosen = logits[row_V, words].float()
    normalisers_R = top[:, 0] + normaliser.log()
    logprobs = chosen - normalisers_R[row_V]
    if not others:
        return itertools.starmap(Word, zip(words.tolist(), logprobs.tolist(), strict=True))
    best = logits.float().topk(others)
    near = (best.values - normalisers_R[:, None])[row_V].tolist()
    told = [
        tuple(zip(ids, values, strict=True)) for ids, values in zip(best.indices[row_V].tolist(), near, strict=True)
    ]
    return itertools.starmap(Word, zip(words.tolist(), logprobs.tolist(), told, strict=True))


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
