"""Log-probabilities of chosen tokens, without ever holding all logits.

Only positions that carry a label go through the vocabulary projection, in chunks. What a
micro-batch's backward pass needs of them is kept, in the model's own type, where it is small;
else each chunk's logits are computed again. At 49,152 words the logits of a whole batch would
outweigh the rest of the model's activations.

Shape legend: M labelled positions, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["CHUNK", "token_logprobs"]

CHUNK = 256  # positions per projection
_KEPT = 1 << 27  # bytes of probabilities that may be kept for a backward pass


def token_logprobs(
    hidden_ME: Tensor, head_VE: Tensor, targets_M: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """ln p(target) and the entropy of the whole distribution at `temperature`, at each labelled position.

    Returns `(logprobs_M, entropy_M)` in nats, float32 (float64 for float64 input). Gradients
    flow through the log-probabilities to `hidden_ME` and `head_VE`; the entropy is a
    diagnostic and carries none. With z = h W^T / temperature and p = softmax(z):
    d ln p_y / d z = onehot(y) - p.
    """
    logprobs, entropy = _TokenLogprobs.apply(hidden_ME, head_VE, targets_M, temperature, chunk)  # type: ignore[no-untyped-call]
    return logprobs, entropy


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    logits = hidden @ head.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if temperature == 1.0 else wide / temperature


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers, kept = [], [], [], []
        small = hidden.shape[0] * head.shape[0] * hidden.element_size() <= _KEPT
        for start in range(0, hidden.shape[0], chunk):
            logits = _logits(hidden[start : start + chunk], head, temperature)  # in place from here on: it is large
            top = logits.amax(-1)
            logits.sub_(top[:, None])
            weights = logits.exp()
            total = weights.sum(-1)
            width = total.log()
            logprobs.append(logits.gather(1, targets[start : start + chunk, None])[:, 0] - width)
            spread = torch.bmm(weights[:, None], logits[:, :, None])[:, 0, 0]
            entropies.append(width - spread / total)
            normalisers.append(top + width)
            if small and any(ctx.needs_input_grad):
                kept.append(weights.div_(total[:, None]).to(hidden.dtype))
        chosen, entropy = torch.cat(logprobs), torch.cat(entropies)
        ctx.save_for_backward(hidden, head, targets, torch.cat(normalisers), chosen, *kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_M = grads[0] / ctx.temperature
        hidden, head, targets, normalisers, logprobs, *kept = ctx.saved_tensors
        slope_M = grad_M * -torch.expm1(logprobs)  # at the target: 1 - p, which must not be rounded before
        head_learns = ctx.needs_input_grad[1]  # not below an adapter
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros(head.shape if head_learns else (0,), dtype=normalisers.dtype, device=head.device)
        for number, start in enumerate(range(0, hidden.shape[0], ctx.chunk)):
            part = slice(start, start + ctx.chunk)
            if kept:
                slope = torch.mul(kept[number], -grad_M[part, None], out=torch.empty_like(kept[number]))
            else:
                slope = _logits(hidden[part], head, ctx.temperature).sub_(normalisers[part, None]).exp_()
                slope = slope.mul_(-grad_M[part, None]).to(hidden.dtype)
            slope.scatter_(1, targets[part, None], slope_M[part, None].to(hidden.dtype))
            grad_hidden[part] = slope @ head
            if head_learns:
                grad_head += slope.T @ hidden[part]
        return grad_hidden, grad_head.to(head.dtype) if head_learns else None, None, None, None
