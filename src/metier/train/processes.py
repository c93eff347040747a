"""Several processes that take one step together: each computes some micro-batches, gradients are summed.

Every process is given all examples, in the same order, so counts and losses are normalised
by the whole step without asking the others, and each holds all weights: the step is that
of one process, up to the order of sums. Start them by torchrun; with one process nothing
here does anything.

Left out: weights that are split over processes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping

import torch
from torch import Tensor, distributed

__all__ = ["count", "join", "leads", "rank", "summed", "summed_numbers", "wait"]


def join() -> None:
    """Join the processes that torchrun started together with this one, where it did, until this one ends.

    A process that ends while its group stands may be aborted by the group's own threads.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            distributed.init_process_group("nccl")
        else:
            distributed.init_process_group("gloo")
        atexit.register(distributed.destroy_process_group)


def count() -> int:
    """How many processes take part."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def leads() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


def wait() -> None:
    """Go on when all have come here."""
    if count() > 1:
        distributed.barrier()


def summed(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def summed_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """The sums over all processes; a name that one process lacks counts as 0 there."""
    if count() == 1:
        return dict(numbers)
    found: list[dict[str, float] | None] = [None] * count()
    distributed.all_gather_object(found, dict(numbers))
    total: dict[str, float] = {}
    for one in found:
        for key, value in (one or {}).items():
            total[key] = total.get(key, 0.0) + value
    return total
