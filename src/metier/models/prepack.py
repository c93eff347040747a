"""Linear layers whose weights lie in the order in which the CPU's matrix kernels read them.

oneDNN reorders a weight on every call; for the few rows of a sampling pass that costs as
much as the product. Here the weights are reordered once and used until they change. Layers
that read the same input, as those for queries, keys and values do, become one product; so
do gate and input of a gated unit. Every number is the same sum of the same products. It is a
second copy of the weights, in their own type, for as long as it lives.

Left out: other types than bfloat16, whose kernels gain nothing, and other devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import Linear, Module

__all__ = ["FUSED", "Prepacked"]

FUSED = "metier_fused"  # what a module has while several of its layers are one product
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Prepacked:
    """Inside its block, the bfloat16 linear layers of a model on the CPU compute from packed weights.

    The weights are packed when it is made; make a new one after they have changed. `fused` names the
    modules whose layers may become one product, which then are called as `getattr(module, FUSED)(x)`.
    """

    def __init__(self, model: Module, fused: Sequence[Module] = ()) -> None:
        self._packed: list[tuple[Module, str, Callable[[Tensor], Tensor]]] = []
        if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return
        together: set[int] = set()
        for module in fused:
            for names in _TOGETHER:
                layers = [layer for name in names if _packable(layer := getattr(module, name, None))]
                if len(layers) == len(names) and len({layer.bias is None for layer in layers}) == 1:
                    together |= {id(layer) for layer in layers}
                    self._packed.append((module, FUSED, _pack(layers)))
        for module in model.modules():
            if _packable(module) and id(module) not in together:
                self._packed.append((module, "forward", _pack([module])))

    def __enter__(self) -> None:
        for module, name, packed in self._packed:
            module.__dict__[name] = packed  # past Module.__setattr__, which takes a while, a few hundred times a pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, name, _ in self._packed:
            del module.__dict__[name]


def _packable(module: object) -> TypeGuard[Linear]:
    """Whether it is a plain linear layer of the kind that gains."""
    return type(module) is Linear and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"


def _pack(layers: Sequence[Linear]) -> Callable[[Tensor], Tensor]:
    """One product for all of them, outputs side by side."""
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = None if not biases else biases[0] if len(biases) == 1 else torch.cat(biases)
    return functools.partial(_forward, torch.ops.mkldnn._reorder_linear_weight(weight, None), bias)


def _forward(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
