"""Objectives by name: built-in ones by import path, others by `register` or entry point.

Another package offers an objective through an entry point of the group
`metier.objectives` whose object makes it from its settings, as keywords. Built-in ones are
imported when first asked for.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from metier.base.config import did_you_mean
from metier.base.errors import ConfigError, DataError
from metier.base.registry import Registry
from metier.train.objectives.policy import PRESETS
from metier.train.objectives.protocol import Objective

__all__ = ["get_objective", "names", "register"]

GROUP = "metier.objectives"
BUILT_IN = {
    "distill": "metier.train.objectives.distill:Distill",
    "process_reward": "metier.train.objectives.reward:ProcessReward",
    "reward": "metier.train.objectives.reward:Reward",
    "dpo": "metier.train.objectives.preferences:Dpo",
    "kto": "metier.train.objectives.preferences:Kto",
    "orpo": "metier.train.objectives.preferences:Orpo",
    "sft": "metier.train.objectives.sft:Sft",
    "simpo": "metier.train.objectives.preferences:Simpo",
    **dict.fromkeys(PRESETS, "metier.train.objectives.policy:PolicyGradient"),
    "ppo": "metier.train.objectives.ppo:Ppo",
}
_known: Registry[Callable[..., Objective]] = Registry("objective", GROUP, BUILT_IN)


def register(name: str, make: Callable[..., Objective]) -> None:
    """Make an objective known; a later one of the same name replaces it."""
    _known.registered[name] = make


def get_objective(name: str, **settings: Any) -> Objective:
    """The objective of that name with these settings.

    Raises `ConfigError` naming the nearest known one where there is none, likewise for settings.
    """
    make = _factory(name)
    parameters = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in settings:
            if key not in parameters:
                raise ConfigError(
                    f"objective {name!r} has no setting {key!r}{did_you_mean(key, parameters) or '.'} "
                    f"Known: {', '.join(parameters) or 'none'}"
                )
    return make(**settings)


def names() -> list[str]:
    """Every name that `get_objective` knows, sorted."""
    return _known.names()


def _factory(name: str) -> Callable[..., Objective]:
    try:
        made: Callable[..., Objective] = _known.load(name)
    except DataError as error:
        raise ConfigError(str(error)) from error
    of_preset = name in PRESETS and name not in _known.registered
    return functools.partial(made, name=name, **PRESETS[name]) if of_preset else made
