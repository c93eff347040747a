"""How much of a machine's matrix rate a training step uses: model FLOPs utilisation.

Counted are the products that the loss needs and nothing else, so work that is done twice
(checkpointed layers) or in vain (padding) lowers the figure. With T packed tokens, W the
numbers in the linear layers, M distinct labels, V words, E hidden size, H heads of size D in L
layers and A pairs of a token and one that it sees:

    FLOPs = f 2 W T + f 2 V E M + 3 (4 L H D A)

f is 3 where a weight learns (forward, and the gradients of inputs and of weights), 2 where
it is frozen below an adapter, each layer by itself. Source for the count: PaLM, arXiv:2204.02311, appendix B.
"""

from __future__ import annotations

import functools
import time

import torch
from torch.nn import Linear
from transformers import PreTrainedModel

__all__ = ["peak_flops", "step_flops"]

# Dense bf16 rates in FLOP/s, as the makers' data sheets give them.
_KNOWN = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12}
_SIDE = 2048


def step_flops(model: PreTrainedModel, *, tokens: int, labels: int, pairs: int) -> float:
    """FLOPs of one step, see above; a score head counts as a vocabulary of its size."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    body = sum(_cost(m) for m in model.get_decoder().modules() if isinstance(m, Linear))
    top = 3 * config.hidden_size if head is None else _cost(head)
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * size * pairs
    return float(2 * (body * tokens + top * labels) + 3 * attention)


def _cost(linear: Linear) -> int:
    """Numbers in the weight times f."""
    return linear.weight.numel() * (3 if linear.weight.requires_grad else 2)


@functools.cache
def peak_flops(device: str, dtype: torch.dtype) -> float:
    """The machine's matrix rate in FLOP/s: a known GPU's bf16 rate, else the best of a few products measured here."""
    if device.startswith("cuda") and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, rate in _KNOWN.items():
            if known in name:
                return rate
    a = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * _SIDE**3 / min(seconds)
