"""Lean norms and gates against the modules of transformers, and against finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from metier.models.lean import make_lean, rms_norm, rotate, silu_gate
from tiny import tiny_config

CONFIG = tiny_config(hidden_size=16, intermediate_size=24, vocab_size=50)


def _gradients(model: LlamaForCausalLM, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(ids).logits
    logits.float().log_softmax(-1)[..., 7].sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lean_model_gives_the_same_outputs_and_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(CONFIG).to(dtype)
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(torch.randn_like(p) * 0.1)  # norms of other weights than one
    lean = copy.deepcopy(plain)
    make_lean(lean)
    ids = torch.randint(0, 50, (2, 9))
    out, wanted = _gradients(plain, ids)
    lean_out, found = _gradients(lean, ids)
    assert torch.equal(out, lean_out)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        error = (found[name] - grad).norm() / grad.norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2), name


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(1)
    x, gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: rms_norm(a, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(silu_gate, (gate, up))


def _angles(tokens: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = torch.arange(1, tokens + 1)[:, None] * torch.rand(size // 2)
    return angles.cos().repeat(1, 2).to(dtype), angles.sin().repeat(1, 2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_is_that_of_transformers_to_the_last_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    cos, sin = _angles(7, 8, dtype)
    q, k = torch.randn(7, 4, 8, dtype=dtype), torch.randn(7, 2, 8, dtype=dtype)
    wanted_q, wanted_k = apply_rotary_pos_emb(q[None], k[None], cos[None], sin[None], unsqueeze_dim=2)
    assert torch.equal(rotate(q, cos, sin), wanted_q[0])
    assert torch.equal(rotate(k, cos, sin), wanted_k[0])


def test_a_rotation_by_hand_and_its_gradient() -> None:
    # one head of two numbers, a quarter turn: (3, 4) becomes (-4, 3)
    quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert rotate(torch.tensor([[[3.0, 4.0]]]), *quarter).tolist() == [[[-4.0, 3.0]]]
    cos, sin = _angles(3, 6, torch.float64)
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: rotate(a, cos, sin), (x,))


def test_a_norm_keeps_nothing_wide() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(7, 16, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rms_norm(x, torch.ones(16, dtype=torch.bfloat16, requires_grad=True), 1e-5)
    assert all(t.dtype == torch.bfloat16 or t.numel() == 7 for t in kept)
