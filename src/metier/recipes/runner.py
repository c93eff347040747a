"""`metier run`: one recipe carried out once, stage by stage, resumable at any moment.

A run folder belongs to one configuration and one process at a time. The random part of
the run's id is drawn when the folder is made and kept in `run.json`; no number depends
on it. Stages that are done are skipped; the one that was interrupted goes on from what
it kept.
"""

from __future__ import annotations

import errno
import json
import platform
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metier.base.clock import now
from metier.base.config import find_recipe, load_yaml
from metier.base.errors import ConfigError, DiskFullError
from metier.base.executor import LocalExecutor
from metier.base.ids import canonical_json, content_hash
from metier.base.lock import only_one
from metier.base.memory import hand_back_freed_memory, keep_freed_memory
from metier.base.plugins import import_file
from metier.feedback.verifiers.registry import get_verifier
from metier.recipes.context import Context
from metier.recipes.settings import Recipe, Rl
from metier.recipes.stages import run_stage
from metier.records.events import EventLog
from metier.records.ledger import Ledger
from metier.records.trackers import get_tracker
from metier.records.types import Run
from metier.rollout.tools import get_tool
from metier.rollout.users import played_by
from metier.tasks.files import FileFamily
from metier.tasks.protocol import TaskFamily
from metier.tasks.registry import get_family

__all__ = ["RunResult", "run"]

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run left behind."""

    run_id: str
    folder: Path
    report: Path | None


def run(
    recipe: str | Recipe,
    *,
    folder: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    ledger: str | None = None,
    listener: Listener | None = None,
) -> RunResult:
    """Walk the loop once, or go on with a run that was stopped.

    `recipe` is a YAML file, the name of a packaged recipe, or a `Recipe`. `folder` is
    `runs/<name>` unless told, the ledger `ledger.sqlite` beside the run folders. Raises a
    `MetierError` for everything that the user can mend; what was written stays.
    """
    if isinstance(recipe, str):
        source = find_recipe(recipe)
        recipe = load_yaml(source, Recipe, overrides)
        base = source.parent
    else:
        base = Path.cwd()
    if seed is not None:
        recipe = recipe.model_copy(update={"seed": seed})
    where = Path(folder) if folder is not None else Path("runs") / recipe.name
    try:
        where.mkdir(parents=True, exist_ok=True)
        with (
            only_one(where, "give this run its own --folder"),
            Ledger.open(ledger or where.parent / "ledger.sqlite") as opened,
            recipe.tools.ready(),
            _player(recipe),
        ):
            return _run(recipe, base, where, opened, listener)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk of {where} is full; free some space and run the same command to continue"
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise ConfigError(f"{error.filename or where} may not be written; choose another --folder") from error
        raise


def _run(recipe: Recipe, base: Path, folder: Path, ledger: Ledger, listener: Listener | None) -> RunResult:
    keep_freed_memory()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    for plugin in recipe.plugins:
        _load_plugin(base / plugin)
    for stage in recipe.stages:
        for one in stage.verifiers if isinstance(stage, Rl) else ():
            get_verifier(one.name)  # raises here, not after hours
    identity = _identity(recipe, folder)
    family = _family(recipe, base)
    run_id = identity["id"]
    if run_id not in {r.id for r in ledger.runs()}:
        ledger.add_run(
            Run(
                id=run_id,
                recipe=recipe.name,
                config=recipe.model_dump(mode="json"),
                seed=recipe.seed,
                folder=str(folder),
                code_version=_code_version(),
                stages=recipe.records(),
                hardware=hardware(),
                created_at=identity["created_at"],
            )
        )
    context: Context | None = None
    tracker = get_tracker(recipe.tracker, folder)
    log = EventLog(folder, [tracker.event, *([listener] if listener else [])])
    try:
        log.emit("", "run_start", stages=[stage.name for stage in recipe.stages], run=run_id)
        context = Context(
            recipe=recipe,
            run_id=run_id,
            folder=folder,
            ledger=ledger,
            log=log,
            family=family,
            executor=LocalExecutor(recipe.workers),
        )
        report = None
        for stage in recipe.stages:
            done = context.finished(stage.name)
            if done is not None:
                log.emit(stage.name, "stage_skip")
            else:
                with context.stage(stage.name):
                    done = run_stage(context, stage)
                context.finish(stage.name, done)
                shutil.rmtree(folder / "state" / stage.name, ignore_errors=True)  # only of use while it trains
                hand_back_freed_memory()
            if "report" in done:
                report = folder / str(done["report"])
        return RunResult(run_id, folder, report)
    finally:
        if context is not None:
            context.close()
        log.close()
        tracker.close()


@contextmanager
def _player(recipe: Recipe) -> Iterator[None]:
    """Let the recipe's model play the users that have instructions."""
    if recipe.user is None:
        yield
        return
    with recipe.user.endpoint() as endpoint:
        played_by(endpoint)
        try:
            yield
        finally:
            played_by(None)


def _identity(recipe: Recipe, folder: Path) -> Mapping[str, Any]:
    """Who this run is: read from the folder, or made now. A changed recipe is refused."""
    path = folder / "run.json"
    mark = content_hash(json.loads(canonical_json(recipe.model_dump(mode="json"))))
    if path.is_file():
        identity: dict[str, Any] = json.loads(path.read_text())
        if identity["config_hash"] != mark:
            raise ConfigError(
                f"{folder} holds a run of another configuration; give this one its own --folder, or remove that folder"
            )
        return identity
    identity = {"id": f"run-{recipe.name}-{secrets.token_hex(4)}", "config_hash": mark, "created_at": now()}
    partial = folder / "run.json.partial"
    partial.write_text(json.dumps(identity))
    partial.rename(path)
    return identity


def _family(recipe: Recipe, base: Path) -> TaskFamily:
    if recipe.tasks.file is not None:
        family = FileFamily(base / recipe.tasks.file, lambda name: get_tool(name).record)
        if family.needs_player and recipe.user is None:
            raise ConfigError(
                f"{recipe.tasks.file} has users with instructions; name the model that plays them: `user`"
            )
        return family
    assert recipe.tasks.family is not None
    options = {key: _beside(base, value) for key, value in recipe.tasks.options.items()}
    return get_family(recipe.tasks.family, options)


def _beside(base: Path, value: Any) -> Any:
    """An option that names a Python file (`evals/sums.py:sums`) is meant beside the recipe, as all its paths are."""
    return str(base / value) if isinstance(value, str) and ".py:" in value else value


def _load_plugin(path: Path) -> None:
    """Import a user's Python file, which registers its tools and verifiers as it is read."""
    if not path.is_file():
        raise ConfigError(f"plugin {path} does not exist; paths are relative to the recipe")
    import_file(path, "plugin")


def _code_version() -> str:
    """The package's version, and the commit where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        commit = done.stdout.strip() if done.returncode == 0 else ""
    except OSError:
        commit = ""
    return f"metier {version('metier')}" + (f" ({commit})" if commit else "")


def hardware() -> Mapping[str, Any]:
    """The machine, as runs and benchmarks name it."""
    import os

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
