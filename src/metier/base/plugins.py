"""Python files of the user's: imported by path, with errors that name the line."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from metier.base.errors import ConfigError, MetierError

__all__ = ["import_file", "imported_files"]

_files: dict[Path, str] = {}


def import_file(path: Path, what: str) -> ModuleType:
    """The module of a file that is there; `what` is how errors call it.

    Raises `ConfigError` with the line at which the file fails; its own `MetierError`s pass.
    """
    spec = importlib.util.spec_from_file_location(f"metier_plugin_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations of its functions are looked up here
    try:
        spec.loader.exec_module(module)
    except MetierError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        where = path if line is None else f"{path}, line {line}"
        raise ConfigError(f"{what} {where}: {type(error).__name__}: {error}") from error
    _files[path.resolve()] = what
    return module


def imported_files() -> list[tuple[Path, str]]:
    """What `import_file` was given in this process, for another process to import as well."""
    return list(_files.items())
