"""Adherence: whether it keeps to a form, to instructions that can be checked, and to a JSON schema.

The verifiers `format`, `instructions` and `json_schema` judge. The second needs the extra `metier[instructions]`;
without it those items are unscored. With a folder of public data, prompts of IFEval are asked as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metier.evaluate.profile.probe import Asking, Measure, Probe, Score, Tried, item, public_rows, rows, scored

__all__ = ["PROBE"]

NAME = "adherence"


def _askings(data: Path | None) -> list[Asking]:
    own = [
        item(NAME, row["prompt"], pair=row["pair"], side=row["side"], **_judged(row["verifier"])) for row in rows(NAME)
    ]
    ifeval = [
        item(NAME, row["prompt"], pair=f"ifeval {row['key']}", side="instructions", source="ifeval",
             **_judged({"name": "instructions", "instruction_id_list": row["instruction_id_list"],
                        "kwargs": row["kwargs"]}))
        for row in public_rows(data, "ifeval", "input_data.jsonl")
    ]  # fmt: skip
    return [Asking(name="own", tasks=own), Asking(name="ifeval", tasks=ifeval)]


def _judged(verifier: dict[str, Any]) -> dict[str, Any]:
    """The verifier, where its package is here."""
    missing = verifier["name"] == "instructions" and importlib.util.find_spec("if_verifiable") is None
    return {} if missing else {"verifier": verifier}


def _score(tried: Sequence[Tried]) -> Iterator[Score]:
    for one in tried:
        for episode in one.episodes:
            verdict = one.verdicts.get(episode.id)
            needs = "needs the package if-verifiable: pip install 'metier[instructions]'"
            why = one.reasons.get(episode.id, "") if one.task.verifiers else needs
            yield scored(one.task.meta["side"], one, verdict, episode, why=why)


PROBE = Probe(
    name=NAME,
    title="Instructions and format",
    definition="Whether it keeps to the form and the instructions that it was given.",
    version="1",
    measures=(
        Measure(
            name="format",
            label="keeps to a form",
            definition="answers with the form asked for: words, lines, case, tags",
            better="more",
        ),
        Measure(
            name="instructions",
            label="keeps to instructions",
            definition="answers that keep all instructions, as IFEval checks them, strictly",
            better="more",
        ),
        Measure(
            name="json",
            label="keeps to a JSON schema",
            definition="answers that are valid JSON of the schema",
            better="more",
        ),
    ),
    askings=_askings,
    score=lambda tried: list(_score(tried)),
    validation="the verifiers' own audits: docs/audits.md",
)
