"""The one training step that every objective shares.

Examples are split into micro-batches of packed tokens; each gives its share of a loss that
is normalised by the counts of the whole step, so the result does not depend on the split.
Left out: what to train on, when to evaluate or save, and where metrics go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from metier.base.clock import monotonic
from metier.base.errors import DataError
from metier.base.memory import hand_back_freed_memory, resident_bytes
from metier.models.attention import hidden_states, use_layouts
from metier.models.divergence import token_divergence
from metier.models.flops import peak_flops, step_flops
from metier.models.lean import checkpoint_layers
from metier.models.logprobs import token_logprobs
from metier.models.values import value_of
from metier.train import processes
from metier.train.objectives.protocol import DivergenceObjective, Objective
from metier.train.optimizer import DivergedError, Learning, Masters, schedule
from metier.train.packing import Example, Packed, pack, split_micro

__all__ = ["TrainSettings", "Trainer"]


_HOLES = 1_000_000_000  # bytes by which memory may grow before it is tidied: batches of different sizes leave holes


class TrainSettings(Learning):
    """How weights move, over how many steps."""

    steps: Annotated[int, Field(ge=1)]  # optimiser steps that the schedule spans
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of log-probabilities; a policy gradient's is that of sampling

    @classmethod
    def of(cls, learning: Learning, steps: int, temperature: float = 1.0) -> TrainSettings:
        """What a stage or a file's settings say about learning, over so many steps."""
        said = {name: getattr(learning, name) for name in Learning.model_fields}
        return cls(**said, steps=steps, temperature=temperature)


class Trainer:
    """A model under training. The model's own tensors are updated in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: TrainSettings,
        objective: Objective,
        *,
        teacher: PreTrainedModel | None = None,
    ) -> None:
        """`teacher` is for objectives that learn from divergences; it must share the tokenizer."""
        if (objective.output == "divergence") != (teacher is not None):
            raise DataError(f"objective {objective.name!r} {'takes no' if teacher is not None else 'needs a'} teacher")
        if objective.output == "scores" and not hasattr(model, "score"):
            raise DataError(f"objective {objective.name!r} needs a model with a score head; load it by `load_scorer`")
        if objective.output == "actor_critic" and not hasattr(model, "value_head"):
            raise DataError(f"objective {objective.name!r} needs a model with a value head; see `add_value_head`")
        self.model = use_layouts(model)
        self.teacher = None if teacher is None else use_layouts(teacher)
        self.settings = settings
        self.objective = objective
        self.masters = Masters(
            model,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            kind=settings.optimizer,
        )
        if settings.checkpointing:
            checkpoint_layers(model)
        self.step_number = 0  # optimiser steps taken
        self._resident = 0  # bytes after the first step since memory was tidied

    def step(self, examples: Sequence[Example], *, among: Sequence[Example] | None = None) -> dict[str, float]:
        """One optimiser step over all examples; returns what happened.

        `among` are the examples that these were chosen from, where the others had nothing to
        teach: the loss is the mean over all of them.

        Keys: loss, grad_norm, lr, tokens (shared prefixes counted for each example),
        packed_tokens (as computed), loss_tokens, seconds, tokens_per_s, mfu (see
        `metier.models.flops`), and the objective's metrics as means over labels. Raises
        `DataError` when no token carries loss and `DivergedError`, with the weights
        untouched, when loss or gradient is not finite.
        """
        began = monotonic()
        named = ", ".join([e.key for e in examples if e.key][:3])
        where = f" at step {self.step_number + 1}, batch of {len(examples)} examples{named and f' ({named} …)'}"
        sums = self.gradient(examples, among=among)
        if not math.isfinite(sums["loss"]):
            self.masters.discard()
            raise DivergedError(f"loss is not finite{where}; the last checkpoint is kept. Lower lr or clip")
        s = self.settings
        lr = s.lr * schedule(s.schedule, self.step_number, s.steps, s.warmup)
        grad_norm = self.masters.step(lr, where=where)
        self.step_number += 1
        self._tidy()
        seconds = monotonic() - began
        rate = sums.pop("flops") / seconds
        return {
            **sums,
            "grad_norm": grad_norm,
            "lr": lr,
            "seconds": seconds,
            "tokens_per_s": sums["tokens"] / seconds,
            "mfu": rate / (processes.count() * peak_flops(str(self.model.device), self.model.dtype)),
        }

    def _tidy(self) -> None:
        """Hand back freed memory where it has grown. No activations are alive here, so nearly all of it can go."""
        resident = resident_bytes()
        if not self._resident:
            self._resident = resident
        elif resident - self._resident > _HOLES:
            hand_back_freed_memory()
            self._resident = 0

    def skip(self) -> None:
        """Count a step in which there was nothing to learn; the weights stay as they are."""
        self.step_number += 1

    @torch.no_grad()
    def measure(self, examples: Sequence[Example]) -> dict[str, float]:
        """The loss of examples and the objective's metrics, as `step` gives them, without learning."""
        return self._losses(examples, None, learn=False)

    def gradient(self, examples: Sequence[Example], *, among: Sequence[Example] | None = None) -> dict[str, float]:
        """Add the gradient of the whole step's loss into the masters; returns loss, counts and metrics."""
        self.masters.discard()
        return self._losses(examples, among, learn=True)

    def _losses(self, examples: Sequence[Example], among: Sequence[Example] | None, *, learn: bool) -> dict[str, float]:
        useful = [e for e in examples if e.labels]
        loss_tokens = sum(e.labels for e in useful)
        whole = examples if among is None else among
        if not loss_tokens:
            raise DataError(
                f"no token of this batch of {len(examples)} examples carries loss; "
                "check that conversations hold an assistant turn and that truncation keeps it"
            )
        denominator = self.objective.denominator(loss_tokens=sum(e.labels for e in whole), examples=len(whole))
        heads = self.model.config.get_text_config().num_attention_heads
        sums = {"loss": 0.0, "packed_tokens": 0.0, "pairs": 0.0, "distinct": 0.0}
        micros = split_micro(useful, self.settings.token_budget)
        for micro in micros[processes.rank() :: processes.count()]:
            batch = pack(micro, heads=heads, device=self.model.device, dtype=_wide(self.model.dtype))
            values_M, entropy_M = self._values(batch)
            loss, metrics = self.objective.loss(values_M, entropy_M, batch, denominator=denominator)
            if learn:
                loss.backward()
                self.masters.accumulate()
            sums["loss"] += float(loss.detach())
            sums["packed_tokens"] += batch.packed_tokens
            sums["pairs"] += batch.pairs
            sums["distinct"] += len(batch.source_U)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        if learn:
            self.masters.share()
        sums = processes.summed_numbers(sums)
        labels = sums.pop("labels")
        whole_loss, packed, pairs, distinct = (sums.pop(key) for key in ("loss", "packed_tokens", "pairs", "distinct"))
        return {
            **{key: value / labels for key, value in sums.items()},
            "loss": whole_loss,
            "packed_tokens": packed,
            "flops": step_flops(self.model, tokens=int(packed), labels=int(distinct), pairs=int(pairs)),
            "tokens": float(sum(len(e.token_ids) for e in useful)),
            "loss_tokens": float(loss_tokens),
        }

    def _values(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """What the objective learns from at each label, and the entropies where they are at hand."""
        values_U, entropy_U = self._distinct(batch)
        return values_U.index_select(0, batch.like_M), entropy_U.index_select(0, batch.like_M)

    def _distinct(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """The same for labels that differ."""
        hidden_TE = hidden_states(self.model, batch.input_ids_T, batch.position_ids_T, batch.layout)
        hidden_UE = hidden_TE.index_select(0, batch.source_U)
        if self.objective.output == "scores":
            wide = _wide(hidden_UE.dtype)
            scores_UK = hidden_UE.to(wide) @ self.model.score.weight.to(wide).T  # type: ignore[union-attr, operator]
            return scores_UK, scores_UK.new_zeros(len(scores_UK))
        head_VE = self.model.get_output_embeddings().weight
        if self.teacher is None:
            logprobs_U, entropy_U = token_logprobs(
                hidden_UE, head_VE, batch.targets_U, temperature=self.settings.temperature
            )
            if self.objective.output == "actor_critic":
                return torch.stack([logprobs_U, value_of(self.model, hidden_UE)], 1), entropy_U
            return logprobs_U, entropy_U
        assert isinstance(self.objective, DivergenceObjective)
        with torch.no_grad():
            taught_TF = hidden_states(self.teacher, batch.input_ids_T, batch.position_ids_T, batch.layout)
        divergence_U = token_divergence(
            hidden_UE,
            head_VE,
            taught_TF.index_select(0, batch.source_U),
            self.teacher.get_output_embeddings().weight,
            beta=self.objective.beta,
            temperature=self.objective.temperature,
        )
        return divergence_U, torch.zeros_like(divergence_U.detach())


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What losses of a model of that dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
