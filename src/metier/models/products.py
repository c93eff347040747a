"""Attention of a forest by matrix products, with its backward pass written out.

Left to autograd, most of the time of attention over short spans went into copies: of
scattered rows, of slices and their gradients. Here each bundle gathers its rows once, the
keys of every span behind those of its ancestors, so that scores, weights and gradients are
dense as they come, and keeps nothing but its attention weights for the backward pass.

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
    key_KBW: Tensor  # rows of keys and values, flat: the ancestors' and then the span's own
    own_KBS: Tensor  # those of the spans alone, flat
    ahead_KP: Tensor  # those of the ancestors alone, flat; none for roots
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
        own_KBS = tokens_BS[None] * key_heads + k_K[:, None, None]
        ahead_P = torch.empty(0, dtype=torch.long, device=device) if context_P is None else context_P
        ahead_KP = ahead_P * key_heads + k_K[:, None]
        return cls(
            key_heads=key_heads,
            spans=b,
            longest=s,
            query_N=query_N,
            kept_N=kept,
            place_N=query_N if kept is None else query_N[kept],
            filled_N=filled,
            key_KBW=torch.cat([ahead_KP[:, None].expand(-1, b, -1), own_KBS], -1).reshape(-1),
            own_KBS=own_KBS.reshape(-1),
            ahead_KP=ahead_KP.reshape(-1),
            bias_QSS=bias_SS.repeat(each, 1),
        )

    def queries(self, rows: Tensor) -> Tensor:
        """Rows of the bundle's queries, or of anything that is theirs, shape (K * B, Q * S, D)."""
        return rows.index_select(0, self.query_N).view(self.key_heads * self.spans, -1, rows.shape[1])

    def keys(self, rows: Tensor) -> Tensor:
        """Keys or values that each span sees, shape (K * B, W, D)."""
        return rows.index_select(0, self.key_KBW).view(self.key_heads * self.spans, -1, rows.shape[1])

    def put(self, into: Tensor, queries: Tensor) -> None:
        """Write what `queries` has taken, computed upon, back to its rows; short spans' fill is dropped."""
        rows_ND = queries.view(-1, into.shape[1])
        into.index_copy_(0, self.place_N, rows_ND if self.kept_N is None else rows_ND.index_select(0, self.kept_N))

    def add(self, into: Tensor, keys: Tensor) -> None:
        """Add slopes of what `keys` has taken to its rows; spans that share ancestors are summed first."""
        wide_KBWD = keys.view(self.key_heads, self.spans, -1, into.shape[1])
        ahead = wide_KBWD.shape[2] - self.longest
        into.index_add_(0, self.own_KBS, wide_KBWD[:, :, ahead:].reshape(-1, into.shape[1]))
        if ahead:
            into.index_add_(0, self.ahead_KP, wide_KBWD[:, :, :ahead].sum(1).view(-1, into.shape[1]))


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
            scores = torch.bmm(plan.queries(query).mul_(scale), plan.keys(key).transpose(1, 2))
            scores[..., -plan.longest :].add_(plan.bias_QSS.to(scores.dtype))
            weights = torch.softmax(scores, -1)  # sums in float32 inside, whatever the dtype
            plan.put(out, torch.bmm(weights, plan.keys(value)))
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
            q, keys, g = plan.queries(query).mul_(ctx.scale), plan.keys(key), plan.queries(slope)
            if plan.filled_N is not None:
                g.view(-1, g.shape[-1]).index_fill_(0, plan.filled_N, 0.0)
            plan.add(to_value, torch.bmm(weights.transpose(1, 2), g))
            through = torch.bmm(g, plan.keys(value).transpose(1, 2))
            to_scores = torch.ops.aten._softmax_backward_data(through, weights, -1, weights.dtype)
            plan.add(to_key, torch.bmm(to_scores.transpose(1, 2), q))
            plan.put(to_query, torch.bmm(to_scores, keys).mul_(ctx.scale))
        t, h = slope_THD.shape[:2]
        shape = (t, len(key) // t, -1)
        return (
            to_query.view(t, h, -1).transpose(0, 1),
            to_key.view(shape).transpose(0, 1),
            to_value.view(shape).transpose(0, 1),
            None,
            None,
        )
