"""The same norms, gates and rotations with less memory and fewer passes: what can be computed again is not kept.

As transformers writes them, a norm keeps two float32 copies of its input for the backward
pass, a gated unit keeps its activation beside gate and product, and rotating queries and
keys by position takes twelve passes there and back. Here a norm keeps its input, which the
residual stream holds anyway, and one number a token; a rotation keeps nothing. Forward
results are the same to the last bit; gradients are those of the same formulas, of norms
summed in float32. `checkpoint_layers` goes further: each layer keeps its input only and is
computed twice.

Left out: norms of other formulas (Gemma's 1 + weight), other activations than SiLU. Such
modules are left as they are.

Shape legend: T tokens, E hidden size, F inner size of the gated unit, H heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from metier.models import native
from metier.models.prepack import FUSED

__all__ = ["GATED", "checkpoint_layers", "make_lean", "rms_norm", "rotate", "silu_gate"]

# Norms that compute weight * (x / rms(x)), and units that compute down(silu(gate(x)) * up(x)).
_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")


def make_lean(model: Module) -> None:
    """Let the norms and gated units of known formula compute as below. Weights stay as they are."""
    for module in model.modules():
        kind = type(module).__name__
        if kind in _NORMS:
            module.forward = functools.partial(_norm_forward, module)
        elif kind in GATED and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
            module.forward = functools.partial(_gated_forward, module)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let every layer of the decoder be computed again in the backward pass: a third more work, far less memory."""
    for layer in model.get_decoder().layers:
        if getattr(layer.forward, "func", None) is not _checkpointed:
            layer.forward = functools.partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps), the mean in float32 (float64 for float64 input); arXiv:1910.07467."""
    if not torch.is_grad_enabled():
        kernels = native.serving(x_TE, weight_E)
        if kernels is not None and x_TE.is_contiguous():
            return kernels.norm(x_TE, weight_E, eps)
        return _normed(x_TE, weight_E, eps)[0]
    out: Tensor = _RmsNorm.apply(x_TE, weight_E, eps)  # type: ignore[no-untyped-call]
    return out


def silu_gate(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up, the gated unit of arXiv:2002.05202 with SiLU."""
    if not torch.is_grad_enabled():
        kernels = native.serving(gate_TF)
        if kernels is not None and gate_TF.stride() == up_TF.stride() and gate_TF.stride(-1) == 1:
            return kernels.gate(gate_TF, up_TF)
        return silu(gate_TF).mul_(up_TF)
    out: Tensor = _SiluGate.apply(gate_TF, up_TF)  # type: ignore[no-untyped-call]
    return out


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary position embedding, first half of a head against second: arXiv:2104.09864.

    x1 cos - x2 sin and x2 cos + x1 sin; both halves of `cos_TD`, and of `sin_TD`, are alike.
    """
    if not torch.is_grad_enabled():
        kernels = native.serving(x_THD, cos_TD)
        if kernels is not None and x_THD.stride()[1:] == (x_THD.shape[2], 1) and cos_TD.is_contiguous():
            return kernels.rotate(x_THD, cos_TD, sin_TD)
        return _rotated(x_THD, cos_TD, sin_TD)
    out: Tensor = _Rotate.apply(x_THD, cos_TD, sin_TD)  # type: ignore[no-untyped-call]
    return out


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


def _gated_forward(module: Any, x: Tensor) -> Tensor:
    together = getattr(module, FUSED, None)
    gate, up = (module.gate_proj(x), module.up_proj(x)) if together is None else together(x).chunk(2, -1)
    out: Tensor = module.down_proj(silu_gate(gate, up))
    return out


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and one over the root mean square."""
    wide = _wide(x)
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * inverse).to(x.dtype), inverse


def _rotated(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    half = x_THD.shape[-1] // 2
    out, sin_T1D = x_THD * cos_TD[:, None], sin_TD[:, None, :half]
    out[..., :half] -= x_THD[..., half:] * sin_T1D
    out[..., half:] += x_THD[..., :half] * sin_T1D
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = _wide(x) * inverse
        slope = _wide(grads[0])
        both = slope * normed
        grad_weight = both.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        mean = both @ _wide(weight)[:, None] / weight.numel()  # of normed times the weighted slope
        grad_x = (slope * weight).addcmul_(normed, mean, value=-1.0).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight, None


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        slope = grads[0]
        return torch.ops.aten.silu_backward(slope * up, gate), slope * silu(gate)
