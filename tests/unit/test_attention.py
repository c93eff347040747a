"""ForestLayout against one dense masked softmax over all tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from metier.base.errors import ModelError
from metier.models.attention import ForestLayout, Span, hidden_states, use_layouts
from tiny import tiny_config

H, K, D = 4, 2, 3


@st.composite
def forests(draw: st.DrawFn) -> list[Span]:
    spans: list[Span] = []
    start = 0
    for number in range(draw(st.integers(1, 8))):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        length = draw(st.integers(1, 30))
        spans.append(Span(start, length, parent))
        start += length
    return spans


def seen(spans: list[Span]) -> torch.Tensor:
    """True where the row's token sees the column's, by the definition of a forest."""
    total = spans[-1].start + spans[-1].length
    mask_TT = torch.zeros(total, total, dtype=torch.bool)
    for span in spans:
        for row in range(span.start, span.start + span.length):
            mask_TT[row, span.start : row + 1] = True
            parent = span.parent
            while parent is not None:
                up = spans[parent]
                mask_TT[row, up.start : up.start + up.length] = True
                parent = up.parent
    return mask_TT


@pytest.mark.parametrize("fused", [False, True], ids=["products", "fused"])
@given(spans=forests())
def test_a_forest_attends_like_a_dense_mask_forward_and_backward(fused: bool, spans: list[Span]) -> None:
    torch.manual_seed(len(spans))
    mask_TT = seen(spans)
    total = len(mask_TT)
    query = torch.randn(H, total, D, dtype=torch.float64, requires_grad=True)
    key = torch.randn(K, total, D, dtype=torch.float64, requires_grad=True)
    value = torch.randn(K, total, D, dtype=torch.float64, requires_grad=True)
    ours = ForestLayout(spans, heads=H, fused=fused).attend(0, query, key, value, 0.5)
    wide_key, wide_value = (x.repeat_interleave(H // K, 0) for x in (key, value))
    scores = (query @ wide_key.transpose(1, 2) * 0.5).masked_fill(~mask_TT, float("-inf"))
    plain = (torch.softmax(scores, -1) @ wide_value).transpose(0, 1)
    assert torch.allclose(ours, plain, atol=1e-12, rtol=0)
    slope = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad((ours * slope).sum(), (query, key, value)),
        torch.autograd.grad((plain * slope).sum(), (query, key, value)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def test_a_parent_must_come_first() -> None:
    with pytest.raises(ValueError, match="span 0 has parent 1"):
        ForestLayout([Span(0, 2, 1), Span(2, 2)], heads=H)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"sliding_window": 64}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
    ],
)
def test_what_would_be_passed_over_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=f"LlamaForCausalLM with {what} is not supported"):
        use_layouts(LlamaForCausalLM(tiny_config(**given)))


def test_a_bias_of_the_output_layer_is_refused() -> None:
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=False))
    model.lm_head = torch.nn.Linear(32, 97, bias=True)
    with pytest.raises(ModelError, match="a bias of the output layer"):
        use_layouts(model)
    for neutral in ({}, {"logits_scaling": 1.0}, {"sliding_window": None}, {"layer_types": ["full_attention"] * 2}):
        use_layouts(LlamaForCausalLM(tiny_config(**neutral)))


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, GemmaConfig])
def test_every_architecture_computes_packed_what_it_computes_alone(kind: type[PreTrainedConfig]) -> None:
    """Gemma stands for those whose attention modules are their own and only the attention function is ours.

    As closely as norms and rotations allow, which transformers rounds to float32.
    """
    torch.manual_seed(3)
    config = kind(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=None, attn_implementation="eager",
    )  # fmt: skip
    plain = AutoModelForCausalLM.from_config(config).double()
    packed = use_layouts(copy.deepcopy(plain))
    head, tails = [5, 9, 2, 7], ([11, 3, 8], [4, 6])
    alone = [plain.get_decoder()(torch.tensor([[*head, *tail]])).last_hidden_state[0] for tail in tails]
    ids = torch.tensor([*head, *tails[0], *tails[1]])
    places = torch.tensor([0, 1, 2, 3, 4, 5, 6, 4, 5])
    layout = ForestLayout([Span(0, 4), Span(4, 3, 0), Span(7, 2, 0)], heads=4)
    together = hidden_states(packed, ids, places, layout)
    assert torch.allclose(together[:7], alone[0], atol=1e-5, rtol=0)
    assert torch.allclose(together[7:], alone[1][4:], atol=1e-5, rtol=0)
    slope = torch.randn(9, 32, dtype=torch.float64)
    (together * slope).sum().backward()
    ((alone[0] * slope[:7]).sum() + (alone[1][4:] * slope[7:]).sum()).backward()
    wanted = dict(plain.named_parameters())
    for name, p in packed.named_parameters():
        if (slope_of := wanted[name].grad) is not None:
            assert p.grad is not None, name
            assert (p.grad - slope_of).norm() < 1e-5 * slope_of.norm(), name
