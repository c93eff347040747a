"""Verifiers by name: built-in ones by import path, others by `register` or entry point.

A verifier is imported when it is first asked for, so that listing names costs nothing.
Another package offers a verifier through an entry point of the group
`metier.verifiers` whose object is the verifier, or a class that makes it without
arguments. Left out: versions side by side; a name means one verifier in one process.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points

from metier.base.errors import DataError
from metier.feedback.verifiers.protocol import Verifier

__all__ = ["get_verifier", "names", "register"]

GROUP = "metier.verifiers"
BUILT_IN = {
    "citations": "metier.feedback.verifiers.citations:Citations",
    "code": "metier.feedback.verifiers.code:Code",
    "combination": "metier.feedback.verifiers.combination:Combination",
    "conduct": "metier.feedback.verifiers.conduct:Conduct",
    "exact": "metier.feedback.verifiers.exact:Exact",
    "format": "metier.feedback.verifiers.format:Format",
    "inspect": "metier.feedback.verifiers.foreign:Inspect",
    "instructions": "metier.feedback.verifiers.instructions:Instructions",
    "json_schema": "metier.feedback.verifiers.json_schema:JsonSchema",
    "judge": "metier.feedback.judges.verifier:JudgeVerifier",
    "math": "metier.feedback.verifiers.math:Math",
    "reasoning_gym": "metier.feedback.verifiers.reasoning_gym:ReasoningGym",
    "regex": "metier.feedback.verifiers.regex:Regex",
    "reward_model": "metier.feedback.verifiers.reward_model:RewardModel",
    "tool_calls": "metier.feedback.verifiers.tool_calls:ToolCalls",
    "verifiers": "metier.feedback.verifiers.foreign:Verifiers",
}
_registered: dict[str, Verifier] = {}


def register(verifier: Verifier) -> Verifier:
    """Make a verifier known under its own name; a later one of the same name replaces it."""
    _registered[verifier.name] = verifier
    return verifier


def get_verifier(name: str) -> Verifier:
    """The verifier of that name.

    Raises `DataError` naming the nearest known one where there is none.
    """
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        made = getattr(importlib.import_module(module), attribute)
    else:
        for point in entry_points(group=GROUP):
            if point.name == name:
                made = point.load()
                break
        else:
            near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
            raise DataError(
                f"there is no verifier {name!r}; the nearest is {near[0]!r}, known are {', '.join(names())}"
            )
    verifier: Verifier = made() if isinstance(made, type) else made
    _registered[name] = verifier
    return verifier


def names() -> list[str]:
    """Every name that `get_verifier` knows, sorted."""
    return sorted({*BUILT_IN, *_registered, *(point.name for point in entry_points(group=GROUP))})
