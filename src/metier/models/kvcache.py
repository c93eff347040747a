"""Attention with memory: rows of a cache that grow while an engine samples.

A row is one conversation. Its *prefix* (a system prompt that many rows share) is computed
once and kept apart; its own keys and values lie in a slot. Active rows always fill slots
0 to R - 1, so reading the cache needs no copy. One forward pass may extend some rows by
one token (decoding) and others by many (what a user or a tool said): each kind is a part.

Shape legend: R rows, L room of a slot, N tokens by which the rows of a part grow,
T = tokens of the pass, P prefix tokens, H, K, Q, D as in `metier.models.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, c_int64
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from metier.models.native import HEAD_SIZES, Kernels, serving, token_table

__all__ = ["ExtendLayout", "KVCache", "ParkedRow", "PrefixLayout"]

_GROW = 32  # slots grow by this many tokens
_SLOTS = 16  # and become more by this many


class KVCache:
    """Keys and values of all rows and prefixes of one model."""

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        config = model.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.key_heads: int = config.num_key_value_heads
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.dtype, self.device = model.dtype, model.device
        # for rows that grow by one token; None where they do not serve this model
        self.kernels = serving(next(model.parameters())) if self.head_size in HEAD_SIZES else None
        self.rows = rows  # at most
        self._slots = 0  # that there is memory for
        self.lengths = [0] * rows  # own tokens of each slot
        self.prefix_of: list[int] = [-1] * rows
        self.prefixes: list[list[tuple[Tensor, Tensor]]] = []  # prefix, layer -> keys, values (K, P, D)
        self._stacked: list[tuple[Tensor, Tensor]] = []
        self._stacked_of = 0  # prefixes in `_stacked`
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._capacity = 0

    def prefix_length(self, prefix: int) -> int:
        """Tokens of a prefix; 0 for the empty one (-1)."""
        return 0 if prefix < 0 else self.prefixes[prefix][0][0].shape[1]

    @property
    def longest_prefix(self) -> int:
        """Tokens of the longest prefix; there must be one."""
        return max(self.prefix_length(prefix) for prefix in range(len(self.prefixes)))

    def stacked(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all prefixes at one layer, (prefixes, K, P, D), short ones filled up with zeros."""
        if self._stacked_of != len(self.prefixes):
            longest = self.longest_prefix
            self._stacked = []
            for each in range(self.layers):
                shape = (len(self.prefixes), self.key_heads, longest, self.head_size)
                pair = torch.zeros((2, *shape), dtype=self.dtype, device=self.device)
                for number, prefix in enumerate(self.prefixes):
                    for store, tensor in zip(pair, prefix[each], strict=True):
                        store[number, :, : tensor.shape[1]] = tensor
                self._stacked.append((pair[0], pair[1]))
            self._stacked_of = len(self.prefixes)
        return self._stacked[layer]

    def reserve(self, slots: int, length: int) -> None:
        """Make room for `length` own tokens in so many slots."""
        if slots <= self._slots and length <= self._capacity:
            return
        # Products read all of the room, the kernels in C only what is in use: there, fewer and larger steps.
        more = self._capacity if self.kernels is None else self._capacity * 3 // 2
        capacity = self._capacity if length <= self._capacity else max(more, (length + _GROW - 1) // _GROW * _GROW)
        slots = max(self._slots, min(self.rows, (slots + _SLOTS - 1) // _SLOTS * _SLOTS))
        shape = (slots, self.key_heads, capacity, self.head_size)
        for store in (self._keys, self._values):
            for layer in range(self.layers):
                wider = torch.zeros(shape, dtype=self.dtype, device=self.device)
                if layer < len(store):
                    wider[: self._slots, :, : self._capacity] = store[layer]
                    store[layer] = wider
                else:
                    store.append(wider)
        self._slots, self._capacity = slots, capacity

    @property
    def capacity(self) -> int:
        """Tokens for which every slot has room."""
        return self._capacity

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (slots, K, capacity, D)."""
        return self._keys[layer], self._values[layer]

    def clear_row(self, row: int, prefix: int) -> None:
        """Give a slot to a new conversation."""
        self.lengths[row] = 0
        self.prefix_of[row] = prefix

    def copy_row(self, source: int, target: int) -> None:
        """Copy a slot over another one."""
        self.reserve(max(source, target) + 1, self._capacity)  # a row that nothing was read of has no slot yet
        length = self.lengths[source]
        for store in (self._keys, self._values):
            for tensor in store:
                tensor[target, :, :length] = tensor[source, :, :length]
        self.lengths[target] = length
        self.prefix_of[target] = self.prefix_of[source]

    def take_out(self, row: int) -> ParkedRow:
        """A copy of what a slot holds, for `put_back`; the slot may then be used otherwise."""
        length = self.lengths[row]
        layers = [
            torch.stack([store[layer][row, :, :length] for store in (self._keys, self._values)])
            for layer in range(self.layers)
        ]
        return ParkedRow(self.prefix_of[row], length, layers)

    def put_back(self, row: int, parked: ParkedRow) -> None:
        """Fill a slot with what `take_out` gave."""
        self.reserve(row + 1, parked.length)
        for layer, pair in enumerate(parked.layers):
            for store, tensor in zip((self._keys, self._values), pair, strict=True):
                store[layer][row, :, : parked.length] = tensor
        self.lengths[row] = parked.length
        self.prefix_of[row] = parked.prefix


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """A conversation out of its slot."""

    prefix: int
    length: int  # own tokens
    layers: list[Tensor]  # keys and values, each (2, K, length, D)


class PrefixLayout:
    """One causal row whose keys and values are kept as a new prefix of the cache."""

    def __init__(self, cache: KVCache) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        cache.prefixes.append(self._kept)

    def attend(self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
        """See `Layout.attend`."""
        assert layer == len(self._kept), "layers must attend in order"
        self._kept.append((key_KTD.contiguous(), value_KTD.contiguous()))
        h, t, d = query_HTD.shape
        k = key_KTD.shape[0]
        scores = torch.matmul(query_HTD.reshape(k, -1, d) * scale, key_KTD.transpose(-1, -2))
        blocked = torch.ones(t, t, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.view(h, t, t).masked_fill(blocked, float("-inf"))
        weights = torch.softmax(scores, -1).view(k, -1, t)
        return torch.matmul(weights, value_KTD).view(h, t, d).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that grow by the same padded number of tokens in this pass."""

    rows: Tensor | slice  # slots
    tokens_RN: Tensor  # indices into the T tokens of the pass, padded with the row's last
    keep_T: (
        Tensor | None
    )  # flat indices into (R, N) that are real; None: all, which are the tokens of the pass in order
    bias_RNL: Tensor  # -inf where a token must not see an own one, else 0
    shared: _Shared | None  # None where no row has a prefix


@dataclass(frozen=True, slots=True)
class _Shared:
    """The rows of a part by prefix, so that one product serves all prefixes."""

    prefixes: Tensor | slice  # those in use, G of them
    rows_GM: Tensor | None  # rows within the part, groups filled up with row 0; None: one group of all in order
    place_R: Tensor | None  # where each row stands in (G, M), flat
    bias_RP: Tensor | None  # -inf beyond the end of the row's prefix; None where all end together


@dataclass(frozen=True, slots=True)
class _Ones:
    """Rows that grow by one token each, attended by the kernels in C."""

    kernels: Kernels
    table: Array[c_int64]
    tokens_R: Tensor  # of the pass

    @classmethod
    def of(cls, cache: KVCache, entries: Sequence[tuple[int, int, int]]) -> _Ones | None:
        """The part of entries of (slot, 1, token index); None where the kernels do not serve this cache."""
        if cache.kernels is None:
            return None
        rows = [
            (token, row, cache.lengths[row] - 1, prefix := cache.prefix_of[row], cache.prefix_length(prefix))
            for row, _, token in entries
        ]
        return cls(cache.kernels, token_table(rows), torch.tensor([token for token, *_ in rows]))

    def attend(
        self, cache: KVCache, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float
    ) -> Tensor:
        """See `Layout.attend`; of these rows alone."""
        query, key, value = (_by_token(x) for x in (query_HTD, key_KTD, value_KTD))
        ahead = cache.stacked(layer) if cache.prefixes else None
        return self.kernels.attend(self.table, query, key, value, cache.layer(layer), ahead, scale)


def _by_token(x_HTD: Tensor) -> Tensor:
    """(T, H, D), each token's numbers without gaps."""
    x_THD = x_HTD.transpose(0, 1)
    return x_THD if x_THD.stride()[1:] == (x_THD.shape[2], 1) else x_THD.contiguous()


class ExtendLayout:
    """Each of the named rows grows by its number of new tokens.

    `new` maps slots to counts in the order in which their tokens lie in the pass. Rows that
    grow by one token (decoding) should be all of slots 0 to R - 1 or few.
    """

    def __init__(self, cache: KVCache, new: Sequence[tuple[int, int]]) -> None:
        self.cache = cache
        cache.reserve(max(row for row, _ in new) + 1, max(cache.lengths[row] + n for row, n in new))
        starts: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        inner: list[int] = []
        total = 0
        for row, n in new:
            starts.append(total)
            total += n
            length, base = cache.lengths[row], cache.prefix_length(cache.prefix_of[row])
            positions.extend(range(base + length, base + length + n))
            slots.extend([row] * n)
            inner.extend(range(length, length + n))
            cache.lengths[row] = length + n
        device = cache.device
        self.position_ids_T = torch.tensor(positions, device=device)
        self._slots_T = torch.tensor(slots, device=device)
        self._inner_T = torch.tensor(inner, device=device)
        entries = [(row, n, start) for (row, n), start in zip(new, starts, strict=True)]
        ones, more = [e for e in entries if e[1] == 1], [e for e in entries if e[1] > 1]
        self._ones = _Ones.of(cache, ones) if ones else None
        self._parts = [self._part(kind, total) for kind in ([] if self._ones else ones, more) if kind]
        self._back_T: Tensor | None = None
        orders = [
            p.tokens_RN.reshape(-1) if p.keep_T is None else p.tokens_RN.reshape(-1)[p.keep_T] for p in self._parts
        ]
        if self._ones is not None:
            orders.insert(0, self._ones.tokens_R)
        order = torch.cat(orders)
        if not torch.equal(order, torch.arange(total, device=device)):
            self._back_T = torch.argsort(order)

    def _part(self, entries: list[tuple[int, int, int]], total: int) -> _Part:
        """A part from entries of (slot, new tokens, first token index), in a pass of `total` tokens."""
        cache, device = self.cache, self.cache.device
        widest = max(n for _, n, _ in entries)
        by_row = {row: (n, start) for row, n, start in entries}
        last = max(by_row)
        # Reading slots 0 to `last` in place beats copying some of them, so when most of them
        # take part the others are carried along and their output is dropped.
        dense = 2 * len(by_row) > last
        rows = list(range(last + 1)) if dense else sorted(by_row)
        tokens: list[list[int]] = []
        keep: list[int] = []
        seen: list[list[int]] = []
        for number, row in enumerate(rows):
            n, start = by_row.get(row, (0, 0))
            steps = [max(0, min(i, n - 1)) for i in range(widest)]
            tokens.append([start + i for i in steps])
            keep.extend(number * widest + i for i in range(n))
            seen.append([max(0, cache.lengths[row] - n + i) for i in steps])
        # All of the slots' room is read, not only what is in use: a product takes a dense tensor
        # as it lies and would copy a slice of one first.
        plain = widest == 1 and len(rows) == total and all(token == [n] for n, token in enumerate(tokens))
        hidden = torch.arange(cache.capacity, device=device) > torch.tensor(seen, device=device)[..., None]
        return _Part(
            rows=slice(0, last + 1) if dense else torch.tensor(rows, device=device),
            tokens_RN=torch.tensor(tokens, device=device),
            keep_T=None if plain else torch.tensor(keep, device=device),
            bias_RNL=_bias(hidden, cache.dtype),
            shared=self._shared(rows),
        )

    def _shared(self, rows: list[int]) -> _Shared | None:
        cache, device = self.cache, self.cache.device
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(cache.prefix_of[row], []).append(number)
        used = sorted(prefix for prefix in groups if prefix >= 0)
        if not used:
            return None
        groups[used[0]].extend(groups.pop(-1, []))  # its rows see nothing of it
        widest = max(map(len, groups.values()))
        place = [0] * len(rows)
        for g, prefix in enumerate(used):
            for m, number in enumerate(groups[prefix]):
                place[number] = g * widest + m
        filled = [groups[prefix] + [0] * (widest - len(groups[prefix])) for prefix in used]
        lengths = torch.tensor([cache.prefix_length(cache.prefix_of[row]) for row in rows], device=device)
        longest = cache.longest_prefix
        even = bool((lengths == longest).all())
        one = len(used) == 1 and filled[0] == list(range(len(rows)))
        return _Shared(
            prefixes=slice(None) if len(used) == len(cache.prefixes) else torch.tensor(used, device=device),
            rows_GM=None if one else torch.tensor(filled, device=device),
            place_R=None if one else torch.tensor(place, device=device),
            bias_RP=None if even else _bias(torch.arange(longest, device=device) >= lengths[:, None], cache.dtype),
        )

    def attend(self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
        """See `Layout.attend`."""
        pieces = []
        if self._ones is not None:
            pieces.append(self._ones.attend(self.cache, layer, query_HTD, key_KTD, value_KTD, scale))
        if self._parts:
            keys, values = self.cache.layer(layer)
            keys[self._slots_T, :, self._inner_T] = key_KTD.transpose(0, 1)
            values[self._slots_T, :, self._inner_T] = value_KTD.transpose(0, 1)
            pieces += [self._attend_part(p, layer, query_HTD, keys, values, scale) for p in self._parts]
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return joined if self._back_T is None else joined.index_select(0, self._back_T)

    def _attend_part(
        self, part: _Part, layer: int, query_HTD: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> Tensor:
        r, n = part.tokens_RN.shape
        h, _, d = query_HTD.shape
        k, q = self.cache.key_heads, h // self.cache.key_heads
        own_key, own_value = keys[part.rows], values[part.rows]
        if part.keep_T is None:
            query = query_HTD.transpose(0, 1).reshape(r, k, q, d) * scale
        else:
            query = query_HTD.index_select(1, part.tokens_RN.reshape(-1)) * scale
            query = query.view(k, q, r, n, d).permute(2, 0, 1, 3, 4).reshape(r, k, q * n, d)
        scores = torch.matmul(query, own_key.transpose(-1, -2))  # R K QN L
        scores.view(r, h, n, -1).add_(part.bias_RNL[:, None])
        shared = part.shared
        if shared is None:
            out = torch.matmul(torch.softmax(scores, -1), own_value)
        else:
            every_key, every_value = self.cache.stacked(layer)
            before = torch.matmul(_grouped(query, shared), every_key[shared.prefixes].transpose(-1, -2))
            before = _ungrouped(before, shared, q * n)
            if shared.bias_RP is not None:
                before += shared.bias_RP[:, None, None]
            p = before.shape[-1]
            weights = torch.softmax(torch.cat([before, scores], -1), -1)  # sums in float32 inside, whatever the dtype
            out = torch.matmul(weights[..., p:], own_value)
            ahead = torch.matmul(_grouped(weights[..., :p], shared), every_value[shared.prefixes])
            out += _ungrouped(ahead, shared, q * n)
        if part.keep_T is None:
            return out.view(r, h, d)
        rows = out.view(r, k, q, n, d).permute(0, 3, 1, 2, 4).reshape(r * n, h, d)
        return rows.index_select(0, part.keep_T)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


def _grouped(rows_RKNX: Tensor, shared: _Shared) -> Tensor:
    """By prefix: (G, K, M * N, X)."""
    r, k, n, x = rows_RKNX.shape
    if shared.rows_GM is None:
        return rows_RKNX.transpose(0, 1).reshape(1, k, r * n, x)
    g, m = shared.rows_GM.shape
    picked = rows_RKNX.index_select(0, shared.rows_GM.reshape(-1))
    return picked.view(g, m, k, n, x).transpose(1, 2).reshape(g, k, m * n, x)


def _ungrouped(groups_GKMX: Tensor, shared: _Shared, n: int) -> Tensor:
    """By row again: (R, K, N, X)."""
    k, x = groups_GKMX.shape[1], groups_GKMX.shape[-1]
    if shared.rows_GM is None:
        return groups_GKMX.view(k, -1, n, x).transpose(0, 1)
    assert shared.place_R is not None
    g, m = shared.rows_GM.shape
    rows = groups_GKMX.view(g, k, m, n, x).transpose(1, 2).reshape(g * m, k, n, x)
    return rows.index_select(0, shared.place_R)
