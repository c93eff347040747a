"""Rubrics and constitutions: what a judge is asked to look for, as versioned files.

A rubric is YAML: what good means, in a few points, and on how many levels. A constitution is a list of
principles, each with what a critic looks for and what a rewriter mends. Both carry a version for people;
beside it stands the hash of the content, so that two files that call themselves "2" are never taken for one.
Unknown keys are errors that name the nearest known one (`metier.base.config`).

Left out: rubrics that need code, which are verifiers, and rubrics for one item, which are a task's own answer.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from metier.base.config import Settings, did_you_mean, load_yaml
from metier.base.errors import ConfigError
from metier.base.ids import content_hash

__all__ = ["Constitution", "Principle", "Rubric", "find_constitution", "find_rubric", "packaged"]

Text = Annotated[str, Field(min_length=1)]


class Rubric(Settings):
    """What a good response is."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    version: Text  # for people; `hash` is what counts
    question: Text  # what is asked of the judge, in one sentence
    points: Annotated[tuple[Text, ...], Field(min_length=1)]  # what makes a response good or bad
    levels: Annotated[tuple[Text, ...], Field(min_length=2, max_length=9)]  # worst first; a score names one by number
    length_matters: bool = False  # where a preference for shorter ones is wanted, the audit does not count it as bias

    @model_validator(mode="after")
    def _apart(self) -> Rubric:
        if len(set(self.levels)) < len(self.levels):
            raise ValueError("two levels say the same; a judge could not tell them apart")
        return self

    @property
    def hash(self) -> str:
        """The content hash, of all but the version for people."""
        return content_hash(self.model_dump(mode="json", exclude={"version"}), length=16)


class Principle(Settings):
    """One thing that a constitution asks of a response."""

    name: Text
    look: Text  # what the critic looks for
    mend: Text  # how the rewriter mends it


class Constitution(Settings):
    """Principles, applied in their order."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    version: Text  # for people; `hash` is what counts
    kind: Literal["constitution"]
    principles: Annotated[tuple[Principle, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _apart(self) -> Constitution:
        names = [one.name for one in self.principles]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two principles are called {twice[0]!r}")
        return self

    @property
    def hash(self) -> str:
        """The content hash, of all but the version for people."""
        return content_hash(self.model_dump(mode="json", exclude={"version"}), length=16)


def packaged(what: Literal["rubrics", "constitutions"]) -> dict[str, Path]:
    """The files that ship, by name."""
    folder = Path(str(importlib.resources.files("metier"))) / "feedback" / "judges" / what
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_rubric(name: str) -> Rubric:
    """The rubric of a file, or the packaged one of that name. Raises `ConfigError`."""
    return load_yaml(_file(name, "rubrics"), Rubric)


def find_constitution(name: str) -> Constitution:
    """The constitution of a file, or the packaged one of that name. Raises `ConfigError`."""
    return load_yaml(_file(name, "constitutions"), Constitution)


def _file(name: str, what: Literal["rubrics", "constitutions"]) -> Path:
    if Path(name).is_file():
        return Path(name)
    known = packaged(what)
    if name in known:
        return known[name]
    raise ConfigError(
        f"no {what[:-1]} {name!r}: there is no such file and none of that name ships"
        f"{did_you_mean(name, known) or '.'} Those that ship: {', '.join(known)}"
    )
