"""Examples packed into one row of tokens in which shared prefixes stand once.

Whatever examples begin with in common becomes one span of a forest, computed once, forward
and backward, with exact gradients: a system prompt, a prompt with G completions, and also
what those completions have in common before they part. Tokens after an example's last
predictor influence no loss and are left out.

Left out on purpose: what examples have in common after they have parted, common beginnings
of fewer than a few tokens, and padding.

Shape legend: T packed tokens, M labels (tokens that carry loss), U labels of different
source or target, B examples.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metier.base.errors import DataError
from metier.models.attention import ForestLayout, Span

__all__ = ["Example", "Packed", "ends_in_loss", "pack", "split_micro"]

_WORTH = 4  # tokens in common from which a span of their own costs less than computing them twice

_PER_LABEL = (
    "sampler_logprobs",
    "old_logprobs",
    "reference_logprobs",
    "returns",
    "old_values",
    "weight",
    "advantage",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One token sequence to learn from."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]  # 1 where the token is a label, 0 elsewhere; one for each token
    weight: float | tuple[float, ...] = 1.0  # factor of the loss: of every label, or one for each
    advantage: float | tuple[float, ...] = 0.0  # for policy gradients, likewise
    sampler_logprobs: tuple[float, ...] = ()  # nats, one for each label in order; () where nobody sampled it
    old_logprobs: tuple[float, ...] = ()  # by the policy when the step's episodes were taken; () for now
    reference_logprobs: tuple[float, ...] = ()  # by the reference model; () where there is none
    returns: tuple[float, ...] = ()  # what a value head should say before each label; () where there is none
    old_values: tuple[float, ...] = ()  # what it said when the step's episodes were taken
    target: float = 0.0  # of the whole example; preferences: 1 the better side, 0 the worse
    margin: float = 0.0  # by how much the better side should lead
    unit: str = ""  # examples of one unit are compared with each other, so they share a micro-batch
    key: str = ""  # names the example in errors

    def __post_init__(self) -> None:
        name = f"example {self.key!r}" if self.key else "an example"
        if len(self.loss_mask) != len(self.token_ids):
            raise DataError(
                f"{name} has {len(self.token_ids)} tokens and {len(self.loss_mask)} mask values; give one each"
            )
        if self.loss_mask and self.loss_mask[0]:
            raise DataError(
                f"{name} has a label at position 0, which no token predicts; start it with an unmasked token"
            )
        for what in _PER_LABEL:
            given = getattr(self, what)
            if isinstance(given, tuple) and given and len(given) != self.labels:
                raise DataError(f"{name}: {self.labels} labels, {len(given)} values of {what}; give one each")

    @property
    def labels(self) -> int:
        """The number of tokens that carry loss."""
        return sum(map(bool, self.loss_mask))


@dataclass(frozen=True, slots=True)
class Packed:
    """A micro-batch: the tokens of a forest, and one entry per label."""

    input_ids_T: Tensor
    position_ids_T: Tensor  # depth in the tree, as if each example stood alone
    layout: ForestLayout
    source_U: Tensor  # index into T of the token whose hidden state predicts the label
    targets_U: Tensor  # the label's token id
    like_M: Tensor  # index into U of the label's source and target
    example_M: Tensor  # index of the label's example
    weight_M: Tensor  # of the dtype that the loss is computed in
    advantage_M: Tensor  # likewise
    sampler_logprobs_M: Tensor  # float64; NaN where nobody sampled the label
    old_logprobs_M: Tensor  # float64; NaN where they are those of now
    reference_logprobs_M: Tensor  # float64; NaN where there is no reference
    returns_M: Tensor  # float64; NaN where there is no value head
    old_values_M: Tensor  # float64; likewise
    target_B: Tensor  # float64, one for each example
    margin_B: Tensor  # float64
    unit_B: Tensor  # the example's unit, numbered from 0 in order of appearance
    examples: int  # B
    tokens: int  # with shared prefixes counted once per example
    packed_tokens: int  # T
    pairs: int  # of a token and one that it sees, itself included

    @property
    def labels_B(self) -> Tensor:
        """Labels of each example, 1 at least so that it can divide."""
        return torch.bincount(self.example_M, minlength=self.examples).clamp(min=1)

    @property
    def weight_B(self) -> Tensor:
        """The factor of each example, where its loss is one number: the mean over its labels."""
        return self.means(self.weight_M)

    def sums(self, values_M: Tensor) -> Tensor:
        """Sums over each example's labels, shape (B,)."""
        return values_M.new_zeros(self.examples).index_add(0, self.example_M, values_M)

    def means(self, values_M: Tensor) -> Tensor:
        """Means over each example's labels, shape (B,)."""
        return self.sums(values_M) / self.labels_B


def pack(
    examples: Sequence[Example],
    *,
    heads: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Packed:
    """Lay examples out as a forest of spans; `heads` is the model's number of query heads.

    `dtype` is that of weights and advantages.

    Raises `DataError` when no example holds a label.
    """
    if not any(example.labels for example in examples):
        raise DataError(f"none of the {len(examples)} examples has a label; at least one loss_mask must hold a 1")
    order = sorted(range(len(examples)), key=lambda index: _needed(examples[index]))
    rows = _rows([_needed(examples[index]) for index in order])
    ids, positions, spans, places = _laid_out(rows)
    paths = dict(zip(order, places, strict=True))
    sources, targets, labels_of = [], [], []
    for index, example in enumerate(examples):
        labels = np.flatnonzero(np.asarray(example.loss_mask))
        labels_of.append(len(labels))
        if len(labels):
            sources.append(paths[index][labels - 1])
            targets.append(np.asarray(example.token_ids)[labels])
    source, target = np.concatenate(sources), np.concatenate(targets)
    _, first, like = np.unique(source << 32 | target, return_index=True, return_inverse=True)
    units: dict[str | int, int] = {}
    unit_of = [units.setdefault(e.unit or number, len(units)) for number, e in enumerate(examples)]

    def whole(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.long, device=device)

    def per_label(what: str, dtype: torch.dtype) -> Tensor:
        values: list[float] = []
        for example, n in zip(examples, labels_of, strict=True):
            given = getattr(example, what)
            values.extend((given,) * n if isinstance(given, (int, float)) else given or (math.nan,) * n)
        return torch.tensor(values, dtype=dtype, device=device)

    def per_example(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    return Packed(
        input_ids_T=whole(ids),
        position_ids_T=whole(positions),
        layout=ForestLayout(spans, heads=heads, device=device),
        source_U=whole(source[first]),
        targets_U=whole(target[first]),
        like_M=whole(like),
        example_M=whole(np.repeat(np.arange(len(examples)), labels_of)),
        weight_M=per_label("weight", dtype),
        advantage_M=per_label("advantage", dtype),
        sampler_logprobs_M=per_label("sampler_logprobs", torch.float64),
        old_logprobs_M=per_label("old_logprobs", torch.float64),
        reference_logprobs_M=per_label("reference_logprobs", torch.float64),
        returns_M=per_label("returns", torch.float64),
        old_values_M=per_label("old_values", torch.float64),
        target_B=per_example([e.target for e in examples]),
        margin_B=per_example([e.margin for e in examples]),
        unit_B=torch.tensor(unit_of, dtype=torch.long, device=device),
        examples=len(examples),
        tokens=sum(len(e.token_ids) for e in examples),
        packed_tokens=len(ids),
        pairs=int(positions.sum()) + len(ids),
    )


def ends_in_loss(examples: Sequence[Example], stop_ids: frozenset[int]) -> float:
    """Share of the examples in which a token that ends a turn is a label."""
    learned = (
        any(own and token in stop_ids for token, own in zip(e.token_ids, e.loss_mask, strict=True)) for e in examples
    )
    return sum(learned) / max(len(examples), 1)


def split_micro(examples: Sequence[Example], token_budget: int) -> list[list[Example]]:
    """Split into micro-batches of at most `token_budget` packed tokens, shared ones counted once.

    (A few more where siblings part again within a few tokens, which pack may lay out otherwise.)
    Units that begin alike stand side by side, in the order of their tokens; examples of one
    unit stay together and in their order. A unit longer than the budget goes alone.
    """
    units: dict[str | int, list[Example]] = {}
    for index, example in enumerate(examples):
        units.setdefault(example.unit or index, []).append(example)
    micro: list[list[Example]] = []
    used, last = 0, None
    for unit in sorted(units.values(), key=lambda unit: _needed(unit[0])):
        needed = [_needed(example) for example in unit]
        rows = _rows(needed, last)
        if not micro or used + _fresh(rows) > token_budget:
            micro.append([])
            used, rows = 0, _rows(needed)
        micro[-1].extend(unit)
        used, last = used + _fresh(rows), rows[-1]
    return micro


def _needed(example: Example) -> tuple[int, ...]:
    """The example's tokens up to its last predictor."""
    mask = example.loss_mask
    end = next((i for i in range(len(mask) - 1, -1, -1) if mask[i]), 0)
    return example.token_ids[:end]


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence laid over the one before it."""

    ids: np.ndarray
    shared: int = 0  # how many of its first tokens are those of the row before
    cuts: tuple[int, ...] = (0,)  # depths at which its spans begin, as far as rows up to here say


def _rows(sequences: Sequence[tuple[int, ...]], before: _Row | None = None) -> list[_Row]:
    """Every sequence over its neighbour. Where they are sorted, nothing earlier has more in common with it."""
    rows: list[_Row] = []
    for tokens in sequences:
        ids = np.asarray(tokens, dtype=np.int64)
        before = _Row(ids) if before is None else _over(before, ids)
        rows.append(before)
    return rows


def _over(before: _Row, ids: np.ndarray) -> _Row:
    n = min(len(before.ids), len(ids))
    parted = np.flatnonzero(before.ids[:n] != ids[:n])
    shared = int(parted[0]) if len(parted) else n
    start = max(cut for cut in before.cuts if cut <= shared)
    if shared < len(before.ids) and shared - start < _WORTH:
        shared = start
    return _Row(ids, shared, (*(cut for cut in before.cuts if cut < shared), shared))


def _fresh(rows: Sequence[_Row]) -> int:
    """Tokens that the rows add to what is laid out before them."""
    return sum(len(row.ids) - row.shared for row in rows)


def _laid_out(rows: Sequence[_Row]) -> tuple[np.ndarray, np.ndarray, list[Span], list[np.ndarray]]:
    """The packed tokens, their depths, their spans, and for each row the places of its tokens."""
    before: dict[int, int] = {}  # the place at which a span begins -> the place that it follows; -1 for none
    places: list[np.ndarray] = []
    path, total = np.empty(0, dtype=np.int64), 0
    for row in rows:
        ahead = int(path[row.shared - 1]) if row.shared else -1
        if row.shared < len(path) and row.shared:
            before[int(path[row.shared])] = ahead  # here the earlier rows part from this one
        fresh = np.arange(total, total + len(row.ids) - row.shared)
        if len(fresh):
            before[total] = ahead
        path = np.concatenate([path[: row.shared], fresh])
        total += len(fresh)
        places.append(path)
    starts = sorted(before)
    spans = [
        Span(start, stop - start, None if before[start] < 0 else bisect.bisect_right(starts, before[start]) - 1)
        for start, stop in itertools.pairwise([*starts, total])
    ]
    ids = np.concatenate([row.ids[row.shared :] for row in rows])
    depths = np.concatenate([np.arange(row.shared, len(row.ids)) for row in rows])
    return ids, depths, spans, places
