"""Examples packed into one row of tokens in which shared prefixes stand once.

Each example is cut where a prefix may end (after the system prompt, after the prompt).
Equal segments under the same parent become one span of a forest, so that a prompt with G
completions is computed once, forward and backward, with exact gradients. Tokens after an
example's last predictor influence no loss and are left out.

Left out on purpose: finding common prefixes that no cut names, and padding.

Shape legend: T packed tokens, M labels (tokens that carry loss), B examples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metier.base.errors import DataError
from metier.models.attention import ForestLayout, Span

__all__ = ["Example", "Packed", "ends_in_loss", "pack", "split_micro"]


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
    cuts: tuple[int, ...] = ()  # increasing positions at which a shared prefix may end
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
        if any(a >= b for a, b in itertools.pairwise(self.cuts)) or any(
            not 0 <= c <= len(self.token_ids) for c in self.cuts
        ):
            raise DataError(
                f"{name} has cuts {self.cuts}; they must increase and lie within its {len(self.token_ids)} tokens"
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
    source_M: Tensor  # index into T of the token whose hidden state predicts the label
    targets_M: Tensor  # the label's token id
    example_M: Tensor  # index of the label's example
    weight_M: Tensor  # float32
    advantage_M: Tensor  # float32
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

    def sums(self, values_M: Tensor) -> Tensor:
        """Sums over each example's labels, shape (B,)."""
        return values_M.new_zeros(self.examples).index_add(0, self.example_M, values_M)

    def means(self, values_M: Tensor) -> Tensor:
        """Means over each example's labels, shape (B,)."""
        return self.sums(values_M) / self.labels_B


def pack(examples: Sequence[Example], *, heads: int, device: torch.device | str = "cpu") -> Packed:
    """Lay examples out as a forest of spans; `heads` is the model's number of query heads.

    Raises `DataError` when no example holds a label.
    """
    spans: list[Span] = []
    depths: list[int] = []
    ids: list[int] = []
    known: dict[tuple[int | None, tuple[int, ...]], int] = {}
    sources, targets, labels_of = [], [], []
    for example, segments in zip(examples, _branches(examples), strict=True):
        parent: int | None = None
        depth = 0
        place = []
        for segment in segments:
            number = known.get((parent, segment))
            if number is None:
                number = known[parent, segment] = len(spans)
                spans.append(Span(len(ids), len(segment), parent))
                depths.append(depth)
                ids.extend(segment)
            start = spans[number].start
            place.append(np.arange(start, start + len(segment)))
            depth += len(segment)
            parent = number
        labels = np.flatnonzero(np.asarray(example.loss_mask))
        labels_of.append(len(labels))
        if len(labels):
            sources.append(np.concatenate(place)[labels - 1])
            targets.append(np.asarray(example.token_ids)[labels])
    if not sources:
        raise DataError(f"none of the {len(examples)} examples has a label; at least one loss_mask must hold a 1")
    positions = np.concatenate([np.arange(d, d + s.length) for d, s in zip(depths, spans, strict=True)])
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
        input_ids_T=torch.tensor(ids, dtype=torch.long, device=device),
        position_ids_T=whole(positions),
        layout=ForestLayout(spans, heads=heads, device=device),
        source_M=whole(np.concatenate(sources)),
        targets_M=whole(np.concatenate(targets)),
        example_M=whole(np.repeat(np.arange(len(examples)), labels_of)),
        weight_M=per_label("weight", torch.float32),
        advantage_M=per_label("advantage", torch.float32),
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
        pairs=sum(s.length * d + s.length * (s.length + 1) // 2 for d, s in zip(depths, spans, strict=True)),
    )


def ends_in_loss(examples: Sequence[Example], stop_ids: frozenset[int]) -> float:
    """Share of the examples in which a token that ends a turn is a label."""
    learned = (
        any(own and token in stop_ids for token, own in zip(e.token_ids, e.loss_mask, strict=True)) for e in examples
    )
    return sum(learned) / max(len(examples), 1)


def split_micro(examples: Sequence[Example], token_budget: int) -> list[list[Example]]:
    """Split into micro-batches of at most `token_budget` packed tokens, shared ones counted once.

    Examples of one prefix stand side by side, prefixes in the order of their first
    appearance; examples of one unit stay together and in their order. A unit longer than
    the budget goes alone.
    """
    numbers: dict[tuple[int | None, tuple[int, ...]], int] = {}
    units: dict[str | int, list[tuple[int, list[tuple[int, int]]]]] = {}  # unit -> (example, path of (span, length))
    for index, example in enumerate(examples):
        parent: int | None = None
        path: list[tuple[int, int]] = []
        for segment in _segments(example):
            parent = numbers.setdefault((parent, segment), len(numbers))
            path.append((parent, len(segment)))
        units.setdefault(example.unit or index, []).append((index, path))
    ranked = sorted(units.values(), key=lambda unit: ([number for number, _ in unit[0][1]], unit[0][0]))
    micro: list[list[Example]] = []
    present: set[int] = set()
    used = 0
    for unit in ranked:
        spans = {number: length for _, path in unit for number, length in path}
        cost = sum(length for number, length in spans.items() if number not in present)
        if not micro or used + cost > token_budget:
            micro.append([])
            present, used = set(), 0
            cost = sum(spans.values())
        micro[-1].extend(examples[index] for index, _ in unit)
        present.update(spans)
        used += cost
    return micro


def _branches(examples: Sequence[Example]) -> list[list[tuple[int, ...]]]:
    """The segments of each example, joined where all examples that hold the one go on with the same other.

    What is never shared apart is computed in one span: few long spans cost less than many short ones.
    """
    numbers: dict[tuple[int | None, tuple[int, ...]], int] = {}
    followed: dict[int, set[int | None]] = {}  # span -> what comes after it; None where an example ends
    paths: list[list[tuple[int, tuple[int, ...]]]] = []
    for example in examples:
        path: list[tuple[int, tuple[int, ...]]] = []
        for segment in _segments(example):
            before = path[-1][0] if path else None
            number = numbers.setdefault((before, segment), len(numbers))
            if before is not None:
                followed.setdefault(before, set()).add(number)
            path.append((number, segment))
        if path:
            followed.setdefault(path[-1][0], set()).add(None)
        paths.append(path)
    joined: list[list[tuple[int, ...]]] = []
    for path in paths:
        segments: list[tuple[int, ...]] = []
        for place, (_, segment) in enumerate(path):
            if place and len(followed[path[place - 1][0]]) == 1:
                segments[-1] += segment
            else:
                segments.append(segment)
        joined.append(segments)
    return joined


def _segments(example: Example) -> Iterator[tuple[int, ...]]:
    """The example's tokens up to its last predictor, cut at its cuts."""
    mask = example.loss_mask
    end = next((i for i in range(len(mask) - 1, -1, -1) if mask[i]), 0)
    bounds = [0, *(c for c in example.cuts if 0 < c < end), end]
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            yield example.token_ids[start:stop]
