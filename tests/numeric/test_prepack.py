"""Packed linear layers give the numbers of the plain ones, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Linear, Sequential

from metier.models.prepack import Prepacked

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU has no bfloat16 kernels; nothing is packed",
)


def built(dtype: torch.dtype) -> Sequential:
    torch.manual_seed(0)
    return Sequential(Linear(96, 200, bias=False), Linear(200, 64)).to(dtype)


@pytest.mark.parametrize("rows", [1, 8, 64, 131])
@torch.inference_mode()
def test_results_are_the_same_to_the_last_bit(rows: int) -> None:
    model, x = built(torch.bfloat16), torch.randn(1, rows, 96).bfloat16()
    plain = model(x)
    with Prepacked(model):
        assert "forward" in vars(model[0])
        assert torch.equal(model(x), plain)
    assert "forward" not in vars(model[0])
    assert torch.equal(model(x), plain)


@torch.inference_mode()
def test_new_weights_need_a_new_packing() -> None:
    model, x = built(torch.bfloat16), torch.randn(4, 96).bfloat16()
    old, before = Prepacked(model), model(x)
    model[0].weight.mul_(2)
    with old:
        assert torch.equal(model(x), before)
    with Prepacked(model):
        assert not torch.equal(model(x), before)


def test_other_types_are_left_alone() -> None:
    model = built(torch.float32)
    with Prepacked(model):
        assert "forward" not in vars(model[0])


def test_an_error_inside_leaves_no_trace() -> None:
    model = built(torch.bfloat16)
    with pytest.raises(KeyError), Prepacked(model):
        raise KeyError
    assert "forward" not in vars(model[0])
