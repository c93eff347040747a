"""Verifiers by name: built-in ones by import path, others by `register` or entry point.

Another package offers a verifier through an entry point of the group
`metier.verifiers` whose object is the verifier, or a class that makes it without
arguments.
"""

from __future__ import annotations

from metier.base.registry import Registry
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
_known: Registry[Verifier] = Registry("verifier", GROUP, BUILT_IN)


def register(verifier: Verifier) -> Verifier:
    """Make a verifier known under its own name; a later one of the same name replaces it."""
    _known.registered[verifier.name] = verifier
    return verifier


def get_verifier(name: str) -> Verifier:
    """The verifier of that name. Raises `DataError` naming the nearest known one where there is none."""
    return _known.find(name)


def names() -> list[str]:
    """Every name that `get_verifier` knows, sorted."""
    return _known.names()
