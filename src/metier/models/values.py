"""A value head: one number for each position, what an episode is still worth from there on.

It sits on the language model for as long as PPO trains it, and is no part of what is
published. Source: PPO arXiv:1707.06347, with a shared body.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["add_value_head", "drop_value_head", "value_of"]


def add_value_head(model: PreTrainedModel) -> None:
    """Give the model a linear head of one output. It starts at zero, so it expects nothing."""
    body = next(model.parameters())
    head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1, bias=True)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    model.value_head = head.to(body.device, model.dtype)


def drop_value_head(model: PreTrainedModel) -> None:
    """Take the head off again, where there is one."""
    if hasattr(model, "value_head"):
        del model.value_head


def value_of(model: PreTrainedModel, hidden_ME: Tensor) -> Tensor:
    """The head's output at each hidden state, shape (M,), float32 (or wider)."""
    head = model.value_head
    wide = torch.float64 if hidden_ME.dtype == torch.float64 else torch.float32
    return (hidden_ME.to(wide) @ head.weight.to(wide).T)[:, 0] + head.bias.to(wide)  # type: ignore[union-attr, operator]
