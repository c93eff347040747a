"""A reward model as a judge: it was trained to judge, so nothing is asked of it in words.

    score     s(r / scale),  r the model's reward (the mean of its heads), s the logistic function
    compare   u = s((r_A - r_B) / scale), which is Bradley-Terry; it has no order, so it never flips

A sequence-classification model of transformers, as `metier train reward` saves it. A conversation longer than the
model reads is unscored. The verifier `reward_model` uses the same models for an absolute score in a recipe.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from metier.base.clock import monotonic
from metier.base.errors import ConfigError
from metier.base.ids import content_hash
from metier.feedback.judges.budget import Budget, OverBudget
from metier.feedback.judges.judge import Item, Judgement, failed, texts_of
from metier.feedback.judges.store import Store
from metier.feedback.judges.voice import Answer, Boundary, weights_hash
from metier.records.types import Cost, Message

if TYPE_CHECKING:
    from metier.models.hub import Device

__all__ = ["RewardJudge", "is_scorer"]


def is_scorer(model: str) -> bool:
    """Whether a model has a score head."""
    from transformers import AutoConfig

    from metier.models.hub import locate

    try:
        kinds = AutoConfig.from_pretrained(locate(model)).architectures or ()
    except (OSError, ValueError):  # no such model, or only an adapter: whoever loads it says so better
        return False
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


class RewardJudge:
    """A reward model in this process."""

    short_is_wanted = False
    one_number = True

    def __init__(
        self,
        model: str,
        *,
        scale: float = 1.0,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        device: Device = "auto",
        max_characters: int = 40_000,
        store: Store | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Raises `ModelError`."""
        import torch

        from metier.models.hub import device_of, load_scorer, load_tokenizer
        from metier.models.renderer import get_renderer

        if scale <= 0:
            raise ConfigError(f"scale is above 0, not {scale}")
        self._model = load_scorer(model, dtype=getattr(torch, dtype), device=device_of(device))
        self._renderer = get_renderer(load_tokenizer(model))
        self._room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        self._scale, self._most, self._store, self._budget = scale, max_characters, store, budget or Budget()
        self._one_at_a_time = threading.Lock()
        self.name = f"{model}/reward"
        self.identity: Mapping[str, Any] = {
            "reward": {"weights": weights_hash(self._model), "renderer": self._renderer.template_hash, "dtype": dtype},
            "scale": scale,
            "max_characters": max_characters,
        }
        self.version = content_hash(self.identity, length=16)

    def score(self, item: Item) -> Judgement:
        """See `Judge.score`."""
        told = self._rewards(item, 1, "score")
        if isinstance(told, Judgement):
            return told
        (reward,), cost = told
        value = _logistic(reward / self._scale)
        return Judgement(
            kind="score", value=value, reason=f"reward {reward:.3f}", evidence={"reward": reward}, cost=cost
        )

    def compare(self, item: Item) -> Judgement:
        """See `Judge.compare`."""
        told = self._rewards(item, 2, "preference")
        if isinstance(told, Judgement):
            return told
        (first, second), cost = told
        u = _logistic((first - second) / self._scale)
        return Judgement(
            kind="preference",
            value=0.5 if first == second else float(first < second),
            reason=f"rewards {first:.3f} and {second:.3f}",
            evidence={"u": u, "rewards": [first, second]},
            cost=cost,
        )

    def close(self) -> None:
        """See `Judge.close`."""

    def _rewards(
        self, item: Item, n: int, kind: Literal["score", "preference"]
    ) -> tuple[list[float], Cost] | Judgement:
        texts = texts_of(item, n, self._most)
        if isinstance(texts, Judgement):
            return texts
        rewards, tokens, began = [], 0, monotonic()
        for response in item.responses:
            told = self._reward([*item.prompt, *response])
            if isinstance(told, tuple):
                return failed(kind, *told)
            rewards.append(told.shares["reward"])
            tokens += told.cost.prompt_tokens
        return rewards, Cost(prompt_tokens=tokens, seconds=monotonic() - began)

    def _reward(self, messages: Sequence[Message]) -> Answer | tuple[Boundary, str]:
        """The reward, as the share of a word that nobody says; or what failed and why."""
        import torch

        ids = list(self._renderer.render(messages).token_ids)
        if len(ids) > self._room:
            return "input", f"the conversation has {len(ids)} tokens, the model reads {self._room}"
        key = content_hash(["reward", self.identity["reward"], ids])
        known = None if self._store is None else self._store.answer(key)
        if known is not None:
            return Answer(text="", shares=known.shares)
        try:
            with self._budget.call() as costs, self._one_at_a_time, torch.inference_mode():
                reward = float(self._model(input_ids=torch.tensor([ids], device=self._model.device)).logits[0].mean())
                cost = Cost(prompt_tokens=len(ids))
                costs.append(cost)
        except OverBudget as error:
            return "budget", str(error)
        if not math.isfinite(reward):
            return "judge", f"the model's reward is {reward}"
        answer = Answer(text="", shares={"reward": reward}, cost=cost)
        if self._store is not None:
            self._store.keep(key, answer)
        return answer


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, x))))
