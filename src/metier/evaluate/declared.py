"""What to evaluate on, from what a person wrote: a suite's file, a family's split, or a file of tasks.

A suite's file (YAML or JSON) names the suite and its version, says where its tasks come from and how they are run,
and may pin the `hash` of its tasks: another set of tasks under that name is then refused before anything is
computed. `family:split` and `tasks.jsonl` are short for a suite of that source, whose version is made of the family's
version and the hash.

The hash is that of the tasks' ids, in order, and a task's id is the hash of everything that is asked and how it is
verified. It does not know the versions of verifiers; an evaluation names those beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from metier.base.config import Settings, load_yaml, parse
from metier.base.errors import ConfigError, DataError
from metier.base.seeds import derive_seed
from metier.evaluate.suites import Budget
from metier.feedback.verifiers.registry import get_verifier
from metier.records.types import Suite, Task
from metier.rollout.sampling import SamplingSettings
from metier.rollout.tools import get_tool
from metier.tasks.files import FileFamily, task_of_line
from metier.tasks.registry import get_family

__all__ = ["BudgetSettings", "Pinned", "SourceSettings", "SuiteSettings", "read_suite", "verifier_versions"]

Positive = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(gt=0)]

SHORTEST = 12  # digits of a hash that pin a suite
ALL = 1 << 40  # tasks, where no number is asked for
OF_FAMILY = 128  # tasks of a family, which has no end, unless told


class SourceSettings(Settings):
    """Where the tasks of a suite come from: one of `family`, `file` and `dataset`."""

    family: str | None = None  # a registered task family
    options: dict[str, Any] = Field(default_factory=dict)  # of a family that takes some
    file: str | None = None  # JSON lines as the command `run` reads them; beside the suite's file
    dataset: str | None = None  # a dataset of Hugging Face by name, or a folder of one
    config: str | None = None  # of the dataset
    revision: str | None = None  # of the dataset
    columns: dict[str, str] = Field(default_factory=dict)  # key of a task line -> column, or a text with {column}
    verifier: dict[str, Any] | None = None  # of every row of the dataset: {"name", …its parameters}
    split: str | None = None  # of the family, file or dataset
    n: Positive | None = None  # tasks; of a family 128 and of others all, unless told
    seed: int = 0  # from which a family makes tasks, or others are shuffled

    @model_validator(mode="after")
    def _one_of_them(self) -> SourceSettings:
        named = [name for name in ("family", "file", "dataset") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"a source is one of family, file and dataset, not {' and '.join(named) or 'none'}")
        if self.options and self.family is None:
            raise ValueError("options belong to a family")
        if self.dataset is None and (self.config or self.revision or self.columns or self.verifier):
            raise ValueError("config, revision, columns and verifier belong to a dataset")
        if self.split is None and self.file is None:
            raise ValueError(f"a {named[0]} needs a split")
        return self


class BudgetSettings(Settings):
    """The most that an evaluation may take; see `Budget`."""

    episodes: Positive | None = None
    tokens: Amount | None = None  # read and written
    usd: Amount | None = None
    seconds: Amount | None = None  # of one call of the command

    def record(self) -> Budget:
        """The same, with no bound where none is given."""
        return Budget(**{name: value for name, value in self.model_dump().items() if value is not None})


class SuiteSampling(SamplingSettings):
    """How tokens are drawn: the likeliest, unless a temperature is given."""

    temperature: Annotated[float, Field(ge=0)] = 0.0


class SuiteSettings(Settings):
    """A suite's file."""

    name: str
    version: str
    source: SourceSettings
    sampling: SuiteSampling = SuiteSampling()
    repeats: Positive = 1  # attempts at each task
    budget: BudgetSettings = BudgetSettings()
    hash: str | None = None  # of the tasks; others are refused

    @model_validator(mode="after")
    def _fits(self) -> SuiteSettings:
        if not self.name or ":" in self.name or "@" in self.name:
            raise ValueError(f"a suite's name may not be empty or hold ':' or '@': {self.name!r}")
        if self.hash is not None and len(self.hash) < SHORTEST:
            raise ValueError(f"the hash {self.hash!r} is too short to pin anything; give {SHORTEST} digits or more")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A suite, its tasks, and how they are run."""

    suite: Suite
    tasks: tuple[Task, ...]
    settings: SuiteSettings


def read_suite(text: str, *, overrides: Sequence[str] = ()) -> Pinned:
    """The suite that `text` names, a file, `family:split` or task lines, with `key=value` overrides of its settings.

    Raises `ConfigError` or `DataError` where there is none, its hash is another, or a task cannot be scored.
    """
    path, own_version = Path(text), ""
    if path.suffix in (".yaml", ".yml", ".json"):
        settings, base = load_yaml(path, SuiteSettings, overrides), path.parent
    else:
        base = Path()
        family, colon, split = text.partition(":")
        if path.suffix == ".jsonl":
            given: dict[str, Any] = {"name": path.stem, "source": {"file": text}}
        elif colon and family and split:
            given = {"name": f"{family}/{split}", "source": {"family": family, "split": split}}
            own_version = get_family(family).version
        else:
            raise ConfigError(f"there is no suite {text!r}; name a suite's file, family:split, or a .jsonl of tasks")
        settings = parse(SuiteSettings, {**given, "version": "-"}, overrides, where=f"suite {text}")
    tasks = tuple(_tasks(settings.source, base))
    _check(tasks, settings)
    ids = tuple(task.id for task in tasks)
    suite = Suite(name=settings.name, version=settings.version, task_ids=ids)
    if settings.version == "-":
        suite = Suite(name=settings.name, version=f"{own_version or 'file'}-{suite.hash[:12]}", task_ids=ids)
    if settings.hash is not None and not suite.hash.startswith(settings.hash.lower()):
        raise DataError(
            f"suite {suite.name} {suite.version} is pinned to tasks of hash {settings.hash}, and its source now gives "
            f"{len(tasks)} tasks of hash {suite.hash}: restore the source, or raise the version and pin the new hash"
        )
    return Pinned(suite=suite, tasks=tasks, settings=settings)


def verifier_versions(tasks: Sequence[Task]) -> dict[str, str]:
    """The versions of all verifiers that the tasks name, those inside of a combination too. Raises `DataError`."""
    names = {name for task in tasks for spec in task.verifiers for name in (spec.name, *_inside(spec.params))}
    return {name: get_verifier(name).version for name in sorted(names)}


def _inside(params: Mapping[str, Any]) -> list[str]:
    parts = params.get("verifiers")
    named = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, (list, tuple)) else []
    return [name for part in named for name in (str(part.get("name")), *_inside(part))]


def _check(tasks: Sequence[Task], settings: SuiteSettings) -> None:
    if not tasks:
        raise DataError(f"suite {settings.name} has no task")
    if len({task.id for task in tasks}) < len(tasks):
        raise DataError(f"suite {settings.name} has the same task twice; repeats are asked for with `repeats`")
    blind = next((task for task in tasks if not task.verifiers), None)
    if blind is not None:
        raise DataError(
            f"suite {settings.name}: a task has no verifier, so nothing could score it: "
            f"{blind.messages[-1].content[:60]!r}"
        )
    if any(task.environment is not None and isinstance(task.environment.state.get("user"), str) for task in tasks):
        raise ConfigError(f"suite {settings.name} has users whom a model plays; a recipe can name one: `user`")
    verifier_versions(tasks)


# --- sources -----------------------------------------------------------------------------


def _tasks(source: SourceSettings, base: Path) -> list[Task]:
    if source.family is not None:
        family, split = get_family(source.family, source.options), str(source.split)
        # The same tasks that a recipe of this seed measures.
        return family.tasks(split, source.n or OF_FAMILY, derive_seed(source.seed, "tasks", split))
    if source.file is not None:
        lines = FileFamily(base / source.file, _tool)
        splits = list(lines.splits()) if source.split is None else [source.split]
        if source.n is not None and len(splits) > 1:
            raise ConfigError(f"{source.file} has the splits {', '.join(splits)}; say of which to take {source.n}")
        return [task for split in splits for task in lines.tasks(split, source.n or ALL, source.seed)]
    return _of_dataset(source)


def _tool(name: str) -> Any:
    return get_tool(name).record


def _of_dataset(source: SourceSettings) -> list[Task]:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError("a Hugging Face dataset needs a package: pip install 'metier[datasets]'") from error
    assert source.dataset is not None
    try:
        rows = datasets.load_dataset(source.dataset, source.config, split=str(source.split), revision=source.revision)
    except Exception as error:  # the library's own kinds are many: no such name, no network, a broken file
        first = str(error).strip().partition("\n")[0][:300]
        raise DataError(f"the dataset {source.dataset!r} cannot be had: {type(error).__name__}: {first}") from error
    if source.n is not None:
        rows = rows.shuffle(seed=source.seed).select(range(min(source.n, len(rows))))
    tasks = []
    for number, row in enumerate(rows, 1):
        try:
            line = _line(row, source)
            task, _ = task_of_line(line, _tool, source=f"{source.dataset}/{source.revision or 'newest'}")
        except (ValueError, TypeError) as error:  # DataError is a ValueError
            raise DataError(f"dataset {source.dataset}, row {number}: {error}") from error
        tasks.append(task)
    return tasks


def _line(row: Mapping[str, Any], source: SourceSettings) -> dict[str, Any]:
    """A row as a line of a task file: the columns as they are mapped, or the row itself where none are."""
    line = {key: _cell(row, column) for key, column in source.columns.items()} if source.columns else dict(row)
    line = {key: value for key, value in line.items() if value is not None}
    if source.verifier is not None:
        line["verifier"] = source.verifier
    return {"split": source.split, **line}


def _cell(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    if "{" not in column:
        raise DataError(f"there is no column {column!r}; it has {', '.join(row)}")
    try:
        return column.format_map(row)
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"the text {column!r} cannot be filled ({error}); columns are {', '.join(row)}") from error
