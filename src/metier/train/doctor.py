"""Each fast path against the slow, obvious one, on small shapes, on the machine at hand.

A wheel of torch, a driver or a CPU can get a kernel wrong; this tells before a long
training does. Everything runs on a tiny random model in float32 unless a check says
otherwise, and takes seconds.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from metier.models.logprobs import token_logprobs
from metier.models.native import HEAD_SIZES, kernels
from metier.records.types import Sampling
from metier.rollout.engine import Drawn, Request, converse
from metier.rollout.torch_engine import TorchEngine
from metier.train.loop import Trainer, TrainSettings
from metier.train.objectives.sft import Sft
from metier.train.packing import Example
from metier.train.score import score

__all__ = ["Check", "examine"]

VOCABULARY = 97
TOLERANCE = 1e-4  # norm-wise, float32


@dataclass(frozen=True, slots=True)
class Check:
    """How one fast path compared with the slow one."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit."""
        return self.error <= self.limit


def examine(*, device: str = "cpu") -> list[Check]:
    """Run every check on `device`."""
    checks: list[Callable[[str], Check]] = [_logprobs, _packing, _sharing, _sampling, _bfloat16, _kernels, _checkpoint]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [check(device) for check in checks]


def _model(device: str, dtype: torch.dtype = torch.float32, *, head_size: int = 16) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=64,
        head_dim=head_size,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    moved: LlamaForCausalLM = _moved(model, device, dtype)
    return moved


def _examples() -> list[Example]:
    draw = random.Random(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(n))

    system, made = words(7), []
    for _ in range(2):
        prompt = system + words(5)
        for n in (4, 9, 6):
            made.append(Example(prompt + words(n), (0,) * 12 + (1,) * n))
    return made


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def _plain(model: LlamaForCausalLM, example: Example) -> torch.Tensor:
    """ln p of the labels by transformers' own forward pass and a full softmax."""
    ids = torch.tensor(example.token_ids, device=model.device)
    logprobs = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
    chosen = logprobs.gather(1, ids[1:, None])[:, 0]
    labelled: torch.Tensor = chosen[torch.tensor(example.loss_mask[1:], device=model.device).bool()]
    return labelled


def _gradient(model: LlamaForCausalLM) -> torch.Tensor:
    return torch.cat([p.grad.float().reshape(-1) for p in model.parameters() if p.grad is not None])


def _logprobs(device: str) -> Check:
    hidden, head = torch.randn(50, 16, device=device), torch.randn(VOCABULARY, 16, device=device)
    targets = torch.randint(0, VOCABULARY, (50,), device=device)
    found, _ = token_logprobs(hidden, head, targets, chunk=16)
    wanted = (hidden @ head.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return Check("log-probabilities in chunks against a full softmax", _error(found, wanted), TOLERANCE)


def _packing(device: str) -> Check:
    model, made = _model(device), _examples()
    wanted = torch.cat([_plain(model, e) for e in made]).detach()
    found = torch.tensor([p for row in score(copy.deepcopy(model), made) for p in row])
    return Check("packed, shared prefixes against each sequence alone", _error(found, wanted.cpu()), TOLERANCE)


def _sharing(device: str) -> Check:
    model, made = _model(device), _examples()
    other = copy.deepcopy(model)
    (-torch.cat([_plain(model, e) for e in made]).mean()).backward()
    Trainer(other, TrainSettings(lr=1e-3, steps=1, token_budget=30), Sft()).gradient(made)
    return Check(
        "gradient of packed micro-batches against plain autograd", _error(_gradient(other), _gradient(model)), TOLERANCE
    )


def _sampling(device: str) -> Check:
    error = _sampled_error(_model(device))
    return Check("sampled log-probabilities against scoring", error, TOLERANCE)


def _sampled_error(model: LlamaForCausalLM) -> float:
    """How far log-probabilities that come with sampling are from those of one pass over everything."""
    system = (5, 6, 7, 8)
    requests = [Request((*system, 9 + n), len(system), n, Sampling(max_turn_tokens=12)) for n in range(3)]
    drawn: dict[int, Drawn] = {}

    def on_turn(number: int, turn: Drawn) -> None:
        drawn[number] = turn

    converse(TorchEngine(copy.deepcopy(model), rows=2), requests, on_turn)
    found, wanted = [], []
    for number, turn in drawn.items():
        ids = requests[number].prompt + turn.token_ids
        n = len(turn.token_ids)
        wanted.append(_plain(model, Example(ids, (0,) * (len(ids) - n) + (1,) * n)).detach().cpu())
        found.append(torch.tensor(turn.logprobs))
    return _error(torch.cat(found), torch.cat(wanted))


def _kernels(device: str) -> Check:
    by = "by kernels in C" if device == "cpu" and kernels() is not None else "by torch"
    if device == "cpu" and kernels() is None:
        by += ", which is slower (a C compiler would help)"
    error = _sampled_error(_model(device, torch.bfloat16, head_size=HEAD_SIZES[0]))
    return Check(f"sampling in bfloat16 {by} against scoring", error, 0.05)


def _bfloat16(device: str) -> Check:
    model, made = _model(device), _examples()
    wanted = torch.cat([_plain(model, e) for e in made]).detach()
    found = torch.tensor([p for row in score(_moved(copy.deepcopy(model), device, torch.bfloat16), made) for p in row])
    return Check("log-probabilities in bfloat16 against float32", _error(found, wanted.cpu()), 0.05)


def _moved(model: PreTrainedModel, device: str, dtype: torch.dtype) -> Any:
    return model.to(device, dtype).eval()  # type: ignore[arg-type]


def _checkpoint(device: str) -> Check:
    model, (example, *_) = _model(device), _examples()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        read = _moved(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"), device, torch.float32)
        with torch.no_grad():
            error = _error(_plain(read, example), _plain(model, example))
    return Check("a saved model read back", error, 0.0)
