"""AdamW over fp32 master weights, and learning rate schedules.

A bf16 weight of size 1 cannot hold a change smaller than 1/256, so the optimiser works on
fp32 copies and writes them back, rounded, after each step. Gradients of micro-batches are
added in fp32. Weights that are fp32 or fp64 already are their own masters.

A copy starts anywhere in the interval that rounds to its weight, drawn from a fixed seed.
Started in the middle, as a plain cast does, no weight would move before its updates add up
to half a step of bf16, and a short training at a small learning rate would change almost
nothing; so the share of weights that move is in proportion to the update from the first
step on.

Left out: sharding, offloading, parameter groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from metier.base.config import Settings
from metier.base.errors import ConfigError, MetierError
from metier.train import processes

__all__ = ["DivergedError", "Learning", "Masters", "OptimizerName", "Schedule", "scattered", "schedule"]

_SEED = 0x5CA77E12  # of no generator that weights are likely to come from
OptimizerName = Literal["adamw", "adamw8bit"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class Learning(Settings):
    """How weights move, whatever they learn from: what stages of recipes and trainings from files share."""

    lr: Annotated[float, Field(gt=0)]
    schedule: Schedule = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0  # steps
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(ge=0)] = 1.0  # global gradient norm; 0 for none
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    optimizer: OptimizerName = "adamw"
    token_budget: Annotated[int, Field(ge=1)] = 1600  # packed tokens of one micro-batch
    checkpointing: bool = False  # compute layers twice to save memory


class DivergedError(MetierError):
    """A loss or gradient is not finite; the step was not taken."""


class Masters:
    """The fp32 (or wider) truth of a model's trainable weights, with AdamW over it.

    Use: after each micro-batch's backward pass `accumulate()`, after the last `step()`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        kind: OptimizerName = "adamw",
    ) -> None:
        """`clip` bounds the global gradient norm; 0 leaves it alone. `ConfigError` where `kind` cannot be had."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]  # tied weights once
        self.names = [n for n, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        self.masters: list[Tensor] = [
            p if p.dtype in (torch.float32, torch.float64) else scattered(p, seed).requires_grad_()
            for seed, p in enumerate(self.params, _SEED)
        ]
        self._copies = [(m, p) for m, p in zip(self.masters, self.params, strict=True) if m is not p]
        self._fresh = True  # no gradient has been accumulated since the last step
        self.clip = clip
        self.before_change: Callable[[], None] = lambda: None  # called before masters and moments change
        given: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.optimizer: torch.optim.Optimizer
        if kind == "adamw":
            self.optimizer = torch.optim.AdamW(self.masters, **given, fused=True)
        else:
            self.optimizer = _eight_bit()(self.masters, **given)

    @torch.no_grad()
    def accumulate(self) -> None:
        """Move the model's gradients into the masters' and free the narrow ones."""
        for master, param in self._copies:
            if param.grad is None:
                if self._fresh and master.grad is not None:
                    master.grad.zero_()
                continue
            if master.grad is None:
                master.grad = param.grad.float()
            elif self._fresh:
                master.grad.copy_(param.grad)
            else:
                master.grad.add_(param.grad)
            param.grad = None
        self._fresh = False

    @torch.no_grad()
    def share(self) -> None:
        """Sum the gradients of all processes; one that computed nothing adds nothing."""
        if processes.count() == 1:
            return
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            elif self._fresh:
                master.grad.zero_()
        self._fresh = False
        processes.summed([m.grad for m in self.masters if m.grad is not None])

    @torch.no_grad()
    def step(self, lr: float, *, where: str = "") -> float:
        """Clip, step, write the weights back; returns the gradient norm before clipping.

        Raises `DivergedError` and leaves weights and moments alone when it is not finite;
        `where` says in its text which step of which batch that was.
        """
        grads = [m.grad for m in self.masters if m.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        value = float(norm)
        if not math.isfinite(value):
            self.discard()
            raise DivergedError(f"gradient is not finite{where}; the last checkpoint is kept. Lower lr or clip")
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.masters, self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.before_change()
        self.optimizer.step()
        self.publish()
        self.discard()
        return value

    @torch.no_grad()
    def publish(self) -> None:
        """Write the masters back into the model's own tensors, in place."""
        if self._copies:
            torch._foreach_copy_([p for _, p in self._copies], [m for m, _ in self._copies])

    def discard(self) -> None:
        """Forget accumulated gradients; the memory of the masters' is kept for the next step."""
        for param in self.params:
            param.grad = None
        self._fresh = True


def _eight_bit() -> Any:
    """AdamW with moments of eight bits, arXiv:2110.02861."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "optimizer adamw8bit needs the package bitsandbytes; run: pip install bitsandbytes"
        ) from error
    return AdamW8bit


@torch.no_grad()
def scattered(weight: Tensor, seed: int) -> Tensor:
    """float32 values, uniform over what rounds to each value of a narrower `weight`."""
    infinity = torch.full_like(weight, math.inf)
    above, below = torch.nextafter(weight, infinity), torch.nextafter(weight, -infinity)
    wide = weight.float()
    step = torch.minimum(above.float() - wide, wide - below.float())
    del infinity, above, below
    generator = torch.Generator(device=weight.device).manual_seed(seed)
    # a hair less than half a step to each side, so that float32 rounding cannot cross over
    where = torch.rand(weight.shape, generator=generator, device=weight.device).sub_(0.5).mul_(0.9999)
    return wide.add_(where.mul_(step))


def schedule(kind: Schedule, step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor at `step`, counted from 0, of `steps`.

    It rises linearly over the first `warmup` steps, (step + 1) / warmup, then with
    x = (step - warmup) / (steps - warmup) is 1, 1 - x, (1 + cos(pi x)) / 2, or for `wsd`
    (warm up, stay, decay) 1 up to x = 0.8 and then 5 (1 - x), arXiv:2404.06395.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    x = min(1.0, (step - warmup) / max(1, steps - warmup))
    if kind == "wsd":
        return min(1.0, 5 * (1.0 - x))
    return 1.0 - x if kind == "linear" else (1.0 + math.cos(math.pi * x)) / 2
