"""What a trait is made of: measures with their definitions, the items that are asked, and a pure scoring rule.

A probe says what to ask (`askings`: tasks, how answers are drawn and how often) and what the answers are worth
(`score`). Running, keeping and averaging are not its business (`run.py`, `figures.py`). Each trait is one file with
one `PROBE`, named in `registry.py`; raising `version` makes its items be asked again.

A score of None is unscored: something that was not the model failed, or the answer cannot be read as the measure
needs it. A measure that does not apply to an item has no score at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from metier.base.errors import DataError
from metier.feedback.verifiers.protocol import Attempt, last_words
from metier.records.types import Episode, Message, Sampling, Task, VerifierSpec

__all__ = [
    "ANSWER",
    "Asking",
    "Better",
    "Measure",
    "Probe",
    "Score",
    "Tried",
    "fault",
    "item",
    "public_folder",
    "public_rows",
    "rows",
    "said",
    "scored",
]

Better = Literal["more", "less", "neither"]

ANSWER = Sampling(temperature=0.0, max_turn_tokens=96, max_tokens=96, max_turns=1, max_calls=0)
"""The likeliest answer of one turn; a call ends it, so that no tool has to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of a trait."""

    name: str  # within its trait
    label: str  # for readers
    definition: str  # what is counted, among what
    better: Better = "neither"  # what a model should have more or less of, where that is agreed
    unit: str = "share"  # else what is averaged: tokens, words …


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Tasks that are asked in one manner."""

    name: str
    tasks: Sequence[Task]
    sampling: Sampling = ANSWER
    draws: int = 1  # answers that make up one observation; several need a temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of a task: its episodes in the order of the draws, and what the task's verifiers said of them."""

    asking: str
    task: Task
    episodes: tuple[Episode, ...]
    verdicts: Mapping[str, float | None] = field(default_factory=dict)  # by episode
    reasons: Mapping[str, str] = field(default_factory=dict)  # of the verdicts, by episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What one observation is worth for one measure."""

    measure: str
    item: str  # repeats of it are averaged, and two models are paired on it
    cluster: str  # items whose scores may agree
    value: float | None
    about: tuple[str, ...]  # episodes
    why: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A trait."""

    name: str
    title: str
    definition: str
    version: str
    measures: tuple[Measure, ...]
    askings: Callable[[Path | None], Sequence[Asking]]  # built-in items, and of public sets in this folder
    score: Callable[[Sequence[Tried]], Sequence[Score]]
    details: Callable[[Sequence[Score]], Mapping[str, Any]] = lambda scores: {}
    validation: str = ""  # how its scoring rule was checked against labels, and where


def rows(name: str) -> list[dict[str, Any]]:
    """The lines of a data file of this package."""
    text = files("metier.evaluate.profile").joinpath("items", f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def public_folder(data: Path | None) -> None:
    """Raises `DataError` where a folder of public sets is named that is not there."""
    if data is not None and not data.is_dir():
        raise DataError(f"there is no folder {data}; name one that holds xstest, in3, bfcl or ifeval")


def public_rows(folder: Path | None, *names: str) -> list[dict[str, Any]]:
    """The JSON lines of a public set, or none where no folder is named or it lacks the set.

    Raises `DataError` where a line is no JSON.
    """
    if folder is None:
        return []
    path = folder.joinpath(*names)
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"{path} holds a line that is no JSON: {error}") from error


def item(trait: str, prompt: str | Sequence[Message], *, pair: str, side: str, source: str = "", **more: Any) -> Task:
    """A task of a profile: a prompt, or the beginning of a conversation."""
    messages = (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)
    task = Task(
        family="profile",
        kind="profile",
        messages=messages,
        split="profile",
        source=source or f"profile/{trait}",
        meta={"trait": trait, "pair": pair, "side": side, **more.pop("meta", {})},
    )
    verifier = more.pop("verifier", None)
    if verifier is not None:
        verifier = dict(verifier)
        more["verifiers"] = (VerifierSpec(name=verifier.pop("name"), params=verifier),)
    return replace(task, **more)


def said(episode: Episode) -> str | None:
    """The last words of the model, without its thinking; None where the episode failed through no fault of its own."""
    return None if fault(episode) else last_words(Attempt(messages=episode.messages))


def fault(episode: Episode) -> str:
    """What failed that was not the model, or nothing."""
    return "" if episode.error is None or episode.error_boundary == "policy" else f"{episode.error}"


def scored(
    measure: str, tried: Tried, value: float | bool | None, *episodes: Episode, why: str = "", **evidence: Any
) -> Score:
    """The score of a task's episodes; of all of them where none is named. One that broke has no value."""
    about = episodes or tried.episodes
    broken = next((reason for one in about if (reason := fault(one))), "")
    return Score(
        measure=measure,
        item=tried.task.id,
        cluster=tried.task.cluster,
        value=None if broken or value is None else float(value),
        about=tuple(one.id for one in about),
        why=broken or why,
        evidence=evidence,
    )
