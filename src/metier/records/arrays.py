"""Token ids, log-probabilities and loss masks: Arrow IPC shards beside the ledger.

One shard holds the arrays of the episodes that were added together, one row per episode,
uncompressed so that a reader maps it and touches only what it asks for. A shard is
written under another name, put on disk and renamed, all before the rows that name it are
committed: after a crash there may be a shard that no row names, never a row without its
shard. Log-probabilities are kept as float32.

Writing, dropping and sweeping happen under the ledger's write lock; this module takes
none of its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from metier.base.errors import DataError, LedgerError
from metier.base.ids import content_hash
from metier.records.types import Episode

__all__ = ["ArrayStore", "EpisodeArrays"]

_TYPES = (("token_ids", pa.int32()), ("sampler_logprobs", pa.float32()), ("loss_mask", pa.int8()))
_SCHEMA = pa.schema([("episode_id", pa.string()), *((name, pa.list_(kind)) for name, kind in _TYPES)])


class EpisodeArrays(NamedTuple):
    """The arrays of one episode, one entry per token."""

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    loss_mask: tuple[int, ...]


class ArrayStore:
    """The folder of shards that belongs to one ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, episodes: Sequence[Episode]) -> str:
        """Put the arrays of `episodes` into one new shard; returns its name, which depends on their ids alone."""
        for episode in episodes:
            _check_lengths(episode)
        columns = [pa.array([episode.id for episode in episodes], pa.string())]
        for name, kind in _TYPES:
            try:
                columns.append(pa.array([getattr(episode, name) for episode in episodes], pa.list_(kind)))
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise DataError(f"{name} of an episode does not fit {kind}: {error}") from error
        shard = content_hash([episode.id for episode in episodes]) + ".arrow"
        self._put(shard, pa.Table.from_arrays(columns, schema=_SCHEMA))
        return shard

    def read(self, shard: str, episode_ids: Collection[str]) -> dict[str, EpisodeArrays]:
        """The arrays of those of `episode_ids` that the shard holds."""
        table = self._load(shard)
        wanted = set(episode_ids)
        columns = [table.column(name).combine_chunks() for name, _ in _TYPES]
        found = {}
        for row, episode_id in enumerate(table.column("episode_id").to_pylist()):
            if episode_id in wanted:
                found[episode_id] = EpisodeArrays(*(_values(column, row) for column in columns))
        return found

    def drop(self, shard: str, episode_ids: Collection[str]) -> None:
        """Write the shard again, under its own name, without the arrays of `episode_ids`."""
        if not (self.folder / shard).exists():
            return
        table = self._load(shard)
        keep = [name not in episode_ids for name in table.column("episode_id").to_pylist()]
        self._put(shard, table.filter(pa.array(keep, pa.bool_())))

    def sweep(self, known: Iterable[str]) -> None:
        """Delete what a crash left: files that no row names."""
        if not self.folder.is_dir():
            return
        keep = set(known)
        for file in self.folder.iterdir():
            if file.name not in keep and (file.name.endswith(".arrow") or file.name.endswith(".writing")):
                file.unlink(missing_ok=True)

    def _load(self, shard: str) -> Any:
        path = self.folder / shard
        try:
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_file(source).read_all()
        except FileNotFoundError as error:
            raise LedgerError(
                f"the token arrays {path} are missing; a ledger is moved together with its folder {self.folder.name}"
            ) from error
        except pa.ArrowInvalid as error:
            raise LedgerError(f"the token arrays {path} are damaged ({error}); restore the file from a copy") from error

    def _put(self, shard: str, table: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{shard}.{os.getpid()}.writing"
        try:
            with temporary.open("wb") as file:
                with pa.ipc.new_file(file, _SCHEMA) as writer:
                    writer.write_table(table)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / shard)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self.folder)


def _values(column: Any, row: int) -> tuple[Any, ...]:
    values = column[row].values
    return tuple(values.to_numpy(zero_copy_only=False).tolist())


def _check_lengths(episode: Episode) -> None:
    n = len(episode.token_ids)
    for name in ("sampler_logprobs", "loss_mask"):
        length = len(getattr(episode, name))
        if length not in (0, n):
            raise DataError(f"episode {episode.id} has {n} token_ids and {length} {name}; give one per token, or none")


def _sync_folder(folder: Path) -> None:
    """Put the rename itself on disk, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
