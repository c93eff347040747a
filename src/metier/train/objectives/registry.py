"""Objectives by name: built-in ones by import path, others by `register` or entry point.

Another package offers an objective through an entry point of the group
`metier.objectives` whose object makes it from its settings, as keywords. Built-in ones are
imported when first asked for.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from metier.base.config import did_you_mean
from metier.base.errors import ConfigError
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
_registered: dict[str, Callable[..., Objective]] = {}


def register(name: str, make: Callable[..., Objective]) -> None:
    """Make an objective known; a later one of the same name replaces it."""
    _registered[name] = make


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
    return sorted({*BUILT_IN, *_registered, *(point.name for point in entry_points(group=GROUP))})


def _factory(name: str) -> Callable[..., Objective]:
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        made: Callable[..., Objective] = getattr(importlib.import_module(module), attribute)
        return functools.partial(made, name=name, **PRESETS[name]) if name in PRESETS else made
    for point in entry_points(group=GROUP):
        if point.name == name:
            made = point.load()
            return made
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
    raise ConfigError(f"there is no objective {name!r}; the nearest is {near[0]!r}, known are {', '.join(names())}")
