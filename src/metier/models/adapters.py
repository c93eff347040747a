"""LoRA through peft: a few small matrices learn beside weights that stay as they are.

A model with an adapter is the same transformers model: it samples, scores and trains like
any other, and only what is trained is kept in memory twice or written to disk. A reference
is the same model with the adapter that it started from.

With `quantize` the frozen weights are kept in four bits (QLoRA, arXiv:2305.14314), by
bitsandbytes, on CUDA and (slowly) on a CPU. LoRA: arXiv:2106.09685.

Left out: dropout on adapters, because a step must give the same numbers twice; other
kinds of adapters; adapters of models with a score head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor
from torch.nn import Linear
from transformers import AutoModelForCausalLM, PreTrainedModel

from metier.base.config import Settings
from metier.base.errors import ModelError

__all__ = [
    "Adapter",
    "adapter_weights",
    "add_adapter",
    "fingerprint",
    "has_adapter",
    "holding",
    "merged",
    "same_base",
    "thaw",
]

_MARK = ".lora_"


class Adapter(Settings):
    """Which matrices learn, and how many numbers they have: W x + (alpha / rank) B A x."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # names of linear layers, e.g. q_proj
    quantize: Literal["none", "4bit"] = "none"  # of the frozen weights


def add_adapter(model: PreTrainedModel, adapter: Adapter, *, seed: int) -> PreTrainedModel:
    """Freeze the model and give it a new adapter, which does nothing yet: A is random, B is zero.

    Raises `ModelError` when peft is missing or a target names no linear layer.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ModelError("adapters need the package peft; run: pip install peft") from error
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules=targets, bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_adapter(config)
        except ValueError as error:
            raise ModelError(f"the adapter does not fit the model: {str(error).splitlines()[0]}") from error
    return model


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether the model has an adapter."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def thaw(model: PreTrainedModel) -> None:
    """Let the adapter of a model that was read from a folder learn again; the rest stays frozen."""
    for name, param in model.named_parameters():
        param.requires_grad_(_MARK in name)


def adapter_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of the adapter as it is now."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if _MARK in name}


@contextmanager
def holding(model: PreTrainedModel, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within, the model has the adapter weights given, e.g. those of the start as a reference."""
    own = adapter_weights(model)
    _put(model, weights)
    try:
        yield
    finally:
        _put(model, own)


@torch.no_grad()
def _put(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    for name, param in model.named_parameters():
        if _MARK in name:
            param.copy_(weights[name])


def merged(folder: Path) -> PreTrainedModel:
    """The base of an adapter folder with the adapter added to its weights, in the adapter's float type.

    The sum is made in float32. It equals base and adapter up to that type's rounding.
    """
    from peft import PeftConfig, PeftModel

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole: PreTrainedModel = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    return whole.to(dtype).eval()  # type: ignore[no-any-return]


def fingerprint(model: PreTrainedModel) -> str:
    """Names the weights below an adapter, whatever float type holds them: names, shapes and some values of each.

    Two parts: of all weights (empty where some lie in four bits, which have other values), and of
    those that four bits leave whole. `same_base` compares what both sides have.
    """
    linear = {f"{name}.weight".replace(".base_layer", "") for name, m in model.named_modules() if isinstance(m, Linear)}
    frozen = sorted(_frozen(model), key=lambda pair: pair[0])
    packed = any(not param.is_floating_point() for _, param in frozen)
    kept = [(name, param) for name, param in frozen if name not in linear]
    return f"{'' if packed else _digest(frozen)}:{_digest(kept)}"


def same_base(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, as far as four bits on one side let it be known."""
    (one_all, _, one_kept), (other_all, _, other_kept) = one.partition(":"), other.partition(":")
    return one_kept == other_kept and (one_all == other_all or not one_all or not other_all)


def _digest(weights: Sequence[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, param in weights:
        some = param.detach().reshape(-1)
        some = some[:: max(1, some.numel() // 64)][:64].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(param.shape)}\n".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _frozen(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    for name, param in model.named_parameters():
        if _MARK not in name:
            yield name.replace(".base_layer", ""), param
