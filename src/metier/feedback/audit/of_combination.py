"""Cases for the verifier "combination"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]


def _parts(answer: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": "format", "tags": ["answer"], **more},
        {"name": "regex", "pattern": rf".*<answer>{answer}</answer>.*", "flags": "s", "weight": 3},
    ]


def cases() -> list[Case]:
    """All cases, always the same."""
    return [*_all()]


def _all() -> Iterator[Case]:
    for answer, other in (("7", "8"), ("yes", "no"), ("red", "blue"), ("12", "21"), ("Rome", "Oslo")):
        right, bare = f"<answer>{answer}</answer>", answer
        twice = f"<answer>{answer}</answer><answer>{answer}</answer>"
        for how, more in (("all", {}), ("weighted", {}), ("gated", {"gate": True})):
            params = {"how": how, "verifiers": _parts(answer, **more)}
            yield Case(kind="gold", params=params, response=right, passes=True, origin="gold")
            yield Case(kind="rewritten", params=params, response=f"It is {right}.", passes=True)
            yield Case(kind="rewritten", params=params, response=f"\n{right}\n", passes=True)
            for text in (f"<answer>{other}</answer>", bare, twice, f"<answer>{answer}", f"<answer></answer>{answer}"):
                yield Case(kind="near miss", params=params, response=text, passes=False)
            yield from talk(params)
    # A part with a deadline of its own, within parts.
    code = {"name": "code", "entry_point": "f", "cases": [{"args": [2], "expected": 4}], "timeout": 5}
    nested = {"verifiers": [{"name": "combination", "verifiers": [code]}, {"name": "regex", "pattern": "(?s).*x.*"}]}
    for body, passes in (("x * x", True), ("x + x + 1", False)):
        kind = "rewritten" if passes else "near miss"
        yield Case(kind=kind, params=nested, response=f"def f(x):\n    return {body}\n", passes=passes)
