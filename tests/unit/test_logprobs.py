"""token_logprobs against a plain log_softmax: values, entropy, gradients, chunks."""

from __future__ import annotations

import pytest
import torch

from metier.models.logprobs import token_logprobs


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden_ME = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    head_VE = torch.randn(11, 5, dtype=dtype, requires_grad=True)
    return hidden_ME, head_VE, torch.randint(0, 11, (7,))


@pytest.mark.parametrize("kept", [0, 1 << 27], ids=["computed again", "kept"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 3, 7, 256])
def test_values_and_gradients_are_those_of_log_softmax(
    chunk: int, temperature: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metier.models.logprobs._KEPT", kept)
    hidden, head, targets = problem()
    slope = torch.randn(7, dtype=torch.float64)
    logprobs, entropy = token_logprobs(hidden, head, targets, temperature=temperature, chunk=chunk)
    plain = torch.log_softmax(hidden @ head.T / temperature, -1)
    assert torch.allclose(logprobs, plain[torch.arange(7), targets], atol=1e-12, rtol=0)
    assert torch.allclose(entropy, -(plain.exp() * plain).sum(-1), atol=1e-12, rtol=0)
    assert not entropy.requires_grad
    ours = torch.autograd.grad((logprobs * slope).sum(), (hidden, head))
    theirs = torch.autograd.grad((plain[torch.arange(7), targets] * slope).sum(), (hidden, head))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def test_the_backward_pass_is_the_derivative_of_the_forward_pass() -> None:
    hidden, head, targets = problem()
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets, chunk=3)[0], (hidden, head))


def test_narrow_weights_give_float32_log_probabilities_and_narrow_gradients() -> None:
    hidden, head, targets = problem(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, head, targets)
    assert logprobs.dtype == entropy.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert head.grad is not None and head.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [0, 1 << 27], ids=["computed again", "kept"])
def test_a_target_that_is_nearly_sure_keeps_its_slope(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """p = 0.9991 is 1.0 in bfloat16; 1 - p must not be rounded to 0 with it."""
    monkeypatch.setattr("metier.models.logprobs._KEPT", kept)
    hidden = torch.tensor([[1.0]], dtype=torch.bfloat16, requires_grad=True)
    head = torch.tensor([[7.0], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, head, torch.tensor([0]))
    logprobs.sum().backward()
    assert hidden.grad is not None and head.grad is not None
    sure = 1 / (1 + torch.exp(torch.tensor(-7.0)))  # 0.99909
    assert float(hidden.grad) == pytest.approx(7 * float(1 - sure), rel=0.01)
    assert head.grad[:, 0].tolist() == pytest.approx([float(1 - sure), -float(1 - sure)], rel=0.01)
