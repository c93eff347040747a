"""One attention function for every model: packed tokens, no padding, shared prefixes.

All tokens of a batch lie in one row of length T. A *layout* says which of them see each
other; it reaches the attention function as a keyword of the model's forward pass, which
transformers hands down to every layer. So the same few lines serve every architecture
that transformers lets us register an attention function for; attention modules of the Llama
kind are computed here as a whole, which saves passes over queries and keys.

`ForestLayout` is the layout without memory, used in training and scoring: spans of
tokens form a forest, and a token sees its own span up to itself and all of its ancestors.
A system prompt that many conversations share is one root, computed once, with exact
gradients. `metier.models.kvcache` has the layout with memory, used in sampling.

On a GPU a bundle of spans is one call of torch's fused attention, which never holds the
scores. On a CPU matrix products and softmax are used (`metier.models.products`): there the
fused kernel's backward pass takes three times as long in bf16 for spans of this size.

Shape legend: T tokens, H query heads, K key heads, Q = H / K queries per key head,
D head size, B spans of a bundle, S longest span of it, P tokens of its ancestors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from metier.base.errors import ModelError
from metier.models.lean import GATED, make_lean, rotate
from metier.models.prepack import FUSED
from metier.models.products import BundlePlan, attend_by_products

__all__ = ["ATTENTION", "ForestLayout", "Layout", "Span", "fusable", "hidden_states", "use_layouts"]

ATTENTION = "metier"
_CALL = "call the model through metier.models.attention.hidden_states"
_PADDING = 1.6  # spans of one bundle differ in length by at most this factor
_SCORES = 1 << 24  # attention scores of one bundle, at most (per layer)
_LEAST = 16  # shorter spans count as this long: each reads all of its ancestors' keys and values


class Layout(Protocol):
    """Says which tokens see each other, and attends accordingly."""

    def attend(self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
        """The attention output, shape (T, H, D)."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """`length` tokens in a row from `start`; `parent` is the index of an earlier span."""

    start: int
    length: int
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class _Bundle:
    """Spans of similar length with one parent, attended together."""

    context_P: Tensor | None  # token indices of the ancestors, or None for roots
    tokens_BS: Tensor  # token indices, short spans padded with their last token
    keep_T: Tensor  # flat indices into (B, S) that are real tokens
    bias_SS: Tensor  # -inf where a query must not see a key of its own span, else 0


class ForestLayout:
    """Spans that see themselves causally and their ancestors wholly.

    `fused` says whether torch's fused attention is used; on a GPU unless told otherwise.
    Raises `ValueError` when a parent does not come before its child.
    """

    def __init__(
        self, spans: Sequence[Span], *, heads: int, device: torch.device | str = "cpu", fused: bool | None = None
    ) -> None:
        self._fused = torch.device(device).type == "cuda" if fused is None else fused
        self._plans: dict[int, list[BundlePlan]] = {}  # by the number of key heads
        self._heads = heads
        chains: list[list[int]] = []
        by_parent: dict[int | None, list[int]] = {}
        for number, span in enumerate(spans):
            if span.parent is not None and not 0 <= span.parent < number:
                raise ValueError(f"span {number} has parent {span.parent}, which does not come before it")
            chains.append([] if span.parent is None else [*chains[span.parent], span.parent])
            by_parent.setdefault(span.parent, []).append(number)
        self.bundles: list[_Bundle] = []
        order: list[Tensor] = []
        for children in by_parent.values():
            context = [t for s in chains[children[0]] for t in range(spans[s].start, spans[s].start + spans[s].length)]
            ranked = sorted(children, key=lambda c: spans[c].length)
            for part in _split(ranked, spans, heads, len(context)):
                bundle = _bundle([spans[c] for c in part], context, device)
                self.bundles.append(bundle)
                order.append(bundle.tokens_BS.reshape(-1)[bundle.keep_T])
        self._back_T = torch.argsort(torch.cat(order))

    def attend(self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
        """See `Layout.attend`."""
        if not self._fused:
            return attend_by_products(query_HTD, key_KTD, value_KTD, self._plan(key_KTD.shape[0]), scale)
        pieces = [_fused(b, query_HTD, key_KTD, value_KTD, scale) for b in self.bundles]
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return joined.index_select(0, self._back_T)

    def _plan(self, key_heads: int) -> list[BundlePlan]:
        if key_heads not in self._plans:
            self._plans[key_heads] = [
                BundlePlan.of(b.tokens_BS, b.keep_T, b.context_P, b.bias_SS, self._heads, key_heads)
                for b in self.bundles
            ]
        return self._plans[key_heads]


def _fused(bundle: _Bundle, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
    """Attention of one bundle by torch's fused kernel: keys are the ancestors' and then the span's own.

    Its tokens in order, shape (tokens, H, D).
    """
    b, s = bundle.tokens_BS.shape
    p = 0 if bundle.context_P is None else len(bundle.context_P)

    def gathered(x_HTD: Tensor, *, ancestors: bool) -> Tensor:
        h, _, d = x_HTD.shape
        own = x_HTD.index_select(1, bundle.tokens_BS.reshape(-1)).view(h, b, s, d).transpose(0, 1)  # B H S D
        if not ancestors or bundle.context_P is None:
            return own
        return torch.cat([x_HTD.index_select(1, bundle.context_P).expand(b, h, p, d), own], 2)

    out = scaled_dot_product_attention(
        gathered(query_HTD, ancestors=False),
        gathered(key_KTD, ancestors=True),
        gathered(value_KTD, ancestors=True),
        attn_mask=causal_lower_right(s, p + s),
        scale=scale,
        enable_gqa=True,
    )
    rows = out.transpose(1, 2).reshape(b * s, *out.shape[1::2])
    return rows.index_select(0, bundle.keep_T)


def _split(ranked: list[int], spans: Sequence[Span], heads: int, context: int) -> list[list[int]]:
    """Cut spans, sorted by length, into parts that waste little padding and little memory."""
    parts: list[list[int]] = []
    for number in ranked:
        length = spans[number].length
        if parts:
            first = spans[parts[-1][0]].length
            scores = (len(parts[-1]) + 1) * heads * max(length, _LEAST) * (length + context)
            if length <= max(first * _PADDING, first + 8) and scores <= _SCORES:
                parts[-1].append(number)
                continue
        parts.append([number])
    return parts


def _bundle(spans: list[Span], context: list[int], device: torch.device | str) -> _Bundle:
    longest = max(s.length for s in spans)
    tokens = torch.stack([torch.arange(longest).clamp(max=s.length - 1) + s.start for s in spans])
    keep = torch.cat([torch.arange(s.length) + row * longest for row, s in enumerate(spans)])
    bias = torch.full((longest, longest), float("-inf")).triu(1)
    return _Bundle(
        context_P=torch.tensor(context, device=device) if context else None,
        tokens_BS=tokens.to(device),
        keep_T=keep.to(device),
        bias_SS=bias.to(device),
    )


# Attention modules that project, rotate, attend and project back; Qwen3's norm queries and keys between.
_LLAMA_LIKE = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")
_LLAMA_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
# Settings that change what a model computes outside of its layers' weights, with the value that changes nothing.
_PASSED_OVER = {
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
}


def use_layouts(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model attend by layout, and leanly, from now on; its weights stay the same.

    Call it through `hidden_states` from now on: without a layout its forward pass fails.
    Raises `ModelError` where the model computes something that would be passed over.
    """
    _check(model)
    make_lean(model)
    AttentionInterface.register(ATTENTION, _attention)
    model.config._attn_implementation = ATTENTION
    for module in model.modules():
        if type(module).__name__ in _LLAMA_LIKE:
            module.forward = functools.partial(_llama_like, module)
        elif type(module).__name__ in _LLAMA_LAYERS and not isinstance(module.forward, functools.partial):
            module.forward = functools.partial(_llama_layer, module)
    return model


def fusable(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules that compute from one product where they are given it; see `metier.models.prepack`."""
    units = (m for m in model.modules() if isinstance(m.forward, functools.partial))
    return [m for m in units if type(m).__name__ in (*_LLAMA_LIKE, *GATED)]


def _check(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    said = [name for name, neutral in _PASSED_OVER.items() if getattr(config, name, None) not in (None, neutral)]
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if windows or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)):
        said.append("sliding_window")
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        said.append("a bias of the output layer")
    if hasattr(head, "base_layer"):
        said.append("an adapter on the output layer")
    if said:
        raise ModelError(
            f"{type(model).__name__} with {', '.join(said)} is not supported: packed training and sampling would pass "
            "over that; take a model or an adapter without"
        )


def hidden_states(model: PreTrainedModel, input_ids_T: Tensor, position_ids_T: Tensor, layout: Layout) -> Tensor:
    """The last hidden states of packed tokens, shape (T, hidden size).

    The model must have gone through `use_layouts`. No vocabulary projection is made here.
    """
    body = model.get_decoder()
    out = body(input_ids=input_ids_T[None], position_ids=position_ids_T[None], use_cache=False, metier_layout=layout)
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def _llama_layer(layer: Any, hidden_states: Tensor, **given: Any) -> Tensor:
    """What a layer of the Llama kind does, without handing on what its attention does not read."""
    x_1TE = hidden_states + layer.self_attn.forward(layer.input_layernorm.forward(hidden_states), **given)[0]
    return x_1TE + layer.mlp.forward(layer.post_attention_layernorm.forward(x_1TE))  # type: ignore[no-any-return]


def _llama_like(
    module: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    metier_layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What an attention module of the Llama kind does with one packed row, to the last bit."""
    assert metier_layout is not None, _CALL
    x_TE, (cos_TD, sin_TD) = hidden_states[0], (each[0] for each in position_embeddings)
    query_THD, key_TKD, value_TKD = _projected(module, x_TE, cos_TD, sin_TD)
    query_HTD, key_KTD = query_THD.transpose(0, 1), key_TKD.transpose(0, 1)
    out_THD = metier_layout.attend(module.layer_idx, query_HTD, key_KTD, value_TKD.transpose(0, 1), module.scaling)
    return module.o_proj(out_THD.reshape(len(x_TE), -1))[None], None


def _projected(module: Any, x_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, and values, each (T, heads, D)."""
    shape, normed = (len(x_TE), -1, module.head_dim), hasattr(module, "q_norm")
    together = getattr(module, FUSED, None)
    if together is None:
        query_THD, key_TKD, value_TKD = (p(x_TE).view(shape) for p in (module.q_proj, module.k_proj, module.v_proj))
    else:
        all_TND = together(x_TE).view(shape)
        queries = module.q_proj.out_features // module.head_dim
        keys = (all_TND.shape[1] - queries) // 2
        query_THD, key_TKD, value_TKD = all_TND.split([queries, keys, keys], 1)
        if not normed:
            query_THD, key_TKD = rotate(all_TND[:, : queries + keys], cos_TD, sin_TD).split([queries, keys], 1)
            return query_THD, key_TKD, value_TKD
    if normed:
        query_THD, key_TKD = module.q_norm(query_THD), module.k_norm(key_TKD)
    return rotate(query_THD, cos_TD, sin_TD), rotate(key_TKD, cos_TD, sin_TD), value_TKD


def _attention(
    module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    metier_layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    assert metier_layout is not None, _CALL
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else scaling
    out = metier_layout.attend(module.layer_idx, query_1HTD[0], key_1KTD[0], value_1KTD[0], scale)  # type: ignore[arg-type]
    return out[None], None
