"""Attention of a forest by matrix products, with its backward pass written out.

Left to autograd, most of the time of attention over short spans went into copies: of
scattered rows, of a context that several spans share, of slices' gradients. Here each bundle
gathers its rows once, multiplies a shared context once for all its spans, and keeps nothing
but its attention weights for the backward pass.

With scores s = scale q k^T + mask, weights w = softmax(s), output o = w v and the slope g of o:
dv = w^T g, dw = g v^T, ds = w * (dw - sum(w * dw)), dq = scale ds k, dk = scale ds^T q.

Shape legend: T tokens, H query heads, K key heads, Q = H / K queries per key head, D head
size, B spans of a bundle, S longest span of it, P tokens of its ancestors, N rows of queries
(K B Q S of a bundle), W = P + S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["BundlePlan", "attend_by_products"]


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """Where a bundle's rows stand among (T * heads) rows of queries, keys and values."""

    key_heads: int  # K
    spans: int  # B
    longest: int  # S
    query_N: Tensor  # rows of queries, in the order K B Q S
    kept_N: Tensor | None  # which of them are real; None where all are
    place_N: Tensor  # rows of the real ones
    filled_N: Tensor | None  # which of them fill short spans up
    own_KBS: Tensor  # rows of keys and values, flat
    context_KP: Tensor | None  # rows of the ancestors' keys and values, flat; None for roots
    bias_QSS: Tensor  # -inf where a query must not see a key of its own span, shape (Q * S, S)

    @classmethod
    def of(
        cls, tokens_BS: Tensor, keep: Tensor, context_P: Tensor | None, bias_SS: Tensor, heads: int, key_heads: int
    ) -> BundlePlan:
        """The plan of spans `tokens_BS`, of which the flat places `keep` are real."""
        (b, s), each, device = tokens_BS.shape, heads // key_heads, tokens_BS.device
        k_K, q_Q = torch.arange(key_heads, device=device), torch.arange(each, device=device)
        query_N = (
            tokens_BS[None, :, None] * heads + (k_K[:, None, None, None] * each + q_Q[None, None, :, None])
        ).reshape(-1)
        kept = filled = None
        if len(keep) < b * s:
            real_BS = torch.zeros(b * s, dtype=torch.bool, device=device)
            real_BS[keep] = True
            real_N = real_BS.view(1, b, 1, s).expand(key_heads, b, each, s).reshape(-1)
            kept, filled = real_N.nonzero()[:, 0], (~real_N).nonzero()[:, 0]
        return cls(
            key_heads=key_heads,
            spans=b,
            longest=s,
            query_N=query_N,
            kept_N=kept,
            place_N=query_N if kept is None else query_N[kept],
            filled_N=filled,
            own_KBS=(tokens_BS[None] * key_heads + k_K[:, None, None]).reshape(-1),
            context_KP=None if context_P is None else (context_P * key_heads + k_K[:, None]).reshape(-1),
            bias_QSS=bias_SS.repeat(each, 1),
        )

    def queries(self, rows: Tensor, scale: float) -> Tensor:
        """The bundle's scaled queries, shape (N, D)."""
        return rows.index_select(0, self.query_N).mul_(scale)

    def own(self, rows: Tensor) -> Tensor:
        """The spans' own keys or values, shape (K * B, S, D)."""
        return rows.index_select(0, self.own_KBS).view(self.key_heads * self.spans, self.longest, -1)

    def context(self, rows: Tensor) -> Tensor:
        """The ancestors' keys or values, shape (K, P, D)."""
        assert self.context_KP is not None
        return rows.index_select(0, self.context_KP).view(self.key_heads, -1, rows.shape[1])

    def by_span(self, rows: Tensor) -> Tensor:
        """Anything of the queries, shape (K * B, Q * S, …)."""
        return rows.reshape(self.key_heads * self.spans, -1, rows.shape[-1])

    def by_head(self, rows: Tensor) -> Tensor:
        """Anything of the queries, shape (K, B * Q * S, …)."""
        return rows.reshape(self.key_heads, -1, rows.shape[-1])

    def parts(self, wide_KNW: Tensor) -> tuple[Tensor | None, Tensor]:
        """Scores or weights: of the context, (K, B * Q * S, P), and of the span itself, (K * B, Q * S, S)."""
        p = wide_KNW.shape[-1] - self.longest
        return (wide_KNW[..., :p] if p else None), self.by_span(wide_KNW[..., p:])

    def joined(self, context_KNP: Tensor | None, own: Tensor) -> Tensor:
        """What `parts` takes apart, shape (K, B * Q * S, W)."""
        own = self.by_head(own)
        return own if context_KNP is None else torch.cat([context_KNP, own], -1)

    def put(self, into: Tensor, rows_ND: Tensor) -> None:
        """Write the real rows to where their queries stand."""
        into.index_copy_(0, self.place_N, rows_ND if self.kept_N is None else rows_ND.index_select(0, self.kept_N))


def attend_by_products(
    query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, plans: Sequence[BundlePlan], scale: float
) -> Tensor:
    """The attention output of all bundles, shape (T, H, D); together they hold every token once."""
    out: Tensor = _Products.apply(query_HTD, key_KTD, value_KTD, plans, scale)  # type: ignore[no-untyped-call]
    return out


def _rows(x_HTD: Tensor) -> Tensor:
    """One row for each token and head, (T * H, D); no copy where tokens lie in order."""
    return x_HTD.transpose(0, 1).reshape(-1, x_HTD.shape[-1])


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, plans: Sequence[BundlePlan], scale: float
    ) -> Tensor:
        query, key, value = _rows(query_HTD), _rows(key_KTD), _rows(value_KTD)
        out = torch.empty_like(query)
        kept = []
        for plan in plans:
            q = plan.queries(query, scale)
            own = torch.bmm(plan.by_span(q), plan.own(key).transpose(1, 2)).add_(plan.bias_QSS.to(q.dtype))
            ahead = None
            if plan.context_KP is not None:
                ahead = torch.bmm(plan.by_head(q), plan.context(key).transpose(1, 2))
            weights = torch.softmax(plan.joined(ahead, own), -1)  # sums in float32 inside, whatever the dtype
            ahead, own = plan.parts(weights)
            seen = torch.bmm(own, plan.own(value)).view(q.shape)
            if ahead is not None:
                plan.by_head(seen).baddbmm_(ahead, plan.context(value))
            plan.put(out, seen)
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.plans, ctx.scale = plans, scale
        h, t, d = query_HTD.shape
        return out.view(t, h, d)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *kept = ctx.saved_tensors
        (slope_THD,) = slopes
        slope = slope_THD.reshape(query.shape)
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for plan, weights in zip(ctx.plans, kept, strict=True):
            q = plan.queries(query, ctx.scale)
            g = slope.index_select(0, plan.query_N)
            if plan.filled_N is not None:
                g.index_fill_(0, plan.filled_N, 0.0)
            own_key = plan.own(key)
            ahead, own = plan.parts(weights)
            through = torch.bmm(plan.by_span(g), plan.own(value).transpose(1, 2))
            through_ahead = None
            if ahead is not None:
                through_ahead = torch.bmm(plan.by_head(g), plan.context(value).transpose(1, 2))
            scores = torch.ops.aten._softmax_backward_data(
                plan.joined(through_ahead, through), weights, -1, weights.dtype
            )
            to_ahead, to_own = plan.parts(scores)
            back = torch.bmm(to_own, own_key).view(q.shape)
            _add(to_key, plan.own_KBS, torch.bmm(to_own.transpose(1, 2), plan.by_span(q)))
            _add(to_value, plan.own_KBS, torch.bmm(own.transpose(1, 2), plan.by_span(g)))
            if ahead is not None:
                plan.by_head(back).baddbmm_(to_ahead, plan.context(key))
                _add(to_key, plan.context_KP, torch.bmm(to_ahead.transpose(1, 2), plan.by_head(q)))
                _add(to_value, plan.context_KP, torch.bmm(ahead.transpose(1, 2), plan.by_head(g)))
            plan.put(to_query, back.mul_(ctx.scale))
        t, h = slope_THD.shape[:2]
        shape = (t, len(key) // t, -1)
        return (
            to_query.view(t, h, -1).transpose(0, 1),
            to_key.view(shape).transpose(0, 1),
            to_value.view(shape).transpose(0, 1),
            None,
            None,
        )


def _add(into: Tensor, places: Tensor, rows: Tensor) -> None:
    into.index_add_(0, places, rows.reshape(-1, into.shape[1]))
