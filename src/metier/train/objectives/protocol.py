"""What an objective is: a pure function of log-probabilities, with an explicit denominator.

Shape legend: M labels (tokens that carry loss) of one micro-batch.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from metier.train.packing import Packed

__all__ = ["DivergenceObjective", "Kind", "Objective"]

Kind = Literal["single", "pair", "judged", "steps", "episode"]


class Objective(Protocol):
    """Makes a loss; holds settings and no state."""

    @property
    def rows(self) -> Kind:
        """What it learns from, see `metier.train.data`."""
        ...

    @property
    def output(self) -> Literal["logprobs", "scores", "divergence", "actor_critic"]:
        """What the model gives it at each label."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether files need the starting model's log-probabilities."""
        ...

    @property
    def name(self) -> str:
        """The name that recipes use."""
        ...

    def denominator(self, *, loss_tokens: int, examples: int) -> float:
        """What the loss is divided by, from the counts of the whole optimiser step."""
        ...

    def loss(
        self, values_M: Tensor, entropy_M: Tensor, batch: Packed, /, *, denominator: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The micro-batch's share of the step's loss, and metrics as sums over its labels.

        The values are `output`: log-probabilities of the labels, divergences from a teacher,
        scores of shape (M, heads), or log-probabilities beside a value head's values, (M, 2).

        Shares and sums of several micro-batches may be added; `labels` in the metrics is
        the number of labels, by which the other sums become means.
        """
        ...


@runtime_checkable
class DivergenceObjective(Objective, Protocol):
    """An objective whose `output` is the divergence from a teacher; see `metier.models.divergence`."""

    @property
    def beta(self) -> float:
        """Which divergence: 0 forward KL, 1 reverse KL, between them Jensen-Shannon."""
        ...

    @property
    def temperature(self) -> float:
        """What the logits of both are divided by."""
        ...
