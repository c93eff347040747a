"""Linear layers whose weights lie in the order in which the CPU's matrix kernels read them.

oneDNN reorders a weight on every call; for the few rows of a sampling pass that costs as
much as the product. Here the weights are reordered once and used until they change. The
results are the same to the last bit. It is a second copy of the weights, in their own
type, for as long as it lives.

Left out: other types than bfloat16, whose kernels gain nothing, and other devices.
"""

from __future__ import annotations

import functools
from types import TracebackType

import torch
from torch import Tensor
from torch.nn import Linear, Module

__all__ = ["Prepacked"]


class Prepacked:
    """Inside its block, the bfloat16 linear layers of a model on the CPU compute from packed weights.

    The weights are packed when it is made; make a new one after they have changed.
    """

    def __init__(self, model: Module) -> None:
        self._packed: list[tuple[Linear, Tensor]] = []
        if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return
        for module in model.modules():
            if type(module) is Linear and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu":
                weight = module.weight.detach()
                self._packed.append((module, torch.ops.mkldnn._reorder_linear_weight(weight, None)))

    def __enter__(self) -> None:
        for module, weight in self._packed:
            module.forward = functools.partial(_forward, weight, module.bias)  # type: ignore[method-assign]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, _ in self._packed:
            del module.forward


def _forward(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
