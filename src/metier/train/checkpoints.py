"""Checkpoints: models for anyone to load, and trainer states to go on from.

A model is a folder in Hugging Face layout with `metier.json` beside the weights. A trainer
state is a folder `state-<step>` with one safetensors file of master weights and AdamW
moments; going on from it gives bit for bit what an uninterrupted run gives.

Both are written beside their place and renamed, so a killed process leaves no half of one.
Nothing is flushed to the disk by force: after a power cut the newest state may be torn,
which its recorded size shows; `keep=2` keeps an older one to fall back to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metier.base.clock import monotonic
from metier.base.errors import DataError, DiskFullError, ModelError
from metier.models.adapters import fingerprint, has_adapter, merged
from metier.models.hub import load_tokenizer
from metier.train.loop import Trainer
from metier.train.optimizer import DivergedError

__all__ = ["Saver", "export", "load_state", "put_back", "save_model", "save_state", "weights_hash"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_NUMBER = "number."  # before the name of what is no tensor
_STATE = re.compile(r"state-(\d+)")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    template: str,
    manifest: Mapping[str, Any],
) -> str:
    """Write a model that transformers loads, with its chat template; returns `weights_hash`.

    Of a model with an adapter the adapter alone is written, in peft's layout. `manifest` goes
    to `metier.json`, with the hash as `weights_hash`. A folder of that name is replaced.
    Raises `DiskFullError` and leaves what was there when the disk is full.
    """
    with _written(Path(folder)) as partial:
        model.save_pretrained(partial)
        kept = tokenizer.chat_template
        try:
            tokenizer.chat_template = template
            tokenizer.save_pretrained(partial)
        finally:
            tokenizer.chat_template = kept
        if getattr(model, "generation_config", None) is not None:  # models that score have none
            model.generation_config.save_pretrained(partial)
        digest = weights_hash(partial)
        if has_adapter(model):
            manifest = {**manifest, "base_fingerprint": fingerprint(model)}
        _write_json(partial / "metier.json", {**manifest, "weights_hash": digest})
    return digest


def export(folder: str | Path, out: str | Path) -> str:
    """A checkpoint as a whole model in a folder of its own, an adapter merged into its base; returns `weights_hash`.

    Raises `DataError` where `out` is there already.
    """
    source, place = Path(folder), Path(out)
    if place.exists():
        raise DataError(f"{place} is there already; choose another place, or remove it")
    if not (source / "adapter_config.json").is_file():
        with _written(place) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
        return weights_hash(place)
    noted = source / "metier.json"
    manifest = json.loads(noted.read_text()) if noted.is_file() else {}
    manifest = {k: v for k, v in manifest.items() if k not in ("base_fingerprint", "weights_hash")}
    tokenizer = load_tokenizer(str(source))
    return save_model(
        merged(source),
        tokenizer,
        place,
        template=str(tokenizer.chat_template),
        manifest={**manifest, "merged_from": weights_hash(source)},
    )


def weights_hash(folder: str | Path) -> str:
    """sha256 over the name, dtype, shape and bytes of every tensor in the folder, names sorted.

    Raises `DataError` where the folder holds no safetensors.
    """
    place: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                place.update(dict.fromkeys(file.keys(), path))
        except SafetensorError as error:
            raise ModelError(f"{path} is cut off or no safetensors file ({error}); take another copy") from error
    if not place:
        raise DataError(f"{folder} holds no safetensors file; give a folder in Hugging Face layout")
    digest = hashlib.sha256()
    for name in sorted(place):
        with safe_open(place[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(trainer: Trainer, folder: str | Path, *, keep: int = 1, step: int | None = None) -> Path:
    """Write `state-<step>` into `folder`, then remove all but the newest `keep` states.

    `step` is the trainer's own unless told. Raises `DiskFullError` and keeps the earlier states when the disk is full.
    """
    root = Path(folder)
    number = trainer.step_number if step is None else step
    place = root / f"state-{number}"
    masters = trainer.masters
    tensors: dict[str, Tensor] = {}
    for name, master in zip(masters.names, masters.masters, strict=True):
        tensors[f"master.{name}"] = master.detach()
        for key, value in masters.optimizer.state.get(master, {}).items():
            if isinstance(value, Tensor):  # what eight bits need is shared between weights, so it is copied
                tensors[f"{key}.{name}"] = value if key in _MOMENTS else value.clone()
            elif isinstance(value, int):
                tensors[f"{_NUMBER}{key}.{name}"] = torch.tensor(value)
    with _written(place) as partial:
        file = partial / "state.safetensors"
        save_file(tensors, file)
        _write_json(partial / "state.json", {"step_number": number, "bytes": file.stat().st_size})
    for old in _states(root)[keep:]:
        if old != place:
            shutil.rmtree(old, ignore_errors=True)
    return place


def load_state(trainer: Trainer, folder: str | Path) -> int | None:
    """Go on from the newest complete state in `folder`; returns its step, or None where none is.

    Raises `DataError` when states are there but all are torn, or belong to another model.
    """
    states = _states(Path(folder))
    for place in states:
        found = _read_state(place)
        if found is not None:
            _restore(trainer, found[0], place)
            trainer.step_number = found[1]
            return trainer.step_number
    if states:
        raise DataError(f"every trainer state in {folder} is torn; remove them to start from the beginning")
    return None


class Saver:
    """Keeps a trainer's state before another step would put too much work at risk.

    A state is written by a thread while the next step computes its gradient, which leaves
    masters and moments as they are; the step waits for it before it changes them.
    """

    def __init__(self, trainer: Trainer, folder: str | Path, seconds: float, *, keep: int = 1) -> None:
        """A crash loses work of `seconds`, or of two steps where those are longer; `keep` states stay."""
        self.trainer, self.folder, self.seconds, self.keep = trainer, Path(folder), seconds, keep
        self.saved = self.stepped = monotonic()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        trainer.masters.before_change = self.finish

    def resume(self) -> bool:
        """Go on from the newest whole state; returns whether there is one."""
        return load_state(self.trainer, self.folder) is not None

    def after_step(self) -> None:
        """Save where one more step as long as this one would lose more than `seconds` to a crash."""
        step, self.stepped = monotonic() - self.stepped, monotonic()
        if self.stepped - self.saved + step >= self.seconds:
            self.saved = self.stepped
            self._thread = threading.Thread(target=self._write, args=(self.trainer.step_number,), name="metier-save")
            self._thread.start()

    @contextmanager
    def rescuing(self) -> Iterator[None]:
        """Write the state where a step diverges: its weights are the last good ones."""
        try:
            yield
        except DivergedError:
            self.finish()
            save_state(self.trainer, self.folder, keep=self.keep)
            raise

    def finish(self) -> None:
        """Wait for the state that is being written. Raises what went wrong with it."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, step: int) -> None:
        try:
            save_state(self.trainer, self.folder, keep=self.keep, step=step)
        except BaseException as error:  # told by finish(), in the thread that trains
            self._error = error


def _states(root: Path) -> list[Path]:
    """Folders of states, newest first."""
    found = [(int(m[1]), p) for p in root.glob("state-*") if (m := _STATE.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _read_state(place: Path) -> tuple[dict[str, Tensor], int] | None:
    """The tensors and step of a state, or None where it is torn."""
    try:
        noted = json.loads((place / "state.json").read_text())
        file = place / "state.safetensors"
        if file.stat().st_size != noted["bytes"]:
            return None
        return load_file(file), int(noted["step_number"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


@torch.no_grad()
def _restore(trainer: Trainer, tensors: dict[str, Tensor], place: Path) -> None:
    masters = trainer.masters
    for name, master in zip(masters.names, masters.masters, strict=True):
        saved = tensors.get(f"master.{name}")
        if saved is None or saved.shape != master.shape or saved.dtype != master.dtype:
            raise DataError(f"the state {place} is of another model: {name} differs; give the model it was saved from")
    masters.discard()
    masters.optimizer.state.clear()
    of_name: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        what, _, name = key.removeprefix(_NUMBER).partition(".")
        if what != "master":
            value = int(tensor) if key.startswith(_NUMBER) else tensor.to(masters.masters[0].device)
            of_name.setdefault(name, {})[what] = value
    for name, master in zip(masters.names, masters.masters, strict=True):
        master.copy_(tensors[f"master.{name}"])
        moments = of_name.get(name)
        if moments:
            masters.optimizer.state[master] = moments
    masters.publish()


@contextmanager
def _written(place: Path) -> Iterator[Path]:
    """A new folder that takes the name `place` when its block ends well, and goes away when not."""
    partial = place.with_name(f".{place.name}.partial")
    aside = _aside(place)
    put_back(place)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
        partial.rename(place)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if _disk_full(error):
            raise DiskFullError(
                f"the disk has no room for {place}; what was saved before is kept. Free some space and resume"
            ) from error
        raise


def put_back(place: Path) -> None:
    """Give a folder its name again that a killed process had set aside to replace it."""
    aside = _aside(place)
    if aside.is_dir() and not place.exists():
        aside.rename(place)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _disk_full(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    # safetensors and tokenizers (which raises a bare Exception) have only words for it
    return any(f"os error {code})" in str(error) or os.strerror(code) in str(error) for code in full)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
