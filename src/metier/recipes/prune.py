"""Free the disk of what a run no longer needs.

A trainer's state is of use until its stage ends; a checkpoint until another one made from
it is all that is wanted. The ledger, the event log and the report are never touched, so
what was done can still be told. Pruned weights can be made again by running the recipe in
a new folder with the same seed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from metier.base.errors import DataError
from metier.base.lock import only_one
from metier.records.events import read

__all__ = ["prune"]


def prune(folder: str | Path, *, weights: bool = False, dry_run: bool = False) -> dict[str, int]:
    """Remove what is of no use; returns {path: bytes freed}.

    That is: states of finished stages and what a killed process left half written; with
    `weights` also the checkpoints of all stages but the last that made one. Raises
    `DataError` where the folder holds no run, or `weights` are wanted of one that is not
    finished, and `RunLockedError` while it is at work.
    """
    root = Path(folder)
    if not (root / "run.json").is_file():
        raise DataError(f"{root} holds no run; metier runs list shows the runs")
    with only_one(root, "prune it later"):
        finished = {path.stem for path in (root / "stages").glob("*.json")}
        places = [path for path in (root / "state").glob("*") if path.name in finished]
        places += root.rglob(".*.partial")
        places += [path for path in root.rglob(".*.old") if path.with_name(path.name[1:-4]).exists()]
        if weights:
            left = [name for name in _stages(root) if name not in finished]
            if left:
                raise DataError(
                    f"{root} is not finished: {', '.join(left)} may start from any of its checkpoints; run it to its "
                    "end with the same command, or prune without --weights"
                )
            places += _made(root)[:-1]
        freed = {str(path): _size(path) for path in places}
        if not dry_run:
            for path in places:
                shutil.rmtree(path, ignore_errors=True)
    return freed


def _stages(root: Path) -> list[str]:
    """The names of the run's stages, as its last start gave them."""
    starts = [event["stages"] for event in read(root) if event["event"] == "run_start"]
    return list(starts[-1]) if starts else []


def _made(root: Path) -> list[Path]:
    """The checkpoints of the run, in the order in which they were made."""
    found = [path for path in (root / "checkpoints").glob("*") if (path / "metier.json").is_file()]
    parents = {path: json.loads((path / "metier.json").read_text()) for path in found}
    ids = {noted["id"]: path for path, noted in parents.items()}

    def depth(path: Path) -> int:
        parent = ids.get(parents[path]["parent"])
        return 0 if parent is None else 1 + depth(parent)

    return sorted(found, key=lambda path: (depth(path), (path / "metier.json").stat().st_mtime_ns))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
