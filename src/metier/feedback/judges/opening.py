"""From names to a judge: a model or an endpoint, a rubric, a manner; as a command line or a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from metier.base.config import did_you_mean
from metier.base.errors import ConfigError
from metier.feedback.judges.budget import Budget
from metier.feedback.judges.judge import Judge, Manner, PromptedJudge
from metier.feedback.judges.rubric import find_rubric
from metier.feedback.judges.scorer import RewardJudge, is_scorer
from metier.feedback.judges.store import Store
from metier.feedback.judges.voice import EndpointVoice, LocalVoice

__all__ = ["open_judge"]


def open_judge(
    *,
    model: str | None = None,
    endpoint: Mapping[str, Any] | None = None,
    rubric: str | None = None,
    manner: Mapping[str, Any] | None = None,
    store: Store | None = None,
    budget: Budget | None = None,
) -> Judge:
    """A judge. A model with a score head is a reward model and takes no rubric.

    Raises `ConfigError` or `ModelError` for what cannot be.
    """
    if (model is None) == (endpoint is None):
        raise ConfigError("a judge is a model or an endpoint: give one of the two")
    asked = _manner(manner or {})
    if model is not None and is_scorer(model):
        if rubric is not None or asked.expected:
            raise ConfigError(
                f"{model!r} is a reward model: it judges by what it was trained on, not by a rubric and not in words; "
                "leave rubric and expected out"
            )
        return RewardJudge(model, max_characters=asked.max_characters, store=store, budget=budget)
    if rubric is None:
        raise ConfigError("a judge that is asked needs a rubric; metier judge --list shows those that ship")
    found = find_rubric(rubric)
    if endpoint is None:
        assert model is not None
        return PromptedJudge(LocalVoice(model), found, asked, store=store, budget=budget)
    given = dict(endpoint)
    if not isinstance(given.get("model"), str):
        raise ConfigError("an endpoint needs the name of its model")
    try:
        voice = EndpointVoice(given.pop("model"), **given)
    except TypeError as error:
        raise ConfigError(f"an endpoint cannot be set like this: {error}") from error
    return PromptedJudge(voice, found, asked, store=store, budget=budget)


def _manner(given: Mapping[str, Any]) -> Manner:
    known = [field.name for field in fields(Manner)]
    for key in given:
        if key not in known:
            raise ConfigError(
                f"a judge's manner has no {key!r}{did_you_mean(key, known) or '.'} It has {', '.join(known)}"
            )
    return Manner(**given)
