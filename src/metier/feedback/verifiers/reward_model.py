"""The verifier "reward_model": what a trained reward model makes of a conversation.

The model is a sequence-classification model of transformers, as `metier train reward` saves it; its
reward r, the mean of its heads where it has several, is turned into a score by
`1 / (1 + exp(-(r - shift) / scale))`, so that 0.5 is where the two sides of a pair would be as
likely. A conversation longer than the model's context is unscored. It is a judgement and no check:
audit it before it is a reward.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from metier.base.errors import ModelError
from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, unscored
from metier.records.types import Task

__all__ = ["RewardModel"]

_ONE_AT_A_TIME = threading.Lock()


class RewardModel(Described):
    """A sigmoid of the model's reward."""

    name = "reward_model"
    version = "1"
    parameters: ClassVar = {
        "model": "the folder or name of a sequence-classification model",
        "shift": "the reward that scores 0.5; default 0",
        "scale": "how much reward takes 0.5 to 0.73; default 1",
    }

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """A score between 0 and 1; the reward itself stands in the reason."""
        name, shift, scale = params.get("model"), params.get("shift", 0.0), params.get("scale", 1.0)
        if not isinstance(name, str) or not name:
            return unscored('the parameter "model" is missing')
        if not isinstance(scale, (int, float)) or not isinstance(shift, (int, float)) or scale <= 0:
            return unscored('"shift" is a number and "scale" one above 0')
        if not any(message.role == "assistant" for message in attempt.messages):
            return Verdict(score=0.0, reason="nothing was said")
        import torch

        with _ONE_AT_A_TIME, torch.inference_mode():
            try:
                model, renderer = _loaded(name)
            except ModelError as error:
                return unscored(str(error))
            ids = list(renderer.render(attempt.messages, task.tools).token_ids)
            room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            if room is not None and len(ids) > room:
                return unscored(f"the conversation has {len(ids)} tokens, the model reads {room}")
            reward = float(model(input_ids=torch.tensor([ids], device=model.device)).logits[0].mean())
        if not math.isfinite(reward):
            return unscored(f"the model's reward is {reward}")
        score = 1 / (1 + math.exp(max(-700.0, min(700.0, -(reward - shift) / scale))))
        return Verdict(score=score, reason=f"reward {reward:.3f}", parts={"reward": score})


@functools.lru_cache(maxsize=2)
def _loaded(name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig

    from metier.models.hub import load_scorer, load_tokenizer, locate
    from metier.models.renderer import get_renderer

    tokenizer = load_tokenizer(name)
    config = AutoConfig.from_pretrained(locate(name))
    if not any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ()):
        raise ModelError(f"{name!r} is no reward model: it has no score head; train one with `metier train reward`")
    return load_scorer(name), get_renderer(tokenizer)
