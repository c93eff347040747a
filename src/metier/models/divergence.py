"""How far a student's word distribution is from a teacher's, without ever holding all logits.

As in `metier.models.logprobs`, only labelled positions go through the vocabulary
projections, in chunks, and the backward pass computes each chunk again.

Shape legend: M labelled positions, E and F hidden sizes of student and teacher, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["CHUNK", "token_divergence"]

CHUNK = 128  # positions per projection; two distributions are held at once


def token_divergence(
    hidden_ME: Tensor,
    head_VE: Tensor,
    teacher_hidden_MF: Tensor,
    teacher_head_VF: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Tensor:
    """The generalised Jensen-Shannon divergence at each labelled position, in nats, float32 (or wider).

    D = beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, with p the
    teacher's and q the student's distribution, both at `temperature`. The ends are by
    convention (and up to a factor as limits) beta = 0: forward KL(p || q); beta = 1:
    reverse KL(q || p). Gradients flow to the student only. Source: generalised knowledge
    distillation, arXiv:2306.13649.
    """
    out: Tensor = _TokenDivergence.apply(  # type: ignore[no-untyped-call]
        hidden_ME, head_VE, teacher_hidden_MF, teacher_head_VF, beta, temperature, chunk
    )
    return out


def _logs(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    logits = hidden @ head.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide / temperature, -1)


def _divergence(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """D from log-probabilities, shape (M,)."""
    if beta == 0.0:
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if beta == 1.0:
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    forward = (log_p.exp() * (log_p - log_m)).sum(-1)
    backward = (log_q.exp() * (log_q - log_m)).sum(-1)
    return beta * forward + (1 - beta) * backward


class _TokenDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        beta: float,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden, head, teacher_hidden, teacher_head)
        ctx.settings = (beta, temperature, chunk)
        parts = []
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            log_q = _logs(hidden[part], head, temperature)
            parts.append(_divergence(log_q, _logs(teacher_hidden[part], teacher_head, temperature), beta))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, teacher_hidden, teacher_head = ctx.saved_tensors
        beta, temperature, chunk = ctx.settings
        grad_hidden = torch.empty_like(hidden)
        head_learns = ctx.needs_input_grad[1]  # not below an adapter
        grad_head = torch.zeros(head.shape if head_learns else (0,), dtype=grads[0].dtype, device=head.device)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            log_p = _logs(teacher_hidden[part], teacher_head, temperature)
            with torch.enable_grad():
                logits = hidden[part] @ head.T
                wide = (logits if logits.dtype == torch.float64 else logits.float()).detach().requires_grad_()
                found = _divergence(torch.log_softmax(wide / temperature, -1), log_p, beta)
                (slope,) = torch.autograd.grad(found, wide, grads[0][part])
            slope = slope.to(hidden.dtype)
            grad_hidden[part] = slope @ head
            if head_learns:
                grad_head += slope.T @ hidden[part]
        return grad_hidden, grad_head.to(head.dtype) if head_learns else None, None, None, None, None, None
